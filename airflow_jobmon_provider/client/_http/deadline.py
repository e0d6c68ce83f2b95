"""A time-out for a whole request: that of requests starts anew with each step of it and with each byte.

For a reply it is kept where bytes are read from the connection, so that it holds for head and body, with and
without TLS.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from airflow_jobmon_provider.client._http import errors, lookups


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
        return _rest(self._end)

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


class _Connecting(HTTPConnection):
    """Keeps its time-out as it connects: for name, all addresses, proxy and TLS together."""

    response_class = _Response

    def connect(self) -> None:
        """Connect; mark what is raised, so that it is known that no request was sent."""
        try:
            super().connect()
        except Exception as error:
            errors.mark_as_never_connected(error)
            raise

    def _new_conn(self) -> socket.socket:
        timeout = self.timeout
        assert isinstance(timeout, (int, float))
        end = time.monotonic() + timeout
        try:
            infos = lookups.find(self._dns_host.strip("[]"), self.port or self.default_port, timeout)
            sock = _connect(infos, end, self.socket_options or ())
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "timed out") from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error
        sock.settimeout(_rest(end))
        return sock


def _connect(infos: list[lookups.AddressInfo], end: float, options: Any) -> socket.socket:
    """Return a connection to the first of the addresses that takes one.

    :param end: until when, by the monotonic clock.
    :raises OSError: none of them did; the last one's.
    """
    failure = OSError()
    for tried, (family, kind, proto, _, address) in enumerate(infos):
        sock = socket.socket(family, kind, proto)
        try:
            for option in options:
                sock.setsockopt(*option)
            # One that never answers leaves time for the others.
            sock.settimeout(_rest(end) / (len(infos) - tried))
            sock.connect(address)
        except OSError as error:
            failure = error
            sock.close()
        else:
            sock.settimeout(_rest(end))
            return sock
    raise failure


def _rest(end: float) -> float:
    return max(end - time.monotonic(), 0.001)  # 0: a socket would not wait at all


class _Connection(_Connecting):
    pass


class _TlsConnection(_Connecting, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class DeadlineAdapter(HTTPAdapter):
    """An adapter of requests whose read time-out is for the whole reply. Each request must have one.

    :param tls: how to check the server's certificate, whatever requests says; None: for http only.
    :param proxy_headers: sent to the proxy, and only to it.
    """

    def __init__(self, tls: ssl.SSLContext | None, proxy_headers: Mapping[str, str]) -> None:
        self._tls: dict[str, Any] = {}
        if tls is not None:
            checked = tls.verify_mode is not ssl.CERT_NONE
            self._tls = {"ssl_context": tls, "cert_reqs": "CERT_REQUIRED" if checked else "CERT_NONE"}
        self._proxy_headers = dict(proxy_headers)
        # The pool's own retries stay off: tenacity decides, by the protocol's rules.
        super().__init__(pool_maxsize=10, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the connection pools."""
        kwargs.update(self._tls)
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make those through a proxy."""
        kwargs.update(self._tls)
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        """Return what is sent to the proxy."""
        return self._proxy_headers

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Leave it to the context."""

    def build_connection_pool_key_attributes(
        self, request: Any, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        """Return scheme, host and port, and nothing about TLS: it is the context's business."""
        return super().build_connection_pool_key_attributes(request, verify, cert)[0], {}
