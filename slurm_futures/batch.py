"""One batch: what one sbatch submits, and which of its calls are still open."""

from __future__ import annotations

import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from slurm_futures import wrappers
from slurm_futures.batching import CallSet, Target
from slurm_futures.futures import JobFuture
from slurm_futures.outcomes import Entry, Group
from slurm_futures.remote.states import JobState
from slurm_futures.resources import Resources
from slurm_futures.script import ScriptHeader, array_indices, fill_gaps, render_sbatch_lines
from slurm_futures.tracking import End, Policy, Task, Tracker


@dataclass(frozen=True)
class Site:
    """What a connected agent has told of the place where jobs are submitted.

    Attributes:
        folder: the run's spool.
        entry: the workers' entry script.
        cwd: where calls and scripts run unless they say otherwise.
        python_cmd: the interpreter for calls.
        setup: shell lines to run first in every job.
        sys_path: module folders of the client that workers on this machine can use too.
    """

    folder: str
    entry: str
    cwd: str
    python_cmd: str
    setup: Sequence[str]
    sys_path: Sequence[str]

    def place(self, cwd: str | None) -> str:
        """Return where something runs: what it says, relative to where the others run."""
        return os.path.join(self.cwd, cwd) if cwd else self.cwd


class Owner(Protocol):
    """Whoever sends batches on their way."""

    def on_end(self, entry: Entry, batch: Batch) -> None:
        """Take note that a call's future is done."""

    def cancel(self, entry: Entry, batch: Batch) -> None:
        """Remove the job of a call that the user has cancelled."""

    def kill(self, entry: Entry, batch: Batch) -> None:
        """End a running call."""


MakeEntry = Callable[[JobFuture[Any], int, Group], Entry]


class Batch(ABC):
    """A job or a job array, from before its submission until nothing of it is open."""

    is_script = False

    def __init__(self, owner: Owner, site: Site, policy: Policy, number: int) -> None:
        self._owner = owner
        self._site = site
        self._policy = policy
        self.number = number
        self.first = 0
        self.attempt = 1
        self.cluster = ''
        self.job: str | None = None
        self.submitted_at = 0.0
        self.tracker: Tracker | None = None
        self.early: list[Mapping[str, Any]] = []
        self.cancelled: list[int] = []
        self.refusals = self.misses = 0
        self.retry_at = self.look_at = self.decide_at = math.inf
        self.look_since = self.history_at = 0.0
        self._open: dict[int, Entry] = {}  # nothing else keeps a call, and so its result

    # ---- what differs between calls and scripts

    @property
    @abstractmethod
    def label(self) -> str:
        """What to call the batch in messages."""

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

    def script_succeeded(self, end: End) -> bool:
        """Return whether this end is what a script's future resolves to."""
        return False

    def unchecked(self, entry: Entry) -> bool:
        """Return whether the future resolves to the state even if that is a failure."""
        return False

    # ---- what is the same

    @property
    def token(self) -> str:
        """The name of the batch script: what a lost submission is found by."""
        return f'{self._site.folder.rsplit("/", 1)[-1]}-{self.number}.{self.attempt}'

    @property
    def is_over(self) -> bool:
        """Whether no call is open."""
        return not self._open

    @property
    def unwanted(self) -> bool:
        """Whether cancelled calls wait for their jobs to be removed."""
        return bool(self.cancelled)

    def next_attempt(self) -> None:
        """Prepare to submit again, under the same task claims but another token."""
        self.attempt += 1
        self.misses = 0
        self.look_at = math.inf

    def _take(self, entries: Iterable[Entry]) -> None:
        self._open = dict(enumerate(entries))
        self.first = self._open[0].work.number
        for entry in self._open.values():
            entry.work.state = JobState.PENDING

    def on_job(self, job: str, now: float) -> None:
        """Take the id that Slurm gave; from now on the tasks are tracked."""
        self.job, self.submitted_at = job, now
        self.retry_at = self.look_at = math.inf
        tasks = {index or 0: Task(job, index) for index in self.task_indices()}
        wanted = {self.task_of(index) for index in self._open}
        tracked = tasks if self.is_script else {n: t for n, t in tasks.items() if n in wanted}
        self.tracker = Tracker(self._policy, self.is_script, tracked)
        for index, entry in self._open.items():
            task = tasks.get(self.task_of(index))
            entry.work.job_id = job if self.is_script or task is None else task.job_id

    def on_task_message(self, message: Mapping[str, Any]) -> None:
        """Take what a task's wrapper or worker reports."""
        task = self.tracker.tasks.get(message['task']) if self.tracker else None
        if task is None:
            return
        winner = message.get('superseded', 'job:' + message['job']).partition(':')[2]
        if winner != task.job and 'failed' in message:
            return  # it has not even claimed the task
        if winner != task.job:  # another submission of the same batch won the claim
            task.job = winner
            task.absences = 0
        if 'superseded' not in message:
            task.on_message(message)
        self._publish(message['task'], task)

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

    def unwanted_tasks(self, calls: Iterable[int]) -> tuple[list[int], list[int]]:
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
        """Return the Slurm ids of tasks; the job's own when they are all there is."""
        tasks = list(tasks)
        if self.job is None:
            return []
        indices = self.task_indices()
        if indices == [None] or len(tasks) == len(indices):
            return [self.job]
        return [f'{self.job}_{task}' for task in tasks]

    # ---- Group

    def on_end(self, entry: Entry) -> None:
        """Forget a call whose future is done."""
        self._owner.on_end(entry, self)

    def cancel(self, entry: Entry) -> None:
        """Remove the job of a call that the user has cancelled."""
        self._owner.cancel(entry, self)

    def kill(self, entry: Entry) -> None:
        """End a running call."""
        self._owner.kill(entry, self)


class CallsBatch(Batch):
    """Function calls in the tasks of one job or job array."""

    def __init__(
        self,
        owner: Owner,
        site: Site,
        policy: Policy,
        numbers: tuple[int, Sequence[int]],
        calls: CallSet,
        make_entry: MakeEntry,
    ) -> None:
        super().__init__(owner, site, policy, numbers[0])
        self._calls = calls
        self._count = len(calls.calls)
        self._tasks = calls.tasks
        self._take(
            make_entry(future, number, self)
            for number, (future, _, _) in zip(numbers[1], calls.calls, strict=True)
        )

    @property
    def label(self) -> str:
        """What to call the batch in messages."""
        count = self._count
        return (
            f'{count} calls of {self._calls.label}'
            if count > 1
            else f'a call of {self._calls.label}'
        )

    @property
    def _resources(self) -> Resources:
        return self._calls.target.resources or Resources()

    @property
    def _is_array(self) -> bool:
        return self._tasks > 1

    def request(self) -> tuple[dict[str, Any], bytes]:
        """Return the agent's order to submit the batch."""
        target, site, resources = self._calls.target, self._site, self._resources
        cwd = site.place(target.cwd)
        script = wrappers.calls_script(
            folder=site.folder,
            batch=self.number,
            entry=site.entry,
            python_cmd=target.python_cmd or site.python_cmd,
            cwd=cwd,
            setup=[*site.setup, *resources.setup],
            env=dict(resources.env),
        ).encode()
        header = {
            'do': 'submit',
            'batch': self.number,
            'token': self.token,
            'options': self._options(resources, cwd),
            'cwd': cwd,
            'mkdir': False,
            'folders': [],
            'script_size': len(script),
        }
        facts = {
            'first': self.first,
            'cwd': cwd,
            'python': list(sys.version_info[:2]),
            'sys_path': list(site.sys_path),
        }
        return header, script + self._calls.encode(facts)

    def _options(self, resources: Resources, cwd: str) -> list[str]:
        options = render_options(resources.sbatch_options())
        logs = self._site.folder.replace('%', '%%') + '/logs/' + str(self.number)
        suffix = '_%a' if self._is_array else '_0'
        options += [f'--chdir={cwd}', f'--output={logs}{suffix}.out', f'--error={logs}{suffix}.err']
        if not resources.job_name:
            options.append(f'--job-name={self._calls.label}')
        if self._is_array:
            limit = f'%{resources.array_parallelism}' if resources.array_parallelism else ''
            options.append(f'--array=0-{self._tasks - 1}{limit}')
        return options

    def on_job(self, job: str, now: float) -> None:
        """Take the id that Slurm gave, and say where the calls' output will be."""
        super().on_job(job, now)
        self._calls = replace(self._calls, functions=[], calls=[])  # Slurm has them
        logs = f'{self._site.folder}/logs/{self.number}_'
        for index, entry in self._open.items():
            task = self.task_of(index)
            entry.work.logs = (f'{logs}{task}.out', f'{logs}{task}.err')

    def task_indices(self) -> Sequence[int | None]:
        """Return the array indices of the tasks."""
        return list(range(self._tasks)) if self._is_array else [None]

    def task_of(self, index: int) -> int:
        """Return the task that runs a call."""
        return index // self._calls.chunksize

    def entries_of(self, task: int) -> list[Entry]:
        """Return the open calls of a task."""
        first = task * self._calls.chunksize
        calls = range(first, min(first + self._calls.chunksize, self._count))
        return [self._open[index] for index in calls if index in self._open]

    def end_task(self, number: int, end: End) -> tuple[End, list[Entry]] | None:
        """Take a task's end, which is the end of all its calls that have no outcome."""
        if self.tracker:
            self.tracker.tasks.pop(number, None)
        return end, self.entries_of(number)

    def halves(self) -> list[CallSet]:
        """Return the open calls in two sets of half as many tasks; none if there is one task."""
        if not self._is_array:
            return []
        calls = [self._calls.calls[index] for index in self._open]
        return replace(self._calls, calls=calls).split(math.ceil(self._tasks / 2))


@dataclass
class ScriptJob:
    """A user's batch script on its way to sbatch.

    Attributes:
        target: resources that fill the gaps in the script's header, and where it runs.
        header: what the script's header says.
        text: the whole script.
        future: what the user waits for.
        name: the job's name, if the script's own is not wanted.
        check: whether an end other than COMPLETED is raised.
        mkdir: whether a missing working folder is created.
        default_name: the job's name if nobody gives it one.
    """

    target: Target
    header: ScriptHeader
    text: str
    future: JobFuture[Any]
    name: str | None = None
    check: bool = True
    mkdir: bool = False
    default_name: str = 'script'


class ScriptBatch(Batch):
    """A user's script; its own header may make it an array, with one future all the same."""

    is_script = True

    def __init__(
        self,
        owner: Owner,
        site: Site,
        policy: Policy,
        numbers: tuple[int, int],
        job: ScriptJob,
        make_entry: MakeEntry,
    ) -> None:
        super().__init__(owner, site, policy, numbers[0])
        self._job = job
        self._ends: dict[int, End] = {}
        self._logs: dict[int, tuple[str, str]] = {}
        spec = self._setting('array')
        self._indices: Sequence[int | None] = array_indices(spec) if spec else [None]
        self._take([make_entry(job.future, numbers[1], self)])

    def _setting(self, name: str) -> str | None:
        value: str | None = self._job.header.options.get(name)
        return value

    @property
    def label(self) -> str:
        """What to call the batch in messages."""
        return f'the script {self._job.name or self._setting("job-name") or ""}'.strip()

    def request(self) -> tuple[dict[str, Any], bytes]:
        """Return the agent's order to submit the batch."""
        job, site = self._job, self._site
        resources = job.target.resources or Resources()
        cwd = site.place(job.target.cwd or self._setting('chdir'))
        gaps = fill_gaps(job.header, resources.sbatch_options())
        lines = [*render_sbatch_lines(gaps), *job.header.lines]
        named = self._setting('job-name') is not None or 'job-name' in dict(gaps)
        name = job.name or (None if named else job.default_name)
        command = [job.header.interpreter]
        if job.header.argument:
            command.append(job.header.argument)
        command.append(f'{site.folder}/calls/{self.number}.calls')
        script = wrappers.user_script(
            header_lines=lines,
            folder=site.folder,
            batch=self.number,
            command=command,
            cwd=cwd,
            setup=[*site.setup, *resources.setup],
            env=dict(resources.env),
            signal_option=dict(gaps).get('signal') or self._setting('signal'),
        ).encode()
        header = {
            'do': 'submit',
            'batch': self.number,
            'token': self.token,
            'options': [f'--chdir={cwd}', *([f'--job-name={name}'] if name else [])],
            'cwd': cwd,
            'mkdir': job.mkdir,
            'folders': self._log_folders(),
            'script_size': len(script),
        }
        return header, script + job.text.encode()

    def _log_folders(self) -> list[str]:
        """Return the folders of the log files: Slurm fails the job if one is missing."""
        paths = [self._setting('output'), self._setting('error')]
        folders = [path.rpartition('/')[0] for path in paths if path]
        return [folder for folder in folders if folder and '%' not in folder]

    def task_indices(self) -> Sequence[int | None]:
        """Return the array indices of the tasks."""
        return self._indices

    def task_of(self, index: int) -> int:
        """Return the first task: a script has one future for all of them."""
        return self._indices[0] or 0

    def entries_of(self, task: int) -> list[Entry]:
        """Return the script, unless its future is done."""
        return self.open_entries()

    def on_end(self, entry: Entry) -> None:
        """Forget the script, whose future is done."""
        self._open.clear()
        super().on_end(entry)

    def on_task_message(self, message: Mapping[str, Any]) -> None:
        """Take what a task's wrapper reports."""
        super().on_task_message(message)
        if 'logs' in message:
            self._logs[message['task']] = tuple(message['logs'])

    def end_task(self, number: int, end: End) -> tuple[End, list[Entry]] | None:
        """Take a task's end; the script ends with the last one, as badly as the worst."""
        if self.tracker is None or number not in self.tracker.tasks:
            return None
        task = self.tracker.tasks.pop(number)
        self._ends[number] = replace(end, job_id=task.job_id)
        if self.tracker.tasks:
            return None
        bad = (n for n, e in self._ends.items() if e.state is not JobState.COMPLETED)
        number = next(bad, number)
        for entry in self._open.values():
            entry.work.state = self._ends[number].state
            entry.work.logs = self._logs.get(number, entry.work.logs)
        return self._ends[number], self.open_entries()

    def script_succeeded(self, end: End) -> bool:
        """Return whether the script completed."""
        return end.state is JobState.COMPLETED and not end.lost

    def unchecked(self, entry: Entry) -> bool:
        """Return whether the future resolves to the state even if that is a failure."""
        return not self._job.check


def render_options(options: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return sbatch's command-line spelling of options."""
    return [f'--{name}' if value is None else f'--{name}={value}' for name, value in options]
