"""The embedded queue, as the agent asks it: a client of the daemon in `localqueued`.

The daemon is started when it is needed and is not there. Each question has a connection of its
own, and does no harm when it is asked twice: so it is asked again when the daemon dies over it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from .localjobs import MIN_JOB_AGE, VERSION
from .localoptions import MAX_TASKS, Refused, export, read_options
from .localqueued import NO_ROOM, SOCKET
from .queues import CommandReply, HistoryReply, LookupReply, QueryReply, SubmitReply
from .slurm_commands import base_ids, clean_environment
from .slurm_parsers import AccountingRow, ClusterLimits, JobRow
from .slurm_verdict import AMBIGUOUS, REFUSED, SUBMITTED, UNREACHABLE
from .subprocesses import run_command

ANSWER_TIMEOUT = 60.0
"""Seconds that the daemon may take to answer."""

START_TIMEOUT = 60.0
"""Seconds that it may take to start."""

TRIES = 5
"""How often a question is asked: daemons end, and are killed, at any moment."""

PAUSE = 0.1
"""Seconds before the third try, and so on: a daemon that ends holds its lock for a moment."""


class Unavailable(Exception):
    """The daemon cannot be asked; says why.

    Attributes:
        kind: what that means for a submission: see `slurm_verdict`.
    """

    def __init__(self, words: str, kind: str) -> None:
        super().__init__(words)
        self.kind = kind


class LocalQueue:
    """The embedded queue; a `queues.Queue`.

    Args:
        folder: where the daemon has its files.
        home: the host on which the jobs of this run are, or will be.
        entry: the script that starts the daemon.
        settings: ``max_jobs``, None for as many as there are CPUs; ``daemon``: what it is started
            with.
        env: the environment of the jobs.
    """

    def __init__(
        self,
        folder: str,
        home: str,
        entry: str,
        settings: Mapping[str, Any],
        env: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._home = home
        self._entry = entry
        self._settings = json.dumps(settings.get('daemon', {}))
        self._max_jobs = int(settings['max_jobs'] or len(os.sched_getaffinity(0)))
        self._env = env
        self._starting: Optional[asyncio.Future[None]] = None

    async def submit(
        self,
        script_path: str,
        options: Sequence[str],
        cwd: str,
        script_options: Sequence[Tuple[str, Optional[str]]] = (),
    ) -> SubmitReply:
        """Submit a batch script; see `queues.Queue`."""
        try:
            spec, exported = read_options(script_path, script_options, options, cwd)
        except Refused as error:
            return _not_submitted(REFUSED, str(error))
        question = {
            'do': 'submit',
            'spec': spec._replace(umask=_umask())._asdict(),
            'environment': export(clean_environment(self._env), exported),
            'max_jobs': self._max_jobs,
        }
        try:
            reply = await self._ask(question)
        except Unavailable as error:
            return _not_submitted(error.kind, str(error))
        return SubmitReply(SUBMITTED, str(reply['job']), '', '', '', 0)

    async def query(self, clusters: str = '') -> QueryReply:  # noqa: ARG002 - there is one queue
        """List all jobs; see `queues.Queue`."""
        reply, error = await self._inquire({'do': 'rows'})
        return QueryReply(not error, [JobRow(*row) for row in reply.get('rows', ())], error)

    async def history(
        self,
        job_ids: Sequence[str],
        clusters: str = '',  # noqa: ARG002 - there is one queue
    ) -> HistoryReply:
        """Say how jobs ended; see `queues.Queue`."""
        reply, error = await self._inquire({'do': 'history', 'jobs': base_ids(job_ids)})
        rows = [AccountingRow(*row) for row in reply.get('rows', ())]
        return HistoryReply(not error, rows, error)

    async def cancel(
        self,
        ids: Sequence[str],
        clusters: str = '',  # noqa: ARG002 - there is one queue
    ) -> CommandReply:
        """Cancel jobs and tasks; see `queues.Queue`."""
        _, error = await self._inquire({'do': 'cancel', 'ids': list(ids)})
        return CommandReply(not error, 1 if error else 0, '', error)

    async def lookup(
        self,
        script_path: str,
        clusters: str = '',  # noqa: ARG002 - there is one queue
    ) -> LookupReply:
        """Find the job submitted from a script; see `queues.Queue`."""
        reply, error = await self._inquire({'do': 'find', 'script': script_path})
        job = reply.get('job')
        return LookupReply(not error, None if job is None else str(job), error=error)

    async def limits(self, clusters: str = '') -> ClusterLimits:  # noqa: ARG002 - likewise
        """Say what the queue allows; see `queues.Queue`."""
        return ClusterLimits(
            max_array_size=MAX_TASKS,
            max_array_tasks=MAX_TASKS,
            min_job_age=int(MIN_JOB_AGE),
            known=True,
        )

    # ---- the daemon

    async def _inquire(self, question: Dict[str, Any]) -> Tuple[Dict[str, Any], str]:
        """Ask the daemon; return its answer, and why there is none or nothing."""
        try:
            return await self._ask(question), ''
        except Unavailable as error:
            return {}, str(error)

    async def _ask(self, question: Dict[str, Any]) -> Dict[str, Any]:
        """Ask the daemon, which is started if there is none.

        Raises:
            Unavailable: it cannot be asked, or says no.
        """
        host = os.uname().nodename
        if host != self._home:
            words = f'the jobs of this run are in the embedded queue of {self._home}, not of {host}'
            raise Unavailable(words, REFUSED)
        data = json.dumps(dict(question, version=VERSION)).encode()
        for attempt in range(TRIES):
            answer = await self._exchange(data)
            if answer is not None:
                if 'no' in answer:
                    raise Unavailable(answer['no'], answer['kind'])
                return answer
            await asyncio.sleep(PAUSE * attempt)
            await self._start()
        words = f'the embedded queue cannot be reached: see {self._folder}/messages'
        raise Unavailable(words, AMBIGUOUS)

    async def _exchange(self, data: bytes) -> Optional[Dict[str, Any]]:
        """Ask the daemon, in a thread; None: there is none, or it has died meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            answer: Dict[str, Any] = json.loads(
                await loop.run_in_executor(None, ask, self._folder, data)
            )
        except socket.timeout:
            words = f'the embedded queue has not answered for {ANSWER_TIMEOUT:g} s'
            raise Unavailable(words, AMBIGUOUS) from None
        except (OSError, ValueError):
            return None
        return answer

    async def _start(self) -> None:
        """Start the daemon, once for all who ask it at the same time."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._launch())
        try:
            await asyncio.shield(self._starting)
        finally:
            self._starting = None

    async def _launch(self) -> None:
        host = os.uname().nodename.partition('.')[0]
        argv = [sys.executable, self._entry, 'localqueued', self._folder, host, self._settings]
        done = await run_command(argv, self._env, START_TIMEOUT)
        if done.returncode != 0:
            words = done.error or done.stderr.decode('utf-8', 'replace').strip()
            kind = UNREACHABLE if done.returncode == NO_ROOM else REFUSED
            raise Unavailable(
                f'the embedded queue cannot be started in {self._folder}: {words}', kind
            )


def _not_submitted(kind: str, words: str) -> SubmitReply:
    return SubmitReply(kind, '', '', '', words, None)


def _umask() -> int:
    """Return this process's umask; asking for it by setting it would hit other threads."""
    with open('/proc/self/status') as file:
        lines = dict(line.split(':', 1) for line in file)
    return int(lines['Umask'], 8)


def ask(folder: str, data: bytes) -> bytes:
    """Ask the daemon of a folder; blocks.

    Raises:
        socket.timeout: it does not answer.
        OSError: there is none.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ANSWER_TIMEOUT)
            # The folder's own path may be too long for the name of a socket.
            line.connect(f'/proc/self/fd/{descriptor}/{SOCKET}')
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            return b''.join(iter(lambda: line.recv(1 << 16), b''))
    finally:
        os.close(descriptor)
