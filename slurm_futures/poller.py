r"""The single polling thread: everything that is not said in the user's threads is done here.

Data flow::

    user's threads         polling thread                                      login node
    submit() ---\          Windows -> Batch -> Jobs ----\
    run()    ----> inbox ->                              > Connection <-bytes-> agent
    cancel() ---/          LoginCalls ------------------/      |
                           Ledger <-- messages, events --------+
    Future <------------- set_result / set_exception

The thread waits for three things at once: commands in the inbox, bytes from the agent, and the
earliest of its deadlines. It holds no reference to an executor.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from slurm_futures.dispatcher import Dispatcher
from slurm_futures.errors import ExecutorBroken, JobCancelled
from slurm_futures.futures import JobFuture
from slurm_futures.outcomes import name

TICK = 0.25
"""Seconds after which the thread looks at the latest whether the main thread still lives."""

INTERRUPT_PATIENCE = 3.0
"""Seconds that Ctrl-C waits for Slurm to take the orders to cancel."""

CLOSE_PATIENCE = 10.0
"""Seconds that the end of the executor waits for the agent to tidy up."""

HURRIED_CLOSE_PATIENCE = 1.0
"""The same when somebody waits to get out."""

Command = Callable[['Poller'], None]


class MayClose(Protocol):
    """Says whether nobody waits for anything any more; nobody can submit once it has said so."""

    def __call__(self, *, leaving: bool) -> bool:
        """Decide.

        Args:
            leaving: whether the main thread has ended, so that executors do not count.
        """


class Inbox:
    """Commands from other threads, and the pipe that wakes the polling thread for them."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.descriptor, self._wake = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._wake, False)
        self._awake = False

    def put(self, command: Command) -> None:
        """Hand a command to the polling thread."""
        self._commands.put(command)
        if not self._awake:
            self._awake = True
            self.wake()

    def put_quietly(self, command: Command) -> None:
        """Hand over a command to be seen at the next tick: all a weak reference may do."""
        self._commands.put(command)

    def wake(self) -> None:
        """End the polling thread's wait."""
        with contextlib.suppress(OSError):  # full: it is awake; closed: it is gone
            os.write(self._wake, b'w')

    def take(self) -> list[Command]:
        """Return the commands that have come."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        self._awake = False
        commands = []
        with contextlib.suppress(queue.Empty):
            while True:
                commands.append(self._commands.get_nowait())
        return commands

    def __del__(self) -> None:
        # Not at the thread's end: futures may be cancelled, and so wake it, as long as they live.
        os.close(self.descriptor)
        os.close(self._wake)


class Poller:
    """Runs the dispatcher until nothing is left to do and nobody can ask for more.

    Args:
        dispatcher: what is run.
        inbox: where commands come from.
        may_close: asked when there is nothing to do.
    """

    def __init__(self, dispatcher: Dispatcher, inbox: Inbox, may_close: MayClose) -> None:
        self.dispatcher = dispatcher
        self._inbox = inbox
        self._may_close = may_close
        self._detached = False
        self._left_behind = False
        self._hurried = False
        self._interrupted_at = math.inf
        self._given_up: set[JobFuture[Any]] = set()
        self._closing_at = math.inf
        self._tidied = False
        self._when_submitted: list[Callable[[], None]] = []

    def run(self) -> None:
        """Work until nothing is left to do."""
        dispatcher = self.dispatcher
        while not self._is_finished():
            self._wait()
            self._obey()
            dispatcher.connection.read()
            dispatcher.step(time.monotonic())
            dispatcher.connection.write()
            if self._when_submitted and not dispatcher.unsubmitted:
                waiters, self._when_submitted = self._when_submitted, []
                for waiter in waiters:
                    waiter()

    def _obey(self) -> None:
        for command in self._inbox.take():  # in a frame of its own, which keeps none of them
            command(self)

    def when_submitted(self, callback: Callable[[], None]) -> None:
        """Call back once Slurm has taken everything that was submitted so far."""
        self.dispatcher.hasten()
        self._when_submitted.append(callback)

    def detach(self) -> None:
        """Do not keep the interpreter from leaving."""
        self._detached = True
        self.dispatcher.detach()

    def interrupt(self, futures: Iterable[JobFuture[Any]]) -> None:
        """Give up futures within seconds: they have been cancelled, and nobody will wait."""
        self._given_up.update(futures)
        self._interrupted_at = time.monotonic()

    def _is_finished(self) -> bool:
        now = time.monotonic()
        if self._closing_at < math.inf:
            sent = self._left_behind and not self.dispatcher.connection.wants_to_write
            return self._tidied or sent or now >= self._closing_at
        leaving = not threading.main_thread().is_alive()
        if self._detached and leaving and not self.dispatcher.unsubmitted:
            self._leave_behind()
        if self._interrupted_at < math.inf:
            self._give_up(now)
        return not self._is_busy() and self._may_close(leaving=leaving) and self._close(now)

    def _is_busy(self) -> bool:
        """Return whether there is anything to be seen through but what is in the inbox."""
        if self.dispatcher.ledger.entries:
            self._hurried = False
            return True
        return self.dispatcher.jobs.busy and not self._hurried

    def _leave_behind(self) -> None:
        """Let Slurm go on alone."""
        self._left_behind = bool(self.dispatcher.ledger.entries)
        self._hurried = True
        for entry in list(self.dispatcher.ledger.entries.values()):
            why = 'the interpreter has left; what has been submitted goes on'
            self.dispatcher.ledger.fail(entry, ExecutorBroken(f'{name(entry.work)}: {why}'))

    def _give_up(self, now: float) -> None:
        """End the futures of an interrupted program, at best when Slurm has its orders."""
        late = now >= self._interrupted_at + INTERRUPT_PATIENCE
        if not late and not self.dispatcher.jobs.is_settled:
            return
        ledger = self.dispatcher.ledger
        for entry in list(ledger.entries.values()):
            if entry.future in self._given_up:
                why = 'was cancelled, as the program was interrupted'
                ledger.fail(entry, JobCancelled(f'{name(entry.work)} {why}'))
        self._interrupted_at = math.inf
        self._given_up.clear()
        self._hurried = True

    def _close(self, now: float) -> bool:
        """Have the agent tidy up; return whether there is none."""
        connection = self.dispatcher.connection
        if not connection.has_agent:
            return True
        self._closing_at = now + (HURRIED_CLOSE_PATIENCE if self._hurried else CLOSE_PATIENCE)
        if not self._left_behind:  # else jobs need the run's folder, and calls their time
            keep_logs = self.dispatcher.jobs.saw_failure
            header = {'do': 'close', 'remove': True, 'keep_logs': keep_logs}
            connection.request(header, b'', lambda *_: self._set_tidied())
        return False

    def _set_tidied(self) -> None:
        self._tidied = True

    def _wait(self) -> None:
        connection = self.dispatcher.connection
        timeout = min(TICK, max(0.0, self.dispatcher.deadline() - time.monotonic()))
        poll = select.poll()
        poll.register(self._inbox.descriptor, select.POLLIN)
        stream = connection.stream
        if stream:
            poll.register(stream.fileno(), select.POLLIN)
        if stream and connection.wants_to_write:
            descriptor = stream.write_fileno()
            if descriptor is None:
                timeout = min(timeout, 0.005)
            else:
                poll.register(descriptor, select.POLLOUT)
        poll.poll(math.ceil(timeout * 1000))
