"""Runs commands of `run()` in the child of a login worker."""

from __future__ import annotations

import os
import signal
import subprocess

from .page import Page
from .protocol import Header
from .results import Outcome, describe_error

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import List, NoReturn, Optional, Tuple

TERM_TIMEOUT = 2.0
"""Seconds that a command has between SIGTERM and SIGKILL when its time is up."""

KILL_TIMEOUT = 0.5
"""Seconds that its output may take to end after SIGKILL."""


class _Killed(BaseException):
    """The supervisor wants the command under way to end."""


def run_command(command: Header, body: bytes, page: Page) -> Outcome:
    """Run a command; return its outcome. When the supervisor ends it, this process ends too."""
    early: List[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
    try:
        process = _start(command)
    except (OSError, ValueError) as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return describe_error(error, 'run')
    page.command = process.pid
    try:
        signal.signal(signal.SIGTERM, _raise_killed)
        if early:
            _raise_killed()
        kind, out, err = _communicate(process, body, command['timeout'])
    except _Killed:
        _end(process)
        _die()
    page.command = 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    header = {'kind': kind, 'returncode': process.returncode, 'sizes': [len(out), len(err)]}
    return header, out + err


def _start(command: Header) -> subprocess.Popen[bytes]:
    argv = command['argv']
    if isinstance(argv, str):
        argv = ['/bin/bash' if os.path.exists('/bin/bash') else '/bin/sh', '-c', argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        argv,
        cwd=command['cwd'],
        env=dict(os.environ, **command['env']),
        stdin=pipe if command['has_input'] else subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        # What it leaves running must not be in the group that goes with this process.
        start_new_session=True,
    )


def _communicate(
    process: subprocess.Popen[bytes], body: bytes, timeout: Optional[float]
) -> Tuple[str, bytes, bytes]:
    """Wait for a command; return how it ended and what it printed."""
    try:
        out, err = process.communicate(body or None, timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        return 'timeout', out, err
    return 'completed', out, err


def _raise_killed(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Killed


def _die() -> NoReturn:
    """End as the supervisor wanted."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(128 + signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> Tuple[bytes, bytes]:
    """End a command and what it started; return what it had printed."""
    out = err = b''
    for number, patience in ((signal.SIGTERM, TERM_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)):
        os.killpg(process.pid, number)
        try:
            return process.communicate(timeout=patience)
        except subprocess.TimeoutExpired as late:
            out, err = late.stdout or b'', late.stderr or b''
    return out, err  # somebody has left the group and holds the pipes
