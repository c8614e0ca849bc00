"""Asks a cluster's control server, which runs as root, to play faults.

control = Control(Path('/var/lib/slurm_futures-cluster'))
control.signal('slurmctld', signal.SIGSTOP)
control.kill('slurmd', 'n2')
control.restore()
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from cluster.layout import ClusterError, Layout, Settings

# Above what any verb may take: restore() starts every daemon anew in the worst case.
ANSWER_PATIENCE_S = 300.0


class Control:
    """Faults for one cluster, and their undoing.

    Daemons are 'munged', 'mariadb', 'slurmdbd', 'slurmctld' and, with the name of its node,
    'slurmd'. Every method returns when its effect is there, and raises ClusterError with the
    server's words when it cannot be had.

    Args:
        root: the cluster's root folder.
    """

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)

    @property
    def settings(self) -> Settings:
        """Size, ports and parameters that the cluster was brought up with."""
        return self._layout.load()

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF must point to."""
        return self._layout.slurm_conf

    def reachable(self) -> bool:
        """Whether the control server answers."""
        try:
            return bool(self._ask('ping') == 'pong')
        except ClusterError:
            return False

    def alive(self, daemon: str, node: str | None = None) -> bool:
        """Whether the daemon's process exists, stopped or not."""
        return bool(self._ask('alive', daemon=_name(daemon, node)))

    def signal(self, daemon: str, number: int, node: str | None = None) -> None:
        """Send the daemon a signal."""
        self._ask('signal', daemon=_name(daemon, node), number=int(number))

    def kill(self, daemon: str, node: str | None = None) -> None:
        """Send the daemon SIGKILL and wait for its end; the jobs it started live on."""
        self._ask('kill', daemon=_name(daemon, node))

    def start(self, daemon: str, node: str | None = None) -> None:
        """Start the daemon and wait until it serves; nothing happens when it runs."""
        self._ask('start', daemon=_name(daemon, node))

    def scontrol(self, *args: str) -> str:
        """Run scontrol as SlurmUser and return its standard output."""
        return str(self._ask('scontrol', args=args))

    def sacctmgr(self, *args: str) -> str:
        """Run `sacctmgr --immediate` as SlurmUser and return its standard output."""
        return str(self._ask('sacctmgr', args=args))

    def configure(self, **options: str | int) -> None:
        """Set parameters of slurm.conf and have the daemons read it.

        They hold until restore(). Some parameters, says slurm.conf(5), need a restart too.
        """
        self._ask('configure', options={key: str(value) for key, value in options.items()})

    def restore(self) -> None:
        """Undo all faults: every daemon serves, slurm.conf is as at first, nodes take jobs."""
        self._ask('restore')

    def _ask(self, verb: str, **arguments: Any) -> Any:
        request = json.dumps({'verb': verb, **arguments}).encode() + b'\n'
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(ANSWER_PATIENCE_S)
                connection.connect(str(self._layout.control_socket))
                connection.sendall(request)
                answer = json.loads(connection.makefile('rb').readline() or b'{}')
        except OSError as error:
            words = f'no control server at {self._layout.control_socket}: {error}'
            raise ClusterError(words) from error
        if 'result' not in answer:
            raise ClusterError(answer.get('error', f'{verb}: the control server gave no answer'))
        return answer['result']


def _name(daemon: str, node: str | None) -> str:
    return daemon if node is None else f'{daemon}.{node}'
