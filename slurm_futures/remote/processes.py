"""Processes as Linux tells of them: which one it is, whether it lives, what it has started."""

from __future__ import annotations

import os
from typing import Dict, NamedTuple, Optional, Set

_STATE, _PARENT, _SESSION, _START = 0, 1, 3, 19
"""Places in /proc/PID/stat behind the command's name: proc(5)."""

_ROUNDS = 3


class Stat(NamedTuple):
    """What is known of a process.

    Attributes:
        state: a letter; ``Z`` and ``X``: it has ended.
        parent: the process that it is a child of.
        session: the process that has started its session.
        start: when it was started, in clock ticks since boot.
    """

    state: str
    parent: int
    session: int
    start: str

    @property
    def ended(self) -> bool:
        """Whether it has ended, though perhaps nobody has taken note of it yet."""
        return self.state in 'ZX'


def read_stat(pid: int) -> Optional[Stat]:
    """Return what is known of a process; None if there is none."""
    try:
        # In bytes: the command's name need not be text.
        with open(f'/proc/{pid}/stat', 'rb') as file:
            words = file.read().rpartition(b')')[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(words[_STATE], int(words[_PARENT]), int(words[_SESSION]), words[_START])


def boot_id() -> str:
    """Return what no other boot of any machine has."""
    with open('/proc/sys/kernel/random/boot_id') as file:
        return file.read().strip()


def process_identity(pid: int) -> str:
    """Return what no other process has, on any host and at any time: host, boot, pid, start.

    Raises:
        ProcessLookupError: there is no such process.
    """
    stat = read_stat(pid)
    if stat is None:
        raise ProcessLookupError(f'no process {pid}')
    return f'{os.uname().nodename}:{boot_id()}:{pid}:{stat.start}'


def is_alive(identity: str) -> Optional[bool]:
    """Return whether a process of this host lives; None for one of another host."""
    host, boot, pid, start = identity.rsplit(':', 3)
    if host != os.uname().nodename:
        return None
    stat = read_stat(int(pid))
    return stat is not None and not stat.ended and stat.start == start and boot == boot_id()


def members(session: int) -> Set[int]:
    """Return the living processes of a session, and all that these have started.

    What has left the session is found as long as who started it lives.
    """
    table = _all_processes()
    # The leader itself may not have come to the making of its session.
    found = {pid for pid, stat in table.items() if session in (pid, stat.session)}
    fresh = found
    while fresh:
        fresh = {pid for pid, stat in table.items() if stat.parent in fresh} - found
        found |= fresh
    return {pid for pid in found if not table[pid].ended}


def _all_processes() -> Dict[int, Stat]:
    table = {}
    for name in os.listdir('/proc'):
        stat = read_stat(int(name)) if name.isdigit() else None
        if stat is not None:
            table[int(name)] = stat
    return table


def send_signals(session: int, *numbers: int) -> None:
    """Send signals, one after the other, to all members of a session.

    Those that a member has started meanwhile get them, too.
    """
    told: Set[int] = set()
    for _ in range(_ROUNDS):
        fresh = members(session) - told
        for number in numbers:
            for pid in fresh:
                try:
                    os.kill(pid, number)
                except (ProcessLookupError, PermissionError):
                    continue  # dead already; or somebody else's, such as sudo
        told |= fresh
        if not fresh:
            break
