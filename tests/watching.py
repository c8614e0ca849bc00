"""What tests share to submit work and to follow it through a real Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cloudpickle

from cluster.processes import eventually
from slurm_futures import JobFuture, JobState, SlurmExecutor
from waiting import Gate, Record

PATIENCE_S = 30.0
REVOKED_S = 121.0
"""How long Slurm lets a requeued job wait: cred_expire (man slurm.conf, AuthInfo) and a second."""

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def bash(*lines: str) -> str:
    """A script for bash."""
    return '\n'.join(['#!/bin/bash', *lines]) + '\n'


def chunked(
    executor: SlurmExecutor, fn: Callable[..., Any], calls: list[tuple[Any, ...]]
) -> list[JobFuture[Any]]:
    """The futures of a map whose calls are all in one chunk."""
    return executor._submit_all(fn, calls, len(calls))


class Steps:
    """A call that notes that it runs, prints its supervisor, waits at a gate, and returns.

    At the gate it has the name that it is called with, and the number of the restart: 'x-0'.
    """

    def __init__(self, gate: Gate, record: Record) -> None:
        self.gate = gate
        self.record = record

    def __call__(self, name: str) -> str:
        print(os.getppid())
        self.record.add(name)
        self.gate.pass_through(f'{name}-{os.environ.get("SLURM_RESTART_COUNT", "0")}')
        return name


def node_names(queue_system: str) -> set[str]:
    """What the machines are called that run jobs."""
    if queue_system == 'slurm':
        return {'n1', 'n2', 'n3', 'n4'}
    return {os.uname().nodename.partition('.')[0]}


def behind(executor: SlurmExecutor, gate: Gate) -> SlurmExecutor:
    """An executor whose jobs stay in the queue until the gate is opened."""
    first = executor.submit(gate.pass_through)
    await_job_id(first)
    return executor.with_resources(dependency=f'afterany:{first.job_id}')


def slurm(*argv: str) -> str:
    """What one of Slurm's commands prints; times are in seconds since 1970."""
    env = {**os.environ, 'SLURM_TIME_FORMAT': '%s'}
    return subprocess.check_output(argv, text=True, timeout=60, env=env).strip()


def squeue(future: JobFuture[Any], form: str) -> str:
    """What squeue says of a future's job."""
    return slurm('squeue', '-h', '-t', 'all', '-o', form, '-j', str(future.job_id))


def await_job_id(*futures: JobFuture[Any]) -> None:
    """Wait until the queue has answered."""
    assert eventually(lambda: all(future.job_id for future in futures), PATIENCE_S)


def await_running(*futures: JobFuture[Any]) -> None:
    """Wait until the futures know that they run."""
    assert eventually(lambda: all(future.running() for future in futures), PATIENCE_S)


def await_state(future: JobFuture[Any], state: JobState) -> None:
    """Wait until the future shows a state."""
    assert eventually(lambda: future.job_state is state, PATIENCE_S), future.job_state


def start_again(*futures: JobFuture[Any]) -> None:
    """Have Slurm start requeued jobs soon: by itself it would let two minutes pass.

    A node refuses the new credential of a job if it is not younger, in whole seconds, than the
    revocation of the old one (batch_requeue_fini() in src/slurmctld/job_mgr.c), and the job is then
    held.
    """

    def all_pending() -> bool:
        return all(squeue(future, '%T') == 'PENDING' for future in futures)

    assert eventually(all_pending, PATIENCE_S)
    begin = max(float(squeue(future, '%S')) for future in futures)
    time.sleep(max(0.0, begin - REVOKED_S + 2 - time.time()))
    for future in futures:
        slurm('scontrol', 'update', f'jobid={future.job_id}', 'StartTime=now')
