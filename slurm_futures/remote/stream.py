"""Messages over a pair of file descriptors, for the agent's event loop."""

from __future__ import annotations

import asyncio
import os
from typing import AsyncIterator, Callable, List

from .protocol import CHUNK, Header, Inbox, Message, frame, frames, head


class Stream:
    """Reads and writes messages without ever blocking the event loop."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write
        self._inbox = Inbox()
        self._channel = 0
        self._turn = asyncio.Lock()
        for descriptor in (read, write):
            os.set_blocking(descriptor, False)

    async def receive(self) -> List[Message]:
        """Return the next messages; none only at the end of the stream."""
        while True:
            try:
                data = os.read(self._read, CHUNK)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(self._read, loop.add_reader, loop.remove_reader)
                continue
            except OSError:  # the other side is gone
                return []
            if not data:
                return []
            messages = self._inbox.feed(data)
            if messages:
                return messages

    async def send(self, header: Header, body: bytes = b'') -> None:
        """Send a message; others may be sent between its frames."""
        channel = self._next_channel()
        for piece in frames(channel, header, body):
            await self._send_frame(piece)

    async def send_pieces(self, header: Header, pieces: AsyncIterator[bytes]) -> None:
        """Send a message whose body is not in memory."""
        channel = self._next_channel()
        await self._send_frame(frame(channel, head(header), False))
        async for piece in pieces:
            await self._send_frame(frame(channel, piece, False))
        await self._send_frame(frame(channel, b'', True))

    def _next_channel(self) -> int:
        self._channel = (self._channel + 1) % 2**32
        return self._channel

    async def _send_frame(self, data: bytes) -> None:
        async with self._turn:
            view = memoryview(data)
            while view:
                try:
                    view = view[os.write(self._write, view) :]
                except BlockingIOError:
                    loop = asyncio.get_running_loop()
                    await _ready(self._write, loop.add_writer, loop.remove_writer)

    def close(self) -> None:
        """Close both descriptors."""
        for descriptor in {self._read, self._write}:
            os.close(descriptor)


async def _ready(
    descriptor: int,
    add: Callable[[int, Callable[[], None]], None],
    remove: Callable[[int], bool],
) -> None:
    """Wait until a descriptor can be read, or written."""
    future = asyncio.get_running_loop().create_future()
    add(descriptor, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        remove(descriptor)
