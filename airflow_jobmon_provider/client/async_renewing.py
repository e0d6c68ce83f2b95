"""The asyncio transport that goes on with other settings when the server refuses those it has.

A trigger waits for days: a token is rotated meanwhile, or a CA renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType
from typing import Any, Protocol, TypeVar

from airflow_jobmon_provider.client.async_requester import AsyncRequester
from airflow_jobmon_provider.client.exceptions import (
    REFUSALS,
    JobmonError,
    ServerChanged,
    ServerFailure,
    ServerUnreachable,
)
from airflow_jobmon_provider.client.protocol import Call
from airflow_jobmon_provider.client.settings import Settings

T = TypeVar("T")
logger = logging.getLogger(__name__)

PATIENCE = 30
"""How many refusals in a row are waited out whose cause cannot be looked into."""

LOOK_AGAIN_AFTER = 30.0
"""Seconds of an outage after which the settings are looked at again."""


class Renew(Protocol):
    """Where a transport gets its settings anew."""

    async def __call__(self, used: Settings, *, refused: bool) -> Settings | None:
        """Return the settings as they are now; None: they are still those used.

        :param used: what the transport uses.
        :param refused: the server has just refused them, so what was read before that says nothing.
        :raises ServerFailure: it cannot be told for now.
        :raises JobmonError: there is nothing to go on with; ends the wait.
        """


class RenewingAsyncRequester(AsyncRequester):
    """A transport that asks for settings anew after a refusal, and now and then while no reply comes.

    A refusal is 401, 403 or a certificate that is not trusted. The conversation does not notice: it goes on
    where it was, with its deadlines.

    :param settings: those to begin with.
    :param renew: where to get them anew.
    """

    def __init__(self, settings: Settings, renew: Renew) -> None:
        super().__init__(settings)
        self._renew = renew
        self._renewing = asyncio.Lock()
        self._unknown = 0
        self._looked = 0.0
        self._transport = AsyncRequester(settings)
        # Transports with earlier settings are left only at the end: others may still wait for their replies.
        self._entered = contextlib.AsyncExitStack()

    async def __aenter__(self) -> RenewingAsyncRequester:
        """Join the pool of the running event loop.

        :raises OSError: the CA bundle cannot be read.
        """
        self._looked = asyncio.get_running_loop().time()
        await self._entered.enter_async_context(self._transport)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the pools."""
        await self._entered.aclose()

    async def ask(self, call: Call[T], *args: Any, **options: Any) -> T:
        """Send a call; if it is refused and there are other settings by now, send it again with them.

        :raises JobmonError: see ``AsyncRequester.ask``.
        """
        transport = self._transport
        try:
            return await transport.ask(call, *args, **options)
        except REFUSALS:
            if not await self._go_on_without(transport):
                raise
        except (ServerFailure, ServerUnreachable):
            await self._look_again(transport)
            raise
        return await self._transport.ask(call, *args, **options)

    async def _go_on_without(self, refused: AsyncRequester) -> bool:
        """Take the settings as they are now; return whether they are others than those refused."""
        async with self._renewing:
            if self._transport is not refused:
                return True  # another request was quicker
            try:
                settings = await self._renew(refused.settings, refused=True)
            except ServerFailure:
                self._unknown += 1
                if self._unknown >= PATIENCE:
                    return False
                raise
            self._unknown = 0
            return await self._change_to(settings)

    async def _look_again(self, used: AsyncRequester) -> None:
        """See now and then in an outage whether it is the settings that are out of date."""
        now = asyncio.get_running_loop().time()
        busy = self._renewing.locked() or self._transport is not used
        if busy or now - self._looked < LOOK_AGAIN_AFTER:
            return
        async with self._renewing:
            self._looked = now
            try:
                await self._change_to(await self._renew(used.settings, refused=False))
            except ServerChanged:
                raise
            except JobmonError as error:
                # Those in use were not refused, and what is wrong with the new ones may be mended by then.
                logger.debug("settings that cannot be used yet: %s", error)

    async def _change_to(self, settings: Settings | None) -> bool:
        if settings is None:
            return False
        self._transport = await self._entered.enter_async_context(AsyncRequester(settings))
        self.settings = settings
        return True
