"""What tests and the calls that they send to the cluster use to wait for each other.

Both see the same file system. Calls get these objects as arguments: they are pickled by value,
because a worker need not be able to import the tests.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import cloudpickle

from cluster.processes import eventually

PATIENCE_S = 60.0
PAUSE_S = 0.02

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Gate:
    """A door that calls wait at until the test opens it.

    Args:
        path: a name in an existing folder.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)

    def pass_through(self, name: object = '') -> None:
        """Called on the cluster: say that ``name`` is here, and wait until the door is open."""
        Path(f'{self._path}.at-{name}').touch()
        _wait_for(self._path)

    def await_arrival(self, *names: object) -> None:
        """Wait until calls with these names stand at the door."""
        for name in names or ('',):
            _wait_for(f'{self._path}.at-{name}')

    def has_arrived(self, name: object = '') -> bool:
        """Whether a call with this name has come to the door."""
        return Path(f'{self._path}.at-{name}').exists()

    def open(self) -> None:
        """Let everybody through from now on."""
        Path(self._path).touch()

    @property
    def shell(self) -> str:
        """A command line for bash that does what `pass_through` does."""
        return self.shell_as('')

    def shell_as(self, name: str) -> str:
        """The same under a name, in which bash expands variables."""
        path = shlex.quote(self._path)
        return f'touch {path}.at-"{name}"; until [ -e {path} ]; do sleep {PAUSE_S}; done'


class Record:
    """A file that calls write lines to, each of them whole, however many write at once.

    Args:
        path: a name in an existing folder.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)

    def add(self, line: object) -> None:
        """Called on the cluster: add a line."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f'{line}\n'.encode())
        os.close(descriptor)

    def lines(self) -> list[str]:
        """What has been written so far."""
        path = Path(self._path)
        return path.read_text().splitlines() if path.exists() else []


def has_ended(*pids: int | str) -> bool:
    """Whether these processes come to their ends; waits for it."""
    return eventually(lambda: not any(map(_lives, pids)), 10)


def _lives(pid: int | str) -> bool:
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(')')[2].split()[0] not in 'ZX'


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f'there is no {path} after {PATIENCE_S:g} s')
        time.sleep(PAUSE_S)
