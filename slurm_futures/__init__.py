"""A concurrent.futures.Executor for Slurm clusters."""

from __future__ import annotations

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

__all__ = [
    'AuthenticationFailed',
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
