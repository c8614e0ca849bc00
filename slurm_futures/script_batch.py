"""A batch that is a user's own script."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slurm_futures import wrappers
from slurm_futures.batch import Batch, Frame
from slurm_futures.batching import Target
from slurm_futures.futures import JobFuture
from slurm_futures.outcomes import Entry
from slurm_futures.remote.states import JobState
from slurm_futures.resources import Resources
from slurm_futures.script import ScriptHeader, array_indices, fill_gaps, render_sbatch_lines
from slurm_futures.tracking import End


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
        frame: Frame,
        number: int,
        call_number: int,
        job: ScriptJob,
    ) -> None:
        self._job = job
        self._resources = job.target.resources or Resources()
        super().__init__(frame, number, self._setting('clusters') or self._resources.clusters)
        self._ends: dict[int, End] = {}
        self._logs: dict[int, tuple[str, str]] = {}
        spec = self._setting('array')
        self._indices: Sequence[int | None] = array_indices(spec) if spec else [None]
        self._take([frame.make_entry(job.future, call_number, self)])

    def _setting(self, name: str) -> str | None:
        value: str | None = self._job.header.options.get(name)
        return value

    @property
    def label(self) -> str:
        """What to call the batch in messages."""
        return f'the script {self._job.name or self._setting("job-name") or ""}'.strip()

    @property
    def bucket(self) -> Hashable:
        """Where it is counted: with those that ask for the same."""
        settings = ('account', 'clusters', 'partition', 'qos')
        return (self._resources, *map(self._setting, settings))

    def request(self) -> tuple[dict[str, Any], bytes]:
        """Return the agent's order to submit the batch."""
        job, site, resources = self._job, self._site, self._resources
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
        ).encode(errors='surrogateescape')
        header = {
            'do': 'submit',
            'batch': self.number,
            'token': self.token,
            'options': [f'--chdir={cwd}', *([f'--job-name={name}'] if name else [])],
            'cwd': cwd,
            'mkdir': job.mkdir,
            'folders': self._log_folders(),
            'script_options': [*gaps, *job.header.options.items()],
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

    def task_of(self, index: int) -> int:  # noqa: ARG002 - there is one future only
        """Return the first task: a script has one future for all of them."""
        return self._indices[0] or 0

    def split_cancelled(self, calls: Iterable[int]) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Return all tasks: the one future stands for them."""
        return [index or 0 for index in self._indices], []

    def entries_of(self, task: int) -> list[Entry]:  # noqa: ARG002 - as for task_of()
        """Return the script, unless its future is done."""
        return self.open_entries()

    def on_end(self, entry: Entry) -> None:
        """Forget the script, whose future is done."""
        self._open.clear()
        super().on_end(entry)

    def on_task_message(self, message: Mapping[str, Any], now: float) -> None:
        """Take what a task's wrapper reports."""
        super().on_task_message(message, now)
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
        number = next((n for n, e in self._ends.items() if not _is_success(e)), number)
        for entry in self._open.values():
            entry.work.state = self._ends[number].state
            entry.work.logs = self._logs.get(number, entry.work.logs)
        return self._ends[number], self.open_entries()

    def succeeded(self, end: End) -> bool:
        """Return whether the future resolves to this end's state: unchecked, to any."""
        return _is_success(end) or not (self._job.check or end.lost)


def _is_success(end: End) -> bool:
    return end.state is JobState.COMPLETED and not end.lost
