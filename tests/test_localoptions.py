"""What the embedded queue makes of sbatch's options."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_futures.remote.localoptions import (
    HONOURED,
    IGNORED,
    MAX_TASKS,
    REFUSED,
    Refused,
    Spec,
    export,
    read_options,
    read_time,
)
from slurm_futures.sbatch_options import OPTION_KINDS
from slurm_futures.script import _UNUSABLE


def read(*header: tuple[str, str | None], command_line: tuple[str, ...] = ()) -> Spec:
    """Return what a script asks for that is submitted in /home/me."""
    return read_options('/spool/x.sh', header, command_line, '/home/me')[0]


def test_every_option_has_its_fate() -> None:
    """Each option of sbatch is honoured, ignored or refused, and none of them two of that."""
    fates = [*HONOURED, *IGNORED, *REFUSED]
    assert len(fates) == len(set(fates))
    assert set(OPTION_KINDS) - set(fates) == set(_UNUSABLE), 'refused before they get here'


def test_nothing_is_asked_for() -> None:
    """Defaults are sbatch's."""
    spec = read()
    assert spec == Spec('/spool/x.sh', 'x.sh', '/home/me', '/home/me')
    assert (spec.time, spec.array, spec.held, spec.cpus, spec.ntasks) == (
        None,
        '',
        False,
        None,
        None,
    )


def test_command_line_wins_over_the_script() -> None:
    """What stands in both is taken from the command line."""
    header = [('time', '5'), ('job-name', 'own'), ('chdir', 'sub'), ('hold', None)]
    spec = read(*header, command_line=('--job-name=given', '--chdir=/there', '--cpus-per-task=2'))
    assert (spec.time, spec.name, spec.cwd, spec.held, spec.cpus) == (
        *(300.0, 'given', '/there', True),
        2,
    )
    assert spec.submit_dir == '/home/me'
    assert read(('chdir', 'sub')).cwd == '/home/me/sub'


def test_what_means_nothing_here_is_taken() -> None:
    """Options for clusters do not keep a job from running on a laptop."""
    spec = read(('partition', 'gpu'), ('mem', '4G'), ('gres', 'gpu:2'), ('exclusive', None))
    assert spec == read()._replace(partition='gpu')


@pytest.mark.parametrize(
    ('option', 'value', 'words'),
    [
        ('no-such', '1', "unrecognized option '--no-such'"),
        ('begin', 'tomorrow', 'takes no --begin: it starts jobs as soon as there is room'),
        ('container', 'x', 'takes no --container: it runs no containers'),
        ('time', 'soon', "invalid --time specification: 'soon'"),
        ('array', '5-2', "invalid --array specification: '5-2'"),
        ('array', '', "invalid --array specification: ''"),
        ('array', '1-x', "invalid --array specification: '1-x'"),
        ('array', '1-3%x', "invalid --array specification: '1-3%x'"),
        ('array', f'1-{MAX_TASKS + 1}', 'invalid --array specification'),
        ('cpus-per-task', '0', "invalid --cpus-per-task specification: '0'"),
        ('ntasks', 'x', "invalid --ntasks specification: 'x'"),
        ('open-mode', 'x', "invalid --open-mode specification: 'x'"),
        ('signal', 'FOO@3', "invalid --signal specification: 'FOO@3'"),
        ('signal', 'X:USR1', "invalid --signal specification: 'X:USR1'"),
        ('signal', '99', "invalid --signal specification: '99'"),
        ('dependency', 'bogus:1', 'takes no --dependency=bogus:1: it knows after, afterany'),
        ('dependency', 'afterok', 'takes no --dependency=afterok: it knows'),
        ('dependency', 'afterok:x', "invalid --dependency specification: 'afterok:x'"),
        ('dependency', 'after:1+5', "invalid --dependency specification: 'after:1\\+5'"),
        ('dependency', 'afterok:1,', 'takes no --dependency=afterok:1,: it knows'),
    ],
)
def test_refusals(option: str, value: str, words: str) -> None:
    """What cannot be honoured, or means nothing at all, is refused by name."""
    with pytest.raises(Refused, match=words):
        read((option, value))


@pytest.mark.parametrize(
    ('text', 'seconds'),
    [
        ('5', 300),
        ('5:30', 330),
        ('1:02:03', 3723),
        ('2-', None),
        ('2-3', 183600),
        ('2-3:04', 183840),
        ('2-3:04:05', 183845),
        ('0', 'unlimited'),
        ('UNLIMITED', 'unlimited'),
        ('infinite', 'unlimited'),
        ('-1', 'unlimited'),
        ('1:2:3:4', None),
        ('1.5', None),
        ('', None),
    ],
)
def test_time_limits(text: str, seconds: int | str | None) -> None:
    """sbatch's formats, to the second."""
    if seconds is None:
        with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
            read_time(text)
    else:
        assert read_time(text) == (None if seconds == 'unlimited' else seconds)


@given(st.integers(0, 9), st.integers(0, 30), st.integers(0, 70), st.integers(0, 70))
def test_spellings_of_a_time_agree(days: int, hours: int, minutes: int, seconds: int) -> None:
    """Days, hours and minutes add up, however the limit is written."""
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert read_time(f'{days}-{hours}:{minutes}:{seconds}') == (total or None)
    assert read_time(f'{days * 24 + hours}:{minutes}:{seconds}') == (total or None)
    assert read_time(f'{total // 60}:{total % 60}') == (total or None)


@pytest.mark.parametrize(
    ('value', 'array', 'step', 'parallelism'),
    [
        ('7', '7', 1, 0),
        ('0-3,9%2', '0-3,9', 1, 2),
        ('1-9:4%1', '1-9:4', 4, 1),
        ('0-3%0', '0-3', 1, 0),
    ],
)
def test_arrays(value: str, array: str, step: int, parallelism: int) -> None:
    """Tasks, their step, and how many of them may run at once; %0 is no limit (measured)."""
    spec = read(('array', value))
    assert (spec.array, spec.step, spec.parallelism) == (array, step, parallelism)


@pytest.mark.parametrize(
    ('value', 'warning'),
    [
        ('B:USR1@10', [10, 10]),
        ('B:SIGTERM', [15, 60]),
        ('b:12@5', [12, 5]),
        ('RB:HUP@', [1, 60]),
        ('USR1@10', None),
        ('R:USR1', None),
    ],
)
def test_signals(value: str, warning: list[int] | None) -> None:
    """With B: the script gets a signal, without it only job steps would."""
    assert read(('signal', value)).warning == warning


@pytest.mark.parametrize(
    ('value', 'dependency', 'any_of'),
    [
        ('afterok:1:2', [('afterok', 1, None), ('afterok', 2, None)], False),
        ('after:1,afternotok:2_5', [('after', 1, None), ('afternotok', 2, 5)], False),
        ('afterok:1?afterany:2', [('afterok', 1, None), ('afterany', 2, None)], True),
        ('singleton', [('singleton', 0, None)], False),
        ('17', [('afterany', 17, None)], False),
        ('', [], False),
    ],
)
def test_dependencies(value: str, dependency: list[Any], any_of: bool) -> None:
    """Kinds, jobs and tasks, and whether one of them is enough."""
    spec = read(('dependency', value))
    assert (spec.dependency, spec.any_dependency) == (dependency, any_of)


def test_files() -> None:
    """stdin, stdout and stderr are patterns; output may be added to what is there."""
    spec = read(('output', 'o-%j'), ('error', 'e'), ('input', 'i'), ('open-mode', 'append'))
    assert (spec.output, spec.error, spec.input, spec.append) == ('o-%j', 'e', 'i', True)


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('ALL', {'HOME': '/h', 'A': '1', 'PATH': '/p'}),
        ('ALL,A=2,B=3', {'HOME': '/h', 'A': '2', 'B': '3', 'PATH': '/p'}),
        ('NONE', {'HOME': '/h', 'PATH': '/usr/local/bin:/usr/bin:/bin'}),
        ('NIL', {'HOME': '/h', 'PATH': '/usr/local/bin:/usr/bin:/bin'}),
        ('A,MISSING', {'HOME': '/h', 'A': '1', 'PATH': '/usr/local/bin:/usr/bin:/bin'}),
        ('B=x=y,PATH', {'HOME': '/h', 'B': 'x=y', 'PATH': '/p'}),
    ],
)
def test_export(option: str, expected: dict[str, str]) -> None:
    """All of the environment, or what a login gives and the variables that are named."""
    assert export({'HOME': '/h', 'A': '1', 'PATH': '/p'}, option) == expected


def test_export_is_read_like_any_option() -> None:
    """It is given back beside the rest."""
    assert read_options('/x', [('export', 'NONE')], [], '/')[1] == 'NONE'
    assert read_options('/x', [], [], '/')[1] == 'ALL'
