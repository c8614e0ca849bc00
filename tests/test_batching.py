"""How submissions become batches: windows, splits, functions that calls share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Clock, Controller
from slurm_futures.batching import (
    FIRST_WINDOW,
    LONGEST_WINDOW,
    QUIET_WINDOW,
    CallSet,
    Target,
    Windows,
)
from slurm_futures.futures import JobFuture, Work
from slurm_futures.remote.protocol import CallsFile
from slurm_futures.resources import Resources

NODES = Target(Resources(partition='cpu'))


def future() -> JobFuture[Any]:
    """Return a future that belongs to nobody."""
    return JobFuture(Controller(), Work(0))


def calls(count: int, chunksize: int = 1, functions: int = 1) -> CallSet:
    """Return calls of some functions in turn; each has its own arguments."""
    made = CallSet(NODES, 'work', chunksize)
    for n in range(count):
        made.add(future(), b'function %d' % (n % functions), b'arguments %d' % n)
    return made


def contents(made: CallSet) -> list[tuple[bytes, bytes]]:
    """Return the function and the arguments of each call."""
    return [(made.functions[index], args) for _, index, args in made.calls]


# ---- functions that calls share


@pytest.mark.parametrize('functions', [1, 2, 3])
def test_equal_functions_are_kept_once(functions: int) -> None:
    """However calls of several functions alternate, each function is kept once."""
    made = calls(12, functions=functions)
    assert made.functions == [b'function %d' % n for n in range(functions)]
    assert contents(made)[7] == (b'function %d' % (7 % functions), b'arguments 7')


def test_parts_take_the_functions_they_need() -> None:
    """A part of a set has the functions of its own calls, and no others."""
    made = CallSet(NODES, 'work')
    for n, function in enumerate([b'f', b'f', b'g', b'h']):
        made.add(future(), function, b'%d' % n)
    first, second = made.split(2)
    assert (first.functions, second.functions) == ([b'f'], [b'g', b'h'])
    assert contents(second) == [(b'g', b'2'), (b'h', b'3')]


def test_file_of_a_batch(tmp_path: Path) -> None:
    """The file that tasks read has each call's function and arguments, and each function once."""
    made = calls(5, chunksize=2, functions=2)
    path = tmp_path / '1.calls'
    path.write_bytes(made.encode({'first': 7}))
    file = CallsFile(str(path))
    assert file.header == {'first': 7, 'chunksize': 2, 'count': 5}
    read = [
        (file.read(call.fn_start, call.fn_size), file.read(call.args_start, call.args_size))
        for call in (file[n] for n in range(5))
    ]
    file.close()
    assert read == contents(made)
    assert path.read_bytes().count(b'function 0') == 1


# ---- splits


@given(
    count=st.integers(1, 300),
    chunksize=st.integers(1, 12),
    most=st.integers(1, 40),
    functions=st.integers(1, 4),
)
def test_split(count: int, chunksize: int, most: int, functions: int) -> None:
    """Parts have as many tasks as allowed at most, are few and even, and lose or swap nothing."""
    made = calls(count, chunksize, functions)
    parts = made.split(most)
    sizes = [part.tasks for part in parts]
    assert max(sizes) <= most
    assert len(parts) <= math.ceil(made.tasks / most)
    assert all(size == sizes[0] for size in sizes[:-1])
    assert all(part.chunksize == chunksize for part in parts)
    assert all(len(part.calls) % chunksize == 0 for part in parts[:-1])
    assert [item for part in parts for item in contents(part)] == contents(made)
    together = [call[0] for part in parts for call in part.calls]
    assert together == [call[0] for call in made.calls]


def test_cancelled_calls_are_left_out() -> None:
    """What is still wanted keeps its order, its function and its chunk size."""
    made = calls(6, chunksize=2, functions=2)
    for n in (0, 3):
        made.calls[n][0].cancel()
    wanted = made.without_cancelled()
    assert [args for _, args in contents(wanted)] == [b'arguments %d' % n for n in (1, 2, 4, 5)]
    assert (wanted.chunksize, wanted.tasks) == (2, 2)


# ---- windows


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock()


@pytest.fixture
def windows(clock: Clock) -> Windows:
    """Windows that go by that clock."""
    return Windows(clock)


def add(windows: Windows, target: Target = NODES) -> None:
    """Add a call."""
    windows.add(target, 'work', (future(), b'function', b'arguments'))


def closed(windows: Windows, clock: Clock) -> list[int]:
    """Return the sizes of the sets that are complete."""
    return [len(made.calls) for made in windows.closed(clock.now)]


def test_lone_call(windows: Windows, clock: Clock) -> None:
    """A lone call waits for a moment only."""
    assert windows.deadline() == math.inf
    add(windows)
    assert closed(windows, clock) == []
    assert windows.deadline() == clock.now + FIRST_WINDOW
    clock.now = windows.deadline()
    assert closed(windows, clock) == [1]
    assert closed(windows, clock) == []
    assert windows.deadline() == math.inf


def test_burst(windows: Windows, clock: Clock) -> None:
    """Calls that follow one another are one set, complete as soon as no more come."""
    for _ in range(5):
        add(windows)
        assert closed(windows, clock) == []
        clock.now += FIRST_WINDOW / 2
    clock.now += QUIET_WINDOW - FIRST_WINDOW / 2 - 1e-6
    assert closed(windows, clock) == []
    clock.now += 2e-6
    assert closed(windows, clock) == [5]


def test_endless_burst(windows: Windows, clock: Clock) -> None:
    """Calls that keep coming are submitted now and then all the same."""
    begun = clock.now
    count = 0
    while not (sizes := closed(windows, clock)):
        add(windows)
        count += 1
        clock.now += FIRST_WINDOW / 2
    assert sizes == [count]
    assert clock.now - begun == pytest.approx(LONGEST_WINDOW, abs=FIRST_WINDOW)


def test_targets_have_windows_of_their_own(windows: Windows, clock: Clock) -> None:
    """Calls with equal settings go together, whoever made the settings; others do not."""
    for _ in range(2):
        add(windows, Target(Resources(partition='cpu')))
        add(windows, Target(Resources(partition='gpu')))
        add(windows, Target(Resources(partition='cpu'), cwd='/elsewhere'))
        add(windows, Target(Resources(partition='cpu'), python_cmd='/other/python'))
    clock.now += QUIET_WINDOW
    assert closed(windows, clock) == [2, 2, 2, 2]


def test_close_all(windows: Windows, clock: Clock) -> None:
    """All that waits can be had at once, and is forgotten."""
    add(windows)
    add(windows, Target(Resources(partition='gpu')))
    assert [len(made.calls) for made in windows.close_all()] == [1, 1]
    assert windows.close_all() == []
