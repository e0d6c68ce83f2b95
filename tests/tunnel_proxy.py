"""An HTTP proxy on a real socket, for https: it opens a tunnel to wherever it is told, or refuses."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TunnelProxy:
    """Opens tunnels; a context manager.

    :param authorization: the ``Proxy-Authorization`` that it wants. Default: none.
    :param cuts: close each tunnel as soon as something is sent through it. Default False.
    :ivar tunnels: where it was told to open one.
    """

    def __init__(self, authorization: str | None = None, *, cuts: bool = False) -> None:
        self.tunnels: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                proxy.tunnels.append(self.path)
                self.close_connection = True
                if authorization is not None and self.headers["Proxy-Authorization"] != authorization:
                    self.send_error(407)
                    return
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as server:
                    self.send_response(200)
                    self.end_headers()
                    if cuts:
                        self.connection.recv(100)
                        return
                    back = threading.Thread(target=pump, args=(server, self.connection), daemon=True)
                    back.start()
                    pump(self.connection, server)
                    back.join(10)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> TunnelProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, until nothing comes any longer."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
