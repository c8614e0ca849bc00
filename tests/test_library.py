"""What runs on the cluster: that it is installed whole, and which interpreters it runs on."""

from __future__ import annotations

import json
import operator
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import (
    Bench,
    find_python,
    member,
    outcomes,
    python_command,
    read_messages,
    slurm_variables,
)
from slurm_futures import bundle
from slurm_futures.remote.boot import FIRST
from slurm_futures.remote.library import PACKAGE, digest, install, missing, put

FILES = {f'{PACKAGE}/entry.py': b'print(1)\n', f'{PACKAGE}/more.py': b'x = 1\n', 'a/b.py': b''}
ALIVE = ['3.8', '3.9', '3.10', '3.11', '3.12', '3.13']
DEAD = ['2.7', '3.6', '3.7']


def python(version: str) -> str:
    """Return an interpreter, or skip the test."""
    return find_python(version) or pytest.skip(f'there is no Python {version} here')


def contents(folder: Path) -> dict[str, bytes]:
    """Return the sources in a folder by their relative paths."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*.py')}


def test_files_are_installed_once(work_dir: Path) -> None:
    """A folder is named by what is in it, and left alone when it is complete."""
    entry = Path(install(str(work_dir), FILES))
    folder = work_dir / digest(FILES)
    assert entry == folder / PACKAGE / 'entry.py'
    assert contents(folder) == FILES
    first = entry.stat().st_mtime_ns
    assert install(str(work_dir), FILES) == str(entry)
    assert entry.stat().st_mtime_ns == first
    assert install(str(work_dir), {**FILES, 'a/b.py': b'#\n'}) != str(entry)
    assert len(list(work_dir.iterdir())) == 2


def test_names_and_contents_make_the_digest() -> None:
    """No two sets of files share a folder, also where their bytes in a row are the same."""
    sets = [{'ab': b'c'}, {'a': b'bc'}, {'a': b'', 'b': b'c'}, {'ab': b'', 'c': b''}, {}]
    assert len({digest(files) for files in sets}) == len(sets)
    assert digest({'a': b'1', 'b': b'2'}) == digest({'b': b'2', 'a': b'1'})
    assert digest({'a': b''}, {'a'}) not in (digest({'a': b''}), digest({'a x': b''}))
    assert digest({'\udcff': b''})  # a name that is not UTF-8


@pytest.mark.parametrize('lost', ['file', 'folder', 'part of a file', 'compiled files'])
def test_purged_files_come_back(work_dir: Path, lost: str) -> None:
    """What a site's purge of old files has taken is written again; the rest stays in place."""
    entry = Path(install(str(work_dir), FILES))
    folder = work_dir / digest(FILES)
    if lost == 'file':
        (folder / PACKAGE / 'more.py').unlink()
    elif lost == 'folder':
        shutil.rmtree(folder / 'a')
    elif lost == 'part of a file':
        (folder / PACKAGE / 'more.py').write_bytes(b'x')
    else:
        shutil.rmtree(folder / PACKAGE / '__pycache__')
        (folder / PACKAGE / 'more.py').unlink()
    install(str(work_dir), FILES)
    assert contents(folder) == FILES
    assert list(work_dir.iterdir()) == [folder]
    assert len(list(entry.parent.glob('__pycache__/*.pyc'))) == 2


def test_concurrent_installs(work_dir: Path) -> None:
    """Agents may install and repair at the same time; a job sees each file all the while."""
    entry = Path(install(str(work_dir), FILES))
    code = f"""
import os, sys
from slurm_futures.remote.library import install
files = {FILES!r}
sys.stdin.read()
for _ in range(30):
    try:
        os.unlink(os.path.join(sys.argv[1], {digest(FILES)!r}, 'a', 'b.py'))
    except FileNotFoundError:
        pass
    install(sys.argv[1], files)
"""
    racers = [
        subprocess.Popen(python_command(code, str(work_dir)), stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    while any(racer.poll() is None for racer in racers):
        assert entry.read_bytes() == FILES[f'{PACKAGE}/entry.py']
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    install(str(work_dir), FILES)
    assert contents(work_dir / digest(FILES)) == FILES


def test_the_package_travels_whole(entry: str) -> None:
    """What the agent installs is this package, renamed, and cloudpickle; the rest stays home."""
    folder = Path(entry).parent.parent
    assert {p.name for p in folder.iterdir()} == {PACKAGE, 'cloudpickle'}
    remote = {p.name for p in (folder / PACKAGE).glob('*.py')}
    assert {'agent.py', 'entry.py', 'task.py', 'login.py', 'child.py'} <= remote
    assert 'executor.py' not in remote


@pytest.mark.parametrize('version', ALIVE)
def test_every_module_imports(entry: str, version: str) -> None:
    """Each module imports on each supported Python, without warnings, with nothing else there."""
    package = Path(entry).parent
    names = [p.stem for p in package.glob('*.py') if p.stem != '__init__']
    code = 'import importlib, sys; sys.path[:0] = [sys.argv[1]]\n'
    code += f'for name in sys.argv[2:]: importlib.import_module("{PACKAGE}." + name)'
    command = [python(version), '-I', '-S', '-W', 'error', '-c', code, str(package.parent), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize('version', ALIVE)
def test_a_task_runs(bench: Bench, entry: str, version: str) -> None:
    """A worker claims its task, runs calls and writes outcomes on each supported Python."""
    major, minor = map(int, version.split('.'))
    calls: list[Any] = [(operator.add, (1, 2)), (operator.truediv, (1, 0)), (os.getcwd, ())]
    bench.write_calls(*calls, python=[major, minor])
    command = [python(version), '-W', 'error', entry, 'task', bench.spool.folder, '1']
    assert bench.start(command, slurm_variables()).wait(60) == 1
    assert bench.log('err').read_text() == ''
    kinds = {call: item['kind'] for call, (item, _) in outcomes(bench.spool).items()}
    assert kinds == {10: 'value', 11: 'error', 12: 'value'}
    assert member(bench.spool, 'ended') == [{'code': 1, 'term': False, 'delivered': 3}]


@pytest.mark.parametrize('version', DEAD)
def test_an_old_python_says_so_in_the_spool(bench: Bench, entry: str, version: str) -> None:
    """A task whose interpreter is too old reports which one that is, and ends."""
    old = python(version)
    command = [old, entry, 'task', bench.spool.folder, '1']
    assert bench.start(command, slurm_variables('100', 2, 7)).wait(60) == 1
    ((header, body),) = read_messages(bench.spool)
    assert body == b''
    assert header.pop('failed').pop('python').startswith(version)
    host = os.uname().nodename
    assert header == {'batch': 1, 'task': 7, 'job': '100', 'restart': 2, 'host': host}
    assert old in bench.log('err').read_text()


@pytest.mark.parametrize('version', DEAD)
def test_an_old_python_says_so_on_the_login_node(entry: str, version: str) -> None:
    """A login worker whose interpreter is too old names it on stderr."""
    old = python(version)
    command = [old, entry, 'login', '/nowhere', 'name', '[]']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f'slurm_futures needs Python 3.8 or newer here: {old}\n'


@pytest.mark.parametrize('version', [*DEAD, *ALIVE])
def test_the_first_statement_compiles_everywhere(version: str) -> None:
    """What the login node executes first compiles on any Python, and says which it is."""
    command = [python(version), '-c', f'exec({json.dumps(FIRST)})', 'marker']
    done = subprocess.run(command, input='', capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, '')
    word, _, found = done.stdout.strip().removeprefix('marker ').partition(' ')
    if version in DEAD:
        assert word == 'python'
        assert found.startswith(version)
    else:
        assert word == 'ready'


def test_the_first_statement_is_one_line() -> None:
    """Login shells such as tcsh do not take newlines in a quoted command."""
    command = bundle.start_command('python3', '', 'marker')
    assert all('\n' not in word for word in command)


def test_installed_files_are_compiled(work_dir: Path) -> None:
    """The interpreter that installs the package compiles it, once for all tasks.

    A syntax error would show there, not in a thousand jobs.
    """
    entry = Path(install(str(work_dir), FILES))
    tag = sys.implementation.cache_tag
    assert (entry.parent / '__pycache__' / f'entry.{tag}.pyc').exists()
    with pytest.raises(py_compile.PyCompileError):
        install(str(work_dir), {'broken.py': b'def\n'})


# ---- the user's modules

USERS = {
    'part.py': b'x = 1\n',
    'pack/__init__.py': b'',
    'pack/data/table.bin': bytes(range(256)),
    'pack/broken.py': b'def\n',
    'pack/null.py': b'\0',
    'pack/tool': b'#!/bin/sh\necho ran\n',
}


def sizes(files: dict[str, bytes]) -> dict[str, int]:
    """Return what a client asks for."""
    return {name: len(content) for name, content in files.items()}


def everything(folder: Path) -> dict[str, bytes]:
    """Return all files in a folder but for compiled ones."""
    files = [p for p in folder.rglob('*') if p.is_file() and p.suffix != '.pyc']
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_users_files(work_dir: Path) -> None:
    """They are written whatever is in them; programs may be executed; modules are compiled."""
    folder = work_dir / 'digest'
    assert missing(str(folder), sizes(USERS)) == list(USERS)
    put(str(folder), USERS, {'pack/tool'})
    assert everything(folder) == USERS
    assert list(work_dir.iterdir()) == [folder]
    assert missing(str(folder), sizes(USERS)) == []
    assert subprocess.check_output([str(folder / 'pack' / 'tool')]) == b'ran\n'
    assert not os.access(folder / 'part.py', os.X_OK)
    tag = sys.implementation.cache_tag
    assert (folder / '__pycache__' / f'part.{tag}.pyc').exists()
    assert folder.stat().st_mode & 0o077 == 0


def test_what_is_missing_is_put_beside_the_rest(work_dir: Path) -> None:
    """Of a folder in use only what is not there, or is not whole, is written again."""
    folder = work_dir / 'digest'
    put(str(folder), USERS)
    kept = (folder / 'part.py').stat()
    shutil.rmtree(folder / 'pack' / 'data')
    (folder / 'pack' / 'broken.py').write_bytes(b'd')
    names = missing(str(folder), sizes(USERS))
    assert names == ['pack/data/table.bin', 'pack/broken.py']
    put(str(folder), {name: USERS[name] for name in names})
    assert everything(folder) == USERS
    assert (folder / 'part.py').stat() == kept
    assert list(work_dir.iterdir()) == [folder]


def test_a_failure_leaves_nothing_behind(work_dir: Path) -> None:
    """What cannot be written whole is not there at all."""
    files = {**USERS, 'part.py/below.py': b''}
    with pytest.raises(FileExistsError):
        put(str(work_dir / 'digest'), files)
    assert list(work_dir.iterdir()) == []
