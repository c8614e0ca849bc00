"""SlurmExecutor does what every concurrent.futures.Executor does, on the login node and in jobs.

After the tests that CPython has for its own executors (Lib/test/test_concurrent_futures).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.processes import eventually
from outside import Outside, quick_queue, work_dir_of
from slurm_futures import JobCancelled, JobFuture, JobState, SlurmExecutor
from waiting import Gate, Record

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures('cancel_jobs')

AFTER_SHUTDOWN = 'after shutdown|has been shut down'


@pytest.fixture(params=['login', 'jobs'])
def place(request: pytest.FixtureRequest, queue_system: str) -> str:
    """Where calls run: on the login node, or in jobs."""
    return str(request.param)


@pytest.fixture
def pool(place: str, executor: SlurmExecutor, nodes: SlurmExecutor) -> SlurmExecutor:
    """An executor for the login node, and one for jobs; shared, not to be shut down."""
    return executor if place == 'login' else nodes


@pytest.fixture
def make_fresh(queue_system: str, work_dir: Path) -> Iterator[Callable[..., SlurmExecutor]]:
    """Makes executors that nothing else refers to; what they leave undone is ended."""
    cores = []

    def make(place: str, **settings: Any) -> SlurmExecutor:
        queue = quick_queue(queue_system)
        settings = {'work_dir': str(work_dir), 'grace_period': 1, **settings}
        executor = SlurmExecutor(queue_system=queue, **settings)
        cores.append(executor._core)
        return executor.with_resources(time='5') if place == 'jobs' else executor

    yield make
    gc.collect()  # an exception that a test has caught may refer to an executor
    for core in cores:
        core.abort()
        core._thread.join(30)
        assert not core._thread.is_alive()


@pytest.fixture
def fresh(place: str, make_fresh: Callable[..., SlurmExecutor]) -> SlurmExecutor:
    """An executor of the test's own, which may be shut down."""
    return make_fresh(place)


@pytest.fixture
def gate(work_dir: Path) -> Iterator[Gate]:
    """A door for calls, open at the latest when the test ends."""
    gate = Gate(work_dir / 'gate')
    yield gate
    gate.open()


def start(pool: SlurmExecutor, fn: Callable[..., Any], *args: Any) -> JobFuture[Any]:
    """Submit a call whose type does not matter."""
    return pool.submit(fn, *args)


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return all arguments."""
    return args, kwargs


def pass_gate(gate: Gate, name: str) -> str:
    """Wait at the gate; return the name."""
    gate.pass_through(name)
    return name


class Thing:
    """Something that weak references can point to."""


def raise_it(error: BaseException) -> None:
    """Raise the error."""
    raise error


def make_thing(_: object) -> Thing:
    """Return a new thing."""
    return Thing()


def is_gone(reference: weakref.ref[Any]) -> bool:
    """Whether the last reference to something goes within seconds."""
    return eventually(lambda: reference() is None, 5)


# ---- submit and map


def test_is_an_executor(pool: SlurmExecutor) -> None:
    """It and its futures are those of the standard library, for isinstance too."""
    assert isinstance(pool, futures.Executor)
    future = pool.submit(pow, 2, 5)
    assert isinstance(future, futures.Future)
    assert future.result() == 32
    assert future.exception() is None


def test_keywords_reach_the_function(pool: SlurmExecutor) -> None:
    """A function may have parameters called self, fn, script and cwd."""
    future = pool.submit(capture, 1, self=2, fn=3, script=4, cwd=5, name=6, check=7, mkdir=8)
    names = ['self', 'fn', 'script', 'cwd', 'name', 'check', 'mkdir']
    assert future.result() == ((1,), dict(zip(names, range(2, 9), strict=True)))


def test_submit_needs_something_to_run(executor: SlurmExecutor) -> None:
    """No function, one given by keyword, and what cannot be called are refused at once."""
    submit: Any = executor.submit
    with pytest.raises(TypeError):
        submit()
    with pytest.raises(TypeError):
        submit(fn=capture, arg=1)
    with pytest.raises(TypeError, match='function or a batch script, not 17'):
        submit(17)


@pytest.mark.parametrize('error', [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_any_exception_is_the_future_s(executor: SlurmExecutor, error: BaseException) -> None:
    """What would end an interpreter is delivered like any other exception."""
    future = executor.submit(raise_it, error)
    assert type(future.exception()) is type(error)
    assert executor.submit(pow, 2, 2).result() == 4


def test_map_keeps_the_order(pool: SlurmExecutor) -> None:
    """Results come in the order of the arguments; the shortest iterable ends them."""
    assert list(pool.map(pow, range(10), itertools.repeat(2))) == [n**2 for n in range(10)]
    assert list(pool.map(pow, range(7), range(7), chunksize=3)) == [n**n for n in range(7)]
    assert list(pool.map(pow, [], [])) == []


def test_map_raises_when_its_turn_comes(pool: SlurmExecutor) -> None:
    """Results before the failed call are had, then its exception, then nothing."""
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_timeout(pool: SlurmExecutor, gate: Gate) -> None:
    """A result that is not there in time raises TimeoutError."""
    results = pool.map(pass_gate, [gate], ['call'], timeout=0.3)
    with pytest.raises(futures.TimeoutError):
        next(results)


def test_abandoned_map_cancels_the_rest(
    make_fresh: Callable[..., SlurmExecutor], gate: Gate, work_dir: Path
) -> None:
    """Closing the iterator cancels the calls that have not begun: they never run."""
    executor = make_fresh('login', login_workers=1)
    record = Record(work_dir / 'record')

    def note(name: str) -> None:
        record.add(name)
        if name == 'b':
            gate.pass_through()

    results = executor.map(note, 'abcdef')
    next(results)
    gate.await_arrival()
    results.close()  # type: ignore[attr-defined]
    executor.run('true')  # what was said before it has arrived when it has run
    gate.open()
    executor.shutdown()
    assert record.lines() == ['a', 'b']


@pytest.mark.parametrize('chunksize', [1, 2, 100])
def test_map_over_infinite_iterables(pool: SlurmExecutor, chunksize: int) -> None:
    """With a buffersize, results come although the arguments never end."""
    results = pool.map(
        pow, itertools.count(), itertools.repeat(2), buffersize=3, chunksize=chunksize
    )
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]


def test_map_fetches_only_what_the_buffer_holds(fresh: SlurmExecutor) -> None:
    """No more than buffersize arguments are taken ahead of the results (gh-74028)."""
    numbers = itertools.count()
    results = fresh.map(str, numbers, buffersize=4)
    fresh.shutdown()
    assert next(numbers) == 4
    assert next(results) == '0'
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        next(results)


def test_map_ends_with_its_iterable(pool: SlurmExecutor) -> None:
    """A buffersize larger, smaller, or no divisor of the number of calls changes nothing."""
    for buffersize in (3, 20):
        assert list(pool.map(str, range(7), buffersize=buffersize)) == list('0123456')


@pytest.mark.parametrize(
    'options', [{'chunksize': 0}, {'chunksize': -1}, {'buffersize': 0}, {'buffersize': -1}]
)
def test_map_refuses_sizes_below_one(executor: SlurmExecutor, options: dict[str, int]) -> None:
    """Sizes that mean nothing are refused before anything is taken from the iterable."""
    numbers = itertools.count()
    with pytest.raises(ValueError, match='must be at least 1'):
        executor.map(str, numbers, **options)
    assert next(numbers) == 0


def test_submit_from_many_threads(pool: SlurmExecutor) -> None:
    """Threads may share an executor: each gets the results of its own calls."""
    found: dict[int, list[int]] = {}

    def use(thread: int) -> None:
        calls = [pool.submit(divmod, thread * 100 + n, 1) for n in range(5)]
        found[thread] = [call.result()[0] for call in calls]

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {thread: [thread * 100 + n for n in range(5)] for thread in range(8)}


# ---- what is left of a call


def test_results_are_not_kept(pool: SlurmExecutor) -> None:
    """Nothing holds on to a result that has been taken (bpo-41588), not even a cycle."""
    gc.disable()
    try:
        for thing in pool.map(make_thing, range(3)):
            reference = weakref.ref(thing)
            del thing
            assert is_gone(reference)
    finally:
        gc.enable()


def test_futures_are_not_kept(pool: SlurmExecutor) -> None:
    """A future that is done goes when its user drops it, also one that has raised."""
    gc.disable()
    try:
        for function in (make_thing, raise_it):
            future = pool.submit(function, ValueError('it was'))
            futures.wait([future])
            with contextlib.suppress(ValueError):
                future.result()
            reference = weakref.ref(future)
            del future
            assert is_gone(reference)
    finally:
        gc.enable()


# ---- shutdown


def test_nothing_is_taken_after_shutdown(fresh: SlurmExecutor) -> None:
    """submit, map, run, scripts and siblings are refused once the executor is shut down."""
    fresh.shutdown()
    refused: list[Callable[[], Any]] = [
        lambda: fresh.submit(pow, 2, 5),
        lambda: fresh.submit('#!/bin/bash\n'),
        lambda: fresh.map(str, [1]),
        lambda: fresh.run('true'),
        lambda: fresh.with_resources(partition='cpu'),
        lambda: fresh.with_options(cwd='/'),
    ]
    for attempt in refused:
        with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
            attempt()


def test_shutdown_waits(fresh: SlurmExecutor) -> None:
    """After shutdown() all futures are done, however many were waiting (bpo-12456)."""
    calls = [fresh.submit(pow, n, 2) for n in range(20)]
    fresh.shutdown()
    assert all(call.done() for call in calls)
    assert [call.result() for call in calls] == [n**2 for n in range(20)]


def test_shutdown_without_waiting(fresh: SlurmExecutor, gate: Gate) -> None:
    """shutdown(wait=False) returns at once; what was submitted goes on and is delivered."""
    call = fresh.submit(pass_gate, gate, 'call')
    fresh.shutdown(wait=False)
    assert not call.done()
    gate.open()
    assert call.result() == 'call'


def test_shutdown_twice(fresh: SlurmExecutor) -> None:
    """shutdown() may be called again, before anything was submitted too, also from the block."""
    with fresh:
        fresh.shutdown()
    fresh.shutdown(cancel_futures=True)


@pytest.mark.parametrize('wait', [True, False])
def test_shutdown_cancels_what_has_not_begun(
    make_fresh: Callable[..., SlurmExecutor], gate: Gate, wait: bool
) -> None:
    """cancel_futures: the running call is finished, those behind it are cancelled, none hangs."""
    executor = make_fresh('login', login_workers=1)
    calls = [executor.submit(pass_gate, gate, str(n)) for n in range(10)]
    gate.await_arrival('0')
    assert eventually(calls[0].running, 10)
    if wait:
        calls[1].add_done_callback(lambda _: gate.open())
    executor.shutdown(wait=wait, cancel_futures=True)
    assert all(call.cancelled() for call in calls[1:])
    gate.open()
    assert calls[0].result() == '0'
    assert futures.wait(calls, 10).not_done == set()


def test_shutdown_cancels_pending_jobs(
    make_fresh: Callable[..., SlurmExecutor], gate: Gate
) -> None:
    """cancel_futures removes jobs from the queue that have not started."""
    executor = make_fresh('jobs').with_resources(array_parallelism=1)
    results = executor.map(pass_gate, [gate] * 4, map(str, range(4)))
    calls = executor._core.pending()
    gate.await_arrival('0')
    assert eventually(calls[0].running, 10)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    assert next(results) == '0'
    assert [call.cancelled() for call in calls] == [False, True, True, True]
    assert not any(gate.has_arrived(name) for name in '123')


def test_block_shuts_down(fresh: SlurmExecutor) -> None:
    """Leaving the with-block waits for everything, then nothing more is taken."""
    with fresh as same:
        assert same is fresh
        call = same.submit(pow, 2, 5)
    assert call.done()
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        fresh.submit(pow, 2, 5)


def test_block_waits_for_siblings(make_fresh: Callable[..., SlurmExecutor], gate: Gate) -> None:
    """A with-block covers what was submitted through siblings, also by callbacks meanwhile."""
    later: list[JobFuture[int]] = []
    with make_fresh('login') as executor:
        nodes = executor.with_resources(time='5')
        first = nodes.submit(pow, 2, 5)
        first.add_done_callback(lambda _: later.append(nodes.submit(pow, 2, 6)))
    assert first.done()
    assert later[0].done()
    assert later[0].result() == 64


# ---- wait and as_completed


def test_wait_for_the_first(pool: SlurmExecutor, gate: Gate) -> None:
    """FIRST_COMPLETED returns while another call still runs."""
    slow, fast = start(pool, pass_gate, gate, 'slow'), start(pool, pow, 2, 5)
    done, not_done = futures.wait([slow, fast], return_when=futures.FIRST_COMPLETED)
    assert (done, not_done) == ({fast}, {slow})


def test_wait_for_the_first_exception(pool: SlurmExecutor, gate: Gate) -> None:
    """FIRST_EXCEPTION returns as soon as a call fails, and not for one that succeeds."""
    fast = start(pool, pow, 2, 5)
    bad = start(pool, divmod, 1, 0)
    slow = start(pool, pass_gate, gate, 'slow')
    finished = futures.wait([fast, bad, slow], return_when=futures.FIRST_EXCEPTION)
    assert bad in finished.done
    assert finished.not_done <= {fast, slow}
    assert slow in finished.not_done


def test_wait_for_all(pool: SlurmExecutor) -> None:
    """ALL_COMPLETED counts cancelled and failed calls as done, and each call once (bpo-20369)."""
    calls: list[Any] = [pool.submit(pow, 2, 5), pool.submit(divmod, 1, 0)]
    cancelled = pool.submit(pow, 2, 5)
    cancelled.cancel()
    done, not_done = futures.wait([*calls, cancelled, *calls])
    assert done == {*calls, cancelled}
    assert not_done == set()


def test_wait_with_a_timeout(pool: SlurmExecutor, gate: Gate) -> None:
    """A time-out returns what is done and what is not."""
    slow, fast = start(pool, pass_gate, gate, 'slow'), start(pool, pow, 2, 5)
    fast.result()
    assert futures.wait([slow, fast], timeout=0.1) == ({fast}, {slow})


def test_as_completed(pool: SlurmExecutor, gate: Gate) -> None:
    """as_completed yields calls as they end, not as they were submitted."""
    slow = start(pool, pass_gate, gate, 'slow')
    fast = start(pool, pow, 2, 5)
    completed = futures.as_completed({slow, fast})
    assert next(completed) is fast
    gate.open()
    assert next(completed) is slow
    assert next(completed, None) is None


def test_as_completed_with_a_timeout(pool: SlurmExecutor, gate: Gate) -> None:
    """as_completed yields a call given twice once, and raises when the time is up."""
    slow, fast = start(pool, pass_gate, gate, 'slow'), start(pool, pow, 2, 5)
    fast.result()
    completed = futures.as_completed([slow, fast, fast], timeout=0.1)
    assert next(completed) is fast
    with pytest.raises(futures.TimeoutError, match=r'1 \(of 2\) futures unfinished'):
        next(completed)


# ---- states, cancel, kill


def test_pending_until_it_runs(
    make_fresh: Callable[..., SlurmExecutor], gate: Gate, work_dir: Path
) -> None:
    """A call behind another is PENDING though it has been sent; once running, it stays."""
    executor = make_fresh('login', login_workers=1)
    first, second = (executor.submit(pass_gate, gate, name) for name in 'ab')
    gate.await_arrival('a')
    assert eventually(first.running, 10)
    assert not second.running()
    assert not first.cancel()
    assert second.cancel()
    gate.open()
    assert first.result() == 'a'
    executor.submit(pow, 2, 5).result()
    assert not gate.has_arrived('b')


def test_job_is_pending_until_it_runs(executor: SlurmExecutor, outside: Outside) -> None:
    """The future of a job that waits is PENDING; cancelled, it takes the job from the queue."""
    held = executor.with_resources(extra={'hold': True})
    call = held.submit(pow, 2, 5)
    assert eventually(lambda: call.job_id is not None, 10)
    assert call.job_state is JobState.PENDING
    assert not call.running()
    assert call.cancel()
    assert call.cancel()
    assert call.cancelled()
    assert call.done()
    with pytest.raises(futures.CancelledError):
        call.result()
    with pytest.raises(futures.CancelledError):
        call.exception()
    job_id, work_dir = str(call.job_id), work_dir_of(executor)
    assert eventually(lambda: job_id not in ' '.join(outside.live(work_dir)).split(), 10)


@pytest.mark.parametrize('state', ['pending', 'running', 'done'])
def test_kill(pool: SlurmExecutor, gate: Gate, state: str) -> None:
    """kill() cancels a pending call, ends a running one, and does nothing to one that is done."""
    call = pool.submit(pass_gate, gate, 'call')
    if state == 'pending':
        call.kill()
        call.kill()
        assert call.cancelled()
        return
    gate.await_arrival('call')
    assert eventually(call.running, 10)
    if state == 'done':
        gate.open()
        assert call.result() == 'call'
    call.kill()
    call.kill()
    if state == 'running':
        with pytest.raises(JobCancelled):
            call.result(timeout=30)
    assert not call.cancelled()
    assert call.done()


def test_future_that_its_user_resolves(pool: SlurmExecutor, gate: Gate) -> None:
    """A result set from outside counts; what the call makes of it later hurts nobody else."""
    call = pool.submit(pass_gate, gate, 'call')
    call.set_result('mine')
    gate.open()
    assert pool.submit(pow, 2, 5).result() == 32
    assert call.result() == 'mine'


def test_ids_and_states(executor: SlurmExecutor, nodes: SlurmExecutor) -> None:
    """job_id and job_state: of an array's task, of a script's job; none on the login node."""
    calls = [start(nodes, pow, n, 2) for n in range(2)]
    script: JobFuture[Any] = executor.submit('#!/bin/bash\ntrue\n')
    login = start(executor, pow, 2, 5)
    assert futures.wait([*calls, script, login]).not_done == set()
    array = str(calls[0].job_id).partition('_')[0]
    assert [call.job_id for call in calls] == [f'{array}_0', f'{array}_1']
    assert {call.job_state for call in calls} <= {JobState.RUNNING, JobState.COMPLETED}
    assert str(script.job_id).isdecimal()
    assert (script.result(), script.job_state) == (JobState.COMPLETED, JobState.COMPLETED)
    assert (login.job_id, login.job_state) == (None, None)


# ---- done-callbacks


def test_callbacks_run_in_order_in_the_polling_thread(pool: SlurmExecutor, gate: Gate) -> None:
    """Callbacks get the future, one after another, in the one thread that the executor has."""
    call = pool.submit(pass_gate, gate, 'call')
    seen: list[Any] = []
    for number in range(3):
        call.add_done_callback(
            lambda future, number=number: seen.append(  # type: ignore[misc]
                (number, future, threading.current_thread().name)
            )
        )
    gate.open()
    call.result()
    assert eventually(lambda: len(seen) == 3, 10)
    assert seen == [(number, call, 'slurm_futures polling') for number in range(3)]


def test_callback_of_a_done_future(pool: SlurmExecutor) -> None:
    """A callback that comes late is called at once, by the thread that adds it."""
    call = pool.submit(pow, 2, 5)
    call.result()
    seen: list[Any] = []
    call.add_done_callback(lambda future: seen.append((future, threading.current_thread())))
    assert seen == [(call, threading.current_thread())]


def test_callback_of_a_cancelled_future(executor: SlurmExecutor) -> None:
    """cancel() calls callbacks, once."""
    call = executor.with_resources(extra={'hold': True}).submit(pow, 2, 5)
    seen: list[Any] = []
    call.add_done_callback(seen.append)
    call.cancel()
    call.cancel()
    futures.wait([call])
    assert seen == [call]


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_of_a_callback_goes_no_further(
    executor: SlurmExecutor,
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    """What a callback raises is logged; other callbacks and other futures hear nothing of it."""
    call = executor.submit(pass_gate, gate, 'call')
    seen: list[Any] = []
    call.add_done_callback(lambda _: raise_it(error('of a callback')))
    call.add_done_callback(seen.append)
    with caplog.at_level(logging.ERROR):
        gate.open()
        assert call.result() == 'call'
        assert executor.submit(pow, 2, 5).result() == 32
    assert seen == [call]
    logged = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[0] for record in logged] == [error]  # type: ignore[index]


def test_what_blocks_raises_in_callbacks(
    make_fresh: Callable[..., SlurmExecutor], gate: Gate
) -> None:
    """Methods that would wait for the polling thread say so when that thread calls them."""
    executor = make_fresh('login')
    other = executor.submit(pass_gate, gate, 'other')
    results = executor.map(pass_gate, [gate], ['mapped'])
    blocking: list[Callable[[], Any]] = [
        lambda: executor.run('true'),
        executor.shutdown,
        executor.connect,
        executor.detach,
        other.result,
        other.exception,
        other.stdout,
        other.stderr,
        lambda: next(results),
    ]
    errors: list[str] = []

    def callback(_: object) -> None:
        for method in blocking:
            with pytest.raises(RuntimeError) as raised:
                method()
            errors.append(str(raised.value))

    gate.await_arrival('other', 'mapped')
    call = executor.submit(pow, 2, 5)
    call.add_done_callback(callback)
    assert eventually(lambda: len(errors) == len(blocking), 10)
    assert all('done-callbacks run in the polling thread' in error for error in errors)
    gate.open()
    assert other.result() == 'other'  # neither shutdown() nor detach() has changed anything
    assert executor.submit(pow, 2, 5).result() == 32


def test_callbacks_may_do_what_does_not_block(make_fresh: Callable[..., SlurmExecutor]) -> None:
    """A callback may read its future, submit, cancel, kill, make siblings, and shut down."""
    executor = make_fresh('login')
    found: list[Any] = []

    def callback(future: futures.Future[int]) -> None:
        found.append(future.result())
        found.append(executor.with_options(cwd='/').submit(pow, 2, 6))
        cancelled = executor.submit(pow, 2, 7)
        cancelled.kill()
        executor.shutdown(wait=False)
        found.append(cancelled)

    call = executor.submit(pow, 2, 5)
    call.add_done_callback(callback)
    assert eventually(lambda: len(found) == 3, 10)
    assert found[0] == 32
    assert found[1].result() == 64
    assert found[2].cancelled()


# ---- Ctrl-C at odd moments


class Interrupting:
    """An argument that is pickled just when Ctrl-C is pressed."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_during_submission(fresh: SlurmExecutor) -> None:
    """KeyboardInterrupt out of submit or map leaves no future behind that would be waited for."""
    with pytest.raises(KeyboardInterrupt):
        fresh.submit(capture, Interrupting())
    with pytest.raises(KeyboardInterrupt):
        fresh.map(capture, [1, Interrupting(), 2])
    fresh.shutdown()
    assert fresh._core.pending() == []


def test_ctrl_c_in_a_callback_of_cancel(executor: SlurmExecutor) -> None:
    """KeyboardInterrupt in a callback that cancel() calls goes up, and the job is cancelled."""
    call = executor.with_resources(extra={'hold': True}).submit(pow, 2, 5)
    call.add_done_callback(lambda _: raise_it(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        call.cancel()
    assert call.cancelled()
    assert futures.wait([call], 10).not_done == set()


# ---- garbage


def test_collected_executor_finishes_its_work(fresh: SlurmExecutor, gate: Gate) -> None:
    """Dropping the executor drops no call; when the last is done, its thread ends."""
    # The fixture's value lives as long as the test: what is dropped is a sibling's sibling.
    core = fresh._core
    executor = fresh.with_options(cwd='/')
    fresh.shutdown(wait=False)
    call = executor.submit(pass_gate, gate, 'call')
    reference = weakref.ref(executor)
    del executor
    assert is_gone(reference)
    assert core._thread.is_alive()
    gate.open()
    assert call.result() == 'call'
    core._thread.join(20)
    assert not core._thread.is_alive()


def test_executor_without_references_ends(make_fresh: Callable[..., SlurmExecutor]) -> None:
    """An executor that is dropped unused ends by itself."""
    executor = make_fresh('login')
    core, reference = executor._core, weakref.ref(executor)
    del executor
    assert is_gone(reference)
    core._thread.join(10)
    assert not core._thread.is_alive()


def test_iterator_of_map_does_not_keep_the_executor(
    make_fresh: Callable[..., SlurmExecutor],
) -> None:
    """map's iterator needs the calls only; its results are had after the executor has gone."""
    executor = make_fresh('login')
    results = executor.map(pow, range(3), range(3))
    reference = weakref.ref(executor)
    del executor
    assert is_gone(reference)
    assert list(results) == [1, 1, 4]


# ---- asyncio


def test_gather_wrapped_futures(pool: SlurmExecutor) -> None:
    """asyncio.wrap_future makes awaitables of futures, for values and exceptions."""

    async def main() -> list[Any]:
        calls: list[JobFuture[Any]] = [pool.submit(pow, n, 2) for n in range(3)]
        calls.append(pool.submit(divmod, 1, 0))
        return await asyncio.gather(*map(asyncio.wrap_future, calls), return_exceptions=True)

    *values, error = asyncio.run(main())
    assert values == [0, 1, 4]
    assert isinstance(error, ZeroDivisionError)


def test_run_in_executor(pool: SlurmExecutor) -> None:
    """An event loop runs functions in it as in any other executor."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        partial = functools.partial(capture, key='word')
        calls: list[Any] = [(pow, 2, 5), (partial, 1)]
        return [await loop.run_in_executor(pool, *call) for call in calls]

    assert asyncio.run(main()) == [32, ((1,), {'key': 'word'})]


def test_cancelling_through_asyncio(executor: SlurmExecutor) -> None:
    """Cancelling what awaits a pending job cancels the job, a time-out too."""
    held = executor.with_resources(extra={'hold': True})
    calls = [held.submit(pow, 2, n) for n in range(2)]

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(calls[0]), 0.3)
        task = asyncio.ensure_future(asyncio.wrap_future(calls[1]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert futures.wait(calls, 10).not_done == set()
    assert all(call.cancelled() for call in calls)


def test_cancelled_future_cancels_its_awaiter(executor: SlurmExecutor) -> None:
    """cancel() of the future itself is seen by who awaits it."""
    call = executor.with_resources(extra={'hold': True}).submit(pow, 2, 5)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wrap_future(call)

    asyncio.run(main())
