"""A cluster and its agents, played: what stands behind the client's machinery in its tests."""

from __future__ import annotations

import itertools
import json
import pickle
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fakes import PATIENCE_S, Clock, Message, Transport, Wire
from slurm_futures.batching import CallSet, Target
from slurm_futures.dispatcher import Dispatcher, Plan
from slurm_futures.errors import SlurmFuturesError
from slurm_futures.futures import JobFuture, Work
from slurm_futures.line import Patience, Recipe
from slurm_futures.resources import Resources
from slurm_futures.script import parse_script
from slurm_futures.script_batch import ScriptJob

INTERVAL = 10.0
"""Seconds between two queries."""

GRACE = 60.0
"""Seconds that an outcome may take to appear."""

NODES = Target(Resources(partition='cpu'))
GPUS = Target(Resources(partition='gpu'))


Reply = dict[str, Any]
Answer = Reply | None | Callable[[], Reply]

LIMITS = {'max_array_size': 1001, 'max_array_tasks': 1001, 'known': True}


@dataclass
class Submission:
    """What an sbatch has got.

    Attributes:
        batch: the number of the batch.
        token: the name of the script.
        options: of sbatch.
        first: the number of the first call.
        count: how many calls there are; 1 for a script.
        chunksize: calls a task.
        job: the id that Slurm gave it; empty: none.
        facts: what its tasks are told of all calls.
    """

    batch: int
    token: str
    options: list[str]
    first: int
    count: int
    chunksize: int
    job: str = ''
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """How many tasks it has."""
        return -(-self.count // self.chunksize)


@dataclass
class Cluster:
    """Everything that outlives an agent: Slurm, and the files in the spool.

    A test sets what the next requests of a kind are answered, and plays what jobs do. What it does
    not set is answered as a cluster in good health does.

    Attributes:
        answers: for a kind of request, the answers to the next ones, or functions that return
            them. One with a true member ``behind_news`` is sent behind what is in the spool, one
            with a true member ``hold`` when the test says so.
        rows: what squeue answers; None: all jobs are pending.
        answers_queries: whether squeue answers.
        history: what sacct answers.
        claims: who has claimed what.
        submissions: all that sbatch has been given, accepted or not.
        seen: all requests that have been answered, in order.
        logs: the ends of log files, by path.
        new: the messages in the spool that have not been acknowledged.
        library: the files of each snapshot of modules.
        agent: the name of the agent at work.
        jobs: the ids that sbatch gives.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    rows: list[list[Any]] | None = None
    answers_queries: bool = True
    history: list[list[Any]] = field(default_factory=list)
    claims: dict[str, str] = field(default_factory=dict)
    submissions: list[Submission] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, bytes] = field(default_factory=dict)
    new: dict[str, Message] = field(default_factory=dict)
    library: dict[str, dict[str, bytes]] = field(default_factory=dict)
    agent: str = ''
    jobs: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def kinds(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the requests of some kinds that have been answered."""
        return [header for header in self.seen if header['do'] in kinds]

    # ---- what agents do

    def answer(self, header: dict[str, Any], body: bytes) -> Reply | None:
        """Answer a request; None: it gets no answer."""
        kind = header['do']
        self.seen.append(header)
        if self.answers.get(kind):
            answer = self.answers[kind].pop(0)
            reply = answer() if callable(answer) else answer
            if kind == 'submit' and reply:
                self.claims[f'submit-{header["token"]}'] = self.agent
                self._take(header, body).job = reply.get('job_id', '')
            return reply
        handler: Callable[[dict[str, Any], bytes], Reply | None] = getattr(self, '_on_' + kind)
        return handler(header, body)

    def _take(self, header: dict[str, Any], body: bytes) -> Submission:
        facts = calls_header(body[header['script_size'] :])
        taken = Submission(
            header['batch'],
            header['token'],
            header['options'],
            facts.get('first', 0),
            facts.get('count', 1),
            facts.get('chunksize', 1),
            facts=facts,
        )
        self.submissions.append(taken)
        return taken

    def _on_submit(self, header: dict[str, Any], body: bytes) -> Reply:
        owner = self.claims.setdefault(f'submit-{header["token"]}', self.agent)
        if owner != self.agent:
            return {'kind': 'claimed', 'owner': owner, 'alive': False}
        taken = self._take(header, body)
        taken.job = str(next(self.jobs))
        self.post({'batch': taken.batch, 'submitted': taken.job, 'token': taken.token})
        return submitted(taken.job)

    def _on_query(self, header: dict[str, Any], body: bytes) -> Reply:
        if not self.answers_queries:
            return {'ok': False, 'rows': [], 'error': 'no answer'}
        pending = [
            row(taken.job, 'PENDING', str(task) if taken.tasks > 1 else '')
            for taken in self.submissions
            for task in range(taken.tasks)
            if taken.job
        ]
        return {'ok': True, 'rows': pending if self.rows is None else self.rows, 'error': ''}

    def _on_history(self, header: dict[str, Any], body: bytes) -> Reply:
        return {'ok': True, 'rows': self.history, 'error': ''}

    def _on_lookup(self, header: dict[str, Any], body: bytes) -> Reply:
        jobs = [s.job for s in self.submissions if s.token == header['token'] and s.job]
        return {'ok': True, 'job_id': jobs[0] if jobs else None, 'others': [], 'error': ''}

    def _on_revoke(self, header: dict[str, Any], body: bytes) -> Reply:
        return {'owners': [self.claims.setdefault(task, 'revoked') for task in header['tasks']]}

    def _on_limits(self, header: dict[str, Any], body: bytes) -> Reply:
        return dict(LIMITS)

    def _on_scancel(self, header: dict[str, Any], body: bytes) -> Reply:
        return {'ok': True, 'returncode': 0, 'stdout': '', 'stderr': ''}

    def _on_tail(self, header: dict[str, Any], body: bytes) -> Reply:
        return {'body': self.logs.get(header['path'], b'')}

    def _on_python(self, header: dict[str, Any], body: bytes) -> Reply:
        return {'version': '3.11.2', 'stderr': ''}

    def _on_lacking(self, header: dict[str, Any], body: bytes) -> Reply:
        there = self.library.get(header['modules'], {})
        return {'names': [name for name in header['sizes'] if name not in there]}

    def _on_put(self, header: dict[str, Any], body: bytes) -> Reply:
        there, start = self.library.setdefault(header['modules'], {}), 0
        for name, size in header['sizes'].items():
            there[name] = body[start : start + size]
            start += size
        return {}

    def _on_owner(self, header: dict[str, Any], body: bytes) -> Reply:
        return {'owner': 'login1:boot:1:2', 'alive': True, 'lease': ''}

    def _on_catch_up(self, header: dict[str, Any], body: bytes) -> Reply:
        return {}

    _on_discard = _on_ping = _on_close = _on_catch_up

    def _on_call(self, header: dict[str, Any], body: bytes) -> None:
        return None

    _on_drop = _on_got = _on_watch = _on_call

    def _on_ack(self, header: dict[str, Any], body: bytes) -> None:
        for name in header['names']:
            self.new.pop(name, None)

    # ---- what jobs do

    def post(self, header: Mapping[str, Any], body: bytes = b'') -> None:
        """Put a message into the spool."""
        self.new[f'{len(self.seen):06d}-{len(self.new):06d}'] = (dict(header), body)

    def report(self, batch: int, job: str, task: int = 0, restart: int = 0, **members: Any) -> None:
        """Have a task's wrapper or worker report something, once it has claimed the task."""
        if 'failed' not in members and 'superseded' not in members:
            self.claims.setdefault(f'{batch}.{task}', f'job:{job}')
        logs = b'/logs/out\0/logs/err\0' if 'started' in members else b''
        body = members.pop('body', logs)
        header = {'batch': batch, 'task': task, 'job': job, 'restart': restart, 'host': 'n1'}
        self.post(dict(header, **members), body)

    def begin(self, submission: Submission, *calls: int, **facts: Any) -> None:
        """Have calls of a batch begin, by their places in it."""
        for place in calls:
            item = {'event': 'begun', 'call': submission.first + place, 'log': [0, 0]}
            task = place // submission.chunksize
            self.report(submission.batch, submission.job, task, items=[item], **facts)

    def finish(self, submission: Submission, *calls: int, **facts: Any) -> None:
        """Have calls of a batch return their places in it."""
        for place in calls:
            value = pickle.dumps(place)
            call, size = submission.first + place, len(value)
            item = {'event': 'outcome', 'kind': 'value', 'call': call, 'size': size}
            task = place // submission.chunksize
            job = submission.job
            self.report(submission.batch, job, task, items=[item], body=value, **facts)


def submitted(job: str, cluster: str = '') -> Reply:
    """Return sbatch's good news."""
    reply = {'kind': 'submitted', 'job_id': job, 'cluster': cluster}
    return dict(reply, stdout=job, stderr='', returncode=0)


def not_submitted(kind: str, words: str = 'words of sbatch') -> Reply:
    """Return an answer to a submission that did not succeed, or perhaps did not."""
    return {
        'kind': kind,
        'job_id': '',
        'cluster': '',
        'stdout': '',
        'stderr': words,
        'returncode': 1,
    }


AMBIGUOUS = not_submitted('ambiguous', 'Socket timed out on send/recv operation')
UNREACHABLE = not_submitted('unreachable', 'Unable to contact slurm controller (connect failure)')
LIMIT = not_submitted('limit', 'AssocMaxSubmitJobLimit')


def row(job: str, state: str, tasks: str = '', reason: str = 'None') -> list[Any]:
    """Return a line of squeue, as the agent sends it."""
    return [job, tasks, state, reason, 'n1', job]


def accounted(job: str, state: str, tasks: str = '', code: int | None = 0) -> list[Any]:
    """Return a line of sacct, as the agent sends it."""
    return [job, tasks, job, state, code, 0, None, None, 'n1']


def calls_header(data: bytes) -> dict[str, Any]:
    """Return the facts at the start of a batch's file; none for a script."""
    magic = b'slurm_futures calls 1\n'
    if not data.startswith(magic):
        return {}
    (length,) = struct.unpack_from('>I', data, len(magic))
    header: dict[str, Any] = json.loads(data[len(magic) + 4 :][:length])
    return header


class World:
    """A dispatcher, the agents that it talks to, and the cluster behind them.

    Args:
        cluster: what the agents serve.
        polling_interval: seconds between two queries.
        grace: seconds that an outcome may take.
        login_workers: calls on the login node at the same time.
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        polling_interval: float = INTERVAL,
        grace: float = GRACE,
        login_workers: int = 2,
    ) -> None:
        self.cluster = cluster or Cluster()
        self.clock = Clock()
        self.transport = Transport()
        self.deaf = False
        self.pending: set[JobFuture[Any]] = set()
        self._woken = threading.Event()
        recipe = Recipe(self.transport, 'python3', '', {'run': 'run1'}, Patience())
        plan = Plan(recipe, None, (), grace, polling_interval, login_workers, share_sys_path=False)
        self.dispatcher = Dispatcher(
            plan, self._woken.set, self.pending.__contains__, self.pending.discard, clock=self.clock
        )
        self._served: Wire | None = None
        self._sent: set[str] = set()
        self._watching = False
        self._cut_at = ('', False)
        self._withheld: list[Reply] = []

    # ---- Controller

    def check_usable(self) -> None:
        """Accept everything."""

    def check_may_block(self, what: str) -> None:
        """Accept everything."""

    def cancelled(self, future: JobFuture[Any]) -> None:
        """Pass it on, as a core does."""
        self.dispatcher.cancel(future)

    def kill(self, future: JobFuture[Any]) -> None:
        """Pass it on, as a core does."""
        self.dispatcher.kill(future)

    def call_back(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """Call it."""
        fn(future)

    def read_log(self, future: JobFuture[Any], stream: int, limit: int) -> str:
        """Return nothing."""
        return ''

    def future(self) -> JobFuture[Any]:
        """Return a future of this world."""
        future: JobFuture[Any] = JobFuture(self, Work(0))
        self.pending.add(future)
        return future

    def close(self) -> None:
        """Close all lines."""
        self.dispatcher.connection.close()
        for wire in self.transport.wires:
            wire.cut()

    # ---- time

    def settle(self) -> None:
        """Let everything happen that happens without time going by."""
        quiet = 0
        while quiet < 2:
            moved = self._let_client_work()
            moved = self._let_agent_work() or moved
            quiet = 0 if moved else quiet + 1

    def _let_client_work(self) -> bool:
        connection = self.dispatcher.connection
        opening = connection._opener.is_busy
        if opening:
            self._woken.wait(PATIENCE_S)
            self._woken.clear()
        before = connection.stream
        connection.read()
        self.dispatcher.step(self.clock())
        wanted = connection.wants_to_write
        connection.write()
        return wanted or connection.stream is not before or opening

    def _let_agent_work(self) -> bool:
        wire = self.wire
        if wire is None or self.deaf:
            return False
        if wire is not self._served:
            self._served, self._sent, self._watching = wire, set(), False
            self.cluster.agent = f'agent {len(self.transport.wires)}'
            self._send_news(wire, always=True)
        messages = wire.listen()
        for header, body in messages:
            if wire.is_cut:
                break
            self._serve(wire, header, body)
        return bool(messages) or self._send_news(wire)

    def _serve(self, wire: Wire, header: dict[str, Any], body: bytes) -> None:
        kind, answered = self._cut_at
        if header['do'] == kind:
            self._cut_at = ('', False)
            if answered:
                self.cluster.answer(header, body)
            wire.cut()
            return
        if header['do'] == 'watch':
            self._watching = header['on']
        if header['do'] == 'catch_up':
            self._send_news(wire, always=True)
        reply = self.cluster.answer(header, body)
        if reply is not None:
            reply = dict(reply)
            if reply.pop('behind_news', False):
                self._send_news(wire, always=True)
            if reply.pop('hold', False):
                self._withheld.append(dict(reply, id=header['id']))
                return
            content = reply.pop('body', b'')
            wire.say(dict(reply, id=header['id']), content)

    def _send_news(self, wire: Wire, *, always: bool = False) -> bool:
        if wire.is_cut or not (self._watching or always):
            return False
        fresh = [name for name in sorted(self.cluster.new) if name not in self._sent]
        for name in fresh:
            message, body = self.cluster.new[name]
            wire.say({'event': 'message', 'name': name, 'message': message}, body)
            self._sent.add(name)
        return bool(fresh)

    def advance(self, seconds: float) -> None:
        """Let time go by, from one thing that is due to the next."""
        end = self.clock.now + seconds
        self.settle()
        while self.clock.now < end:
            due = self.dispatcher.deadline()
            assert due > self.clock.now, 'it would not sleep but spin'
            self.clock.now = min(end, max(due, self.clock.now + 1e-6))
            self.settle()

    # ---- trouble

    @property
    def wire(self) -> Wire | None:
        """The newest line, unless it is broken or was never opened."""
        wires = self.transport.wires
        return wires[-1] if wires and not wires[-1].is_cut else None

    def release(self) -> None:
        """Send the answers that have been withheld."""
        assert self.wire is not None
        withheld, self._withheld = self._withheld, []
        for reply in withheld:
            self.wire.say(reply)
        self.settle()

    def cut(self) -> None:
        """Kill the agent."""
        wire = self.wire
        assert wire is not None
        wire.cut()

    def cut_at(self, kind: str, *, answered: bool = False) -> None:
        """Kill the agent when it gets the next request of a kind, before or after it has acted."""
        self._cut_at = (kind, answered)


# ---- what tests say


def run(world: World, count: int = 1, target: Target = NODES) -> list[JobFuture[Any]]:
    """Submit calls one by one."""
    futures = [world.future() for _ in range(count)]
    for future in futures:
        world.dispatcher.submit_call(future, target, 'work', b'function', b'arguments')
    return futures


def run_set(
    world: World, count: int, chunksize: int = 1, target: Target = NODES
) -> list[JobFuture[Any]]:
    """Submit calls together, as a map does."""
    futures = [world.future() for _ in range(count)]
    calls = CallSet(target, 'work', chunksize)
    for future in futures:
        calls.add(future, b'function', b'arguments')
    world.dispatcher.submit_set(calls)
    return futures


def run_script(world: World, text: str = '#!/bin/bash\ntrue\n', check: bool = True) -> Any:
    """Submit a batch script."""
    future = world.future()
    world.dispatcher.submit_script(
        ScriptJob(Target(), parse_script(text), text, future, check=check)
    )
    return future


def error_of(future: JobFuture[Any]) -> SlurmFuturesError:
    """Return how a future failed, without waiting for it."""
    error = future.exception(timeout=0)
    assert isinstance(error, SlurmFuturesError)
    return error


def batches(world: World) -> list[int]:
    """Return the batch numbers of everything that sbatch was given."""
    return [submission.batch for submission in world.cluster.submissions]


def only(world: World) -> Submission:
    """Return what sbatch was given, which must be one thing."""
    (submission,) = world.cluster.submissions
    return submission


def scancelled(world: World) -> list[list[str]]:
    """Return the ids of each scancel."""
    return [header['jobs'] for header in world.cluster.kinds('scancel')]


def is_idle(world: World) -> bool:
    """Return whether nothing is left to do."""
    dispatcher = world.dispatcher
    return not (
        dispatcher.jobs.busy or dispatcher.unsubmitted or dispatcher.ledger.entries or world.pending
    )
