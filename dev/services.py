"""What the production stack needs of this machine: PostgreSQL, MariaDB, Redis, sshd, Slurm; left as it was.

``python -m dev.services`` tells which of them are there, and how to get the others; exit code 0: all are.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dev import slurm


class ServiceMissing(Exception):
    """A service does not answer; the message says which, and how to get it."""


@dataclass(frozen=True)
class Service:
    """A service that the stack needs.

    :param name: as people call it.
    :param variable: environment variable that may name another address.
    :param default: address where Debian's package listens, with an account that may make databases.
    :param package: Debian's package.
    """

    name: str
    variable: str
    default: str
    package: str

    @property
    def address(self) -> str:
        """Where it is, or should be."""
        return os.environ.get(self.variable) or self.default

    def missing(self, error: Exception) -> ServiceMissing:
        """Return the error that says that it does not answer."""
        where = urlsplit(self.address)
        text = str(error.args[-1] if error.args else error)  # pymysql's first argument is a number
        reason = (text.splitlines() or [type(error).__name__])[0]
        return ServiceMissing(
            f"{self.name} does not answer at {where.hostname}:{where.port} ({reason}). Install and start it"
            f" (Debian: apt-get install {self.package}), or say with {self.variable} where it is, such as"
            f" {self.default}"
        )


POSTGRESQL = Service(
    "PostgreSQL", "TEST_STACK_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres", "postgresql"
)
MARIADB = Service("MariaDB", "TEST_STACK_MARIADB", "mysql://root@127.0.0.1:3306", "mariadb-server")
REDIS = Service("Redis", "TEST_STACK_REDIS", "redis://127.0.0.1:6379", "redis-server")


@contextlib.contextmanager
def postgresql_database() -> Iterator[str]:
    """Make a database for Airflow and remove it at the end; its address, as SQLAlchemy takes it.

    :raises ServiceMissing: there is no PostgreSQL.
    """
    import psycopg2

    def execute(*statements: str) -> None:
        try:
            connection = psycopg2.connect(POSTGRESQL.address, connect_timeout=5)
        except psycopg2.OperationalError as error:
            raise POSTGRESQL.missing(error) from None
        with contextlib.closing(connection):
            connection.autocommit = True
            for statement in statements:
                connection.cursor().execute(statement)

    name = _new_name()
    execute(f"CREATE DATABASE {name}")
    try:
        address = urlsplit(POSTGRESQL.address)
        # SQLAlchemy 2.1 takes another driver where none is named.
        yield address._replace(scheme="postgresql+psycopg2", path=f"/{name}").geturl()
    finally:
        execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def mariadb_database() -> Iterator[str]:
    """Name a database for Jobmon, which makes it by itself, and remove it at the end; its address.

    :raises ServiceMissing: there is no MariaDB.
    """
    name = _new_name()
    connect_to_mariadb().close()
    try:
        yield urlsplit(MARIADB.address)._replace(scheme="mysql+pymysql", path=f"/{name}").geturl()
    finally:
        with contextlib.closing(connect_to_mariadb()) as connection:
            connection.cursor().execute(f"DROP DATABASE IF EXISTS {name}")


def connect_to_mariadb(database: str | None = None) -> Any:
    """Return a connection, each statement of which is a transaction of its own.

    :param database: its name, or an address that ends in it. Default: none.
    :raises ServiceMissing: there is no MariaDB.
    """
    import pymysql

    address = urlsplit(MARIADB.address)
    try:
        return pymysql.connect(
            host=address.hostname,
            port=address.port or 3306,
            user=address.username,
            password=address.password or "",
            database=database.rpartition("/")[2] if database else None,
            connect_timeout=5,
            autocommit=True,
        )
    except pymysql.OperationalError as error:
        raise MARIADB.missing(error) from None


@contextlib.contextmanager
def redis_database() -> Iterator[str]:
    """Take a database of Redis that nobody uses, and empty it at the end; its address.

    :raises ServiceMissing: there is no Redis, or it has no empty database.
    """
    import redis

    for number in range(1, 16):
        address = urlsplit(REDIS.address)._replace(path=f"/{number}").geturl()
        with contextlib.closing(redis.Redis.from_url(address, socket_timeout=5)) as client:
            try:
                taken = client.dbsize()
            except redis.ConnectionError as error:
                raise REDIS.missing(error) from None
            if not taken:
                try:
                    yield address
                finally:
                    client.flushdb()
                return
    raise ServiceMissing(f"Redis at {REDIS.address}: none of the databases 1 to 15 is empty")


def sshd() -> str:
    """Return where OpenSSH's server is.

    :raises ServiceMissing: it is not installed.
    """
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise ServiceMissing("sshd is not installed. Install it (Debian: apt-get install openssh-server)")
    return path


def sshd_server(port: int, folder: Path, settings: Mapping[str, str]) -> Sequence[str]:
    """Return the command that starts sshd as a submit host: see ``dev.submit_host``.

    :raises ServiceMissing: it is not installed.
    """
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "SetEnv": " ".join(f'"{name}={value}"' for name, value in settings.items()),
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, and a system's own start makes it
    return [sshd(), "-D", "-e", "-f", str(folder / "config")]


def _new_name() -> str:
    return f"jobmon_provider_test_{secrets.token_hex(4)}"


def main() -> int:
    """Tell which services are there; return the exit code."""
    needed: list[Callable[[], contextlib.AbstractContextManager[str]]]
    needed = [postgresql_database, mariadb_database, redis_database, lambda: contextlib.nullcontext(sshd())]
    missing = 0
    for service in needed:
        try:
            with service():
                continue
        except ServiceMissing as error:
            print(error, file=sys.stderr)
            missing += 1
    if no_slurm := slurm.missing():
        print(f"Slurm cannot be started here: {no_slurm}", file=sys.stderr)
        missing += 1
    if not missing:
        print("PostgreSQL, MariaDB and Redis answer, and sshd and Slurm are there")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
