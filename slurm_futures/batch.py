"""One batch: what one sbatch submits, and which of its calls are still open."""

from __future__ import annotations

import collections
import math
import posixpath
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slurm_futures.batching import CallSet
from slurm_futures.futures import JobFuture
from slurm_futures.outcomes import Entry, Group
from slurm_futures.remote.states import JobState
from slurm_futures.tasks import Task
from slurm_futures.tracking import End, Policy, Tracker


@dataclass(frozen=True)
class Site:
    """What a connected agent has told of the place where jobs are submitted.

    Attributes:
        folder: the run's spool.
        entry: the workers' entry script.
        library: where the user's modules are, in folders named by their digests.
        cwd: where calls and scripts run unless they say otherwise.
        python_cmd: the interpreter for calls.
        setup: shell lines to run first in every job.
        sys_path: module folders of the client that workers on this machine can use too.
    """

    folder: str
    entry: str
    library: str
    cwd: str
    python_cmd: str
    setup: Sequence[str]
    sys_path: Sequence[str]

    def place(self, cwd: str | None) -> str:
        """Return where something runs: what it says, relative to where the others run."""
        return posixpath.join(self.cwd, cwd) if cwd else self.cwd


class Owner(Protocol):
    """Whoever sends batches on their way."""

    def on_end(self, entry: Entry, batch: Batch) -> None:
        """Take note that a call's future is done."""

    def cancel(self, entry: Entry, batch: Batch) -> None:
        """Remove the job of a call that the user has cancelled."""

    def kill(self, entry: Entry, batch: Batch) -> None:
        """End a running call."""


MakeEntry = Callable[[JobFuture[Any], int, Group], Entry]


@dataclass(frozen=True)
class Frame:
    """What all batches of a run share.

    Attributes:
        owner: whoever sends them on their way.
        site: where they are submitted.
        policy: how their tasks are judged.
        make_entry: makes the entry of a call or script in the ledger.
    """

    owner: Owner
    site: Site
    policy: Policy
    make_entry: MakeEntry


class Batch(ABC):
    """A job or a job array, from before its submission until nothing of it is open.

    Attributes:
        number: its own, in all messages about it.
        first: the number of its first call.
        attempt: which submission this is; each has a script of its own name, the claims are shared.
        cluster: where it is, or may go; empty on sites with one cluster.
        after: the batch whose end it waits for in Slurm.
        jobs: the ids that Slurm gave it, oldest first: several, if it was submitted several times.
        tracker: of its tasks, once there is a job.
        created: when it was made, and so submitted at the earliest, in seconds since 1970.
        submitted_at: when its first job became known, by the monotonic clock.
        cancelled: calls that the user has cancelled and nobody has been told of.
        unwanted: tasks whose jobs are to be cancelled as soon as there are any.
        held: the job ids of its tasks that wait for a person.
        ends: how many of its calls have 'succeeded', 'failed', been 'cancelled'.
        decide_at: when to decide about its tasks again.
    """

    is_script = False

    def __init__(self, frame: Frame, number: int, cluster: str | None) -> None:
        self._owner = frame.owner
        self._site = frame.site
        self._policy = frame.policy
        self.number = number
        self.first = 0
        self.attempt = 1
        self.cluster = cluster or ''
        self.after: Batch | None = None
        self.jobs: list[str] = []
        self.tracker: Tracker | None = None
        self.submitted_at = 0.0
        self.cancelled: list[int] = []
        self.unwanted: set[int] = set()
        self.held: set[str] = set()
        self.ends: collections.Counter[str] = collections.Counter()
        self.decide_at = math.inf
        self.created = time.time()
        self._open: dict[int, Entry] = {}  # nothing else keeps a call, and so its result

    # ---- what differs between calls and scripts

    @property
    @abstractmethod
    def label(self) -> str:
        """What to call the batch in messages."""

    @property
    @abstractmethod
    def bucket(self) -> Hashable:
        """Where it is counted: batches with equal buckets meet the same limits of Slurm's."""

    @abstractmethod
    def request(self) -> tuple[dict[str, Any], bytes]:
        """Return the agent's order to submit the batch."""

    @abstractmethod
    def task_indices(self) -> Sequence[int | None]:
        """Return the array indices of the tasks; a single None for a job that is no array."""

    @abstractmethod
    def task_of(self, index: int) -> int:
        """Return the task that runs a call."""

    @abstractmethod
    def entries_of(self, task: int) -> list[Entry]:
        """Return the open calls of a task."""

    @abstractmethod
    def end_task(self, number: int, end: End) -> tuple[End, list[Entry]] | None:
        """Take a task's end; return what it means for which calls, if it means anything yet."""

    def halves(self) -> list[CallSet]:
        """Return the calls in two sets of half the size; none when they cannot be split."""
        return []

    @abstractmethod
    def succeeded(self, end: End) -> bool:
        """Return whether this end is what the future resolves to, rather than what it raises."""

    # ---- what is the same

    @property
    def token(self) -> str:
        """The name of the batch script: what a lost submission is found by."""
        return f'{self._site.folder.rsplit("/", 1)[-1]}-{self.number}.{self.attempt}'

    @property
    def has_job(self) -> bool:
        """Whether Slurm has confirmed the submission."""
        return bool(self.jobs)

    @property
    def is_over(self) -> bool:
        """Whether no call is open."""
        return not self._open

    @property
    def is_running(self) -> bool:
        """Whether any of its tasks runs, as far as is known."""
        tasks = self.tracker.tasks.values() if self.tracker else ()
        return any(task.state is JobState.RUNNING for task in tasks)

    @property
    def is_unwanted(self) -> bool:
        """Whether cancelled calls wait for their jobs to be removed."""
        return bool(self.cancelled or self.unwanted)

    def topics(self, tasks: Iterable[int]) -> list[str]:
        """Return the names of tasks' claims."""
        return [f'{self.number}.{task}' for task in tasks]

    def next_attempt(self) -> None:
        """Prepare to submit again, under the same task claims but another token."""
        self.attempt += 1

    def _take(self, entries: Iterable[Entry]) -> None:
        self._open = dict(enumerate(entries))
        self.first = self._open[0].work.number
        for entry in self._open.values():
            entry.work.state = JobState.PENDING

    def on_job(self, job: str, now: float) -> None:
        """Take an id that Slurm gave; from the first one on the tasks are tracked."""
        self.jobs.append(job)
        if self.tracker:
            return
        self.submitted_at = now
        tasks = {index or 0: Task(job, index) for index in self.task_indices()}
        wanted = {self.task_of(index) for index in self._open}
        tracked = tasks if self.is_script else {n: t for n, t in tasks.items() if n in wanted}
        self.tracker = Tracker(self._policy, self.is_script, tracked)
        for index, entry in self._open.items():
            task = tasks.get(self.task_of(index))
            entry.work.job_id = job if self.is_script or task is None else task.job_id

    def on_task_message(self, message: Mapping[str, Any], now: float) -> None:
        """Take what a task's wrapper or worker reports."""
        task = self.tracker.tasks.get(message['task']) if self.tracker else None
        if task is None:
            return
        if 'superseded' in message:
            task.on_owner(message['superseded'])
        elif 'failed' not in message:  # it has claimed the task
            task.follow(message['job'])
        if task.job == message['job']:
            task.on_message(message, now)
        self.note_job(task)
        self._publish(message['task'], task)

    def note_job(self, task: Task) -> None:
        """Remember the job that a task turned out to belong to."""
        if task.job not in self.jobs:
            self.jobs.append(task.job)

    def publish_states(self) -> None:
        """Show on the futures what is known of their tasks."""
        if self.tracker:
            for number, task in self.tracker.tasks.items():
                self._publish(number, task)

    def _publish(self, number: int, task: Task) -> None:
        for entry in self.entries_of(number):
            entry.work.state = task.state
            if not self.is_script:
                entry.work.job_id = task.job_id

    def call_index(self, entry: Entry) -> int:
        """Return a call's place in the batch."""
        return entry.work.number - self.first

    def open_entries(self) -> list[Entry]:
        """Return the calls whose futures are not done."""
        return list(self._open.values())

    def open_tasks(self) -> list[int]:
        """Return the tasks that have not ended."""
        return list(self.tracker.tasks) if self.tracker else []

    def close_call(self, entry: Entry) -> None:
        """Take note that a call's future is done; its task is not tracked after its last call."""
        index = self.call_index(entry)
        self._open.pop(index, None)
        task = self.task_of(index)
        if self.tracker and not self.is_script and not self.entries_of(task):
            self.tracker.tasks.pop(task, None)

    def has_other_calls(self, index: int) -> bool:
        """Return whether a call's task has other calls that are open."""
        return len(self.entries_of(self.task_of(index))) > 1

    def split_cancelled(self, calls: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return the tasks of cancelled calls that have no other, and the calls of the rest."""
        tasks: set[int] = set()
        single = []
        for index in calls:
            if self.entries_of(self.task_of(index)):
                single.append(index)
            else:
                tasks.add(self.task_of(index))
        return sorted(tasks), single

    def job_ids(self, tasks: Iterable[int]) -> list[str]:
        """Return the Slurm ids of tasks; the jobs' own when these are all tasks there are."""
        tasks = list(tasks)
        if len(tasks) == len(self.task_indices()):
            return list(self.jobs)
        return [f'{job}_{task}' for job in self.jobs for task in tasks]

    # ---- Group

    def on_end(self, entry: Entry) -> None:
        """Forget a call whose future is done, but for how it ended."""
        self.ends[_how_ended(entry)] += 1
        self._owner.on_end(entry, self)

    def cancel(self, entry: Entry) -> None:
        """Remove the job of a call that the user has cancelled."""
        self._owner.cancel(entry, self)

    def kill(self, entry: Entry) -> None:
        """End a running call."""
        self._owner.kill(entry, self)


def _how_ended(entry: Entry) -> str:
    if entry.error is not None:
        return 'failed'
    return 'cancelled' if entry.future.cancelled() else 'succeeded'
