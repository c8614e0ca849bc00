"""The control server: a few named faults, played as root for one ordinary user."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any

from cluster import configs
from cluster.daemons import Commands, Daemon, all_daemons
from cluster.layout import ClusterError, Layout, Settings
from cluster.processes import eventually

NODES_PATIENCE_S = 60.0


def serve(layout: Layout) -> None:
    """Answer requests until killed; `up` starts this, `down` ends it."""
    settings = layout.load()
    account = pwd.getpwnam(settings.user)
    layout.control_socket.unlink(missing_ok=True)
    server = _Server(str(layout.control_socket), _Handler, bind_and_activate=False)
    server.faults = Faults(layout, settings)
    server.allowed = {0, account.pw_uid}
    server.server_bind()
    os.chown(layout.control_socket, 0, account.pw_gid)
    layout.control_socket.chmod(0o660)
    server.server_activate()
    server.serve_forever()


class Faults:
    """The verbs, each a public method of the same name.

    Args:
        layout: the cluster's files.
        settings: what it was brought up with.
    """

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self._layout = layout
        self._settings = settings
        self._daemons = {daemon.name: daemon for daemon in all_daemons(layout, settings)}
        self._commands = Commands(layout, patience=60)
        self._overrides: dict[str, str] = {}
        self._configuring = threading.Lock()

    def verbs(self) -> dict[str, Callable[..., Any]]:
        """What a client may ask for; nothing else is reachable."""
        return {
            'ping': lambda: 'pong',
            'alive': self.alive,
            'signal': self.signal,
            'kill': self.kill,
            'start': self.start,
            'scontrol': self.scontrol,
            'sacctmgr': self.sacctmgr,
            'configure': self.configure,
            'restore': self.restore,
        }

    def alive(self, daemon: str) -> bool:
        """Whether the daemon's process exists."""
        return self._daemon(daemon).process() is not None

    def signal(self, daemon: str, number: int) -> None:
        """Send a signal to a living daemon."""
        process = self._daemon(daemon).process()
        if process is None:
            raise ClusterError(f'{daemon} is not running')
        process.signal(number)

    def kill(self, daemon: str) -> None:
        """End a daemon by SIGKILL; one that is dead already stays so."""
        if process := self._daemon(daemon).process():
            process.kill()

    def start(self, daemon: str) -> None:
        """Start a daemon and wait until it serves."""
        self._daemon(daemon).start()

    def scontrol(self, args: list[str]) -> str:
        """Run scontrol as SlurmUser."""
        return self._commands.check('scontrol', *args, user='slurm')

    def sacctmgr(self, args: list[str]) -> str:
        """Run sacctmgr as SlurmUser, without questions."""
        return self._commands.check('sacctmgr', '--immediate', *args, user='slurm')

    def configure(self, options: dict[str, str]) -> None:
        """Add parameters to slurm.conf until restore()."""
        with self._configuring:
            self._overrides |= options
            self._reconfigure()

    def restore(self) -> None:
        """Undo all faults."""
        for daemon in self._daemons.values():
            if process := daemon.process():
                process.signal(signal.SIGCONT)
        for daemon in self._daemons.values():
            if daemon.process() is None:
                daemon.start()
        with self._configuring:
            self._overrides.clear()
            self._reconfigure()
        self._resume_nodes()

    def _daemon(self, name: str) -> Daemon:
        try:
            return self._daemons[name]
        except KeyError:
            raise ClusterError(f'no daemon {name!r}, only {", ".join(self._daemons)}') from None

    def _reconfigure(self) -> None:
        text = configs.slurm_conf(
            self._layout, self._settings, socket.gethostname(), self._overrides
        )
        scratch = self._layout.slurm_conf.with_suffix('.tmp')
        scratch.write_text(text)
        scratch.replace(self._layout.slurm_conf)
        self.scontrol(['reconfigure'])

    def _resume_nodes(self) -> None:
        """Take back what a test, or a dead slurmd, did to the nodes' states."""
        nodes = set(self._settings.node_names)
        for node in nodes - self._commands.usable_nodes():
            # The controller refuses to resume a node that has recovered by itself meanwhile.
            self._commands.run(
                'scontrol', 'update', f'nodename={node}', 'state=resume', user='slurm'
            )
        if not eventually(lambda: self._commands.usable_nodes() == nodes, NODES_PATIENCE_S):
            rows = self._commands.output('sinfo', '-N', '-l')
            raise ClusterError(f'not all nodes came back:\n{rows}')


class _Server(socketserver.ThreadingUnixStreamServer):
    """One thread a request: SIGCONT must get through while another request waits."""

    daemon_threads = True
    faults: Faults
    allowed: set[int]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the kernel says that the peer is root or the test user."""
        size = struct.calcsize('3i')
        peer = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return struct.unpack('3i', peer)[1] in self.allowed


class _Handler(socketserver.StreamRequestHandler):
    """One request and its answer, each a line of JSON."""

    server: _Server

    def handle(self) -> None:
        """Do what the request names."""
        answer = _answer(self.server.faults, self.rfile.readline())
        self.wfile.write(json.dumps(answer).encode() + b'\n')


def _answer(faults: Faults, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        verb = faults.verbs()[request.pop('verb')]
        return {'result': verb(**request)}
    except ClusterError as error:
        return {'error': str(error)}
    except Exception as error:  # the client shows it; the server must answer the next request
        return {'error': f'{type(error).__name__}: {error}'}
