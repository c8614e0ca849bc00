"""Memory that a supervisor and its child share, so that no call costs them a conversation.

The child notes which call it begins; whatever kills it, the supervisor can read whom to blame. The
supervisor marks calls that are not wanted any more, or has the child start none at all.
"""

from __future__ import annotations

import mmap
import struct
from collections import namedtuple

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import Optional

_NOW = struct.Struct('<qdqq')
_PID = struct.Struct('<q')
_COMMAND = _NOW.size
_STOP = _COMMAND + _PID.size
_UNWANTED = _STOP + 1
_NONE = -1


class Begun(namedtuple('Begun', 'call at out err')):
    """A call under way.

    Attributes:
        call: its number.
        at: when it began, in seconds since 1970.
        out: bytes of stdout before it.
        err: bytes of stderr before it.
    """

    __slots__ = ()


class Page:
    """The shared memory of one child.

    Args:
        places: how many calls of one command can be marked as unwanted.
    """

    def __init__(self, places: int) -> None:
        self._memory = mmap.mmap(-1, _UNWANTED + places)
        self.end()

    def begin(self, begun: Begun) -> None:
        """Note that a call begins."""
        _NOW.pack_into(self._memory, 0, *begun)

    def end(self) -> None:
        """Note that no call is under way."""
        _NOW.pack_into(self._memory, 0, _NONE, 0.0, 0, 0)

    def begun(self) -> Optional[Begun]:
        """Return the call under way."""
        begun = Begun(*_NOW.unpack_from(self._memory))
        while begun != (again := Begun(*_NOW.unpack_from(self._memory))):
            begun = again  # read while it was written
        return None if begun.call == _NONE else begun

    @property
    def command(self) -> int:
        """The process group of the command under way, which is not the child's; 0: there is none.

        Set by the child, so that the command does not survive it.
        """
        pid: int = _PID.unpack_from(self._memory, _COMMAND)[0]
        return pid

    @command.setter
    def command(self, pid: int) -> None:
        _PID.pack_into(self._memory, _COMMAND, pid)

    def stop(self) -> None:
        """Have the child start no further call of its command."""
        self._memory[_STOP] = 1

    def resume(self) -> None:
        """Take `stop` back."""
        self._memory[_STOP] = 0

    @property
    def stopped(self) -> bool:
        """Whether no further call is to start."""
        return self._memory[_STOP] == 1

    def discard(self, place: int) -> None:
        """Mark a call as not wanted any more."""
        self._memory[_UNWANTED + place] = 1

    def is_unwanted(self, place: int) -> bool:
        """Return whether a call is not wanted any more."""
        return self._memory[_UNWANTED + place] == 1
