"""Folders of files on the cluster, named by content: what runs there, and the user's modules.

A folder appears complete. Sites purge what was not touched for long, file by file, so it is looked
through before it is used again, and what is missing is put back.
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import shutil
from typing import Collection, Dict, List

PACKAGE = 'slurm_futures_remote'
"""The name of this package on the cluster, where another slurm_futures may be installed."""


def digest(files: Dict[str, bytes], programs: Collection[str] = ()) -> str:
    """Return a name for the content of files given by relative path.

    Args:
        files: the contents.
        programs: which of them may be executed.
    """
    walk = hashlib.sha256()
    for path in sorted(files):
        name = os.fsencode(path) + (b'\0x' if path in programs else b'')
        walk.update(b'%d %s %d ' % (len(name), name, len(files[path])))
        walk.update(files[path])
    return walk.hexdigest()[:32]


def install(library: str, files: Dict[str, bytes]) -> str:
    """Put what runs on the cluster into its place; return the path of the workers' entry script.

    Raises:
        py_compile.PyCompileError: this Python cannot run it.
    """
    folder = os.path.join(library, digest(files))
    if missing(folder, {name: len(content) for name, content in files.items()}):
        put(folder, files, check=True)
    return os.path.join(folder, PACKAGE, 'entry.py')


def missing(folder: str, sizes: Dict[str, int]) -> List[str]:
    """Return which files of a folder are not there, or not whole."""
    return [name for name, size in sizes.items() if _size(os.path.join(folder, name)) != size]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return -1


def put(
    folder: str, files: Dict[str, bytes], programs: Collection[str] = (), check: bool = False
) -> None:
    """Write files into a folder, new or not, that others may be reading.

    Args:
        folder: its name says what is in it.
        files: all of its files, or what is missing of them.
        programs: which of them may be executed.
        check: whether source that does not compile is an error.
    """
    temporary = f'{folder}.{os.uname().nodename}.{os.getpid()}'
    try:
        for name, content in files.items():
            _write(os.path.join(temporary, name), content, name in programs)
            if name.endswith('.py'):
                _compile(os.path.join(temporary, name), check)
        try:
            os.rename(temporary, folder)
        except OSError:  # somebody else's, complete, or one that files were purged from
            _merge(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _merge(source: str, target: str) -> None:
    """Put files into a folder that jobs may be reading: each is there at every moment."""
    for folder, _, names in os.walk(source):
        there = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(there, mode=0o700, exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), os.path.join(there, name))


def _write(path: str, content: bytes, executable: bool) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path, 'wb') as file:
        file.write(content)
    if executable:
        os.chmod(path, 0o700)


def _compile(path: str, check: bool) -> None:
    """Compile a module once here, not in the first of a thousand tasks."""
    # Nobody needs to compare it with its source, whose content the folder's name stands for.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(path, doraise=True, invalidation_mode=mode)
    except Exception:
        if check:
            raise
