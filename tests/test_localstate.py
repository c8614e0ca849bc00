"""The file that the embedded queue lives on: nothing that was promised is lost with its writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from slurm_futures.remote import localstate
from slurm_futures.remote.localstate import Log, read_records


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the file is."""
    return str(tmp_path / 'state')


def numbers(path: str) -> list[Any]:
    """Return the numbers in the records of a file."""
    return [record['n'] for record in read_records(path)]


def full(*_: object) -> NoReturn:
    """Do as a full disk does."""
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_records_are_read_as_they_were_written(path: str) -> None:
    """Those that it began with, then the others, in their order."""
    log = Log(path, [{'n': 1}])
    log.append({'n': 2}, {'n': 'Zürich\n\udcff'})
    log.note({'n': 4})
    log.close()
    assert numbers(path) == [1, 2, 'Zürich\n\udcff', 4]
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_a_missing_file_has_no_records(path: str) -> None:
    """A queue begins with nothing."""
    assert read_records(path) == []


@pytest.mark.parametrize('junk', [b'{"n":2', b'\0' * 50, b'{"n":2\n', b'\xff\n'])
def test_a_spoilt_line_is_no_record(
    path: str, junk: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a crash has left in the file is told of and left out; the rest counts."""
    Log(path, [{'n': 1}]).close()
    with Path(path).open('ab') as file:
        file.write(junk)
    assert numbers(path) == [1]
    assert 'has a line that is no record' in capfd.readouterr().err


def test_what_there_is_no_room_for_is_not_added(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """append() says so, and leaves nothing of it; what is only noted is added later."""
    log = Log(path, [{'n': 1}])
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, 'write', full)
        return real(descriptor, data[:3])

    monkeypatch.setattr(os, 'write', short)
    with pytest.raises(OSError, match='No space left'):
        log.append({'n': 2})
    log.note({'n': 3})
    with pytest.raises(OSError, match='No space left'):
        log.append({'n': 4})
    monkeypatch.undo()
    assert numbers(path) == [1]
    log.append({'n': 5})
    log.close()
    assert numbers(path) == [1, 3, 5]


def test_what_is_not_safe_is_not_added(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that fsync fails on does not come back to life."""
    log = Log(path, [])
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        log.append({'n': 1})
    log.close()
    assert numbers(path) == []


def test_written_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has grown large is replaced by the records that matter; it goes on from there."""
    monkeypatch.setattr(localstate, 'LARGE', 100)
    log = Log(path, [])
    while not log.is_large:
        log.append({'n': 1})
    log.rewrite([{'n': 2}])
    assert not log.is_large
    log.append({'n': 3})
    log.close()
    assert numbers(path) == [2, 3]
    assert [entry.name for entry in Path(path).parent.iterdir()] == ['state']


def test_size_is_measured_by_what_matters(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large by itself is not written anew for every record."""
    monkeypatch.setattr(localstate, 'LARGE', 100)
    log = Log(path, [{'n': n} for n in range(100)])
    log.append({'n': 100})
    assert not log.is_large
    log.close()


def test_a_replacement_that_fails_leaves_the_old_file(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for it the old records stay, and more can be added."""
    log = Log(path, [{'n': 1}])
    monkeypatch.setattr(os, 'rename', full)
    with pytest.raises(OSError, match='No space left'):
        log.rewrite([])
    monkeypatch.undo()
    log.append({'n': 2})
    log.close()
    assert numbers(path) == [1, 2]
