"""Where modules are and whose they are, found without importing any."""

from __future__ import annotations

import functools
import importlib.util
import os
import pkgutil
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import Any

from slurm_futures.remote.library import PACKAGE

_INSTALLED = frozenset({'site-packages', 'dist-packages'})
"""Folders of installed packages, wherever an environment or a site keeps them."""

_NEVER = frozenset(
    {
        '__main__',
        '__mp_main__',
        'cloudpickle',
        'sitecustomize',
        'slurm_futures',
        'usercustomize',
        PACKAGE,
    }
)
"""Modules that are nobody's program: what is ours, and what an interpreter starts with."""

_DEBUGGERS = ('debugpy', 'pydev', '_pydev')
"""How the names of debuggers begin that editors load from folders of their own."""


@dataclass(frozen=True)
class Module:
    """A module that can be imported.

    Attributes:
        name: dotted and absolute.
        file: its source or extension, of a package its ``__init__``; None for namespace packages
            and for what is built in.
        folders: where a package's submodules are; none for other modules.
    """

    name: str
    file: str | None
    folders: tuple[str, ...]


def find(name: str) -> Module | None:
    """Return the module that an import of ``name`` gives, or would give; None: there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return _from_namespace(name, namespace(loaded))
    head = name.rpartition('.')[0]
    if not head:
        return _from_spec(name, _find_top_level(name))
    parent = find(head)
    return _find_below(name, parent.folders) if parent else None


def with_parents(name: str) -> list[str]:
    """Return the names of the packages that a module is in, outermost first, and its own."""
    parts = name.split('.')
    return ['.'.join(parts[: end + 1]) for end in range(len(parts))]


def namespace(module: object) -> Mapping[str, Any]:
    """Return a module's variables without asking it: some import more when they are asked."""
    try:
        variables = object.__getattribute__(module, '__dict__')
    except AttributeError:
        return {}
    return variables if isinstance(variables, dict) else {}


def _from_namespace(name: str, variables: Mapping[str, Any]) -> Module:
    return _make(name, variables.get('__file__'), variables.get('__path__'))


def _from_spec(name: str, spec: ModuleSpec | None) -> Module | None:
    if spec is None:
        return None
    return _make(name, spec.origin if spec.has_location else None, spec.submodule_search_locations)


def _make(name: str, file: object, folders: Iterable[object] | None) -> Module:
    try:
        paths = [os.path.abspath(path) for path in folders or () if isinstance(path, str)]
    except Exception:  # whatever keeps them may be of any kind; a namespace's parent may be gone
        paths = []
    is_file = isinstance(file, str) and os.path.isfile(file)
    return Module(name, os.path.abspath(str(file)) if is_file else None, tuple(paths))


def _find_top_level(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except Exception:  # finders may be anybody's
        return None


def _find_below(name: str, folders: Iterable[str]) -> Module | None:
    """Look into the folders of a package, as importing its submodule would."""
    portions: list[str] = []
    for folder in folders:
        finder: Any = pkgutil.get_importer(folder)
        spec = finder.find_spec(name) if finder else None
        if spec is not None and spec.loader is not None:
            return _from_spec(name, spec)
        if spec is not None:
            portions.extend(spec.submodule_search_locations or ())
    return _make(name, None, portions) if portions else None


def is_users(name: str, path: str) -> bool:
    """Return whether a module is the user's own: neither installed nor Python's nor ours.

    Args:
        name: of the module.
        path: its file, or a folder of it if it is a package.
    """
    top = name.partition('.')[0]
    return top not in _NEVER and not top.startswith(_DEBUGGERS) and not _is_installed(path)


@functools.lru_cache(maxsize=10_000)
def _is_installed(path: str) -> bool:
    # Not where links lead: a site may link all its packages from elsewhere.
    return path.startswith(_installed_folders()) or not _INSTALLED.isdisjoint(path.split(os.sep))


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = [sysconfig.get_path(kind) for kind in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
    paths += [os.path.dirname(os.__file__), site.getusersitepackages()]
    folders = {form(path) for path in paths for form in (os.path.abspath, os.path.realpath)}
    return tuple(folder + os.sep for folder in folders)


def loaded_users_modules() -> Iterator[Module]:
    """Yield the user's modules that this process has imported, namespace packages left out."""
    for name, module in list(sys.modules.items()):
        variables = namespace(module)
        file = variables.get('__file__')
        if not isinstance(file, str) or not is_users(name, file):
            continue
        # Under another name it is an alias, made by whatever module it is the alias of.
        if variables.get('__name__') == name and all(map(str.isidentifier, name.split('.'))):
            found = _from_namespace(name, variables)
            if found.file is not None:
                yield found
