"""What type checkers see, and what an import costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import slurm_futures

SAMPLE = """\
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from slurm_futures import BashGroup, BashScript, BashStep, BashTemplate, SlurmExecutor, progress


def add(a: int, b: int) -> int:
    return a + b

def named(self: str, fn: str, cwd: str, *, name: int = 0) -> bytes:
    return b''

class Adder:
    def __call__(self, a: int) -> str:
        return str(a)

    def add(self, a: int) -> float:
        return a

def everything(executor: SlurmExecutor) -> None:
    # submit keeps the function's type
    reveal_type(executor.submit(add, 1, 2))  # JobFuture[int]
    reveal_type(executor.submit(add, 1, b=2).result())  # int
    reveal_type(executor.submit(Adder(), 1))  # JobFuture[str]
    reveal_type(executor.submit(Adder().add, 1))  # JobFuture[float]
    reveal_type(executor.submit(lambda: 'text'))  # JobFuture[str]
    future: Future[int] = executor.submit(add, 1, 2)

    # wrong arguments are rejected
    executor.submit(add, 1)  # error
    executor.submit(add, 1, 'b')  # error
    executor.submit(add, 1, 2, 3)  # error
    executor.submit(add, 1, c=2)  # error
    executor.submit(17)  # error
    executor.submit()  # error
    wrong: Future[str] = executor.submit(add, 1, 2)  # error

    # names of submit's own do not stand in the way
    reveal_type(executor.submit(named, self='', fn='', cwd='', name=1))  # JobFuture[bytes]
    executor.submit(named, self='', fn='', cwd=1)  # error

    # scripts
    reveal_type(executor.submit('#!/bin/bash'))  # JobFuture[JobState]
    reveal_type(executor.submit(Path('job.sh'), cwd='/tmp', check=False))  # JobFuture[JobState]
    executor.submit('#!/bin/bash', name='a', mkdir=True)
    executor.submit('#!/bin/bash', 1)  # error
    executor.submit('#!/bin/bash', partition='cpu')  # error
    executor.submit('#!/bin/bash', check='no')  # error

    # scripts from steps
    template = BashTemplate(header=['#SBATCH -p cpu'], setup='module load gcc')
    step = BashStep(['python', Path('x.py')], cwd=Path('/'), checkpoint='done', exit_on_error=False)
    script = BashScript(template, [step, BashGroup([step, BashStep('ls')], parallel=2)])
    reveal_type(script.render())  # str
    reveal_type(executor.submit(script))  # JobFuture[JobState]
    executor.submit(script, cwd=Path('/tmp'), name='a', mkdir=True, check=False)
    executor.submit(script, 1)  # error
    executor.submit(script, partition='cpu')  # error
    executor.submit(step)  # error
    BashScript([step])  # error
    BashScript(template, ['ls'])  # error
    BashGroup([step], parallel='2')  # error
    BashTemplate(header=1)  # error
    BashStep(['ls', 1])  # error

    # map
    reveal_type(executor.map(add, [1], [2]))  # Iterator[int]
    reveal_type(executor.map(str, range(3), timeout=1, chunksize=2, buffersize=3))  # Iterator[str]
    executor.map(add, [1], buffersize='no')  # error

    # siblings, resources
    reveal_type(executor.with_resources(partition='cpu', time=timedelta(hours=1)))  # SlurmExecutor
    reveal_type(executor.with_options(cwd='/'))  # SlurmExecutor
    executor.with_resources(partition=1)  # error
    executor.with_resources(partitoin='cpu')  # error
    executor.with_resources(partition=None, extra={'nice': '100'})

    # the rest
    reveal_type(executor.run(['ls', Path('/')]).stdout)  # str
    executor.run('ls', check='no')  # error
    reveal_type(executor.submit(add, 1, 2).job_id)  # str | None
    reveal_type(executor.submit(add, 1, 2).job_state)  # JobState | None
    with executor as same:
        reveal_type(same)  # SlurmExecutor
    executor.shutdown(False)
    executor.shutdown(wait=False, cancel_futures=True)
    executor.shutdown(True, True)  # error
    reveal_type(progress([executor.submit(add, 1, 2)], desc='adding'))  # Iterator[JobFuture[int]]
    progress([1])  # error
    reveal_type(executor.connect())  # SlurmExecutor
    reveal_type(SlurmExecutor.from_config({'queue_system': {'slurm': {}}}))  # SlurmExecutor

class Own(SlurmExecutor):
    pass

def own(executor: Own) -> None:
    reveal_type(executor.with_resources())  # Own
    reveal_type(Own.from_config({}))  # Own
    with executor as same:
        reveal_type(same)  # Own

def any_executor(executor: Executor) -> None:
    reveal_type(executor.submit(add, 1, 2))  # Future[int]

any_executor(ThreadPoolExecutor())
any_executor(SlurmExecutor())
"""

LINE = re.compile(r'sample\.py:(\d+): (?:(error): |note: Revealed type is ["\'](.*)["\'])')


def check_types(folder: Path) -> tuple[dict[int, list[str]], str]:
    """What mypy --strict says about each line of the sample: 'error' or a type."""
    (folder / 'sample.py').write_text(SAMPLE)
    home = Path(slurm_futures.__file__).parents[1]
    # What is installed is found through its py.typed; a checkout on PYTHONPATH is not.
    path = {} if home.name == 'site-packages' else {'MYPYPATH': str(home)}
    mypy = [sys.executable, '-m', 'mypy', '--strict', '--cache-dir=cache', '--config-file=']
    done = subprocess.run(
        [*mypy, '--hide-error-context', 'sample.py'],
        cwd=folder,
        env={**os.environ, **path},
        capture_output=True,
        text=True,
        check=False,
    )
    said = defaultdict(list)
    for match in LINE.finditer(done.stdout):
        said[int(match[1])].append(match[2] or shortened(match[3]))
    return said, done.stdout + done.stderr


def shortened(name: str) -> str:
    """A type without the modules of its parts, and without mypy's marks."""
    name = re.sub(r'\b(?:\w+\.)+(\w)', r'\1', name).replace('?', '').replace('*', '')
    return re.sub(r'^Union\[(\w+), None\]$', r'\1 | None', name)


def test_types(tmp_path: Path) -> None:
    """mypy --strict knows each result's type, and rejects each wrong call, and nothing else."""
    said, output = check_types(tmp_path)
    expected = {}
    for number, line in enumerate(SAMPLE.splitlines(), 1):
        code, _, comment = line.partition('  # ')
        if comment and code.strip():
            expected[number] = [comment]
    assert {number: sorted(set(what)) for number, what in said.items()} == expected, output


def test_import_leaves_paramiko_alone() -> None:
    """`import slurm_futures` imports neither paramiko, asyncio nor tqdm, nor what locks files."""
    code = 'import slurm_futures, sys; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert 'slurm_futures.executor' in modules
    assert not modules & {'paramiko', 'cryptography', 'asyncio', 'filelock', 'tqdm'}
