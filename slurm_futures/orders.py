"""Orders to the cluster: leave calls out, end them, cancel jobs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slurm_futures.connection import Connection
from slurm_futures.submissions import back_off, words

LOGGER = logging.getLogger('slurm_futures')

TRIES = 12
"""How often scancel is tried while Slurm is out of reach: for about 6 minutes."""


def _nothing() -> None:
    """Do nothing."""


def _never() -> bool:
    """Insist on nothing."""
    return False


@dataclass
class _Scancel:
    """Jobs to be cancelled.

    Attributes:
        jobs: their ids.
        cluster: where they are.
        then: called once Slurm has taken the order, or it is given up.
        insist: asked whether it must not be given up.
        failures: how often it has not.
        again_at: when to try again.
    """

    jobs: Sequence[str]
    cluster: str
    then: Callable[[], None]
    insist: Callable[[], bool]
    failures: int = 0
    again_at: float = math.inf


class Orders:
    """Gives orders, and repeats those that Slurm did not get.

    Args:
        connection: to the agent.
        clock: monotonic.

    Attributes:
        unanswered: orders that have been sent and not answered.
    """

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._failed: list[_Scancel] = []
        self.unanswered = 0

    def revoke(self, topics: Sequence[str]) -> None:
        """Claim tasks, so that those that have not begun never do."""
        self._send({'do': 'revoke', 'tasks': topics}, lambda _: None)

    def discard(self, batch: int, how: str, calls: Sequence[int]) -> None:
        """Tell a batch's tasks which calls to leave out ('cancel') or to end ('kill')."""
        self._send({'do': 'discard', 'batch': batch, 'how': how, 'calls': calls}, lambda _: None)

    def scancel(
        self,
        jobs: Sequence[str],
        cluster: str,
        *,
        then: Callable[[], None] = _nothing,
        insist: Callable[[], bool] = _never,
    ) -> None:
        """Cancel jobs and tasks; see `_Scancel`."""
        if jobs:
            self._scancel(_Scancel(jobs, cluster, then, insist))
        else:
            then()

    def _scancel(self, order: _Scancel) -> None:
        header = {'do': 'scancel', 'jobs': order.jobs, 'clusters': order.cluster}
        self._send(header, lambda reply: self._on_scancelled(order, reply))

    def _on_scancelled(self, order: _Scancel, reply: Mapping[str, Any]) -> None:
        if reply.get('ok'):
            order.then()
            return
        order.failures += 1
        final = order.failures >= TRIES and not order.insist()
        LOGGER.log(
            logging.WARNING if final or order.failures == 1 else logging.INFO,
            'cancelling %s failed%s: %s',
            ' '.join(order.jobs),
            ', giving up' if final else '',
            words(reply),
        )
        if final:
            order.then()
        else:
            order.again_at = self._clock() + back_off(order.failures - 1)
            self._failed.append(order)

    def _send(
        self, header: Mapping[str, Any], on_reply: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.unanswered += 1

        def on_done(reply: Mapping[str, Any], _body: bytes) -> None:
            self.unanswered -= 1
            on_reply(reply)

        self._connection.request(header, b'', on_done)

    def step(self, now: float) -> None:
        """Repeat what has become due."""
        due = [order for order in self._failed if now >= order.again_at]
        self._failed = [order for order in self._failed if now < order.again_at]
        for order in due:
            self._scancel(order)

    def deadline(self) -> float:
        """Return when `step` is due."""
        return min((order.again_at for order in self._failed), default=math.inf)
