"""The command lines of Slurm's commands, and the environments they run in. Pure."""

from __future__ import annotations

import re
from typing import Iterable, Iterator, Mapping, Sequence

from .task_sets import format_tasks

SQUEUE_FORMAT = '%F|%K|%A|%T|%N|%r'
"""Array job id, tasks, own id, state, nodes, reason.

Not ``%i``: it is cut at 31 bytes without a mark when SLURM_BITSTR_LEN is not set, while ``%K`` is
cut at 64 with one (measured, 22.05). Not the job's name: it may contain anything.
"""

SACCT_FORMAT = 'JobID,JobIDRaw,State,ExitCode,Submit,End,NodeList'

_MINE = ('--me', '--all', '--noheader', '--states=all')
"""All of the user's jobs.

Without --all, squeue leaves out jobs in partitions that are hidden, or closed to the user's groups,
RUNNING ones too (measured, 22.05). --me came with Slurm 20.02.
"""

_LOOKBACK = 'now-7days'

_KEPT = frozenset({'SLURM_CONF', 'SLURM_CONF_SERVER', 'SLURM_JWT'})
"""How to reach the controller: the configuration, the server that hands it out, the token."""

_OURS = frozenset(
    {
        'SBATCH_ARRAY_INX',
        'SBATCH_ERROR',
        'SBATCH_EXPORT',
        'SBATCH_JOB_NAME',
        'SBATCH_OUTPUT',
        'SBATCH_WAIT',
    }
)
"""What a script or the executor decides; the environment would win over #SBATCH lines."""

_QUERIES = ('SACCT_', 'SBATCH_', 'SCANCEL_', 'SCONTROL_', 'SLURM_', 'SQUEUE_')

_MAX_BYTES = 32_768
"""Of ids on one command line: one argument may have 131,072 bytes on Linux (execve(2))."""

_MAX_JOBS = 200
"""Jobs that one command asks about; scancel sends a request for each."""

_MAX_TASKS = 4_000
"""Tasks of one array in one id, so that it keeps below _MAX_BYTES."""

_ID = re.compile(r'(\d+)(?:_(\d+|\[[\d,-]+\]))?', re.ASCII)


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for sbatch, and with it that of the job.

    A job's SLURM_* variables would leak into what is submitted from within it. The user's
    SBATCH_* count (SBATCH_ACCOUNT, SBATCH_PARTITION), but for what is decided here.
    SLURM_CLUSTERS is a user's choice too: Slurm sets it in no job.
    """
    kept = _KEPT | {'SLURM_CLUSTERS'}
    return {
        name: value
        for name, value in env.items()
        if name not in _OURS and (name in kept or not name.startswith('SLURM_'))
    }


def query_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for squeue, sacct, scancel and scontrol.

    Nothing that changes what they print or do is left. SLURM_BITSTR_LEN=0 makes them print whole
    lists of tasks. With SQUEUE_ARRAY_UNIQUE=1, squeue lists a task of its own, such as a held
    one, by itself (20.11, 22.05); 24.11 does not know it, puts all pending tasks together with
    all of their reasons, and rejects the option --array-unique (measured). Times come as seconds
    since 1970.
    """
    kept = {
        name: value for name, value in env.items() if name in _KEPT or not name.startswith(_QUERIES)
    }
    kept.update(LC_ALL='C', SLURM_BITSTR_LEN='0', SLURM_TIME_FORMAT='%s', SQUEUE_ARRAY_UNIQUE='1')
    return kept


def default_clusters(env: Mapping[str, str]) -> str:
    """Return the clusters that sbatch would choose from, by the user's environment."""
    return env.get('SBATCH_CLUSTERS') or env.get('SLURM_CLUSTERS') or ''


def sbatch_argv(sbatch: str, options: Sequence[str], script_path: str) -> list[str]:
    """Submit a script, given by its absolute path, which `lookup_argv` can find it by.

    Without --kill-on-invalid-dep, a job whose dependency cannot be met any more is PENDING for
    ever.
    """
    return [sbatch, '--parsable', '--kill-on-invalid-dep=yes', *options, script_path]


def squeue_argv(squeue: str, clusters: str = '') -> list[str]:
    """List all of the user's jobs, for `slurm_parsers.parse_squeue`."""
    return [squeue, *_on(clusters), *_MINE, f'--format={SQUEUE_FORMAT}']


def lookup_argv(squeue: str, clusters: str = '') -> list[str]:
    """List all of the user's jobs with the paths of their scripts, for `find_script`."""
    return [squeue, *_on(clusters), *_MINE, '--format=%F|%o']


def accounting_lookup_argv(sacct: str, user: str, clusters: str = '') -> list[str]:
    """List the user's jobs of the last days with their command lines, for `find_submission`.

    SubmitLine came with Slurm 21.08.
    """
    options = ['-X', '-n', '-P', f'--user={user}', f'--starttime={_LOOKBACK}']
    return [sacct, *_on(clusters), *options, '--format=JobID,SubmitLine']


def sacct_argv(sacct: str, job_ids: Iterable[str], clusters: str = '') -> list[str]:
    """Ask the accounting about jobs and arrays, for `slurm_parsers.parse_sacct`."""
    jobs = '--jobs=' + ','.join(job_ids)
    return [sacct, *_on(clusters), '-X', '-n', '-P', f'--format={SACCT_FORMAT}', jobs]


def scancel_argv(scancel: str, ids: Iterable[str], clusters: str = '') -> list[str]:
    """Cancel jobs and tasks. One id that is none makes scancel do nothing at all (measured)."""
    return [scancel, *_on(clusters), *ids]


def scontrol_argv(scontrol: str, clusters: str = '') -> list[str]:
    """Show the cluster's configuration, for `slurm_parsers.parse_config`."""
    return [scontrol, *_on(clusters), 'show', 'config']


def _on(clusters: str) -> list[str]:
    return [f'--clusters={clusters}'] if clusters else []


def base_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids of the jobs and arrays that ids of tasks belong to.

    sacct must be asked for arrays: it finds nothing for the id of a task that has not started,
    and rejects lists of tasks (measured, 22.05).
    """
    matches = map(_ID.fullmatch, ids)
    return sorted({match.group(1) for match in matches if match}, key=int)


def merge_ids(ids: Iterable[str]) -> list[str]:
    """Write ids of tasks of the same array as one id; what is no id is left out.

    scancel sends one request for ``12_[0-9]``, and ten for its tasks one by one (measured).
    """
    tasks: dict[str, set[int]] = {}
    others = {}
    for match in filter(None, map(_ID.fullmatch, ids)):
        job_id, task = match.groups()
        if task and task.isdigit():
            tasks.setdefault(job_id, set()).add(int(task))
        else:
            others[match.group()] = True
    return [*others, *(one for job_id in tasks for one in _merged(job_id, sorted(tasks[job_id])))]


def _merged(job_id: str, tasks: Sequence[int]) -> Iterator[str]:
    for start in range(0, len(tasks), _MAX_TASKS):
        yield f'{job_id}_[{format_tasks(tasks[start : start + _MAX_TASKS])}]'


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Split ids into as many as one command line should hold."""
    chunk: list[str] = []
    size = 0
    for one in ids:
        if chunk and (size + len(one) >= _MAX_BYTES or len(chunk) == _MAX_JOBS):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += len(one) + 1
    if chunk:
        yield chunk
