"""An HTTP server on a real socket that replies what a test says, and a real Jobmon cannot be made to say."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One reply. ``body``: bytes as they are, anything else as JSON; None: hang up without a reply."""

    status: int = 200
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


HANG_UP = Reply(0)


class StubServer:
    """Replies in turn; the last reply goes on for ever."""

    def __init__(self, *replies: Any, tls: ssl.SSLContext | None = None) -> None:
        self.replies = [reply if isinstance(reply, Reply) else Reply(200, reply) for reply in replies]
        self.requests: list[Request] = []
        self.connections = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keep-alive

            def setup(self) -> None:
                stub.connections += 1
                super().setup()

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, ssl.SSLError):
                    self.close_connection = True

            def do(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                reply = stub.reply_to(
                    Request(self.command, self.path, dict(self.headers), json.loads(raw) if raw else None)
                )
                if reply is HANG_UP:
                    self.close_connection = True
                    return
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            # The handshake is each connection's thread's: one that is never finished blocks no other.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def reply_to(self, request: Request) -> Reply:
        """Keep a request, and return the reply to it."""
        self.requests.append(request)
        return self.replies[min(len(self.requests), len(self.replies)) - 1]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class NewEnoughServer(StubServer):
    """Tells the version of its API to whoever asks; that is no request for a test, and takes no reply."""

    def reply_to(self, request: Request) -> Reply:
        """Return the reply to a request."""
        if request.path.partition("?")[0].endswith("/api_version"):
            return Reply(200, {"status": "v3"})
        return super().reply_to(request)
