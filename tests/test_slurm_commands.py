"""The command lines of Slurm's commands and the environments they get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_futures.remote import slurm_commands as commands
from slurm_futures.remote.task_sets import expand_tasks

IN_A_JOB = {
    'PATH': '/usr/bin',
    'LANG': 'de_DE.UTF-8',
    'SLURM_CONF': '/etc/slurm/slurm.conf',
    'SLURM_CONF_SERVER': 'ctld',
    'SLURM_JWT': 'token',
    'SLURM_JOB_ID': '5',
    'SLURM_ARRAY_TASK_ID': '1',
    'SLURM_CPUS_PER_TASK': '4',
    'SLURM_EXIT_ERROR': '9',
    'SLURM_CLUSTERS': 'a',
    'SBATCH_ACCOUNT': 'me',
    'SBATCH_WAIT4SWITCH': '1',
    'SBATCH_ARRAY_INX': '0-9',
    'SBATCH_WAIT': '1',
    'SBATCH_EXPORT': 'NONE',
    'SBATCH_OUTPUT': 'x',
    'SBATCH_ERROR': 'x',
    'SBATCH_JOB_NAME': 'x',
    'SQUEUE_STATES': 'R',
    'SACCT_FORMAT': 'State',
    'SCANCEL_STATE': 'PENDING',
    'SCONTROL_ALL': '1',
}
REACH = {'SLURM_CONF', 'SLURM_CONF_SERVER', 'SLURM_JWT'}


def test_a_submission_from_within_a_job_does_not_inherit_it() -> None:
    """SLURM_* goes; the user's SBATCH_* stays, but for what a script or we decide."""
    kept = commands.clean_environment(IN_A_JOB)
    assert {name for name in kept if name.startswith('SLURM_')} == REACH | {'SLURM_CLUSTERS'}
    assert {name for name in kept if name.startswith('SBATCH_')} == {
        'SBATCH_ACCOUNT',
        'SBATCH_WAIT4SWITCH',
    }
    assert kept['LANG'] == 'de_DE.UTF-8'


def test_nothing_changes_what_queries_print() -> None:
    """All of Slurm's variables go but those that reach the controller; ours come."""
    kept = commands.query_environment(IN_A_JOB)
    assert kept == {
        'PATH': '/usr/bin',
        'LANG': 'de_DE.UTF-8',
        **{name: IN_A_JOB[name] for name in REACH},
        'LC_ALL': 'C',
        'SLURM_BITSTR_LEN': '0',
        'SLURM_TIME_FORMAT': '%s',
        'SQUEUE_ARRAY_UNIQUE': '1',
    }


def test_the_users_choice_of_cluster_is_known_to_queries() -> None:
    """Queries must ask the clusters that sbatch chooses from."""
    assert commands.default_clusters({}) == ''
    assert commands.default_clusters({'SLURM_CLUSTERS': 'a,b'}) == 'a,b'
    assert commands.default_clusters({'SLURM_CLUSTERS': 'a', 'SBATCH_CLUSTERS': 'b'}) == 'b'


def test_command_lines() -> None:
    """Options come before the script and the ids, and -M on every command that is asked to."""
    assert commands.sbatch_argv('sbatch', ['--mem=1G'], '/w/x.sh') == [
        *('sbatch', '--parsable', '--kill-on-invalid-dep=yes', '--mem=1G', '/w/x.sh')
    ]
    assert commands.squeue_argv('/opt/squeue') == [
        *('/opt/squeue', '--me', '--all', '--noheader', '--states=all'),
        '--format=%F|%K|%A|%T|%N|%r',
    ]
    assert commands.lookup_argv('squeue')[-1] == '--format=%F|%o'
    assert commands.sacct_argv('sacct', ['1', '2'])[-1] == '--jobs=1,2'
    assert commands.scancel_argv('scancel', ['1', '2_[0-3]']) == ['scancel', '1', '2_[0-3]']
    assert commands.scontrol_argv('scontrol') == ['scontrol', 'show', 'config']
    for argv in (
        commands.squeue_argv('x', 'far'),
        commands.lookup_argv('x', 'far'),
        commands.sacct_argv('x', ['1'], 'far'),
        commands.accounting_lookup_argv('x', '1000', 'far'),
        commands.scancel_argv('x', ['1'], 'far'),
        commands.scontrol_argv('x', 'far'),
    ):
        assert argv[1] == '--clusters=far'


def test_tasks_of_an_array_are_cancelled_by_one_request() -> None:
    """scancel sends a request for each id it is given; ids that are none would stop it."""
    ids = ['5', '7_2', '7_0', '7_1', '9_[3,5-6]', '7_9', '5', '8_4', 'x', '', '1_', '1_x', '-u']
    assert commands.merge_ids(ids) == ['5', '9_[3,5-6]', '7_[0-2,9]', '8_[4]']


@given(st.sets(st.integers(0, 4_000_000), max_size=300))
def test_no_task_is_lost_in_merging(tasks: set[int]) -> None:
    """The merged ids name the same tasks."""
    merged = commands.merge_ids(f'7_{task}' for task in tasks)
    assert {task for one in merged for task in expand_tasks(one.partition('_')[2])} == tasks


def test_an_id_stays_shorter_than_linux_lets_an_argument_be() -> None:
    """Half of all tasks of the largest array still make arguments below 128 KiB."""
    merged = commands.merge_ids(f'123456789_{task}' for task in range(3_900_001, 4_000_001, 2))
    assert max(map(len, merged)) < 131_072
    assert sum(len(expand_tasks(one.partition('_')[2])) for one in merged) == 50_000


def test_sacct_is_asked_for_arrays() -> None:
    """It knows no task that has not started, and rejects lists of tasks."""
    assert commands.base_ids(['12_[0-3]', '9', '12_7', 'x', '100_0']) == ['9', '12', '100']


@pytest.mark.parametrize(('count', 'size'), [(0, 1), (1, 1), (200, 8), (201, 8), (900, 300)])
def test_ids_are_split_over_command_lines(count: int, size: int) -> None:
    """Each id is on one command line, in order; none is empty, or longer than 32 KiB."""
    ids = [f'{number:0{size}}' for number in range(count)]
    split = list(commands.chunks(ids))
    assert [one for some in split for one in some] == ids
    assert all(some and len(some) <= 200 and len(' '.join(some)) <= 32_768 for some in split)
