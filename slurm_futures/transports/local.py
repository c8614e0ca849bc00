"""The transport for a client on the login node itself: a child process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

from slurm_futures.errors import ConnectionFailed

TAIL = 4000
"""Bytes of stderr that are worth showing."""

PIPE_SIZE = 1024 * 1024
"""Bytes of a pipe's buffer: Linux gives 64 KiB, which takes 16 times as many turns."""


class LocalTransport:
    """Starts the command as a child that the terminal's Ctrl-C does not reach."""

    def open(self, command: Sequence[str]) -> LocalStream:
        """Start a command.

        Raises:
            ConnectionFailed: it cannot be started.
        """
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the stream
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            log.close()
            raise ConnectionFailed(
                f'cannot start {command[0]!r} on this machine: {error.strerror or error}; '
                'set python_cmd to a Python 3.8 or newer'
            ) from error
        return LocalStream(process, log)

    def describe(self) -> str:
        """Return what to call the login node in messages."""
        return 'this machine'


class LocalStream:
    """The pipes of a child process."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._log = log
        self._in = process.stdin.fileno()
        self._out = process.stdout.fileno()
        for descriptor in (self._in, self._out):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError):  # over the user's limit: slower, nothing else
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def fileno(self) -> int:
        """Return the descriptor of the child's stdout."""
        return self._out

    def write_fileno(self) -> int | None:
        """Return the descriptor of the child's stdin."""
        return self._in

    def recv(self, size: int) -> bytes:
        """Return bytes of the child's stdout."""
        return os.read(self._out, size)

    def send(self, data: memoryview) -> int:
        """Write to the child's stdin."""
        return os.write(self._in, data)

    def stderr(self) -> str:
        """Return the tail of what the child has written to stderr."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - TAIL)
        return os.pread(self._log.fileno(), TAIL, start).decode(errors='replace')

    def close(self) -> None:
        """Close the pipes; the child ends by itself once it has finished what is in hand."""
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()
        # An interpreter that is leaving starts no thread (Python 3.12); then init reaps the child.
        with contextlib.suppress(RuntimeError):
            threading.Thread(
                target=self._process.wait, name='slurm_futures reaper', daemon=True
            ).start()
