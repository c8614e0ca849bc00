"""Shows how far futures have come, to somebody who takes them as they complete."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as FuturesTimeout  # another one before Python 3.11
from typing import Any, TypeVar

LOGGER = logging.getLogger('slurm_futures')

BAR_INTERVAL = 1.0
"""Seconds between two looks at what is running, for a bar."""

LOG_INTERVAL = 30.0
"""Seconds between two lines in the log."""

LOOKS = 10_000
"""Futures to look at in a second: where there are more, looks are rarer."""

F = TypeVar('F', bound='Future[Any]')


def progress(
    futures: Iterable[F], timeout: float | None = None, *, desc: str = 'progress'
) -> Iterator[F]:
    """Yield futures as they complete, showing how many are pending, running, done and failed.

    This is `concurrent.futures.as_completed` with a display: a bar, if tqdm is installed and there
    is a terminal or a notebook; otherwise lines in the log 'slurm_futures' at level INFO, one in 30
    seconds and one at the end. Futures count as failed if their ``result()`` raises.

    Args:
        futures: of any executors.
        timeout: seconds, from the first ``next()`` on, until there is a TimeoutError; None: no
            limit.
        desc: what to call it in the display.

    Yields:
        Each future once, when it is done.

    Raises:
        concurrent.futures.TimeoutError: not all futures were done in time.
    """
    pending = set(futures)
    del futures
    deadline = float('inf') if timeout is None else time.monotonic() + timeout
    display = _open_display(len(pending), desc)
    pause = max(display.interval, len(pending) / LOOKS)
    completed: Iterator[Any] = as_completed(pending, min(pause, deadline - time.monotonic()))
    try:
        while pending:
            try:
                future = next(completed)
            except FuturesTimeout:
                left = deadline - time.monotonic()
                if left <= 0:
                    why = f'{len(pending)} (of {display.total}) futures unfinished'
                    raise FuturesTimeout(why) from None
                display.look(pending)
                completed = as_completed(pending, min(pause, left))
                continue
            pending.remove(future)
            display.add(future)
            taken = [future]
            del future  # only the caller keeps it
            yield taken.pop()
    finally:
        display.look(pending)
        display.close()


class _Lines:
    """Counts futures, and shows the counts as lines in the log.

    Args:
        total: how many futures there are.
        desc: what to call them.
    """

    interval = LOG_INTERVAL

    def __init__(self, total: int, desc: str) -> None:
        self.total = total
        self._desc = desc
        self._done = 0
        self._failed = 0
        self._running = 0

    def add(self, future: Future[Any]) -> None:
        """Count a future that is done."""
        self._done += 1
        self._failed += future.cancelled() or future.exception() is not None

    def look(self, pending: Collection[Future[Any]]) -> None:
        """Count those that are running, and show all counts."""
        self._running = sum(future.running() for future in pending)
        self._show()

    def _show(self) -> None:
        done = f'{self._done} of {self.total} done'
        LOGGER.info('%s: %s', self._desc, ', '.join([done, *self._others()]))

    def _others(self) -> list[str]:
        pending = self.total - self._done - self._running
        counts = [(self._failed, 'failed'), (self._running, 'running'), (pending, 'pending')]
        return [f'{count} {what}' for count, what in counts if count]

    def close(self) -> None:
        """Show nothing more."""


class _Bar(_Lines):
    """The same as a bar.

    Args:
        total: how many futures there are.
        desc: what to call them.
        tqdm: tqdm's class.
    """

    interval = BAR_INTERVAL

    def __init__(self, total: int, desc: str, tqdm: Any) -> None:
        super().__init__(total, desc)
        self._bar = tqdm(total=total, desc=desc)

    def add(self, future: Future[Any]) -> None:
        super().add(future)
        self._bar.update()

    def _show(self) -> None:
        self._bar.set_postfix_str(', '.join(self._others()))

    def close(self) -> None:
        self._bar.close()


def _open_display(total: int, desc: str) -> _Lines:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Lines(total, desc)
    in_notebook = any(base.__module__ == 'tqdm.notebook' for base in tqdm.__mro__)
    return _Bar(total, desc, tqdm) if in_notebook or sys.stderr.isatty() else _Lines(total, desc)
