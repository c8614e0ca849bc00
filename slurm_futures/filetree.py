"""The files that travel: what of a folder does, and whether any of it has changed since."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from slurm_futures.errors import ConfigError

LOGGER = logging.getLogger('slurm_futures')

MOST_BYTES = 20_000_000
"""Code is smaller; what is larger is data, which does not belong into every job."""

MOST_FILES = 10_000
"""No more than this many: the cluster's file system would suffer, and the search for them last."""

SHOWN = 5
"""How many of the largest files a refusal names."""

SETTLED_NS = 2_000_000_000
"""A file that was changed so shortly before it was read may change again under the same stamp."""

_COMPILED = ('.pyc', '.pyo')
_ENVIRONMENTS = ('pyvenv.cfg', 'conda-meta')

Piece = tuple[str, str]
"""Where something goes in a snapshot, and its path: a file, or a folder with all that is in it."""


class File(NamedTuple):
    """A file as it was when somebody looked.

    Two are equal if nothing has happened to it in between. The change time covers what leaves the
    time of modification alone, such as permissions.
    """

    path: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    executable: bool

    @classmethod
    def look(cls, path: str, status: os.stat_result) -> File:
        """Note what tells one version of a file from another."""
        times = status.st_mtime_ns, status.st_ctime_ns
        return cls(path, status.st_size, *times, status.st_ino, bool(status.st_mode & 0o100))

    def is_settled(self, at_ns: int) -> bool:
        """Return whether what was read at a time, in nanoseconds since 1970, is still in it."""
        return max(self.modified_ns, self.changed_ns) < at_ns - SETTLED_NS

    def read(self) -> bytes | None:
        """Return its content; None if it is gone by now, or not for this user to read."""
        try:
            with open(self.path, 'rb') as file:
                return file.read()
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                LOGGER.warning('left out of what travels with the calls: %s', error)
            return None


def list_files(pieces: Iterable[Piece]) -> dict[str, File]:
    """Return the files that make up pieces, by their places; where two claim one, the first.

    Hidden files and folders, compiled files and virtual environments are left out of folders.

    Raises:
        ConfigError: they are too large, or too many; the message names the largest.
    """
    found: dict[str, File] = {}
    for place, path in pieces:
        for inner, file in _files(place, path):
            found.setdefault(inner, file)
            if len(found) > MOST_FILES:
                raise _too_much(found, f'more than {MOST_FILES} files')
    if (total := sum(file.size for file in found.values())) > MOST_BYTES:
        raise _too_much(found, f'{_megabytes(total)}, more than {_megabytes(MOST_BYTES)}')
    return found


def _files(place: str, path: str) -> Iterator[tuple[str, File]]:
    if not os.path.isdir(path):
        with contextlib.suppress(OSError):  # gone
            yield place, File.look(path, os.stat(path))
        return
    stack: list[tuple[str, str, tuple[str, ...]]] = [(place, path, ())]
    while stack:
        place, path, above = stack.pop()
        real = os.path.realpath(path)
        if real in above:  # a link that leads back
            continue
        for entry in _entries(path):
            inner = f'{place}/{entry.name}' if place else entry.name
            try:
                if entry.is_dir():
                    stack.append((inner, entry.path, (*above, real)))
                elif entry.is_file():
                    yield inner, File.look(entry.path, entry.stat())
            except OSError:  # gone, or a link into nowhere
                continue


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return what is in a folder and travels, in an order that is always the same."""
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        if os.path.isdir(folder):
            LOGGER.warning('left out of what travels with the calls: %s', error)
        return []
    if any(entry.name in _ENVIRONMENTS for entry in entries):
        return []
    kept = [entry for entry in entries if not _is_left_out(entry.name)]
    return sorted(kept, key=lambda entry: entry.name)


def _is_left_out(name: str) -> bool:
    return name.startswith('.') or name == '__pycache__' or name.endswith(_COMPILED)


def _too_much(found: dict[str, File], what: str) -> ConfigError:
    largest = heapq.nlargest(SHOWN, found.values(), key=lambda file: file.size)
    lines = ''.join(f'\n  {_megabytes(file.size)}  {file.path}' for file in largest)
    return ConfigError(
        f'the modules of yours that a call needs are {what}; the largest files:{lines}\n'
        'move data out of the packages and pass paths to the calls, or set ship_modules=() if '
        'the cluster can import the modules by itself'
    )


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'
