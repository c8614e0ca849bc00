"""The worker of a Slurm task: real processes on a real spool; only Slurm is played."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from helpers import (
    Bench,
    children,
    is_gone,
    listed,
    member,
    outcomes,
    python_command,
    read_items,
    read_messages,
    slurm_variables,
    wait_for,
)
from slurm_futures import payload
from slurm_futures.remote.spool import REVOKED, DoneList
from waiting import Gate, Record


@pytest.fixture(autouse=True, scope='module')
def functions_travel() -> Iterator[None]:
    """Workers cannot import this module: its functions travel by value."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def start(bench: Bench, entry: str) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a worker of batch 1; keywords are those of slurm_variables."""

    def start(**slurm: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, entry, 'task', bench.spool.folder, '1']
        return bench.start(command, slurm_variables(**slurm))

    return start


@pytest.fixture
def start_quick(bench: Bench) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a worker that looks about more often, and loses patience sooner."""
    program = """
from slurm_futures.remote import supervisor, task
supervisor.TERM_PATIENCE = supervisor.KILL_PATIENCE = 0.5
task.CONTROL_INTERVALS = (0.1, 0.1)
sys.exit(task.main(sys.argv[1], 1))
"""

    def start(**slurm: Any) -> subprocess.Popen[bytes]:
        return bench.start(python_command(program, bench.spool.folder), slurm_variables(**slurm))

    return start


Start = Callable[..., 'subprocess.Popen[bytes]']


@pytest.fixture
def gate(bench: Bench) -> Gate:
    """Where calls wait for the test."""
    return Gate(bench.cwd / 'gate')


@pytest.fixture
def record(bench: Bench) -> Record:
    """What calls write down."""
    return Record(bench.cwd / 'record')


# ---- what calls do


def add(a: int, b: int) -> int:
    """Return a value."""
    return a + b


def fail(error: BaseException) -> None:
    """Raise an exception."""
    raise error


def note(record: Record, line: str) -> str:
    """Leave a trace."""
    record.add(line)
    return line


def wait_at(gate: Gate, name: str = '') -> str:
    """Wait for the test."""
    gate.pass_through(name)
    return 'passed'


def fail_at(gate: Gate) -> None:
    """Raise an exception when the test says so."""
    gate.pass_through()
    raise ValueError('too late')


def read_null() -> None:
    """Make a segmentation fault."""
    ctypes.string_at(0)


def kill_self(number: int) -> None:
    """Die of a signal."""
    os.kill(os.getpid(), number)
    time.sleep(60)


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError('no text')


class UnpicklableError(Exception):
    """It cannot travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def values(bench: Bench) -> dict[int, Any]:
    """Return the values of the calls that returned one."""
    return {
        call: payload.load_value(body)
        for call, (item, body) in outcomes(bench.spool).items()
        if item['kind'] == 'value'
    }


def kinds(bench: Bench) -> dict[int, str]:
    """Return what kind of outcome each call has."""
    return {call: item['kind'] for call, (item, _) in outcomes(bench.spool).items()}


def begun(bench: Bench) -> list[int]:
    """Return the calls that are reported to have begun while they were under way."""
    return [item['call'] for item, _ in read_items(bench.spool) if item['event'] == 'begun']


def ran(bench: Bench) -> list[int]:
    """Return the calls whose outcomes say that they began."""
    return sorted(call for call, (item, _) in outcomes(bench.spool).items() if 'began' in item)


# ---- outcomes


def test_each_call_gets_its_own_outcome(bench: Bench, start: Start) -> None:
    """Whatever a call does, it alone is blamed, and the rest of its chunk runs."""
    bench.write_calls(
        (add, (1, 2)),
        (fail, (ValueError('boom'),)),
        (threading.Lock, ()),
        (sys.exit, (3,)),
        (os._exit, (4,)),
        (read_null, ()),
        (kill_self, (signal.SIGKILL,)),
        (fail, (KeyboardInterrupt(),)),
        (fail, (UnprintableError(),)),
        (UnpicklableError, ()),
        (add, (3, 4)),
    )
    assert start().wait(60) == 1
    found = {call: item for call, (item, _) in outcomes(bench.spool).items()}
    died = {
        call: (item['exit_code'], item['signal'])
        for call, item in found.items()
        if item['kind'] == 'died'
    }
    assert died == {14: (4, None), 15: (None, signal.SIGSEGV), 16: (None, signal.SIGKILL)}
    failed = {
        call: (item['stage'], item['type'])
        for call, item in found.items()
        if item['kind'] == 'error'
    }
    assert failed == {
        11: ('run', 'builtins.ValueError'),
        12: ('result', 'builtins.TypeError'),
        13: ('run', 'builtins.SystemExit'),
        17: ('run', 'builtins.KeyboardInterrupt'),
        18: ('run', f'{__name__}.UnprintableError'),
        19: ('result', 'builtins.TypeError'),
    }
    assert values(bench) == {10: 3, 20: 7}
    assert ran(bench) == list(range(10, 21))
    assert member(bench.spool, 'ended') == [{'code': 1, 'term': False, 'delivered': 11}]


def test_exceptions_come_back(bench: Bench, start: Start) -> None:
    """An exception has its type and the user's lines; one that cannot travel leaves its text."""

    def raise_unpicklable() -> None:
        raise UnpicklableError

    calls: list[Any] = [
        (fail, (ValueError('boom'),)),
        (raise_unpicklable, ()),
        (fail, (UnprintableError(),)),
    ]
    bench.write_calls(*calls)
    start().wait(60)
    found = outcomes(bench.spool)
    item, body = found[10]
    error = payload.load_error(item, body, 'n1')
    assert type(error) is ValueError
    assert error.args == ('boom',)
    text = str(error.__cause__)
    assert 'in fail\n' in text
    assert 'child.py' not in text, 'the frames of the worker say nothing to the user'
    item, body = found[11]
    assert body == b''
    assert 'UnpicklableError' in item['text']
    item, body = found[12]
    assert 'UnprintableError' in item['text']
    assert isinstance(payload.load_error(item, body, 'n1'), UnprintableError)


def test_all_is_well(bench: Bench, start: Start) -> None:
    """A task all of whose calls return ends with status 0, in few messages with all facts."""
    bench.write_calls(*[(add, (n, n)) for n in range(50)])
    process = start(job='77')
    assert process.wait(60) == 0
    assert values(bench) == {10 + n: 2 * n for n in range(50)}
    messages = read_messages(bench.spool)
    assert len(messages) < 10
    for header, _ in messages:
        facts = {
            'batch': 1,
            'task': 0,
            'job': '77',
            'restart': 0,
            'host': os.uname().nodename,
            'pid': process.pid,
            'logs': [str(bench.log('out')), str(bench.log('err'))],
            'raw_id': '77',
        }
        assert header.items() >= facts.items()
    assert [h for h, _ in messages if 'ended' in h] == [messages[-1][0]]


def test_array_tasks_run_their_own_ranges(bench: Bench, start: Start) -> None:
    """Each task of an array runs its own calls, the last one what is left."""
    bench.write_calls(*[(add, (n, 0)) for n in range(5)], chunksize=2)
    expected: dict[int, int] = {}
    for task, calls in ((1, {12: 2, 13: 3}), (2, {14: 4}), (0, {10: 0, 11: 1})):
        assert start(task=task).wait(60) == 0
        expected |= calls
        assert values(bench) == expected
    assert {(h['job'], h['task'], h['raw_id']) for h, _ in read_messages(bench.spool)} == {
        ('100', 0, '101'),
        ('100', 1, '102'),
        ('100', 2, '103'),
    }
    assert sorted(listed(bench.spool, 'claims')) == ['1.0', '1.1', '1.2']


def test_a_call_that_cannot_begin(bench: Bench, start: Start) -> None:
    """A missing folder, module or function is told apart from what the call itself raises."""

    class Absent:
        def __reduce__(self) -> Any:
            return __import__, ('no_such_module',)

    bench.write_calls((add, (Absent(), 1)), (add, (1, 1)))
    start().wait(60)
    item, _ = outcomes(bench.spool)[10]
    assert (item['kind'], item['stage'], item['module']) == ('error', 'load', 'no_such_module')
    assert values(bench) == {11: 2}


def test_a_missing_folder(bench: Bench, start: Start) -> None:
    """A working folder that is gone is the trouble of the calls that need it."""
    bench.write_calls((add, (1, 1)), cwd=str(bench.folder / 'nowhere'))
    start().wait(60)
    item, _ = outcomes(bench.spool)[10]
    assert (item['stage'], item['type']) == ('load', 'builtins.FileNotFoundError')


def test_each_call_starts_where_it_should(bench: Bench, start: Start) -> None:
    """A call that goes elsewhere does not take the next one along."""
    bench.write_calls((os.chdir, ('/',)), (os.getcwd, ()))
    start().wait(60)
    assert values(bench)[11] == str(bench.cwd)


def test_calls_see_a_fresh_interpreter(bench: Bench, start: Start) -> None:
    """Calls have ordinary signal handlers, nothing on stdin, and no descriptor but their own."""

    def look() -> dict[str, Any]:
        handlers = {
            number: signal.getsignal(number)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
        }
        return {
            'handlers': [getattr(handler, '__name__', handler) for handler in handlers.values()],
            'mask': signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            'stdin': sys.stdin.read(),
            'pipes': sum(path.is_fifo() for path in Path('/proc/self/fd').iterdir()),
            'main': sys.modules['__main__'].__dict__.get('__file__'),
        }

    bench.write_calls((look, ()))
    start().wait(60)
    defaults = [signal.SIG_DFL, 'default_int_handler', signal.SIG_DFL, signal.SIG_DFL]
    assert values(bench)[10] == {
        'handlers': defaults,
        'mask': set(),
        'stdin': '',
        'pipes': 2,
        'main': None,
    }


# ---- what calls print


def test_printed_text_disturbs_nothing(bench: Bench, start: Start) -> None:
    """Text goes to the logs, wherever it comes from, and each call's part of them is known."""

    def print_much(name: str) -> None:
        print(f'{name} prints')
        os.write(1, f'{name} writes\n'.encode())
        subprocess.run(['echo', f'{name} echoes'], check=True)
        print(f'{name} complains', file=sys.stderr)
        sys.stdout.write('x' * 100_000)

    bench.write_calls((print_much, ('first',)), (add, (1, 1)), (print_much, ('second',)))
    assert start().wait(60) == 0
    starts = {call: item['log'] for call, (item, _) in outcomes(bench.spool).items()}
    ends = {call: item['log_end'] for call, (item, _) in outcomes(bench.spool).items()}
    text = bench.log('out').read_text()
    for call, name in ((10, 'first'), (12, 'second')):
        own = text[starts[call][0] : ends[call][0]]
        assert own.replace('x', '') == f'{name} prints\n{name} writes\n{name} echoes\n'
        assert own.count('x') == 100_000
        errors = bench.log('err').read_text()[starts[call][1] : ends[call][1]]
        assert errors == f'{name} complains\n'
    assert starts[11] == ends[11] == ends[10]
    assert ends[12] == [len(text), bench.log('err').stat().st_size]


def test_calls_that_close_their_streams(bench: Bench, start: Start) -> None:
    """A call may close or replace its standard streams, and still return a value."""

    def close_stdout() -> str:
        os.close(1)
        return 'closed'

    def replace_stderr() -> str:
        sys.stderr = None
        sys.stdout = None
        return 'replaced'

    bench.write_calls((replace_stderr, ()), (close_stdout, ()), (add, (1, 1)))
    assert start().wait(60) == 0
    assert values(bench) == {10: 'replaced', 11: 'closed', 12: 2}


def test_a_call_that_closes_everything(bench: Bench, start: Start, gate: Gate) -> None:
    """A call that closes all descriptors, as daemons do, fails alone; nobody spins meanwhile."""

    def close_all(gate: Gate) -> None:
        os.closerange(3, 1000)
        gate.pass_through()

    def cpu_seconds(pid: int) -> float:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')

    bench.write_calls((close_all, (gate,)), (add, (1, 1)))
    process = start()
    gate.await_arrival()
    before = cpu_seconds(process.pid)
    time.sleep(0.5)  # a busy loop would show in this time
    assert cpu_seconds(process.pid) - before < 0.2
    gate.open()
    assert process.wait(60) == 1
    assert kinds(bench) == {10: 'died', 11: 'value'}


def test_a_long_call_is_reported_as_it_runs(bench: Bench, start: Start, gate: Gate) -> None:
    """A call that takes long is known to have begun, when, and where its text starts."""
    bench.write_calls((print, ('first',)), (wait_at, (gate,)))
    before = time.time()
    process = start()
    gate.await_arrival()
    wait_for(lambda: begun(bench))
    ((item, _),) = (pair for pair in read_items(bench.spool) if pair[0]['event'] == 'begun')
    assert item['call'] == 11
    assert before < item['at'] < time.time()
    assert item['log'] == [len('first\n'), 0]
    gate.open()
    assert process.wait(60) == 0
    assert begun(bench) == [11]


# ---- large results


def test_large_results_go_through_files(bench: Bench, start: Start) -> None:
    """A result over 1 MiB is a message of its own, and does not hold up small ones."""
    size = 3 * 1024 * 1024
    bench.write_calls((add, (1, 1)), (bytes, (size,)), (add, (2, 2)))
    assert start().wait(60) == 0
    assert values(bench) == {10: 2, 11: bytes(size), 12: 4}
    (large,) = (header for header, body in read_messages(bench.spool) if len(body) > size)
    assert [item['call'] for item in large['items']] == [11]
    assert member(bench.spool, 'ended')[0]['delivered'] == 3
    assert ran(bench) == [10, 11, 12]


def test_many_middling_results(bench: Bench, start: Start) -> None:
    """Outcomes that together are large go in several messages."""
    size = 600_000
    bench.write_calls(*[(bytes, (size,)) for _ in range(6)])
    assert start().wait(60) == 0
    assert values(bench) == {10 + n: bytes(size) for n in range(6)}
    assert max(len(body) for _, body in read_messages(bench.spool)) < 3 * size


def test_a_result_that_cannot_be_written(bench: Bench, start: Start) -> None:
    """A large result that finds no room on the disk is that call's error, and says so."""

    def limit(size: int) -> bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        return bytes(size)

    bench.write_calls((limit, (2 << 20,)))
    assert start().wait(60) == 1
    item, body = outcomes(bench.spool)[10]
    assert item['stage'] == 'result'
    assert isinstance(payload.load_error(item, body, 'n1'), OSError)


# ---- SIGTERM and other signals


def stop_at(gate: Gate, process: subprocess.Popen[bytes], bench: Bench) -> None:
    """Send the worker alone SIGTERM while a call is at the gate; wait until it says so."""
    gate.await_arrival()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: member(bench.spool, 'stopping'))


def test_a_value_counts_after_sigterm(bench: Bench, start: Start, gate: Gate) -> None:
    """SIGTERM is reported at once; the call under way may finish, and no other begins."""
    bench.write_calls((wait_at, (gate,)), (add, (1, 1)))
    process = start()
    stop_at(gate, process, bench)
    assert begun(bench) == [10]
    assert process.poll() is None
    gate.open()
    assert process.wait(60) == 1
    assert values(bench) == {10: 'passed'}
    assert kinds(bench) == {10: 'value'}
    assert member(bench.spool, 'ended') == [{'code': 1, 'term': True, 'delivered': 1}]


def test_an_exception_does_not_count_after_sigterm(bench: Bench, start: Start, gate: Gate) -> None:
    """An exception after SIGTERM may come from it: Slurm knows better what happened."""
    bench.write_calls((fail_at, (gate,)), (add, (1, 1)))
    process = start()
    stop_at(gate, process, bench)
    gate.open()
    assert process.wait(60) == 1
    assert kinds(bench) == {}
    assert member(bench.spool, 'ended') == [{'code': 1, 'term': True, 'delivered': 0}]


@pytest.mark.parametrize('first', ['call', 'worker'])
def test_sigterm_to_all_processes(bench: Bench, start: Start, gate: Gate, first: str) -> None:
    """A call that dies of Slurm's SIGTERM has no outcome, whichever process gets it first."""
    bench.write_calls((add, (1, 1)), (wait_at, (gate,)), (add, (2, 2)))
    process = start()
    gate.await_arrival()
    (child,) = children(process.pid)
    pids = [child, process.pid] if first == 'call' else [process.pid, child]
    os.kill(pids[0], signal.SIGTERM)
    wait_for(lambda: first == 'worker' or is_gone(child))
    os.kill(pids[1], signal.SIGTERM)
    assert process.wait(60) == 1
    assert kinds(bench) == {10: 'value'}
    assert member(bench.spool, 'ended') == [{'code': 1, 'term': True, 'delivered': 1}]


def test_a_call_that_raises_on_sigterm(bench: Bench, start: Start, record: Record) -> None:
    """An exception that SIGTERM makes a call raise does not count, though it come first."""

    def handle(record: Record) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
        record.add('ready')
        try:
            time.sleep(60)
        finally:
            record.add('ended')

    bench.write_calls((handle, (record,)))
    process = start()
    wait_for(record.lines)
    os.kill(children(process.pid)[0], signal.SIGTERM)
    wait_for(lambda: record.lines() == ['ready', 'ended'])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert kinds(bench) == {}


def test_a_call_that_terminates_itself(bench: Bench, start_quick: Start) -> None:
    """A call that dies of SIGTERM while its job does not get one is blamed, after a while."""
    bench.write_calls((kill_self, (signal.SIGTERM,)), (add, (1, 1)))
    assert start_quick().wait(60) == 1
    item, _ = outcomes(bench.spool)[10]
    assert (item['kind'], item['signal']) == ('died', signal.SIGTERM)
    assert values(bench) == {11: 2}


@pytest.mark.parametrize('name', ['SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGINT'])
def test_signals_are_passed_on(bench: Bench, start: Start, record: Record, name: str) -> None:
    """A signal that Slurm sends to the batch step alone reaches the call."""

    def listen(record: Record, name: str) -> str:
        got: list[int] = []
        signal.signal(getattr(signal, name), lambda number, _: got.append(number))
        record.add('ready')
        while not got:
            signal.pause()
        return signal.Signals(got[0]).name

    bench.write_calls((listen, (record, name)))
    process = start()
    wait_for(record.lines)
    process.send_signal(getattr(signal, name))
    # pause() might miss one that comes just before it.
    while process.poll() is None and not values(bench):
        time.sleep(0.05)
        process.send_signal(getattr(signal, name))
    assert process.wait(60) == 0
    assert values(bench) == {10: name}


# ---- cancel and kill


def test_cancelled_calls_are_left_out(bench: Bench, start_quick: Start, gate: Gate) -> None:
    """Calls that are cancelled before the task starts, or while another runs, never begin."""
    calls: list[Any] = [(wait_at, (gate,)), (add, (1, 1)), (add, (2, 2)), (add, (3, 3))]
    bench.write_calls(*calls)
    bench.order('cancel', 11)
    process = start_quick()
    gate.await_arrival()
    bench.order('cancel', 13)
    time.sleep(0.3)  # the worker looks at the file every 0.1 s
    gate.open()
    assert process.wait(60) == 0
    assert kinds(bench) == {10: 'value', 11: 'cancelled', 12: 'value', 13: 'cancelled'}
    assert ran(bench) == [10, 12]


def test_kill_ends_one_call(bench: Bench, start_quick: Start, gate: Gate) -> None:
    """A call that is killed ends, with what it started; the next one runs."""

    def start_and_wait(gate: Gate) -> None:
        subprocess.Popen(['sleep', '61.5'])
        gate.pass_through()

    bench.write_calls((start_and_wait, (gate,)), (add, (1, 1)))
    process = start_quick()
    gate.await_arrival()
    (child,) = children(process.pid)
    (grandchild,) = children(child)
    bench.order('kill', 10)
    assert process.wait(60) == 1
    item, _ = outcomes(bench.spool)[10]
    assert (item['kind'], item['signal']) == ('killed', signal.SIGTERM)
    assert values(bench) == {11: 2}
    assert wait_for(lambda: is_gone(grandchild))


def test_kill_by_force(bench: Bench, start_quick: Start, gate: Gate) -> None:
    """A call that ignores SIGTERM is ended all the same."""

    def ignore(gate: Gate) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gate.pass_through()

    bench.write_calls((ignore, (gate,)), (add, (1, 1)))
    process = start_quick()
    gate.await_arrival()
    bench.order('kill', 10)
    assert process.wait(60) == 1
    item, _ = outcomes(bench.spool)[10]
    assert (item['kind'], item['signal']) == ('killed', signal.SIGKILL)
    assert values(bench) == {11: 2}


def test_kill_harms_no_other_call(bench: Bench, start_quick: Start, record: Record) -> None:
    """A call that finishes in spite of being killed has its value, and the next one is safe."""

    def finish(record: Record) -> int:
        got: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
        record.add('ready')
        while not got:
            time.sleep(0.01)
        return os.getpid()

    bench.write_calls((finish, (record,)), (os.getpid, ()))
    process = start_quick()
    wait_for(record.lines)
    bench.order('kill', 10)
    assert process.wait(60) == 0
    assert kinds(bench) == {10: 'value', 11: 'value'}
    assert values(bench)[10] != values(bench)[11]


def test_an_exception_from_a_kill(bench: Bench, start_quick: Start, record: Record) -> None:
    """A call that raises when it is killed was killed: that is what its future is to say."""

    def handle(record: Record) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        record.add('ready')
        time.sleep(60)

    bench.write_calls((handle, (record,)), (add, (1, 1)))
    process = start_quick()
    wait_for(record.lines)
    bench.order('kill', 10)
    assert process.wait(60) == 1
    assert kinds(bench) == {10: 'killed', 11: 'value'}


def test_a_missing_cancel_file(bench: Bench, start: Start) -> None:
    """Trouble with the cancel file does not end the calls."""
    bench.write_calls((add, (1, 1)))
    Path(bench.spool.path('calls', '1.cancel')).unlink()
    assert start().wait(60) == 0
    assert values(bench) == {10: 2}


# ---- restarts and claims


def test_a_restart_runs_what_is_left(
    bench: Bench, start: Start, gate: Gate, record: Record
) -> None:
    """A task that Slurm starts again, after its node died, runs the calls without outcome."""
    bench.write_calls((note, (record, 'first')), (wait_at, (gate, '2')), (note, (record, 'third')))
    process = start()
    gate.await_arrival('2')
    wait_for(lambda: 10 in outcomes(bench.spool))
    (child,) = children(process.pid)
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.wait()
    gate.open()
    assert start(restart=1).wait(60) == 0
    assert values(bench) == {10: 'first', 11: 'passed', 12: 'third'}
    assert record.lines() == ['first', 'third']
    assert ran(bench) == [10, 11, 12]
    assert member(bench.spool, 'ended') == [{'code': 0, 'term': False, 'delivered': 2}]
    assert {header['restart'] for header, _ in read_messages(bench.spool)} == {0, 1}


def test_a_restart_when_all_is_done(bench: Bench, start: Start, record: Record) -> None:
    """A task that is started again after its last outcome runs nothing.

    Though the client has taken the outcomes away.
    """
    bench.write_calls((note, (record, 'once')))
    assert start().wait(60) == 0
    for name in listed(bench.spool, 'new'):
        Path(bench.spool.path('new', name)).unlink()
    assert start(restart=1).wait(60) == 0
    assert record.lines() == ['once']
    assert outcomes(bench.spool) == {}
    assert member(bench.spool, 'ended') == [{'code': 0, 'term': False, 'delivered': 0}]


def test_an_older_copy_stops(bench: Bench, start_quick: Start, gate: Gate, record: Record) -> None:
    """A task's copy on a lost node starts no call once it has seen that there is a newer one."""
    bench.write_calls((wait_at, (gate,)), (note, (record, 'second')))
    process = start_quick()
    gate.await_arrival()
    assert DoneList(bench.spool, '1.0').resume(1) == set()
    time.sleep(0.3)  # it looks every 0.1 s
    gate.open()
    assert process.wait(60) == 0
    assert kinds(bench) == {10: 'value'}
    assert record.lines() == []


@pytest.mark.parametrize('owner', ['job:99', REVOKED])
def test_a_task_that_is_taken(bench: Bench, start: Start, record: Record, owner: str) -> None:
    """A task that another job has claimed, or the client revoked, does not run.

    In the first case it names the owner; in the second it just ends.
    """
    bench.write_calls((note, (record, 'ran')))
    bench.spool.claim('1.0', owner)
    assert start().wait(60) == 0
    assert record.lines() == []
    messages = [header for header, _ in read_messages(bench.spool)]
    assert [h.get('superseded') for h in messages] == ([] if owner == REVOKED else ['job:99'])


def test_a_claim_of_ones_own(bench: Bench, start: Start) -> None:
    """A claim that already has this job's name, as after a lost answer of NFS, is won."""
    bench.write_calls((add, (1, 1)))
    bench.spool.claim('1.0', 'job:100')
    assert start().wait(60) == 0
    assert values(bench) == {10: 2}


def test_another_python(bench: Bench, start: Start, record: Record) -> None:
    """Calls from another minor version of Python are not unpickled: the worker names its own."""
    bench.write_calls((note, (record, 'ran')), python=[sys.version_info[0], 99])
    assert start().wait(60) == 1
    assert record.lines() == []
    (failed,) = member(bench.spool, 'failed')
    version = '.'.join(map(str, sys.version_info[:3]))
    assert failed == {'what': 'version', 'python': version, 'executable': sys.executable}


def test_the_clients_module_folders(bench: Bench, start: Start) -> None:
    """The client's own module folders come last on the path, where workers can use them."""
    folder = bench.folder / 'modules'
    folder.mkdir()
    (folder / 'only_there.py').write_text('answer = 42\n')
    (folder / 'json.py').write_text('raise ImportError("the wrong one")\n')

    def look() -> int:
        import json

        import only_there  # type: ignore[import-not-found]

        return int(json.dumps(only_there.answer))

    bench.write_calls((look, ()), sys_path=[str(folder)])
    assert start().wait(60) == 0
    assert values(bench) == {10: 42}


def test_shipped_modules_come_first(bench: Bench, start: Start) -> None:
    """What was shipped hides what this interpreter, or the client's folders, have of that name."""
    shipped, shared = bench.folder / 'shipped', bench.folder / 'shared'
    files = {'only_there.py': 1, 'cloudpickle_proto.py': 2, 'wave.py': 3}
    for folder in (shipped, shared):
        folder.mkdir()
        for name, number in files.items():
            (folder / name).write_text(f'answer = {folder.name!r}, {number}\n')
    (shared / 'fallback.py').write_text('answer = "found"\n')

    def look() -> list[Any]:
        import importlib

        names = ['only_there', 'cloudpickle_proto', 'wave', 'fallback']
        return [importlib.import_module(name).answer for name in names]

    bench.write_calls((look, ()), modules=str(shipped), sys_path=[str(shared)])
    assert start().wait(60) == 0
    expected = [*(('shipped', number) for number in files.values()), 'found']
    assert values(bench) == {10: expected}


def test_shipped_modules_with_names_of_the_standard_library(bench: Bench, start: Start) -> None:
    """They do not get into the worker's own way: calls run, errors come back with their text."""
    shipped = bench.folder / 'shipped'
    shipped.mkdir()
    worn = {'subprocess', 'traceback', 'linecache', 'token', 'dis', 'queue', 'typing', 'platform'}
    for name in (worn | {'logging', 'string', 'tokenize'}) - set(sys.builtin_module_names):
        (shipped / f'{name}.py').write_text('raise SystemExit("the wrong one")\n')
    (shipped / 'colorsys.py').write_text('answer = 42\n')

    class Own:
        """Makes it necessary to pickle by value both ways."""

    def look() -> tuple[int, type]:
        import colorsys

        answer: int = colorsys.answer  # type: ignore[attr-defined]
        return answer, Own

    def fail() -> float:
        return 1 / 0

    bench.write_calls((look, ()), (fail, ()), modules=str(shipped))
    assert start().wait(60) == 1
    (_, value), (item, error) = (outcomes(bench.spool)[call] for call in (10, 11))
    assert payload.load_value(value) == (42, Own)
    assert 'in fail' in item['text']
    assert isinstance(payload.load_value(error), ZeroDivisionError)


def test_shipped_modules_that_are_gone(bench: Bench, start: Start) -> None:
    """Calls that do without them run; others say what they miss, on which interpreter."""

    def look() -> None:
        import nobody_has_this  # type: ignore[import-not-found]  # noqa: F401

    bench.write_calls((add, (1, 1)), (look, ()), modules=str(bench.folder / 'gone'))
    assert start().wait(60) == 1
    found = outcomes(bench.spool)
    assert payload.load_value(found[10][1]) == 2
    error = payload.load_error(*found[11], 'n1')
    assert type(error) is ModuleNotFoundError
    assert error.name == 'nobody_has_this'
    assert str(error.__cause__).startswith(f'on n1 by {sys.executable}\n')


def test_a_spool_that_is_gone(bench: Bench, start: Start, gate: Gate) -> None:
    """A worker that cannot write outcomes fails, and its call does not live on unseen."""
    bench.write_calls((wait_at, (gate,)))
    process = start()
    gate.await_arrival()
    (child,) = children(process.pid)
    wait_for(lambda: begun(bench))
    shutil.rmtree(bench.spool.path('new'))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert is_gone(child)
    assert 'FileNotFoundError' in bench.log('err').read_text()
