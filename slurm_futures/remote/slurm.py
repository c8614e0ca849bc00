"""Slurm as a queue: runs its commands. What they print is read in `slurm_parsers`."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any, Mapping, Optional, Sequence, Tuple

from . import slurm_commands as commands
from .queues import CommandReply, HistoryReply, LookupReply, QueryReply, SubmitReply
from .slurm_parsers import (
    AccountingRow,
    ClusterLimits,
    find_script,
    find_submission,
    parse_config,
    parse_sacct,
    parse_squeue,
)
from .slurm_verdict import REFUSED, UNREACHABLE, judge_submission
from .subprocesses import Finished, run_command

SUBMIT_TIMEOUT = 200.0
"""Seconds for sbatch, which retries for 120 by itself, and waits for answers in between."""
QUERY_TIMEOUT = 120.0
"""Seconds for the other commands; a throttled one sleeps and retries, silently (rl_enable)."""
SUBMISSIONS = 4
"""How many sbatch may run at once: the rest waits, so that the controller need not."""

_NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_WORDS = 4000


class SlurmQueue:
    """Slurm, through its commands; a `queues.Queue`.

    Args:
        settings: names or paths of the commands: sbatch_bin, squeue_bin, scancel_bin, sacct_bin,
            scontrol_bin; and submit_timeout and query_timeout in seconds. What is missing gets
            its default; other keys are not looked at.
        env: the environment of a login shell of the user.
    """

    def __init__(self, settings: Mapping[str, Any], env: Mapping[str, str]) -> None:
        names = ('sbatch', 'squeue', 'scancel', 'sacct', 'scontrol')
        self._bin = {name: str(settings.get(f'{name}_bin', name)) for name in names}
        self._submit_timeout = float(settings.get('submit_timeout', SUBMIT_TIMEOUT))
        self._query_timeout = float(settings.get('query_timeout', QUERY_TIMEOUT))
        self._submit_env = commands.clean_environment(env)
        self._query_env = commands.query_environment(env)
        self._clusters = commands.default_clusters(env)
        self._limits: dict[str, ClusterLimits] = {}
        self._turns: asyncio.Semaphore | None = None

    async def submit(
        self,
        script_path: str,
        options: Sequence[str],
        cwd: str,
        script_options: Sequence[Tuple[str, Optional[str]]] = (),  # noqa: ARG002 - sbatch reads them
    ) -> SubmitReply:
        """Submit a batch script; see `queues.Queue`."""
        argv = commands.sbatch_argv(self._bin['sbatch'], options, script_path)
        # Python 3.8 binds it to the loop that it is made in.
        self._turns = self._turns or asyncio.Semaphore(SUBMISSIONS)
        async with self._turns:
            done = await run_command(argv, self._submit_env, self._submit_timeout, cwd)
        stdout, stderr = _text(done.stdout), _words(argv[0], done, self._submit_timeout, cwd)
        if done.error:
            kind = UNREACHABLE if done.error.errno in _NO_ROOM else REFUSED
            return SubmitReply(kind, '', '', stdout, stderr, None)
        verdict = judge_submission(done.returncode, stdout, _text(done.stderr))
        return SubmitReply(*verdict, stdout, stderr, done.returncode)

    async def query(self, clusters: str = '') -> QueryReply:
        """List all of the user's jobs; see `queues.Queue`."""
        argv = commands.squeue_argv(self._bin['squeue'], clusters or self._clusters)
        done, error = await self._ask(argv)
        return QueryReply(not error, parse_squeue(_text(done)), error)

    async def history(self, job_ids: Sequence[str], clusters: str = '') -> HistoryReply:
        """Ask sacct about jobs; see `queues.Queue`."""
        rows: list[AccountingRow] = []
        for some in commands.chunks(commands.base_ids(job_ids)):
            argv = commands.sacct_argv(self._bin['sacct'], some, clusters or self._clusters)
            done, error = await self._ask(argv)
            if error:
                return HistoryReply(ok=False, error=error)
            rows += parse_sacct(_text(done))
        return HistoryReply(ok=True, rows=rows)

    async def cancel(self, ids: Sequence[str], clusters: str = '') -> CommandReply:
        """Cancel jobs and tasks; see `queues.Queue`. Stops at the first command that fails."""
        reply = CommandReply(ok=True)
        for some in commands.chunks(commands.merge_ids(ids)):
            argv = commands.scancel_argv(self._bin['scancel'], some, clusters or self._clusters)
            done = await run_command(argv, self._query_env, self._query_timeout)
            words = _words(argv[0], done, self._query_timeout)
            reply = CommandReply(done.returncode == 0, done.returncode, _text(done.stdout), words)
            if not reply.ok:
                break
        return reply

    async def lookup(self, script_path: str, clusters: str = '') -> LookupReply:
        """Find the job submitted from a script, also in the accounting; see `queues.Queue`."""
        clusters = clusters or self._clusters
        done, error = await self._ask(commands.lookup_argv(self._bin['squeue'], clusters))
        if error:
            return LookupReply(ok=False, error=error)
        found = find_script(os.fsdecode(done), script_path)
        if not found:
            # It may have ended long ago; where there is no accounting, squeue's word is all.
            user = str(os.getuid())
            argv = commands.accounting_lookup_argv(self._bin['sacct'], user, clusters)
            found = find_submission(os.fsdecode((await self._ask(argv))[0]), script_path)
        first = found[0] if found else None
        return LookupReply(ok=True, job_id=first, others=tuple(found[1:]))

    async def limits(self, clusters: str = '') -> ClusterLimits:
        """Say what the cluster allows; asked once. See `queues.Queue`."""
        if clusters not in self._limits:
            argv = commands.scontrol_argv(self._bin['scontrol'], clusters or self._clusters)
            limits = parse_config(_text((await self._ask(argv))[0]))
            if not limits.known:
                return limits
            self._limits[clusters] = limits
        return self._limits[clusters]

    async def _ask(self, argv: Sequence[str]) -> tuple[bytes, str]:
        """Run a command that only asks; return what it printed, and why it failed or nothing."""
        done = await run_command(argv, self._query_env, self._query_timeout)
        if done.returncode == 0:
            return done.stdout, ''
        return b'', _words(argv[0], done, self._query_timeout)


def _words(name: str, done: Finished, timeout: float, cwd: str | None = None) -> str:
    """Return what a command said, or why it said nothing."""
    if done.error:
        return _why_not_started(name, done.error, cwd)
    words = _text(done.stderr)[-_WORDS:]
    if done.returncode is None:
        return f'{words}{name} was killed: it had not ended after {timeout:g} s'
    if done.returncode and not words.strip():
        return f'{name} ended with status {done.returncode} and no word why'
    return words


def _why_not_started(name: str, error: OSError, cwd: str | None) -> str:
    host = os.uname().nodename
    if cwd and error.filename == cwd:
        return f'cannot work in {cwd} on {host}: {error.strerror}'
    if error.errno == errno.ENOENT:
        where = f'does not exist on {host}' if '/' in name else f'not found on PATH of {host}'
        return f'{name} {where}'
    return f'cannot run {name} on {host}: {error.strerror}'


def _text(data: bytes) -> str:
    return data.decode('utf-8', 'replace')
