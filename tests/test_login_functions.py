"""submit() and map() without resources: functions on the login node."""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest

from helpers import find_python
from slurm_futures import (
    ConnectionFailed,
    JobCancelled,
    PythonVersionMismatch,
    RemoteError,
    RemoteImportError,
    SlurmExecutor,
    WorkerDied,
)
from stubs import other_python, write_program
from waiting import Gate, Record, has_ended

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.queues('local')


def add(a: int, b: int) -> int:
    """What everybody adds."""
    return a + b


def segfault() -> NoReturn:
    """Die as C extensions do."""
    ctypes.string_at(0)
    raise AssertionError('alive')


def kill_myself() -> NoReturn:
    """Die as a process does that is killed for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError('alive')


def test_functions_of_all_kinds(executor: SlurmExecutor) -> None:
    """Module functions, lambdas, closures, built-ins, bound methods and classes can be called."""
    step = 10

    def closure(n: int, *, times: int = 1) -> int:
        return n + times * step

    calls: list[Any] = [
        executor.submit(add, 1, 2),
        executor.submit(lambda n: n * n, 7),
        executor.submit(closure, 1, times=3),
        executor.submit(max, [3, 1, 2]),
        executor.submit('-'.join, ['a', 'b']),
        executor.submit(complex, 1, 2),
    ]
    assert [call.result() for call in calls] == [3, 49, 31, 3, 'a-b', 1 + 2j]


def test_keywords_of_the_function_are_its_own(executor: SlurmExecutor) -> None:
    """Keywords that submit() itself might have had reach the function."""
    names = {'self': 1, 'fn': 2, 'cwd': 3, 'check': 4, 'name': 5}
    assert executor.submit(dict, **names).result() == names


def test_map_keeps_order(executor: SlurmExecutor) -> None:
    """map() yields results in the order of its iterables, also of several."""
    assert list(executor.map(add, range(20), range(100, 200))) == list(range(100, 140, 2))


def test_shared_worker_is_warm(executor: SlurmExecutor) -> None:
    """A call does not pay for starting Python: the median of many is far below that."""
    executor.submit(add, 1, 2).result()
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        executor.submit(add, 1, 2).result()
        times.append(time.perf_counter() - begun)
    assert sorted(times)[25] < 0.02


def test_prints_do_not_disturb(executor: SlurmExecutor) -> None:
    """What a call and its children print by any way is found on its future, and nowhere else."""

    def talk(word: str) -> str:
        print('print', word)
        os.write(1, b'\x00\xff bytes\n')
        subprocess.run(['sh', '-c', f'echo child {word}; echo err {word} >&2'], check=True)
        sys.stderr.write(f'stderr {word}, no newline')
        return word

    futures = [executor.submit(talk, word) for word in ('one', 'two', 'three')]
    assert [future.result() for future in futures] == ['one', 'two', 'three']
    silent = executor.submit(add, 1, 2)
    silent.result()
    for word, future in zip(('one', 'two', 'three'), futures, strict=True):
        assert future.stdout() == f'print {word}\n\x00\ufffd bytes\nchild {word}\n'
        assert future.stderr() == f'err {word}\nstderr {word}, no newline'
    assert silent.stdout() == silent.stderr() == ''


def test_output_can_be_read_while_a_call_runs(executor: SlurmExecutor, tmp_path: Path) -> None:
    """stdout() of a running call gives what is there; with a limit, the end of it."""
    gate = Gate(tmp_path / 'gate')

    def talk() -> None:
        print('before the gate')
        gate.pass_through()
        print('behind the gate')

    future = executor.submit(talk)
    gate.await_arrival()
    assert future.stdout() == 'before the gate\n'
    gate.open()
    future.result()
    assert future.stdout(limit=5) == 'gate\n'


def test_stdin_is_empty(executor: SlurmExecutor) -> None:
    """A call that reads stdin gets the end of file rather than the agent's words."""
    assert executor.submit(lambda: list(sys.stdin)).result() == []
    assert executor.submit(lambda: subprocess.check_output(['cat'])).result() == b''


def test_exception_keeps_its_type(executor: SlurmExecutor) -> None:
    """A call's exception is raised as itself, with the remote traceback as its cause."""

    class BrokenError(Exception):
        """Defined here, known there only by what travels."""

    def fail() -> None:
        raise BrokenError('no', 42)

    with pytest.raises(BrokenError) as caught:
        executor.submit(fail).result()
    assert caught.value.args == ('no', 42)
    cause = str(caught.value.__cause__)
    assert 'Traceback (most recent call last)' in cause
    assert 'in fail' in cause
    assert 'slurm_futures_remote' not in cause


def test_exception_with_a_cause_of_its_own(executor: SlurmExecutor) -> None:
    """The chain of causes, which pickling drops, is told in the remote traceback."""

    def fail() -> None:
        try:
            int('x')
        except ValueError as error:
            raise KeyError('outer') from error

    with pytest.raises(KeyError, match='outer') as caught:
        executor.submit(fail).result()
    assert 'invalid literal for int()' in str(caught.value.__cause__)
    assert 'direct cause' in str(caught.value.__cause__)


@pytest.mark.parametrize('kind', [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exceptions_that_end_programs(executor: SlurmExecutor, kind: type[BaseException]) -> None:
    """They are outcomes like others: neither the worker nor anything here ends with them."""

    def leave() -> None:
        raise kind('bye')

    error = executor.submit(leave).exception()
    assert type(error) is kind
    assert error.args == ('bye',)
    assert executor.submit(add, 1, 2).result() == 3


def test_exception_that_cannot_be_rebuilt(executor: SlurmExecutor) -> None:
    """RemoteError holds the text of one whose pickle does not load, or that has none."""

    class NeedsTwoError(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f'{a} and {b}')

    class UnpicklableError(Exception):
        def __init__(self) -> None:
            super().__init__('it holds a lock')
            self.lock = threading.Lock()

    def fail(kind: type[Exception], *args: Any) -> None:
        raise kind(*args)

    with pytest.raises(RemoteError, match=r'NeedsTwoError: 1 and 2 .*not be rebuilt'):
        executor.submit(fail, NeedsTwoError, 1, 2).result()
    with pytest.raises(RemoteError, match='UnpicklableError: it holds a lock') as caught:
        executor.submit(fail, UnpicklableError).result()
    assert 'Traceback' in caught.value.traceback


def test_unpicklable_function_argument_or_result(executor: SlurmExecutor) -> None:
    """The future gets the error of what cannot be pickled; submit() and map() do not raise."""
    lock = threading.Lock()

    def use_lock() -> None:
        lock.acquire()

    function = executor.submit(use_lock)
    argument = executor.submit(add, lock, 2)  # type: ignore[call-overload]
    result = executor.submit(threading.Lock)
    mapped = executor.map(len, [[1], [lock], [1, 2]])
    for future in (function, argument, result):
        assert isinstance(future.exception(), TypeError)
        assert 'lock' in str(future.exception())
    assert next(mapped) == 1
    with pytest.raises(TypeError, match='lock'):
        next(mapped)
    error = result.exception()
    assert error is not None
    assert 'Traceback' in str(error.__cause__)


class Colour(enum.Enum):
    """Travels by value, comes back as itself."""

    RED = 1


class Point:
    """Likewise."""

    made = 0

    def __init__(self, x: int) -> None:
        self.x = x


def test_classes_come_back_as_themselves(executor: SlurmExecutor) -> None:
    """Instances and members are of the classes here, which an outcome never changes."""

    def make() -> tuple[Colour, Point, type[Point]]:
        Point.made += 1
        return Colour.RED, Point(3), Point

    before = dict(vars(Point))
    colour, point, kind = executor.submit(make).result()
    assert colour is Colour.RED
    assert type(point) is kind is Point
    assert point.x == 3
    assert dict(vars(Point)) == before


MAIN = """
import enum
import sys
from dataclasses import dataclass
from slurm_futures import SlurmExecutor

class Level(enum.Enum):
    HIGH = 2

class OurError(Exception):
    pass

@dataclass
class Pair:
    a: int
    b: "Pair | None" = None
    made_here = True

def change(pair):
    Pair.made_here = False
    return Pair(pair.a + 1, pair), Level.HIGH, [Pair]

def fail():
    raise OurError('ours')

def helper(n):
    return Pair(n)

def main():
    with SlurmExecutor(queue_system={'local': {}}, work_dir='work') as executor:
        nodes = executor.with_resources(partition='cpu')
        for where in (executor, nodes):
            pair, level, kinds = where.submit(change, Pair(1)).result()
            assert pair == Pair(2, Pair(1)), pair
            assert type(pair) is Pair and type(pair.b) is Pair and kinds == [Pair]
            assert level is Level.HIGH
            assert Pair.made_here
            try:
                where.submit(fail).result()
            except OurError as error:
                assert error.args == ('ours',)
            assert where.submit(lambda: helper(5)).result() == Pair(5)
    print('all as it should be')

if __name__ == '__main__':
    main()
"""


@pytest.mark.parametrize('how', ['script', 'interactive'])
def test_what_a_main_program_defines(executor: SlurmExecutor, work_dir: Path, how: str) -> None:
    """Functions and classes of __main__ work, from a script and typed in, and hold identity."""
    if how == 'script':
        (work_dir / 'program.py').write_text(MAIN)
        command, text = ['program.py'], None
    else:
        command, text = ['-i', '-q', '-c', ''], MAIN.replace('\n\n    ', '\n    ')
    done = subprocess.run(
        [sys.executable, *command],
        input=text,
        cwd=work_dir,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, 'all as it should be\n'), done.stderr


@pytest.mark.parametrize(
    ('die', 'signal_number', 'exit_code'),
    [
        (segfault, signal.SIGSEGV, None),
        (kill_myself, signal.SIGKILL, None),
        (lambda: os._exit(7), None, 7),
    ],
)
def test_death_of_a_call_is_its_own(
    executor: SlurmExecutor,
    tmp_path: Path,
    die: Callable[[], Any],
    signal_number: int | None,
    exit_code: int | None,
) -> None:
    """It alone fails, with WorkerDied; calls beside it and after it know nothing of it."""
    gate = Gate(tmp_path / 'gate')
    beside = executor.submit(gate.pass_through)
    gate.await_arrival()
    dying = executor.submit(die)
    after = [executor.submit(add, n, 1) for n in range(8)]
    with pytest.raises(WorkerDied) as died:
        dying.result()
    error = died.value
    assert (error.signal, error.exit_code) == (signal_number, exit_code)
    assert (error.job_id, error.started) == (None, True)
    assert [future.result() for future in after] == list(range(1, 9))
    assert not beside.done()
    gate.open()
    beside.result()


def test_death_of_the_whole_worker(executor: SlurmExecutor, tmp_path: Path) -> None:
    """kill -9 of the process that supervises a call ends that call alone, and the call's child."""
    gate = Gate(tmp_path / 'gate')
    record = Record(tmp_path / 'record')

    def hang() -> None:
        record.add(f'{os.getpid()} {os.getppid()}')
        gate.pass_through()

    dying = executor.submit(hang)
    gate.await_arrival()
    child, supervisor = map(int, record.lines()[0].split())
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(WorkerDied) as died:
        dying.result()
    assert died.value.signal == signal.SIGKILL
    assert has_ended(child)
    assert executor.submit(add, 1, 2).result() == 3


def test_at_most_login_workers_at_once(
    make_executor: Callable[..., SlurmExecutor], tmp_path: Path
) -> None:
    """With login_workers=2 two calls run, the others wait; they start in the order they came."""
    executor = make_executor(login_workers=2)
    gates = [Gate(tmp_path / f'gate{n}') for n in range(5)]
    record = Record(tmp_path / 'record')

    def enter(n: int) -> None:
        record.add(n)
        gates[n].pass_through()

    futures = [executor.submit(enter, n) for n in range(5)]
    gates[0].await_arrival()
    gates[1].await_arrival()
    for n in range(2, 5):
        assert len(record.lines()) == n
        assert not gates[n].has_arrived()
        gates[n - 2].open()
        futures[n - 2].result()
        gates[n].await_arrival()
    gates[3].open()
    gates[4].open()
    wait(futures)
    assert record.lines()[2:] == ['2', '3', '4']


def test_cancel_of_waiting_calls(
    make_executor: Callable[..., SlurmExecutor], tmp_path: Path
) -> None:
    """A call that waits can be cancelled and never runs; one that runs cannot."""
    executor = make_executor(login_workers=1)
    gate = Gate(tmp_path / 'gate')
    record = Record(tmp_path / 'record')
    running = executor.submit(gate.pass_through)
    # More than are sent to the agent ahead of time.
    waiting = [executor.submit(record.add, n) for n in range(10)]
    gate.await_arrival()
    assert running.running() or running.exception(timeout=0) is None
    assert not running.cancel()
    for future in waiting[:3] + waiting[5:9]:
        assert future.cancel()
        assert future.cancelled()
        assert future.cancel()
    gate.open()
    running.result()
    wait(waiting)
    assert record.lines() == ['3', '4', '9']
    with pytest.raises(CancelledError):
        waiting[0].result()


def test_kill_of_a_running_call(executor: SlurmExecutor, tmp_path: Path) -> None:
    """kill() ends a running call with JobCancelled, what it started too, and no other call."""
    gate, other = Gate(tmp_path / 'gate'), Gate(tmp_path / 'other')
    record = Record(tmp_path / 'record')

    def hang() -> None:
        sleeper = subprocess.Popen(['sleep', '600'])
        record.add(sleeper.pid)
        gate.pass_through()

    beside = executor.submit(other.pass_through)
    other.await_arrival()
    future = executor.submit(hang)
    gate.await_arrival()
    future.kill()
    future.kill()
    with pytest.raises(JobCancelled):
        future.result()
    assert has_ended(*record.lines())
    other.open()
    beside.result()
    future.kill()


def test_kill_of_a_call_that_ignores_sigterm(executor: SlurmExecutor, tmp_path: Path) -> None:
    """SIGKILL follows within seconds."""
    gate = Gate(tmp_path / 'gate')

    def stay() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gate.pass_through()

    future = executor.submit(stay)
    gate.await_arrival()
    begun = time.monotonic()
    future.kill()
    with pytest.raises(JobCancelled):
        future.result()
    assert time.monotonic() - begun < 10


def test_large_result_holds_nobody_up(executor: SlurmExecutor, tmp_path: Path) -> None:
    """While 200 MB travel, small calls go back and forth as ever."""
    size = 200_000_000

    def make() -> bytes:
        return os.urandom(1000) * (size // 1000)

    large = executor.submit(make)
    delays = []
    while not large.done():
        begun = time.monotonic()
        executor.submit(add, 1, 2).result()
        delays.append(time.monotonic() - begun)
    value = large.result()
    assert len(value) == size
    assert value[:1000] == value[-1000:]
    assert sorted(delays)[len(delays) // 2] < 0.2
    assert max(delays) < 5


def test_large_arguments(executor: SlurmExecutor) -> None:
    """Arguments of many megabytes arrive, in order with others."""
    data = os.urandom(1000) * 20_000
    future = executor.submit(lambda text: (len(text), text[:10], text[-10:]), data)
    assert future.result() == (len(data), data[:10], data[-10:])


def test_cancel_of_a_call_on_its_way(
    make_executor: Callable[..., SlurmExecutor], tmp_path: Path
) -> None:
    """A call whose large arguments are still travelling when it is cancelled never runs."""
    executor = make_executor(login_workers=1)
    record = Record(tmp_path / 'record')
    executor.submit(add, 1, 2).result()
    large = executor.submit(lambda data: record.add(len(data)), b'x' * 50_000_000)
    assert large.cancel()
    for _ in range(20):
        executor.submit(add, 1, 2).result()
    executor.submit(len, b'x' * 50_000_000).result()
    assert record.lines() == []


def test_working_folder(executor: SlurmExecutor, work_dir: Path) -> None:
    """Calls run in the executor's folder or in cwd's, wherever earlier ones have gone."""
    base = executor.run(['pwd']).stdout.strip()
    executor.submit(os.chdir, '/').result()
    assert executor.submit(os.getcwd).result() == base
    there = executor.with_options(cwd=str(work_dir))
    assert there.submit(os.getcwd).result() == str(work_dir)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        executor.with_options(cwd='/nowhere').submit(os.getcwd).result()


def test_missing_module_is_named(executor: SlurmExecutor) -> None:
    """A function that needs a module which is not there gives an ImportError that names it."""

    class Elsewhere:
        def __reduce__(self) -> Any:
            return os.getenv, ('HOME',)

    Elsewhere.__reduce__ = lambda self: (_stranger(), ())  # type: ignore[method-assign]
    with pytest.raises(RemoteImportError, match='module_that_is_only_here') as caught:
        executor.submit(len, Elsewhere()).result()  # type: ignore[call-overload]
    assert caught.value.name == 'module_that_is_only_here'


def _stranger() -> Callable[[], Any]:
    """A function of a module that only this process knows."""
    import types

    module = types.ModuleType('module_that_is_only_here')
    exec('def function(): pass', vars(module))
    sys.modules[module.__name__] = module
    function: Callable[[], Any] = module.function
    return function


def test_cloudpickle_is_not_needed_there(
    make_executor: Callable[..., SlurmExecutor], tmp_path: Path
) -> None:
    """A bare interpreter will do: the client's own cloudpickle travels."""
    venv.create(tmp_path / 'bare', symlinks=True, with_pip=False)
    python = str(tmp_path / 'bare' / 'bin' / 'python')
    bare = 'import importlib.util as i, sys; sys.exit(i.find_spec("cloudpickle") is not None)'
    subprocess.run([python, '-I', '-c', bare], check=True)
    executor = make_executor(python_cmd=python)

    def where() -> tuple[str, str]:
        import cloudpickle

        return cloudpickle.__file__, sys.executable

    for place in (executor, executor.with_resources(partition='cpu')):
        found, interpreter = place.submit(where).result()
        assert '/.slurm_futures/lib/' in found
        assert interpreter == python


def _others() -> list[str]:
    """Interpreters of other minor versions that are at hand; often there is none."""
    versions = [f'3.{minor}' for minor in range(8, 15) if minor != sys.version_info[1]]
    return [path for path in map(find_python, versions) if path]


@pytest.mark.parametrize('python', ['stub', *_others()])
def test_other_python_version(
    make_executor: Callable[..., SlurmExecutor], tmp_path: Path, python: str
) -> None:
    """PythonVersionMismatch names both before anything runs; scripts and commands still work."""
    stub = other_python(tmp_path, (3, 8, 1))
    executor = make_executor(python_cmd=stub if python == 'stub' else python)
    record = Record(tmp_path / 'record')
    ours = '.'.join(map(str, sys.version_info[:3]))
    futures = [
        executor.submit(record.add, 1),
        executor.with_resources(partition='cpu').submit(record.add, 2),
    ]
    for future in futures:
        error = future.exception()
        assert isinstance(error, PythonVersionMismatch)
        assert error.client == ours
        assert python != 'stub' or error.remote == '3.8.1'
        assert ours in str(error)
        assert error.remote in str(error)
    assert record.lines() == []
    assert executor.run('echo still').stdout == 'still\n'
    script = executor.submit('#!/bin/bash\necho here\n')
    assert str(script.result()) == 'COMPLETED'
    assert script.stdout() == 'here\n'


def test_other_python_version_by_option(executor: SlurmExecutor, tmp_path: Path) -> None:
    """with_options(python_cmd=) is checked too, and spoils nothing for others."""
    stub = other_python(tmp_path, (3, 99, 0))
    sibling = executor.with_options(python_cmd=stub)
    assert isinstance(sibling.submit(add, 1, 2).exception(), PythonVersionMismatch)
    assert sibling.run('echo still').stdout == 'still\n'
    assert executor.submit(add, 1, 2).result() == 3
    assert sibling.with_options(python_cmd=sys.executable).submit(add, 1, 2).result() == 3


def test_python_that_is_too_old(
    make_executor: Callable[..., SlurmExecutor], tmp_path: Path
) -> None:
    """Python 3.6 is told apart before the agent's source is run, with what to do."""
    executor = make_executor(python_cmd=other_python(tmp_path, (3, 6, 8)))
    with pytest.raises(ConnectionFailed, match=r'is Python 3\.6\.8; slurm_futures needs 3\.8'):
        executor.connect()


def test_python_that_is_none(
    make_executor: Callable[..., SlurmExecutor], executor: SlurmExecutor, tmp_path: Path
) -> None:
    """python_cmd that cannot be started is named in the error, with what it said."""
    broken = write_program(tmp_path / 'broken', '#!/bin/sh\necho "no license" >&2\nexit 1\n')
    with pytest.raises(ConnectionFailed, match=r'(?s)broken.* did not start .*no license'):
        make_executor(python_cmd=broken).connect()
    with pytest.raises(ConnectionFailed, match='no license'):
        executor.with_options(python_cmd=broken).submit(add, 1, 2).result()
    with pytest.raises(ConnectionFailed, match='nowhere'):
        executor.with_options(python_cmd='/nowhere/python').submit(add, 1, 2).result()
    assert executor.submit(add, 1, 2).result() == 3
