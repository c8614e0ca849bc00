"""The futures that an executor hands out."""

from __future__ import annotations

from concurrent.futures import Future
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

    def cancel(self) -> bool:
        """Cancel the call unless it is known to run.

        Returns:
            True: the future is cancelled, its job removed, and any outcome dropped; the call may
            have begun moments earlier. False: it runs or has ended; see `kill`.
        """
        self._controller.check_usable()
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before:
            self._controller.cancelled(self)
        return True

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
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None; see `concurrent.futures`."""
        self._check_may_wait()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call ``fn(future)`` when the future is done; see `concurrent.futures`.

        Callbacks run in the polling thread: those that block hold up every other future.
        """
        super().add_done_callback(lambda future: self._controller.call_back(fn, future))

    def _check_may_wait(self) -> None:
        if not self.done():
            self._controller.check_usable()
            self._controller.check_may_block('result() of an unfinished future')

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            'a JobFuture cannot be pickled: it lives in the process that submitted the call; '
            'pass future.result() instead'
        )
