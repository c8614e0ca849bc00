"""Script headers: what is found in them, and which mistakes are refused or warned about."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_futures.errors import ConfigError
from slurm_futures.script import ScriptHeader, array_indices, fill_gaps, parse_script

repeatable = settings(derandomize=True, database=None, deadline=None)


def script(*lines: str, command: str = 'true') -> str:
    """Return a bash script with the given header lines."""
    return '\n'.join(['#!/bin/bash', *lines, command, ''])


def refusal(text: str) -> str:
    """Return the words with which a script is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_script(text)
    return str(caught.value)


def test_header_of_a_usual_script() -> None:
    """Shebang, comment lines and options are found; what follows the first command is not read."""
    text = script(
        '# my job',
        '#SBATCH --job-name=test -p cpu  # two options and a comment',
        '',
        '  # indented',
        '#SBATCH -N2 --exclusive',
        '#SBATCH --mail-type END',
        command='echo hi\n# late comment',
    )
    assert parse_script(text) == ScriptHeader(
        shebang='#!/bin/bash',
        interpreter='/bin/bash',
        argument=None,
        lines=(
            '# my job',
            '#SBATCH --job-name=test -p cpu  # two options and a comment',
            '  # indented',
            '#SBATCH -N2 --exclusive',
            '#SBATCH --mail-type END',
        ),
        options={
            'job-name': 'test',
            'partition': 'cpu',
            'nodes': '2',
            'exclusive': None,
            'mail-type': 'END',
        },
    )


@pytest.mark.parametrize(
    ('first', 'interpreter', 'argument'),
    [
        ('#!/bin/bash', '/bin/bash', None),
        ('#! /bin/sh ', '/bin/sh', None),
        ('#!/bin/bash -l', '/bin/bash', '-l'),
        ('#!\t/usr/bin/perl \t -w -T  ', '/usr/bin/perl', '-w -T'),
        ('#!/usr/bin/env -S python3 -u', '/usr/bin/env', '-S python3 -u'),
    ],
)
def test_shebang_is_split_as_linux_does(first: str, interpreter: str, argument: str | None) -> None:
    """Behind the interpreter, the rest of the line is one argument."""
    header = parse_script(f'{first}\ntrue\n')
    assert (header.interpreter, header.argument) == (interpreter, argument)
    assert header.warnings == ()


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'the script is empty'),
        (' \n\t\n', 'the script is empty'),
        ('echo hi\n', "line 1 must be '#!' and an interpreter"),
        ('\n#!/bin/bash\n', "line 1 must be '#!' and an interpreter"),
        (' #!/bin/bash\n', "line 1 must be '#!' and an interpreter"),
        ('#!bash\n', "line 1: 'bash' must be an absolute path"),
        ('#!\n', "line 1: '' must be an absolute path"),
        ('\ufeff#!/bin/bash\n', "line 1: a byte order mark stands before '#!'"),
        ('#!/bin/bash\r\necho\r\n', 'line 1: DOS line ends (CRLF)'),
        ('#!/bin/bash\r', 'line 1: DOS line ends (CRLF)'),
        ('#!/bin/bash\necho\r\n', 'line 2: DOS line ends (CRLF)'),
        ('#!/bin/bash\n\necho \0\n', 'line 3: the script has a NUL'),
        ('#!/bin/bash\n' + '#' * 4_200_000, 'the script is larger than 4 MB'),
        ('#!/' + 'x' * 300 + '\n', 'line 1: Linux reads 255 bytes of it'),
    ],
)
def test_what_cannot_run_is_refused(text: str, words: str) -> None:
    """What sbatch, Slurm or the kernel would refuse is refused, with the line and the remedy."""
    assert refusal(text).startswith(words)


def test_a_lone_carriage_return_is_no_line_end() -> None:
    """sbatch lets a carriage return within a line pass, and so do we."""
    assert parse_script("#!/bin/bash\nprintf 'a\rb'\n").warnings == ()


def test_a_script_of_4_megabytes_passes() -> None:
    """The limit is Slurm's: 4194304 bytes still pass."""
    head = '#!/bin/bash\n'
    assert parse_script(head + '#' * (4_194_304 - len(head))).interpreter == '/bin/bash'


@pytest.mark.parametrize(
    ('lines', 'words'),
    [
        (['#SBATCH -p "x'], 'line 2: " is not closed'),
        (["#SBATCH -p 'x"], "line 2: ' is not closed"),
        (['# x', '#SBATCH: -p x'], "line 3: sbatch refuses the ':'"),
        (['#SBATCH -p x : -N2'], "line 2: sbatch refuses the ':'"),
        (['#SBATCH x'], "line 2: sbatch refuses 'x', which is no option"),
        (['#SBATCH --partition = x'], "line 2: sbatch refuses 'x', which is no option"),
        (
            ['#SBATCH \u2013p x'],
            "line 2: sbatch refuses '\u2013p', which is no option: '\u2013' is not",
        ),
        (['#SBATCH -- -p x'], "line 2: sbatch refuses '--', which is no option"),
        (['#SBATCH --hold=yes'], 'line 2: --hold takes no value'),
        (['#SBATCH -N2', '#SBATCH --partition'], 'line 3: --partition needs a value'),
        (['#SBATCH -Hp'], 'line 2: --partition needs a value'),
        (['#SBATCH --mem-per=1'], 'line 2: --mem-per could be any of mem-per-cpu, mem-per-gpu'),
        (['#SBATCH -y'], 'line 2: sbatch has no option -y'),
        (['#SBATCH -job-name=x'], "line 2: sbatch has no option -j ('-job-name=x' means -j"),
        (['#SBATCH -N1', '#SBATCH hetjob', '#SBATCH -N2'], 'line 3: heterogeneous jobs are not'),
        (['#SBATCH packjob'], 'line 2: heterogeneous jobs are not supported'),
        (['#SBATCH -W'], "line 2: remove --wait: sbatch waits for the job's end"),
        (['#SBATCH --test-only'], 'line 2: remove --test-only: sbatch submits nothing'),
        (['#SBATCH -Q'], 'line 2: remove --quiet: sbatch does not print the job id'),
    ],
)
def test_header_mistakes_are_refused(lines: list[str], words: str) -> None:
    """What sbatch refuses, or what would keep it from answering, is refused with its line."""
    assert refusal(script(*lines)).startswith(words)


def test_lines_after_the_first_command_are_refused() -> None:
    """#SBATCH lines that Slurm would ignore silently are refused, all of them named."""
    text = script('#SBATCH -N1', command='cd /tmp\n#SBATCH -p x\n\n  # c\n#SBATCH -t 5\necho')
    assert refusal(text) == (
        'lines 4, 7: Slurm ignores #SBATCH behind the first command (line 3): move it up'
    )
    assert refusal(script(command='true\n#SBATCH -p x')).startswith('line 3: Slurm ignores')


def test_no_break_space_is_a_command() -> None:
    """A line with a no-break space looks blank, but ends the header for Slurm."""
    assert refusal(script('\u00a0', '#SBATCH -N1')).startswith('line 3: Slurm ignores #SBATCH')


@pytest.mark.parametrize(
    'opening', ['<<EOF', '<<-EOF', "<<'EOF'", '<< "EOF"', '<<\\EOF', '>a.sh <<EOF']
)
def test_here_documents_may_hold_other_scripts(opening: str) -> None:
    """A script that writes another script is not refused for the other one's #SBATCH lines."""
    text = script(command=f'cat {opening}\n#!/bin/sh\n#SBATCH -N1\nEOF\necho')
    assert parse_script(text).options == {}
    assert refusal(text + '#SBATCH -p x\n').startswith('line 7: ')


@pytest.mark.parametrize('line', ['echo $((1<<n))', 'read x <<<EOF', 'cat << 3'])
def test_what_only_looks_like_a_here_document(line: str) -> None:
    """A shift or a here-string hides no #SBATCH line that follows it."""
    assert refusal(script(command=f'{line}\n#SBATCH -p x')).startswith('line 3: ')


@pytest.mark.parametrize(
    ('lines', 'warning'),
    [
        (['#SBATCH -partition=x'], "line 2: '-partition=x' means -p with the value 'artition=x'"),
        (['# SBATCH --x=1'], "line 2: Slurm ignores '# SBATCH --x=1': the line must start with"),
        (['#sbatch -p x'], "line 2: Slurm ignores '#sbatch -p x'"),
        (['#Sbatch: --x'], "line 2: Slurm ignores '#Sbatch: --x'"),
        (['', ' #SBATCH -p x'], "line 3: Slurm ignores ' #SBATCH -p x'"),
        (['#SBTACH -p x'], "line 2: Slurm ignores '#SBTACH -p x'"),
        (
            ['#SBATCH --partion=x'],
            'line 2: sbatch has no option --partion of its own: did you mean',
        ),
        (
            ['#SBATCH --job-name', '#SBATCH -N2'],
            "line 2: --job-name takes its value, '-N2', from l",
        ),
        (['#SBATCH -J "" -p x', '#SBATCH -N1'], 'line 2: sbatch stops reading at \'"" -p x\''),
        (['#SLURM -N1'], 'line 2: write #SBATCH for #SLURM'),
    ],
)
def test_suspicious_lines_are_warned_about(lines: list[str], warning: str) -> None:
    """What sbatch takes, but not for what it looks like, gives a warning that names the line."""
    assert parse_script(script(*lines)).warnings[0].startswith(warning)


@pytest.mark.parametrize(
    'line',
    [
        '# SBATCH lines follow',
        '##SBATCH -p x',
        '# about sbatch -p',
        '#SBATCH',
        '#PBS -N x',
        '#',
        '#MSUB -l x',
    ],
)
def test_ordinary_comments_give_no_warning(line: str) -> None:
    """Prose, other systems' lines and options that are switched off are left alone."""
    assert parse_script(script(line)).warnings == ()


def test_env_with_two_words_is_warned_about() -> None:
    """'#!/usr/bin/env python3 -u' looks for a program of that name; -S is the remedy."""
    header = parse_script('#!/usr/bin/env python3 -u\n')
    assert header.warnings == (
        "line 1: 'python3 -u' is passed as one argument: write /usr/bin/env -S python3 -u",
    )


def test_long_shebang_is_warned_about() -> None:
    """More than 127 bytes work on newer kernels only."""
    header = parse_script(f'#!/{"x" * 150}\n')
    assert header.warnings == ('line 1: kernels before 5.1 cut it after 127 bytes',)


def test_last_one_counts() -> None:
    """An option that stands twice has its last value, as in sbatch."""
    assert parse_script(script('#SBATCH -p x', '#SBATCH --partition=y')).options == {
        'partition': 'y'
    }


@pytest.mark.parametrize(
    ('lines', 'left'),
    [
        ([], ['partition', 'mem', 'requeue', 'exclusive', 'cpus-per-task']),
        (['-p x'], ['mem', 'requeue', 'exclusive', 'cpus-per-task']),
        (['--mem-per-cpu=1G'], ['partition', 'requeue', 'exclusive', 'cpus-per-task']),
        (['--mem-per-gpu=1G'], ['partition', 'requeue', 'exclusive', 'cpus-per-task']),
        (['--no-requeue', '-s'], ['partition', 'mem', 'cpus-per-task']),
        (['--cpus-per-gpu=2'], ['partition', 'mem', 'requeue', 'exclusive']),
    ],
)
def test_resources_fill_gaps_only(lines: list[str], left: list[str]) -> None:
    """The script's own lines win, over options that exclude theirs too."""
    header = parse_script(script(*(f'#SBATCH {line}' for line in lines)))
    options = [
        ('partition', 'y'),
        ('mem', '2G'),
        ('requeue', None),
        ('exclusive', None),
        ('cpus-per-task', '4'),
    ]
    assert [name for name, _ in fill_gaps(header, options)] == left


@pytest.mark.parametrize(
    ('spec', 'indices'),
    [
        ('0', (0,)),
        ('0-3', (0, 1, 2, 3)),
        ('0-15:4%2', (0, 4, 8, 12)),
        ('1,3,5-7', (1, 3, 5, 6, 7)),
        ('7,1-3,2', (1, 2, 3, 7)),
        ('5-5', (5,)),
        ('0-4:9', (0,)),
        ('4000000', (4_000_000,)),
    ],
)
def test_array_indices(spec: str, indices: tuple[int, ...]) -> None:
    """Numbers, ranges, steps; ascending, each index once; the limit behind '%' changes nothing."""
    assert array_indices(spec) == indices


@pytest.mark.parametrize(
    'spec',
    [
        *('', ',', '1,', 'a', '-1', '3-1', '1-5:0', '1-', '1:2', '1%', '%2', '1%2%3', '1 '),
        *('4000001', '0-99999999999', '\uff11', '1-3%2,5'),
    ],
)
def test_bad_array_specifications(spec: str) -> None:
    """Anything else is refused, in no time and memory even where it names billions."""
    with pytest.raises(ConfigError, match=r'^array '):
        array_indices(spec)


ranges = st.tuples(st.integers(0, 500), st.integers(0, 60), st.integers(1, 7))


@repeatable
@given(st.lists(ranges, min_size=1, max_size=6), st.none() | st.integers(1, 99))
def test_array_indices_round_trip(parts: list[tuple[int, int, int]], limit: int | None) -> None:
    """A specification written from ranges gives the union of the ranges."""
    spec = ','.join(f'{first}-{first + more}:{step}' for first, more, step in parts)
    expected = {i for first, more, step in parts for i in range(first, first + more + 1, step)}
    assert array_indices(spec + (f'%{limit}' if limit else '')) == tuple(sorted(expected))


@repeatable
@given(st.text(alphabet='0123456789-,:%', max_size=12))
def test_array_specifications_never_surprise(spec: str) -> None:
    """Any text either gives indices within Slurm's bounds or a ConfigError."""
    try:
        indices = array_indices(spec)
    except ConfigError:
        return
    assert 0 <= indices[0] <= indices[-1] <= 4_000_000


@repeatable
@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text makes the parser fail in another way than by ConfigError."""
    for whole in (text, f'#!/bin/sh\n#SBATCH {text}'):
        try:
            header = parse_script(whole)
        except ConfigError:
            continue
        assert header.interpreter.startswith('/')


@pytest.mark.timeout(20)
def test_large_scripts_are_read_quickly() -> None:
    """A script near the limit, full of here-documents, takes time by its length, not its square."""
    body = 'cat <<EOF\n#SBATCH -x\nEOF\n' * 100_000
    assert parse_script(script(command=body)).options == {}
