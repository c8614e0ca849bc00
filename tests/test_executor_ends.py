"""How executors end: with a block, with the interpreter, by Ctrl-C, detached, forked, killed."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import Process, eventually
from outside import Outside, quick_queue
from programs import Program, offspring
from slurm_futures import ConnectionFailed, ExecutorBroken, JobFuture, SlurmExecutor
from stubs import Stub
from waiting import Gate, Record

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures('cancel_jobs')

Listing = Callable[[], list[str]]
Emptiness = Callable[[], bool]

QUICKLY_S = 5.0
"""Seconds within which an interrupted program has to be gone."""


@pytest.fixture
def gate(work_dir: Path) -> Iterator[Gate]:
    """The programs' door, open at the latest when the test ends."""
    gate = Gate(work_dir / 'gate')
    yield gate
    gate.open()


@pytest.fixture
def record(work_dir: Path) -> Record:
    """What the programs' calls have recorded."""
    return Record(work_dir / 'record')


@pytest.fixture
def run(queue_system: str, work_dir: Path, gate: Gate) -> Iterator[Callable[..., Program]]:
    """Starts client programs, and ends them."""
    programs = []

    def start(text: str, **options: Any) -> Program:
        queue = quick_queue(queue_system)
        programs.append(Program(work_dir, queue, text, **options))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


@pytest.fixture
def make(queue_system: str, work_dir: Path) -> Iterator[Callable[..., SlurmExecutor]]:
    """Makes executors in this process, and sees that their threads end."""
    cores = []

    def make(**settings: Any) -> SlurmExecutor:
        queue = quick_queue(queue_system)
        settings = {'work_dir': str(work_dir), 'grace_period': 1, **settings}
        executor = SlurmExecutor(**({'queue_system': queue} | settings))
        cores.append(executor._core)
        return executor

    yield make
    gc.collect()  # an exception that a test has caught may refer to an executor
    for core in cores:
        core.abort()
        core._thread.join(30)
        assert not core._thread.is_alive()


def pass_gate(gate: Gate, record: Record, name: str) -> str:
    """Wait at the gate, record the name and return it."""
    gate.pass_through(name)
    record.add(name)
    return name


@pytest.fixture
def jobs(outside: Outside, work_dir: Path) -> Listing:
    """Tells which jobs have not ended: id and state."""
    return lambda: outside.live(work_dir)


@pytest.fixture
def no_jobs(jobs: Listing) -> Emptiness:
    """Tells whether the queue runs empty within seconds: a cancelled job takes a while to end."""
    return lambda: eventually(lambda: not jobs(), 20)


def gone(*processes: Process) -> bool:
    """Whether these processes end within seconds."""
    return eventually(lambda: not any(process.alive() for process in processes), 20)


def runs(work_dir: Path) -> list[Path]:
    """The folders of runs in a work folder."""
    return list((work_dir / '.slurm_futures' / 'runs').glob('*'))


def open_files() -> int:
    """How many descriptors this process has open."""
    return len(list(Path('/proc/self/fd').iterdir()))


# ---- the interpreter's exit

WORK = """\
executor = make(login_workers=1)
nodes = executor.with_resources(time='5')
calls = [
    executor.submit(pass_gate, 'login'),
    executor.submit(pass_gate, 'behind'),
    *(nodes.submit(pass_gate, name) for name in ('job', 'other')),
]
pending = executor.with_resources(extra={'hold': True}).submit(pass_gate, 'never')
gate.await_arrival('login', 'job', 'other')
while not pending.job_id:
    time.sleep(0.01)
"""

AT_EXIT = """\
def watch():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    say('main has ended')
threading.Thread(target=watch).start()
"""


@pytest.mark.parametrize(
    ('last', 'status'), [('', 0), ('sys.exit(3)', 3), ('raise ValueError("of main")', 1)]
)
def test_exit_waits_for_pending_work(
    run: Callable[..., Program], gate: Gate, last: str, status: int
) -> None:
    """However the main program ends, the interpreter stays until all futures are done."""
    callbacks = """\
pending.cancel()
for call in calls:
    call.add_done_callback(lambda future: say('done', future.result()))
"""
    program = run(WORK + callbacks + AT_EXIT + last)
    assert program.line() == 'main has ended'
    assert program.running
    gate.open()
    assert program.end() == status
    names = ['behind', 'job', 'login', 'other']
    assert sorted(program.lines()) == [f'done {name}' for name in names]
    assert ('ValueError: of main' in program.stderr()) == (status == 1)


def test_agent_killed_while_the_interpreter_waits(
    run: Callable[..., Program], gate: Gate, record: Record
) -> None:
    """A leaving interpreter, which starts no thread any more, connects to a new agent."""
    program = run(WORK + 'pending.cancel()\n' + AT_EXIT)
    assert program.line() == 'main has ended'
    program.agent().kill()
    gate.await_arrival('behind')  # under the new one
    gate.open()
    assert program.end() == 0
    assert sorted(record.lines()) == ['behind', 'job', 'login', 'other']


def test_exit_right_after_the_last_call(run: Callable[..., Program], record: Record) -> None:
    """A call submitted by the last statement is neither lost nor reported as broken."""
    program = run('make().with_resources(time="5").submit(record.add, 1)')
    assert program.end() == 0
    assert record.lines() == ['1']
    assert program.stderr() == ''


def test_submit_after_the_interpreter_began_to_leave(
    run: Callable[..., Program], record: Record
) -> None:
    """A thread that outlives the main one may submit while anything is pending, not later."""
    text = """\
def late():
    threading.main_thread().join()
    say(executor.submit(pow, 2, 5).result())
    executor._core._thread.join()
    try:
        executor.submit(pow, 2, 5)
    except RuntimeError as error:
        say(error)
executor = make()
call = executor.submit(pass_gate, 'call')
gate.await_arrival('call')
threading.Thread(target=late).start()
"""
    program = run(text)
    assert program.line() == '32'
    Gate(record_path(record, 'gate')).open()
    assert program.line() == 'cannot schedule new futures after shutdown'
    assert program.end() == 0


def record_path(record: Record, name: str) -> Path:
    """A file beside the record."""
    return Path(record._path).with_name(name)


# ---- Ctrl-C


def test_ctrl_c_at_exit_cancels(
    run: Callable[..., Program],
    record: Record,
    gate: Gate,
    no_jobs: Emptiness,
    jobs: Listing,
) -> None:
    """Ctrl-C while the interpreter waits: jobs are cancelled, calls killed, it leaves in 5 s."""
    program = run(WORK + AT_EXIT)
    assert program.line() == 'main has ended'
    helpers = program.helpers()
    assert len(jobs()) == 3
    program.interrupt()
    program.end(QUICKLY_S)
    assert no_jobs()
    assert gone(*helpers)
    gate.open()
    assert record.lines() == []


BLOCK = """\
with make(login_workers=1) as executor:
    nodes = executor.with_resources(time='5')
    calls = [executor.submit(pass_gate, name) for name in ('login', 'behind')]
    calls += [nodes.submit(pass_gate, name) for name in ('job', 'other')]
    pending = executor.with_resources(extra={{'hold': True}}).submit(pass_gate, 'never')
    gate.await_arrival('login', 'job', 'other')
    {inside}
"""


@pytest.mark.parametrize('where', ['inside', 'at its end'])
def test_ctrl_c_in_a_block_cancels(
    run: Callable[..., Program],
    record: Record,
    gate: Gate,
    work_dir: Path,
    where: str,
    no_jobs: Emptiness,
) -> None:
    """Ctrl-C in a with-block, or while its end waits, cancels all of it and goes on up."""
    inside = 'say("ready"); time.sleep(60)' if where == 'inside' else 'say("ready")'
    program = run(BLOCK.format(inside=inside))
    assert program.line() == 'ready'
    helpers = program.helpers()
    program.interrupt()
    assert program.end(QUICKLY_S) == -signal.SIGINT
    assert 'KeyboardInterrupt' in program.stderr()
    assert no_jobs()
    assert gone(*helpers)
    gate.open()
    assert record.lines() == []
    assert runs(work_dir) == []


def test_program_may_go_on_after_ctrl_c(run: Callable[..., Program], no_jobs: Emptiness) -> None:
    """Ctrl-C that is caught outside the block: every future of the block ends within seconds."""
    text = """\
try:
{block}
except KeyboardInterrupt:
    wait(calls + [pending])
    say([call.cancelled() or type(call.exception()).__name__ for call in calls + [pending]])
"""
    block = BLOCK.format(inside='say("ready"); time.sleep(60)')
    program = run(text.format(block='\n'.join('    ' + line for line in block.splitlines())))
    assert program.line() == 'ready'
    program.interrupt()
    ended = program.line()
    assert program.end(QUICKLY_S) == 0
    assert ended.count('True') + ended.count('JobCancelled') == 5
    assert ended.startswith("['JobCancelled', True, ")
    assert no_jobs()


def test_ctrl_c_in_a_sibling_s_block(
    make: Callable[..., SlurmExecutor], gate: Gate, record: Record, jobs: Listing
) -> None:
    """Ctrl-C in the block of a sibling cancels what belongs to it, and nothing of its parent's."""
    executor = make()
    login = executor.submit(pass_gate, gate, record, 'login')
    other = executor.with_resources(time='5').submit(pass_gate, gate, record, 'other')
    calls = []

    def interrupted() -> None:
        with executor.with_resources(time='5') as nodes:
            held = nodes.with_resources(extra={'hold': True})
            calls.append(nodes.submit(pass_gate, gate, record, 'job'))
            calls.append(held.submit(pass_gate, gate, record, 'never'))
            gate.await_arrival('login', 'other', 'job')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert wait(calls, 10).not_done == set()
    assert eventually(lambda: len(jobs()) == 1, 20)
    gate.open()
    assert [login.result(), other.result()] == ['login', 'other']
    assert executor.with_resources(time='5').submit(pow, 2, 5).result() == 32
    assert sorted(record.lines()) == ['login', 'other']


def test_ctrl_c_before_slurm_has_answered(
    run: Callable[..., Program], work_dir: Path, no_jobs: Emptiness, cluster: Control
) -> None:
    """A job that sbatch is only just submitting is cancelled all the same, however slow it is."""
    at_sbatch = Gate(work_dir / 'sbatch-gate')
    stub = Stub(work_dir, 'sbatch', f'{at_sbatch.shell}; exec "$real" "$@"')
    text = """\
with make(slurm={'sbatch_bin': sys.argv[1] + '/sbatch'}) as executor:
    call = executor.with_resources(extra={'hold': True}).submit(pass_gate, 'job')
    Gate(folder + '/sbatch-gate').await_arrival()
    say('ready')
    time.sleep(60)
"""
    program = run(text)
    assert program.line() == 'ready'
    helpers = program.helpers()  # the agent, and sbatch
    program.interrupt()
    assert program.end(QUICKLY_S) == -signal.SIGINT
    at_sbatch.open()
    assert gone(*helpers)
    assert len(stub.calls) == 1
    assert no_jobs()


def test_ctrl_c_while_connecting(
    run: Callable[..., Program], work_dir: Path, jobs: Listing
) -> None:
    """Ctrl-C does not wait for a login node that takes its time; no agent is left behind."""
    starting = Gate(work_dir / 'starting')
    text = f"""\
with make(setup={starting.shell!r}) as executor:
    call = executor.submit(pow, 2, 5)
    job = executor.with_resources(time='5').submit(pow, 2, 5)
    Gate(folder + '/starting').await_arrival()
    say('ready')
    time.sleep(60)
"""
    program = run(text)
    assert program.line() == 'ready'
    helpers = program.helpers()
    program.interrupt()
    assert program.end(QUICKLY_S) == -signal.SIGINT
    starting.open()
    assert gone(*helpers)
    assert jobs() == []


def test_ctrl_c_while_slurm_is_deaf(
    run: Callable[..., Program], faults: Control, no_jobs: Emptiness
) -> None:
    """Ctrl-C does not wait for a controller that is out of order; the agent sees to the jobs."""
    text = """\
with make() as executor:
    call = executor.with_resources(time='5').submit(pass_gate, 'job')
    gate.await_arrival('job')
    say('ready')
    time.sleep(60)
"""
    program = run(text)
    assert program.line() == 'ready'
    faults.signal('slurmctld', signal.SIGSTOP)
    program.interrupt()
    assert program.end(QUICKLY_S + 1) == -signal.SIGINT
    faults.signal('slurmctld', signal.SIGCONT)
    assert no_jobs()


def test_ctrl_c_during_run(run: Callable[..., Program], gate: Gate) -> None:
    """Ctrl-C in run() ends the command on the login node."""
    program = run(
        f"""\
executor = make()
threading.Thread(target=lambda: (gate.await_arrival(), say('ready')), daemon=True).start()
executor.run({gate.shell!r})
"""
    )
    assert program.line() == 'ready'
    helpers = program.helpers()
    program.interrupt()
    assert program.end(QUICKLY_S + 3) == -signal.SIGINT
    assert gone(*helpers)


def test_terminal_s_ctrl_c_reaches_the_program_only(
    run: Callable[..., Program], work_dir: Path, gate: Gate, cluster: Control
) -> None:
    """Agent, login workers, commands and sbatch hear nothing of Ctrl-C in the terminal."""
    Stub(work_dir, 'sbatch', f'{Gate(work_dir / "sbatch-gate").shell}; exec "$real" "$@"')
    text = """\
executor = make(slurm={'sbatch_bin': folder + '/sbatch'})
at_sbatch = Gate(folder + '/sbatch-gate')
calls = [executor.submit(pass_gate, 'login')]
calls += [executor.with_resources(time='5').submit(pow, 2, 5)]
command = Gate(folder + '/command')
done = []
thread = threading.Thread(target=lambda: done.append(executor.run(command.shell + '; echo run')))
thread.start()
gate.await_arrival('login')
at_sbatch.await_arrival()
command.await_arrival()
say('ready')
try:
    time.sleep(60)
except KeyboardInterrupt:
    say('interrupted')
gate.open(), at_sbatch.open(), command.open()
say([call.result() for call in calls])
thread.join()
say(done[0].stdout)
"""
    program = run(text, terminal=True)
    assert program.line() == 'ready'
    agent = [process for process in program.helpers() if process.alive()]
    program.interrupt()
    assert program.line() == 'interrupted'
    assert program.line() == "['login', 32]"
    assert program.line() == 'run'
    assert program.end() == 0
    assert program.stderr() == ''  # no agent was lost
    assert len(agent) >= 5


# ---- asyncio, other exceptions


def test_cancelled_task_cancels_its_block(
    make: Callable[..., SlurmExecutor], gate: Gate, record: Record, no_jobs: Emptiness
) -> None:
    """asyncio.CancelledError that leaves a with-block cancels the jobs, like Ctrl-C."""
    calls: list[JobFuture[str]] = []

    async def sweep() -> None:
        with make() as executor:
            nodes = executor.with_resources(time='5')
            calls.append(nodes.submit(pass_gate, gate, record, 'job'))
            calls.append(executor.with_resources(extra={'hold': True}).submit(str, 5))
            await asyncio.wrap_future(calls[0])

    async def main() -> None:
        task = asyncio.ensure_future(sweep())
        await asyncio.get_running_loop().run_in_executor(None, gate.await_arrival, 'job')
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert wait(calls, 10).not_done == set()
    assert no_jobs()
    gate.open()
    assert record.lines() == []


def test_other_exceptions_wait(make: Callable[..., SlurmExecutor]) -> None:
    """Any other exception leaves the with-block as from the standard library's: it waits."""
    calls: list[JobFuture[int]] = []

    def leave(error: BaseException) -> None:
        with make() as executor:
            calls.append(executor.with_resources(time='5').submit(pow, 2, 5))
            raise error

    for error in (ValueError(), SystemExit(), CancelledError()):
        with pytest.raises(type(error)):
            leave(error)
        assert calls[-1].done()
        assert calls[-1].result() == 32


# ---- detach


def test_detach(
    run: Callable[..., Program],
    gate: Gate,
    record: Record,
    work_dir: Path,
    jobs: Listing,
) -> None:
    """detach(): Slurm has the jobs, waiting login calls are cancelled, the program leaves."""
    text = """\
say([call.cancelled() for call in calls])
try:
    executor.submit(pow, 2, 5)
except RuntimeError as error:
    say(error)
"""
    # The block is left after detach(), and does not wait.
    detach = (
        'say("ready"); Gate(folder + "/go").pass_through()\nwith executor:\n    executor.detach()\n'
    )
    program = run(WORK + detach + text)
    assert program.line() == 'ready'
    helpers = program.helpers()
    Gate(work_dir / 'go').open()
    assert program.line() == '[False, True, False, False]'
    assert program.line() == 'cannot schedule new futures after shutdown'
    assert program.end(2) == 0
    assert len(jobs()) == 3
    gate.open()
    assert eventually(lambda: sorted(record.lines()) == ['job', 'login', 'other'], 20)
    assert gone(*helpers)
    assert eventually(lambda: len(jobs()) == 1, 20)  # the one that cannot start
    assert 'Traceback' not in program.stderr()


def test_detach_waits_until_slurm_has_everything(
    run: Callable[..., Program], gate: Gate, record: Record
) -> None:
    """detach() right after submit() loses nothing; what was not sent does not run here."""
    text = """\
executor = make()
nodes = executor.with_resources(time='5')
jobs = [nodes.submit(pass_gate, name) for name in 'ab']
mapped = nodes.map(pass_gate, 'cd', chunksize=2)
login = executor.submit(pass_gate, 'login')
executor.detach()
say(all(job.job_id for job in jobs), login.cancelled())
"""
    program = run(text)
    assert program.line() == 'True True'
    assert program.end(2) == 0
    gate.open()
    assert eventually(lambda: sorted(record.lines()) == ['a', 'b', 'c', 'd'], 20)


def test_detached_futures_still_end(make: Callable[..., SlurmExecutor]) -> None:
    """As long as the process lives, futures of a detached executor are resolved."""
    executor = make()
    call = executor.with_resources(time='5').submit(pow, 2, 5)
    executor.detach()
    assert call.result() == 32
    executor.shutdown()


# ---- processes


def test_forked_child(run: Callable[..., Program]) -> None:
    """In a forked child each method of executor and future raises RuntimeError, and says why."""
    text = """\
executor = make()
call = executor.submit(pass_gate, 'call')
mapped = executor.map(pow, [2], [5])
gate.await_arrival('call')
methods = [
    lambda: executor.submit(pow, 2, 5),
    lambda: executor.submit('#!/bin/bash'),
    lambda: executor.map(pow, [2], [5]),
    lambda: executor.run('true'),
    lambda: executor.connect(),
    lambda: executor.with_resources(),
    lambda: executor.with_options(),
    lambda: executor.detach(),
    lambda: executor.shutdown(),
    lambda: executor.shutdown(wait=False),
    lambda: executor.__enter__(),
    lambda: executor.__exit__(None, None, None),
    lambda: call.result(),
    lambda: call.result(0),
    lambda: call.exception(),
    lambda: call.cancel(),
    lambda: call.kill(),
    lambda: call.stdout(),
    lambda: call.stderr(),
    lambda: call.add_done_callback(print),
    lambda: next(mapped),
]
pid = os.fork()
if pid == 0:
    for number, method in enumerate(methods):
        try:
            method()
        except RuntimeError as error:
            assert 'forked child' in str(error)
        else:
            say('no error', number)
    say('checked', len(methods))
    with executor:
        sys.exit(7)  # all the way out, through the block, and through the interpreter's exit
_, status = os.waitpid(pid, 0)
say('status', os.waitstatus_to_exitcode(status))
gate.open()
say(call.result(), executor.submit(pow, 2, 5).result())
"""
    program = run(text)
    assert program.line() == 'checked 21'
    assert program.line() == 'status 1'  # __enter__ raised, too
    assert program.line() == 'call 32'
    assert program.end() == 0
    assert 'forked child' in program.stderr()


def test_forked_child_leaves_the_block(run: Callable[..., Program]) -> None:
    """A child that leaves its parent's with-block by an exception ends with that exception."""
    text = """\
import warnings
warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12 on forks of threaded programs
with make() as executor:
    call = executor.submit(pow, 2, 5)
    call.result()
    pid = os.fork()
    if pid == 0:
        say('child', call.result())  # it was done before
        sys.exit(7)
    _, status = os.waitpid(pid, 0)
    say('status', os.waitstatus_to_exitcode(status))
    say(executor.submit(pow, 2, 6).result())
"""
    program = run(text)
    assert [program.line() for _ in range(3)] == ['child 32', 'status 7', '64']
    assert program.end() == 0
    assert program.stderr() == ''


def test_multiprocessing_children(run: Callable[..., Program]) -> None:
    """Children of multiprocessing's fork method end cleanly while the executor works."""
    text = """\
import multiprocessing

if __name__ == '__main__':
    context = multiprocessing.get_context('fork')
    with make() as executor:
        call = executor.submit(pass_gate, 'call')
        gate.await_arrival('call')
        child = context.Process(target=pow, args=(2, 5))
        child.start()
        child.join()
        say(child.exitcode)
        with context.Pool(2) as pool:
            say(pool.map(abs, [-1, -2]))
        gate.open()
        say(call.result())
"""
    program = run(text)
    assert [program.line() for _ in range(3)] == ['0', '[1, 2]', 'call']
    assert program.end() == 0
    assert program.stderr() == ''


def test_pickling_is_refused(make: Callable[..., SlurmExecutor]) -> None:
    """Executors and futures cannot be pickled or copied: the error says what to pass instead."""
    executor = make()
    call = executor.submit(pow, 2, 5)
    with pytest.raises(TypeError, match=r'pass its settings and call SlurmExecutor\.from_config'):
        pickle.dumps(executor)
    with pytest.raises(TypeError, match=r'pass future\.result\(\) instead'):
        pickle.dumps(call)
    with pytest.raises(TypeError, match='pass its settings'):
        copy.copy(executor)
    carrying: JobFuture[Any] = executor.submit(lambda: executor)
    with pytest.raises(TypeError, match='pass its settings'):
        carrying.result()


def test_killed_program(
    run: Callable[..., Program],
    gate: Gate,
    record: Record,
    work_dir: Path,
    jobs: Listing,
) -> None:
    """kill -9: the agent and idle workers go at once, the call in hand ends, jobs go on."""
    program = run(WORK + 'say("ready"); time.sleep(60)')
    assert program.line() == 'ready'
    helpers, agent = program.helpers(), program.agent()
    program.kill()
    assert gone(agent)
    assert len(jobs()) == 3
    gate.open()
    assert eventually(lambda: sorted(record.lines()) == ['job', 'login', 'other'], 20)
    assert gone(*helpers)


# ---- cores and siblings


def test_thousands_of_siblings(make: Callable[..., SlurmExecutor]) -> None:
    """10,000 siblings in a loop, none shut down, leave nothing behind, and calls go on."""
    executor = make()
    core = executor._core
    before = threading.active_count(), open_files()
    executor.submit(pow, 2, 5).result()
    calls = []
    for number in range(10_000):
        sibling = executor.with_resources(partition='cpu', cpus_per_task=1 + number % 3)
        if number % 1000 == 0:
            calls.append(sibling.with_options(cwd='/').submit(pow, 2, number % 7))
    sibling = executor
    assert eventually(lambda: len(core._executors) == 1, 10)
    assert [call.result() for call in calls] == [pow(2, n * 1000 % 7) for n in range(10)]
    assert eventually(lambda: not core._pending, 10)
    # The agent's three pipes, and nothing else.
    assert threading.active_count() == before[0]
    assert open_files() <= before[1] + 3


def test_dropped_parent(make: Callable[..., SlurmExecutor]) -> None:
    """A sibling works on after its parent has been dropped, and after it was shut down."""
    executor = make()
    reference = weakref.ref(executor)
    sibling = executor.with_options(cwd='/')
    del executor
    assert eventually(lambda: reference() is None, 5)
    assert sibling.submit(os.getcwd).result() == '/'
    child = sibling.with_resources(time='5')
    sibling.shutdown()
    assert child.submit(pow, 2, 5).result() == 32
    child.shutdown()


def agent_of(executor: SlurmExecutor) -> Process:
    """The agent's process."""
    owner = executor.submit(os.getppid).result()  # the worker's supervisor
    (parent,) = (
        int(line.split()[1])
        for line in Path(f'/proc/{owner}/status').read_text().splitlines()
        if line.startswith('PPid:')
    )
    return Process.of(parent)


@pytest.mark.parametrize('how', ['shutdown', 'collected', 'block', 'siblings'])
def test_core_ends_with_its_last_executor(
    make: Callable[..., SlurmExecutor], work_dir: Path, how: str
) -> None:
    """Nothing pending, no executor left: thread, agent, pipes and run folder are gone."""
    files = open_files()
    executor = make()
    core, agent = executor._core, agent_of(executor)
    assert len(runs(work_dir)) == 1
    sibling = executor.with_resources(time='5')
    assert sibling.submit(pow, 2, 5).result() == 32
    if how == 'block':
        del sibling
        with executor:
            pass
        assert not core._thread.is_alive()
    elif how == 'shutdown':
        executor.shutdown()
        assert core._thread.is_alive()
        sibling.shutdown()
        assert not core._thread.is_alive()
    elif how == 'siblings':
        sibling.shutdown(wait=False)
        executor.shutdown(wait=False)
    else:
        del executor, sibling
    core._thread.join(10)
    assert not core._thread.is_alive()
    assert gone(agent)
    assert runs(work_dir) == []
    executor = sibling = None  # type: ignore[assignment]
    del core
    gc.collect()
    assert open_files() <= files + 2  # the fixture keeps the core, and so its inbox


def test_shutdown_while_connecting(make: Callable[..., SlurmExecutor], work_dir: Path) -> None:
    """An executor that is shut down before its agent is up leaves no agent and no folder."""
    starting = Gate(work_dir / 'starting')
    executor = make(setup=starting.shell)
    call = executor.submit(pow, 2, 5)
    starting.await_arrival()
    helpers = offspring(os.getpid())
    call.cancel()
    executor.shutdown(wait=False)
    starting.open()
    executor._core._thread.join(10)
    assert not executor._core._thread.is_alive()
    assert gone(*helpers)
    assert runs(work_dir) == []


def test_weak_references_only_put(make: Callable[..., SlurmExecutor]) -> None:
    """An executor may be collected anywhere: its callback waits for no lock, of the core's too."""
    executor = make()
    core, sibling = executor._core, executor.with_options(cwd='/')
    done = threading.Event()

    def collect() -> None:
        nonlocal sibling
        del sibling
        done.set()

    with core._lock:
        threading.Thread(target=collect).start()
        assert done.wait(10)
    assert eventually(lambda: len(core._executors) == 1, 5)


# ---- when the machinery itself fails


def test_polling_thread_that_fails(
    make: Callable[..., SlurmExecutor], gate: Gate, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """Should the thread ever fail, each future gets ExecutorBroken, and nothing hangs."""
    executor = make(login_workers=1)
    nodes = executor.with_resources(time='5')
    calls: list[JobFuture[Any]]
    calls = [executor.submit(pass_gate, gate, record, name) for name in 'ab']
    calls.append(nodes.submit(pass_gate, gate, record, 'c'))
    gate.await_arrival('a', 'c')
    called: list[Any] = []
    for call in calls:
        call.add_done_callback(called.append)
    waiting = threading.Thread(target=executor.shutdown)
    cancelled: JobFuture[Any] = nodes.submit(pow, 2, 5)

    def fail(_: object) -> None:
        cancelled.cancel()
        raise ZeroDivisionError('injected')

    executor._core._inbox.put(fail)
    waiting.start()
    for call in calls:
        error = call.exception(timeout=10)
        assert isinstance(error, ExecutorBroken)
        assert isinstance(error.__cause__, ZeroDivisionError)
    assert wait([*calls, cancelled], 10).not_done == set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert called == calls
    assert 'the polling thread has failed' in caplog.text
    with pytest.raises(ExecutorBroken):
        nodes.submit(pow, 2, 5)
    for method in (nodes.connect, nodes.detach):
        with pytest.raises(RuntimeError, match='the executor has ended'):
            method()
    nodes.shutdown()


def test_login_node_that_cannot_be_reached(make: Callable[..., SlurmExecutor]) -> None:
    """Without an agent every future gets the reason; a later attempt may succeed."""
    executor = make(python_cmd='/no/such/python')
    calls = [executor.submit(pow, 2, 5), executor.with_resources(time='5').submit(pow, 2, 5)]
    for call in calls:
        with pytest.raises(ConnectionFailed, match='/no/such/python'):
            call.result(timeout=20)
    with pytest.raises(ConnectionFailed, match='/no/such/python'):
        executor.connect()
    executor.shutdown()
