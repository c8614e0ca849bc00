"""The queues as others see them than the executor: what is in them, and cancelling it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cluster.processes import Process, descendants, running
from slurm_futures import SlurmExecutor
from slurm_futures.remote.localjobs import VERSION
from slurm_futures.remote.localqueue import ask
from slurm_futures.remote.slurm_parsers import JobRow, expand_tasks
from slurm_futures.remote.states import JobState

LOCAL = {'max_jobs': 16}
"""As many as the test cluster has CPUs."""


def quick_queue(name: str, slurm: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the queue system of an executor.

    Args:
        name: 'slurm' or 'local'.
        slurm: settings of Slurm, should it be that.
    """
    settings = {'polling_interval': 0.5, **(slurm or {})}
    return {'slurm': settings} if name == 'slurm' else {'local': LOCAL}


class Outside(Protocol):
    """A queue; of the embedded one there is one for each work folder."""

    def live(self, work_dir: Path) -> list[str]:
        """Return the tasks that have not ended: id and state."""

    def reasons(self, work_dir: Path, job: str) -> set[str]:
        """Return why tasks of a job wait."""

    def cancel(self, work_dir: Path, *ids: str) -> None:
        """Cancel jobs and tasks."""


class SlurmFromOutside:
    """Slurm, by its commands."""

    def live(self, work_dir: Path) -> list[str]:
        """Return all jobs of this user that have not ended."""
        squeue = ['squeue', '--me', '-h', '-r', '-t', 'PD,R,S,CF,CG', '-o', '%i %T']
        return subprocess.check_output(squeue, text=True, timeout=60).splitlines()

    def reasons(self, work_dir: Path, job: str) -> set[str]:
        """Return why tasks of a job wait."""
        squeue = ['squeue', '-h', '-t', 'PD', '-o', '%r', '-j', job]
        return set(subprocess.check_output(squeue, text=True, timeout=60).split())

    def cancel(self, work_dir: Path, *ids: str) -> None:
        """Call scancel."""
        subprocess.run(['scancel', *ids], check=True, timeout=60)


class LocalFromOutside:
    """The embedded queue, by its daemon; where there is none, there are no jobs."""

    def live(self, work_dir: Path) -> list[str]:
        """Return the tasks in a folder's queue that have not ended."""
        return [f'{name} {row.state}' for name, row in local_rows(work_dir) if _is_live(row)]

    def reasons(self, work_dir: Path, job: str) -> set[str]:
        """Return why tasks of a job wait."""
        rows = [row for _, row in local_rows(work_dir) if row.job_id == job]
        return {row.reason for row in rows if row.state == 'PENDING'}

    def cancel(self, work_dir: Path, *ids: str) -> None:
        """Have the daemon cancel them."""
        ask_daemon(work_dir, do='cancel', ids=ids)


def local_rows(work_dir: Path) -> list[tuple[str, JobRow]]:
    """Return what the embedded queue of a work folder tells of its tasks, by id."""
    rows = [JobRow(*row) for row in ask_daemon(work_dir, do='rows').get('rows', ())]
    return [
        (f'{row.job_id}_{index}' if row.tasks else row.job_id, row)
        for row in rows
        for index in (expand_tasks(row.tasks) if row.tasks else [0])
    ]


def ask_daemon(work_dir: Path, **question: Any) -> dict[str, Any]:
    """Return the answer of the daemon of a work folder; nothing if there is none."""
    data = json.dumps({**question, 'version': VERSION}).encode()
    try:
        answer: dict[str, Any] = json.loads(ask(str(queue_folder(work_dir)), data))
    except OSError:
        return {}
    return answer


def queue_folder(work_dir: Path) -> Path:
    """Return where the embedded queue of a work folder has its files."""
    return work_dir / '.slurm_futures' / 'queue' / os.uname().nodename


def daemons(folder: Path) -> list[Process]:
    """Return the daemons that run the embedded queue in a folder: one, or none."""
    alike = {pid for pid in running() if _is_daemon(pid, os.fsencode(folder))}
    found = []
    for pid in alike - descendants(alike):  # what it forks takes its looks for a moment
        with contextlib.suppress(ProcessLookupError):
            found.append(Process.of(pid))
    return found


def _is_daemon(pid: int, folder: bytes) -> bool:
    try:
        words = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
    except OSError:
        return False
    return b'localqueued' in words and folder in words


def daemon(work_dir: Path) -> Process:
    """Return the daemon that runs the embedded queue of a work folder."""
    (found,) = daemons(queue_folder(work_dir))
    return found


def work_dir_of(executor: SlurmExecutor) -> Path:
    """Return the work folder of an executor that has connected."""
    hello: Any = executor._core._dispatcher.hello
    return Path(hello['work_dir'])


def _is_live(row: JobRow) -> bool:
    return JobState[row.state].is_live
