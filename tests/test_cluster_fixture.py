"""The test cluster itself: it runs jobs as an ordinary user, records them, and can be broken."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.client import Control
from cluster.layout import ClusterError, Layout
from cluster.processes import eventually

pytestmark = [pytest.mark.usefixtures('cancel_jobs'), pytest.mark.queues('slurm')]


def slurm(*argv: str | Path) -> str:
    """Standard output of one of Slurm's commands."""
    return subprocess.check_output(argv, text=True, timeout=60).strip()


def submit(script: str, *options: str | Path) -> str:
    """Submit a command line; returns the job id."""
    return slurm('sbatch', '--parsable', *options, '--wrap', script)


def state(job: str) -> str:
    """The job's state as the controller knows it."""
    return slurm('squeue', '-h', '-t', 'all', '-o', '%T', '-j', job)


def reaches(job: str, wanted: str) -> bool:
    """Whether the job comes into the state within a minute."""
    return eventually(lambda: state(job) == wanted, 60)


def test_job_runs_as_the_user_who_runs_the_tests(cluster: Control, work_dir: Path) -> None:
    """A job runs on a node, as this user, and its output lands in a folder of any name."""
    submit('echo $SLURM_JOB_NODELIST $(id -u)', '--wait', '-D', work_dir, '-o', 'out', '-w', 'n2')
    assert (work_dir / 'out').read_text().split() == ['n2', str(os.getuid())]


def test_array_spreads_over_nodes(cluster: Control, work_dir: Path) -> None:
    """Sixteen tasks of one CPU run at once on 4 nodes of 4 CPUs."""
    sizes = cluster.settings
    slots = sizes.nodes * sizes.cpus
    job = submit('sleep 600', f'--array=1-{slots}', '-D', work_dir)
    running = ['squeue', '-h', '-r', '-t', 'R', '-o', '%N', '-j', job]
    assert eventually(lambda: len(slurm(*running).split()) == slots, 60)
    assert set(slurm(*running).split()) == set(sizes.node_names)


def test_sacct_answers(accounting: Control, work_dir: Path) -> None:
    """With accounting, sacct tells a finished job's end."""
    job = submit('exit 3', '-D', work_dir)
    sacct = ['sacct', '-X', '-n', '-P', '-j', job, '-o', 'State,ExitCode']
    assert eventually(lambda: slurm(*sacct) == 'FAILED|3:0', 60)


def test_unknown_account_is_refused(accounting: Control, work_dir: Path) -> None:
    """With accounting, sbatch refuses an account that the user does not have."""
    sbatch = ['sbatch', '--account=nobodys', '-D', str(work_dir), '--wrap', 'true']
    done = subprocess.run(sbatch, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert 'Invalid account' in done.stderr


def test_down_partition_keeps_jobs_pending(cluster: Control, work_dir: Path) -> None:
    """A job in the partition `down` is accepted and does not start."""
    job = submit('true', '-p', 'down', '-D', work_dir)
    reason = ['squeue', '-h', '-o', '%T %r', '-j', job]
    assert eventually(lambda: slurm(*reason) == 'PENDING PartitionDown', 60)


def test_gpus_are_counted(cluster: Control, work_dir: Path) -> None:
    """A node has two GPUs to give: a job that wants two runs, one that wants three is refused."""
    submit('true', '--wait', '--gres=gpu:2', '-D', work_dir)
    sbatch = ['sbatch', '--gres=gpu:3', '-D', str(work_dir), '--wrap', 'true']
    done = subprocess.run(sbatch, capture_output=True, text=True, check=False, timeout=60)
    assert 'node configuration is not available' in done.stderr


def test_stopped_controller_goes_on(faults: Control) -> None:
    """SIGSTOP makes slurmctld deaf, SIGCONT cures it."""
    faults.signal('slurmctld', signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(['squeue'], capture_output=True, check=False, timeout=1)
    faults.signal('slurmctld', signal.SIGCONT)
    assert 'is UP' in slurm('scontrol', 'ping')


def test_killed_controller_remembers_jobs(faults: Control, work_dir: Path) -> None:
    """A pending job is still there after kill -9 and a restart of slurmctld."""
    saved = Layout(faults.slurm_conf.parent).state / 'job_state'
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    job = submit('true', '--hold', '-D', work_dir)
    # It writes its state some seconds after a change.
    assert eventually(lambda: saved.exists() and saved.stat().st_mtime_ns > before, 60)
    faults.kill('slurmctld')
    assert not faults.alive('slurmctld')
    faults.start('slurmctld')
    assert state(job) == 'PENDING'


def test_job_outlives_its_slurmd(faults: Control, work_dir: Path) -> None:
    """A job goes on while its node's slurmd is dead, and ends properly after a restart."""
    gate = work_dir / 'gate'
    os.mkfifo(gate)
    job = submit('read line <gate', '-w', 'n3', '-D', work_dir, '-o', '/dev/null')
    assert reaches(job, 'RUNNING')
    faults.kill('slurmd', 'n3')
    assert not faults.alive('slurmd', 'n3')
    faults.start('slurmd', 'n3')
    gate.write_text('go\n')
    assert reaches(job, 'COMPLETED')


def test_requeue_by_an_operator(cluster: Control, work_dir: Path) -> None:
    """A running job that is requeued pends again under its id, with a restart counted."""
    job = submit('sleep 600', '-D', work_dir)
    assert reaches(job, 'RUNNING')
    cluster.scontrol('requeue', job)
    assert reaches(job, 'PENDING')
    assert 'Restarts=1' in slurm('scontrol', 'show', 'job', job)


def test_configure_holds_until_restore(faults: Control) -> None:
    """A parameter of slurm.conf can be changed while the cluster runs, and comes back."""

    def min_job_age() -> str:
        config = slurm('scontrol', 'show', 'config').splitlines()
        return next(line.split()[2] for line in config if line.startswith('MinJobAge'))

    before = min_job_age()
    faults.configure(MinJobAge=7)
    assert min_job_age() == '7'
    faults.restore()
    assert min_job_age() == before


def test_restore_mends_everything(faults: Control) -> None:
    """Dead daemons, a node and a partition set down: restore() brings all back."""
    faults.scontrol('update', 'nodename=n4', 'state=down', 'reason=test')
    faults.scontrol('update', 'partition=cpu', 'state=down')
    faults.kill('slurmd', 'n1')
    faults.kill('slurmctld')
    faults.restore()
    assert slurm('sinfo', '-h', '-p', 'cpu', '-o', '%a') == 'up'
    assert eventually(lambda: 'down' not in slurm('sinfo', '-h', '-p', 'cpu', '-o', '%T'), 60)


def test_only_named_verbs(cluster: Control) -> None:
    """The control server refuses what it does not know, and says so."""
    with pytest.raises(ClusterError, match='no daemon'):
        cluster.kill('init')
    with pytest.raises(ClusterError, match='exit status'):
        cluster.scontrol('no-such-keyword')
    with pytest.raises(ClusterError, match='KeyError'):
        cluster._ask('run', args=['true'])
