"""run(): commands on the login node."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_futures import CommandFailed, SlurmExecutor
from waiting import Gate, has_ended

pytestmark = pytest.mark.queues('local')


def test_text_goes_to_a_shell(executor: SlurmExecutor) -> None:
    """A string is a line for bash; what it prints comes back as text, with its exit status."""
    done = executor.run('echo $((6 * 7)) | tr 4 5; echo Zürich >&2; [[ $BASH_VERSION ]]')
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stdout, done.stderr) == (0, '52\n', 'Zürich\n')
    assert done.args.startswith('echo')


def test_list_never_sees_a_shell(executor: SlurmExecutor) -> None:
    """Arguments given as a list arrive as they are, whatever a shell would make of them."""
    words = ['$HOME', '* ?', '`id`', "'", '"', '', 'a\nb', '>x', 'Zürich 数']
    done = executor.run(['printf', '%s|', *words])
    assert done.stdout == ''.join(f'{word}|' for word in words)
    assert done.args == ['printf', '%s|', *words]


def test_list_takes_paths(executor: SlurmExecutor, work_dir: Path) -> None:
    """PathLike arguments are taken like those of subprocess.run."""
    (work_dir / 'file').write_text('content')
    assert executor.run(['cat', work_dir / 'file']).stdout == 'content'


def test_failure_is_raised_with_all_there_is_to_know(executor: SlurmExecutor) -> None:
    """check=True, the default, raises CommandFailed with command, exit status and output."""
    with pytest.raises(CommandFailed, match='exit status 3') as failed:
        executor.run('echo out; echo err >&2; exit 3')
    error = failed.value
    assert (error.cmd, error.returncode) == ('echo out; echo err >&2; exit 3', 3)
    assert (error.stdout, error.stderr) == ('out\n', 'err\n')
    assert isinstance(error, subprocess.CalledProcessError)


def test_failure_can_be_looked_at_instead(executor: SlurmExecutor) -> None:
    """check=False returns a failed command's exit status, a signal's as a negative number."""
    assert executor.run('exit 3', check=False).returncode == 3
    assert executor.run('kill -9 $$', check=False).returncode == -9


def test_no_such_command(executor: SlurmExecutor) -> None:
    """A list names a program that must be there; the shell says so itself."""
    with pytest.raises(FileNotFoundError, match='no-such-program'):
        executor.run(['no-such-program'])
    assert executor.run('no-such-program', check=False).returncode == 127


def test_what_is_no_command_is_refused(executor: SlurmExecutor) -> None:
    """An empty list and arguments that are no strings raise TypeError, before anything runs."""
    with pytest.raises(TypeError, match='list of strings'):
        executor.run([])
    with pytest.raises(TypeError, match='list of strings'):
        executor.run(['sleep', 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match='null byte'):
        executor.run(['echo', 'a\0b'])


def test_runs_in_work_dir_unless_told(executor: SlurmExecutor, work_dir: Path) -> None:
    """The working folder is the executor's; cwd= and with_options(cwd=) say another one."""
    assert executor.run(['pwd']).stdout != f'{work_dir}\n'
    assert executor.run(['pwd'], cwd=str(work_dir)).stdout == f'{work_dir}\n'
    sibling = executor.with_options(cwd=str(work_dir))
    assert sibling.run(['pwd']).stdout == f'{work_dir}\n'
    with pytest.raises(FileNotFoundError, match='no-such-folder'):
        executor.run(['pwd'], cwd=f'{work_dir}/no-such-folder')


def test_relative_folders_start_in_the_executors(executor: SlurmExecutor) -> None:
    """A relative cwd means the same every time: below the executor's own."""
    base = executor.run(['pwd']).stdout.strip()
    executor.run(['mkdir', 'sub'])
    for _ in range(2):
        assert executor.run(['pwd'], cwd='sub').stdout.strip() == f'{base}/sub'
    assert executor.with_options(cwd='sub').run(['pwd']).stdout.strip() == f'{base}/sub'


def test_environment_is_added_to(executor: SlurmExecutor) -> None:
    """env= adds variables to the ones that are there."""
    done = executor.run('echo "$GREETING $HOME"', env={'GREETING': 'it\'s "me"'})
    assert done.stdout == f'it\'s "me" {os.environ["HOME"]}\n'


def test_input_is_stdin(executor: SlurmExecutor) -> None:
    """input= is what the command reads; without it there is nothing to read."""
    assert executor.run(['cat'], input='Zürich\n数').stdout == 'Zürich\n数'
    assert executor.run(['cat'], input='').stdout == ''
    assert executor.run(['cat']).stdout == ''


def test_large_output_and_input(executor: SlurmExecutor) -> None:
    """Megabytes go in and come out whole."""
    text = '0123456789' * 300_000
    assert executor.run(['cat'], input=text).stdout == text


def test_output_that_is_no_text(executor: SlurmExecutor) -> None:
    """Bytes that are not UTF-8 arrive as replacement characters rather than as an error."""
    assert executor.run(r"printf 'a\xffb'").stdout == 'a\ufffdb'


def test_timeout_ends_the_command(executor: SlurmExecutor, tmp_path: Path) -> None:
    """timeout= raises TimeoutExpired with what was printed; nothing of the command is left."""
    pids = tmp_path / 'pids'
    command = f'echo early; echo $$ >{pids}; sleep 600 & echo $! >>{pids}; wait'
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        executor.run(command, timeout=0.5)
    assert (expired.value.cmd, expired.value.timeout) == (command, 0.5)
    assert str(expired.value.stdout) == 'early\n'
    assert has_ended(*pids.read_text().split())


def test_timeout_of_a_command_that_ignores_sigterm(executor: SlurmExecutor, tmp_path: Path) -> None:
    """SIGKILL follows, for what the command has started too, and the next command runs."""
    pids = tmp_path / 'pids'
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        executor.run(f"trap '' TERM; sleep 600 & echo $$ $! >{pids}; wait", timeout=0.2)
    assert time.monotonic() - began < 10
    assert has_ended(*pids.read_text().split())
    assert executor.run('echo next').stdout == 'next\n'


def test_background_processes_live_on(executor: SlurmExecutor, tmp_path: Path) -> None:
    """What a command leaves running is not touched, not even when a later command times out."""
    pid = executor.run('sleep 600 >/dev/null 2>&1 & echo $!').stdout.strip()
    with pytest.raises(subprocess.TimeoutExpired):
        executor.run('sleep 600', timeout=0.2)
    executor.run(['kill', pid])  # it is there to be killed


def test_commands_do_not_wait_for_each_other(executor: SlurmExecutor, tmp_path: Path) -> None:
    """More commands run at once than there are login workers, and beside functions."""
    gate = Gate(tmp_path / 'gate')
    threads = [
        threading.Thread(target=executor.run, args=(gate.shell.replace('.at-', f'.at-{n}'),))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    gate.await_arrival(*range(6))
    assert executor.run('echo meanwhile').stdout == 'meanwhile\n'
    assert executor.submit(sum, [1, 2]).result() == 3
    gate.open()
    for thread in threads:
        thread.join()


def test_setup_prepares_commands(make_executor: Callable[..., SlurmExecutor]) -> None:
    """The executor's setup lines run in bash before anything else, and may print."""
    executor = make_executor(
        setup=['echo noise', 'declare -a words=(a b)', 'export WORD=${words[1]}']
    )
    assert executor.run('echo $WORD').stdout == 'b\n'
    assert executor.submit(os.getenv, 'WORD').result() == 'b'
