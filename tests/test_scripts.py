"""submit() of batch scripts: they run as the user wrote them, and their ends are told."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.client import Control
from cluster.processes import eventually
from outside import Outside, work_dir_of
from slurm_futures import (
    ConfigError,
    JobCancelled,
    JobFailed,
    JobFuture,
    JobState,
    SlurmExecutor,
    SubmitError,
)
from slurm_futures.sbatch_options import quote
from waiting import Gate, has_ended
from watching import await_job_id, await_running, bash, node_names, slurm, squeue


def failure(future: JobFuture[JobState]) -> JobFailed:
    """What a failed script's future raises."""
    error = future.exception()
    assert isinstance(error, JobFailed)
    return error


def test_script_completes(executor: SlurmExecutor) -> None:
    """A script's future resolves to COMPLETED; it has a job id, and what the script printed."""
    future = executor.submit(bash('echo out; echo err >&2; echo $SLURM_JOB_ID'))
    assert future.result() is JobState.COMPLETED
    assert future.job_id is not None
    assert future.job_state is JobState.COMPLETED
    # Slurm's default: both in one file.
    assert future.stdout() == future.stderr() == f'out\nerr\n{future.job_id}\n'


def test_path_is_a_local_file(executor: SlurmExecutor, work_dir: Path) -> None:
    """A PathLike names a file whose text is the script; it need not stay where it is."""
    path = work_dir / 'script.sh'
    path.write_text(bash('echo from a file'))
    future = executor.submit(path)
    path.unlink()
    future.result()
    assert future.stdout() == 'from a file\n'
    with pytest.raises(FileNotFoundError):
        executor.submit(path)


def test_runs_in_cwd(executor: SlurmExecutor, work_dir: Path) -> None:
    """cwd= is where the script runs and where its log lies, whatever the folder's name."""
    future = executor.submit(bash('pwd; echo "$SLURM_SUBMIT_DIR"'), cwd=str(work_dir))
    future.result()
    assert future.stdout() == f'{work_dir}\n' * 2
    assert (work_dir / f'slurm-{future.job_id}.out').read_text() == future.stdout()


def test_own_chdir_is_kept(executor: SlurmExecutor, tmp_path: Path, work_dir: Path) -> None:
    """#SBATCH --chdir says where, unless cwd= is given."""
    script = bash(f'#SBATCH --chdir={tmp_path}', 'pwd')
    own, given = executor.submit(script), executor.submit(script, cwd=str(work_dir))
    assert (own.result(), given.result()) == (JobState.COMPLETED,) * 2
    assert own.stdout() == f'{tmp_path}\n'
    assert given.stdout() == f'{work_dir}\n'


def test_missing_cwd(executor: SlurmExecutor, work_dir: Path) -> None:
    """A folder that is not there is refused, naming it; mkdir=True creates it."""
    folder = work_dir / 'a' / 'b'
    with pytest.raises(SubmitError, match=r'there is no folder .*/a/b'):
        executor.submit(bash('pwd'), cwd=str(folder)).result()
    assert not folder.exists()
    future = executor.submit(bash('pwd'), cwd=str(folder), mkdir=True)
    future.result()
    assert future.stdout() == f'{folder}\n'


PROGRAMS = {
    'bash': '#!/bin/bash\n[[ $BASH_VERSION ]] && echo "$0" "$#"; printf "%s\\n" héllo\n',
    'sh -e': '#!/bin/sh -e\necho héllo\nfalse || echo not left\n',
    'python': f'#!{sys.executable} -u\nimport sys\nprint("héllo", len(sys.argv))\n',
    'env python3': '#!/usr/bin/env python3\nprint("héllo")\n',
    'perl': '#!/usr/bin/perl -w\nprint "héllo\\n";\n',
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_own_shebang(executor: SlurmExecutor, name: str) -> None:
    """The script is run by the interpreter that its first line names, with that line's argument."""
    future = executor.submit(PROGRAMS[name])
    future.result()
    assert 'héllo' in future.stdout()


def test_environment_is_slurms(executor: SlurmExecutor) -> None:
    """The script sees Slurm's variables and its own process, not the wrapper's."""
    future = executor.submit(
        bash('#SBATCH -c 2 -J given', 'echo $SLURM_CPUS_PER_TASK $SLURM_JOB_NAME', 'trap', 'umask')
    )
    future.result()
    assert future.stdout() == f'2 given\n{subprocess.getoutput("umask")}\n'


def test_export_none(executor: SlurmExecutor) -> None:
    """--export=NONE leaves the script its bare environment, and the wrapper works without one."""
    future = executor.submit(bash('#SBATCH --export=NONE', 'echo "[$HOME_OF_TEST]"; exit 4'))
    assert failure(future).exit_code == 4
    assert future.stdout() == '[]\n'


def test_name(executor: SlurmExecutor) -> None:
    """name= names the job, over the script's own --job-name."""
    script = bash('#SBATCH --job-name=own', 'echo "$SLURM_JOB_NAME"')
    future = executor.submit(script, name='it\'s "mine"')
    future.result()
    assert future.stdout() == 'it\'s "mine"\n'


def test_name_for_squeue(executor: SlurmExecutor, gate: Gate, cluster: Control) -> None:
    """squeue shows the name."""
    future = executor.submit(bash('#SBATCH --job-name=own', gate.shell), name='it\'s "mine"')
    gate.await_arrival()
    assert squeue(future, '%j') == 'it\'s "mine"'
    gate.open()
    future.result()


def test_name_of_a_file(executor: SlurmExecutor, work_dir: Path) -> None:
    """Without any other name a job is called as its file is, as sbatch does it."""
    path = work_dir / 'my script.sh'
    path.write_text(bash('echo "$SLURM_JOB_NAME"'))
    futures = [executor.submit(path), executor.submit(path.read_text())]
    for future in futures:
        future.result()
    assert [future.stdout() for future in futures] == ['my script.sh\n', 'script\n']


def test_header_wins_over_resources(executor: SlurmExecutor) -> None:
    """What the script's own lines say wins; resources fill what they leave open."""
    show = 'echo $SLURM_CPUS_PER_TASK $SLURM_NTASKS $WORD $W2'
    resources = executor.with_resources(
        cpus_per_task=3, ntasks=2, env={'WORD': "it's"}, setup='export W2=two'
    )
    future = resources.submit(bash('#SBATCH --cpus-per-task=1', show))
    future.result()
    assert future.stdout() == "1 2 it's two\n"


def test_resources_fill_gaps(executor: SlurmExecutor, cluster: Control) -> None:
    """What the script's own lines say wins; resources fill what they leave open."""
    resources = executor.with_resources(
        partition='short', time='00:01:00', cpus_per_task=3, env={'WORD': "it's"}, setup='W2=two'
    )
    show = 'scontrol show job $SLURM_JOB_ID | tr " " "\\n"'
    future = resources.submit(
        bash('#SBATCH --partition=cpu', '#SBATCH -t 5', show, 'echo $WORD $SLURM_CPUS_PER_TASK')
    )
    future.result()
    lines = future.stdout().splitlines()
    assert {'Partition=cpu', 'TimeLimit=00:05:00', 'NumCPUs=3', "it's 3"} <= set(lines)


def test_setup_runs_before_the_script(make_executor: Callable[..., SlurmExecutor]) -> None:
    """The executor's setup lines run in bash in the job too, with `module` at hand if it exists."""
    executor = make_executor(setup=['export FROM_SETUP=${BASH_VERSION:+yes}'])
    future = executor.submit('#!/bin/sh\necho $FROM_SETUP\n')
    future.result()
    assert future.stdout() == 'yes\n'


def test_exit_code_is_told_at_once(
    make_executor: Callable[..., SlurmExecutor], cluster: Control
) -> None:
    """The wrapper reports the exit code: nobody waits for the next question to Slurm."""
    executor = make_executor(slurm={'polling_interval': 60.0})
    begun = time.monotonic()
    assert failure(executor.submit(bash('exit 3'))).exit_code == 3
    assert time.monotonic() - begun < 20


def test_failure_is_explained(executor: SlurmExecutor, queue_system: str) -> None:
    """JobFailed has the exit code, where it was, and what the script said last."""
    future = executor.submit(bash('echo why >&2', 'exit 3'))
    error = failure(future)
    assert type(error) is JobFailed
    assert (error.exit_code, error.signal, error.state) == (3, None, JobState.FAILED)
    assert (error.started, error.job_id) == (True, future.job_id)
    assert error.node in node_names(queue_system)
    assert error.stderr == 'why\n'
    assert error.stdout_path is not None
    assert Path(error.stdout_path).read_text() == 'why\n'


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGINT])
def test_death_by_signal_is_told(executor: SlurmExecutor, number: signal.Signals) -> None:
    """A script that a signal ends fails with that signal, and nothing is added to its output."""
    future = executor.submit(bash('ulimit -c 0; echo before', f'kill -s {number.name[3:]} $$'))
    error = failure(future)
    assert (error.signal, error.exit_code) == (number, None)
    assert number.name in str(error)
    assert future.stdout() == 'before\n'


def test_exit_code_over_128_is_no_signal(executor: SlurmExecutor) -> None:
    """A script that itself exits with 137 was not killed."""
    error = failure(executor.submit(bash('exit 137')))
    assert (error.exit_code, error.signal) == (137, None)


def test_unchecked(executor: SlurmExecutor) -> None:
    """check=False resolves to the state that the job ended in."""
    assert executor.submit(bash('exit 3'), check=False).result() is JobState.FAILED
    assert executor.submit(bash('exit 0'), check=False).result() is JobState.COMPLETED


@pytest.mark.parametrize(
    ('option', 'name'),
    [('B:USR1@60', 'USR1'), ('B:SIGTERM@60', 'TERM'), ('B:12@60', 'USR2'), ('B:ALRM@60', 'ALRM')],
)
def test_signal_option_reaches_the_script(
    executor: SlurmExecutor, gate: Gate, option: str, name: str, cluster: Control
) -> None:
    """A signal for the batch shell alone, as --signal=B: sends it, arrives at the script."""
    script = [f'#SBATCH --signal={option}', '#SBATCH --time=5', f"trap 'echo got {name}' {name}"]
    future = executor.submit(bash(*script, gate.shell, 'echo went on'))
    gate.await_arrival()
    # What slurmd does when the time comes, which would be minutes from now.
    slurm('scancel', '--batch', f'--signal={name}', str(future.job_id))
    assert eventually(lambda: f'got {name}' in future.stdout(), 10)
    gate.open()
    assert future.result() is JobState.COMPLETED
    # To SIGTERM Slurm adds words of its own.
    assert future.stdout().endswith(f'got {name}\nwent on\n')


def test_signal_to_the_steps_reaches_them(
    executor: SlurmExecutor, gate: Gate, cluster: Control
) -> None:
    """--signal without B: is for the job's steps, which the wrapper does not get in the way of."""
    step = f'trap "echo step got it; exit 0" USR1; {gate.shell}'
    future = executor.submit(bash('#SBATCH --signal=USR1@60', f"srun bash -c '{step}'"))
    gate.await_arrival()
    slurm('scancel', '--signal=USR1', str(future.job_id))
    assert future.result() is JobState.COMPLETED
    assert 'step got it' in future.stdout()


def test_signal_option_from_resources(
    executor: SlurmExecutor, gate: Gate, cluster: Control
) -> None:
    """--signal may come through `extra` as well."""
    resources = executor.with_resources(extra={'signal': 'B:TERM@60'}, time='5')
    future = resources.submit(bash("trap 'echo got it' TERM", gate.shell))
    gate.await_arrival()
    slurm('scancel', '-b', '--signal=TERM', str(future.job_id))
    assert eventually(lambda: 'got it' in future.stdout(), 10)
    gate.open()
    assert future.result() is JobState.COMPLETED


@pytest.mark.queues('local')
@pytest.mark.parametrize('where', ['script', 'resources'])
def test_signal_before_the_time_limit(executor: SlurmExecutor, where: str) -> None:
    """The embedded queue keeps to time limits of seconds, and sends --signal=B: before them."""
    lines = ["trap 'echo got it; exit 0' USR1", 'while :; do sleep 0.02; done']
    if where == 'script':
        lines = ['#SBATCH --time=0:02 --signal=B:USR1@1', *lines]
    else:
        executor = executor.with_resources(time='00:00:02', extra={'signal': 'B:USR1@1'})
    begun = time.monotonic()
    future = executor.submit(bash(*lines))
    assert future.result() is JobState.COMPLETED
    assert 1 <= time.monotonic() - begun < 2
    assert future.stdout() == 'got it\n'


def test_own_logs(executor: SlurmExecutor, work_dir: Path) -> None:
    """stdout() and stderr() find the files where the script's own options put them."""
    (work_dir / 'logs').mkdir()
    lines = ['#SBATCH -o "logs/out %j %x.txt"', '#SBATCH -e logs/err-%j.txt', '#SBATCH -J me']
    future = executor.submit(bash(*lines, 'echo out; echo err >&2; exit 1'), cwd=str(work_dir))
    error = failure(future)
    assert error.stdout_path == f'{work_dir}/logs/out {future.job_id} me.txt'
    assert error.stderr_path == f'{work_dir}/logs/err-{future.job_id}.txt'
    assert (future.stdout(), future.stderr()) == ('out\n', 'err\n')
    assert error.stderr == 'err\n'


def test_missing_log_folder(executor: SlurmExecutor, work_dir: Path) -> None:
    """Slurm fails a job without a word if its log has no folder; here it is refused, named."""
    with pytest.raises(SubmitError, match=f'no folder .*{work_dir.parent.name}.*/logs'):
        executor.submit(bash('#SBATCH -o logs/%j.out', 'true'), cwd=str(work_dir)).result()


def test_log_folder_that_only_slurm_knows(executor: SlurmExecutor, work_dir: Path) -> None:
    """A job that Slurm fails because of its log fails here too, and never began."""
    future = executor.submit(bash('#SBATCH -o logs-%j/out', 'true'), cwd=str(work_dir))
    error = failure(future)
    assert error.started is False
    assert error.state is JobState.FAILED


def test_discarded_output(executor: SlurmExecutor) -> None:
    """Output that goes to /dev/null is none."""
    future = executor.submit(bash('#SBATCH -o /dev/null', 'echo out'))
    future.result()
    assert future.stdout() == ''


PATTERNS = [
    *('%A-A', '%a-a', '%J-J', '%j-j', '%4j', '%12j', '%3a', '%s', '%t', '%n', '%u', '%x', '%9x'),
    *('%%-%j', 'x%%%j', '%q', 'end%', '\\%j', 'a\\%j'),
]


@pytest.mark.parametrize('array', ['', '#SBATCH --array=12'])
def test_log_names(executor: SlurmExecutor, work_dir: Path, array: str) -> None:
    """Patterns in the names of log files mean what sbatch's do."""
    futures = [
        executor.submit(bash(array, f'#SBATCH -J "my job" -o {quote(name)}'), cwd=str(work_dir))
        for name in (f'{n}:{pattern}' for n, pattern in enumerate(PATTERNS))
    ]
    for future in futures:
        future.result()
    ids = [int(str(future.job_id)) for future in futures]
    task, user = 12 if array else 4294967294, pwd.getpwuid(os.getuid()).pw_name
    names = [
        *(f'{ids[0]}-A', f'{task}-a', f'{ids[2]}-J', f'{ids[3]}-j', f'{ids[4]:04}'),
        *(f'{ids[5]:010}', f'{task:03}', 'batch', '0', '0', user, 'my job', 'my job'),
        *(f'%-{ids[13]}', f'x%{ids[14]}', '%q', 'end%', '%j', 'a%j'),
    ]
    expected = sorted(f'{n}:{name}' for n, name in enumerate(names))
    assert sorted(path.name for path in work_dir.iterdir()) == expected


def test_default_log_names(executor: SlurmExecutor, work_dir: Path) -> None:
    """Without --output it is slurm-%j.out, and slurm-%A_%a.out for the tasks of an array."""
    plain = executor.submit(bash('true'), cwd=str(work_dir))
    array = executor.submit(bash('#SBATCH --array=3,5'), cwd=str(work_dir))
    plain.result()
    array.result()
    names = [f'slurm-{plain.job_id}.out', *(f'slurm-{array.job_id}_{n}.out' for n in (3, 5))]
    assert sorted(path.name for path in work_dir.iterdir()) == sorted(names)


@pytest.mark.parametrize(('mode', 'expected'), [('append', 'old\nnew\n'), ('truncate', 'new\n')])
def test_open_mode(executor: SlurmExecutor, work_dir: Path, mode: str, expected: str) -> None:
    """--open-mode says what becomes of a log file that is there."""
    (work_dir / 'log').write_text('old\n')
    script = bash(f'#SBATCH --open-mode={mode} -o log', 'echo new')
    executor.submit(script, cwd=str(work_dir)).result()
    assert (work_dir / 'log').read_text() == expected


def test_input(executor: SlurmExecutor, work_dir: Path) -> None:
    """stdin is empty, or --input."""
    (work_dir / 'in').write_text('given\n')
    none = executor.submit(bash('cat'), cwd=str(work_dir))
    some = executor.submit(bash('#SBATCH --input=in', 'cat'), cwd=str(work_dir))
    none.result()
    some.result()
    assert (none.stdout(), some.stdout()) == ('', 'given\n')


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('NONE', '[] [] /bin/bash'),
        ('FROM_SETUP', '[yes] [] /bin/bash'),
        ('FROM_SETUP,NEW=a=b', '[yes] [a=b] /bin/bash'),
        ('ALL,NEW=n', '[yes] [n] /bin/bash'),
        ('ALL', '[yes] [] /bin/bash'),
    ],
)
def test_export(
    make_executor: Callable[..., SlurmExecutor],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    expected: str,
) -> None:
    """--export chooses what a job has of the environment that it was submitted in."""
    monkeypatch.setenv('FROM_SETUP', 'yes')
    monkeypatch.delenv('NEW', raising=False)
    executor = make_executor()
    script = bash(f'#SBATCH --export={option}', 'echo "[$FROM_SETUP] [$NEW] $SHELL"')
    future = executor.submit(script)
    future.result()
    assert future.stdout() == expected + '\n'


def test_array_variables(executor: SlurmExecutor, work_dir: Path) -> None:
    """A task knows its array."""
    names = ['COUNT', 'MIN', 'MAX', 'STEP', 'ID']
    show = ' '.join(f'$SLURM_ARRAY_TASK_{name}' for name in names)
    script = bash('#SBATCH --array=3-9:2 -o %a -c 2 -n 1', f'echo {show} $SLURM_ARRAY_JOB_ID')
    future = executor.submit(script, cwd=str(work_dir))
    future.result()
    found = {path.name: path.read_text() for path in work_dir.iterdir()}
    assert found == {str(n): f'4 3 9 2 {n} {future.job_id}\n' for n in (3, 5, 7, 9)}


@pytest.mark.parametrize('separator', [',', '?'])
def test_dependencies(executor: SlurmExecutor, gate: Gate, separator: str) -> None:
    """Of several dependencies all must be met, or any if they stand with '?' between them."""
    bad = executor.submit(bash('exit 1'))
    failure(bad)
    first = executor.submit(bash(gate.shell))
    gate.await_arrival()
    both = separator.join((f'afternotok:{bad.job_id}', f'afterany:{first.job_id}'))
    waiting = executor.submit(bash(f'#SBATCH --dependency={both}', 'true'))
    never = executor.submit(bash(f'#SBATCH --dependency=afterok:{bad.job_id}', 'true'))
    assert isinstance(never.exception(), JobCancelled)
    if separator == '?':
        assert waiting.result() is JobState.COMPLETED
        assert not first.done()
    gate.open()
    assert first.result() is waiting.result() is JobState.COMPLETED


def test_singleton(executor: SlurmExecutor, gate: Gate) -> None:
    """Of jobs that are singletons, those of one name run one after the other."""
    head = ['#SBATCH --dependency=singleton', '#SBATCH --job-name=one']
    first = executor.submit(bash(*head, gate.shell_as('a')))
    await_job_id(first)
    second = executor.submit(bash(*head, gate.shell_as('b')))
    other = executor.submit(bash('#SBATCH --dependency=singleton --job-name=other', 'true'))
    gate.await_arrival('a')
    assert other.result() is JobState.COMPLETED
    assert not gate.has_arrived('b')
    gate.open()
    assert first.result() is second.result() is JobState.COMPLETED


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('echo no shebang\n', "line 1 must be '#!'"),
        ('#!/bin/bash\necho\n#SBATCH -n 2\n', 'line 3: Slurm ignores #SBATCH behind the first'),
        ('#!/bin/bash\r\necho\r\n', 'line 1: DOS line ends'),
        ('#!bash\necho\n', 'absolute path'),
        ('#!/bin/bash\n#SBATCH --time\n', 'line 2: --time needs a value'),
        ('#!/bin/bash\n#SBATCH --wait\necho\n', 'line 2: remove --wait'),
    ],
)
def test_bad_script_is_refused(executor: SlurmExecutor, text: str, words: str) -> None:
    """What Slurm would refuse or silently ignore is refused by submit(), naming the line."""
    with pytest.raises(ConfigError, match=words):
        executor.submit(text)


def test_doubtful_script_is_warned_about(executor: SlurmExecutor) -> None:
    """A line that only looks like #SBATCH runs, with a warning that names it."""
    with pytest.warns(UserWarning, match=r"line 2: Slurm ignores '# SBATCH --time=1'"):
        future = executor.submit('#!/bin/bash\n# SBATCH --time=1\ntrue\n')
    assert future.result() is JobState.COMPLETED


def test_refused_by_sbatch(executor: SlurmExecutor, cluster: Control) -> None:
    """sbatch's own words reach the future; others go on."""
    bad = executor.submit(bash('#SBATCH --partition=nowhere', 'true'))
    good = executor.submit(bash('true'))
    with pytest.raises(SubmitError, match='invalid partition specified: nowhere') as refused:
        bad.result()
    assert refused.value.returncode == 1
    assert 'nowhere' in refused.value.stderr
    assert (bad.job_id, bad.job_state) == (None, JobState.PENDING)
    assert good.result() is JobState.COMPLETED


@pytest.mark.queues('local')
@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('--no-such-option=1', "unrecognized option '--no-such-option'"),
        ('--begin=now+1hour', 'the embedded queue takes no --begin: it starts jobs as soon as'),
        ('--time=abc', "invalid --time specification: 'abc'"),
        ('--dependency=expand:1', r'takes no --dependency=expand:1: it knows after, afterany, '),
        ('--dependency=afterok:999999', 'there is no job 999999 to depend on'),
    ],
)
def test_refused_by_the_embedded_queue(executor: SlurmExecutor, option: str, words: str) -> None:
    """It says what it does not take, and why; others go on."""
    bad = executor.submit(bash(f'#SBATCH {option}', 'true'))
    good = executor.submit(bash('true'))
    with pytest.raises(SubmitError, match=f'the script cannot be submitted: .*{words}') as refused:
        bad.result()
    assert refused.value.returncode is None
    assert (bad.job_id, bad.job_state) == (None, JobState.PENDING)
    assert good.result() is JobState.COMPLETED


def test_running_is_told(executor: SlurmExecutor, outside: Outside, gate: Gate) -> None:
    """A script's future is PENDING until it really starts; then it cannot be cancelled."""
    held = executor.submit(bash('#SBATCH --hold', 'true'))
    future = executor.submit(bash(gate.shell))
    gate.await_arrival()
    await_running(future)
    assert future.job_state is JobState.RUNNING
    assert not future.cancel()
    await_job_id(held)
    assert not held.running()
    assert held.job_state is JobState.PENDING
    assert held.cancel()
    gate.open()
    future.result()
    work_dir = work_dir_of(executor)
    assert eventually(lambda: held.job_id not in ' '.join(outside.live(work_dir)).split(), 10)


def test_kill_of_a_running_script(executor: SlurmExecutor, gate: Gate) -> None:
    """kill() ends the job; the future raises JobCancelled when the queue says that it has."""
    future = executor.submit(bash('echo $$', gate.shell))
    gate.await_arrival()
    await_running(future)
    pid = future.stdout().strip()
    future.kill()
    with pytest.raises(JobCancelled) as cancelled:
        future.result()
    assert cancelled.value.job_id == future.job_id
    assert cancelled.value.state is JobState.CANCELLED
    assert has_ended(pid)


def test_array_has_one_future(executor: SlurmExecutor, work_dir: Path) -> None:
    """A script that is an array completes when all its tasks have."""
    script = bash('#SBATCH --array=1-5:2%2', '#SBATCH -o %a.out', 'echo $SLURM_ARRAY_TASK_ID')
    future = executor.submit(script, cwd=str(work_dir))
    assert future.result() is JobState.COMPLETED
    assert future.job_id is not None
    assert future.job_id.isdigit()
    found = {path.name: path.read_text() for path in work_dir.glob('*.out')}
    assert found == {'1.out': '1\n', '3.out': '3\n', '5.out': '5\n'}


def test_array_fails_with_its_worst_task(executor: SlurmExecutor, work_dir: Path) -> None:
    """One task that fails makes the script fail, after all have ended."""
    script = bash(
        '#SBATCH --array=0-2', 'touch done$SLURM_ARRAY_TASK_ID', 'exit $((SLURM_ARRAY_TASK_ID * 3))'
    )
    error = failure(executor.submit(script, cwd=str(work_dir)))
    assert error.exit_code in {3, 6}
    assert len(list(work_dir.glob('done*'))) == 3


def test_large_script(executor: SlurmExecutor) -> None:
    """A script of three megabytes runs: what Slurm stores is small."""
    future = executor.submit(bash(*['# comment number 123456789'] * 110_000, 'echo end'))
    assert future.result() is JobState.COMPLETED
    assert future.stdout() == 'end\n'


def test_many_scripts(executor: SlurmExecutor, work_dir: Path) -> None:
    """Scripts submitted in a loop are jobs of their own, each with its own outcome."""
    futures = [
        executor.submit(bash(f'exit {n % 3}'), cwd=str(work_dir), check=False) for n in range(12)
    ]
    states = [future.result() for future in futures]
    assert states == [JobState.FAILED if n % 3 else JobState.COMPLETED for n in range(12)]
    assert len({future.job_id for future in futures}) == 12
