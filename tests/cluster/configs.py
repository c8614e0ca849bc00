"""The daemons' configuration files as text: no I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cluster.layout import Layout, Settings

NOTHING: Mapping[str, str] = MappingProxyType({})
CLUSTER_NAME = 'sftest'


def slurm_conf(
    layout: Layout, settings: Settings, host: str, overrides: Mapping[str, str] = NOTHING
) -> str:
    """Text of slurm.conf.

    Args:
        layout: where the files lie.
        settings: the cluster's size, ports and parameters.
        host: name of the machine that all daemons run on; the part before a dot counts.
        overrides: parameters that go before those of the settings.
    """
    host = host.partition('.')[0]
    parameters = _parameters(layout, settings, host)
    if settings.accounting:
        parameters |= _accounting(layout, settings)
    parameters |= settings.options
    parameters |= overrides
    lines = [f'{key}={value}' for key, value in parameters.items()]
    return '\n'.join([*lines, *_nodes(settings, host), *_partitions(settings)]) + '\n'


def _parameters(layout: Layout, settings: Settings, host: str) -> dict[str, str]:
    return {
        'ClusterName': CLUSTER_NAME,
        'SlurmctldHost': f'{host}(127.0.0.1)',
        'SlurmctldPort': str(settings.port),
        'SlurmUser': 'slurm',
        'AuthType': 'auth/munge',
        'AuthInfo': f'socket={layout.munge_socket}',
        'StateSaveLocation': str(layout.state),
        'SlurmdSpoolDir': f'{layout.spool}/%n',
        'SlurmctldPidFile': f'{layout.state}/slurmctld.pid',
        'SlurmdPidFile': f'{layout.spool}/%n.pid',
        # slurmctld writes to stderr, which is its log file; slurmstepd needs to be told a file.
        'SlurmdLogFile': f'{layout.logs}/slurmd.%n.log',
        # Cgroups are not to be had in every container.
        'ProctrackType': 'proctrack/linuxproc',
        'TaskPlugin': 'task/none',
        'JobAcctGatherType': 'jobacct_gather/none',
        # The nodes claim more CPUs than the machine has.
        'SlurmdParameters': 'config_overrides',
        'SelectType': 'select/cons_tres',
        'SelectTypeParameters': 'CR_CPU_Memory',
        'DefMemPerCPU': '100',
        'GresTypes': 'gpu',
        'ReturnToService': '2',
        'SchedulerParameters': 'batch_sched_delay=0,sched_interval=1,bf_interval=1,'
        'sched_min_interval=0',
        'MaxJobCount': '50000',
        'JobRequeue': '1',
        'KillWait': '5',
        'MpiDefault': 'none',
        'MailProg': '/bin/true',
    }


def _accounting(layout: Layout, settings: Settings) -> dict[str, str]:
    return {
        'AccountingStorageType': 'accounting_storage/slurmdbd',
        'AccountingStorageHost': '127.0.0.1',
        'AccountingStoragePort': str(settings.dbd_port),
        # Connections to slurmdbd take munged's socket from here, not from AuthInfo.
        'AccountingStoragePass': str(layout.munge_socket),
        'AccountingStorageEnforce': 'associations,limits',
        'AccountingStorageTRES': 'gres/gpu',
    }


def _nodes(settings: Settings, host: str) -> list[str]:
    return [
        f'NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1'
        f' Port={settings.node_port(node)} CPUs={settings.cpus}'
        f' RealMemory={settings.memory} Gres=gpu:2'
        for node in settings.node_names
    ]


def _partitions(settings: Settings) -> list[str]:
    nodes = f'n[1-{settings.nodes}]'
    return [
        f'PartitionName=cpu Nodes={nodes} Default=YES State=UP',
        f'PartitionName=short Nodes={nodes} MaxTime=2 State=UP',
        # Jobs can be submitted here and stay pending.
        f'PartitionName=down Nodes={nodes} State=DOWN',
    ]


def gres_conf(layout: Layout) -> str:
    """Text of gres.conf: two GPUs a node, for which Slurm wants files, not necessarily devices."""
    return f'AutoDetect=off\nName=gpu File={layout.gpus}/gpu[0-1]\n'


def cgroup_conf(layout: Layout) -> str:
    """Text of cgroup.conf.

    Slurm 22.05 looks for a cgroup version even where no plugin uses cgroups, and slurmd gives up
    where none is mounted, or where version 2 comes without systemd. Version 1 by name asks
    nothing of the system.
    """
    return f'CgroupPlugin=cgroup/v1\nCgroupMountpoint={layout.root}/cgroup\n'


def slurmdbd_conf(layout: Layout, settings: Settings, host: str) -> str:
    """Text of slurmdbd.conf."""
    parameters = {
        'DbdHost': host.partition('.')[0],
        'DbdAddr': '127.0.0.1',
        'DbdPort': str(settings.dbd_port),
        'SlurmUser': 'slurm',
        'AuthType': 'auth/munge',
        'AuthInfo': f'socket={layout.munge_socket}',
        'StorageType': 'accounting_storage/mysql',
        'StorageHost': 'localhost',
        'StorageUser': 'slurm',
        'StorageLoc': 'slurm_acct_db',
        'PidFile': f'{layout.state}/slurmdbd.pid',
    }
    return '\n'.join(f'{key}={value}' for key, value in parameters.items()) + '\n'


def mariadb_options(layout: Layout) -> list[str]:
    """Command-line options of the MariaDB server: small, and quick rather than durable."""
    return [
        '--no-defaults',
        f'--datadir={layout.mysql}/data',
        f'--socket={layout.mysql_socket}',
        f'--pid-file={layout.mysql}/mysql.pid',
        '--skip-networking',
        '--innodb-flush-log-at-trx-commit=0',
        '--innodb-buffer-pool-size=128M',
        '--innodb-log-file-size=32M',
        '--innodb-lock-wait-timeout=900',
    ]


def mariadb_grants() -> str:
    """SQL that makes slurmdbd's database; its user proves itself by its uid on the socket."""
    return (
        'CREATE DATABASE slurm_acct_db;'
        'CREATE USER slurm@localhost IDENTIFIED VIA unix_socket;'
        'GRANT ALL ON slurm_acct_db.* TO slurm@localhost;'
    )
