"""Agents die, or fall silent, at the worst moments: no future is lost, no call runs twice."""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import signal
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import Process, eventually
from outside import Outside, quick_queue
from programs import offspring
from slurm_futures import SlurmExecutor
from slurm_futures.batching import Target
from slurm_futures.config import load_config
from slurm_futures.core import Core, Scope
from slurm_futures.line import Patience
from slurm_futures.plan import make_plan
from stubs import Stub
from waiting import Gate, Record

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures('cancel_jobs')

LOST = 'lost the agent on this machine: '


@pytest.fixture
def make(queue_system: str, work_dir: Path) -> Iterator[Callable[..., SlurmExecutor]]:
    """Makes executors that reconnect quickly, and ends them; keywords are settings."""
    executors = []

    def make(silence: float = 30.0, slurm: Any = None, **settings: Any) -> SlurmExecutor:
        queue = quick_queue(queue_system, {'polling_interval': 1, **(slurm or {})})
        settings = {'work_dir': str(work_dir), 'grace_period': 3, **settings}
        plan = make_plan(load_config({'queue_system': queue, **settings}))
        patience = Patience(ping=silence / 4, silence=silence, back_off=(0.01, 0.1))
        recipe = dataclasses.replace(plan.recipe, patience=patience)
        executor = SlurmExecutor.__new__(SlurmExecutor)
        executor.name = ''
        core = Core(dataclasses.replace(plan, recipe=recipe))
        executor._join(core, Target(), Scope(None))
        executors.append(executor)
        return executor

    yield make
    for executor in executors:
        executor._core.abort()
        executor.shutdown()


@pytest.fixture
def gate(work_dir: Path) -> Iterator[Gate]:
    """A door for calls, open at the latest when the test ends."""
    gate = Gate(work_dir / 'gate')
    yield gate
    gate.open()


@pytest.fixture
def record(work_dir: Path) -> Record:
    """What calls have recorded."""
    return Record(work_dir / 'record')


def pass_gate(gate: Gate, record: Record, name: str) -> str:
    """Record that a call has begun, wait at the gate, and return the name."""
    record.add(name)
    gate.pass_through(name)
    return name


def agent(executor: SlurmExecutor) -> Process:
    """The agent that the executor is connected to."""
    executor.connect()
    stream: Any = executor._core._dispatcher.connection.stream
    return Process.of(stream._process.pid)


def family(process: Process) -> list[Process]:
    """A process and all that it has started."""
    return [process, *offspring(process.pid)]


def gone(processes: list[Process]) -> bool:
    """Whether these processes end within seconds."""
    return eventually(lambda: not any(process.alive() for process in processes), 15)


def test_killed_while_jobs_run(
    make: Callable[..., SlurmExecutor],
    gate: Gate,
    record: Record,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A new agent is started at once, not at the next query, and finds what jobs have left."""
    executor = make(slurm={'polling_interval': 300})
    nodes = executor.with_resources(time='5')
    calls = [nodes.submit(pass_gate, gate, record, name) for name in 'ab']
    gate.await_arrival('a', 'b')
    agent(executor).kill()
    gate.open()
    assert [call.result(timeout=20) for call in calls] == ['a', 'b']
    assert sorted(record.lines()) == ['a', 'b']
    assert LOST in caplog.text


def test_killed_with_nothing_to_do(
    make: Callable[..., SlurmExecutor], work_dir: Path, record: Record
) -> None:
    """An agent that nobody needs is not replaced; the next call, or the end, starts another."""
    executor = make()
    first = agent(executor)
    first.kill()
    assert executor.submit(record.add, 'a').result(timeout=20) is None
    second = agent(executor)
    assert second != first
    second.kill()
    executor.shutdown()
    assert record.lines() == ['a']
    assert list((work_dir / '.slurm_futures' / 'runs').iterdir()) == []


def test_killed_during_login_calls(
    make: Callable[..., SlurmExecutor],
    gate: Gate,
    record: Record,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Running calls are finished by their workers, waiting ones run later: each of them once."""
    executor = make(login_workers=2)
    names = [str(number) for number in range(12)]
    calls = [executor.submit(pass_gate, gate, record, name) for name in names]
    gate.await_arrival('0', '1')
    assert eventually(lambda: calls[0].running() and calls[1].running(), 10)
    old = family(agent(executor))
    old[0].kill()
    gate.await_arrival('2')  # the new agent has workers of its own
    gate.open()
    assert [call.result(timeout=20) for call in calls] == names
    assert sorted(record.lines()) == sorted(names)
    assert gone(old)
    assert caplog.text.count(LOST) == 1


def test_killed_during_a_command(
    make: Callable[..., SlurmExecutor], work_dir: Path, gate: Gate, record: Record
) -> None:
    """run() returns what its command printed although the agent has died; it runs once."""
    executor = make()
    found: list[str] = []

    def run() -> None:
        command = f'echo begun >>record; {gate.shell}; echo end'
        found.append(executor.run(command, cwd=work_dir).stdout)

    thread = threading.Thread(target=run)
    thread.start()
    gate.await_arrival()
    agent(executor).kill()
    gate.open()
    thread.join(20)
    assert found == ['end\n']
    assert record.lines() == ['begun']


def make_bytes(gate: Gate, record: Record, size: int) -> bytes:
    """Record that a call has begun, wait at the gate, and return much."""
    record.add(size)
    gate.pass_through()
    return b'x' * size


def waiting_bytes(process: Process) -> int:
    """The most that waits in any pipe of a process to be read."""
    sizes = [0]
    for path in Path(f'/proc/{process.pid}/fd').iterdir():
        if str(path.readlink()).startswith('pipe:'):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            size = fcntl.ioctl(descriptor, termios.FIONREAD, b'\0' * 4)
            sizes += struct.unpack('i', size)
            os.close(descriptor)
    return max(sizes)


def test_killed_with_an_outcome_in_hand(
    make: Callable[..., SlurmExecutor], gate: Gate, record: Record
) -> None:
    """What an agent had been told, and had not passed on when it died, is told again."""
    executor = make()
    call = executor.submit(make_bytes, gate, record, 50_000)
    gate.await_arrival()
    assert eventually(call.running, 10)
    old = agent(executor)
    old.signal(signal.SIGSTOP)
    gate.open()
    assert eventually(lambda: waiting_bytes(old) > 50_000, 10)
    old.kill()
    assert call.result(timeout=20) == b'x' * 50_000
    assert record.lines() == ['50000']


def test_killed_during_a_large_result(
    make: Callable[..., SlurmExecutor], gate: Gate, record: Record
) -> None:
    """A large result that was cut off on its way is sent again, whole, by the next agent."""
    executor = make()
    size = 20 * 2**20
    call = executor.submit(make_bytes, gate, record, size)
    gate.await_arrival()
    assert eventually(call.running, 10)
    old = agent(executor)
    held_up, go_on = threading.Event(), threading.Event()

    def hold_up(_: object) -> None:
        held_up.set()  # the polling thread: it reads nothing until the agent is dead
        go_on.wait(20)

    executor.submit(pow, 2, 5).add_done_callback(hold_up)
    assert held_up.wait(20)
    gate.open()
    assert eventually(lambda: waiting_bytes(old) > 60_000, 20)
    old.kill()
    go_on.set()
    assert call.result(timeout=30) == b'x' * size
    assert record.lines() == [str(size)]


def test_killed_during_a_submission(
    make: Callable[..., SlurmExecutor],
    work_dir: Path,
    gate: Gate,
    record: Record,
    caplog: pytest.LogCaptureFixture,
    cluster: Control,
) -> None:
    """The job that an orphaned sbatch has submitted is found, and not submitted again."""
    at_sbatch = Gate(work_dir / 'sbatch-gate')
    stub = Stub(work_dir, 'sbatch', f'{at_sbatch.shell}; exec "$real" "$@"')
    executor = make(slurm={'sbatch_bin': stub.path})
    calls = executor.with_resources(time='5').map(
        pass_gate, [gate] * 3, [record] * 3, 'abc', chunksize=2
    )
    at_sbatch.await_arrival()
    old = family(agent(executor))
    old[0].kill()
    new = agent(executor)
    assert new != old[0]
    at_sbatch.open()
    gate.open()
    assert list(calls) == ['a', 'b', 'c']
    assert record.lines() in (['a', 'b', 'c'], ['a', 'c', 'b'], ['c', 'a', 'b'])
    assert len(stub.calls) == 1
    assert gone(old)
    assert LOST in caplog.text


@pytest.mark.parametrize('afterwards', ['stays', 'goes on'])
def test_stopped_for_long(
    make: Callable[..., SlurmExecutor],
    gate: Gate,
    record: Record,
    caplog: pytest.LogCaptureFixture,
    afterwards: str,
) -> None:
    """An agent that falls silent is given up, and does no harm should it wake up again."""
    executor = make(silence=1.0, login_workers=1)
    names = [str(number) for number in range(6)]
    calls = [executor.submit(pass_gate, gate, record, name) for name in names]
    calls.append(executor.with_resources(time='5').submit(pass_gate, gate, record, 'job'))
    gate.await_arrival('0', 'job')
    assert eventually(calls[0].running, 10)
    old = family(agent(executor))
    old[0].signal(signal.SIGSTOP)
    try:
        gate.await_arrival('1')  # under the new agent
        assert 'it has not answered for 1 s' in caplog.text
        if afterwards == 'goes on':
            old[0].signal(signal.SIGCONT)
        gate.open()
        assert [call.result(timeout=20) for call in calls] == [*names, 'job']
    finally:
        old[0].signal(signal.SIGCONT)
    assert sorted(record.lines()) == sorted([*names, 'job'])
    assert gone(old)


def test_third_kill_names_the_likely_cause(
    make: Callable[..., SlurmExecutor], caplog: pytest.LogCaptureFixture
) -> None:
    """Three agents lost in ten minutes: an error says that the site may not want them."""
    executor = make()
    for number in range(3):
        assert 'login nodes' not in caplog.text
        agent(executor).kill()
        assert eventually(lambda: caplog.text.count(LOST) == number + 1, 10)  # noqa: B023
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith('3 agents on this machine were lost within 10 minutes')
    assert 'ends long processes on its login nodes: ask its support' in errors[0]
    assert executor.submit(pow, 2, 5).result(timeout=20) == 32


def test_cancelled_while_no_agent_lives(
    make: Callable[..., SlurmExecutor],
    gate: Gate,
    record: Record,
    outside: Outside,
    work_dir: Path,
) -> None:
    """What is cancelled while the line is down does not run when it is up again."""
    executor = make(login_workers=1)
    calls = [executor.submit(pass_gate, gate, record, name) for name in 'abc']
    job = executor.with_resources(extra={'hold': True}).submit(pow, 2, 5)
    gate.await_arrival('a')
    assert eventually(lambda: job.job_id is not None, 20)
    agent(executor).kill()
    assert calls[1].cancel()
    assert job.cancel()
    gate.open()
    assert calls[2].result(timeout=20) == 'c'
    executor.shutdown()
    assert record.lines() == ['a', 'c']
    assert str(job.job_id) not in ' '.join(outside.live(work_dir)).split()
