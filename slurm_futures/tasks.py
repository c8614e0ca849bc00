"""The facts about one task: what is known of it, from whom, and since when. Pure.

What it may be taken for is decided in `tracking`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

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
