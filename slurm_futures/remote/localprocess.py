"""Starts the scripts of the embedded queue as slurmd does: environment, files, folder, session."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import Dict, List, Mapping, NamedTuple, NoReturn, Sequence

from .localjob import Job

NO_TASK = 4294967294
"""What Slurm makes of ``%a`` in a job that is no array: NO_VAL (measured, 22.05)."""

_WIDEST = 10
_PATTERN = re.compile(r'%(?P<width>\d*)(?P<letter>[%AJNajnstux])', re.ASCII)

_FALLBACK = '/tmp'  # noqa: S108 - where slurmd runs a job whose folder is missing (measured, 22.05)


class Node(NamedTuple):
    """Where jobs run, and as whom."""

    host: str
    user: str


def variables(job: Job, index: int, node: Node) -> Dict[str, str]:
    """Return what Slurm puts into the environment of a batch script (measured, 22.05)."""
    spec, host, raw_id = job.spec, node.host, str(job.raw_id(index))
    cpus = str((spec.cpus or 1) * (spec.ntasks or 1))
    found = {
        'ENVIRONMENT': 'BATCH',
        'HOSTNAME': host,
        'SLURMD_NODENAME': host,
        'SLURM_CPUS_ON_NODE': cpus,
        'SLURM_GTIDS': '0',
        'SLURM_JOBID': raw_id,
        'SLURM_JOB_CPUS_PER_NODE': cpus,
        'SLURM_JOB_GID': str(os.getgid()),
        'SLURM_JOB_ID': raw_id,
        'SLURM_JOB_NAME': spec.name,
        'SLURM_JOB_NODELIST': host,
        'SLURM_JOB_NUM_NODES': '1',
        'SLURM_JOB_PARTITION': spec.partition,
        'SLURM_JOB_UID': str(os.getuid()),
        'SLURM_JOB_USER': node.user,
        'SLURM_LOCALID': '0',
        'SLURM_NNODES': '1',
        'SLURM_NODEID': '0',
        'SLURM_NODELIST': host,
        'SLURM_PROCID': '0',
        'SLURM_SUBMIT_DIR': spec.submit_dir,
        'SLURM_SUBMIT_HOST': host,
        'SLURM_TASKS_PER_NODE': str(spec.ntasks or 1),
    }
    if spec.cpus:
        found['SLURM_CPUS_PER_TASK'] = str(spec.cpus)
    if spec.ntasks:
        found['SLURM_NPROCS'] = found['SLURM_NTASKS'] = str(spec.ntasks)
    if spec.array:
        found.update(
            SLURM_ARRAY_JOB_ID=str(job.number),
            SLURM_ARRAY_TASK_COUNT=str(len(job.indices)),
            SLURM_ARRAY_TASK_ID=str(index),
            SLURM_ARRAY_TASK_MAX=str(job.indices[-1]),
            SLURM_ARRAY_TASK_MIN=str(job.indices[0]),
            SLURM_ARRAY_TASK_STEP=str(spec.step),
        )
    return found


def file_name(pattern: str, job: Job, index: int, node: Node) -> str:
    """Return the path that a file name pattern stands for (sbatch(1); measured, 22.05).

    Numbers between % and the letter pad numbers only; a backslash switches everything off.
    """
    if '\\' in pattern:
        return os.path.join(job.spec.cwd, pattern.replace('\\', '', 1))
    values = {
        '%': '%',
        'A': job.number,
        'J': job.raw_id(index),
        'N': node.host,
        'a': index if job.spec.array else NO_TASK,
        'j': job.raw_id(index),
        'n': 0,
        's': 'batch',
        't': 0,
        'u': node.user,
        'x': job.spec.name,
    }

    def fill(match: re.Match[str]) -> str:
        value = values[match['letter']]
        width = min(int(match['width'] or 0), _WIDEST)
        return f'{value:0{width}}' if isinstance(value, int) and width else str(value)

    return os.path.join(job.spec.cwd, _PATTERN.sub(fill, pattern))


class Start(NamedTuple):
    """All that a new process needs to become a job.

    Attributes:
        argv: what it executes.
        environment: its environment.
        cwd: where it runs.
        umask: of its files.
        files: what its stdin, stdout and stderr are.
        append: whether output is added to what is there.
    """

    argv: List[str]
    environment: Mapping[str, str]
    cwd: str
    umask: int
    files: Sequence[str]
    append: bool


def start_of(job: Job, index: int, environment: Mapping[str, str], node: Node) -> Start:
    """Return how a task is started."""
    spec = job.spec
    output = spec.output or ('slurm-%A_%a.out' if spec.array else 'slurm-%j.out')
    patterns = (spec.input, output, spec.error or output)
    return Start(
        argv=['/bin/bash', spec.script],
        environment={**environment, **variables(job, index, node)},
        cwd=spec.cwd,
        umask=spec.umask,
        files=[file_name(pattern, job, index, node) for pattern in patterns],
        append=spec.append,
    )


class Launch:
    """A process that becomes a job as soon as it is let go; if this process dies, it never does.

    Args:
        start: what it is to become.

    Attributes:
        pid: the process, which leads a session of its own.

    Raises:
        OSError: no process can be had.
    """

    def __init__(self, start: Start) -> None:
        self._line, theirs = socket.socketpair()
        # Until it has become the job, a signal to it would be taken for this process's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                self._line.close()  # else it would never see its end
                _become(start, theirs)
        except OSError:
            self._line.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._line.setblocking(False)

    def go(self) -> None:
        """Let the process become the job."""
        self._line.send(b'go')

    def failure(self) -> str:
        """Return why it could not become the job, once it has ended; nothing if it could."""
        try:
            return self._line.recv(4096).decode('utf-8', 'replace')
        except OSError:  # it was killed before it was told to go
            return ''

    def close(self) -> None:
        """Forget the process, which has ended."""
        self._line.close()

    def abandon(self) -> None:
        """Let a process end that has not been told to go."""
        self._line.close()
        os.waitpid(self.pid, 0)


def _become(start: Start, line: socket.socket) -> NoReturn:
    try:
        os.setsid()
        if line.recv(2):
            _execute(start)
    except (OSError, ValueError) as error:
        line.send(str(error).encode('utf-8', 'replace'))
    finally:
        os._exit(1)


def _execute(start: Start) -> NoReturn:
    os.umask(start.umask)
    try:
        os.chdir(start.cwd)
    except OSError:
        os.chdir(_FALLBACK)
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if start.append else os.O_TRUNC)
    for target, (path, flags) in enumerate(zip(start.files, (os.O_RDONLY, mode, mode))):
        descriptor = os.open(path, flags, 0o666)
        os.dup2(descriptor, target)
        os.close(descriptor)
    for number in signal.valid_signals():  # SIGPIPE by Python, SIGINT by a shell's `&`
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(start.argv[0], start.argv, start.environment)
