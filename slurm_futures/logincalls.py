"""Calls and commands on the login node, as the client sees them."""

from __future__ import annotations

import collections
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slurm_futures.connection import Connection
from slurm_futures.errors import CallLost, JobCancelled, RemoteError
from slurm_futures.outcomes import Entry, Ledger, name

AHEAD = 4
"""Calls sent for each worker: enough to hide the line's latency, few enough to cancel."""

ASK_INTERVAL = 10.0
"""Seconds between two questions whether the owner of a call that was cut off still lives."""

LEASE = 60.0
"""Seconds within which an owner on another host moves its lease (see remote.login)."""


@dataclass
class _Flight:
    """A call that has been sent; without ``windowed``, ahead of any number of others."""

    entry: Entry
    request: int
    windowed: bool


@dataclass
class _Orphan:
    """A call that runs, or ran, under a supervisor of an agent that is gone.

    Attributes:
        ask_at: when to ask for its owner.
        lease: of the owner, when it last moved.
        lease_at: when that was; 0: it has not been seen.
        dead_at: since when the owner is known to be dead.
    """

    ask_at: float
    lease: str = ''
    lease_at: float = 0.0
    dead_at: float | None = None


class LoginCalls:
    """Sends calls, at most so many ahead of their workers, and follows them to their ends.

    Args:
        connection: to the agent.
        ledger: of the calls.
        workers: how many calls run at the same time.
        grace: seconds that an outcome may take to appear after its worker's end.
        clock: monotonic.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        workers: int,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._ledger = ledger
        self._window = AHEAD * workers
        self._grace = grace
        self._waiting: collections.deque[tuple[Entry, Mapping[str, Any], bytes]] = (
            collections.deque()
        )
        self._flights: dict[int, _Flight] = {}
        self._windowed = 0
        self._orphans: dict[int, _Orphan] = {}

    def submit(self, entry: Entry, header: Mapping[str, Any], body: bytes) -> None:
        """Send a call now or as soon as there is room; commands never wait."""
        if header['do_kind'] == 'command':
            self._send(_Flight(entry, 0, windowed=False), header, body)
        else:
            self._waiting.append((entry, header, body))
            self._pump()

    def _pump(self) -> None:
        while self._waiting and self._windowed < self._window:
            entry, header, body = self._waiting.popleft()
            if entry.work.number in self._ledger.entries:
                self._windowed += 1
                self._send(_Flight(entry, 0, windowed=True), header, body)

    def _send(self, flight: _Flight, header: Mapping[str, Any], body: bytes) -> None:
        entry = flight.entry
        call = dict(header, do='call', call=entry.work.number)
        self._flights[entry.work.number] = flight
        flight.request = self._connection.request(call, body, lambda h, _: self._on_error(entry, h))

    def _on_error(self, entry: Entry, header: Mapping[str, Any]) -> None:
        if entry.work.number in self._ledger.entries:
            error = header.get('error', '')
            self._ledger.fail(entry, RemoteError(f'{name(entry.work)} was not run: {error}'))

    def on_end(self, entry: Entry) -> None:
        """Make room for the next call."""
        flight = self._flights.pop(entry.work.number, None)
        if self._orphans.pop(entry.work.number, None):
            self._connection.expect_messages('login calls', expected=bool(self._orphans))
        if flight:
            self._connection.forget(flight.request)
            self._windowed -= flight.windowed
            self._pump()

    def cancel(self, entry: Entry) -> None:
        """Take back a call whose future the user has cancelled."""
        if entry.work.number in self._flights:
            self._connection.tell({'do': 'drop', 'call': entry.work.number})

    def kill(self, entry: Entry) -> None:
        """End a call under way."""
        self._connection.tell({'do': 'drop', 'call': entry.work.number})

    def cancel_waiting(self) -> None:
        """Cancel the calls that are not known to have begun."""
        for entry in [f.entry for f in self._flights.values()] + [w[0] for w in self._waiting]:
            if entry.future.cancel():
                self._ledger.drop(entry)

    def on_hello(self) -> None:
        """Do not send again to a new agent what has begun: only its outcome can come."""
        for number, flight in self._flights.items():
            if flight.entry.future.running():
                self._connection.forget(flight.request)
                self._adopt(number)

    def on_owned(self, header: Mapping[str, Any]) -> None:
        """Learn that a call has begun under an earlier agent: wait for its outcome."""
        if header['call'] in self._flights:
            self._adopt(header['call'])

    def _adopt(self, number: int) -> None:
        self._orphans.setdefault(number, _Orphan(ask_at=self._clock()))
        self._connection.expect_messages('login calls', expected=True)

    def step(self, now: float) -> None:
        """Ask about calls that were cut off."""
        for call, orphan in self._orphans.items():
            if now >= orphan.ask_at:
                orphan.ask_at = math.inf
                on_owner = functools.partial(self._on_owner, call)
                self._connection.request({'do': 'owner', 'call': call}, b'', on_owner)

    def deadline(self) -> float:
        """Return when `step` is due."""
        return min((o.ask_at for o in self._orphans.values()), default=math.inf)

    def _on_owner(self, call: int, header: Mapping[str, Any], _body: bytes) -> None:
        orphan = self._orphans.get(call)
        if orphan is None:
            return
        now = self._clock()
        orphan.ask_at = now + ASK_INTERVAL
        if 'error' in header:
            return
        if header['lease'] != orphan.lease or not orphan.lease_at:
            orphan.lease, orphan.lease_at = header['lease'], now
        alive = header['alive']
        if alive is None:  # it belongs to another host: only its lease shows life
            alive = now - orphan.lease_at < LEASE
        if alive:
            orphan.dead_at = None
            return
        orphan.dead_at = orphan.dead_at or now
        late_at = orphan.dead_at + self._grace
        orphan.ask_at = min(orphan.ask_at, max(late_at, now + 1.0))
        if now >= late_at:
            orphan.ask_at = math.inf
            self._lose(call, header['owner'])

    def _lose(self, call: int, owner: str) -> None:
        """Give a call up if the spool, read once more, does not hold its outcome."""

        def on_caught_up(header: Mapping[str, Any], _body: bytes) -> None:
            if call not in self._orphans:
                return
            if 'error' in header:
                self._orphans[call].ask_at = self._clock() + ASK_INTERVAL
            else:
                self._fail(call, owner.split(':', maxsplit=1)[0])

        self._connection.request({'do': 'catch_up'}, b'', on_caught_up)

    def _fail(self, call: int, host: str) -> None:
        entry = self._flights[call].entry
        kind = JobCancelled if entry.killed else CallLost
        self._ledger.fail(
            entry,
            kind(
                f'{name(entry.work)} may have run: its worker on {host} ended without an outcome '
                'while no agent was there to see it; submit it again if that does no harm',
                node=host,
            ),
        )
