"""What the agent asks of a queue system, whichever it is."""

from __future__ import annotations

from typing import NamedTuple, Optional, Protocol, Sequence, Tuple

from .slurm_parsers import AccountingRow, ClusterLimits, JobRow


class SubmitReply(NamedTuple):
    """What became of a submission.

    Attributes:
        kind: see the constants of `slurm_verdict`: 'submitted', 'refused', 'unreachable', 'busy',
            'limit' or 'ambiguous'.
        job_id: the job's or array's id if it is submitted, else empty.
        cluster: the cluster that has it, if the user named any: to be given to the other
            methods from then on.
        stdout: what sbatch printed.
        stderr: sbatch's words, or why it could not be run.
        returncode: its exit status; negative: ended by a signal; None: it did not end by itself.
    """

    kind: str
    job_id: str
    cluster: str
    stdout: str
    stderr: str
    returncode: Optional[int]


class QueryReply(NamedTuple):
    """All of the user's jobs that the queue knows.

    Attributes:
        ok: whether it answered. If not, nothing is known, and nothing changes.
        rows: pending, running, and those that ended a short while ago.
        error: why it did not.
    """

    ok: bool
    rows: Sequence[JobRow] = ()
    error: str = ''


class HistoryReply(NamedTuple):
    """What the accounting knows about jobs. A job without a row may yet get one."""

    ok: bool
    rows: Sequence[AccountingRow] = ()
    error: str = ''


class CommandReply(NamedTuple):
    """How a command ended. Of scancel, ``ok`` proves nothing about any job."""

    ok: bool
    returncode: Optional[int] = 0
    stdout: str = ''
    stderr: str = ''


class LookupReply(NamedTuple):
    """Which job was submitted from a script.

    Attributes:
        ok: whether the queue answered.
        job_id: the job's or array's id; None if there is none, as far as it knows.
        others: further ids, should the script have been submitted more than once.
        error: why it did not answer.
    """

    ok: bool
    job_id: Optional[str] = None
    others: Tuple[str, ...] = ()
    error: str = ''


class Queue(Protocol):
    """A queue system: Slurm, or the embedded one.

    No method raises because a command failed, was slow or is missing: the reply says so. All are
    coroutines that stall nothing else. ``clusters`` is for sites with several.
    """

    async def submit(
        self,
        script_path: str,
        options: Sequence[str],
        cwd: str,
        script_options: Sequence[Tuple[str, Optional[str]]] = (),
    ) -> SubmitReply:
        """Submit a batch script.

        Args:
            script_path: absolute, and of no other job's script: the job is looked up by it.
            options: sbatch's, spelled ``--name=value``.
            cwd: where relative paths start, and where the job runs unless an option says else.
            script_options: what the ``#SBATCH`` lines of the script say, for a queue that does
                not read them itself: long name, value or None. ``options`` win over them.
        """

    async def query(self, clusters: str = '') -> QueryReply:
        """List all of the user's jobs."""

    async def history(self, job_ids: Sequence[str], clusters: str = '') -> HistoryReply:
        """Ask the accounting about jobs, arrays or tasks; it answers with all tasks of an array."""

    async def cancel(self, ids: Sequence[str], clusters: str = '') -> CommandReply:
        """Cancel jobs (``12``), tasks (``12_7``) or several tasks (``12_[0-2,5]``)."""

    async def lookup(self, script_path: str, clusters: str = '') -> LookupReply:
        """Find the job that was submitted from a script."""

    async def limits(self, clusters: str = '') -> ClusterLimits:
        """Say what the cluster allows; Slurm's defaults while it does not say."""
