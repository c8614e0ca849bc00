"""The exceptions: what they are, what they say, and that they travel."""

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import BrokenExecutor
from subprocess import CalledProcessError
from typing import Any

import pytest

from slurm_futures import errors
from slurm_futures.errors import (
    CommandFailed,
    ConfigError,
    ConnectionFailed,
    ExecutorBroken,
    JobFailed,
    PythonVersionMismatch,
    RemoteError,
    RemoteImportError,
    SlurmFuturesError,
    SubmitError,
)
from slurm_futures.remote.states import JobState

JOB_FACTS: dict[str, Any] = {
    'job_id': '123_7',
    'state': JobState.FAILED,
    'exit_code': 3,
    'signal': 9,
    'node': 'n1',
    'reason': 'NonZeroExitCode',
    'stderr': 'Traceback\nboom',
    'stdout_path': '/w/1.out',
    'stderr_path': '/w/1.err',
    'started': False,
}


def every_class() -> list[type[SlurmFuturesError]]:
    """Return the error classes that the module names in __all__."""
    return [getattr(errors, name) for name in errors.__all__]


def example(kind: type[SlurmFuturesError]) -> tuple[SlurmFuturesError, dict[str, Any]]:
    """Return an instance with every attribute set, and those attributes."""
    facts: dict[str, Any] = {}
    if issubclass(kind, CommandFailed):
        facts = {'returncode': 2, 'cmd': ['ls', '-l'], 'output': 'out', 'stderr': 'err'}
        return kind(**facts), facts
    if issubclass(kind, JobFailed):
        facts = JOB_FACTS
    elif issubclass(kind, SubmitError):
        facts = {'stderr': 'sbatch: error', 'returncode': 1}
    elif issubclass(kind, RemoteImportError):
        facts = {'name': 'pandas', 'traceback': 'Traceback (most recent call last):\n...'}
    elif issubclass(kind, RemoteError):
        facts = {'traceback': 'Traceback (most recent call last):\n...'}
    elif issubclass(kind, PythonVersionMismatch):
        facts = {'client': '3.11', 'remote': '3.6'}
    return kind('what happened', **facts), facts


@pytest.mark.parametrize('kind', every_class())
def test_pickle_and_copy_keep_everything(kind: type[SlurmFuturesError]) -> None:
    """Each error survives every pickle protocol and copy.copy: type, args, text, attributes."""
    error, facts = example(kind)
    dumped = [pickle.dumps(error, version) for version in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in [copy.copy(error), *map(pickle.loads, dumped)]:
        assert type(twin) is kind
        assert twin.args == error.args
        assert str(twin) == str(error)
        assert {name: getattr(twin, name) for name in facts} == facts


@pytest.mark.parametrize('kind', every_class())
def test_message_alone_is_enough(kind: type[SlurmFuturesError]) -> None:
    """Every attribute but the message has a default, so that a message alone makes an error."""
    error = CommandFailed(1, 'false') if issubclass(kind, CommandFailed) else kind('what happened')
    assert isinstance(error, SlurmFuturesError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_all_is_sorted_and_complete() -> None:
    """__all__ lists every error class of the module, in order."""
    public = [name for name, value in vars(errors).items() if is_own_error(value)]
    assert errors.__all__ == sorted(public)


def is_own_error(value: object) -> bool:
    """Tell whether something that the module holds is one of its error classes."""
    return isinstance(value, type) and issubclass(value, SlurmFuturesError)


def test_tree_in_the_docstring_is_the_hierarchy() -> None:
    """The tree that the module opens with names every class under its first base, and no other."""
    path: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or '').splitlines():
        match = re.match(r'([│├└ ]*)(\w+)(?:\((\w+)\))?( {2}|$)', line)
        if match and match[2] in errors.__all__:
            path[len(match[1]) // 2 :] = [match[2]]
            drawn[match[2]] = ([*path[-2:-1], *filter(None, [match[3]])], match[2])
    real = {kind.__name__: [base.__name__ for base in kind.__bases__] for kind in every_class()}
    real['SlurmFuturesError'] = []
    assert {name: bases for name, (bases, _) in drawn.items()} == real


@pytest.mark.parametrize(
    ('kind', 'base'),
    [
        (ConfigError, ValueError),
        (ConnectionFailed, ConnectionError),
        (CommandFailed, CalledProcessError),
        (RemoteImportError, ImportError),
        (ExecutorBroken, BrokenExecutor),
    ],
)
def test_standard_bases(kind: type[SlurmFuturesError], base: type[Exception]) -> None:
    """Code that knows nothing of slurm_futures catches these by their standard class."""
    with pytest.raises(base):
        raise example(kind)[0]


def test_job_failed_says_what_to_which_job_and_ends_with_stderr() -> None:
    """str() of a JobFailed: the message, the job's facts, the logs, and last the tail of stderr."""
    known = (
        'job 123_7, FAILED, exit code 3, killed by signal 9 (SIGKILL), on node n1, '
        'reason: NonZeroExitCode, it never began'
    )
    error = JobFailed('the job failed', **JOB_FACTS)
    assert str(error).splitlines() == [
        f'the job failed ({known})',
        'stdout: /w/1.out',
        'stderr: /w/1.err; last lines of stderr:',
        'Traceback',
        'boom',
    ]


def test_job_failed_says_only_what_is_known() -> None:
    """Facts that are unknown do not appear; an exit code of 0 and started=True do not mislead."""
    assert str(JobFailed('the worker died', started=True)) == 'the worker died'
    assert str(JobFailed('gone', job_id='7', exit_code=0)) == 'gone (job 7, exit code 0)'


def test_long_stderr_is_cut_to_its_end() -> None:
    """An error carries all of stderr, but shows the last 20 lines of it."""
    error = JobFailed('x', stderr='\n'.join(f'line {number}' for number in range(1000)))
    assert str(error).splitlines()[1:] == [f'line {number}' for number in range(980, 1000)]
    assert error.stderr.startswith('line 0\n')


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (
            CommandFailed(2, ['ls', 'a b'], '', 'no\n'),
            'command "ls \'a b\'" failed with exit status 2; last lines of stderr:\nno',
        ),
        (CommandFailed(-9, 'sleep 9'), "command 'sleep 9' was killed by signal 9 (SIGKILL)"),
        (CommandFailed(-40, 'x'), "command 'x' was killed by signal 40"),
    ],
)
def test_command_failed_says_command_and_end(error: CommandFailed, text: str) -> None:
    """str() of a CommandFailed names the command, its status or signal, and the tail of stderr."""
    assert str(error) == text


def test_command_failed_is_a_full_called_process_error() -> None:
    """What reads a CalledProcessError finds its usual attributes, bytes included."""
    error = CommandFailed(1, 'x' * 1000, 'out', stderr=b'caf\xe9')  # type: ignore[arg-type]
    assert (error.stdout, error.output, error.returncode) == ('out', 'out', 1)
    assert len(str(error)) < 700
    assert str(error).endswith('caf\ufffd')


def test_remote_error_shows_the_remote_traceback() -> None:
    """str() of a RemoteError ends with the remote traceback where there is one."""
    assert str(RemoteError('no', traceback='T\n  E\n')) == 'no\n\nT\n  E'
    assert str(RemoteError('no')) == 'no'


def test_submit_error_shows_sbatch_words() -> None:
    """str() of a SubmitError ends with sbatch's own words."""
    error = SubmitError('sbatch refused the job', stderr='invalid partition', returncode=1)
    assert str(error) == 'sbatch refused the job; last lines of stderr:\ninvalid partition'
