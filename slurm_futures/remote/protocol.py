"""What the client, the agent, the supervisors and their children say to each other, as bytes.

One framing serves every byte stream (client to agent, agent to login worker, supervisor to
child): a *message* is a JSON header and a body of bytes, and travels as frames of at most
``CHUNK`` bytes, each with its channel number, so that a large message never holds up a small one.

The calls of a batch are one file: a header, a fixed-size index and the pickles, so that a task
reads its own range and nothing else.
"""

from __future__ import annotations

import json
import os
import struct
from collections import namedtuple

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Sequence, Tuple

    Header = Dict[str, Any]
    Message = Tuple[Header, bytes]
else:
    Header, Message = dict, tuple

CHUNK = 256 * 1024
"""Bytes of a message sent in one frame."""

LARGE = 1024 * 1024
"""Bodies over this many bytes go through files in the spool, never through a process's memory."""

_FRAME = struct.Struct('>IIB')  # channel, length, 1 for the last frame of a message
_LENGTH = struct.Struct('>I')


def head(header: Header) -> bytes:
    """Return what precedes a message's body on a stream."""
    text = json.dumps(header, separators=(',', ':')).encode()
    return _LENGTH.pack(len(text)) + text


def frame(channel: int, data: bytes, last: bool) -> bytes:
    """Return one frame of a message that is sent piece by piece."""
    return _FRAME.pack(channel, len(data), last) + data


def frames(channel: int, header: Header, body: bytes = b'') -> Iterator[bytes]:
    """Yield the frames of one message."""
    start = head(header)
    if len(start) + len(body) <= CHUNK:
        yield frame(channel, start + body, True)
        return
    for part, is_last in ((start, not body), (body, True)):
        view = memoryview(part)
        for offset in range(0, len(part), CHUNK):
            end = offset + CHUNK
            yield frame(channel, bytes(view[offset:end]), is_last and end >= len(part))


def encode(header: Header, body: bytes = b'') -> bytes:
    """Return one message as bytes, for a stream that carries one message at a time."""
    return b''.join(frames(0, header, body))


class Inbox:
    """Puts messages together from whatever pieces a stream delivers."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts: Dict[int, bytearray] = {}

    def feed(self, data: bytes) -> List[Message]:
        """Take the next bytes of the stream; return the messages they complete."""
        self._buffer += data
        messages = []
        start = 0
        while len(self._buffer) - start >= _FRAME.size:
            channel, length, last = _FRAME.unpack_from(self._buffer, start)
            end = start + _FRAME.size + length
            if len(self._buffer) < end:
                break
            part = self._parts.setdefault(channel, bytearray())
            with memoryview(self._buffer) as view:
                part += view[start + _FRAME.size : end]
            start = end
            if last:
                messages.append(_split(self._parts.pop(channel)))
        if start:
            del self._buffer[:start]
        return messages


def _split(part: bytearray) -> Message:
    (length,) = _LENGTH.unpack_from(part)
    start = _LENGTH.size + length
    header: Header = json.loads(part[_LENGTH.size : start])
    with memoryview(part) as view:
        return header, bytes(view[start:])


class Call(namedtuple('Call', 'fn_start fn_size args_start args_size')):
    """Where a call's function and arguments lie in its batch's file, in bytes."""

    __slots__ = ()


_CALLS_MAGIC = b'slurm_futures calls 1\n'
_CALL = struct.Struct('>QQQQ')


def encode_calls(
    header: Header, functions: Sequence[bytes], calls: Iterable[Tuple[int, bytes]]
) -> List[bytes]:
    """Return a batch's file as a list of pieces to be written one after another.

    Args:
        header: facts that every task needs; ``count`` is added.
        functions: the distinct pickled functions.
        calls: for each call the index of its function and its pickled arguments.
    """
    calls = list(calls)
    text = json.dumps(dict(header, count=len(calls))).encode()
    offset = len(_CALLS_MAGIC) + _LENGTH.size + len(text) + _CALL.size * len(calls)
    where = []
    for function in functions:
        where.append((offset, len(function)))
        offset += len(function)
    index = bytearray()
    for number, args in calls:
        index += _CALL.pack(*where[number], offset, len(args))
        offset += len(args)
    start = _CALLS_MAGIC + _LENGTH.pack(len(text)) + text
    return [start, bytes(index), *functions, *(args for _, args in calls)]


class CallsFile:
    """Reads single calls from a batch's file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: BinaryIO = open(path, 'rb')  # noqa: SIM115 - closed by close()
        magic = self._file.read(len(_CALLS_MAGIC))
        if magic != _CALLS_MAGIC:
            self._file.close()
            raise ValueError(f'{path} is not a file of calls: it starts with {magic!r}')
        (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
        self.header: Header = json.loads(self._file.read(length))
        self._index = self._file.tell()

    def __getitem__(self, number: int) -> Call:
        if not 0 <= number < self.header['count']:
            raise IndexError(f'{self.path} has no call {number}')
        return Call(*_CALL.unpack(self.read(self._index + number * _CALL.size, _CALL.size)))

    def read(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes from ``start``."""
        data = os.pread(self._file.fileno(), size, start)
        while len(data) < size:
            more = os.pread(self._file.fileno(), size - len(data), start + len(data))
            if not more:
                raise EOFError(f'{self.path} ends before byte {start + size}')
            data += more
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()
