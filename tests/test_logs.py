"""What the log says of jobs, and to whom."""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys

import cloudpickle
import pytest

from fakecluster import LIMIT, World, is_idle, not_submitted, only, run, run_script, run_set
from helpers import python_command
from slurm_futures import SlurmExecutor

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log at level INFO."""
    caplog.set_level(logging.INFO, 'slurm_futures')
    return caplog


def fail(world: World, *calls: int, error: BaseException) -> None:
    """Have calls of the only batch raise an exception."""
    submission, body = only(world), pickle.dumps(error)
    for place in calls:
        item = {
            'event': 'outcome',
            'kind': 'error',
            'call': submission.first + place,
            'size': len(body),
            'stage': 'run',
            'type': type(error).__name__,
            'text': 'Traceback\n',
        }
        task = place // submission.chunksize
        world.cluster.report(submission.batch, submission.job, task, items=[item], body=body)
    world.settle()


def test_array(world: World, log: pytest.LogCaptureFixture) -> None:
    """An array is mentioned when Slurm has it, and when its last call has ended: with counts."""
    run_set(world, 10, chunksize=5)
    world.settle()
    assert log.messages == ['job 100 submitted: 10 calls of work in 2 tasks']
    world.advance(35)
    world.cluster.finish(only(world), *range(10))
    world.settle()
    assert is_idle(world)
    assert log.messages[1:] == ['job 100 finished after 35 s: 10 succeeded']
    assert {record.levelno for record in log.records} == {logging.INFO}


def test_failures(world: World, log: pytest.LogCaptureFixture) -> None:
    """The first failure of an array is mentioned with its task; the others are counted."""
    futures = run_set(world, 6)
    world.settle()
    fail(world, 3, 4, error=ValueError('bad value\nsecond line'))
    assert log.messages[1:] == ['job 100_3: a call has failed: ValueError: bad value']
    world.cluster.finish(only(world), 0, 1, 2)
    world.settle()
    assert futures[5].cancel()
    world.settle()
    assert is_idle(world)
    assert log.messages[2:] == ['job 100 finished after 0 s: 3 succeeded, 2 failed, 1 cancelled']


def test_all_failures_in_detail(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """At level DEBUG each failure is mentioned; where nothing succeeds, the job has failed."""
    caplog.set_level(logging.DEBUG, 'slurm_futures')
    run_set(world, 3)
    world.settle()
    fail(world, 0, 1, 2, error=KeyError('x'))
    said = [f"job 100_{task}: a call has failed: KeyError: 'x'" for task in range(3)]
    assert caplog.messages[1:] == [*said, 'job 100 failed after 0 s: 3 failed']


class Speechless(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise SystemExit


ODD = SyntaxError('x', ('f', 1, 'bad', 'text'))  # which the traceback module cannot format


@pytest.mark.parametrize('error', [Speechless(), ValueError('x' * 1000), ODD])
def test_strange_failures(
    world: World, log: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Exceptions that say too much, or fail to say anything, do no harm to the log."""
    (future,) = run(world)
    world.advance(0.02)
    fail(world, 0, error=error)
    assert type(future.exception(timeout=0)) is type(error)
    assert log.messages[1].startswith('job 100: a call has failed: ')
    assert len(log.messages[1]) < 400


def test_script(world: World, log: pytest.LogCaptureFixture) -> None:
    """A script that fails is mentioned with what became of its job."""
    run_script(world)
    world.settle()
    world.cluster.report(1, '100', started=True)
    world.cluster.report(1, '100', ended={'code': 3, 'term': False})
    world.settle()
    assert log.messages[0] == 'job 100 submitted: the script'
    assert re.match(r'job 100: a script has failed: .*JobFailed.*exit code 3', log.messages[1])
    assert log.messages[2:] == ['job 100 failed after 0 s: 1 failed']


def test_refused(world: World, log: pytest.LogCaptureFixture) -> None:
    """What sbatch refuses is mentioned once, with its words."""
    world.cluster.answers['submit'] = [not_submitted('refused', 'invalid account\n')]
    run_set(world, 3)
    world.settle()
    assert log.messages == ['3 calls of work cannot be submitted: invalid account']


def test_split(world: World, log: pytest.LogCaptureFixture) -> None:
    """Of an array that is submitted in two halves, each is mentioned; the whole is not."""
    world.cluster.answers['submit'] = [LIMIT]
    run_set(world, 4)
    world.advance(1)
    assert [s.job for s in world.cluster.submissions] == ['', '100', '101']
    submitted = 'submitted: 2 calls of work in 2 tasks'
    assert log.messages == [f'job 100 {submitted}', f'job 101 {submitted}']


def test_told_twice(world: World, log: pytest.LogCaptureFixture) -> None:
    """A job of which both sbatch and the spool tell is mentioned once."""
    run(world)
    world.advance(0.02)
    world.cluster.post({'batch': 1, 'submitted': '100', 'token': 'x'})
    world.settle()
    assert len(log.messages) == 1


UNCONFIGURED = """
import logging, slurm_futures
log = logging.getLogger('slurm_futures')
log.info('job 1 finished')
log.warning('job 1 waits until a person releases it')
"""


def test_without_configuration() -> None:
    """A program that cares for no log sees nothing of it, but for warnings: those are for people.

    The logging manual calls this the best default behaviour of libraries.
    """
    done = subprocess.run(
        python_command(UNCONFIGURED), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == 'job 1 waits until a person releases it\n'


def divide(n: int) -> float:
    """A call that fails for 0."""
    return 1 / n


def test_on_a_cluster(nodes: SlurmExecutor, log: pytest.LogCaptureFixture) -> None:
    """Slurm's own ids are in the log; the last line is there before the last result is."""
    futures = [nodes.submit(divide, n) for n in range(3)]
    errors = [future.exception() for future in futures]
    assert [type(error) for error in errors] == [ZeroDivisionError, type(None), type(None)]
    job = str(futures[0].job_id).partition('_')[0]
    assert log.messages[0] == f'job {job} submitted: 3 calls of divide in 3 tasks'
    assert f'job {job}_0: a call has failed: ZeroDivisionError: division by zero' in log.messages
    assert re.fullmatch(rf'job {job} finished after \d+ s: 2 succeeded, 1 failed', log.messages[-1])
