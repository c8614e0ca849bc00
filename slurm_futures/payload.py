"""Calls and outcomes to bytes and back; the only module that uses cloudpickle.

Classes of the client's ``__main__`` travel to the cluster by value and come back by name: an
outcome never redefines a class of the client, and ``isinstance``, the identity of enum members
and ``except MyError`` hold.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Collection, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _internals

from slurm_futures.errors import RemoteError, RemoteImportError

_STAGES = {
    'load': ', before the call began',
    'result': ', when the result of the call was pickled',
}


class RemoteTraceback(Exception):
    """The traceback of an exception on the cluster; the ``__cause__`` of the exception here."""

    def __init__(self, text: str, place: str = '') -> None:
        super().__init__(text, place)
        self.text = text
        self.place = place

    def __str__(self) -> str:
        return f'{self.place}\n"""\n{self.text}"""'


Codes = dict[CodeType, str]
"""Code that travels in pickles, each with the package that its relative imports start from."""


class _CallPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes note of the functions that it pickles by value."""

    def __init__(self, file: io.BytesIO, codes: Codes) -> None:
        super().__init__(file, protocol=5)
        self._codes = codes

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if type(obj) is FunctionType and reduced is not NotImplemented:
            self._codes[obj.__code__] = obj.__globals__.get('__package__') or ''
        return reduced


def dump_function(function: Any, codes: Codes | None = None) -> bytes:
    """Pickle a function.

    Args:
        function: what to pickle.
        codes: where to note the code that the pickle holds.
    """
    return _dumps(function, codes)


def dump_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], codes: Codes | None = None
) -> bytes:
    """Pickle the arguments of a call; see `dump_function`."""
    return _dumps((tuple(args), dict(kwargs)), codes)


def _dumps(value: Any, codes: Codes | None) -> bytes:
    with io.BytesIO() as file:
        _CallPickler(file, {} if codes is None else codes).dump(value)
        return file.getvalue()


def modules_by_value() -> Collection[str]:
    """Return the names of the modules that have been registered to be pickled by value."""
    names: Collection[str] = _internals.list_registry_pickle_by_value()
    return names


class _OutcomeUnpickler(pickle.Unpickler):
    """Finds classes that came from here, rather than making them anew.

    Args:
        data: a pickle, perhaps with copies of classes behind it (see remote.results.dumps).
        copies: these copies, if they are known; by what cloudpickle calls the classes.
    """

    def __init__(self, data: bytes, copies: Mapping[str, bytes] | None = None) -> None:
        super().__init__(io.BytesIO(data))
        self._data = data
        self._copies = copies

    def persistent_load(self, pid: tuple[str, str, str]) -> Any:
        module, qualname, tracker = pid
        known = _internals._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
        if known is None:
            known = _find_class(module, qualname)
        return self._make_class(pid) if known is None else known

    def _make_class(self, pid: tuple[str, str, str]) -> Any:
        module, qualname, tracker = pid
        if self._copies is None:
            size = int.from_bytes(self._data[-8:], 'big')
            self._copies = pickle.loads(self._data[-8 - size : -8])
        if not self._copies[tracker]:
            raise pickle.UnpicklingError(
                f'this process has no class {module}.{qualname}, and it cannot be copied'
            )
        return _OutcomeUnpickler(self._copies[tracker], self._copies).load()


def _find_class(module: str, qualname: str) -> type | None:
    found: Any = sys.modules.get(module)
    for name in qualname.split('.'):
        found = getattr(found, name, None)
    return found if isinstance(found, type) else None


def load_value(data: bytes) -> Any:
    """Unpickle what a call returned; whatever unpickling raises passes through."""
    return _OutcomeUnpickler(data).load()


def load_error(item: Mapping[str, Any], data: bytes, host: str) -> BaseException:
    """Return the exception that a call raised on the cluster, as its own type where possible.

    Args:
        item: the outcome's header: ``stage``, ``type`` and ``text``; of an ImportError also
            ``module`` and ``python``, the interpreter.
        data: the pickled exception; empty where it could not be pickled.
        host: where the call ran, for messages.

    Returns:
        The exception with the remote traceback as ``__cause__``; a ``RemoteError`` that holds the
        text where the exception cannot be rebuilt.
    """
    text = item['text']
    place = f'on {host}' + (f' by {item["python"]}' if 'python' in item else '')
    if item['stage'] == 'load' and item.get('module'):
        error: BaseException = RemoteImportError(
            f'module {item["module"]!r}, which the call needs, cannot be imported {place}: '
            'install it there for this interpreter, have it travel with ship_modules, or put its '
            'folder on PYTHONPATH in setup',
            traceback=text,
            name=item['module'],
        )
    else:
        error = _rebuild(item, data, host)
    # As the interpreter does: an exception may forbid assignments, as frozen dataclasses do.
    cause = RemoteTraceback(text, f'{place}{_STAGES.get(item["stage"], "")}')
    BaseException.__setattr__(error, '__cause__', cause)
    return error


def _rebuild(item: Mapping[str, Any], data: bytes, host: str) -> BaseException:
    why = 'could not be pickled there'
    if data:
        try:
            error = load_value(data)
        except BaseException as broken:
            why = f'could not be rebuilt here ({type(broken).__name__}: {broken})'
        else:
            if isinstance(error, BaseException):
                return error
            why = f'was rebuilt here as a {type(error).__name__}'
    summary = item['text'].strip().rpartition('\n')[2]
    return RemoteError(f'{summary} (raised on {host}; it {why})', traceback=item['text'])
