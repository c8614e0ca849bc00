"""Processes by pid and start time, so that a recycled pid is never mistaken for a daemon."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cluster.layout import ClusterError

PAUSE_S = 0.03


@dataclasses.dataclass(frozen=True)
class Process:
    """One process for as long as it lives.

    Attributes:
        pid: process id.
        started: start time in clock ticks since boot, field 22 of /proc/PID/stat.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this pid now.

        Raises:
            ProcessLookupError: there is none.
        """
        return cls(pid, int(_stat(pid)[19]))

    @classmethod
    def read(cls, path: Path) -> Process | None:
        """The living process that a pid file names, or None."""
        try:
            pid, started = map(int, path.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        process = cls(pid, started)
        return process if process.alive() else None

    def write(self, path: Path) -> None:
        """Make a pid file that `read` understands."""
        path.write_text(f'{self.pid} {self.started}\n')

    def alive(self) -> bool:
        """Whether it runs; a zombie that nobody has reaped yet does not."""
        try:
            stat = _stat(self.pid)
        except ProcessLookupError:
            return False
        return int(stat[19]) == self.started and stat[0] not in 'ZX'

    def signal(self, number: int) -> None:
        """Send a signal; a process that has gone is no error."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, patience: float) -> None:
        """TERM, then KILL after `patience` seconds; returns when it has gone."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not eventually(lambda: not self.alive(), patience):
            self.kill()

    def kill(self) -> None:
        """KILL, and wait until it has gone.

        Raises:
            ClusterError: the kernel does not let it go.
        """
        self.signal(signal.SIGKILL)
        if not eventually(lambda: not self.alive(), 10):
            raise ClusterError(f'process {self.pid} does not die')


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (the command's name may hold spaces)."""
    try:
        text = Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f'no process {pid}') from None
    return text.rpartition(')')[2].split()


def descendants(roots: set[int]) -> set[int]:
    """Pids of the children, grandchildren and so on of `roots`."""
    parents = {}
    for pid in running():
        with contextlib.suppress(ProcessLookupError):
            parents[pid] = int(_stat(pid)[1])
    found: set[int] = set()
    fresh = roots
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def running() -> list[int]:
    """Pids of all processes."""
    return [int(entry.name) for entry in Path('/proc').iterdir() if entry.name.isdigit()]


def environment(pid: int) -> list[bytes]:
    """The environment a process was started with; empty when it has gone."""
    try:
        return Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
    except OSError:
        return []


def listening(port: int) -> bool:
    """Whether a TCP server listens on a local IPv4 port, seen without connecting to it."""
    suffix, listen = f':{port:04X}', '0A'
    rows = [line.split() for line in Path('/proc/net/tcp').read_text().splitlines()[1:]]
    return any(row[1].endswith(suffix) and row[3] == listen for row in rows)


def free_ports() -> int:
    """First of 100 ports, below those that the kernel hands out, on which nobody listens."""
    for first in range(20000, 32000, 100):
        if not any(listening(port) for port in range(first, first + 100)):
            return first
    raise ClusterError('no 100 free ports between 20000 and 32000')


def eventually(condition: Callable[[], bool], patience: float) -> bool:
    """Whether the condition comes true within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_S)
    return True
