"""Batches on their way through Slurm: submission, tracking, cancelling, one query for all.

A batch goes through these stages; only the first four can be left without Slurm's help::

    preparing -> submitting -> submitted -> (its tasks end one by one) -> over
                   |  ^ retry: the controller was busy, or never got the request
                   v  |
                ambiguous: it may have been submitted; look for it, adopt it, or submit again
                           under the same claims, so that a late copy gives way
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from slurm_futures.batch import Batch
from slurm_futures.batching import CallSet
from slurm_futures.connection import Connection
from slurm_futures.ends import end_error
from slurm_futures.errors import SubmitError
from slurm_futures.outcomes import Entry, Ledger
from slurm_futures.remote.slurm_parsers import AccountingRow, JobRow, expand_tasks
from slurm_futures.remote.states import JobState
from slurm_futures.tracking import Ask, End, Listing, Task

LOGGER = logging.getLogger('slurm_futures')

RETRY = (1.0, 60.0)
"""Seconds to the first and at most to a later attempt to submit what could not be taken now."""

AMBIGUOUS = 150.0
"""Seconds that an unanswered submission may take to show up: sbatch itself retries for 120."""

TAIL = 4000
"""Bytes of stderr that an error shows."""


class Jobs:
    """All batches that are not over.

    Args:
        connection: to the agent.
        ledger: of the calls.
        launch: makes batches of calls and adds them here.
        polling_interval: seconds between two queries.

    Attributes:
        ordering: orders to cancel or kill that have not been answered.
        saw_failure: whether a job has failed, so that its logs are worth keeping.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        launch: Callable[[CallSet], None],
        polling_interval: float,
    ) -> None:
        self._launch = launch
        self._connection = connection
        self._ledger = ledger
        self._interval = polling_interval
        self._batches: dict[int, Batch] = {}
        self._query_at = math.inf
        self._querying = False
        self._watched = False
        self.ordering = 0
        self.saw_failure = False

    # ---- the way in

    def add(self, batch: Batch) -> None:
        """Submit a batch."""
        self._batches[batch.number] = batch
        self._watch()
        self._submit(batch)

    def _submit(self, batch: Batch) -> None:
        batch.retry_at = math.inf
        header, body = batch.request()
        self._connection.request(header, body, lambda h, _: self._on_submitted(batch, h))

    def _on_submitted(self, batch: Batch, reply: Mapping[str, Any]) -> None:
        now = time.monotonic()
        kind = reply.get('kind', 'refused')
        if batch.job is not None:
            return  # a message in the spool was quicker
        if kind == 'submitted':
            batch.cluster = reply['cluster'] or batch.cluster
            self._adopt(batch, reply['job_id'])
        elif kind in ('unreachable', 'busy'):
            first, longest = RETRY
            batch.retry_at = now + min(longest, first * 2**batch.refusals)
            batch.refusals += 1
            batch.next_attempt()
            LOGGER.warning('Slurm cannot take a job now, trying again: %s', _words(reply))
        elif kind == 'limit':
            self._hold(batch, now, reply)
        elif kind in ('ambiguous', 'claimed'):
            batch.look_since = batch.look_at = now
            LOGGER.warning('no answer to a submission, looking for the job: %s', _words(reply))
        else:
            self._refuse(batch, reply)

    def _hold(self, batch: Batch, now: float, reply: Mapping[str, Any]) -> None:
        """Wait for jobs to end; an array that is over a limit as a whole goes in halves."""
        parts = batch.halves()
        if not parts:
            batch.next_attempt()
            batch.retry_at = now + RETRY[1] / 2
            LOGGER.warning('a submit limit is reached, holding a job back: %s', _words(reply))
            return
        del self._batches[batch.number]
        for entry in batch.open_entries():
            del self._ledger.entries[entry.work.number]
        for part in parts:
            self._launch(part)

    def _refuse(self, batch: Batch, reply: Mapping[str, Any]) -> None:
        code, stderr = reply.get('returncode'), reply.get('stderr', '')
        message = f'sbatch refused {batch.label}'
        if code is None or not stderr:
            message, stderr = f'{batch.label} cannot be submitted: {_words(reply)}', ''
        for entry in batch.open_entries():
            error = SubmitError(message, stderr=stderr, returncode=code)
            self._ledger.fail(entry, error)
        self._over(batch)

    def _adopt(self, batch: Batch, job: str) -> None:
        """Follow a job that Slurm has given an id."""
        batch.on_job(job, time.monotonic())
        if self._query_at == math.inf:
            self._query_at = time.monotonic() + self._interval
        for message in batch.early:
            batch.on_task_message(message)
            self._on_task(batch, message)
        batch.early.clear()
        self._flush_cancelled(batch)

    # ---- what comes back

    def on_message(self, message: Mapping[str, Any], body: bytes) -> None:
        """Take a message from the spool about a batch."""
        batch = self._batches.get(message['batch'])
        if batch is not None and batch.job is not None and 'submitted' not in message:
            batch.on_task_message(message)
        self._ledger.on_message(message, body)
        if batch is None:
            return
        if 'submitted' in message:
            if batch.job is None:
                self._adopt(batch, message['submitted'])
        elif batch.job is None:
            batch.early.append(message)
        else:
            self._on_task(batch, message)

    def _on_task(self, batch: Batch, message: Mapping[str, Any]) -> None:
        if 'started' in message:
            for entry in batch.entries_of(message['task']):
                entry.work.host, entry.work.logs = message['host'], tuple(message['logs'])
                self._ledger.begin(entry)
        self._decide(batch)

    def on_end(self, entry: Entry, batch: Batch) -> None:
        """Close the task of a call whose future is done, if it was its last."""
        batch.close_call(entry)
        if batch.is_over and batch.job is not None and not batch.unwanted:
            self._over(batch)

    def _over(self, batch: Batch) -> None:
        self._batches.pop(batch.number, None)
        self._watch()

    def _watch(self) -> None:
        """Have the agent look for messages as long as some are to come."""
        wanted = bool(self._batches)
        if wanted != self._watched:
            self._watched = wanted
            self._connection.tell({'do': 'watch', 'on': wanted})
        if not wanted:
            self._query_at = math.inf

    def on_hello(self) -> None:
        """Greet a new agent."""
        self._connection.tell({'do': 'watch', 'on': self._watched})
        self._querying = False

    # ---- deciding

    def _decide(self, batch: Batch) -> None:
        if batch.tracker is None:
            return
        now = time.monotonic()
        asked: dict[Ask, list[tuple[int, Task]]] = {Ask.REVOKE: [], Ask.ACCOUNTING: []}
        for number, task, decision in batch.tracker.decide(now):
            if isinstance(decision, End):
                self._end_task(batch, number, task, decision)
            else:
                asked[decision].append((number, task))
        batch.decide_at = batch.tracker.deadline()
        self._revoke(batch, asked[Ask.REVOKE])
        if asked[Ask.ACCOUNTING] and now >= batch.history_at:
            batch.history_at = now + self._interval
            self._ask_history(batch, asked[Ask.ACCOUNTING])

    def _end_task(self, batch: Batch, number: int, task: Task, end: End) -> None:
        """End what a task leaves open, with the tail of its stderr where there may be one."""
        ended = batch.end_task(number, end)
        if ended is None:
            return
        worst, entries = ended
        if batch.script_succeeded(worst):
            for entry in entries:
                self._ledger.succeed(entry, worst.state)
            return
        self.saw_failure = True
        logs = next((e.work.logs for e in entries if e.work.logs), None)
        finish = self._finisher(batch, worst.job_id or task.job_id, worst, entries)
        cancelled = worst.started is False and worst.state is JobState.CANCELLED
        if logs is None or cancelled:
            return finish({}, b'')
        header = {'do': 'tail', 'path': logs[1], 'start': 0, 'end': None, 'limit': TAIL}
        self._connection.request(header, b'', finish)

    def _finisher(
        self, batch: Batch, job_id: str, end: End, entries: Iterable[Entry]
    ) -> Callable[[Mapping[str, Any], bytes], None]:
        def finish(_header: Mapping[str, Any], body: bytes) -> None:
            stderr = body.decode(errors='replace')
            for entry in entries:
                if entry.work.number not in self._ledger.entries:
                    continue
                if batch.unchecked(entry):
                    self._ledger.succeed(entry, end.state)
                else:
                    error = end_error(entry, job_id, end, batch.is_script, stderr)
                    self._ledger.fail(entry, error)

        return finish

    def _revoke(self, batch: Batch, tasks: list[tuple[int, Task]]) -> None:
        """Try to prove that tasks never began, by claiming them."""
        if not tasks:
            return
        for _, task in tasks:
            task.revoked = False

        def on_owners(reply: Mapping[str, Any], _body: bytes) -> None:
            # Without an answer nothing is proven, and the grace period decides.
            for (_, task), owner in zip(tasks, reply.get('owners', ()), strict=False):
                task.revoked = owner == 'revoked'
            self._decide(batch)

        topics = [f'{batch.number}.{number}' for number, _ in tasks]
        self._connection.request({'do': 'revoke', 'tasks': topics}, b'', on_owners)

    def _ask_history(self, batch: Batch, tasks: list[tuple[int, Task]]) -> None:
        def on_history(reply: Mapping[str, Any], _body: bytes) -> None:
            now = time.monotonic()
            rows = [AccountingRow(*row) for row in reply.get('rows', ())]
            by_task = dict(_accounting_by_task(rows))
            for _, task in tasks:
                row = by_task.get((task.job, task.index))
                if row is not None:
                    task.on_accounting(row, now)
            self._decide(batch)

        jobs = sorted({task.job for _, task in tasks})
        header = {'do': 'history', 'jobs': jobs, 'clusters': batch.cluster}
        self._connection.request(header, b'', on_history)

    # ---- asking Slurm

    def step(self, now: float) -> None:
        """Do what has become due."""
        for batch in list(self._batches.values()):
            if now >= batch.retry_at:
                self._submit(batch)
            if now >= batch.look_at:
                self._look(batch, now)
            if now >= batch.decide_at:
                self._decide(batch)
            if batch.cancelled and batch.job is not None:
                self._flush_cancelled(batch)
        if now >= self._query_at and not self._querying:
            self._query(now)

    def deadline(self) -> float:
        """Return when `step` is due."""
        times = [min(b.retry_at, b.look_at, b.decide_at) for b in self._batches.values()]
        return min([*times, math.inf if self._querying else self._query_at])

    def _clusters(self) -> str:
        """Return the clusters that have jobs of ours, where the user named any."""
        return ','.join(sorted({b.cluster for b in self._batches.values()} - {''}))

    def _query(self, now: float) -> None:
        """Ask about all jobs in one go."""
        self._querying = True
        self._query_at = now + self._interval

        def on_rows(reply: Mapping[str, Any], _body: bytes) -> None:
            self._querying = False
            if not reply.get('ok'):
                LOGGER.info('squeue gave no answer: %s', reply.get('error'))
                return
            listing = Listing(JobRow(*row) for row in reply['rows'])
            for batch in list(self._batches.values()):
                self._on_listing(batch, listing, now)

        self._connection.request({'do': 'query', 'clusters': self._clusters()}, b'', on_rows)

    def _on_listing(self, batch: Batch, listing: Listing, began: float) -> None:
        if batch.tracker is None or batch.submitted_at >= began:
            return
        batch.tracker.on_listing(listing, time.monotonic())
        batch.publish_states()
        if batch.is_script:
            for number, task in batch.tracker.tasks.items():
                if task.state is JobState.RUNNING:
                    for entry in batch.entries_of(number):
                        self._ledger.begin(entry)
        self._decide(batch)

    def _look(self, batch: Batch, now: float) -> None:
        """Look for a job whose submission was not answered."""
        batch.look_at = math.inf

        def on_found(reply: Mapping[str, Any], _body: bytes) -> None:
            if batch.job is not None:
                return
            if reply.get('job_id'):
                self._adopt(batch, reply['job_id'])
                return
            late = now - batch.look_since >= AMBIGUOUS
            batch.misses = batch.misses + 1 if reply.get('ok') and late else 0
            if batch.misses < 2:
                batch.look_at = time.monotonic() + self._interval
                return
            batch.next_attempt()
            self._submit(batch)

        header = {'do': 'lookup', 'token': batch.token, 'clusters': batch.cluster}
        self._connection.request(header, b'', on_found)

    # ---- the way out

    def cancel(self, entry: Entry, batch: Batch) -> None:
        """Remove the job of a call that the user has cancelled."""
        batch.cancelled.append(batch.call_index(entry))
        self._ledger.drop(entry)

    def _flush_cancelled(self, batch: Batch) -> None:
        """Revoke and scancel tasks that nobody wants; tell the others which calls to leave out."""
        calls, batch.cancelled = batch.cancelled, []
        if not calls:
            return
        tasks, single = batch.unwanted_tasks(calls)
        if single:
            numbers = [batch.first + index for index in single]
            header = {'do': 'discard', 'batch': batch.number, 'how': 'cancel', 'calls': numbers}
            self._order(header)
        if tasks:
            topics = [f'{batch.number}.{number}' for number in tasks]
            self._order({'do': 'revoke', 'tasks': topics})
            self._scancel(batch, batch.job_ids(tasks))
        elif batch.is_over:
            self._over(batch)

    def _scancel(self, batch: Batch, jobs: list[str]) -> None:
        def on_done(reply: Mapping[str, Any]) -> None:
            if reply.get('returncode') or 'error' in reply:
                LOGGER.warning('scancel %s failed: %s', ' '.join(jobs), _words(reply))
            if batch.is_over:
                self._over(batch)

        self._order({'do': 'scancel', 'jobs': jobs, 'clusters': batch.cluster}, on_done)

    def _order(
        self, header: Mapping[str, Any], then: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        """Send an order to cancel or kill, and count it until it is answered."""
        self.ordering += 1

        def on_done(reply: Mapping[str, Any], _body: bytes) -> None:
            self.ordering -= 1
            if then:
                then(reply)

        self._connection.request(header, b'', on_done)

    def kill(self, entry: Entry, batch: Batch) -> None:
        """End a running call: alone, if its task has others; with its job, if not."""
        index = batch.call_index(entry)
        if batch.is_script:
            self._scancel(batch, batch.job_ids(batch.open_tasks()))
        elif batch.has_other_calls(index):
            header = {'do': 'discard', 'batch': batch.number, 'how': 'kill'}
            self._order(dict(header, calls=[entry.work.number]))
        else:
            self._scancel(batch, batch.job_ids([batch.task_of(index)]))

    def unsubmitted(self) -> Iterator[Batch]:
        """Yield the batches that Slurm has not confirmed."""
        return (batch for batch in self._batches.values() if batch.job is None)

    @property
    def is_settled(self) -> bool:
        """Whether Slurm has got, and answered, all orders to cancel or kill."""
        return not self.ordering and not any(b.unwanted for b in self._batches.values())

    @property
    def busy(self) -> bool:
        """Whether any batch is not over."""
        return bool(self._batches)


def _words(reply: Mapping[str, Any]) -> str:
    words = reply.get('stderr') or reply.get('stdout') or reply.get('error') or ''
    return str(words).strip() or f'it ended with status {reply.get("returncode")}'


def _accounting_by_task(
    rows: Iterable[AccountingRow],
) -> Iterator[tuple[tuple[str, int | None], AccountingRow]]:
    for row in rows:
        indices: Iterable[int | None] = expand_tasks(row.tasks) if row.tasks else [None]
        for index in indices:
            yield (row.job_id, index), row
