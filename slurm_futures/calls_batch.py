"""A batch of function calls: its script, its options, which task runs what."""

from __future__ import annotations

import math
import posixpath
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slurm_futures import wrappers
from slurm_futures.batch import Batch, Frame
from slurm_futures.batching import CallSet
from slurm_futures.outcomes import Entry
from slurm_futures.resources import Resources
from slurm_futures.tracking import End


@dataclass(frozen=True)
class Lane:
    """A batch's place among others that keep to one limit together.

    Attributes:
        parallelism: how many of its tasks may run at once; None: all.
        after: the batch whose end it waits for.
    """

    parallelism: int | None = None
    after: Batch | None = None


class CallsBatch(Batch):
    """Function calls in the tasks of one job or job array."""

    def __init__(
        self,
        frame: Frame,
        number: int,
        call_numbers: Sequence[int],
        calls: CallSet,
        lane: Lane,
    ) -> None:
        resources = calls.target.resources or Resources()
        super().__init__(frame, number, resources.clusters)
        self.after = lane.after
        self.parallelism = lane.parallelism
        self._calls = calls
        self._count = len(calls.calls)
        self._resources = resources
        self._tasks = calls.tasks
        self._take(
            frame.make_entry(future, number, self)
            for number, (future, _, _) in zip(call_numbers, calls.calls, strict=True)
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
    def bucket(self) -> Hashable:
        """Where it is counted: with those that ask for the same."""
        return self._resources

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
        ).encode(errors='surrogateescape')
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
            'modules': target.modules and posixpath.join(site.library, target.modules.digest),
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
            limit = f'%{self.parallelism}' if self.parallelism else ''
            options.append(f'--array=0-{self._tasks - 1}{limit}')
        if self.after and self.after.jobs:
            own = f'{resources.dependency},' if resources.dependency else ''
            options.append(f'--dependency={own}afterany:{self.after.jobs[-1]}')
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

    def succeeded(self, end: End) -> bool:  # noqa: ARG002 - what it asks for, scripts look at
        """Return False: without an outcome no call succeeds, however its task ended."""
        return False

    def halves(self) -> list[CallSet]:
        """Return the open calls in two sets of half as many tasks; none if there is one task."""
        if not self._is_array:
            return []
        calls = [self._calls.calls[index] for index in self._open]
        return replace(self._calls, calls=calls).split(math.ceil(self._tasks / 2))


def render_options(options: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return sbatch's command-line spelling of options."""
    return [f'--{name}' if value is None else f'--{name}={value}' for name, value in options]
