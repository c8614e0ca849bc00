"""Batches on their way to Slurm, until it has confirmed them.

What becomes of one submission::

    submitted    Slurm has it, or a message in the spool shows that it has: adopted
    refused      by sbatch, for good: its futures get sbatch's words
    put off      Slurm is out of reach, busy, or a limit is met: it goes into the backlog of its
                 bucket, which is submitted one by one as soon as Slurm takes any; an array that
                 meets a limit is split first
    ambiguous    Slurm may have it: looked for until it is found and adopted, or must have come to
                 nothing. The next attempt goes by the same claims, so that a late copy gives way
"""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from slurm_futures.batch import Batch
from slurm_futures.batching import CallSet
from slurm_futures.connection import Connection
from slurm_futures.remote.slurm_verdict import AMBIGUOUS, BUSY, LIMIT, SUBMITTED, UNREACHABLE

LOGGER = logging.getLogger('slurm_futures')

RETRY = (1.0, 60.0)
"""Seconds to the first and at most to a later attempt to submit what could not be taken now."""

LIMITED = 30.0
"""Seconds to the next attempt when a limit is met and no job of ours ends before."""

SETTLED = 150.0
"""Seconds that an unanswered submission may take to show up: sbatch itself retries for 120."""

AT_WORK = 200.0
"""Seconds that an agent may be busy with a submission (remote.slurm.SUBMIT_TIMEOUT)."""

CLAIMED = 'claimed'
"""The agent's answer to a submission that an agent before it has begun."""


class Follower(Protocol):
    """Whoever follows the jobs that batches become."""

    def adopt(self, batch: Batch, job: str, cluster: str) -> None:
        """Follow a job that Slurm has given an id."""

    def refuse(self, batch: Batch, reply: Mapping[str, Any]) -> None:
        """End a batch that Slurm will not take."""

    def split(self, batch: Batch, parts: Sequence[CallSet]) -> Sequence[Batch]:
        """Submit the parts of a batch instead of it."""

    def drop(self, batch: Batch) -> None:
        """Forget a batch that nobody wants any more, and that Slurm never had."""


@dataclass
class _Backlog:
    """Batches that are put off; one is tried at a time.

    Attributes:
        batches: those that wait for their turn.
        trying: the number of the batch that is being submitted.
        try_at: when to submit the next one.
        refusals: how often in a row that was in vain.
    """

    batches: collections.deque[Batch] = field(default_factory=collections.deque)
    trying: int | None = None
    try_at: float = math.inf
    refusals: int = 0


@dataclass
class _Search:
    """A submission that may have gone through.

    Attributes:
        batch: what was submitted.
        settled_at: when it must have shown up, or come to nothing.
        look_at: when to look for it next.
        misses: how often it has not been found since then.
    """

    batch: Batch
    settled_at: float
    look_at: float
    misses: int = 0


class Submissions:
    """All batches that Slurm has not confirmed.

    Args:
        connection: to the agent.
        follower: of what becomes of them.
        interval: seconds between two looks for a job.
        clock: monotonic.
    """

    def __init__(
        self,
        connection: Connection,
        follower: Follower,
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._follower = follower
        self._interval = interval
        self._clock = clock
        self._waiting: dict[int, Batch] = {}
        self._behind: list[Batch] = []
        self._backlogs: dict[Hashable, _Backlog] = {}
        self._searches: dict[int, _Search] = {}

    def submit(self, batch: Batch) -> None:
        """Submit a batch now, or behind those that it has to wait for."""
        self._waiting[batch.number] = batch
        backlog = self._backlogs.get(batch.bucket)
        if batch.after is not None and batch.after.number in self._waiting:
            self._behind.append(batch)
        elif backlog is not None:
            backlog.batches.append(batch)
        else:
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        header, body = batch.request()
        self._connection.request(header, body, lambda reply, _: self._on_reply(batch, reply))

    def _on_reply(self, batch: Batch, reply: Mapping[str, Any]) -> None:
        kind = reply.get('kind', AMBIGUOUS)  # an agent in trouble may have got as far as sbatch
        wanted = batch.number in self._waiting  # unless a message in the spool was quicker
        if wanted and kind in (UNREACHABLE, BUSY, LIMIT) and not batch.is_over:
            self._put_off(batch, kind, reply)
            return
        self._go_on(batch)
        if kind == SUBMITTED:
            self._follower.adopt(batch, reply['job_id'], reply['cluster'])
        elif wanted and kind in (AMBIGUOUS, CLAIMED):
            self._search(batch, reply)
        elif wanted:
            self.settle(batch)
            self._follower.refuse(batch, reply)

    def settle(self, batch: Batch) -> None:
        """Take note that Slurm has a batch, or will not get it; go on with those behind it."""
        self._waiting.pop(batch.number, None)
        self._searches.pop(batch.number, None)
        self._leave(batch)
        for other in [other for other in self._behind if other.after is batch]:
            self._behind.remove(other)
            self.submit(other)

    def withdraw(self, batch: Batch) -> bool:
        """Forget a batch if it is certain that Slurm does not have it; return whether it is."""
        is_certain = self._leave(batch)
        if is_certain:
            self.settle(batch)
        return is_certain

    def _leave(self, batch: Batch) -> bool:
        """Take a batch out of where it waits for its turn; return whether it waited."""
        backlog = self._backlogs.get(batch.bucket)
        for batches in (self._behind, backlog.batches if backlog else []):
            if batch in batches:
                batches.remove(batch)
                return True
        return False

    # ---- put off

    def _put_off(self, batch: Batch, kind: str, reply: Mapping[str, Any]) -> None:
        now = self._clock()
        backlog = self._backlogs.setdefault(batch.bucket, _Backlog(trying=batch.number))
        tried, before = backlog.trying == batch.number, len(backlog.batches)
        parts = batch.halves() if kind == LIMIT else []
        if parts:
            new = self._follower.split(batch, parts)
            for other in self._behind:
                other.after = new[-1] if other.after is batch else other.after
            self.settle(batch)
        else:
            batch.next_attempt()
            backlog.batches.append(batch)
        if not tried:
            return
        backlog.batches.rotate(len(backlog.batches) - before)  # it keeps its place
        backlog.trying = None
        if parts:
            backlog.try_at = now
            return
        backlog.try_at = now + (LIMITED if kind == LIMIT else back_off(backlog.refusals))
        level = logging.INFO if backlog.refusals else logging.WARNING
        backlog.refusals += 1
        LOGGER.log(level, 'cannot submit %s now (%s): %s', batch.label, kind, words(reply))

    def _go_on(self, batch: Batch) -> None:
        """Try the next batch of a backlog, since there is an answer to this one."""
        backlog = self._backlogs.get(batch.bucket)
        if backlog is not None and backlog.trying == batch.number:
            backlog.trying, backlog.refusals = None, 0
            backlog.try_at = self._clock()

    def make_room(self, key: Hashable) -> None:
        """Take note that a job has ended, so that a limit may not be met any more."""
        backlog = self._backlogs.get(key)
        if backlog is not None and backlog.try_at < math.inf:
            backlog.try_at = min(backlog.try_at, self._clock() + RETRY[0])

    # ---- ambiguous

    def _search(self, batch: Batch, reply: Mapping[str, Any]) -> None:
        now = self._clock()
        # The agent before may be at work yet, or out of sight on another host.
        at_work = reply.get('kind') == CLAIMED and reply.get('alive') is not False
        settled_at = now + SETTLED + (AT_WORK if at_work else 0)
        self._searches[batch.number] = _Search(batch, settled_at, look_at=now)
        LOGGER.warning('no answer to the submission of %s, looking for its job', batch.label)

    def _look(self, search: _Search, now: float) -> None:
        batch, search.look_at = search.batch, math.inf

        def on_found(reply: Mapping[str, Any], _body: bytes) -> None:
            if batch.number not in self._searches:
                return
            if reply.get('job_id'):
                self._follower.adopt(batch, reply['job_id'], '')
                return
            settled = now >= search.settled_at
            search.misses = search.misses + 1 if settled and reply.get('ok') else 0
            search.look_at = self._clock() + self._interval
            if search.misses >= 2:
                self._give_up(batch)

        header = {'do': 'lookup', 'token': batch.token, 'clusters': batch.cluster}
        self._connection.request(header, b'', on_found)

    def _give_up(self, batch: Batch) -> None:
        """Submit again what has come to nothing, if anybody still wants it."""
        del self._searches[batch.number]
        if batch.is_over:
            self.settle(batch)
            self._follower.drop(batch)
        else:
            batch.next_attempt()
            self.submit(batch)

    # ---- time

    def step(self, now: float) -> None:
        """Do what has become due."""
        for key, backlog in list(self._backlogs.items()):
            if now >= backlog.try_at:
                backlog.try_at = math.inf
                self._try_next(key, backlog)
        for search in list(self._searches.values()):
            if now >= search.look_at:
                self._look(search, now)

    def _try_next(self, key: Hashable, backlog: _Backlog) -> None:
        if not backlog.batches:
            del self._backlogs[key]
            return
        batch = backlog.batches.popleft()
        backlog.trying = batch.number
        if batch.is_over:
            self._go_on(batch)
            self.settle(batch)
            self._follower.drop(batch)
        else:
            self._send(batch)

    def deadline(self) -> float:
        """Return when `step` is due."""
        tries = (backlog.try_at for backlog in self._backlogs.values())
        looks = (search.look_at for search in self._searches.values())
        return min([*tries, *looks], default=math.inf)


def back_off(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    first, longest = RETRY
    return float(min(longest, first * 2 ** min(failures, 10)))


def words(reply: Mapping[str, Any]) -> str:
    """Return what an answer says of the reason why something failed."""
    text = reply.get('stderr') or reply.get('stdout') or reply.get('error') or ''
    return str(text).strip() or f'it ended with status {reply.get("returncode")}'
