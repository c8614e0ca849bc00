"""Rendered scripts, run through bash: what their steps do, and what becomes of the script."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HOSTILE_NAME
from helpers import children, is_gone, wait_for
from slurm_futures import BashGroup, BashScript, BashStep, BashTemplate
from waiting import Gate

HOSTILE_NAMES = [
    HOSTILE_NAME,
    'line\nbreak\n',
    '$(touch pwned)`touch pwned`',
    '-rf',
    '-',
    ' ',
    '*',
    '\\',
    '\x1b[31m\r\t',
    '[0]=x',
]


class Script:
    """A rendered script, running with one file for both its outputs.

    Args:
        folder: where it runs.
        steps: its steps; strings and lists are commands of steps.
        template: what stands around them.
        env: variables to add to its environment.
    """

    def __init__(
        self,
        folder: Path,
        steps: Sequence[Any],
        template: BashTemplate | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        steps = [BashStep(step) if isinstance(step, str | list) else step for step in steps]
        self._path = folder.parent / 'script.sh'
        self._path.write_text(BashScript(template or BashTemplate(), steps).render(), newline='')
        self._log = folder.parent / 'script.log'
        gpus = {'CUDA_VISIBLE_DEVICES': ''}
        with self._log.open('wb') as log:
            self.process = subprocess.Popen(
                ['bash', str(self._path)],
                cwd=folder,
                env={**os.environ, **gpus, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(30)

    @property
    def lines(self) -> list[str]:
        """What it has printed, without the path of the script in bash's messages."""
        text = self._log.read_text(encoding='utf-8', errors='replace')
        return text.replace(str(self._path), 'SCRIPT').splitlines()

    def prints(self, line: str) -> None:
        """Wait until it has printed a line."""
        wait_for(lambda: line in self.lines)

    def close(self) -> None:
        """End it and all that it has started, if need be."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


Start = Callable[..., Script]


@pytest.fixture
def start(work_dir: Path) -> Iterator[Start]:
    """Starts scripts in a folder with a hostile name."""
    scripts: list[Script] = []
    folder = work_dir / 'here'
    folder.mkdir()

    def start(*steps: Any, template: BashTemplate | None = None, **env: str) -> Script:
        scripts.append(Script(folder, steps, template, env))
        return scripts[-1]

    yield start
    for script in scripts:
        script.close()
    assert not list(work_dir.rglob('pwned'))


@pytest.fixture
def here(start: Start, work_dir: Path) -> Path:
    """The folder where scripts run."""
    return work_dir / 'here'


@pytest.fixture
def run(start: Start) -> Callable[..., tuple[int, list[str]]]:
    """Runs a script to its end; returns its exit status, and what it has printed."""

    def run(*steps: Any, **options: Any) -> tuple[int, list[str]]:
        script = start(*steps, **options)
        return script.end(), script.lines

    return run


Run = Callable[..., tuple[int, list[str]]]

WITH_TEARDOWN = BashTemplate(teardown='echo teardown')


def failed(number: int, code: int, *, may: bool = False) -> str:
    """Return the line that tells of a step's failure."""
    which = f'slurm_futures: step {number} failed with exit status {code}'
    return f'{which}, which it may' if may else which


# ---- one after the other


def test_steps_run_in_order(run: Run) -> None:
    """What is printed, to stdout and stderr, stays in order: nothing stands between."""
    code, lines = run('echo 1; echo 2 >&2', ['echo', '3'], 'echo 4 >&2; echo 5')
    assert (code, lines) == (0, ['1', '2', '3', '4', '5'])


def test_a_failure_ends_the_script(run: Run) -> None:
    """It ends with the step's exit status, behind the teardown; later steps do not run."""
    code, lines = run('echo 1', 'exit 3', 'echo never', template=WITH_TEARDOWN)
    assert (code, lines) == (3, ['1', failed(2, 3), 'teardown'])


def test_a_failure_that_is_allowed(run: Run) -> None:
    """With exit_on_error=False the script goes on, and its exit status does not tell."""
    step = BashStep('false', exit_on_error=False)
    code, lines = run(step, 'echo 2', template=WITH_TEARDOWN)
    assert (code, lines) == (0, [failed(1, 1, may=True), '2', 'teardown'])


@pytest.mark.parametrize(
    ('cmd', 'code'),
    [
        ('false\necho never', 1),
        ('(exit 3)\necho never', 3),
        ('f() { false; echo never; }\nf\necho never', 1),
        ('if true; then\n  (exit 4)\nfi\necho never', 4),
        ('for i in 1 2; do (exit $i); echo never; done', 1),
        ('x=$(exit 5)\necho never', 5),
        ('cat <<END | (exit 6)\ntext\nEND\necho never', 6),
        ('no-such-command\necho never', 127),
        ('cd /no/such/folder\necho never', 1),
        ('true && false', 1),
        ('return 7\necho never', 7),
        ('exit 300\necho never', 44),
        ('kill -KILL $BASHPID\necho never', 137),
    ],
)
def test_every_line_counts(run: Run, cmd: str, code: int) -> None:
    """A line that fails ends its step, as with `bash -e`, wherever it stands; so does `exit`."""
    found, lines = run(BashStep(cmd, exit_on_error=False), cmd, 'echo never')
    assert found == code
    assert [failed(1, code, may=True), failed(2, code)] == [
        line for line in lines if line.startswith('slurm_futures')
    ]
    assert 'never' not in lines


@pytest.mark.parametrize(
    'cmd',
    [
        'false || echo more',
        'if false; then echo never; fi\necho more',
        'false | true\necho more',
        'exit 0\nfalse',
        'x=$(false; echo more)\necho $x',
        '(exit 3) &\nwait $! || echo more',
    ],
)
def test_what_bash_does_not_count(run: Run, cmd: str) -> None:
    """Conditions, all but the last of a pipeline, and the like, as with `bash -e`."""
    code, lines = run(cmd, 'echo next')
    assert code == 0
    assert lines[-1] == 'next'
    assert ('more' in lines) == ('more' in cmd)


def test_pipelines_if_asked(run: Run) -> None:
    """With `set -o pipefail` in the setup, every part of a pipeline counts."""
    code, _ = run('false | true', template=BashTemplate(setup='set -o pipefail'))
    assert code == 1


@pytest.mark.parametrize(
    'cmd', ['echo "', "echo '", 'if true', '}', 'done', '( echo', 'echo $(', 'a |', 'x=(', '${']
)
def test_broken_code_stays_in_its_step(run: Run, cmd: str) -> None:
    """What bash cannot read fails its own step, and no other is lost by it."""
    step = BashStep(cmd, exit_on_error=False)
    code, lines = run('echo 1', step, step, "echo '3'", template=WITH_TEARDOWN)
    assert code == 0
    assert (lines[0], lines[-2:]) == ('1', ['3', 'teardown'])
    assert len([line for line in lines if 'failed' in line]) == 2


def test_text_of_steps_is_run_as_it_is(run: Run, here: Path) -> None:
    """Quotes, backslashes, here-documents, and lines that look like Slurm's, are kept."""
    code, lines = run(
        "cat > job.sh <<'END'\n#!/bin/bash\n#SBATCH --nodes=2\necho $HOME \\\n'it''s'\nEND",
        'awk \'BEGIN { print "it" }\'\necho "$#" \'$1\' \\\n  continued',
    )
    assert (code, lines) == (0, ['it', '0 $1 continued'])
    text = "#!/bin/bash\n#SBATCH --nodes=2\necho $HOME \\\n'it''s'\n"
    assert (here / 'job.sh').read_text() == text


# ---- commands as lists


@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']))
            | st.sampled_from(
                [*HOSTILE_NAMES, '', '~', '{a,b}', '!x', '#', 'a=~', '-n', "$'", "'"]
            ),
            min_size=1,
        ),
        min_size=1,
        max_size=50,
    )
)
def test_lists_reach_the_command_as_they_are(lists: list[list[str]]) -> None:
    """Each argument arrives as it was given, whatever is in it."""
    steps = [BashStep(['printf', '%s\\0', '', *words]) for words in lists]
    script = BashScript(BashTemplate(), steps).render()
    # bash reads it from stdin: no file is written for each example.
    done = subprocess.run(['bash', '-s'], input=script.encode(), capture_output=True, check=True)
    assert done.stderr == b''
    expected = [word for words in lists for word in ('', *words)]
    assert done.stdout.decode().split('\0')[:-1] == expected


@pytest.mark.parametrize('word', ['if', '!', '{', 'A=b', '[[', 'function', '-x', '~', '*'])
def test_the_first_word_is_a_command(run: Run, word: str) -> None:
    """It is no keyword, assignment, or pattern."""
    code, lines = run([word, 'true'])
    assert code == 127
    assert lines[0].endswith(f'{word}: command not found')


def test_lists_find_functions(run: Run) -> None:
    """Functions and builtins, such as those that setup defines, may be commands too."""
    template = BashTemplate(setup='greet() { echo "hello $1"; }')
    assert run(['greet', 'you'], ['eval', 'echo "$0" >/dev/null; exit 4'], template=template) == (
        4,
        ['hello you', failed(2, 4)],
    )


# ---- folders


@pytest.mark.parametrize('name', HOSTILE_NAMES)
def test_cwd_is_entered_and_left(run: Run, here: Path, name: str) -> None:
    """A step runs in its cwd, the next one is back, whatever the name; CDPATH leads nowhere."""
    (here / name).mkdir()
    (here.parent / 'other' / name).mkdir(parents=True)
    cdpath = str(here.parent / 'other')
    code, lines = run(BashStep('pwd > file', cwd=name), ['pwd'], CDPATH=cdpath)
    assert (code, lines) == (0, [str(here)])
    assert (here / name / 'file').read_bytes().decode() == f'{here / name}\n'


def test_cwd_may_be_absolute(run: Run, tmp_path: Path) -> None:
    """An absolute cwd is that folder, and a PathLike is as good as a string."""
    assert run(BashStep('pwd', cwd=tmp_path)) == (0, [str(tmp_path)])


@pytest.mark.parametrize('name', ['missing', '-', 'file', HOSTILE_NAME])
def test_missing_cwd_fails_the_step(run: Run, here: Path, name: str) -> None:
    """The command then runs nowhere, and nothing is marked as done."""
    (here / 'file').touch()
    step = BashStep('echo never', cwd=name, checkpoint='done')
    code, lines = run(step, 'echo never', template=WITH_TEARDOWN)
    assert code == 1
    assert 'cd: ' in lines[0]
    assert lines[1:] == [failed(1, 1), 'teardown']
    assert sorted(path.name for path in here.rglob('*')) == ['file']


# ---- checkpoints


@pytest.mark.parametrize('name', [*HOSTILE_NAMES, 'deep/in/folders'])
def test_checkpoints(run: Run, here: Path, name: str) -> None:
    """A step that has succeeded leaves its marker; where there is one, the step is skipped."""
    (here / 'run').mkdir()
    step = BashStep('echo run; exit 0', cwd='run', checkpoint=name)
    assert run(step, 'echo 2') == (0, ['run', '2'])
    assert (here / 'run' / name).read_bytes() == b''
    code, lines = run(step, 'echo 2')
    told = '\n'.join(lines).replace('\r', '\n')
    assert (code, 'run' in lines, lines[-1]) == (0, False, '2')
    shown = f'slurm_futures: step 1 is skipped: there is ./run/{name}'
    assert told == '\n'.join(f'{shown}\n2'.replace('\r', '\n').splitlines())


def test_only_success_is_marked(run: Run, here: Path) -> None:
    """A step that fails is run again the next time; what was done before it is not."""
    steps = [
        BashStep('echo 1', checkpoint='1'),
        BashStep('echo 2; exit 2', checkpoint='2', exit_on_error=False),
        BashStep('echo 3; [ -e ready ]', checkpoint=here / '3'),
    ]
    first = ['1', '2', failed(2, 2, may=True), '3', failed(3, 1)]
    assert run(*steps) == (1, first)
    assert [path.name for path in here.iterdir()] == ['1']
    (here / 'ready').touch()
    code, lines = run(*steps)
    assert code == 0
    assert lines == ['slurm_futures: step 1 is skipped: there is ./1', *first[1:-1]]
    assert sorted(path.name for path in here.iterdir()) == ['1', '3', 'ready']


def test_checkpoint_is_looked_for_before_cwd(run: Run, here: Path) -> None:
    """A step that is done may have removed the folder that it ran in."""
    (here / 'run').mkdir()
    step = BashStep('rmdir ../run', cwd='run', checkpoint=here / 'done')
    assert run(step) == (0, [])
    assert run(step) == (0, [f'slurm_futures: step 1 is skipped: there is {here}/done'])


def test_checkpoint_that_cannot_be_written(run: Run, here: Path) -> None:
    """Then the step counts as failed: who relies on the marker must know."""
    (here / 'file').touch()
    code, lines = run(BashStep('echo run', checkpoint='file/done'))
    assert code == 1
    assert (lines[0], lines[-1]) == ('run', failed(1, 1))


# ---- setup and teardown


def test_setup_is_seen_by_steps(run: Run, here: Path) -> None:
    """Its variables, functions, options and folder are; what a step changes, the next does not see.

    The teardown sees what setup has made, too.
    """
    (here / 'inner').mkdir()
    template = BashTemplate(
        setup=['x=setup', 'f() { echo "f $1"; }', 'shopt -s nullglob', 'IFS=:', 'cd inner'],
        teardown='f "$x" *.none',
    )
    change = 'x=step; f() { :; }; shopt -u nullglob; cd /; export y=1; IFS='
    look = 'f $x; echo ${y-none} *.none; pwd; v=a:b; printf "<%s>" $v'
    code, lines = run(change, look, template=template)
    assert code == 0
    assert lines == ['f setup', 'none', f'{here}/inner', '<a><b>f setup']


@pytest.mark.parametrize('setup', ['set -eu', 'set -euo pipefail; set -C', 'set -f', 'set -- a b'])
def test_setup_may_ask_bash_to_be_strict(run: Run, setup: str) -> None:
    """Options that setup sets do not get in the way of running steps."""
    steps = [
        BashStep('false', exit_on_error=False),
        BashGroup([BashStep('echo 2', checkpoint='x'), BashStep('exit 3')], parallel=1),
    ]
    told = [failed(1, 1, may=True), '2', failed(3, 3), 'teardown']
    template = BashTemplate(setup=setup, teardown='echo teardown')
    assert run(*steps, template=template) == (3, told)


def test_strict_interpreter(run: Run, start: Start) -> None:
    """After `set -u` unset variables fail a step; -e in line 1 is what steps have anyway."""
    code, lines = run('echo "$unset_variable"', template=BashTemplate(setup='set -u'))
    assert code == 1
    assert 'unset_variable: unbound variable' in lines[0]
    text = BashScript(BashTemplate(setup='true'), [BashStep('false', exit_on_error=False)]).render()
    done = subprocess.run(['bash', '-eu'], input=text, text=True, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, failed(1, 1, may=True) + '\n')


def test_setup_goes_on_where_a_line_fails(run: Run) -> None:
    """As in a script, unless the line says otherwise."""
    assert run('echo $x', template=BashTemplate(setup=['x=1', 'false', 'x=2'])) == (0, ['2'])


@pytest.mark.parametrize(
    ('setup', 'code'),
    [('exit 4', 4), ('(exit 5) || exit', 5), ('set -e\n(exit 6)', 6), ('set -eu\necho $no', 1)],
)
def test_setup_may_end_the_script(run: Run, setup: str, code: int) -> None:
    """No step runs then, but the teardown does."""
    template = BashTemplate(setup=['echo setup', setup], teardown='echo teardown')
    found, lines = run('echo never', template=template)
    assert found == code
    assert (lines[0], lines[-1]) == ('setup', 'teardown')
    assert 'never' not in lines


@pytest.mark.parametrize('setup', ['echo "', 'if true', 'cat <<END\ntext'])
def test_broken_setup_ends_the_script(run: Run, setup: str) -> None:
    """Steps that lack what setup should have prepared do not run."""
    code, lines = run('echo never', template=BashTemplate(setup=setup, teardown='echo teardown'))
    assert code == 2
    assert lines[-2:] == ['slurm_futures: the setup is not valid shell code', 'teardown']
    assert 'never' not in lines


def test_setup_may_have_traps_and_children(run: Run) -> None:
    """Its own EXIT trap runs at the very end; `wait` waits for what setup has started, only."""
    template = BashTemplate(setup="trap 'echo trap' EXIT; true & wait", teardown='echo teardown')
    assert run('exit 3', template=template) == (3, [failed(1, 3), 'teardown', 'trap'])


@pytest.mark.parametrize(
    ('cmd', 'teardown', 'code'),
    [
        ('true', 'true', 0),
        ('exit 3', 'exit 4', 3),
        ('exit 3', 'exit 0', 3),
        ('exit 3', 'set -e; false; echo never', 3),
        ('exit 3', 'echo "', 3),
        ('exit 3', 'kill -KILL $BASHPID', 3),
        ('true', 'false; true', 0),
        ('true', 'exit 4', 4),
        ('true', 'false', 1),
        ('true', 'echo "', 2),
    ],
)
def test_exit_status_of_the_teardown(run: Run, cmd: str, teardown: str, code: int) -> None:
    """It never hides a step's failure, and is the script's where all steps have succeeded."""
    found, lines = run(cmd, template=BashTemplate(teardown=teardown))
    assert found == code
    told = [line for line in lines if line.startswith('slurm_futures: the teardown failed with')]
    assert bool(told) == (teardown not in {'true', 'exit 0', 'false; true'})


def test_every_line_of_the_teardown_is_tried(run: Run) -> None:
    """It cleans up as much as it can."""
    template = BashTemplate(setup='set -e', teardown='false\necho $no\necho cleaned')
    assert run('true', template=template) == (0, ['', 'cleaned'])


# ---- groups


def test_groups_run_at_most_so_many_at_a_time(start: Start, tmp_path: Path) -> None:
    """Two of four steps begin; as one ends the next begins; the step behind waits for all."""
    gates = [Gate(tmp_path / f'gate{n}') for n in range(4)]
    group = BashGroup([BashStep(f'{gate.shell}; echo {n}') for n, gate in enumerate(gates)], 2)
    script = start('echo before', group, 'echo behind')
    gates[0].await_arrival()
    gates[1].await_arrival()
    assert not gates[2].has_arrived()
    gates[1].open()
    gates[2].await_arrival()
    assert not gates[3].has_arrived()
    for gate in (gates[3], gates[2], gates[0]):
        gate.open()
    assert script.end() == 0
    assert script.lines[0] == 'before'
    assert sorted(script.lines[1:5]) == ['0', '1', '2', '3']
    assert script.lines[1] == '1'
    assert script.lines[5] == 'behind'


def test_failures_in_a_group(start: Start, tmp_path: Path) -> None:
    """The first failure in order counts, though another came sooner; what runs is waited for.

    What has not begun does not begin, and what may fail may.
    """
    first, second = Gate(tmp_path / 'first'), Gate(tmp_path / 'second')
    group = BashGroup(
        [
            BashStep(f'{second.shell}; echo 1'),
            BashStep(f'{second.shell}; exit 2'),
            BashStep('exit 3'),
            BashStep(f'{first.shell}; exit 4', exit_on_error=False),
            BashStep('echo never'),
        ],
        parallel=4,
    )
    script = start(group, 'echo never', template=WITH_TEARDOWN)
    script.prints(failed(3, 3))
    first.open()
    script.prints(failed(4, 4, may=True))
    second.open()
    assert script.end() == 2
    assert script.lines[-1] == 'teardown'
    assert sorted(script.lines[2:-1]) == ['1', failed(2, 2)]


def test_checkpoints_in_a_group(run: Run, here: Path) -> None:
    """Each step has its own; what is done takes nobody's turn."""
    steps = [BashStep(f'echo {n}', checkpoint=f'done/{n}') for n in range(30)]
    code, lines = run(BashGroup(steps[::2], parallel=3))
    assert (code, sorted(map(int, lines))) == (0, list(range(0, 30, 2)))
    code, lines = run(BashGroup(steps, parallel=3))
    assert code == 0
    assert sorted(int(line) for line in lines if line.isdigit()) == list(range(1, 30, 2))
    assert len([line for line in lines if 'is skipped' in line]) == 15
    assert len(list((here / 'done').iterdir())) == 30


def test_a_gpu_for_each(start: Start, tmp_path: Path) -> None:
    """No GPU has two steps at a time, and one that is free goes to the next step."""
    gates = [Gate(tmp_path / f'gate{n}') for n in range(4)]
    show = 'echo {}=$CUDA_VISIBLE_DEVICES; {}'
    steps = [BashStep(show.format(n, gate.shell)) for n, gate in enumerate(gates)]
    group = BashGroup(steps, parallel=8)
    script = start(group, 'echo all=$CUDA_VISIBLE_DEVICES', CUDA_VISIBLE_DEVICES='GPU-a,7')
    script.prints('0=GPU-a')
    script.prints('1=7')
    gates[1].open()
    script.prints('2=7')
    gates[0].open()
    script.prints('3=GPU-a')
    gates[2].open()
    gates[3].open()
    assert script.end() == 0
    assert script.lines[-1] == 'all=GPU-a,7'
    assert len(script.lines) == 5


@pytest.mark.parametrize('gpus', ['', '3', 'NoDevFiles'])
def test_gpus_that_are_not_several(start: Start, gate: Gate, gpus: str) -> None:
    """Steps share a single GPU, or do without."""
    step = f'echo =$CUDA_VISIBLE_DEVICES; {gate.shell}'
    script = start(BashGroup([BashStep(step)] * 3, parallel=3), CUDA_VISIBLE_DEVICES=gpus)
    wait_for(lambda: script.lines == [f'={gpus}'] * 3)
    gate.open()
    assert script.end() == 0


def test_one_at_a_time_has_all_gpus(run: Run) -> None:
    """Steps that do not run side by side see what the job sees."""
    show = BashStep('echo $CUDA_VISIBLE_DEVICES')
    code, lines = run(show, BashGroup([show, show], parallel=1), CUDA_VISIBLE_DEVICES='0,1')
    assert (code, lines) == (0, ['0,1'] * 3)


# ---- processes and signals


def program(gate: Gate, reaction: str) -> str:
    """Return a command that starts a Python program that reacts to signals; its pid is printed."""
    code = f"""
import os, signal, sys, time

def react(number, frame):
    print('got', signal.Signals(number).name, flush=True)
    {reaction}

for name in ('TERM', 'USR1', 'USR2'):
    signal.signal(getattr(signal, 'SIG' + name), react)
print('ready', os.getpid(), flush=True)
while not os.path.exists({gate._path!r}):
    time.sleep(0.01)
time.sleep(0.1)
print('leaves', flush=True)
"""
    return ' '.join([sys.executable, '-c', "'" + code.replace("'", "'\\''") + "'"])


def pid_of(script: Script) -> int:
    """Return the pid that the script's program prints, once it has."""

    def found() -> list[str]:
        return [line for line in script.lines if line.startswith('ready ')]

    return int(wait_for(found)[0].split()[1])


Send = Callable[[Script, signal.Signals], None]


def to_all(script: Script, number: signal.Signals) -> None:
    """What Slurm does when a job is cancelled or out of time."""
    os.killpg(script.process.pid, number)


def to_the_script(script: Script, number: signal.Signals) -> None:
    """What --signal=B: does, and kill."""
    script.process.send_signal(number)


@pytest.mark.parametrize('send', [to_all, to_the_script])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_script_in_order(
    start: Start, here: Path, send: Send, number: signal.Signals
) -> None:
    """What runs gets them, nothing else is started or marked, and the teardown still runs."""
    group = BashGroup(
        [
            BashStep(['sleep', '60'], checkpoint='1'),
            BashStep('(sleep 60; echo never)\necho never', exit_on_error=False),
            BashStep('echo never'),
        ],
        parallel=2,
    )
    script = start(group, 'echo never', template=WITH_TEARDOWN)
    wait_for(lambda: names(offspring(script.process.pid)).count('sleep') == 2)
    before = offspring(script.process.pid)
    send(script, number)
    code = 128 + number
    assert script.end() == code
    told = [line for line in script.lines if line not in {'Terminated', 'Hangup'}]
    assert sorted(told[:-1]) == [failed(1, code), failed(2, code, may=True)]
    assert told[-1] == 'teardown'
    assert all(map(is_gone, before))
    assert list(here.iterdir()) == []


def names(pids: Sequence[int]) -> list[str]:
    """Return what the processes are, as ps shows it."""
    return [Path(f'/proc/{pid}/comm').read_text().strip() for pid in pids]


def offspring(pid: int) -> list[int]:
    """Return all that a process has started, and that has not ended."""
    found = []
    for child in children(pid):
        if not is_gone(child):
            found += [child, *offspring(child)]
    return found


@pytest.mark.parametrize('send', [to_all, to_the_script])
def test_programs_get_sigterm_once(start: Start, gate: Gate, here: Path, send: Send) -> None:
    """They have the time to leave in order; a step that was cut short is never taken for done."""
    command = program(gate, 'pass')
    step = BashStep(f'{command}\necho never', checkpoint='done')
    script = start(step, template=WITH_TEARDOWN)
    pid = pid_of(script)
    send(script, signal.SIGTERM)
    script.prints('got SIGTERM')
    assert not is_gone(pid)
    gate.open()
    assert script.end() == 143
    told = [f'ready {pid}', 'got SIGTERM', 'leaves', failed(1, 143), 'teardown']
    assert script.lines == told
    assert not (here / 'done').exists()


@pytest.mark.parametrize(('ending', 'code'), [('sys.exit(0)', 143), ('sys.exit(5)', 5)])
def test_exit_status_after_sigterm(start: Start, gate: Gate, ending: str, code: int) -> None:
    """It is the program's own, unless that would look like a success."""
    script = start(f'{program(gate, ending)}\necho never')
    pid_of(script)
    to_all(script, signal.SIGTERM)
    assert script.end() == code
    assert script.lines[1:] == ['got SIGTERM', failed(1, code)]


@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGUSR2])
def test_warnings_are_passed_on(start: Start, gate: Gate, number: signal.Signals) -> None:
    """--signal=B:USR1@60: the programs that handle it get it, the others are left in peace."""
    group = BashGroup([BashStep(f'({program(gate, "pass")})'), BashStep(gate.shell)], parallel=2)
    script = start(group, 'echo next', template=WITH_TEARDOWN)
    pid = pid_of(script)
    gate.await_arrival()
    to_the_script(script, number)
    script.prints(f'got {number.name}')
    gate.open()
    assert script.end() == 0
    assert script.lines == [f'ready {pid}', f'got {number.name}', 'leaves', 'next', 'teardown']


def test_steps_may_have_traps(start: Start, gate: Gate) -> None:
    """A step's own trap gets the signal, and its program not."""
    command = program(gate, 'pass')
    script = start(f"trap 'echo trapped' USR1\n{command} &\nwait || wait\necho on")
    pid = pid_of(script)
    to_the_script(script, signal.SIGUSR1)
    script.prints('trapped')
    gate.open()
    assert script.end() == 0
    assert script.lines == [f'ready {pid}', 'trapped', 'leaves', 'on']


def test_setup_may_have_traps_for_signals(start: Start, gate: Gate) -> None:
    """They run at once, though a step is under way, and in place of what would happen else."""
    script = start(gate.shell, template=BashTemplate(setup="trap 'echo noted' USR1 TERM"))
    gate.await_arrival()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        before = len(script.lines)
        to_the_script(script, number)
        wait_for(functools.partial(lambda count: len(script.lines) > count, before))
    gate.open()
    assert script.end() == 0
    assert script.lines == ['noted', 'noted']


def test_sigterm_in_the_setup(start: Start, gate: Gate) -> None:
    """No step begins."""
    script = start('echo never', template=BashTemplate(setup=gate.shell, teardown='echo teardown'))
    gate.await_arrival()
    to_the_script(script, signal.SIGTERM)
    gate.open()
    assert script.end() == 143
    assert script.lines == ['teardown']


def test_sigterm_in_the_teardown(start: Start, gate: Gate) -> None:
    """The teardown goes on, for as long as Slurm lets it, and the exit status stays."""
    teardown = f'{gate.shell}\nsleep 0\necho cleaned'
    script = start('exit 3', template=BashTemplate(teardown=teardown))
    gate.await_arrival()
    to_the_script(script, signal.SIGTERM)
    gate.open()
    assert script.end() == 3
    assert script.lines[-1] == 'cleaned'


def test_programs_are_as_in_any_script(run: Run) -> None:
    """They read the script's stdin, may be interrupted, and inherit no stranger's files."""
    code = (
        'import os, signal, sys; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, '
        'signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN, os.readlink("/proc/self/fd/0"), '
        'sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1])'
    )
    step = BashStep([sys.executable, '-c', code])
    assert run(step, BashGroup([step], parallel=1)) == (0, ['False False /dev/null [0, 1, 2]'] * 2)


def test_a_killed_shell_is_noticed(start: Start, gate: Gate) -> None:
    """Whatever dies, the script does not hang."""
    script = start(gate.shell, 'echo never', template=WITH_TEARDOWN)
    gate.await_arrival()
    (around,) = (pid for pid in children(script.process.pid) if not is_gone(pid))
    os.kill(around, signal.SIGKILL)
    assert script.end() == 137
    assert script.lines[-2:] == [failed(1, 137), 'teardown']
