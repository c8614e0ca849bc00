"""The agent's warm workers on the login node: who is idle, what waits, how they ended."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import subprocess
from typing import Awaitable, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .protocol import Header, Message
from .spool import Spool
from .stream import Stream

IDLE_SECONDS = 300.0
"""An idle worker ends after this long, so that nothing lies about on the login node."""

Report = Callable[[Header, bytes], Awaitable[None]]


class Launch(NamedTuple):
    """How login workers are started; ``numbers`` tells them apart."""

    spool: Spool
    entry: str
    sys_path: List[str]
    numbers: Iterator[int]


class Kind(NamedTuple):
    """What a worker cannot change any more: its interpreter, and the modules it has."""

    python: str
    modules: Optional[str]


class _Worker:
    """One worker process and what it is doing."""

    def __init__(self, launch: Launch, kind: Kind) -> None:
        self.kind = kind
        name = f'login-{os.getpid()}-{next(launch.numbers)}'
        self._error_log = launch.spool.path('logs', f'{name}.err')
        words = [launch.spool.folder, name, json.dumps(launch.sys_path), json.dumps(kind.modules)]
        with open(self._error_log, 'ab') as log:
            self.process = subprocess.Popen(
                [kind.python, launch.entry, 'login', *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd='/',
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stream = Stream(self.process.stdout.fileno(), self.process.stdin.fileno())
        self.call: Optional[int] = None
        self.child: Optional[int] = None
        self.ready = False
        self.idle_timer: Optional[asyncio.TimerHandle] = None

    def death(self) -> Header:
        """Return the outcome of the call that the worker took with it."""
        code = self.process.wait()
        if self.child is not None:
            _kill_groups(self.child)
        text = ''
        if not self.ready:
            with open(self._error_log, encoding='utf-8', errors='replace') as file:
                text = file.read()[-4000:]
        return {
            'event': 'outcome',
            'kind': 'died' if self.ready else 'unstartable',
            'call': self.call,
            'signal': -code if code < 0 else None,
            'exit_code': code if code >= 0 else None,
            'text': text,
        }

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent to it any more."""
        return self.process.stdin is None or self.process.stdin.closed

    def close(self) -> None:
        """Let the worker end once it has nothing to do."""
        if self.idle_timer:
            self.idle_timer.cancel()
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()


def _kill_groups(pid: int) -> None:
    """End a process that has outlived its supervisor, and the command that it waits for."""
    children = ''
    try:
        with open(f'/proc/{pid}/task/{pid}/children') as file:
            children = file.read()
    except OSError:
        pass  # it is gone already, or this kernel does not tell
    for group in (pid, *map(int, children.split())):
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue  # it is gone, or leads no group


class LoginPool:
    """Runs calls on at most ``limit`` workers at a time, in the order they came."""

    def __init__(self, launch: Launch, limit: int, report: Report) -> None:
        self._launch = launch
        self._limit = limit
        self._report = report
        self._waiting: Deque[Tuple[Kind, Message]] = collections.deque()
        self._workers: Dict[_Worker, asyncio.Task[None]] = {}
        self._idle: List[_Worker] = []
        self._unconfirmed: Dict[int, _Worker] = {}

    async def add(self, kind: Kind, call: Header, body: bytes) -> None:
        """Run a call as soon as a worker is free."""
        self._waiting.append((kind, (call, body)))
        await self._dispatch()

    async def drop(self, call: int) -> bool:
        """Forget a call that waits, or end the one under way; return whether it was here."""
        for waiting in self._waiting:
            if waiting[1][0]['call'] == call:
                self._waiting.remove(waiting)
                return True
        for worker in self._workers:
            if worker.call == call:
                await worker.stream.send({'do': 'kill', 'call': call})
                return True
        return False

    async def confirm(self, call: int) -> None:
        """Let the worker forget the outcome of a call, which the client has."""
        worker = self._unconfirmed.pop(call, None)
        if worker is not None and not worker.is_closed:
            try:
                await worker.stream.send({'do': 'got', 'call': call})
            except OSError:
                pass  # it has died, and everything with it

    async def _dispatch(self) -> None:
        while self._waiting:
            kind = self._waiting[0][0]
            worker = self._take_idle(kind)
            if worker is None and not self._make_room():
                return
            call, body = self._waiting.popleft()[1]
            if worker is None:
                try:
                    worker = self._start(kind)
                except OSError as error:
                    text = f'{kind.python} cannot be started: {error}'
                    outcome = {'event': 'outcome', 'kind': 'unstartable', 'text': text}
                    await self._report(dict(outcome, call=call['call']), b'')
                    continue
            await self._hand(worker, call, body)

    def _take_idle(self, kind: Kind) -> Optional[_Worker]:
        for worker in reversed(self._idle):  # the others may become superfluous
            if worker.kind == kind:
                self._idle.remove(worker)
                return worker
        return None

    def _make_room(self) -> bool:
        """Return whether a worker may be started, in the place of an idle one if need be."""
        if sum(not worker.is_closed for worker in self._workers) < self._limit:
            return True
        if self._idle:
            self._retire(self._idle[0])
            return True
        return False

    def _start(self, kind: Kind) -> _Worker:
        worker = _Worker(self._launch, kind)
        self._workers[worker] = asyncio.get_running_loop().create_task(self._listen(worker))
        return worker

    async def _hand(self, worker: _Worker, call: Header, body: bytes) -> None:
        if worker.idle_timer:
            worker.idle_timer.cancel()
        worker.call = call['call']
        try:
            await worker.stream.send(call, body)
        except OSError:
            pass  # it has died; _listen() finds out and reports the call

    async def _listen(self, worker: _Worker) -> None:
        """Pass on what a worker reports, until it ends."""
        while True:
            messages = await worker.stream.receive()
            if not messages:
                break
            for header, body in messages:
                await self._on_event(worker, header, body)
        await self._bury(worker)

    async def _on_event(self, worker: _Worker, header: Header, body: bytes) -> None:
        event = header['event']
        if event == 'ready':
            worker.ready = True
            return
        if event == 'begun':
            worker.child = header.pop('child')
            await self._report(header, body)
            return
        if event == 'outcome':
            self._unconfirmed[header['call']] = worker
        worker.call = worker.child = None
        self._idle.append(worker)
        loop = asyncio.get_running_loop()
        worker.idle_timer = loop.call_later(IDLE_SECONDS, self._retire, worker)
        await self._dispatch()
        await self._report(header, body)

    def _retire(self, worker: _Worker) -> None:
        self._idle.remove(worker)
        worker.close()

    async def _bury(self, worker: _Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        worker.close()
        outcome = await asyncio.get_running_loop().run_in_executor(None, worker.death)
        del self._workers[worker]
        if worker.call is not None:
            await self._report(outcome, b'')
        await self._dispatch()

    async def close(self) -> None:
        """End the workers; those with a call under way finish it first."""
        self._waiting.clear()
        for worker in self._workers:
            worker.close()
        await asyncio.gather(*self._workers.values())
