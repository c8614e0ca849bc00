"""SlurmQueue against a real Slurm: what its commands print is what the parsers expect."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cluster.client import Control
from cluster.processes import eventually
from slurm_futures.remote.queues import CommandReply, LookupReply, QueryReply, SubmitReply
from slurm_futures.remote.slurm import SlurmQueue
from slurm_futures.remote.slurm_parsers import (
    AccountingRow,
    ArrayRows,
    ClusterLimits,
    JobRow,
    expand_tasks,
)
from slurm_futures.remote.states import JobState

pytestmark = pytest.mark.usefixtures('cancel_jobs')
T = TypeVar('T')
PATIENCE_S = 60.0

SPARSE = '0,2,4,7,9,11,15,18,22,25,29,33,38,41,48,55,59,61,66,72,88,91,95,99-120'
"""Longer than the 64 bytes that Slurm prints of such a list by default."""


def ask(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait for one answer."""
    return asyncio.run(coroutine)


@pytest.fixture
def queue(cluster: Control) -> SlurmQueue:
    """The cluster's queue, with the environment that a job would have too."""
    return SlurmQueue({}, {**os.environ, 'SLURM_JOB_ID': '1', 'SQUEUE_STATES': 'RUNNING'})


class Desk:
    """Submits scripts from a folder with a name full of traps."""

    def __init__(self, queue: SlurmQueue, folder: Path) -> None:
        self.queue = queue
        self.folder = folder

    def script(self, *lines: str, name: str = 'job.sh') -> str:
        """Write a script."""
        path = self.folder / name
        path.write_text('\n'.join(['#!/bin/sh', *lines]) + '\n')
        return str(path)

    def submit(self, script: str, *options: str) -> SubmitReply:
        """Submit it."""
        return ask(self.queue.submit(script, options, str(self.folder)))

    def job(self, *lines: str, options: tuple[str, ...] = ()) -> str:
        """Submit a job that Slurm takes; its id."""
        reply = self.submit(self.script(*lines), *options)
        assert reply.kind == 'submitted', reply
        return reply.job_id

    def rows(self, job: str) -> list[JobRow]:
        """What squeue lists of a job."""
        reply = ask(self.queue.query())
        assert reply.ok, reply
        return [row for row in reply.rows if row.job_id == job]

    def row(self, job: str, index: int | None = None) -> JobRow | None:
        """What it lists of a task."""
        return ArrayRows(self.rows(job)).find(index)

    def state(self, job: str, index: int | None = None) -> str:
        """The task's state; 'absent' if it is not listed."""
        row = self.row(job, index)
        return row.state if row else 'absent'

    def reaches(self, job: str, wanted: str, index: int | None = None) -> bool:
        """Whether it gets into this state."""
        return eventually(lambda: self.state(job, index) == wanted, PATIENCE_S)

    def history(
        self, job: str, condition: Callable[[list[AccountingRow]], bool]
    ) -> list[AccountingRow]:
        """What sacct says once it says what is expected: rows appear late."""
        found: list[AccountingRow] = []

        def known() -> bool:
            found[:] = ask(self.queue.history([job])).rows
            return condition(found)

        assert eventually(known, PATIENCE_S), found
        return found


@pytest.fixture
def desk(queue: SlurmQueue, work_dir: Path) -> Desk:
    """A desk in an empty folder."""
    return Desk(queue, work_dir)


def slurm(*argv: str) -> None:
    """Do something to a job, as another program of the user's would."""
    subprocess.run(argv, check=True, timeout=60)


# ---- squeue


def test_a_job_from_submission_to_its_end(desk: Desk) -> None:
    """It runs in its folder, is listed with its node, and as COMPLETED after its end."""
    job = desk.job('pwd -P > done')
    assert desk.reaches(job, 'COMPLETED')
    row = desk.row(job)
    assert row is not None
    assert (row.tasks, row.raw_id, row.nodes[:1]) == ('', job, 'n')
    assert (desk.folder / 'done').read_text() == f'{desk.folder.resolve()}\n'


def test_long_lists_of_tasks_are_printed_whole(desk: Desk) -> None:
    """SLURM_BITSTR_LEN=0 does it; the limit on running tasks is not part of the list."""
    job = desk.job('sleep 600', options=('--hold', f'--array={SPARSE}%3'))
    [row] = desk.rows(job)
    assert list(expand_tasks(row.tasks)) == list(expand_tasks(SPARSE))
    assert not expand_tasks(row.tasks).truncated
    assert (row.state, row.needs_attention) == ('PENDING', True)


def test_tasks_of_an_array_in_several_states(desk: Desk) -> None:
    """Running, waiting, held and requeued into a hold: each task is found in its own state."""
    job = desk.job('sleep 600', options=('--array=0-40:2%2',))
    assert desk.reaches(job, 'RUNNING', 0)
    assert desk.reaches(job, 'RUNNING', 2)
    slurm('scontrol', 'hold', f'{job}_10')
    slurm('scontrol', 'requeuehold', f'{job}_0')
    assert desk.reaches(job, 'PENDING', 0)
    assert desk.reaches(job, 'RUNNING', 4)
    rows = ArrayRows(desk.rows(job))
    attention = {i: row.needs_attention for i in range(0, 41, 2) if (row := rows.find(i))}
    assert attention == {i: i in {0, 10} for i in range(0, 41, 2)}
    assert [rows.find(i) for i in (1, 3, 41, 42)] == [None] * 4


def test_a_requeued_job_is_never_taken_for_ended(desk: Desk) -> None:
    """It is COMPLETING and then PENDING again, under its id."""
    job = desk.job('sleep 600')
    assert desk.reaches(job, 'RUNNING')
    slurm('scontrol', 'requeue', job)
    seen: set[str] = set()

    def pending() -> bool:
        seen.add(desk.state(job))
        return 'PENDING' in seen

    assert eventually(pending, PATIENCE_S)
    states = {JobState.parse(name) for name in seen}
    assert all(state is not None and state.is_live for state in states), seen


def test_a_released_special_exit_waits_for_a_person(desk: Desk) -> None:
    """A job requeued as SPECIAL_EXIT shows so."""
    job = desk.job('sleep 600')
    assert desk.reaches(job, 'RUNNING')
    slurm('scontrol', 'requeuehold', 'State=SpecialExit', job)
    assert desk.reaches(job, 'SPECIAL_EXIT')
    row = desk.row(job)
    assert row is not None
    assert row.needs_attention


def test_jobs_in_a_hidden_partition_are_listed(faults: Control, desk: Desk) -> None:
    """Without --all, squeue would leave out a running job of the user's own."""
    faults.scontrol('create', 'PartitionName=secret', 'Nodes=n1', 'Hidden=YES', 'State=UP')
    try:
        job = desk.job('sleep 600', options=('--partition=secret',))
        assert desk.reaches(job, 'RUNNING')
        ask(desk.queue.cancel([job]))
        assert desk.reaches(job, 'CANCELLED')
    finally:
        faults.scontrol('delete', 'PartitionName=secret')


# ---- scancel


def test_tasks_are_cancelled_together_and_leave_no_trace(desk: Desk) -> None:
    """Pending tasks cancelled out of an array are absent at once; the others stay."""
    job = desk.job('sleep 600', options=('--hold', '--array=0-20'))
    tasks = [f'{job}_{i}' for i in range(0, 20, 2)]
    reply = ask(desk.queue.cancel([*tasks, f'{job}_99', '4294967', 'nonsense']))
    assert reply.ok, reply
    [row] = desk.rows(job)
    assert list(expand_tasks(row.tasks)) == [*range(1, 20, 2), 20]
    assert ask(desk.queue.cancel([job])).ok
    assert desk.state(job, 20) == 'CANCELLED'
    assert desk.state(job, 2) == 'absent'


def test_the_rest_of_an_array_cancelled_by_name(desk: Desk) -> None:
    """squeue names no tasks in its row then, which stands for each that has none of its own."""
    name = f'name{os.getpid()}'
    job = desk.job('sleep 600', options=('--array=0-20%1', f'--job-name={name}'))
    assert desk.reaches(job, 'RUNNING', 0)
    slurm('scancel', f'--jobname={name}')
    assert desk.reaches(job, 'CANCELLED', 0)
    assert desk.reaches(job, 'CANCELLED', 20)


# ---- sbatch


def test_refusals_carry_sbatchs_words(desk: Desk) -> None:
    """By the controller, or by sbatch itself."""
    refused = desk.submit(desk.script(), '--partition=nope')
    assert (refused.kind, refused.returncode) == ('refused', 1)
    assert 'invalid partition specified: nope' in refused.stderr
    refused = desk.submit(desk.script(), '--no-such-option=1')
    assert refused.kind == 'refused'
    assert 'no-such-option' in refused.stderr
    refused = desk.submit(str(desk.folder / 'missing.sh'))
    assert refused.kind == 'refused'
    assert 'Unable to open file' in refused.stderr
    assert desk.submit(desk.script(), '--array=0-99999999').kind == 'refused'


def test_a_submit_limit_is_no_refusal(accounting: Control, desk: Desk) -> None:
    """An array over the limit is not taken now; another of the user's policies is final."""
    user = accounting.settings.user
    accounting.sacctmgr('modify', 'user', user, 'set', 'GrpSubmitJobs=3')
    try:
        reply = desk.submit(desk.script(), '--array=0-9')
    finally:
        accounting.sacctmgr('modify', 'user', user, 'set', 'GrpSubmitJobs=-1')
    assert reply.kind == 'limit', reply


def test_a_job_whose_dependency_cannot_be_met_ends(desk: Desk) -> None:
    """It would be PENDING for ever without --kill-on-invalid-dep."""
    first = desk.job('exit 3')
    assert desk.reaches(first, 'FAILED')
    second = desk.job('true', options=(f'--dependency=afterok:{first}',))
    assert desk.reaches(second, 'CANCELLED')


def test_a_script_that_asks_to_wait_is_submitted(desk: Desk) -> None:
    """`#SBATCH --wait` passes on the job's exit code; the id counts."""
    reply = desk.submit(desk.script('#SBATCH --wait', 'exit 7'))
    assert (reply.kind, reply.returncode) == ('submitted', 7)


def test_a_silent_sbatch_is_looked_up(desk: Desk) -> None:
    """With --quiet it tells no id; squeue knows it by the script's path."""
    script = desk.script('sleep 600')
    reply = desk.submit(script, '--quiet', '--array=0-2%1')
    assert reply.kind == 'ambiguous'
    found = ask(desk.queue.lookup(script))
    assert found.ok
    assert found.job_id is not None
    assert {row.job_id for row in desk.rows(found.job_id)} == {found.job_id}
    assert ask(desk.queue.lookup(script + 'x')) == LookupReply(ok=True)


# ---- a controller that is away


def test_a_job_accepted_while_the_answer_was_lost_is_found(faults: Control, desk: Desk) -> None:
    """slurmctld stopped: sbatch gives up, the job runs all the same, the lookup finds it."""
    script = desk.script('exit 0')

    async def submit_and_query() -> tuple[SubmitReply, QueryReply]:
        submission = desk.queue.submit(script, [], str(desk.folder))
        return await asyncio.gather(submission, desk.queue.query())

    faults.signal('slurmctld', signal.SIGSTOP)
    reply, listed = ask(submit_and_query())
    faults.signal('slurmctld', signal.SIGCONT)
    assert (reply.kind, reply.job_id) == ('ambiguous', ''), reply
    assert not listed.ok
    assert eventually(lambda: ask(desk.queue.lookup(script)).job_id is not None, PATIENCE_S)


def test_without_a_controller_nothing_is_sent_and_nothing_known(
    faults: Control, desk: Desk
) -> None:
    """Submitting again is safe, and no answer is an empty one."""
    script, queue = desk.script(), desk.queue

    async def everything() -> tuple[
        SubmitReply, QueryReply, LookupReply, CommandReply, ClusterLimits
    ]:
        return await asyncio.gather(
            queue.submit(script, [], str(desk.folder)),
            queue.query(),
            queue.lookup(script),
            queue.cancel(['1']),
            queue.limits(),
        )

    faults.kill('slurmctld')
    reply, listed, found, cancelled, limits = ask(everything())
    assert reply.kind == 'unreachable', reply
    assert not listed.ok
    assert not found.ok
    assert not cancelled.ok
    assert not limits.known


# ---- sacct and scontrol


def test_the_accounting_tells_how_tasks_ended(accounting: Control, desk: Desk) -> None:
    """Exit code, signal and times of each task, asked for by the id of one of them."""
    body = 'case $SLURM_ARRAY_TASK_ID in 0) exit 3;; 1) kill -SEGV $$;; esac'
    job = desk.job(body, options=('--array=0-2',))
    desk.history(f'{job}_0', lambda rows: sum(row.end is not None for row in rows) == 3)
    rows = {row.tasks: row for row in ask(desk.queue.history([f'{job}_0', f'{job}_2'])).rows}
    assert {row.job_id for row in rows.values()} == {job}
    ends = {tasks: (row.state, row.exit_code, row.signal) for tasks, row in rows.items()}
    assert ends == {'0': ('FAILED', 3, 0), '1': ('FAILED', 0, 11), '2': ('COMPLETED', 0, 0)}
    for row in rows.values():
        assert row.submit is not None
        assert row.end is not None
        assert 0 <= row.end - row.submit < 300


def test_the_accounting_lists_cancelled_tasks_together(accounting: Control, desk: Desk) -> None:
    """Tasks that never started share a row, which is whole however long."""
    job = desk.job('true', options=('--partition=down', f'--array={SPARSE}%3'))
    desk.history(job, lambda rows: [row.state for row in rows] == ['PENDING'])
    assert ask(desk.queue.cancel([job])).ok
    [row] = desk.history(job, lambda rows: any(row.end for row in rows))
    assert JobState.parse(row.state) is JobState.CANCELLED
    assert list(expand_tasks(row.tasks)) == list(expand_tasks(SPARSE))
    assert row.nodes == ''


def test_a_job_is_found_in_the_accounting(accounting: Control, desk: Desk) -> None:
    """By its command line, when squeue does not know it any more."""
    script = desk.script('true', name='job 2.sh')
    job = desk.submit(script, '--array=1-2').job_id
    blind = SlurmQueue({'squeue_bin': 'true'}, os.environ)
    assert eventually(lambda: ask(blind.lookup(script)).job_id == job, PATIENCE_S)


def test_what_the_cluster_allows(cluster: Control, queue: SlurmQueue) -> None:
    """Limits, version and name come from the controller."""
    limits = ask(queue.limits())
    assert limits.known
    assert limits.version.count('.') == 2
    assert limits.min_job_age == int(cluster.settings.options['MinJobAge'])
    assert 0 < limits.max_array_tasks <= limits.max_array_size
    assert limits.cluster
