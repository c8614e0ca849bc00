"""What users read when something is wrong: what happened, to which job, and what to do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import eventually
from outside import Outside, work_dir_of
from slurm_futures import (
    ConfigError,
    ConnectionFailed,
    JobCancelled,
    JobFailed,
    SlurmExecutor,
    SubmitError,
    WorkerDied,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])

Use = Callable[[Any], object]

SCRIPT = '#!/bin/bash\n'


def cause(error: BaseException) -> str:
    """Return what the remote traceback says."""
    assert error.__cause__ is not None
    return str(error.__cause__)


def fail() -> None:
    """Raise an error."""
    raise ValueError('no such lattice')


@pytest.mark.parametrize(
    ('use', 'words'),
    [
        (lambda ex: ex.run('pwd', cwd=3), 'cwd: got 3; write a string'),
        (lambda ex: ex.run('pwd', env={'A': 1}), 'env: the value of A must be a string'),
        (lambda ex: ex.run('cat', input=b'x'), "input: got b'x'; write a string"),
        (lambda ex: ex.run('pwd', timeout='3'), "timeout: got '3'; write a number"),
        (lambda ex: ex.with_options(cwd=3), 'cwd: got 3; write a string'),
        (lambda ex: ex.with_options(python_cmd=3), 'python_cmd: got 3; write a string'),
        (lambda ex: ex.submit(SCRIPT, cwd=3), 'cwd: got 3; write a string'),
        (lambda ex: ex.submit(SCRIPT, name='a\nb'), r"name: got 'a\\nb'; line breaks"),
        (lambda ex: ex.submit(SCRIPT + '\udce4'), 'not UTF-8'),
        (lambda ex: ex.submit('job.sh'), r'the path of a local script .* pathlib\.Path'),
        (lambda ex: ex.map('job.sh', [1]), "map.. takes a function, not 'job.sh'"),
    ],
)
def test_bad_arguments_are_refused_at_once(executor: SlurmExecutor, use: Use, words: str) -> None:
    """The message names argument and remedy; nothing was sent, and nothing is pending for ever."""
    with pytest.raises((ConfigError, TypeError), match=words):
        use(executor)
    assert executor.run(['echo', 'alive']).stdout == 'alive\n'
    assert executor._core.pending() == []


def test_script_file_that_is_no_utf8(executor: SlurmExecutor, tmp_path: Path) -> None:
    """A file in another encoding is refused as such, not by a codec's words."""
    path = tmp_path / 'job.sh'
    path.write_bytes(b'#!/bin/bash\necho \xe4\n')
    with pytest.raises(ConfigError, match='not UTF-8: save it as UTF-8'):
        executor.submit(path)


def test_paths_are_taken_wherever_a_folder_is(executor: SlurmExecutor, work_dir: Path) -> None:
    """Path objects do for cwd and python_cmd as strings do."""
    assert executor.run('pwd', cwd=work_dir).stdout == f'{work_dir}\n'
    there = executor.with_options(cwd=work_dir, python_cmd=Path(sys.executable))
    assert there.submit(os.getcwd).result() == str(work_dir)


def test_exception_of_a_call_says_where_it_was_raised(nodes: SlurmExecutor) -> None:
    """Among many calls, the traceback tells the node and the job to look at."""
    future = nodes.submit(fail)
    error = future.exception()
    assert isinstance(error, ValueError)
    assert f'(job {future.job_id})' in cause(error)
    assert 'no such lattice' in cause(error)


def test_result_that_cannot_be_pickled_is_called_so(executor: SlurmExecutor) -> None:
    """The error of pickling a result is not taken for one of the call."""
    error = executor.submit(lambda: (n for n in range(3))).exception()
    assert isinstance(error, TypeError)
    assert 'when the result of the call was pickled' in cause(error)


def test_words_of_sbatch_come_once(nodes: SlurmExecutor, cluster: Control) -> None:
    """A refusal names the calls, then gives sbatch's words, once."""
    future = nodes.with_resources(partition='nowhere').submit(fail)
    error = future.exception()
    assert isinstance(error, SubmitError)
    assert str(error).startswith('sbatch refused a call of fail')
    assert str(error).count('invalid partition specified: nowhere') == 1


def test_job_that_was_not_sent_is_not_sbatchs_fault(executor: SlurmExecutor) -> None:
    """What fails before sbatch runs is not given as sbatch's words."""
    error = executor.submit(SCRIPT, name='relax', cwd='missing').exception()
    assert isinstance(error, SubmitError)
    assert str(error).startswith('the script relax cannot be submitted: there is no folder /')


def test_worker_killed_for_its_memory_is_explained(nodes: SlurmExecutor) -> None:
    """SIGKILL without an order means memory, mostly: the message says so, once, with the job."""
    future = nodes.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    error = future.exception()
    assert isinstance(error, WorkerDied)
    assert 'as it does when memory runs out: ask for more' in str(error)
    assert str(error).count('SIGKILL') == str(error).count(f'job {future.job_id}') == 1


def test_array_script_names_the_task_that_failed(executor: SlurmExecutor) -> None:
    """Of an array, the error shows job, exit code and stderr of a task that failed."""
    text = '#!/bin/bash\n#SBATCH --array=0-2\necho $SLURM_ARRAY_TASK_ID >&2\n'
    error = executor.submit(text + 'exit $((SLURM_ARRAY_TASK_ID == 1 ? 9 : 0))\n').exception()
    assert isinstance(error, JobFailed)
    assert (error.exit_code, error.stderr) == (9, '1\n')
    assert str(error.job_id).endswith('_1')


def test_folder_that_only_the_queue_can_miss(executor: SlurmExecutor, tmp_path: Path) -> None:
    """A job that the queue could not launch is explained rather than called failed."""
    text = f'#!/bin/bash\n#SBATCH --output={tmp_path}/%j-missing/out\n'
    error = executor.submit(text).exception()
    assert isinstance(error, JobFailed)
    assert 'can its output files be written there?' in str(error)
    assert 'it never began' in str(error)


def test_own_kill_is_told_from_a_cancellation_from_outside(
    executor: SlurmExecutor, outside: Outside
) -> None:
    """JobCancelled says whether this program did it."""
    ours, theirs = (executor.submit(f'{SCRIPT}sleep 60\n') for _ in range(2))
    assert eventually(lambda: ours.running() and theirs.running(), 30)
    ours.kill()
    outside.cancel(work_dir_of(executor), str(theirs.job_id))
    errors = [ours.exception(), theirs.exception()]
    assert all(isinstance(error, JobCancelled) for error in errors)
    assert 'was ended by kill()' in str(errors[0])
    assert 'was cancelled from outside' in str(errors[1])


def test_future_shows_its_job(nodes: SlurmExecutor) -> None:
    """The repr of a future names its job and the job's state."""
    future = nodes.submit(abs, -1)
    future.result()
    assert f'job {future.job_id} ' in repr(future)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'work_dir': '/proc/nowhere'}, 'cannot use work_dir /proc/nowhere: '),
        ({'python_cmd': '/nowhere/python'}, "cannot start '/nowhere/python' .*set python_cmd"),
        ({'setup': 'exit 3'}, 'look at the commands in setup'),
        ({'setup': 'if'}, 'syntax error'),
    ],
)
def test_agent_that_cannot_start(
    make_executor: Callable[..., SlurmExecutor], settings: dict[str, str], words: str
) -> None:
    """The setting to look at is named, with what was printed."""
    with pytest.raises(ConnectionFailed, match=words):
        make_executor(**settings).run('true')
