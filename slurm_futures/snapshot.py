"""The user's modules as they are when a call is submitted, which is how the call will find them."""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, MappingProxyType

from slurm_futures import imports
from slurm_futures.closure import Closure, Sources
from slurm_futures.filetree import File, list_files
from slurm_futures.modules import Module, loaded_users_modules, namespace, with_parents
from slurm_futures.remote.library import digest

LOGGER = logging.getLogger('slurm_futures')

RECHECK = 1.0
"""Seconds that files count as unchanged, at least, as long as nothing speaks against it."""

CHURN = 20
"""So many snapshots that differ in data alone are no accident."""

SHARE = 20
"""Files are looked at again after so many times as long as it took, at the earliest."""


@dataclass(frozen=True)
class Snapshot:
    """Files that are put first on a worker's module path; equal if the files are.

    Attributes:
        digest: of their places, contents and permissions.
        files: their contents by place, a relative path.
        programs: places of those that may be executed.
    """

    digest: str
    files: Mapping[str, bytes] = field(compare=False, repr=False)
    programs: frozenset[str] = field(compare=False, repr=False)


class Snapshots:
    """Takes snapshots, a new one only when something has changed. Thread-safe.

    One holds all of the user's modules that have been imported so far and those that they, or the
    code of any call so far, import in turn.

    Args:
        wishes: modules and folders to take along whatever else there is; see `Closure.wish`.
        by_value: returns the names of modules that travel with the calls themselves.
        clock: monotonic.

    Raises:
        ConfigError: a wish cannot be fulfilled; the message names it.
    """

    def __init__(
        self,
        wishes: Sequence[str],
        by_value: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wishes = wishes
        self._by_value = by_value
        self._clock = clock
        self._lock = threading.Lock()
        self._sources = Sources()
        self._codes: weakref.WeakSet[CodeType] = weakref.WeakSet()
        self._names: frozenset[str] = frozenset()
        self._loaded: _Loaded | None = None
        self._check_at = 0.0
        self._read_at = 0
        self._files: dict[str, File] = {}
        self._snapshot: Snapshot | None = None
        self._churn = 0
        closure = Closure(self._sources)
        for wish in wishes:
            closure.wish(wish)

    def take(self, codes: Mapping[CodeType, str]) -> Snapshot | None:
        """Return the snapshot for a call; None if there is nothing to take along.

        Args:
            codes: of functions that travel by value, each with its package for relative imports.

        Raises:
            ConfigError: the modules are too large; the message says what to change.
        """
        with self._lock:
            fresh = [code for code in codes if code not in self._codes]
            found = frozenset().union(*(imports.of_code(code, codes[code]) for code in fresh))
            if found - self._names or self._is_stale():
                self._renew(self._names | found)
            self._codes.update(fresh)
            return self._snapshot

    def _is_stale(self) -> bool:
        is_current = self._loaded is not None and self._loaded.is_current()
        return not is_current or self._clock() >= self._check_at

    def _renew(self, names: frozenset[str]) -> None:
        began, now = self._clock(), time.time_ns()
        loaded = _Loaded()
        files = list_files(self._closure(loaded.modules, names).pieces)
        if files != self._files or not all(f.is_settled(self._read_at) for f in files.values()):
            self._read(files, now)
        self._names, self._loaded = names, loaded
        took = self._clock() - began
        self._check_at = began + took + max(RECHECK, SHARE * took)

    def _closure(self, modules: Iterable[Module], names: Iterable[str]) -> Closure:
        closure = Closure(self._sources)
        for wish in self._wishes:
            closure.wish(wish)
        by_value = set(self._by_value())
        closure.add_loaded(m for m in modules if by_value.isdisjoint(with_parents(m.name)))
        closure.add(names)
        return closure

    def _read(self, files: dict[str, File], now: int) -> None:
        """Read what may have changed; contents that are known are kept."""
        known = self._snapshot.files if self._snapshot else {}
        contents: dict[str, bytes] = {}
        for place, file in files.items():
            same = place in known and self._files[place] == file and file.is_settled(self._read_at)
            content = known[place] if same else file.read()
            if content is not None:
                contents[place] = content
        programs = frozenset(place for place in contents if files[place].executable)
        self._files, self._read_at = files, now
        name = digest(contents, programs)
        if self._snapshot is None or name != self._snapshot.digest:
            taken = Snapshot(name, MappingProxyType(contents), programs)
            self._snapshot = taken if contents else None
            self._watch_churn(known, contents)

    def _watch_churn(self, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
        """Warn of packages that data are written into while calls are submitted."""
        changed = [place for place in old.keys() | new.keys() if old.get(place) != new.get(place)]
        if not changed or any(place.endswith('.py') for place in changed):
            return
        self._churn += 1
        if self._churn == CHURN:
            LOGGER.warning(
                '%d versions of your modules have travelled that differ only in data, such as %s: '
                'have the program write its files elsewhere than into its packages',
                CHURN,
                changed[0],
            )


class _Loaded:
    """What has been imported so far, as far as it takes to notice that more has been, or anew.

    Attributes:
        modules: the user's.
    """

    def __init__(self) -> None:
        self._mark = self._look()
        self.modules = list(loaded_users_modules())
        variables = [namespace(sys.modules.get(module.name)) for module in self.modules]
        self._specs = [(one, one.get('__spec__')) for one in variables]

    def is_current(self) -> bool:
        """Return whether nothing has been imported since then, or reloaded."""
        # A reload replaces the spec, and leaves everything else in its place.
        reloaded = any(variables.get('__spec__') is not spec for variables, spec in self._specs)
        return not reloaded and self._mark == self._look()

    @staticmethod
    def _look() -> tuple[object, ...]:
        """Return how many modules there are, and which is the newest: dicts keep their order."""
        try:
            newest = next(reversed(sys.modules))
        except RuntimeError:  # another thread is importing
            return (object(),)
        return len(sys.modules), newest, id(sys.modules.get(newest))
