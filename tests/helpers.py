"""What the tests of the cluster-side machinery share: waiting, interpreters, spools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slurm_futures import payload
from slurm_futures.remote.protocol import encode_calls
from slurm_futures.remote.spool import Spool, read_header

T = TypeVar('T')

PATIENCE = 20.0
"""Seconds after which what a test waits for counts as never happening."""


def wait_for(condition: Callable[[], T], timeout: float = PATIENCE) -> T:
    """Return the first true value of a condition that is asked again and again."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f'still not so after {timeout:g} s')
        time.sleep(0.005)
    return value


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, though perhaps nobody has taken note of it yet."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and that have not ended."""
    return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def find_python(version: str) -> str | None:
    """Return an interpreter of a version such as '3.8' that this user may run, if there is one."""
    pyenv = Path(os.environ.get('PYENV_ROOT', '~/.pyenv')).expanduser()
    candidates = [shutil.which(f'python{version}')]
    candidates += map(str, sorted(pyenv.glob(f'versions/{version}.*/bin/python')))
    code = 'import sys; sys.stdout.write("%d.%d" % sys.version_info[:2])'
    for candidate in candidates:
        if candidate is None:
            continue
        done = subprocess.run([candidate, '-c', code], capture_output=True, text=True, check=False)
        if done.stdout == version:
            return candidate
    return None


def read_messages(spool: Spool) -> list[tuple[dict[str, Any], bytes]]:
    """Return the messages in ``new/``, oldest first."""
    messages = []
    for name in sorted(listed(spool, 'new'), key=lambda name: name.split('-')[1]):
        path = spool.path('new', name)
        header, start = read_header(path)
        messages.append((header, Path(path).read_bytes()[start:]))
    return messages


def read_items(spool: Spool) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield what the messages report of calls, in the order of the reports."""
    for header, body in read_messages(spool):
        start = 0
        for item in header.get('items', ()):
            end = start + item.get('size', 0)
            yield item, body[start:end]
            start = end


def outcomes(spool: Spool) -> dict[int, tuple[dict[str, Any], bytes]]:
    """Return what became of each call; each must have one outcome."""
    found: dict[int, tuple[dict[str, Any], bytes]] = {}
    for item, body in read_items(spool):
        if item['event'] == 'outcome':
            assert item['call'] not in found, f'two outcomes of call {item["call"]}'
            found[item['call']] = item, body
    return found


def listed(spool: Spool, kind: str) -> list[str]:
    """Return the names in one of the spool's folders."""
    return sorted(path.name for path in Path(spool.path(kind)).iterdir())


def member(spool: Spool, name: str) -> list[Any]:
    """Return a member of all messages that have it."""
    return [header[name] for header, _ in read_messages(spool) if name in header]


class Bench:
    """A spool, and processes on it that believe that Slurm has started them.

    Args:
        folder: where to make it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cwd = folder / 'cwd'
        self.cwd.mkdir()
        self.spool = Spool(str(folder / 'spool'))
        self.spool.create()
        self._processes: list[subprocess.Popen[bytes]] = []

    def write_calls(
        self, *calls: tuple[Callable[..., Any], Any], chunksize: int = 0, **facts: Any
    ) -> None:
        """Write batch 1: functions and their arguments, numbered from 10; one task, by default."""
        header = {
            'first': 10,
            'cwd': str(self.cwd),
            'python': list(sys.version_info[:2]),
            'sys_path': [],
            'modules': None,
            'chunksize': chunksize or len(calls),
            **facts,
        }
        functions = [payload.dump_function(function) for function, _ in calls]
        args = [(index, payload.dump_arguments(call[1], {})) for index, call in enumerate(calls)]
        self.spool.write('calls', '1.calls', encode_calls(header, functions, args))
        Path(self.spool.path('calls', '1.cancel')).touch()

    def order(self, how: str, call: int) -> None:
        """Tell the batch's tasks to cancel or kill a call."""
        with Path(self.spool.path('calls', '1.cancel')).open('a') as file:
            file.write(f'{how} {call}\n')

    def start(
        self, command: Sequence[str], slurm: Mapping[str, str], env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process as slurmstepd does: its own session, logs, Slurm's variables."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'SBATCH_'))}
        with self.log('out').open('ab') as out, self.log('err').open('ab') as err:
            process = subprocess.Popen(
                command,
                env={**variables, **slurm, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def log(self, kind: str) -> Path:
        """Return the path of the log: 'out' or 'err'."""
        return Path(self.spool.path('logs', f'1_0.{kind}'))

    def close(self) -> None:
        """End what is left of the processes."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def slurm_variables(job: str = '100', restart: int = 0, task: int | None = None) -> dict[str, str]:
    """Return what Slurm puts into a job's environment."""
    variables = {'SLURM_JOB_ID': job}
    if task is not None:
        variables = {
            'SLURM_JOB_ID': str(int(job) + task + 1),
            'SLURM_ARRAY_JOB_ID': job,
            'SLURM_ARRAY_TASK_ID': str(task),
        }
    if restart:
        variables['SLURM_RESTART_COUNT'] = str(restart)
    return variables


def python_command(code: str, *args: str) -> list[str]:
    """Return the command that runs a program which may import what this process may import."""
    prologue = f'import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n'
    return [sys.executable, '-c', prologue + code, *args]
