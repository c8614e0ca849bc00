"""What comes back from a worker: classes of the client's ``__main__`` come back as themselves.

Each test plays a client in a process of its own, whose ``__main__`` it is, with a worker in yet
another one, which has nothing but what was installed on the cluster.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import python_command

WORKER = """
import pickle, sys, types
sys.path.insert(0, sys.argv[1])
from slurm_futures_remote.results import describe_error, dumps
sys.modules['__main__'] = types.ModuleType('__main__')
outcomes = []
for function, args in pickle.load(sys.stdin.buffer):
    try:
        args, kwargs = pickle.loads(args)
        outcomes.append(({}, dumps(pickle.loads(function)(*args, **kwargs))))
    except BaseException as error:
        outcomes.append(describe_error(error, 'run'))
sys.stdout.buffer.write(pickle.dumps(outcomes))
"""

CLIENT = """
import abc, dataclasses, enum, os, pickle, subprocess, sys, threading, typing
from slurm_futures import payload
from slurm_futures.errors import RemoteError

WORKER, LIBRARY, FILE = sys.argv[1:]

def outcomes(*calls):
    '''Run calls, each a function and its arguments, in one worker.'''
    sent = [(payload.dump_function(f), payload.dump_arguments(args, {})) for f, *args in calls]
    command = [sys.executable, '-I', '-S', '-c', WORKER, LIBRARY]
    done = subprocess.run(command, input=pickle.dumps(sent), stdout=subprocess.PIPE, check=True)
    return pickle.loads(done.stdout)

def load(outcome):
    header, data = outcome
    return payload.load_error(header, data, 'n1') if header else payload.load_value(data)

def remote(function, *args):
    return load(outcomes((function, *args))[0])

def save(*calls):
    with open(FILE, 'wb') as file:
        pickle.dump(outcomes(*calls), file)

def saved():
    with open(FILE, 'rb') as file:
        return pickle.load(file)

def same(value):
    return value

def state(cls):
    return {name: id(value) for name, value in vars(cls).items()}
"""

SHAPES = """
class Shape:
    sides = 0
    def __init__(self, size):
        self.size = size
    def area(self):
        return self.size ** self.sides

class Square(Shape):
    sides = 2
    def area(self):
        return super().area()

class Colour(enum.Enum):
    RED = 1
    BLUE = 2
    def mixed(self):
        return Colour.BLUE if self is Colour.RED else Colour.RED

class Refused(Exception):
    def __init__(self, who, why):
        super().__init__(who, why)
        self.who = who

class Odd(metaclass=abc.ABCMeta):
    class Inner:
        pass

@dataclasses.dataclass(frozen=True)
class Data:
    x: int
    shape: Shape

class Pair(typing.NamedTuple):
    left: int
    right: int
"""

Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, entry: str) -> Play:
    """Runs a client's program to its end, after these preludes."""
    path = tmp_path / 'client.py'
    file = tmp_path / 'outcomes'

    def play(*parts: str) -> None:
        text = f'import sys\nsys.path[:0] = {[p for p in sys.path if p]!r}\n'
        path.write_text(text + '\n'.join((CLIENT, *parts)))
        library = str(Path(entry).parent.parent)
        command = [sys.executable, str(path), WORKER, library, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        print(done.stderr)
        assert (done.returncode, done.stderr) == (0, '')

    return play


def test_classes_come_back_as_themselves(play: Play) -> None:
    """Instances and classes of __main__, in any dress, are those of the client."""
    program = """
for value in (Shape(3), Square(3), Odd(), Odd.Inner(), Data(1, Square(2)), Pair(1, 2)):
    result = remote(same, value)
    assert type(result) is type(value), value
    assert vars(result).keys() == vars(value).keys() if hasattr(value, '__dict__') else True
    assert result is not value
result = remote(lambda: (Square(3).area(), Square, Odd.Inner, Data(1, Shape(2)), [Colour.RED]))
assert result[:3] == (9, Square, Odd.Inner)
assert isinstance(result[3].shape, Shape)
assert result[4][0] is Colour.RED
assert remote(Colour.mixed, Colour.RED) is Colour.BLUE
assert remote(lambda: {Colour: Colour.RED}) == {Colour: Colour.RED}
"""
    play(SHAPES, program)


def test_exceptions_are_caught_by_class(play: Play) -> None:
    """An exception of a class of __main__ is caught by it, with attributes and remote traceback."""
    program = """
def refuse(who):
    raise Refused(who, why='late')

error = remote(refuse, 'me')
try:
    raise error
except Refused as caught:
    assert caught.who == 'me' and caught.args == ('me', 'late')
    assert 'in refuse' in str(caught.__cause__), caught.__cause__
"""
    play(SHAPES, program)


def test_exceptions_that_resist(play: Play) -> None:
    """Exceptions that forbid assignments, or break or exit when rebuilt, come back somehow."""
    program = """
@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    pass

class Broken(Exception):
    def __init__(self, x, y):
        super().__init__(x)

class Deadly(Exception):
    def __reduce__(self):
        return sys.exit, (3,)

class Disguised(Exception):
    def __reduce__(self):
        return int, ()

def throw(error, *args):
    raise error(*args)

frozen, broken, deadly, disguised = map(
    load, outcomes((throw, Frozen), (throw, Broken, 1, 2), (throw, Deadly), (throw, Disguised))
)
assert type(frozen) is Frozen
assert 'in throw' in str(frozen.__cause__)
for error in (broken, deadly, disguised):
    assert type(error) is RemoteError
    assert 'in throw' in error.traceback
assert 'Broken: 1' in str(broken) and 'TypeError' in str(broken), broken
assert 'SystemExit' in str(deadly), deadly
assert 'was rebuilt here as a int' in str(disguised), disguised
"""
    play(SHAPES, program)


def test_an_outcome_alters_no_class(play: Play) -> None:
    """What the client has set on its classes since the submission stays, whatever comes back."""
    program = """
def define(base):
    class Local(base):
        def area(self):
            return super().area() + 1
    return Local(2), Local

results = outcomes((same, Square(1)), (define, Square), (lambda: [Shape, Colour.RED],), (same, 1))
Shape.sides = 5
Shape.area = lambda self: 'changed'
Square.extra = 'added later'
Colour.mixed = None
before = [state(cls) for cls in (Shape, Square, Colour)]
square, (local, Local), (shape, red), _ = map(load, results)
assert [state(cls) for cls in (Shape, Square, Colour)] == before
assert square.extra == local.extra == 'added later'
assert type(local) is Local and Local.__mro__[1:3] == (Square, Shape)
assert (shape, red) == (Shape, Colour.RED)
"""
    play(SHAPES, program)


def test_classes_made_by_the_worker(play: Play) -> None:
    """A class that a call defines comes back by value, works, and stays the same class later."""
    program = """
def define():
    class Local(Square):
        def area(self):
            return super().area() + 1
        def twin(self):
            return Local(self.size)
    import builtins
    builtins.Local = Local
    return Local(2)

def again():
    import builtins
    return builtins.Local(3), builtins.Local

first, (second, kind) = map(load, outcomes((define,), (again,)))
assert (first.area(), second.area(), first.twin().area()) == (5, 10, 5)
assert type(first) is type(second) is type(first.twin()) is kind
assert isinstance(first, Square)
"""
    play(SHAPES, program)


def test_many_instances_share_their_class(play: Play) -> None:
    """Ten thousand instances do not carry ten thousand copies of their class."""
    program = """
((_, data),) = outcomes((lambda: [Shape(n) for n in range(10_000)],))
assert len(data) < 400_000, len(data)
shapes = payload.load_value(data)
assert {type(shape) for shape in shapes} == {Shape}
assert [shape.size for shape in shapes] == list(range(10_000))
"""
    play(SHAPES, program)


def test_a_new_client_that_has_the_names(play: Play) -> None:
    """Outcomes that a later process reads are of its own classes, as they are now."""
    save = """
def refuse():
    raise Refused('me', 'late')
save((same, [Square(3), Colour.RED, Data(1, Shape(1)), Pair]), (refuse,))
"""
    read = """
before = [state(cls) for cls in (Shape, Square, Colour, Data)]
(square, red, data, pair), error = map(load, saved())
assert (type(square), red, type(data), pair) == (Square, Colour.RED, Data, Pair)
assert type(data.shape) is Shape
assert type(error) is Refused and error.who == 'me'
assert [state(cls) for cls in (Shape, Square, Colour, Data)] == before
"""
    play(SHAPES, save)
    play(SHAPES, read)


def test_a_new_client_without_the_names(play: Play) -> None:
    """Where a later process has no such classes, copies take their place.

    They are the same ones for all outcomes of a worker, and related as the classes were.
    """
    save = """
def refuse():
    raise Refused('me', 'late')
save((lambda: [Square(3), Colour.RED, Data(1, Shape(1))],), (lambda: Shape(4),), (refuse,))
"""
    read = """
(square, red, data), shape, error = map(load, saved())
assert square.area() == 9
assert type(square).__mro__[1] is type(data.shape) is type(shape)
assert red is type(red).RED and red.mixed() is type(red).BLUE
assert (data.x, data.shape.size, shape.size) == (1, 1, 4)
assert type(error).__name__ == 'Refused' and error.who == 'me', error
"""
    play(SHAPES, save)
    play(read)


def test_a_new_client_that_has_some_names(play: Play) -> None:
    """A copy of a class is derived from the client's own class, which it leaves alone.

    A function that took the name of a class does not count.
    """
    save = 'save((same, Square(3)), (same, Data(1, Shape(1))))'
    read = """
class Shape:
    sides = 7
    def area(self):
        return 'mine'

def Square():
    pass

before = state(Shape)
square, data = map(load, saved())
assert type(square).__mro__[1] is Shape is type(data.shape)
assert square.area() == 'mine'
assert state(Shape) == before
"""
    play(SHAPES, save)
    play(read)


def test_classes_that_know_each_other(play: Play) -> None:
    """Classes whose methods use each other, in a circle, are copied once each."""
    classes = '\n'.join(
        f'class C{n}:\n    def all(self):\n        return {", ".join(f"C{m}" for m in range(12))}'
        for n in range(12)
    )
    program = """
save((lambda: C0(),))
((_, data),) = saved()
assert len(data) < 40_000, len(data)
"""
    read = """
c0 = load(saved()[0])
kinds = c0.all()
assert [kind.__name__ for kind in kinds] == [f'C{n}' for n in range(12)]
assert all(kind().all() == kinds for kind in kinds)
assert kinds[0] is type(c0)
"""
    play(classes, program)
    play(read)


def test_a_class_that_cannot_be_copied(play: Play) -> None:
    """A class with something that cannot travel is found by name all the same.

    Only a new process without it gets an error, which names it.
    """
    save = """
def lock():
    Shape.lock = __import__('threading').Lock()
    return Shape(3)
save((lock,))
assert type(load(saved()[0])) is Shape
"""
    read = """
try:
    load(saved()[0])
except pickle.UnpicklingError as error:
    assert '__main__.Shape' in str(error)
else:
    raise AssertionError
"""
    play(SHAPES, save)
    play(read)


def test_plain_values_need_no_cloudpickle(entry: str) -> None:
    """A short task is not to pay for imports that its result does not need."""
    program = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from slurm_futures_remote.results import dumps
for value in (None, True, 1, 1.5, 1j, 'text', b'bytes'):
    assert pickle.loads(dumps(value)) == value
assert 'cloudpickle' not in sys.modules
assert pickle.loads(dumps([1, {'a': (2,)}])) == [1, {'a': (2,)}]
"""
    subprocess.run(python_command(program, str(Path(entry).parent.parent)), check=True, timeout=60)
