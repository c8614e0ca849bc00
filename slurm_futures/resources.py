"""What a job asks of Slurm: validated, immutable, hashable (batching goes by equality)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Literal, TypedDict

from slurm_futures.checks import (
    at_least,
    did_you_mean,
    environment,
    memory,
    pairs,
    shell_lines,
    shown,
    text,
    time_limit,
    yes_or_no,
)
from slurm_futures.errors import ConfigError
from slurm_futures.sbatch_options import OPTION_KINDS

__all__ = ['ResourceOptions', 'Resources', 'merge']

_NODES = re.compile(r'[0-9]+[kKmM]?([-,:][0-9]+[kKmM]?)*')
_OPTION_NAME = re.compile(r'[A-Za-z][A-Za-z0-9-]+')


class ResourceOptions(TypedDict, total=False):
    """What ``with_resources`` takes; None unsets. The fields are those of :class:`Resources`."""

    partition: str | None
    time: str | timedelta | None
    nodes: int | str | None
    ntasks: int | None
    ntasks_per_node: int | None
    cpus_per_task: int | None
    mem: str | None
    mem_per_cpu: str | None
    gpus: int | str | None
    gres: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclusive: bool | Literal['user', 'mcs', 'topo'] | None
    requeue: bool | None
    dependency: str | None
    clusters: str | None
    array_parallelism: int | None
    arrays: Literal['auto', False] | None
    job_name: str | None
    setup: str | Sequence[str] | None
    env: Mapping[str, str | None] | None
    extra: Mapping[str, str | int | bool | None] | None


@dataclass(frozen=True)
class Resources:
    """What one job asks for, each value in its normal form. :func:`merge` makes them.

    Attributes:
        partition: Partition, or several with commas between them.
        time: Time limit in Slurm's spelling; given as that or as a timedelta.
        nodes: Number of nodes, '2', or a range, '2-4'.
        ntasks: Number of tasks (sbatch --ntasks).
        ntasks_per_node: Tasks on each node.
        cpus_per_task: CPUs for each task.
        mem: Memory per node in Slurm's spelling: '4G', '500M', '4096' (megabytes), '0' (all of it).
        mem_per_cpu: Memory per CPU, spelled likewise; excludes ``mem``.
        gpus: GPUs of the whole job: '2', 'a100:2'.
        gres: Generic resources per node: 'gpu:2,shard:1'.
        account: Account to charge.
        qos: Quality of service.
        constraint: Node features: 'intel&avx512'.
        exclusive: True: nodes shared with nobody; 'user', 'mcs', 'topo': as Slurm defines them.
        requeue: False forbids Slurm to run the job a second time; None: as the cluster is
            configured.
        dependency: 'afterok:123' and the like.
        clusters: Cluster to submit to, on sites with several.
        array_parallelism: Tasks of one array that run at the same time at most.
        arrays: False: one sbatch per task, for sites that refuse arrays.
        job_name: Name that squeue shows.
        setup: Shell lines to run in the job before anything else.
        env: Environment variables of the job, as pairs sorted by name.
        extra: Other sbatch options, as pairs sorted by name: (long name without dashes, value or
            True for a flag).

    Raises:
        ConfigError: A value that Slurm would not take, or would take for something else.
    """

    partition: str | None = None
    time: str | None = None
    nodes: str | None = None
    ntasks: int | None = None
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    mem_per_cpu: str | None = None
    gpus: str | None = None
    gres: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: Literal[True, 'user', 'mcs', 'topo'] | None = None
    requeue: bool | None = None
    dependency: str | None = None
    clusters: str | None = None
    array_parallelism: int | None = None
    arrays: Literal['auto', False] = 'auto'
    job_name: str | None = None
    setup: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    extra: tuple[tuple[str, str | Literal[True]], ...] = ()

    def __post_init__(self) -> None:
        problems = [words for name, check in _CHECKS.items() if (words := self._check(name, check))]
        if self.mem is not None and self.mem_per_cpu is not None:
            problems.append('mem and mem_per_cpu exclude each other: set one of them to None')
        if problems:
            raise ConfigError('invalid resources: ' + '; '.join(problems))

    def _check(self, name: str, check: Callable[[object], object]) -> str:
        """Bring a field into its normal form; return what is wrong with it, '' for nothing."""
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, _DEFAULTS[name] if value is None else check(value))
        except ConfigError as error:
            return f'{name}: {error}'
        return ''

    def sbatch_options(self) -> tuple[tuple[str, str | None], ...]:
        """Return sbatch's options: (long name without dashes, value or None for a flag).

        Their order is always the same. What this library does itself is not among them: arrays,
        array_parallelism, setup, env.
        """
        given: list[tuple[str, Any]] = [
            (_long_name(name), getattr(self, name)) for name in _OPTION_FIELDS
        ]
        given = [('no-requeue', True) if item == ('requeue', False) else item for item in given]
        given += self.extra
        return tuple(
            (name, None if value is True else str(value))
            for name, value in given
            if value is not None
        )


def merge(base: Resources | None, options: ResourceOptions) -> Resources:
    """Return ``base`` with ``options`` on top.

    Args:
        base: What an earlier with_resources has set; None: nothing.
        options: What changes. None unsets a field; ``env`` and ``extra`` are merged key by key, and
            None unsets a key. ``setup`` is replaced.

    Raises:
        ConfigError: A field that does not exist, or a value that :class:`Resources` refuses.
    """
    unknown = [_unknown_field(name) for name in options if name not in _FIELDS]
    if unknown:
        raise ConfigError('invalid resources: ' + '; '.join(unknown))
    changes: dict[str, Any] = dict(options)
    for name, items in (('env', pairs), ('extra', _named_options)):
        if base is not None and changes.get(name) is not None:
            changes[name] = _merge_keys(name, getattr(base, name), items, changes[name])
    return Resources(**changes) if base is None else replace(base, **changes)


def _merge_keys(
    field: str,
    base: tuple[tuple[str, Any], ...],
    items: Callable[[object], list[tuple[str, Any]]],
    changes: object,
) -> dict[str, Any]:
    """Return the pairs of ``base`` with ``changes`` on top."""
    try:
        return {**dict(base), **dict(items(changes))}
    except ConfigError as error:
        raise ConfigError(f'invalid resources: {field}: {error}') from None


def _unknown_field(name: object) -> str:
    """Return the words for a field that Resources does not have."""
    option = str(name).replace('_', '-')
    if option in OPTION_KINDS:
        return f'unknown resource {name!r}: write extra={{{option!r}: ...}}'
    advice = (
        (f': did you mean {_ELSEWHERE[option]!r}?' if option in _ELSEWHERE else '')
        or did_you_mean(str(name), _FIELDS)
        or f': another option of sbatch goes into extra={{{option!r}: ...}}'
    )
    return f'unknown resource {name!r}{advice}'


def _node_count(value: object) -> str:
    """Return a number of nodes or a range of it, as sbatch spells it."""
    if isinstance(value, str):
        if not _NODES.fullmatch(value):
            raise ConfigError(f"got {shown(value)}; write 2, '2' or '2-4'")
        return value
    return str(at_least(1)(value))


def _gpu_count(value: object) -> str:
    """Return a number of GPUs, or 'type:number', as sbatch spells it."""
    return text(value) if isinstance(value, str) else str(at_least(0)(value))


def _exclusive(value: object) -> object:
    """Return True or Slurm's word for it; False is the same as not asking."""
    if value is not True and value is not False and value not in ('user', 'mcs', 'topo'):
        raise ConfigError(f"got {shown(value)}; write True, 'user', 'mcs' or 'topo'")
    return value or None


def _arrays(value: object) -> object:
    """Return 'auto' or False."""
    if value is not False and value != 'auto':
        raise ConfigError(f"got {shown(value)}; write 'auto' or False")
    return value


def _extra(value: object) -> tuple[tuple[str, str | Literal[True]], ...]:
    """Return other options of sbatch as pairs, sorted by name, without the False and None."""
    given = [(name, _extra_value(name, word)) for name, word in _named_options(value)]
    return tuple(sorted((name, word) for name, word in given if word is not None))


def _named_options(value: object) -> list[tuple[str, Any]]:
    """Return the items of ``extra`` under their names for sbatch."""
    items = [(_extra_name(name), word) for name, word in pairs(value)]
    names = [name for name, _ in items]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(
            f'given twice, with dashes and with underscores: {", ".join(sorted(twice))}'
        )
    return items


def _extra_name(name: object) -> str:
    """Return a long option's name, with dashes; refuse what slurm_futures or a field decides."""
    if not isinstance(name, str):
        raise ConfigError(f'got the name {shown(name)}; write a string')
    if name.startswith('-'):
        raise ConfigError(
            f'{shown(name)}: write the name without leading dashes, {name.lstrip("-")!r}'
        )
    option = name.replace('_', '-')
    if not _OPTION_NAME.fullmatch(option):
        raise ConfigError(f'{shown(name)} is not the long name of an sbatch option')
    for owned, instead in _OWNED.items():
        # sbatch would take 'arr' for --array.
        if option == owned or (option not in OPTION_KINDS and owned.startswith(option)):
            raise ConfigError(f'{shown(name)} does not belong here: {instead}')
    return option


def _extra_value(name: str, value: object) -> str | Literal[True] | None:
    """Return an option's value as text, True for a flag, None for one that is not set."""
    if value is None or value is False:
        return None
    kind = OPTION_KINDS.get(name)
    if value is True:
        if kind == 'value':
            raise ConfigError(f'{name} needs a value')
        return True
    if kind == 'flag':
        raise ConfigError(f'{name} takes no value: write True')
    if isinstance(value, (str, int)):
        return '' if value == '' else text(str(value))
    raise ConfigError(f'{name}: got {shown(value)}; write a string, a whole number or True')


def _long_name(field: str) -> str:
    return field.replace('_', '-')


_FIELDS = tuple(item.name for item in fields(Resources))
_OURS = ('array_parallelism', 'arrays', 'setup', 'env', 'extra')
_OPTION_FIELDS = tuple(name for name in _FIELDS if name not in _OURS)
_DEFAULTS = {item.name: item.default for item in fields(Resources)}

_CHECKS: Mapping[str, Callable[[object], object]] = {
    **dict.fromkeys(_OPTION_FIELDS, text),
    **dict.fromkeys(
        ('ntasks', 'ntasks_per_node', 'cpus_per_task', 'array_parallelism'), at_least(1)
    ),
    'time': time_limit,
    'nodes': _node_count,
    'mem': memory,
    'mem_per_cpu': memory,
    'gpus': _gpu_count,
    'exclusive': _exclusive,
    'requeue': yes_or_no,
    'arrays': _arrays,
    'setup': shell_lines,
    'env': environment,
    'extra': _extra,
}

_ELSEWHERE = {
    'cores': 'cpus_per_task',
    'cpus': 'cpus_per_task',
    'memory': 'mem',
    'name': 'job_name',
    'ncpus': 'cpus_per_task',
    'queue': 'partition',
    'timeout': 'time',
    'walltime': 'time',
}
"""What other libraries and queues call these fields."""

_OUTPUT_IS_READ = "sbatch's own output is read by slurm_futures"
_OWNED: Mapping[str, str] = {
    **{_long_name(name): f'use {name}=' for name in _OPTION_FIELDS},
    'no-requeue': 'use requeue=False',
    'tasks-per-node': 'use ntasks_per_node=',
    'cluster': 'use clusters=',
    'array': 'map() and submit() make the arrays; see array_parallelism= and arrays=',
    'output': "the future's stdout() finds it",
    'error': "the future's stderr() finds it",
    'input': 'pass the data to the function',
    'chdir': 'use with_options(cwd=)',
    'export': 'use env=',
    'export-file': 'use env=',
    'get-user-env': 'jobs have the environment of a login shell; use env= or setup=',
    'wrap': 'submit() the command as a script',
    'wait': "the future's result() waits",
    'test-only': 'nothing would be submitted',
    'kill-on-invalid-dep': "it is always 'yes'",
    **dict.fromkeys(('parsable', 'quiet', 'verbose', 'help', 'usage', 'version'), _OUTPUT_IS_READ),
}
