"""The configuration: what is taken, what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest

from slurm_futures.config import (
    ExecutorConfig,
    LocalConfig,
    QueueSystemConfig,
    SlurmConfig,
    SSHConfig,
    load_config,
)
from slurm_futures.errors import ConfigError

SLURM: dict[str, Any] = {'queue_system': {'slurm': {}}}


def refusal(source: Any) -> str:
    """Return the words with which the configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert caught.value.__cause__ is None
    return str(caught.value).removeprefix('invalid configuration:').strip()


def test_smallest_configuration_has_the_documented_defaults() -> None:
    """A queue system alone is enough; everything else has its default."""
    config = load_config(SLURM)
    assert config == ExecutorConfig(
        queue_system=QueueSystemConfig(
            slurm=SlurmConfig('sbatch', 'squeue', 'scancel', 'sacct', 'scontrol', 10.0)
        ),
        ssh=None,
        work_dir=None,
        python_cmd=None,
        setup=(),
        ship_modules=None,
        login_workers=4,
        grace_period=None,
    )


def test_full_configuration() -> None:
    """Every field arrives, sections as dataclasses of their own."""
    config = load_config(
        {
            'ssh': {
                'host': 'user01@hpc-login01:2222',
                'gateway': {
                    'host': 'user02@jump',
                    'port': 22,
                    'gateway': {'host': '[fe80::1]:2200', 'client': 'openssh'},
                },
                'identity_file': PurePosixPath('/home/me/.ssh/id'),
                'connect_timeout': 5,
                'host_keys': 'accept-new',
            },
            'queue_system': {'local': {'max_jobs': 2}},
            'work_dir': '/home/user01/work',
            'python_cmd': PurePosixPath('/opt/py/bin/python'),
            'setup': ['module load gcc', 'conda activate x'],
            'ship_modules': ['package.part', PurePosixPath('/opt/modules')],
            'login_workers': 1,
            'grace_period': 0,
        }
    )
    assert config == ExecutorConfig(
        queue_system=QueueSystemConfig(local=LocalConfig(max_jobs=2)),
        ssh=SSHConfig(
            host='hpc-login01',
            user='user01',
            port=2222,
            gateway=SSHConfig(
                host='jump',
                user='user02',
                port=22,
                gateway=SSHConfig(host='fe80::1', port=2200, client='openssh'),
            ),
            identity_file='/home/me/.ssh/id',
            connect_timeout=5.0,
            host_keys='accept-new',
        ),
        work_dir='/home/user01/work',
        python_cmd='/opt/py/bin/python',
        setup=('module load gcc', 'conda activate x'),
        ship_modules=('package.part', '/opt/modules'),
        login_workers=1,
        grace_period=0.0,
    )


def test_loading_is_idempotent() -> None:
    """A loaded configuration loads again to an equal one, IPv6 addresses included."""
    once = load_config({**SLURM, 'ssh': {'host': 'u@[::1]:22'}, 'setup': 'a\nb'})
    assert load_config(once) == once
    assert hash(load_config(once)) == hash(once)


def test_what_comes_out_is_plain() -> None:
    """Inside there are frozen dataclasses of the standard library only, nothing of pydantic."""
    config = load_config({**SLURM, 'ssh': {'host': 'a'}})
    for section in (config, config.queue_system, config.queue_system.slurm, config.ssh):
        assert is_dataclass(section)
        assert type(section).__mro__[1:] == (object,)
        with pytest.raises(AttributeError):
            setattr(section, fields(section)[0].name, None)


def test_any_mapping_is_taken() -> None:
    """Mappings that are no dicts are read like dicts, nested ones too."""
    slurm: MappingProxyType[str, Any] = MappingProxyType({'slurm': MappingProxyType({})})
    proxy = MappingProxyType({'queue_system': slurm})
    assert load_config(proxy) == load_config(SLURM)


def test_a_handmade_instance_is_checked_when_loaded() -> None:
    """The constructors check no types, so load_config checks instances like anything else."""
    handmade = ExecutorConfig(
        queue_system=QueueSystemConfig(slurm=SlurmConfig(polling_interval=-1)),
        login_workers='3',  # type: ignore[arg-type]
    )
    assert refusal(handmade).splitlines() == [
        'queue_system.slurm.polling_interval: got -1; write a number greater than 0',
        "  login_workers: got '3'; write a whole number of at least 1",
    ]


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'work_dirr': 1}, "unknown field 'work_dirr': did you mean 'work_dir'?"),
        (
            {'zzz': 1},
            "unknown field 'zzz': the fields here are queue_system, ssh, work_dir, python_cmd",
        ),
        (
            {'queue_system': {'slurm': {'sbatch_binn': 'x'}}},
            "queue_system.slurm: unknown field 'sbatch_binn': did you mean 'sbatch_bin'?",
        ),
        (
            {'queue_system': {'pbs': {}}},
            "queue_system: unknown field 'pbs': the fields here are slurm, local",
        ),
        (
            {'queue_system': {}},
            "queue_system: no queue system: write {'slurm': {}} or {'local': {}}",
        ),
        (
            {'queue_system': {'slurm': None}},
            "queue_system: no queue system: write {'slurm': {}} or {'local': {}}",
        ),
        (
            {'queue_system': {'slurm': {}, 'local': {}}},
            "queue_system: two queue systems, 'slurm' and 'local': keep one",
        ),
        (
            {'queue_system': 'slurm'},
            "queue_system: got 'slurm': write {'slurm': {}} or {'local': {}}",
        ),
        (
            {'queue_system': {'local': {'max_jobs': 0}}},
            'queue_system.local.max_jobs: got 0; write a whole number of at least 1',
        ),
        (
            {'queue_system': {'slurm': {'polling_interval': float('inf')}}},
            'queue_system.slurm.polling_interval: got inf; write a number greater than 0',
        ),
        (
            {'queue_system': {'slurm': {'sbatch_bin': ''}}},
            "queue_system.slurm.sbatch_bin: got ''; leave it out instead",
        ),
        ({'login_workers': True}, 'login_workers: got True; write a whole number of at least 1'),
        ({'login_workers': 2.0}, 'login_workers: got 2.0; write a whole number of at least 1'),
        ({'grace_period': '90'}, "grace_period: got '90'; write a number of at least 0"),
        ({'grace_period': []}, 'grace_period: got []; write a number of at least 0'),
        ({'grace_period': -1}, 'grace_period: got -1; write a number of at least 0'),
        ({'work_dir': 3}, 'work_dir: got 3; write a string'),
        (
            {'work_dir': '/a\nb'},
            "work_dir: got '/a\\nb'; line breaks and NUL are not possible here",
        ),
        (
            {'setup': 3},
            'setup: got 3; write shell lines, as one string or a list of strings',
        ),
        (
            {'ship_modules': 'package'},
            "ship_modules: got 'package'; write a list of module names and folders",
        ),
        ({'ship_modules': 3}, 'ship_modules: got 3; write a list of module names and folders'),
        ({'ship_modules': ['']}, "ship_modules: got ''; leave it out instead"),
        ({'ship_modules': [3]}, 'ship_modules: got 3; write a string'),
        (
            {'ship_modules': ['my-folder']},
            "ship_modules: got 'my-folder'; write 'package.module', or a folder as './folder'",
        ),
        ({'ssh': {'gateway': {}}}, 'ssh.host: required\n  ssh.gateway.host: required'),
        (
            {'ssh': 'me@host'},
            "ssh: got 'me@host': write a mapping of host, gateway, port, user, identity_file",
        ),
        (
            {'ssh': {'host': 'a', 'gateway': {'host': 'b', 'hosst': 1}}},
            "ssh.gateway: unknown field 'hosst': did you mean 'host'?",
        ),
        (
            {'ssh': {'host': 'a', 'client': 'putty'}},
            "ssh.client: got 'putty'; it must be 'paramiko' or 'openssh'",
        ),
        (
            {'ssh': {'host': 'a', 'host_keys': 'no'}},
            "ssh.host_keys: got 'no'; it must be 'strict' or 'accept-new'",
        ),
        (
            {'ssh': {'host': 'a:22', 'port': 23}},
            'ssh: host says port 22, port says 23: keep one',
        ),
        (
            {'ssh': {'host': 'me@a', 'user': 'you'}},
            "ssh: host says user 'me', user says 'you': keep one",
        ),
        ({'ssh': {'host': 'a:70000'}}, 'ssh: port 70000 does not exist: the last one is 65535'),
        ({'ssh': {'host': '-oProxyCommand=x'}}, "ssh: host '-oProxyCommand=x' must not start with"),
        ({'ssh': {'host': '-x@a'}}, "ssh: user '-x' must not start with '-'"),
        ({'ssh': {'host': 'a b'}}, "ssh: host 'a b': write 'user@host', 'user@host:port' or"),
        ({'ssh': {'host': '@a'}}, "ssh: host '@a': write 'user@host', 'user@host:port' or"),
        ({'ssh': {'host': 'a:b'}}, "ssh: host 'a:b': write 'user@host', 'user@host:port' or"),
    ],
)
def test_refusals_name_the_field_and_the_remedy(changes: dict[str, Any], words: str) -> None:
    """Each refusal names the field by its path, what was given, and what to write instead."""
    assert refusal({**SLURM, **changes}).startswith(words)


def test_all_bad_fields_are_named_at_once() -> None:
    """One error lists every bad field, so that one correction is enough."""
    message = refusal({'ssh': {'host': 3}, 'login_workers': 0, 'polling_interval': 5})
    assert [line.strip().partition(':')[0] for line in message.splitlines()] == [
        'queue_system',
        'ssh.host',
        'login_workers',
        "unknown field 'polling_interval'",
    ]


@pytest.mark.parametrize('source', [None, 3, 'slurm', [], [('queue_system', {})]])
def test_no_mapping_at_all(source: Any) -> None:
    """Anything but a mapping or an ExecutorConfig is refused with the fields named."""
    assert 'write a mapping of queue_system, ssh' in refusal(source)


def test_field_names_must_be_strings() -> None:
    """A key that is no string is an unknown field like others."""
    assert "unknown field '3'" in refusal({**SLURM, 3: 4})


def test_unknown_values_are_not_repeated() -> None:
    """The value of an unknown field may be a password: it is not in the message."""
    message = refusal({**SLURM, 'ssh': {'host': 'a', 'password': 'hunter2'}})
    assert "unknown field 'password'" in message
    assert 'hunter2' not in message


@pytest.mark.parametrize(
    ('text', 'user', 'host', 'port'),
    [
        ('h', None, 'h', None),
        ('u@h', 'u', 'h', None),
        ('u@realm@h:1', 'u@realm', 'h', 1),
        ('::1', None, '::1', None),
        ('u@fe80::1%eth0', 'u', 'fe80::1%eth0', None),
        ('[::1]', None, '::1', None),
        ('u@[::1]:65535', 'u', '::1', 65535),
    ],
)
def test_host_is_split(text: str, user: str | None, host: str, port: int | None) -> None:
    """'user@host:port' comes apart; without a bracket, an IPv6 address has no port."""
    ssh = SSHConfig(host=text)
    assert (ssh.user, ssh.host, ssh.port) == (user, host, port)


@pytest.mark.parametrize('given', ['a\n\n  b', ['a', '', '  b'], ('a\n', '  b'), '\na\n\n  b\n'])
def test_setup_has_one_normal_form(given: Any) -> None:
    """One string or a list of strings: lines, with inner blank lines and indentation kept."""
    assert load_config({**SLURM, 'setup': given}).setup == ('a', '', '  b')


@pytest.mark.parametrize('given', [None, '', [], '\n \n', ['']])
def test_empty_setup(given: Any) -> None:
    """Nothing to run is an empty tuple; None is refused, as it is no list of lines."""
    if given is None:
        assert refusal({**SLURM, 'setup': given}).startswith('setup: got None')
    else:
        assert load_config({**SLURM, 'setup': given}).setup == ()


def test_modules_have_one_normal_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names stay names, folders become absolute; None and () are different things."""
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.chdir('/usr')
    folders = ['./lib', '../tmp/', '~/x', '/a//b', PurePosixPath('share')]
    config = load_config({**SLURM, 'ship_modules': ['a', 'a.b_c', *folders]})
    absolute = ('/usr/lib', '/tmp', '/home/me/x', '/a/b', '/usr/share')
    assert config.ship_modules == ('a', 'a.b_c', *absolute)
    assert load_config(config) == config
    assert load_config({**SLURM, 'ship_modules': None}).ship_modules is None
    assert load_config({**SLURM, 'ship_modules': []}).ship_modules == ()


def test_importing_builds_no_validator() -> None:
    """Importing the configuration imports neither pydantic's models nor TypeAdapter."""
    heavy = ['pydantic.main', 'pydantic.type_adapter', 'pydantic.fields']
    code = f'import sys, slurm_futures.config; print([m for m in {heavy} if m in sys.modules])'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert result.stdout == '[]\n'
