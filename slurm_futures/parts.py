"""What functions, classes and instances are made of, as far as it matters to what they do.

Names of files, line numbers, comments, docstrings and annotations do not. All functions here only
look, and return their answers as labelled parts.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from slurm_futures import modules

Part = tuple[Any, Any]
"""A part of an object, behind a label that leads to it: an index, a key, or ``'.name'``."""

_READS_GLOBAL = frozenset(['LOAD_GLOBAL', 'LOAD_NAME', 'LOAD_FROM_DICT_OR_GLOBALS'])

_CODE = (
    'co_code',
    'co_argcount',
    'co_posonlyargcount',
    'co_kwonlyargcount',
    'co_flags',
    'co_names',
    'co_varnames',
    'co_freevars',
    'co_cellvars',
    'co_exceptiontable',  # since Python 3.11
)

_VOLATILE = frozenset(
    [
        '__annotate__',
        '__annotate_func__',
        '__annotations__',
        '__annotations_cache__',
        '__dict__',
        '__doc__',
        '__firstlineno__',
        '__module__',
        '__signature__',
        '__slotnames__',
        '__static_attributes__',
        '__weakref__',
        '_abc_impl',
        '_hashable_values_',
        '_member_map_',
        '_unhashable_values_',
        '_unhashable_values_map_',
        '_value2member_map_',
    ]
)
"""Variables of a class that say nothing, or that the interpreter makes when it needs them."""

_PYDANTIC = frozenset(['__pydantic_config__', '__pydantic_fields__'])
"""What counts of a model's ``__pydantic_*`` variables: the others have addresses in them."""

_LEAVES = frozenset(
    ['datetime', 'decimal', 'fractions', 'ipaddress', 'numpy', 'pathlib', 're', 'uuid', 'zoneinfo']
)
"""Modules whose hashable instances cannot be changed, nor can what is in them."""

_HEAP_TYPE = 1 << 9
"""The flag (Py_TPFLAGS_HEAPTYPE) of all classes but those that C code declares statically."""

_DISPATCHER = functools.singledispatch(len).__code__  # type: ignore[attr-defined]


class Absent:
    """What a name stands for that has no value."""


class Variables(dict[Any, Any]):
    """The variables of a class, function or instance."""


@functools.lru_cache(maxsize=4096)
def read_code(code: types.CodeType) -> tuple[Sequence[Any], Sequence[str]]:
    """Return what code consists of, and the names of the globals that it reads."""
    names, loaded = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in _READS_GLOBAL:
            names.add(step.argval)
        elif step.opcode in dis.hasconst:
            loaded.add(step.arg)
    # Nothing loads docstrings.
    constants = tuple(c if place in loaded else None for place, c in enumerate(code.co_consts))
    for constant in constants:
        if isinstance(constant, types.CodeType):
            names.update(read_code(constant)[1])
    facts = [getattr(code, name, None) for name in _CODE]
    return (*facts, constants), sorted(names)


def function_parts(fn: Any) -> Iterator[Part]:
    """Yield what a function's calls depend on: code, defaults, closure, globals."""
    if fn.__code__ is _DISPATCHER:  # its closure is full of caches
        yield '.registry', dict(fn.registry)
        return
    yield '.__code__', fn.__code__
    yield '.__defaults__', fn.__defaults__
    yield '.__kwdefaults__', fn.__kwdefaults__
    yield '', Variables(fn.__dict__)
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield f'.__closure__[{name!r}]', _content(cell)
    for name in read_code(fn.__code__)[1]:
        value = fn.__globals__.get(name, fn.__builtins__.get(name, Absent()))
        yield f'.__globals__[{name!r}]', value


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return Absent()


def class_parts(cls: type) -> Iterator[Part]:
    """Yield what a class does by itself, and what it inherits from."""
    yield '.__class__', type(cls)
    yield '.__bases__', cls.__bases__
    variables = {n: v for n, v in sorted(vars(cls).items()) if not _is_volatile(n)}
    if isinstance(cls, enum.EnumMeta):
        variables |= {name: getattr(cls, name).value for name in cls.__members__}
    yield '', Variables(variables)


def _is_volatile(name: str) -> bool:
    return name in _VOLATILE or (name.startswith('__pydantic_') and name not in _PYDANTIC)


def reduce(value: Any) -> str | tuple[Any, ...]:
    """Return what a pickle would hold of an instance; raises what pickling raises."""
    known: Any = copyreg.dispatch_table.get(type(value))
    reduced: str | tuple[Any, ...] = known(value) if known else value.__reduce_ex__(4)
    return reduced


def instance_parts(
    kind: type,
    make: object,
    args: object,
    state: object = None,
    items: Iterable[Any] | None = None,
    pairs: Iterable[Any] | None = None,
    set_state: object = None,
) -> Iterator[Part]:
    """Yield what `reduce` has said of an instance, as the pickle module defines it."""
    yield '.__reduce_ex__(4)[0]', make
    yield '.__reduce_ex__(4)[1]', args
    if type(state) is dict:
        yield '', Variables((k, v) for k, v in state.items() if not _is_cached(kind, k))
    else:
        yield '.__reduce_ex__(4)[2]', state
    yield '', tuple(items or ())
    yield '.items()', tuple(pairs or ())
    yield '.__reduce_ex__(4)[5]', set_state


def _is_cached(kind: type, name: Any) -> bool:
    """Return whether a variable of an instance is what a cached property has computed."""
    cached = functools.cached_property
    return any(isinstance(vars(base).get(name), cached) for base in kind.__mro__)


def is_leaf(kind: type) -> bool:
    """Return whether it says nothing which of two equal instances stands somewhere."""
    hashed: Any = kind.__hash__
    has_value = hashed not in {None, object.__hash__}
    return has_value and kind.__module__.partition('.')[0] in _LEAVES


def is_installed(value: Any) -> bool:
    """Return whether a function or class is Python's or a library's, and found there by its name.

    What a library's function has made is not: a decorated function, a named tuple.
    """
    if isinstance(value, type) and not value.__flags__ & _HEAP_TYPE:
        return True
    module = str(value.__module__)
    found: Any = sys.modules.get(module) if is_library(module) else None
    for name in value.__qualname__.split('.'):
        found = getattr(found, name, None)
    return found is value


@functools.lru_cache(maxsize=4096)
def is_library(module: str) -> bool:
    """Return whether a module is part of Python, or installed and not just linked to."""
    if module.partition('.')[0] in sys.stdlib_module_names:
        return True
    path = getattr(sys.modules.get(module), '__file__', None)
    if not isinstance(path, str) or module == '__main__':  # which differs from process to process
        return False
    return not modules.is_users(module, path)
