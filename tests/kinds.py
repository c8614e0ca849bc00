"""Values of all kinds, for the tests of keys; also a program that prints their keys as JSON.

It is copied to other folders and run there, as a program and as a module, with other hash seeds.
"""

from __future__ import annotations

import abc
import argparse
import array
import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import ipaddress
import json
import logging
import operator
import pathlib
import random
import re
import socket
import string
import types
import typing
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar('T')

RATE = 2.5
OPTIONS = {'steps': 10, 'names': {'alpha', 'beta', 'gamma', 'delta'}}
LOGGER = logging.getLogger('kinds')


def helper(x: float) -> float:
    """A function that others call."""
    return x * RATE


def simulate(x: float, *args: float, scale: float = 1.0, **kwargs: float) -> float:
    """A function with all sorts of arguments, that calls and reads what is around it."""
    LOGGER.debug('simulate %s', x)
    parts = [helper(y) for y in args if y in {1.0, 2.0, 3.0}]
    return sum(parts) * scale + len(OPTIONS) + sum(kwargs.values())


def is_even(n: int) -> bool:
    """One of two functions that call each other."""
    return n == 0 or is_odd(n - 1)


def is_odd(n: int) -> bool:
    """The other."""
    return n != 0 and is_even(n - 1)


def factorial(n: int) -> int:
    """A function that calls itself."""
    return 1 if n < 2 else n * factorial(n - 1)


def adder(step: float) -> Callable[[float], float]:
    """Return a closure."""

    def add(x: float) -> float:
        return x + step * RATE

    return add


def maker() -> type:
    """Return a class that is defined in a function."""

    class Local:
        rate = RATE

        def scaled(self) -> float:
            return self.rate * helper(1.0)

    return Local


def counted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


@counted
def decorated(x: float) -> float:
    """A function behind another."""
    return helper(x)


@functools.lru_cache(maxsize=8)
def cached(x: float) -> float:
    """A function behind one in C."""
    return helper(x)


@functools.singledispatch
def dispatched(x: object) -> str:
    """A function that has a variant for some types."""
    return 'object'


@dispatched.register
def _(x: int) -> str:
    return 'int'


dispatched(1)  # fills its cache


@contextlib.contextmanager
def context() -> Iterator[float]:
    """A context manager made of a generator."""
    yield helper(1.0)


class Model:
    """A class with methods of all sorts."""

    limit = 3
    registry: typing.ClassVar[dict[str, Any]] = {}

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.names = {'one', 'two', 'three', 'four'}

    def run(self, x: float) -> float:
        """Run."""
        return helper(x) * self.rate

    @property
    def double(self) -> float:
        """Twice the rate."""
        return 2 * self.rate

    @functools.cached_property
    def costly(self) -> float:
        """Something that takes long."""
        return helper(self.rate)

    @classmethod
    def standard(cls) -> Model:
        """Return a model."""
        return cls(1.0)

    @staticmethod
    def version() -> int:
        """Return the version."""
        return 1

    half = functools.partialmethod(run, 0.5)


class Child(Model):
    """A class that calls its base's methods."""

    def run(self, x: float) -> float:
        """Run."""
        return super().run(x) + 1


class Node:
    """A class whose instances refer to each other, and which refers to one of them."""

    root: Node

    def __init__(self, name: str) -> None:
        self.name = name
        self.others: list[Node] = []


Node.root = Node('root')


class Abstract(abc.ABC):
    """An abstract class."""

    @abc.abstractmethod
    def run(self) -> None:
        """Run."""


class Slotted:
    """A class without instance dictionaries."""

    __slots__ = ('left', 'right')

    def __init__(self, left: int, right: int) -> None:
        self.left = left
        self.right = right


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: float
    y: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, order=True)
class Frozen:
    """A dataclass whose instances can be hashed."""

    name: str
    size: int = 1


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: int = 0


class Box(Generic[T]):
    """A generic class."""

    def __init__(self, content: T) -> None:
        self.content = content


class Speaks(typing.Protocol):
    """A protocol."""

    def speak(self) -> str:
        """Speak."""


class Colour(enum.Enum):
    """An enumeration with a method."""

    RED = 'r'
    GREEN = 'g'
    ALSO_GREEN = 'g'  # noqa: PIE796 - an alias

    def shout(self) -> str:
        """Return the name."""
        return self.name + str(RATE)


class Mode(enum.IntFlag):
    """Flags."""

    READ = 1
    WRITE = 2


class Meta(type):
    """A metaclass."""

    def __call__(cls, *args: Any) -> Any:
        """Make an instance."""
        return super().__call__(*args)


class Made(metaclass=Meta):
    """A class of a class of ours."""


class Text(str):
    """A string of a class of ours."""

    __slots__ = ()


class Names(set):  # type: ignore[type-arg]
    """A set of a class of ours."""


class Failure(ValueError):
    """An exception of ours."""


Old = collections.namedtuple('Old', ['a', 'b'])  # noqa: PYI024 - the old way is a kind, too


def loop() -> list[Any]:
    """Return a list that contains itself, and a tuple that does."""
    around: list[Any] = [1]
    around += [around, (around,), {'around': around}]
    return around


def ring() -> Node:
    """Return an instance that is reached again from itself."""
    first, second = Node('first'), Node('second')
    first.others += [second, first]
    second.others.append(first)
    return first


def used() -> Model:
    """Return an instance whose cached property has been computed."""
    model = Model(3.0)
    assert model.costly
    return model


def kinds() -> dict[str, Any]:
    """Return a value of each kind."""
    words = {'alpha', 'beta', 'gamma', 'delta', 'epsilon'}
    return {
        'none': None,
        'bools': [True, False],
        'ellipsis': (..., NotImplemented),
        'int': [0, -1, 2**70, 10**5000],
        'float': [0.0, -0.0, 1.5, float('inf'), float('nan')],
        'complex': 1 - 2j,
        'str': ['', 'abc', 'Zürich', '\ud800'],
        'bytes': b'\0abc',
        'bytearray': bytearray(b'abc'),
        'tuple': (1, (2, ()), 'x'),
        'list': [1, [2, []], 'x'],
        'dict': {'b': 1, 'a': {2: None}},
        'set': words,
        'frozenset': frozenset(words),
        'set of tuples': {(word, len(word)) for word in words},
        'set of instances': {Frozen(word) for word in words},
        'set subclass': Names(words),
        'range': range(3, 10, 2),
        'slice': slice(1, None, 2),
        'shared': [[1, 2]] * 3,
        'loop': loop(),
        'ring': ring(),
        'datetime': dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.timezone.utc),
        'date': [dt.date(2024, 2, 29), dt.time(1), dt.timedelta(1, 2, 3)],
        'path': pathlib.Path('/data/run-1'),
        'decimal': decimal.Decimal('1.50'),
        'fraction': fractions.Fraction(1, 3),
        'uuid': uuid.UUID(int=5),
        'address': ipaddress.ip_address('10.0.0.1'),
        'pattern': re.compile(r'\d+', re.IGNORECASE),
        'OrderedDict': collections.OrderedDict(b=1, a=2),
        'defaultdict': collections.defaultdict(list, a=[1]),
        'Counter': collections.Counter('hello'),
        'deque': collections.deque([1, 2], maxlen=5),
        'ChainMap': collections.ChainMap({'a': 1}, {'b': 2}),
        'array': array.array('d', [1.0, 2.0]),
        'mappingproxy': types.MappingProxyType({'a': 1}),
        'namespace': [types.SimpleNamespace(a=1), argparse.Namespace(b=2)],
        'random': random.Random(1),
        'template': string.Template('$a'),
        'iterator': iter([1, 2, 3]),
        'exception': [ValueError('bad', 3), Failure('worse')],
        'sentinel': object(),
        'logger': LOGGER,
        'module': [json, types],
        'builtin': [len, print, [].append, 'abc'.upper, dict.fromkeys, str.join],
        'installed': [json.dumps, json.JSONEncoder, socket.AF_INET, operator.itemgetter(1)],
        'annotation': [list[int], int | str, Any, Callable[[int], str], T],
        'function': simulate,
        'recursive': [factorial, is_even, is_odd],
        'closure': [adder(1.0), adder(2.0)],
        'lambda': [lambda x: helper(x) + RATE, lambda: [y for y in OPTIONS]],  # noqa: C416
        'partial': functools.partial(simulate, 1.0, scale=3.0),
        'decorated': decorated,
        'cached': cached,
        'dispatched': dispatched,
        'context': context,
        'method': [Model(2.0).run, Model.standard, Model.version, Model.run, Model(1.0).half],
        'instance': Model(2.0),
        'used': used(),
        'child': Child(2.0),
        'class': [Model, Child, Node, Abstract, Slotted, Made, Text, Failure],
        'local class': [maker(), maker()()],
        'slots': Slotted(1, 2),
        'dataclass': [Point, Point(1.0, tags=['a'])],
        'made dataclass': dataclasses.make_dataclass('Quick', ['a', ('b', int, 2)])(1),
        'frozen': Frozen('a'),
        'namedtuple': [Pair(1), Old(1, 2), Pair, Old],
        'generic': [Box(1), Box[int], Box],
        'protocol': Speaks,
        'enum': [Colour.RED, Colour.ALSO_GREEN, Mode.READ | Mode.WRITE, Colour, Mode],
        'text': Text('abc'),
        'code': simulate.__code__,
    }


def main() -> None:
    """Print the keys."""
    from slurm_futures.keys import digest

    print(json.dumps({name: digest(value) for name, value in kinds().items()}))


if __name__ == '__main__':
    main()
