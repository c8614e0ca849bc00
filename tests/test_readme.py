"""The README: its code runs as it stands, its tables name everything there is, its files exist."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import eventually
from outside import Outside, quick_queue
from slurm_futures import Resources, config, errors

README = Path(__file__).parents[1] / 'README.md'

EXPECTATION = re.compile(r'^(?P<indent> *)(?P<expression>\S.*?)  # -> (?P<value>.+)$', re.MULTILINE)
BLOCK = re.compile(r'^```(?P<language>\w+)\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
FIRST_CELL = re.compile(r'^\| (`[^|]*) \|', re.MULTILINE)

CHECKER = """\
def _check(expression, found, expected):
    if found != expected:
        raise AssertionError(f'README: {expression} is {found!r}, not {expected!r}')
    print('checked', expression)
"""


def blocks(language: str) -> list[str]:
    """Return the code of the README's blocks in one language."""
    found = BLOCK.findall(README.read_text(encoding='utf-8'))
    return [code for name, code in found if name == language]


def as_program(code: str) -> str:
    """Return the code as a program that checks the values its comments promise."""

    def check(match: re.Match[str]) -> str:
        indent, expression, value = match.groups()
        return f'{indent}_check({expression!r}, {expression}, {value})'

    return CHECKER + EXPECTATION.sub(check, code)


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder that is its user's home, too."""
    path = folder / 'program.py'
    path.write_text(program, encoding='utf-8')
    return subprocess.run(
        [sys.executable, '-W', 'error', str(path)],
        cwd=folder,
        env=dict(os.environ, HOME=str(folder)),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def section(title: str) -> str:
    """Return the part of the README below a heading, up to the next of any level."""
    text = README.read_text(encoding='utf-8')
    match = re.search(rf'^##+ {title}\n(.*?)^##', text, re.MULTILINE | re.DOTALL)
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
    code = '\n'.join(blocks('python'))
    # Only ends without a value wait for the next query, and they are not the point here.
    queue = quick_queue(queue_system)
    code = re.sub(r"\{'slurm': \{.*?\}\}", repr(queue), code)
    done = run_program(as_program(code), work_dir)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.count('checked ') == code.count('# -> ') >= 20


def test_detached_script_goes_on(queue_system: str, work_dir: Path, outside: Outside) -> None:
    """The README's block on detach(): the job runs although its program has ended."""
    (code,) = (code for code in blocks('python') if 'detach()' in code)
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
    lines = ''.join(blocks('sh'))
    subprocess.run(['bash', '-n'], input=lines, text=True, check=True, timeout=10)
    files = re.findall(r'\S+/\S+\.\w+', lines)
    assert files == [
        *('examples/simple_workflow.py', 'examples/simple_workflow.py'),
        *('examples/cluster.toml', 'tests/run.sh'),
    ]
    links = re.findall(r'\]\(([^)#]+)\)', README.read_text(encoding='utf-8'))
    for name in files + links:
        assert (README.parent / name).is_file(), name


def test_internal_links_lead_to_headings() -> None:
    """Each '#section' link has its heading."""
    text = README.read_text(encoding='utf-8')
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    anchors = {heading.lower().replace(' ', '-') for heading in headings}
    assert set(re.findall(r'\]\(#([^)]+)\)', text)) <= anchors
