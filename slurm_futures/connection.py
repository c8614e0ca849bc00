"""The client's end of the line to the agent: opening it, requests and replies, noticing its death.

Opening blocks, so it happens in a thread of its own; everything else happens in the polling
thread. Requests without a reply are kept and sent again, under their old ids, to the next agent.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import random
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slurm_futures import bundle
from slurm_futures.errors import ConnectionFailed
from slurm_futures.remote.protocol import CHUNK, Inbox, Message, frames
from slurm_futures.transports import ByteStream, Transport

LOGGER = logging.getLogger('slurm_futures')

OPEN_TIMEOUT = 120.0
"""Seconds that the login node has to start the agent: conda environments load slowly."""

PING_INTERVAL = 10.0
"""Seconds between two signs of life that the agent is asked for."""

SILENCE = 30.0
"""Seconds without a word from the agent, while listening, after which it counts as dead."""

KILLS = 3
KILLS_WITHIN = 600.0
"""So many lost agents in so many seconds are no accident."""

BACK_OFF = (0.2, 30.0)
"""Seconds to the first and at most to a later attempt to reconnect."""

Reply = Callable[[Mapping[str, Any], bytes], None]


@dataclass(frozen=True)
class Recipe:
    """How to reach the login node and what to start there."""

    transport: Transport
    python_cmd: str
    setup: str
    config: Mapping[str, Any]


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
        raise ConnectionFailed(f'the agent on {_where(recipe)} gave up: {hello["text"]}')
    raise ConnectionFailed(
        f'the agent on {_where(recipe)} ended before it said hello' + _shown(stream, b'')
    )


def _where(recipe: Recipe) -> str:
    return recipe.transport.describe()


def _await_marker(stream: ByteStream, marker: str, recipe: Recipe) -> bytes:
    """Skip what login shells print; return what came behind the marker's line."""
    seen = b''
    start = b'\n' + marker.encode() + b' '
    for data in _received(stream):
        seen += data
        noise, found, rest = seen.partition(start)
        word, newline, rest = rest.partition(b'\n')
        if not found or not newline:
            continue
        if word == b'ready':
            return rest
        raise ConnectionFailed(
            f'{recipe.python_cmd} on {_where(recipe)} is Python {word.decode().split()[-1]}; '
            'slurm_futures needs 3.8 or newer there: set python_cmd, or load a newer one in setup'
        )
    raise ConnectionFailed(
        f'{recipe.python_cmd!r} did not start on {_where(recipe)}: look at the commands in setup, '
        'and set python_cmd to a Python 3.8 or newer' + _shown(stream, seen)
    )


def _shown(stream: ByteStream, seen: bytes) -> str:
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
            raise ConnectionFailed(f'no answer within {OPEN_TIMEOUT:g} s' + _shown(stream, b''))
        select.select([stream.fileno()], [], [], left)
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
        try:
            view = view[stream.send(view) :]
        except BlockingIOError:
            descriptor = stream.write_fileno()
            select.select([], [] if descriptor is None else [descriptor], [], 0.05)
        except OSError as error:
            raise ConnectionFailed(
                f'the line to the agent broke: {error}' + _shown(stream, b'')
            ) from error


class _Request:
    """A request that has not been answered."""

    __slots__ = ('body', 'header', 'reply')

    def __init__(self, header: Mapping[str, Any], body: bytes, reply: Reply) -> None:
        self.header = header
        self.body = body
        self.reply = reply


class Connection:
    """The line to whichever agent is alive.

    Args:
        recipe: how to open a line.
        wake: makes the polling thread call `step`; called from the opening thread.
        on_hello: called with the hello of each new agent, before anything is sent to it.
        on_event: called with each event.
        on_failure: called when the first line cannot be opened.
    """

    def __init__(
        self,
        recipe: Recipe,
        wake: Callable[[], None],
        on_hello: Callable[[Mapping[str, Any]], None],
        on_event: Reply,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._recipe = recipe
        self._wake = wake
        self._on_hello = on_hello
        self._on_event = on_event
        self._on_failure = on_failure
        self._line: Line | None = None
        self._opening: threading.Thread | None = None
        self._opened: collections.deque[Line | BaseException] = collections.deque()
        self._requests: dict[int, _Request] = {}
        self._ids = itertools.count(1)
        self._channels = itertools.count(1)
        self._outgoing: collections.deque[Iterator[bytes]] = collections.deque()
        self._unsent = memoryview(b'')
        self._silent = 0.0
        self._ping_at = 0.0
        self._stepped = time.monotonic()
        self._attempts = 0
        self._retry_at = 0.0
        self._losses: collections.deque[float] = collections.deque(maxlen=KILLS)
        self._greeted = False
        self._closed = False

    @property
    def stream(self) -> ByteStream | None:
        """The open stream, to be waited for."""
        return self._line.stream if self._line else None

    @property
    def has_agent(self) -> bool:
        """Whether there is an agent, or was, or is one being started."""
        return self._greeted or self._opening is not None

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._unsent or self._outgoing)

    def request(self, header: Mapping[str, Any], body: bytes, reply: Reply) -> int:
        """Send a request, now or to the next agent; ``reply`` gets the answer.

        Returns:
            The id with which `forget` takes it back.
        """
        number = next(self._ids)
        self._requests[number] = _Request(dict(header, id=number), body, reply)
        if self._line:
            self._post(self._requests[number])
        else:
            self.open()
        return number

    def tell(self, header: Mapping[str, Any]) -> None:
        """Send what needs no reply and means nothing to the next agent."""
        if self._line:
            self._outgoing.append(frames(next(self._channels), dict(header)))

    def forget(self, number: int) -> None:
        """Do not wait for a reply any more."""
        self._requests.pop(number, None)

    def _post(self, request: _Request) -> None:
        self._outgoing.append(frames(next(self._channels), dict(request.header), request.body))

    def open(self) -> None:
        """Open a line unless there is one, or one is being opened."""
        if self._line or self._opening or time.monotonic() < self._retry_at:
            return
        self._opening = threading.Thread(
            target=self._open, name='slurm_futures connecting', daemon=True
        )
        self._opening.start()

    def _open(self) -> None:
        try:
            self._opened.append(open_line(self._recipe))
        except BaseException as error:  # handed to the polling thread
            self._opened.append(error)
        if self._closed:
            self._close_opened()
        self._wake()

    def step(self) -> None:
        """Do what has become due: take over a new line, ping, reconnect."""
        now = time.monotonic()
        elapsed, self._stepped = min(now - self._stepped, 1.0), now
        if self._opened:
            self._opening = None
            opened = self._opened.popleft()
            if isinstance(opened, BaseException):
                self._on_open_failed(opened)
            else:
                self._take_over(opened)
        if self._line:
            self._listen(elapsed)
        elif self._requests:
            self.open()

    def deadline(self) -> float:
        """Return the monotonic time at which `step` is due."""
        if self._line:
            return self._stepped + 1.0
        return self._retry_at if self._requests and not self._opening else float('inf')

    def _take_over(self, line: Line) -> None:
        self._line, self._silent, self._attempts = line, 0.0, 0
        self._greeted = True
        unanswered = list(self._requests.values())  # what on_hello() adds is sent by request()
        self._on_hello(line.hello)
        for request in unanswered:
            self._post(request)
        for header, body in line.early:
            self._on_message(header, body)

    def _on_open_failed(self, error: BaseException) -> None:
        if not self._greeted:
            self._requests.clear()
            self._on_failure(error)
            return
        self._plan_retry()
        LOGGER.warning('cannot reconnect to %s: %s', _where(self._recipe), error)

    def _plan_retry(self) -> None:
        first, longest = BACK_OFF
        pause = min(longest, first * 2**self._attempts) * random.uniform(0.5, 1.0)
        self._attempts += 1
        self._retry_at = time.monotonic() + pause

    def _listen(self, elapsed: float) -> None:
        self._silent += elapsed
        if self._silent >= SILENCE:
            self.lose(f'it has not answered for {SILENCE:g} s')
        elif self._stepped >= self._ping_at:  # the agent wants to hear from us, too
            self._ping_at = self._stepped + PING_INTERVAL
            self.tell({'do': 'ping', 'id': 0})

    def lose(self, why: str) -> None:
        """Give up the line; a new one is opened while anything waits for an answer."""
        if not self._line:
            return
        said = _shown(self._line.stream, b'')
        self._drop()
        now = time.monotonic()
        self._losses.append(now)
        LOGGER.warning('lost the agent on %s: %s%s', _where(self._recipe), why, said)
        if len(self._losses) == KILLS and now - self._losses[0] < KILLS_WITHIN:
            LOGGER.error(
                '%d agents on %s were lost within %d minutes; most likely the site ends long '
                'processes on its login nodes: ask its support, or connect to another node',
                KILLS,
                _where(self._recipe),
                KILLS_WITHIN / 60,
            )
            self._attempts = max(self._attempts, 6)
        self._plan_retry()

    def _drop(self) -> None:
        if self._line:
            self._line.stream.close()
        self._line = None
        self._outgoing.clear()
        self._unsent = memoryview(b'')

    def close(self) -> None:
        """Close the line for good."""
        self._closed = True
        self._requests.clear()
        self._drop()
        self._close_opened()

    def _close_opened(self) -> None:
        """Close a line that nobody needs any more; called from two threads."""
        with contextlib.suppress(IndexError):
            opened = self._opened.popleft()
            if isinstance(opened, Line):
                opened.stream.close()

    def write(self) -> None:
        """Send what can be sent without waiting, large messages interleaved with others."""
        while self._line and self.wants_to_write:
            if not self._unsent:
                self._next_frame()
                continue
            try:
                self._unsent = self._unsent[self._line.stream.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(str(error))

    def _next_frame(self) -> None:
        message = self._outgoing.popleft()
        piece = next(message, None)
        if piece is not None:
            self._unsent = memoryview(piece)
            self._outgoing.append(message)

    def read(self) -> None:
        """Take what has arrived and hand it on."""
        if not self._line:
            return
        try:
            data = self._line.stream.recv(4 * CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            return self.lose(str(error))
        if not data:
            return self.lose('it ended')
        self._silent = 0.0
        for header, body in self._line.inbox.feed(data):
            self._on_message(header, body)

    def _on_message(self, header: Mapping[str, Any], body: bytes) -> None:
        if 'event' in header:
            self._on_event(header, body)
            return
        request = self._requests.pop(header['id'], None)
        if request is not None:
            request.reply(header, body)
