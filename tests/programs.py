"""Client programs that tests run in processes of their own, interrupt and kill."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.processes import Process, descendants

PRELUDE = """\
import json, os, signal, sys, threading, time
from concurrent.futures import CancelledError, wait
from slurm_futures import *
from waiting import Gate, Record

folder = sys.argv[1]
gate = Gate(folder + '/gate')
record = Record(folder + '/record')


def say(*words):
    print(*words, flush=True)


def make(slurm=None, **settings):
    queue = json.loads(sys.argv[2])
    for system in queue.values():
        system.update(slurm or {})
    settings = {'work_dir': folder, 'grace_period': 1, **settings}
    return SlurmExecutor(queue_system=queue, **settings)


def pass_gate(name):
    gate.pass_through(name)
    record.add(name)
    return name


"""

TERMINAL = """\
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""

PATIENCE_S = 30.0


class Program:
    """A running Python program with an executor.

    It has a session of its own, so that it has nothing to do with the terminal of the tests.

    Args:
        folder: its work_dir.
        queue_system: the executor's queue.
        text: what it does, after PRELUDE.
        terminal: whether it has a terminal; then its input is that.
    """

    def __init__(
        self, folder: Path, queue_system: Mapping[str, Any], text: str, terminal: bool = False
    ) -> None:
        source = folder / 'program.py'
        source.write_text((TERMINAL if terminal else '') + PRELUDE + text)
        python = [sys.executable, '-X', 'faulthandler']
        path = [str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
        self._master: int | None = None
        slave: int = subprocess.DEVNULL
        if terminal:
            self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [*python, str(source), str(folder), json.dumps(queue_system)],
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, 'PYTHONPATH': ':'.join(filter(None, path))},
            cwd=folder,
        )
        if terminal:
            os.close(slave)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, keep))
            for stream, keep in (
                (self._process.stdout, self._lines.put),
                (self._process.stderr, self._errors.append),
            )
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Iterator[str], keep: Callable[[str], None]) -> None:
        for line in stream:
            keep(line.rstrip('\n'))

    def line(self) -> str:
        """The next line that it prints.

        Raises:
            AssertionError: none comes; what it has written to stderr is in the message.
        """
        try:
            return self._lines.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise AssertionError('no line; stderr:\n' + '\n'.join(self._errors)) from None

    def interrupt(self) -> None:
        """Do what Ctrl-C in its terminal does."""
        if self._master is None:
            os.killpg(self._process.pid, signal.SIGINT)
        else:
            os.write(self._master, b'\x03')

    def kill(self) -> None:
        """Send it SIGKILL, and nobody else."""
        self._process.kill()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self, timeout: float = PATIENCE_S) -> int:
        """Wait for its end; return its exit status, negative for a signal.

        Raises:
            AssertionError: it does not end in time.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)
            raise AssertionError(
                f'still there after {timeout:g} s; stderr:\n{self.stderr()}'
            ) from None

    def stderr(self) -> str:
        """What it has written to stderr, all of it; waits for its end."""
        self._process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return '\n'.join(self._errors)

    def lines(self) -> list[str]:
        """What it has printed since the last `line`; waits for its end."""
        self.stderr()
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._lines.get_nowait())
        return found

    def helpers(self) -> list[Process]:
        """The agent and all that it has started."""
        return offspring(self._process.pid)

    def agent(self) -> Process:
        """The agent, its only child."""
        for process in self.helpers():
            status = Path(f'/proc/{process.pid}/status').read_text()
            if f'\nPPid:\t{self._process.pid}\n' in status:
                return process
        raise AssertionError('there is no agent')

    def close(self) -> None:
        """End it, if it has not ended; its agent and workers notice."""
        if self.running:
            self._process.kill()
        self.stderr()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()
        if self._master is not None:
            os.close(self._master)
            self._master = None


def offspring(pid: int) -> list[Process]:
    """All that a process has started, and what that has started."""
    found = []
    for child in descendants({pid}):
        with contextlib.suppress(ProcessLookupError):  # a command, perhaps, which has ended
            found.append(Process.of(child))
    return found
