"""A warm worker on the login node: runs functions and commands that the agent hands it.

It takes one call at a time from the agent on stdin and reports on stdout. An outcome is kept until
the client has got it. When the agent goes away, the call under way is finished, and what the
client may not have got goes into the spool, where the next agent finds it. A call is claimed
before it is started, so that it starts at most once however often it is sent.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Dict, List, Optional

from .child import Context, log_sizes
from .processes import process_identity
from .protocol import LARGE, Header, Inbox, encode
from .results import Outcome
from .spool import Spool
from .supervisor import Crew, Signals, wait

LEASE_INTERVAL = 10.0
"""Seconds between two moves of the lease of a call under way."""


RECEIPT_PATIENCE = 5.0
"""Seconds that the client has to confirm an outcome: an agent that is stopped passes nothing on."""


class LoginWorker:
    """Runs calls for one agent."""

    def __init__(
        self, spool: Spool, name: str, sys_path: List[str], modules: Optional[str]
    ) -> None:
        self._spool = spool
        self._agent: Optional[int] = os.dup(0)
        self._answers = os.dup(1)
        logs = [spool.path('logs', f'{name}.{kind}') for kind in ('out', 'err')]
        for descriptor, path in zip((1, 2), logs):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, descriptor)
            os.close(file)
        self._header: Header = {'host': os.uname().nodename, 'pid': os.getpid(), 'logs': logs}
        self._owner = process_identity(os.getpid())
        self._inbox = Inbox()
        self._unconfirmed: Dict[int, Outcome] = {}
        self._unconfirmed_until: Optional[float] = None
        self._lease = 0
        self._lease_at: Optional[float] = None
        self._signals = Signals((signal.SIGTERM, signal.SIGHUP))
        self._crew = Crew(Context(spool, 'login', self._header, sys_path, modules))

    def run(self) -> None:
        """Serve the agent until it is gone and the call under way is finished."""
        self._tell({'event': 'ready', **self._header})
        try:
            while self._agent is not None or self._crew.busy:
                self._wait()
                if signal.SIGTERM in self._signals.read():
                    break
                self._work()
        finally:
            self._crew.close()  # a call must not outlive what would tell of it
            self._post_unconfirmed()

    def _work(self) -> None:
        for outcome in self._crew.outcomes():
            self._on_outcome(outcome)
        self._move_lease()
        if _is_due(self._unconfirmed_until):
            self._post_unconfirmed()

    def _wait(self) -> None:
        agent = [] if self._agent is None else [self._agent]
        times = (self._crew.deadline(), self._lease_at, self._unconfirmed_until)
        until = min((t for t in times if t is not None), default=None)
        sources = [*agent, self._signals.descriptor, *self._crew.descriptors()]
        if self._agent in wait(sources, until) and self._agent is not None:
            data = os.read(self._agent, LARGE)
            if not data:
                self._agent = None
            for command, body in self._inbox.feed(data):
                self._on_command(command, body)

    def _on_command(self, command: Header, body: bytes) -> None:
        call = command['call']
        if command['do'] == 'kill':
            self._crew.kill(call)
            return
        if command['do'] == 'got':
            self._unconfirmed.pop(call, None)
            if not self._unconfirmed:
                self._unconfirmed_until = None
            return
        try:
            owner = self._spool.claim(f'call-{call}', self._owner)
        except OSError as error:  # such as a full disk
            outcome = {'event': 'outcome', 'kind': 'unstartable', 'call': call}
            self._tell(dict(outcome, text=f'the call cannot be claimed: {error}'))
            return
        if owner != self._owner:
            self._tell({'event': 'owned', 'call': call, 'owner': owner})
            return
        if 'body' in command:
            with open(command['body'], 'rb') as file:
                body = file.read()
            os.unlink(command['body'])
        self._lease, self._lease_at = 0, time.monotonic() + LEASE_INTERVAL
        begun = {'event': 'begun', 'call': call, 'at': time.time(), 'log': log_sizes()}
        self._crew.run(command, body)
        self._tell({**begun, **self._header, 'child': self._crew.pid})

    def _on_outcome(self, outcome: Outcome) -> None:
        item, body = outcome
        self._lease_at = None
        if 'file' in item:
            self._spool.deliver(item['file'])
            self._tell({'event': 'delivered', 'call': item['call'], 'file': item['file']})
            return
        self._unconfirmed[item['call']] = outcome
        if self._unconfirmed_until is None:
            self._unconfirmed_until = time.monotonic() + RECEIPT_PATIENCE
        self._tell(item, body)

    def _post_unconfirmed(self) -> None:
        """Put what the client may not have got into the spool; a second copy does no harm."""
        self._unconfirmed_until = None
        for call, (item, body) in list(self._unconfirmed.items()):
            try:
                self._spool.post('login', dict(self._header, items=[item]), [body])
            except OSError as error:  # such as a full disk: perhaps there will be room
                sys.stderr.write(f'cannot keep the outcome of call {call}: {error}\n')
                self._unconfirmed_until = time.monotonic() + RECEIPT_PATIENCE
            else:
                del self._unconfirmed[call]

    def _tell(self, header: Header, body: bytes = b'') -> None:
        """Send a message to the agent, if it is there."""
        data = memoryview(encode(header, body))
        try:
            while data:
                data = data[os.write(self._answers, data) :]
        except BrokenPipeError:
            self._agent = None

    def _move_lease(self) -> None:
        """Show other hosts that the call under way has an owner who is alive."""
        if not _is_due(self._lease_at):
            return
        self._lease += 1
        self._lease_at = time.monotonic() + LEASE_INTERVAL
        try:
            self._spool.write('claims', f'call-{self._crew.call}.lease', [b'%d' % self._lease])
        except OSError as error:  # the call is worth more than the lease
            sys.stderr.write(f'cannot move the lease: {error}\n')


def _is_due(when: Optional[float]) -> bool:
    return when is not None and time.monotonic() >= when


def main(folder: str, name: str, sys_path: List[str], modules: Optional[str]) -> int:
    """Serve the agent on stdin and stdout."""
    LoginWorker(Spool(folder), name, sys_path, modules).run()
    return 0
