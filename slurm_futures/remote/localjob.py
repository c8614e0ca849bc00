"""One job of the embedded queue, and what is known of its tasks. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Callable, Deque, Dict, List, NamedTuple, Optional, Sequence, TypeVar

from .localoptions import Spec
from .task_sets import expand_tasks, format_tasks

K = TypeVar('K')


@dataclass
class Run:
    """A task that has been started.

    Attributes:
        who: the process that runs its script: see `processes.process_identity`.
        since: when it was started, by the monotonic clock.
        warned: whether it has got the signal before its time limit.
        ending: the state that it will have ended in, once it has been told to end.
        kill_at: when it gets SIGKILL, by the monotonic clock.
        killed: whether it has got that.
    """

    who: str
    since: float
    warned: bool = False
    ending: str = ''
    kill_at: float = math.inf
    killed: bool = False

    @property
    def pid(self) -> int:
        """The process's number, which is its session's too."""
        return int(self.who.rsplit(':', 2)[1])


class Ended(NamedTuple):
    """How a task ended.

    Attributes:
        state: the long name of its state.
        code: the exit status of the script; None: unknown, or it never ran.
        signal: the signal that ended it, or 0.
        reason: in Slurm's words, where there are any.
        ran: whether it was started.
        at: when, in seconds since 1970.
    """

    state: str
    code: Optional[int] = None
    signal: int = 0
    reason: str = 'None'
    ran: bool = True
    at: float = 0.0


@dataclass
class Job:
    """A job, or an array of tasks.

    Attributes:
        number: its id.
        spec: what it asks for.
        at: when it was submitted, in seconds since 1970.
        indices: of all of its tasks; a plain job has the task 0.
        waiting: the tasks that have not been started, in their order.
        running: those that have, and have not ended.
        ended: those that have ended.
        failed: whether any of them has not COMPLETED.
        ended_at: when the last one did, in seconds since 1970.
    """

    number: int
    spec: Spec
    at: float
    indices: List[int] = field(init=False)
    waiting: Deque[int] = field(init=False)
    running: Dict[int, Run] = field(default_factory=dict)
    ended: Dict[int, Ended] = field(default_factory=dict)
    failed: bool = False
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self.indices = sorted(set(expand_tasks(self.spec.array))) if self.spec.array else [0]
        self.waiting = deque(self.indices)
        self._places = {index: place for place, index in enumerate(self.indices)}

    @property
    def is_over(self) -> bool:
        """Whether all of its tasks have ended."""
        return not self.waiting and not self.running

    def end(self, indices: Sequence[int], how: Ended) -> None:
        """Take note of the end of tasks."""
        never_ran = {index for index in indices if self.running.pop(index, None) is None}
        if never_ran:
            self.waiting = deque(index for index in self.waiting if index not in never_ran)
        self.ended.update(dict.fromkeys(indices, how))
        self.failed = self.failed or how.state != 'COMPLETED'
        self.ended_at = max(self.ended_at, how.at)

    def grouped(self, key: Callable[[Ended], K]) -> Dict[K, List[int]]:
        """Return the tasks that have ended, those with the same key together."""
        groups: Dict[K, List[int]] = {}
        for index, end in self.ended.items():
            groups.setdefault(key(end), []).append(index)
        return groups

    def raw_id(self, index: int) -> int:
        """Return the id that a task has for itself; an array has as many as it has tasks."""
        return self.number + self._places[index]

    def text(self, indices: Sequence[int]) -> str:
        """Write tasks as Slurm does; a plain job has none."""
        return format_tasks(indices) if self.spec.array else ''

    def parse(self, text: str) -> List[int]:
        """Read what `text` has written; nothing stands for all tasks."""
        found = expand_tasks(text) if text else self.indices
        return [index for index in found if index in self._places]
