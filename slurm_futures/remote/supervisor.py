"""Starts the process that runs calls, replaces it when it dies, and blames the right call."""

from __future__ import annotations

import os
import select
import signal
import time

from .child import Context, Pipes, log_sizes, serve
from .page import Begun, Page
from .protocol import LARGE, Header, Inbox, encode
from .results import Outcome

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import List, NoReturn, Optional, Tuple

TERM_PATIENCE = 2.0
"""Seconds that a child's death by SIGTERM waits for the supervisor's own: Slurm sends both."""

KILL_PATIENCE = 3.0
"""Seconds between asking a child to end with SIGTERM and ending it with SIGKILL."""


class Child:
    """One forked child, and the call that it is running."""

    def __init__(self, context: Context) -> None:
        command_read, self._commands = os.pipe()
        self.events, event_write = os.pipe()
        # Until the child has handlers of its own, a signal to it would be taken for its parent's.
        self.page = Page(context.places)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become_child(Pipes(command_read, event_write), context, self.page)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(command_read)
        os.close(event_write)
        try:
            os.setpgid(self.pid, self.pid)
        except OSError:
            pass  # it did so itself and may be gone already
        os.set_blocking(self.events, False)
        self._inbox = Inbox()
        self.waiting: List[int] = []
        self.busy = False
        self.kill_at: Optional[float] = None
        self.killed: Optional[int] = None
        self.deaf = False
        self.status: Optional[int] = None

    def run(self, command: Header, body: bytes = b'') -> None:
        """Have the child, which must be idle, run a command."""
        self.waiting = list(command['calls']) if command['do'] == 'calls' else [command['call']]
        self.busy = True
        self.page.resume()
        data = memoryview(encode(command, body))
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            pass  # it died, and reap() says how

    @property
    def call(self) -> Optional[int]:
        """The call under way, or the next one of the command."""
        begun = self.page.begun()
        if begun and begun.call in self.waiting:
            return int(begun.call)
        return self.waiting[0] if self.waiting else None

    def victim(self) -> Optional[int]:
        """Return the call that a death of the child ends.

        None if it died of being killed too late: then it has begun no other call.
        """
        if not self.busy or self.killed not in (None, self.call):
            return None
        return self.call

    def outcomes(self) -> List[Outcome]:
        """Return the outcomes that have arrived."""
        done: List[Outcome] = []
        while True:
            try:
                data = os.read(self.events, LARGE)
            except BlockingIOError:
                break
            if not data:
                self.deaf = True  # the call has closed the pipe, or it was the child's end
                break
            done.extend(self._inbox.feed(data))
        return [self._sorted_out(outcome) for outcome in done if not self._is_idle(outcome)]

    def _is_idle(self, outcome: Outcome) -> bool:
        """Return whether this only says that the command is done."""
        if outcome[0]['event'] == 'idle':
            self.busy, self.waiting = False, []
            return True
        return False

    def _sorted_out(self, outcome: Outcome) -> Outcome:
        """Take note of an outcome; return it unless it is the exception that the kill raised."""
        item, _ = outcome
        if self.waiting == [item['call']]:
            self.busy = False
        self.waiting.remove(item['call'])
        if item['call'] == self.killed and item['kind'] == 'error':
            return self.death(item['call']), b''
        return outcome

    def reap(self) -> bool:
        """Return True once the child has died; its exit status is in ``status`` then."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def death(self, call: int) -> Header:
        """Return the outcome of a call that the child died of, or that was killed."""
        number = code = None
        if self.status is not None and os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
        elif self.status is not None:
            code = os.WEXITSTATUS(self.status)
        item: Header = {
            'event': 'outcome',
            'kind': 'killed' if call == self.killed else 'died',
            'call': call,
            'at': time.time(),
            'size': 0,
            'signal': number,
            'exit_code': code,
            'log_end': log_sizes(),
        }
        begun = self.page.begun()
        if begun and begun.call == call:
            item.update(began=begun.at, log=[begun.out, begun.err])
        return item

    def signal(self, number: int) -> None:
        """Send a signal to the child and to all that it started."""
        groups = [self.pid]
        if number == signal.SIGKILL and self.page.command:
            groups.append(self.page.command)  # which the child ends by itself, given the time
        for group in groups:
            try:
                os.killpg(group, number)
            except (ProcessLookupError, PermissionError):
                continue  # dead already; or what is left runs as somebody else, such as sudo

    def kill(self, call: int) -> None:
        """End a call if it is under way: SIGTERM now, SIGKILL if that does not help."""
        self.page.stop()  # so that the signal cannot meet the next call
        if self.killed is None and self.busy and self.call == call:
            self.killed = call
            self.kill_at = time.monotonic() + KILL_PATIENCE
            self.signal(signal.SIGTERM)

    def kill_if_due(self) -> None:
        """Use SIGKILL on a child that SIGTERM has not ended."""
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self.kill_at = None
            self.signal(signal.SIGKILL)

    def close(self) -> None:
        """Forget a child that has died, or must die, and end what it left running."""
        self.signal(signal.SIGKILL)
        if self.status is None:
            os.waitpid(self.pid, 0)
        os.close(self._commands)
        os.close(self.events)


def _become_child(pipes: Pipes, context: Context, page: Page) -> NoReturn:
    try:
        serve(pipes, context, page)
    except BaseException:
        import traceback  # the price of it is for those who need it

        traceback.print_exc()
    finally:
        os._exit(70)


class Crew:
    """One child at a time: a dead one is replaced when the next call comes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._child: Optional[Child] = Child(context)
        self._verdict_at: Optional[float] = None
        self.stopping = False

    @property
    def busy(self) -> bool:
        """Whether a command is under way."""
        return self._child is not None and self._child.busy

    @property
    def call(self) -> Optional[int]:
        """The call under way, or the next one of the command."""
        return self._child.call if self._child and self._child.busy else None

    def begun(self) -> Optional[Begun]:
        """Return what is known of the call under way."""
        return self._child.page.begun() if self._child and self._child.busy else None

    def discard(self, place: int) -> None:
        """Leave out a call of the command, if it has not begun."""
        if self._child is not None:
            self._child.page.discard(place)

    def stop(self) -> None:
        """Start no further call: the job is about to end."""
        self.stopping = True
        self.leave_rest()

    def leave_rest(self) -> None:
        """Start no further call of the command."""
        if self._child is not None:
            self._child.page.stop()

    @property
    def pid(self) -> Optional[int]:
        """The process that runs calls, and the process group of all that they start."""
        return self._child.pid if self._child else None

    def descriptors(self) -> List[int]:
        """Return what to wait for."""
        child = self._child
        return [child.events] if child and child.status is None and not child.deaf else []

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
            victim = child.victim()
            if victim is not None:
                if self._may_be_slurm(child):
                    return done
                done.append((child.death(victim), b''))
            self._discard()
        elif child.killed is not None and not child.busy:
            self._discard()  # the call has ended in spite of the kill, which may yet hit the next
        return done

    def _may_be_slurm(self, child: Child) -> bool:
        """Return whether the SIGTERM that ended a call may have been meant for the whole job."""
        signalled = child.status == signal.SIGTERM and child.killed is None and not self.stopping
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
        if self._child is not None:
            self._child.kill(call)

    def close(self) -> None:
        """End the child, whatever it is doing."""
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
