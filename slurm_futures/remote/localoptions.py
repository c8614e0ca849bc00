"""What sbatch's options mean in the embedded queue. Pure."""

from __future__ import annotations

import os
import re
import signal
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .task_sets import expand_tasks

MAX_TASKS = 100_000
"""Most tasks of one array."""

IGNORED = frozenset(
    {
        'account', 'acctg-freq', 'bb', 'bbf', 'cluster', 'cluster-constraint', 'clusters',
        'comment', 'constraint', 'contiguous', 'core-spec', 'cores-per-socket', 'cpu-freq',
        'cpus-per-gpu', 'delay-boot', 'distribution', 'exclude', 'exclusive', 'extra',
        'extra-node-info', 'get-user-env', 'gpu-bind', 'gpu-freq', 'gpus', 'gpus-per-node',
        'gpus-per-socket', 'gpus-per-task', 'gres', 'gres-flags', 'hint', 'ignore-pbs',
        'immediate', 'kill-on-invalid-dep', 'licenses', 'mail-type', 'mail-user', 'mcs-label',
        'mem', 'mem-bind', 'mem-per-cpu', 'mem-per-gpu', 'mincpus', 'network', 'nice',
        'no-kill', 'no-requeue', 'nodelist', 'nodes', 'ntasks-per-core', 'ntasks-per-gpu',
        'ntasks-per-node', 'ntasks-per-socket', 'ntasks-per-tres', 'oom-kill-step',
        'overcommit', 'oversubscribe', 'parsable', 'partition', 'power', 'prefer', 'priority',
        'profile', 'propagate', 'qos', 'reboot', 'requeue', 'reservation', 'resv-ports',
        'segment', 'share', 'sockets-per-node', 'spread-job', 'stepmgr', 'switches',
        'tasks-per-node', 'thread-spec', 'threads-per-core', 'time-min', 'tmp', 'tres-bind',
        'tres-per-task', 'use-min-nodes', 'verbose', 'wait-all-nodes', 'wckey',
    }
)  # fmt: skip
"""Options about what one machine has none of: partitions, nodes, accounts, priorities. And the
amounts of memory and of devices, which are not kept to."""

REFUSED = {
    'batch': 'all of its jobs run on this machine',
    'begin': 'it starts jobs as soon as there is room',
    'container': 'it runs no containers',
    'container-id': 'it runs no containers',
    'context': 'it runs jobs as they are',
    'deadline': 'it knows time limits only',
    'export-file': 'write --export',
    'gid': 'it runs jobs as you',
    'nodefile': 'all of its jobs run on this machine',
    'uid': 'it runs jobs as you',
}
"""Options without which a job is not what its author meant; and why they are not honoured."""


class Refused(Exception):
    """The embedded queue does not take the job; says what to change."""


class Spec(NamedTuple):
    """What is to be run, and when.

    Attributes:
        script: the path of the batch script.
        name: the job's name.
        submit_dir: where it was submitted.
        cwd: where it runs.
        environment: the digest of its environment.
        umask: of its processes.
        input: file name pattern of its stdin, likewise the next two.
        output: of its stdout.
        error: of its stderr; empty: the same as stdout.
        append: whether output is added to what is there.
        array: the indices of its tasks; empty: it is no array.
        step: of the array's indices, as it was written.
        parallelism: how many tasks of the array may run at once; 0: all.
        time: seconds that it may run; None: without a limit.
        warning: a signal, and how many seconds before the limit the script gets it.
        dependency: what it waits for: kind, job, index of the task or None.
        any_dependency: whether one of them is enough.
        held: whether it waits until it is cancelled.
        cpus: CPUs for each task as asked for, or None; likewise ntasks.
        ntasks: processes that the script is to start.
        partition: as asked for.
    """

    script: str
    name: str
    submit_dir: str
    cwd: str
    environment: str = ''
    umask: int = 0o022
    input: str = '/dev/null'
    output: str = ''
    error: str = ''
    append: bool = False
    array: str = ''
    step: int = 1
    parallelism: int = 0
    time: Optional[float] = None
    warning: Optional[Sequence[int]] = None
    dependency: Sequence[Sequence[Any]] = ()
    any_dependency: bool = False
    held: bool = False
    cpus: Optional[int] = None
    ntasks: Optional[int] = None
    partition: str = 'local'


Pairs = Sequence[Sequence[Optional[str]]]


def read_options(
    script: str, header: Pairs, command_line: Sequence[str], cwd: str
) -> Tuple[Spec, str]:
    """Return what a job asks for, and its ``--export``.

    Args:
        script: the path of the batch script.
        header: the options in its ``#SBATCH`` lines: long name, value or None.
        command_line: options that win over them, spelled ``--name=value``.
        cwd: where it is submitted.

    Raises:
        Refused: an option that is unknown, or that cannot be honoured.
    """
    options = {str(name): value or '' for name, value in header}
    for word in command_line:
        name, _, value = word[2:].partition('=')
        options[name] = value
    spec = Spec(script, os.path.basename(script), cwd, cwd)
    for name, value in options.items():
        spec = spec._replace(**_read(name, value, spec))
    return spec, options.get('export', 'ALL')


def _read(name: str, value: str, spec: Spec) -> Mapping[str, Any]:
    if name in REFUSED:
        raise Refused(f'the embedded queue takes no --{name}: {REFUSED[name]}')
    if name in IGNORED:
        return {'partition': value} if name == 'partition' else {}
    if name not in HONOURED:
        raise Refused(f"unrecognized option '--{name}'")
    if name == 'chdir':
        return {'cwd': os.path.join(spec.submit_dir, value)}
    try:
        return HONOURED[name](value)
    except ValueError:
        raise Refused(f'invalid --{name} specification: {value!r}') from None


def _array(value: str) -> Mapping[str, Any]:
    tasks = expand_tasks(value)
    if tasks.truncated or not tasks or len(tasks) > MAX_TASKS:
        raise ValueError(value)
    step = re.search(r':(\d+)', value)
    limit = value.partition('%')[2]
    return {
        'array': value.partition('%')[0],
        'step': int(step.group(1)) if step else 1,
        'parallelism': int(limit or 0),
    }


_TIME = re.compile(r'(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})', re.ASCII)


def read_time(value: str) -> Optional[float]:
    """Return a time limit in seconds, None for none; for the formats see sbatch(1), --time.

    Raises:
        ValueError: it is none.
    """
    if value.upper() in ('UNLIMITED', 'INFINITE', '-1'):
        return None
    match = _TIME.fullmatch(value)
    if match is None:
        raise ValueError(value)
    parts = [int(part) for part in match['clock'].split(':')]
    if match['days']:
        hours, minutes, seconds = parts + [0] * (3 - len(parts))
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, parts + [0] * (2 - len(parts))
    total = int(match['days'] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    return float(total) or None


_WARNING = re.compile(r'(?P<signal>\w+)(?:@(?P<before>\d*))?', re.ASCII)


def _signal(value: str) -> Mapping[str, Any]:
    """Read ``--signal``; without ``B:`` it is for job steps, which there are none of."""
    flags, colon, rest = value.upper().rpartition(':')
    match = _WARNING.fullmatch(rest)
    if match is None or (colon and not set(flags) <= {'B', 'R'}):
        raise ValueError(value)
    warning = [_signal_number(match['signal']), int(match['before'] or 60)]
    return {'warning': warning if 'B' in flags else None}


def _signal_number(name: str) -> int:
    if name.isdigit():
        return int(signal.Signals(int(name)))
    try:
        return int(signal.Signals[name if name.startswith('SIG') else f'SIG{name}'])
    except KeyError:
        raise ValueError(name) from None


KINDS = ('after', 'afterany', 'afternotok', 'afterok')


def _dependency(value: str) -> Mapping[str, Any]:
    separator = '?' if '?' in value else ','
    found: List[Tuple[str, int, Optional[int]]] = []
    for part in value.split(separator) if value else []:
        kind, *jobs = part.split(':')
        if kind == 'singleton' and not jobs:
            found.append((kind, 0, None))
            continue
        if kind.isdigit():
            kind, jobs = 'afterany', [kind]
        if kind not in KINDS or not jobs:
            kinds = ', '.join((*KINDS, 'singleton'))
            raise Refused(f'the embedded queue takes no --dependency={value}: it knows {kinds}')
        for job in jobs:
            number, _, index = job.partition('_')
            found.append((kind, int(number), int(index) if index else None))
    return {'dependency': found, 'any_dependency': separator == '?'}


def _open_mode(value: str) -> Mapping[str, Any]:
    if value not in ('append', 'truncate'):
        raise ValueError(value)
    return {'append': value == 'append'}


def _count(field: str) -> Callable[[str], Mapping[str, Any]]:
    def read(value: str) -> Mapping[str, Any]:
        if int(value) < 1:
            raise ValueError(value)
        return {field: int(value)}

    return read


def _pattern(field: str) -> Callable[[str], Mapping[str, Any]]:
    return lambda value: {field: value}


HONOURED: Dict[str, Callable[[str], Mapping[str, Any]]] = {
    'array': _array,
    'chdir': _pattern('cwd'),
    'cpus-per-task': _count('cpus'),
    'dependency': _dependency,
    'error': _pattern('error'),
    'export': lambda _: {},
    'hold': lambda _: {'held': True},
    'input': _pattern('input'),
    'job-name': _pattern('name'),
    'ntasks': _count('ntasks'),
    'open-mode': _open_mode,
    'output': _pattern('output'),
    'signal': _signal,
    'time': lambda value: {'time': read_time(value)},
}


def export(environment: Mapping[str, str], option: str) -> Dict[str, str]:
    """Return what ``--export`` lets a job have of an environment.

    Without ``ALL`` it gets what a login would give it; sbatch asks a login shell.
    """
    words = option.split(',')
    if 'ALL' in words or not option:
        kept = dict(environment)
    else:
        names = ('HOME', 'LOGNAME', 'SHELL', 'USER')
        kept = {name: environment[name] for name in names if name in environment}
        kept['PATH'] = '/usr/local/bin:/usr/bin:/bin'
    for word in words:
        name, given, value = word.partition('=')
        if given:
            kept[name] = value
        elif name in environment:
            kept[name] = environment[name]
    return kept
