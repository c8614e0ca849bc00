"""SlurmExecutor: what users call."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from slurm_futures import checks, payload
from slurm_futures.batching import CallSet, Target, label
from slurm_futures.commands import arguments, completed
from slurm_futures.config import ExecutorConfig, load_config
from slurm_futures.core import Core, Scope
from slurm_futures.futures import JobFuture
from slurm_futures.mapping import Refill, pickle_calls, results
from slurm_futures.plan import make_plan
from slurm_futures.remote.states import JobState
from slurm_futures.resources import merge
from slurm_futures.script import parse_script
from slurm_futures.script_batch import ScriptJob

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import ParamSpec, Self, Unpack

    from slurm_futures.bash_script import BashScript
    from slurm_futures.resources import ResourceOptions

    P = ParamSpec('P')

T = TypeVar('T')

_ARRAY_SIZE = 1000
"""Tasks that a job array has room for by Slurm's default (MaxArraySize)."""

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
        executor._start(load_config(config), name)  # noqa: SLF001 - its own
        return executor

    def _start(self, config: ExecutorConfig, name: str) -> None:
        self.name = name
        self._join(Core(make_plan(config)), Target(), Scope(None))

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
        sibling._join(self._core, target, Scope(self._scope))  # noqa: SLF001 - its own
        return sibling

    @property
    def _max_workers(self) -> int:
        """How many calls may run at once; dask asks the standard executors for it."""
        resources = self._target.resources
        if resources is None:
            return self._core.login_workers
        return resources.array_parallelism or _ARRAY_SIZE

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
        script: str | os.PathLike[str] | BashScript,
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
                Slurm job if this executor has resources. Or a batch script: its text, the path of
                a local file (a PathLike) that holds it, or a `BashScript`.
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
            return self._submit_script(_rendered(fn), *args, **kwargs)
        codes: payload.Codes = {}
        try:
            function = payload.dump_function(fn, codes)
            arguments = payload.dump_arguments(args, kwargs, codes)
            target = self._target_with_modules(codes)
        except Exception as error:
            future = self._core.new_future(self._scope)
            self._core.refuse(future, error)
            return future
        future = self._core.new_future(self._scope)
        name = label(fn)
        self._core.put(lambda d: d.submit_call(future, target, name, function, arguments))
        return future

    def _target_with_modules(self, codes: payload.Codes) -> Target:
        """Return where calls run that carry this code, with the user's modules as they are now."""
        return replace(self._target, modules=self._core.take_snapshot(codes))

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
            return results(self._submit_all(fn, list(calls), chunksize), end)

        def submit(count: int) -> list[JobFuture[T]]:
            return self._submit_all(fn, list(islice(calls, count)), chunksize)

        # On the login node each result makes room for a call; a job for each would be too many.
        at_once = 1 if self._target.resources is None else buffersize // _REFILLS
        at_once = min(buffersize, max(chunksize, at_once))
        return results(submit(buffersize), end, Refill(submit, buffersize, at_once))

    def _submit_all(
        self, fn: Callable[..., T], calls: Sequence[tuple[Any, ...]], chunksize: int
    ) -> list[JobFuture[T]]:
        """Submit calls that are known together, as one job array."""
        work = CallSet(self._target, label(fn), chunksize)
        futures: list[JobFuture[T]] = []
        try:
            futures.extend(self._core.new_future(self._scope) for _ in calls)
            pairs = zip(futures, calls, strict=True)
            codes = pickle_calls(work, fn, pairs, self._core.refuse)
            self._submit_set(work, codes)
        except BaseException:  # Ctrl-C: nobody will ever hear of these calls
            for future in futures:
                future.cancel()
            raise
        return futures

    def _submit_set(self, work: CallSet, codes: payload.Codes) -> None:
        try:
            work.target = self._target_with_modules(codes)
        except Exception as error:
            for future, _, _ in work.calls:
                self._core.refuse(future, error)
        else:
            self._core.put(lambda dispatcher: dispatcher.submit_set(work))

    def run(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
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
        header = {
            'argv': command if isinstance(command, str) else arguments(command),
            'cwd': checks.named('cwd', checks.path, cwd) or self._target.cwd,
            'env': dict(checks.named('env', checks.environment, env) or ()),
            'has_input': input is not None,
            'timeout': checks.named('timeout', checks.not_negative, timeout),
        }
        body = checks.named('input', checks.text_input, input) or b''
        future = self._start_command(header, body)
        try:
            outcome = future.result()
        except BaseException:
            future.kill()  # Ctrl-C: the command goes with it
            raise
        finally:
            del future  # a cycle with the traceback
        return completed(header, outcome, check=check)

    def _start_command(self, header: Mapping[str, Any], body: bytes) -> JobFuture[Any]:
        future = self._core.new_future(self._scope)
        self._core.put(lambda dispatcher: dispatcher.run_command(future, header, body))
        return future

    # ---- ends

    def connect(self) -> Self:
        """Connect now rather than at the first use.

        Raises:
            ConnectionFailed: the agent cannot be started; the message says why.
        """
        self._core.connect()
        return self

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
    ) -> None:
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
            self._abort()
            return
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


def _read_script(path: os.PathLike[str]) -> str:
    # What is not UTF-8 is refused together with all else that a script must not be.
    return Path(path).read_text(encoding='utf-8', errors='surrogateescape')


def _rendered(script: object) -> str:
    from slurm_futures.bash_script import BashScript

    if not isinstance(script, BashScript):
        raise TypeError(f'submit() takes a function or a batch script, not {script!r}')
    return script.render()
