"""Calls on the login node, against a fake agent: sending, cancelling, losing agents."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from fakecluster import GRACE, World, is_idle, run
from slurm_futures.batching import Target
from slurm_futures.errors import (
    CallLost,
    JobCancelled,
    PythonVersionMismatch,
    RemoteError,
    WorkerDied,
)
from slurm_futures.futures import JobFuture
from slurm_futures.logincalls import AHEAD, ASK_INTERVAL, LEASE

LOGIN = Target()
WORKERS = 2
OWNER = 'login1:boot:17:4711'


@pytest.fixture
def world() -> Iterator[World]:
    """A client with two login workers, an agent and a cluster in good health."""
    world = World(login_workers=WORKERS)
    yield world
    world.close()


def run_login(world: World, count: int = 1) -> list[JobFuture[Any]]:
    """Submit calls to the login node."""
    futures = run(world, count, LOGIN)
    world.settle()
    return futures


def sent(world: World) -> list[int]:
    """Return the numbers of the calls that agents have got, in order."""
    return [header['call'] for header in world.cluster.kinds('call')]


def dropped(world: World) -> list[int]:
    """Return the numbers of the calls that agents were told to drop."""
    return [header['call'] for header in world.cluster.kinds('drop')]


def say(world: World, event: str, call: int, body: bytes = b'', **members: Any) -> None:
    """Have the agent push an event about a call."""
    assert world.wire is not None
    world.wire.say({'event': event, 'call': call, 'host': 'login1', **members}, body)
    world.settle()


def finish(world: World, call: int) -> None:
    """Have a call return its number."""
    say(world, 'outcome', call, pickle.dumps(call), kind='value')


def is_owned(world: World, alive: bool | None, lease: str = '', times: int = 1) -> None:
    """Have the next questions for an owner answered so."""
    answers = world.cluster.answers.setdefault('owner', [])
    answers += [{'owner': OWNER, 'alive': alive, 'lease': lease}] * times


def lose_agent(world: World) -> None:
    """Kill the agent, and wait until there is another."""
    world.cut()
    world.advance(1)
    assert world.wire is not None


# ---- an agent that lives


def test_call(world: World) -> None:
    """A call runs when the agent says so, and its value arrives; the agent hears that it did."""
    (future,) = run_login(world)
    assert not future.running()
    say(world, 'begun', 1, log=[5, 6], logs=['/out', '/err'])
    assert future.running()
    assert future.work.logs == ('/out', '/err')
    finish(world, 1)
    assert future.result() == 1
    assert world.cluster.kinds('got')[0]['calls'] == [1]
    assert is_idle(world)


def test_few_are_sent_ahead(world: World) -> None:
    """Calls are sent a few ahead of their workers, in order; each that ends makes room."""
    run_login(world, 3 * AHEAD * WORKERS)
    ahead = AHEAD * WORKERS
    assert sent(world) == list(range(1, ahead + 1))
    finish(world, 3)
    assert sent(world) == list(range(1, ahead + 2))


def test_commands_do_not_wait(world: World) -> None:
    """A command is sent at once, however many calls are ahead of it."""
    run_login(world, 2 * AHEAD * WORKERS)
    command = world.future()
    world.dispatcher.run_command(command, {'argv': 'true', 'cwd': None}, b'')
    world.settle()
    assert world.cluster.kinds('call')[-1]['do_kind'] == 'command'
    finish(world, 1)
    assert len(sent(world)) == AHEAD * WORKERS + 2, 'a command takes nobody its place'


def test_cancelled_before_it_was_sent(world: World) -> None:
    """A call that waits on our side is never sent once it is cancelled."""
    futures = run_login(world, AHEAD * WORKERS + 2)
    assert futures[-2].cancel()
    world.settle()
    finish(world, 1)
    assert futures[-2].work.number not in sent(world)
    assert futures[-1].work.number in sent(world)
    assert dropped(world) == []


def test_cancelled_after_it_was_sent(world: World) -> None:
    """The agent is told to drop a call that was sent; its outcome, if any, is dropped."""
    first, second = run_login(world, 2)
    assert first.cancel()
    world.settle()
    assert dropped(world) == [1]
    finish(world, 1)
    finish(world, 2)
    assert first.cancelled()
    assert second.result() == 2
    assert is_idle(world)


def test_kill(world: World) -> None:
    """Killing a running call tells the agent; the future ends with what the worker reports."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    future.kill()
    world.settle()
    assert dropped(world) == [1]
    assert not future.done()
    say(world, 'outcome', 1, kind='killed')
    assert isinstance(future.exception(), JobCancelled)


def test_worker_dies(world: World) -> None:
    """A call whose worker died fails alone."""
    first, second = run_login(world, 2)
    say(world, 'begun', 1)
    say(world, 'outcome', 1, kind='died', signal=11, exit_code=None)
    error = first.exception()
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.job_id) == (11, None)
    assert not second.done()


def test_agent_refuses(world: World) -> None:
    """A call that the agent cannot hand on fails with its words."""
    world.cluster.answers['call'] = [{'error': 'OSError: no space left'}]
    (future,) = run_login(world)
    error = future.exception()
    assert isinstance(error, RemoteError)
    assert 'no space left' in str(error)


def test_other_version(world: World) -> None:
    """Functions are not sent to another version of Python."""
    world.cluster.answers['python'] = [{'version': '3.8.1', 'stderr': ''}]
    (future,) = run(world, 1, Target(python_cmd='/usr/bin/python3.8'))
    world.settle()
    assert isinstance(future.exception(), PythonVersionMismatch)
    assert sent(world) == []


def test_detached(world: World) -> None:
    """On detach() what has not begun is cancelled, and what comes later, too."""
    futures = run_login(world, AHEAD * WORKERS + 1)
    say(world, 'begun', 1)
    world.dispatcher.detach()
    (late,) = run_login(world)
    assert [future.cancelled() for future in futures] == [False] + [True] * (len(futures) - 1)
    assert late.cancelled()
    finish(world, 1)
    assert is_idle(world)


# ---- agents that die


def test_sent_again_when_not_begun(world: World) -> None:
    """A call that is not known to have begun is sent to the next agent, under its number."""
    futures = run_login(world, 2)
    lose_agent(world)
    assert sent(world) == [1, 2, 1, 2]
    finish(world, 1)
    finish(world, 2)
    assert [future.result() for future in futures] == [1, 2]


def test_cancelled_calls_are_not_sent_again(world: World) -> None:
    """A call that is cancelled while there is no agent is not sent to the next one."""
    first, _ = run_login(world, 2)
    world.cut()
    world.settle()
    assert first.cancel()
    world.advance(1)
    assert sent(world) == [1, 2, 2]


def test_not_sent_again_when_begun(world: World) -> None:
    """What has begun is not sent again; its outcome, which is in the spool, is waited for."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    is_owned(world, alive=True, times=10)
    lose_agent(world)
    assert sent(world) == [1]
    assert world.cluster.kinds('watch')[-1]['on']
    world.advance(3 * ASK_INTERVAL)
    assert len(world.cluster.kinds('owner')) == 4
    item = {'event': 'outcome', 'kind': 'value', 'call': 1, 'size': len(pickle.dumps(7))}
    world.cluster.post({'host': 'login1', 'items': [item]}, pickle.dumps(7))
    world.settle()
    assert future.result() == 7
    assert not world.cluster.kinds('watch')[-1]['on']
    assert is_idle(world)


def test_owned_by_an_earlier_agents_worker(world: World) -> None:
    """A call that is sent again, and turns out to have begun, waits for that worker's outcome."""
    (future,) = run_login(world)
    is_owned(world, alive=True, times=10)
    lose_agent(world)
    say(world, 'owned', 1, owner=OWNER)
    assert world.cluster.kinds('watch')[-1]['on']
    world.advance(10 * GRACE)
    assert not future.done()


def test_owner_dies(world: World) -> None:
    """A worker that died unseen: after the grace period, and another look, the call is lost."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    is_owned(world, alive=False, times=100)
    lose_agent(world)
    world.advance(GRACE - 2)
    assert not future.done()
    world.advance(4)
    error = future.exception()
    assert isinstance(error, CallLost)
    assert error.node == 'login1'
    assert len(world.cluster.kinds('catch_up')) == 1
    assert is_idle(world)


def test_owner_died_after_it_delivered(world: World) -> None:
    """An outcome that the last look into the spool finds counts."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    is_owned(world, alive=False, times=100)
    lose_agent(world)
    world.advance(GRACE - 2)
    item = {'event': 'outcome', 'kind': 'value', 'call': 1, 'size': len(pickle.dumps(7))}

    def answer() -> dict[str, Any]:
        world.cluster.post({'host': 'login1', 'items': [item]}, pickle.dumps(7))
        return {'behind_news': True}

    world.cluster.answers['catch_up'] = [answer]
    world.advance(4)
    assert future.result() == 7


def test_killed_owner_dies(world: World) -> None:
    """A call that was killed, and whose worker is dead without a word, is cancelled."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    future.kill()
    is_owned(world, alive=False, times=100)
    lose_agent(world)
    world.advance(GRACE + 2)
    assert isinstance(future.exception(), JobCancelled)


def test_owner_on_another_host(world: World) -> None:
    """Of a worker on another host the lease tells: as long as it moves, it lives."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    for move in range(20):
        is_owned(world, alive=None, lease=str(move))
    lose_agent(world)
    world.advance(19.5 * ASK_INTERVAL)
    is_owned(world, alive=None, lease='19', times=100)
    world.advance(LEASE - ASK_INTERVAL + GRACE)
    assert not future.done()
    world.advance(3 * ASK_INTERVAL)
    assert isinstance(future.exception(), CallLost)


def test_owner_cannot_be_found_out(world: World) -> None:
    """As long as the owner cannot be asked for, the call is not given up."""
    (future,) = run_login(world)
    say(world, 'begun', 1)
    world.cluster.answers['owner'] = [{'error': 'OSError: stale handle'}] * 200
    lose_agent(world)
    world.advance(10 * GRACE)
    assert not future.done()
    assert 40 <= len(world.cluster.kinds('owner')) <= 70


def test_questions_do_not_pile_up(world: World) -> None:
    """While there is no line, the same question does not wait twice."""
    run_login(world)
    say(world, 'begun', 1)
    is_owned(world, alive=True, times=10)
    lose_agent(world)
    world.transport.refusals = [OSError('no route')] * 1000
    world.cut()
    world.advance(10 * ASK_INTERVAL)
    world.transport.refusals.clear()
    before = len(world.cluster.kinds('owner'))
    world.advance(31)
    assert len(world.cluster.kinds('owner')) - before <= 4
