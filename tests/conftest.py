"""Fixtures that every test may ask for, and the rule about tests that need a real Slurm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Control
from cluster.layout import ClusterError
from fakecluster import World
from helpers import Bench
from outside import LocalFromOutside, Outside, SlurmFromOutside, quick_queue
from projects import Project
from slurm_futures import SlurmExecutor, bundle
from slurm_futures.remote import library
from waiting import Gate, Record

ROOT_VARIABLE = 'SLURM_FUTURES_TEST_CLUSTER'
REQUIRE_VARIABLE = 'SLURM_FUTURES_REQUIRE_CLUSTER'
HOSTILE_NAME = 'it\'s "work" $(touch x) `y` Zürich 数; & *'


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a queue system over Slurm and over the embedded queue.

    Over Slurm alone what asks for the cluster too; over others what is marked ``queues('local')``.
    """
    if 'queue_system' in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker('queues')
        names = mark.args if mark else ('slurm', 'local')
        if 'cluster' in metafunc.fixturenames:
            names = ('slurm',)
        params = [_param(name) for name in names]
        metafunc.parametrize('queue_system', params, indirect=True, scope='module')


def _param(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.cluster if name == 'slurm' else ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the cluster, so that `-m cluster` and `-m 'not cluster'` mean it."""
    for item in items:
        if 'cluster' in getattr(item, 'fixturenames', ()):
            item.add_marker(pytest.mark.cluster)


class ClusterTally:
    """Counts what became of the tests that need a cluster.

    Args:
        required: whether a cluster test that was skipped, or none at all, fails the run.
    """

    def __init__(self, required: bool) -> None:
        self.required = required
        self.ran = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one phase of one test."""
        if 'cluster' not in report.keywords:
            return
        if report.skipped and not hasattr(report, 'wasxfail'):
            self.skipped.append(report.nodeid)
        elif report.when == 'call':
            self.ran += 1

    def complaint(self) -> str:
        """What is wrong where a cluster is required; empty when nothing is."""
        if not self.required:
            return ''
        if self.skipped:
            return 'cluster tests were skipped: ' + ', '.join(self.skipped)
        return '' if self.ran else 'no cluster test ran'

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail a run that would pass without having tried Slurm."""
        if exitstatus == pytest.ExitCode.OK and self.complaint():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say why, above the summary line."""
        if words := self.complaint():
            terminalreporter.write_sep('=', 'a cluster is required', red=True)
            terminalreporter.line(words)
        elif self.skipped:
            terminalreporter.line(f'left out for want of a cluster: {len(self.skipped)} tests')


def pytest_configure(config: pytest.Config) -> None:
    """Start counting."""
    required = os.environ.get(REQUIRE_VARIABLE) == '1'
    config.pluginmanager.register(ClusterTally(required), 'cluster-tally')


@pytest.fixture(scope='session')
def cluster() -> Iterator[Control]:
    """A running Slurm: SLURM_CONF is set for this process, faults can be played."""
    try:
        control = _connect()
    except ClusterError as error:
        if os.environ.get(REQUIRE_VARIABLE) == '1':
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLURM_CONF', str(control.slurm_conf))
        yield control


def _connect() -> Control:
    root = os.environ.get(ROOT_VARIABLE)
    if not root:
        raise ClusterError(f'no Slurm to test with: {ROOT_VARIABLE} is not set')
    control = Control(Path(root))
    if not control.reachable():
        raise ClusterError(f'no Slurm to test with: nobody answers in {root}')
    return control


@pytest.fixture
def faults(cluster: Control) -> Iterator[Control]:
    """The cluster's control, for a test that breaks things: all is mended when it ends."""
    yield cluster
    cluster.restore()


@pytest.fixture
def accounting(cluster: Control) -> Control:
    """The cluster, if it keeps job records for sacct; otherwise the test is skipped."""
    if not cluster.settings.accounting:
        pytest.skip('this cluster has no accounting')
    return cluster


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """A folder that the nodes see too (they are on this machine), with a name full of traps."""
    folder = tmp_path / HOSTILE_NAME
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope='module')
def queue_system(request: pytest.FixtureRequest) -> str:
    """Which queue system runs the jobs: 'slurm' or 'local'."""
    name = str(request.param)
    if name == 'slurm':
        request.getfixturevalue('cluster')
    return name


@pytest.fixture
def outside(queue_system: str) -> Outside:
    """The queue as others see it than the executor."""
    return SlurmFromOutside() if queue_system == 'slurm' else LocalFromOutside()


@pytest.fixture(scope='module')
def make_executor(
    queue_system: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., SlurmExecutor]]:
    """Makes executors, quick at noticing things; ends what they leave unfinished.

    Their work folders have names full of traps. Keywords are those of SlurmExecutor, and
    ``slurm``: settings of Slurm.
    """
    with contextlib.ExitStack() as stack:

        def make(slurm: Mapping[str, Any] | None = None, **settings: Any) -> SlurmExecutor:
            folder = tmp_path_factory.mktemp('work') / HOSTILE_NAME
            folder.mkdir(mode=0o700)
            defaults = {
                'queue_system': quick_queue(
                    queue_system, {'polling_interval': 1.0, **(slurm or {})}
                ),
                'work_dir': str(folder),
                'grace_period': 2.0,
            }
            executor = SlurmExecutor(**(defaults | settings))
            stack.callback(_end, executor)
            return executor

        yield make


def _end(executor: SlurmExecutor) -> None:
    for future in executor._core.pending():
        future.kill()
    executor.shutdown()


@pytest.fixture(scope='module')
def executor(make_executor: Callable[..., SlurmExecutor]) -> SlurmExecutor:
    """An executor that the tests of a module share, for speed; none of them may shut it down."""
    return make_executor()


@pytest.fixture(scope='module')
def nodes(executor: SlurmExecutor) -> SlurmExecutor:
    """The shared executor's sibling whose functions run in jobs."""
    return executor.with_resources(partition='cpu', time='00:10:00')


@pytest.fixture
def cancel_jobs(outside: Outside, work_dir: Path) -> Iterator[None]:
    """Cancel, when the test ends, the jobs that it left in the queue."""
    before = {line.split()[0] for line in outside.live(work_dir)}
    yield
    if left := {line.split()[0] for line in outside.live(work_dir)} - before:
        outside.cancel(work_dir, *left)


@pytest.fixture(scope='session')
def entry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The workers' entry script, installed as the agent installs it on a login node."""
    files = {name: text.encode() for name, text in bundle.remote_files().items()}
    return library.install(str(tmp_path_factory.mktemp('lib')), files)


@pytest.fixture
def bench(work_dir: Path) -> Iterator[Bench]:
    """A spool in a folder with a hostile name, for workers and wrappers without a Slurm."""
    bench = Bench(work_dir)
    yield bench
    bench.close()


@pytest.fixture
def world() -> Iterator[World]:
    """The client's machinery, an agent and a cluster in good health; all of it played."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A door that calls and scripts wait at."""
    return Gate(tmp_path / 'gate')


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A file that calls write to."""
    return Record(tmp_path / 'record')


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A folder of modules; this process forgets them when the test ends."""
    project = Project(tmp_path / 'project')
    yield project
    project.close()
