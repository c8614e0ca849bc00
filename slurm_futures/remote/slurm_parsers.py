"""What Slurm's commands print, as values. Pure: text in, values out; bad text never raises.

Lines that are not Slurm's (a site's wrapper may print its own) are skipped. Where text cannot be
understood for certain, the value says so, in a way that nobody can take for the end of a job.
"""

from __future__ import annotations

import re
from typing import Iterable, Iterator, NamedTuple, Optional, Tuple

from .states import JobState
from .task_sets import TaskSet, expand_tasks, strip_tasks

__all__ = [
    'AccountingRow',
    'ArrayRows',
    'ClusterLimits',
    'JobRow',
    'SubmittedId',
    'TaskSet',
    'expand_tasks',
    'find_script',
    'find_submission',
    'parse_config',
    'parse_sacct',
    'parse_sbatch',
    'parse_squeue',
]

_SUBMITTED = re.compile(
    r'(?:Submitted batch job (\d+)(?: on cluster (\S+))?)|(?:(\d+)(?:;(\S+))?)', re.ASCII
)
_ACCOUNTED = re.compile(r'(\d+)(?:_(\d+|\[[^]]*\]?)|\+(\d+))?', re.ASCII)
_SQUEUE_FIELDS = 6
_SACCT_FIELDS = 7
_SETTING = re.compile(r'(\w+)\s*=\s*(.*?)\s*')

# Reasons with which a PENDING job waits for a person: job_reason_string() in
# src/common/slurm_protocol_defs.c, and job descriptions in src/slurmctld/job_mgr.c. A job put on
# hold by `scontrol requeuehold` is PENDING with one of them, not REQUEUE_HOLD (measured, 22.05).
_HELD = frozenset(
    {
        'JobHeldUser',
        'JobHeldAdmin',
        'JobHoldMaxRequeue',
        'DependencyNeverSatisfied',
        'ReservationDeleted',
        'job requeued in held state',
        'launch failed requeued held',
    }
)


class SubmittedId(NamedTuple):
    """What sbatch says of a job that it submitted; ``cluster`` only when one was asked for."""

    job_id: str
    cluster: str = ''


def parse_sbatch(stdout: str) -> SubmittedId | None:
    """Find the job's id in sbatch's output, or in that of a site's wrapper around it.

    Returns:
        The last line that says so, with --parsable (``123;cluster``) or without; None if none.
    """
    for line in reversed(stdout.splitlines()):
        match = _SUBMITTED.fullmatch(line.strip())
        if match:
            worded, at, bare, on = match.groups()
            return SubmittedId(worded or bare, at or on or '')
    return None


class JobRow(NamedTuple):
    """One line of squeue: a job, a task of an array, or the pending tasks of one together.

    Attributes:
        job_id: the id that sbatch printed; for an array, that of the array.
        tasks: which of the array's tasks: ``7``, ``0-2,5-9``; see `expand_tasks`. Empty for a
            plain job, and for the cancelled rest of an array: see `ArrayRows`.
        state: the long name as printed; see `JobState.parse`.
        reason: why it waits, or how it failed.
        nodes: the node list; empty while there is none.
        raw_id: SLURM_JOB_ID of this very task. Of pending tasks listed together: the array's.
    """

    job_id: str
    tasks: str
    state: str
    reason: str
    nodes: str
    raw_id: str

    @property
    def needs_attention(self) -> bool:
        """Whether it waits until a person releases or cancels it.

        Tasks listed together may have several reasons: then nobody knows which of them wait so.
        """
        state = JobState.parse(self.state)
        if state is None or state.is_terminal:
            return False
        return state.needs_attention or _HELD.issuperset(self.reason.split(','))


def parse_squeue(text: str) -> list[JobRow]:
    """Read what squeue printed in `slurm_commands.SQUEUE_FORMAT`."""
    return [row for row in map(_job_row, text.splitlines()) if row is not None]


def _job_row(line: str) -> JobRow | None:
    # The reason is last: it is free text.
    fields = line.strip().split('|', _SQUEUE_FIELDS - 1)
    if len(fields) != _SQUEUE_FIELDS:
        return None
    job_id, tasks, raw_id, state, nodes, reason = fields
    if not (_is_id(job_id) and _is_id(raw_id) and state) or ' ' in state:
        return None
    tasks = '' if tasks in ('N/A', '(null)') else strip_tasks(tasks)
    return JobRow(job_id, tasks, state, reason.strip(), nodes, raw_id)


def _is_id(text: str) -> bool:
    return text.isdigit() and text.isascii()


class ArrayRows:
    """The rows of one job id: finds the one that speaks about a task.

    A task may stand in a row of its own, or in one with others. What squeue cut stands in none,
    and yet is there. And when the pending rest of an array is cancelled by ``scancel --user``,
    its row names no tasks at all (measured, 22.05).
    """

    def __init__(self, rows: Iterable[JobRow]) -> None:
        self._rows = list(rows)
        self._known: dict[int, JobRow] = {}
        self._bare: JobRow | None = None
        self._cut: JobRow | None = None
        for row in self._rows:
            self._add(row, expand_tasks(row.tasks))

    def _add(self, row: JobRow, tasks: TaskSet) -> None:
        self._known.update(dict.fromkeys(tasks, row))
        if not row.tasks:
            self._bare = row
        if tasks.truncated:
            # It need not be this task's state, so nobody may take it for one.
            self._cut = row._replace(state='')

    def find(self, index: int | None) -> JobRow | None:
        """Find the row about a task.

        Args:
            index: the task; None for a job submitted as a plain one. If that turns out to be an
                array, by the script's own #SBATCH line, any live task stands for it.

        Returns:
            Its row, None when it is absent. Where squeue cut the list of tasks, a task that may
            have been among them gets a row with an empty state: unknown, hence alive.
        """
        if index is None:
            return next(filter(_is_live, self._rows), self._rows[-1] if self._rows else None)
        return self._known.get(index) or self._cut or self._bare


def _is_live(row: JobRow) -> bool:
    state = JobState.parse(row.state)
    return state is None or state.is_live


def find_script(text: str, path: str) -> list[str]:
    """Find the jobs whose batch script is ``path``, in what `slurm_commands.lookup_argv` prints.

    Returns:
        Ids of jobs and arrays, the oldest first. Lines of other jobs, whose arguments may even
        contain newlines, are skipped.
    """
    pairs = (line.partition('|')[::2] for line in text.split('\n'))
    return _ids(job_id for job_id, command in pairs if command == path)


def find_submission(text: str, path: str) -> list[str]:
    """Do as `find_script` in what `slurm_commands.accounting_lookup_argv` prints.

    There it is the command line, in which the script's path comes last, and slurmdbd has put a
    question mark for what is not Latin-1 (measured, 22.05).
    """
    words = re.split('[^ -~]+', path)
    ending = re.compile('.* ' + '[^/]+'.join(map(re.escape, words)), re.DOTALL)
    pairs = (line.partition('|')[::2] for line in text.split('\n'))
    return _ids(job.partition('_')[0] for job, line in pairs if ending.fullmatch(line))


def _ids(words: Iterable[str]) -> list[str]:
    return sorted(set(filter(_is_id, words)), key=int)


class AccountingRow(NamedTuple):
    """One line of sacct: a job, a task, or the tasks of an array that never started together.

    Attributes:
        job_id: the id that sbatch printed; for an array, that of the array.
        tasks: as in `JobRow`.
        raw_id: SLURM_JOB_ID of this very task.
        state: as printed, ``CANCELLED by 1000`` too; see `JobState.parse`.
        exit_code: exit status of the batch script; None when not printed.
        signal: the signal that ended it, or 0.
        submit: when it was submitted, or last requeued (measured, 22.05); seconds since 1970.
        end: when it ended; None while it has not.
        nodes: the node list; empty when it never had one.
    """

    job_id: str
    tasks: str
    raw_id: str
    state: str
    exit_code: Optional[int]
    signal: int
    submit: Optional[int]
    end: Optional[int]
    nodes: str


def parse_sacct(text: str) -> list[AccountingRow]:
    """Read what sacct printed with `slurm_commands.SACCT_FORMAT` and SLURM_TIME_FORMAT=%s."""
    return [row for row in map(_accounting_row, text.splitlines()) if row is not None]


def _accounting_row(line: str) -> AccountingRow | None:
    fields = line.strip().split('|')
    match = _ACCOUNTED.fullmatch(fields[0])
    if len(fields) != _SACCT_FIELDS or match is None or not _is_id(fields[1]):
        return None
    job_id, tasks, component = match.groups()
    if component and int(component) > 0:
        # Of a heterogeneous job only the leader has the id that sbatch printed.
        job_id = fields[1]
    code, signal = _exit_code(fields[3])
    submit, end = _number(fields[4]), _number(fields[5])
    nodes = '' if fields[6] == 'None assigned' else fields[6]
    tasks = strip_tasks(tasks or '')
    return AccountingRow(job_id, tasks, fields[1], fields[2], code, signal, submit, end, nodes)


def _exit_code(text: str) -> tuple[int | None, int]:
    code, _, signal = text.partition(':')
    return _number(code), _number(signal) or 0


def _number(text: str) -> int | None:
    return int(text) if _is_id(text) else None


class ClusterLimits(NamedTuple):
    """What a cluster allows and does. The defaults are Slurm's own: slurm.conf(5).

    Attributes:
        max_array_size: task indices are less than this; 0 where arrays are not allowed.
        max_array_tasks: most tasks of one array, from SchedulerParameters.
        max_job_count: most jobs, each task counted, that the controller keeps in mind.
        min_job_age: seconds that squeue knows a job after its end.
        requeue_exit: exit codes on which a job is requeued.
        requeue_exit_hold: exit codes on which it is requeued and held.
        version: Slurm's version, such as ``22.05.8``.
        cluster: the cluster's name.
        known: whether the cluster itself said so.
    """

    max_array_size: int = 1001
    max_array_tasks: int = 1001
    max_job_count: int = 10000
    min_job_age: int = 300
    requeue_exit: Tuple[int, ...] = ()
    requeue_exit_hold: Tuple[int, ...] = ()
    version: str = ''
    cluster: str = ''
    known: bool = False


def parse_config(text: str) -> ClusterLimits:
    """Read what ``scontrol show config`` printed; what is missing gets Slurm's default."""
    settings = dict(_settings(text))
    default = ClusterLimits()
    size = _leading(settings.get('MaxArraySize', ''), default.max_array_size)
    scheduler = re.search(r'\bmax_array_tasks=(\d+)', settings.get('SchedulerParameters', ''))
    return ClusterLimits(
        max_array_size=size,
        max_array_tasks=min(size, int(scheduler.group(1))) if scheduler else size,
        max_job_count=_leading(settings.get('MaxJobCount', ''), default.max_job_count),
        min_job_age=_leading(settings.get('MinJobAge', ''), default.min_job_age),
        requeue_exit=_codes(settings.get('RequeueExit', '')),
        requeue_exit_hold=_codes(settings.get('RequeueExitHold', '')),
        version=settings.get('SLURM_VERSION', ''),
        cluster=settings.get('ClusterName', ''),
        known='SLURM_VERSION' in settings,
    )


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = _SETTING.fullmatch(line)
        if match:
            yield match.group(1), match.group(2)


def _leading(text: str, default: int) -> int:
    match = re.match(r'\d+', text, re.ASCII)
    return int(match.group()) if match else default


def _codes(text: str) -> tuple[int, ...]:
    """Read exit codes such as ``100-103,120``; ``(null)`` is none."""
    return tuple(expand_tasks('' if text == '(null)' else text))
