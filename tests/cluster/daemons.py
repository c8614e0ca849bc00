"""The daemons of a cluster: how each is started, when it is ready, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from cluster import configs
from cluster.layout import ROOT_VARIABLE, ClusterError, Layout, Settings
from cluster.processes import Process, descendants, environment, eventually, listening, running

START_PATIENCE_S = 30.0
END_PATIENCE_S = 15.0
TAIL_LINES = 25


@dataclasses.dataclass(frozen=True)
class Daemon:
    """One long-running process of a cluster.

    Attributes:
        name: 'munged', 'mariadb', 'slurmdbd', 'slurmctld', or 'slurmd.n1' for a node's.
        argv: command line that keeps it in the foreground.
        user: whom it runs as.
        ready: whether it serves.
        layout: the cluster's files.
    """

    name: str
    argv: list[str]
    user: str
    ready: Callable[[], bool]
    layout: Layout

    @property
    def log(self) -> Path:
        """Where its standard output and error go."""
        return self.layout.logs / f'{self.name}.out'

    @property
    def pid_file(self) -> Path:
        """Names the process while it runs."""
        return self.layout.pids / f'{self.name}.pid'

    def process(self) -> Process | None:
        """The process, if it runs."""
        return Process.read(self.pid_file)

    def start(self) -> None:
        """Start it and wait until it serves; one that runs already is left as it is.

        Raises:
            ClusterError: it ended, or does not serve in time; shows the end of its log.
        """
        process = self.process()
        if process is None:
            process = self._spawn()
        if not eventually(lambda: not process.alive() or self.ready(), START_PATIENCE_S):
            raise ClusterError(
                f'{self.name} is not ready after {START_PATIENCE_S:.0f} s\n{self._tail()}'
            )
        if not process.alive():
            raise ClusterError(f'{self.name} ended while starting\n{self._tail()}')

    def _spawn(self) -> Process:
        account = pwd.getpwnam(self.user)
        with self.log.open('ab') as log:
            child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd='/',
                env=self.layout.environment(),
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=os.getgrouplist(self.user, account.pw_gid),
                start_new_session=True,
            )
        process = Process.of(child.pid)
        process.write(self.pid_file)
        # It outlives this program, but should not stay a zombie where it dies first.
        threading.Thread(target=child.wait, daemon=True).start()
        return process

    def _tail(self) -> str:
        """The last lines of its log, for an error message."""
        lines = self.log.read_text(errors='replace').splitlines()[-TAIL_LINES:]
        return '\n'.join([f'--- end of {self.log}:', *lines])


def all_daemons(layout: Layout, settings: Settings) -> list[Daemon]:
    """The cluster's daemons in the order in which they are to start."""
    commands = Commands(layout)
    daemons = [_munged(layout)]
    if settings.accounting:
        daemons += [_mariadb(layout, commands), _slurmdbd(layout, settings, commands)]
    daemons.append(_slurmctld(layout, settings, commands))
    return daemons + [_slurmd(layout, settings, node, commands) for node in settings.node_names]


def _munged(layout: Layout) -> Daemon:
    folder, socket = layout.munge, layout.munge_socket
    argv = [
        *('munged', '--foreground', f'--socket={socket}', f'--key-file={folder}/key'),
        *(f'--pid-file={folder}/munged.pid', f'--seed-file={folder}/seed'),
        f'--log-file={folder}/munged.log',
    ]
    return Daemon('munged', argv, 'munge', socket.exists, layout)


def _mariadb(layout: Layout, commands: Commands) -> Daemon:
    argv = ['mariadbd', *configs.mariadb_options(layout)]
    ping = ['mariadb-admin', '--no-defaults', f'--socket={layout.mysql_socket}', 'ping']
    return Daemon('mariadb', argv, 'mysql', lambda: commands.succeeds(*ping), layout)


def _slurmdbd(layout: Layout, settings: Settings, commands: Commands) -> Daemon:
    def ready() -> bool:
        return listening(settings.dbd_port) and commands.succeeds(
            'sacctmgr', '-n', 'show', 'cluster'
        )

    return Daemon('slurmdbd', ['slurmdbd', '-D'], 'slurm', ready, layout)


def _slurmctld(layout: Layout, settings: Settings, commands: Commands) -> Daemon:
    def ready() -> bool:
        return listening(settings.port) and ' is UP' in commands.output('scontrol', 'ping')

    return Daemon('slurmctld', ['slurmctld', '-D'], 'slurm', ready, layout)


def _slurmd(layout: Layout, settings: Settings, node: str, commands: Commands) -> Daemon:
    def ready() -> bool:
        return listening(settings.node_port(node)) and node in commands.usable_nodes()

    return Daemon(f'slurmd.{node}', ['slurmd', '-D', '-N', node], 'root', ready, layout)


@dataclasses.dataclass(frozen=True)
class Commands:
    """Slurm's own commands, run as the caller on this cluster.

    Attributes:
        layout: the cluster's files.
        patience: seconds after which a command that does not answer counts as failed.
    """

    layout: Layout
    patience: float = 15.0

    def run(self, *argv: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a time-out gives return code 124, as timeout(1) does."""
        try:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors='replace',
                env=self.layout.environment(),
                cwd='/',
                user=user,
                timeout=self.patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            words = f'no answer from {argv[0]} in {self.patience:.0f} s'
            return subprocess.CompletedProcess(argv, 124, '', words)

    def succeeds(self, *argv: str) -> bool:
        """Whether the command's exit status is 0."""
        return self.run(*argv).returncode == 0

    def output(self, *argv: str) -> str:
        """Standard output; empty when the command failed."""
        done = self.run(*argv)
        return done.stdout if done.returncode == 0 else ''

    def check(self, *argv: str, user: str | None = None) -> str:
        """Standard output.

        Raises:
            ClusterError: the command failed; holds its words.
        """
        done = self.run(*argv, user=user)
        if done.returncode:
            words = (done.stderr or done.stdout).strip()
            raise ClusterError(f'{" ".join(argv)}: exit status {done.returncode}: {words}')
        return done.stdout

    def usable_nodes(self) -> set[str]:
        """Nodes on which the controller would start a job now."""
        rows = self.output('sinfo', '-h', '-N', '-p', 'cpu', '-o', '%N %T').splitlines()
        states = dict(row.split() for row in rows)
        return {node for node, state in states.items() if state in {'idle', 'mixed', 'allocated'}}

    def idle_nodes(self) -> set[str]:
        """Nodes without jobs that the controller hears from."""
        rows = self.output('sinfo', '-h', '-N', '-p', 'cpu', '-t', 'idle', '-o', '%N %T')
        return {node for node, state in map(str.split, rows.splitlines()) if state == 'idle'}


def end_all(layout: Layout, daemons: list[Daemon]) -> None:
    """End the daemons, last started first, and what they left running."""
    for daemon in daemons:
        if process := daemon.process():
            process.signal(signal.SIGCONT)
    for daemon in reversed(daemons):
        if process := daemon.process():
            process.end(END_PATIENCE_S)
        daemon.pid_file.unlink(missing_ok=True)
    _end_leftovers(layout)


def _end_leftovers(layout: Layout) -> None:
    """Kill the children of daemons that died by a fault: job steps and their jobs' processes.

    They are known by a variable that only this cluster's daemons were started with.
    """
    mark = f'{ROOT_VARIABLE}={layout.root}'.encode()
    marked = {pid for pid in running() if mark in environment(pid)}
    for pid in marked | descendants(marked):
        with contextlib.suppress(ProcessLookupError):
            Process.of(pid).kill()
