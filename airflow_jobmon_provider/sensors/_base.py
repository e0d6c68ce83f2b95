"""What the sensors do alike: poke or defer, keep to their limits, and mean the same in every mode.

Airflow's base class reads ``soft_fail``, ``never_fail`` and ``silent_fail`` one way after a poke and another
way after a deferral, and not alike in its versions. So nothing of that is left to it: what a flag makes of an
end is decided here, in :meth:`JobmonSensor._as_the_flags_say` and :meth:`JobmonSensor._tolerate`. The table
is in :mod:`airflow_jobmon_provider.sensors.jobmon`.
"""

from __future__ import annotations

import abc
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
)

from airflow_jobmon_provider.client.exceptions import ServerFailure, ServerUnreachable
from airflow_jobmon_provider.client.validation import seconds
from airflow_jobmon_provider.hooks.jobmon import JobmonHook
from airflow_jobmon_provider.task.errors import RetryIsUseless, airflow_errors
from airflow_jobmon_provider.task.limits import execution_deadline, remaining
from airflow_jobmon_provider.task.templates import RenderedBeforeDeferral
from airflow_jobmon_provider.triggers.events import Event, UnreadableEvent

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_jobmon_provider.client.conversations import Conversation

T = TypeVar("T")

_LONGEST = 1e11  # seconds, 3,000 years: what Airflow's dates can hold, so that no later one overflows

# Airflow doubles the pause at each poke, which no float holds after a thousand.
_POKES_THAT_COUNT = 50

_LONGEST_PAUSE_HERE = 10.0  # seconds for which a worker's slot is held between two looks

_TRIGGER_FAILED = "__fail__"  # what Airflow calls the method of a task whose trigger it could not run


class JobmonSensor(RenderedBeforeDeferral, BaseSensorOperator):
    """Outlives an outage, keeps to its limits, and ends as the table says.

    Airflow's own loop looks at ``timeout`` only after a poke and before a pause of ``poke_interval``. Here
    the last poke is at the time-out, and no request of a poke outlasts it by more than a second.

    :param jobmon_conn_id: id of the Jobmon connection.
    :param deferrable: wait in the triggerer.
    :param poke_interval: seconds or ``timedelta`` between two pokes; also the longest pause between the
        triggerer's looks, if it is given. Default 60 between pokes; the triggerer's own pace.
    :param timeout: seconds or ``timedelta``. Default: Airflow's ``[sensors] default_timeout``.
    :param max_wait: longest pause with ``exponential_backoff``, in seconds or as a ``timedelta``. Default: as
        in Airflow, none.
    :raises ValueError: one of them is no span of time.
    """

    def __init__(
        self,
        *,
        jobmon_conn_id: str,
        deferrable: bool,
        poke_interval: float | timedelta | None = None,
        timeout: float | timedelta | None = None,
        max_wait: float | timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"poke_interval": poke_interval, "timeout": timeout, "max_wait": max_wait}
        for name, value in given.items():
            if value is not None:
                above = None if name == "timeout" else 0
                kwargs[name] = min(seconds(name, value, above=above), _LONGEST)
        super().__init__(**kwargs)
        self.jobmon_conn_id = jobmon_conn_id
        self.deferrable = deferrable
        self._has_poke_interval = poke_interval is not None
        self._look_end = math.inf  # when a look's requests must be over, by the monotonic clock
        self._hook: JobmonHook | None = None  # of the first poke: the connection is read once
        self._server: str | None = None  # address of the server that was asked
        self._knows_server = False  # whether this process has found that it is not too old
        self._seen = "nothing was seen"  # what the last look said, for the message of a time-out

    # --- What the sensors add -------------------------------------------------------------------------------

    @abc.abstractmethod
    def _check_ids(self) -> None:
        """Check the ids that a template may have rendered.

        :raises ValueError: one is no positive integer.
        """

    @abc.abstractmethod
    def _look(self, hook: JobmonHook) -> bool:
        """Return whether the wait is over.

        :raises AirflowFailException: it has ended badly, for ever.
        """

    @abc.abstractmethod
    def _trigger(self, **terms: Any) -> BaseTrigger:
        """Return the trigger that goes on waiting.

        :param terms: those of its arguments that both triggers have.
        """

    @abc.abstractmethod
    def _remade(self, arguments: dict[str, Any]) -> BaseTrigger:
        """Return the trigger that has these arguments."""

    def _knows_whom_to_watch(self) -> bool:
        """Whether the trigger can be told what to look at."""
        return True

    def _check_before_first_poke(self, hook: JobmonHook) -> None:
        """Check what only the connection tells.

        :raises ValueError: the sensor's parameters do not go with it.
        """

    def _longest_pause(self) -> float:
        """Return the longest pause in seconds that may be made now between two pokes."""
        return math.inf

    def _longest_look_pause(self) -> float | None:
        """Return the longest pause between the triggerer's looks that was asked for; None: none was."""
        if self.exponential_backoff:
            return None if self.max_wait is None else self.max_wait.total_seconds()
        return self.poke_interval if self._has_poke_interval else None

    # --- Waiting --------------------------------------------------------------------------------------------

    def execute(self, context: Context) -> Any:
        """Wait; the first look is on the worker, so that a run that has already ended defers nothing."""
        self._check_ids()
        with self._as_the_flags_say():
            if self.deferrable:
                self._look_and_defer(context)
            else:
                self._poke_until_over(context)

    def _look_and_defer(self, context: Context) -> None:
        deadline, limit = time.time() + self.timeout, "timeout"
        execution_end = execution_deadline(context, self.execution_timeout)
        if execution_end is not None and execution_end < deadline:
            deadline, limit = execution_end, "execution_timeout"
        self._look_end = time.monotonic() + remaining(deadline)
        hook = JobmonHook(self.jobmon_conn_id)
        while not self._tolerate(lambda: self._look_through(hook)):
            if self._knows_whom_to_watch():
                trigger = self._trigger(
                    jobmon_conn_id=self.jobmon_conn_id, deadline=deadline, server=self._server
                )
                self._wait_for(trigger, limit)
            self._pause_here(deadline, limit)

    def _pause_here(self, deadline: float, limit: str) -> None:
        """Wait on the worker until the next look, as there is nothing yet that a trigger could look at."""
        left = remaining(deadline)
        if not left:
            error = AirflowTaskTimeout if limit == "execution_timeout" else AirflowSensorTimeout
            raise error(f"{self._seen}; {limit} is over")
        time.sleep(min(self.poke_interval, _LONGEST_PAUSE_HERE, left))

    def _poke_until_over(self, context: Context) -> None:
        begun = self._begun(context)
        waited, started = _since(begun), time.monotonic()
        self._look_end = started + self.timeout - waited

        def run_duration() -> float:
            return waited + time.monotonic() - started

        pokes = 0
        while not self._tolerate(lambda: self.poke(context)):
            pokes += 1
            left = self.timeout - run_duration()
            if left <= 0:
                raise AirflowSensorTimeout(f"{self._seen}; timeout is over after {run_duration():.0f} s")
            interval = self._get_next_poke_interval(begun, run_duration, pokes)
            pause = max(min(interval, left), 0.0)
            if self.reschedule:
                when = _now() + timedelta(seconds=pause)
                raise AirflowRescheduleException(when)  # type: ignore[no-untyped-call]
            time.sleep(pause)

    def _get_next_poke_interval(self, started_at: Any, run_duration: Any, poke_count: int) -> float:
        pokes = min(poke_count, _POKES_THAT_COUNT)
        interval: float = super()._get_next_poke_interval(started_at, run_duration, pokes)
        return min(interval, self._longest_pause())

    def _begun(self, context: Context) -> datetime:
        """Return when the first poke was, which in mode ``reschedule`` may be long ago."""
        now = _now()
        if self.deferrable or not self.reschedule:
            return now
        ti: Any = context["ti"]
        # Airflow 2.11 sets a rescheduled task's start date to that of its first poke.
        ask = getattr(ti, "get_first_reschedule_date", None)
        first: datetime | None = getattr(ti, "start_date", None) if ask is None else ask(context)
        return now if first is None else min(first, now)

    def poke(self, context: Context) -> bool:
        """Look once. A server that does not answer now is asked again at the next poke."""
        pause = min(self.poke_interval, self._longest_pause())
        first = self._hook is None and _since(self._begun(context)) < pause / 2
        hook = self._hook or JobmonHook(self.jobmon_conn_id)
        try:
            with airflow_errors():
                _ = hook.server
        except AirflowNotFoundException as error:
            if first:
                raise
            # It was there at the first poke: Airflow 3 says so, too, when its API or secrets backend fails.
            self._seen = f"connection {self.jobmon_conn_id} cannot be read now: {error}"
            self.log.warning(
                "Connection %s cannot be read now; will keep trying: %s", self.jobmon_conn_id, error
            )
            return False
        if first:
            self._check_before_first_poke(hook)
        self._hook = hook
        return self._look_through(hook)

    def _look_through(self, hook: JobmonHook) -> bool:
        """Look, also through an outage."""
        with airflow_errors():
            self._server = hook.server.settings.service_url
            try:
                self._check_server_version(hook)
                return self._look(hook)
            except (ServerFailure, ServerUnreachable) as error:
                self._seen = f"Jobmon is not answering: {error}"
                self.log.warning("Jobmon is not answering; will keep trying: %s", error)
                return False

    def _check_server_version(self, hook: JobmonHook) -> None:
        """Make sure that the server is not too old, once in a process, before anything is asked of it."""
        from airflow_jobmon_provider.client.conversations import Retries, check_server_version

        if not self._knows_server:
            once = Retries(timeout=0, attempts=1)
            self._converse(hook, check_server_version(None, once, time.monotonic))
            self._knows_server = True

    def _not_yet(self, seen: str) -> bool:
        """Say what was seen, which is not the end; return False."""
        self._seen = seen
        self.log.info(seen)
        return False

    def _converse(self, hook: JobmonHook, conversation: Conversation[T]) -> T:
        """Carry a conversation to its end, each request within the sensor's time-out."""
        from airflow_jobmon_provider.client.conversations import in_time

        left = max(self._look_end - time.monotonic(), 0.0)
        return hook.converse(in_time(conversation, left, time.monotonic), log=self.log)

    # --- Flags ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _as_the_flags_say(self) -> Iterator[None]:
        """Skip the task instead, where ``soft_fail`` or ``never_fail`` wants that."""
        try:
            yield
        except RetryIsUseless as error:
            self._skip_after_error(error)
            raise
        except (AirflowFailException, AirflowSensorTimeout, AirflowTaskTimeout) as end:
            if self.soft_fail or self.never_fail:
                self._skip(end)
            raise
        except (AirflowRescheduleException, AirflowSkipException, UnreadableEvent, ValueError):
            raise  # no end, or one that says nothing of what was waited for
        except Exception as error:
            self._skip_after_error(error)
            raise

    def _skip_after_error(self, error: Exception) -> None:
        if self.never_fail:
            self.log.error("%s", error)
            self._skip(error)

    def _skip(self, end: BaseException) -> NoReturn:
        flag = "soft_fail" if self.soft_fail else "never_fail"
        reason = str(end)
        if isinstance(end, AirflowTaskTimeout) and "execution_timeout" not in reason:  # Airflow's, of a poke
            reason = f"execution_timeout is over: {self._seen}"
        raise AirflowSkipException(f"{reason} (skipped, not failed, as {flag}=True)") from None

    def _tolerate(self, look: Callable[[], bool]) -> bool:
        """Look; with ``silent_fail``, an error is logged, and does not end the wait."""
        try:
            return look()
        except Exception as error:
            is_end = isinstance(error, AirflowFailException) and not isinstance(error, RetryIsUseless)
            if is_end or isinstance(error, ValueError) or not self.silent_fail:
                raise
            self._seen = str(error)
            self.log.error("%s; will keep trying, as silent_fail=True", error)
            return False

    # --- Coming back ----------------------------------------------------------------------------------------

    def _wait_for(self, trigger: BaseTrigger, limit: str) -> NoReturn:
        self.defer(
            trigger=trigger,
            method_name="come_back",
            kwargs={"limit": limit, "trigger": trigger.serialize()[1]},
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral, as Airflow calls it."""
        # Airflow's base class of sensors is left out: it would read the flags its own way.
        resume = super(BaseSensorOperator, self).resume_execution
        with self._as_the_flags_say():
            try:
                return resume(next_method, next_kwargs, context)
            except AirflowException as error:
                if next_method != _TRIGGER_FAILED:
                    raise
                if "timeout" in str(error).lower():  # of Airflow 2, which has no other one for triggers
                    raise AirflowTaskTimeout(f"execution_timeout is over: {error}") from None
                raise UnreadableEvent(
                    f"the triggerer could not run this sensor's trigger ({error}); its log says why. Compare"
                    " the packages installed there with those of the workers"
                ) from None

    def come_back(
        self,
        context: Context,
        event: dict[str, Any] | None = None,
        limit: str = "timeout",
        trigger: dict[str, Any] | None = None,
    ) -> None:
        """Go on after a deferral, as :meth:`execute_complete` says; after an error, as ``silent_fail`` says.

        :param limit: which of the task's limits the trigger's deadline was.
        :param trigger: the trigger's arguments. Default: not known, as an older version deferred the task.
        """
        seen = Event.read(event)
        if seen.status == "error" and self.silent_fail and trigger is not None:
            self.log.error("%s; will keep trying, as silent_fail=True", seen.message)
            left = remaining(trigger["deadline"])
            if left:
                self._pause(min(self.poke_interval, self._longest_pause(), left), limit, trigger)
            seen = replace(seen, status="timeout")
        self._judge(seen, limit)

    def _pause(self, pause: float, limit: str, trigger: dict[str, Any]) -> NoReturn:
        """Have the triggerer look again after so many seconds."""
        from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=pause)),
            method_name="look_again",
            kwargs={"limit": limit, "trigger": trigger},
        )

    def look_again(self, context: Context, limit: str, trigger: dict[str, Any], event: Any = None) -> None:
        """Go on after the pause that follows an error with ``silent_fail``.

        :param limit: see :meth:`come_back`.
        :param trigger: see :meth:`come_back`.
        """
        self._wait_for(self._remade(trigger), limit)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:
        """Succeed or fail as the trigger's event says.

        :param event: see the triggers in :mod:`airflow_jobmon_provider.triggers.jobmon`.
        """
        self._judge(Event.read(event), "timeout")

    def _judge(self, seen: Event, limit: str) -> None:
        if seen.status == "timeout":
            if limit == "execution_timeout":
                raise AirflowTaskTimeout(f"execution_timeout is over: {seen.message}")
            raise AirflowSensorTimeout(seen.message)
        if seen.status == "failed":
            raise AirflowFailException(seen.message)  # a retry would find the same
        if seen.status == "error":
            raise AirflowException(seen.message)
        if seen.status != "success":
            raise UnreadableEvent(
                f"this version of the provider does not know what that means: {seen.message}"
            )
        self.log.info(seen.message)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _since(moment: datetime) -> float:
    return max((_now() - moment).total_seconds(), 0.0)
