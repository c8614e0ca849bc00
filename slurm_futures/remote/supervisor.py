"""Starts the process that runs calls, replaces it when it dies, and blames the right call."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import List, Optional, Tuple

from .child import Context, Outcome, Pipes, log_sizes, serve
from .protocol import LARGE, Header, Inbox, encode

TERM_PATIENCE = 2.0
"""Seconds that a child's death by SIGTERM waits for the supervisor's own: Slurm sends both."""

KILL_PATIENCE = 3.0
"""Seconds between asking a child to end with SIGTERM and ending it with SIGKILL."""


class Child:
    """One forked child, and the call that it is running."""

    def __init__(self, context: Context) -> None:
        command_read, self._commands = os.pipe()
        self.events, event_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._commands)
                os.close(self.events)
                serve(Pipes(command_read, event_write), context)
            finally:
                os._exit(70)
        os.close(command_read)
        os.close(event_write)
        try:
            os.setpgid(self.pid, self.pid)
        except OSError:
            pass  # it did so itself and may be gone already
        os.set_blocking(self.events, False)
        self._inbox = Inbox()
        self.call: Optional[int] = None
        self.kill_at: Optional[float] = None
        self.killed = False
        self.status: Optional[int] = None

    def run(self, command: Header, body: bytes = b'') -> None:
        """Have the child, which must be idle, run a command."""
        self.call = command['call']
        data = memoryview(encode(command, body))
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            pass  # it died, and reap() says how

    def outcomes(self) -> List[Outcome]:
        """Return the outcomes that have arrived."""
        done: List[Outcome] = []
        while True:
            try:
                data = os.read(self.events, LARGE)
            except BlockingIOError:
                break
            if not data:
                break
            done.extend(self._inbox.feed(data))
        if done:
            self.call = None
        return done

    def reap(self) -> bool:
        """Return True once the child has died; its exit status is in ``status`` then."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def death(self) -> Header:
        """Return the outcome of the call that the child died of."""
        status = self.status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        kind = 'killed' if self.killed else 'died'
        return {
            'event': 'outcome',
            'kind': kind,
            'call': self.call,
            'at': time.time(),
            'size': 0,
            'signal': number,
            'exit_code': code,
            'log_end': log_sizes(),
        }

    def signal(self, number: int) -> None:
        """Send a signal to the child and to all that it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # dead already

    def kill(self) -> None:
        """End the call under way: SIGTERM now, SIGKILL if that does not help."""
        if not self.killed:
            self.killed = True
            self.kill_at = time.monotonic() + KILL_PATIENCE
            self.signal(signal.SIGTERM)

    def kill_if_due(self) -> None:
        """Use SIGKILL on a child that SIGTERM has not ended."""
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self.kill_at = None
            self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Forget a child that has died, and end what it left running."""
        self.signal(signal.SIGKILL)
        os.close(self._commands)
        os.close(self.events)


class Crew:
    """One child at a time: a dead one is replaced when the next call comes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._child: Optional[Child] = Child(context)
        self._verdict_at: Optional[float] = None
        self.stopping = False

    @property
    def call(self) -> Optional[int]:
        """The call under way."""
        return self._child.call if self._child else None

    @property
    def pid(self) -> Optional[int]:
        """The process that runs calls, and the process group of all that they start."""
        return self._child.pid if self._child else None

    def descriptors(self) -> List[int]:
        """Return what to wait for."""
        alive = self._child is not None and self._child.status is None
        return [self._child.events] if self._child and alive else []

    def deadline(self) -> Optional[float]:
        """Return the monotonic time at which outcomes() is to be called without any news."""
        times = [self._verdict_at, self._child.kill_at if self._child else None]
        return min((t for t in times if t is not None), default=None)

    def run(self, command: Header, body: bytes = b'') -> None:
        """Run a command; there must be none under way."""
        if self._child is None or self._child.reap():
            self._discard()
            self._child = Child(self._context)
        self._child.run(command, body)

    def outcomes(self) -> List[Outcome]:
        """Return the outcomes that have arrived; a child that died is one."""
        child = self._child
        if child is None:
            return []
        child.kill_if_due()
        done = child.outcomes()
        if child.reap():
            done += child.outcomes()
            if child.call is not None:
                if self._may_be_slurm(child):
                    return done
                done.append((child.death(), b''))
            self._discard()
        return done

    def _may_be_slurm(self, child: Child) -> bool:
        """Return whether the SIGTERM that ended a call may have been meant for the whole job."""
        signalled = child.status == signal.SIGTERM and not child.killed and not self.stopping
        if not signalled:
            return False
        if self._verdict_at is None:
            self._verdict_at = time.monotonic() + TERM_PATIENCE
        return time.monotonic() < self._verdict_at

    def _discard(self) -> None:
        self._verdict_at = None
        if self._child is not None:
            self._child.close()
            self._child = None

    def signal(self, number: int) -> None:
        """Pass a signal on to the child alone."""
        if self._child is not None and self._child.status is None:
            os.kill(self._child.pid, number)

    def kill(self, call: int) -> None:
        """End the call if it is under way."""
        if self._child is not None and self._child.call == call:
            self._child.kill()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
            os.waitpid(self._child.pid, 0) if self._child.status is None else None
            self._discard()


class Signals:
    """Turns signals into bytes of a pipe, to be waited for together with everything else."""

    def __init__(self, numbers: Tuple[int, ...]) -> None:
        self.descriptor, write = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(write, False)
        for number in (*numbers, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def read(self) -> bytes:
        """Return the numbers of the signals that have arrived, a byte each."""
        try:
            return os.read(self.descriptor, 4096)
        except BlockingIOError:
            return b''


def wait(descriptors: List[int], until: Optional[float]) -> List[int]:
    """Return the descriptors with news; none when the monotonic clock has reached ``until``."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    timeout = None if until is None else max(0.0, until - time.monotonic()) * 1000
    return [descriptor for descriptor, _ in poll.poll(timeout)]
