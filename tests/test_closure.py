"""Which modules are the user's, and which files belong to what they lead to."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path

import pytest

from projects import Project, write_files
from slurm_futures.closure import Closure, Sources
from slurm_futures.errors import ConfigError
from slurm_futures.modules import Module, find, is_users, loaded_users_modules


def pieces(project: Project, closure: Closure) -> dict[str, str]:
    """Return what a closure consists of, by place, with paths relative to the project."""
    found = {place: os.path.relpath(path, project.folder) for place, path in closure.pieces}
    assert len(found) == len(closure.pieces)
    return found


def reach(project: Project, *names: str) -> dict[str, str]:
    """Return what names lead to."""
    closure = Closure(Sources())
    closure.add(names)
    return pieces(project, closure)


# ---- finding


@pytest.mark.parametrize(
    'name', ['json', 'json.decoder', 'xml.dom.minidom', 'pytest', 'pydantic.main', 'sys', 'email']
)
def test_modules_are_found_without_importing_them(name: str) -> None:
    """What is found is what an import would give, and nothing is imported on the way."""
    before = set(sys.modules)
    module = find(name)
    assert set(sys.modules) == before
    assert module is not None
    spec = importlib.util.find_spec(name)  # which imports the packages
    assert spec is not None
    assert module.file == (spec.origin if spec.has_location else None)
    assert list(module.folders) == list(spec.submodule_search_locations or ())


@pytest.mark.parametrize('name', ['no_such_module', 'no_such.module', 'json.no_such', 'sys.x', ''])
def test_there_is_no_such_module(name: str) -> None:
    """What is not there is no module, also where a part of the name is."""
    assert find(name) is None


def test_nothing_of_the_users_is_executed(project: Project) -> None:
    """Finding a submodule does not import its packages."""
    bomb = 'raise SystemExit("executed")\n'
    project.write({'boom/__init__.py': bomb, 'boom/a/__init__.py': bomb, 'boom/a/b.py': bomb})
    module = find('boom.a.b')
    assert module == Module('boom.a.b', project.path('boom/a/b.py'), ())
    assert reach(project, 'boom.a.b') == {'boom': 'boom'}


def test_modules_that_do_things_when_they_are_asked(project: Project) -> None:
    """A lazy module, whose first attribute loads it, is left alone; so is what is no module."""
    project.write({'lazybones.py': 'raise SystemExit("executed")\n'})
    spec = importlib.util.find_spec('lazybones')
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = sys.modules['lazybones'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lazy)
    sys.modules['oddity'] = object()  # type: ignore[assignment]
    try:
        found = {module.name for module in loaded_users_modules()}
    finally:
        del sys.modules['lazybones'], sys.modules['oddity']
    assert 'lazybones' in found
    assert 'oddity' not in found


def test_a_finder_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody's import hook raises about a name means that there is no such module."""

    class Broken:
        @staticmethod
        def find_spec(*_: object) -> None:
            raise RuntimeError('broken')

    monkeypatch.setattr(sys, 'meta_path', [Broken])
    assert find('no_such_module') is None


# ---- whose


@pytest.mark.parametrize(
    'name', ['json', 'pytest', 'pydantic', '_pytest.python', 'slurm_futures', 'cloudpickle']
)
def test_what_is_not_the_users(name: str) -> None:
    """Python's modules, installed ones, and ours are not the user's."""
    module = find(name)
    assert module is not None
    assert module.file is not None
    assert not is_users(name, module.file)


@pytest.mark.parametrize(
    ('name', 'path', 'users'),
    [
        ('a', '/home/me/a.py', True),
        ('a.b', '/home/me/project/src/a/b.py', True),
        ('a', '/opt/env/lib/python3.9/site-packages/a/__init__.py', False),
        ('a', '/usr/lib/python3/dist-packages/a.py', False),
        ('a', '/home/me/site-packages-of-mine/a.py', True),
        ('sitecustomize', '/home/me/sitecustomize.py', False),
        ('slurm_futures.x', '/home/me/slurm_futures/slurm_futures/x.py', False),
        ('slurm_futures_extra', '/home/me/slurm_futures_extra.py', True),
        ('_pydevd_bundle.pydevd', '/opt/pycharm/helpers/pydev/_pydevd_bundle/pydevd.py', False),
    ],
)
def test_whose_a_module_is(name: str, path: str, users: bool) -> None:
    """It depends on where the module is, and on a few names."""
    assert is_users(name, path) == users


def test_loaded_modules(project: Project) -> None:
    """The user's loaded modules are found by their own names, as files; the others are not."""
    project.write({'one.py': '', 'two/__init__.py': '', 'two/three.py': '', 'space/four.py': ''})
    project.load('one', 'two.three', 'space.four')
    sys.modules['alias'] = sys.modules['one']
    sys.modules['made'] = types.ModuleType('made')
    sys.modules['blocked'] = None  # type: ignore[assignment]
    try:
        found = {m.name: m for m in loaded_users_modules() if m.file}
    finally:
        for name in ('alias', 'made', 'blocked'):
            del sys.modules[name]
    inside = {name for name, m in found.items() if str(m.file).startswith(project.path(''))}
    assert inside == {'one', 'two', 'two.three', 'space.four'}
    assert found['two'].folders == (project.path('two'),)
    assert not {'alias', 'made', 'blocked', 'pytest', 'os'} & set(found)


# ---- what belongs together


def test_single_modules(project: Project) -> None:
    """A module that is no package is one file, of those beside it only what it leads to."""
    project.write({'one.py': 'import two\n', 'two.py': 'import json, three\n', 'other.py': ''})
    assert reach(project, 'one') == {'one.py': 'one.py', 'two.py': 'two.py'}
    project.write({'three.py': ''})
    assert set(reach(project, 'one.attribute')) == {'one.py', 'two.py', 'three.py'}


def test_packages_are_taken_whole(project: Project) -> None:
    """A regular package is one folder, wherever in it the import leads."""
    project.write({'pack/__init__.py': '', 'pack/sub/__init__.py': '', 'pack/sub/deep.py': ''})
    assert reach(project, 'pack.sub.deep') == {'pack': 'pack'}
    assert reach(project, 'pack') == {'pack': 'pack'}


def test_imports_are_followed(project: Project) -> None:
    """Lazy and relative ones, through packages' __init__, but not into files that none leads to."""
    project.write(
        {
            'main_part.py': 'def f():\n    from pack.sub import thing\n',
            'pack/__init__.py': 'from . import always\n',
            'pack/always.py': 'import by_always\n',
            'pack/never.py': 'import by_never\n',
            'pack/sub/__init__.py': '',
            'pack/sub/thing.py': 'try:\n    from ..more import x\nexcept ImportError: import y\n',
            'pack/more.py': 'import by_more.deep\n',
            'by_always.py': '',
            'by_never.py': '',
            'by_more/__init__.py': '',
            'by_more/deep.py': 'import main_part\n',
        }
    )
    expected = {'main_part.py', 'pack', 'by_always.py', 'by_more'}
    assert set(reach(project, 'main_part')) == expected


def test_what_does_not_parse_is_taken(project: Project) -> None:
    """A file that this Python cannot read is taken, and leads nowhere."""
    project.write({'broken.py': 'import other\ndef', 'other.py': '', 'binary.py': b'\0\0'})
    assert set(reach(project, 'broken', 'binary')) == {'broken.py', 'binary.py'}


def test_namespace_packages(project: Project, tmp_path: Path) -> None:
    """All the user's folders of one are taken, of others' none; its modules are in them already."""
    site = tmp_path / 'site-packages'
    other = tmp_path / 'other'
    project.write({'space/a.py': 'import space.b.c\n', 'space/data.txt': ''})
    write_files(other, {'space/b/c.py': 'import space.installed\n'})
    write_files(site, {'space/installed.py': 'import far\n'})
    sys.path[1:1] = [str(other), str(site)]
    try:
        closure = Closure(Sources())
        closure.add(['space.a'])
    finally:
        del sys.path[1:3]
    assert set(closure.pieces) == {
        ('space', project.path('space')),
        ('space', str(other / 'space')),
    }


def test_a_folder_that_happens_to_have_the_name(project: Project) -> None:
    """`import name` of what is not installed does not take a folder of that name without code."""
    project.write({'wandb/run-1/huge.bin': '', 'part.py': 'import wandb\nfrom wandb import x\n'})
    assert set(reach(project, 'part')) == {'part.py'}


def test_a_namespace_package_inside_a_regular_one(project: Project) -> None:
    """It comes with the package."""
    project.write({'pack/__init__.py': '', 'pack/plain/deep.py': 'import late\n', 'late.py': ''})
    assert set(reach(project, 'pack.plain.deep')) == {'pack', 'late.py'}


def test_extension_modules(project: Project) -> None:
    """They are files like others, under the name that this interpreter wants."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    project.write({f'fast{suffix}': b'\x7fELF', 'slow.py': 'import fast\n'})
    assert set(reach(project, 'slow')) == {'slow.py', f'fast{suffix}'}


def loaded(*names: str) -> Iterable[Module]:
    """Return modules of these names that this process has imported."""
    return [module for module in loaded_users_modules() if module.name in names]


def test_modules_loaded_by_other_means(project: Project) -> None:
    """One that was loaded from a path goes by the name that it was given."""
    project.write({'folder/some-file.py': 'import helper_of_it\n', 'helper_of_it.py': ''})
    project.write({'strange.txt': ''})
    for name, file in (('plugins.given', 'folder/some-file.py'), ('strange', 'strange.txt')):
        loader = importlib.machinery.SourceFileLoader(name, project.path(file))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
    closure = Closure(Sources())
    closure.add_loaded(loaded('plugins.given', 'strange'))
    assert pieces(project, closure) == {
        'plugins/given.py': 'folder/some-file.py',
        'helper_of_it.py': 'helper_of_it.py',
    }


def test_a_package_under_another_name(project: Project) -> None:
    """A package whose folder is called otherwise, and its parts, are placed by the module's name.

    Editable installs with a mapping of names to folders do so.
    """
    project.write({'source/__init__.py': '', 'source/part.py': ''})
    spec = importlib.util.spec_from_file_location('renamed', project.path('source/__init__.py'))
    assert spec is not None
    sys.modules['renamed'] = importlib.util.module_from_spec(spec)
    assert reach(project, 'renamed.part') == {'renamed': 'source'}


# ---- what is asked for


def wish(project: Project, *names: str) -> dict[str, str]:
    """Return what is taken for entries of ship_modules."""
    closure = Closure(Sources())
    for name in names:
        closure.wish(name)
    return pieces(project, closure)


def test_wishes_by_name(project: Project, tmp_path: Path) -> None:
    """A name stands for a module, also an installed one, in the regular package that it is in."""
    site = tmp_path / 'site-packages'
    write_files(site, {'inst/__init__.py': 'import mine', 'inst/a/b.py': '', 'org/lib/one.py': ''})
    write_files(site, {'org/lib2/__init__.py': ''})
    project.write({'mine.py': 'import more\n', 'more.py': '', 'space/x.py': ''})
    sys.path.insert(1, str(site))
    try:
        assert set(wish(project, 'mine')) == {'mine.py', 'more.py'}
        assert set(wish(project, 'inst')) == set(wish(project, 'inst.a.b')) == {'inst'}
        assert set(wish(project, 'org.lib.one')) == {'org/lib/one.py'}
        assert set(wish(project, 'org.lib2')) == {'org/lib2'}
        assert set(wish(project, 'org')) == {'org'}
        assert set(wish(project, 'space')) == {'space'}
    finally:
        sys.path.remove(str(site))


def test_wishes_by_folder(project: Project) -> None:
    """A folder is a package if it has an __init__.py, and a place to look for modules if not."""
    project.write({'x/pack/__init__.py': '', 'x/pack/sub.py': '', 'x/loose/module.py': ''})
    assert wish(project, project.path('x/pack')) == {'pack': 'x/pack'}
    assert wish(project, project.path('x/loose')) == {'': 'x/loose'}


@pytest.mark.parametrize('name', ['no_such_module', 'json.no_such', 'sys', '/no/such/folder'])
def test_wishes_that_cannot_be_fulfilled(project: Project, name: str) -> None:
    """What is not there, or has no file, is named."""
    with pytest.raises(ConfigError, match=name):
        wish(project, name)
