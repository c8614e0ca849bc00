"""What Slurm prints, read: real outputs of Slurm 22.05.8, and whatever else may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_futures.remote.slurm_parsers import (
    AccountingRow,
    ArrayRows,
    ClusterLimits,
    JobRow,
    SubmittedId,
    expand_tasks,
    find_script,
    find_submission,
    parse_config,
    parse_sacct,
    parse_sbatch,
    parse_squeue,
)
from slurm_futures.remote.states import JobState
from slurm_futures.remote.task_sets import format_tasks

indices = st.sets(st.integers(0, 4_000_000), max_size=60)


# ---- sets of tasks


@pytest.mark.parametrize(
    ('spec', 'tasks'),
    [
        ('', []),
        ('7', [7]),
        ('0-2,5-9', [0, 1, 2, 5, 6, 7, 8, 9]),
        ('0-2,5-9%4', [0, 1, 2, 5, 6, 7, 8, 9]),
        ('[18,20%3]', [18, 20]),
        ('0-10:3%5', [0, 3, 6, 9]),
        ('4-4', [4]),
    ],
)
def test_specifications_are_expanded(spec: str, tasks: list[int]) -> None:
    """Ranges, steps, brackets and the limit are understood, and the set is complete."""
    found = expand_tasks(spec)
    assert list(found) == tasks
    assert len(found) == len(tasks)
    assert not found.truncated
    assert not found.may_contain(999)


@pytest.mark.parametrize(
    ('spec', 'tasks'),
    [
        ('0,2,4,88,91...', [0, 2, 4, 88]),
        ('0-2,5-9...%3', [0, 1, 2]),
        ('...', []),
        ('1,', [1]),
        ('1,9-3', [1]),
        ('1,2-8:0', [1]),
        ('1,0-99999999', [1]),
        ('1,²', [1]),
        ('?', []),
    ],
)
def test_what_is_cut_or_strange_leaves_the_set_open(spec: str, tasks: list[int]) -> None:
    """Slurm cuts within a number: the last one counts as unknown, and any task may be there."""
    found = expand_tasks(spec)
    assert list(found) == tasks
    assert found.truncated
    assert found.may_contain(7)
    assert 7 not in found


@given(indices)
def test_tasks_survive_a_round_trip(tasks: set[int]) -> None:
    """What is written is read back, whatever the set."""
    found = expand_tasks(format_tasks(tasks))
    assert list(found) == sorted(tasks)
    assert not found.truncated


@given(indices.filter(bool), st.integers(1, 200))
def test_a_cut_set_claims_no_task_that_is_not_there(tasks: set[int], length: int) -> None:
    """However Slurm cuts a list, what is read from it is in the whole list."""
    spec = format_tasks(tasks)
    found = expand_tasks(spec[:length] + '...' if length < len(spec) else spec)
    assert set(found) <= tasks
    assert all(found.may_contain(task) for task in tasks)


@given(st.text())
def test_any_text_is_a_set(text: str) -> None:
    """Reading a specification never raises."""
    assert len(expand_tasks(text)) == len(list(expand_tasks(text)))


def test_tasks_are_written_without_steps() -> None:
    """scancel reads ranges but no steps."""
    assert format_tasks([9, 0, 1, 2, 7, 5, 9]) == '0-2,5,7,9'


# ---- sbatch


@pytest.mark.parametrize(
    ('stdout', 'found'),
    [
        ('38\n', SubmittedId('38')),
        ('2;sftest\n', SubmittedId('2', 'sftest')),
        ('Submitted batch job 3 on cluster sftest\n', SubmittedId('3', 'sftest')),
        ('Submitted batch job 3\r\n', SubmittedId('3')),
        ('budget left:\n1000\n\nSubmitted batch job 7\nbye\n', SubmittedId('7')),
        ('checked\n12;a\n', SubmittedId('12', 'a')),
    ],
)
def test_the_job_id_is_the_last_that_is_told(stdout: str, found: SubmittedId) -> None:
    """Both forms are read, with the cluster, and a wrapper's talk around them is not."""
    assert parse_sbatch(stdout) == found


@pytest.mark.parametrize('stdout', ['', 'sbatch: 12', '12 34', 'job 12', '-1', '1_2', '²'])
def test_what_is_no_job_id(stdout: str) -> None:
    """A line that is not just an id, or says that a job was submitted, tells none."""
    assert parse_sbatch(stdout) is None


# ---- squeue

SQUEUE = """\
22|N/A|22|CANCELLED||PartitionConfig
27|2|29|PENDING||JobArrayTaskLimit
27|10,12,14,16,18,20%3|27|PENDING||JobArrayTaskLimit
27|0|28|PENDING||job requeued in held state
27|6|31|RUNNING|n2|None
27|4|30|SPECIAL_EXIT||job requeued in held state
12|0-69:3%5|12|PENDING||PartitionDown
36|N/A|36|RUNNING|n[1-2],m7|None
11|N/A|11|FAILED|n2|JobLaunchFailure
"""


def test_squeue_is_read() -> None:
    """Plain jobs, tasks, pending rests with their limit or step, parts of heterogeneous jobs."""
    assert parse_squeue(SQUEUE) == [
        JobRow('22', '', 'CANCELLED', 'PartitionConfig', '', '22'),
        JobRow('27', '2', 'PENDING', 'JobArrayTaskLimit', '', '29'),
        JobRow('27', '10,12,14,16,18,20', 'PENDING', 'JobArrayTaskLimit', '', '27'),
        JobRow('27', '0', 'PENDING', 'job requeued in held state', '', '28'),
        JobRow('27', '6', 'RUNNING', 'None', 'n2', '31'),
        JobRow('27', '4', 'SPECIAL_EXIT', 'job requeued in held state', '', '30'),
        JobRow('12', '0-69:3', 'PENDING', 'PartitionDown', '', '12'),
        JobRow('36', '', 'RUNNING', 'None', 'n[1-2],m7', '36'),
        JobRow('11', '', 'FAILED', 'JobLaunchFailure', 'n2', '11'),
    ]


@pytest.mark.parametrize(
    'line',
    [
        'CLUSTER: sftest',
        'squeue from the cache of 08:15',
        '27|0|28|PENDING|n1',
        '27|0||PENDING||None',
        'x27|0|28|PENDING||None',
        '27|0|28|||None',
        '27|0|28|no state||None',
        '|||||',
    ],
)
def test_foreign_lines_are_skipped(line: str) -> None:
    """What is no row of the format is left out; the rows around it are read."""
    good = '1|N/A|1|RUNNING|n1|None'
    assert len(parse_squeue(f'{good}\n{line}\n{good}\n')) == 2


def test_a_reason_may_contain_the_separator() -> None:
    """The reason is free text, and the last field."""
    [row] = parse_squeue('1|N/A|1|PENDING||waits | for (n1|n2)')
    assert row.reason == 'waits | for (n1|n2)'


@given(st.text(), st.text())
def test_junk_does_no_harm(before: str, after: str) -> None:
    """Whatever is printed around it, nothing raises and a good line is read."""
    good = '27|6|31|RUNNING|n2|None'
    assert JobRow('27', '6', 'RUNNING', 'None', 'n2', '31') in parse_squeue(
        f'{before}\n{good}\n{after}'
    )


@pytest.mark.parametrize(
    ('line', 'attention'),
    [
        ('27|0|28|PENDING||job requeued in held state', True),
        ('27|0,4|27|PENDING||Resources,JobHeldUser', False),
        ('27|0,4|27|PENDING||JobHeldAdmin,JobHeldUser', True),
        ('27|0|28|PENDING||JobHeldAdmin', True),
        ('27|0|28|PENDING||DependencyNeverSatisfied', True),
        ('6|N/A|6|SPECIAL_EXIT||None', True),
        ('27|0|28|PENDING||Resources', False),
        ('27|0|28|CANCELLED||JobHeldUser', False),
        ('27|0|28|BRAND_NEW||JobHeldUser', False),
    ],
)
def test_who_waits_for_a_person_is_told_by_the_reason_too(line: str, attention: bool) -> None:
    """`scontrol requeuehold` and a user's hold show as PENDING; only the reason tells."""
    assert parse_squeue(line)[0].needs_attention is attention


# ---- the rows of one array


def rows(*lines: str) -> ArrayRows:
    """The rows of one job."""
    return ArrayRows(parse_squeue('\n'.join(lines)))


def test_a_task_is_found_in_its_row() -> None:
    """A row of its own, or one with others; a task in none is absent."""
    listed = rows('27|10,12%3|27|PENDING||x', '27|6|31|RUNNING|n2|None')
    running, waiting = listed.find(6), listed.find(12)
    assert running is not None
    assert running.raw_id == '31'
    assert waiting is not None
    assert waiting.state == 'PENDING'
    assert listed.find(11) is None
    assert rows().find(0) is None
    assert rows().find(None) is None


@pytest.mark.parametrize('state', ['PENDING', 'CANCELLED'])
def test_a_task_that_may_have_been_cut_off_is_alive(state: str) -> None:
    """It is not absent, and the state of the others proves nothing about it, even an end."""
    listed = rows(f'27|0,2,4,1...|27|{state}||x', '27|6|31|COMPLETED|n2|None')
    known, cut, own = listed.find(4), listed.find(17), listed.find(6)
    assert known is not None
    assert known.state == state
    assert cut is not None
    assert JobState.parse(cut.state) is None
    assert own is not None
    assert own.state == 'COMPLETED'


def test_a_list_that_nobody_understands_covers_every_task() -> None:
    """A new spelling must not make tasks look absent."""
    row = rows('27|evens|27|PENDING||x').find(3)
    assert row is not None
    assert JobState.parse(row.state) is None


def test_the_cancelled_rest_of_an_array_names_no_tasks() -> None:
    """After `scancel --user` its row has N/A for tasks: it speaks for all without their own."""
    listed = rows('27|N/A|27|CANCELLED||x', '27|6|31|COMPLETED|n2|None')
    rest, own = listed.find(40), listed.find(6)
    assert rest is not None
    assert rest.state == 'CANCELLED'
    assert own is not None
    assert own.state == 'COMPLETED'


def test_a_script_that_makes_itself_an_array_lives_as_long_as_any_task() -> None:
    """Asked for as a plain job, a live row stands for it; once none is left, an ended one."""
    ended = ['5|0|5|COMPLETED|n1|None', '5|1|6|FAILED|n1|None']
    alive = rows(*ended, '5|2|7|RUNNING|n1|None', *ended).find(None)
    over = rows(*ended).find(None)
    assert alive is not None
    assert alive.state == 'RUNNING'
    assert over is not None
    assert over.state == 'FAILED'


# ---- lookup


def test_a_job_is_found_by_its_scripts_path() -> None:
    """The whole path must be the same; tasks of an array are one job; the oldest is first."""
    text = '12|/w/d d/a|b c.sh\n9|/w/other.sh\n9|/w/a.sh x\n27|/w/a.sh\n27|/w/a.sh\nx\n3|/w/a.sh\n'
    assert find_script(text, '/w/a.sh') == ['3', '27']
    assert find_script(text, '/w/d d/a|b c.sh') == ['12']
    assert find_script(text, '/w/b.sh') == []


def test_a_job_is_found_by_the_command_line_in_the_accounting() -> None:
    """There the path is the last argument."""
    text = (
        '4_[0-9]|sbatch --parsable --array=0-9 /w/a.sh\n4_1|sbatch -x /w/a.sh\n5|sbatch /w/aa.sh\n'
    )
    assert find_submission(text, '/w/a.sh') == ['4']
    assert find_submission(text, 'a.sh') == []


def test_the_accounting_may_not_know_the_paths_characters() -> None:
    """slurmdbd stores question marks for what is not Latin-1; the rest of the path must match."""
    text = '7|sbatch --parsable /w/Zürich ?;/job 2.sh\n8|sbatch /w/Zürich ?;/x/job 2.sh'
    assert find_submission(text, '/w/Zürich 数;/job 2.sh') == ['7']
    assert find_submission(text, '/w/Zürich 数数;/job 3.sh') == []


# ---- sacct

SACCT = """\
10|10|FAILED|3:0|1795421412|1795421412|n2
11|11|FAILED|0:11|1795421412|1795421412|n2
2_4|7|REQUEUED|0:0|1795421358|1795421399|n1
2_[6-998:2%3]|2|PENDING|0:0|1795421358|Unknown|None assigned
4_[0-9]|4|CANCELLED by 1001|0:0|1795421358|1795421400|None assigned
3_[0,2,4...|3|PENDING|0:0|1795421358|Unknown|None assigned
35+0|35|RUNNING|0:0|1795421755|Unknown|n1
35+1|36|RUNNING|0:0|1795421755|Unknown|n2
"""


def test_sacct_is_read() -> None:
    """Jobs, tasks, tasks that never started, heterogeneous jobs; times since 1970."""
    at = 1795421358
    assert parse_sacct(SACCT) == [
        AccountingRow('10', '', '10', 'FAILED', 3, 0, 1795421412, 1795421412, 'n2'),
        AccountingRow('11', '', '11', 'FAILED', 0, 11, 1795421412, 1795421412, 'n2'),
        AccountingRow('2', '4', '7', 'REQUEUED', 0, 0, at, 1795421399, 'n1'),
        AccountingRow('2', '6-998:2', '2', 'PENDING', 0, 0, at, None, ''),
        AccountingRow('4', '0-9', '4', 'CANCELLED by 1001', 0, 0, at, 1795421400, ''),
        AccountingRow('3', '0,2,4...', '3', 'PENDING', 0, 0, at, None, ''),
        AccountingRow('35', '', '35', 'RUNNING', 0, 0, 1795421755, None, 'n1'),
        AccountingRow('36', '', '36', 'RUNNING', 0, 0, 1795421755, None, 'n2'),
    ]


@given(st.text(), st.lists(st.text(), min_size=5, max_size=8))
def test_junk_from_sacct_does_no_harm(text: str, fields: list[str]) -> None:
    """Nothing raises, whatever stands in a field; steps and headers are no rows."""
    parse_sacct(text)
    parse_sacct('|'.join(['1_2', *fields]))
    header = 'JobID|JobIDRaw|State|ExitCode|Submit|End|NodeList'
    assert parse_sacct(f'{header}\n10.batch|10.batch|FAILED|3:0|1|2|n2\n') == []


# ---- scontrol show config

CONFIG = """\
Configuration data as of 2026-11-23T08:25:52
AccountingStorageBackupHost = (null)
ClusterName             = sftest
JobRequeue              = 1
MaxArraySize            = 5001
MaxJobCount             = 50000
MinJobAge               = 60 sec
RequeueExit             = 100-103,120
RequeueExitHold         = 130
SchedulerParameters     = batch_sched_delay=0,max_array_tasks=200,bf_interval=1
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""


def test_configuration_is_read() -> None:
    """Sizes, ages, exit codes, version and name; max_array_tasks is a scheduler parameter."""
    assert parse_config(CONFIG) == ClusterLimits(
        max_array_size=5001,
        max_array_tasks=200,
        max_job_count=50000,
        min_job_age=60,
        requeue_exit=(100, 101, 102, 103, 120),
        requeue_exit_hold=(130,),
        version='22.05.8',
        cluster='sftest',
        known=True,
    )


def test_missing_parameters_get_slurms_defaults() -> None:
    """(null), nonsense and missing lines alike; and it says that the cluster did not say so."""
    assert parse_config('RequeueExit = (null)\nMaxArraySize = lots\n') == ClusterLimits()
    assert ClusterLimits().max_array_size == 1001
    assert not parse_config('').known


def test_an_array_cannot_have_more_tasks_than_indices() -> None:
    """Without max_array_tasks, or with a larger one, MaxArraySize counts; 0 means no arrays."""
    head = 'SLURM_VERSION = 24.11.5\nMaxArraySize = 10\n'
    assert parse_config(head).max_array_tasks == 10
    assert parse_config(head + 'SchedulerParameters = max_array_tasks=99').max_array_tasks == 10
    assert parse_config('MaxArraySize = 0').max_array_tasks == 0


@given(st.text())
def test_any_text_is_a_configuration(text: str) -> None:
    """Reading never raises."""
    assert parse_config(text).max_array_size >= 0
