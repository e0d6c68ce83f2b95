"""A server that takes one token, and connections to it, for tests that need no Jobmon."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class TokenServer:
    """Takes one token, which can be rotated; for anything else it says 401."""

    def __init__(self, takes: str) -> None:
        self.takes = takes
        self.seen: list[tuple[str, int]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
                status = 200 if token == server.takes else 401
                server.seen.append((token, status))
                body = b'{"status": "R"}'
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def connections(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what defines a connection, as the fixture ``connection`` does, but without a real Jobmon."""

    def define(url: str = "http://there.example", *, conn_id: str = "jobmon_default", **fields: Any) -> None:
        extra = {"route_prefix": "/api/v2", "retries_timeout": 0, **fields.pop("extra", {})}
        value = {"conn_type": "jobmon", "host": url, "extra": extra, **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(value))

    define()
    return define
