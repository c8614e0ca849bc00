"""Batches from submission to end, against a fake agent: what Slurm does, and what may fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fakecluster import (
    AMBIGUOUS,
    GPUS,
    GRACE,
    INTERVAL,
    LIMIT,
    NODES,
    UNREACHABLE,
    Reply,
    World,
    accounted,
    error_of,
    is_idle,
    not_submitted,
    only,
    row,
    run,
    run_script,
    run_set,
    scancelled,
    submitted,
)
from slurm_futures.batching import Target
from slurm_futures.errors import (
    ConnectionFailed,
    JobCancelled,
    JobFailed,
    JobLost,
    NodeFail,
    PythonVersionMismatch,
    TimeLimit,
)
from slurm_futures.futures import JobFuture
from slurm_futures.remote.states import JobState
from slurm_futures.resources import Resources, merge

SETTLED = 150.0

# ---- all goes well


def test_one_call(world: World) -> None:
    """A call becomes a job with an id, runs, and gives its value; the spool is empty then."""
    (future,) = run(world)
    assert not world.cluster.submissions
    world.advance(0.02)
    assert (future.job_id, future.job_state) == ('100', JobState.PENDING)
    assert not future.running()
    world.cluster.begin(only(world), 0)
    world.settle()
    assert future.running()
    assert future.job_state is JobState.RUNNING
    world.cluster.finish(only(world), 0)
    world.settle()
    assert future.result() == 0
    assert is_idle(world)
    assert not world.cluster.new


def test_calls_become_an_array(world: World) -> None:
    """Calls that come together are one sbatch; each has the id of its task."""
    futures = run(world, 3)
    world.advance(0.1)
    assert only(world).tasks == 3
    assert '--array=0-2' in only(world).options
    assert [future.job_id for future in futures] == ['100_0', '100_1', '100_2']
    world.cluster.finish(only(world), 2, 0, 1)
    world.settle()
    assert [future.result() for future in futures] == [0, 1, 2]
    assert is_idle(world)


def test_script(world: World) -> None:
    """A script's future runs when the wrapper says so, and ends with its report."""
    future = run_script(world)
    world.settle()
    world.cluster.report(1, '100', started=True)
    world.settle()
    assert future.running()
    assert future.work.logs == ('/logs/out', '/logs/err')
    world.cluster.report(1, '100', ended={'code': 0, 'term': False})
    world.settle()
    assert future.result() is JobState.COMPLETED
    assert is_idle(world)


@pytest.mark.parametrize('check', [True, False])
def test_script_fails(world: World, check: bool) -> None:
    """A failing script raises, with the end of its stderr, or gives its state, unchecked."""
    world.cluster.logs['/logs/err'] = b'no such file\n'
    future = run_script(world, check=check)
    world.settle()
    world.cluster.report(1, '100', started=True)
    world.cluster.report(1, '100', ended={'code': 3, 'term': False})
    world.settle()
    if check:
        error = error_of(future)
        assert isinstance(error, JobFailed)
        assert (error.exit_code, error.stderr) == (3, 'no such file\n')
    else:
        assert future.result() is JobState.FAILED
    assert is_idle(world)


def test_script_that_is_an_array(world: World) -> None:
    """A script's own array ends with its last task, as badly as the worst of them."""
    future = run_script(world, '#!/bin/bash\n#SBATCH --array=1-3\ntrue\n')
    world.settle()
    for task, code in ((3, 0), (1, 0), (2, 7)):
        assert not future.done()
        world.cluster.report(1, '100', task, started=True)
        world.cluster.report(1, '100', task, ended={'code': code, 'term': False})
        world.settle()
    error = error_of(future)
    assert isinstance(error, JobFailed)
    assert (error.exit_code, error.job_id) == (7, '100_2')


def test_cancelled_script_that_is_an_array(world: World) -> None:
    """Cancelling its one future removes the whole job: no task of it ever begins."""
    future = run_script(world, '#!/bin/bash\n#SBATCH --array=1-3\ntrue\n')
    world.settle()
    assert future.cancel()
    world.settle()
    assert scancelled(world) == [['100']]
    assert [world.cluster.claims[f'1.{task}'] for task in (1, 2, 3)] == ['revoked'] * 3
    assert is_idle(world)


def test_environment_that_is_not_utf8(world: World) -> None:
    """A variable that os.environ has in another encoding troubles nobody."""
    strange = Target(merge(None, {'env': {'NAME': 'caf\udce9'}}))
    (future,) = run(world, target=strange)
    world.advance(0.02)
    world.cluster.finish(only(world), 0)
    world.settle()
    assert future.done()


def test_one_query_for_all(world: World) -> None:
    """However many batches there are, squeue is asked once an interval; never when none is left."""
    run(world, 1, NODES)
    run(world, 1, GPUS)
    world.advance(0.1)
    run_script(world)
    world.advance(3.5 * INTERVAL)
    assert len(world.cluster.kinds('query')) == 3
    for submission in world.cluster.submissions[:2]:
        world.cluster.finish(submission, 0)
    world.cluster.report(3, '102', ended={'code': 0, 'term': False})
    world.settle()
    assert is_idle(world)
    world.advance(5 * INTERVAL)
    assert len(world.cluster.kinds('query')) == 3


def test_a_query_per_cluster(world: World) -> None:
    """Where jobs are on several clusters, each is asked about on its own: ids are not unique."""
    elsewhere = Target(Resources(clusters='east,west'))
    world.cluster.answers['submit'] = [submitted('100'), submitted('100', 'west')]
    (here,), (there,) = run(world), run(world, 1, elsewhere)
    world.advance(0.02)
    world.cluster.answers['query'] = [
        {'ok': True, 'rows': rows, 'error': ''}
        for rows in ([row('100', 'PENDING')], [row('100', 'CONFIGURING')])
    ]
    world.advance(INTERVAL)
    queries = [header['clusters'] for header in world.cluster.kinds('query')]
    states = {'': here.job_state, 'west': there.job_state}
    assert sorted(queries) == ['', 'west']
    assert [states[name] for name in queries] == [JobState.PENDING, JobState.CONFIGURING]


def test_cannot_connect(world: World) -> None:
    """If the login node cannot be reached, all that waits for it fails with the reason."""
    world.transport.refusals = [ConnectionFailed('no such host')]
    futures = [*run(world, 2), *run_set(world, 2), run_script(world), *run(world, 1, Target())]
    futures.append(world.future())
    world.dispatcher.run_command(futures[-1], {'argv': 'true', 'cwd': None}, b'')
    asked: list[Any] = []
    world.dispatcher.ask({'do': 'ping'}, lambda header, body: asked.append(header))
    world.settle()
    assert all(isinstance(error_of(future), ConnectionFailed) for future in futures)
    assert isinstance(asked[0]['exception'], ConnectionFailed)
    assert is_idle(world)
    (late,) = run(world)
    world.advance(1)
    assert late.job_id == '100', 'it can be tried again'


def test_hasten(world: World) -> None:
    """What waits for others like it can be submitted at once."""
    (future,) = run(world)
    world.settle()
    assert world.dispatcher.unsubmitted
    world.dispatcher.hasten()
    world.settle()
    assert future.job_id == '100'
    assert not world.dispatcher.unsubmitted


# ---- cancelling


def test_cancelled_before_submission(world: World) -> None:
    """A call that is cancelled while it waits for others like it is never submitted."""
    kept, cancelled = run(world, 2)
    assert cancelled.cancel()
    world.advance(0.2)
    assert only(world).count == 1
    assert kept.job_id == '100'


def test_cancelled_while_submitted(world: World) -> None:
    """Cancelled between the order and Slurm's answer: the task is claimed, and cancelled then."""
    futures = run(world, 2)
    world.settle()
    world.deaf = True
    world.advance(0.2)
    assert futures[0].cancel()
    world.deaf = False
    world.settle()
    assert world.cluster.claims['1.0'] == 'revoked'
    assert scancelled(world) == [['100_0']]
    assert not futures[1].done()
    world.cluster.finish(only(world), 1)
    world.settle()
    assert is_idle(world)


def test_all_cancelled_while_submitted(world: World) -> None:
    """With all calls cancelled the whole job is; nothing is left behind."""
    futures = run(world, 2)
    world.settle()
    world.deaf = True
    world.advance(0.2)
    assert all(future.cancel() for future in futures)
    world.deaf = False
    world.settle()
    assert scancelled(world) == [['100']]
    assert is_idle(world)


def test_all_cancelled_and_refused(world: World) -> None:
    """A refusal of what nobody wants any more is the end of it."""
    world.cluster.answers['submit'] = [not_submitted('refused')]
    (future,) = run(world)
    world.settle()
    world.deaf = True
    world.advance(0.2)
    assert future.cancel()
    world.deaf = False
    world.settle()
    assert is_idle(world)


@pytest.mark.parametrize('answer', [UNREACHABLE, LIMIT, not_submitted('busy')])
def test_all_cancelled_and_put_off(world: World, answer: Reply) -> None:
    """What Slurm could not take, and nobody wants any more, is not submitted again."""
    world.cluster.answers['submit'] = [answer]
    (future,) = run(world)
    world.advance(0.2)
    assert future.cancel()
    world.settle()
    assert is_idle(world)
    world.advance(200)
    assert len(world.cluster.submissions) == 1
    assert not scancelled(world)


def test_all_cancelled_and_ambiguous(world: World) -> None:
    """What may have been submitted is claimed at once, looked for, and not submitted again."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    (future,) = run(world)
    world.advance(1)
    assert future.cancel()
    world.settle()
    assert world.cluster.claims['1.0'] == 'revoked'
    world.advance(SETTLED + 3 * INTERVAL)
    assert len(world.cluster.submissions) == 1
    assert is_idle(world)


def test_all_cancelled_and_found(world: World) -> None:
    """A job that is found although nobody wants it any more is cancelled."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    (future,) = run(world)
    world.advance(1)
    assert future.cancel()
    only(world).job = '55'
    world.advance(INTERVAL)
    assert scancelled(world) == [['55']]
    assert is_idle(world)


def test_cancelled_after_submission(world: World) -> None:
    """A pending task is claimed, so that it can not begin, and cancelled; the others stay."""
    futures = run(world, 3)
    world.advance(0.2)
    assert futures[0].cancel()
    assert futures[2].cancel()
    world.settle()
    assert scancelled(world) == [['100_0', '100_2']]
    assert {t for t, owner in world.cluster.claims.items() if owner == 'revoked'} == {'1.0', '1.2'}
    world.cluster.finish(only(world), 1)
    world.settle()
    assert futures[1].result() == 1
    assert is_idle(world)


def test_cancelled_within_a_chunk(world: World) -> None:
    """A call that is cancelled beside others of its task is left out of it."""
    futures = run_set(world, 4, chunksize=2)
    world.settle()
    assert futures[1].cancel()
    world.settle()
    (order,) = world.cluster.kinds('discard')
    assert (order['batch'], order['how'], order['calls']) == (1, 'cancel', [only(world).first + 1])
    assert not scancelled(world)
    assert futures[0].cancel()
    world.settle()
    assert scancelled(world) == [['100_0']], 'nothing is left of its task'
    world.cluster.finish(only(world), 2, 3)
    world.settle()
    assert is_idle(world)


def test_cancelled_a_moment_too_late(world: World) -> None:
    """A call that turns out to have begun after it was cancelled is removed all the same."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.deaf = True
    assert future.cancel()
    world.deaf = False
    world.settle()
    assert scancelled(world) == [['100']]
    assert is_idle(world)


def test_begun_before_the_core_hears_of_the_cancelling(world: World) -> None:
    """The message that a cancelled call has begun may come before the order to remove it."""
    world.cancelled = lambda future: None  # type: ignore[method-assign]
    first, second = run(world, 2)
    world.advance(0.2)
    assert first.cancel()
    world.cluster.begin(only(world), 0)
    world.settle()
    assert scancelled(world) == [['100_0']]
    world.dispatcher.cancel(first)
    world.cluster.finish(only(world), 0, 1)
    world.settle()
    assert first.cancelled()
    assert second.result() == 1
    assert is_idle(world)


def test_scancel_fails(world: World) -> None:
    """An order that Slurm did not get is given again, until it did."""
    failed = {'ok': False, 'returncode': 1, 'stderr': 'Unable to contact slurm controller'}
    world.cluster.answers['scancel'] = [failed] * 4
    (future,) = run(world)
    world.advance(0.2)
    assert future.cancel()
    world.advance(60)
    assert scancelled(world) == [['100']] * 5
    assert is_idle(world)


def test_scancel_fails_for_ever(world: World) -> None:
    """What Slurm will not cancel keeps nobody for ever; its task can not begin."""
    failed = {'ok': False, 'returncode': 1, 'stderr': 'Access denied'}
    world.cluster.answers['scancel'] = [failed] * 100
    (future,) = run(world)
    world.advance(0.2)
    assert future.cancel()
    world.advance(1000)
    assert is_idle(world)
    assert world.cluster.claims['1.0'] == 'revoked'


# ---- killing


def test_kill_a_call(world: World) -> None:
    """Killing a running call cancels its task; the future ends when that is proven."""
    futures = run(world, 2)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.settle()
    futures[0].kill()
    futures[0].kill()
    world.settle()
    assert scancelled(world) == [['100_0']]
    assert not futures[0].done()
    world.cluster.report(1, '100', stopping=True, ended={'code': 1, 'term': True, 'delivered': 0})
    world.cluster.rows = [row('100', 'CANCELLED', '0'), row('100', 'PENDING', '1')]
    world.advance(INTERVAL)
    error = error_of(futures[0])
    assert isinstance(error, JobCancelled)
    assert 'kill()' in str(error)
    assert not futures[1].done()


def test_kill_while_slurm_is_away(world: World) -> None:
    """The order to kill is repeated for as long as the call runs, however long Slurm is away."""
    failed = {'ok': False, 'returncode': 1, 'stderr': 'Unable to contact slurm controller'}
    world.cluster.answers['scancel'] = [failed] * 100
    future = run_script(world)
    world.settle()
    world.cluster.report(1, '100', started=True)
    world.settle()
    future.kill()
    world.advance(3600)
    world.cluster.answers.clear()
    before = len(scancelled(world))
    world.advance(61)
    assert len(scancelled(world)) == before + 1


def test_kill_within_a_chunk(world: World) -> None:
    """Killing a call beside others of its task ends that call alone."""
    futures = run_set(world, 2, chunksize=2)
    world.settle()
    world.cluster.begin(only(world), 0)
    world.settle()
    futures[0].kill()
    world.settle()
    (order,) = world.cluster.kinds('discard')
    assert (order['how'], order['calls']) == ('kill', [only(world).first])
    assert not scancelled(world)


def test_kill_a_script(world: World) -> None:
    """Killing a script cancels its job; it ends as cancelled although its wrapper reports 143."""
    future = run_script(world)
    world.settle()
    world.cluster.report(1, '100', started=True)
    world.settle()
    future.kill()
    world.settle()
    assert scancelled(world) == [['100']]
    world.cluster.report(1, '100', stopping=True, ended={'code': 143, 'term': True})
    world.advance(INTERVAL / 2)
    assert not future.done()
    world.cluster.rows = [row('100', 'CANCELLED')]
    world.advance(INTERVAL)
    assert isinstance(error_of(future), JobCancelled)


# ---- what Slurm says, and what it does not say


def test_squeue_fails_for_long(world: World) -> None:
    """While squeue does not answer, nothing moves, however long."""
    (future,) = run(world)
    script = run_script(world)
    world.advance(0.2)
    world.cluster.answers_queries = False
    world.advance(3600)
    assert not future.done()
    assert not script.done()
    assert not world.cluster.kinds('history', 'revoke', 'catch_up')
    world.cluster.answers_queries = True
    world.advance(3600)
    assert not future.done()


def test_answers_of_before_the_submission(world: World) -> None:
    """An answer to a query that began before sbatch had answered says nothing about the job."""
    run_script(world)
    world.cluster.answers['query'] = [{'ok': True, 'rows': [row('100', 'PENDING')], 'hold': True}]
    world.advance(INTERVAL + 1)
    (future,) = run(world)
    world.advance(0.2)
    assert future.job_id == '101'
    world.release()
    tracker = world.dispatcher.jobs._batches[2].tracker
    assert tracker is not None
    assert [task.absences for task in tracker.tasks.values()] == [0]


def test_one_query_at_a_time(world: World) -> None:
    """While squeue takes its time, it is not asked again."""
    run(world)
    world.cluster.answers['query'] = [{'ok': False, 'error': 'slow', 'hold': True}]
    world.advance(10 * INTERVAL)
    assert len(world.cluster.kinds('query')) == 1
    world.release()
    world.advance(2 * INTERVAL)
    assert len(world.cluster.kinds('query')) == 3


@pytest.mark.parametrize('begun', [False, True])
def test_scancel_from_outside(world: World, begun: bool) -> None:
    """A job that somebody else cancels: at once if it never began, after the grace if it did."""
    (future,) = run(world)
    world.advance(0.2)
    if begun:
        world.cluster.begin(only(world), 0)
    world.cluster.rows = [row('100', 'CANCELLED')]
    world.advance(INTERVAL)
    if begun:
        assert not future.done()
        world.advance(GRACE)
    error = error_of(future)
    assert isinstance(error, JobCancelled)
    assert error.started is begun
    assert is_idle(world)


def test_final_state_and_a_slow_file(world: World) -> None:
    """A value that appears within the grace period beats the job's state."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.cluster.rows = [row('100', 'FAILED')]
    world.advance(GRACE)
    assert not future.done()
    world.cluster.finish(only(world), 0)
    world.settle()
    assert future.result() == 0


def test_final_state_while_nobody_listens(world: World) -> None:
    """The grace period may pass while the line is down: what the spool holds counts first."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.cluster.rows = [row('100', 'COMPLETED')]
    world.advance(INTERVAL + 1)
    world.transport.refusals = [OSError('no route')] * 1000
    world.cut()
    world.advance(2 * GRACE)
    world.cluster.finish(only(world), 0)
    assert not future.done()
    world.transport.refusals.clear()
    world.advance(31)
    assert future.result() == 0


def test_client_that_was_stopped(world: World) -> None:
    """Time that passes while the client itself stands still proves nothing either."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.cluster.rows = [row('100', 'COMPLETED')]
    world.advance(INTERVAL + 1)
    world.clock.now += 1000
    world.cluster.finish(only(world), 0)
    world.advance(1)
    assert future.result() == 0


def test_news_cannot_be_had(world: World) -> None:
    """As long as the spool cannot be read, no task is given up."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.cluster.rows = [row('100', 'FAILED')]
    world.cluster.answers['catch_up'] = [{'error': 'OSError: stale handle'}] * 100
    world.advance(10 * GRACE)
    assert not future.done()
    world.cluster.answers.clear()
    world.advance(INTERVAL + 1)
    assert isinstance(error_of(future), JobFailed)


def test_absent_and_sacct(world: World) -> None:
    """A job that squeue does not know any more ends as sacct says, after the grace period."""
    world.cluster.rows = []
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.advance(3 * INTERVAL)
    assert world.cluster.kinds('history')
    world.cluster.history = [accounted('100', 'TIMEOUT', code=None)]
    world.advance(GRACE)
    error = error_of(future)
    assert isinstance(error, TimeLimit)
    assert error.started is True


def test_absent_without_accounting(world: World) -> None:
    """Without accounting a job that began and is gone is lost, after the grace period."""
    world.cluster.answers['history'] = [{'ok': False, 'rows': [], 'error': 'disabled'}] * 100
    world.cluster.rows = []
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.advance(GRACE + INTERVAL - 1)
    assert not future.done()
    world.advance(INTERVAL)
    error = error_of(future)
    assert isinstance(error, JobLost)
    assert error.started is True
    assert is_idle(world)


def test_absent_and_never_begun(world: World) -> None:
    """A job that is gone and never began is claimed when the time is up: it was cancelled."""
    world.cluster.rows = []
    (future,) = run(world)
    world.advance(GRACE)
    assert not world.cluster.kinds('revoke'), 'squeue may be behind: the job may begin yet'
    world.advance(2 * INTERVAL)
    error = error_of(future)
    assert isinstance(error, JobCancelled)
    assert error.started is False


def test_history_in_one_query(world: World) -> None:
    """However many jobs are gone, sacct is asked once an interval, about all of them."""
    world.cluster.rows = []
    futures = [run_script(world) for _ in range(20)]
    world.advance(2.5 * INTERVAL)
    assert [len(header['jobs']) for header in world.cluster.kinds('history')] == [20]
    world.advance(INTERVAL)
    assert len(world.cluster.kinds('history')) == 2
    world.advance(GRACE)
    assert all(future.done() for future in futures)
    assert len(world.cluster.kinds('revoke')) <= 2
    assert len(world.cluster.kinds('catch_up')) <= 2


def test_claim_cannot_be_had(world: World) -> None:
    """Where claims cannot be written, the grace period decides; whether it began is not known."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.answers['revoke'] = [{'error': 'OSError: disk full'}] * 100
    world.cluster.rows = [row('100', 'NODE_FAIL')]
    world.advance(GRACE + 3 * INTERVAL)
    error = error_of(future)
    assert isinstance(error, NodeFail)
    assert error.started is None


def test_requeued(world: World) -> None:
    """A job that Slurm requeues keeps its future, which runs on, and its outcome counts."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.cluster.report(1, '100', stopping=True, ended={'code': 1, 'term': True, 'delivered': 0})
    world.cluster.rows = [row('100', 'COMPLETING')]
    world.advance(INTERVAL)
    world.cluster.rows = [row('100', 'PENDING', reason='BeginTime')]
    world.advance(3 * GRACE)
    assert not future.done()
    assert future.job_state is JobState.PENDING
    world.cluster.begin(only(world), 0, restart=1)
    world.cluster.rows = [row('100', 'RUNNING')]
    world.advance(INTERVAL)
    world.cluster.finish(only(world), 0, restart=1)
    world.settle()
    assert future.result() == 0


def test_chunk_that_was_cut_short(world: World) -> None:
    """Calls of a chunk keep their outcomes; the others say whether they had begun."""
    futures = run_set(world, 3, chunksize=3)
    world.settle()
    world.cluster.finish(only(world), 0)
    world.cluster.begin(only(world), 1)
    world.cluster.report(1, '100', stopping=True)
    world.cluster.rows = [row('100', 'TIMEOUT')]
    world.advance(INTERVAL + GRACE + 1)
    assert futures[0].result() == 0
    errors = [error_of(future) for future in futures[1:]]
    assert all(isinstance(error, TimeLimit) for error in errors)
    assert [getattr(error, 'started', None) for error in errors] == [True, False]


def test_outcomes_delivered_twice(world: World) -> None:
    """Messages that a new agent sends again are not counted again."""
    futures = run_set(world, 2, chunksize=2)
    world.settle()
    submission = only(world)
    world.cluster.finish(submission, 0)
    keep = dict(world.cluster.new)
    world.settle()
    world.cluster.new.update(keep)
    world.cut()
    world.cluster.report(1, '100', ended={'code': 1, 'term': False, 'delivered': 2})
    world.cluster.rows = [row('100', 'FAILED')]
    world.advance(INTERVAL + 5)
    assert futures[0].result() == 0
    assert not futures[1].done(), 'an outcome is on its way'
    world.cluster.finish(submission, 1)
    world.settle()
    assert futures[1].result() == 1


def test_obstacle(world: World) -> None:
    """A worker that cannot start says why; its calls end at once with that."""
    (future,) = run(world)
    world.advance(0.2)
    failed = {'what': 'version', 'python': '3.8.1', 'executable': '/usr/bin/python3'}
    world.cluster.report(1, '100', failed=failed)
    world.settle()
    error = error_of(future)
    assert isinstance(error, PythonVersionMismatch)
    assert error.remote == '3.8.1'


def test_log_cannot_be_read(world: World) -> None:
    """A failure waits for its log's end for a while, not for ever: its file system may hang."""
    (future,) = run(world)
    world.advance(0.2)
    world.cluster.begin(only(world), 0)
    world.cluster.report(1, '100', ended={'code': 1, 'term': False, 'delivered': 0})
    world.cluster.rows = [row('100', 'OUT_OF_MEMORY')]
    world.cluster.answers['tail'] = [None]
    world.advance(INTERVAL)
    assert not future.done()
    world.advance(16)
    assert isinstance(error_of(future), JobFailed)


def test_held_job_is_mentioned_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A job that waits for a person is mentioned once, with its id and the reason."""
    run(world)
    world.advance(0.2)
    world.cluster.rows = [row('100', 'PENDING', reason='JobHeldAdmin')]
    with caplog.at_level(logging.WARNING, 'slurm_futures'):
        world.advance(5 * INTERVAL)
    assert caplog.text.count('JobHeldAdmin') == 1
    assert '100' in caplog.text


# ---- agents die in the middle of it all

Story = Callable[[World], Sequence[JobFuture[Any]]]


def story_success(world: World) -> Sequence[JobFuture[Any]]:
    """Two calls run and return."""
    futures = run(world, 2)
    world.advance(INTERVAL + 2)
    world.cluster.finish(world.cluster.submissions[-1], 0, 1)
    world.advance(30)
    return futures


def story_unreachable(world: World) -> Sequence[JobFuture[Any]]:
    """The controller is out of reach at first."""
    world.cluster.answers['submit'] = [UNREACHABLE]
    return story_success(world)


def story_limit(world: World) -> Sequence[JobFuture[Any]]:
    """A limit is met, and the array is split."""
    world.cluster.answers['submit'] = [LIMIT]
    futures = run(world, 2)
    world.advance(SETTLED + 100)
    for submission in world.cluster.submissions:
        if submission.job:
            world.cluster.finish(submission, *range(submission.count))
    world.advance(30)
    return futures


def story_ambiguous(world: World) -> Sequence[JobFuture[Any]]:
    """Sbatch does not answer, and the job is not found."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    futures = run(world, 2)
    world.advance(SETTLED + 400)
    world.cluster.finish(world.cluster.submissions[-1], 0, 1)
    world.advance(30)
    return futures


def story_cancel(world: World) -> Sequence[JobFuture[Any]]:
    """A call is cancelled, the other one killed."""
    first, second = run(world, 2)
    world.advance(2)
    world.cluster.begin(world.cluster.submissions[-1], 1)
    world.advance(2)
    first.cancel()
    second.kill()
    world.advance(2)
    world.cluster.rows = [row('100', 'CANCELLED', '0-1')]
    world.advance(GRACE + 60)
    return [first, second]


def story_discard(world: World) -> Sequence[JobFuture[Any]]:
    """A call is cancelled within a chunk."""
    first, second = run_set(world, 2, chunksize=2)
    world.advance(2)
    first.cancel()
    world.advance(2)
    world.cluster.finish(world.cluster.submissions[-1], 1)
    world.advance(30)
    return [first, second]


def story_gone(world: World) -> Sequence[JobFuture[Any]]:
    """A job that has begun vanishes."""
    world.cluster.rows = []
    futures = run(world)
    world.advance(2)
    world.cluster.begin(world.cluster.submissions[-1], 0)
    world.advance(GRACE + 120)
    return futures


def story_never_began(world: World) -> Sequence[JobFuture[Any]]:
    """A job ends before it began."""
    futures = run(world)
    world.advance(2)
    world.cluster.rows = [row('100', 'FAILED')]
    world.advance(60)
    return futures


CUTS = [
    (story_success, 'submit'),
    (story_success, 'limits'),
    (story_success, 'query'),
    (story_success, 'ack'),
    (story_unreachable, 'submit'),
    (story_limit, 'submit'),
    (story_ambiguous, 'submit'),
    (story_ambiguous, 'lookup'),
    (story_cancel, 'revoke'),
    (story_cancel, 'scancel'),
    (story_cancel, 'tail'),
    (story_discard, 'discard'),
    (story_gone, 'history'),
    (story_gone, 'catch_up'),
    (story_gone, 'query'),
    (story_never_began, 'revoke'),
]


@pytest.mark.parametrize('answered', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize(
    ('story', 'kind'), CUTS, ids=[f'{story.__name__[6:]}-{kind}' for story, kind in CUTS]
)
def test_agent_dies(world: World, story: Story, kind: str, answered: bool) -> None:
    """Whenever an agent dies, before or after it has acted, nothing hangs and nothing runs twice.

    Each future ends, each batch is accepted by Slurm once, and no call is in two of them.
    """
    world.cut_at(kind, answered=answered)
    futures = story(world)
    world.advance(SETTLED + 100)
    assert len(world.transport.wires) == 2, f'no {kind} was ever asked for'
    assert all(future.done() for future in futures)
    accepted = [s for s in world.cluster.submissions if s.job]
    assert len({s.batch for s in accepted}) == len(accepted)
    calls = [call for s in accepted for call in range(s.first, s.first + s.count)]
    assert len(set(calls)) == len(calls)
    assert is_idle(world)


def test_line_is_reopened_for_messages(world: World) -> None:
    """A line that breaks while jobs run is opened again at once, not at the next query."""
    (future,) = run(world)
    world.advance(1)
    world.cut()
    world.cluster.finish(only(world), 0)
    world.advance(0.5)
    assert future.result() == 0
