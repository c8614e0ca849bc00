"""BashScript and its parts: what they refuse, and the text that they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slurm_futures
from slurm_futures import BashGroup, BashScript, BashStep, BashTemplate, ConfigError
from slurm_futures.script import parse_script

GOLDEN = Path(__file__).parent / 'golden' / 'steps.sh'

SWEEP = BashScript(
    BashTemplate(
        shebang='#!/bin/bash -l',
        header=['#SBATCH --time=02:00:00', '#SBATCH --gpus=2  # one for each'],
        setup=['module load cuda', "export OUT='all of it'"],
        teardown='rsync -a "$TMPDIR/" "$OUT"',
    ),
    [
        BashStep(['python', Path('prepare it.py'), '--name', "it's"], checkpoint='prepared'),
        BashGroup(
            [
                BashStep('python train.py\ncp model $OUT', cwd='runs/1', checkpoint='done'),
                BashStep("python train.py || echo 'none'", cwd='/runs/2', exit_on_error=False),
            ],
            parallel=2,
        ),
        BashStep('sort < log', checkpoint='/var/done\n'),
    ],
)


def above_the_functions(script: BashScript) -> str:
    """Return the part of a script that tells what is run."""
    return script.render().partition('# ---- how they are run')[0]


def words(cmd: Any) -> str:
    """Return how a step's command stands in the script."""
    text = above_the_functions(BashScript(BashTemplate(), [BashStep(cmd)]))
    return text.partition('sf_step_1=(')[2].rstrip().removesuffix(')')


def test_golden_text() -> None:
    """The script is as it was when somebody last looked at it in full."""
    assert SWEEP.render() == GOLDEN.read_text(), f'if it is meant to be so, write it to {GOLDEN}'


def test_the_least_script() -> None:
    """A step by itself needs nothing else, and then nothing else stands there."""
    script = BashScript(BashTemplate(), [BashStep(['true'])])
    assert above_the_functions(script) == (
        '#!/bin/bash\n#\n'
        '# Written by slurm_futures: first what is run, then how. All names in it begin with sf_.\n'
        "\nsf_setup=''\n\nsf_teardown=''\n\n# ---- step 1\nsf_step_1=(true)\n\n"
    )
    assert script.render().endswith(
        '# ---- the run\n\neval "$sf_setup"$\'\\nsf_ready=yes\'\nsf_begin\n\n'
        'sf_run 1 1\nsf_finish 0\n'
    )


def test_slurm_reads_the_header() -> None:
    """The template's header is what sbatch finds in the script, and nothing behind it is."""
    inner = "cat > job.sh <<'END'\n#!/bin/bash\n#SBATCH --nodes=2\nEND\nsbatch job.sh"
    template = BashTemplate(header='#SBATCH --time=5\n# why so long\n#SBATCH -p cpu\n')
    script = BashScript(template, [BashStep(inner), BashStep(['echo', 'a\n#SBATCH -N 3'])])
    header = parse_script(script.render())
    assert header.options == {'time': '5', 'partition': 'cpu'}
    assert header.warnings == ()


@pytest.mark.parametrize(
    ('cmd', 'expected'),
    [
        (['python', Path('a b'), '--x=1', '$HOME', ''], "python 'a b' --x=1 '$HOME' ''"),
        (['echo', "it's", 'a\nb\tc\\', 'é 数'], r"echo $'it\'s' $'a\nb\tc\\' 'é 数'"),
        (['echo', '\x1b[0m', '\r', "'\\"], r"echo $'\x1b[0m' $'\r' $'\'\\'"),
        (('echo', '-n', '~', '*', '[0]=x'), "echo -n '~' '*' '[0]=x'"),
        ('echo hi', "eval 'echo hi'"),
        ('\n  a\n\n  b\n\n', "eval '\n  a\n\n  b'"),
        ("echo 'a'", "eval 'echo '\\''a'\\'''"),
    ],
)
def test_commands_are_quoted(cmd: Any, expected: str) -> None:
    """A list is quoted word by word, lines as a whole; both can be read."""
    assert words(cmd) == expected


@pytest.mark.parametrize(
    ('cwd', 'checkpoint', 'expected'),
    [
        ('a', 'b', ['sf_cwd[1]=./a', 'sf_checkpoint[1]=./a/b']),
        ('/a', 'b', ['sf_cwd[1]=/a', 'sf_checkpoint[1]=/a/b']),
        (Path('a'), Path('/b'), ['sf_cwd[1]=./a', 'sf_checkpoint[1]=/b']),
        (None, 'b', ['sf_checkpoint[1]=./b']),
        ('-', None, ['sf_cwd[1]=./-']),
        ('./~', '$(x)', ["sf_cwd[1]='././~'", "sf_checkpoint[1]='././~/$(x)'"]),
    ],
)
def test_paths(cwd: Any, checkpoint: Any, expected: list[str]) -> None:
    """A relative checkpoint is in the step's cwd; neither looks like an option."""
    step = BashStep('true', cwd=cwd, checkpoint=checkpoint)
    lines = above_the_functions(BashScript(BashTemplate(), [step])).splitlines()
    assert [line for line in lines if line.startswith(('sf_cwd', 'sf_checkpoint'))] == expected


def test_parts_are_values() -> None:
    """They are immutable, comparable and hashable, also when made from lists."""
    lines = ['#SBATCH -p cpu']
    template = BashTemplate(header=lines)
    lines.append('#SBATCH -p long')
    assert template == BashTemplate(header='#SBATCH -p cpu\n')
    assert template.header == ('#SBATCH -p cpu',)
    step = BashStep(['echo', Path('x')])
    assert step == BashStep(('echo', 'x'))
    assert hash(BashScript(template, [step])) == hash(BashScript(template, (step,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.cmd = 'x'  # type: ignore[misc]


def test_names_of_the_package() -> None:
    """The package has them, though it imports them only when asked; other names it has not."""
    names = {'BashGroup', 'BashScript', 'BashStep', 'BashTemplate'}
    assert names <= set(slurm_futures.__all__)
    assert names <= set(dir(slurm_futures))
    with pytest.raises(AttributeError, match='BashFoo'):
        _ = slurm_futures.BashFoo  # type: ignore[attr-defined]


STEP = BashStep('true')

REFUSED: list[tuple[Callable[[], object], str]] = [
    # headers
    (
        lambda: BashTemplate(header=['#SBATCH -partition=cpu']),
        "'#SBATCH -partition=cpu': '-partition=cpu' means -p with the value 'artition=cpu': write",
    ),
    (
        lambda: BashTemplate(header=['#SBATCH -p cpu', '--time=10']),
        "header: got '--time=10'; write lines that start with '#SBATCH '",
    ),
    (lambda: BashTemplate(header='SBATCH -p cpu'), "lines that start with '#SBATCH '"),
    (lambda: BashTemplate(header=['rm -rf /']), "lines that start with '#SBATCH '"),
    (lambda: BashTemplate(header=[' #SBATCH -p x']), "lines that start with '#SBATCH '"),
    (lambda: BashTemplate(header=['#!/bin/bash']), "lines that start with '#SBATCH '"),
    (lambda: BashTemplate(header=['# SBATCH -p x']), "Slurm ignores '# SBATCH -p x'"),
    (lambda: BashTemplate(header=['#sbatch -p x']), "Slurm ignores '#sbatch -p x'"),
    (lambda: BashTemplate(header=['#SBATHC -p x']), "Slurm ignores '#SBATHC -p x'"),
    (lambda: BashTemplate(header=['#SBATCH --time']), "'#SBATCH --time': --time needs a value"),
    (lambda: BashTemplate(header=['#SBATCH -Z']), "'#SBATCH -Z': sbatch has no option -Z"),
    (lambda: BashTemplate(header=['#SBATCH x']), "sbatch refuses 'x', which is no option"),
    (lambda: BashTemplate(header=['#SBATCH --wait']), "'#SBATCH --wait': remove --wait"),
    (
        lambda: BashTemplate(header=['#SBATCH -J a\n#SBATCH --array=0-999']),
        r"header: got '#SBATCH -J a\\n#SBATCH --array=0-999'; line breaks and NUL",
    ),
    (lambda: BashTemplate(header='#SBATCH -J a\rb'), 'line breaks and NUL'),
    (lambda: BashTemplate(header=[3]), 'header: got 3; write a string'),  # type: ignore[list-item]
    (lambda: BashTemplate(header=None), 'header: got None; write lines such as'),  # type: ignore[arg-type]
    (
        lambda: BashTemplate(header={'partition': 'cpu'}),  # type: ignore[arg-type]
        "header: got {'partition': 'cpu'}; write lines .* or ask for resources by with_resources",
    ),
    # the other parts of templates
    (lambda: BashTemplate('#!/bin/sh'), "shebang: got '#!/bin/sh'; the steps need bash"),
    (lambda: BashTemplate('#!/usr/bin/env python3'), 'the steps need bash'),
    (lambda: BashTemplate('#!bash'), "shebang: line 1: 'bash' must be an absolute path"),
    (lambda: BashTemplate('bash'), "shebang: line 1 must be '#!' and an interpreter"),
    (lambda: BashTemplate('#!/bin/bash\nrm -rf /'), 'shebang: got .*line breaks'),
    (lambda: BashTemplate(None), 'shebang: got None; write a string'),  # type: ignore[arg-type]
    (lambda: BashTemplate(setup=[1]), r'setup: got \[1\]; write shell lines'),  # type: ignore[list-item]
    (lambda: BashTemplate(setup='a\0'), 'setup: .*NUL'),
    (lambda: BashTemplate(teardown='echo \udcff'), 'teardown: .*not valid Unicode'),
    (lambda: BashTemplate('#!/bin/sh', teardown=1), 'shebang: .*; teardown: got 1'),  # type: ignore[arg-type]
    # steps
    (lambda: BashStep(''), "cmd: got ''; write a command"),
    (lambda: BashStep(' \n'), 'cmd: got .*; write a command'),
    (lambda: BashStep('a\0b'), 'cmd: .*NUL'),
    (lambda: BashStep('a\r\nb'), 'cmd: .*carriage returns'),
    (lambda: BashStep([]), r'cmd: got \[\]; begin the list with a command'),
    (lambda: BashStep(['', 'a']), 'cmd: got .*; begin the list with a command'),
    (lambda: BashStep(['echo', 1]), 'cmd: got 1; write strings or paths'),  # type: ignore[list-item]
    (lambda: BashStep(['echo', b'x']), "cmd: got b'x'; write strings or paths"),  # type: ignore[list-item]
    (lambda: BashStep(['echo', 'a\0']), 'cmd: got .*; a NUL is not possible here'),
    (lambda: BashStep(['echo', '\udcff']), 'cmd: got .*, which is not valid Unicode'),
    (lambda: BashStep(b'echo'), "cmd: got b'echo'; write lines for bash, or a list"),  # type: ignore[arg-type]
    (lambda: BashStep(None), 'cmd: got None; write lines for bash, or a list'),  # type: ignore[arg-type]
    (lambda: BashStep('true', cwd=''), "cwd: got ''; leave it out instead"),
    (lambda: BashStep('true', cwd=3), 'cwd: got 3; write strings or paths'),  # type: ignore[arg-type]
    (lambda: BashStep('true', cwd='~/x'), "cwd: got '~/x'; '~' is not expanded"),
    (lambda: BashStep('true', checkpoint='a/'), "checkpoint: got 'a/'; write the path of a file"),
    (lambda: BashStep('true', checkpoint='a\0'), 'checkpoint: got .*NUL'),
    (lambda: BashStep('true', exit_on_error=1), 'exit_on_error: got 1; write True or False'),  # type: ignore[arg-type]
    # groups and scripts
    (lambda: BashGroup([STEP], 0), 'parallel: got 0; write a whole number of at least 1'),
    (lambda: BashGroup([STEP], True), 'parallel: got True'),
    (lambda: BashGroup([], 2), r'steps: got \[\]; write a list of BashStep'),
    (lambda: BashGroup([BashGroup([STEP], 1)], 2), 'in the list; write BashStep'),  # type: ignore[list-item]
    (lambda: BashScript(BashTemplate(), []), r'steps: got \[\]; write a list of BashStep or Bash'),
    (lambda: BashScript(BashTemplate(), STEP), 'steps: got BashStep.*; write a list'),  # type: ignore[arg-type]
    (lambda: BashScript(BashTemplate(), ['echo']), "steps: got 'echo' in the list"),  # type: ignore[list-item]
    (lambda: BashScript(BashTemplate(), 'echo'), "steps: got 'echo'; write a list"),  # type: ignore[arg-type]
    (lambda: BashScript([STEP], [STEP]), r'template: got \[.*; write a BashTemplate'),  # type: ignore[arg-type]
    (
        lambda: BashScript(
            BashTemplate(),
            [
                BashStep('a', cwd='x', checkpoint='y'),
                STEP,
                BashGroup([BashStep('b', checkpoint='./x/y')], parallel=1),
            ],
        ),
        "steps: 1 and 3 have the same checkpoint, './x/y': give each its own",
    ),
    (
        lambda: BashScript(
            BashTemplate(header=['#SBATCH -a 0-3']), [BashStep('a', checkpoint='x')]
        ),
        "the tasks of a job array would share the checkpoint 'x'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(('make', 'expected'), REFUSED)
def test_what_cannot_work_is_refused(make: Callable[[], object], expected: str) -> None:
    """Mistakes are refused where they are made, by the name of the field, with the remedy."""
    with pytest.raises(ConfigError, match=expected):
        make()


@pytest.mark.parametrize(
    'line',
    [
        '#SBATCH --partition=cpu --time 10',
        '#SBATCH -p cpu',
        '##SBATCH --mem=4G',
        '# a comment',
        '#SBATCH --container-image=nvcr.io/pytorch  # an option of a plugin',
        '#SBATCH --cmoment=typo?',
    ],
)
def test_header_lines_that_pass(line: str) -> None:
    """What Slurm reads, comments, and what may be the option of a site's plugin."""
    assert BashTemplate(header=[line, '']).header == (line,)


@pytest.mark.parametrize(
    'shebang', ['#!/bin/bash', '#!/bin/bash -eu', '#!/usr/bin/env bash', '#!/opt/bash-5.2/bash5']
)
def test_shebangs_that_pass(shebang: str) -> None:
    """Any bash will do, with any options."""
    assert BashTemplate(shebang).shebang == shebang
