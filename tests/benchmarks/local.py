"""What costs without any job: importing, submitting, calls on the login node."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from table import Row

from slurm_futures import SlurmExecutor

IMPORT_ROUNDS = 15
SUBMISSIONS = 2000
CALLS = 1000
LARGE = 500_000_000


def executor(work_dir: str) -> SlurmExecutor:
    """Return an executor with its spool in a folder."""
    return SlurmExecutor(queue_system={'slurm': {}}, work_dir=work_dir)


def _import_seconds(statement: str) -> float:
    code = f'import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def imports(_work_dir: str, _rounds: int) -> list[Row]:
    """Compare `import slurm_futures` with the import of what it needs."""
    statements = ('import slurm_futures', 'from pydantic import BaseModel; import cloudpickle')
    for statement in statements:
        _import_seconds(statement)
    pairs = [[_import_seconds(s) for s in statements] for _ in range(IMPORT_ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    note = f'{ours * 1e3:.0f} ms against {theirs * 1e3:.0f} ms, medians of {IMPORT_ROUNDS}'
    return [Row('import / (pydantic + cloudpickle)', ours / theirs, 'x', 1.7, note)]


def _each(action: Callable[[], object], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)


def submit(work_dir: str, _rounds: int) -> list[Row]:
    """Measure what the caller of submit pays, for a function of a module and for a closure."""
    factor = 3

    def closure(x: int) -> int:
        return factor * x

    rows = []
    with executor(work_dir) as ex:
        ex.connect()
        for label, fn in (('abs', abs), ('closure', closure)):
            futures = []

            def action(fn: Callable[[int], int] = fn, futures: list[object] = futures) -> None:
                futures.append(ex.submit(fn, 1))

            start = time.perf_counter()
            seconds = _each(action, SUBMISSIONS)
            mean = (time.perf_counter() - start) / SUBMISSIONS
            note = f'median {statistics.median(seconds) * 1e3:.3f} ms, {SUBMISSIONS} in a row'
            rows.append(Row(f'submit({label}, 1), mean', mean * 1e3, 'ms', 0.3, note))
    return rows


def login_call(work_dir: str, _rounds: int) -> list[Row]:
    """Measure a warm call on the login node, from submit to result."""
    with executor(work_dir) as ex:
        for _ in range(20):
            ex.submit(abs, -1).result()
        seconds = _each(lambda: ex.submit(abs, -1).result(), CALLS)
    note = f'99th percentile {seconds[int(CALLS * 0.99)] * 1e3:.2f} ms, {CALLS} calls'
    return [Row('warm login call, median', statistics.median(seconds) * 1e3, 'ms', 2, note)]


def large_result(work_dir: str, _rounds: int) -> list[Row]:
    """Measure small calls while a large result is on its way."""
    with executor(work_dir) as ex:
        list(ex.map(abs, range(8)))
        start = time.perf_counter()
        large = ex.submit(lambda: bytes(LARGE))
        others = []
        while not large.done():
            others += _each(lambda: ex.submit(abs, -1).result(), 1)
        took = time.perf_counter() - start
        size = len(large.result())
    others.sort()
    slow = others[int(len(others) * 0.99)] * 1e3
    note = f'{size / 1e6:.0f} MB in {took:.1f} s; {len(others)} small calls, 99th {slow:.0f} ms'
    return [Row('small calls beside it, median', statistics.median(others) * 1e3, 'ms', None, note)]


def peak_memory() -> float:
    """Return this process's peak memory in MB, as the kernel counts it."""
    with open(f'/proc/{os.getpid()}/status', encoding='ascii') as file:
        line = next(line for line in file if line.startswith('VmHWM:'))
    return int(line.split()[1]) / 1e3
