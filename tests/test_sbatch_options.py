"""sbatch's options: read as sbatch reads them, and written so that sbatch reads them back.

Where there is an sbatch, it is asked itself: no cluster is needed for that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_futures.errors import ConfigError
from slurm_futures.sbatch_options import read_options, split_arguments
from slurm_futures.script import parse_script, render_sbatch_lines

repeatable = settings(derandomize=True, database=None, deadline=None)

SLURM_CONF = """
ClusterName=x
SlurmctldHost=localhost
AuthType=auth/none
NodeName=n1 CPUs=1
PartitionName=p Nodes=n1 Default=YES
"""

Sbatch = Callable[[str], 'tuple[int, list[str], str]']


@pytest.fixture(scope='session')
def sbatch(tmp_path_factory: pytest.TempPathFactory) -> Sbatch:
    """Return a function that has the real sbatch read a script and submit nothing.

    It returns sbatch's exit status as far as the header goes, the arguments that sbatch found in
    it, and what sbatch wrote. No cluster is needed: --export-file with a file that does not exist
    ends sbatch after it has read everything and before it calls the controller.
    """
    program = shutil.which('sbatch')
    if program is None:
        pytest.skip('there is no sbatch here')
    folder = tmp_path_factory.mktemp('sbatch')
    (folder / 'slurm.conf').write_text(SLURM_CONF)
    ours = {
        name: value for name, value in os.environ.items() if not re.match('SLURM_|SBATCH_', name)
    }
    script = folder / 'script.sh'

    def read(text: str) -> tuple[int, list[str], str]:
        script.write_bytes(text.encode())
        result = subprocess.run(
            [program, '-vvvv', f'--export-file={folder}/none', script],
            env={**ours, 'SLURM_CONF': str(folder / 'slurm.conf'), 'LC_ALL': 'C.UTF-8'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=20,
        )
        said = result.stdout.decode(errors='replace')
        found = re.findall(
            r'^sbatch: debug2: Found in script, argument "(.*)"$', said, re.MULTILINE
        )
        passed = 'Could not open user environment file' in said
        return 0 if passed else 1, found, said

    return read


def script(*lines: str, command: str = 'true') -> str:
    """Return a bash script with the given header lines."""
    return '\n'.join(['#!/bin/bash', *lines, command, ''])


OPTION_LINES = [
    ('-p x -t 5 -n 2 -N 2 -c 3 -J j -o o -e e', 'partition time ntasks nodes cpus-per-task'),
    ('-D /tmp -A a -a 1-3 -d singleton -C c', 'chdir account array dependency constraint'),
    ('-q q -w n1 -x n2', 'qos nodelist exclude'),
    ('-k -L l:1 -m block -O -s', 'no-kill licenses distribution overcommit oversubscribe'),
    ('-HOJx -n1', 'hold overcommit job-name ntasks'),
    ('--part=x --exclusiv --nice --nice=7 -b now', 'partition exclusive nice begin'),
    ('--tasks=3 --mem=4G --no-req --use-min', 'ntasks-per-node mem no-requeue use-min-nodes'),
    ('--comment="a \'b\' # c" --mail-user=a#b -N9', 'comment mail-user'),
    ("--comment 'it''s' --job-name=\"x\\\"y\\\\z\"", 'comment job-name'),
    ('--signal=B:USR1@90 --propagate --deadline=now+60', 'signal propagate deadline'),
]


@pytest.mark.parametrize(('line', 'names'), OPTION_LINES)
def test_options_have_their_long_names(sbatch: Sbatch, line: str, names: str) -> None:
    """Short options, clusters, abbreviations and quotes come out as the real sbatch reads them."""
    options = parse_script(script(f'#SBATCH {line}')).options
    assert set(names.split()) <= set(options)
    status, _, said = sbatch(script(f'#SBATCH {line}'))
    assert status == 0, said
    shown = dict(re.findall(r'^sbatch: (\S+) +: (.*)$', said, re.MULTILINE))
    assert set(options) <= set(shown)
    for name in ('partition', 'job-name', 'comment', 'mail-user', 'nodes', 'ntasks-per-node'):
        if name in options:
            assert shown[name].strip() == options[name]


def test_values_of_options() -> None:
    """The values of OPTION_LINES, for machines without sbatch."""
    merged: dict[str, str | None] = {}
    for line, _ in OPTION_LINES:
        merged.update(parse_script(script(f'#SBATCH {line}')).options)
    assert merged['exclusive'] is None
    assert merged['nice'] == '7'
    assert merged['no-kill'] is None
    assert merged['comment'] == 'its'
    assert merged['job-name'] == 'x"y\\z'
    assert merged['mail-user'] == 'a'
    assert merged['signal'] == 'B:USR1@90'
    assert 'no-requeue' in merged


@pytest.mark.parametrize(
    ('line', 'options'),
    [
        ('--gpu_cmode=fast --x11 --plugin value -N2', ['gpu_cmode', 'x11', 'plugin', 'nodes']),
        ('--x11', ['x11']),
    ],
)
def test_unknown_options_pass(line: str, options: list[str]) -> None:
    """Sites add options by plugins: what is not known here is kept, and sbatch decides."""
    header = parse_script(script(f'#SBATCH {line}'))
    assert list(header.options) == options
    assert header.warnings == ()


pieces = st.lists(
    st.sampled_from(['a', 'b', '-', '--x=', ' ', '  ', '\t', '"', "'", '\\', '#', ':', '=', 'é']),
    max_size=14,
).map(''.join)


@settings(repeatable, max_examples=300)
@given(pieces)
def test_arguments_are_split_as_sbatch_splits_them(sbatch: Sbatch, text: str) -> None:
    """On any line, the real sbatch finds the same arguments, or refuses it as we do."""
    _, found, said = sbatch(script(f'#SBATCH {text}'))
    try:
        arguments, _ = split_arguments(f' {text}')
    except ConfigError:
        assert 'Unmatched' in said or 'Unexpected' in said
    else:
        assert 'Unmatched' not in said
        assert 'Unexpected' not in said
        assert arguments == found


WORDS = (
    '-p -px -H -HN --hold --part --partition=y --comment --nice -k --exclusive 2 x -- - '
    '--hold=1 -vv --no-re -N2 --nope --mem-p=1'
)
words = st.sampled_from(WORDS.split())
SBATCH_ALONE_JUDGES = ('unrecognized', 'Invalid --', 'node count')


@settings(repeatable, max_examples=200)
@given(st.lists(st.lists(words, max_size=4).map(' '.join), max_size=3))
def test_options_are_refused_when_sbatch_refuses_them(sbatch: Sbatch, lines: list[str]) -> None:
    """getopt's rules: we refuse no header that sbatch takes, and take none that it refuses.

    Beside unknown long options (plugins) and values that are checked by sbatch alone.
    """
    status, _, said = sbatch(script(*(f'#SBATCH {line}' for line in lines)))
    arguments = [(number, word) for number, line in enumerate(lines, 2) for word in line.split()]
    if refuses(arguments):
        assert status != 0, said
    elif not any(words in said for words in SBATCH_ALONE_JUDGES):
        assert status == 0, said


def refuses(arguments: list[tuple[int, str]]) -> bool:
    """Tell whether our getopt refuses the arguments."""
    try:
        list(read_options(arguments))
    except ConfigError:
        return True
    return False


values = st.text(
    alphabet=st.characters(exclude_characters='\n\0', exclude_categories=['Cs']), max_size=40
)
names = st.sampled_from(['comment', 'job-name', 'output', 'mail-user', 'constraint'])


@repeatable
@given(st.dictionaries(names, st.none() | values))
def test_rendered_lines_read_back(options: dict[str, str | None]) -> None:
    """What render_sbatch_lines writes, parse_script reads back, whatever is in the values."""
    given_values = {name: value for name, value in options.items() if value is not None}
    lines = render_sbatch_lines(given_values.items())
    assert parse_script(script(*lines)).options == given_values


@repeatable
@given(st.lists(values, max_size=5))
def test_sbatch_reads_rendered_lines(sbatch: Sbatch, texts: list[str]) -> None:
    """The real sbatch reads back exactly the values that were rendered."""
    lines = render_sbatch_lines(('comment', text) for text in texts)
    _, found, said = sbatch(script(*lines))
    if not any(re.search(r'[\r\x0b-\x1f\x85\u2028\u2029]', text) for text in texts):
        assert found == [f'--comment={text}' for text in texts], said


def test_rendering() -> None:
    """Plain values stay plain, others are quoted, flags have no value."""
    assert render_sbatch_lines(
        [('partition', 'cpu'), ('hold', None), ('comment', 'a "b" \\ #'), ('comment', '')]
    ) == [
        '#SBATCH --partition=cpu',
        '#SBATCH --hold',
        '#SBATCH --comment="a \\"b\\" \\\\ #"',
        '#SBATCH --comment=',
    ]


@pytest.mark.parametrize('value', ['a\nb', 'a\0b'])
def test_values_that_no_line_can_carry(value: str) -> None:
    """A line break in a value would begin a new line of the script: refused."""
    with pytest.raises(ConfigError, match='comment: got'):
        render_sbatch_lines([('comment', value)])
