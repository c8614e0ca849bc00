"""The ledger: what is reported of calls becomes their futures' outcomes."""

from __future__ import annotations

import pickle
import signal
import sys
from typing import Any

import pytest

from fakes import Controller
from slurm_futures.errors import (
    ConnectionFailed,
    JobCancelled,
    RemoteError,
    RemoteImportError,
    WorkerDied,
)
from slurm_futures.futures import JobFuture, Work
from slurm_futures.outcomes import Entry, Ledger


class Books:
    """A ledger with two calls, and what it tells others.

    Attributes:
        ended: the numbers of the calls whose group heard of their end.
        cancelled: the numbers of the calls whose group had to remove them.
        done: the numbers of the calls that the owner heard to be done.
    """

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.cancelled: list[int] = []
        self.done: list[int] = []
        self.ledger = Ledger(lambda future: self.done.append(future.work.number))
        self.first, self.second = (self.add(number) for number in (1, 2))

    def add(self, number: int) -> JobFuture[Any]:
        """Take up a call."""
        future: JobFuture[Any] = JobFuture(Controller(), Work(number))
        self.ledger.add(Entry(future, future.work, self))
        return future

    def on_end(self, entry: Entry) -> None:
        """Note it."""
        self.ended.append(entry.work.number)

    def cancel(self, entry: Entry) -> None:
        """Note it."""
        self.cancelled.append(entry.work.number)

    def kill(self, entry: Entry) -> None:
        """Do nothing."""

    def report(self, event: str, body: bytes = b'', call: int = 1, **members: Any) -> None:
        """Report something of a call."""
        item = {'event': event, 'call': call, 'size': len(body), **members}
        self.ledger.on_item(item, body, {'host': 'n1'})

    def outcome(self, kind: str, body: bytes = b'', **members: Any) -> BaseException | None:
        """Report an outcome of the first call; return the exception that it raises."""
        self.report('outcome', body, kind=kind, **members)
        return self.first.exception(timeout=0)


@pytest.fixture
def books() -> Books:
    """A ledger with two calls."""
    return Books()


class Trap:
    """What raises when it is unpickled.

    Args:
        error: what is raised.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return spring, (self.error,)


def spring(error: BaseException) -> None:
    """Raise an error."""
    raise error


# ---- the way of a call


def test_value(books: Books) -> None:
    """A value ends the call: the group hears of it, then the future has it, then the owner."""
    seen: list[tuple[list[int], list[int]]] = []
    books.first.add_done_callback(lambda _: seen.append((list(books.ended), list(books.done))))
    books.report('begun', log=[3, 4])
    assert books.first.running()
    books.report('outcome', pickle.dumps('value'), kind='value', log_end=[5, 6])
    assert books.first.result(timeout=0) == 'value'
    assert books.first.work.spans == [[3, 5], [4, 6]]
    assert seen == [([1], [])]
    assert (books.ended, books.done) == ([1], [1])
    assert list(books.ledger.entries) == [2]


def test_outcome_without_begun(books: Books) -> None:
    """An outcome alone is enough: the report that the call has begun may be late, or lost."""
    books.report('outcome', pickle.dumps('value'), kind='value')
    assert books.first.result(timeout=0) == 'value'


def test_first_outcome_wins(books: Books) -> None:
    """What is reported again, of this run or of an older copy, changes nothing."""
    books.report('outcome', pickle.dumps('value'), kind='value')
    books.report('outcome', pickle.dumps('other'), kind='value')
    books.report('begun', log=[7, 7])
    assert books.first.result(timeout=0) == 'value'
    assert books.done == [1]


def test_message_with_several_items(books: Books) -> None:
    """The bodies of a message's outcomes follow one another, each with its size."""
    bodies = [pickle.dumps('one'), pickle.dumps('two')]
    items = [
        {'event': 'begun', 'call': 1, 'log': [0, 0]},
        {'event': 'outcome', 'kind': 'value', 'call': 1, 'size': len(bodies[0])},
        {'event': 'outcome', 'kind': 'value', 'call': 99, 'size': 0},
        {'event': 'outcome', 'kind': 'value', 'call': 2, 'size': len(bodies[1])},
    ]
    message = {'host': 'n7', 'logs': ['/out', '/err'], 'items': items}
    books.ledger.on_message(message, b''.join(bodies))
    assert [books.first.result(0), books.second.result(0)] == ['one', 'two']
    assert (books.first.work.host, books.second.work.logs) == ('n7', ('/out', '/err'))


def test_message_without_items(books: Books) -> None:
    """A message about a task, not about its calls, concerns nobody here."""
    books.ledger.on_message({'batch': 1, 'stopping': True}, b'')
    assert not books.first.running()


def test_command(books: Books) -> None:
    """A command's outcome is its header and its output, also when its time was up."""
    for number, kind in ((1, 'completed'), (2, 'timeout')):
        books.report('outcome', b'output', call=number, kind=kind)
    item, output = books.second.result(timeout=0)
    assert (item['kind'], output) == ('timeout', b'output')
    assert books.first.result(timeout=0)[0]['kind'] == 'completed'


# ---- cancelled


def test_cancelled(books: Books) -> None:
    """A call that the user has cancelled is removed, once; its outcome is dropped."""
    books.first.cancel()
    books.ledger.drop(books.ledger.entries[1])
    assert (books.cancelled, books.ended, books.done) == ([1], [1], [1])
    books.report('outcome', pickle.dumps('value'), kind='value')
    assert books.first.cancelled()
    assert books.done == [1]


def test_not_cancelled(books: Books) -> None:
    """An order to remove a call that is not cancelled is none."""
    books.ledger.drop(books.ledger.entries[1])
    assert (books.cancelled, books.done) == ([], [])
    assert not books.first.running()


def test_cancelled_and_begun(books: Books) -> None:
    """A call that turns out to have begun, after it was cancelled, is removed there and then."""
    books.first.cancel()
    books.report('begun', log=[0, 0])
    assert (books.cancelled, books.ended, books.done) == ([1], [1], [1])


def test_cancelled_and_finished(books: Books) -> None:
    """Of a cancelled call that has finished there is nothing left to be removed."""
    books.first.cancel()
    books.report('outcome', pickle.dumps('value'), kind='value')
    assert (books.cancelled, books.ended, books.done) == ([], [1], [1])
    assert books.first.cancelled()


def test_resolved_by_its_user(books: Books) -> None:
    """A future that its user has resolved keeps what it was given."""
    books.first.set_result('mine')
    books.report('begun', log=[0, 0])
    assert books.first.result(timeout=0) == 'mine'
    assert books.cancelled == [1]
    assert books.done == [1]


# ---- what cannot be unpickled


@pytest.mark.parametrize(
    'error',
    [ValueError('bad value'), SystemExit(3), KeyboardInterrupt()],
    ids=['Exception', 'SystemExit', 'KeyboardInterrupt'],
)
def test_value_that_cannot_be_rebuilt(books: Books, error: BaseException) -> None:
    """Whatever unpickling a value raises becomes that call's error, and goes no further."""
    raised = books.outcome('value', pickle.dumps(Trap(error)))
    assert raised is not None
    assert type(raised) is type(error)
    if sys.version_info >= (3, 11):
        assert 'while unpickling' in raised.__notes__[0]
    assert not books.second.done()


def test_value_that_was_cut(books: Books) -> None:
    """A value of which bytes are missing is an error, too."""
    assert books.outcome('value', pickle.dumps(list(range(100)))[:-10]) is not None


# ---- other outcomes


def test_exception(books: Books) -> None:
    """An exception keeps its type and has the remote traceback as its cause."""
    item: dict[str, Any] = {
        'stage': 'run',
        'type': 'builtins.KeyError',
        'text': "Traceback...\nKeyError: 'x'\n",
    }
    error = books.outcome('error', pickle.dumps(KeyError('x')), **item)
    assert isinstance(error, KeyError)
    assert "KeyError: 'x'" in str(error.__cause__)


def test_exception_that_cannot_be_rebuilt(books: Books) -> None:
    """An exception that exists as text only is a RemoteError, naming where it was raised."""
    books.first.work.job_id = '100_3'
    item: dict[str, Any] = {
        'stage': 'run',
        'type': 'x.Error',
        'text': 'Traceback...\nx.Error: why\n',
    }
    error = books.outcome('error', b'', **item)
    assert isinstance(error, RemoteError)
    assert 'x.Error: why' in str(error)
    assert 'n1 (job 100_3)' in str(error)


def test_module_is_missing(books: Books) -> None:
    """A module that is missing there is an ImportError that names it."""
    item: dict[str, Any] = {
        'stage': 'load',
        'type': 'ModuleNotFoundError',
        'text': 'Traceback',
        'module': 'numpy',
    }
    error = books.outcome('error', b'', **item)
    assert isinstance(error, RemoteImportError)
    assert error.name == 'numpy'


@pytest.mark.parametrize('kind', ['killed', 'cancelled'])
def test_ended_by_us(books: Books, kind: str) -> None:
    """What kill() ended, or a cancelled call that was left out, is JobCancelled."""
    books.first.work.job_id = '100'
    error = books.outcome(kind)
    assert isinstance(error, JobCancelled)
    assert (error.job_id, error.node) == ('100', 'n1')


@pytest.mark.parametrize(('job_id', 'advice'), [('100', True), (None, False)])
def test_worker_killed_for_its_memory(books: Books, job_id: str | None, advice: bool) -> None:
    """A worker that was killed by SIGKILL: memory is the likely cause; in a job, ask for more."""
    books.first.work.job_id = job_id
    error = books.outcome('died', signal=int(signal.SIGKILL), exit_code=None)
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.exit_code, error.job_id) == (9, None, job_id)
    assert 'memory' in str(error)
    assert ('ask for more' in str(error)) is advice


def test_worker_exits(books: Books) -> None:
    """A worker that exits under a call: its status is told."""
    error = books.outcome('died', signal=None, exit_code=3)
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.exit_code, error.started) == (None, 3, True)
    assert 'memory' not in str(error)


def test_worker_cannot_be_started(books: Books) -> None:
    """Where no worker can be started, what it printed is the error."""
    error = books.outcome('unstartable', text='no such interpreter\n')
    assert isinstance(error, ConnectionFailed)
    assert 'no such interpreter' in str(error)


def test_unknown_kind(books: Books) -> None:
    """An outcome that nobody knows is an error of that call."""
    error = books.outcome('surprise')
    assert isinstance(error, RemoteError)
    assert 'surprise' in str(error)


def test_outcome_that_lacks_something(books: Books) -> None:
    """An outcome that is not what it should be is an error of that call, and no other's."""
    assert books.outcome('died') is not None
    assert not books.second.done()
