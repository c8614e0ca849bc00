"""Runs one command to its end, or kills it when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

_DRAIN = 1.0
"""Seconds that output may take to arrive after the command's end."""
_REAP = 5.0
"""Seconds that a killed command gets to end: one that waits for a hung file system may not."""


class Finished(NamedTuple):
    """How a command ended.

    Attributes:
        returncode: its exit status; negative: ended by a signal; None: killed for being slow, or
            never started.
        stdout: what it printed, up to then.
        stderr: likewise.
        error: why it could not be started; None if it was.
    """

    returncode: Optional[int]
    stdout: bytes
    stderr: bytes
    error: Optional[OSError] = None


class _Collector(asyncio.SubprocessProtocol):
    """Keeps what a command prints, and notes its end.

    asyncio's Process cannot tell the end from that of the output, which lasts as long as anything
    that the command left in the background (Python 3.11 and newer, measured).
    """

    def __init__(self) -> None:
        self.output = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()

    def pipe_data_received(self, fd: int, data: Any) -> None:
        """Take some output."""
        self.output[fd] += data

    def process_exited(self) -> None:
        """Note the command's end."""
        self.exited.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Note that all output has been taken, and the command has ended."""
        self.drained.set()


async def run_command(
    argv: Sequence[str], env: Mapping[str, str], timeout: float, cwd: str | None = None
) -> Finished:
    """Run a command in a session of its own, with no input.

    Args:
        argv: the command, found on the PATH of ``env``, and its arguments.
        env: its environment.
        timeout: seconds after which it is killed, with all that it has started.
        cwd: its working directory.
    """
    try:
        transport, collector = await _spawn(argv, env, cwd)
    except OSError as error:
        return Finished(None, b'', b'', error)
    try:
        await _within(collector.exited, timeout)
        in_time = transport.get_returncode() is not None
        await _kill(transport, collector)
        await _within(collector.drained, _DRAIN)
        returncode = transport.get_returncode() if in_time else None
        return Finished(returncode, bytes(collector.output[1]), bytes(collector.output[2]))
    finally:
        await _kill(transport, collector)
        transport.close()


async def _spawn(
    argv: Sequence[str], env: Mapping[str, str], cwd: str | None
) -> tuple[asyncio.SubprocessTransport, _Collector]:
    pipes: Dict[str, Any] = {'stdin': asyncio.subprocess.DEVNULL, 'start_new_session': True}
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(
        loop.subprocess_exec(_Collector, *argv, env=env, cwd=cwd, **pipes)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Interrupted in this, asyncio would await the end of all that the command has started.
        with contextlib.suppress(OSError):
            transport, collector = await starting
            await _kill(transport, collector)
            transport.close()
        raise


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


async def _kill(transport: asyncio.SubprocessTransport, collector: _Collector) -> None:
    """Kill the command and what it has started, unless it has ended; await its end."""
    if transport.get_returncode() is None:
        # It may have ended a moment ago.
        with contextlib.suppress(OSError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        await _within(collector.exited, _REAP)
