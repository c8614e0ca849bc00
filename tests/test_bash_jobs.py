"""BashScript in Slurm jobs: submitted as it is, under the wrapper, and what signals do to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.client import Control
from cluster.processes import eventually
from slurm_futures import (
    BashGroup,
    BashScript,
    BashStep,
    BashTemplate,
    JobCancelled,
    JobFailed,
    JobFuture,
    JobState,
    SlurmExecutor,
    SubmitError,
)
from waiting import Gate
from watching import await_running, slurm, squeue

TEMPLATE = BashTemplate(header=['#SBATCH --time=5'], teardown='echo teardown')


def test_what_is_done_is_not_done_again(executor: SlurmExecutor, work_dir: Path) -> None:
    """After a failure the same script is submitted again: it goes on where the first one ended."""
    script = BashScript(
        TEMPLATE,
        [
            BashStep('echo prepared', checkpoint='marks/prepared'),
            BashGroup(
                [
                    BashStep(['cat', 'input'], cwd='run', checkpoint='done'),
                    BashStep('echo other', checkpoint='marks/other'),
                ],
                parallel=2,
            ),
            BashStep('echo collected'),
        ],
    )
    (work_dir / 'run').mkdir()
    first = executor.submit(script, cwd=work_dir)
    error = first.exception()
    assert isinstance(error, JobFailed)
    assert (error.exit_code, error.state) == (1, JobState.FAILED)
    lines = first.stdout().splitlines()
    assert (lines[0], lines[-1]) == ('prepared', 'teardown')
    assert {'other', 'slurm_futures: step 2 failed with exit status 1'} <= set(lines)

    (work_dir / 'run' / 'input').write_text('input\n')
    second = executor.submit(script, cwd=work_dir)
    assert second.result() is JobState.COMPLETED
    lines = second.stdout().splitlines()
    skipped = 'slurm_futures: step {} is skipped: there is ./marks/{}'.format
    assert lines[0] == skipped(1, 'prepared')
    assert sorted(lines[1:3]) == ['input', skipped(3, 'other')]
    assert lines[3:] == ['collected', 'teardown']
    marks = ['marks/other', 'marks/prepared', 'run/done']
    assert all((work_dir / mark).exists() for mark in marks)


def test_resources_and_options(
    cluster: Control, executor: SlurmExecutor, work_dir: Path, gate: Gate
) -> None:
    """The options of submit() and the executor's resources are for this kind of script, too."""
    step = BashStep(f'echo $SLURM_CPUS_PER_TASK $WORD; pwd; {gate.shell}; exit 3')
    resources = executor.with_resources(cpus_per_task=2, time='1', env={'WORD': "it's"})
    future = resources.submit(
        BashScript(TEMPLATE, [step]), cwd=work_dir / 'new', name='mine', check=False, mkdir=True
    )
    gate.await_arrival()
    assert squeue(future, '%j %l') == 'mine 5:00'
    gate.open()
    assert future.result() is JobState.FAILED
    assert future.stdout().splitlines()[:2] == ["2 it's", str(work_dir / 'new')]


def reacting(name: str, reaction: str) -> list[str]:
    """Return a command that reacts to a signal, and then ends; it writes down that it has begun."""
    code = f"trap 'echo got {name}; {reaction}; exit 0' {name}; echo begun"
    return ['bash', '-c', f'{code}; while :; do sleep 0.1; done']


def await_lines(future: JobFuture[JobState], count: int) -> None:
    """Wait until a job has printed so many lines."""
    assert eventually(lambda: len(future.stdout().splitlines()) == count, 30), future.stdout()


def printed(future: JobFuture[JobState]) -> list[str]:
    """Return what a job has printed, without the words of Slurm, and of bash about a sleep."""
    lines = future.stdout().splitlines()
    return [line for line in lines if line != 'Terminated' and 'slurmstepd' not in line]


def test_cancelled_job_leaves_in_order(executor: SlurmExecutor, work_dir: Path, gate: Gate) -> None:
    """Slurm's SIGTERM reaches a program once; it may take its time; then the teardown runs."""
    step = BashStep(reacting('TERM', gate.shell), checkpoint='done')
    script = BashScript(
        BashTemplate(header='#SBATCH -o out', teardown='echo teardown'),
        [step, BashStep('echo never')],
    )
    future = executor.submit(script, cwd=work_dir)
    await_running(future)
    await_lines(future, 1)
    future.kill()
    gate.await_arrival()
    gate.open()
    with pytest.raises(JobCancelled):
        future.result()
    told = 'slurm_futures: step 1 failed with exit status 143'
    assert printed(future) == ['begun', 'got TERM', told, 'teardown']
    assert not (work_dir / 'done').exists()


@pytest.mark.parametrize(
    ('name', 'state'), [('USR1', JobState.COMPLETED), ('TERM', JobState.FAILED)]
)
def test_signals_for_the_batch_script(
    cluster: Control, executor: SlurmExecutor, gate: Gate, name: str, state: JobState
) -> None:
    """What --signal=B: sends is passed on to the step; after SIGTERM no other begins."""
    script = BashScript(
        BashTemplate(header=f'#SBATCH --signal=B:{name}@60 --time=5', teardown='echo teardown'),
        [BashStep(reacting(name, ':')), BashStep('echo next')],
    )
    future = executor.submit(script, check=False)
    await_lines(future, 1)
    # What slurmd does when the time comes, which would be minutes from now.
    slurm('scancel', '--batch', f'--signal={name}', str(future.job_id))
    assert future.result() is state
    told = 'slurm_futures: step 1 failed with exit status 143'
    assert printed(future) == [
        'begun',
        f'got {name}',
        'next' if name == 'USR1' else told,
        'teardown',
    ]


def test_options_of_plugins_are_warned_about(executor: SlurmExecutor) -> None:
    """What may be a typo, or the option of a site's plugin, is for sbatch to decide."""
    script = BashScript(BashTemplate(header='#SBATCH --partitoin=cpu'), [BashStep('true')])
    with pytest.warns(UserWarning, match='line 2: sbatch has no option --partitoin of its own'):
        future = executor.submit(script)
    with pytest.raises(SubmitError, match='partitoin'):
        future.result()


def test_only_scripts_are_taken(executor: SlurmExecutor) -> None:
    """A step alone is no script, and neither is anything else that cannot be called."""
    for thing in (BashStep('true'), 17):
        with pytest.raises(TypeError, match='takes a function or a batch script, not'):
            executor.submit(thing, 1, 2)  # type: ignore[call-overload]
