"""Batches in Slurm: what is reported of them, deciding about their tasks, cancelling.

A batch is submitted (`submissions`), becomes one job or several, and is over when the last of its
calls has ended and nothing is left of it that would have to be cancelled::

    add -> Submissions -> adopt -> messages of its tasks ----> Ledger
                                -> squeue, for all at once --> Tracker -> End -> Ledger
                                     Inquiries <-- Ask --------'
    cancel, kill -> Orders
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from slurm_futures.answers import Listing
from slurm_futures.batch import Batch
from slurm_futures.batching import CallSet
from slurm_futures.connection import Connection
from slurm_futures.ends import end_error
from slurm_futures.errors import SubmitError
from slurm_futures.inquiries import Inquiries, Subject
from slurm_futures.orders import Orders
from slurm_futures.outcomes import Entry, Ledger
from slurm_futures.remote.slurm_parsers import JobRow
from slurm_futures.remote.states import JobState
from slurm_futures.submissions import Submissions, words
from slurm_futures.tasks import Task
from slurm_futures.tracking import End, Tracker

LOGGER = logging.getLogger('slurm_futures')

TAIL = 4000
"""Bytes of stderr that an error shows."""

TAIL_PATIENCE = 15.0
"""Seconds that an error waits for them: the log's file system may hang."""

LINE = 300
"""Characters of an error that the log shows."""

Relaunch = Callable[[Batch, Sequence[CallSet]], Sequence[Batch]]


class Jobs:
    """All batches that are not over.

    Args:
        connection: to the agent.
        ledger: of the calls.
        relaunch: makes batches of the parts of a batch and adds them here.
        polling_interval: seconds between two queries.
        clock: monotonic.

    Attributes:
        saw_failure: whether a job has failed, so that its logs are worth keeping.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        relaunch: Relaunch,
        polling_interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._relaunch = relaunch
        self._connection = connection
        self._ledger = ledger
        self._interval = polling_interval
        self._clock = clock
        self._submissions = Submissions(connection, self, polling_interval, clock)
        self._inquiries = Inquiries(connection, polling_interval, clock, self._decide)
        self._orders = Orders(connection, clock)
        self._batches: dict[int, Batch] = {}
        self._query_at = math.inf
        self._querying: set[str] = set()
        self._tails: dict[int, tuple[float, Callable[[], None]]] = {}
        self.saw_failure = False

    # ---- the way in

    def add(self, batch: Batch) -> None:
        """Submit a batch."""
        self._batches[batch.number] = batch
        self._connection.expect_messages('jobs', expected=True)
        self._submissions.submit(batch)

    def adopt(self, batch: Batch, job: str, cluster: str) -> None:
        """Follow a job that Slurm has given an id."""
        batch.cluster = cluster or batch.cluster
        if job in batch.jobs:
            return
        batch.on_job(job, self._clock())
        if batch.number not in self._batches:
            self._orders.scancel([job], batch.cluster)  # nothing is left for it to do
            return
        _mention_submitted(batch, job)
        self._submissions.settle(batch)
        self._query_at = min(self._query_at, self._clock() + self._interval)
        self._remove_unwanted(batch)

    def refuse(self, batch: Batch, reply: Mapping[str, Any]) -> None:
        """End a batch that Slurm will not take."""
        code, stderr = reply.get('returncode'), reply.get('stderr', '')
        message = f'sbatch refused {batch.label}'
        if code is None or not stderr:
            message, stderr = f'{batch.label} cannot be submitted: {words(reply)}', ''
        LOGGER.info('%s cannot be submitted: %s', batch.label, words(reply))
        for entry in batch.open_entries():
            error = SubmitError(message, stderr=stderr, returncode=code)
            self._ledger.fail(entry, error)
        self.drop(batch)

    def split(self, batch: Batch, parts: Sequence[CallSet]) -> Sequence[Batch]:
        """Submit the parts of a batch instead of it."""
        for entry in batch.open_entries():
            del self._ledger.entries[entry.work.number]
        batches = self._relaunch(batch, parts)
        self.drop(batch)
        return batches

    def drop(self, batch: Batch) -> None:
        """Forget a batch that is over."""
        if self._batches.pop(batch.number, None):
            if batch.has_job:
                _mention_finished(batch, self._clock() - batch.submitted_at)
            self._submissions.make_room(batch.bucket)
        if not self._batches:
            self._connection.expect_messages('jobs', expected=False)
            self._query_at = math.inf

    # ---- what comes back

    def on_message(self, message: Mapping[str, Any], body: bytes) -> None:
        """Take a message from the spool about a batch."""
        batch = self._batches.get(message['batch'])
        if batch is not None:
            job = message.get('submitted') or message['job']
            self.adopt(batch, job, message.get('cluster', ''))
        if batch is None or 'submitted' in message:
            self._ledger.on_message(message, body)
            return
        batch.on_task_message(message, self._clock())
        self._ledger.on_message(message, body)
        if 'started' in message:
            for entry in batch.entries_of(message['task']):
                entry.work.host, entry.work.logs = message['host'], tuple(message['logs'])
                self._ledger.begin(entry)
        self._decide(batch)

    def on_end(self, entry: Entry, batch: Batch) -> None:
        """Close the task of a call whose future is done, if it was its last."""
        batch.close_call(entry)
        if entry.error is not None and batch.has_job:
            _mention_failed(batch, entry.work.job_id, entry.error)
        if batch.is_over and batch.has_job and not batch.is_unwanted:
            self.drop(batch)

    # ---- deciding

    def _decide(self, batch: Batch) -> None:
        if batch.tracker is None:
            return
        now = self._clock()
        for number, task, decision in batch.tracker.decide(now):
            if isinstance(decision, End):
                self._end_task(batch, number, task, decision)
            else:
                self._inquiries.put(decision, Subject(batch, number, task))
        batch.decide_at = batch.tracker.deadline(now)

    def _end_task(self, batch: Batch, number: int, task: Task, end: End) -> None:
        """End what a task leaves open, with the tail of its stderr where there may be one."""
        ended = batch.end_task(number, end)
        if ended is None:
            return
        worst, entries = ended
        self.saw_failure = self.saw_failure or worst.state is not JobState.COMPLETED
        if batch.succeeded(worst):
            for entry in entries:
                self._ledger.succeed(entry, worst.state)
            return
        logs = next((e.work.logs for e in entries if e.work.logs), None)
        finish = functools.partial(self._finish, batch, worst.job_id or task.job_id, worst, entries)
        if logs is None or (worst.started is False and worst.state is JobState.CANCELLED):
            finish('')
        else:
            self._read_tail(logs[1], finish)

    def _finish(
        self, batch: Batch, job_id: str, end: End, entries: Iterable[Entry], stderr: str
    ) -> None:
        for entry in entries:
            if entry.work.number in self._ledger.entries:
                error = end_error(entry, job_id, end, script=batch.is_script, stderr=stderr)
                self._ledger.fail(entry, error)

    def _read_tail(self, path: str, then: Callable[[str], None]) -> None:
        """Call ``then`` with the end of a log, or without, if that takes too long."""
        header = {'do': 'tail', 'path': path, 'start': 0, 'end': None, 'limit': TAIL}

        def on_tail(_header: Mapping[str, Any], body: bytes) -> None:
            self._tails.pop(request, None)
            then(body.decode(errors='replace'))

        request = self._connection.request(header, b'', on_tail)
        self._tails[request] = (self._clock() + TAIL_PATIENCE, lambda: then(''))

    # ---- asking Slurm

    def step(self, now: float) -> None:
        """Do what has become due."""
        for batch in list(self._batches.values()):
            if batch.cancelled:
                self._flush_cancelled(batch)
            if now >= batch.decide_at:
                self._decide(batch)
        if now >= self._query_at:
            self._query(now)
        for request in [r for r, (until, _) in self._tails.items() if now >= until]:
            self._connection.forget(request)
            self._tails.pop(request)[1]()
        self._submissions.step(now)
        self._inquiries.step(now)
        self._orders.step(now)

    def deadline(self) -> float:
        """Return when `step` is due."""
        return min(
            self._query_at,
            self._submissions.deadline(),
            self._inquiries.deadline(),
            self._orders.deadline(),
            *(batch.decide_at for batch in self._batches.values()),
            *(until for until, _ in self._tails.values()),
        )

    def _query(self, now: float) -> None:
        """Ask about all jobs in one go; on sites with several clusters, once on each in use."""
        self._query_at = now + self._interval
        clusters = {batch.cluster for batch in self._batches.values() if batch.has_job}
        for cluster in clusters - self._querying:
            self._querying.add(cluster)
            on_rows = functools.partial(self._on_rows, cluster, now)
            self._connection.request({'do': 'query', 'clusters': cluster}, b'', on_rows)

    def _on_rows(self, cluster: str, began: float, reply: Mapping[str, Any], _body: bytes) -> None:
        self._querying.discard(cluster)
        if not reply.get('ok'):
            LOGGER.info('the queue gave no answer: %s', reply.get('error'))
            return
        listing = Listing(JobRow(*row) for row in reply['rows'])
        for batch in list(self._batches.values()):
            if batch.tracker and batch.cluster == cluster and batch.submitted_at < began:
                batch.tracker.on_listing(listing, began, self._clock())
                _mention_held(batch, batch.tracker)
                self._show_states(batch)
                self._decide(batch)

    def _show_states(self, batch: Batch) -> None:
        batch.publish_states()
        if batch.is_script and batch.is_running:
            for entry in batch.open_entries():
                self._ledger.begin(entry)

    # ---- the way out

    def cancel(self, entry: Entry, batch: Batch) -> None:
        """Remove the job of a call that the user has cancelled."""
        batch.cancelled.append(batch.call_index(entry))

    def _flush_cancelled(self, batch: Batch) -> None:
        """Revoke and scancel tasks that nobody wants; tell the others which calls to leave out."""
        calls, batch.cancelled = batch.cancelled, []
        tasks, single = batch.split_cancelled(calls)
        if batch.is_over and self._submissions.withdraw(batch):
            self.drop(batch)
            return
        if single:
            numbers = [batch.first + index for index in single]
            self._orders.discard(batch.number, 'cancel', numbers)
        if tasks:
            self._orders.revoke(batch.topics(tasks))
            batch.unwanted.update(tasks)
        self._remove_unwanted(batch)

    def _remove_unwanted(self, batch: Batch) -> None:
        """Cancel the jobs of tasks that nobody wants; forget the batch with the last of them."""
        if not batch.has_job or batch.cancelled:
            return
        tasks, batch.unwanted = sorted(batch.unwanted), set()
        if tasks:
            then = functools.partial(self._drop_if_over, batch)
            self._orders.scancel(batch.job_ids(tasks), batch.cluster, then=then)
        else:
            self._drop_if_over(batch)

    def _drop_if_over(self, batch: Batch) -> None:
        if batch.is_over and not batch.is_unwanted:
            self.drop(batch)

    def kill(self, entry: Entry, batch: Batch) -> None:
        """End a running call: alone, if its task has others; with its job, if not."""
        index = batch.call_index(entry)
        if not batch.is_script and batch.has_other_calls(index):
            self._orders.discard(batch.number, 'kill', [entry.work.number])
            return
        tasks = batch.open_tasks() if batch.is_script else [batch.task_of(index)]
        is_open = functools.partial(self._ledger.has, entry)
        self._orders.scancel(batch.job_ids(tasks), batch.cluster, insist=is_open)

    def unsubmitted(self) -> Iterator[Batch]:
        """Yield the batches that Slurm has not confirmed."""
        return (batch for batch in self._batches.values() if not batch.has_job)

    @property
    def is_settled(self) -> bool:
        """Whether Slurm has got, and answered, all orders to cancel or kill."""
        unwanted = any(batch.is_unwanted for batch in self._batches.values())
        return not self._orders.unanswered and not unwanted

    @property
    def busy(self) -> bool:
        """Whether any batch is not over."""
        return bool(self._batches)


def _mention_held(batch: Batch, tracker: Tracker) -> None:
    """Say once of tasks that they wait for a person."""
    held = {task.job_id: task.reason for task in tracker.tasks.values() if task.held}
    fresh = sorted(held.keys() - batch.held)
    batch.held = set(held)
    if fresh:
        LOGGER.warning(
            'job %s waits until a person releases it (scontrol release) or cancels it: %s',
            ', '.join(fresh),
            held[fresh[0]],
        )


def _mention_submitted(batch: Batch, job: str) -> None:
    tasks = len(batch.task_indices())
    array = f' in {tasks} tasks' if tasks > 1 else ''
    LOGGER.info('job %s submitted: %s%s', job, batch.label, array)


def _mention_failed(batch: Batch, job_id: str | None, error: BaseException) -> None:
    """Say why a call has failed; of all but the first one of a batch, at level DEBUG."""
    level = logging.INFO if batch.ends['failed'] == 1 else logging.DEBUG
    if not LOGGER.isEnabledFor(level):  # a user's own exception may be slow to say what it is
        return
    try:
        text = str(error)
    except BaseException as broken:  # the user's code
        text = f'its text cannot be had: {type(broken).__name__}'
    line = f'{type(error).__name__}: {text}'.partition('\n')[0][:LINE]
    what = 'script' if batch.is_script else 'call'
    LOGGER.log(level, 'job %s: a %s has failed: %s', job_id, what, line)


def _mention_finished(batch: Batch, seconds: float) -> None:
    verb = 'finished' if batch.ends['succeeded'] or not batch.ends['failed'] else 'failed'
    ends = ', '.join(f'{count} {how}' for how, count in sorted(batch.ends.items(), reverse=True))
    LOGGER.info('job %s %s after %.0f s: %s', batch.jobs[-1], verb, seconds, ends)
