"""The settings of an executor: their schema, and the one place where pydantic checks them.

What users write (a dict, a TOML table, the keywords of SlurmExecutor) goes through
:func:`load_config`. What comes out are the plain frozen dataclasses below, with nothing of pydantic
in them: the same definitions serve as the schema here and as the settings inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, ValidationError

from slurm_futures.checks import (
    at_least,
    did_you_mean,
    module_names,
    not_negative,
    path,
    positive,
    shell_lines,
    shown,
    text,
)
from slurm_futures.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

__all__ = [
    'ExecutorConfig',
    'LocalConfig',
    'QueueSystemConfig',
    'SSHConfig',
    'SlurmConfig',
    'load_config',
]

_T = TypeVar('_T')

# Instances are checked again by load_config: a dataclass's own constructor checks no types.
_STRICT = {'extra': 'forbid', 'revalidate_instances': 'always'}

_Text = Annotated[str, BeforeValidator(text)]
_Path = Annotated[str, BeforeValidator(path)]
_Seconds = Annotated[float, BeforeValidator(positive)]
_Grace = Annotated[float, BeforeValidator(not_negative)]
_Count = Annotated[int, BeforeValidator(at_least(1))]

# 'name:port', '[address]:port', or an IPv6 address alone, which has two colons at least.
_HOST = re.compile(
    r'\[(?P<v6>[^\[\]\s@]+)\](:(?P<v6port>[0-9]+))?'
    r'|(?P<bare>[^\[\]\s@:]*(:[^\[\]\s@:]*){2,})'
    r'|(?P<name>[^\[\]\s@:]+)(:(?P<port>[0-9]+))?'
)
_LAST_PORT = 65535


@dataclass(frozen=True)
class SSHConfig:
    """How to reach one host: the login node, or a gateway on the way to it.

    Attributes:
        host: Name, address or ~/.ssh/config alias. May be written 'user@host:port' ('user@[::1]:22'
            for IPv6); the parts are then found in ``user`` and ``port``.
        gateway: The host to go through; it may have a gateway itself.
        port: TCP port; None: as ~/.ssh/config says, else 22.
        user: Login name there; None: as ~/.ssh/config says, else the local one.
        identity_file: Private key to offer; None: as ~/.ssh/config says, and the agent's keys.
        known_hosts: File of host keys; None: ~/.ssh/known_hosts.
        connect_timeout: Seconds to wait for the TCP connection and the greeting.
        host_keys: 'strict' refuses hosts that are not in known_hosts, 'accept-new' adds them. A
            changed key is refused by both.
        client: 'paramiko', or 'openssh' for the system's ssh command.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT
    host: _Text
    gateway: SSHConfig | None = None
    port: _Count | None = None
    user: _Text | None = None
    identity_file: _Path | None = None
    known_hosts: _Path | None = None
    connect_timeout: _Seconds = 30.0
    host_keys: Literal['strict', 'accept-new'] = 'strict'
    client: Literal['paramiko', 'openssh'] = 'paramiko'

    def __post_init__(self) -> None:
        user, host, port = _split_host(text(self.host))
        object.__setattr__(self, 'host', host)
        object.__setattr__(self, 'user', _one_of('user', user, self.user))
        object.__setattr__(self, 'port', _one_of('port', port, self.port))
        if self.port is not None and self.port > _LAST_PORT:
            raise ConfigError(f'port {self.port} does not exist: the last one is {_LAST_PORT}')
        _refuse_leading_dash(host=self.host, user=self.user)


@dataclass(frozen=True)
class SlurmConfig:
    """Slurm's commands, and how often to ask it.

    Attributes:
        sbatch_bin: Name or path of sbatch on the login node; likewise the other four.
        squeue_bin: See sbatch_bin.
        scancel_bin: See sbatch_bin.
        sacct_bin: See sbatch_bin. It need not exist, and accounting need not be on.
        scontrol_bin: See sbatch_bin.
        polling_interval: Seconds between two squeue calls while jobs are pending or running.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT
    sbatch_bin: _Path = 'sbatch'
    squeue_bin: _Path = 'squeue'
    scancel_bin: _Path = 'scancel'
    sacct_bin: _Path = 'sacct'
    scontrol_bin: _Path = 'scontrol'
    polling_interval: _Seconds = 10.0


@dataclass(frozen=True)
class LocalConfig:
    """The embedded queue, for machines without Slurm.

    Attributes:
        max_jobs: Jobs that run at the same time; None: as many as there are CPUs.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT
    max_jobs: _Count | None = None


@dataclass(frozen=True)
class QueueSystemConfig:
    """Which queue runs the jobs: exactly one of the fields is set."""

    __pydantic_config__: ClassVar[Any] = _STRICT
    slurm: SlurmConfig | None = None
    local: LocalConfig | None = None

    def __post_init__(self) -> None:
        if self.slurm is None and self.local is None:
            raise ConfigError("no queue system: write {'slurm': {}} or {'local': {}}")
        if self.slurm is not None and self.local is not None:
            raise ConfigError("two queue systems, 'slurm' and 'local': keep one")


@dataclass(frozen=True)
class ExecutorConfig:
    """All settings of a SlurmExecutor.

    Made by hand, an instance is checked when it reaches :func:`load_config`.

    Attributes:
        queue_system: Slurm, or the embedded queue.
        ssh: How to reach the login node; None: the client runs on it.
        work_dir: Folder on the cluster for the spool, relative to the home directory there; None:
            '~/slurm_futures'.
        python_cmd: Python to run functions with on the cluster; None: the client's own when local,
            else 'python3'.
        setup: Shell lines to run before the agent and in every job, as one string or a list.
        ship_modules: Modules and folders of modules that travel with the calls, besides the user's
            own, which are found automatically; (): nothing travels.
        login_workers: Functions that run on the login node at the same time.
        grace_period: Seconds to wait, after the queue says that a job has ended, for its outcome
            to appear on a slow file system; None: 90 with Slurm, 1 with the embedded queue.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT
    queue_system: QueueSystemConfig = field(metadata={'hint': "{'slurm': {}} or {'local': {}}"})
    ssh: SSHConfig | None = None
    work_dir: _Path | None = None
    python_cmd: _Path | None = None
    setup: Annotated[tuple[str, ...], BeforeValidator(shell_lines)] = ()
    ship_modules: Annotated[tuple[str, ...] | None, BeforeValidator(module_names)] = None
    login_workers: _Count = 4
    grace_period: _Grace | None = None


_SECTIONS: Mapping[str, Any] = {
    'gateway': SSHConfig,
    'local': LocalConfig,
    'queue_system': QueueSystemConfig,
    'slurm': SlurmConfig,
    'ssh': SSHConfig,
}


def load_config(source: Mapping[str, Any] | ExecutorConfig) -> ExecutorConfig:
    """Check the settings of an executor.

    Args:
        source: A mapping with the fields of ExecutorConfig, nested mappings for its sections; or an
            instance.

    Raises:
        ConfigError: Something in it cannot work. The message names every such field by its dotted
            path, what was given and what to write instead.
    """
    try:
        return _adapter().validate_python(_as_dict(source))
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors(include_url=False)]
    separator = '\n  ' if len(problems) > 1 else ' '
    raise ConfigError('invalid configuration:' + separator + separator.join(problems))


@cache
def _adapter() -> TypeAdapter[ExecutorConfig]:
    """Build the validator, on first use: TypeAdapter takes 16 ms to import, the schema 30 ms."""
    from pydantic import TypeAdapter

    return TypeAdapter(ExecutorConfig)


def _as_dict(source: Any) -> Any:
    """Turn mappings of any kind, nested ones too, into dicts: pydantic reads nothing else."""
    if isinstance(source, Mapping):
        return {name: _as_dict(value) for name, value in source.items()}
    return source


def _explain(detail: ErrorDetails) -> str:
    """Return one of pydantic's findings as: dotted path, what was given, what to write."""
    *parents, name = [str(part) for part in detail['loc']] or ['']
    section = _section(parents)
    if detail['type'] in ('unexpected_keyword_argument', 'invalid_key'):
        return _at(parents, _unknown_field(name, section))
    return _at([*parents, name], _problem(detail, section, name))


def _section(parents: list[str]) -> Any:
    """Return the dataclass that has the field behind ``parents``."""
    known = [_SECTIONS[part] for part in parents if part in _SECTIONS]
    return known[-1] if known else ExecutorConfig


def _at(where: list[str], words: str) -> str:
    """Put a dotted path in front; the path of the whole is empty."""
    path_text = '.'.join(part for part in where if part)
    return f'{path_text}: {words}' if path_text else words


def _problem(detail: ErrorDetails, section: Any, name: str) -> str:
    """Return what was given for a field and what to write instead."""
    given = f'got {shown(detail["input"])}'
    if detail['type'] == 'value_error':
        return str(detail['ctx']['error'])
    if detail['type'] == 'missing':
        return f'required{_hint(section, name)}'
    if detail['type'] == 'dataclass_type':
        fallback = f': write a mapping of {_names(_SECTIONS.get(name, ExecutorConfig))}'
        return given + (_hint(section, name) or fallback)
    return f'{given}; {detail["msg"].replace("Input should", "it must")}'


def _unknown_field(name: str, section: Any) -> str:
    """Return the words for an unknown field, without its value, which might be a password."""
    known = [item.name for item in fields(section)]
    advice = did_you_mean(name, known) or f': the fields here are {_names(section)}'
    return f'unknown field {name!r}{advice}'


def _names(section: Any) -> str:
    """Return the names of a section's fields, for a message."""
    return ', '.join(item.name for item in fields(section))


def _hint(section: Any, name: str) -> str:
    """Return ': write ...' where the field has such a hint."""
    hints = [
        item.metadata['hint'] for item in fields(section) if item.name == name and item.metadata
    ]
    return f': write {hints[0]}' if hints else ''


def _split_host(host: str) -> tuple[str | None, str, int | None]:
    """Split 'user@host:port'; what is not there is None. As for ssh, the last '@' counts.

    Raises:
        ConfigError: Not of that form.
    """
    user, at, rest = host.rpartition('@')
    match = _HOST.fullmatch(rest)
    if match is None or bool(at) != bool(user):
        raise ConfigError(
            f"host {shown(host)}: write 'user@host', 'user@host:port' or 'user@[address]:port'"
        )
    port = match['v6port'] or match['port']
    return user or None, match['v6'] or match['bare'] or match['name'], int(port) if port else None


def _one_of(name: str, in_host: _T | None, given: _T | None) -> _T | None:
    """Return what is known of ``name``, from the host's text or from the field of its own.

    Raises:
        ConfigError: The two differ.
    """
    if in_host is not None and given is not None and in_host != given:
        raise ConfigError(f'host says {name} {in_host!r}, {name} says {given!r}: keep one')
    return given if in_host is None else in_host


def _refuse_leading_dash(**words: str | None) -> None:
    """Refuse names that the ssh command would take for an option.

    Raises:
        ConfigError: One of them starts with '-'.
    """
    for name, word in words.items():
        if word is not None and word.startswith('-'):
            raise ConfigError(f"{name} {shown(word)} must not start with '-'")
