"""progress(): what it yields, what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from tqdm import tqdm

from fakes import Controller
from slurm_futures import futures, progress, reporting
from slurm_futures.futures import JobFuture, Work

TOGETHER: list[Callable[[], Future[Any]]] = [Future, lambda: JobFuture(Controller(), Work(1))]


def done(value: Any) -> Future[Any]:
    """Return a future that has ended: with a value, or an exception."""
    future: Future[Any] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@contextlib.contextmanager
def on_terminal() -> Iterator[Terminal]:
    """Have stderr be a terminal; all bars on it must be closed in the end."""
    with contextlib.redirect_stderr(Terminal()) as stream:
        yield stream
    assert not tqdm._instances


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log at level INFO."""
    caplog.set_level(logging.INFO, 'slurm_futures')
    return caplog


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at what is running every few milliseconds."""
    monkeypatch.setattr(reporting._Lines, 'interval', 0.01)
    monkeypatch.setattr(reporting._Bar, 'interval', 0.01)


def at_line(number: int, action: Callable[[], object]) -> logging.Handler:
    """Make a handler that does something when the log gets its n-th line."""
    lines: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)
            if len(lines) == number:
                action()

    return Handler()


@pytest.fixture
def when_logged() -> Iterator[Callable[[int, Callable[[], object]], None]]:
    """Have something done when the log gets its n-th line."""
    handlers: list[logging.Handler] = []

    def add(number: int, action: Callable[[], object]) -> None:
        handlers.append(at_line(number, action))
        reporting.LOGGER.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        reporting.LOGGER.removeHandler(handler)


# ---- what it yields


def test_all_kinds_of_futures() -> None:
    """Futures of any executor are yielded, each once, whatever they are given in."""
    with ThreadPoolExecutor(2) as pool:
        expected = [pool.submit(pow, 2, n) for n in range(50)] + [make() for make in TOGETHER]
        for future in expected[-2:]:
            futures.succeed(future, -1)
        found = list(progress(iter(expected + expected)))
    assert len(found) == 52
    assert set(found) == set(expected)


def test_in_the_order_of_completion(
    log: pytest.LogCaptureFixture, often: None, when_logged: Callable[..., None]
) -> None:
    """What is done comes first, then the others as they complete."""
    waiting: list[Future[Any]] = [Future(), Future(), Future()]
    early = done('early')
    when_logged(1, lambda: waiting[2].set_result('third'))
    found = progress([*waiting, early])
    assert next(found) is early
    assert next(found) is waiting[2]
    waiting[0].set_result('first')
    waiting[1].set_result('second')
    assert set(found) == set(waiting[:2])


def test_nothing_to_wait_for() -> None:
    """Of no futures none is yielded."""
    assert list(progress([])) == []


def test_timeout(often: None) -> None:
    """After the timeout there is an error, like that of as_completed; what is done comes before."""
    pending: Future[Any] = Future()
    found = progress([pending, done(1)], 0.05)
    assert next(found).result() == 1
    with pytest.raises(concurrent.futures.TimeoutError, match=r'^1 \(of 2\) futures unfinished$'):
        next(found)
    assert list(found) == []


@pytest.mark.parametrize('timeout', [0, -1])
def test_no_time_at_all(timeout: float) -> None:
    """Without any time it yields what is done."""
    found = progress([Future(), done(1)], timeout=timeout)
    assert next(found).result() == 1
    with pytest.raises(concurrent.futures.TimeoutError):
        next(found)


def test_yielded_futures_are_let_go() -> None:
    """A future that has been yielded is kept by its taker alone, and its result with it."""
    given = [done(n) for n in range(4)]
    found = progress(given)
    next(found)
    given.clear()
    for _ in range(2):
        seen = weakref.ref(next(found))
        assert seen() is None
    found.close()  # type: ignore[attr-defined]


def test_left_early() -> None:
    """Who leaves early leaves nothing of it on the futures."""
    pending: Future[Any] = Future()
    for _ in progress([pending, done(1)]):
        break
    assert pending._waiters == []  # type: ignore[attr-defined]


def test_no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps between two looks, the longer the more futures there are to look at."""
    patience: list[float] = []

    def as_completed(pending: Any, seconds: float) -> Iterator[Future[Any]]:
        patience.append(seconds)
        if len(patience) < 4:
            raise concurrent.futures.TimeoutError
        yield from pending

    monkeypatch.setattr(reporting, 'as_completed', as_completed)
    monkeypatch.setattr(reporting, 'LOOKS', 0.01)
    list(progress([done(1)]))
    assert patience == [100.0] * 4
    patience.clear()
    monkeypatch.setattr(reporting, 'LOOKS', 1000)
    list(progress([done(1)], timeout=1000))
    assert patience == pytest.approx([reporting.LOG_INTERVAL] * 4)


# ---- lines in the log


def test_lines(
    log: pytest.LogCaptureFixture, often: None, when_logged: Callable[..., None]
) -> None:
    """The log says how many are done, have failed, run and wait; now and then, and at the end."""
    pending: list[Future[Any]] = [Future() for _ in range(3)]
    pending[0].set_running_or_notify_cancel()
    given = [*pending, done(1), done(ValueError())]

    def finish() -> None:
        pending[0].set_result(1)
        pending[1].cancel()
        pending[1].set_running_or_notify_cancel()
        pending[2].set_result(1)

    when_logged(2, finish)
    assert len(list(progress(given, desc='sweep'))) == 5
    before = 'sweep: 2 of 5 done, 1 failed, 1 running, 2 pending'
    assert log.messages[0] == before
    assert log.messages[-1] == 'sweep: 5 of 5 done, 2 failed'
    assert {record.name for record in log.records} == {'slurm_futures'}


def test_lines_are_few(log: pytest.LogCaptureFixture) -> None:
    """However many futures complete in half a minute, there is one line."""
    assert len(list(progress(map(done, range(500))))) == 500
    assert log.messages == ['progress: 500 of 500 done']


def test_line_when_left_early(log: pytest.LogCaptureFixture) -> None:
    """Who stops in the middle learns how far it was."""
    for _ in progress([done(0), Future()]):
        break
    assert log.messages == ['progress: 1 of 2 done, 1 pending']


def test_without_tqdm(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tqdm is not installed the log has to do, on a terminal, too."""
    monkeypatch.setitem(sys.modules, 'tqdm.auto', None)
    with on_terminal() as terminal:
        list(progress([done(1)]))
    assert log.messages == ['progress: 1 of 1 done']
    assert terminal.getvalue() == ''


# ---- a bar


def test_bar(log: pytest.LogCaptureFixture, often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal there is a bar, with the other counts behind it, and nothing in the log."""
    running: Future[Any] = Future()
    running.set_running_or_notify_cancel()
    show = reporting._Bar._show

    def show_and_finish(bar: reporting._Bar) -> None:
        show(bar)
        futures.succeed(running, 1)

    monkeypatch.setattr(reporting._Bar, '_show', show_and_finish)
    with on_terminal() as terminal:
        assert len(list(progress([running, done(1), done(ValueError())], desc='sweep'))) == 3
    first, _, last = terminal.getvalue().rpartition('\r')
    assert '| 2/3 [' in first
    assert '1 failed, 1 running]' in first
    assert last.startswith('sweep: 100%')
    assert '| 3/3 [' in last
    assert last.endswith('1 failed]\n')
    assert not log.messages


def leave(how: str) -> None:
    """Take one future, and go."""
    for future in progress([done(0), Future()], 0 if how == 'timeout' else None):
        if how == 'break':
            break
        if how == 'error':
            1 / future.result()


@pytest.mark.parametrize('how', ['break', 'error', 'timeout'])
def test_bar_is_closed(how: str) -> None:
    """However the loop ends, the bar does, too."""
    expected = (ZeroDivisionError, concurrent.futures.TimeoutError)
    with on_terminal() as terminal, contextlib.suppress(*expected):
        leave(how)
    assert '| 1/2 [' in terminal.getvalue()
    assert terminal.getvalue().endswith('\n')


def test_no_bar_into_a_file(
    log: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody sees a bar, as in the output of a batch job, there are lines in the log."""
    list(progress([done(1)]))
    assert capsys.readouterr().err == ''
    assert log.messages == ['progress: 1 of 1 done']


def test_bar_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a notebook, which is no terminal, there is tqdm's own kind of bar."""
    widget = type('tqdm_notebook', (tqdm,), {'__module__': 'tqdm.notebook'})
    auto = types.SimpleNamespace(tqdm=type('tqdm', (widget,), {'__module__': 'tqdm.auto'}))
    monkeypatch.setitem(sys.modules, 'tqdm.auto', auto)
    list(progress([done(1)]))
    assert '1/1' in capsys.readouterr().err
