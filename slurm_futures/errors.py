"""Every exception that slurm_futures raises on its own account.

SlurmFuturesError
├ ConfigError(ValueError)            a setting, a resource or a script that cannot work
├ ConnectionFailed(ConnectionError)  no byte stream to the login node
│ ├ AuthenticationFailed             a host refused who we are
│ └ HostKeyRejected                  we refused who a host is
├ CommandFailed(CalledProcessError)  run(check=True), and the command failed
├ SubmitError                        sbatch refused the job
├ JobFailed                          a job, or a call in it, ended without a value
│ ├ JobCancelled                     killed by us, or cancelled from outside
│ ├ TimeLimit                        Slurm ended it at its time limit
│ ├ OutOfMemory                      ended for its memory
│ ├ NodeFail                         its node failed
│ ├ Preempted                        a job of higher priority took its place
│ ├ JobLost                          Slurm no longer knows it, and it left no outcome
│ ├ WorkerDied                       the process that ran the call died (segfault, kill -9)
│ └ CallLost                         it may have run; what came of it is unknown
├ RemoteError                        an exception that cannot be rebuilt here, as text
│ └ RemoteImportError(ImportError)   a module that is missing over there
├ PythonVersionMismatch              python_cmd is another minor version than ours
├ Unkeyable(TypeError)               a value that no stable key can be made of
├ JournalError                       the journal cannot be read, written or owned
└ ExecutorBroken(BrokenExecutor)     the executor is unusable, never one call's death

Each survives pickling and copying with all its attributes: whatever follows the message has a
default, so that BaseException's own ``__reduce__`` (class, args, then ``__dict__``) can rebuild it.
"""

from __future__ import annotations

import shlex
from concurrent.futures import BrokenExecutor
from signal import Signals
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slurm_futures.remote.states import JobState

__all__ = [
    'AuthenticationFailed',
    'CallLost',
    'CommandFailed',
    'ConfigError',
    'ConnectionFailed',
    'ExecutorBroken',
    'HostKeyRejected',
    'JobCancelled',
    'JobFailed',
    'JobLost',
    'JournalError',
    'NodeFail',
    'OutOfMemory',
    'Preempted',
    'PythonVersionMismatch',
    'RemoteError',
    'RemoteImportError',
    'SlurmFuturesError',
    'SubmitError',
    'TimeLimit',
    'Unkeyable',
    'WorkerDied',
]


_TAIL_LINES = 20
_TAIL_CHARACTERS = 4000
_COMMAND_CHARACTERS = 500


class SlurmFuturesError(Exception):
    """Base of everything below: ``except SlurmFuturesError`` catches what this library raises."""


class ConfigError(SlurmFuturesError, ValueError):
    """A setting, a resource or a script that cannot work; the message says what to change."""


class ConnectionFailed(SlurmFuturesError, ConnectionError):
    """There is no connection to the login node, and none could be made."""


class AuthenticationFailed(ConnectionFailed):
    """A host on the way refused our keys, password or one-time code."""


class HostKeyRejected(ConnectionFailed):
    """A host on the way showed a key that is unknown or has changed."""


class CommandFailed(SlurmFuturesError, CalledProcessError):
    """A command ended with a status other than 0; also a ``subprocess.CalledProcessError``.

    Attributes:
        returncode: Exit status; negative: the number of the signal that killed it.
        cmd: The command as it was given, a string or a sequence of arguments.
        output: What it wrote to stdout, or None (also as ``stdout``).
        stderr: What it wrote to stderr, or None.
    """

    def __init__(
        self, returncode: int, cmd: Any, output: str | None = None, stderr: str | None = None
    ) -> None:
        super().__init__(returncode, cmd, output, stderr)
        # Given by keyword, they would be missing from args, and unpickling calls the class with
        # args.
        self.args = (returncode, cmd, output, stderr)

    def __str__(self) -> str:
        ended = f'failed with exit status {self.returncode}'
        if self.returncode < 0:
            ended = f'was killed by {_signal_name(-self.returncode)}'
        return _with_stderr(f'command {_command_text(self.cmd)} {ended}', self.stderr)


class SubmitError(SlurmFuturesError):
    """The job was not submitted: sbatch refused it, or could not be run.

    Attributes:
        stderr: sbatch's own words.
        returncode: sbatch's exit status; None: it was never run, or never answered.
    """

    def __init__(self, message: str, *, stderr: str = '', returncode: int | None = None) -> None:
        super().__init__(message)
        self.stderr = stderr
        self.returncode = returncode

    def __str__(self) -> str:
        return _with_stderr(super().__str__(), self.stderr)


class JobFailed(SlurmFuturesError):
    """A job, or a call within one, ended without a value.

    Attributes:
        job_id: Slurm's id, '123' or '123_7' for an array task; None where no job was involved (a
            login-node call).
        state: Slurm's last word on the job; None: it gave none.
        exit_code: Exit status, 0 to 255; None: unknown, or ended by a signal.
        signal: Number of the signal that ended it; None: unknown, or none did.
        node: Name of the node it ran on; None: unknown.
        reason: Slurm's reason (squeue's %r), or what the worker saw.
        stderr: The last lines of its stderr; '' where there were none or the file was out of reach.
        stdout_path: Path of its stdout on the cluster.
        stderr_path: Path of its stderr on the cluster.
        started: True: the call began. False: it provably never began. None: unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        state: JobState | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        node: str | None = None,
        reason: str | None = None,
        stderr: str = '',
        stdout_path: str | None = None,
        stderr_path: str | None = None,
        started: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.state = state
        self.exit_code = exit_code
        self.signal = signal
        self.node = node
        self.reason = reason
        self.stderr = stderr
        self.stdout_path = stdout_path
        self.stderr_path = stderr_path
        self.started = started

    def __str__(self) -> str:
        details = self._details()
        text = super().__str__() + (f' ({", ".join(details)})' if details else '')
        for name, path in (('stdout', self.stdout_path), ('stderr', self.stderr_path)):
            text += f'\n{name}: {path}' if path else ''
        return _with_stderr(text, self.stderr)

    def _details(self) -> list[str]:
        """Return what is known of the job's end, in the order in which one asks for it."""
        facts = (
            (f'job {self.job_id}', self.job_id),
            (getattr(self.state, 'value', self.state), self.state),
            (f'exit code {self.exit_code}', self.exit_code is not None),
            (f'killed by {_signal_name(self.signal or 0)}', self.signal),
            (f'on node {self.node}', self.node),
            (f'reason: {self.reason}', self.reason),
            ('it never began', self.started is False),
        )
        return [str(text) for text, known in facts if known]


class JobCancelled(JobFailed):
    """The job or call was killed by its future's kill(), or cancelled from outside (scancel)."""


class TimeLimit(JobFailed):
    """Slurm ended the job when it reached its time limit (state TIMEOUT or DEADLINE)."""


class OutOfMemory(JobFailed):
    """The job used more memory than it had asked for (state OUT_OF_MEMORY)."""


class NodeFail(JobFailed):
    """The job's node failed or did not boot (state NODE_FAIL or BOOT_FAIL)."""


class Preempted(JobFailed):
    """A job of higher priority took the job's place (state PREEMPTED)."""


class JobLost(JobFailed):
    """Slurm no longer knows the job, and it left no outcome within the grace period."""


class WorkerDied(JobFailed):
    """The process that ran the call died under it; on the login node, job_id is None."""


class CallLost(JobFailed):
    """The call may have run; nobody can tell any more what came of it."""


class RemoteError(SlurmFuturesError):
    """An exception raised on the cluster that cannot be rebuilt here.

    Attributes:
        traceback: The remote traceback as text; '' where there is none.
    """

    def __init__(self, message: str, *, traceback: str = '') -> None:
        super().__init__(message)
        self.traceback = traceback

    def __str__(self) -> str:
        text = super().__str__()
        return f'{text}\n\n{self.traceback.rstrip()}' if self.traceback.strip() else text


class RemoteImportError(RemoteError, ImportError):
    """A module that the call needs is missing on the cluster; also an ``ImportError``.

    Attributes:
        name: The missing module, or None.
    """

    def __init__(self, message: str, *, name: str | None = None, traceback: str = '') -> None:
        super().__init__(message, traceback=traceback)
        self.name = name


class PythonVersionMismatch(SlurmFuturesError):
    """python_cmd is another minor version of Python, which cannot run the code that we pickle.

    Attributes:
        client: Version of the client's Python, as '3.11'.
        remote: Version of the cluster's Python, as '3.9'.
    """

    def __init__(self, message: str, *, client: str = '', remote: str = '') -> None:
        super().__init__(message)
        self.client = client
        self.remote = remote


class Unkeyable(SlurmFuturesError, TypeError):
    """No stable key can be made of a value: a part of it is bound to this process.

    Attributes:
        path: Where that part is, as an expression: "args[0]['model'].lock".
        kind: Its type, as '_thread.lock'.
    """

    def __init__(self, message: str, *, path: str = '', kind: str = '') -> None:
        super().__init__(message)
        self.path = path
        self.kind = kind


class JournalError(SlurmFuturesError):
    """The journal cannot be read or written, or somebody else owns it."""


class ExecutorBroken(SlurmFuturesError, BrokenExecutor):
    """The executor is unusable: its polling thread failed. Never one call's death."""


def _with_stderr(text: str, stderr: str | bytes | None) -> str:
    """Return ``text``, followed by the last lines of ``stderr`` where there are any."""
    words = stderr.decode(errors='replace') if isinstance(stderr, bytes) else stderr or ''
    lines = words[-_TAIL_CHARACTERS:].rstrip().splitlines()[-_TAIL_LINES:]
    return '\n'.join([f'{text}; last lines of stderr:', *lines]) if lines else text


def _command_text(cmd: Any) -> str:
    """Return ``cmd`` as one would type it, cut where it would bury the rest of the message."""
    text = cmd if isinstance(cmd, str) else shlex.join(map(str, cmd))
    return repr(text if len(text) <= _COMMAND_CHARACTERS else text[:_COMMAND_CHARACTERS] + '...')


def _signal_name(number: int) -> str:
    """Return 'signal 9 (SIGKILL)'; numbers without a name (real-time signals) stay numbers."""
    try:
        return f'signal {number} ({Signals(number).name})'
    except ValueError:
        return f'signal {number}'
