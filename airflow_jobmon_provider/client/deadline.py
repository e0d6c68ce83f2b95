"""A time-out for a whole request: that of requests starts anew with each step of it and with each byte.

For a reply it is kept where bytes are read from the connection, so that it holds for head and body, with and
without TLS.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Deadline(Timeout):
    """Gives each step of a request what is left of one time for all of them.

    :param seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(total=seconds)
        self._end = time.monotonic() + seconds

    def clone(self) -> Deadline:
        """Return this one: urllib3 takes a copy for each request, of which there is one."""
        return self

    def start_connect(self) -> float:
        """Do nothing: the time runs already."""
        return time.monotonic()

    @property
    def connect_timeout(self) -> float:
        """Seconds that are left, for a connection."""
        return max(self._end - time.monotonic(), 0.001)  # 0: a socket would not wait at all

    @property
    def read_timeout(self) -> float:
        """Seconds that are left, for the reply."""
        return self.connect_timeout


class Reading(io.RawIOBase):
    """Reads a connection until a deadline: its time-out from now on. It must have one.

    :param raw: how http.client reads the connection.
    :param connection: whose time-out is set anew before each reading.
    """

    def __init__(self, raw: io.RawIOBase, connection: socket.socket) -> None:
        super().__init__()
        self._raw = raw
        self._connection = connection
        timeout = connection.gettimeout()
        assert timeout is not None
        self._end = time.monotonic() + timeout

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer, and return how many bytes.

        :raises TimeoutError: the deadline is over, also if there is more to read.
        """
        rest = self._end - time.monotonic()
        if rest <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(rest)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close what http.client reads, too."""
        super().close()
        self._raw.close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(Reading(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Response


class _TlsConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class DeadlineAdapter(HTTPAdapter):
    """An adapter of requests whose read time-out is for the whole reply. Each request must have one."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the connection pools."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make those through a proxy."""
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager
