"""Stand-ins for what the client's machinery talks to: clocks, futures' controllers, agents.

Nothing here runs by itself. A test moves the clock, and the agent does something only when its
turn comes, so that the same things happen in the same order every time.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from slurm_futures.futures import JobFuture
from slurm_futures.remote.protocol import Inbox, encode, frames

Message = tuple[dict[str, Any], bytes]

PATIENCE_S = 20.0
"""Seconds after which what a test waits for counts as never happening."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Controller:
    """What a future needs of a core, noting what it is asked.

    Attributes:
        asked: the names of the methods that were called, in order.
        refuse_blocking: whether waiting is an error, as it is in the polling thread.
        forked: whether nothing works any more, as in a forked child.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuse_blocking = False
        self.forked = False

    def check_usable(self) -> None:
        """Raise what a forked child gets."""
        if self.forked:
            raise RuntimeError('forked')

    def check_may_block(self, what: str) -> None:
        """Raise what a done-callback gets."""
        if self.refuse_blocking:
            raise RuntimeError(what)

    def cancelled(self, future: JobFuture[Any]) -> None:
        """Note it."""
        self.asked.append('cancelled')

    def kill(self, future: JobFuture[Any]) -> None:
        """Note it."""
        self.asked.append('kill')

    def call_back(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """Call it."""
        self.asked.append('call_back')
        fn(future)

    def read_log(self, future: JobFuture[Any], stream: int, limit: int) -> str:
        """Return what was asked for."""
        return f'stream {stream}, {limit} bytes'


# ---- the wire


class Stream:
    """The client's end of a line: a byte stream whose other end is an `Agent`'s."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._end.fileno()

    def write_fileno(self) -> int | None:
        """Return the descriptor to wait for."""
        return self._end.fileno()

    def recv(self, size: int) -> bytes:
        """Return what the agent has sent."""
        return self._end.recv(size)

    def send(self, data: memoryview) -> int:
        """Send to the agent."""
        return self._end.send(data)

    def stderr(self) -> str:
        """Return what the agent wrote to stderr."""
        return 'last words'

    def close(self) -> None:
        """Close the client's end."""
        self.closed = True
        self._end.close()


class Wire:
    """An agent's end of a line, up to its hello.

    Args:
        marker: what it has to say first.
        hello: its first message; None: it never says anything.
        early: messages that come together with the hello.
    """

    def __init__(
        self, marker: str, hello: Mapping[str, Any] | None, early: Sequence[Message] = ()
    ) -> None:
        client, self._end = socket.socketpair()
        for end in (client, self._end):
            end.setblocking(False)
        self.stream = Stream(client)
        self._inbox = Inbox()
        self._payload: bytearray | None = bytearray()
        self._unsent = b''
        self._channels = itertools.count(1)
        if hello is not None:
            messages = [(dict(hello), b''), *early]
            data = b''.join(encode(header, body) for header, body in messages)
            self._write(f'a banner with {marker} in it\n\n{marker} ready\n'.encode() + data)

    def _write(self, data: bytes) -> None:
        self._unsent += data
        with contextlib.suppress(OSError):  # full, or the client is gone
            while self._unsent:
                self._unsent = self._unsent[self._end.send(self._unsent) :]

    def say(self, header: Mapping[str, Any], body: bytes = b'') -> None:
        """Send a message."""
        self._write(b''.join(frames(next(self._channels), dict(header), body)))

    def babble(self, data: bytes) -> None:
        """Send bytes that are no message."""
        self._write(data)

    def listen(self) -> list[Message]:
        """Return the messages that have arrived since the last time."""
        self._write(b'')
        data = b''
        with contextlib.suppress(OSError):
            while more := self._end.recv(2**20):
                data += more
        return self._inbox.feed(self._behind_payload(data))

    def _behind_payload(self, data: bytes) -> bytes:
        """Skip the agent's source, which comes before all messages."""
        if self._payload is None:
            return data
        self._payload += data
        if len(self._payload) < 12 or len(self._payload) < 12 + int(self._payload[:12]):
            return b''
        rest = bytes(self._payload[12 + int(self._payload[:12]) :])
        self._payload = None
        return rest

    def cut(self) -> None:
        """Break the line."""
        self._end.close()

    @property
    def is_cut(self) -> bool:
        """Whether the line is broken."""
        return self._end.fileno() < 0


HELLO = {
    'event': 'hello',
    'work_dir': '/work',
    'folder': '/work/.slurm_futures/runs/run1',
    'entry': '/lib/entry.py',
    'library': '/lib',
    'python': list(sys.version_info[:3]),
    'host': 'login1',
}


class Transport:
    """Opens lines to agents on a cluster.

    Attributes:
        wires: all lines so far, the newest one last.
        refusals: errors to be raised instead, for the next ones.
        early: messages that come together with the next hello.
    """

    def __init__(self, hello: Mapping[str, Any] | None = None) -> None:
        self.wires: list[Wire] = []
        self.refusals: list[BaseException] = []
        self.early: list[Message] = []
        self.hello = dict(HELLO) if hello is None else hello

    def open(self, command: Sequence[str]) -> Stream:
        """Start an agent."""
        if self.refusals:
            raise self.refusals.pop(0)
        early, self.early = self.early, []
        self.wires.append(Wire(command[-1], self.hello, early))
        return self.wires[-1].stream

    def describe(self) -> str:
        """Return what to call the login node."""
        return 'login1'
