"""The supervisor's hold on its child, apart from any task."""

from __future__ import annotations

import subprocess
from pathlib import Path

from helpers import is_gone, python_command, wait_for
from slurm_futures.remote.page import Begun, Page
from slurm_futures.remote.supervisor import Child

PROLOGUE = """
import os, pickle, signal, sys, time
from slurm_futures.remote.child import Context
from slurm_futures.remote.spool import Spool
from slurm_futures.remote.supervisor import Child, Crew, Signals, wait

context = Context(Spool(sys.argv[1]), 'topic', {}, [])
signals = Signals((signal.SIGTERM,))

def call(number, function, *args):
    parts = pickle.dumps(function), pickle.dumps((args, {}))
    header = {'do': 'call', 'call': number, 'cwd': '/', 'sizes': [len(part) for part in parts]}
    return header, b''.join(parts)
"""


def run(program: str, folder: Path) -> str:
    """Run a program as a supervisor's process; return what it prints."""
    command = python_command(PROLOGUE + program, str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout


def test_a_signal_right_after_the_fork(tmp_path: Path) -> None:
    """A child that is terminated at once dies; its supervisor does not take that for its own."""
    program = """
for _ in range(100):
    child = Child(context)
    child.signal(signal.SIGTERM)
    _, status = os.waitpid(child.pid, 0)
    child.status = status
    child.close()
    assert status == signal.SIGTERM, status
assert signal.SIGTERM not in signals.read()
"""
    run(program, tmp_path)


def test_a_kill_right_after_the_start(tmp_path: Path) -> None:
    """A call that is killed as it starts is reported as killed, and the next one runs."""
    program = """
crew = Crew(context)
for number in range(0, 40, 2):
    crew.run(*call(number, time.sleep, 60))
    crew.kill(number)
    outcomes = []
    while not outcomes:
        wait([signals.descriptor, *crew.descriptors()], crew.deadline())
        assert signal.SIGTERM not in signals.read()
        outcomes = crew.outcomes()
    ((item, _),) = outcomes
    assert (item['call'], item['kind']) == (number, 'killed'), item
    crew.run(*call(number + 1, pow, 2, 3))
    outcomes = []
    while not outcomes:
        wait([signals.descriptor, *crew.descriptors()], crew.deadline())
        signals.read()
        outcomes = crew.outcomes()
    ((item, _),) = outcomes
    assert (item['call'], item['kind']) == (number + 1, 'value'), item
crew.close()
"""
    run(program, tmp_path)


def test_the_supervisors_pipes_end_with_it(tmp_path: Path) -> None:
    """Whoever reads from a supervisor learns of its death though its call lives on."""
    gate = tmp_path / 'gate'
    # What the child prints to is no pipe, as on the login node.
    program = 'import os\nout = os.dup(1); os.dup2(os.open(os.devnull, os.O_RDWR), 1)\n' + PROLOGUE
    program += f"""
crew = Crew(context)
crew.run(*call(1, os.system, 'while ! [ -e {gate} ]; do sleep 0.05; done'))
os.write(out, b'%d' % crew.pid)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        python_command(program, str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        pid = int(process.communicate(timeout=20)[0])
        assert process.returncode == -9
        assert not is_gone(pid), 'the call is under way all the while'
        gate.touch()
        assert wait_for(lambda: is_gone(pid))


def test_a_kill_that_comes_too_late() -> None:
    """A child that dies of a kill after the call has ended takes no other call along.

    Any other death between two calls is the next one's, so that it cannot repeat for ever.
    """
    child = Child.__new__(Child)
    child.page, child.busy, child.waiting = Page(1), True, [11, 12]
    child.killed = 10
    assert child.victim() is None
    child.killed = None
    assert child.victim() == 11
    child.page.begin(Begun(12, 0.0, 0, 0))
    assert child.victim() == 12
    child.killed = 12
    assert child.victim() == 12
    child.busy = False
    assert child.victim() is None
