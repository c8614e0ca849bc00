"""What becomes of submitted tasks: the state machine. Pure: facts and a clock in, decisions out.

Three kinds of evidence are kept apart, and only the first ends a task at once or after a grace
period for slow file systems::

    terminal   its own report that it ended, or a terminal state of this very job
    absent     squeue answered, twice, and did not list it: starts a deadline, ends nothing
    unknown    the query failed: changes nothing

A live state, seen again, takes back what an earlier terminal state or absence began: Slurm may
put a job that was preempted, or whose node failed, back into the queue. When the grace period is
over, the spool is read once more before anything is given up: time alone proves nothing, since
the line to the agent may have been down all the while.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from slurm_futures.answers import Listing
from slurm_futures.remote.slurm_parsers import AccountingRow, JobRow
from slurm_futures.remote.spool import REVOKED
from slurm_futures.remote.states import JobState

CLOCK_SKEW = 3600.0
"""Seconds that the cluster's clock may be behind ours: an older job is another with its id."""

_QUEUED_AGAIN = frozenset(
    {
        JobState.PENDING,
        JobState.REQUEUED,
        JobState.REQUEUE_FED,
        JobState.REQUEUE_HOLD,
        JobState.RESV_DEL_HOLD,
        JobState.SPECIAL_EXIT,
    }
)


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

    ACCOUNTING = 'accounting'
    """What sacct says of a job that squeue does not list any more."""
    OWNER = 'owner'
    """Who has claimed the task: if nobody has, it is claimed now, so that it can never run."""
    NEWS = 'news'
    """Whether the spool holds anything that has not been read."""


class Claim(Enum):
    """Who has claimed the task, which decides whether it runs."""

    UNKNOWN = 'unknown'
    ASKED = 'asked'
    """The answer is on its way."""
    UNPROVEN = 'unproven'
    """It could not be found out."""
    TAKEN = 'taken'
    """The task's job has: it began."""
    REVOKED = 'revoked'
    """The client has: the task never began and never will."""


@dataclass
class Task:
    """The facts about one task."""

    job: str
    index: int | None
    state: JobState = JobState.PENDING
    reason: str = ''
    node: str = ''
    restart: int = 0
    claim: Claim = Claim.UNKNOWN
    stopping: bool = False
    exit: Exit | None = None
    obstacle: Mapping[str, Any] | None = None
    received: set[int] = field(default_factory=set)
    terminal: JobState | None = None
    terminal_at: float = 0.0
    absences: int = 0
    absent_at: float = 0.0
    looked_up: bool = False
    accounting: AccountingRow | None = None
    held: bool = False
    heard_at: float = -math.inf
    caught_up: float | None = None

    @property
    def job_id(self) -> str:
        """The task's Slurm id, as users write it."""
        return self.job if self.index is None else f'{self.job}_{self.index}'

    @property
    def is_gone(self) -> bool:
        """Whether nothing is known of it but that squeue does not list it."""
        return self.terminal is None and self.absences >= 2

    @property
    def since(self) -> float:
        """Since when it has not been seen alive; infinity if it has."""
        if self.terminal is not None:
            return self.terminal_at
        return self.absent_at if self.is_gone else math.inf

    def on_row(self, row: JobRow, began: float, now: float) -> None:
        """Take a line of squeue's answer; a state that nobody knows yet is a live one.

        Args:
            row: the line.
            began: when squeue was started, at the earliest.
            now: the time.
        """
        self.absences, self.accounting, self.looked_up = 0, None, False
        self.reason, self.node = row.reason, row.nodes or self.node
        asked_for = row.reason == 'JobHeldUser' and self.claim is Claim.UNKNOWN  # --hold
        self.held = row.needs_attention and not asked_for
        state = JobState.parse(row.state)
        if state is not None:
            self.state = state
        if state is not None and state.is_terminal:
            if self.terminal is None:
                self.terminal_at = now
            self.terminal = state
            return
        self.terminal = None
        if state in _QUEUED_AGAIN and began > self.heard_at:
            self.exit, self.stopping, self.obstacle = None, False, None

    def on_absence(self, now: float) -> None:
        """Take an answer of squeue, to a query begun after the submission, without this task."""
        self.absences += 1
        if self.absences == 1:
            self.absent_at = now

    def on_history(self, row: AccountingRow | None, submitted: float) -> None:
        """Take what sacct says of the task; it says nothing for seconds, or for ever.

        Args:
            row: its line; None where it has none.
            submitted: when the task was submitted at the earliest, in seconds since 1970.
        """
        if not self.absences:
            return
        self.looked_up = True
        state = JobState.parse(row.state) if row else None
        if row is None or state is None or not state.is_terminal:
            return
        if row.submit is not None and row.submit < submitted - CLOCK_SKEW:
            return  # an old job: Slurm's ids start again one day
        self.accounting, self.state = row, state
        if self.terminal is None:
            self.terminal_at = self.absent_at
        self.terminal = state

    def on_message(self, message: Mapping[str, Any], now: float) -> None:
        """Take a message of the wrapper or worker of the task's own job."""
        if 'failed' not in message:  # that comes before the claim
            self.claim = Claim.TAKEN
        restart = message.get('restart', 0)
        if restart < self.restart:
            return
        if restart > self.restart:
            self._begin_again(restart)
        self.heard_at = now
        self.node = message.get('host', self.node)
        items = message.get('items', ())
        self.received.update(item['call'] for item in items if item['event'] == 'outcome')
        self.stopping = self.stopping or 'stopping' in message
        self.obstacle = message.get('failed')
        if 'ended' in message:
            self._on_exit(message['ended'])
        elif self.terminal is None and not self.stopping and self.exit is None:
            self.state = JobState.RUNNING

    def _on_exit(self, ended: Mapping[str, Any]) -> None:
        delivered, signal = ended.get('delivered', 0), ended.get('signal')
        self.exit = Exit(ended['code'], ended['term'], delivered, signal)
        if not self.exit.term and self.terminal is None:
            self.state = JobState.FAILED if self.exit.code else JobState.COMPLETED

    def _begin_again(self, restart: int) -> None:
        self.restart = restart
        self.exit, self.stopping, self.obstacle = None, False, None
        self.received.clear()
        self.terminal, self.absences = None, 0
        self.accounting, self.looked_up = None, False

    def on_owner(self, owner: str) -> None:
        """Take the answer to `Ask.OWNER`; empty: it could not be found out."""
        if owner == REVOKED:
            self.claim = Claim.REVOKED
        elif owner:
            self.follow(owner.partition(':')[2])
        elif self.claim is Claim.ASKED:
            self.claim = Claim.UNPROVEN

    def follow(self, job: str) -> None:
        """Take note that a job has claimed the task: another one, if the task was submitted twice.

        Args:
            job: its id.
        """
        self.claim = Claim.TAKEN
        if job != self.job:
            self.job = job
            self._begin_again(0)

    def catch_up(self, since: float) -> None:
        """Take note that the spool has been read after the grace period.

        Args:
            since: of the task, when that was asked for.
        """
        self.caught_up = since


def _fits(report: Exit, state: JobState | None) -> bool:
    """Return whether a report and a state can be of the same run.

    A run that got SIGTERM and was requeued may be followed, between two answers of squeue, by one
    that has ended already and whose messages are still on their way.
    """
    if state is JobState.COMPLETED:
        return report.code == 0
    return state is not JobState.FAILED or report.code != 0


def decide_script(task: Task, policy: Policy, now: float) -> End | Ask | None:
    """Decide about a batch script: its end, what to ask for, or None to wait.

    The wrapper's word counts at once, unless it got SIGTERM or Slurm requeues on that exit code.
    """
    report = task.exit
    if report and not report.term and report.code not in policy.requeue_exits:
        state = JobState.FAILED if report.code else JobState.COMPLETED
        code = report.code if report.signal is None else None
        return End(state, code, report.signal, task.node, started=True)
    flushed = report is not None and _fits(report, task.terminal)
    return _decide_by_slurm(task, policy, now, flushed=flushed)


def decide_calls(task: Task, policy: Policy, now: float) -> End | Ask | None:
    """Decide about a task of function calls some of which have no outcome yet."""
    if task.obstacle and task.obstacle.get('code') not in policy.requeue_exits:
        return _decide_by_obstacle(task)
    report = task.exit
    flushed = report is not None and len(task.received) >= report.delivered
    if report and report.term and task.terminal in {JobState.COMPLETED, JobState.FAILED}:
        flushed = False  # nothing that is ended by SIGTERM ends so: see _fits()
    return _decide_by_slurm(task, policy, now, flushed=flushed)


def _decide_by_obstacle(task: Task) -> End | Ask | None:
    """End what could not start its calls, once no other submission of it can."""
    if task.claim is Claim.UNKNOWN:
        return Ask.OWNER
    if task.claim is Claim.ASKED:
        return None
    started = False if task.claim is Claim.REVOKED else None
    return End(JobState.FAILED, node=task.node, started=started, obstacle=task.obstacle)


def _decide_by_slurm(task: Task, policy: Policy, now: float, *, flushed: bool) -> End | Ask | None:
    """Decide by what Slurm says of a task.

    Args:
        task: the task.
        policy: the grace period.
        now: the time.
        flushed: whether all is here that the task had to say; it does not have to be waited for.
    """
    if task.since == math.inf:
        return None
    proven = task.terminal is not None and not task.terminal.may_return
    late = now - task.since >= policy.grace
    if task.claim is Claim.UNKNOWN and (proven or late):
        return Ask.OWNER
    if proven and (flushed or task.claim is Claim.REVOKED):
        return _end(task, flushed=flushed)
    if task.is_gone and not (late and task.looked_up):
        return Ask.ACCOUNTING
    if late and (task.claim is Claim.REVOKED or task.caught_up == task.since):
        return _end(task, flushed=flushed)
    return Ask.NEWS if late and task.claim is not Claim.ASKED else None


def _end(task: Task, *, flushed: bool) -> End:
    row, report = task.accounting, task.exit
    code = row.exit_code if row else report.code if report and report.signal is None else None
    signal = row.signal if row else report.signal if report else None
    state, lost = task.terminal or task.state, task.terminal is None
    if task.claim is Claim.REVOKED:
        # Pending tasks that are cancelled out of a living array vanish without a trace, from squeue
        # and from sacct (measured, 22.05), and nothing else makes a task vanish that never began.
        state = JobState.CANCELLED if lost else state
        lost = state is JobState.COMPLETED  # whatever completed, it was not the task
    return End(
        state,
        exit_code=code,
        signal=signal or None,
        node=task.node or (row.nodes if row else ''),
        reason=task.reason,
        lost=lost,
        started={Claim.TAKEN: True, Claim.REVOKED: False}.get(task.claim),
        told=flushed or task.stopping,
    )


def deadline(task: Task, policy: Policy, now: float) -> float:
    """Return when to decide again although nothing new is known; infinity if never."""
    end = task.since + policy.grace
    return end if end > now else math.inf


@dataclass
class Tracker:
    """The tasks of one batch that have not ended yet.

    Attributes:
        policy: how to judge them.
        script: whether they run a user's script, not calls.
        tasks: by number.
    """

    policy: Policy
    script: bool
    tasks: dict[int, Task] = field(default_factory=dict)

    def on_listing(self, listing: Listing, began: float, now: float) -> None:
        """Take an answer of squeue to a query that began after the submission was answered."""
        for task in self.tasks.values():
            row = listing.find(task.job, task.index)
            if row is None:
                task.on_absence(now)
            else:
                task.on_row(row, began, now)

    def decide(self, now: float) -> Iterator[tuple[int, Task, End | Ask]]:
        """Yield what is decided: a task's end, or what has to be asked for."""
        judge = decide_script if self.script else decide_calls
        for number, task in list(self.tasks.items()):
            decision = judge(task, self.policy, now)
            if decision is not None:
                yield number, task, decision

    def deadline(self, now: float) -> float:
        """Return when to decide again although nothing new is known."""
        return min((deadline(t, self.policy, now) for t in self.tasks.values()), default=math.inf)
