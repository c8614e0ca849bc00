"""Installs what runs on the cluster: this package and cloudpickle, in a folder named by content."""

from __future__ import annotations

import hashlib
import os
import py_compile
import shutil
from typing import Dict

PACKAGE = 'slurm_futures_remote'
"""The name of this package on the cluster, where another slurm_futures may be installed."""


def digest(files: Dict[str, bytes]) -> str:
    """Return a name for the content of files given by relative path."""
    walk = hashlib.sha256()
    for name in sorted(files):
        walk.update(b'%d %s %d ' % (len(name), name.encode(), len(files[name])))
        walk.update(files[name])
    return walk.hexdigest()[:32]


def install(library: str, files: Dict[str, bytes]) -> str:
    """Write the files unless they are there; return the path of the workers' entry script."""
    folder = os.path.join(library, digest(files))
    if not _complete(folder, files):
        temporary = f'{folder}.{os.uname().nodename}.{os.getpid()}'
        _write(temporary, files)
        try:
            os.rename(temporary, folder)
        except OSError:  # somebody else's, complete, or one that files were purged from
            _merge(temporary, folder)
            shutil.rmtree(temporary, ignore_errors=True)
    return os.path.join(folder, PACKAGE, 'entry.py')


def _complete(folder: str, files: Dict[str, bytes]) -> bool:
    """Return whether all files are there: clusters purge what was not touched for long."""
    try:
        return all(os.path.getsize(os.path.join(folder, n)) == len(files[n]) for n in files)
    except FileNotFoundError:
        return False


def _merge(source: str, target: str) -> None:
    """Put files into a folder that jobs may be reading: each is there at every moment."""
    for folder, _, names in os.walk(source):
        there = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(there, mode=0o700, exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), os.path.join(there, name))


def _write(folder: str, files: Dict[str, bytes]) -> None:
    for name, content in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, 'wb') as file:
            file.write(content)
        # Compiled once here, not by the first of a thousand tasks; checked by the folder's name.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(path, doraise=True, invalidation_mode=mode)
