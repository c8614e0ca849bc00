"""The embedded queue's daemon: one process that runs the jobs of all who ask it to.

It belongs to a folder. It may be killed at any moment: the next one goes on from what it finds::

    agent --socket--> Daemon --> Jobs     what is to be done (pure)
                        |------> Log      written down before it takes effect
                        '------> Launch   processes, in sessions of their own, which outlive it

It ends when nothing has been left to do for a while, and when its folder has been removed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pwd
import signal
import socket
import time
from typing import Any, Dict, List, Optional, Set

from .localjob import Ended, Run
from .localjobs import KILL_WAIT, MIN_JOB_AGE, VERSION, Jobs, Key, Record
from .localoptions import Spec
from .localprocess import Launch, Node, start_of
from .localstate import Log, read_records, say
from .processes import boot_id, is_alive, process_identity, read_stat, send_signals
from .slurm_verdict import BUSY, REFUSED

IDLE = 5.0
"""Seconds without jobs and questions after which it ends; as often it looks after its folder."""

LOOK = 1.0
"""Seconds between two looks at processes that the daemon before this one has started."""

RETRY = 5.0
"""Seconds until a job is tried again that could not be started for want of room."""

LOCK = 'lock'

Reply = Dict[str, Any]


class Daemon:
    """Runs the jobs of one folder.

    Args:
        folder: where its files are.
        host: the name of this machine, as jobs see it.
        lock: descriptor of the file in it that says whose it is.
        idle: seconds without work after which it ends.
        kill_wait: seconds between SIGTERM and SIGKILL.

    Raises:
        OSError: its state cannot be written.
        OtherVersion: its state is that of another version of this package.
    """

    def __init__(
        self, folder: str, lock: int, host: str, idle: float = IDLE, kill_wait: float = KILL_WAIT
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._node = Node(host, _user())
        self._idle = idle
        self._jobs = Jobs(time.monotonic, kill_wait)
        self._launches: Dict[Key, Launch] = {}
        self._inherited: Set[Key] = set()
        self._retry_at = math.inf
        self._asked_at = time.monotonic()
        self._asking = 0
        path = os.path.join(folder, 'state')
        self._restore(read_records(path))
        self._log = Log(path, self._jobs.records())
        self._take_over()

    async def run(self, listener: socket.socket) -> None:
        """Serve until there has been nothing to do for a while."""
        self._news = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._news.set)
        server = await asyncio.start_unix_server(self._serve, sock=listener)
        while not self._is_finished():
            self._news.clear()
            self._step()
            try:
                await asyncio.wait_for(self._news.wait(), self._pause())
            except asyncio.TimeoutError:
                continue
        server.close()

    def _is_finished(self) -> bool:
        quiet = time.monotonic() - self._asked_at
        if self._jobs.is_idle:
            return not self._asking and quiet >= self._idle
        return not self._jobs.running and self._is_abandoned()

    def _is_abandoned(self) -> bool:
        """Return whether its folder has been removed, so that nobody can ask for what waits."""
        try:
            there = os.stat(os.path.join(self._folder, LOCK))
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(self._lock))

    def _pause(self) -> float:
        """Return the seconds until something is to be done without any news."""
        now = time.monotonic()
        times = [self._jobs.deadline(), self._retry_at, now + self._idle]
        if self._inherited:
            times.append(now + LOOK)
        if self._jobs.is_idle and not self._asking:
            times.append(self._asked_at + self._idle)
        return max(0.0, min(times) - now)

    # ---- what the daemon before this one has left

    def _restore(self, records: List[Record]) -> None:
        for record in records:
            try:
                self._jobs.apply(record)
            except (KeyError, ValueError) as error:  # it builds on a record that is spoilt
                say(f'{record} means nothing here: {error!r}')
        self._jobs.forget(before=time.time() - MIN_JOB_AGE)

    def _take_over(self) -> None:
        """Follow the jobs that still run; end those whose processes have gone."""
        for key, run in list(self._jobs.running.items()):
            if is_alive(run.who):
                self._inherited.add(key)
            elif boot_id() in run.who.split(':'):
                self._end_unseen(key, run)
            else:
                self._end(key, Ended('NODE_FAIL', reason='NodeDown'))

    def _end_unseen(self, key: Key, run: Run) -> None:
        """End a job that nobody has seen end, and so has no exit code; kill what it has left."""
        stat = read_stat(run.pid)
        if stat is None or stat.ended:  # else the number is another's, and nobody is left
            send_signals(run.pid, signal.SIGKILL)
        reason = 'ended while the queue was not running: its exit code is unknown'
        self._end(key, Ended(run.ending or 'FAILED', reason=reason))

    # ---- jobs

    def _note(self, record: Record) -> None:
        self._log.note(record)
        self._jobs.apply(record)

    def _end(self, key: Key, how: Ended) -> None:
        self._inherited.discard(key)
        self._note(self._jobs.end(self._jobs[key[0]], [key[1]], how._replace(at=time.time())))
        self._asked_at = time.monotonic()

    def _step(self) -> None:
        """Do all that can be done now."""
        for key, launch in list(self._launches.items()):
            self._reap(key, launch)
        for key in list(self._inherited):
            run = self._jobs.running[key]
            if not is_alive(run.who):
                self._end_unseen(key, run)
        for key, what in list(self._jobs.due()):
            self._on_due(key, what)
        for record in self._jobs.hopeless():
            self._note(record)
        self._start_tasks()
        self._tidy()

    def _reap(self, key: Key, launch: Launch) -> None:
        """Take note of a job's end, if it has ended."""
        # Until it is reaped, its number is not given to another.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        result = os.waitid(os.P_PID, launch.pid, options)
        if result is None:
            return
        send_signals(launch.pid, signal.SIGKILL)
        os.waitpid(launch.pid, 0)
        exited = result.si_code == os.CLD_EXITED
        code = result.si_status if exited else None
        how = _ended(code, 0 if exited else result.si_status)
        failure = launch.failure()
        if failure:
            say(f'job {key[0]} cannot be started: {failure}')
            how = Ended('FAILED', reason='JobLaunchFailure')
        ending = self._jobs.running[key].ending
        if ending:
            how = how._replace(state=ending, reason=_REASONS.get(ending, 'None'))
        launch.close()
        del self._launches[key]
        self._end(key, how)

    def _on_due(self, key: Key, what: str) -> None:
        run = self._jobs.running[key]
        if what == 'stop':
            self._stop(key, 'TIMEOUT')
        elif what == 'kill':
            run.killed = True
            send_signals(run.pid, signal.SIGKILL)
        else:
            self._warn(key, run)

    def _warn(self, key: Key, run: Run) -> None:
        """Send a script, and nothing that it has started, the signal that it wants."""
        self._note({'what': 'warn', 'job': key[0], 'task': key[1]})
        warning = self._jobs[key[0]].spec.warning
        try:
            os.kill(run.pid, warning[0] if warning else 0)
        except ProcessLookupError:  # it has ended; the next look will tell
            pass

    def _stop(self, key: Key, state: str) -> None:
        """Have a job end: it will have ended in this state."""
        self._note(self._jobs.stop(key, state))
        send_signals(self._jobs.running[key].pid, signal.SIGCONT, signal.SIGTERM)

    def _start_tasks(self) -> None:
        self._retry_at = math.inf
        key = self._jobs.next_task()
        while key is not None:
            try:
                self._start(key)
            except OSError as error:  # no room on the disk, or for processes
                say(f'cannot start job {key[0]} now: {error}')
                self._retry_at = time.monotonic() + RETRY
                break
            key = self._jobs.next_task()

    def _start(self, key: Key) -> None:
        job = self._jobs[key[0]]
        environment = self._jobs.environments.get(job.spec.environment, {})
        launch = Launch(start_of(job, key[1], environment, self._node))
        who, since = process_identity(launch.pid), time.monotonic()
        record = {'what': 'start', 'job': key[0], 'task': key[1], 'who': who, 'since': since}
        try:
            self._log.append(record)
        except OSError:
            launch.abandon()
            raise
        self._jobs.apply(record)
        self._launches[key] = launch
        launch.go()

    def _tidy(self) -> None:
        if not self._log.is_large:
            return
        self._jobs.forget()
        try:
            self._log.rewrite(self._jobs.records())
        except OSError as error:  # such as a full disk: the old records do
            say(f'cannot tidy up: {error}')

    # ---- who asks

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._asking += 1
        try:
            reply = self._answer(json.loads(await reader.read()))
            writer.write(json.dumps(reply).encode())
            await writer.drain()
        except (OSError, ValueError):  # whoever asked has gone, in the middle of it perhaps
            pass
        finally:
            writer.close()
            self._asking -= 1
            self._asked_at = time.monotonic()
            self._news.set()

    def _answer(self, request: Dict[str, Any]) -> Reply:
        if request['version'] != VERSION:
            return _no(
                'another version of slurm_futures runs the embedded queue of this work_dir '
                'until it is empty: wait for that, or use another work_dir'
            )
        answer: Reply = getattr(self, '_on_' + request['do'])(request)
        return answer

    def _on_submit(self, request: Dict[str, Any]) -> Reply:
        """Take a job, at most once for each script."""
        spec = Spec(**request['spec'])
        number = self._jobs.find(spec.script)
        if number is not None:
            return {'job': number}
        for _, other, _ in spec.dependency:
            if other >= self._jobs.next_number:
                return _no(f'there is no job {other} to depend on')
        number, values = self._jobs.next_number, request['environment']
        records = self._jobs.submission(spec, values, request['max_jobs'], time.time())
        try:
            self._log.append(*records)
        except OSError as error:
            return _no(f'the embedded queue cannot keep the job: {error}', BUSY)
        for record in records:
            self._jobs.apply(record)
        return {'job': number}

    def _on_rows(self, _request: Dict[str, Any]) -> Reply:
        self._jobs.forget()
        return {'rows': self._jobs.rows(self._node.host)}

    def _on_history(self, request: Dict[str, Any]) -> Reply:
        return {'rows': self._jobs.history(request['jobs'], self._node.host)}

    def _on_find(self, request: Dict[str, Any]) -> Reply:
        return {'job': self._jobs.find(request['script'])}

    def _on_cancel(self, request: Dict[str, Any]) -> Reply:
        for job, indices in list(self._jobs.chosen(request['ids'])):
            waiting = sorted({*indices} & {*job.waiting})
            if waiting:
                how = Ended('CANCELLED', ran=False, at=time.time())
                self._note(self._jobs.end(job, waiting, how))
            for index in indices:
                run = job.running.get(index)
                if run and not run.ending:
                    self._stop((job.number, index), 'CANCELLED')
        return {}


def _no(words: str, kind: str = REFUSED) -> Reply:
    """Return the answer that something cannot be done."""
    return {'no': words, 'kind': kind}


_REASONS = {'TIMEOUT': 'TimeLimit'}


def _ended(code: Optional[int], number: int) -> Ended:
    """Return how a script ended that nobody has told to."""
    if code == 0:
        return Ended('COMPLETED', 0)
    if code is not None:
        return Ended('FAILED', code, reason='NonZeroExitCode')
    return Ended('FAILED', None, number, f'RaisedSignal:{number}({signal.strsignal(number)})')


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as somebody whom it does not know
        return str(os.getuid())
