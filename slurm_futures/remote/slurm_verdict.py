"""What became of a submission, by sbatch's exit status and words. Pure.

sbatch exits with 1 whether the controller said no, could not be reached, or fell silent after it
may have accepted the job: only the words tell. They can be relied on, because Slurm translates
none of them: `slurm_errtab` in src/common/slurm_errno.c. A job that was accepted must never be
taken for a refused one, so where the words prove nothing, neither do we claim anything.
"""

from __future__ import annotations

import errno
import os
import re
from typing import NamedTuple

from .slurm_parsers import parse_sbatch

SUBMITTED = 'submitted'
"""Slurm has the job."""
REFUSED = 'refused'
"""Slurm does not have the job, and will not take it unless something is changed."""
UNREACHABLE = 'unreachable'
"""The job was never sent: submitting again is safe."""
BUSY = 'busy'
"""Slurm does not have the job now, and asks to be tried again later."""
LIMIT = 'limit'
"""Slurm does not have the job: too many are submitted; there is room again when some end."""
AMBIGUOUS = 'ambiguous'
"""Slurm may have the job: look it up by the path of its script before anything else."""

_FAILED = re.compile(r'Batch job submission failed: (.*\S)')
_SUBMIT_LIMIT = re.compile(r'\b(?:Assoc|QOS)\w*Submit\w*Limit\b|MaxJobCount limit')
_SOLE_ID = re.compile(r'\s*\d+(?:;\S+)?\s*', re.ASCII)

# Before it submits, sbatch complains in two forms: its log, and getopt_long(3).
_COMPLAINT = re.compile(
    r'^\S+: (?:error|fatal): |^\S+: (?:unrecognized|invalid|unknown) option'
    r"|^\S+: option .* (?:requires an argument|is ambiguous|doesn't allow an argument)",
    re.MULTILINE,
)
# sbatch exits with `error_exit`, that is 1, or with -1.
_OWN_STATUS = (1, 255)
# execvp's failure, by the convention of shells, should sbatch be a wrapper script.
_NOT_EXECUTED = (126, 127)

_NO_SERVICE = re.compile(
    r'configuration source|failed to fetch config|slurmdbd|connect to database|[Mm]unge encode'
    r'|Unable to contact slurm controller'
)

_UNSENT = frozenset(
    {
        'Communication connection failure',
        'Connection timed out establishing',
        'Controller is in standby mode, try a different controller',
        'Slurm backup controller in standby mode',
        'Unable to contact slurm controller (connect failure)',
    }
)

# Where sbatch gives up on these it has tried for two minutes; for EAGAIN, that is what a
# controller says that has MaxJobCount jobs already (measured, 22.05): src/sbatch/sbatch.c.
_RETRY = frozenset(
    {
        os.strerror(errno.EAGAIN),
        'Rate limit exceeded, please retry later',
        'Rate limit exceeded, please retry momentarily',
        'Requested nodes are busy',
        'Required ports are in use',
        'Unable to create job record, try again',
    }
)

# Without munged nothing can be sent; but an answer's signature may be what is not accepted.
_AUTHENTICATION = 'Protocol authentication error'
_UNSIGNED = re.compile(r'auth\w*_create: REQUEST_SUBMIT')

# The request was on its way, or the answer could not be read: slurm_send_recv_controller_msg().
_LOST = frozenset(
    {
        'Communication shutdown failure',
        'Connection forced closed by quiesce timeout',
        'Connection rejected by handler',
        'Connection timed out reading',
        'Connection timed out writing',
        'Header lengths are longer than data received',
        'Insane message length',
        'Kernel reported delayed socket error after successful write(), client side likely closed',
        'Message receive failure',
        'Message send failure',
        'Process is shutting down and closing all communications',
        _AUTHENTICATION,
        'Read would block',
        'Socket timed out on send/recv operation',
        'Unable to contact slurm controller (receive failure)',
        'Unable to contact slurm controller (send failure)',
        'Unable to contact slurm controller (shutdown failure)',
        'Unexpected message received',
        'Unexpected missing socket error',
        'Write would block',
        'Zero Bytes were transmitted or received',
    }
)

# An answer that could not be read may end as any error: that of a plugin that rejects the job
# (22.05), or of incompatible versions (24.11; both measured).
_UNREADABLE = re.compile(r'unpack|slurm_receive_msg|Message receive failure')


class Verdict(NamedTuple):
    """What became of a submission: the kind, and if Slurm has the job, its id and cluster."""

    kind: str
    job_id: str = ''
    cluster: str = ''


def judge_submission(returncode: int | None, stdout: str, stderr: str) -> Verdict:
    """Say what became of a submission.

    An id counts when sbatch ends with 0, and when it is all that sbatch printed while nothing
    says that it failed: `#SBATCH --wait` prints it, waits for the job's end and passes on the
    job's exit code, or is killed while waiting, which does not harm the job (measured, 22.05).

    Args:
        returncode: the exit status; negative: ended by a signal; None: killed for being slow.
        stdout: what it printed; an id to begin with, when all went well.
        stderr: its words.
    """
    submitted = parse_sbatch(stdout)
    if submitted and returncode == 0:
        return Verdict(SUBMITTED, *submitted)
    if returncode == 0:
        # Such as `--quiet`, or a wrapper that keeps the id to itself.
        return Verdict(AMBIGUOUS)
    kind = classify_sbatch_failure(returncode, stderr)
    waited = kind == AMBIGUOUS and not _FAILED.search(stderr) and _SOLE_ID.fullmatch(stdout)
    return Verdict(SUBMITTED, *submitted) if submitted and waited else Verdict(kind)


def classify_sbatch_failure(returncode: int | None, stderr: str) -> str:
    """Say what a failed sbatch proves.

    Args:
        returncode: as for `judge_submission`, but not 0.
        stderr: sbatch's words.

    Returns:
        REFUSED, UNREACHABLE, BUSY, LIMIT or, if none of them is proven, AMBIGUOUS.
    """
    reasons = _FAILED.findall(stderr)
    if reasons:
        return _judge_reason(reasons[-1].rstrip('.'), stderr)
    if returncode in _NOT_EXECUTED:
        return REFUSED
    if returncode not in _OWN_STATUS or not _COMPLAINT.search(stderr):
        return AMBIGUOUS
    # Whatever ends sbatch later than this says that the submission failed.
    return UNREACHABLE if _NO_SERVICE.search(stderr) else REFUSED


def _judge_reason(reason: str, stderr: str) -> str:
    if reason in _UNSENT or (reason == _AUTHENTICATION and _UNSIGNED.search(stderr)):
        return UNREACHABLE
    if reason in _RETRY:
        return BUSY
    if reason in _LOST or reason in _system_errors() or _UNREADABLE.search(stderr):
        return AMBIGUOUS
    # Slurm's other errors are the controller's answers, those of later versions too.
    return LIMIT if _SUBMIT_LIMIT.search(stderr) else REFUSED


def _system_errors() -> set[str]:
    return {os.strerror(number) for number in errno.errorcode}
