"""The state of the embedded queue on disk: records, one after the other, a line each."""

from __future__ import annotations

import json
import os
from typing import Iterable, List

from .localjobs import Record

LARGE = 1024 * 1024
"""Bytes below which the file is not worth being written anew."""


def say(words: str) -> None:
    """Write a message about trouble."""
    try:
        os.write(2, f'{words}\n'.encode('utf-8', 'replace'))
    except OSError:  # a disk that is full has no room for complaints about it
        pass


def read_records(path: str) -> List[Record]:
    """Return all records in a file; a line that was cut off, or spoilt by a crash, is none."""
    try:
        with open(path, 'rb') as file:
            lines = file.read().split(b'\n')
    except FileNotFoundError:
        return []
    records = []
    for line in filter(None, lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            say(f'{path} has a line that is no record: {line[:80]!r}')
    return records


class Log:
    """An append-only file of records, written anew when much of it is of no interest any more.

    It survives the death of its writer at any moment; what `append` has written, the machine's
    too.

    Args:
        path: the file; there is another one beside it while it is written anew.
        records: what is in it to begin with.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str, records: Iterable[Record]) -> None:
        self._path = path
        self._descriptor = -1
        self.rewrite(records)

    def rewrite(self, records: Iterable[Record]) -> None:
        """Put other records in the place of all that there are.

        Raises:
            OSError: this cannot be done now; the old ones are still there.
        """
        temporary = self._path + '.new'
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        descriptor = os.open(temporary, flags, 0o600)
        try:
            size = _write(descriptor, b''.join(map(_line, records)))
            os.fsync(descriptor)
            os.rename(temporary, self._path)
            _sync_folder(self._path)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor, self._size, self._unwritten = descriptor, size, b''
        self._large = max(LARGE, 2 * size)

    @property
    def is_large(self) -> bool:
        """Whether it is time to write it anew."""
        return self._size > self._large

    def append(self, *records: Record) -> None:
        """Add records, and return when they are safe.

        Raises:
            OSError: there is no room for them, and they are not added.
        """
        self._add(self._unwritten + b''.join(map(_line, records)), sync=True)

    def note(self, record: Record) -> None:
        """Add a record that may be lost with the machine, now or when there is room again."""
        self._unwritten += _line(record)
        try:
            self._add(self._unwritten, sync=False)
        except OSError as error:
            say(f'cannot write to {self._path}: {error}')

    def _add(self, data: bytes, *, sync: bool) -> None:
        """Write all or nothing, what could not be written before included."""
        try:
            _write(self._descriptor, data)
            if sync:
                os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)
        self._unwritten = b''

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(',', ':')).encode() + b'\n'


def _write(descriptor: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
