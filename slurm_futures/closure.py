"""Which files make up the modules that code leads to by its imports, as far as they are the user's.

A regular package is taken whole, with its data; a namespace package's folders likewise, those of
the user's, as soon as a module is found in one; any other module is a single file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from importlib.machinery import all_suffixes

from slurm_futures import imports
from slurm_futures.errors import ConfigError
from slurm_futures.filetree import File, Piece
from slurm_futures.modules import Module, find, is_users, with_parents

_UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError, MemoryError)
"""What keeps a file's imports from being known: it travels all the same."""


class Sources:
    """What source files import, each parsed again only when it has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[File, int, frozenset[str]]] = {}

    def imports(self, module: Module) -> frozenset[str]:
        """Return what a module's source imports; nothing if it has none that can be read."""
        if module.file is None or not module.file.endswith('.py'):
            return frozenset()
        package = module.name if module.folders else module.name.rpartition('.')[0]
        try:
            return self._parsed(module.file, package)
        except _UNREADABLE:
            return frozenset()

    def _parsed(self, path: str, package: str) -> frozenset[str]:
        file, now = File.look(path, os.stat(path)), time.time_ns()
        known, read_at, names = self._known.get(path, (None, 0, frozenset()))
        if known != file or not file.is_settled(read_at):
            with open(path, 'rb') as source:
                names = imports.of_source(source.read(), package)
            self._known[path] = file, now, names
        return names


class Closure:
    """The user's modules that names lead to.

    Args:
        sources: what is known of source files.

    Attributes:
        pieces: the files and folders that they are made of.
    """

    def __init__(self, sources: Sources) -> None:
        self.pieces: dict[Piece, None] = {}
        self._sources = sources
        self._found: dict[str, Module | None] = {}
        self._asked: set[str] = set()
        self._reached: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Take what is the user's of the modules of these names, and of those that they import."""
        stack = list(names)
        while stack:
            name = stack.pop()
            if name not in self._asked:
                self._asked.add(name)
                for module in self._chain(name):
                    stack.extend(self._reach(module))

    def add_loaded(self, modules: Iterable[Module]) -> None:
        """Take the user's modules that have been imported, and those that they import."""
        for module in modules:
            self.add([module.name])
            self.add(self._reach(module))  # its package may be unknown to the means of import

    def _reach(self, module: Module) -> Iterable[str]:
        """Take one of the user's modules, unless it is taken; return what it imports."""
        if module.name in self._reached:
            return ()
        self._reached.add(module.name)
        top = self._find(module.name.partition('.')[0])
        if top is not None and top.file is None:
            self._take_folders(top, [f for f in top.folders if is_users(top.name, f)])
        self._take(module)
        return self._sources.imports(module)

    def _chain(self, name: str) -> Iterator[Module]:
        """Yield the user's modules among those that an import of ``name`` loads."""
        end = 0
        while end < len(name):
            end = name.find('.', end + 1)
            end = len(name) if end < 0 else end
            module = self._find(name[:end])
            if module is None:
                return
            if module.file is not None:
                if not is_users(module.name, module.file):
                    return
                yield module

    def _find(self, name: str) -> Module | None:
        if name not in self._found:
            self._found[name] = find(name)
        return self._found[name]

    def wish(self, name: str) -> None:
        """Take a module whosesoever it is; with the regular package that it is in.

        Args:
            name: of the module, or the path of a folder: a package itself, or else of modules.

        Raises:
            ConfigError: there is no such module or folder.
        """
        if os.path.isabs(name):
            self._wish_folder(name)
            return
        module = self._find(name)
        if module is None or not (module.file or module.folders):
            raise ConfigError(f'there is no module {name!r} here that could be shipped')
        above = map(self._find, with_parents(name))
        regular = next((m for m in above if m and m.file), None)
        if regular is not None:
            self._take(regular)
        else:
            self._take_folders(module, module.folders)
        self.add([name])

    def _wish_folder(self, path: str) -> None:
        if not os.path.isdir(path):
            raise ConfigError(f'there is no folder {path} that could be shipped')
        is_package = os.path.exists(os.path.join(path, '__init__.py'))
        self._put(os.path.basename(path) if is_package else '', path)

    def _take(self, module: Module) -> None:
        if module.folders:
            self._take_folders(module, module.folders)
            return
        path = module.file or ''
        suffix = max((s for s in all_suffixes() if path.endswith(s)), key=len, default=None)
        if suffix is not None:  # else it was loaded by other means than import
            self._put(module.name.replace('.', '/') + suffix, path)

    def _take_folders(self, module: Module, folders: Iterable[str]) -> None:
        for folder in filter(os.path.isdir, folders):
            self._put(module.name.replace('.', '/'), folder)

    def _put(self, place: str, path: str) -> None:
        if not self._comes_with_a_folder(place, path):
            self.pieces[place, path] = None

    def _comes_with_a_folder(self, place: str, path: str) -> bool:
        while (place, path) not in self.pieces:
            around, _, name = place.rpartition('/')
            folder, own_name = os.path.split(path)
            if name != own_name or not name:
                return False
            place, path = around, folder
        return True
