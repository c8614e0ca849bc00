"""The single polling thread: everything that is not said in the user's threads is done here.

Data flow::

    user's threads         polling thread                                      login node
    submit() ---\\          Windows -> Batch -> Jobs ----\\
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
from typing import Any

from slurm_futures.dispatcher import Dispatcher
from slurm_futures.errors import ExecutorBroken, JobCancelled, SlurmFuturesError
from slurm_futures.futures import JobFuture
from slurm_futures.outcomes import name

TICK = 0.25
"""Seconds after which the thread looks at the latest whether the main thread still lives."""

INTERRUPT_PATIENCE = 3.0
"""Seconds that Ctrl-C waits for Slurm to take the orders to cancel."""

CLOSE_PATIENCE = 10.0
"""Seconds that the end of the executor waits for the agent to tidy up."""

Command = Callable[['Poller'], None]


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

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.descriptor)
        os.close(self._wake)


class Poller:
    """Runs the dispatcher until nothing is left to do and nobody can ask for more.

    Args:
        dispatcher: what is run.
        inbox: where commands come from.
        may_leave: says whether nobody can submit any more.
    """

    def __init__(self, dispatcher: Dispatcher, inbox: Inbox, may_leave: Callable[[], bool]) -> None:
        self.dispatcher = dispatcher
        self._inbox = inbox
        self._may_leave = may_leave
        self._detached = False
        self._interrupted_at = math.inf
        self._closing_at = math.inf
        self._given_up: set[JobFuture[Any]] = set()
        self._when_submitted: list[Callable[[], None]] = []

    def run(self) -> None:
        """Work until nothing is left to do."""
        dispatcher = self.dispatcher
        while not self._is_finished():
            self._wait()
            for command in self._inbox.take():
                command(self)
            dispatcher.connection.read()
            dispatcher.step(time.monotonic())
            dispatcher.connection.write()
            if self._when_submitted and not dispatcher.unsubmitted:
                waiters, self._when_submitted = self._when_submitted, []
                for waiter in waiters:
                    waiter()

    def when_submitted(self, callback: Callable[[], None]) -> None:
        """Call back once Slurm has taken everything that was submitted so far."""
        self.dispatcher.hasten()
        self._when_submitted.append(callback)

    def detach(self) -> None:
        """Do not keep the interpreter from leaving."""
        self._detached = True
        self.dispatcher.login.cancel_waiting()

    def interrupt(self, futures: Iterable[JobFuture[Any]]) -> None:
        """Give up futures within seconds: they have been cancelled, and nobody will wait."""
        self._given_up.update(futures)
        self._interrupted_at = time.monotonic()

    def _is_finished(self) -> bool:
        now = time.monotonic()
        if self._closing_at < math.inf:
            return self.dispatcher.connection.stream is None or now >= self._closing_at
        leaving = not threading.main_thread().is_alive()
        self._give_up(now, leaving)
        if self.dispatcher.is_busy or not (leaving or self._may_leave()):
            return False
        return self._close()

    def _give_up(self, now: float, leaving: bool) -> None:
        """End futures that are not waited for any more."""
        dispatcher = self.dispatcher
        if self._detached and leaving and not dispatcher.unsubmitted:
            self._abandon(ExecutorBroken, 'the interpreter has left; its job goes on in Slurm')
        late = now >= self._interrupted_at + INTERRUPT_PATIENCE
        if late or (self._interrupted_at < math.inf and not dispatcher.jobs.ordering):
            self._abandon(JobCancelled, 'was cancelled, as the program was interrupted')
            self._interrupted_at = math.inf
            self._given_up.clear()

    def _abandon(self, kind: type[SlurmFuturesError], why: str) -> None:
        ledger = self.dispatcher.ledger
        for entry in list(ledger.entries.values()):
            if self._detached or entry.future in self._given_up:
                ledger.fail(entry, kind(f'{name(entry.work)}: {why}'))
        if not ledger.entries:
            self.dispatcher.jobs.abandon()

    def _close(self) -> bool:
        """Have the agent tidy up; return whether there is none."""
        connection = self.dispatcher.connection
        if connection.stream is None:
            return True
        header = {
            'do': 'close',
            'remove': not self._detached,
            'keep_logs': self.dispatcher.jobs.saw_failure,
        }
        self._closing_at = time.monotonic() + CLOSE_PATIENCE
        connection.request(header, b'', lambda *_: connection.close())
        connection.write()
        return False

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
