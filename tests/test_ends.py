"""Ends of tasks become exceptions: their types, their facts, their words."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest

from fakes import Controller
from slurm_futures.ends import CLASSES, OBSTACLES, end_error
from slurm_futures.errors import (
    JobCancelled,
    JobFailed,
    JobLost,
    NodeFail,
    OutOfMemory,
    Preempted,
    PythonVersionMismatch,
    TimeLimit,
)
from slurm_futures.futures import JobFuture, Work
from slurm_futures.outcomes import Entry
from slurm_futures.remote.states import JobState
from slurm_futures.tracking import End


class Group:
    """Whatever sent the call."""

    def on_end(self, entry: Entry) -> None:
        """Do nothing."""

    def cancel(self, entry: Entry) -> None:
        """Do nothing."""

    def kill(self, entry: Entry) -> None:
        """Do nothing."""


def entry(*, running: bool = False, killed: bool = False) -> Entry:
    """Return a call that has begun, or has not said so."""
    future: JobFuture[Any] = JobFuture(Controller(), Work(1))
    future.work.logs = ('/logs/out', '/logs/err')
    if running:
        future.set_running_or_notify_cancel()
    return Entry(future, future.work, Group(), killed)


def failed(end: End, call: Entry | None = None, *, script: bool = False) -> JobFailed:
    """Return the error that an end amounts to."""
    error = end_error(call or entry(), '100_7', end, script=script, stderr='last line\n')
    assert isinstance(error, JobFailed)
    return error


KINDS = {
    JobState.CANCELLED: JobCancelled,
    JobState.TIMEOUT: TimeLimit,
    JobState.DEADLINE: TimeLimit,
    JobState.OUT_OF_MEMORY: OutOfMemory,
    JobState.NODE_FAIL: NodeFail,
    JobState.BOOT_FAIL: NodeFail,
    JobState.PREEMPTED: Preempted,
    JobState.FAILED: JobFailed,
}


@pytest.mark.parametrize('script', [False, True])
@pytest.mark.parametrize('state', KINDS)
def test_each_final_state(state: JobState, script: bool) -> None:
    """Each final state has its class, and words that name the job and say what happened."""
    error = failed(End(state), script=script)
    assert type(error) is KINDS[state]
    assert error.state is state
    assert ('the script' if script else 'the call') in str(error)
    assert 'job 100_7' in str(error)


def test_all_final_states_are_known() -> None:
    """No final state is forgotten."""
    final = {state for state in JobState if state.is_terminal}
    assert final == {*KINDS, JobState.COMPLETED}
    assert set(CLASSES) <= final


def test_facts() -> None:
    """All that is known of the end is on the error, and survives pickling."""
    end = End(JobState.FAILED, 3, None, 'n1', 'NonZeroExitCode', started=True)
    error = failed(end, entry(running=True), script=True)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert (one.exit_code, one.signal, one.node, one.reason) == (
            3,
            None,
            'n1',
            'NonZeroExitCode',
        )
        assert (one.stdout_path, one.stderr_path) == ('/logs/out', '/logs/err')
        assert (one.stderr, one.started, one.job_id) == ('last line\n', True, '100_7')


@pytest.mark.parametrize('reason', ['', 'None'])
def test_no_reason(reason: str) -> None:
    """Where Slurm gives no reason there is none."""
    assert failed(End(JobState.FAILED, reason=reason)).reason is None


def test_no_logs() -> None:
    """A task that never had logs has no paths."""
    call = entry()
    call.work.logs = None
    assert failed(End(JobState.FAILED), call).stderr_path is None


def test_completed_without_an_outcome() -> None:
    """A job that completed, and left a call without an outcome, is lost."""
    error = failed(End(JobState.COMPLETED))
    assert isinstance(error, JobLost)
    assert 'without leaving an outcome' in str(error)


@pytest.mark.parametrize('script', [False, True])
def test_lost(script: bool) -> None:
    """Of what is lost nobody knows whether it ran."""
    error = failed(End(JobState.RUNNING, lost=True), script=script)
    assert isinstance(error, JobLost)
    assert 'may have run' in str(error)
    assert error.started is None


def test_completed_and_never_begun() -> None:
    """A script that Slurm calls completed, and that provably never began, is lost."""
    error = failed(End(JobState.COMPLETED, lost=True, started=False), script=True)
    assert isinstance(error, JobLost)
    assert 'may have run' not in str(error)
    assert error.started is False


@pytest.mark.parametrize(
    ('state', 'words'),
    [(JobState.CANCELLED, 'was ended by kill()'), (JobState.TIMEOUT, 'reached its time limit')],
)
def test_killed(state: JobState, words: str) -> None:
    """What kill() was called for is cancelled, whatever it ended as; the words tell the truth."""
    error = failed(End(state), entry(killed=True))
    assert isinstance(error, JobCancelled)
    assert words in str(error)


@pytest.mark.parametrize(
    ('running', 'started', 'told', 'began'),
    [
        (True, True, True, True),
        (True, None, False, True),
        (False, True, True, False),
        (False, True, False, None),
        (False, None, False, None),
        (False, False, False, False),
    ],
)
def test_whether_a_call_began(
    running: bool, started: bool | None, told: bool, began: bool | None
) -> None:
    """A call began if it said so; if the task has told everything, others did not."""
    end = End(JobState.TIMEOUT, started=started, told=told)
    assert failed(end, entry(running=running)).started is began


def test_whether_a_script_began() -> None:
    """A script that has not said that it began may have, unless that is disproven."""
    assert failed(End(JobState.TIMEOUT, started=True, told=True), script=True).started is None
    assert failed(End(JobState.TIMEOUT, started=False), script=True).started is False


@pytest.mark.parametrize('what', [*OBSTACLES, 'something new'])
def test_obstacles(what: str) -> None:
    """What kept a worker from starting is told, also what this version has no words for."""
    error = failed(End(JobState.FAILED, started=False, obstacle={'what': what, 'code': 1}))
    assert OBSTACLES.get(what, what) in str(error)
    assert error.started is False


def test_other_python() -> None:
    """A Python of another version on the compute nodes: both are named, and where it was found."""
    found = {'what': 'version', 'python': '3.8.1', 'executable': '/usr/bin/python3'}
    end = End(JobState.FAILED, node='n1', started=False, obstacle=found)
    error = end_error(entry(), '100_7', end, script=False)
    assert isinstance(error, PythonVersionMismatch)
    assert (error.client, error.remote) == ('.'.join(map(str, sys.version_info[:3])), '3.8.1')
    for words in ('100_7', 'n1', '/usr/bin/python3'):
        assert words in str(error)
