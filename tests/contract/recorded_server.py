"""A server that replies as a real one was recorded to, route by route, and keeps what it was asked."""

from __future__ import annotations

import json
import re

from tests.contract.recorder import Recording
from tests.contract.recordings import recorded
from tests.stub_server import Reply, Request, StubServer


class RecordedServer(StubServer):
    """Replies with what is in ``replies/``, whatever the ids; what was not recorded is a missing route.

    :param version: whose replies.
    :param cases: the recorded cases to reply with; of other routes, their first about what exists.
    :param prefix: below which the routes are.
    """

    def __init__(self, version: str, *cases: str, prefix: str = "") -> None:
        recordings = recorded(version)
        ordered = [recordings[case] for case in cases] + [
            row for case, row in recordings.items() if not case.endswith(": unknown")
        ]
        self._prefix = prefix
        self._missing = recordings["missing route"]
        self._by_route: dict[tuple[str, str], Recording] = {}
        for row in ordered:
            self._by_route.setdefault((row["method"], _pattern(row["route"])), row)
        super().__init__()

    def reply_to(self, request: Request) -> Reply:
        """Keep a request, and return what was recorded for its route."""
        self.requests.append(request)
        path, found = request.path.partition("?")[0], self._missing
        if path.startswith(self._prefix):
            route = _pattern(path.removeprefix(self._prefix))
            found = self._by_route.get((request.method, route), self._missing)
        body = found["body"]
        raw = body.encode() if found["content_type"] == "text/html" else json.dumps(body).encode()
        return Reply(found["status"], raw, (("Content-Type", found["content_type"]),))


def _pattern(route: str) -> str:
    return re.sub(r"(?<=/)\d+(?=/|$)", "<id>", route)
