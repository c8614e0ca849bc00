"""Looks for messages in a run's spool, and sends each of them once."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import AsyncIterator, Awaitable, Callable, List, Optional, Set

from .files import in_thread, read
from .protocol import CHUNK, LARGE, Header
from .spool import Spool, read_header

PAUSES = (0.02, 0.5)
"""Seconds between two looks into new/: at least and at most."""


class News:
    """The messages in ``new/``.

    Args:
        spool: of the run.
        send: sends an event and its body.
        send_pieces: sends an event whose body does not go into memory.
    """

    def __init__(
        self,
        spool: Spool,
        send: Callable[[Header, bytes], Awaitable[None]],
        send_pieces: Callable[[Header, AsyncIterator[bytes]], Awaitable[None]],
    ) -> None:
        self._spool = spool
        self._send = send
        self._send_pieces = send_pieces
        self._sent: Set[str] = set()
        self._looking = asyncio.Lock()
        self._watching = asyncio.Event()
        self._large: Set[asyncio.Future[None]] = set()
        self._newest_at = time.monotonic()
        self._unread: Optional[OSError] = None

    async def send_forever(self) -> None:
        """Send what is in new/ once, then look for news as long as the client waits for some."""
        while True:
            await self._pause(await self._look())

    def watch(self, on: bool) -> None:
        """Look for news regularly, or rest."""
        if on:
            self.expect()
            self._watching.set()
        else:
            self._watching.clear()

    def expect(self) -> None:
        """Look often for a while: something is about to happen."""
        self._newest_at = time.monotonic()

    async def catch_up(self) -> None:
        """Send all that is in new/ now.

        Raises:
            OSError: a message could not be read.
        """
        self._unread = None
        await self._look()
        await self.finish()
        if self._unread is not None:
            raise self._unread

    async def finish(self) -> None:
        """Wait until the large messages have been sent that are under way."""
        if self._large:
            await asyncio.wait(set(self._large))

    async def delete(self, names: List[str]) -> None:
        """Delete messages that the client has recorded."""
        await in_thread(_unlink, [self._spool.path('new', name) for name in names])
        self._sent.difference_update(names)

    async def _look(self) -> float:
        """Send what has appeared; return how many seconds it took to look."""
        async with self._looking:
            started = time.monotonic()
            names = await in_thread(os.listdir, self._spool.path('new'))
            took = time.monotonic() - started
            fresh = sorted(set(names) - self._sent)
            if fresh:
                self.expect()
            for name in fresh:
                await self.send(name)
            return took

    async def _pause(self, took: float) -> None:
        await self._watching.wait()
        shortest, longest = PAUSES
        quiet = time.monotonic() - self._newest_at
        await asyncio.sleep(max(10 * took, min(longest, max(shortest, quiet / 20))))

    async def send(self, name: str) -> None:
        """Send a message, unless that has been done."""
        if name in self._sent:
            return
        self._sent.add(name)  # at once: meanwhile another look may find it too
        path = self._spool.path('new', name)
        try:
            message, start = await in_thread(read_header, path)
            size = await in_thread(os.path.getsize, path) - start
            header = {'event': 'message', 'name': name, 'message': message}
            if size <= LARGE:
                await self._send(header, await in_thread(read, path, start, size))
            else:
                self._begin(self._send_pieces(header, _pieces(path, start)))
        except FileNotFoundError:  # acknowledged between the look and now
            self._sent.discard(name)
        except OSError as error:  # to be tried again
            self._sent.discard(name)
            self._unread = error
        except ValueError as error:  # nobody's message: left for a person to look at
            print(error, file=sys.stderr)

    def _begin(self, sending: Awaitable[None]) -> None:
        large = asyncio.ensure_future(sending)
        self._large.add(large)
        large.add_done_callback(self._large.discard)


async def _pieces(path: str, start: int) -> AsyncIterator[bytes]:
    with open(path, 'rb') as file:
        file.seek(start)
        while True:
            piece = await in_thread(file.read, CHUNK)
            if not piece:
                return
            yield piece


def _unlink(paths: List[str]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue  # acknowledged twice, after a reconnect
