"""Transports open a byte stream to a process on the login node, and do nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ByteStream(Protocol):
    """The standard streams of a process on the login node."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``recv`` has something to return."""

    def write_fileno(self) -> int | None:
        """Return a descriptor that is writable when ``send`` can go on; None: try again soon."""

    def recv(self, size: int) -> bytes:
        """Return at most ``size`` bytes of stdout, b'' at its end.

        Raises:
            BlockingIOError: there is nothing yet.
        """

    def send(self, data: memoryview) -> int:
        """Take some bytes for stdin and return how many.

        Raises:
            BlockingIOError: none can be taken now.
            OSError: the process or the line to it is gone.
        """

    def stderr(self) -> str:
        """Return the tail of what the process has written to stderr."""

    def close(self) -> None:
        """Close the stream; the process notices and ends by itself."""


class Transport(Protocol):
    """Opens byte streams to one login node."""

    def open(self, command: Sequence[str]) -> ByteStream:
        """Start a command there; blocks.

        Raises:
            ConnectionFailed: the login node cannot be reached or the command not be started.
        """

    def describe(self) -> str:
        """Return what to call the login node in messages."""
