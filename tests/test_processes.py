"""Which processes there are, as /proc tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.processes import eventually
from slurm_futures.remote.processes import (
    is_alive,
    members,
    process_identity,
    read_stat,
    send_signals,
)

PATIENCE_S = 10.0


@pytest.fixture
def shell() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts lines for bash in sessions of their own, and ends them."""
    started = []

    def start(line: str) -> subprocess.Popen[str]:
        command = ['bash', '-c', line]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        send_signals(process.pid, signal.SIGKILL)
        process.communicate()


def test_names_that_look_like_what_follows_them(tmp_path: Path) -> None:
    """A command may be called anything, ') Z 1 (' and what is no text too."""
    name = os.fsencode(tmp_path) + b'/a) Z (\xff'
    os.symlink('/bin/sleep', name)
    process = subprocess.Popen([name, '60'])
    stat = read_stat(process.pid)
    process.kill()
    process.wait()
    assert stat is not None
    assert not stat.ended
    assert stat.parent == os.getpid()
    assert stat.session == os.getsid(0)
    assert read_stat(process.pid) is None


def test_identity_is_of_this_very_process() -> None:
    """The same number on another boot, or with another start, is another process."""
    mine = process_identity(os.getpid())
    host, boot, pid, start = mine.rsplit(':', 3)
    assert (host, pid) == (os.uname().nodename, str(os.getpid()))
    assert is_alive(mine) is True
    assert is_alive(f'elsewhere:{boot}:{pid}:{start}') is None
    assert is_alive(f'{host}:before:{pid}:{start}') is False
    assert is_alive(f'{host}:{boot}:{pid}:{int(start) - 1}') is False


def test_what_has_ended_is_not_alive() -> None:
    """Neither before nor after somebody has taken note of it."""
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    assert is_alive(identity) is True
    process.kill()
    assert eventually(lambda: is_alive(identity) is False, PATIENCE_S)
    assert process_identity(process.pid) == identity, 'nobody has taken note yet'
    process.communicate()
    assert is_alive(identity) is False
    with pytest.raises(ProcessLookupError):
        process_identity(process.pid)


def test_members_of_a_session(shell: Callable[..., subprocess.Popen[str]]) -> None:
    """Whoever is in the session, in whatever group, and what they have started outside of it."""
    line = 'setsid bash -c "echo \\$\\$; sleep 60; true" & set -m; sleep 60 & echo $!; wait'
    leader = shell(line)
    assert leader.stdout is not None
    noted = {int(leader.stdout.readline()) for _ in range(2)}
    assert eventually(lambda: len(members(leader.pid)) == 4, PATIENCE_S)
    assert {leader.pid, *noted} < members(leader.pid)
    assert os.getpid() not in members(leader.pid)


def test_signals_reach_the_session_and_nobody_else(
    shell: Callable[..., subprocess.Popen[str]],
) -> None:
    """One after the other, to each of its members."""
    lines = "trap 'echo one; got=1' USR1; trap 'echo two' USR2; echo up; "
    first, other = (shell(lines + 'while :; do sleep 0.02; done') for _ in range(2))
    for process in (first, other):
        assert process.stdout is not None
        assert process.stdout.readline() == 'up\n'
    os.kill(first.pid, signal.SIGSTOP)
    send_signals(first.pid, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
    assert first.stdout is not None
    assert {first.stdout.readline(), first.stdout.readline()} == {'one\n', 'two\n'}
    send_signals(first.pid, signal.SIGKILL)
    assert eventually(lambda: members(first.pid) == set(), PATIENCE_S)
    assert other.poll() is None
    send_signals(first.pid, signal.SIGKILL)  # nobody is there
