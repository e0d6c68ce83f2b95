"""The blocking transport that goes on with other settings when the server refuses those it has.

A token is rotated while a task waits for hours: the server then says 401, and the hook that made the
transport may know the new one by now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from airflow_jobmon_provider.client.exceptions import REFUSALS, ServerFailure
from airflow_jobmon_provider.client.requester import Requester
from airflow_jobmon_provider.client.settings import Settings

PATIENCE = 30
"""How many refusals in a row are waited out whose cause cannot be looked into."""


class RenewingRequester(Requester):
    """A requester that asks for settings anew after 401, 403 or a certificate that is not trusted.

    :param settings: those to begin with.
    :param renew: returns the settings as they are now, given those that were refused; None: they are still
        the same. Raises ``ServerFailure`` where it cannot tell for now, another ``JobmonError`` to end it.
    """

    def __init__(self, settings: Settings, renew: Callable[[Settings], Settings | None]) -> None:
        self._open(settings)
        self._renew = renew
        self._renewing = threading.Lock()
        self._unknown = 0

    def send_request(self, *args: Any, **options: Any) -> tuple[int, Any]:
        """Send one request; if it is refused and there are other settings by now, send it again with them.

        :raises JobmonError: see ``Requester.send_request``.
        """
        settings = self._settings
        try:
            return super().send_request(*args, **options)
        except REFUSALS:
            if not self._go_on_without(settings):
                raise
        return super().send_request(*args, **options)

    def _go_on_without(self, refused: Settings) -> bool:
        """Take the settings as they are now; return whether they are others than those refused."""
        with self._renewing:
            if self._settings is not refused:
                return True  # another thread was quicker
            try:
                settings = self._renew(refused)
            except ServerFailure:
                self._unknown += 1
                if self._unknown >= PATIENCE:
                    return False
                raise
            self._unknown = 0
            if settings is None:
                return False
            self.close()
            self._open(settings)
            return True
