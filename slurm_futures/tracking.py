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
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from slurm_futures.answers import Listing
from slurm_futures.remote.states import JobState
from slurm_futures.tasks import Claim, Exit, Task


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

    The wrapper's word counts at once, unless Slurm knows better what happened: when it got SIGTERM,
    when Slurm requeues on that exit code, and when the script was killed by SIGKILL, which Slurm
    uses on the failure of a node, and the kernel when memory runs out.
    """
    report = task.exit
    known = report and not report.term and report.signal != signal.SIGKILL
    if report and known and report.code not in policy.requeue_exits:
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
    ended_by = row.signal if row else report.signal if report else None
    state, lost = task.terminal or task.state, task.terminal is None
    if task.claim is Claim.REVOKED:
        # Pending tasks that are cancelled out of a living array vanish without a trace, from squeue
        # and from sacct (measured, 22.05), and nothing else makes a task vanish that never began.
        state = JobState.CANCELLED if lost else state
        lost = state is JobState.COMPLETED  # whatever completed, it was not the task
    return End(
        state,
        exit_code=code,
        signal=ended_by or None,
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
