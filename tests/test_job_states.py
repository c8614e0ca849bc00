"""What a queue does to jobs, as their futures see it; and what asking it costs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import eventually
from outside import Outside, daemon, work_dir_of
from slurm_futures import (
    JobCancelled,
    JobFailed,
    JobFuture,
    JobLost,
    JobState,
    NodeFail,
    SlurmExecutor,
    TimeLimit,
)
from stubs import Stub
from waiting import Gate, Record
from watching import Steps, await_job_id, await_running, await_state, bash, chunked, slurm, squeue

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SOON_S = 8.0
"""Two polling intervals of 1 s, the grace period of 2 s, and what a busy machine may add."""


def tell_supervisor(gate: Gate) -> None:
    """Print the process that supervises this call, and wait."""
    print(os.getppid())
    gate.pass_through()


# ---- ends that come from outside


def test_cancelled_from_outside(nodes: SlurmExecutor, outside: Outside, gate: Gate) -> None:
    """What others cancel raises JobCancelled, and says whether it had begun."""
    held = nodes.with_resources(extra={'hold': True})
    pending: list[JobFuture[Any]] = [
        held.submit(gate.pass_through, 'pending'),
        held.submit(bash(gate.shell)),
        *(held.with_resources(nodes=1).submit(gate.pass_through, n) for n in range(3)),
    ]
    running: list[JobFuture[Any]] = [
        nodes.submit(gate.pass_through, 'call'),
        nodes.submit(bash(gate.shell)),
    ]
    gate.await_arrival('call', '')
    await_running(*running)
    await_job_id(*pending)
    # One task of an array, alone; the other two stay.
    cancelled = [*pending[:3], *running]
    begun = time.monotonic()
    outside.cancel(work_dir_of(nodes), *(str(future.job_id) for future in cancelled))
    for future in cancelled:
        error = future.exception()
        assert isinstance(error, JobCancelled)
        assert error.state is JobState.CANCELLED
        assert error.job_id == future.job_id
        assert error.started is (future in running)
    assert time.monotonic() - begun < SOON_S
    for future in pending[3:]:
        assert not future.done()
        assert future.cancel()


def test_time_limit(nodes: SlurmExecutor, gate: Gate, queue_system: str) -> None:
    """TimeLimit, for scripts and calls; in a chunk, what was finished before it counts."""
    short = nodes.with_resources(time='1' if queue_system == 'slurm' else '00:00:03')
    steps = Steps(gate, Record('/dev/null'))

    def step(n: int) -> int:
        if n == 1:
            steps('chunk')
        return n

    script: JobFuture[Any] = short.submit(bash('echo before >&2', gate.shell))
    call = short.with_resources(nodes=1).submit(steps, 'call')
    chunk = chunked(short, step, [(n,) for n in range(3)])
    gate.await_arrival('', 'call-0', 'chunk-0')
    await_running(script, call, chunk[1])
    assert chunk[0].result() == 0
    if queue_system == 'slurm':
        for future in (script, call, chunk[1]):
            slurm('scontrol', 'update', f'jobid={future.job_id}', 'EndTime=now')
        # The controller looks at time limits every 30 seconds.
    errors = [future.exception() for future in (script, call, *chunk[1:])]
    for error, started in zip(errors, [True, True, True, False], strict=True):
        assert isinstance(error, TimeLimit)
        assert error.state is JobState.TIMEOUT
        assert error.started is started
    assert 'before\n' in script.stderr()


@pytest.mark.parametrize('what', ['call', 'script'])
def test_killed_from_outside(nodes: SlurmExecutor, gate: Gate, what: str) -> None:
    """kill -9 of what the queue has started on the node: JobFailed, with what it says of it."""
    if what == 'call':
        future: JobFuture[Any] = nodes.submit(tell_supervisor, gate)
    else:
        future = nodes.submit(bash('echo $PPID', gate.shell))
    gate.await_arrival()
    await_running(future)
    os.kill(int(future.stdout()), signal.SIGKILL)
    begun = time.monotonic()
    error = future.exception()
    gate.open()  # what is left of a script's job may still wait there
    assert time.monotonic() - begun < SOON_S
    assert type(error) is JobFailed
    assert error.state is JobState.FAILED
    assert error.started is True


# ---- nodes


def test_node_failure(nodes: SlurmExecutor, faults: Control, gate: Gate) -> None:
    """NodeFail, naming the node, for jobs that must not be requeued."""
    fixed = nodes.with_resources(requeue=False)
    call: JobFuture[Any] = fixed.submit(gate.pass_through, 'call')
    script = fixed.submit(bash(gate.shell))
    gate.await_arrival('call', '')
    await_running(call, script)
    names = [squeue(call, '%N'), squeue(script, '%N')]
    for name in set(names):
        faults.scontrol('update', f'nodename={name}', 'state=down', 'reason=test')
    for future, name in zip((call, script), names, strict=True):
        error = future.exception()
        assert isinstance(error, NodeFail), str(error)
        assert error.state is JobState.NODE_FAIL
        assert error.node == name
        assert error.started is True


def test_job_outlives_its_slurmd(nodes: SlurmExecutor, faults: Control, gate: Gate) -> None:
    """While slurmd is dead a call goes on, and its value arrives."""
    future = nodes.submit(gate.pass_through)
    gate.await_arrival()
    await_running(future)
    faults.kill('slurmd', squeue(future, '%N'))
    gate.open()
    assert future.result() is None


@pytest.mark.queues('local')
def test_jobs_outlive_the_embedded_queue(nodes: SlurmExecutor, gate: Gate) -> None:
    """The daemon is killed: what runs goes on, what waits follows, and all outcomes arrive."""
    call = nodes.submit(gate.pass_through, 'call')
    script = nodes.submit(bash(gate.shell_as('script'), 'exit 3'), check=False)
    gate.await_arrival('call', 'script')
    await_running(call, script)
    after = nodes.with_resources(dependency=f'afterany:{call.job_id}').map(pow, [2, 3], [2, 2])
    daemon(work_dir_of(nodes)).kill()
    gate.open()
    assert call.result() is None
    assert script.result() is JobState.FAILED
    assert list(after) == [4, 9]


# ---- back into the queue


def test_suspended(nodes: SlurmExecutor, cluster: Control, gate: Gate) -> None:
    """A suspended job is shown as that, and goes on when it is resumed."""
    future = nodes.submit(gate.pass_through)
    gate.await_arrival()
    await_running(future)
    cluster.scontrol('suspend', str(future.job_id))
    await_state(future, JobState.SUSPENDED)
    cluster.scontrol('resume', str(future.job_id))
    await_state(future, JobState.RUNNING)
    gate.open()
    assert future.result() is None


# ---- what asking costs


def test_one_squeue_for_all(
    make_executor: Callable[..., SlurmExecutor], gate: Gate, tmp_path: Path, cluster: Control
) -> None:
    """One squeue a polling interval, for jobs of all kinds together; none when none is pending."""
    stub = Stub(tmp_path, 'squeue')
    executor = make_executor(slurm={'squeue_bin': stub.path, 'polling_interval': 0.5})
    nodes = executor.with_resources(partition='cpu')
    futures: list[JobFuture[Any]] = [
        *(nodes.submit(gate.pass_through, n) for n in range(3)),
        *(nodes.with_resources(cpus_per_task=2).submit(gate.pass_through, 5) for _ in range(2)),
        *(nodes.submit(bash(gate.shell)) for _ in range(2)),
    ]
    assert eventually(lambda: len(stub.calls) >= 5, 30)
    gate.open()
    for future in futures:
        future.result()
    ended = time.time()
    times = stub.times
    # The clock that the stub reads starts a little after the one that the interval is kept by.
    assert min(after - before for before, after in pairwise(times)) > 0.3
    assert executor.submit(len, 'abc').result() == 3
    time.sleep(1.2)
    assert all(moment < ended + 0.4 for moment in stub.times)


def test_outcomes_do_not_wait_for_polling(
    make_executor: Callable[..., SlurmExecutor], gate: Gate, cluster: Control
) -> None:
    """An outcome is seen within a second, although Slurm is asked once a minute."""
    executor = make_executor(slurm={'polling_interval': 60.0})
    nodes = executor.with_resources(partition='cpu')

    def stamp() -> float:
        gate.pass_through()
        return time.time()

    future = nodes.submit(stamp)
    script = nodes.submit(bash(gate.shell, 'date +%s.%N'))
    seen: dict[object, float] = {}
    for one in (future, script):
        one.add_done_callback(lambda done: seen.update({done: time.time()}))
    gate.await_arrival()
    await_running(future, script)
    # Long enough for the agent to look less often.
    time.sleep(3)
    gate.open()
    assert script.result() is JobState.COMPLETED
    assert eventually(lambda: len(seen) == 2, 10)
    assert seen[future] - future.result() < 1
    assert seen[script] - float(script.stdout()) < 1


# ---- Slurm does not answer


def test_squeue_fails(
    make_executor: Callable[..., SlurmExecutor], gate: Gate, tmp_path: Path, cluster: Control
) -> None:
    """As long as squeue fails nothing is concluded; what jobs report themselves still counts."""
    broken = tmp_path / 'broken'
    stub = Stub(tmp_path, 'squeue', f'[ ! -e {broken} ] && exec "$real" "$@"; exit 1')
    executor = make_executor(
        slurm={'squeue_bin': stub.path, 'polling_interval': 0.3}, grace_period=0.2
    )
    nodes = executor.with_resources(partition='cpu')
    lost = nodes.submit(gate.pass_through, 'lost')
    kept = nodes.with_resources(nodes=1).submit(gate.pass_through, 'kept')
    gate.await_arrival('lost', 'kept')
    await_running(lost, kept)
    broken.touch()
    slurm('scancel', str(lost.job_id))
    asked = len(stub.calls)
    assert eventually(lambda: len(stub.calls) > asked + 4, 30)
    assert not lost.done()
    gate.open()
    assert kept.result() is None
    broken.unlink()
    assert isinstance(lost.exception(), JobCancelled)


@pytest.mark.parametrize('history', ['answers', 'fails'])
def test_job_that_squeue_has_forgotten(
    make_executor: Callable[..., SlurmExecutor],
    accounting: Control,
    gate: Gate,
    tmp_path: Path,
    history: str,
) -> None:
    """sacct tells how a job ended; without it, one that had begun is lost after a grace period."""
    blind = tmp_path / 'blind'
    stub = Stub(tmp_path, 'squeue', f'[ -e {blind} ] || exec "$real" "$@"')
    sacct = Stub(tmp_path, 'sacct', 'exec "$real" "$@"' if history == 'answers' else 'exit 1')
    executor = make_executor(
        slurm={'squeue_bin': stub.path, 'sacct_bin': sacct.path, 'polling_interval': 0.5},
        grace_period=5.0 if history == 'answers' else 1.0,
    )
    nodes = executor.with_resources(partition='cpu')
    held = nodes.with_resources(extra={'hold': True}).submit(gate.pass_through, 'held')
    killed = nodes.submit(tell_supervisor, gate)
    gate.await_arrival()
    await_running(killed)
    await_job_id(held)
    blind.touch()
    os.kill(int(killed.stdout()), signal.SIGKILL)
    slurm('scancel', str(held.job_id))
    # It never began, which can be proven without Slurm.
    error = held.exception()
    assert isinstance(error, JobCancelled)
    assert error.started is False
    error = killed.exception()
    assert isinstance(error, JobFailed)
    assert sacct.calls
    if history == 'answers':
        assert (type(error), error.state, error.signal) == (JobFailed, JobState.FAILED, 9)
    else:
        assert type(error) is JobLost


def test_without_accounting(
    make_executor: Callable[..., SlurmExecutor], gate: Gate, cluster: Control
) -> None:
    """Where there is no sacct nothing is missing as long as squeue remembers."""
    executor = make_executor(slurm={'sacct_bin': '/nowhere/sacct'})
    nodes = executor.with_resources(partition='cpu')
    future = nodes.submit(gate.pass_through)
    gate.await_arrival()
    await_running(future)
    slurm('scancel', str(future.job_id))
    assert isinstance(future.exception(), JobCancelled)
    assert nodes.submit(len, 'abc').result() == 3


def test_nobody_remembers(
    make_executor: Callable[..., SlurmExecutor], faults: Control, gate: Gate, tmp_path: Path
) -> None:
    """A job that Slurm has purged is not missed when its outcome is there."""
    faults.configure(MinJobAge=2)
    executor = make_executor(slurm={'sacct_bin': '/nowhere/sacct', 'polling_interval': 0.5})
    nodes = executor.with_resources(partition='cpu')
    chunk = chunked(nodes, Steps(gate, Record('/dev/null')), [('a',), ('b',), ('c',)])
    gate.await_arrival('a-0')
    gate.open()
    assert [future.result() for future in chunk] == ['a', 'b', 'c']
    assert nodes.submit(len, 'abc').result() == 3
