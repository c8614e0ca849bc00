"""Jobs that Slurm starts more than once: one future each, and one outcome."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import eventually
from slurm_futures import JobFuture, JobState, SlurmExecutor
from waiting import Gate, Record, has_ended
from watching import (
    Steps,
    await_running,
    await_state,
    bash,
    chunked,
    slurm,
    squeue,
    start_again,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.queues('slurm')


def test_requeue(nodes: SlurmExecutor, gate: Gate, record: Record) -> None:
    """scontrol requeue: one future, which runs, waits and runs again, and has one outcome."""
    call = nodes.submit(Steps(gate, record), 'call')
    waiting = gate.shell_as('script-${SLURM_RESTART_COUNT:-0}')
    script = nodes.submit(bash(waiting, 'exit 3'), check=False)
    both: tuple[JobFuture[Any], ...] = (call, script)
    done: list[object] = []
    for future in both:
        future.add_done_callback(done.append)
    gate.await_arrival('call-0', 'script-0')
    await_running(*both)
    slurm('scontrol', 'requeue', f'{call.job_id},{script.job_id}')
    for future in both:
        await_state(future, JobState.PENDING)
        assert future.running()
        assert not future.cancel()
    start_again(*both)
    gate.await_arrival('call-1', 'script-1')
    for future in both:
        await_state(future, JobState.RUNNING)
    gate.open()
    assert call.result() == 'call'
    assert script.result() is JobState.FAILED
    assert eventually(lambda: sorted(map(id, done)) == sorted(map(id, both)), 10)
    assert record.lines() == ['call', 'call']


def test_finished_calls_are_not_run_again(nodes: SlurmExecutor, gate: Gate, record: Record) -> None:
    """Calls of a chunk that were finished before the requeue keep their outcomes."""
    steps = Steps(gate, record)

    def step(n: int) -> int:
        if n == 2:
            steps('third')
        else:
            record.add(n)
        return n

    futures = chunked(nodes, step, [(n,) for n in range(4)])
    gate.await_arrival('third-0')
    assert [future.result() for future in futures[:2]] == [0, 1]
    slurm('scontrol', 'requeue', str(futures[2].job_id))
    start_again(futures[2])
    gate.await_arrival('third-1')
    gate.open()
    assert [future.result() for future in futures] == [0, 1, 2, 3]
    assert record.lines() == ['0', '1', 'third', 'third', '3']


def test_requeue_hold(
    nodes: SlurmExecutor, gate: Gate, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that is held for a person waits, which is said once; released, it goes on."""
    future = nodes.submit(Steps(gate, record), 'call')
    gate.await_arrival('call-0')
    await_running(future)
    with caplog.at_level(logging.WARNING, 'slurm_futures'):
        slurm('scontrol', 'requeuehold', str(future.job_id))
        await_state(future, JobState.PENDING)
        assert eventually(lambda: 'scontrol release' in caplog.text, 10)
    assert str(future.job_id) in caplog.text
    assert not future.done()
    slurm('scontrol', 'release', str(future.job_id))
    start_again(future)
    gate.await_arrival('call-1')
    gate.open()
    assert future.result() == 'call'
    assert caplog.text.count('scontrol release') == 1


def test_requeue_after_node_failure(
    nodes: SlurmExecutor, faults: Control, gate: Gate, record: Record
) -> None:
    """When a node fails, Slurm starts the job again: the same future, and one outcome."""
    future = nodes.submit(Steps(gate, record), 'call')
    gate.await_arrival('call-0')
    await_running(future)
    supervisor = future.stdout().strip()
    step = Path(f'/proc/{supervisor}/stat').read_text().rpartition(')')[2].split()[1]
    node = squeue(future, '%N')
    faults.scontrol('update', f'nodename={node}', 'state=down', 'reason=test')
    # Or else the end of this run might be taken for that of the next one.
    assert has_ended(step)
    start_again(future)
    gate.await_arrival('call-1')
    gate.open()
    assert future.result() == 'call'
    assert record.lines() == ['call', 'call']


def test_two_copies_at_once(
    nodes: SlurmExecutor, faults: Control, tmp_path: Path, record: Record
) -> None:
    """A copy whose node Slurm has given up starts no further call once another is at work."""
    first, rest = Gate(tmp_path / 'first'), Gate(tmp_path / 'rest')

    def step(n: int) -> str:
        restart = os.environ.get('SLURM_RESTART_COUNT', '0')
        if n == 0:
            (rest if restart == '1' else first).pass_through()
        record.add(f'{n}-{restart}')
        return f'{n}-{restart}'

    futures = chunked(nodes, step, [(n,) for n in range(3)])
    first.await_arrival()
    await_running(futures[0])
    node = squeue(futures[0], '%N')
    faults.kill('slurmd', node)
    faults.scontrol('update', f'nodename={node}', 'state=down', 'reason=test')
    start_again(futures[0])
    rest.await_arrival()
    # The old copy looks once a second whether there is a newer one.
    time.sleep(1.5)
    first.open()
    assert futures[0].result() == '0-0'
    rest.open()
    assert [future.result() for future in futures[1:]] == ['1-1', '2-1']
    assert record.lines() == ['0-0', '0-1', '1-1', '2-1']
