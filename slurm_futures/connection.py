"""The client's end of the line to the agent: opening it, requests and replies, noticing its death.

Opening blocks, so it happens in a thread of its own; everything else happens in the polling
thread. Requests without a reply are kept and sent again, under their old ids, to the next agent.
"""

from __future__ import annotations

import collections
import itertools
import logging
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slurm_futures.line import Line, Opener, Recipe, shown
from slurm_futures.remote.protocol import CHUNK, frames
from slurm_futures.transports import ByteStream

LOGGER = logging.getLogger('slurm_futures')

KILLS = 3
KILLS_WITHIN = 600.0
"""So many lost agents in so many seconds are no accident."""

Reply = Callable[[Mapping[str, Any], bytes], None]


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
        clock: monotonic.
    """

    def __init__(
        self,
        recipe: Recipe,
        wake: Callable[[], None],
        on_hello: Callable[[Mapping[str, Any]], None],
        on_event: Reply,
        on_failure: Callable[[BaseException], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._recipe = recipe
        self._on_hello = on_hello
        self._on_event = on_event
        self._on_failure = on_failure
        self._line: Line | None = None
        self._opener = Opener(recipe, wake)
        self._requests: dict[int, _Request] = {}
        self._ids = itertools.count(1)
        self._channels = itertools.count(1)
        self._outgoing: collections.deque[Iterator[bytes]] = collections.deque()
        self._unsent = memoryview(b'')
        self._silent = 0.0
        self._ping_at = 0.0
        self._stepped = clock()
        self._attempts = 0
        self._retry_at = 0.0
        self._expecting: set[str] = set()
        self._losses: collections.deque[float] = collections.deque(maxlen=KILLS)
        self._greeted = False

    def prepare(self) -> None:
        """Start what cannot be started any more when the interpreter leaves."""
        self._opener.start()

    @property
    def stream(self) -> ByteStream | None:
        """The open stream, to be waited for."""
        return self._line.stream if self._line else None

    @property
    def has_agent(self) -> bool:
        """Whether there is an agent, or was, or is one being started."""
        return self._greeted or self._opener.is_busy

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

    def expect_messages(self, who: str, *, expected: bool) -> None:
        """Keep a line open, and the agent looking for messages, while anybody expects some."""
        before = bool(self._expecting)
        (self._expecting.add if expected else self._expecting.discard)(who)
        if bool(self._expecting) != before:
            self.tell({'do': 'watch', 'on': expected})

    def _post(self, request: _Request) -> None:
        self._outgoing.append(frames(next(self._channels), dict(request.header), request.body))

    def open(self) -> None:
        """Open a line unless there is one, or one is being opened."""
        if self._line or self._opener.is_busy or self._clock() < self._retry_at:
            return
        self._opener.open()

    def step(self) -> None:
        """Do what has become due: take over a new line, ping, reconnect."""
        now = self._clock()
        elapsed, self._stepped = min(now - self._stepped, 1.0), now
        opened = self._opener.take()
        if isinstance(opened, BaseException):
            self._on_open_failed(opened)
        elif opened:
            self._take_over(opened)
        if self._line:
            self._listen(elapsed)
        elif self._is_needed:
            self.open()

    @property
    def _is_needed(self) -> bool:
        return bool(self._requests or self._expecting)

    def deadline(self) -> float:
        """Return the monotonic time at which `step` is due."""
        if self._line:
            return self._stepped + 1.0
        return self._retry_at if self._is_needed and not self._opener.is_busy else float('inf')

    def _take_over(self, line: Line) -> None:
        self._line, self._silent, self._attempts = line, 0.0, 0
        self._greeted = True
        if self._expecting:
            self.tell({'do': 'watch', 'on': True})
        unanswered = list(self._requests.items())  # what on_hello() adds is sent by request()
        self._on_hello(line.hello)
        for number, request in unanswered:
            if number in self._requests:
                self._post(request)
        for header, body in line.early:
            self._on_message(header, body)

    def _on_open_failed(self, error: BaseException) -> None:
        if not self._greeted:
            self._requests.clear()
            self._on_failure(error)
            return
        self._plan_retry()
        LOGGER.warning('cannot reconnect to %s: %s', self._recipe.where, error)

    def _plan_retry(self) -> None:
        first, longest = self._recipe.patience.back_off
        pause = min(longest, first * 2 ** min(self._attempts, 20))
        self._attempts += 1
        self._retry_at = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _listen(self, elapsed: float) -> None:
        patience = self._recipe.patience
        self._silent += elapsed
        if self._silent >= patience.silence:
            self.lose(f'it has not answered for {patience.silence:g} s')
        elif self._stepped >= self._ping_at:  # the agent wants to hear from us, too
            self._ping_at = self._stepped + patience.ping
            self.tell({'do': 'ping', 'id': 0})

    def lose(self, why: str) -> None:
        """Give up the line; a new one is opened while anything waits for an answer."""
        if not self._line:
            return
        said = shown(self._line.stream)
        self._drop()
        now = self._clock()
        self._losses.append(now)
        LOGGER.warning('lost the agent on %s: %s%s', self._recipe.where, why, said)
        if len(self._losses) == KILLS and now - self._losses[0] < KILLS_WITHIN:
            LOGGER.error(
                '%d agents on %s were lost within %d minutes; most likely the site ends long '
                'processes on its login nodes: ask its support, or connect to another node',
                KILLS,
                self._recipe.where,
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
        self._requests.clear()
        self._drop()
        self._opener.close()

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
            self.lose(str(error))
            return
        if not data:
            self.lose('it ended')
            return
        self._silent = 0.0
        try:
            messages = self._line.inbox.feed(data)
        except (ValueError, struct.error) as error:
            self.lose(f'it sent what is no message: {error}')
            return
        for header, body in messages:
            self._on_message(header, body)

    def _on_message(self, header: Mapping[str, Any], body: bytes) -> None:
        if 'event' in header:
            self._on_event(header, body)
            return
        request = self._requests.pop(header['id'], None)
        if request is not None:
            request.reply(header, body)
