"""What the polling thread does with what is submitted, and with what the agent says."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slurm_futures import futures
from slurm_futures.batch import Batch, Frame, Site
from slurm_futures.batching import CallSet, Target, Windows
from slurm_futures.calls_batch import CallsBatch, Lane
from slurm_futures.connection import Connection
from slurm_futures.futures import JobFuture
from slurm_futures.jobs import Jobs
from slurm_futures.line import Recipe
from slurm_futures.logincalls import LoginCalls
from slurm_futures.outcomes import Entry, Group, Ledger
from slurm_futures.prerequisites import Prerequisites
from slurm_futures.remote.slurm_parsers import ClusterLimits
from slurm_futures.script_batch import ScriptBatch, ScriptJob
from slurm_futures.snapshot import Snapshots
from slurm_futures.tracking import Policy

LOGGER = logging.getLogger('slurm_futures')


@dataclass(frozen=True)
class Plan:
    """What the polling thread starts from.

    Attributes:
        recipe: how to start an agent.
        cwd: where calls run by default; None: in the work folder.
        setup: shell lines of every job.
        grace: seconds that an outcome may take to appear after its job's end.
        polling_interval: seconds between two queries.
        login_workers: calls on the login node at the same time.
        share_sys_path: whether workers can use the client's module folders.
        snapshots: of the user's modules; None: they stay here.
    """

    recipe: Recipe
    cwd: str | None
    setup: tuple[str, ...]
    grace: float
    polling_interval: float
    login_workers: int
    share_sys_path: bool
    snapshots: Snapshots | None = None


class Dispatcher:
    """Brings submissions to the agent, and what the agent says to whom it concerns.

    Args:
        plan: what to start from.
        wake: ends the polling thread's wait; called from other threads.
        is_pending: says whether a future has not been done with.
        on_done: called with each future that is done.
        clock: monotonic.
    """

    def __init__(
        self,
        plan: Plan,
        wake: Callable[[], None],
        is_pending: Callable[[JobFuture[Any]], bool],
        on_done: Callable[[JobFuture[Any]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._is_pending = is_pending
        self._on_done = on_done
        self.connection = Connection(
            plan.recipe, wake, self._on_hello, self._on_event, self._on_failure, clock=clock
        )
        self.ledger = Ledger(on_done)
        self.jobs = Jobs(self.connection, self.ledger, self._relaunch, plan.polling_interval, clock)
        self.login = LoginCalls(self.connection, self.ledger, plan.login_workers, plan.grace, clock)
        self._windows = Windows(clock)
        self._numbers = itertools.count(1)
        self._batches = itertools.count(1)
        self._acks: list[str] = []
        self._received: list[int] = []
        self._prerequisites = Prerequisites(self.connection, plan.recipe.python_cmd)
        self._policy: Policy | None = None
        self._most_tasks = 1
        self._unlaunched: list[CallSet | ScriptJob] = []
        self._detached = False
        self.hello: Mapping[str, Any] | None = None

    # ---- what users ask for

    def submit_call(
        self, future: JobFuture[Any], target: Target, label: str, function: bytes, args: bytes
    ) -> None:
        """Run a function on the login node, or in a job together with others like it."""
        if target.resources is None:
            self._prerequisites.when_met(
                target, lambda error: self._call_on_login(error, future, target, function, args)
            )
            return

        def add(error: BaseException | None) -> None:
            if self._wanted(future, error):
                self._windows.add(target, label, (future, function, args))

        self._prerequisites.when_met(target, add)

    def submit_set(self, calls: CallSet) -> None:
        """Run the calls of a map."""
        target = calls.target

        def launch(error: BaseException | None) -> None:
            if target.resources is None:
                for future, index, args in calls.calls:
                    self._call_on_login(error, future, target, calls.functions[index], args)
                return
            wanted = [call for call in calls.calls if self._wanted(call[0], error)]
            if wanted:
                self._launch(replace(calls, calls=wanted))

        self._prerequisites.when_met(target, launch)

    def submit_script(self, job: ScriptJob) -> None:
        """Queue a batch script."""

        def launch(error: BaseException | None) -> None:
            if self._wanted(job.future, error):
                self._launch(job)

        self._prerequisites.when_met(None, launch)

    def run_command(self, future: JobFuture[Any], header: Mapping[str, Any], body: bytes) -> None:
        """Run a command on the login node."""

        def run(error: BaseException | None) -> None:
            if self._detached:
                future.cancel()
            if self._wanted(future, error):
                cwd = self._folder(header['cwd'])
                entry = self._entry(future, next(self._numbers), self.login)
                self.login.submit(entry, dict(header, do_kind='command', cwd=cwd), body)

        self._prerequisites.when_met(None, run)

    def ask(self, header: Mapping[str, Any], reply: Callable[..., None]) -> None:
        """Send the agent a request of the user's."""
        self._prerequisites.when_met(None, lambda error: self._ask(error, header, reply))

    def _ask(
        self, error: BaseException | None, header: Mapping[str, Any], reply: Callable[..., None]
    ) -> None:
        if error is not None:
            reply({'exception': error}, b'')
        else:
            self.connection.request(header, b'', reply)

    def cancel(self, future: JobFuture[Any]) -> None:
        """Remove what belongs to a future that the user has cancelled."""
        if not self._is_pending(future):
            return
        entry = self.ledger.entries.get(future.work.number)
        if entry is not None:
            self.ledger.drop(entry)
        elif not futures.start(future):
            self._on_done(future)

    def kill(self, future: JobFuture[Any]) -> None:
        """End what a running future stands for."""
        entry = self.ledger.entries.get(future.work.number)
        if entry is not None and not entry.killed:
            entry.killed = True
            entry.group.kill(entry)

    def detach(self) -> None:
        """Start nothing more on the login node, and cancel what has not begun there."""
        self._detached = True
        self.login.cancel_waiting()

    def hasten(self) -> None:
        """Submit what waits for others like it."""
        for calls in self._windows.close_all():
            self._launch(calls)

    @property
    def unsubmitted(self) -> bool:
        """Whether anything is still on its way to Slurm."""
        return bool(
            self._prerequisites.held or self._unlaunched or self._windows.deadline() < float('inf')
        ) or any(self.jobs.unsubmitted())

    # ---- the way to the agent

    def _wanted(self, future: JobFuture[Any], error: BaseException | None) -> bool:
        """Return whether a future is still to be worked on; give it the error if there is one."""
        if future.cancelled():
            return False
        if error is not None:
            futures.fail(future, error)
            self._on_done(future)
        return error is None

    def _entry(self, future: JobFuture[Any], number: int, group: Group) -> Entry:
        future.work.number = number
        entry = Entry(future, future.work, group)
        self.ledger.add(entry)
        return entry

    def _folder(self, cwd: str | None) -> str:
        """Return where something runs: what it says, relative to where calls run by default."""
        default = self._plan.cwd or str((self.hello or {})['work_dir'])
        return os.path.join(default, cwd) if cwd else default

    def _call_on_login(
        self,
        error: BaseException | None,
        future: JobFuture[Any],
        target: Target,
        function: bytes,
        args: bytes,
    ) -> None:
        if self._detached:
            future.cancel()
        if not self._wanted(future, error):
            return
        header = {
            'do_kind': 'call',
            'cwd': self._folder(target.cwd),
            'python': target.python_cmd,
            'modules': target.modules and target.modules.digest,
            'sizes': [len(function), len(args)],
        }
        entry = self._entry(future, next(self._numbers), self.login)
        self.login.submit(entry, header, function + args)

    def _launch(self, work: CallSet | ScriptJob) -> None:
        """Make batches and submit them, once the cluster's limits are known."""
        if self._policy is None:
            self._unlaunched.append(work)
            return
        if isinstance(work, ScriptJob):
            if work.future.cancelled():
                return
            number, call = next(self._batches), next(self._numbers)
            self.jobs.add(ScriptBatch(self._frame(self._policy), number, call, work))
            return
        resources = work.target.resources
        most = 1 if resources is None or resources.arrays is False else self._most_tasks
        wanted = work.without_cancelled()
        if wanted.calls:
            limit = resources.array_parallelism if resources else None
            self._launch_parts(wanted.split(most), Lane(limit), self._policy)

    def _relaunch(self, batch: Batch, parts: Sequence[CallSet]) -> Sequence[Batch]:
        """Submit parts of a batch that is over a limit as a whole."""
        assert self._policy is not None
        parallelism = batch.parallelism if isinstance(batch, CallsBatch) else None
        return self._launch_parts(parts, Lane(parallelism, batch.after), self._policy)

    def _launch_parts(
        self, parts: Sequence[CallSet], lane: Lane, policy: Policy
    ) -> Sequence[Batch]:
        """Submit parts of what one array cannot hold, so that all keep to one limit together.

        They stand in lanes that share the limit; within a lane each waits for the one before.
        """
        shares = share_out(lane.parallelism, len(parts))
        batches: list[Batch] = []
        for index, calls in enumerate(parts):
            after = batches[index - len(shares)] if index >= len(shares) else lane.after
            numbers = [next(self._numbers) for _ in calls.calls]
            own = Lane(shares[index % len(shares)], after)
            batch = CallsBatch(self._frame(policy), next(self._batches), numbers, calls, own)
            batches.append(batch)
            self.jobs.add(batch)
        return batches

    def _frame(self, policy: Policy) -> Frame:
        hello = self.hello or {}
        site = Site(
            folder=hello['folder'],
            entry=hello['entry'],
            library=hello['library'],
            cwd=self._folder(None),
            python_cmd=self._plan.recipe.python_cmd,
            setup=self._plan.setup,
            sys_path=module_folders() if self._plan.share_sys_path else (),
        )
        return Frame(self.jobs, site, policy, self._entry)

    # ---- what the agent says

    def _on_hello(self, hello: Mapping[str, Any]) -> None:
        self.hello = hello
        self.login.on_hello()
        if self._policy is None:
            self.connection.request({'do': 'limits'}, b'', self._on_limits)
        self._prerequisites.on_hello('.'.join(map(str, hello['python'])))

    def _on_limits(self, limits: Mapping[str, Any], _body: bytes) -> None:
        if 'error' in limits:
            LOGGER.warning("cannot ask for the cluster's limits: %s", limits['error'])
        defaults = ClusterLimits()._asdict()
        known = {name: limits.get(name, default) for name, default in defaults.items()}
        codes = frozenset([*known['requeue_exit'], *known['requeue_exit_hold']])
        self._policy = Policy(self._plan.grace, codes)
        self._most_tasks = max(1, min(known['max_array_size'], known['max_array_tasks']))
        unlaunched, self._unlaunched = self._unlaunched, []
        for work in unlaunched:
            self._launch(work)

    def _on_failure(self, error: BaseException) -> None:
        """Fail everything: the login node could not be reached even once."""
        self._prerequisites.fail(error)

    def _on_event(self, header: Mapping[str, Any], body: bytes) -> None:
        event = header['event']
        if event == 'message':
            self._on_message(header['message'], body)
            self._acks.append(header['name'])
        elif event in ('begun', 'outcome'):
            self.ledger.on_item(header, body, header)
            if event == 'outcome':
                self._received.append(header['call'])
        elif event == 'owned':
            self.login.on_owned(header)

    def _on_message(self, message: Mapping[str, Any], body: bytes) -> None:
        if 'started' in message:
            out, err, *_ = body.decode(errors='surrogateescape').split('\0')
            message, body = dict(message, logs=[out, err]), b''
        if 'batch' in message:
            self.jobs.on_message(message, body)
        else:
            self.ledger.on_message(message, body)

    def step(self, now: float) -> None:
        """Do what has become due."""
        self.connection.step()
        for calls in self._windows.closed(now):
            self._launch(calls)
        self.jobs.step(now)
        self.login.step(now)
        if self._acks:
            self.connection.tell({'do': 'ack', 'names': self._acks})
            self._acks = []
        if self._received:
            self.connection.tell({'do': 'got', 'calls': self._received})
            self._received = []

    def deadline(self) -> float:
        """Return when `step` is due."""
        return min(
            self.connection.deadline(),
            self.jobs.deadline(),
            self.login.deadline(),
            self._windows.deadline(),
        )


def share_out(limit: int | None, parts: int) -> list[int | None]:
    """Return how many tasks may run at once in each of as many lanes as the limit allows."""
    if limit is None:
        return [None] * parts
    lanes = min(limit, parts)
    return [limit // lanes + (lane < limit % lanes) for lane in range(lanes)]


def module_folders() -> list[str]:
    """Return the folders in which this process finds its modules."""
    folders = []
    for entry in sys.path:
        with contextlib.suppress(FileNotFoundError):  # of a relative one: where it is has gone
            folders.append(os.path.abspath(entry))
    return folders
