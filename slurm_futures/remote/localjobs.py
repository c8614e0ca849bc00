"""The jobs of the embedded queue: who runs, who waits and why, who has ended. Pure.

All that happens is a record, which `Jobs.apply` takes; the records, one after the other, make up
the state. Whoever runs the queue writes each of them down before it takes effect::

    queue         the next free id, how many jobs may run at once, the version of all records
    environment   the environment of jobs to come, by its digest
    submit        a job or an array of tasks
    start         a task runs, as this process
    warn          it has got the signal that it wanted before its time limit
    stop          it has been told to end, because it was cancelled or its time is up
    end           tasks have ended, or never began
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from .localjob import Ended, Job, Run
from .localoptions import Spec
from .slurm_parsers import AccountingRow, JobRow

VERSION = 1
"""Of the records, and of what is asked and answered."""

MIN_JOB_AGE = 300.0
"""Seconds that a job is listed after its end; Slurm's default."""

KILL_WAIT = 30.0
"""Seconds between SIGTERM and SIGKILL; Slurm's default."""

Record = Dict[str, Any]
Key = Tuple[int, int]
"""A task: its job or array, and its index; 0 for a plain job."""


class OtherVersion(Exception):
    """The records are those of another version of this package."""


class Jobs:
    """All jobs that the queue knows, as the records say.

    Args:
        clock: monotonic.
        kill_wait: seconds between SIGTERM and SIGKILL.
        min_job_age: seconds that a job is remembered after its end.

    Attributes:
        next_number: the next free id.
        max_jobs: how many tasks may run at once.
        environments: those of jobs that wait, by digest.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        kill_wait: float = KILL_WAIT,
        min_job_age: float = MIN_JOB_AGE,
    ) -> None:
        self._clock = clock
        self._kill_wait = kill_wait
        self._min_job_age = min_job_age
        self._jobs: Dict[int, Job] = {}
        self._queued: Dict[int, Job] = {}
        self._over: Dict[int, float] = {}
        self._scripts: Dict[str, int] = {}
        self.running: Dict[Key, Run] = {}
        self.environments: Dict[str, Dict[str, str]] = {}
        self.next_number = 1
        self.max_jobs = 1

    def __getitem__(self, number: int) -> Job:
        return self._jobs[number]

    @property
    def is_idle(self) -> bool:
        """Whether no job runs or waits."""
        return not self.running and not self._queued

    # ---- records

    def apply(self, record: Record) -> None:
        """Take note of what has happened."""
        getattr(self, '_on_' + record['what'])(record)

    def _on_queue(self, record: Record) -> None:
        if record['version'] != VERSION:
            version = record['version']
            raise OtherVersion(f'the queue there is that of another version ({version})')
        self.next_number = max(self.next_number, record['next'])
        self.max_jobs = record['max_jobs']

    def _on_environment(self, record: Record) -> None:
        self.environments[record['digest']] = record['values']

    def _on_submit(self, record: Record) -> None:
        job = Job(record['job'], Spec(**record['spec']), record['at'])
        self._jobs[job.number] = self._queued[job.number] = job
        self._scripts[job.spec.script] = job.number
        self.next_number = max(self.next_number, job.number + len(job.indices))

    def _on_start(self, record: Record) -> None:
        job, index = self._jobs[record['job']], record['task']
        job.waiting.remove(index)
        run = Run(record['who'], record['since'])
        job.running[index] = self.running[job.number, index] = run
        if not job.waiting:
            del self._queued[job.number]

    def _on_warn(self, record: Record) -> None:
        self.running[record['job'], record['task']].warned = True

    def _on_stop(self, record: Record) -> None:
        run = self.running[record['job'], record['task']]
        run.ending, run.kill_at = record['state'], record['since'] + self._kill_wait

    def _on_end(self, record: Record) -> None:
        job = self._jobs[record['job']]
        indices = job.parse(record['tasks'])
        job.end(indices, Ended(*record['how']))
        for index in indices:
            self.running.pop((job.number, index), None)
        if not job.waiting:
            self._queued.pop(job.number, None)
        if job.is_over:
            self._over[job.number] = self._clock()

    def records(self) -> Iterator[Record]:
        """Yield the records that make up the present state."""
        yield self._queue(self.max_jobs)
        for digest, values in self.environments.items():
            yield {'what': 'environment', 'digest': digest, 'values': values}
        for job in self._jobs.values():
            yield from self._records_of(job)

    def _records_of(self, job: Job) -> Iterator[Record]:
        yield {'what': 'submit', 'job': job.number, 'at': job.at, 'spec': job.spec._asdict()}
        for index, run in job.running.items():
            task = {'job': job.number, 'task': index}
            yield {'what': 'start', **task, 'who': run.who, 'since': run.since}
            if run.warned:
                yield {'what': 'warn', **task}
            if run.ending:
                since = run.kill_at - self._kill_wait
                yield {'what': 'stop', **task, 'state': run.ending, 'since': since}
        for ended, indices in job.grouped(lambda end: end).items():
            yield self.end(job, indices, ended)

    def _queue(self, max_jobs: int) -> Record:
        number = self.next_number
        return {'what': 'queue', 'version': VERSION, 'next': number, 'max_jobs': max_jobs}

    def submission(
        self, spec: Spec, environment: Dict[str, str], max_jobs: int, now: float
    ) -> List[Record]:
        """Return the records of a new job, whose id is the next one.

        Args:
            spec: what it asks for.
            environment: its environment.
            max_jobs: how many tasks may run at once from now on.
            now: the time in seconds since 1970.
        """
        values = json.dumps(environment, sort_keys=True).encode()
        digest = hashlib.sha256(values).hexdigest()
        spec = spec._replace(environment=digest)
        records = [] if max_jobs == self.max_jobs else [self._queue(max_jobs)]
        if digest not in self.environments:
            records.append({'what': 'environment', 'digest': digest, 'values': environment})
        job = {'what': 'submit', 'job': self.next_number, 'at': now, 'spec': spec._asdict()}
        return [*records, job]

    def end(self, job: Job, indices: Sequence[int], how: Ended) -> Record:
        """Return the record of the end of tasks."""
        return {'what': 'end', 'job': job.number, 'tasks': job.text(indices), 'how': list(how)}

    # ---- what happens next

    def find(self, script: str) -> Optional[int]:
        """Return the job that was submitted from a script."""
        return self._scripts.get(script)

    def next_task(self) -> Optional[Key]:
        """Return the task to be started now: the first that nothing keeps from it."""
        if len(self.running) >= self.max_jobs:
            return None
        for job in self._queued.values():
            if not self._obstacle(job):
                return job.number, job.waiting[0]
        return None

    def _obstacle(self, job: Job) -> str:
        """Return the reason why a job's tasks must wait though there is room, in Slurm's words."""
        if job.spec.held:
            return 'JobHeldUser'
        if job.spec.dependency and not self._dependency(job):
            return 'Dependency'
        if job.spec.parallelism and len(job.running) >= job.spec.parallelism:
            return 'JobArrayTaskLimit'
        return ''

    def hopeless(self) -> Iterator[Record]:
        """Yield the ends of jobs whose dependency cannot be met any more."""
        for job in list(self._queued.values()):
            if job.spec.dependency and self._dependency(job) is False:
                how = Ended('CANCELLED', reason='DependencyNeverSatisfied', ran=False)
                yield self.end(job, job.waiting, how)

    def _dependency(self, job: Job) -> Optional[bool]:
        """Return whether a job's dependency is met; None: not yet."""
        verdicts = [self._judge(job, *one) for one in job.spec.dependency]
        decisive = job.spec.any_dependency
        if decisive in verdicts:
            return decisive
        return None if None in verdicts else not decisive

    def _judge(self, job: Job, kind: str, number: int, index: Optional[int]) -> Optional[bool]:
        if kind == 'singleton':
            return self._is_alone(job) or None
        other = self._jobs.get(number)
        if other is None:  # long over, which is good enough for Slurm too (measured, 22.05)
            return True
        if index is None:
            begun, over, failed = not other.waiting, other.is_over, other.failed
        else:
            end = other.ended.get(index)
            begun, over = index not in other.waiting, end is not None
            failed = end is not None and end.state != 'COMPLETED'
        if kind == 'after':
            return begun or None
        if kind == 'afterok' and failed:
            return False
        return None if not over else failed or kind != 'afternotok'

    def _is_alone(self, job: Job) -> bool:
        """Return whether all older jobs of the same name are over."""
        older = (self._jobs[number] for number in self._jobs if number < job.number)
        return all(other.is_over for other in older if other.spec.name == job.spec.name)

    def stop(self, key: Key, state: str) -> Record:
        """Return the record that a running task has been told to end."""
        since = self._clock()
        return {'what': 'stop', 'job': key[0], 'task': key[1], 'state': state, 'since': since}

    def chosen(self, ids: Sequence[str]) -> Iterator[Tuple[Job, List[int]]]:
        """Yield the jobs, and their tasks, that ids name: ``12``, ``12_7``, ``12_[0-2,5]``."""
        for text in ids:
            number, _, tasks = text.partition('_')
            job = self._jobs.get(int(number)) if number.isdigit() else None
            if job is not None:
                yield job, job.parse(tasks)

    def due(self) -> Iterator[Tuple[Key, str]]:
        """Yield the running tasks for which the time has come: to 'warn', 'stop' or 'kill'."""
        now = self._clock()
        for key, run in list(self.running.items()):
            for what, at in self._times(self._jobs[key[0]].spec, run):
                if now >= at:
                    yield key, what

    def deadline(self) -> float:
        """Return when `due` has something to say, by the monotonic clock; infinity if never."""
        times = (
            at
            for key, run in self.running.items()
            for _, at in self._times(self._jobs[key[0]].spec, run)
        )
        return min(times, default=math.inf)

    def _times(self, spec: Spec, run: Run) -> Iterator[Tuple[str, float]]:
        if run.ending:
            yield 'kill', math.inf if run.killed else run.kill_at
        elif spec.time is not None:
            end = run.since + spec.time
            if spec.warning and not run.warned:
                yield 'warn', end - spec.warning[1]
            yield 'stop', end

    def forget(self, before: float = -math.inf) -> None:
        """Forget the jobs that were over long ago.

        Args:
            before: forget also what ended before, in seconds since 1970.
        """
        now = self._clock()
        for number, over in list(self._over.items()):
            job = self._jobs[number]
            if now >= over + self._min_job_age or job.ended_at < before:
                del self._over[number], self._jobs[number]
                self._scripts.pop(job.spec.script, None)
        wanted = {job.spec.environment for job in self._queued.values()}
        for digest in self.environments.keys() - wanted:
            del self.environments[digest]

    # ---- what is told of them

    def rows(self, host: str) -> List[JobRow]:
        """Return what squeue would show; tasks that have ended alike stand in one row."""
        return [row for job in self._jobs.values() for row in self._rows_of(job, host)]

    def _rows_of(self, job: Job, host: str) -> Iterator[JobRow]:
        number = str(job.number)
        if job.waiting:
            reason = self._obstacle(job) or 'Resources'
            yield JobRow(number, job.text(job.waiting), 'PENDING', reason, '', number)
        for index, run in job.running.items():
            state = 'COMPLETING' if run.ending else 'RUNNING'
            raw_id = str(job.raw_id(index))
            yield JobRow(number, job.text([index]), state, 'None', host, raw_id)
        alike = job.grouped(lambda end: (end.state, end.reason, host if end.ran else ''))
        for (state, reason, node), indices in alike.items():
            raw_id = str(job.raw_id(min(indices)))
            yield JobRow(number, job.text(indices), state, reason, node, raw_id)

    def history(self, numbers: Sequence[str], host: str) -> List[AccountingRow]:
        """Return what sacct would show of tasks that have ended."""
        jobs = [self._jobs[int(n)] for n in numbers if n.isdigit() and int(n) in self._jobs]
        return [
            AccountingRow(
                str(job.number),
                job.text([index]),
                str(job.raw_id(index)),
                end.state,
                end.code,
                end.signal,
                int(job.at),
                int(end.at),
                host if end.ran else '',
            )
            for job in jobs
            for index, end in job.ended.items()
        ]
