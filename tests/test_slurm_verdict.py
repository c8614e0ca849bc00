"""What sbatch's exit status and words prove about a submission; most were met on Slurm 22.05.8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_futures.remote.slurm_verdict import (
    AMBIGUOUS,
    BUSY,
    LIMIT,
    REFUSED,
    SUBMITTED,
    UNREACHABLE,
    Verdict,
    classify_sbatch_failure,
    judge_submission,
)

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


def failed(reason: str, *before: str) -> str:
    """What sbatch says at the end."""
    lines = [*before, f'Batch job submission failed: {reason}']
    return ''.join(f'sbatch: error: {line}\n' for line in lines)


@pytest.mark.parametrize(
    'stderr',
    [
        failed('Invalid partition name specified', 'invalid partition specified: nope'),
        failed('Invalid account or account/partition combination specified'),
        failed('Invalid job array specification'),
        failed('Requested node configuration is not available'),
        failed('Unspecified error', 'Please specify an account'),
        failed('Access/permission denied'),
        failed(POLICY, 'QOSMaxWallDurationPerJobLimit'),
        failed(POLICY),
        failed('Incompatible versions of client and server code'),
        failed('An error that Slurm 29.05 may invent'),
    ],
)
def test_the_controllers_no_is_a_refusal(stderr: str) -> None:
    """Each answer but those below means that Slurm does not have the job."""
    assert classify_sbatch_failure(1, stderr) == REFUSED


@pytest.mark.parametrize(
    ('returncode', 'stderr'),
    [
        (1, 'sbatch: error: Unable to open file /nonexistent\n'),
        (255, 'sbatch: error: Invalid --time specification\n'),
        (255, 'sbatch: unrecognized option \'--foo\'\nTry "sbatch --help" for more information\n'),
        (255, "/usr/bin/sbatch: option '--mem' requires an argument\n"),
        (1, "sbatch: error: No cluster 'nope' known by database.\n"),
        (127, '/opt/bin/sbatch: line 3: sbatch.real: command not found\n'),
        (126, ''),
    ],
)
def test_what_sbatch_rejects_itself_is_a_refusal(returncode: int, stderr: str) -> None:
    """It complains before it submits; and what was not executed did not submit."""
    assert classify_sbatch_failure(returncode, stderr) == REFUSED


@pytest.mark.parametrize(
    'stderr',
    [
        failed('Unable to contact slurm controller (connect failure)'),
        failed('Slurm backup controller in standby mode'),
        failed(
            'Protocol authentication error',
            'If munged is up, restart with --num-threads=10',
            'Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file',
            'slurm_send_node_msg: auth_g_create: REQUEST_SUBMIT_BATCH_JOB has authentication error',
        ),
        'sbatch: fatal: Could not establish a configuration source\n',
        'sbatch: error: slurmdbd: Sending PersistInit msg: Connection refused\n',
    ],
)
def test_what_was_never_sent_may_be_sent_again(stderr: str) -> None:
    """No connection, no munged, no configuration: the controller never saw the job."""
    assert classify_sbatch_failure(1, stderr) == UNREACHABLE


@pytest.mark.parametrize(
    'stderr',
    [
        failed(POLICY, 'AssocMaxSubmitJobLimit'),
        failed(POLICY, 'AssocGrpSubmitJobsLimit'),
        failed(POLICY, 'QOSMaxSubmitJobPerUserLimit'),
        failed('MaxJobCount limit reached'),
    ],
)
def test_submit_limits_are_told_from_other_policies(stderr: str) -> None:
    """The line before tells which limit: one on the number of jobs goes by."""
    assert classify_sbatch_failure(1, stderr) == LIMIT


@pytest.mark.parametrize(
    'stderr',
    [
        'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n'
        + failed('Resource temporarily unavailable'),
        failed('Requested nodes are busy'),
        failed('Rate limit exceeded, please retry later'),
    ],
)
def test_what_slurm_wants_to_be_tried_later(stderr: str) -> None:
    """With MaxJobCount jobs, sbatch tries for two minutes and gives up with EAGAIN."""
    assert classify_sbatch_failure(1, stderr) == BUSY


@pytest.mark.parametrize(
    'stderr',
    [
        failed('Socket timed out on send/recv operation'),
        failed('Zero Bytes were transmitted or received'),
        failed('Connection reset by peer'),
        failed('Broken pipe'),
        failed('Unexpected missing socket error', 'slurm_msg_sendto: address:port=...'),
        failed('Unable to contact slurm controller (receive failure)'),
        failed('Protocol authentication error'),
        failed('Unspecified error', 'slurm_unpack_received_msg: Message receive failure'),
        failed(
            'Incompatible versions of client and server code',
            'unpack_header: protocol_version 30840 not supported',
        ),
    ],
)
def test_a_lost_answer_proves_nothing(stderr: str) -> None:
    """The controller may have the job: reproduced with a stopped one, whose job ran later."""
    assert classify_sbatch_failure(1, stderr) == AMBIGUOUS


@pytest.mark.parametrize('returncode', [None, -9, -15, 2, 77, 137])
@pytest.mark.parametrize(
    'stderr', ['', 'Fehler: abgelehnt', 'sbatch: error: temporarily unable, sleeping and retrying']
)
def test_an_end_that_is_not_sbatchs_own_proves_nothing(returncode: int | None, stderr: str) -> None:
    """Killed, or a wrapper's status: it may have submitted before."""
    assert classify_sbatch_failure(returncode, stderr) == AMBIGUOUS


@pytest.mark.parametrize('returncode', [1, 255])
def test_words_that_are_not_sbatchs_prove_nothing(returncode: int) -> None:
    """A wrapper in another language may say anything."""
    assert classify_sbatch_failure(returncode, 'Auftrag abgelehnt\n') == AMBIGUOUS


@given(st.none() | st.integers(-64, 255), st.text(), st.text())
def test_any_end_gets_a_verdict(returncode: int | None, stdout: str, stderr: str) -> None:
    """Nothing raises, and a job counts as submitted only if there is an id."""
    verdict = judge_submission(returncode, stdout, stderr)
    assert (verdict.kind == SUBMITTED) == bool(verdict.job_id)


@pytest.mark.parametrize(
    ('returncode', 'stdout', 'stderr', 'verdict'),
    [
        (0, '38\n', '', Verdict(SUBMITTED, '38')),
        (0, '2;far\n', 'sbatch: error: spank: noise\n', Verdict(SUBMITTED, '2', 'far')),
        (0, '', '', Verdict(AMBIGUOUS)),
        (7, '37\n', '', Verdict(SUBMITTED, '37')),
        (None, '37\n', '', Verdict(SUBMITTED, '37')),
        (None, 'quota ok\n37\n', '', Verdict(AMBIGUOUS)),
        (1, '1000\n', failed('Socket timed out on send/recv operation'), Verdict(AMBIGUOUS)),
        (1, '1000\n', failed('Invalid qos specification'), Verdict(REFUSED)),
        (1, '', failed('Invalid qos specification'), Verdict(REFUSED)),
    ],
)
def test_when_an_id_counts(
    returncode: int | None, stdout: str, stderr: str, verdict: Verdict
) -> None:
    """`#SBATCH --wait` prints the id and passes on the job's exit code, or hangs until killed."""
    assert judge_submission(returncode, stdout, stderr) == verdict
