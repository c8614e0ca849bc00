"""What calls wait for before they are sent: their modules are shipped once per content."""

from __future__ import annotations

from typing import Any

import pytest

from fakecluster import World, error_of, is_idle, run, run_script, run_set
from slurm_futures.batching import Target
from slurm_futures.errors import ConnectionFailed, PythonVersionMismatch, RemoteError
from slurm_futures.resources import Resources
from slurm_futures.snapshot import Snapshot

FILES = {'a.py': b'a = 1\n', 'pack/tool': b'#!/bin/sh\n', 'empty.py': b''}
FIRST = Snapshot('digest1', FILES, frozenset({'pack/tool'}))
SECOND = Snapshot('digest2', {'a.py': b'a = 2\n'}, frozenset())


def nodes(modules: Snapshot | None, **options: Any) -> Target:
    """Return where calls run, in jobs, with these modules."""
    return Target(Resources(partition='cpu'), modules=modules, **options)


def shipped(world: World) -> list[tuple[str, str]]:
    """Return what has been said about which modules."""
    return [(one['do'], one['modules']) for one in world.cluster.kinds('lacking', 'put')]


def tasks(world: World) -> list[int]:
    """Return the sizes of the batches that Slurm has."""
    return [submission.tasks for submission in world.cluster.submissions]


def test_modules_are_there_before_the_calls(world: World) -> None:
    """Nothing is submitted before the agent has written them; then all goes on together."""
    world.cluster.answers['put'] = [{'hold': True}]
    run(world, 3, nodes(FIRST))
    run_set(world, 4, target=nodes(FIRST))
    world.advance(5)
    assert tasks(world) == []
    assert world.dispatcher.unsubmitted
    world.release()
    world.advance(1)
    assert sorted(tasks(world)) == [3, 4]
    assert shipped(world) == [('lacking', 'digest1'), ('put', 'digest1')]


def test_they_are_sent_as_they_are(world: World) -> None:
    """The agent gets every file, of whatever kind, and which of them are programs."""
    run(world, 1, nodes(FIRST))
    world.advance(1)
    assert world.cluster.library == {'digest1': FILES}
    (put,) = world.cluster.kinds('put')
    assert put['programs'] == ['pack/tool']


def test_only_what_is_missing_is_sent(world: World) -> None:
    """What lies there from an earlier program, but for what a site has purged, is used."""
    world.cluster.library['digest1'] = {'a.py': FILES['a.py'], 'empty.py': b''}
    world.cluster.library['digest2'] = dict(SECOND.files)
    run(world, 1, nodes(FIRST))
    run(world, 1, nodes(SECOND))
    world.advance(1)
    assert tasks(world) == [1, 1]
    puts = world.cluster.kinds('put')
    assert [list(put['sizes']) for put in puts] == [['pack/tool']]


def test_they_are_sent_once(world: World) -> None:
    """Later calls with equal modules wait for nothing, and no request is made."""
    run(world, 1, nodes(FIRST))
    world.advance(1)
    run(world, 1, nodes(Snapshot('digest1', dict(FILES), frozenset())))
    run(world, 1, Target(None, modules=FIRST))
    world.advance(1)
    assert len(shipped(world)) == 2
    (call,) = world.cluster.kinds('call')
    assert call['modules'] == 'digest1'


def test_calls_with_other_modules_are_other_jobs(world: World) -> None:
    """Their batches know where their modules are, and are not put together."""
    run(world, 2, nodes(FIRST))
    run(world, 3, nodes(SECOND))
    run(world, 4, nodes(None))
    world.advance(1)
    facts = {s.tasks: s.facts['modules'] for s in world.cluster.submissions}
    assert facts == {2: '/lib/digest1', 3: '/lib/digest2', 4: None}


def test_what_needs_no_modules_does_not_wait(world: World) -> None:
    """Scripts and calls without modules overtake calls whose modules are on their way."""
    world.cluster.answers['put'] = [{'hold': True}]
    run(world, 1, nodes(FIRST))
    run_script(world)
    run(world, 5, nodes(None))
    world.advance(1)
    assert sorted(tasks(world)) == [1, 5]
    world.release()
    world.advance(1)
    assert sorted(tasks(world)) == [1, 1, 5]


def test_an_error_is_theirs_alone(world: World) -> None:
    """A full disk fails the calls that need the modules; the next call tries again."""
    world.cluster.answers['put'] = [{'error': 'OSError: no space left'}]
    failed = [*run(world, 2, nodes(FIRST)), *run_set(world, 2, target=nodes(FIRST))]
    others = run(world, 3, nodes(SECOND))
    world.advance(1)
    for future in failed:
        error = error_of(future)
        assert isinstance(error, RemoteError)
        assert 'no space left' in str(error)
    assert not any(future.done() for future in others)
    assert tasks(world) == [3]
    run(world, 1, nodes(FIRST))
    world.advance(1)
    assert tasks(world) == [3, 1]


def test_a_refused_question_is_an_error_too(world: World) -> None:
    """A file system that cannot be asked for what is there fails the calls."""
    world.cluster.answers['lacking'] = [{'error': 'PermissionError: no'}]
    (future,) = run(world, 1, nodes(FIRST))
    world.advance(1)
    assert 'PermissionError' in str(error_of(future))
    assert is_idle(world)


@pytest.mark.parametrize('answered', [True, False])
@pytest.mark.parametrize('kind', ['lacking', 'put'])
def test_an_agent_that_dies_meanwhile(world: World, kind: str, answered: bool) -> None:
    """The next agent is asked and sent again, whatever the first one has done."""
    world.cut_at(kind, answered=answered)
    run(world, 1, nodes(FIRST))
    world.advance(10)
    assert tasks(world) == [1]
    assert world.cluster.library == {'digest1': FILES}
    assert len(world.transport.wires) == 2


def test_another_agent_is_asked_again(world: World) -> None:
    """What one agent had, the next may lack: its library is looked through for the next call."""
    run(world, 1, nodes(FIRST))
    world.advance(1)
    world.cluster.library.clear()
    world.cut()
    world.advance(10)
    run(world, 1, nodes(FIRST))
    world.advance(1)
    assert tasks(world) == [1, 1]
    assert world.cluster.library == {'digest1': FILES}


def test_cancelled_calls_do_not_come_back(world: World) -> None:
    """A call that is cancelled while its modules travel is not submitted."""
    world.cluster.answers['put'] = [{'hold': True}]
    first, second = run(world, 2, nodes(FIRST))
    world.settle()
    assert first.cancel()
    world.release()
    world.advance(1)
    assert tasks(world) == [1]
    assert not second.done()


def test_no_modules_for_the_wrong_python(world: World) -> None:
    """Calls that cannot run there fail before anything is sent."""
    world.cluster.answers['python'] = [{'version': '3.1.4', 'stderr': ''}]
    (future,) = run(world, 1, nodes(FIRST, python_cmd='/old/python'))
    world.advance(1)
    assert isinstance(error_of(future), PythonVersionMismatch)
    assert shipped(world) == []


def test_no_agent(world: World) -> None:
    """Where no agent can be started, calls fail with the reason."""
    world.transport.refusals = [ConnectionFailed('no way')]
    (future,) = run(world, 1, nodes(FIRST))
    world.settle()
    assert isinstance(error_of(future), ConnectionFailed)
