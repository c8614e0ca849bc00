"""The text of the batch scripts that sbatch gets. Pure.

A job of calls is a few lines that prepare the shell and become the worker. A user's script keeps
its header lines, which Slurm reads from the file it is given, and runs under a wrapper that
claims the task, passes signals on, and reports the end; the script itself is a file beside it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from slurm_futures.bundle import DEFINE_MODULE

# Names begin with sf_: those without are the user's, in setup lines and in exported variables.
_HEAD = """\
shopt -s execfail
sf_spool={folder}
sf_batch={batch}
sf_task=${{SLURM_ARRAY_TASK_ID:-0}}
sf_job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}
sf_node=${{SLURMD_NODENAME:-${{HOSTNAME:-node}}}}
sf_post() {{  # sf_post MEMBERS [BODY...]: write a message into the spool, complete or not at all
  local sf_name
  sf_name=$sf_batch.$sf_task-0$(date +%s%N)-$sf_node-$$-$RANDOM
  {{
    printf '{{"batch":%d,"task":%d,"job":"%s",' "$sf_batch" "$sf_task" "$sf_job"
    printf '"raw_id":"%s","restart":%d,' "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}"
    printf '"host":"%s","pid":%d,%s}}\\n' "$sf_node" "$$" "$1"
    shift
    if [ $# -gt 0 ]; then printf '%s\\0' "$@"; fi
  }} >"$sf_spool/tmp/$sf_name" && sync "$sf_spool/tmp/$sf_name" &&
    mv -T "$sf_spool/tmp/$sf_name" "$sf_spool/new/$sf_name" && sync "$sf_spool/new"
}}
"""

_SETUP = """\
{exports}{define}{setup}
"""

_BEFORE_CALLS = """\
sf_doing=setup
sf_failed() {{ sf_post '"failed":{{"what":"'"$sf_doing"'","code":'"$1"'}}'; }}
# Slurm knows what SIGTERM meant; the job may be on its way back into the queue.
trap 'exit 143' TERM
trap 'sf_code=$?; [ "$sf_code" -eq 143 ] || sf_failed "$sf_code"' EXIT
"""

_CALLS = """\
sf_doing=cwd
cd -- {cwd} || exit 1
sf_doing=python
set +e  # setup lines may have set it
exec {python} {entry} task "$sf_spool" "$sf_batch"
sf_code=$?
trap - EXIT
sf_failed "$sf_code"
exit "$sf_code"
"""

_SCRIPT = """\
ln -sT "job:$sf_job" "$sf_spool/claims/$sf_batch.$sf_task" 2>/dev/null
sf_owner=$(readlink "$sf_spool/claims/$sf_batch.$sf_task")
case $sf_owner in
  "job:$sf_job") ;;
  revoked) exit 0 ;;
  job:*) sf_post '"superseded":"'"$sf_owner"'"'; exit 0 ;;
  *) echo "slurm_futures: cannot claim this task in $sf_spool/claims" >&2; exit 1 ;;
esac
sf_post '"started":true' "$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")"
# What this shell says of its child's death is no part of the job's output, but tells a death by
# signal from an exit status over 128. It does not mention HUP INT QUIT USR1 USR2 PIPE ALRM TERM
# XCPU: those that it has traps for, and SIGPIPE.
exec 3>&2 4<> <(:) 2>&4
sf_silent=' 129 130 131 138 140 141 142 143 152 '
sf_stopping=false
sf_stop() {{
  sf_stopping=true
  {on_term}
  sf_post '"stopping":true' 2>&3
}}
trap sf_stop TERM
for sf_signal in {signals}; do
  trap 'kill -s '"$sf_signal"' "$sf_child" 2>/dev/null' "$sf_signal"
done
(
  trap - TERM {signals}
  exec 2>&3 3>&- 4>&-
  cd -- {cwd} || exit 1
{setup}
  exec {command}
) <&0 &
sf_child=$!
# A signal ends wait early; the child is gone when it cannot be waited for any more.
while :; do
  wait "$sf_child"
  sf_code=$?
  kill -0 "$sf_child" 2>/dev/null || break
done
wait "$sf_child" 2>/dev/null
sf_again=$?
# 127, or -1 in bash 5.2 (measured): there is no such child any more.
if [ "$sf_again" -ne 127 ] && [ "$sf_again" -ge 0 ]; then sf_code=$sf_again; fi
# Slurm's SIGTERM goes to all processes, and the child may have ended by it before this shell's.
case $sf_code in 0) sf_doubt= ;; 143) sf_doubt='1 2 3 4 5 6 7 8 9 10' ;; *) sf_doubt='1 2' ;; esac
for _ in $sf_doubt; do
  if $sf_stopping; then break; fi
  sleep 0.1
done
sf_died=null
if [ "$sf_code" -gt 128 ] && {{ [[ $sf_silent == *" $sf_code "* ]] || read -r -t 0.1 _ <&4; }}; then
  sf_died=$((sf_code - 128))
fi
sf_post '"ended":{{"code":'"$sf_code"',"signal":'"$sf_died"',"term":'"$sf_stopping"'}}' 2>&3
exit "$sf_code"
"""

_FORWARDED = 'HUP INT QUIT USR1 USR2 ALRM URG XCPU'
"""What ``--signal=B:`` and ``scancel --batch`` may send to the batch script alone.

Not SIGTERM, which on scancel, at the time limit and on a requeue reaches all of a job's processes.
Slurm sends SIGCONT just before it, and a bash that has traps for both loses the second: every other
time when its child ends of it (measured, 5.2).
"""


def _exports(env: Mapping[str, str]) -> str:
    return ''.join(f'export {name}={shlex.quote(value)}\n' for name, value in env.items())


def _setup(setup: Sequence[str], env: Mapping[str, str]) -> str:
    lines = '\n'.join(setup)
    define = DEFINE_MODULE if lines else ''
    return _SETUP.format(exports=_exports(env), define=define, setup=lines)


def calls_script(
    *,
    folder: str,
    batch: int,
    entry: str,
    python_cmd: str,
    cwd: str,
    setup: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> str:
    """Return the batch script of a job that runs function calls.

    Args:
        folder: the run's spool.
        batch: the number of the batch whose calls it runs.
        entry: the worker's entry script on the cluster.
        python_cmd: the interpreter that runs it.
        cwd: where the calls run.
        setup: shell lines to run first, in bash with ``module`` defined.
        env: environment variables to set before them.
    """
    return (
        '#!/bin/bash\n'
        + _HEAD.format(folder=shlex.quote(folder), batch=batch)
        + _BEFORE_CALLS.format()
        + _setup(setup, env or {})
        + _CALLS.format(
            cwd=shlex.quote(cwd), python=shlex.quote(python_cmd), entry=shlex.quote(entry)
        )
    )


def user_script(
    *,
    header_lines: Sequence[str],
    folder: str,
    batch: int,
    command: Sequence[str],
    cwd: str,
    setup: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    signal_option: str | None = None,
) -> str:
    """Return the batch script that wraps a user's script.

    Args:
        header_lines: the comment lines that Slurm reads, without the shebang.
        folder: the run's spool.
        batch: the number of the batch.
        command: the interpreter from the script's shebang, and the script's path.
        cwd: where the script runs.
        setup: shell lines to run first, in bash with ``module`` defined.
        env: environment variables to set before them.
        signal_option: the job's ``--signal``.
    """
    head = ''.join(line + '\n' for line in ('#!/bin/bash', *header_lines))
    body = _SCRIPT.format(
        cwd=shlex.quote(cwd),
        setup=_setup(setup, env or {}),
        command=shlex.join(command),
        signals=_FORWARDED,
        on_term='kill -s TERM "$sf_child" 2>/dev/null'
        if _warns_by_term(signal_option or '')
        else ':',
    )
    return head + _HEAD.format(folder=shlex.quote(folder), batch=batch) + body


def _warns_by_term(option: str) -> bool:
    """Return whether ``--signal`` sends SIGTERM to the batch script alone, ahead of the end."""
    flags, _, rest = option.upper().rpartition(':')
    return 'B' in flags and rest.partition('@')[0].removeprefix('SIG') in ('TERM', '15')
