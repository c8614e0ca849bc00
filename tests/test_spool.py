"""The spool: whole messages, claims, and the list of what is done."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from helpers import listed, python_command, read_messages
from slurm_futures.remote.spool import (
    REVOKED,
    DoneList,
    Spool,
    UnsafeFolder,
    message_line,
    message_name,
    read_header,
    secure_folder,
)


@pytest.fixture
def spool(work_dir: Path) -> Spool:
    """A run's folder with a hostile name."""
    spool = Spool(str(work_dir / 'run1'))
    spool.create()
    return spool


# ---- messages


def test_messages_appear_whole(spool: Spool) -> None:
    """Whoever looks into new/ at any moment sees complete messages only."""
    body = b'x' * 300_000
    stop = threading.Event()

    def write() -> None:
        for number in range(60):
            spool.post('1.0', {'number': number}, [body[:1000], body[1000:]])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        for header, content in read_messages(spool):
            assert 'number' in header
            assert content == body
    writer.join()
    assert [header['number'] for header, _ in read_messages(spool)] == list(range(60))
    assert listed(spool, 'tmp') == []


def test_a_file_that_is_no_message(tmp_path: Path) -> None:
    """A file without a complete first line is named, with what it starts with."""
    path = tmp_path / 'junk'
    path.write_text('{"half":')
    with pytest.raises(ValueError, match='junk is not a message'):
        read_header(str(path))


def test_names_are_unique_and_sorted_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two messages share a name, even where the clock stands still; later ones sort later."""
    monkeypatch.setattr(time, 'time_ns', lambda: 17 * 10**17)
    names = [message_name('1.0') for _ in range(2000)]
    assert len(set(names)) == len(names)
    monkeypatch.undo()
    names = [message_name('1.0')]
    for _ in range(100):
        start = time.time_ns()
        while time.time_ns() == start:
            pass
        names.append(message_name('1.0'))
    assert names == sorted(names)
    assert all('/' not in name for name in names)


def test_removing_a_run(spool: Spool) -> None:
    """The end of a run leaves its logs, if they are wanted, or nothing."""
    spool.post('1.0', {})
    Path(spool.path('logs', '1_0.err')).write_text('words')
    spool.remove(keep_logs=True)
    assert [path.name for path in Path(spool.folder).iterdir()] == ['logs']
    spool.create()
    spool.remove(keep_logs=False)
    assert not Path(spool.folder).exists()


# ---- claims


def test_the_first_claim_wins(spool: Spool) -> None:
    """Whoever comes later is told who was first; a claim repeated by its owner is won again."""
    assert spool.owner('1.0') == ''
    assert spool.claim('1.0', 'job:12') == 'job:12'
    assert spool.claim('1.0', 'job:13') == 'job:12'
    assert spool.claim('1.0', REVOKED) == 'job:12'
    assert spool.claim('1.0', 'job:12') == 'job:12'
    assert spool.owner('1.0') == 'job:12'


def test_an_answer_that_nfs_lost(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that succeeded but was answered with EEXIST, as NFS does on a repeat, is won."""
    symlink = os.symlink

    def repeat(source: str, target: str) -> None:
        symlink(source, target)
        symlink(source, target)

    monkeypatch.setattr(os, 'symlink', repeat)
    assert spool.claim('1.0', 'job:12') == 'job:12'


def test_concurrent_claims_have_one_winner(spool: Spool) -> None:
    """Processes that claim the same names at once agree on one owner for each."""
    code = """
from slurm_futures.remote.spool import Spool
spool = Spool(sys.argv[1])
sys.stdin.read()
print(*(spool.claim(f'1.{n}', sys.argv[2]) for n in range(200)))
"""
    racers = [
        subprocess.Popen(
            python_command(code, spool.folder, f'job:{number}'),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    answers = {racer.communicate()[0] for racer in racers}
    assert len(answers) == 1
    owners = answers.pop().split()
    assert owners == [spool.owner(f'1.{number}') for number in range(200)]


# ---- the list of what is done


class Death(BaseException):
    """Ends a process between two system calls."""


class Reaper:
    """Makes the nth change to the file system the last thing that a process does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, survive: int) -> None:
        self.left = survive
        for name in ('open', 'write', 'fsync', 'rename'):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise Death
            self.left -= 1
            return real(*args, **kwargs)

        return wrapped


def stage(spool: Spool, calls: Iterable[int]) -> str:
    """Write a message with the outcomes of calls, up to where it is to be delivered."""
    name = message_name('1.0')
    items = [{'event': 'outcome', 'call': call, 'size': 0} for call in calls]
    spool.stage(name, [message_line({'items': items})])
    return name


def delivered(spool: Spool) -> list[int]:
    """Return the calls whose outcomes the client can find."""
    return sorted(i['call'] for header, _ in read_messages(spool) for i in header['items'])


@pytest.mark.parametrize('survive', range(8))
def test_a_death_between_two_steps(
    spool: Spool, survive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a worker dies, its successor reruns what is not listed, and nothing is lost."""
    done = DoneList(spool, '1.0')
    done.deliver([1], stage(spool, [1]))
    with monkeypatch.context() as patch:
        reaper = Reaper(patch, survive)
        try:
            done.deliver([2, 3], stage(spool, [2, 3]))
        except Death:
            pass
        else:
            assert survive == 7, 'the steps are as many as the test thinks'
    listed = done.read()[0]
    finished = DoneList(spool, '1.0').resume(1)
    assert reaper.left == 0
    assert finished == listed
    assert finished in ({1}, {1, 2, 3})
    assert delivered(spool) == sorted(finished)
    rest = [call for call in (1, 2, 3) if call not in finished]
    if rest:
        done.deliver(rest, stage(spool, rest))
    assert delivered(spool) == [1, 2, 3]
    assert done.read()[0] == {1, 2, 3}


def test_delivered_and_recorded(spool: Spool) -> None:
    """Outcomes that the client has recorded and deleted stay on the list."""
    done = DoneList(spool, '1.0')
    done.deliver([1, 2], stage(spool, [1, 2]))
    for name in listed(spool, 'new'):
        Path(spool.path('new', name)).unlink()
    assert done.resume(1) == {1, 2}
    assert listed(spool, 'new') == []


def test_a_list_that_breaks_off(spool: Spool) -> None:
    """A list cut off at any byte claims no call whose outcome is not there.

    What is added later counts.
    """
    done = DoneList(spool, '1.0')
    first, second = stage(spool, [1, 2]), stage(spool, [3])
    done.deliver([1, 2], first)
    done.deliver([3], second)
    path = Path(spool.path('done', '1.0'))
    text = path.read_bytes()
    for end in range(len(text)):
        path.write_bytes(text[:end])
        for name in listed(spool, 'new'):
            Path(spool.path('new', name)).rename(spool.path('tmp', name))
        calls = done.resume(1)
        assert calls in (set(), {1, 2}, {1, 2, 3})
        assert delivered(spool) == sorted(calls)
        third = stage(spool, [4])
        done.deliver([4], third)
        assert done.read()[0] == calls | {4}
        assert done.read()[2] == 1
        Path(spool.path('new', third)).unlink()


def test_junk_in_the_list(spool: Spool) -> None:
    """Blocks of zeros, as a crashed node may leave them, are passed over."""
    done = DoneList(spool, '1.0')
    done.deliver([1], stage(spool, [1]))
    with Path(spool.path('done', '1.0')).open('ab') as file:
        file.write(b'\0' * 100 + b'\xff')
    assert done.resume(2) == {1}
    assert done.read()[2] == 2


def test_the_newest_restart_counts(spool: Spool) -> None:
    """Copies of a task may note their restarts in any order."""
    done = DoneList(spool, '1.0')
    assert done.read() == (set(), set(), 0)
    done.resume(2)
    done.resume(1)
    assert done.read()[2] == 2


# ---- who may write


def test_a_secure_folder_is_made(tmp_path: Path) -> None:
    """The folder is the user's own, whatever the umask; one that is there and safe will do."""
    path = tmp_path / 'a' / 'b' / '.slurm_futures'
    old = os.umask(0)
    try:
        secure_folder(str(path))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o700
    secure_folder(str(path))
    path.chmod(0o755)
    secure_folder(str(path))


@pytest.mark.parametrize('mode', [0o770, 0o707, 0o722])
def test_others_may_write(tmp_path: Path, mode: int) -> None:
    """A folder that others may write to is refused, with the remedy."""
    path = tmp_path / '.slurm_futures'
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(UnsafeFolder, match='chmod go-w'):
        secure_folder(str(path))


def test_not_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a link to a folder, and somebody else's folder are refused."""
    (tmp_path / 'file').touch()
    with pytest.raises(UnsafeFolder, match='not a folder'):
        secure_folder(str(tmp_path / 'file'))
    (tmp_path / 'link').symlink_to(tmp_path)
    with pytest.raises(UnsafeFolder, match='not a folder'):
        secure_folder(str(tmp_path / 'link'))
    (tmp_path / 'folder').mkdir(mode=0o700)
    monkeypatch.setattr(os, 'getuid', lambda: 4242)
    with pytest.raises(UnsafeFolder, match='belongs to user id'):
        secure_folder(str(tmp_path / 'folder'))
