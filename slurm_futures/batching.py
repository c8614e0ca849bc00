"""Groups what is submitted into batches: one job, or one job array, each. No I/O.

Calls with equal targets that come within a short window become one array; a map, whose calls are
all known at once, becomes one right away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slurm_futures.futures import JobFuture
from slurm_futures.remote.protocol import encode_calls
from slurm_futures.resources import Resources
from slurm_futures.snapshot import Snapshot

FIRST_WINDOW = 0.01
"""Seconds that a lone call waits for others."""

QUIET_WINDOW = 0.05
"""Seconds without another call after which a burst of calls is over."""

LONGEST_WINDOW = 0.5
"""Seconds that a call waits at most while others keep coming."""


LABEL = 40
"""Characters of a function's name that are used as a job name."""


@dataclass(frozen=True)
class Target:
    """Where calls run, in every respect that makes them different jobs.

    Attributes:
        resources: of the jobs; None: on the login node.
        cwd: where they run; None: in the executor's default.
        python_cmd: the interpreter; None: the executor's default.
        modules: what they find first on their module path; None: nothing of ours.
    """

    resources: Resources | None = None
    cwd: str | None = None
    python_cmd: str | None = None
    modules: Snapshot | None = None


@dataclass
class CallSet:
    """Function calls to be run as one batch.

    Attributes:
        target: where they run.
        functions: the distinct pickled functions.
        calls: future, index of the function and pickled arguments of each.
        chunksize: calls a task.
        label: what to call the job if the user does not say.
    """

    target: Target
    label: str
    chunksize: int = 1
    functions: list[bytes] = field(default_factory=list)
    calls: list[tuple[JobFuture[Any], int, bytes]] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def add(self, future: JobFuture[Any], function: bytes, args: bytes) -> None:
        """Add a call; equal functions are kept once."""
        last = self.calls[-1][1] if self.calls else None
        if last is None or self.functions[last] != function:  # quicker than looking it up
            last = self._places.setdefault(function, len(self.functions))
            if last == len(self.functions):
                self.functions.append(function)
        self.calls.append((future, last, args))

    def without_cancelled(self) -> CallSet:
        """Return the calls that are still wanted."""
        calls = [call for call in self.calls if not call[0].cancelled()]
        return CallSet(self.target, self.label, self.chunksize, self.functions, calls)

    @property
    def tasks(self) -> int:
        """How many tasks the calls make."""
        return math.ceil(len(self.calls) / self.chunksize)

    def split(self, most_tasks: int) -> list[CallSet]:
        """Return sets of at most so many tasks each, as even as possible."""
        parts = math.ceil(self.tasks / most_tasks)
        if parts <= 1:
            return [self]
        size = math.ceil(self.tasks / parts) * self.chunksize
        return [self._part(start, start + size) for start in range(0, len(self.calls), size)]

    def _part(self, start: int, stop: int) -> CallSet:
        calls = self.calls[start:stop]
        used = sorted({index for _, index, _ in calls})
        renumbered = {old: new for new, old in enumerate(used)}
        return CallSet(
            self.target,
            self.label,
            self.chunksize,
            [self.functions[index] for index in used],
            [(future, renumbered[index], args) for future, index, args in calls],
        )

    def encode(self, header: dict[str, Any]) -> bytes:
        """Return the file that the tasks read their calls from."""
        header = dict(header, chunksize=self.chunksize)
        return b''.join(
            encode_calls(header, self.functions, [(index, args) for _, index, args in self.calls])
        )


@dataclass
class _Window:
    calls: CallSet
    opened: float
    newest: float

    def closes(self) -> float:
        if len(self.calls.calls) == 1:
            return self.opened + FIRST_WINDOW
        return min(self.newest + QUIET_WINDOW, self.opened + LONGEST_WINDOW)


class Windows:
    """Calls that wait for others like them.

    Args:
        clock: monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[Target, _Window] = {}

    def add(
        self,
        target: Target,
        label: str,
        call: tuple[JobFuture[Any], bytes, bytes],
    ) -> None:
        """Add a call: its future, its function and its arguments."""
        now = self._clock()
        window = self._open.get(target)
        if window is None:
            window = self._open[target] = _Window(CallSet(target, label), now, now)
        window.calls.add(*call)
        window.newest = now

    def closed(self, now: float) -> list[CallSet]:
        """Return the sets that are complete, and forget them."""
        done = [target for target, window in self._open.items() if window.closes() <= now]
        return [self._open.pop(target).calls for target in done]

    def close_all(self) -> Sequence[CallSet]:
        """Return all sets, and forget them."""
        windows, self._open = self._open, {}
        return [window.calls for window in windows.values()]

    def deadline(self) -> float:
        """Return when the next set is complete."""
        return min((window.closes() for window in self._open.values()), default=math.inf)


def label(fn: Any) -> str:
    """Return a function's name as a job name."""
    name = getattr(fn, '__qualname__', type(fn).__qualname__).rpartition('.')[2]
    name = ''.join(c if c.isalnum() or c == '_' else '-' for c in name)
    return name[:LABEL].strip('-') or 'call'
