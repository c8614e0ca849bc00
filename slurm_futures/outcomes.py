"""Applies what is reported of calls to their futures: the one place where futures are resolved."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from slurm_futures import futures, payload
from slurm_futures.errors import ConnectionFailed, JobCancelled, RemoteError, WorkerDied
from slurm_futures.futures import JobFuture, Work

LOGGER = logging.getLogger('slurm_futures')


class Group(Protocol):
    """Whatever has sent a call on its way and wants to know that it is over."""

    def on_end(self, entry: Entry) -> None:
        """Forget a call whose future is done."""

    def cancel(self, entry: Entry) -> None:
        """Remove the work of a future that the user has cancelled."""

    def kill(self, entry: Entry) -> None:
        """End a call under way."""


@dataclass(eq=False)
class Entry:
    """A call or script whose future is not done.

    Attributes:
        future: what the user waits for.
        work: what is known of it.
        group: whatever has sent it on its way.
        killed: whether the user has asked for its end.
        error: what the future is about to raise.
    """

    future: JobFuture[Any]
    work: Work
    group: Group
    killed: bool = False
    error: BaseException | None = None


def _nothing() -> None:
    """Do nothing."""


class Ledger:
    """All calls and scripts whose futures are not done, by number.

    Args:
        on_done: called with each future once it is done.
    """

    def __init__(self, on_done: Callable[[JobFuture[Any]], None]) -> None:
        self.entries: dict[int, Entry] = {}
        self._on_done = on_done

    def add(self, entry: Entry) -> None:
        """Take up a call that has got its number."""
        self.entries[entry.work.number] = entry

    def has(self, entry: Entry) -> bool:
        """Return whether a call's future is not done."""
        return self.entries.get(entry.work.number) is entry

    def on_message(self, message: Mapping[str, Any], body: bytes) -> None:
        """Apply the items of a message; the bodies of their outcomes follow one another."""
        start = 0
        for item in message.get('items', ()):
            end = start + item.get('size', 0)
            self.on_item(item, body[start:end], message)
            start = end

    def on_item(self, item: Mapping[str, Any], body: bytes, source: Mapping[str, Any]) -> None:
        """Apply one report; a call's first outcome wins, and a cancelled one's is dropped."""
        entry = self.entries.get(item['call'])
        if entry is None:
            return
        work = entry.work
        work.host = source.get('host', work.host)
        if 'logs' in source:
            work.logs = tuple(source['logs'])
        for edge, sizes in enumerate((item.get('log'), item.get('log_end'))):
            for span, size in zip(work.spans, sizes or (), strict=False):
                span[edge] = size
        if item['event'] == 'begun':
            self.begin(entry)
            return
        self._on_outcome(entry, item, body)

    def _on_outcome(self, entry: Entry, item: Mapping[str, Any], body: bytes) -> None:
        try:
            if item['kind'] == 'value':
                value = payload.load_value(body)
            elif item['kind'] in ('completed', 'timeout'):
                value = (item, body)
            else:
                self.fail(entry, outcome_error(entry.work, item, body))
                return
        except BaseException as error:
            if hasattr(error, 'add_note'):  # since Python 3.11
                error.add_note(_cannot_load(entry.work))
            self.fail(entry, error)
            return
        self.succeed(entry, value)

    def begin(self, entry: Entry) -> None:
        """Make the future RUNNING; if it has been cancelled, remove what has begun."""
        if not futures.start(entry.future):
            entry.group.cancel(entry)
            self._end(entry)

    def succeed(self, entry: Entry, value: Any) -> None:
        """Give the future its result."""
        self._end(entry, lambda: futures.succeed(entry.future, value))

    def fail(self, entry: Entry, error: BaseException) -> None:
        """Give the future its exception."""
        entry.error = error
        self._end(entry, lambda: futures.fail(entry.future, error))

    def drop(self, entry: Entry) -> None:
        """Remove a call whose future the user has cancelled."""
        if entry.future.cancelled():
            self.begin(entry)

    def _end(self, entry: Entry, resolve: Callable[[], None] = _nothing) -> None:
        self.entries.pop(entry.work.number, None)
        entry.group.on_end(entry)
        resolve()  # last: a callback may submit, or ask
        self._on_done(entry.future)


def _cannot_load(work: Work) -> str:
    return f'while unpickling the result of {name(work)}, which ended well on {work.host}'


def name(work: Work) -> str:
    """Return what to call a call or script in messages."""
    return f'job {work.job_id}' if work.job_id else f'call {work.number} on the login node'


def outcome_error(work: Work, item: Mapping[str, Any], body: bytes) -> BaseException:
    """Return the exception that an outcome other than a value amounts to."""
    kind = item['kind']
    if kind == 'error':
        where = f'{work.host} (job {work.job_id})' if work.job_id else work.host
        return payload.load_error(item, body, where)
    facts: dict[str, Any] = {'job_id': work.job_id, 'node': work.host or None, 'started': True}
    if kind in ('killed', 'cancelled'):
        return JobCancelled('the call was ended by kill()', **facts)
    if kind == 'unstartable':
        return ConnectionFailed(
            f'no worker could be started on the login node: {item["text"].strip()}'
        )
    if kind == 'died':
        return WorkerDied(
            'the worker process died under the call' + _likely_cause(work, item),
            exit_code=item['exit_code'],
            signal=item['signal'],
            **facts,
        )
    return RemoteError(f'{name(work)}: unknown outcome {kind!r}')


def _likely_cause(work: Work, item: Mapping[str, Any]) -> str:
    if item['signal'] != signal.SIGKILL:
        return ''
    return ', as it does when memory runs out' + (': ask for more' if work.job_id else '')
