"""Folders of modules, as users have them."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


class Project:
    """A folder of source files that this process can import from, until it is closed.

    Args:
        folder: it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._before = set(sys.modules)
        sys.path.insert(0, str(folder))

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write files by their relative paths; the margin of text is cut off."""
        write_files(self.folder, files)

    def load(self, *names: str) -> ModuleType:
        """Import modules; return the last one."""
        return [importlib.import_module(name) for name in names][-1]

    def path(self, name: str) -> str:
        """Return the path of a file or folder."""
        return str(self.folder / name)

    def close(self) -> None:
        """Have this process forget what it has imported."""
        sys.path.remove(str(self.folder))
        for name in set(sys.modules) - self._before:
            file = getattr(sys.modules[name], '__file__', None)
            if file is None or file.startswith(str(self.folder)):
                del sys.modules[name]
        importlib.invalidate_caches()


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files by their relative paths; the margin of text is cut off."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else textwrap.dedent(content).encode()
        path.write_bytes(data)
    importlib.invalidate_caches()


def make_old(*paths: Path) -> None:
    """Have files look as if nobody had touched them for an hour, as far as that is possible."""
    for path in paths:
        os.utime(path, times=(time.time() - 3600,) * 2)
