"""What becomes of submitted tasks: the state machine. Pure: facts and a clock in, decisions out.

Three kinds of evidence are kept apart, and only the first ends a task at once or after a grace
period for slow file systems::

    terminal   its own report that it ended, or a terminal state of this very job
    absent     squeue answered, twice, and did not list it: starts a deadline, ends nothing
    unknown    the query failed: changes nothing

A live state, seen again, takes back what an earlier terminal state or absence began: Slurm may
put a job that was preempted, or whose node failed, back into the queue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from slurm_futures.remote.slurm_parsers import AccountingRow, ArrayRows, JobRow
from slurm_futures.remote.states import JobState


@dataclass(frozen=True)
class Policy:
    """What the tracker has to know of its surroundings.

    Attributes:
        grace: seconds that an outcome may take to appear after the task's end.
        requeue_exits: exit codes on which the cluster requeues a job (RequeueExit).
    """

    grace: float
    requeue_exits: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Exit:
    """What a wrapper reported as the last thing it did.

    Attributes:
        code: the exit status of the script, or of the worker.
        term: whether it had got SIGTERM, so that Slurm knows better what happened.
        delivered: how many outcomes it had put into the spool.
        signal: what ended the script, if a signal did.
    """

    code: int
    term: bool
    delivered: int = 0
    signal: int | None = None


@dataclass(frozen=True)
class End:
    """How a task ended that leaves calls without an outcome.

    Attributes:
        state: the state that Slurm gave, or that the wrapper's report amounts to.
        lost: nobody knows what became of it.
        started: False when it provably never began.
        obstacle: what kept the wrapper from starting the calls (see remote.entry and wrappers).
        told: all that the task had to say has arrived: what it has not begun by then never began.
        job_id: of the task that ended so, where its script has others; else ''.
    """

    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    node: str = ''
    reason: str = ''
    lost: bool = False
    started: bool | None = None
    obstacle: Mapping[str, Any] | None = None
    told: bool = False
    job_id: str = ''


class Ask(Enum):
    """What the state machine wants to know next about a task."""

    NOTHING = 'nothing'
    ACCOUNTING = 'accounting'
    """What sacct says of a job that squeue does not list any more."""
    REVOKE = 'revoke'
    """Whether the task can still be claimed, which proves that it never ran."""


@dataclass
class Task:
    """The facts about one task."""

    job: str
    index: int | None
    state: JobState = JobState.PENDING
    reason: str = ''
    node: str = ''
    restart: int = 0
    heard: bool = False
    stopping: bool = False
    exit: Exit | None = None
    received: int = 0
    terminal: JobState | None = None
    terminal_at: float = 0.0
    absences: int = 0
    absent_at: float = 0.0
    accounting: AccountingRow | None = None
    revoked: bool | None = None
    obstacle: Mapping[str, Any] | None = None

    @property
    def job_id(self) -> str:
        """The task's Slurm id, as users write it."""
        return self.job if self.index is None else f'{self.job}_{self.index}'

    def on_row(self, row: JobRow, now: float) -> None:
        """Take a line of squeue's answer."""
        self.absences = 0
        self.reason, self.node = row.reason, row.nodes or self.node
        state = JobState.parse(row.state)
        if state is not None:
            self.state = state
        if state is not None and state.is_terminal:
            self._on_terminal(state, now)
        else:
            self.terminal = None

    def _on_terminal(self, state: JobState, now: float) -> None:
        if self.terminal is None:
            self.terminal_at = now
        self.terminal = state

    def on_absence(self, now: float) -> None:
        """Take an answer of squeue, to a query begun after the submission, without this task."""
        self.absences += 1
        if self.absences == 1:
            self.absent_at = now

    def on_accounting(self, row: AccountingRow, now: float) -> None:
        """Take a line of sacct's answer."""
        state = JobState.parse(row.state)
        if state is not None and state.is_terminal and self.absences:
            self.accounting = row
            self.state = state
            self._on_terminal(state, now)

    def on_message(self, message: Mapping[str, Any]) -> None:
        """Take a message of the task's wrapper or worker."""
        self.heard = True
        restart = message.get('restart', 0)
        if restart < self.restart:
            return
        if restart > self.restart:
            self.restart = restart
            self.stopping, self.exit, self.received = False, None, 0
            self.terminal, self.absences = None, 0
        self.node = message.get('host', self.node)
        self.received += sum(i['event'] == 'outcome' for i in message.get('items', ()))
        self.stopping = self.stopping or 'stopping' in message
        self.obstacle = message.get('failed')
        if 'ended' in message:
            ended = message['ended']
            delivered, signal = ended.get('delivered', 0), ended.get('signal')
            self.exit = Exit(ended['code'], ended['term'], delivered, signal)
            if not ended['term']:
                self.state = JobState.FAILED if ended['code'] else JobState.COMPLETED
        elif self.terminal is None and not self.stopping:
            self.state = JobState.RUNNING


def decide_script(task: Task, policy: Policy, now: float) -> End | Ask | None:
    """Decide about a batch script: its end, what to ask for, or None to wait.

    The wrapper's word counts at once, unless it got SIGTERM or Slurm requeues on that exit code.
    """
    report = task.exit
    if report and not report.term and report.code not in policy.requeue_exits:
        state = JobState.FAILED if report.code else JobState.COMPLETED
        code = report.code if report.signal is None else None
        return End(state, code, report.signal, task.node, started=True)
    return _decide_by_slurm(task, policy, now, flushed=report is not None)


def decide_calls(task: Task, policy: Policy, now: float) -> End | Ask | None:
    """Decide about a task of function calls some of which have no outcome yet."""
    if task.obstacle and task.obstacle.get('code') not in policy.requeue_exits:
        return End(JobState.FAILED, node=task.node, started=False, obstacle=task.obstacle)
    report = task.exit
    flushed = report is not None and task.received >= report.delivered
    if flushed and report and not report.term and task.terminal is None:
        # The worker left calls undone without being told to: a newer copy of the task took over,
        # or it is about to be seen as ended.
        return None
    return _decide_by_slurm(task, policy, now, flushed)


def _decide_by_slurm(task: Task, policy: Policy, now: float, flushed: bool) -> End | Ask | None:
    gone = task.absences >= 2
    if task.terminal is None and not gone:
        return None
    if task.revoked:
        return _end(task, started=False)
    returns = task.terminal is not None and task.terminal.may_return
    if not task.heard and task.revoked is None and not returns:
        return Ask.REVOKE
    if flushed and task.terminal is not None and not returns:
        return _end(task, started=True, told=True)
    since = task.terminal_at if task.terminal is not None else task.absent_at
    if now - since >= policy.grace:
        return _end(task, started=True if task.heard else None, told=flushed)
    return Ask.ACCOUNTING if gone and task.accounting is None else None


def _end(task: Task, started: bool | None, *, told: bool = False) -> End:
    row = task.accounting
    node = task.node or (row.nodes if row else '')
    if task.terminal is None and started is False:
        # Pending tasks that are cancelled out of a living array vanish without a trace, from squeue
        # and from sacct (measured, 22.05), and nothing else makes a task vanish that never began.
        return End(JobState.CANCELLED, reason=task.reason, started=False, told=told)
    if task.terminal is None:
        return End(task.state, node=node, reason=task.reason, lost=True, started=started, told=told)
    return End(
        task.terminal,
        exit_code=row.exit_code if row else None,
        signal=row.signal if row and row.signal else None,
        node=node,
        reason=task.reason,
        started=started,
        told=told,
    )


def deadline(task: Task, policy: Policy) -> float:
    """Return when to decide again although nothing new is known; infinity if never."""
    if task.terminal is not None:
        return task.terminal_at + policy.grace
    if task.absences >= 2:
        return task.absent_at + policy.grace
    return math.inf


class Listing:
    """One answer of squeue, by job and task."""

    def __init__(self, rows: Iterable[JobRow]) -> None:
        self._rows: dict[str, list[JobRow]] = {}
        self._jobs: dict[str, ArrayRows] = {}
        for row in rows:
            self._rows.setdefault(row.job_id, []).append(row)

    def find(self, job: str, index: int | None) -> JobRow | None:
        """Return the row about a task; None when it is absent."""
        if job not in self._jobs:
            self._jobs[job] = ArrayRows(self._rows.get(job, ()))
        return self._jobs[job].find(index)


@dataclass
class Tracker:
    """The tasks of one batch that have not ended yet."""

    policy: Policy
    script: bool
    tasks: dict[int, Task] = field(default_factory=dict)

    def on_listing(self, listing: Listing, now: float) -> None:
        """Take an answer of squeue to a query that began after the submission was answered."""
        for task in self.tasks.values():
            row = listing.find(task.job, task.index)
            if row is None:
                task.on_absence(now)
            else:
                task.on_row(row, now)

    def decide(self, now: float) -> Iterator[tuple[int, Task, End | Ask]]:
        """Yield what is decided: a task's end, or what has to be asked for."""
        judge = decide_script if self.script else decide_calls
        for number, task in list(self.tasks.items()):
            decision = judge(task, self.policy, now)
            if decision is not None:
                yield number, task, decision

    def deadline(self) -> float:
        """Return when to decide again although nothing new is known."""
        return min((deadline(t, self.policy) for t in self.tasks.values()), default=math.inf)
