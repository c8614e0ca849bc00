"""JobFuture without an executor: what it adds to the standard future, what it leaves as it is."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import threading
import weakref
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest

from fakes import PATIENCE_S, Controller
from slurm_futures import futures
from slurm_futures.futures import JobFuture, Work
from slurm_futures.remote.states import JobState


@pytest.fixture
def controller() -> Controller:
    """Whoever the future belongs to."""
    return Controller()


@pytest.fixture
def future(controller: Controller) -> JobFuture[Any]:
    """A pending future."""
    return JobFuture(controller, Work(1))


# ---- what it knows


def test_job(future: JobFuture[Any]) -> None:
    """The job and its state are what is known of the work, now."""
    assert (future.job_id, future.job_state) == (None, None)
    future.work.job_id, future.work.state = '100_7', JobState.RUNNING
    assert (future.job_id, future.job_state) == ('100_7', JobState.RUNNING)
    assert repr(future).endswith('state=pending, job 100_7 RUNNING>')


def test_logs(future: JobFuture[Any]) -> None:
    """Logs come from the controller: stdout and stderr, all of them or a tail."""
    assert future.stdout(7) == 'stream 0, 7 bytes'
    assert future.stderr().startswith('stream 1, ')


# ---- cancelling and killing


def test_cancel_pending(future: JobFuture[Any], controller: Controller) -> None:
    """A pending future is cancelled at once, and its work is removed, once."""
    assert future.cancel()
    assert future.cancelled()
    assert future.cancel()
    assert controller.asked == ['cancelled']
    with pytest.raises(CancelledError):
        future.result()


def test_cancel_after_it_was_noticed(future: JobFuture[Any], controller: Controller) -> None:
    """A cancelled future stays cancelled when the polling thread has taken note of it."""
    future.cancel()
    assert not futures.start(future)
    assert future.cancel()
    assert controller.asked == ['cancelled']


def test_cancel_running(future: JobFuture[Any], controller: Controller) -> None:
    """A running future cannot be cancelled, and nobody is asked to."""
    futures.start(future)
    assert not future.cancel()
    assert controller.asked == []


def test_cancel_done(future: JobFuture[Any], controller: Controller) -> None:
    """A future that is done cannot be cancelled."""
    futures.succeed(future, 1)
    assert not future.cancel()
    assert controller.asked == []


def test_cancel_with_a_callback_that_interrupts(
    future: JobFuture[Any], controller: Controller
) -> None:
    """Ctrl-C in a callback of cancel() does not keep the work from being removed."""

    def interrupt(_: Future[Any]) -> None:
        raise KeyboardInterrupt

    future.add_done_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        future.cancel()
    assert controller.asked == ['call_back', 'cancelled']


def test_kill_pending(future: JobFuture[Any], controller: Controller) -> None:
    """Killing what is pending is cancelling it."""
    future.kill()
    future.kill()
    assert future.cancelled()
    assert controller.asked == ['cancelled']


def test_kill_running(future: JobFuture[Any], controller: Controller) -> None:
    """Killing what runs asks for it, and returns at once."""
    futures.start(future)
    future.kill()
    assert controller.asked == ['kill']
    assert future.running()


def test_kill_done(future: JobFuture[Any], controller: Controller) -> None:
    """Killing what is done does nothing."""
    futures.succeed(future, 1)
    future.kill()
    assert controller.asked == []
    assert future.result() == 1


# ---- waiting


def test_waiting_in_the_polling_thread(future: JobFuture[Any], controller: Controller) -> None:
    """What would wait for itself is refused; what is done can be had."""
    controller.refuse_blocking = True
    for wait_for in (future.result, future.exception):
        with pytest.raises(RuntimeError, match='unfinished future'):
            wait_for(timeout=0)
    futures.succeed(future, 1)
    assert future.result() == 1
    assert future.exception() is None


def test_forked_child(future: JobFuture[Any], controller: Controller) -> None:
    """In a forked child nothing works that needs the polling thread."""
    controller.forked = True
    for use in (future.cancel, future.kill, future.result, future.exception):
        with pytest.raises(RuntimeError, match='forked'):
            use()
    with pytest.raises(RuntimeError, match='forked'):
        future.add_done_callback(print)


def test_times_out(future: JobFuture[Any]) -> None:
    """A result that is not there in time is a TimeoutError."""
    with pytest.raises(TimeoutError):
        future.result(timeout=0.001)


def test_standard_functions(controller: Controller) -> None:
    """wait(), as_completed() and asyncio take it for the future that it is."""
    several: list[JobFuture[Any]] = [JobFuture(controller, Work(n)) for n in range(3)]

    def resolve() -> None:
        for future in several:
            futures.succeed(future, future.work.number)

    thread = threading.Thread(target=resolve)
    thread.start()
    assert len(wait(several, timeout=PATIENCE_S).done) == 3
    assert {future.result() for future in as_completed(several)} == {0, 1, 2}
    thread.join()

    async def gather() -> list[int]:
        return list(await asyncio.gather(*map(asyncio.wrap_future, several)))

    assert asyncio.run(gather()) == [0, 1, 2]


# ---- callbacks


def test_callbacks(future: JobFuture[Any], controller: Controller) -> None:
    """Callbacks get this very future, in their order, through the controller."""
    seen: list[tuple[str, Future[Any]]] = []
    future.add_done_callback(lambda f: seen.append(('first', f)))
    future.add_done_callback(lambda f: seen.append(('second', f)))
    futures.succeed(future, 1)
    future.add_done_callback(lambda f: seen.append(('late', f)))
    assert [name for name, _ in seen] == ['first', 'second', 'late']
    assert all(f is future for _, f in seen)
    assert controller.asked == ['call_back'] * 3


def test_callback_that_fails(future: JobFuture[Any], caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises is logged, as by the standard library, and hinders nobody."""
    seen: list[int] = []

    def fail(_: Future[Any]) -> None:
        raise ValueError('in a callback')

    future.add_done_callback(fail)
    future.add_done_callback(lambda f: seen.append(f.result()))
    with caplog.at_level(logging.ERROR, 'concurrent.futures'):
        futures.succeed(future, 1)
    assert seen == [1]
    assert 'in a callback' in caplog.text


def test_callbacks_keep_nothing(controller: Controller) -> None:
    """A future with callbacks goes as soon as nobody holds it: no cycle waits for the collector."""
    future: JobFuture[Any] = JobFuture(controller, Work(1))
    future.add_done_callback(print)
    reference = weakref.ref(future)
    gc.disable()
    try:
        del future
        assert reference() is None
    finally:
        gc.enable()


def test_exceptions_keep_nothing(future: JobFuture[Any]) -> None:
    """Raising a future's exception ties the exception to the caller, not to the future."""
    futures.fail(future, ValueError('why'))
    with pytest.raises(ValueError, match='why') as caught:
        future.result()
    trace = caught.value.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == 'result':
            assert trace.tb_frame.f_locals.get('self') is None
        trace = trace.tb_next


# ---- resolving


def test_start(future: JobFuture[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Starting is idempotent, and nobody is told of a state that is none."""
    assert futures.start(future)
    assert futures.start(future)
    assert future.running()
    futures.succeed(future, 1)
    assert not futures.start(future)
    assert not caplog.records


@pytest.mark.parametrize('resolve', [futures.succeed, futures.fail])
def test_resolved_by_its_user(future: JobFuture[Any], resolve: Any) -> None:
    """A future that its user has resolved is left as it is."""
    future.set_result('mine')
    resolve(future, ValueError('ours'))
    assert future.result() == 'mine'


def test_cancelled_and_resolved(future: JobFuture[Any]) -> None:
    """A cancelled future stays cancelled, whatever comes."""
    future.cancel()
    futures.succeed(future, 1)
    assert future.cancelled()


@pytest.mark.parametrize('copy_it', [pickle.dumps, copy.copy, copy.deepcopy])
def test_cannot_be_copied(future: JobFuture[Any], copy_it: Any) -> None:
    """A future cannot be pickled, and the error says what to pass instead."""
    with pytest.raises(TypeError, match=r'pass future\.result\(\) instead'):
        copy_it(future)
