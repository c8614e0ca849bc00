"""The text of the batch scripts that sbatch gets. Pure.

A job of calls is a few lines that prepare the shell and become the worker. A user's script keeps
its header lines, which Slurm reads from the file it is given, and runs under a wrapper that
claims the task, passes signals on, and reports the end; the script itself is a file beside it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from slurm_futures.bundle import DEFINE_MODULE

_HEAD = """\
shopt -s execfail
spool={folder}
batch={batch}
task=${{SLURM_ARRAY_TASK_ID:-0}}
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}
node=${{SLURMD_NODENAME:-${{HOSTNAME:-node}}}}
post() {{  # post MEMBERS [BODY...]: write a message into the spool, complete or not at all
  local name
  name=$batch.$task-0$(date +%s%N)-$node-$$-$RANDOM
  {{
    printf '{{"batch":%d,"task":%d,"job":"%s","raw_id":"%s","restart":%d,"host":"%s","pid":%d,%s}}\\n' \\
      "$batch" "$task" "$job" "$SLURM_JOB_ID" "${{SLURM_RESTART_COUNT:-0}}" \\
      "$node" "$$" "$1"
    shift
    if [ $# -gt 0 ]; then printf '%s\\0' "$@"; fi
  }} >"$spool/tmp/$name" && sync "$spool/tmp/$name" && mv -T "$spool/tmp/$name" "$spool/new/$name" &&
    sync "$spool/new"
}}
"""

_SETUP = """\
{exports}{define}{setup}
"""

_BEFORE_CALLS = """\
doing=setup
failed() {{ post '"failed":{{"what":"'"$doing"'","code":'"$1"'}}'; }}
# Slurm knows what SIGTERM meant; the job may be on its way back into the queue.
trap 'exit 143' TERM
trap 'code=$?; [ "$code" -eq 143 ] || failed "$code"' EXIT
"""

_CALLS = """\
doing=cwd
cd {cwd} || exit 1
doing=python
exec {python} {entry} task "$spool" "$batch"
code=$?
trap - EXIT
failed "$code"
exit "$code"
"""

_SCRIPT = """\
ln -sT "job:$job" "$spool/claims/$batch.$task" 2>/dev/null
owner=$(readlink "$spool/claims/$batch.$task")
case $owner in
  "job:$job") ;;
  revoked) exit 0 ;;
  job:*) post '"superseded":"'"$owner"'"'; exit 0 ;;
  *) echo "slurm_futures: cannot claim this task in $spool/claims" >&2; exit 1 ;;
esac
post '"started":true' "$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")"
# What this shell says of its child's death is no part of the job's output, but tells a death by
# signal from an exit status over 128. That of these signals it does not mention.
exec 3>&2 4<> <(:) 2>&4
silent=' 130 141 143 '
stopping=false
stop() {{
  stopping=true
  {on_term}
  post '"stopping":true' 2>&3
}}
trap stop TERM
for signal in {signals}; do
  trap 'kill -s '"$signal"' "$child" 2>/dev/null' "$signal"
done
(
  trap - TERM {signals}
  exec 2>&3 3>&- 4>&-
  cd {cwd} || exit 1
{setup}
  exec {command}
) <&0 &
child=$!
# A signal ends wait early; the child is gone when it cannot be waited for any more.
while :; do
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break
done
wait "$child" 2>/dev/null
again=$?
if [ "$again" -ne 127 ]; then code=$again; fi
died=null
if [ "$code" -gt 128 ] && {{ [[ $silent == *" $code "* ]] || read -r -t 0.1 _ <&4; }}; then
  died=$((code - 128))
fi
post '"ended":{{"code":'"$code"',"signal":'"$died"',"term":'"$stopping"'}}' 2>&3
exit "$code"
"""

_FORWARDED = 'HUP INT QUIT USR1 USR2 ALRM CONT URG XCPU'
"""What ``--signal=B:`` and ``scancel --batch`` may send to the batch script alone.

Not SIGTERM, which on scancel, at the time limit and on a requeue reaches all of a job's processes.
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
        on_term='kill -s TERM "$child" 2>/dev/null' if _warns_by_term(signal_option or '') else ':',
    )
    return head + _HEAD.format(folder=shlex.quote(folder), batch=batch) + body


def _warns_by_term(option: str) -> bool:
    """Return whether ``--signal`` sends SIGTERM to the batch script alone, ahead of the end."""
    flags, _, rest = option.upper().rpartition(':')
    return 'B' in flags and rest.partition('@')[0].removeprefix('SIG') in ('TERM', '15')
