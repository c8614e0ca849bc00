"""The futures that an executor hands out."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from slurm_futures.remote.states import JobState

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar('T')


class Work:
    """What is known of one call or script; written by the polling thread only."""

    __slots__ = ('host', 'job_id', 'logs', 'number', 'spans', 'state')

    def __init__(self, number: int) -> None:
        self.number = number
        self.job_id: str | None = None
        self.state: JobState | None = None
        self.host = ''
        self.logs: tuple[str, str] | None = None
        self.spans: list[list[int | None]] = [[0, None], [0, None]]


class Controller(Protocol):
    """What a future needs of the executor's core."""

    def check_usable(self) -> None:
        """Raise RuntimeError in a forked child."""

    def check_may_block(self, what: str) -> None:
        """Raise RuntimeError in the polling thread, which would wait for itself."""

    def cancelled(self, future: JobFuture[Any]) -> None:
        """Remove the work of a future that has just been cancelled."""

    def kill(self, future: JobFuture[Any]) -> None:
        """End the work of a running future."""

    def call_back(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """Call a done-callback; in the polling thread no BaseException of it goes further."""

    def read_log(self, future: JobFuture[Any], stream: int, limit: int) -> str:
        """Return what the work has written to stdout (0) or stderr (1)."""


class JobFuture(Future[T]):
    """A standard Future that also knows its Slurm job.

    It is PENDING until the call or script really starts.
    """

    def __init__(self, controller: Controller, work: Work) -> None:
        super().__init__()
        self._controller = controller
        self.work = work

    @property
    def job_id(self) -> str | None:
        """The Slurm job: '123', or '123_7' for a task of an array; None before there is one."""
        return self.work.job_id

    @property
    def job_state(self) -> JobState | None:
        """The newest known state of the Slurm job; None for a call on the login node."""
        return self.work.state

    def __repr__(self) -> str:
        job = f', job {self.job_id} {self.job_state}' if self.job_id else ''
        return f'{super().__repr__()[:-1]}{job}>'

    def cancel(self) -> bool:
        """Cancel the call unless it is known to run.

        Returns:
            True: the future is cancelled, its job removed, and any outcome dropped; the call may
            have begun moments earlier. False: it runs or has ended; see `kill`.
        """
        self._controller.check_usable()
        if self.cancelled():
            return True
        try:
            return super().cancel()
        finally:  # also when a done-callback raises KeyboardInterrupt
            if self.cancelled():
                self._controller.cancelled(self)

    def kill(self) -> None:
        """End the call: cancel it if it is pending; a running one raises JobCancelled.

        Returns at once; the future ends when the end of the call is proven. Does nothing to a
        future that is done.
        """
        if not self.cancel() and not self.done():
            self._controller.kill(self)

    def stdout(self, limit: int = 16 * 2**20) -> str:
        """Return what the call or script has printed so far.

        Args:
            limit: at most this many bytes, from the end.

        Raises:
            RuntimeError: called in a done-callback, or the executor has ended.
            ConnectionFailed: the login node cannot be reached.
        """
        return self._controller.read_log(self, 0, limit)

    def stderr(self, limit: int = 16 * 2**20) -> str:
        """Return what the call or script has written to stderr so far; see `stdout`."""
        return self._controller.read_log(self, 1, limit)

    def result(self, timeout: float | None = None) -> T:
        """Return what the call returned, or raise what it raised; see `concurrent.futures`."""
        self._check_may_wait()
        try:
            return super().result(timeout)
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642 - a cycle with the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None; see `concurrent.futures`."""
        self._check_may_wait()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call ``fn(future)`` when the future is done; see `concurrent.futures`.

        Callbacks run in the polling thread: those that block hold up every other future.
        """
        controller = self._controller  # not self: the future would be kept by its own callback
        controller.check_usable()
        super().add_done_callback(lambda future: controller.call_back(fn, future))

    def _check_may_wait(self) -> None:
        if not self.done():
            self._controller.check_usable()
            self._controller.check_may_block('result() of an unfinished future')

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            'a JobFuture cannot be pickled: it lives in the process that submitted the call; '
            'pass future.result() instead'
        )


def start(future: Future[Any]) -> bool:
    """Make a future RUNNING; return False if it is done: cancelled, or resolved by its user."""
    if future.running():
        return True
    if future.done() and not future.cancelled():
        return False
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:  # resolved by its user a moment ago
        return False


def succeed(future: Future[T], value: T) -> None:
    """Give a future its result unless it is done."""
    if start(future):
        with contextlib.suppress(InvalidStateError):  # as above
            future.set_result(value)


def fail(future: Future[Any], error: BaseException) -> None:
    """Give a future its exception unless it is done."""
    if start(future):
        with contextlib.suppress(InvalidStateError):  # as above
            future.set_exception(error)
