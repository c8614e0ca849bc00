"""What all executors on one connection share: the polling thread and the futures under way.

It ends when every executor on it is shut down or collected and nothing is pending; and with the
interpreter, which it keeps from leaving as long as anything is pending, like the executors of the
standard library.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from types import CodeType
from typing import Any

from slurm_futures import futures
from slurm_futures.dispatcher import Dispatcher, Plan
from slurm_futures.errors import ExecutorBroken, SlurmFuturesError
from slurm_futures.futures import JobFuture, Work
from slurm_futures.poller import Inbox, Poller
from slurm_futures.snapshot import Snapshot

LOGGER = logging.getLogger('slurm_futures')

LEAVE_PATIENCE = 5.0
"""Seconds that Ctrl-C at interpreter exit waits for the polling thread."""


class Scope:
    """One executor's part in what is pending: its own submissions and those of its siblings.

    A with-block covers what was submitted through its executor and through those derived from it.
    """

    __slots__ = ('__weakref__', 'closed', 'parent')

    def __init__(self, parent: Scope | None) -> None:
        self.parent = parent
        self.closed = False

    def covers(self, other: Scope | None) -> bool:
        """Return whether ``other`` is this scope or derived from it."""
        while other is not None:
            if other is self:
                return True
            other = other.parent
        return False


class Core:
    """The thread-safe side of the polling thread.

    Args:
        plan: what the polling thread starts from.

    Attributes:
        login_workers: calls on the login node at the same time.
    """

    def __init__(self, plan: Plan) -> None:
        self.login_workers = plan.login_workers
        self._pid = os.getpid()
        # Re-entrant: collecting garbage under it may run a destructor that shuts an executor down.
        self._lock = threading.RLock()
        self._pending: dict[JobFuture[Any], Scope] = {}
        self._executors: dict[int, weakref.ref[Any]] = {}
        self._broken: BaseException | None = None
        self._detached = False
        self._closed = False
        self._inbox = Inbox()
        self._snapshots = plan.snapshots
        self._dispatcher = Dispatcher(plan, self._inbox.wake, self.is_pending, self._on_done)
        self._thread = threading.Thread(
            target=self._run, name='slurm_futures polling', daemon=False
        )
        atexit.register(self._at_exit)

    # ---- executors

    def enter(self, executor: Any, scope: Scope) -> None:
        """Keep the core alive as long as an executor lives and is not shut down.

        Raises:
            RuntimeError: the core has ended.
            ExecutorBroken: the polling thread has failed.
        """
        inbox = self._inbox
        # A weak reference's callback may come at any moment, in any thread: it only hands over.
        reference = weakref.ref(executor, lambda _: inbox.put_quietly(lambda _p: self.leave(scope)))
        with self._lock:
            self._check_open()
            self._executors[id(scope)] = reference
            if self._thread.ident is None:
                self._dispatcher.connection.prepare()
                self._thread.start()

    def leave(self, scope: Scope) -> None:
        """Let the core end when this was the last executor and nothing is pending."""
        with self._lock:
            self._executors.pop(id(scope), None)

    def _is_unused(self) -> bool:
        """Return whether no executor is left that could take a call."""
        return all(reference() is None for reference in list(self._executors.values()))

    def _may_close(self, *, leaving: bool) -> bool:
        """Take no more calls, and return True, if nobody is left who waits for one.

        Args:
            leaving: whether the main thread has ended, so that executors do not count.
        """
        with self._lock:
            if not self._pending and (leaving or self._is_unused()):
                self._closed = True
            return self._closed

    # ---- submissions

    def new_future(self, scope: Scope) -> JobFuture[Any]:
        """Return a pending future that belongs to an executor.

        Raises:
            RuntimeError: the executor has been shut down.
            ExecutorBroken: the polling thread has failed.
        """
        future: JobFuture[Any] = JobFuture(self, Work(0))
        with self._lock:
            if scope.closed or self._detached:
                raise RuntimeError('cannot schedule new futures after shutdown')
            self._check_open()
            self._pending[future] = scope
        return future

    def take_snapshot(self, codes: Mapping[CodeType, str]) -> Snapshot | None:
        """Return the user's modules for a call; None if they stay here.

        Raises:
            ConfigError: they are too large; the message says what to change.
        """
        return self._snapshots.take(codes) if self._snapshots else None

    def _check_open(self) -> None:
        if self._broken is not None:
            raise ExecutorBroken("the executor's polling thread has failed") from self._broken
        if self._closed:
            raise RuntimeError('cannot schedule new futures after shutdown')

    def refuse(self, future: JobFuture[Any], error: BaseException) -> None:
        """Give a future an error before anything has been sent."""
        futures.fail(future, error)
        self._on_done(future)

    def put(self, command: Callable[[Dispatcher], None]) -> None:
        """Have the polling thread do something."""
        self._inbox.put(lambda poller: command(poller.dispatcher))

    def is_pending(self, future: JobFuture[Any]) -> bool:
        """Return whether a future has not been done with."""
        return future in self._pending

    def _on_done(self, future: JobFuture[Any]) -> None:
        with self._lock:
            self._pending.pop(future, None)

    def pending(self, scope: Scope | None = None) -> list[JobFuture[Any]]:
        """Return the unfinished futures that a scope covers; of all scopes, if None."""
        with self._lock:
            items = list(self._pending.items())
        return [future for future, own in items if scope is None or scope.covers(own)]

    # ---- Controller

    @property
    def is_forked(self) -> bool:
        """Whether this is a forked child, which has no polling thread."""
        return os.getpid() != self._pid

    def check_usable(self) -> None:
        """Raise RuntimeError in a forked child."""
        if self.is_forked:
            raise RuntimeError(
                'this executor belongs to the process that made it and does not work in a forked '
                "child: make a new one there, or start children with the 'spawn' method"
            )

    def check_may_block(self, what: str) -> None:
        """Raise RuntimeError in the polling thread, which would wait for itself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f'{what} would wait for the thread that it is called in: done-callbacks run in '
                'the polling thread and must not block'
            )

    def cancelled(self, future: JobFuture[Any]) -> None:
        """Remove the work of a future that has just been cancelled."""
        self.put(lambda dispatcher: dispatcher.cancel(future))

    def kill(self, future: JobFuture[Any]) -> None:
        """End the work of a running future."""
        self.put(lambda dispatcher: dispatcher.kill(future))

    def call_back(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """Call a done-callback; in the polling thread no BaseException of it goes further."""
        try:
            fn(future)
        except Exception:
            raise  # the standard library logs it
        except BaseException:
            if threading.current_thread() is not self._thread:
                raise
            LOGGER.exception('a done-callback of %r raised what would end the thread', future)

    def read_log(self, future: JobFuture[Any], stream: int, limit: int) -> str:
        """Return what the work has written to stdout (0) or stderr (1)."""
        self.check_usable()
        self.check_may_block('reading a log')
        logs = future.work.logs
        if logs is None:
            return ''
        start, end = future.work.spans[stream]
        header = {'do': 'tail', 'path': logs[stream], 'start': start, 'end': end, 'limit': limit}
        _, body = self.ask('reading a log', header)
        return body.decode(errors='replace')

    # ---- requests that wait

    def ask(self, what: str, header: Mapping[str, Any]) -> tuple[Mapping[str, Any], bytes]:
        """Send the agent a request and wait for the reply.

        Raises:
            RuntimeError: called in a done-callback, or the executor has ended.
            ConnectionFailed: the login node cannot be reached.
            SlurmFuturesError: the agent could not do it.
        """

        def send(future: Future[Any]) -> None:
            def reply(header: Mapping[str, Any], body: bytes) -> None:
                if not future.done():
                    future.set_result((header, body))

            self.put(lambda dispatcher: dispatcher.ask(header, reply))

        answer: tuple[Mapping[str, Any], bytes] = self._wait_for(what, send)
        if 'exception' in answer[0]:
            raise answer[0]['exception']
        if 'error' in answer[0]:
            raise SlurmFuturesError(f'{what} failed on the login node: {answer[0]["error"]}')
        return answer

    def _wait_for(self, what: str, send: Callable[[Future[Any]], None]) -> Any:
        self.check_usable()
        self.check_may_block(what)
        future: Future[Any] = Future()
        send(future)
        while True:
            wait([future], timeout=0.5)
            if future.done():
                return future.result()
            if not self._thread.is_alive() and not future.done():
                raise RuntimeError(f'{what}: the executor has ended')

    def connect(self) -> None:
        """Wait until the agent is up.

        Raises:
            ConnectionFailed: it cannot be started.
        """
        self.ask('connecting', {'do': 'ping'})

    # ---- ends

    @property
    def detached(self) -> bool:
        """Whether `detach` has been called."""
        return self._detached

    def detach(self) -> None:
        """Let the interpreter leave once Slurm has taken everything."""
        self.check_may_block('detach()')
        with self._lock:
            self._detached = True
        self._inbox.put(lambda poller: poller.detach())
        self._wait_submitted()

    def _wait_submitted(self) -> None:
        """Wait until Slurm has taken everything that was submitted so far."""
        self._wait_for(
            'waiting for the queue',
            lambda future: self._inbox.put(
                lambda poller: poller.when_submitted(lambda: future.set_result(None))
            ),
        )

    def abort(self, scope: Scope | None = None) -> None:
        """Cancel or kill what a scope covers, and give up within seconds waiting for the proof."""
        pending = self.pending(scope)
        for future in pending:
            future.kill()
        self._inbox.put(lambda poller: poller.interrupt(pending))

    def wait(self, scope: Scope) -> None:
        """Wait for what a scope covers, and for the polling thread's end if nothing keeps it."""
        while pending := [future for future in self.pending(scope) if not future.done()]:
            wait(pending)
        if self._is_unused() and all(future.done() for future in self.pending()):
            self._inbox.wake()
            self._thread.join()

    def _at_exit(self) -> None:
        """Leave all the same: the interpreter's wait for the polling thread was interrupted."""
        if not self.is_forked and self._thread.is_alive():
            self.abort()
            self._thread.join(LEAVE_PATIENCE)

    def _run(self) -> None:
        try:
            Poller(self._dispatcher, self._inbox, self._may_close).run()
        except BaseException as error:  # every future has to hear of it
            LOGGER.exception('the polling thread has failed')
            self._broken = error
        finally:
            self._wind_up()

    def _wind_up(self) -> None:
        """Leave nothing behind, and no future that nobody will ever resolve."""
        atexit.unregister(self._at_exit)
        with self._lock:
            self._closed = True
        try:
            self._dispatcher.connection.close()
        except Exception:
            LOGGER.exception('the line to the agent could not be closed')
        for future in self.pending():
            self._on_done(future)
            broken = ExecutorBroken("the executor's polling thread has ended")
            broken.__cause__ = self._broken
            futures.fail(future, broken)
