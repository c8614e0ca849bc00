"""Opening a line to the login node: the agent is sent there and says hello."""

from __future__ import annotations

import itertools
import queue
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slurm_futures import bundle
from slurm_futures.errors import ConnectionFailed
from slurm_futures.remote.protocol import CHUNK, Inbox, Message
from slurm_futures.transports import ByteStream, Transport

OPEN_TIMEOUT = 120.0
"""Seconds that the login node has to start the agent: conda environments load slowly."""


@dataclass(frozen=True)
class Patience:
    """How the client bears with its agents.

    Attributes:
        ping: seconds between two signs of life that the agent is asked for.
        silence: seconds without a word, while listening, after which the agent counts as dead.
        back_off: seconds to the first and at most to a later attempt to reconnect.
    """

    ping: float = 10.0
    silence: float = 30.0
    back_off: tuple[float, float] = (0.2, 30.0)


@dataclass(frozen=True)
class Recipe:
    """How to reach the login node and what to start there."""

    transport: Transport
    python_cmd: str
    setup: str
    config: Mapping[str, Any]
    patience: Patience = Patience()

    @property
    def where(self) -> str:
        """What to call the login node in messages."""
        return self.transport.describe()


@dataclass(frozen=True)
class Line:
    """An open line, and what the agent said first."""

    stream: ByteStream
    inbox: Inbox
    hello: Mapping[str, Any]
    early: Sequence[Message]


def open_line(recipe: Recipe) -> Line:
    """Start an agent and wait for its hello; blocks.

    Raises:
        ConnectionFailed: what went wrong, and what the login node printed meanwhile.
    """
    marker = secrets.token_hex(16)
    command = bundle.start_command(recipe.python_cmd, recipe.setup, marker)
    stream = recipe.transport.open(command)
    try:
        rest = _await_marker(stream, marker, recipe)
        _send_all(stream, bundle.payload(recipe.config))
        return _await_hello(stream, rest, recipe)
    except BaseException:
        stream.close()
        raise


def _await_hello(stream: ByteStream, rest: bytes, recipe: Recipe) -> Line:
    inbox = Inbox()
    for data in itertools.chain([rest], _received(stream)):
        messages = inbox.feed(data)
        if not messages:
            continue
        hello = messages[0][0]
        if hello['event'] == 'hello':
            return Line(stream, inbox, hello, messages[1:])
        raise ConnectionFailed(f'the agent on {recipe.where} gave up: {hello["text"]}')
    raise ConnectionFailed(
        f'the agent on {recipe.where} ended before it said hello' + shown(stream)
    )


def _await_marker(stream: ByteStream, marker: str, recipe: Recipe) -> bytes:
    """Skip what login shells print; return what came behind the marker's line."""
    seen = b''
    start = b'\n' + marker.encode() + b' '
    for data in _received(stream):
        seen += data
        _, found, rest = seen.partition(start)
        word, newline, rest = rest.partition(b'\n')
        if not found or not newline:
            continue
        if word == b'ready':
            return rest
        raise ConnectionFailed(
            f'{recipe.python_cmd} on {recipe.where} is Python {word.decode().split()[-1]}; '
            'slurm_futures needs 3.8 or newer there: set python_cmd, or load a newer one in setup'
        )
    raise ConnectionFailed(
        f'{recipe.python_cmd!r} did not start on {recipe.where}: look at the commands in setup, '
        'and set python_cmd to a Python 3.8 or newer' + shown(stream, seen)
    )


def shown(stream: ByteStream, seen: bytes = b'') -> str:
    """Return what the login node printed, to be put behind an error's message."""
    said = '\n'.join(
        text.strip() for text in (seen.decode(errors='replace')[-2000:], stream.stderr()) if text
    )
    return f'; it printed:\n{said}' if said else ''


def _received(stream: ByteStream) -> Iterator[bytes]:
    """Yield what comes over the stream until it ends."""
    deadline = time.monotonic() + OPEN_TIMEOUT
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConnectionFailed(f'no answer within {OPEN_TIMEOUT:g} s' + shown(stream))
        _wait(stream.fileno(), select.POLLIN, left)
        try:
            data = stream.recv(CHUNK)
        except BlockingIOError:
            continue
        if not data:
            return
        yield data


def _send_all(stream: ByteStream, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[_send(stream, view) :]


def _send(stream: ByteStream, data: memoryview) -> int:
    try:
        return stream.send(data)
    except BlockingIOError:
        _wait(stream.write_fileno(), select.POLLOUT, 0.05)
        return 0
    except OSError as error:
        raise ConnectionFailed(f'the line to the agent broke: {error}{shown(stream)}') from error


def _wait(descriptor: int | None, event: int, timeout: float) -> None:
    """Wait until a stream is ready; select.select() knows no descriptors over 1023."""
    poll = select.poll()
    if descriptor is not None:
        poll.register(descriptor, event)
    poll.poll(timeout * 1000)


class Opener:
    """Opens lines in a thread of its own, because that blocks.

    The thread has to be started early: an interpreter that is leaving starts none (Python 3.12).

    Args:
        recipe: how to open a line.
        wake: called when one has been opened, or could not be.
    """

    def __init__(self, recipe: Recipe, wake: Callable[[], None]) -> None:
        self._recipe = recipe
        self._wake = wake
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._opened: queue.SimpleQueue[Line | BaseException] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name='slurm_futures connecting', daemon=True
        )
        self.is_busy = False

    def start(self) -> None:
        """Start the thread, unless it has been started."""
        if self._thread.ident is None:
            self._thread.start()

    def open(self) -> None:
        """Open a line; `take` returns it."""
        self.start()
        self.is_busy = True
        self._orders.put(True)

    def take(self) -> Line | BaseException | None:
        """Return what has been opened, or why it could not be; None while there is nothing."""
        try:
            opened = self._opened.get_nowait()
        except queue.Empty:
            return None
        self.is_busy = False
        return opened

    def close(self) -> None:
        """End the thread, and close a line that nobody needs any more."""
        self._closed = True
        self._orders.put(False)
        self._discard()

    def _run(self) -> None:
        while self._orders.get():
            try:
                self._opened.put(open_line(self._recipe))
            except BaseException as error:  # the polling thread gets it
                self._opened.put(error)
            if self._closed:
                self._discard()
            self._wake()

    def _discard(self) -> None:
        opened = self.take()  # by one thread or the other
        if isinstance(opened, Line):
            opened.stream.close()
