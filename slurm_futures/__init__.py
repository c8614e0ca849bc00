"""A concurrent.futures.Executor for Slurm clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slurm_futures.config import ExecutorConfig
from slurm_futures.errors import (
    AuthenticationFailed,
    CallLost,
    CommandFailed,
    ConfigError,
    ConnectionFailed,
    ExecutorBroken,
    HostKeyRejected,
    JobCancelled,
    JobFailed,
    JobLost,
    JournalError,
    NodeFail,
    OutOfMemory,
    Preempted,
    PythonVersionMismatch,
    RemoteError,
    RemoteImportError,
    SlurmFuturesError,
    SubmitError,
    TimeLimit,
    Unkeyable,
    WorkerDied,
)
from slurm_futures.executor import SlurmExecutor
from slurm_futures.futures import JobFuture
from slurm_futures.remote.states import JobState
from slurm_futures.reporting import progress
from slurm_futures.resources import Resources

if TYPE_CHECKING:
    from slurm_futures.bash_script import BashGroup, BashScript, BashStep, BashTemplate
else:

    def __getattr__(name: str) -> Any:
        """Import what few programs use; from type checkers it is hidden, as it would say Any."""
        if name in {'BashGroup', 'BashScript', 'BashStep', 'BashTemplate'}:
            from slurm_futures import bash_script

            return getattr(bash_script, name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    'AuthenticationFailed',
    'BashGroup',
    'BashScript',
    'BashStep',
    'BashTemplate',
    'CallLost',
    'CommandFailed',
    'ConfigError',
    'ConnectionFailed',
    'ExecutorBroken',
    'ExecutorConfig',
    'HostKeyRejected',
    'JobCancelled',
    'JobFailed',
    'JobFuture',
    'JobLost',
    'JobState',
    'JournalError',
    'NodeFail',
    'OutOfMemory',
    'Preempted',
    'PythonVersionMismatch',
    'RemoteError',
    'RemoteImportError',
    'Resources',
    'SlurmExecutor',
    'SlurmFuturesError',
    'SubmitError',
    'TimeLimit',
    'Unkeyable',
    'WorkerDied',
    'progress',
]
