"""Turns the end of a task into the exception that its calls, or its script, raise."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from slurm_futures.errors import (
    JobCancelled,
    JobFailed,
    JobLost,
    NodeFail,
    OutOfMemory,
    Preempted,
    PythonVersionMismatch,
    SlurmFuturesError,
    TimeLimit,
)
from slurm_futures.outcomes import Entry
from slurm_futures.remote.states import JobState
from slurm_futures.tracking import End

CLASSES: dict[JobState, type[JobFailed]] = {
    JobState.CANCELLED: JobCancelled,
    JobState.TIMEOUT: TimeLimit,
    JobState.DEADLINE: TimeLimit,
    JobState.OUT_OF_MEMORY: OutOfMemory,
    JobState.NODE_FAIL: NodeFail,
    JobState.BOOT_FAIL: NodeFail,
    JobState.PREEMPTED: Preempted,
}

WORDS: dict[JobState, str] = {
    JobState.CANCELLED: 'was cancelled from outside',
    JobState.TIMEOUT: 'reached its time limit',
    JobState.DEADLINE: 'reached its deadline',
    JobState.OUT_OF_MEMORY: 'ran out of memory',
    JobState.NODE_FAIL: 'lost its node',
    JobState.BOOT_FAIL: 'lost its node, which did not boot',
    JobState.PREEMPTED: 'was preempted',
    JobState.FAILED: 'failed',
    JobState.COMPLETED: 'ended without leaving an outcome in the spool',
}


OBSTACLES = {
    'cwd': 'could not enter its working folder: does it exist on the compute nodes?',
    'python': 'could not start its interpreter: does python_cmd exist on the compute nodes?',
    'setup': 'ended in its setup lines',
}


def end_error(
    entry: Entry, job_id: str, end: End, *, script: bool, stderr: str = ''
) -> SlurmFuturesError:
    """Return the exception for a call or script whose task has ended.

    Args:
        entry: the call or script; one that was killed raises JobCancelled.
        job_id: of the task.
        end: how it ended.
        script: whether it is a script, which has an exit code of its own.
        stderr: the tail of what it wrote to stderr.
    """
    if end.obstacle and end.obstacle['what'] == 'version':
        return _version_mismatch(job_id, end.node, end.obstacle)
    kind = _kind(end, script=script)
    if entry.killed:
        kind = JobCancelled
    logs = entry.work.logs or (None, None)
    return kind(
        f"{'the script' if script else 'the call'}'s job {_words(end, entry, script=script)}",
        job_id=job_id,
        state=end.state,
        exit_code=end.exit_code,
        signal=end.signal,
        node=end.node or None,
        reason=None if end.reason == 'None' else end.reason or None,
        stderr=stderr,
        stdout_path=logs[0],
        stderr_path=logs[1],
        started=_began(entry, end, script=script),
    )


def _version_mismatch(job_id: str, node: str, found: Mapping[str, Any]) -> PythonVersionMismatch:
    ours = '.'.join(map(str, sys.version_info[:3]))
    return PythonVersionMismatch(
        f'job {job_id} found Python {found["python"]} at {found["executable"]} on {node}, and '
        f'functions cannot travel between that and Python {ours} here: set python_cmd to a '
        f'Python {sys.version_info[0]}.{sys.version_info[1]} that the compute nodes have',
        client=ours,
        remote=found['python'],
    )


def _kind(end: End, *, script: bool) -> type[JobFailed]:
    if end.lost or (end.state is JobState.COMPLETED and not script):
        return JobLost
    return CLASSES.get(end.state, JobFailed)


def _began(entry: Entry, end: End, *, script: bool) -> bool | None:
    """Return whether the call began; None where a report of that may have been lost."""
    if end.started is False:
        return False
    if entry.future.running():
        return True
    return False if end.told and not script else None


def _words_of_loss(end: End) -> str:
    if end.started is False:
        return f'ended as {end.state.value}, and yet it never began'
    return (
        'is not known to the queue any more and left no outcome '
        f'(last seen {end.state.value}); it may have run'
    )


def _words(end: End, entry: Entry, *, script: bool) -> str:
    if entry.killed and end.state is JobState.CANCELLED:
        return 'was ended by kill()'
    if end.lost:
        return _words_of_loss(end)
    if end.obstacle:
        what = end.obstacle['what']
        return OBSTACLES.get(what, f'could not start its calls ({what})')
    if end.reason == 'JobLaunchFailure':
        return 'could not be launched on its node: can its output files be written there?'
    if end.state is JobState.FAILED and not script:
        return 'failed: its worker was killed, or could not write into work_dir (a full disk?)'
    return WORDS.get(end.state, f'ended as {end.state.value}')
