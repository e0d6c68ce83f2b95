"""Look-ups of host names, none of which holds up anything but who waits for it.

A name server that does not answer keeps a thread for half a minute. Where the threads are those of the event
loop, a handful of such look-ups stops everything else that needs one, calls of Airflow's own among them. So
each look-up has a thread of its own here, and there is one at a time for a host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

AddressInfo = tuple[int, int, int, str, Any]
"""One of what ``getaddrinfo`` returns: family, type, protocol, canonical name, address."""

_NOT_KNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

_KEPT = 10.0  # seconds for which a result is good, as with aiohttp
_KEPT_FAILURE = 3.0  # the same of a failure: many ask, and each of them again and again


def is_not_known(error: BaseException) -> bool:
    """Whether a look-up found that there is no such host; ``EAI_AGAIN`` says that it found nothing out."""
    return isinstance(error, socket.gaierror) and error.errno in _NOT_KNOWN


def find(host: str, port: int, timeout: float) -> list[AddressInfo]:
    """Return the addresses of a host, blocking.

    :param host: its name, or an IP address.
    :param timeout: seconds to wait.
    :raises socket.gaierror: it has none.
    :raises TimeoutError: no answer within the time-out.
    """
    if _is_address(host):
        return _numeric(host, port)
    answers: SimpleQueue[list[AddressInfo] | OSError] = SimpleQueue()
    _start(host, port, answers.put)
    try:
        found = answers.get(timeout=timeout)
    except Empty:
        raise TimeoutError(f"no address of {host} within {timeout:g} s") from None
    return _result(found)


class _LookUp:
    """One look-up, which all who ask for the host meanwhile and for a moment after share."""

    def __init__(self, host: str, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[list[AddressInfo] | OSError] = self._loop.create_future()
        self._good_until = 0.0
        _start(host, port, self._hand_over)

    def _hand_over(self, found: list[AddressInfo] | OSError) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._keep, found)

    def _keep(self, found: list[AddressInfo] | OSError) -> None:
        kept = _KEPT_FAILURE if isinstance(found, OSError) else _KEPT
        self._good_until = self._loop.time() + kept
        self._answer.set_result(found)

    @property
    def is_good(self) -> bool:
        """Whether it is under way, or its result is young."""
        return not self._answer.done() or self._loop.time() < self._good_until

    async def result(self) -> list[AddressInfo]:
        # Shielded: who gives up waiting does not end the wait of the others.
        return _result(await asyncio.shield(self._answer))


class LookUps:
    """Those of one event loop."""

    def __init__(self) -> None:
        self._by_host: dict[tuple[str, int], _LookUp] = {}

    async def find(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a host.

        :param host: its name, or an IP address.
        :raises socket.gaierror: it has none.
        """
        if _is_address(host):
            return _numeric(host, port)
        look_up = self._by_host.get((host, port))
        if look_up is None or not look_up.is_good:
            look_up = self._by_host[host, port] = _LookUp(host, port)
        return await look_up.result()


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, LookUps] = WeakKeyDictionary()


def of_running_loop() -> LookUps:
    """Return the look-ups that all in the running event loop share."""
    return _of_loops.setdefault(asyncio.get_running_loop(), LookUps())


class Target(NamedTuple):
    """An address to connect to: of digits, so that nothing looks it up again."""

    host: str
    port: int
    family: int
    protocol: int


def target_of(info: AddressInfo) -> Target:
    """Return what to connect to for one of a look-up's addresses."""
    family, _, protocol, _, address = info
    scope = address[3] if family == socket.AF_INET6 and len(address) > 3 else 0
    return Target(f"{address[0]}%{scope}" if scope else address[0], address[1], family, protocol)


def _start(host: str, port: int, answer: Callable[[list[AddressInfo] | OSError], None]) -> None:
    """Look a host up in a thread of its own, which nobody waits for when the process ends."""

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found: list[AddressInfo] | OSError = [*infos] or _unknown(host, "it has no address")
        except OSError as error:
            found = _unknown(host, error.strerror) if is_not_known(error) else error
        except UnicodeError:  # an empty label, or one that is too long
            found = _unknown(host, "it cannot be a name")
        answer(found)

    threading.Thread(target=look_up, name=f"look-up of {host}", daemon=True).start()


def _unknown(host: str, reason: str | None) -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, f"host {host!r} is not known ({reason})")


def _result(found: list[AddressInfo] | OSError) -> list[AddressInfo]:
    if isinstance(found, OSError):
        raise type(found)(*found.args)  # a new one each: what is raised keeps a traceback
    return found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _numeric(host: str, port: int) -> list[AddressInfo]:
    return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)]
