"""An HTTP proxy on a real socket that swallows replies: the server has acted, and the client never hears."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class SwallowingProxy:
    """Passes requests on to a server, and swallows the replies that it is told to.

    :param target: address of the server.
    :param swallow: method and path of a request → whether its reply is swallowed.
    """

    def __init__(self, target: str, swallow: Callable[[str, str], bool]) -> None:
        host = urlsplit(target).netloc
        self.swallowed: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server = http.client.HTTPConnection(host, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "accept-encoding"}
                server.request(self.command, self.path, body, headers)
                reply = server.getresponse()
                content = reply.read()
                server.close()
                if swallow(self.command, self.path):
                    proxy.swallowed.append(self.path)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.headers["Content-Type"])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> SwallowingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
