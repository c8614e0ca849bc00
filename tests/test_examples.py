"""The examples, run as a user runs them: each prints results that can be checked."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_futures.config import load_config

EXAMPLES = Path(__file__).parents[1] / 'examples'


def run_example(name: str, folder: Path, *arguments: str) -> list[str]:
    """Run an example in a folder and return the lines that it prints."""
    command = [sys.executable, '-W', 'error', str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.splitlines()


@pytest.fixture
def where(queue_system: str) -> list[str]:
    """Arguments that say where an example runs: without any, on the embedded queue."""
    return ['--config', str(EXAMPLES / 'cluster.toml')] if queue_system == 'slurm' else []


def test_simple_workflow(where: list[str], work_dir: Path) -> None:
    """Folders are made and summed on the login node, squared in jobs; then the sweep arrives."""
    lines = run_example('simple_workflow.py', work_dir, '--n', '3', *where)
    folders = sorted((work_dir / 'squares').iterdir())
    numbers = [int((folder / 'number.txt').read_text()) for folder in folders]
    assert lines[:4] == [
        *(f'squares/00{i}: {n} squared is {n * n}' for i, n in enumerate(numbers)),
        f'sum of squares: {sum(n * n for n in numbers)}',
    ]
    exponents = dict(re.findall(r'rate (\S+): exponent (\S+)', '\n'.join(lines[4:])))
    assert sorted(exponents) == ['2.9', '3.3', '3.6', '3.83', '4.0']
    # Known in closed form for this rate only.
    assert float(exponents['4.0']) == pytest.approx(math.log(2), abs=0.02)
    assert {rate for rate in exponents if float(exponents[rate]) > 0} == {'3.6', '4.0'}


def test_simple_workflow_in_a_work_dir(where: list[str], tmp_path: Path, work_dir: Path) -> None:
    """--work-dir and --partition are taken: nothing is left where the program was started."""
    arguments = ['--n', '2', '--work-dir', str(work_dir), '--partition', 'cpu', *where]
    lines = run_example('simple_workflow.py', tmp_path, *arguments)
    assert lines[2].startswith('sum of squares: ')
    assert sorted(path.name for path in work_dir.iterdir()) == ['.slurm_futures', 'squares']


def test_asyncio_sweep(where: list[str], work_dir: Path) -> None:
    """Results come in the order of gather()'s arguments; damping makes the swings fewer."""
    lines = run_example('asyncio_sweep.py', work_dir, *where)
    assert lines == [
        'damping 0.0: 6 swings',
        'damping 0.2: 6 swings',
        'damping 1.0: 5 swings',
        'damping 2.0: 0 swings',
    ]


def test_any_executor(where: list[str], work_dir: Path) -> None:
    """The same code gives the same estimate in threads and in jobs."""
    lines = run_example('any_executor.py', work_dir, *where)
    places, estimates = zip(*(line.split(': ') for line in lines), strict=True)
    assert places == ('in threads', 'in jobs')
    assert estimates[0] == estimates[1]
    assert float(estimates[0]) == pytest.approx(math.pi, abs=0.05)


def test_config_without_a_toml_parser(tmp_path: Path) -> None:
    """Python 3.10 has none: the example says what to install."""
    (tmp_path / 'tomllib.py').write_text('raise ImportError\n')
    (tmp_path / 'tomli.py').write_text('raise ImportError\n')
    command = [sys.executable, str(EXAMPLES / 'simple_workflow.py'), '--config', 'cluster.toml']
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == 'reading TOML needs Python 3.11, or: pip install tomli\n'


def test_cluster_toml_is_a_configuration() -> None:
    """The file beside the examples can be used as it stands, and with its comments removed."""
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 has no TOML parser')
    text = (EXAMPLES / 'cluster.toml').read_text(encoding='utf-8')
    for content in (text, re.sub(r'^# (?=\w+ = )', '', text, flags=re.MULTILINE)):
        config = load_config(tomllib.loads(content))
        assert config.queue_system.slurm is not None
    assert config.work_dir == 'project/scratch'
