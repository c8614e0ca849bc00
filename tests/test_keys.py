"""Keys: the same in every process, another for everything that matters, refused where unstable."""

from __future__ import annotations

import collections
import datetime as dt
import functools
import gc
import json
import math
import pickle
import random
import socket
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kinds
from helpers import python_command
from slurm_futures import keys, parts
from slurm_futures.errors import Unkeyable
from slurm_futures.keys import digest

repeatable = settings(derandomize=True, database=None, deadline=None)

RUN = 'import runpy, sys; runpy.run_path(sys.argv[1], run_name="__main__")'
IMPORT = 'import sys; sys.path.insert(0, sys.argv[1]); import kinds; kinds.main()'


def keys_of(seed: str, code: str, *args: str) -> dict[str, str]:
    """Return what a program prints that runs with a hash seed of its own."""
    command = python_command(code, *args)
    done = subprocess.run(
        command,
        env={'PYTHONHASHSEED': seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def run(source: str) -> Any:
    """Run a module of a user's, and return what it calls ``value``."""
    namespace: dict[str, Any] = {'__name__': 'users'}
    exec(compile(source, 'users.py', 'exec'), namespace)
    return namespace['value']


# ---- the same


@pytest.fixture(scope='module')
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same program in two places."""
    source = Path(kinds.__file__).read_text(encoding='utf-8')
    places = [tmp_path_factory.mktemp('here'), tmp_path_factory.mktemp('there') / 'far' / 'below']
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / 'kinds.py').write_text(source, encoding='utf-8')
    return places


def test_same_in_every_run_of_a_program(copies: list[Path]) -> None:
    """Each kind of value has the same key in two processes, wherever the program lies."""
    here, there = (keys_of(str(n), RUN, str(f / 'kinds.py')) for n, f in enumerate(copies))
    assert here == there
    assert len(here) > 60


def test_same_in_every_import_of_a_module(copies: list[Path]) -> None:
    """The same holds where the definitions are in a module, and in this process."""
    here, there = (keys_of(str(n), IMPORT, str(folder)) for n, folder in enumerate(copies))
    assert here == there
    assert here == {name: digest(value) for name, value in kinds.kinds().items()}


def test_kinds_differ() -> None:
    """No two kinds of values have the same key."""
    found = [digest(value) for value in kinds.kinds().values()]
    assert len(set(found)) == len(found)


def test_use_leaves_no_trace() -> None:
    """Keys stay the same when functions have been called and classes used: caches do not count."""
    values = kinds.kinds()
    before = {name: digest(value) for name, value in values.items()}
    for n in range(300):  # the interpreter adapts the bytecode to how it is used
        kinds.simulate(1.0, 2.0, scale=3.0)
        assert kinds.is_even(4)
        kinds.cached(n)
        kinds.dispatched('x')
        kinds.Child(1.0).run(2.0)
        assert kinds.Frozen('a') < kinds.Frozen('b')
        assert kinds.Mode.READ in kinds.Mode(3)
    assert not isinstance(3, kinds.Abstract)
    for value in (kinds.Slotted(1, 2), kinds.Pair(1), kinds.Colour.RED, kinds.Model(1.0)):
        assert type(pickle.loads(pickle.dumps(value))) is type(value)
    assert values['instance'].costly == 5.0
    assert {name: digest(value) for name, value in values.items()} == before


def test_same_when_traced() -> None:
    """A debugger or a measurement of coverage, which change the bytecode, change no key."""
    before = digest(kinds.simulate)
    parts.read_code.cache_clear()
    old = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        kinds.simulate(1.0)
        assert digest(kinds.simulate) == before
    finally:
        sys.settrace(old)


FUNCTION = """\
import json
RATE = 2
def helper(x, y=1):
    return x + RATE
def value(x):
    '''Add up.'''
    if x in {'a', 'b', 'c'}:
        return helper(x) + json.loads('1')
"""

HARMLESS = {
    'lines': ('def value', '\n\n# What is called.\ndef value'),
    'comment': ("'c'}:", "'c'}:  # three of them"),
    'docstring': ('Add up.', 'Add all of it up.'),
    'annotations': ('helper(x, y=1):', 'helper(x: int, y: float = 1) -> int:'),
    'unused global': ('RATE = 2', 'RATE = 2\nOTHER = 3'),
    'unused function': ('RATE = 2', 'RATE = 2\ndef other(): pass'),
    'order of globals': ('import json\nRATE = 2', 'RATE = 2\nimport json'),
    'order in a set': ("{'a', 'b', 'c'}", "{'c', 'a', 'b'}"),
    'line breaks': ("helper(x) + json.loads('1')", "(helper(x)\n +\n json.loads('1'))"),
    'spelling of a constant': ('RATE = 2', 'RATE = 0x2'),
    'spelling of a string': ("loads('1')", "loads('\x31')"),
}


@pytest.mark.parametrize('what', HARMLESS)
def test_harmless_edits(what: str) -> None:
    """What does not change what a function does changes no key."""
    old, new = HARMLESS[what]
    assert old in FUNCTION
    assert digest(run(FUNCTION.replace(old, new))) == digest(run(FUNCTION))


def test_identity_of_what_cannot_change() -> None:
    """Whether equal strings, numbers, tuples or dates are one object is a matter of chance."""
    for value in ['a b', 10**30, 1.5, (1, ('b',)), frozenset('ab'), dt.date(2024, 1, 1)]:
        twin = pickle.loads(pickle.dumps(value))
        assert twin is not value
        assert digest([value, value]) == digest([value, twin])


def test_order_in_which_a_set_was_filled() -> None:
    """Elements that collide stand in the order in which they came; keys do not show it."""
    first, second = {0, 2**61 - 1}, {2**61 - 1, 0}
    assert list(first) != list(second)
    assert digest(first) == digest(second)


# ---- different

BEFORE = """\
import functools
import enum
from decimal import Decimal
RATE = 2
LIMIT = [1, 2]
def tool(x, y=1, *, z=2):
    return x + RATE
def helper(x):
    return tool(x) * 3
def make(step):
    def add(x):
        return x + step
    return add
class Base:
    start = 5
    def run(self):
        return helper(self.start)
class Thing(Base):
    __slots__ = ()
    def go(self):
        return self.run() + len(LIMIT)
    @property
    def size(self):
        return 7
    @staticmethod
    def fixed():
        return 8
    @functools.cached_property
    def costly(self):
        return 9
class Colour(enum.Enum):
    RED = 'r'
    def __str__(self):
        return 'red'
    @classmethod
    def _missing_(cls, value):
        return cls.RED
class Flags(enum.IntFlag):
    ON = 1
@functools.lru_cache
def cached(x):
    return x * 10
def work(x, items=(1, 2)):
    class Local:
        rate = RATE
    plus = lambda y: y + 11
    found = [Decimal(y) for y in items if y in {12, 13}]
    return Flags(x) + helper(x) + plus(x) + cached(x) + Thing().go() + Colour.RED.value.real
work.mark = 14
value = (work, make(15), functools.partial(work, 16), Thing(), Colour.RED)
"""

MUTATIONS = [
    ('x + RATE', 'x - RATE'),
    ('RATE = 2', 'RATE = 3'),
    ('RATE = 2', 'RATE = 2.0'),
    ('LIMIT = [1, 2]', 'LIMIT = [2, 1]'),
    ('y=1, *', 'y=2, *'),
    ('z=2', 'z=3'),
    ('y=1, *, z=2', 'z=1, *, y=2'),
    ('y=1, *, z=2', 'y=1, z=2'),
    ('tool(x) * 3', 'tool(x) * 4'),
    ('tool(x) * 3', 'tool(x) ** 3'),
    ('tool(x) * 3', 'len(x) * 3'),
    ('return x + step', 'return step + x'),
    ('make(15)', 'make(16)'),
    ('start = 5', 'start = 6'),
    ('helper(self.start)', 'helper(self.stop)'),
    ('class Thing(Base)', 'class Thing(Base, Exception)'),
    ('class Thing(Base)', 'class Thing(Base, metaclass=type("M", (type,), {}))'),
    ('len(LIMIT)', 'max(LIMIT)'),
    ('return 7', 'return -7'),
    ('return 8', 'return True'),
    ('return 9', 'return "9"'),
    ('def fixed', 'def fluid'),
    ('@staticmethod', '@classmethod'),
    ('@property', '@functools.cached_property'),
    ("RED = 'r'", "RED = 'R'"),
    ("RED = 'r'", "RED = 'r'\n    BLUE = 'b'"),
    ("return 'red'", "return 'Red'"),
    ('return cls.RED', 'return None'),
    ('ON = 1', 'ON = 2'),
    ('x * 10', 'x * 20'),
    ('items=(1, 2)', 'items=[1, 2]'),
    ('rate = RATE', 'rate = LIMIT'),
    ('y + 11', 'y + 12'),
    ('{12, 13}', '{12, 14}'),
    ('[Decimal(y)', '[str(y)'),
    ('value.real', 'value.imag'),
    ('work.mark = 14', 'work.mark = 15'),
    ('partial(work, 16)', 'partial(work, 17)'),
    ('partial(work, 16)', 'partial(work, x=16)'),
    ('from decimal import Decimal', 'from fractions import Fraction as Decimal'),
    ('Thing(), Colour', 'Base(), Colour'),
    ('def work(x, items', 'def work(y, items'),
]


@pytest.mark.parametrize(('old', 'new'), MUTATIONS)
def test_mutations(old: str, new: str) -> None:
    """Whatever changes what a function, or anything that it uses, does, changes its key."""
    assert old in BEFORE
    assert digest(run(BEFORE.replace(old, new))) != digest(run(BEFORE))


def twins(make: Callable[[], Any]) -> tuple[Any, Any]:
    """Return a list with one thing in it twice, and one with two equal things."""
    one = make()
    return [one, one], [one, make()]


DIFFERENT = {
    'int and bool': (1, True),
    'int and float': (1, 1.0),
    'zero and none': (0, None),
    'signs of zero': (0.0, -0.0),
    'nan and inf': (math.nan, math.inf),
    'float and complex': (1.0, 1 + 0j),
    'str and bytes': ('a', b'a'),
    'bytes and bytearray': (b'a', bytearray(b'a')),
    'list and tuple': ([1], (1,)),
    'set and frozenset': ({1}, frozenset({1})),
    'set and its subclass': ({1}, kinds.Names({1})),
    'str and its subclass': ('a', kinds.Text('a')),
    'dict and its subclass': ({}, collections.OrderedDict()),
    'order in a dict': ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}),
    'nesting': ([[1], 2], [[1, 2]]),
    'where a string ends': (['ab', 'c'], ['a', 'bc']),
    'none and nothing': ([None], []),
    'one list twice': twins(list),
    'one dict twice': twins(dict),
    'one set twice': twins(set),
    'one instance twice': twins(kinds.Made),
    'one array twice': twins(lambda: np.zeros(1)),
    'range and slice': (range(1, 2, 3), slice(1, 2, 3)),
    'attribute': (kinds.Model(1.0), kinds.Model(2.0)),
    'slot': (kinds.Slotted(1, 2), kinds.Slotted(2, 1)),
    'class': (kinds.Model(1.0), kinds.Child(1.0)),
    'method': (kinds.Model(1.0).run, kinds.Model(1.0).standard),
    'what it is bound to': (kinds.Model(1.0).run, kinds.Model(2.0).run),
    'member': (kinds.Colour.RED, kinds.Colour.GREEN),
    'flags': (kinds.Mode.READ, kinds.Mode.READ | kinds.Mode.WRITE),
    'exception': (ValueError('a'), ValueError('b')),
    'builtin': (len, max),
    'module': (json, math),
    'random state': (random.Random(1), random.Random(2)),
    'dtype': (np.zeros(2, 'f4'), np.zeros(2, 'f8')),
    'shape': (np.zeros((2, 3)), np.zeros((3, 2))),
    'element': (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
    'number and array': (np.float64(1.0), np.array(1.0)),
    'kinds of numbers': (np.float64(1.0), 1.0),
}


@pytest.mark.parametrize('what', DIFFERENT)
def test_different_values(what: str) -> None:
    """Values that a function can tell from each other have different keys."""
    one, other = DIFFERENT[what]
    assert digest(one) != digest(other)


SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, '', 'a', 'b', b'', b'a', 2j]
)
VALUES = st.recursive(
    SCALARS | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(SCALARS, inner, max_size=3)
        | st.sets(SCALARS, max_size=4)
        | st.frozensets(SCALARS, max_size=4)
    ),
    max_leaves=8,
)
SMALL_VALUES = st.recursive(
    st.sampled_from([0, False, 'a']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(SCALARS, inner, max_size=2),
    max_leaves=3,
)


def outline(value: Any) -> Any:
    """Return a text that two values share if they are of one type and hold the same."""
    inner: Any = repr(value)
    if isinstance(value, dict):
        inner = [(outline(key), outline(item)) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inner = list(map(outline, value))
    elif isinstance(value, (set, frozenset)):
        inner = sorted(map(outline, value))
    return f'{type(value).__name__} {inner}'


@repeatable
@given(VALUES)
def test_copies_have_the_same_key(value: Any) -> None:
    """A value that has been pickled and read again has the key that it had."""
    assert digest(pickle.loads(pickle.dumps(value))) == digest(value)


@repeatable
@given(VALUES, VALUES)
def test_values_that_differ(one: Any, other: Any) -> None:
    """Keys are equal for values that are, in every respect, and only for them."""
    assert (digest(one) == digest(other)) == (outline(one) == outline(other))


@repeatable
@given(SMALL_VALUES, SMALL_VALUES)
def test_values_that_nearly_agree(one: Any, other: Any) -> None:
    """The same, where equal values are likely."""
    assert (digest(one) == digest(other)) == (outline(one) == outline(other))


# ---- snapshots, and what is known


def test_snapshots_count_where_they_are_used() -> None:
    """The key of a function depends on the snapshots of its module, and of those that it uses."""
    value = run('import kinds\ndef helper(): return 1\ndef value(): return kinds.helper(helper())')

    def key(**snapshots: str) -> str:
        return digest(value, snapshots=snapshots.get)

    assert key() == key(other='1') != key(users='1') != key(users='2')
    assert key(users='1') != key(users='1', kinds='1') != key(users='1', kinds='2')


def test_installed_counts_by_name() -> None:
    """Of what is installed nothing is looked at; if it is shipped all the same, everything is."""
    asked: list[str] = []

    def snapshots(module: str) -> str | None:
        asked.append(module)
        return None

    digest([json.dumps, json.JSONEncoder, np.mean, pytest.fixture], snapshots=snapshots)
    assert set(asked) == {'json', 'json.encoder', 'numpy', 'pytest', '_pytest.fixtures'} & set(
        asked
    )
    assert digest(json.dumps) != digest(json.dumps, snapshots={'json': '1'}.get)
    assert digest(np.dtype) != digest(np.dtype, snapshots={'numpy': '1'}.get)


def test_known_definitions() -> None:
    """What is known of functions saves work, and changes no key as long as nothing else changes."""
    function = run('RATE = 1\ndef value(x): return x * RATE')
    known: keys.Known = {}
    fresh = digest((function, 1))
    assert digest((function, 1), known=known) == fresh
    assert len(known) == 1
    function.__globals__['RATE'] = 2
    assert digest((function, 1), known=known) == fresh
    assert digest((function, 1)) != fresh


def test_known_definitions_keep_their_addresses() -> None:
    """A function that is known is kept, so that no other one can be taken for it."""
    function = run('def value(): return 1')
    known: keys.Known = {}
    digest(function, known=known)
    alive = weakref.ref(function)
    del function
    gc.collect()
    assert alive() is not None


# ---- without a key


def guarded() -> None:
    """A function that needs what cannot be copied."""
    with LOCK:
        pass


LOCK: Any = threading.Lock()
SOCKET = socket.socket()
SOCKET.close()


def caller() -> None:
    """A function that calls it."""
    guarded()


class Endless:
    """Something that consists of another one of its kind."""

    def __reduce__(self) -> Any:
        return Endless, (), {'next': Endless()}


class Broken:
    """Something that cannot be pickled, for a reason of its own."""

    def __reduce__(self) -> Any:
        raise ValueError('do not copy me')


def locked(**values: Any) -> Any:
    """Return an instance with a lock among its variables."""
    model = kinds.Model(1.0)
    vars(model).update(values, lock=LOCK)
    return model


UNKEYABLE: dict[str, tuple[Callable[[], Any], str, str]] = {
    'lock': (lambda: LOCK, 'value', '_thread.lock'),
    'file': (lambda: sys.stdout.buffer, 'value', '_io.'),
    'socket': (lambda: SOCKET, 'value', 'socket.socket'),
    'generator': (lambda: [(letter for letter in 'ab')], 'value[0]', 'builtins.generator'),
    'weak reference': (lambda: {'a': weakref.ref(Endless)}, "value['a']", 'weakref'),
    'view': (lambda: (1, memoryview(b'a')), 'value[1]', 'builtins.memoryview'),
    'module': (lambda: types.ModuleType('made'), 'value', 'builtins.module'),
    'attribute': (lambda: [locked()], 'value[0].lock', '_thread.lock'),
    'key': (lambda: {LOCK: 1}, 'value[<unlocked', '_thread.lock'),
    'element': (lambda: {LOCK}, 'value (an element)', '_thread.lock'),
    'global': (lambda: guarded, "value.__globals__['LOCK']", '_thread.lock'),
    'global of a helper': (
        lambda: (caller, 1),
        "value[0].__globals__['guarded'].__globals__['LOCK']",
        '_thread.lock',
    ),
    'closure': (lambda: kinds.adder(LOCK), "value.__closure__['step']", '_thread.lock'),
    'default': (lambda: lambda a=LOCK: a, 'value.__defaults__[0]', '_thread.lock'),
    'argument': (
        lambda: functools.partial(print, LOCK),
        'value.__reduce_ex__(4)[2][1][0]',
        '_thread.lock',
    ),
    'in a deque': (lambda: collections.deque([LOCK]), 'value[0]', '_thread.lock'),
    'own reason': (Broken, 'value', 'Broken'),
}


@pytest.mark.parametrize('what', UNKEYABLE)
def test_unkeyable(what: str) -> None:
    """What belongs to this process has no key; the error says what it is, where, and what to do."""
    make, path, kind = UNKEYABLE[what]
    with pytest.raises(Unkeyable, match='give an explicit key') as caught:
        digest(make())
    assert caught.value.path.startswith(path)
    assert kind in caught.value.kind
    assert str(caught.value).startswith(f'{caught.value.path} has no stable key')


def test_deep_values() -> None:
    """What is nested deeper than Python can call has a key; what never ends is refused."""
    deep: list[Any] = []
    for _ in range(5 * sys.getrecursionlimit()):
        deep = [deep]
    assert digest(deep) != digest(deep[0])
    with pytest.raises(Unkeyable, match=f'below {keys.DEEPEST} others') as caught:
        digest(Endless())
    assert caught.value.path.startswith('value.next.next')
    assert len(caught.value.path) < 1000


PYDANTIC = """
import json, pydantic
from slurm_futures.keys import digest
class Inner(pydantic.BaseModel):
    rate: float = RATE
class Model(pydantic.BaseModel):
    inner: Inner = Inner()
    names: list[str] = []
    @pydantic.field_validator('names')
    @classmethod
    def check(cls, names): return names
model = Model(names=['a'])
print(json.dumps({'new': digest(model), 'used': model.model_dump() and digest(model)}))
"""


def test_pydantic_models() -> None:
    """Instances of pydantic's models have stable keys, though addresses are kept in the class."""
    here, there = (keys_of(seed, f'RATE = 1.0\n{PYDANTIC}') for seed in '12')
    assert here == there
    assert here['new'] == here['used'] != keys_of('1', f'RATE = 2.0\n{PYDANTIC}')['new']
