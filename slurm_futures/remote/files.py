"""The agent's dealings with the file system, each in a thread: it may hang."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Callable, TypeVar

T = TypeVar('T')


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a function that touches the file system where it may hang."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


def read(path: str, start: int, size: int) -> bytes:
    """Return at most ``size`` bytes of a file from ``start``."""
    with open(path, 'rb') as file:
        file.seek(start)
        return file.read(size)


def read_text(path: str) -> str:
    """Return a file's text; nothing if there is no file."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ''


def append(path: str, data: bytes) -> None:
    """Add to a file, durably."""
    with open(path, 'ab') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
