"""An address of a Jobmon that takes one token at a time, and may be another server than it seems."""

from __future__ import annotations

import http.client
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

OF_A_WORKFLOW = re.compile(r"(/workflow/|/task/(?=\d+/set_resume_state)|_viz/|workflow_ids=)(\d+)")
OF_A_RUN = re.compile(r"(/workflow_run/)(\d+)")


class Gate:
    """Stands before the sandbox, and tells as one server's what the sandbox has.

    On another server the same id is somebody else's. So a workflow's id means its namesake there, and a run's
    id means a stranger's run, unless the run was created through this gate.

    :param target: address of the sandbox.
    :ivar takes: the token; for anything else it says 401.
    :ivar refused: how many requests it has refused.
    :ivar namesakes: what a workflow's id means here, where it is not the sandbox's own.
    :ivar stranger: the run that others' runs' ids mean here.
    :ivar asked_about_strangers: requests about it.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def do_POST(self) -> None:
                gate._serve(self)

            do_GET = do_PUT = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was there."""
        self.takes = ""
        self.refused = 0
        self.namesakes: dict[int, int] = {}
        self.stranger = 0
        self.asked_about_strangers: list[str] = []
        self._runs: set[int] = set()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        if (handler.headers["Authorization"] or "") != f"Bearer {self.takes}":
            self.refused += 1
            status, kind, reply = 401, "application/json", b'{"detail": "who are you?"}'
        else:
            status, kind, reply = self._forward(handler.command, handler.path, body)
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(reply)))
        handler.end_headers()
        handler.wfile.write(reply)

    def _forward(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        creates = method == "POST" and path.partition("?")[0].endswith("/workflow_run")
        if creates:
            message = json.loads(body)
            body = json.dumps({**message, "workflow_id": self._workflow(message["workflow_id"])}).encode()
        there = OF_A_WORKFLOW.sub(lambda match: f"{match[1]}{self._workflow(int(match[2]))}", path)
        there = OF_A_RUN.sub(lambda match: f"{match[1]}{self._run(int(match[2]), path)}", there)
        connection = http.client.HTTPConnection(self._target, timeout=30)
        try:
            connection.request(method, there, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = response.read()
        finally:
            connection.close()
        if creates and response.status == 200 and (run := json.loads(reply)["workflow_run_id"]):
            self._runs.add(run)
        if "/lost_workflow_run" in path and response.status == 200:
            reply = self._in_its_own_words(reply)
        return response.status, response.headers["Content-Type"], reply

    def _workflow(self, workflow: int) -> int:
        return self.namesakes.get(workflow, workflow)

    def _run(self, run: int, path: str) -> int:
        if run in self._runs:
            return run
        if path.endswith("/reap") or "/reap?" in path:  # it was found by a look at what is lost
            return run
        self.asked_about_strangers.append(path)
        return self.stranger

    def _in_its_own_words(self, reply: bytes) -> bytes:
        names = {there: here for here, there in self.namesakes.items()}
        lost = json.loads(reply)["workflow_runs"]
        return json.dumps({"workflow_runs": [[run, names.get(of, of)] for run, of in lost]}).encode()
