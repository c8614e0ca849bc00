"""The worker of one Slurm task: claims it, runs its calls, writes messages into the spool.

It is what a job of function calls executes on its compute node. Order of events, each of which
may be the last one that happens::

    claim <batch>.<task> -> call begins -> outcome in tmp/ -> done list -> new/ -> next call

After SIGTERM, which Slurm sends on scancel, at the time limit, on preemption and on a requeue
alike, no call is started, and of the one under way only a value counts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import namedtuple

from .child import Context
from .protocol import LARGE, CallsFile, Header
from .results import Outcome
from .spool import REVOKED, DoneList, Spool, message_line, message_name
from .supervisor import Crew, Signals, wait

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Set, Tuple

TOGETHER = 0.2
"""Seconds within which outcomes share a message."""

DOUBT = 0.2
"""Seconds that a failure is held back: SIGTERM reaches the call before the supervisor, or after."""

CONTROL_INTERVALS = (1.0, 10.0)
"""Seconds between looks at the cancel file: the first while a call is young, up to the second."""

FORWARDED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
"""What ``--signal=B:`` and ``scancel --batch`` send to the batch step only; calls want it too."""


class Place(namedtuple('Place', 'batch task job restart')):
    """Which task of which job this is."""

    __slots__ = ()

    @property
    def topic(self) -> str:
        """What the task's claim, done list and messages are called."""
        return f'{self.batch}.{self.task}'

    @classmethod
    def from_environment(cls, batch: int, env: Dict[str, str]) -> Place:
        """Read what Slurm says in a job's environment.

        SLURM_ARRAY_JOB_ID is the same for all tasks of an array, SLURM_JOB_ID is not;
        SLURM_RESTART_COUNT is unset on the first run.
        """
        job = env.get('SLURM_ARRAY_JOB_ID') or env['SLURM_JOB_ID']
        task = int(env.get('SLURM_ARRAY_TASK_ID') or 0)
        return cls(batch, task, job, int(env.get('SLURM_RESTART_COUNT') or 0))


class TaskWorker:
    """Runs the calls of one task."""

    def __init__(self, spool: Spool, place: Place, calls: Header) -> None:
        self._spool = spool
        self._place = place
        self._calls = calls
        self._header = _message_header(place)
        self._done = DoneList(spool, place.topic)
        first = place.task * calls['chunksize']
        self._base = first
        self._todo = list(range(first, min(first + calls['chunksize'], calls['count'])))
        self._reported = -1
        self._items: List[Header] = []
        self._bodies: List[bytes] = []
        self._flush_at: Optional[float] = None
        self._flushed = time.monotonic()
        self._controlled = self._control_at = 0.0
        self._cancelled: Set[int] = set()
        self._doubtful: List[Tuple[float, Outcome]] = []
        self._outdated = False
        self._failures = 0
        self._delivered = 0
        self._signals = Signals((signal.SIGTERM, *FORWARDED))
        self._crew = Crew(
            Context(
                spool,
                place.topic,
                self._header,
                calls['sys_path'],
                calls['modules'],
                calls['chunksize'],
            )
        )

    def run(self) -> int:
        """Run all calls; return the exit status: 0 if each of them returned a value."""
        owner = self._spool.claim(self._place.topic, 'job:' + self._place.job)
        if owner != 'job:' + self._place.job:
            return self._give_way(owner)
        if self._place.restart:
            done = self._done.resume(self._place.restart)
            self._todo = [index for index in self._todo if self._number(index) not in done]
        try:
            while self._work():
                self._wait()
        finally:
            self._crew.close()
        code = 1 if self._failures or self._crew.stopping else 0
        # With a newer copy at work it is not for this one to say how the task ends.
        self._flush({'ended': {'code': code, 'term': self._crew.stopping or self._outdated}})
        return code

    def _give_way(self, owner: str) -> int:
        self._crew.close()
        if owner != REVOKED:
            self._spool.post(self._place.topic, dict(self._header, superseded=owner))
        return 0

    def _number(self, index: int) -> int:
        number: int = self._calls['first'] + index
        return number

    def _work(self) -> bool:
        """Do what can be done now; return False when nothing is left."""
        for number in self._signals.read():
            self._on_signal(number)
        for outcome in self._crew.outcomes():
            self._on_outcome(outcome)
        while self._doubtful and time.monotonic() >= self._doubtful[0][0]:
            self._accept(self._doubtful.pop(0)[1])
        if time.monotonic() >= self._control_at:
            self._control()
        if self._todo and not self._crew.busy and not self._crew.stopping:
            self._start()
        self._report_begun(TOGETHER)
        if self._flush_at is not None and time.monotonic() >= self._flush_at:
            self._flush({})
        return self._crew.busy or bool(self._doubtful)

    def _wait(self) -> None:
        times = [self._flush_at, self._control_at, self._crew.deadline()]
        times += [due for due, _ in self._doubtful[:1]]
        begun = self._crew.begun()
        if begun is None or begun.call != self._reported:
            times.append(time.monotonic() + TOGETHER)
        until = min(t for t in times if t is not None)
        wait([self._signals.descriptor, *self._crew.descriptors()], until)

    def _start(self) -> None:
        """Have the child run what is left to do."""
        command = {
            'do': 'calls',
            'calls': [self._number(index) for index in self._todo],
            'indices': self._todo,
            'first': self._calls['first'],
            'base': self._base,
            'cwd': self._calls['cwd'],
            'path': self._calls['path'],
        }
        self._crew.run(command)
        for number in self._cancelled:
            self._discard(number)

    def _discard(self, number: int) -> None:
        place = number - self._number(self._base)
        if 0 <= place < self._calls['chunksize']:
            self._crew.discard(place)

    def _report_begun(self, age: float) -> None:
        """Tell of a call that is under way for so long; of others their outcomes tell."""
        begun = self._crew.begun()
        if begun is None or begun.call == self._reported or time.time() - begun.at < age:
            return
        self._reported = begun.call
        item = {'event': 'begun', 'call': begun.call, 'at': begun.at}
        self._add(dict(item, log=[begun.out, begun.err]))
        self._flush_at = 0.0

    def _add(self, item: Header, body: bytes = b'') -> None:
        self._items.append(item)
        self._bodies.append(body)

    def _plan_flush(self, at: float) -> None:
        self._flush_at = at if self._flush_at is None else min(at, self._flush_at)

    def _on_outcome(self, outcome: Outcome) -> None:
        kind, index = outcome[0]['kind'], outcome[0]['call'] - self._calls['first']
        self._control_at = min(self._control_at, self._controlled + CONTROL_INTERVALS[0])
        if index in self._todo:
            self._todo.remove(index)
        if kind in ('error', 'died'):
            if not self._crew.stopping:
                self._doubtful.append((time.monotonic() + DOUBT, outcome))
        else:
            self._accept(outcome)

    def _accept(self, outcome: Outcome) -> None:
        item, body = outcome
        if item['kind'] not in ('value', 'cancelled'):
            self._failures += 1
        if 'file' in item:
            self._flush({})
            self._done.deliver([item['call']], item['file'])
            self._delivered += 1
            return
        self._add(item, body)
        held = sum(len(body) for body in self._bodies)
        self._plan_flush(0.0 if held > LARGE else self._flushed + TOGETHER)

    def _flush(self, extra: Header) -> None:
        """Write what has gathered as one message."""
        if self._items or extra:
            calls = [item['call'] for item in self._items if item['event'] == 'outcome']
            self._delivered += len(calls)
            if 'ended' in extra:
                extra['ended']['delivered'] = self._delivered
            name = message_name(self._place.topic)
            line = message_line(dict(self._header, items=self._items, **extra))
            self._spool.stage(name, [line, *self._bodies])
            self._done.deliver(calls, name)
        self._items, self._bodies = [], []
        self._flush_at, self._flushed = None, time.monotonic()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGTERM and not self._crew.stopping:
            self._crew.stop()
            self._doubtful.clear()
            self._report_begun(0.0)
            self._flush({'stopping': True})
        elif number in FORWARDED:
            self._crew.signal(number)

    def _control(self) -> None:
        """Learn which calls are not wanted any more, and whether a newer copy is at work."""
        young, old = CONTROL_INTERVALS
        begun = self._crew.begun()
        age = time.time() - begun.at if begun else 0.0
        self._controlled = time.monotonic()
        self._control_at = self._controlled + min(old, max(young, age / 10))
        try:
            with open(self._spool.path('calls', f'{self._place.batch}.cancel')) as file:
                lines = file.read().split('\n')[:-1]
            newest = self._done.read()[2]
        except OSError:  # the file system has hiccups: look again later
            return
        for how, number in (line.split(' ') for line in lines):
            self._cancelled.add(int(number))
            self._discard(int(number))
            if how == 'kill' and self._crew.call == int(number):
                self._crew.kill(int(number))
        if newest > self._place.restart:
            self._todo, self._outdated = [], True
            self._crew.leave_rest()


def _message_header(place: Place) -> Header:
    uname = os.uname()
    header: Header = place._asdict()
    logs = [os.readlink(f'/proc/self/fd/{descriptor}') for descriptor in (1, 2)]
    node = os.environ.get('SLURMD_NODENAME') or uname.nodename
    header.update(host=node, pid=os.getpid(), logs=logs)
    header['raw_id'] = os.environ['SLURM_JOB_ID']
    return header


def main(folder: str, batch: int) -> int:
    """Run the task that Slurm's environment names; return the exit status."""
    spool = Spool(folder)
    place = Place.from_environment(batch, dict(os.environ))
    path = spool.path('calls', f'{batch}.calls')
    calls = CallsFile(path)
    header = dict(calls.header, path=path)
    calls.close()
    here = list(sys.version_info[:2])
    if here != header['python']:
        version = '.'.join(map(str, sys.version_info[:3]))
        failed = {'what': 'version', 'python': version, 'executable': sys.executable}
        spool.post(place.topic, dict(_message_header(place), failed=failed))
        return 1
    return TaskWorker(spool, place, header).run()
