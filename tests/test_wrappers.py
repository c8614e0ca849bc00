"""Batch scripts: their text, and what they do in a real bash; only Slurm is played."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import HOSTILE_NAME
from helpers import Bench, listed, member, outcomes, read_messages, slurm_variables, wait_for
from slurm_futures import payload, wrappers
from slurm_futures.remote.spool import REVOKED
from slurm_futures.script import parse_script
from waiting import Gate

HOSTILE_NAMES = [
    HOSTILE_NAME,
    'line\nbreak\n',
    '$(touch pwned)`touch pwned`',
    '-rf',
    '-',
    '~',
    ' ',
    '*',
]
HOSTILE_VALUES = [*HOSTILE_NAMES, 'two words', "it's", '"', 'back\\slash\\n', '!!', '\t', '', '\r']

OWN_NAMES = ['batch', 'child', 'code', 'job', 'node', 'owner', 'post', 'spool', 'stop', 'task']
"""Names that a wrapper's author may think of, and a user too."""

GOLDEN = Path(__file__).parent / 'golden'

Popen = subprocess.Popen


class Wrapped:
    """Writes batch scripts into a spool and runs them."""

    def __init__(self, bench: Bench, entry: str) -> None:
        self.bench = bench
        self._entry = entry

    def _start(self, text: str, slurm: Mapping[str, str], env: Mapping[str, str]) -> Popen[bytes]:
        path = Path(self.bench.spool.path('calls', 'run1-1.1.sh'))
        path.write_text(text, newline='')
        path.chmod(0o700)
        return self.bench.start([str(path)], slurm, env)

    def calls(
        self,
        slurm: Mapping[str, str] | None = None,
        outer: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Popen[bytes]:
        """Start a job that runs the calls of batch 1; settings are those of calls_script."""
        defaults = {
            'folder': self.bench.spool.folder,
            'batch': 1,
            'entry': self._entry,
            'python_cmd': sys.executable,
            'cwd': str(self.bench.cwd),
        }
        text = wrappers.calls_script(**{**defaults, **settings})
        return self._start(text, slurm or slurm_variables(), outer or {})

    def script(
        self,
        script: str,
        slurm: Mapping[str, str] | None = None,
        outer: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Popen[bytes]:
        """Start a job that runs a user's script; settings are those of user_script."""
        path = self.bench.spool.write('calls', '1.calls', [script.encode()])
        header = parse_script(script)
        argument = [header.argument] if header.argument else []
        defaults = {
            'header_lines': header.lines,
            'folder': self.bench.spool.folder,
            'batch': 1,
            'command': [header.interpreter, *argument, path],
            'cwd': str(self.bench.cwd),
        }
        text = wrappers.user_script(**{**defaults, **settings})
        return self._start(text, slurm or slurm_variables(), outer or {})

    def out(self) -> str:
        """Return what has been printed."""
        return self.bench.log('out').read_text()

    def err(self) -> str:
        """Return what has been complained."""
        return self.bench.log('err').read_text()

    def ended(self) -> dict[str, Any]:
        """Return the only report of an end."""
        (ended,) = member(self.bench.spool, 'ended')
        found: dict[str, Any] = ended
        return found


@pytest.fixture
def wrapped(bench: Bench, entry: str) -> Wrapped:
    """Batch scripts in a folder with a hostile name."""
    return Wrapped(bench, entry)


def look(*names: str) -> list[Any]:
    """Called in a job: return the working folder and some variables."""
    return [os.getcwd(), *(os.environ.get(name) for name in names)]


# ---- the text


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        (
            'calls.sh',
            wrappers.calls_script(
                folder='/home/u/.slurm_futures/runs/r1',
                batch=3,
                entry='/home/u/.slurm_futures/lib/0123/slurm_futures_remote/entry.py',
                python_cmd='/opt/py/bin/python3',
                cwd="/home/u/it's here",
            ),
        ),
        (
            'script.sh',
            wrappers.user_script(
                header_lines=['#SBATCH --time=10', '# a comment', '#SBATCH -p cpu'],
                folder='/home/u/.slurm_futures/runs/r1',
                batch=3,
                command=[
                    '/usr/bin/env',
                    '-S perl -w',
                    '/home/u/.slurm_futures/runs/r1/calls/3.calls',
                ],
                cwd='/home/u/work',
                setup=['module load gcc', 'ulimit -c 0'],
                env={'A': "it's", 'B': ''},
            ),
        ),
    ],
)
def test_golden_text(name: str, text: str) -> None:
    """The scripts are as they were when somebody last looked at them in full."""
    path = GOLDEN / name
    assert text == path.read_text(), f'if it is meant to be so, write it to {path}'


def test_slurm_reads_the_header() -> None:
    """The user's #SBATCH lines stand where Slurm looks for them: before the first command."""
    lines = ['#SBATCH --time=10', '#SBATCH --mem=1G']
    text = wrappers.user_script(
        header_lines=lines, folder='/f', batch=1, command=['/bin/sh', '/s'], cwd='/'
    )
    assert text.split('\n')[:3] == ['#!/bin/bash', *lines]
    assert parse_script(text).options == {'time': '10', 'mem': '1G'}


# ---- jobs of calls


def test_calls_run(wrapped: Wrapped) -> None:
    """The wrapper becomes the worker, in a folder with any name."""
    wrapped.bench.write_calls((os.getcwd, ()))
    process = wrapped.calls()
    assert process.wait(60) == 0
    _, body = outcomes(wrapped.bench.spool)[10]
    assert payload.load_value(body) == str(wrapped.bench.cwd)
    assert {header['pid'] for header, _ in read_messages(wrapped.bench.spool)} == {process.pid}
    assert (wrapped.out(), wrapped.err()) == ('', '')


@pytest.mark.parametrize('name', HOSTILE_NAMES)
def test_folders_with_hostile_names(wrapped: Wrapped, name: str) -> None:
    """Calls and scripts run where they should, however the folder is called."""
    cwd = wrapped.bench.folder / name
    cwd.mkdir()
    wrapped.bench.write_calls((os.getcwd, ()), cwd=str(cwd))
    assert wrapped.calls(cwd=str(cwd)).wait(60) == 0
    _, body = outcomes(wrapped.bench.spool)[10]
    assert payload.load_value(body) == str(cwd)
    Path(wrapped.bench.spool.path('claims', '1.0')).unlink()
    script = '#!/bin/bash\nprintf "<%s>" "$PWD"\n'
    assert wrapped.script(script, cwd=str(cwd)).wait(60) == 0
    assert wrapped.out() == f'<{cwd}>'
    assert wrapped.err() == ''
    assert not list(wrapped.bench.folder.rglob('pwned'))


def test_a_relative_folder(wrapped: Wrapped) -> None:
    """A script's own --chdir may be relative to where Slurm starts it, and look like an option."""
    (wrapped.bench.folder / '-x').mkdir()
    assert wrapped.script('#!/bin/bash\npwd\n', cwd='-x', outer={'CDPATH': '/'}).wait(60) == 0
    assert wrapped.out() == f'{wrapped.bench.folder}/-x\n'


def test_variables_of_calls(wrapped: Wrapped) -> None:
    """Variables have their values, however these look, and whatever they are called.

    Setup lines see them and may add others.
    """
    hostile = {f'V{number}': value for number, value in enumerate(HOSTILE_VALUES)}
    own = {name: f'{name} of the user' for name in OWN_NAMES}
    env = {**hostile, **own}
    setup = ['export LATER="$V8 later"', 'task=7; job=8; batch=9; spool=/nowhere; code=1']
    names = [*hostile, *OWN_NAMES, 'LATER']
    look_here: Callable[..., Any] = look
    wrapped.bench.write_calls((run_look(look_here), tuple(names)))
    assert wrapped.calls(env=env, setup=setup).wait(60) == 0, wrapped.err()
    _, body = outcomes(wrapped.bench.spool)[10]
    found = dict(zip(names, payload.load_value(body)[1:], strict=True))
    changed = {'task': '7', 'job': '8', 'batch': '9', 'spool': '/nowhere', 'code': '1'}
    assert found == {**env, **changed, 'LATER': 'two words later'}


def run_look(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that travels by value: workers cannot import this module."""
    import types

    return types.FunctionType(function.__code__, {'os': os, '__builtins__': __builtins__})


def test_strict_setup_lines(wrapped: Wrapped) -> None:
    """Setup lines may ask bash to be strict."""
    wrapped.bench.write_calls((os.getcwd, ()))
    assert wrapped.calls(setup=['set -euo pipefail']).wait(60) == 0, wrapped.err()


def test_setup_lines_find_module(wrapped: Wrapped) -> None:
    """Setup lines print what they like; it is found in the job's log."""
    wrapped.bench.write_calls((os.getcwd, ()))
    assert wrapped.calls(setup=['echo prepared', 'type module; true']).wait(60) == 0
    assert wrapped.out().startswith('prepared\n')


@pytest.mark.parametrize(
    ('settings', 'failed'),
    [
        ({'python_cmd': '/no/such/python'}, {'what': 'python', 'code': 127}),
        ({'python_cmd': 'no-such-python'}, {'what': 'python', 'code': 127}),
        ({'python_cmd': '/etc/passwd'}, {'what': 'python', 'code': 126}),
        ({'python_cmd': '/no/such/python', 'setup': ['set -e']}, {'what': 'python', 'code': 127}),
        ({'cwd': '/no/such/folder'}, {'what': 'cwd', 'code': 1}),
        ({'setup': ['exit 3']}, {'what': 'setup', 'code': 3}),
        ({'setup': ['set -e', 'false']}, {'what': 'setup', 'code': 1}),
    ],
)
def test_what_keeps_calls_from_starting(
    wrapped: Wrapped, settings: dict[str, Any], failed: dict[str, Any]
) -> None:
    """A job that cannot start its worker says in the spool what was in the way, and fails."""
    wrapped.bench.write_calls((os.getcwd, ()))
    slurm = slurm_variables('100', restart=2, task=7)
    assert wrapped.calls(slurm, **settings).wait(60) == failed['code']
    ((header, body),) = read_messages(wrapped.bench.spool)
    assert (header['failed'], body) == (failed, b'')
    place = {'batch': 1, 'task': 7, 'job': '100', 'raw_id': '108', 'restart': 2}
    assert header.items() >= place.items()


def test_sigterm_before_the_calls(wrapped: Wrapped) -> None:
    """SIGTERM while setup lines run is for Slurm to explain."""
    gate = Gate(wrapped.bench.folder / 'gate')
    wrapped.bench.write_calls((os.getcwd, ()))
    process = wrapped.calls(setup=[gate.shell])
    gate.await_arrival()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert read_messages(wrapped.bench.spool) == []


# ---- users' scripts


def test_a_script_that_ends_well(wrapped: Wrapped) -> None:
    """Claim, start with the log files, and end are reported; what is printed goes to the logs."""
    process = wrapped.script('#!/bin/bash\necho out\necho err >&2\n')
    assert process.wait(60) == 0
    (started, logs), (ended, _) = read_messages(wrapped.bench.spool)
    facts = {
        'batch': 1,
        'task': 0,
        'job': '100',
        'raw_id': '100',
        'restart': 0,
        'host': os.uname().nodename,
        'pid': process.pid,
    }
    assert started == {**facts, 'started': True}
    assert logs.decode().split('\0') == [*map(str, map(wrapped.bench.log, ('out', 'err'))), '']
    assert ended == {**facts, 'ended': {'code': 0, 'signal': None, 'term': False}}
    assert (wrapped.out(), wrapped.err()) == ('out\n', 'err\n')
    assert wrapped.bench.spool.owner('1.0') == 'job:100'
    assert listed(wrapped.bench.spool, 'tmp') == []


def test_tasks_of_an_array(wrapped: Wrapped) -> None:
    """Each task of a script's array has a claim and reports of its own, under the array's id."""
    script = '#!/bin/bash\necho $SLURM_ARRAY_TASK_ID\n'
    for task in (0, 5):
        assert wrapped.script(script, slurm_variables('100', task=task)).wait(60) == 0
    assert wrapped.out() == '0\n5\n'
    messages = [header for header, _ in read_messages(wrapped.bench.spool) if 'ended' in header]
    found = [(message['job'], message['task'], message['raw_id']) for message in messages]
    assert found == [('100', 0, '101'), ('100', 5, '106')]
    assert sorted(listed(wrapped.bench.spool, 'claims')) == ['1.0', '1.5']


PYTHON = f'#!{sys.executable}\nimport sys\nprint(sys.argv[1:], sys.stdin.read())\nsys.exit(4)\n'


@pytest.mark.parametrize(
    ('script', 'out', 'code'),
    [
        ('#!/bin/sh\necho "$0" | grep -c 1.calls; exit 2', '1\n', 2),
        ('#!/bin/bash -eu\nfalse\necho never\n', '', 1),
        ('#!/usr/bin/perl -w\nprint "perl $$\\n" =~ s/\\d+/N/r; exit 7;\n', 'perl N\n', 7),
        ('#!/usr/bin/env -S awk -f\nBEGIN { print "awk"; exit 5 }\n', 'awk\n', 5),
        (PYTHON, '[] \n', 4),
        ('#!/no/such/interpreter\n', '', 127),
        ('#!/bin/cat\nthe script itself\n', '#!/bin/cat\nthe script itself\n', 0),
    ],
    ids=['sh', 'bash with options', 'perl', 'env -S', 'python', 'missing', 'cat'],
)
def test_shebangs(wrapped: Wrapped, script: str, out: str, code: int) -> None:
    """A script runs with its own interpreter; its exit status is the job's, and is reported."""
    assert wrapped.script(script).wait(60) == code
    assert wrapped.out() == out
    assert wrapped.ended() == {'code': code, 'signal': None, 'term': False}


@pytest.mark.parametrize('name', ['KILL', 'SEGV', 'TERM', 'INT', 'PIPE', 'ABRT', 'HUP'])
def test_deaths_by_signal(wrapped: Wrapped, name: str) -> None:
    """A death by signal is told from an exit status; bash's words about it stay out of the log."""
    number = getattr(signal, f'SIG{name}')
    lines = ['trap - INT', 'ulimit -c 0', f'kill -s {name} $$', 'sleep 60']
    assert wrapped.script('\n'.join(['#!/bin/bash', *lines, ''])).wait(60) == 128 + number
    assert wrapped.ended() == {'code': 128 + number, 'signal': int(number), 'term': False}
    assert wrapped.err() == ''


@pytest.mark.parametrize('code', [127, 137, 139, 255])
def test_high_exit_statuses(wrapped: Wrapped, code: int) -> None:
    """A script may exit with a status that looks like a death by signal."""
    assert wrapped.script(f'#!/bin/bash\nexit {code}\n').wait(60) == code
    assert wrapped.ended() == {'code': code, 'signal': None, 'term': False}


def listener(names: Iterable[str], gate: Gate) -> str:
    """Return a script that writes down which signals it gets, until the gate opens."""
    traps = [f'trap "echo {name}" {name}' for name in names]
    return '\n'.join(['#!/bin/bash', *traps, gate.shell, 'exit 6', ''])


def has_lines(wrapped: Wrapped, count: int) -> bool:
    """Return whether so many lines have been printed."""
    return len(wrapped.out().splitlines()) == count


def test_signals_reach_the_script(wrapped: Wrapped) -> None:
    """What Slurm sends to the batch step alone, at --signal=B:, is passed on to the script."""
    gate = Gate(wrapped.bench.cwd / 'gate')
    names = ['USR1', 'USR2', 'HUP', 'INT', 'QUIT', 'ALRM', 'XCPU']
    process = wrapped.script(listener(names, gate))
    gate.await_arrival()
    for count, name in enumerate(names, 1):
        process.send_signal(getattr(signal, f'SIG{name}'))
        wait_for(functools.partial(has_lines, wrapped, count))
    gate.open()
    assert process.wait(60) == 6
    assert wrapped.out().split() == names
    assert wrapped.ended() == {'code': 6, 'signal': None, 'term': False}


def test_sigterm_is_reported_at_once(wrapped: Wrapped) -> None:
    """SIGTERM, which Slurm sends to all processes, is reported and not passed on."""
    gate = Gate(wrapped.bench.cwd / 'gate')
    process = wrapped.script(listener(['TERM'], gate))
    gate.await_arrival()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: member(wrapped.bench.spool, 'stopping'))
    assert process.poll() is None
    gate.open()
    assert process.wait(60) == 6
    assert wrapped.out() == ''
    assert wrapped.ended() == {'code': 6, 'signal': None, 'term': True}


def test_sigterm_as_a_warning(wrapped: Wrapped) -> None:
    """A job that asks for SIGTERM to its batch script ahead of the end gets it there."""
    gate = Gate(wrapped.bench.cwd / 'gate')
    process = wrapped.script(listener(['TERM'], gate), signal_option='B:TERM@60')
    gate.await_arrival()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: wrapped.out() == 'TERM\n')
    gate.open()
    assert process.wait(60) == 6


@pytest.mark.parametrize('_attempt', range(6))
def test_sigterm_to_all(wrapped: Wrapped, _attempt: int) -> None:
    """Where all processes get SIGTERM, as on scancel, the script's death is reported with it.

    Slurm sends SIGCONT first. That the wrapper hears both is a matter of luck in every other case
    if it listens to both.
    """
    gate = Gate(wrapped.bench.cwd / 'gate')
    process = wrapped.script(f'#!/bin/bash\n{gate.shell}\n')
    gate.await_arrival()
    os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert member(wrapped.bench.spool, 'stopping') == [True]
    assert wrapped.ended() == {'code': 143, 'signal': 15, 'term': True}


def test_variables_of_scripts(wrapped: Wrapped) -> None:
    """A script sees the user's variables, whatever they are called, and none of the wrapper's."""
    hostile = {f'V{number}': value for number, value in enumerate(HOSTILE_VALUES)}
    outer = {name: f'{name} of the user' for name in OWN_NAMES}
    script = f'#!{sys.executable}\nimport json, os\nprint(json.dumps(dict(os.environ)))\n'
    process = wrapped.script(script, outer=outer, env=hostile, setup=['export MORE=1', 'MINE=2'])
    assert process.wait(60) == 0, wrapped.err()
    found = json.loads(wrapped.out())
    assert found.items() >= {**hostile, **outer, 'MORE': '1'}.items()
    known = {*os.environ, *hostile, *outer, 'MORE', 'SLURM_JOB_ID', 'PWD', 'OLDPWD', 'SHLVL', '_'}
    assert set(found) <= known


def test_descriptors_of_scripts(wrapped: Wrapped) -> None:
    """A script has its three streams, and nothing that the wrapper has opened."""
    listing = (
        'import os\nprint([n for n in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{n}")])'
    )
    assert wrapped.script(f'#!{sys.executable}\n{listing}\n').wait(60) == 0
    assert wrapped.out() == "['0', '1', '2']\n"


def test_a_script_leaves_something_running(wrapped: Wrapped) -> None:
    """The end of the script is the end, though something that it has started lives on."""
    script = '#!/bin/bash\nsleep 61.9 &\necho $!\nexit 3\n'
    assert wrapped.script(script).wait(60) == 3
    assert wrapped.ended()['code'] == 3
    os.kill(int(wrapped.out()), signal.SIGKILL)


@pytest.mark.parametrize('owner', ['job:99', REVOKED])
def test_a_task_that_is_taken(wrapped: Wrapped, owner: str) -> None:
    """A task that another job has claimed, or the client revoked, does not run.

    In the first case it names the owner; in the second it just ends.
    """
    wrapped.bench.spool.claim('1.0', owner)
    assert wrapped.script('#!/bin/bash\necho ran\n').wait(60) == 0
    messages = [header for header, _ in read_messages(wrapped.bench.spool)]
    assert [h.get('superseded') for h in messages] == ([] if owner == REVOKED else ['job:99'])
    assert wrapped.out() == ''


def test_a_requeued_script(wrapped: Wrapped) -> None:
    """A script that Slurm starts again finds its own claim, and runs."""
    for restart in (0, 1):
        slurm = slurm_variables(restart=restart)
        assert wrapped.script('#!/bin/bash\necho ran\n', slurm).wait(60) == 0
    assert wrapped.out() == 'ran\nran\n'
    messages = [header['restart'] for header, _ in read_messages(wrapped.bench.spool)]
    assert messages == [0, 0, 1, 1]


def test_a_spool_that_is_gone(wrapped: Wrapped) -> None:
    """A task that cannot be claimed does not run, and says why on stderr."""
    Path(wrapped.bench.spool.path('claims')).rmdir()
    assert wrapped.script('#!/bin/bash\necho ran\n').wait(60) == 1
    assert 'cannot claim this task' in wrapped.err()
    assert wrapped.out() == ''


def test_a_missing_folder(wrapped: Wrapped) -> None:
    """A script whose folder is gone does not run elsewhere."""
    assert wrapped.script('#!/bin/bash\necho ran\n', cwd='/no/such/folder').wait(60) == 1
    assert wrapped.ended() == {'code': 1, 'signal': None, 'term': False}
    assert '/no/such/folder' in wrapped.err()
    assert wrapped.out() == ''


def test_names_of_messages(wrapped: Wrapped) -> None:
    """Messages of wrappers are named like those of workers: topic, time, host, process."""
    process = wrapped.script('#!/bin/bash\n')
    process.wait(60)
    for name in listed(wrapped.bench.spool, 'new'):
        topic, at, *_ = name.split('-')
        assert (topic, len(at)) == ('1.0', 20)
        assert f'-{process.pid}-' in name


def test_the_sequence_is_kept() -> None:
    """A command is quoted word by word."""
    command: Sequence[str] = ['/usr/bin/env', '-S x y', "/it's here"]
    text = wrappers.user_script(header_lines=[], folder='/f', batch=1, command=command, cwd='/')
    assert "  exec /usr/bin/env '-S x y' '/it'\"'\"'s here'\n" in text
