"""What has to be there before calls can be sent: an agent, their Python, the user's modules.

A snapshot of modules is shipped once per content and line to an agent: the agent is asked which
files it lacks, and sent these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from slurm_futures.batching import Target
from slurm_futures.connection import Connection
from slurm_futures.errors import ConnectionFailed, PythonVersionMismatch, RemoteError
from slurm_futures.snapshot import Snapshot

Action = Callable[['BaseException | None'], None]


class Prerequisites:
    """Has what calls need put in place, and lets them wait for it.

    Args:
        connection: to the agent.
        python_cmd: the interpreter for calls that name none.

    Attributes:
        held: what waits, and for what.
    """

    def __init__(self, connection: Connection, python_cmd: str) -> None:
        self._connection = connection
        self._python_cmd = python_cmd
        self._is_connected = False
        self._versions: dict[str, str | None] = {}
        self._shipped: dict[str, bool] = {}
        self.held: list[tuple[Target | None, Action]] = []

    def when_met(self, target: Target | None, action: Action) -> None:
        """Call ``action`` once everything is there that it needs.

        Args:
            target: where functions are to run; None: an agent is enough.
            action: what to do; called with None, or with the reason why it cannot be done.
        """
        if not self._is_connected:
            self._connection.open()
        if not self._is_connected or (target is not None and self._has_to_wait(target)):
            self.held.append((target, action))
        else:
            action(None if target is None else self._mismatch(target.python_cmd or ''))

    def on_hello(self, python: str) -> None:
        """Take note of a new agent, whose Python is of this version."""
        self._is_connected = True
        self._versions[''] = python
        # What has been sent may have been lost; a request under way is sent to this agent again.
        self._shipped = {digest: False for digest, done in self._shipped.items() if not done}
        self._release()

    def fail(self, error: BaseException) -> None:
        """Let nothing wait any longer: there will be no agent."""
        held, self.held = self.held, []
        for _, action in held:
            action(error)

    def _release(self) -> None:
        held, self.held = self.held, []
        for target, action in held:
            self.when_met(target, action)

    def _has_to_wait(self, target: Target) -> bool:
        """Return whether something is not there yet; what it is has been asked for then."""
        python_cmd, modules = target.python_cmd or '', target.modules
        if python_cmd not in self._versions:
            self._ask_version(python_cmd)
        if self._versions[python_cmd] is None:
            return True
        if modules is None or self._mismatch(python_cmd):
            return False
        if modules.digest not in self._shipped:
            self._ship(modules)
        return not self._shipped[modules.digest]

    # ---- the interpreter

    def _ask_version(self, python_cmd: str) -> None:
        self._versions[python_cmd] = None

        def on_version(reply: Mapping[str, Any], _body: bytes) -> None:
            words = reply.get('version') or reply.get('error') or reply['stderr']
            self._versions[python_cmd] = words
            self._release()

        self._connection.request({'do': 'python', 'python': python_cmd}, b'', on_version)

    def _mismatch(self, python_cmd: str) -> BaseException | None:
        ours = '.'.join(map(str, sys.version_info[:3]))
        theirs = self._versions[python_cmd] or ''
        where = python_cmd or self._python_cmd
        if not theirs[:1].isdigit():
            return ConnectionFailed(f'{where} does not run on the login node: {theirs.strip()}')
        if theirs.split('.')[:2] == ours.split('.')[:2]:
            return None
        return PythonVersionMismatch(
            f'functions cannot travel between Python {ours} here and Python {theirs} at {where}: '
            f'set python_cmd to a Python {".".join(ours.split(".")[:2])} there '
            '(scripts and commands need no matching version)',
            client=ours,
            remote=theirs,
        )

    # ---- the modules

    def _ship(self, modules: Snapshot) -> None:
        self._shipped[modules.digest] = False
        sizes = {name: len(content) for name, content in modules.files.items()}
        header = {'do': 'lacking', 'modules': modules.digest, 'sizes': sizes}

        def on_lacking(reply: Mapping[str, Any], _body: bytes) -> None:
            if reply.get('names'):
                self._send(modules, reply['names'])
            else:
                self._on_put(modules, reply)

        self._connection.request(header, b'', on_lacking)

    def _send(self, modules: Snapshot, names: list[str]) -> None:
        header = {
            'do': 'put',
            'modules': modules.digest,
            'sizes': {name: len(modules.files[name]) for name in names},
            'programs': [name for name in names if name in modules.programs],
        }
        body = b''.join(modules.files[name] for name in names)
        self._connection.request(header, body, lambda reply, _: self._on_put(modules, reply))

    def _on_put(self, modules: Snapshot, reply: Mapping[str, Any]) -> None:
        if 'error' not in reply:
            self._shipped[modules.digest] = True
            self._release()
            return
        del self._shipped[modules.digest]  # the next call tries again
        error = f'your modules cannot be written on the login node: {reply["error"]}'
        held, self.held = self.held, []
        for target, action in held:
            if target is not None and target.modules == modules:
                action(RemoteError(error))
            else:
                self.held.append((target, action))
