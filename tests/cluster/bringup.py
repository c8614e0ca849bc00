"""Bringing a cluster up, and taking it down."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from cluster import configs
from cluster.client import Control
from cluster.daemons import Commands, Daemon, all_daemons, end_all
from cluster.layout import ClusterError, Layout, Settings
from cluster.processes import Process, eventually

PACKAGES = {
    'slurmctld': 'slurm-wlm',
    'slurmd': 'slurm-wlm',
    'munged': 'munge',
}
ACCOUNTING_PACKAGES = {
    'slurmdbd': 'slurmdbd',
    'mariadbd': 'mariadb-server',
    'mariadb-install-db': 'mariadb-server',
}
READY_PATIENCE_S = 60.0
DRAIN_PATIENCE_S = 15.0


def up(layout: Layout, settings: Settings) -> bool:
    """Bring the cluster up; False when it was up already.

    Raises:
        ClusterError: something is missing, or a daemon did not start.
    """
    _require(settings)
    if layout.settings_file.exists():
        if status(layout)[1]:
            return _keep(layout, settings)
        down(layout)
    ensure_user(settings.user)
    _make_folders(layout, settings)
    try:
        for daemon in all_daemons(layout, settings):
            _prepare(daemon, layout, settings)
            daemon.start()
        commands = Commands(layout)
        _await_nodes(commands, settings)
        _start_control(layout)
    except BaseException:
        down(layout)
        raise
    return True


def _keep(layout: Layout, settings: Settings) -> bool:
    if layout.load() != settings:
        raise ClusterError(
            f'{layout.root} holds a running cluster with other settings: take it down first'
        )
    return False


def _require(settings: Settings) -> None:
    if os.getuid() != 0:
        raise ClusterError('a cluster can be brought up by root only')
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if settings.accounting else {})
    missing = {package for program, package in wanted.items() if not _found(program)}
    if missing:
        raise ClusterError(f'missing: run apt-get install {" ".join(sorted(missing))}')


def _found(program: str) -> bool:
    return shutil.which(program, path='/usr/sbin:/usr/bin:/sbin:/bin') is not None


def ensure_user(name: str) -> None:
    """Create the ordinary user where there is none."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        subprocess.run(['useradd', '--create-home', '--shell', '/bin/bash', name], check=True)


def _make_folders(layout: Layout, settings: Settings) -> None:
    """Start from an empty root folder: no job, id or log of an earlier cluster is left."""
    root = layout.root
    if root.exists() and root.stat().st_uid != 0:
        raise ClusterError(f'{root} belongs to another user')
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for folder, owner in [
        *(
            (root, 'root'),
            (layout.pids, 'root'),
            (layout.logs, 'root'),
            (layout.spool, 'root'),
            (layout.gpus, 'root'),
        ),
        *((layout.munge, 'munge'), (layout.state, 'slurm')),
        *((layout.spool / node, 'root') for node in settings.node_names),
    ]:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        shutil.chown(folder, owner)
    host = socket.gethostname()
    layout.slurm_conf.write_text(configs.slurm_conf(layout, settings, host))
    (root / 'cgroup.conf').write_text(configs.cgroup_conf(layout))
    (root / 'gres.conf').write_text(configs.gres_conf(layout))
    for name in ('gpu0', 'gpu1'):
        (layout.gpus / name).touch()
    _write_private(layout.munge / 'key', secrets.token_bytes(128), 'munge')
    if settings.accounting:
        text = configs.slurmdbd_conf(layout, settings, host)
        _write_private(layout.dbd_conf, text.encode(), 'slurm')
    layout.save(settings)


def _write_private(path: Path, content: bytes, owner: str) -> None:
    path.touch(0o600)
    path.write_bytes(content)
    shutil.chown(path, owner)


def _prepare(daemon: Daemon, layout: Layout, settings: Settings) -> None:
    """Do what must have been done before this daemon starts."""
    if daemon.name == 'mariadb':
        _install_database(layout)
    elif daemon.name == 'slurmdbd':
        client = ['mariadb', '--no-defaults', f'--socket={layout.mysql_socket}', '-e']
        Commands(layout).check(*client, configs.mariadb_grants())
    elif daemon.name == 'slurmctld' and settings.accounting:
        _add_associations(Commands(layout), settings.user)


def _install_database(layout: Layout) -> None:
    layout.mysql.mkdir()
    shutil.chown(layout.mysql, 'mysql')
    options = configs.mariadb_options(layout)
    quick = ['--skip-test-db', '--skip-name-resolve', '--auth-root-authentication-method=socket']
    # mariadb-install-db knows fewer options than the server; these it passes on.
    Commands(layout, patience=120).check(
        'mariadb-install-db', *options[:2], *quick, '--user=mysql', '--auth-root-socket-user=root'
    )


def _add_associations(commands: Commands, user: str) -> None:
    """Make the accounts under which jobs are recorded: `default` and, to choose from, `other`."""
    manager = ['sacctmgr', '--immediate']
    commands.check(*manager, 'add', 'cluster', configs.CLUSTER_NAME)
    commands.check(*manager, 'add', 'account', 'default,other')
    commands.check(*manager, 'add', 'user', user, 'account=default,other', 'defaultaccount=default')


def _await_nodes(commands: Commands, settings: Settings) -> None:
    nodes = set(settings.node_names)
    if not eventually(lambda: commands.idle_nodes() == nodes, READY_PATIENCE_S):
        raise ClusterError('not all nodes are idle:\n' + commands.check('sinfo', '-N', '-l'))


def _start_control(layout: Layout) -> None:
    control_daemon(layout).start()


def control_daemon(layout: Layout) -> Daemon:
    """The server that plays faults for the ordinary user."""
    script = Path(__file__).with_name('cluster.py')
    argv = [sys.executable, '-IB', str(script), 'serve', '--root', str(layout.root)]
    return Daemon('control', argv, 'root', Control(layout.root).reachable, layout)


def down(layout: Layout) -> None:
    """Take the cluster down; logs and settings stay, and a cluster that is down is no error."""
    if not layout.settings_file.exists():
        return
    settings = layout.load()
    if process := control_daemon(layout).process():
        process.end(5)
    layout.control_socket.unlink(missing_ok=True)
    daemons = all_daemons(layout, settings)
    _cancel_jobs(layout, settings)
    end_all(layout, daemons)


def _cancel_jobs(layout: Layout, settings: Settings) -> None:
    """Let Slurm end the jobs, if it still can: a killed slurmd's jobs would live on."""
    commands = Commands(layout, patience=5)
    controller = Process.read(layout.pids / 'slurmctld.pid')
    if controller is None or not commands.succeeds('scontrol', 'ping'):
        return
    commands.run('scancel', '--user', settings.user)
    active = ['squeue', '-h', '-t', 'R,CG,S']
    eventually(lambda: not commands.output(*active), DRAIN_PATIENCE_S)


def status(layout: Layout) -> tuple[list[str], bool]:
    """A line for each daemon, and whether all of them run."""
    daemons = [*all_daemons(layout, layout.load()), control_daemon(layout)]
    found = {daemon.name: daemon.process() for daemon in daemons}
    lines = [f'{name:<12} {f"pid {it.pid}" if it else "not running"}' for name, it in found.items()]
    return lines, all(found.values())
