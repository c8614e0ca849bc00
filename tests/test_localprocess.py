"""Processes that become jobs of the embedded queue, or do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.processes import eventually
from slurm_futures.remote.localjob import Job
from slurm_futures.remote.localoptions import Spec
from slurm_futures.remote.localprocess import Launch, Node, Start, start_of, variables

NODE = Node('here', 'me')


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Start]:
    """Says how a line for bash is started."""

    def make(line: str, cwd: str = str(tmp_path), output: str = 'out') -> Start:
        files = ['/dev/null', *(str(tmp_path / output) for _ in range(2))]
        environment = {'PATH': os.environ['PATH'], 'WORD': 'it\'s "this"'}
        return Start(['/bin/bash', '-c', line], environment, cwd, 0o077, files, append=False)

    return make


def finish(launch: Launch) -> int:
    """Wait for a process's end; return its exit status."""
    _, status = os.waitpid(launch.pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_process_becomes_the_job(start: Callable[..., Start], tmp_path: Path) -> None:
    """It leads a session, and has the environment, folder and files that it is to have."""
    launch = Launch(start('echo "$WORD"; pwd; echo $$; ps -o sid= -p $$; exit 3'))
    launch.go()
    assert finish(launch) == 3
    assert launch.failure() == ''
    launch.close()
    lines = (tmp_path / 'out').read_text().split('\n')
    assert lines[:3] == ['it\'s "this"', str(tmp_path), str(launch.pid)]
    assert lines[3].strip() == str(launch.pid)
    assert (tmp_path / 'out').stat().st_mode & 0o777 == 0o600


def test_without_a_word_it_never_does(start: Callable[..., Start], tmp_path: Path) -> None:
    """What nobody has written down must not run: it ends when it is abandoned."""
    launch = Launch(start('true'))
    launch.abandon()
    assert not (tmp_path / 'out').exists()
    with pytest.raises(ProcessLookupError):
        os.kill(launch.pid, 0)


DYING = """
import os, signal, sys
sys.path[:0] = {path!r}
from slurm_futures.remote.localprocess import Launch, Start
launch = Launch(Start(['/bin/bash', '-c', 'true'], {{}}, '/', 0o22, ['/dev/null', *{out!r}], False))
print(launch.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """A daemon that dies before it has written the start down leaves nothing that would run."""
    out = [str(tmp_path / 'out')] * 2
    code = DYING.format(path=[entry for entry in sys.path if entry], out=out)
    argv = [sys.executable, '-c', code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert eventually(lambda: not Path(f'/proc/{int(done.stdout)}/exe').exists(), 10)
    assert not (tmp_path / 'out').exists()


def test_killed_before_the_word(start: Callable[..., Start]) -> None:
    """A process that somebody kills too early fails nobody but its job."""
    launch = Launch(start('true'))
    os.kill(launch.pid, signal.SIGKILL)
    launch.go()
    assert finish(launch) == -signal.SIGKILL
    assert launch.failure() == ''
    launch.close()


@pytest.mark.parametrize(
    ('output', 'words'),
    [('missing/out', "No such file or directory: '.*/missing/out'"), ('a\0b', 'null byte')],
)
def test_files_that_cannot_be(start: Callable[..., Start], output: str, words: str) -> None:
    """The reason why it could not become the job is told."""
    launch = Launch(start('true', output=output))
    launch.go()
    assert finish(launch) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(launch.failure())
    launch.close()


def test_signals_are_as_in_a_fresh_process(start: Callable[..., Start], tmp_path: Path) -> None:
    """What this process ignores, or has been told to, the job does not."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launch = Launch(start('grep -E "^Sig(Blk|Ign)" /proc/$$/status'))
    finally:
        signal.signal(signal.SIGINT, before)
    launch.go()
    assert finish(launch) == 0
    launch.close()
    assert (tmp_path / 'out').read_text().split() == ['SigBlk:', '0' * 16, 'SigIgn:', '0' * 16]


def job(**asked: object) -> Job:
    """Return a job with the id 7."""
    spec = Spec('/spool/x.sh', 'name', '/submitted', '/cwd')._replace(**asked)
    return Job(7, spec, time.time())


def test_variables_that_only_some_jobs_have() -> None:
    """What is not asked for is not there, so that programs can tell."""
    plain = variables(job(), 0, NODE)
    assert plain['SLURM_JOB_ID'] == plain['SLURM_JOBID'] == '7'
    some = {'SLURM_CPUS_PER_TASK', 'SLURM_NTASKS', 'SLURM_ARRAY_JOB_ID', 'SLURM_RESTART_COUNT'}
    assert not some & plain.keys()
    array = variables(job(array='2,4', cpus=3, ntasks=2), 4, NODE)
    assert (array['SLURM_JOB_ID'], array['SLURM_ARRAY_JOB_ID']) == ('8', '7')
    assert (array['SLURM_CPUS_PER_TASK'], array['SLURM_NTASKS']) == ('3', '2')
    assert array['SLURM_CPUS_ON_NODE'] == '6'


def test_files_of_a_task() -> None:
    """stderr goes where stdout goes, unless it is told to go elsewhere."""
    assert start_of(job(), 0, {}, NODE).files == ['/dev/null', *['/cwd/slurm-7.out'] * 2]
    spec = {'array': '2,4', 'output': 'o-%a', 'error': '/abs/%A-%N-%u', 'input': 'i'}
    files = start_of(job(**spec), 4, {}, NODE).files
    assert files == ['/cwd/i', '/cwd/o-4', '/abs/7-here-me']
