"""The README: its code runs as it stands, its tables name everything there is, its files exist."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from cluster.processes import eventually
from documents import CHECKOUT, Document, check_promises, run_program
from outside import Outside, quick_queue
from slurm_futures import Resources, config, errors

README = Document('README.md')
FIRST_CELL = re.compile(r'^\| (`[^|]*) \|', re.MULTILINE)


def section(title: str) -> str:
    """Return the part of the README below a heading, up to the next of any level."""
    match = re.search(rf'^##+ {title}\n(.*?)^##', README.text, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


def documented(title: str) -> set[str]:
    """Return the names in the first column of a section's tables."""
    return {
        name for cell in FIRST_CELL.findall(section(title)) for name in re.findall(r'\w+', cell)
    }


def test_code_gives_the_values_that_it_promises(queue_system: str, work_dir: Path) -> None:
    """All Python blocks, run as one program, give what their comments say, without a warning.

    Without Slurm, too.
    """
    queue = quick_queue(queue_system)
    assert check_promises(README.blocks('python'), work_dir, queue) >= 20


def test_detached_script_goes_on(queue_system: str, work_dir: Path, outside: Outside) -> None:
    """The README's block on detach(): the job runs although its program has ended."""
    (code,) = (code for code in README.blocks('python') if 'detach()' in code)
    code = code.replace('night.submit', 'job = night.submit').replace('date >', 'sleep 2; date >')
    code = code.replace("{'slurm': {}}", repr(quick_queue(queue_system)))
    head = 'from slurm_futures import SlurmExecutor\n'
    done = run_program(f'{head}{code}print(job.job_id, job.done())\n', work_dir)
    job_id, is_done = done.stdout.split()
    assert is_done == 'False'
    folder = work_dir / 'slurm_futures'
    assert eventually(lambda: job_id not in ' '.join(outside.live(folder)).split(), 60)
    assert (work_dir / 'finished.txt').exists()


@pytest.mark.parametrize(
    ('title', 'classes'),
    [
        (
            'Settings',
            [config.ExecutorConfig, config.SlurmConfig, config.LocalConfig],
        ),
        ('Resources', [Resources]),
    ],
)
def test_tables_name_every_field(title: str, classes: list[type]) -> None:
    """The tables of settings and resources have exactly the fields that the code has."""
    fields = {field.name for one in classes for field in dataclasses.fields(one)}
    assert documented(title) - {'slurm', 'local'} == fields


def test_errors_are_all_explained() -> None:
    """Every exception that the library exports is in the section on errors."""
    named = set(re.findall(r'`(\w+)`', section('Errors')))
    assert set(errors.__all__) <= named


def test_error_table_names_the_builtin_bases() -> None:
    """Where the table says that an error is also a built-in one, it is."""
    pairs = re.findall(r'^\| `(\w+)` \(`(\w+)`\)', section('Errors'), re.MULTILINE)
    assert len(pairs) >= 5
    for name, base in pairs:
        assert base in {one.__name__ for one in getattr(errors, name).__mro__}


def test_shell_blocks_are_valid_and_their_files_exist() -> None:
    """What the README has one type is valid shell, and every file in it is there."""
    lines = ''.join(README.blocks('sh'))
    subprocess.run(['bash', '-n'], input=lines, text=True, check=True, timeout=10)
    files = re.findall(r'\S+/\S+\.\w+', lines)
    assert files == [
        *('examples/simple_workflow.py', 'examples/simple_workflow.py'),
        *('examples/cluster.toml', 'tests/run.sh'),
    ]
    for name in files:
        assert (CHECKOUT / name).is_file(), name


def test_links() -> None:
    """Each leads to a file or to a heading."""
    assert README.broken_links() == []
