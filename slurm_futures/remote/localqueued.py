"""Starts the embedded queue's daemon, so that it outlives whoever has asked for it.

It holds the lock of its folder, and has neither a terminal nor a parent that would wait for it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import sys
from typing import Dict

from .localdaemon import LOCK, Daemon
from .localjobs import OtherVersion

MESSAGES = 1024 * 1024
"""Bytes of its own messages that are kept from one daemon to the next."""

SOCKET = 'socket'

NO_ROOM = 75
"""The exit status when it cannot be started now: EX_TEMPFAIL of sysexits.h."""

_FULL = (errno.EAGAIN, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


def main(folder: str, host: str, settings: Dict[str, float]) -> int:
    """Start the daemon, unless there is one; return the exit status once it can be asked.

    In the daemon itself this returns when it ends.
    """
    answer, tell = os.pipe()
    if os.fork() == 0:
        os.close(answer)
        return _become_daemon(folder, host, settings, tell)
    os.close(tell)
    with open(answer) as file:
        status, _, words = file.read().partition(' ')
    sys.stderr.write(words)
    return int(status or 0)


def _become_daemon(folder: str, host: str, settings: Dict[str, float], tell: int) -> int:
    try:
        os.setsid()
        os.chdir(folder)
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which the jobs do not inherit
        _redirect()
        daemon = Daemon(folder, lock, host, **settings)
        listener = _listen()
    except BlockingIOError:
        return 0  # there is one
    except (OSError, OtherVersion) as error:
        status = NO_ROOM if isinstance(error, OSError) and error.errno in _FULL else 1
        os.write(tell, f'{status} {error}'.encode('utf-8', 'replace'))
        return status
    os.close(tell)
    asyncio.run(daemon.run(listener))
    _remove_socket()  # still under the lock; Python 3.13 may have done it
    return 0


def _redirect() -> None:
    """Let go of all that belongs to whoever has started this process."""
    size = os.path.getsize('messages') if os.path.exists('messages') else 0
    fresh = os.O_TRUNC if size > MESSAGES else 0
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open('messages', os.O_WRONLY | os.O_CREAT | os.O_APPEND | fresh, 0o600)
    for descriptor, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, target)
    os.close(null)
    os.close(file)


def _listen() -> socket.socket:
    """Listen in the working folder, whose path may be too long for the name of a socket."""
    _remove_socket()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen(128)
    return listener


def _remove_socket() -> None:
    try:
        os.unlink(SOCKET)
    except FileNotFoundError:
        pass
