"""The user's own modules come along, to a login node and to compute nodes that have none of them.

All is one machine here, so that is proven in two ways: workers are not told where the program
finds its modules, and what jobs need is removed while they wait in the queue.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import eventually
from projects import Project, write_files
from slurm_futures import (
    ConfigError,
    JobFuture,
    RemoteImportError,
    SlurmExecutor,
    dispatcher,
    filetree,
    plan,
)
from watching import await_job_id, slurm

cloudpickle.register_pickle_by_value(sys.modules[__name__])

MakeExecutor = Callable[..., SlurmExecutor]

# ---- programs, as users lay them out

FAR = """
    import os, subprocess, time
    from concurrent.futures import wait
    import slurm_futures.dispatcher, slurm_futures.plan
    from slurm_futures import SlurmExecutor

    PROJECT, WORK = os.environ['PROJECT'], os.environ['WORK']
    # As over SSH: nobody is told where this program finds its modules.
    slurm_futures.dispatcher.module_folders = slurm_futures.plan.module_folders = list

    def everywhere(*calls):
        '''Run calls on the login node, and in jobs that start when the project is gone.'''
        slurm = {'slurm': {'polling_interval': 1}}
        with SlurmExecutor(queue_system=slurm, work_dir=WORK) as executor:
            login = [executor.submit(*call) for call in calls]
            wait(login)
            held = executor.with_resources(partition='cpu', extra={'hold': True})
            jobs = [held.submit(*call) for call in calls]
            while not all(job.job_id for job in jobs):
                time.sleep(0.05)
            os.rename(PROJECT, PROJECT + '.gone')
            for number in {job.job_id.partition('_')[0] for job in jobs}:
                subprocess.run(['scontrol', 'release', number], check=True)
            wait(jobs)
        return [login, jobs]

    def has_come_along(*files):
        return all(file.startswith(WORK + '/.slurm_futures/lib/') for file in files)
"""

HELPER = """
    import enum
    from dataclasses import dataclass
    {own}import base

    class Level(enum.Enum):
        HIGH = 2

    @dataclass
    class Pair:
        a: int

    class OurError(base.BaseError):
        pass

    def make(n):
        {own}import lazy
        return Pair(lazy.double(n)), Level.HIGH, [__file__, base.__file__, lazy.__file__]

    def fail():
        raise OurError('ours')
"""

BASE = 'class BaseError(Exception): pass\n'
LAZY = 'def double(n): return 2 * n\n'

PROGRAM = """
    {imports}

    def typed_in(n):
        {own}import lazy
        return helper.make(n)[0], [lazy.__file__]

    def main():
        for futures in everywhere((helper.make, 3), (helper.fail,), (typed_in, 4)):
            made, failed, typed = futures
            pair, level, files = made.result()
            assert type(pair) is helper.Pair and pair.a == 6
            assert level is helper.Level.HIGH
            assert has_come_along(*files), files
            try:
                failed.result()
            except helper.OurError as error:
                assert isinstance(error, base.BaseError) and error.args == ('ours',)
            pair, files = typed.result()
            assert type(pair) is helper.Pair and pair.a == 8
            assert has_come_along(*files), files
        print('as it should be')
"""


def sources(package: str, own: str, imports: str) -> dict[str, str]:
    """Return a project: some modules in a folder, and a program that uses them, ``main.py``.

    Args:
        package: the folder.
        own: how they begin to import each other: 'from . ', or nothing.
        imports: the first lines of the program.
    """
    files = {
        'helper.py': HELPER.replace('{own}', own),
        'base.py': BASE,
        'lazy.py': LAZY,
        'main.py': PROGRAM.replace('{own}', own).replace('{imports}', imports),
    }
    return {os.path.join(package, name): text for name, text in files.items()} | {'far.py': FAR}


START = "\n    if __name__ == '__main__':\n        main()\n"
FLAT = sources('', '', 'import base, helper\n    from far import *')
PACKAGED = sources('pack', 'from . ', 'from pack import base, helper\n    from far import *')


class Runner:
    """Runs programs in a project.

    Args:
        folder: for the project and the spool.
    """

    def __init__(self, folder: Path) -> None:
        self.project = folder / 'project'
        self.work = folder / 'work'
        self.work.mkdir()

    def __call__(
        self,
        files: Mapping[str, str | bytes],
        *command: str,
        text: str | None = None,
        python: str = sys.executable,
        cwd: Path | None = None,
    ) -> None:
        """Write a project and run a program in it, which must be content."""
        write_files(self.project, files)
        done = subprocess.run(
            [python, *command],
            input=text,
            cwd=cwd or self.project,
            env={**os.environ, 'PROJECT': str(self.project), 'WORK': str(self.work)},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'as it should be\n' in done.stdout
        assert not self.project.exists()


@pytest.fixture
def run(cluster: object, work_dir: Path) -> Runner:
    """What runs programs; their folders have names full of traps."""
    return Runner(work_dir)


def test_a_script_with_modules_beside_it(run: Runner) -> None:
    """Modules next to a script, their lazy imports, classes, members and exceptions."""
    run({**FLAT, 'main.py': FLAT['main.py'] + START}, 'main.py')


def test_a_module_of_a_package_as_program(run: Runner) -> None:
    """`python -m pack.main`: relative imports hold in what the program itself defines."""
    main = PACKAGED['pack/main.py'] + START
    run({**PACKAGED, 'pack/__init__.py': '', 'pack/main.py': main}, '-m', 'pack.main')


def test_a_namespace_package(run: Runner) -> None:
    """A package without an __init__."""
    run({**PACKAGED, 'program.py': 'from pack.main import main\nmain()\n'}, 'program.py')


@pytest.mark.parametrize('command', [['-'], ['-i', '-q', '-c', '']], ids=['stdin', 'interactive'])
def test_what_is_typed_in(run: Runner, command: list[str]) -> None:
    """A notebook's definitions belong to no file; what they import lies in the folder."""
    files = dict(FLAT)
    run(files, *command, text=typed(files.pop('main.py')) + '\n\nmain()\n')


def typed(text: str) -> str:
    """Return a program as one types it: an empty line ends a block, and stands nowhere else."""
    lines: list[str] = []
    for line in filter(str.strip, textwrap.dedent(text).splitlines()):
        if lines and lines[-1].startswith(' ') and not line.startswith(' '):
            lines.append('')
        lines.append(line)
    return '\n'.join(lines)


@pytest.fixture(scope='module')
def other_venv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtual environment that has all that this one has; its interpreter."""
    folder = tmp_path_factory.mktemp('venv') / 'env'
    venv.create(folder, symlinks=True, with_pip=False)
    python = str(folder / 'bin' / 'python')
    code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    site = subprocess.check_output([python, '-I', '-c', code], text=True).strip()
    Path(site, 'all_of_it.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return python


PROJECT_FILE = """
    [build-system]
    requires = ["setuptools"]
    build-backend = "setuptools.build_meta"
    [project]
    name = "some-project"
    version = "1"
    [tool.setuptools]
"""


@pytest.mark.parametrize(
    ('layout', 'setting'),
    [
        ('src', 'packages.find.where = ["src"]'),
        ('lib', 'packages = ["pack"]\n    package-dir = {pack = "lib/pack"}'),
    ],
    ids=['path file', 'finder'],
)
def test_an_editable_install(run: Runner, other_venv: str, layout: str, setting: str) -> None:
    """A project that is installed with `pip install -e` is the user's, wherever it lies."""
    files: dict[str, str | bytes] = {f'{layout}/{name}': text for name, text in PACKAGED.items()}
    files[f'{layout}/pack/__init__.py'] = ''
    files[f'{layout}/pack/far.py'] = files.pop(f'{layout}/far.py')
    main = PACKAGED['pack/main.py'].replace('from far', 'from pack.far')
    files[f'{layout}/pack/main.py'] = main
    files['pyproject.toml'] = PROJECT_FILE + f'    {setting}\n'
    write_files(run.project, files)
    pip = [other_venv, '-m', 'pip', '-q', '--disable-pip-version-check', 'install', '--no-index']
    install = ['--no-deps', '--no-build-isolation', '--editable', str(run.project)]
    subprocess.run([*pip, *install], check=True, timeout=100)
    try:
        run({}, '-c', 'from pack.main import main; main()', python=other_venv)
    finally:
        uninstall = [*pip[:5], 'uninstall', '--yes', 'some-project']
        subprocess.run(uninstall, check=True, timeout=100)


TESTS = """
    import helper
    from far import everywhere, has_come_along

    def of_the_test(n):
        assert n == 5, 'rewritten by pytest'
        import lazy
        return helper.make(n)[0], [__file__, lazy.__file__]

    def test_it():
        for futures in everywhere((of_the_test, 5), (helper.fail,)):
            pair, files = futures[0].result()
            assert pair == helper.Pair(10)
            assert has_come_along(*files)
            assert type(futures[1].exception()) is helper.OurError
        print('as it should be')
"""


@pytest.mark.parametrize('mode', ['prepend', 'importlib'])
def test_modules_that_pytest_has_rewritten(run: Runner, mode: str) -> None:
    """Functions of test modules run as they stand in their files."""
    files = {**FLAT, 'tests/test_program.py': TESTS, 'main.py': ''}
    files['pytest.ini'] = '[pytest]\npythonpath = .\n'
    options = [f'--import-mode={mode}', '-p', 'no:cacheprovider', '-q', '-s']
    # It returns to the folder where it was started, which must not be gone.
    run(files, '-m', 'pytest', *options, str(run.project / 'tests'), cwd=run.work)


# ---- one by one


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as over SSH: workers are not told where this process finds its modules."""
    for module in (dispatcher, plan):
        monkeypatch.setattr(module, 'module_folders', list)


def library(executor: SlurmExecutor) -> dict[Path, list[Path]]:
    """Return the user's modules that are on the cluster: folders and what files are in them."""
    hello: Mapping[str, Any] = executor._core._dispatcher.hello or {}
    ours = Path(hello['entry']).parents[1]
    folders = [folder for folder in Path(hello['library']).iterdir() if folder != ours]
    return {folder: [p for p in folder.rglob('*') if p.is_file()] for folder in folders}


def hold(executor: SlurmExecutor, function: Callable[..., Any], *args: Any) -> JobFuture[Any]:
    """Submit a call in a job that waits to be released."""
    held = executor.with_resources(partition='cpu', extra={'hold': True})
    future = held.submit(function, *args)
    await_job_id(future)
    return future


@pytest.mark.usefixtures('unshared')
def test_edits_while_jobs_queue(
    cluster: Control, make_executor: MakeExecutor, project: Project
) -> None:
    """Each job runs what the files held when it was submitted; afterwards nobody needs them."""
    project.write({'part.py': 'def f(): return "first"\n', 'lazy.py': ''})
    part = project.load('part')
    executor = make_executor()
    first = hold(executor, part.f)
    project.write({'part.py': 'def f():\n    import lazy\n    return "second", lazy.x\n'})
    project.write({'lazy.py': 'x = 22\n'})
    importlib.reload(part)
    second = hold(executor, part.f)
    assert executor.submit(part.f).result() == ('second', 22)
    shutil.rmtree(project.folder)
    for job in (first, second):
        slurm('scontrol', 'release', str(job.job_id))
    assert first.result() == 'first'
    assert second.result() == ('second', 22)


@pytest.mark.usefixtures('unshared')
def test_they_are_shipped_once(make_executor: MakeExecutor, project: Project) -> None:
    """However many calls and programs there are, one folder is written for one content, once."""
    project.write({'part.py': 'def f(n): return n\n', 'pack/__init__.py': '', 'pack/a.txt': 'a'})
    part = project.load('pack', 'part')
    executor = make_executor()
    assert executor.submit(part.f, 1).result() == 1
    (folder,) = before = library(executor)
    times = {path: path.stat().st_ctime_ns for path in before[folder]}
    assert list(executor.map(part.f, range(30))) == list(range(30))
    nodes = executor.with_resources(partition='cpu')
    assert list(nodes.map(part.f, range(5))) == list(range(5))
    work = executor._core._dispatcher.hello
    assert work is not None
    other = make_executor(work_dir=work['work_dir'])
    assert other.submit(part.f, 2).result() == 2
    assert list(library(other)) == [folder]
    assert {path: path.stat().st_ctime_ns for path in times} == times
    assert {'part.py', 'pack/a.txt'} <= {str(path.relative_to(folder)) for path in times}


@pytest.mark.usefixtures('unshared')
def test_warm_workers_have_one_version_each(make_executor: MakeExecutor, project: Project) -> None:
    """After an edit other workers serve; with as many as there may be, idle ones give way."""
    project.write({'part.py': 'import os\ndef f(): return 1, os.getppid()\n'})
    part = project.load('part')
    executor = make_executor(login_workers=1)
    number, first = executor.submit(part.f).result()
    assert number == 1
    project.write({'part.py': 'import os\ndef f(): return 2222, os.getppid()\n'})
    importlib.reload(part)
    number, second = executor.submit(part.f).result()
    assert number == 2222
    assert executor.submit(part.f).result() == (2222, second)
    assert eventually(lambda: not Path(f'/proc/{first}').exists(), 10)


@pytest.mark.usefixtures('unshared')
def test_exceptions_are_caught_by_class(make_executor: MakeExecutor, project: Project) -> None:
    """Classes of the user's modules are found by name on both sides."""
    text = 'class OurError(ValueError): pass\ndef fail(): raise OurError(1, 2)\n'
    project.write({'part.py': text})
    part = project.load('part')
    executor = make_executor()
    for place in (executor, executor.with_resources(partition='cpu')):
        with pytest.raises(part.OurError) as caught:
            place.submit(part.fail).result()
        assert caught.value.args == (1, 2)
        assert 'part.py' in str(caught.value.__cause__)


@pytest.mark.usefixtures('unshared')
def test_nothing_is_shipped(make_executor: MakeExecutor, project: Project) -> None:
    """With ship_modules=() what is missing is named, with the host and the interpreter."""
    project.write({'part.py': 'def f(): return 1\n'})
    part = project.load('part')
    executor = make_executor(ship_modules=())
    for place in (executor, executor.with_resources(partition='cpu')):
        future = place.submit(part.f)
        with pytest.raises(RemoteImportError) as caught:
            future.result()
        assert caught.value.name == 'part'
        host = f'(job {future.job_id})' if future.job_id else f'on {os.uname().nodename} '
        for word in ("'part'", host, sys.executable, 'ship_modules'):
            assert word in str(caught.value)
    assert library(executor) == {}


def test_folders_are_shared_without_shipping(make_executor: MakeExecutor, project: Project) -> None:
    """With ship_modules=() workers on this machine import from where this process does."""
    project.write({'part.py': 'def f(): return __file__\n'})
    part = project.load('part')
    executor = make_executor(ship_modules=())
    for place in (executor, executor.with_resources(partition='cpu')):
        assert place.submit(part.f).result() == project.path('part.py')


def test_what_no_analysis_finds(make_executor: MakeExecutor, project: Project) -> None:
    """On this machine a name that is put together at run time is found where it lies."""
    text = 'import importlib\ndef f(n): return importlib.import_module("dynamic_" + n).__file__\n'
    project.write({'part.py': text, 'dynamic_x.py': ''})
    part = project.load('part')
    executor = make_executor()
    for place in (executor, executor.with_resources(partition='cpu')):
        assert place.submit(part.f, 'x').result() == project.path('dynamic_x.py')


@pytest.mark.usefixtures('unshared')
def test_asked_for_by_name_or_folder(
    make_executor: MakeExecutor, project: Project, tmp_path: Path
) -> None:
    """What ship_modules names comes along besides what is found: modules, packages, folders."""
    site = tmp_path / 'site-packages'
    write_files(site, {'installed/__init__.py': '', 'installed/data.txt': 'data'})
    write_files(tmp_path, {'mine/__init__.py': '', 'loose/one.py': '', 'loose/two/three.py': ''})
    project.write({'part.py': 'import importlib\ndef f(n): return importlib.import_module(n).x\n'})
    for path in (site / 'installed', tmp_path / 'mine'):
        (path / '__init__.py').write_text('x = 1\n')
    for path in (tmp_path / 'loose' / 'one.py', tmp_path / 'loose' / 'two' / 'three.py'):
        path.write_text('x = 1\n')
    sys.path.append(str(site))
    try:
        wishes = ['installed', tmp_path / 'mine', str(tmp_path / 'loose')]
        executor = make_executor(ship_modules=wishes)
        part = project.load('part')
        names = ['installed', 'mine', 'one', 'two.three']
        nodes = executor.with_resources(partition='cpu')
        futures = [where.submit(part.f, n) for where in (executor, nodes) for n in names]
        assert [future.result() for future in futures] == [1] * 8
    finally:
        sys.path.remove(str(site))


def test_too_large(
    make_executor: MakeExecutor, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls whose modules are over the limit are refused with the largest files; maps likewise."""
    limit = filetree.MOST_BYTES
    assert limit == 20_000_000
    project.write({'pack/__init__.py': 'def f(n): return n\n', 'pack/huge.bin': bytes(limit)})
    part = project.load('pack')
    executor = make_executor()
    calls = [executor.submit(part.f, 1), executor.with_resources(partition='cpu').submit(abs, 1)]
    for call in calls:
        with pytest.raises(ConfigError, match=r'20\.0 MB .*pack/huge\.bin'):
            call.result()
    with pytest.raises(ConfigError, match='ship_modules'):
        list(executor.map(part.f, [1, 2]))
    Path(project.path('pack/huge.bin')).unlink()
    assert list(executor.map(part.f, [1, 2])) == [1, 2]
