"""submit() and map() with resources: functions in jobs and job arrays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import as_completed, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cluster.client import Control
from cluster.processes import eventually
from outside import Outside, quick_queue, work_dir_of
from slurm_futures import (
    ConfigError,
    JobCancelled,
    JobFailed,
    JobFuture,
    JobState,
    PythonVersionMismatch,
    SlurmExecutor,
    SubmitError,
    WorkerDied,
)
from stubs import Stub, other_python
from waiting import Gate, Record, has_ended
from watching import await_job_id, await_running, bash, behind, chunked, node_names, slurm

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope='module')
def sbatch(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    """sbatch, counting."""
    return Stub(tmp_path_factory.mktemp('bin'), 'sbatch')


@pytest.fixture(scope='module')
def counted(
    make_executor: Callable[..., SlurmExecutor], sbatch: Stub, cluster: Control
) -> SlurmExecutor:
    """An executor for jobs whose sbatch counts."""
    return make_executor(slurm={'sbatch_bin': sbatch.path}).with_resources(partition='cpu')


def square(n: int) -> int:
    """The least that a call can do."""
    return n * n


def variable(name: str) -> str | None:
    """What a job finds in its environment."""
    return os.environ.get(name)


def details(future: JobFuture[Any]) -> str:
    """What Slurm knows of a future's job."""
    return slurm('scontrol', 'show', 'job', str(future.job_id))


def test_one_call_is_one_job(nodes: SlurmExecutor) -> None:
    """A lone call runs in a plain job, on a node, and its future knows the job."""
    future = nodes.submit(lambda: (variable('SLURM_JOB_ID'), variable('SLURM_ARRAY_JOB_ID')))
    assert future.result() == (future.job_id, None)
    assert future.job_state is JobState.COMPLETED or future.job_state is JobState.RUNNING


def test_calls_in_a_loop_become_an_array(nodes: SlurmExecutor) -> None:
    """Calls submitted together are tasks of one array; '123_7' is the eighth."""
    futures = [nodes.submit(square, n) for n in range(10)]
    assert [future.result() for future in futures] == [n * n for n in range(10)]
    jobs = {str(future.job_id).partition('_')[0] for future in futures}
    assert len(jobs) == 1
    assert [future.job_id for future in futures] == [f'{min(jobs)}_{n}' for n in range(10)]


def test_map_is_an_array(nodes: SlurmExecutor) -> None:
    """A map is one array with chunksize calls a task."""
    results = nodes.map(
        lambda n: (n, variable('SLURM_ARRAY_TASK_ID'), os.getpid()), range(11), chunksize=4
    )
    found = list(results)
    assert [n for n, _, _ in found] == list(range(11))
    assert [task for _, task, _ in found] == ['0'] * 4 + ['1'] * 4 + ['2'] * 3
    assert len({process for _, _, process in found}) == 3


def test_one_sbatch_for_an_array(counted: SlurmExecutor, sbatch: Stub) -> None:
    """A loop of calls costs one sbatch, and so does a map."""
    before = len(sbatch.calls)
    assert [f.result() for f in [counted.submit(square, n) for n in range(4)]] == [0, 1, 4, 9]
    assert list(counted.map(square, range(11), chunksize=4))[-1] == 100
    assert len(sbatch.calls) == before + 2
    assert '--array=0-2' in sbatch.calls[-1]


def test_different_resources_are_different_jobs(nodes: SlurmExecutor) -> None:
    """Equal settings go together, whichever sibling they came through."""
    siblings = [nodes.with_resources(cpus_per_task=1 + n % 2) for n in range(6)]
    futures = [sibling.submit(variable, 'SLURM_CPUS_PER_TASK') for sibling in siblings]
    assert [future.result() for future in futures] == ['1', '2'] * 3
    assert len({str(future.job_id).partition('_')[0] for future in futures}) == 2


def test_no_steps(nodes: SlurmExecutor) -> None:
    """Calls run in the batch step: there is no srun, which would cost the controller more."""
    name = nodes.submit(lambda: (variable('SLURM_STEP_ID'), variable('SLURM_PROCID'))).result()
    assert name in {(None, '0'), ('4294967291', '0')}


def test_array_parallelism(nodes: SlurmExecutor, outside: Outside, gate: Gate) -> None:
    """array_parallelism=2 lets two tasks run at once."""
    pair = nodes.with_resources(array_parallelism=2)
    futures = [pair.submit(gate.pass_through, n) for n in range(4)]
    gate.await_arrival(0, 1)
    await_job_id(*futures)
    array, work_dir = str(futures[0].job_id).partition('_')[0], work_dir_of(nodes)
    assert eventually(lambda: 'JobArrayTaskLimit' in outside.reasons(work_dir, array), 20)
    assert not gate.has_arrived(2)
    gate.open()
    wait(futures)


def test_without_arrays(counted: SlurmExecutor, sbatch: Stub) -> None:
    """arrays=False submits a job for each task, for sites that refuse arrays."""
    before = len(sbatch.calls)
    single = counted.with_resources(arrays=False)
    assert list(single.map(square, range(4), chunksize=2)) == [0, 1, 4, 9]
    assert len(sbatch.calls) == before + 2
    assert not any('--array' in call for call in sbatch.calls[before:])


def test_large_map_is_split(
    make_executor: Callable[..., SlurmExecutor], faults: Control, tmp_path: Path
) -> None:
    """More tasks than MaxArraySize allows become several arrays of about the same size."""
    faults.configure(MaxArraySize=5)
    sbatch = Stub(tmp_path, 'sbatch')
    executor = make_executor(slurm={'sbatch_bin': sbatch.path})
    nodes = executor.with_resources(partition='cpu')
    assert list(nodes.map(square, range(12))) == [n * n for n in range(12)]
    arrays = [found for call in sbatch.calls for found in re.findall('--array=([0-9-]*)', call)]
    assert arrays == ['0-3', '0-3', '0-3']


def test_job_id_as_soon_as_the_queue_has_answered(nodes: SlurmExecutor) -> None:
    """A job that cannot start yet has its id, and is PENDING in every respect."""
    held = nodes.with_resources(extra={'hold': True})
    futures = [held.submit(square, n) for n in range(2)]
    await_job_id(*futures)
    for n, future in enumerate(futures):
        assert str(future.job_id).endswith(f'_{n}')
        assert not future.running()
        assert future.job_state is JobState.PENDING
        assert future.cancel()


def test_arrays_of_functions_of_all_kinds(nodes: SlurmExecutor) -> None:
    """Different functions share an array; a function that all share is stored once."""
    data = list(range(1000))
    futures = [nodes.submit(fn, data) for fn in (sum, len, max, lambda d: d[-1])]
    assert [future.result() for future in futures] == [499500, 1000, 999, 999]


def test_exceptions_of_calls(nodes: SlurmExecutor) -> None:
    """A call's exception is its own; the others of its task and array return."""

    def invert(n: int) -> float:
        return 1 / n

    futures = [nodes.submit(invert, n) for n in (1, 0, 2)]
    assert [future.exception() is None for future in futures] == [True, False, True]
    error = futures[1].exception()
    assert isinstance(error, ZeroDivisionError)
    assert 'in invert' in str(error.__cause__)


def test_prints_of_calls(nodes: SlurmExecutor) -> None:
    """Each call of a chunk finds its own output, while it runs and after."""

    def talk(n: int) -> None:
        print(f'out {n}')
        subprocess.run(['sh', '-c', f'echo err {n} >&2'], check=True)

    futures = [nodes.submit(talk, n) for n in range(2)]
    wait(futures)
    assert [future.stdout() for future in futures] == ['out 0\n', 'out 1\n']
    assert [future.stderr() for future in futures] == ['err 0\n', 'err 1\n']
    chunk = chunked(nodes, talk, [(5,), (6,), (7,)])
    wait(chunk)
    assert [future.stdout() for future in chunk] == ['out 5\n', 'out 6\n', 'out 7\n']
    assert [future.stderr() for future in chunk] == ['err 5\n', 'err 6\n', 'err 7\n']


def test_death_in_a_chunk(nodes: SlurmExecutor, queue_system: str) -> None:
    """A call that kills its process fails alone; those before and behind it have their values."""

    def risky(n: int) -> int:
        if n == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if n == 4:
            os._exit(3)
        return n

    futures = chunked(nodes, risky, [(n,) for n in range(6)])
    errors = [future.exception() for future in futures]
    assert [n for n, error in enumerate(errors) if error] == [2, 4]
    killed, left = errors[2], errors[4]
    assert isinstance(killed, WorkerDied)
    assert isinstance(left, WorkerDied)
    assert (killed.signal, killed.exit_code, left.exit_code) == (signal.SIGKILL, None, 3)
    assert killed.job_id == futures[2].job_id
    assert killed.node in node_names(queue_system)
    assert [future.result() for future in futures if not future.exception()] == [0, 1, 3, 5]


def test_cancel_within_a_chunk(nodes: SlurmExecutor, gate: Gate, record: Record) -> None:
    """A call that waits its turn in a chunk can be cancelled; the others run."""

    def step(n: int) -> int:
        record.add(n)
        if n == 0:
            gate.pass_through()
        return n

    futures = chunked(nodes, step, [(n,) for n in range(4)])
    gate.await_arrival()
    await_running(futures[0])
    assert not futures[0].cancel()
    assert futures[2].cancel()
    # The worker looks for cancelled calls once a second.
    assert eventually(lambda: 'cancel' in _orders(nodes), 10)
    time.sleep(1.1)
    gate.open()
    assert [futures[n].result() for n in (0, 1, 3)] == [0, 1, 3]
    assert record.lines() == ['0', '1', '3']
    assert futures[2].cancelled()


def _orders(executor: SlurmExecutor) -> str:
    """What the cancel files of the executor's run say."""
    folder = (executor._core._dispatcher.hello or {})['folder']
    return ''.join(path.read_text() for path in Path(folder, 'calls').glob('*.cancel'))


def test_kill_within_a_chunk(nodes: SlurmExecutor, gate: Gate) -> None:
    """kill() of a call under way ends that call only, with what it has started."""

    def step(n: int) -> int:
        if n == 1:
            subprocess.Popen(['sh', '-c', 'echo $PPID; exec sleep 600'])
            gate.pass_through()
        return n

    futures = chunked(nodes, step, [(n,) for n in range(3)])
    gate.await_arrival()
    await_running(futures[1])
    process = futures[1].stdout().strip()
    futures[1].kill()
    futures[1].kill()
    with pytest.raises(JobCancelled):
        futures[1].result()
    assert (futures[0].result(), futures[2].result()) == (0, 2)
    assert has_ended(process)


def test_cancel_of_pending_tasks(nodes: SlurmExecutor, outside: Outside, gate: Gate) -> None:
    """Cancelled tasks of a waiting array leave the queue; the rest of the array stays."""
    waiting = behind(nodes, gate)
    futures = [waiting.submit(square, n) for n in range(4)]
    await_job_id(*futures)
    for n in (0, 2):
        assert futures[n].cancel()

    def left() -> list[str]:
        names = [line.split()[0] for line in outside.live(work_dir_of(nodes))]
        return [n for n in names if n in {future.job_id for future in futures}]

    assert eventually(lambda: left() == [futures[1].job_id, futures[3].job_id], 10)
    gate.open()
    assert (futures[1].result(), futures[3].result()) == (1, 9)
    assert futures[0].cancelled()
    assert futures[2].cancelled()


def test_cancel_before_the_queue_has_answered(nodes: SlurmExecutor, record: Record) -> None:
    """A call that is cancelled right away never runs, wherever it was on its way."""
    futures = [nodes.submit(record.add, n) for n in range(20)]
    cancelled = [future.cancel() for future in futures]
    assert all(cancelled)
    assert nodes.submit(square, 2).result() == 4
    assert record.lines() == []


def test_kill_of_a_pending_and_a_running_task(nodes: SlurmExecutor, gate: Gate) -> None:
    """kill() cancels what is pending, and ends what runs by ending its task."""
    held = nodes.with_resources(extra={'hold': True})
    futures: list[JobFuture[Any]] = [nodes.submit(gate.pass_through, 0), held.submit(square, 1)]
    gate.await_arrival(0)
    await_running(futures[0])
    for future in futures:
        future.kill()
    assert futures[1].cancelled()
    with pytest.raises(JobCancelled) as cancelled:
        futures[0].result()
    assert cancelled.value.state is JobState.CANCELLED
    assert cancelled.value.started is True


def test_refused_jobs_are_named(executor: SlurmExecutor, accounting: Control) -> None:
    """SubmitError brings sbatch's words for the calls that it concerns; others go on."""
    bad = {
        'nowhere': executor.with_resources(partition='nowhere'),
        'Invalid account': executor.with_resources(account='nobodys'),
        'node configuration is not available': executor.with_resources(gres='gpu:3'),
        'unrecognized option': executor.with_resources(extra={'no-such-option': '1'}),
    }
    futures = {words: [where.submit(square, n) for n in range(2)] for words, where in bad.items()}
    good = executor.with_resources(partition='cpu').submit(square, 3)
    for words, refused in futures.items():
        for future in refused:
            with pytest.raises(SubmitError, match=words):
                future.result()
            assert future.job_id is None
    assert good.result() == 9


def test_time_and_other_options_reach_slurm(nodes: SlurmExecutor, cluster: Control) -> None:
    """A timedelta, memory, GPUs, names and extra options arrive as sbatch's options."""
    full = nodes.with_resources(
        time=timedelta(hours=1, minutes=30),
        nodes=2,
        ntasks=4,
        ntasks_per_node=2,
        cpus_per_task=1,
        mem='300M',
        gres='gpu:1',
        job_name='it\'s "mine"',
        requeue=False,
        exclusive=True,
        extra={'comment': 'a "b" $c', 'nice': 7, 'hold': True},
    )
    future = full.submit(square, 3)
    await_job_id(future)
    text = details(future)
    for words in (
        'JobName=it\'s "mine"',
        'Partition=cpu',
        'TimeLimit=01:30:00',
        'NumNodes=2',
        'NumTasks=4',
        'NtasksPerN:B:S:C=2:',
        'MinMemoryNode=300M',
        'gpu:1',
        'Requeue=0',
        'OverSubscribe=NO',
        'Comment=a "b" $c',
        'Nice=7',
    ):
        assert words in text
    future.kill()


def test_default_job_name_is_the_functions(nodes: SlurmExecutor) -> None:
    """Without a name, squeue shows that of the function."""
    assert nodes.submit(variable, 'SLURM_JOB_NAME').result() == 'variable'


def test_env_and_setup(nodes: SlurmExecutor) -> None:
    """env= is exported, setup= runs in bash before the calls, and sees it."""
    rich = nodes.with_resources(
        env={'WORD': 'it\'s "two"\nlines'}, setup=['words=(a b)', 'export LAST="${words[1]} $WORD"']
    )
    assert rich.submit(variable, 'LAST').result() == 'b it\'s "two"\nlines'
    assert rich.with_resources(env=None, setup=None).submit(variable, 'WORD').result() is None


def test_setup_that_fails(nodes: SlurmExecutor) -> None:
    """A job that ends in its setup lines fails at once, says so, and shows what they said."""
    broken = nodes.with_resources(setup=['echo module not found >&2', 'exit 3'])
    futures = [broken.submit(square, n) for n in range(2)]
    for future in futures:
        with pytest.raises(JobFailed, match='setup') as failed:
            future.result()
        assert failed.value.started is False
        assert 'module not found' in failed.value.stderr


def test_missing_interpreter_on_the_node(nodes: SlurmExecutor, tmp_path: Path, gate: Gate) -> None:
    """python_cmd that only the login node has: the error says what is missing where."""
    path = tmp_path / 'python'
    path.symlink_to(sys.executable)
    nodes.with_options(python_cmd=str(path)).submit(square, 1).result()
    future = behind(nodes, gate).with_options(python_cmd=str(path)).submit(square, 1)
    await_job_id(future)
    path.unlink()
    gate.open()
    with pytest.raises(JobFailed, match='interpreter') as failed:
        future.result()
    assert failed.value.started is False
    assert failed.value.job_id == future.job_id


def test_other_version_on_the_node(nodes: SlurmExecutor, tmp_path: Path, gate: Gate) -> None:
    """An interpreter that is another version on the compute node is told apart there."""
    path = tmp_path / 'switch'
    path.symlink_to(sys.executable)
    future = behind(nodes, gate).with_options(python_cmd=str(path)).submit(square, 1)
    await_job_id(future)
    path.unlink()
    path.symlink_to(other_python(tmp_path, (3, 7, 2)))
    gate.open()
    with pytest.raises(PythonVersionMismatch, match=r'3\.7\.2'):
        future.result()


def test_cwd_of_jobs(nodes: SlurmExecutor, work_dir: Path) -> None:
    """Calls run in the executor's folder or in cwd's; one that is missing is refused."""
    assert nodes.submit(os.getcwd).result() == nodes.run(['pwd']).stdout.strip()
    there = nodes.with_options(cwd=str(work_dir))
    assert there.submit(os.getcwd).result() == str(work_dir)
    with pytest.raises(SubmitError, match='there is no folder'):
        nodes.with_options(cwd=f'{work_dir}/nowhere').submit(os.getcwd).result()


def test_dependency(nodes: SlurmExecutor, gate: Gate, record: Record) -> None:
    """A job starts when the one that it depends on has ended well, and is removed if not."""
    first = nodes.submit(gate.pass_through)
    gate.await_arrival()
    after = nodes.with_resources(dependency=f'afterok:{first.job_id}').submit(record.add, 'after')
    await_job_id(after)
    assert record.lines() == []
    gate.open()
    after.result()
    assert record.lines() == ['after']

    bad = nodes.submit(lambda: 1 / 0)
    assert isinstance(bad.exception(), ZeroDivisionError)
    never = nodes.with_resources(dependency=f'afterok:{bad.job_id}').submit(record.add, 'never')
    with pytest.raises((JobCancelled, SubmitError)):
        never.result()
    assert record.lines() == ['after']


def test_clusters(executor: SlurmExecutor, accounting: Control) -> None:
    """clusters= names the cluster; queries and cancelling go there too."""
    named = executor.with_resources(clusters='sftest', partition='cpu')
    assert list(named.map(square, range(3))) == [0, 1, 4]
    held = named.with_resources(extra={'hold': True}).submit(square, 1)
    await_job_id(held)
    slurm('scancel', str(held.job_id))
    with pytest.raises(JobCancelled):
        held.result()


def test_large_arguments_and_results(nodes: SlurmExecutor) -> None:
    """Megabytes go to jobs and come back, beside small ones."""
    data = os.urandom(1000) * 5000
    futures = [nodes.submit(lambda d, n: d + bytes([n]), data, n) for n in range(3)]
    small = nodes.submit(square, 5)
    assert [future.result() for future in futures] == [data + bytes([n]) for n in range(3)]
    assert small.result() == 25


def test_results_as_they_come(nodes: SlurmExecutor, tmp_path: Path) -> None:
    """Calls of a chunk are done one by one, not when their task ends."""
    gates = [Gate(tmp_path / f'gate{n}') for n in range(3)]

    def step(n: int) -> int:
        gates[n].pass_through()
        return n

    futures = chunked(nodes, step, [(n,) for n in range(3)])
    seen = as_completed(futures)
    for n in range(3):
        gates[n].await_arrival()
        assert not any(future.done() for future in futures[n:])
        gates[n].open()
        assert next(seen) is futures[n]


def test_bare_numbers_are_refused(nodes: SlurmExecutor) -> None:
    """A time limit that is a number is refused, with both spellings."""
    with pytest.raises(ConfigError, match=r"'01:00:00' or timedelta\(hours=1\)"):
        nodes.with_resources(time=60)  # type: ignore[arg-type]


def test_none_unsets(nodes: SlurmExecutor) -> None:
    """Siblings merge: None takes an option back, and env goes key by key."""
    first = nodes.with_resources(cpus_per_task=2, env={'A': '1', 'B': '2'})
    second = first.with_resources(cpus_per_task=None, env={'B': None, 'C': '3'})

    def look() -> list[str | None]:
        return [variable(name) for name in ('SLURM_CPUS_PER_TASK', 'A', 'B', 'C')]

    assert first.submit(look).result() == ['2', '1', '2', None]
    assert second.submit(look).result() == [None, '1', None, '3']


INSIDE = """
    import json, os, sys
    from slurm_futures import SlurmExecutor

    def place():
        return os.environ.get('SLURM_JOB_ID'), os.environ.get('SLURM_CPUS_PER_TASK')

    queue = json.loads(sys.argv[1])
    with SlurmExecutor(queue_system=queue, work_dir='inside') as executor:
        nodes = executor.with_resources(partition='cpu')
        jobs = [future.result() for future in [nodes.submit(place) for _ in range(3)]]
        own = os.environ['SLURM_JOB_ID']
        assert len({job for job, _ in jobs}) == 3, jobs
        assert 'local' in queue or own not in {job for job, _ in jobs}, jobs
        assert {cpus for _, cpus in jobs} == {None}, jobs
        assert executor.submit(place).result()[0] == own
        script = executor.submit('#!/bin/sh\\ntrue\\n')
        assert str(script.result()) == 'COMPLETED'
    print('all as it should be')
"""


def test_inside_another_job(executor: SlurmExecutor, work_dir: Path, queue_system: str) -> None:
    """A program that is itself a job submits jobs that inherit nothing of it."""
    (work_dir / 'program.py').write_text(textwrap.dedent(INSIDE))
    queue = json.dumps(quick_queue(queue_system))
    program = f"exec {sys.executable} program.py '{queue}'"
    future = executor.submit(bash('#SBATCH -c 2 --mem=200M', program), cwd=str(work_dir))
    assert future.exception() is None
    assert future.stdout() == 'all as it should be\n'


def test_spool_is_tidy(make_executor: Callable[..., SlurmExecutor], tmp_path: Path) -> None:
    """Outcomes are deleted once they are here; the run's folder goes with the executor."""
    executor = make_executor(work_dir=str(tmp_path / 'made'))
    nodes = executor.with_resources(partition='cpu')
    list(nodes.map(square, range(50), chunksize=10))
    run = Path((executor._core._dispatcher.hello or {})['folder'])
    assert (tmp_path / 'made').stat().st_mode & 0o777 == 0o700
    assert (tmp_path / 'made' / '.slurm_futures').stat().st_mode & 0o777 == 0o700
    assert eventually(lambda: not list((run / 'new').iterdir()), 10)
    assert sum(path.is_file() for path in run.rglob('*')) <= 5 * 10
    nodes.shutdown()
    executor.shutdown()
    assert not run.exists()
    assert (tmp_path / 'made' / '.slurm_futures' / 'lib').exists()
