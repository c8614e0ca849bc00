"""Stable keys: the same value has the same key in every process, and a changed one has another.

A key is the SHA-256 of a walk over the value. Each object that the walk comes to writes one token,
``<kind> <length>:<content>``, and the walk goes on to its parts::

    [1, {'a': f}]  ->  list 1:2  int 1:1  dict 1:1  str 1:a  definition 32:<digest of f>

- Scalars count by value, and types count: 1, True and 1.0 are three values.
- What may be changed in place (lists, dicts, instances) is written once. After that, a token refers
  to it, so that ``[a, a]`` is not ``[a, copy(a)]``. Which of two equal strings or tuples stands
  somewhere is a matter of chance, and says nothing.
- Dicts count in their order, sets as the sorted encodings of their elements.
- Functions count by name, code, defaults, closure and the values of the globals that they read;
  classes by name, bases and variables (`parts`); both by the snapshot of the user's code that
  they come with, too. What is installed counts by name alone, and so do modules, but for the
  snapshot. Within a function or class, others that belong to it are parts like any.
- Everything else counts as what a pickle would hold of it, ``__reduce_ex__(4)``, without what
  ``functools.cached_property`` has computed.

The pickles themselves would not do: for all that comes from ``__main__`` they differ between
processes, and for sets with the hash seed. Bytecode differs between Python's minor versions, and so
do the keys of functions and classes that are not installed, and of their instances.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import itertools
import reprlib
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from slurm_futures.errors import Unkeyable
from slurm_futures.parts import (
    Absent,
    Part,
    Variables,
    class_parts,
    function_parts,
    instance_parts,
    is_installed,
    is_leaf,
    is_library,
    read_code,
    reduce,
)

Snapshots = Callable[[str], 'str | None']

Known = dict[int, tuple[object, bytes]]

DEEPEST = 10_000
"""Levels of nesting after which a value counts as endless; a pickle gives up much earlier."""

LONGEST_PATH = 500
"""Characters of a path that an error shows."""


def no_snapshot(module: str) -> str | None:  # noqa: ARG001 - one of many answers
    """Know of no snapshot."""
    return None


def digest(
    value: object,
    *,
    snapshots: Snapshots = no_snapshot,
    known: Known | None = None,
    name: str = 'value',
) -> str:
    """Return the key of a value.

    Args:
        value: anything that can be pickled.
        snapshots: returns, for the name of a module, the digest of the user's code that comes with
            it; None where there is none: the module is installed, or nothing is shipped. Without
            them, what a function finds in modules (``helpers.f``) or imports itself is not seen.
        known: digests of functions and classes from keys made before; without it, all of them are
            looked at anew. To be shared by keys that are made at one time, since a global that has
            changed in between goes unnoticed.
        name: what to call the value in errors.

    Returns:
        64 hexadecimal digits.

    Raises:
        Unkeyable: a part of the value belongs to this process, as locks and open files do.
    """
    walk = _Walk(snapshots, {} if known is None else known)
    try:
        return hashlib.sha256(walk.encode(value, name)).hexdigest()
    except _Refusal as refusal:
        path = _shorten(refusal.path)
        raise Unkeyable(
            f'{path} has no stable key, since it is a {refusal.kind} ({refusal}): leave it out, or '
            'give an explicit key',
            path=path,
            kind=refusal.kind,
        ) from None


def _shorten(path: str) -> str:
    half = LONGEST_PATH // 2
    return path if len(path) <= LONGEST_PATH else f'{path[:half]} ... {path[-half:]}'


class _Refusal(Exception):
    """A part has no key; its path grows on the way up."""

    def __init__(self, value: object, why: str) -> None:
        super().__init__(why)
        self.kind = f'{type(value).__module__}.{type(value).__qualname__}'
        self.path = ''


class _Walk:
    """A walk over a value.

    Args:
        snapshots: see `digest`.
        known: functions and classes, and their digests, each from a walk of its own; None: this is
            such a walk.
    """

    def __init__(self, snapshots: Snapshots, known: Known | None) -> None:
        self.snapshots = snapshots
        self.known = known
        self._met: dict[int, tuple[int, object]] = {}  # the objects, too, so that ids stay theirs
        self._out: list[bytes] = []

    def encode(self, value: object, name: str) -> bytes:
        """Return the encoding of a value by itself; what it has in it is not met by others."""
        outer, self._out = self._out, []
        met = len(self._met)
        self._go(value, name)
        while len(self._met) > met:
            self._met.popitem()
        encoding, self._out = b''.join(self._out), outer
        return encoding

    def _go(self, value: object, name: str) -> None:
        """Describe a value and, depth first, its parts; in a loop, since recursion has a limit."""
        trail: list[tuple[object, Any, Iterator[Part]]] = [(None, '', iter([(name, value)]))]
        label: Any = name
        try:
            while trail:
                for label, part in trail[-1][2]:
                    parts = _KINDS.get(type(part), _other)(self, part)
                    if parts is not None:
                        if len(trail) > DEEPEST:
                            _refuse(part, f'below {DEEPEST} others')
                        trail.append((part, label, iter(parts)))
                        break
                else:
                    trail.pop()
        except _Refusal as refusal:
            labels = [*(step[1] for step in trail[1:]), label]
            steps = (_show(parent, label) for (parent, _, _), label in zip(trail, labels))
            refusal.path = ''.join(steps) + refusal.path
            raise

    def write(self, kind: bytes, content: bytes = b'') -> None:
        """Write a token."""
        self._out += (b'%b %d:' % (kind, len(content)), content)

    def write_raw(self, encodings: Iterable[bytes]) -> None:
        """Write what `encode` has returned."""
        self._out += encodings

    def write_name(self, kind: bytes, name: str, module: str) -> None:
        """Write what something is called, and the snapshot that its module is from."""
        self.write(kind, name.encode())
        self.write(b'snapshot', (self.snapshots(module) or '').encode())

    def meets(self, value: object) -> bool:
        """Return whether a value is new; if not, write a token that refers to it."""
        known = self._met.get(id(value))
        if known is None:
            self._met[id(value)] = (len(self._met), value)
            return True
        self.write(b'again', b'%d' % known[0])
        return False


def _show(parent: object, label: Any) -> str:
    return f'[{reprlib.repr(label)}]' if type(parent) in (tuple, list, dict) else str(label)


def _refuse(value: object, why: str) -> NoReturn:
    raise _Refusal(value, why)


# ---- kinds of values: each writes its token, and returns its parts if it has any

Parts = Iterable[Part] | None


def _constant(walk: _Walk, value: object) -> None:
    walk.write(repr(value).encode())


def _int(walk: _Walk, value: int) -> None:
    walk.write(b'int', b'%x' % value)  # decimal digits are limited


def _float(walk: _Walk, value: float) -> None:
    walk.write(b'float', struct.pack('>d', value))


def _complex(walk: _Walk, value: complex) -> None:
    walk.write(b'complex', struct.pack('>dd', value.real, value.imag))


def _str(walk: _Walk, value: str) -> None:
    walk.write(b'str', value.encode('utf-8', 'surrogatepass'))


def _bytes(walk: _Walk, value: bytes) -> None:
    walk.write(b'bytes', value)


def _tuple(walk: _Walk, value: tuple[Any, ...]) -> Parts:
    walk.write(b'tuple', b'%d' % len(value))
    return enumerate(value)


def _list(walk: _Walk, value: list[Any]) -> Parts:
    if not walk.meets(value):
        return None
    walk.write(b'list', b'%d' % len(value))
    return enumerate(value)


def _dict(walk: _Walk, value: dict[Any, Any]) -> Parts:
    if not walk.meets(value):
        return None
    walk.write(b'dict', b'%d' % len(value))
    return itertools.chain(zip(value, value), value.items())


def _set(walk: _Walk, value: set[Any] | frozenset[Any]) -> Parts:
    if isinstance(value, set) and not walk.meets(value):
        return None
    walk.write(b'set', b'%d' % len(value))
    walk.write_raw(sorted(walk.encode(element, ' (an element)') for element in value))
    return [('.__class__', type(value)), ('.__dict__', getattr(value, '__dict__', None))]


def _plain(walk: _Walk, value: object) -> Parts:
    """Describe what a few attributes make up."""
    walk.write(b'plain')
    base = next(base for base in type(value).__mro__ if base in _PLAIN)
    return [(f'.{name}', getattr(value, name)) for name in ('__class__', *_PLAIN[base])]


def _proxy(walk: _Walk, value: types.MappingProxyType[Any, Any]) -> Parts:
    walk.write(b'mappingproxy')
    return [('', dict(value))]


def _enum(walk: _Walk, value: enum.Enum) -> Parts:
    walk.write(b'enum')
    return [('.__class__', type(value)), ('.value', value.name or value.value)]


def _absent(walk: _Walk, _: Absent) -> None:
    walk.write(b'absent')


def _variables(walk: _Walk, value: Variables) -> Parts:
    walk.write(b'variables')
    return [('', tuple(value)), *((f'.{name}', part) for name, part in value.items())]


def _module(walk: _Walk, value: types.ModuleType) -> None:
    if sys.modules.get(value.__name__) is not value:
        _refuse(value, 'made at run time, it cannot be found by its name')
    walk.write_name(b'module', value.__name__, value.__name__)


def _code(walk: _Walk, value: types.CodeType) -> Parts:
    walk.write(b'code')
    return [('', read_code(value)[0])]


def _definition(walk: _Walk, value: Any) -> Parts:
    """Describe a function or class: by a digest of its own, or as a part of another."""
    if walk.known is None:
        return _define(walk, value)
    found = walk.known.get(id(value))
    if found is None:
        encoding = _Walk(walk.snapshots, None).encode(value, '')
        found = walk.known[id(value)] = (value, hashlib.sha256(encoding).digest())
    walk.write(b'definition', found[1])
    return None


def _define(walk: _Walk, value: Any) -> Parts:
    module = str(value.__module__)
    name = f'{module}.{value.__qualname__}'
    if walk.snapshots(module) is None and is_installed(value):
        walk.write(b'installed', name.encode())
        return None
    if not walk.meets(value):
        return None
    walk.write_name(b'definition', name, module)
    return class_parts(value) if isinstance(value, type) else function_parts(value)


def _instance(walk: _Walk, value: Any) -> Parts:
    if not is_leaf(type(value)) and not walk.meets(value):
        return None
    try:
        reduced = reduce(value)
        parts = None if isinstance(reduced, str) else instance_parts(type(value), *reduced)
    except Exception as error:
        _refuse(value, str(error) or type(error).__name__)
    if isinstance(reduced, str):
        return _named(walk, value, reduced)
    walk.write(b'instance')
    return parts


def _named(walk: _Walk, value: object, name: str) -> Parts:
    """Describe what a pickle finds by its name: a function in C, a type variable."""
    module = str(getattr(value, '__module__', None))
    walk.write_name(b'named', f'{module}.{name}', module)
    is_users = walk.snapshots(module) is not None or not is_library(module)
    # lru_cache() makes a function in C of one in Python.
    wrapped = getattr(value, '__wrapped__', None) if is_users else None
    return [('.__class__', type(value)), ('.__wrapped__', wrapped)]


def _other(walk: _Walk, value: object) -> Parts:
    """Describe an instance of a class that is no kind of its own."""
    for base, describe in _FAMILIES.items():
        if issubclass(type(value), base):
            return describe(walk, value)
    return _instance(walk, value)


_Describe = Callable[[_Walk, Any], Parts]

_KINDS: dict[type, _Describe] = {
    type(None): _constant,
    type(...): _constant,
    type(NotImplemented): _constant,
    bool: _constant,
    int: _int,
    float: _float,
    complex: _complex,
    str: _str,
    bytes: _bytes,
    tuple: _tuple,
    list: _list,
    dict: _dict,
    types.MappingProxyType: _proxy,
    types.ModuleType: _module,
    types.FunctionType: _definition,
    types.CodeType: _code,
    Absent: _absent,
    Variables: _variables,
}
"""How to describe what is exactly of a type."""

_PLAIN: dict[type, tuple[str, ...]] = {
    range: ('start', 'stop', 'step'),
    slice: ('start', 'stop', 'step'),
    types.ClassMethodDescriptorType: ('__objclass__', '__name__'),
    types.GetSetDescriptorType: ('__objclass__', '__name__'),
    types.MethodType: ('__func__', '__self__'),
    property: ('fget', 'fset', 'fdel'),
    staticmethod: ('__func__',),
    classmethod: ('__func__',),
    functools.cached_property: ('func',),
}

_FAMILIES: dict[type, _Describe] = {
    type: _definition,
    enum.Enum: _enum,
    set: _set,
    frozenset: _set,
    **dict.fromkeys(_PLAIN, _plain),
}
"""How to describe what is of a type or of one derived from it."""
