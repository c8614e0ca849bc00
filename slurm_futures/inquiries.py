"""What the state machine wants to know about tasks, asked for all batches at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from slurm_futures.answers import History
from slurm_futures.batch import Batch
from slurm_futures.connection import Connection
from slurm_futures.remote.slurm_parsers import AccountingRow
from slurm_futures.tasks import Claim, Task
from slurm_futures.tracking import Ask


class Subject(NamedTuple):
    """A task that something is to be found out about."""

    batch: Batch
    number: int
    task: Task


class Inquiries:
    """Asks the agent, and tells the tasks what it answers.

    Args:
        connection: to the agent.
        interval: seconds between two questions to sacct.
        clock: monotonic.
        on_answer: called with each batch about which something has become known.
    """

    def __init__(
        self,
        connection: Connection,
        interval: float,
        clock: Callable[[], float],
        on_answer: Callable[[Batch], None],
    ) -> None:
        self._connection = connection
        self._interval = interval
        self._clock = clock
        self._on_answer = on_answer
        self._owners: list[Subject] = []
        self._vanished: dict[str, dict[tuple[int, int], Subject]] = {}
        self._history_at: dict[str, float] = {}
        self._silent: dict[tuple[int, int], Subject] = {}
        self._news_at = 0.0

    def put(self, ask: Ask, subject: Subject) -> None:
        """Ask about a task, at the next step or as soon as it is time."""
        key = (subject.batch.number, subject.number)
        if ask is Ask.OWNER:
            subject.task.claim = Claim.ASKED
            self._owners.append(subject)
        elif ask is Ask.ACCOUNTING:
            self._vanished.setdefault(subject.batch.cluster, {})[key] = subject
        else:
            self._silent[key] = subject

    def step(self, now: float) -> None:
        """Ask what has become due."""
        if self._owners:
            self._ask_owners()
        for cluster in [c for c in self._vanished if now >= self._history_at.get(c, 0.0)]:
            self._ask_history(cluster)
        if self._silent and now >= self._news_at:
            self._ask_news()

    def deadline(self) -> float:
        """Return when `step` is due."""
        if self._owners:
            return -math.inf
        times = [self._history_at.get(cluster, 0.0) for cluster in self._vanished]
        return min([*times, self._news_at if self._silent else math.inf])

    def _ask_owners(self) -> None:
        """Try to prove that tasks never began, by claiming them."""
        subjects, self._owners = self._owners, []

        def on_owners(reply: Mapping[str, Any], _body: bytes) -> None:
            owners = reply.get('owners') or [''] * len(subjects)
            for subject, owner in zip(subjects, owners, strict=True):
                subject.task.on_owner(owner)
                subject.batch.note_job(subject.task)
            self._tell(subjects)

        topics = [topic for s in subjects for topic in s.batch.topics([s.number])]
        self._connection.request({'do': 'revoke', 'tasks': topics}, b'', on_owners)

    def _ask_history(self, cluster: str) -> None:
        """Ask sacct about jobs that squeue does not list any more."""
        subjects = list(self._vanished.pop(cluster).values())
        self._history_at[cluster] = math.inf

        def on_history(reply: Mapping[str, Any], _body: bytes) -> None:
            self._history_at[cluster] = self._clock() + self._interval
            history = History(AccountingRow(*row) for row in reply.get('rows', ()))
            for subject in subjects:
                task = subject.task
                task.on_history(history.find(task.job, task.index), subject.batch.created)
            self._tell(subjects)

        jobs = sorted({subject.task.job for subject in subjects})
        header = {'do': 'history', 'jobs': jobs, 'clusters': cluster}
        self._connection.request(header, b'', on_history)

    def _ask_news(self) -> None:
        """Have all read that the spool holds."""
        subjects, self._silent = list(self._silent.values()), {}
        since = [subject.task.since for subject in subjects]
        self._news_at = math.inf

        def on_caught_up(reply: Mapping[str, Any], _body: bytes) -> None:
            failed = 'error' in reply
            self._news_at = self._clock() + (self._interval if failed else 0.0)
            if not failed:
                for subject, when in zip(subjects, since, strict=True):
                    subject.task.catch_up(when)
            self._tell(subjects)

        self._connection.request({'do': 'catch_up'}, b'', on_caught_up)

    def _tell(self, subjects: Iterable[Subject]) -> None:
        for batch in {subject.batch.number: subject.batch for subject in subjects}.values():
            self._on_answer(batch)
