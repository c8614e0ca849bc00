"""Snapshots of the user's modules: what is in them, and when a new one is taken."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fakes import Clock
from projects import Project, make_old
from slurm_futures import filetree, payload
from slurm_futures.dispatcher import module_folders
from slurm_futures.errors import ConfigError
from slurm_futures.filetree import File, list_files
from slurm_futures.snapshot import Snapshot, Snapshots


class Taker:
    """Takes snapshots of a project alone, and counts how often files are looked at.

    Attributes:
        clock: moved by the test.
        looks: how often the project's files have been listed.
        reads: the files that have been read.
    """

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch, *wishes: str) -> None:
        self.clock = Clock()
        self.looks = 0
        self.reads: list[str] = []
        self._project = project
        self._snapshots = Snapshots(wishes, self._names_of_tests, self.clock)
        monkeypatch.setattr('slurm_futures.snapshot.list_files', self._list)
        read = File.read
        monkeypatch.setattr(
            File, 'read', lambda file: (self.reads.append(file.path), read(file))[1]
        )

    def _names_of_tests(self) -> Collection[str]:
        """Return all modules that are not the project's, as if they travelled by value."""
        files = {name: str(getattr(m, '__file__', '')) for name, m in list(sys.modules.items())}
        inside = self._project.path('')
        by_value = {name for name, file in files.items() if not file.startswith(inside)}
        return by_value - set(os.listdir(inside))  # packages without an __init__

    def _list(self, pieces: Any) -> dict[str, File]:
        self.looks += 1
        return list_files(pieces)

    def take(self, *functions: Callable[..., Any]) -> Snapshot:
        """Return the snapshot for a call of functions, which must not be empty."""
        snapshot = self.take_any(*functions)
        assert snapshot is not None
        return snapshot

    def take_any(self, *functions: Callable[..., Any]) -> Snapshot | None:
        """Return the snapshot for a call of functions."""
        codes: payload.Codes = {}
        payload.dump_arguments(functions, {}, codes)
        return self._snapshots.take(codes)

    def names(self, *functions: Callable[..., Any]) -> set[str]:
        """Return the places of the files for a call of functions."""
        return set(self.take(*functions).files)


@pytest.fixture
def taker(project: Project, monkeypatch: pytest.MonkeyPatch) -> Taker:
    """What takes snapshots of the project, with nothing in it yet."""
    return Taker(project, monkeypatch)


def typed_in(text: str, package: str | None = None) -> Callable[..., Any]:
    """Return function f of text that is typed in, and so belongs to no module of a file."""
    namespace = {'__name__': '__main__', '__package__': package}
    exec(text, namespace)
    function: Callable[..., Any] = namespace['f']  # type: ignore[assignment]
    function.__module__ = '__main__'
    return function


# ---- what is in one


def test_nothing_is_nothing(taker: Taker) -> None:
    """Without modules of the user's there is no snapshot."""
    assert taker.take_any(len) is None


def test_contents_and_permissions(project: Project, taker: Taker) -> None:
    """A snapshot holds the files' contents by place, and knows which may be executed."""
    project.write(
        {'pack/__init__.py': 'x = 1\n', 'pack/data/table.bin': b'\0\xff', 'pack/tool': ''}
    )
    Path(project.path('pack/tool')).chmod(0o755)
    project.load('pack')
    snapshot = taker.take(len)
    assert snapshot.files == {
        'pack/__init__.py': b'x = 1\n',
        'pack/data/table.bin': b'\0\xff',
        'pack/tool': b'',
    }
    assert snapshot.programs == {'pack/tool'}
    Path(project.path('pack/tool')).chmod(0o644)
    taker.clock.now += 10
    assert taker.take(len) != snapshot


def test_what_stays_behind(project: Project, taker: Taker, tmp_path: Path) -> None:
    """Compiled files, hidden ones, version control and environments do not travel; links do.

    Links into nowhere, links that lead back and what is no file at all do not.
    """
    project.write(
        {
            'pack/__init__.py': '',
            'pack/sub/__pycache__/x.pyc': '',
            'pack/old.pyc': '',
            'pack/.git/config': '',
            'pack/.secret': '',
            'pack/env/pyvenv.cfg': '',
            'pack/env/lib/x.py': '',
            'pack/conda/conda-meta/history': '',
            'pack/sub/kept.py': '',
        }
    )
    (tmp_path / 'far').mkdir()
    (tmp_path / 'far' / 'away.txt').touch()
    Path(project.path('pack/linked')).symlink_to(tmp_path / 'far')
    Path(project.path('pack/sub/back')).symlink_to(project.path('pack'))
    Path(project.path('pack/nowhere')).symlink_to('/no/such/file')
    os.mkfifo(project.path('pack/pipe'))
    project.load('pack')
    assert taker.names() == {'pack/__init__.py', 'pack/linked/away.txt', 'pack/sub/kept.py'}


def test_two_folders_of_one_package(project: Project, taker: Taker, tmp_path: Path) -> None:
    """They are put together without an __init__; of two files in one place the first counts."""
    other = Project(tmp_path / 'other')
    try:
        other.write({'space/a.py': 'first = 1', 'space/b.py': ''})
        project.write({'space/a.py': 'second = 2', 'space/c.py': ''})
        project.load('space.c')
        assert taker.take(len).files == {
            'space/a.py': b'first = 1',
            'space/b.py': b'',
            'space/c.py': b'',
        }
    finally:
        other.close()


@pytest.mark.skipif(os.getuid() == 0, reason='root may read anything')
def test_files_that_cannot_be_read(
    project: Project, taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out, and that is said once."""
    project.write({'pack/__init__.py': '', 'pack/secret.txt': '', 'pack/closed/x.py': ''})
    Path(project.path('pack/secret.txt')).chmod(0)
    Path(project.path('pack/closed')).chmod(0)
    project.load('pack')
    try:
        assert taker.names() == {'pack/__init__.py'}
    finally:
        Path(project.path('pack/closed')).chmod(0o755)
    assert 'secret.txt' in caplog.text
    assert 'closed' in caplog.text


def test_files_that_vanish_meanwhile(
    project: Project, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that goes away between being seen and being read is not there."""
    project.write({'pack/__init__.py': '', 'pack/fleeting.txt': ''})
    project.load('pack')
    read = File.read

    def vanish(file: File) -> bytes | None:
        if file.path.endswith('fleeting.txt'):
            os.unlink(file.path)
        return read(file)

    monkeypatch.setattr(File, 'read', vanish)
    assert taker.names() == {'pack/__init__.py'}


def test_what_travels_by_value(project: Project) -> None:
    """A module that is registered with cloudpickle is not taken, unless another imports it."""
    project.write({'valued/__init__.py': '', 'valued/part.py': '', 'user_of_it.py': ''})
    project.load('valued.part')
    snapshots = Snapshots((), lambda: {'valued'})
    before = snapshots.take({})
    assert before is None or not {n for n in before.files if n.startswith('valued')}
    project.write({'user_of_it.py': 'import valued\n'})
    project.load('user_of_it')
    after = snapshots.take({})
    assert after is not None
    assert {'user_of_it.py', 'valued/part.py'} <= set(after.files)


def test_modules_registered_with_cloudpickle() -> None:
    """The names of these modules are known."""
    module = types.ModuleType('registered_for_a_test')
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        assert module.__name__ in payload.modules_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]


def test_what_typed_in_functions_import(project: Project, taker: Taker) -> None:
    """Imports inside functions that travel by value count, also of those that they use."""
    project.write({'lazy_one.py': '', 'lazy_two.py': '', 'pack/__init__.py': '', 'pack/a.py': ''})
    inner = typed_in('def f():\n    import lazy_one\n')
    outer = typed_in('def f():\n    inner()\n    import lazy_two\n')
    outer.__globals__['inner'] = inner
    assert taker.names(inner) == {'lazy_one.py'}
    assert taker.names(outer) == {'lazy_one.py', 'lazy_two.py'}
    relative = typed_in('def f():\n    from .a import b\n', 'pack')
    assert taker.names(relative) >= {'pack/__init__.py', 'pack/a.py'}


def test_a_working_folder_that_is_gone(
    project: Project, taker: Taker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program whose working folder has been removed finds the modules that lie elsewhere."""
    project.write({'part.py': 'def f():\n    import nowhere_at_all\n'})
    project.load('part')
    gone = tmp_path / 'gone'
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.syspath_prepend('')
    assert module_folders()[0] == str(gone)
    gone.rmdir()
    assert taker.names() == {'part.py'}
    assert module_folders() == [os.path.abspath(path) for path in sys.path if path]


# ---- limits


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test reaches quickly."""
    monkeypatch.setattr(filetree, 'MOST_BYTES', 1_000_000)
    monkeypatch.setattr(filetree, 'MOST_FILES', 50)


@pytest.mark.usefixtures('limits')
def test_too_large(project: Project, taker: Taker) -> None:
    """The largest files are named, and what to do; smaller, all is well again."""
    files = {f'pack/data/{n}.bin': bytes(n * 100_000) for n in range(1, 7)}
    project.write({'pack/__init__.py': '', **files})
    project.load('pack')
    with pytest.raises(ConfigError, match=r'2\.1 MB, more than 1\.0 MB') as caught:
        taker.take(len)
    lines = str(caught.value).splitlines()
    assert lines[1:6] == [
        f'  0.{n} MB  {project.path(f"pack/data/{n}.bin")}' for n in (6, 5, 4, 3, 2)
    ]
    assert 'ship_modules=()' in lines[6]
    for n in range(3, 7):
        Path(project.path(f'pack/data/{n}.bin')).unlink()
    assert taker.names() == {'pack/__init__.py', 'pack/data/1.bin', 'pack/data/2.bin'}


@pytest.mark.usefixtures('limits')
def test_too_many(project: Project, taker: Taker) -> None:
    """Folders full of small files are refused as well, without going through all of them."""
    project.write({'pack/__init__.py': '', **{f'pack/{n}.txt': '' for n in range(60)}})
    project.load('pack')
    with pytest.raises(ConfigError, match='more than 50 files'):
        taker.take(len)


@pytest.mark.usefixtures('limits')
def test_one_call_too_large_spoils_nothing(project: Project, taker: Taker) -> None:
    """A function that leads to too much is refused, again and again; others are not."""
    project.write({'small.py': '', 'huge/__init__.py': '', 'huge/data': bytes(2_000_000)})
    project.load('small')
    greedy = typed_in('def f():\n    import huge\n')
    for _ in range(2):
        with pytest.raises(ConfigError, match='huge'):
            taker.take(greedy)
        assert taker.names() == {'small.py'}


# ---- when a new one is taken


def test_files_are_not_looked_at_all_the_time(project: Project, taker: Taker) -> None:
    """As long as nothing speaks against it, a snapshot serves for a second."""
    project.write({'part.py': 'x = 1\n'})
    project.load('part')
    first = taker.take(len)
    for _ in range(100):
        assert taker.take(abs, lambda: 1) is first
    assert taker.looks == 1
    project.write({'part.py': 'x = 22\n'})
    assert taker.take(len) is first
    taker.clock.now += 1.5
    assert taker.take(len).files == {'part.py': b'x = 22\n'}
    assert taker.looks == 2


def test_unchanged_files_are_not_read_again(
    project: Project, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what has changed is read, or may have; nothing at all leaves the snapshot as it is."""
    look = File.look

    def look_as_if_old(path: str, status: os.stat_result) -> File:
        return look(path, status)._replace(changed_ns=1, modified_ns=1)

    monkeypatch.setattr(File, 'look', look_as_if_old)
    project.write({'pack/__init__.py': '', 'pack/a.txt': 'a', 'pack/b.txt': 'b'})
    project.load('pack')
    before = taker.take(len)
    taker.reads.clear()
    taker.clock.now += 10
    assert taker.take(len) is before
    assert taker.reads == []
    project.write({'pack/b.txt': 'bb'})
    taker.clock.now += 10
    assert taker.take(len).files == {**before.files, 'pack/b.txt': b'bb'}
    assert taker.reads == [project.path('pack/b.txt')]


def test_changes_that_leave_no_trace(project: Project, taker: Taker) -> None:
    """A file that was changed a moment ago is read again, for its time may not show the next."""
    project.write({'part.py': 'x = 1\n'})
    project.load('part')
    path = Path(project.path('part.py'))
    status = path.stat()
    first = taker.take(len)
    with path.open('r+') as file:
        file.write('x = 2\n')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    taker.clock.now += 10
    assert taker.take(len).files == {'part.py': b'x = 2\n'}
    with path.open('r+') as file:
        file.write('x = 1\n')
    taker.clock.now += 10
    assert taker.take(len) == first


def test_new_modules_are_seen_at_once(project: Project, taker: Taker) -> None:
    """What has been imported since the last call comes along; likewise what has been reimported."""
    project.write({'one.py': '', 'two.py': ''})
    project.load('one')
    assert taker.names() == {'one.py'}
    project.load('two')
    assert taker.names() == {'one.py', 'two.py'}
    project.write({'two.py': 'changed = True\n'})
    del sys.modules['two']
    project.load('two')
    assert taker.take(len).files['two.py'] == b'changed = True\n'
    assert taker.looks == 3


def test_a_reload_is_seen_at_once(project: Project, taker: Taker) -> None:
    """The call after importlib.reload() gets what the file holds now."""
    project.write({'part.py': 'def f(): return 1\n'})
    module = project.load('part')
    assert taker.take(module.f).files == {'part.py': b'def f(): return 1\n'}
    project.write({'part.py': 'def f(): return 1234\n'})
    importlib.reload(module)
    assert module.f() == 1234
    assert taker.take(module.f).files == {'part.py': b'def f(): return 1234\n'}
    assert taker.looks == 2


def test_new_code_is_looked_at_once(project: Project, taker: Taker) -> None:
    """The same function again costs no look; one that imports something new does."""
    project.write({'lazy_one.py': '', 'lazy_two.py': ''})
    first = typed_in('def f():\n    import lazy_one\n')
    for _ in range(3):
        assert taker.names(first) == {'lazy_one.py'}
    assert taker.looks == 1
    assert taker.names(typed_in('def f():\n    from lazy_one import x\n')) == {'lazy_one.py'}
    assert taker.names(typed_in('def f():\n    import lazy_two\n')) == {
        'lazy_one.py',
        'lazy_two.py',
    }


def test_pauses_grow_with_the_effort(
    project: Project, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking takes a twentieth of the time at most."""
    project.write({'part.py': ''})
    project.load('part')

    def slow(pieces: Any) -> dict[str, File]:
        taker.clock.now += 5
        taker.looks += 1
        return list_files(pieces)

    monkeypatch.setattr('slurm_futures.snapshot.list_files', slow)
    taker.take(len)
    taker.clock.now += 99
    taker.take(len)
    assert taker.looks == 1
    taker.clock.now += 2
    taker.take(len)
    assert taker.looks == 2


def test_many_threads(project: Project, taker: Taker) -> None:
    """Calls that are submitted at the same time share one snapshot."""
    project.write({'part.py': ''})
    project.load('part')
    barrier = threading.Barrier(8)
    found: list[Snapshot] = []

    def take() -> None:
        barrier.wait()
        found.append(taker.take(len))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(snapshot) for snapshot in found}) == 1
    assert taker.looks == 1


def test_data_that_change_all_the_time(
    project: Project, taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that writes into its own package is told so, once, for each version travels."""
    project.write({'pack/__init__.py': ''})
    project.load('pack')
    taken = set()
    for number in range(45):
        assert ('pack/log.txt' in caplog.text) == (number > 20)
        project.write({'pack/log.txt': str(number)})
        taker.clock.now += 10
        taken.add(taker.take(len).digest)
    assert len(taken) == 45
    assert len(caplog.records) == 1
    for number in range(25):  # permissions are no data
        Path(project.path('pack/log.txt')).chmod(0o755 if number % 2 else 0o644)
        taker.clock.now += 10
        taker.take(len)
    assert len(caplog.records) == 1


# ---- wishes


def test_wishes_come_first(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is asked for comes along, before what is found."""
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'part.py').write_text('asked = True\n')
    (folder / 'plugin.py').touch()
    project.write({'part.py': 'found = True\n'})
    project.load('part')
    taker = Taker(project, monkeypatch, str(folder))
    assert taker.take(len).files == {'part.py': b'asked = True\n', 'plugin.py': b''}
    with pytest.raises(ConfigError, match='no_such_module'):
        Taker(project, monkeypatch, 'no_such_module')


def test_equality_is_the_digests() -> None:
    """Snapshots with equal digests are one and the same for whoever groups calls by them."""
    one, same = (Snapshot('digest', {'a.py': b''}, frozenset()) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Snapshot('other', {'a.py': b''}, frozenset())
    assert 'a.py' not in repr(one)


def test_file_times(tmp_path: Path) -> None:
    """What was read long after the last change is settled; right after it, it is not."""
    path = tmp_path / 'file'
    path.touch()
    make_old(path)
    file = File.look(str(path), path.stat())
    assert not file.is_settled(file.changed_ns)
    assert file.is_settled(file.changed_ns + 10**10)
