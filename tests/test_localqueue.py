"""The embedded queue: real jobs, and a daemon that is killed, stopped, spoilt and moved about."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.processes import Process, eventually
from helpers import find_python
from outside import daemons
from slurm_futures.remote import localqueue
from slurm_futures.remote.localjobs import VERSION
from slurm_futures.remote.localqueue import LocalQueue
from slurm_futures.remote.queues import Queue, SubmitReply
from slurm_futures.remote.slurm_parsers import AccountingRow, JobRow
from waiting import Gate, has_ended

HOST = os.uname().nodename
NODE = HOST.partition('.')[0]
PATIENCE_S = 20.0

HOSTILE = {
    'spaces and quotes': 'it\'s "a" $(touch x) `y` queue; & *',
    'newlines': 'a\nb\n',
    'long': '/'.join(['very-long-name-of-a-folder' * 8] * 4),
    'no text': os.fsdecode(b'caf\xe9 \xff'),
}


class Desk:
    """The embedded queue of one folder, and scripts for it.

    Args:
        folder: for the scripts, their logs, and the queue's own folder.
        entry: the script that starts the daemon.
        options: what the daemon is started with.
    """

    def __init__(self, folder: Path, entry: str, **options: float) -> None:
        self.folder = folder
        self.queue_folder = folder / 'queue'
        self.queue_folder.mkdir(parents=True, exist_ok=True)
        self._entry = entry
        self._options = options
        self._scripts = 0
        self.queue = self.ask()

    def ask(self, home: str = HOST, max_jobs: int | None = 4, **env: str) -> LocalQueue:
        """Return somebody who asks the queue."""
        settings = {'max_jobs': max_jobs, 'daemon': self._options}
        env = {**os.environ, **env}
        return LocalQueue(str(self.queue_folder), home, self._entry, settings, env)

    def script(self, *lines: str) -> str:
        """Write a script; return its path."""
        self._scripts += 1
        path = self.folder / f'{self._scripts}.sh'
        path.write_text('\n'.join(['#!/bin/bash', *lines]) + '\n')
        return str(path)

    def submit(self, *lines: str, options: tuple[str, ...] = ()) -> str:
        """Submit a script; return the job's id."""
        return accepted(self.try_submit(*lines, options=options))

    def try_submit(self, *lines: str, options: tuple[str, ...] = ()) -> SubmitReply:
        """Submit a script; return the answer."""
        return asyncio.run(self.queue.submit(self.script(*lines), options, str(self.folder)))

    def rows(self) -> list[JobRow]:
        """Return what the queue tells of its jobs."""
        reply = asyncio.run(self.queue.query())
        assert reply.ok, reply.error
        return list(reply.rows)

    def states(self) -> dict[str, str]:
        """Return the states of jobs, and of the rows of arrays."""
        return {f'{r.job_id}_{r.tasks}' if r.tasks else r.job_id: r.state for r in self.rows()}

    def await_state(self, job: str, state: str) -> None:
        """Wait until a job is in a state."""
        assert eventually(lambda: self.states().get(job) == state, PATIENCE_S), self.rows()

    def history(self, *jobs: str) -> list[AccountingRow]:
        """Return how jobs ended."""
        reply = asyncio.run(self.queue.history(jobs))
        assert reply.ok, reply.error
        return list(reply.rows)

    def cancel(self, *ids: str) -> None:
        """Cancel jobs."""
        assert asyncio.run(self.queue.cancel(ids)).ok

    def output(self, job: str) -> str:
        """Return what a job has written to its log."""
        path = self.folder / f'slurm-{job}.out'
        return path.read_text() if path.exists() else ''

    def daemons(self) -> list[Process]:
        """Return the daemons of this queue, of which there should be one at most."""
        return daemons(self.queue_folder)

    def daemon(self) -> Process:
        """Return the daemon."""
        (daemon,) = self.daemons()
        return daemon

    def messages(self) -> str:
        """Return what the daemons have had to say."""
        return (self.queue_folder / 'messages').read_text()


def accepted(reply: SubmitReply) -> str:
    """Return the id of a job that the queue has taken."""
    assert (reply.kind, reply.stderr) == ('submitted', '')
    return reply.job_id


@pytest.fixture
def make_desk(work_dir: Path, entry: str) -> Iterator[Callable[..., Desk]]:
    """Makes queues, and ends what they leave running."""
    desks = []

    def make(folder: Path = work_dir, **options: float) -> Desk:
        desk = Desk(folder, entry, **{'kill_wait': 0.5, **options})
        desks.append(desk)
        return desk

    yield make
    for desk in desks:
        for daemon in desk.daemons():
            daemon.signal(signal.SIGCONT)
        live = [row.job_id for row in desk.rows()]
        desk.cancel(*live)
        assert eventually(lambda: not live_jobs(desk), PATIENCE_S)  # noqa: B023
        for daemon in desk.daemons():
            daemon.kill()


def live_jobs(desk: Desk) -> list[str]:
    """Return the jobs that have not ended."""
    live = ('PENDING', 'RUNNING', 'COMPLETING')
    return [job for job, state in desk.states().items() if state in live]


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A queue."""
    return make_desk()


def test_it_is_a_queue(desk: Desk) -> None:
    """It has the methods that the agent asks of any queue system."""
    queue: Queue = desk.queue
    assert asyncio.run(queue.limits()).known


# ---- jobs


def test_ends_are_told(desk: Desk) -> None:
    """The state, exit code, signal, node and reason of a job are known after its end."""
    ends = {
        'exit 0': ('COMPLETED', 0, 0, 'None'),
        'exit 3': ('FAILED', 3, 0, 'NonZeroExitCode'),
        'kill -9 $$': ('FAILED', None, 9, 'RaisedSignal:9(Killed)'),
    }
    jobs = [desk.submit(line) for line in ends]
    lost = desk.submit('true', options=('--output=missing/log',))
    for job, (state, code, number, reason) in zip(jobs, ends.values(), strict=True):
        desk.await_state(job, state)
        (row,) = desk.history(job)
        assert (row.state, row.exit_code, row.signal, row.nodes) == (state, code, number, NODE)
        assert row.submit is not None
        assert row.end is not None
        assert row.submit <= row.end
        assert [r.reason for r in desk.rows() if r.job_id == job] == [reason]
    desk.await_state(lost, 'FAILED')
    assert [r.reason for r in desk.rows() if r.job_id == lost] == ['JobLaunchFailure']
    assert f'job {lost} cannot be started' in desk.messages()
    assert 'missing/log' in desk.messages()


def test_no_more_than_max_jobs_run(desk: Desk, gate: Gate) -> None:
    """The others wait, in their order."""
    jobs = [desk.submit(gate.shell_as(str(n))) for n in range(6)]
    gate.await_arrival(0, 1, 2, 3)
    assert list(desk.states().values()) == ['RUNNING'] * 4 + ['PENDING'] * 2
    desk.cancel(jobs[0])
    gate.await_arrival(4)
    assert not gate.has_arrived(5)
    gate.open()
    for job in jobs[1:]:
        desk.await_state(job, 'COMPLETED')


def test_as_many_as_there_are_cpus(desk: Desk) -> None:
    """Without max_jobs as many jobs run as this process may use CPUs."""
    queue = desk.ask(max_jobs=None)
    accepted(asyncio.run(queue.submit(desk.script('true'), [], '/')))
    records = map(json.loads, (desk.queue_folder / 'state').read_text().splitlines())
    limits = [record['max_jobs'] for record in records if record['what'] == 'queue']
    assert limits[-1] == len(os.sched_getaffinity(0))


def test_a_job_is_submitted_once(desk: Desk, gate: Gate) -> None:
    """Who repeats a submission, having got no answer, gets the id of the job that there is."""
    script = desk.script('echo once >>log', gate.shell)
    replies = [asyncio.run(desk.queue.submit(script, [], str(desk.folder))) for _ in range(2)]
    assert replies[0] == replies[1]
    found = asyncio.run(desk.queue.lookup(script))
    assert (found.ok, found.job_id) == (True, replies[0].job_id)
    assert asyncio.run(desk.queue.lookup('/other.sh')).job_id is None
    gate.open()
    desk.await_state(replies[0].job_id, 'COMPLETED')
    assert (desk.folder / 'log').read_text() == 'once\n'


def test_surroundings(desk: Desk) -> None:
    """A job has its submitter's environment and umask, not the daemon's, and nothing is open."""
    first = desk.submit('true')
    desk.await_state(first, 'COMPLETED')
    before = os.umask(0o027)
    try:
        queue = desk.ask(MINE='it\'s "mine"\n2', SLURM_JOB_ID='77', SLURM_RESTART_COUNT='1')
        lines = ('echo "$MINE"', 'umask', 'pwd', 'echo $SLURM_JOB_ID [$SLURM_RESTART_COUNT]')
        script = desk.script(*lines, 'ls /proc/$$/fd >fds')
        job = accepted(asyncio.run(queue.submit(script, [], str(desk.folder))))
    finally:
        os.umask(before)
    desk.await_state(job, 'COMPLETED')
    expected = f'it\'s "mine"\n2\n0027\n{desk.folder}\n{job} []\n'
    assert desk.output(job) == expected
    assert set((desk.folder / 'fds').read_text().split()) == {'0', '1', '2', '255'}
    assert (desk.folder / f'slurm-{job}.out').stat().st_mode & 0o777 == 0o640


def test_missing_folder(desk: Desk) -> None:
    """A job whose folder is gone by the time that it starts runs in /tmp, as in Slurm."""
    options = (f'--chdir={desk.folder}/gone', f'--output={desk.folder}/log')
    desk.await_state(desk.submit('pwd', options=options), 'COMPLETED')
    assert (desk.folder / 'log').read_text() == '/tmp\n'


STUBBORN = """\
trap '' TERM
bash -c 'trap "" TERM; echo shell $$ >>pids; set -m; sleep 600 & echo group $! >>pids; wait' &
setsid bash -c 'trap "" TERM; echo session $$ >>pids; while :; do sleep 0.1; done' &
echo script $$ >>pids
"""


def processes(desk: Desk, count: int) -> dict[str, str]:
    """Return the processes that a job has noted, as soon as it has noted so many."""
    path = desk.folder / 'pids'
    assert eventually(lambda: path.exists() and path.read_text().count('\n') == count, PATIENCE_S)
    return dict(line.split() for line in path.read_text().splitlines())


@pytest.mark.parametrize('how', ['CANCELLED', 'TIMEOUT', 'COMPLETED'])
def test_all_processes_of_a_job_end_with_it(desk: Desk, gate: Gate, how: str) -> None:
    """TERM, then KILL reach whatever a job has started, in groups and sessions of its own too."""
    options = ('--time=0:01',) if how == 'TIMEOUT' else ()
    wait = gate.shell if how == 'COMPLETED' else 'while :; do sleep 0.1; done'
    job = desk.submit(STUBBORN, wait, options=options)
    found = processes(desk, 4)
    gate.open()
    if how == 'CANCELLED':
        desk.cancel(job)
        assert desk.states()[job] == 'COMPLETING'
    desk.await_state(job, how)
    if how == 'COMPLETED':  # a session of its own is found only while who started it lives
        os.kill(int(found.pop('session')), signal.SIGKILL)
    assert has_ended(*found.values())


def test_term_is_not_the_end(desk: Desk) -> None:
    """A job may use the time between TERM and KILL, and is CANCELLED whatever its exit code."""
    job = desk.submit("trap 'echo tidied; exit 0' TERM", 'echo up; while :; do sleep 0.02; done')
    assert eventually(lambda: 'up' in desk.output(job), PATIENCE_S)
    desk.cancel(job)
    desk.await_state(job, 'CANCELLED')
    assert desk.output(job).endswith('tidied\n')
    assert desk.history(job)[0].exit_code == 0


def test_stopped_job_is_cancelled(desk: Desk) -> None:
    """SIGCONT goes before SIGTERM, so that a job that is stopped can hear it."""
    wait = 'while :; do sleep 0.02; done'
    job = desk.submit("trap 'echo heard; exit 0' TERM", 'echo $$; kill -STOP $$', wait)
    assert eventually(lambda: desk.output(job) != '', PATIENCE_S)
    stat = Path(f'/proc/{desk.output(job).strip()}/stat')
    assert eventually(lambda: stat.read_text().rpartition(')')[2].split()[0] == 'T', PATIENCE_S)
    desk.cancel(job)
    desk.await_state(job, 'CANCELLED')
    assert desk.output(job).endswith('heard\n')


def test_cancel(desk: Desk, gate: Gate) -> None:
    """Tasks that wait are gone at once, in whatever spelling; unknown ids do no harm."""
    array = desk.submit(gate.shell_as('$SLURM_ARRAY_TASK_ID'), options=('--array=0-9',))
    gate.await_arrival(0, 1, 2, 3)
    desk.cancel(f'{array}_5', f'{array}_[7-9]', '999', 'x')
    states = desk.states()
    assert states[f'{array}_4,6'] == 'PENDING'
    assert states[f'{array}_5,7-9'] == 'CANCELLED'
    desk.cancel(array)
    ended = {f'{array}_0-3': 'CANCELLED', f'{array}_4-9': 'CANCELLED'}
    assert eventually(lambda: desk.states() == ended, PATIENCE_S)


# ---- the daemon


def test_daemon_belongs_to_nobody(desk: Desk) -> None:
    """It has a session of its own, no parent that waits for it, and no file but its own."""
    desk.submit('true', options=('--hold',))
    daemon = desk.daemon()
    fields = Path(f'/proc/{daemon.pid}/stat').read_text().rpartition(')')[2].split()
    assert int(fields[1]) != os.getpid()
    assert int(fields[3]) == daemon.pid
    assert fields[4] == '0', 'no terminal'
    folder = str(desk.queue_folder)
    ours = {'/dev/null', f'{folder}/messages', f'{folder}/lock', f'{folder}/state'}
    assert eventually(lambda: open_files(daemon) == ours, PATIENCE_S), open_files(daemon)


def open_files(process: Process) -> set[str]:
    """Return the files and pipes that a process has open."""
    files = set()
    for path in Path(f'/proc/{process.pid}/fd').iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.add(os.readlink(path))
    return {file for file in files if not file.startswith(('socket:', 'anon_inode:'))}


def test_gone_when_empty(make_desk: Callable[..., Desk]) -> None:
    """It ends by itself a while after the last job, and the next one goes on with its numbers."""
    desk = make_desk(idle=1.0)
    first = desk.submit('true')
    daemon = desk.daemon()
    assert eventually(lambda: not daemon.alive(), PATIENCE_S)
    names = sorted(path.name for path in desk.queue_folder.iterdir())
    assert names == ['lock', 'messages', 'state']
    assert int(desk.submit('true')) == int(first) + 1
    assert desk.history(first)[0].state == 'COMPLETED'
    assert desk.daemon() != daemon


def test_does_not_go_while_jobs_wait(make_desk: Callable[..., Desk], gate: Gate) -> None:
    """A job that runs, or waits, keeps it."""
    desk = make_desk(idle=0.1)
    desk.submit('true', options=('--hold',))
    daemon = desk.daemon()
    time.sleep(0.5)
    assert daemon.alive()


def test_does_not_outlive_its_folder(make_desk: Callable[..., Desk], gate: Gate) -> None:
    """When somebody removes its folder it sees the running jobs through, and ends."""
    desk = make_desk(idle=0.1)
    desk.submit('true', options=('--hold',))
    desk.submit(gate.shell, options=(f'--output={desk.folder}/log',))
    gate.await_arrival()
    daemon = desk.daemon()
    shutil.rmtree(desk.queue_folder)
    time.sleep(0.3)
    assert daemon.alive()
    gate.open()
    assert eventually(lambda: not daemon.alive(), PATIENCE_S)
    desk.queue_folder.mkdir()


def test_rests_when_nothing_happens(desk: Desk, gate: Gate) -> None:
    """While a job runs it uses no CPU time."""
    desk.submit(gate.shell)
    gate.await_arrival()
    pid = desk.daemon().pid

    def ticks() -> int:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 1


def test_one_for_all_who_ask(desk: Desk, gate: Gate) -> None:
    """However many ask at the same time, one daemon is started, and all see all jobs."""
    code = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(desk._entry).parents[1])!r})
from slurm_futures_remote.localqueue import LocalQueue
folder, home, entry, script = sys.argv[1:]
queue = LocalQueue(folder, home, entry, {{'max_jobs': 4}}, os.environ)
print(asyncio.run(queue.submit(script, [], folder)).job_id)
"""
    askers = [
        subprocess.Popen(
            [sys.executable, '-c', code, desk.queue_folder, HOST, desk._entry, desk.script('true')],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    ids = sorted(int(asker.communicate(timeout=60)[0]) for asker in askers)
    assert ids == [1, 2, 3, 4, 5]
    assert len(desk.daemons()) == 1
    assert len(desk.rows()) == 5


def test_daemon_that_is_always_about_to_go(make_desk: Callable[..., Desk]) -> None:
    """Whenever it ends, no submission is lost and no id is given twice."""
    desk = make_desk(idle=0.1)

    async def submit_all(pause: float) -> list[SubmitReply]:
        await asyncio.sleep(pause)  # for the daemon to be on its way out
        jobs = (desk.queue.submit(desk.script('echo >>log'), [], str(desk.folder)) for _ in 'abcd')
        return list(await asyncio.gather(*jobs))

    pauses = (0.08 + n / 100 for n in range(8))
    ids = [accepted(reply) for pause in pauses for reply in asyncio.run(submit_all(pause))]
    assert len(set(ids)) == 32
    assert eventually(lambda: set(desk.states().values()) == {'COMPLETED'}, PATIENCE_S)
    assert (desk.folder / 'log').read_text() == '\n' * 32


@pytest.mark.parametrize('name', HOSTILE)
def test_folders_of_any_name(make_desk: Callable[..., Desk], tmp_path: Path, name: str) -> None:
    """Spaces, quotes, newlines, bytes that are no text, and 800 characters do no harm."""
    desk = make_desk(tmp_path / HOSTILE[name])
    job = desk.submit('pwd; printf "%s\\n" "$SLURM_SUBMIT_DIR"')
    desk.await_state(job, 'COMPLETED')
    log = (desk.folder / f'slurm-{job}.out').read_bytes()
    assert log == (os.fsencode(desk.folder) + b'\n') * 2


# ---- a daemon that dies


def test_killed_daemon_is_followed_by_another(make_desk: Callable[..., Desk], gate: Gate) -> None:
    """Running jobs are followed to their end, waiting ones go on, no id is given again."""
    desk = make_desk(idle=60.0)
    runs = [desk.submit(gate.shell_as(str(n)), f'echo {n} >>log') for n in range(4)]
    waits = [desk.submit(gate.shell_as(str(n)), f'echo {n} >>log') for n in range(4, 6)]
    gate.await_arrival(0, 1, 2, 3)
    desk.daemon().kill()
    states = desk.states()
    assert [states[job] for job in runs + waits] == ['RUNNING'] * 4 + ['PENDING'] * 2
    assert desk.submit('true') not in runs + waits
    gate.open()
    log = desk.folder / 'log'
    # Without anybody asking.
    assert eventually(lambda: log.exists() and log.read_text().count('\n') == 6, PATIENCE_S)
    assert sorted(log.read_text().split()) == list('012345')
    for job in waits:
        desk.await_state(job, 'COMPLETED')
    # Their exit codes went to the daemon that was killed.
    for job in runs:
        desk.await_state(job, 'FAILED')
        (row,) = desk.history(job)
        assert (row.exit_code, row.signal) == (None, 0)
    reasons = {row.reason for row in desk.rows() if row.job_id in runs}
    assert reasons == {'ended while the queue was not running: its exit code is unknown'}


def test_job_that_ended_while_there_was_no_daemon(desk: Desk, gate: Gate) -> None:
    """It has ended, and what it has left running ends, too."""
    left = 'set -m; sleep 600 & echo group $! >>pids; echo script $$ >>pids'
    job = desk.submit(left, gate.shell)
    found = processes(desk, 2)
    desk.daemon().kill()
    gate.open()
    assert has_ended(found['script'])
    desk.await_state(job, 'FAILED')
    assert has_ended(found['group'])


def test_cancelled_job_stays_cancelled(make_desk: Callable[..., Desk]) -> None:
    """What had been told to end is killed by the next daemon, and has ended as it was told to."""
    desk = make_desk(kill_wait=1.0)
    job = desk.submit("trap '' TERM", 'echo up; while :; do sleep 0.1; done')
    assert eventually(lambda: 'up' in desk.output(job), PATIENCE_S)
    desk.cancel(job)
    desk.daemon().kill()
    desk.await_state(job, 'CANCELLED')


def test_time_limit_outlives_a_daemon(desk: Desk) -> None:
    """The limit counts from the job's start, whoever looks at it."""
    job = desk.submit('sleep 600', options=('--time=0:02',))
    desk.await_state(job, 'RUNNING')
    begun = time.monotonic()
    desk.daemon().kill()
    desk.await_state(job, 'TIMEOUT')
    assert time.monotonic() - begun < 4


def test_killed_at_any_moment(desk: Desk) -> None:
    """However often it is killed, each job starts once and ends."""
    jobs = []
    for _ in range(6):
        jobs += [desk.submit(f'echo {n} >>log', 'sleep 0.1') for n in range(5)]
        desk.daemon().kill()
    ended = {'COMPLETED', 'FAILED'}
    assert eventually(lambda: set(desk.states().values()) <= ended, PATIENCE_S)
    assert len(set(jobs)) == 30
    assert (desk.folder / 'log').read_text().count('\n') <= 30
    completed = sum(state == 'COMPLETED' for state in desk.states().values())
    assert (desk.folder / 'log').read_text().count('\n') >= completed


def test_reboot(desk: Desk, gate: Gate) -> None:
    """Jobs that ran before the machine was started anew have lost their node; others go on."""
    job, wait = desk.submit(gate.shell), desk.submit('true', options=('--hold',))
    gate.await_arrival()
    desk.daemon().kill()
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    state = desk.queue_folder / 'state'
    state.write_text(state.read_text().replace(boot, 'another-boot'))
    assert desk.states() == {job: 'NODE_FAIL', wait: 'PENDING'}
    gate.open()


def test_recycled_process_number(desk: Desk, gate: Gate) -> None:
    """A process that has the number of a job's, but is another, is neither followed nor killed."""
    job = desk.submit('true', options=('--hold',))
    desk.daemon().kill()
    other = subprocess.Popen(['sleep', '600'], start_new_session=True)
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    start = {'what': 'start', 'job': int(job), 'task': 0, 'since': 0.0}
    with (desk.queue_folder / 'state').open('a') as file:
        file.write(json.dumps({**start, 'who': f'{HOST}:{boot}:{other.pid}:1'}) + '\n')
    assert desk.states() == {job: 'FAILED'}
    assert other.poll() is None
    other.kill()
    other.wait()


def test_spoilt_state(desk: Desk) -> None:
    """A crash may spoil lines of the state: the rest counts, and ids go on."""
    jobs = [desk.submit('true', options=('--hold',)) for _ in range(3)]
    desk.daemon().kill()
    state = desk.queue_folder / 'state'
    lines = state.read_text().splitlines()
    index = next(n for n, line in enumerate(lines) if f'"job":{jobs[1]},' in line)
    lines[index] = '\0' * 20
    state.write_text('\n'.join([*lines, '{"what":"start","job":2,"task":0}', '{"torn']))
    assert desk.states() == {jobs[0]: 'PENDING', jobs[2]: 'PENDING'}
    assert desk.submit('true') == '4'
    assert 'a line that is no record' in desk.messages()
    assert 'means nothing here' in desk.messages()


# ---- what cannot be


def test_state_of_another_version(desk: Desk) -> None:
    """It is not touched: the submission is refused with words that say what to do."""
    (desk.queue_folder / 'state').write_text('{"what":"queue","version":99}\n')
    reply = desk.try_submit('true')
    assert reply.kind == 'refused'
    assert reply.stderr.endswith('the queue there is that of another version (99)')
    assert not asyncio.run(desk.queue.query()).ok
    (desk.queue_folder / 'state').unlink()


def test_daemon_of_another_version(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon is not asked what it may understand otherwise."""
    desk.submit('true')
    monkeypatch.setattr(localqueue, 'VERSION', VERSION + 1)
    reply = desk.try_submit('true')
    assert reply.kind == 'refused'
    assert 'another version of slurm_futures runs the embedded queue' in reply.stderr
    query = asyncio.run(desk.queue.query())
    assert (query.ok, query.error) == (False, reply.stderr)
    monkeypatch.undo()


def test_another_host(desk: Desk) -> None:
    """An agent on another host than the jobs knows nothing of them, and says so."""
    queue = desk.ask(home='elsewhere')
    words = f'the jobs of this run are in the embedded queue of elsewhere, not of {HOST}'
    reply = asyncio.run(queue.submit(desk.script('true'), [], '/'))
    assert (reply.kind, reply.stderr) == ('refused', words)
    assert asyncio.run(queue.query()) == (False, [], words)
    assert asyncio.run(queue.history(['1'])) == (False, [], words)
    assert asyncio.run(queue.lookup('/x')) == (False, None, (), words)
    assert asyncio.run(queue.cancel(['1'])) == (False, 1, '', words)
    assert desk.daemons() == []


def test_daemon_that_cannot_start(make_desk: Callable[..., Desk], work_dir: Path) -> None:
    """The reason is in the refusal."""
    desk = make_desk()
    lock = desk.queue_folder / 'lock'
    lock.mkdir()
    reply = desk.try_submit('true')
    assert reply.kind == 'refused'
    assert reply.stderr.startswith(f'the embedded queue cannot be started in {desk.queue_folder}: ')
    assert reply.stderr.endswith("Is a directory: 'lock'")
    lock.rmdir()


def test_full_disk(desk: Desk, gate: Gate) -> None:
    """What cannot be written down is not taken, and not started; with room again all goes on."""
    first = desk.submit(gate.shell)
    after = desk.submit('true', options=(f'--dependency=afterany:{first}',))
    gate.await_arrival()
    pid, state = desk.daemon().pid, desk.queue_folder / 'state'
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    (desk.queue_folder / 'messages').write_bytes(b' ' * state.stat().st_size)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (state.stat().st_size, limits[1]))
    try:
        reply = desk.try_submit('true')
        assert (reply.kind, reply.job_id) == ('busy', '')
        assert reply.stderr == 'the embedded queue cannot keep the job: [Errno 27] File too large'
        gate.open()
        desk.await_state(first, 'COMPLETED')
        assert desk.states()[after] == 'PENDING'
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    desk.await_state(after, 'COMPLETED')
    desk.daemon().kill()
    assert desk.states() == {first: 'COMPLETED', after: 'COMPLETED'}


def test_stopped_daemon(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer proves nothing; what it had been told it does when it wakes up."""
    first = desk.submit('true')
    desk.await_state(first, 'COMPLETED')
    daemon = desk.daemon()
    daemon.signal(signal.SIGSTOP)
    monkeypatch.setattr(localqueue, 'ANSWER_TIMEOUT', 0.3)
    script = desk.script('true')
    reply = asyncio.run(desk.queue.submit(script, [], '/'))
    assert (reply.kind, reply.stderr) == (
        'ambiguous',
        'the embedded queue has not answered for 0.3 s',
    )
    assert not asyncio.run(desk.queue.query()).ok
    monkeypatch.undo()
    daemon.signal(signal.SIGCONT)
    assert eventually(lambda: asyncio.run(desk.queue.lookup(script)).job_id is not None, PATIENCE_S)


def test_asker_that_dies_over_its_question(desk: Desk) -> None:
    """Half a question is none, and keeps nobody from asking."""
    desk.submit('true')
    localqueue.ask(str(desk.queue_folder), b'{"version": 1, "do": "sub')
    assert len(desk.rows()) == 1


# ---- on other Pythons

SMOKE = """
import asyncio, os, sys
sys.path.insert(0, {parent!r})
from slurm_futures_remote.localqueue import LocalQueue
settings = {{'max_jobs': 2, 'daemon': {{'idle': 0.2}}}}
queue = LocalQueue({folder!r}, os.uname().nodename, {entry!r}, settings, os.environ)

async def main():
    jobs = await asyncio.gather(*(queue.submit(path, [], '/') for path in {scripts!r}))
    while {{row.state for row in (await queue.query()).rows}} - {{'COMPLETED', 'FAILED'}}:
        await asyncio.sleep(0.05)
    history = await queue.history([job.job_id for job in jobs])
    return sorted(row.exit_code for row in history.rows)

print(asyncio.run(main()))
"""


@pytest.mark.parametrize('version', ['3.8', '3.9', '3.12', '3.13'])
def test_it_works_on_other_pythons(desk: Desk, version: str) -> None:
    """Client and daemon run with an old Python and a new one, warnings being errors."""
    python = find_python(version) or pytest.skip(f'there is no Python {version} here')
    scripts = [desk.script(f'exit {n}') for n in range(4)]
    code = SMOKE.format(
        parent=str(Path(desk._entry).parents[1]),
        folder=str(desk.queue_folder),
        entry=desk._entry,
        scripts=scripts,
    )
    argv = [python, '-W', 'error', '-X', 'dev', '-c', code]
    env = {**os.environ, 'PYTHONWARNINGS': 'error', 'PYTHONDEVMODE': '1'}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert (done.stdout, done.stderr) == ('[0, 1, 2, 3]\n', '')
    assert eventually(lambda: desk.daemons() == [], PATIENCE_S)
    assert desk.messages() == ''
