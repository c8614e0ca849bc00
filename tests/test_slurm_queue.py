"""SlurmQueue's handling of commands that fail, hang, lie or are missing, played by stubs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm_futures.remote import slurm
from slurm_futures.remote.queues import CommandReply, LookupReply, QueryReply, Queue
from slurm_futures.remote.slurm import SlurmQueue
from slurm_futures.remote.slurm_parsers import ClusterLimits

REMOTE = Path(slurm.__file__).parent
HOST = os.uname().nodename


class Stubs:
    """Commands in a folder that is first on the PATH of the queue's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {'PATH': f'{folder}:/usr/bin:/bin', 'HERE': str(folder)}
        folder.mkdir()

    def add(self, name: str, *lines: str) -> None:
        """Make a command that notes its arguments, a line each, and does these lines."""
        path = self.folder / name
        note = f'printf "%s\\n" "$@" >> {self.folder}/{name}.args'
        path.write_text('\n'.join(['#!/bin/sh', note, *lines]) + '\n')
        path.chmod(0o755)

    def args(self, name: str) -> list[str]:
        """The arguments of all calls of a command."""
        return (self.folder / f'{name}.args').read_text().splitlines()

    def queue(self, **settings: object) -> SlurmQueue:
        """A queue that finds the stubs."""
        return SlurmQueue(settings, self.env)


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    """No command yet."""
    return Stubs(tmp_path / 'bin')


def test_it_is_a_queue(stubs: Stubs) -> None:
    """It has the methods that the agent asks of any queue system."""
    queue: Queue = stubs.queue()
    assert queue is not None


# ---- submit


def test_the_script_comes_last_and_options_before_it(stubs: Stubs, work_dir: Path) -> None:
    """sbatch gets --parsable, --kill-on-invalid-dep, the options as they are, and the path."""
    stubs.add('sbatch', 'pwd -P', 'echo "12;far"', 'echo careful >&2')
    script = str(work_dir / 'x.sh')
    options = ['--comment=a b', '--mem=1G']
    reply = asyncio.run(stubs.queue().submit(script, options, str(work_dir)))
    assert reply[:3] == ('submitted', '12', 'far')
    assert reply.stdout.splitlines()[0] == str(work_dir.resolve())
    assert (reply.stderr, reply.returncode) == ('careful\n', 0)
    assert stubs.args('sbatch') == [
        *('--parsable', '--kill-on-invalid-dep=yes', '--comment=a b', '--mem=1G', script)
    ]


def test_sbatch_gets_the_users_environment_without_the_surrounding_job(stubs: Stubs) -> None:
    """What it gets, the job gets."""
    stubs.add('sbatch', 'env > "$HERE/env"', 'echo 1')
    stubs.env |= {'SLURM_JOB_ID': '5', 'SBATCH_ACCOUNT': 'me', 'MINE': 'ü'}
    assert asyncio.run(stubs.queue().submit('/x.sh', [], '/')).job_id == '1'
    env = dict(line.split('=', 1) for line in (stubs.folder / 'env').read_text().splitlines())
    assert 'SLURM_JOB_ID' not in env
    assert (env['SBATCH_ACCOUNT'], env['MINE']) == ('me', 'ü')


@pytest.mark.parametrize(
    ('lines', 'kind'),
    [
        (
            ['echo "sbatch: error: Batch job submission failed: Invalid qos" >&2', 'exit 1'],
            'refused',
        ),
        (['exit 1'], 'ambiguous'),
        (['kill -9 $$'], 'ambiguous'),
        (['echo done'], 'ambiguous'),
        (["printf '\\377\\n'", 'exit 1'], 'ambiguous'),
    ],
)
def test_failures_are_told_apart(stubs: Stubs, lines: list[str], kind: str) -> None:
    """The verdict is that on its status and words, whatever bytes they are."""
    stubs.add('sbatch', *lines)
    reply = asyncio.run(stubs.queue().submit('/x.sh', [], '/'))
    assert (reply.kind, reply.job_id) == (kind, '')
    assert reply.returncode == 0 or reply.stderr


def test_a_missing_sbatch_is_named(stubs: Stubs) -> None:
    """The reply says what was looked for, where, and on which host."""
    reply = asyncio.run(stubs.queue(sbatch_bin='sbatch-99').submit('/x.sh', [], '/'))
    assert (reply.kind, reply.stderr) == ('refused', f'sbatch-99 not found on PATH of {HOST}')
    reply = asyncio.run(stubs.queue(sbatch_bin='/opt/sbatch').submit('/x.sh', [], '/'))
    assert (reply.kind, reply.stderr) == ('refused', f'/opt/sbatch does not exist on {HOST}')


def test_a_sbatch_that_may_not_be_run_is_named(stubs: Stubs) -> None:
    """A file that is no program is another fault than a missing one."""
    stubs.add('sbatch')
    (stubs.folder / 'sbatch').chmod(0o644)
    queue = stubs.queue(sbatch_bin=str(stubs.folder / 'sbatch'))
    reply = asyncio.run(queue.submit('/x.sh', [], '/'))
    assert reply.kind == 'refused'
    assert reply.stderr.endswith(f'on {HOST}: Permission denied')


def test_a_missing_folder_is_not_taken_for_a_missing_sbatch(stubs: Stubs) -> None:
    """Both are ENOENT; the reply names the folder."""
    stubs.add('sbatch', 'echo 1')
    reply = asyncio.run(stubs.queue().submit('/x.sh', [], '/no/such'))
    assert reply.kind == 'refused'
    assert reply.stderr == f'cannot work in /no/such on {HOST}: No such file or directory'


def test_no_room_for_a_process_means_that_nothing_was_sent(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fork failing with EAGAIN goes by: the submission may be tried again."""

    def fail(*_args: object, **_options: object) -> None:
        raise BlockingIOError(11, 'Resource temporarily unavailable')

    monkeypatch.setattr(subprocess, 'Popen', fail)
    reply = asyncio.run(stubs.queue().submit('/x.sh', [], '/'))
    assert reply.kind == 'unreachable'
    assert 'Resource temporarily unavailable' in reply.stderr


def test_a_slow_sbatch_is_killed_with_all_it_started(stubs: Stubs) -> None:
    """Then nobody knows whether it submitted; and nothing of it is left to submit later."""
    fifo = stubs.folder / 'fifo'
    os.mkfifo(fifo)
    stubs.add('sbatch', 'sleep 600 > "$HERE/fifo" &', 'echo working >&2', 'wait')
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        reply = asyncio.run(stubs.queue(submit_timeout=0.5).submit('/x.sh', [], '/'))
        assert (reply.kind, reply.returncode) == ('ambiguous', None)
        assert reply.stderr.startswith('working\nsbatch was killed: it had not ended after 0.5 s')
        os.set_blocking(reader, True)
        # Ends when nobody holds the other end any more: all of them are dead.
        assert os.read(reader, 1) == b''
    finally:
        os.close(reader)


def test_an_sbatch_that_waits_for_the_job_has_submitted_it(stubs: Stubs) -> None:
    """`#SBATCH --wait`: the id is out long before the time is up."""
    stubs.add('sbatch', 'echo 37', 'sleep 600')
    reply = asyncio.run(stubs.queue(submit_timeout=0.5).submit('/x.sh', [], '/'))
    assert reply[:2] == ('submitted', '37')


def test_what_a_wrapper_leaves_in_the_background_holds_up_nothing(stubs: Stubs) -> None:
    """It keeps the output open; the reply comes soon after sbatch's own end."""
    stubs.add('sbatch', 'sleep 20 &', 'echo $! > "$HERE/pid"', 'echo 12')
    started = time.monotonic()
    reply = asyncio.run(stubs.queue().submit('/x.sh', [], '/'))
    assert time.monotonic() - started < 10
    assert reply[:2] == ('submitted', '12')
    # Not ours to kill: it may be the site's accounting of submissions.
    os.kill(int((stubs.folder / 'pid').read_text()), signal.SIGKILL)


def test_sbatch_does_not_get_the_terminals_signals_or_input(stubs: Stubs) -> None:
    """It runs in a session of its own, and reads end of file."""
    stubs.add('sbatch', 'cat', 'ps -o sid= -p $$ >&2', 'echo $$ >&2', 'echo 1')
    reply = asyncio.run(stubs.queue().submit('/x.sh', [], '/'))
    session, pid = reply.stderr.split()
    assert session == pid
    assert reply.stdout == '1\n'


def test_only_a_few_submissions_run_at_once(stubs: Stubs) -> None:
    """Many scripts do not make many sbatch on the login node."""
    stubs.add('sbatch', 'echo x >> "$HERE/in"', 'sleep 0.1', 'wc -l < "$HERE/in" >&2', 'echo 1')

    async def many() -> list[str]:
        queue = stubs.queue()
        replies = await asyncio.gather(*(queue.submit('/x.sh', [], '/') for _ in range(8)))
        return [reply.stderr for reply in replies]

    assert min(map(int, asyncio.run(many()))) <= slurm.SUBMISSIONS


@pytest.mark.parametrize('steps', [*range(8), None])
def test_a_cancelled_call_leaves_no_process(stubs: Stubs, steps: int | None) -> None:
    """An agent that leaves takes its queries along, however far they have come."""
    fifo = stubs.folder / 'fifo'
    os.mkfifo(fifo)
    stubs.add('squeue', 'exec > "$HERE/fifo"', 'echo up', 'sleep 600')
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    opener = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reader, True)

    async def cancel() -> None:
        task = asyncio.ensure_future(stubs.queue().query())
        for _ in range(steps or 0):
            await asyncio.sleep(0)
        if steps is None:
            await asyncio.get_running_loop().run_in_executor(None, os.read, reader, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)

    try:
        asyncio.run(cancel())
        os.close(opener)
        # End of file comes when nobody holds the other end any more.
        with open(reader, 'rb', closefd=False) as pipe:
            assert pipe.read() in {b'', b'up\n'}
    finally:
        os.close(reader)


# ---- query, history, cancel, lookup, limits


def test_a_failed_query_is_no_empty_queue(stubs: Stubs) -> None:
    """Rows are there only if squeue ended with 0; else the reply says why."""
    stubs.add(
        'squeue', 'echo "1|N/A|1|RUNNING|n1|None"', 'echo "slurm_load_jobs error" >&2', 'exit 1'
    )
    assert asyncio.run(stubs.queue().query()) == QueryReply(False, [], 'slurm_load_jobs error\n')
    stubs.add('squeue', 'exit 3')
    words = 'squeue ended with status 3 and no word why'
    assert asyncio.run(stubs.queue().query()) == QueryReply(False, [], words)
    reply = asyncio.run(stubs.queue(squeue_bin='nope').query())
    assert reply == QueryReply(False, [], f'nope not found on PATH of {HOST}')


def test_a_slow_query_is_unknown(stubs: Stubs) -> None:
    """Half an answer is none."""
    stubs.add('squeue', 'echo "1|N/A|1|RUNNING|n1|None"', 'sleep 600')
    reply = asyncio.run(stubs.queue(query_timeout=0.3).query())
    assert reply == QueryReply(False, [], 'squeue was killed: it had not ended after 0.3 s')


def test_replies_travel_as_json(stubs: Stubs) -> None:
    """The agent sends them so, even if a name in them is in no encoding."""
    stubs.add('squeue', "printf '1|N/A|1|RUNNING|n1|\\377\\n'")
    stubs.add('scontrol', 'echo "SLURM_VERSION = 22.05.8"')
    rows = json.loads(json.dumps(asyncio.run(stubs.queue().query())._asdict()))['rows']
    assert rows == [['1', '', 'RUNNING', '\ufffd', 'n1', '1']]
    assert json.loads(json.dumps(asyncio.run(stubs.queue().limits())._asdict()))['known']


def test_history_asks_about_arrays_and_fails_as_a_whole(stubs: Stubs) -> None:
    """sacct is asked in portions; if one fails, nothing is known."""
    stubs.add('sacct', 'echo "10|10|FAILED|3:0|1|2|n2"', '[ -z "$FAIL" ]')
    reply = asyncio.run(stubs.queue().history(['10', '12_3', '12_[0-2]']))
    assert (reply.ok, [row.exit_code for row in reply.rows]) == (True, [3])
    assert stubs.args('sacct')[-1] == '--jobs=10,12'
    many = asyncio.run(stubs.queue().history([str(number) for number in range(1, 402)]))
    assert len(many.rows) == 3
    stubs.env['FAIL'] = '1'
    assert not asyncio.run(stubs.queue().history(['10'])).ok
    assert asyncio.run(stubs.queue().history([])).ok


def test_cancelling_stops_at_the_first_failure(stubs: Stubs) -> None:
    """With the controller away, hundreds of further attempts would help nobody."""
    stubs.add('scancel', 'echo no >&2', 'exit 1')
    reply = asyncio.run(stubs.queue().cancel([str(number) for number in range(500)]))
    assert reply == CommandReply(False, 1, '', 'no\n')
    assert len(stubs.args('scancel')) == 200
    stubs.add('scancel')
    assert asyncio.run(stubs.queue().cancel(['7_0', '7_1'])).ok
    assert stubs.args('scancel')[-1] == '7_[0-1]'
    assert asyncio.run(stubs.queue(scancel_bin='nope').cancel([])) == CommandReply(ok=True)


def test_lookup_trusts_squeue_and_then_sacct(stubs: Stubs) -> None:
    """A failed squeue is unknown; a job gone from it may be in the accounting, if there is any."""
    stubs.add('squeue', 'exit 1')
    assert not asyncio.run(stubs.queue().lookup('/w/a.sh')).ok
    stubs.add('squeue', 'echo "5|/w/b.sh"', 'echo "8|/w/b.sh"')
    assert asyncio.run(stubs.queue().lookup('/w/b.sh')) == LookupReply(True, '5', ('8',))
    assert asyncio.run(stubs.queue().lookup('/w/a.sh')) == LookupReply(True, None)
    stubs.add('sacct', 'echo "4_[0-9]|sbatch --parsable /w/a.sh"')
    assert asyncio.run(stubs.queue().lookup('/w/a.sh')) == LookupReply(True, '4')


def test_limits_are_asked_until_they_are_known(stubs: Stubs) -> None:
    """Slurm's defaults hold in between; an answer is kept."""
    queue = stubs.queue()
    assert asyncio.run(queue.limits()) == ClusterLimits()
    stubs.add('scontrol', 'echo "SLURM_VERSION = 22.05.8"', 'echo "MaxArraySize = 7"')
    assert asyncio.run(queue.limits()).max_array_size == 7
    stubs.add('scontrol', 'exit 1')
    assert asyncio.run(queue.limits()).max_array_size == 7


def test_every_query_names_the_clusters(stubs: Stubs) -> None:
    """The user's choice by default, another when it is given."""
    for name in ('squeue', 'sacct', 'scancel', 'scontrol'):
        stubs.add(name)
    stubs.env['SLURM_CLUSTERS'] = 'near'

    async def ask(queue: SlurmQueue, *clusters: str) -> None:
        await queue.query(*clusters)
        await queue.history(['1'], *clusters)
        await queue.cancel(['1'], *clusters)
        await queue.lookup('/x.sh', *clusters)
        await queue.limits(*clusters)

    asyncio.run(ask(stubs.queue()))
    asyncio.run(ask(stubs.queue(), 'far'))
    calls = {'squeue': 2, 'sacct': 2, 'scancel': 1, 'scontrol': 1}
    for name, count in calls.items():
        args = stubs.args(name)
        assert args.count('--clusters=near') == args.count('--clusters=far') == count


# ---- on the cluster's Python

SMOKE = """
import asyncio, importlib, sys
sys.path.insert(0, {parent!r})
import remote
for name in {modules!r}:
    importlib.import_module('remote.' + name)
from remote.slurm import SlurmQueue
queue = SlurmQueue({{'query_timeout': 0.5}}, {env!r})

async def main():
    asks = [queue.submit('/x.sh', [], '/'), queue.limits(), queue.history(['1'])]
    replies = [tuple(reply)[:2] for reply in await asyncio.gather(queue.query(), *asks)]
    task = asyncio.ensure_future(queue.history(['1']))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    return [*replies, task.cancelled()]

print(asyncio.run(main()))
"""


@pytest.mark.parametrize('version', ['3.8', '3.9', f'{sys.version_info[0]}.{sys.version_info[1]}'])
def test_it_works_on_the_clusters_python(stubs: Stubs, tmp_path: Path, version: str) -> None:
    """Shipped under another name, imported and run by an old Python, warnings being errors."""
    python = shutil.which(f'python{version}')
    if python is None:
        pytest.skip(f'no python{version} here')
    shutil.copytree(REMOTE, tmp_path / 'lib' / 'remote')
    stubs.add('squeue', 'echo "1|N/A|1|RUNNING|n1|None"')
    stubs.add('sbatch', 'echo 5')
    stubs.add('sacct', 'sleep 600')
    modules = [
        *('states', 'task_sets', 'slurm_parsers', 'slurm_commands', 'slurm_verdict', 'queues'),
        *('subprocesses', 'slurm'),
    ]
    code = SMOKE.format(parent=str(tmp_path / 'lib'), modules=modules, env=stubs.env)
    argv = [python, '-I', '-W', 'error', '-X', 'dev', '-c', code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ''
    row = "JobRow(job_id='1', tasks='', state='RUNNING', reason='None', nodes='n1', raw_id='1')"
    submitted, limits, timed_out, cancelled = "('submitted', '5')", (1001, 1001), (False, ()), True
    assert done.stdout == f'[(True, [{row}]), {submitted}, {limits}, {timed_out}, {cancelled}]\n'
