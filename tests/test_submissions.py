"""Batches on their way to Slurm, which may refuse them, be away, or keep quiet about them."""

from __future__ import annotations

import logging
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
    Submission,
    World,
    batches,
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
from slurm_futures.errors import JobCancelled, SubmitError, TimeLimit
from slurm_futures.futures import JobFuture
from slurm_futures.resources import Resources

SETTLED = 150.0

# ---- sbatch does not take it


def test_refused(world: World) -> None:
    """What sbatch refuses fails with its words; other batches go on."""
    world.cluster.answers['submit'] = [not_submitted('refused', 'Invalid partition')]
    bad, good = run(world, 2, NODES), run(world, 2, GPUS)
    world.advance(0.2)
    for future in bad:
        error = error_of(future)
        assert isinstance(error, SubmitError)
        assert 'Invalid partition' in str(error)
        assert error.returncode == 1
    world.cluster.finish(world.cluster.submissions[1], 0, 1)
    world.settle()
    assert [future.result() for future in good] == [0, 1]
    assert is_idle(world)


@pytest.mark.parametrize('kind', ['unreachable', 'busy'])
def test_tried_again(world: World, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What Slurm cannot take now is tried again, ever more seldom; said once, with its words."""
    world.cluster.answers['submit'] = [not_submitted(kind, 'try later')] * 8
    (future,) = run(world)
    with caplog.at_level(logging.WARNING, 'slurm_futures'):
        world.advance(400)
    assert len(world.cluster.submissions) == 9
    assert set(batches(world)) == {1}
    tokens = {submission.token for submission in world.cluster.submissions}
    assert len(tokens) == 9, 'the token of an attempt that failed is claimed'
    assert caplog.text.count('try later') == 1
    world.cluster.finish(world.cluster.submissions[-1], 0)
    world.settle()
    assert future.result() == 0


def test_out_of_reach_for_days(world: World) -> None:
    """A controller that is away for days is asked once a minute, and the jobs are submitted."""
    world.cluster.answers['submit'] = [UNREACHABLE] * 2000
    (future,) = run(world)
    backlog = world.dispatcher.jobs._submissions
    world.advance(1)
    for _ in range(1500):
        world.clock.now = world.dispatcher.jobs._submissions.deadline()
        backlog.step(world.clock.now)
        world.settle()
    assert len(world.cluster.submissions) > 1500
    del world.cluster.answers['submit']
    world.advance(61)
    assert future.job_id == '100'


def test_one_at_a_time_while_out_of_reach(world: World) -> None:
    """Of many scripts that wait for the controller one is tried; then all go, in their order."""
    world.cluster.answers['submit'] = [UNREACHABLE] * 8
    futures = [run_script(world) for _ in range(5)]
    world.settle()
    assert sorted(batches(world)) == [1, 2, 3, 4, 5], 'they were under way together'
    world.advance(8)
    assert batches(world)[5:8] == [1, 1, 1]
    world.advance(61)
    assert batches(world)[8:] == [1, 2, 3, 4, 5]
    assert [future.job_id for future in futures] == ['100', '101', '102', '103', '104']


def test_lanes_of_their_own(world: World) -> None:
    """Batches that ask for other things do not wait for one that Slurm cannot take now."""
    world.cluster.answers['submit'] = [LIMIT]
    run(world, 1, NODES)
    world.advance(0.02)
    (other,) = run(world, 1, GPUS)
    world.advance(0.02)
    assert other.job_id == '100'


def test_limit_splits_an_array(world: World) -> None:
    """An array over a limit goes in halves, again and again, until parts of it fit."""
    world.cluster.answers['submit'] = [LIMIT, LIMIT, submitted('7'), submitted('8'), LIMIT, LIMIT]
    futures = run_set(world, 8)
    world.settle()
    assert [submission.tasks for submission in world.cluster.submissions] == [
        *(8, 4, 2, 2),
        *(4, 2, 1, 1, 2),
    ]
    ids = [future.job_id for future in futures]
    assert ids[:4] == ['7_0', '7_1', '8_0', '8_1']
    assert ids[4] == '100'
    world.advance(1)
    assert len({future.job_id for future in futures}) == 8
    for submission in world.cluster.submissions:
        if submission.job:
            world.cluster.finish(submission, *range(submission.count))
    world.settle()
    assert all(future.done() for future in futures)
    assert is_idle(world)


def test_limit_holds_single_jobs(world: World) -> None:
    """At a limit one job is tried now and then, whoever waits; the next go when one has ended."""
    futures = [run_script(world) for _ in range(4)]
    world.cluster.answers['submit'] = [submitted('1'), LIMIT, LIMIT, LIMIT]
    world.settle()
    assert [future.job_id for future in futures] == ['1', None, None, None]
    world.cluster.answers['submit'] = [LIMIT] * 10
    world.advance(100)
    tried = batches(world)[4:]
    assert tried == [2] * 3, 'one attempt in 30 s, and always the same job'
    world.cluster.answers['submit'] = [submitted('2'), LIMIT]
    world.cluster.report(1, '1', ended={'code': 0, 'term': False})
    world.advance(2)
    assert [future.job_id for future in futures] == ['1', '2', None, None]
    assert batches(world)[7:] == [2, 3]


def test_limit_with_chunks(world: World) -> None:
    """Halves of an array of chunks are made of whole chunks."""
    world.cluster.answers['submit'] = [LIMIT]
    run_set(world, 10, chunksize=3)
    world.settle()
    shapes = [(s.count, s.tasks) for s in world.cluster.submissions]
    assert shapes == [(10, 4), (6, 2), (4, 2)]


def test_limit_on_a_share_of_parallelism(world: World) -> None:
    """The parts of an array that was split keep to its limit of tasks at a time together."""
    world.cluster.answers['submit'] = [LIMIT]
    target = Target(Resources(array_parallelism=3))
    run_set(world, 8, target=target)
    world.settle()
    arrays = [next(o for o in s.options if 'array' in o) for s in world.cluster.submissions]
    assert arrays == ['--array=0-7%3', '--array=0-3%2', '--array=0-3%1']


def test_cancelled_at_a_limit(world: World) -> None:
    """What is cancelled while it waits for room is never submitted, nor are its remains kept."""
    world.cluster.answers['submit'] = [LIMIT] * 2
    kept, cancelled = run_set(world, 2)
    world.settle()
    assert cancelled.cancel()
    world.advance(40)
    submissions = world.cluster.submissions
    assert [s.tasks for s in submissions] == [2, 1, 1]
    world.cluster.finish(submissions[-1], 0)
    world.settle()
    assert kept.result() == 0
    assert is_idle(world)


# ---- one behind the other


def run_parts(world: World) -> list[JobFuture[Any]]:
    """Submit a map that takes two arrays, of whose tasks one may run at a time."""
    world.cluster.answers['limits'] = [{'max_array_size': 4, 'max_array_tasks': 4}]
    futures = run_set(world, 8, target=Target(Resources(array_parallelism=1, dependency='after:7')))
    world.settle()
    return futures


def dependencies(world: World) -> list[str]:
    """Return what each submission that Slurm accepted waits for."""
    options = [dict(o.partition('=')[::2] for o in s.options) for s in accepted(world)]
    return [given['--dependency'] for given in options]


def accepted(world: World) -> list[Submission]:
    """Return the submissions that Slurm accepted."""
    return [submission for submission in world.cluster.submissions if submission.job]


def test_parts_wait_for_each_other(world: World) -> None:
    """An array that must wait for another is submitted behind it, with a dependency on it."""
    futures = run_parts(world)
    assert dependencies(world) == ['after:7', 'after:7,afterany:100']
    assert [future.job_id for future in futures][3:5] == ['100_3', '101_0']


def test_part_waits_for_one_that_is_split(world: World) -> None:
    """An array waits for the last part of the one before it that went in halves."""
    world.cluster.answers['submit'] = [LIMIT]
    run_parts(world)
    assert [submission.tasks for submission in accepted(world)] == [2, 2, 4]
    assert dependencies(world) == ['after:7', 'after:7,afterany:100', 'after:7,afterany:101']


def test_part_behind_one_that_is_refused(world: World) -> None:
    """What waits for an array that Slurm refuses is submitted all the same."""
    world.cluster.answers['submit'] = [not_submitted('refused')]
    futures = run_parts(world)
    assert [future.done() for future in futures] == [True] * 4 + [False] * 4
    assert dependencies(world) == ['after:7']


def test_part_is_cancelled_behind_another(world: World) -> None:
    """What is cancelled while it waits for another to be submitted never is."""
    world.cluster.answers['submit'] = [UNREACHABLE]
    futures = run_parts(world)
    assert all(future.cancel() for future in futures[4:])
    world.advance(5)
    assert [submission.batch for submission in accepted(world)] == [1]
    world.cluster.finish(accepted(world)[0], *range(4))
    world.settle()
    assert is_idle(world)


def test_given_up_while_put_off(world: World) -> None:
    """What has been given up while it waited for Slurm is not submitted."""
    world.cluster.answers['submit'] = [UNREACHABLE]
    (future,) = run(world)
    world.advance(0.2)
    world.dispatcher.ledger.fail(
        world.dispatcher.ledger.entries[future.work.number], JobCancelled('the program is leaving')
    )
    world.advance(10)
    assert accepted(world) == []
    assert is_idle(world)


# ---- nobody knows whether it was submitted


def test_ambiguous_and_found(world: World) -> None:
    """A submission without an answer is looked for by its script, and the job adopted."""
    world.cluster.answers['submit'] = [dict(AMBIGUOUS, job_id='55')]
    (future,) = run(world)
    world.cluster.answers['lookup'] = [{'ok': True, 'job_id': None}] * 3
    world.advance(25)
    assert [h['token'] for h in world.cluster.kinds('lookup')] == ['run1-1.1'] * 3
    world.advance(10)
    assert future.job_id == '55'
    assert len(world.cluster.submissions) == 1
    world.advance(3 * SETTLED)
    assert len(world.cluster.submissions) == 1


def test_ambiguous_and_not_found(world: World) -> None:
    """Not found twice after 150 s, it is submitted again: same batch, same claims, new token."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    (future,) = run(world)
    world.advance(SETTLED)
    assert len(world.cluster.submissions) == 1
    world.advance(2 * INTERVAL)
    assert [(s.batch, s.token) for s in world.cluster.submissions] == [
        (1, 'run1-1.1'),
        (1, 'run1-1.2'),
    ]
    world.cluster.finish(world.cluster.submissions[1], 0)
    world.settle()
    assert future.result() == 0
    assert is_idle(world)


@pytest.mark.parametrize(
    'failure', [{'ok': False, 'error': 'no answer'}, {'error': 'OSError: no'}], ids=['squeue', 'os']
)
def test_ambiguous_and_no_answer(world: World, failure: Reply) -> None:
    """As long as it cannot be looked for, nothing is submitted again."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    world.cluster.answers['lookup'] = [failure] * 100
    run(world)
    world.advance(900)
    assert len(world.cluster.submissions) == 1
    del world.cluster.answers['lookup']
    world.advance(INTERVAL / 2)
    assert len(world.cluster.submissions) == 1
    world.advance(INTERVAL)
    assert len(world.cluster.submissions) == 2


def test_ambiguous_and_heard_of(world: World) -> None:
    """A message of one of its tasks shows that a job exists, and which."""
    world.cluster.answers['submit'] = [dict(AMBIGUOUS, job_id='55')]
    world.cluster.answers['lookup'] = [{'ok': True, 'job_id': None}] * 100
    futures = run(world, 2)
    world.advance(1)
    world.cluster.begin(only(world), 1)
    world.settle()
    assert [future.job_id for future in futures] == ['55_0', '55_1']
    assert futures[1].running()
    world.advance(2 * SETTLED)
    assert len(world.cluster.submissions) == 1


def test_ambiguous_and_done(world: World) -> None:
    """A job that did all its calls before anybody knew of it is not submitted again."""
    world.cluster.answers['submit'] = [dict(AMBIGUOUS, job_id='55')]
    world.cluster.answers['lookup'] = [{'ok': True, 'job_id': None}] * 100
    (future,) = run(world)
    world.advance(1)
    world.cluster.finish(only(world), 0)
    world.settle()
    assert future.result() == 0
    assert is_idle(world)
    world.advance(2 * SETTLED)
    assert len(world.cluster.submissions) == 1


def test_agent_in_trouble(world: World) -> None:
    """An agent that failed over a submission may have got as far as sbatch: it is looked for."""
    world.cluster.answers['submit'] = [{'error': 'OSError: disk full', 'job_id': '55'}]
    (future,) = run(world)
    world.advance(1)
    assert future.job_id == '55'


@pytest.mark.parametrize(
    ('alive', 'patience'), [(False, SETTLED), (True, SETTLED + 200), (None, SETTLED + 200)]
)
def test_claimed_by_an_earlier_agent(world: World, alive: bool | None, patience: float) -> None:
    """A submission that an agent before has begun gets its time, then comes the next attempt."""
    claimed = {'kind': 'claimed', 'owner': 'login1:boot:1:2', 'alive': alive}
    world.cluster.answers['submit'] = [claimed]
    (future,) = run(world)
    world.advance(patience)
    assert len(world.cluster.submissions) == 1
    world.advance(2 * INTERVAL + 1)
    assert len(world.cluster.submissions) == 2
    assert future.job_id == '100'


def test_late_copy_is_followed(world: World) -> None:
    """When a submission taken for lost turns up, whichever copy has the claim is followed."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    first, second = run(world, 2)
    world.advance(SETTLED + 3 * INTERVAL)
    assert [first.job_id, second.job_id] == ['100_0', '100_1']
    late, adopted = world.cluster.submissions
    late.job = '55'
    world.cluster.begin(late, 0)
    world.cluster.report(1, '100', 0, superseded='job:55')
    world.settle()
    assert [first.job_id, second.job_id] == ['55_0', '100_1']
    world.cluster.rows = [
        row('55', 'RUNNING', '0'),
        row('55', 'PENDING', '1'),
        row('100', 'COMPLETED', '0'),
        row('100', 'PENDING', '1'),
    ]
    world.advance(3 * GRACE)
    assert first.running()
    assert not second.done()
    world.cluster.finish(late, 0)
    world.cluster.finish(adopted, 1)
    world.settle()
    assert [first.result(), second.result()] == [0, 1]


def test_superseded_before_the_winner_is_heard(world: World) -> None:
    """A copy that gave way names the winner, whose end is the task's end."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    future = run_script(world)
    world.advance(SETTLED + 3 * INTERVAL)
    world.cluster.claims['1.0'] = 'job:55'
    world.cluster.report(1, '100', superseded='job:55')
    world.cluster.rows = [row('100', 'COMPLETED'), row('55', 'RUNNING')]
    world.advance(3 * GRACE)
    assert future.running()
    world.cluster.rows = [row('100', 'COMPLETED'), row('55', 'TIMEOUT')]
    world.advance(GRACE + 3 * INTERVAL)
    assert isinstance(error_of(future), TimeLimit)


def test_silent_copy_completes(world: World) -> None:
    """COMPLETED proves nothing about a script whose claim is another submission's."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    future = run_script(world)
    world.advance(SETTLED + 3 * INTERVAL)
    world.cluster.claims['1.0'] = 'job:55'
    world.cluster.rows = [row('100', 'COMPLETED'), row('55', 'RUNNING')]
    world.advance(3 * GRACE)
    assert not future.done()
    assert future.running()


def test_kill_reaches_a_copy_heard_of(world: World) -> None:
    """A copy that is known only by what another one said of it is killed, too."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    future = run_script(world)
    world.advance(SETTLED + 3 * INTERVAL)
    world.cluster.report(1, '100', superseded='job:55')
    world.cluster.rows = [row('55', 'RUNNING')]
    world.advance(INTERVAL)
    future.kill()
    world.settle()
    assert scancelled(world) == [['100', '55']]


def test_copy_that_cannot_start(world: World) -> None:
    """A late copy that failed before it claimed anything does not concern the one that runs."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    (future,) = run(world)
    world.advance(SETTLED + 3 * INTERVAL)
    world.cluster.begin(world.cluster.submissions[1], 0)
    world.settle()
    world.cluster.report(1, '55', failed={'what': 'cwd', 'code': 1})
    world.advance(1)
    assert (future.job_id, future.running()) == ('100', True)


def test_kill_reaches_all_copies(world: World) -> None:
    """Killing what was submitted twice cancels whichever job runs it."""
    world.cluster.answers['submit'] = [AMBIGUOUS]
    first, second = run(world, 2)
    world.advance(SETTLED + 3 * INTERVAL)
    late = world.cluster.submissions[0]
    late.job = '55'
    world.cluster.begin(late, 0)
    world.settle()
    first.kill()
    world.settle()
    assert set(scancelled(world)[0]) == {'55_0', '100_0'}
    assert not second.done()


def test_confirmed_when_nothing_is_left(world: World) -> None:
    """A job that Slurm confirms after another copy has done everything is cancelled."""

    def answer() -> Reply:
        late = world.cluster.submissions[0]
        late.job = '55'
        world.cluster.finish(late, 0)
        return dict(submitted('100'), behind_news=True)

    world.cluster.answers['submit'] = [AMBIGUOUS, answer]
    (future,) = run(world)
    world.advance(SETTLED + 3 * INTERVAL)
    assert future.result() == 0
    assert scancelled(world) == [['100']]
    assert is_idle(world)
