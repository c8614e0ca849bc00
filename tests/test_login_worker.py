"""The warm worker of the login node: a real process; the test is its agent."""

from __future__ import annotations

import contextlib
import operator
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from helpers import (
    PATIENCE,
    Bench,
    children,
    is_gone,
    listed,
    python_command,
    read_messages,
    wait_for,
)
from slurm_futures import payload
from slurm_futures.remote.processes import is_alive, process_identity
from slurm_futures.remote.protocol import Inbox, encode
from slurm_futures.remote.spool import Spool
from waiting import Gate, Record


@pytest.fixture(autouse=True, scope='module')
def functions_travel() -> Iterator[None]:
    """Workers cannot import this module: its functions travel by value."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Worker:
    """A worker process, and this side of its pipes."""

    def __init__(self, command: list[str], spool: Spool, cwd: Path) -> None:
        self.spool = spool
        self.cwd = cwd
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd='/', start_new_session=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._inbox = Inbox()
        self._events: list[tuple[dict[str, Any], bytes]] = []
        self.ready, _ = self.next('ready')

    def tell(self, header: dict[str, Any], body: bytes = b'') -> None:
        """Send a message."""
        self._in.write(encode(header, body))
        self._in.flush()

    def call(self, number: int, function: Callable[..., Any], *args: Any, **more: Any) -> None:
        """Send a call."""
        parts = payload.dump_function(function), payload.dump_arguments(args, {})
        header = {'do': 'call', 'call': number, 'cwd': str(self.cwd), **more}
        self.tell({**header, 'sizes': [len(part) for part in parts]}, b''.join(parts))

    def command(self, number: int, argv: str | list[str], **more: Any) -> None:
        """Send a command."""
        body = more.pop('input', None)
        header: dict[str, Any] = {'do': 'command', 'call': number, 'argv': argv}
        header.update(cwd=str(self.cwd), env={}, timeout=None, has_input=body is not None)
        self.tell({**header, **more}, body or b'')

    def next(self, event: str) -> tuple[dict[str, Any], bytes]:
        """Return the next message, which must be this event."""
        deadline = time.monotonic() + PATIENCE
        while not self._events:
            ready, _, _ = select.select([self._out], [], [], deadline - time.monotonic())
            data = os.read(self._out.fileno(), 1 << 20) if ready else b''
            if not data:
                raise EOFError(f'waited for {event!r}, the worker said nothing')
            self._events += self._inbox.feed(data)
        header, body = self._events.pop(0)
        assert header['event'] == event, header
        return header, body

    def outcome(self) -> tuple[dict[str, Any], bytes]:
        """Return the next call's outcome."""
        self.next('begun')
        return self.next('outcome')

    def value(self) -> Any:
        """Return the next call's value."""
        header, body = self.outcome()
        assert header['kind'] == 'value', header
        return payload.load_value(body)

    def leave(self) -> None:
        """Do as an agent does that ends: close the pipes."""
        self._in.close()
        self._out.close()

    def close(self) -> None:
        """End the worker."""
        self.leave()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(bench: Bench, entry: str) -> Iterator[Callable[[], Worker]]:
    """Starts workers on one spool."""
    workers: list[Worker] = []

    def start() -> Worker:
        name = f'w{len(workers) + 1}'
        command = [sys.executable, entry, 'login', bench.spool.folder, name, '[]', 'null']
        workers.append(Worker(command, bench.spool, bench.cwd))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(start: Callable[[], Worker]) -> Worker:
    """A worker that has nothing to do."""
    return start()


@pytest.fixture
def quick_worker(bench: Bench) -> Iterator[Worker]:
    """A worker that loses patience sooner."""
    program = """
from slurm_futures.remote import child, login, supervisor
child.TERM_TIMEOUT = 0.3
supervisor.KILL_PATIENCE = 1.0
login.main(sys.argv[1], 'w1', [], None)
"""
    worker = Worker(python_command(program, bench.spool.folder), bench.spool, bench.cwd)
    yield worker
    worker.close()


@pytest.fixture
def gate(bench: Bench) -> Gate:
    """Where calls wait for the test."""
    return Gate(bench.cwd / 'gate')


def pass_through(gate: Gate) -> str:
    """Called by workers: wait for the test."""
    gate.pass_through()
    return 'passed'


# ---- calls


def test_calls_one_after_another(worker: Worker) -> None:
    """A worker tells that a call has begun, and what came of it, and is ready for the next."""
    for number in range(1, 4):
        worker.call(number, operator.add, number, number)
        begun, _ = worker.next('begun')
        assert begun['call'] == number
        assert begun['pid'] == worker.process.pid == worker.ready['pid']
        header, body = worker.next('outcome')
        assert (header['call'], header['kind']) == (number, 'value')
        assert payload.load_value(body) == 2 * number


def test_printed_text_goes_to_the_logs(worker: Worker) -> None:
    """What a call prints never meets the protocol, and its place in the logs is known."""

    def shout(name: str) -> None:
        print(name)
        os.write(1, b'raw\n')
        print(f'{name}!', file=sys.stderr)

    for number, name in enumerate(('first', 'second')):
        worker.call(number, shout, name)
        begun, _ = worker.next('begun')
        header, _ = worker.next('outcome')
        for kind, text in ((0, f'{name}\nraw\n'), (1, f'{name}!\n')):
            log = Path(worker.ready['logs'][kind]).read_text()
            assert log[begun['log'][kind] : header['log_end'][kind]] == text


def test_a_call_that_dies(worker: Worker) -> None:
    """A call that ends its process fails alone; the same worker runs the next one."""
    worker.call(1, os._exit, 3)
    header, _ = worker.outcome()
    assert (header['call'], header['kind'], header['exit_code']) == (1, 'died', 3)
    worker.call(2, operator.add, 1, 1)
    assert worker.value() == 2


def test_a_call_that_is_claimed(worker: Worker, bench: Bench) -> None:
    """A call that another worker has claimed is not run: its owner is told."""
    record = Record(bench.cwd / 'record')
    bench.spool.claim('call-1', 'n1:boot:12:345')
    worker.call(1, record.add, 'ran')
    header, _ = worker.next('owned')
    assert (header['call'], header['owner']) == (1, 'n1:boot:12:345')
    worker.call(2, operator.add, 1, 1)
    assert worker.value() == 2
    assert record.lines() == []
    assert is_alive(bench.spool.owner('call-2')) is True


def test_two_workers_run_a_call_once(start: Callable[[], Worker], bench: Bench) -> None:
    """A call that is sent twice, as after a reconnect, runs once."""
    first, second = start(), start()
    first.call(1, operator.add, 1, 1)
    assert first.value() == 2
    second.call(1, operator.add, 1, 1)
    header, _ = second.next('owned')
    assert header['owner'] == process_identity(first.process.pid)


def test_large_results_go_through_files(worker: Worker, bench: Bench) -> None:
    """A large result is a message in the spool, whose name is told."""
    size = 3 << 20
    worker.call(1, bytes, size)
    worker.next('begun')
    header, _ = worker.next('delivered')
    assert header['call'] == 1
    assert listed(bench.spool, 'new') == [header['file']]
    ((message, body),) = read_messages(bench.spool)
    assert [item['call'] for item in message['items']] == [1]
    assert payload.load_value(body) == bytes(size)


def test_large_arguments_come_from_files(worker: Worker, bench: Bench) -> None:
    """Large arguments are read from a file that the agent has written, and that goes then."""
    parts = payload.dump_function(len), payload.dump_arguments((bytes(3 << 20),), {})
    path = bench.spool.write('calls', 'call-1', parts)
    header = {'do': 'call', 'call': 1, 'cwd': '/', 'sizes': [len(part) for part in parts]}
    worker.tell({**header, 'body': path})
    assert worker.value() == 3 << 20
    assert not Path(path).exists()


def test_killing_a_call(worker: Worker, gate: Gate) -> None:
    """A call under way is ended; orders for calls that are not under way do nothing."""
    worker.call(1, pass_through, gate)
    worker.next('begun')
    gate.await_arrival()
    worker.tell({'do': 'kill', 'call': 7})
    worker.tell({'do': 'kill', 'call': 1})
    header, _ = worker.next('outcome')
    assert (header['call'], header['kind']) == (1, 'killed')
    worker.tell({'do': 'kill', 'call': 1})
    worker.call(2, operator.add, 1, 1)
    assert worker.value() == 2


def test_a_kill_in_the_same_breath(worker: Worker) -> None:
    """A call and the order to end it may arrive together."""
    for number in range(0, 20, 2):
        worker.call(number, time.sleep, 60)
        worker.tell({'do': 'kill', 'call': number})
        header, _ = worker.outcome()
        assert (header['call'], header['kind']) == (number, 'killed')
        worker.call(number + 1, operator.add, 1, 1)
        assert worker.value() == 2


# ---- the agent goes away


def test_the_agent_goes_while_a_call_runs(worker: Worker, gate: Gate, bench: Bench) -> None:
    """The call is finished, its outcome goes into the spool, and the worker ends."""
    worker.call(1, pass_through, gate)
    worker.next('begun')
    gate.await_arrival()
    worker.leave()
    gate.open()
    assert worker.process.wait(PATIENCE) == 0
    ((header, body),) = read_messages(bench.spool)
    (item,) = header['items']
    assert (item['call'], item['kind']) == (1, 'value')
    assert payload.load_value(body) == 'passed'
    assert header['logs'] == worker.ready['logs']


def test_the_agent_goes_while_nothing_runs(worker: Worker, bench: Bench) -> None:
    """An idle worker ends at once and leaves nothing."""
    worker.leave()
    assert worker.process.wait(PATIENCE) == 0
    assert read_messages(bench.spool) == []


def test_a_large_result_without_an_agent(worker: Worker, gate: Gate, bench: Bench) -> None:
    """A large result too is found in the spool when its agent is gone."""

    def large(gate: Gate) -> bytes:
        gate.pass_through()
        return bytes(3 << 20)

    worker.call(1, large, gate)
    worker.next('begun')
    gate.await_arrival()
    worker.leave()
    gate.open()
    assert worker.process.wait(PATIENCE) == 0
    ((_, body),) = read_messages(bench.spool)
    assert payload.load_value(body) == bytes(3 << 20)


def test_sigterm_ends_the_worker(worker: Worker, gate: Gate) -> None:
    """An administrator's SIGTERM ends a worker and its call; SIGHUP, of a terminal, does not."""
    worker.call(1, pass_through, gate)
    worker.next('begun')
    gate.await_arrival()
    (child,) = children(worker.process.pid)
    worker.process.send_signal(signal.SIGHUP)
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(PATIENCE)
    assert wait_for(lambda: is_gone(child))


def test_a_command_whose_process_dies(worker: Worker, bench: Bench) -> None:
    """A command does not survive the process that waits for it."""
    worker.command(1, 'echo $$ >pid; sleep 61.2')
    worker.next('begun')
    path = bench.cwd / 'pid'
    pid = int(wait_for(lambda: path.exists() and path.read_text()))
    (child,) = children(worker.process.pid)
    os.kill(child, signal.SIGKILL)
    header, _ = worker.next('outcome')
    assert (header['kind'], header['signal']) == ('died', signal.SIGKILL)
    assert wait_for(lambda: is_gone(pid))


def test_commands_that_are_killed_as_they_start(worker: Worker, bench: Bench) -> None:
    """A command and the order to end it may arrive together: nothing of it is left."""
    for number in range(0, 40, 2):
        worker.command(number, ['sleep', f'{6100 + number}.{os.getpid()}'])
        worker.tell({'do': 'kill', 'call': number})
        header, _ = worker.outcome()
        assert (header['call'], header['kind']) == (number, 'killed')
        worker.command(number + 1, 'echo next')
        assert completed(worker) == (0, 'next\n', '')
    assert not [pid for pid in commands_with(f'.{os.getpid()}') if not is_gone(pid)]


def commands_with(text: str) -> list[int]:
    """Return the processes whose command lines have a sleep with this in it."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b'\0')
            if words[0] == b'sleep' and words[1].decode().endswith(text):
                found.append(int(path.parent.name))
    return found


def test_a_killed_worker_is_noticed_at_once(worker: Worker, gate: Gate) -> None:
    """The pipe of a worker that dies ends although its call, which it had started, lives on."""
    worker.call(1, pass_through, gate)
    worker.next('begun')
    gate.await_arrival()
    (child,) = children(worker.process.pid)
    worker.process.kill()
    with pytest.raises(EOFError):
        worker.next('outcome')
    assert not is_gone(child)
    gate.open()
    assert wait_for(lambda: is_gone(child))


def test_the_lease_moves(bench: Bench) -> None:
    """While a call runs, other hosts see that its owner is alive."""
    program = """
from slurm_futures.remote import login
login.LEASE_INTERVAL = 0.02
login.main(sys.argv[1], 'w1', [], None)
"""
    worker = Worker(python_command(program, bench.spool.folder), bench.spool, bench.cwd)
    gate = Gate(bench.cwd / 'gate')
    lease = Path(bench.spool.path('claims', 'call-1.lease'))
    worker.call(1, pass_through, gate)
    worker.next('begun')
    first = wait_for(lambda: lease.exists() and lease.read_text())
    wait_for(lambda: lease.read_text() != first)
    gate.open()
    worker.next('outcome')
    last = lease.read_text()
    worker.call(2, operator.add, 1, 1)
    assert worker.value() == 2
    assert lease.read_text() == last
    worker.close()


def test_who_is_alive(worker: Worker) -> None:
    """A process is known by host, boot, id and start; of other hosts nothing is known."""
    identity = process_identity(worker.process.pid)
    host, boot, pid, start = identity.split(':')
    assert is_alive(identity) is True
    assert is_alive(f'elsewhere:{boot}:{pid}:{start}') is None
    assert is_alive(f'{host}:{boot}:{pid}:{int(start) + 1}') is False
    assert is_alive(f'{host}:other-boot:{pid}:{start}') is False
    worker.close()
    assert is_alive(identity) is False


# ---- commands


def completed(worker: Worker) -> tuple[int, str, str]:
    """Return exit status and output of the next command."""
    header, body = worker.outcome()
    assert header['kind'] == 'completed', header
    size = header['sizes'][0]
    return header['returncode'], body[:size].decode(), body[size:].decode()


def test_a_list_is_never_seen_by_a_shell(worker: Worker) -> None:
    """Arguments arrive as they are."""
    words = ['$HOME', '`id`', "it's", '"', '* ?', '', 'a\nb', ';', '--']
    worker.command(1, ['printf', '<%s>', *words])
    assert completed(worker) == (0, ''.join(f'<{word}>' for word in words), '')


def test_a_string_is_a_line_for_bash(worker: Worker) -> None:
    """Text is bash's, with its exit status and both outputs; a death by signal is negative."""
    worker.command(1, 'echo $((40 + 2)) | tr 4 5; echo oh >&2; [[ a == a ]] && exit 3')
    assert completed(worker) == (3, '52\n', 'oh\n')
    worker.command(2, 'kill -9 $$')
    assert completed(worker) == (-9, '', '')


def test_surroundings_of_a_command(worker: Worker, bench: Bench) -> None:
    """A command has its folder, its environment, its input, and ordinary signals."""
    worker.command(1, 'pwd; echo "$NEW $HOME"; cat', env={'NEW': "it's"}, input=b'some\ninput')
    home = os.environ.get('HOME', '')
    assert completed(worker) == (0, f"{bench.cwd}\nit's {home}\nsome\ninput", '')
    worker.command(2, 'cat; yes | head -n 1; echo ${PIPESTATUS[0]}', input=b'')
    assert completed(worker) == (0, f'y\n{128 + signal.SIGPIPE}\n', '')
    worker.command(3, ['cat'])
    assert completed(worker) == (0, '', '')


def test_input_that_nobody_reads(worker: Worker) -> None:
    """A command may end without reading its input."""
    worker.command(1, ['true'], input=bytes(500_000))
    assert completed(worker) == (0, '', '')


def test_large_output(worker: Worker, bench: Bench) -> None:
    """Output over 1 MiB goes through a file, like any large result."""
    worker.command(1, 'head -c 3000000 /dev/zero; echo done >&2')
    worker.next('begun')
    worker.next('delivered')
    ((message, body),) = read_messages(bench.spool)
    (item,) = message['items']
    assert item['sizes'] == [3_000_000, 5]
    assert body == bytes(3_000_000) + b'done\n'


@pytest.mark.parametrize('what', ['program', 'folder', 'zero byte'])
def test_commands_that_cannot_start(worker: Worker, what: str) -> None:
    """What keeps a command from starting comes back as Python's own exception."""
    if what == 'folder':
        worker.command(1, ['true'], cwd='/no/such/folder')
    else:
        worker.command(1, ['/no/such/program'] if what == 'program' else ['true', '\0'])
    header, body = worker.outcome()
    error = payload.load_error(header, body, 'n1')
    assert type(error) is (ValueError if what == 'zero byte' else FileNotFoundError)


def test_a_time_out_ends_all_that_was_started(quick_worker: Worker, bench: Bench) -> None:
    """At its time-out a command ends with its children, also those that ignore SIGTERM.

    What it had printed is kept; the next command runs.
    """
    line = 'echo early; (trap "" TERM; echo $BASHPID >pid; sleep 60; sleep 60) & wait'
    begun = time.monotonic()
    quick_worker.command(1, line, timeout=0.3)
    header, body = quick_worker.outcome()
    assert time.monotonic() - begun < 10
    assert header['kind'] == 'timeout'
    assert body[: header['sizes'][0]] == b'early\n'
    assert wait_for(lambda: is_gone(int((bench.cwd / 'pid').read_text())))
    quick_worker.command(2, 'echo next')
    assert completed(quick_worker) == (0, 'next\n', '')


def test_a_time_out_and_a_daemon(quick_worker: Worker, bench: Bench) -> None:
    """A time-out is kept although a daemon in another session holds the output open."""
    quick_worker.command(1, 'echo early; setsid sleep 61.7 & echo $! >pid; sleep 60', timeout=0.3)
    header, body = quick_worker.outcome()
    assert header['kind'] == 'timeout'
    assert body[: header['sizes'][0]] == b'early\n'
    os.kill(int((bench.cwd / 'pid').read_text()), signal.SIGKILL)


def test_what_a_command_leaves_running(worker: Worker, bench: Bench) -> None:
    """A server that a command leaves in the background lives on, as it would with ssh.

    It survives other commands, their time-outs, and the worker.
    """
    worker.command(1, 'nohup sleep 61.3 >/dev/null 2>&1 & echo $!')
    pid = int(completed(worker)[1])
    worker.command(2, 'sleep 60', timeout=0.1)
    assert worker.outcome()[0]['kind'] == 'timeout'
    worker.leave()
    worker.process.wait(PATIENCE)
    assert not is_gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_killing_a_command(worker: Worker, bench: Bench) -> None:
    """A command that is killed ends with what it has started."""
    worker.command(1, 'sleep 61.1 & echo $! >pid; wait')
    worker.next('begun')
    path = bench.cwd / 'pid'
    pid = int(wait_for(lambda: path.exists() and path.read_text()))
    worker.tell({'do': 'kill', 'call': 1})
    header, _ = worker.next('outcome')
    assert (header['call'], header['kind']) == (1, 'killed')
    assert wait_for(lambda: is_gone(pid))
    worker.command(2, 'echo next')
    assert completed(worker) == (0, 'next\n', '')


def test_killing_a_stubborn_command(quick_worker: Worker, bench: Bench) -> None:
    """A command that ignores SIGTERM is ended by force, before its own process is."""
    quick_worker.command(1, 'trap "" TERM; echo $$ >pid; sleep 60; sleep 60')
    quick_worker.next('begun')
    path = bench.cwd / 'pid'
    pid = int(wait_for(lambda: path.exists() and path.read_text()))
    quick_worker.tell({'do': 'kill', 'call': 1})
    header, _ = quick_worker.next('outcome')
    assert (header['call'], header['kind']) == (1, 'killed')
    assert wait_for(lambda: is_gone(pid))


# ---- receipts


@pytest.mark.parametrize('confirmed', [True, False])
def test_outcomes_that_may_not_have_arrived(worker: Worker, bench: Bench, confirmed: bool) -> None:
    """An outcome that the client has not confirmed when its agent goes is put into the spool."""
    worker.call(1, operator.add, 1, 1)
    assert worker.value() == 2
    if confirmed:
        worker.tell({'do': 'got', 'call': 1})
    worker.leave()
    assert worker.process.wait(PATIENCE) == 0
    found = [payload.load_value(body) for _, body in read_messages(bench.spool)]
    assert found == ([] if confirmed else [2])


def test_outcomes_survive_sigterm(worker: Worker, bench: Bench) -> None:
    """A worker that is ended leaves what the client may not have got."""
    worker.call(1, operator.add, 1, 1)
    assert worker.value() == 2
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(PATIENCE)
    assert [payload.load_value(body) for _, body in read_messages(bench.spool)] == [2]


def test_an_agent_that_is_stuck(bench: Bench) -> None:
    """An outcome that is not confirmed for a while goes into the spool, once."""
    program = """
from slurm_futures.remote import login
login.RECEIPT_PATIENCE = 0.1
login.main(sys.argv[1], 'w1', [], None)
"""
    worker = Worker(python_command(program, bench.spool.folder), bench.spool, bench.cwd)
    worker.call(1, operator.add, 1, 1)
    assert worker.value() == 2
    wait_for(lambda: listed(bench.spool, 'new'))
    worker.call(2, operator.add, 2, 2)
    assert worker.value() == 4
    worker.tell({'do': 'got', 'call': 2})
    worker.leave()
    assert worker.process.wait(PATIENCE) == 0
    worker.close()
    found = [payload.load_value(body) for _, body in read_messages(bench.spool)]
    assert found in ([2], [2, 4])


# ---- a spool that cannot be written to


def test_a_spool_that_is_gone(bench: Bench, gate: Gate) -> None:
    """A call goes on and is reported although nothing can be written meanwhile."""
    program = """
from slurm_futures.remote import login
login.LEASE_INTERVAL = login.RECEIPT_PATIENCE = 0.02
login.main(sys.argv[1], 'w1', [], None)
"""
    worker = Worker(python_command(program, bench.spool.folder), bench.spool, bench.cwd)
    worker.call(1, pass_through, gate)
    worker.next('begun')
    gate.await_arrival()
    log = Path(worker.ready['logs'][1])
    for kind in ('claims', 'tmp', 'new'):
        shutil.rmtree(bench.spool.path(kind))
    wait_for(lambda: 'cannot move the lease' in log.read_text())
    gate.open()
    header, body = worker.next('outcome')
    assert payload.load_value(body) == 'passed'
    wait_for(lambda: 'cannot keep the outcome of call 1' in log.read_text())
    worker.call(2, operator.add, 1, 1)
    header, _ = worker.next('outcome')
    assert (header['call'], header['kind']) == (2, 'unstartable')
    assert 'cannot be claimed' in header['text']
    bench.spool.create()
    worker.leave()
    assert worker.process.wait(PATIENCE) == 0
    assert [payload.load_value(body) for _, body in read_messages(bench.spool)] == ['passed']
    worker.close()
