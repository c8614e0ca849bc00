"""What jobs of calls cost, beside the same jobs made by hand, in turn in one run."""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from local import executor, peak_memory
from table import Row

SINGLES = 20
ARRAY = 500
SWEEP = 10_000
CHUNK = 100


def _noop() -> Callable[..., None]:
    """Return a function that does nothing and travels by value, as those of a script do."""
    return lambda *_: None


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _sbatch(work_dir: str, body: str, *options: str) -> str:
    script = Path(work_dir, 'raw.sh')
    script.write_text(f'#!/bin/sh\n{body}\n', encoding='utf-8')
    argv = ['sbatch', '--parsable', '--output=/dev/null', *options, str(script)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def _raw_single(work_dir: str) -> None:
    """Submit `touch` and wait until the file is seen."""
    marker = Path(work_dir, f'marker-{time.time_ns()}')
    _sbatch(work_dir, f'touch {marker}')
    while not marker.exists():
        time.sleep(0.002)
    marker.unlink()


def _raw_array(work_dir: str, tasks: int, command: str) -> None:
    """Run an array of one command and wait until the last task has said that it is done."""
    done = Path(work_dir, f'done-{time.time_ns()}')
    done.mkdir()
    _sbatch(work_dir, f'{command}; : > {done}/$SLURM_ARRAY_TASK_ID', f'--array=0-{tasks - 1}')
    while sum(1 for _ in os.scandir(done)) < tasks:
        time.sleep(0.02)


def _settle() -> None:
    """Wait until no job is left, so that one round does not pay for the last one's end."""
    argv = ['squeue', '--me', '-h', '-o', '%i']
    while subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip():
        time.sleep(0.1)


def _alternate(
    rounds: int, ours: Callable[[], object], raw: Callable[[], object]
) -> tuple[float, float]:
    """Run both in turn; return the medians in seconds."""
    pairs = []
    for _ in range(rounds):
        pair = []
        for action in (ours, raw):
            _settle()
            pair.append(_seconds(action))
        pairs.append(pair)
    ours_all, raw_all = zip(*pairs, strict=True)
    return statistics.median(ours_all), statistics.median(raw_all)


def single_job(work_dir: str, _rounds: int) -> list[Row]:
    """Compare one call in a job, submit to result, with a job that touches a file.

    Slurm starts jobs at once or at the next round of its scheduler, up to a second later: the
    moments of submission are spread over that second, alike for both, and means are compared.
    """
    rng, pairs = random.Random(1), []
    with executor(work_dir) as ex:
        node, noop = ex.with_resources(job_name='bench'), _noop()
        node.submit(noop).result()
        for _ in range(SINGLES):
            pause, pair = rng.random(), []
            for action in (lambda: node.submit(noop).result(), lambda: _raw_single(work_dir)):
                _settle()
                time.sleep(1 - time.time() % 1 + pause)
                pair.append(_seconds(action))
            pairs.append(pair)
    ours, raw = (statistics.mean(column) for column in zip(*pairs, strict=True))
    note = f'{ours:.3f} s against {raw:.3f} s, means of {SINGLES} in turn'
    return [Row('one call in a job, over the floor', ours - raw, 's', 0.15, note)]


def _rpcs() -> dict[str, int]:
    """Return how often the controller has been asked what, from sdiag."""
    text = subprocess.run(['sdiag'], capture_output=True, text=True, check=True).stdout
    start = text.index('Remote Procedure Call statistics by message type')
    end = text.index('Remote Procedure Call statistics by user')
    found = re.findall(r'(\w+)\s*\(\s*\d+\) count:(\d+)', text[start:end])
    return {name: int(count) for name, count in found}


def _rpc_row(before: dict[str, int], calls: int) -> Row:
    after = _rpcs()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    client = {
        n: c for n, c in grown.items() if c and not n.startswith(('MESSAGE_NODE', 'REQUEST_PING'))
    }
    steps = sum(count for name, count in client.items() if 'STEP' in name and 'BATCH' not in name)
    note = ', '.join(f'{name} {count}' for name, count in sorted(client.items()))
    return Row(
        '  controller RPCs per 1,000 calls',
        sum(client.values()) * 1000 / calls,
        '',
        None,
        f'step RPCs {steps}; {note}',
    )


def array_of_calls(work_dir: str, rounds: int) -> list[Row]:
    """Compare 500 calls, one a task, with an array of 500 interpreters that import cloudpickle."""
    command = f"{sys.executable} -c 'import cloudpickle'"
    rpcs: list[Row] = []
    with executor(work_dir) as ex:
        node, noop = ex.with_resources(job_name='bench'), _noop()

        def ours() -> None:
            before = _rpcs()
            list(node.map(noop, range(ARRAY)))
            rpcs[:] = [_rpc_row(before, ARRAY)]

        took, raw = _alternate(rounds, ours, lambda: _raw_array(work_dir, ARRAY, command))
    note = f'{took:.2f} s against {raw:.2f} s, medians of {rounds} in turn'
    return [Row('500 calls, one a task / raw array', took / raw, 'x', 1.25, note), *rpcs]


def chunked_sweep(work_dir: str, rounds: int) -> list[Row]:
    """Compare 10,000 calls in chunks of 100 with an array of 100 bare interpreters.

    Once with a function that travels by name, and for information with one that travels by value,
    for which each task imports cloudpickle.
    """
    memory = Row('  peak memory of the client', peak_memory(), 'MB', 150, 'if measured alone')
    by_name = _sweep(work_dir, rounds, 'a function by name', abs, 1.5)
    by_value = _sweep(work_dir, rounds, 'a lambda by value', _noop(), None)
    return [*by_name, replace(memory, figure=peak_memory()), *by_value[:1]]


def _sweep(
    work_dir: str, rounds: int, label: str, function: Callable[..., object], bound: float | None
) -> list[Row]:
    rows: list[Row] = []
    tasks = SWEEP // CHUNK
    with executor(work_dir) as ex:
        node = ex.with_resources(job_name='bench')

        def ours() -> None:
            before, files = _rpcs(), _count_files(work_dir)
            list(node.map(function, range(SWEEP), chunksize=CHUNK))
            grown = _count_files(work_dir) - files
            note = f'{grown} files, {tasks} tasks'
            rows[:] = [
                _rpc_row(before, SWEEP),
                Row('  files a task in the spool', grown / tasks, '', 10, note),
            ]

        command = f'{sys.executable} -c pass'
        took, raw = _alternate(rounds, ours, lambda: _raw_array(work_dir, tasks, command))
    note = f'{label}; {took:.2f} s against {raw:.2f} s, medians of {rounds} in turn'
    return [Row('10,000 calls in 100 tasks / raw array', took / raw, 'x', bound, note), *rows]


def _count_files(work_dir: str) -> int:
    """Count the files of all runs' spools; those of an executor that has ended are on their way."""
    runs = Path(work_dir, '.slurm_futures', 'runs')
    return sum(len(files) for _, _, files in os.walk(runs))
