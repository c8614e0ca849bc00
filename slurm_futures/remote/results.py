"""What a call comes to, as bytes for the client: its value, or its exception."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import sys

from .protocol import Header

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    Outcome = Tuple[Header, bytes]
else:
    Outcome = tuple

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def describe_error(error: BaseException, stage: str) -> Outcome:
    """Describe an exception so that the client can rebuild it, or at least print it."""
    import traceback

    ours = os.path.dirname(__file__) + os.sep
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    try:
        text = ''.join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:
        text = f'{type(error).__qualname__} (its text cannot be had: {broken!r})\n'
    try:
        pickled = dumps(error)
    except Exception:
        pickled = b''
    name = f'{type(error).__module__}.{type(error).__qualname__}'
    header: Header = {'kind': 'error', 'stage': stage, 'text': text, 'type': name}
    if isinstance(error, ImportError):
        header.update(module=error.name, python=sys.executable)
    return header, pickled


def dumps(value: Any) -> bytes:
    """Pickle what goes back to the client.

    Plain values need no cloudpickle, whose import costs a short task a third of its time.

    A class that came from the client by value goes back by name, so that the client finds its
    own. Copies of these classes follow the pickle, and behind them their length, for a client, a
    new process by then, that has no class of that name any more.
    """
    if type(value) in _PLAIN:
        return pickle.dumps(value, protocol=5)
    buffer = io.BytesIO()
    found: Dict[str, Any] = {}
    pickler = _pickler()
    pickler(buffer, found).dump(value)
    if found:
        copies = pickle.dumps(_copies(pickler, found), protocol=5)
        buffer.write(copies + struct.pack('>Q', len(copies)))
    return buffer.getvalue()


def _copies(pickler: Any, found: Dict[str, Any]) -> Dict[str, bytes]:
    """Pickle classes by value, each by itself; they may lead to further ones."""
    copies: Dict[str, bytes] = {}
    while len(copies) < len(found):
        for tracker, (_, kind) in list(found.items()):
            if tracker not in copies:
                buffer = io.BytesIO()
                try:
                    pickler(buffer, found, kind).dump(kind)
                except Exception:  # the client will have to have it
                    buffer = io.BytesIO()
                copies[tracker] = buffer.getvalue()
    return copies


@functools.lru_cache(maxsize=1)
def _pickler() -> Any:
    import cloudpickle
    from cloudpickle import cloudpickle as internals

    class OutcomePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: Any, found: Dict[str, Any], by_value: Any = None) -> None:
            super().__init__(file, protocol=5)
            self._found = found
            self._by_value = by_value

        def persistent_id(self, obj: Any) -> Optional[Tuple[str, str, str]]:
            if obj is self._by_value or not issubclass(type(obj), type):
                return None
            # cloudpickle has no public way to tell which class it took from another process.
            tracker = internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(obj)
            if tracker is None:
                return None
            # The same tuple each time: it goes into the pickle once.
            new = ((obj.__module__, obj.__qualname__, tracker), obj)
            pid: Tuple[str, str, str] = self._found.setdefault(tracker, new)[0]
            return pid

    return OutcomePickler
