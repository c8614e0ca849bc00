"""SlurmExecutor: what users call."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from slurm_futures import checks, payload
from slurm_futures.batching import CallSet, Target
from slurm_futures.config import ExecutorConfig, load_config
from slurm_futures.core import Core, Scope
from slurm_futures.dispatcher import Plan, module_folders
from slurm_futures.errors import CommandFailed, ConfigError
from slurm_futures.futures import JobFuture
from slurm_futures.line import Recipe
from slurm_futures.remote.states import JobState
from slurm_futures.resources import merge
from slurm_futures.script import parse_script
from slurm_futures.script_batch import ScriptJob

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import ParamSpec, Self, Unpack

    from slurm_futures.resources import ResourceOptions

    P = ParamSpec('P')

T = TypeVar('T')

_LABEL = 40
"""Characters of a function's name that are used as a job name."""

_REFILLS = 8
"""A map with a buffersize makes that many job arrays for as many calls as the buffer holds."""


class SlurmExecutor(Executor):
    """Runs commands, functions and batch scripts on a Slurm cluster.

    Without resources functions run on the login node; `with_resources` gives an executor whose
    functions run in Slurm jobs. The keywords are the fields of `ExecutorConfig`.

    Raises:
        ConfigError: a setting cannot work; the message names it.
    """

    def __init__(self, **settings: Any) -> None:
        self._start(load_config(settings), '')

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | ExecutorConfig, name: str = '') -> Self:
        """Return an executor for settings kept in a mapping.

        Args:
            config: the fields of `ExecutorConfig`.
            name: what to call the cluster in messages.

        Raises:
            ConfigError: a setting cannot work; the message names it.
        """
        executor = cls.__new__(cls)
        executor._start(load_config(config), name)
        return executor

    def _start(self, config: ExecutorConfig, name: str) -> None:
        self.name = name
        self._join(Core(_plan(config)), Target(), Scope(None))

    def _join(self, core: Core, target: Target, scope: Scope) -> None:
        self._core = core
        self._target = target
        self._scope = scope
        core.enter(self, scope)

    def _sibling(self, target: Target) -> Self:
        self._core.check_usable()
        if self._scope.closed:
            raise RuntimeError('cannot derive an executor from one that has been shut down')
        sibling = type(self).__new__(type(self))
        sibling.name = self.name
        sibling._join(self._core, target, Scope(self._scope))
        return sibling

    def __repr__(self) -> str:
        where = 'login node' if self._target.resources is None else 'jobs'
        return f'<{type(self).__name__} {self.name or "unnamed"}: {where}>'

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            'a SlurmExecutor cannot be pickled: it lives in the process that made it; '
            'pass its settings and call SlurmExecutor.from_config there'
        )

    # ---- siblings

    def with_resources(self, **options: Unpack[ResourceOptions]) -> Self:
        """Return an executor on the same connection whose functions run in Slurm jobs.

        Args:
            **options: fields of `Resources`. They are merged with those of this executor; None
                takes one back. For a batch script they fill what its own header leaves open.

        Raises:
            ConfigError: an option cannot work; the message names it.
        """
        resources = merge(self._target.resources, options)
        return self._sibling(Target(resources, self._target.cwd, self._target.python_cmd))

    def with_options(
        self,
        *,
        cwd: str | os.PathLike[str] | None = None,
        python_cmd: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Return an executor on the same connection with other settings for its calls.

        Args:
            cwd: the folder on the cluster where they run; a relative path starts in the folder
                where calls run by default.
            python_cmd: the interpreter that runs functions; None: as before, likewise cwd.

        Raises:
            ConfigError: one of them is no path.
        """
        old = self._target
        cwd = checks.named('cwd', checks.path, cwd) or old.cwd
        python_cmd = checks.named('python_cmd', checks.path, python_cmd) or old.python_cmd
        return self._sibling(Target(old.resources, cwd, python_cmd))

    # ---- what runs

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[T]: ...
    @overload
    def submit(
        self,
        script: str | os.PathLike[str],
        /,
        *,
        cwd: str | os.PathLike[str] | None = None,
        name: str | None = None,
        check: bool = True,
        mkdir: bool = False,
    ) -> JobFuture[JobState]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> JobFuture[Any]:
        """Run a function, or queue a batch script, and return its future at once.

        Args:
            fn: a function, called with the arguments that follow: on the login node, or in a
                Slurm job if this executor has resources. Or a batch script: its text, or the path
                of a local file (a PathLike) that holds it.
            *args: of the function.
            **kwargs: of the function. Of a script: ``cwd``, the folder on the cluster where it
                runs; ``name``, the job's name; ``check=False``, to get the state of a failed job
                rather than JobFailed; ``mkdir=True``, to create a missing cwd.

        Returns:
            The future of what the function returns, or of the script's `JobState`.

        Raises:
            RuntimeError: after shutdown, or in a forked child.
            ConfigError: the script cannot work; the message names the line.
            TypeError: ``fn`` is neither.
        """
        self._core.check_usable()
        if isinstance(fn, str | os.PathLike):
            return self._submit_script(fn, *args, **kwargs)
        if not callable(fn):
            raise TypeError(f'submit() takes a function or a batch script, not {fn!r}')
        try:
            function = payload.dump_function(fn)
            arguments = payload.dump_arguments(args, kwargs)
        except Exception as error:  # whatever pickling raises belongs to this call alone
            future = self._core.new_future(self._scope)
            self._core.refuse(future, error)
            return future
        future = self._core.new_future(self._scope)
        target, label = self._target, _label(fn)
        self._core.put(lambda d: d.submit_call(future, target, label, function, arguments))
        return future

    def _submit_script(
        self,
        script: str | os.PathLike[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        name: str | None = None,
        check: bool = True,
        mkdir: bool = False,
    ) -> JobFuture[JobState]:
        text = script if isinstance(script, str) else _read_script(script)
        header = parse_script(text)
        for warning in header.warnings:
            warnings.warn(warning, stacklevel=3)
        cwd = checks.named('cwd', checks.path, cwd) or self._target.cwd
        name = checks.named('name', checks.text, name)
        future = self._core.new_future(self._scope)
        target = Target(self._target.resources, cwd, None)
        default_name = 'script' if isinstance(script, str) else Path(script).name
        job = ScriptJob(target, header, text, future, name, check, mkdir, default_name)
        self._core.put(lambda dispatcher: dispatcher.submit_script(job))
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call a function with items of iterables, as the built-in map does; see `Executor.map`.

        Args:
            fn: the function.
            *iterables: of its arguments; consumed at once, unless buffersize is given.
            timeout: seconds that results may take altogether.
            chunksize: calls a task of the job array; each call has a future and a fate of its own.
            buffersize: calls submitted ahead of the results taken; None: all of them.

        Raises:
            TimeoutError: from the iterator, when a result is not there in time.
            ValueError: chunksize or buffersize is less than 1.
        """
        self._core.check_usable()
        if not callable(fn):
            raise TypeError(f'map() takes a function, not {fn!r}')
        if chunksize < 1:
            raise ValueError(f'chunksize must be at least 1, not {chunksize}')
        if buffersize is not None and buffersize < 1:
            raise ValueError(f'buffersize must be at least 1, not {buffersize}')
        end = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        if buffersize is None:
            return _results(self._submit_all(fn, list(calls), chunksize), end)

        def submit(count: int) -> list[JobFuture[T]]:
            return self._submit_all(fn, list(islice(calls, count)), chunksize)

        # On the login node each result makes room for a call; a job for each would be too many.
        at_once = 1 if self._target.resources is None else buffersize // _REFILLS
        at_once = min(buffersize, max(chunksize, at_once))
        return _results(submit(buffersize), end, _Refill(submit, buffersize, at_once))

    def _submit_all(
        self, fn: Callable[..., T], calls: Sequence[tuple[Any, ...]], chunksize: int
    ) -> list[JobFuture[T]]:
        """Submit calls that are known together, as one job array."""
        futures = [self._core.new_future(self._scope) for _ in calls]
        try:
            work = self._pickle_all(fn, calls, futures, chunksize)
        except BaseException:  # Ctrl-C: nobody will ever hear of these calls
            for future in futures:
                future.cancel()
            raise
        if work.calls:
            self._core.put(lambda dispatcher: dispatcher.submit_set(work))
        return futures

    def _pickle_all(
        self,
        fn: Callable[..., T],
        calls: Sequence[tuple[Any, ...]],
        futures: Sequence[JobFuture[T]],
        chunksize: int,
    ) -> CallSet:
        work = CallSet(self._target, _label(fn), chunksize)
        try:
            function = payload.dump_function(fn) if calls else b''
        except Exception as error:  # it belongs to these calls
            for future in futures:
                self._core.refuse(future, error)
            return work
        for future, args in zip(futures, calls, strict=True):
            try:
                work.add(future, function, payload.dump_arguments(args, {}))
            except Exception as error:  # it belongs to this call alone
                self._core.refuse(future, error)
        return work

    def run(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node and wait for it.

        Args:
            command: a line for bash, or a list of arguments that no shell sees.
            cwd: the folder where it runs; None: this executor's.
            env: environment variables to add.
            input: text for its stdin; None: it reads nothing.
            timeout: seconds that it may take.
            check: whether an exit status other than 0 is raised.

        Raises:
            CommandFailed: with check, it failed; holds its exit status, stdout and stderr.
            ConfigError: cwd, env, input or timeout cannot work; the message says which.
            FileNotFoundError: there is no such command or folder; PermissionError likewise.
            subprocess.TimeoutExpired: it took too long and has been killed.
            ConnectionFailed: the login node cannot be reached.
            RuntimeError: after shutdown, in a done-callback, or in a forked child.
        """
        self._core.check_usable()
        self._core.check_may_block('run()')
        argv = command if isinstance(command, str) else _arguments(command)
        header = {
            'argv': argv,
            'cwd': checks.named('cwd', checks.path, cwd) or self._target.cwd,
            'env': dict(checks.named('env', checks.environment, env) or ()),
            'has_input': input is not None,
            'timeout': checks.named('timeout', checks.not_negative, timeout),
        }
        body = checks.named('input', checks.text_input, input) or b''
        future = self._core.new_future(self._scope)
        self._core.put(lambda dispatcher: dispatcher.run_command(future, header, body))
        try:
            item, output = future.result()
        except BaseException:
            future.kill()  # Ctrl-C: the command goes with it
            raise
        finally:
            del future  # a cycle with the traceback
        return _completed(argv, timeout, check, item, output)

    # ---- ends

    def connect(self) -> Self:
        """Connect now rather than at the first use.

        Raises:
            ConnectionFailed: the agent cannot be started; the message says why.
        """
        self._core.connect()
        return self

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, like `Executor.shutdown`.

        Args:
            wait: whether to wait for what was submitted through this executor and through those
                derived from it.
            cancel_futures: whether to cancel what has not begun.

        Raises:
            RuntimeError: with wait, called in a done-callback.
        """
        self._core.check_usable()
        if wait:
            self._core.check_may_block('shutdown(wait=True)')
        self._scope.closed = True
        if cancel_futures:
            for future in self._core.pending(self._scope):
                future.cancel()
        self._core.leave(self._scope)
        if wait:
            self._core.wait(self._scope)

    def detach(self) -> None:
        """Leave everything to Slurm: wait until it has all jobs, then keep nobody from leaving.

        Calls on the login node that have not begun are cancelled; one under way goes on, and its
        outcome is lost when this process ends. Futures still end while this process lives. No
        executor on the same connection takes any more calls.

        Raises:
            RuntimeError: called in a done-callback, or in a forked child.
        """
        self._core.check_usable()
        self._core.detach()

    def __enter__(self) -> Self:
        """Return this executor; leaving the block shuts it down."""
        self._core.check_usable()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Wait as `shutdown` does; on Ctrl-C, also while waiting, cancel and kill instead."""
        if exc_type is not None and self._core.is_forked:
            return  # a child on its way out: its own exception says why
        interrupts = _interrupts()
        if exc_type is not None and issubclass(exc_type, interrupts):
            return self._abort()
        try:
            self.shutdown(wait=not self._core.detached)
        except interrupts:
            self._abort()
            raise

    def _abort(self) -> None:
        self._scope.closed = True
        self._core.abort(self._scope)
        self._core.leave(self._scope)


def _interrupts() -> tuple[type[BaseException], ...]:
    """Return the exceptions that mean that nobody waits any more."""
    asyncio = sys.modules.get('asyncio')  # what is not loaded has raised nothing
    return (KeyboardInterrupt, asyncio.CancelledError) if asyncio else (KeyboardInterrupt,)


def _plan(config: ExecutorConfig) -> Plan:
    slurm = config.queue_system.slurm
    if slurm is None:
        raise ConfigError('queue_system.local: the embedded queue is not available yet')
    if config.ssh is not None:
        raise ConfigError('ssh: connections over SSH are not available yet')
    from slurm_futures.transports.local import LocalTransport

    python_cmd = config.python_cmd or sys.executable
    agent = {
        'run': _new_run(),
        'work_dir': config.work_dir or '~/slurm_futures',
        'slurm': {name: getattr(slurm, name) for name in slurm.__dataclass_fields__},
        'login_workers': config.login_workers,
        'sys_path': module_folders(),
    }
    return Plan(
        recipe=Recipe(LocalTransport(), python_cmd, '\n'.join(config.setup), agent),
        cwd=os.getcwd() if config.work_dir is None else None,
        setup=config.setup,
        grace=config.grace_period,
        polling_interval=slurm.polling_interval,
        login_workers=config.login_workers,
        share_sys_path=True,
    )


def _new_run() -> str:
    """Return a name that no other run has."""
    return time.strftime('%Y%m%d-%H%M%S-', time.gmtime()) + os.urandom(4).hex()


def _label(fn: Any) -> str:
    """Return a function's name as a job name."""
    name = getattr(fn, '__qualname__', type(fn).__qualname__).rpartition('.')[2]
    return (
        ''.join(c if c.isalnum() or c == '_' else '-' for c in name)[:_LABEL].strip('-') or 'call'
    )


def _read_script(path: os.PathLike[str]) -> str:
    # What is not UTF-8 is refused together with all else that a script must not be.
    return Path(path).read_text(encoding='utf-8', errors='surrogateescape')


def _arguments(command: Sequence[str | os.PathLike[str]]) -> list[str]:
    if not command or not all(isinstance(word, str | os.PathLike) for word in command):
        raise TypeError(f'a command is a string or a list of strings, not {command!r}')
    return [os.fspath(word) for word in command]


def _completed(
    argv: str | list[str],
    timeout: float | None,
    check: bool,
    item: Mapping[str, Any],
    output: bytes,
) -> subprocess.CompletedProcess[str]:
    split = item['sizes'][0]
    stdout = output[:split].decode(errors='replace')
    stderr = output[split:].decode(errors='replace')
    if item['kind'] == 'timeout':
        raise subprocess.TimeoutExpired(argv, timeout or 0.0, stdout, stderr)
    if check and item['returncode']:
        raise CommandFailed(item['returncode'], argv, stdout, stderr)
    return subprocess.CompletedProcess(argv, item['returncode'], stdout, stderr)


class _Refill(Generic[T]):
    """Submits further calls of a map as its results are taken.

    Args:
        submit: submits at most so many more calls.
        most: so many calls may be ahead of the results taken.
        at_once: so many are submitted together.
    """

    def __init__(
        self, submit: Callable[[int], list[JobFuture[T]]], most: int, at_once: int
    ) -> None:
        self._submit = submit
        self._most = most
        self._at_once = at_once

    def __call__(self, ahead: int) -> list[JobFuture[T]]:
        """Return new futures, given how many are ahead already."""
        room = self._most - ahead
        return self._submit(room) if room >= self._at_once else []


def _results(
    futures: Iterable[JobFuture[T]], end: float | None, refill: _Refill[T] | None = None
) -> Iterator[T]:
    """Yield results in order; whatever ends the iteration cancels the rest."""
    waiting = collections.deque(futures)
    del futures
    try:
        while waiting:
            yield _result_or_cancel(waiting.popleft(), end)
            if refill:
                waiting.extend(refill(len(waiting)))
    finally:
        for future in waiting:
            future.cancel()


def _result_or_cancel(future: JobFuture[T], end: float | None) -> T:
    try:
        try:
            return future.result(None if end is None else end - time.monotonic())
        finally:
            future.cancel()
    finally:
        del future  # a cycle with the traceback
