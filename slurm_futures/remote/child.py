"""The process that runs calls, one by one, and nothing else.

It is forked by a supervisor, which it gets commands from and sends outcomes to over two pipes.
Whatever a call does to it (a segmentation fault, ``os._exit``, being killed for its memory) ends
this process only. What calls print goes to the file descriptors 1 and 2 and never near the pipes.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import time
import types
from typing import TYPE_CHECKING, Any, List, NamedTuple, NoReturn, Optional, Tuple

from .protocol import LARGE, CallsFile, Header, Inbox, encode
from .spool import Spool, message_line, message_name

if TYPE_CHECKING:
    import subprocess

Outcome = Tuple[Header, bytes]

TERM_TIMEOUT = 2.0
"""Seconds that a command has between SIGTERM and SIGKILL when its time is up."""


class Context(NamedTuple):
    """What a child knows of the supervisor that forked it."""

    spool: Spool
    topic: str
    header: Header  # of every message this supervisor writes
    sys_path: List[str]


class Pipes(NamedTuple):
    """The child's ends of its pipes."""

    commands: int
    events: int


def serve(pipes: Pipes, context: Context) -> NoReturn:
    """Run commands until the supervisor closes the pipe; never return."""
    _leave_the_supervisor_behind(context)
    runner = _Runner(context)
    inbox = Inbox()
    while True:
        data = os.read(pipes.commands, LARGE)
        if not data:
            os._exit(0)
        for command, body in inbox.feed(data):
            _write(pipes.events, runner.run(command, body))


def _leave_the_supervisor_behind(context: Context) -> None:
    """Give user code the surroundings of a fresh interpreter."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if null > 2:
        os.close(null)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    sys.modules['__main__'] = types.ModuleType('__main__')
    sys.argv = ['']
    sys.path.extend(entry for entry in context.sys_path if entry not in sys.path)


def _write(descriptor: int, outcome: Outcome) -> None:
    data = memoryview(encode(*outcome))
    while data:
        data = data[os.write(descriptor, data) :]


class _Runner:
    """Runs commands and turns whatever comes of them into outcomes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._calls: Optional[CallsFile] = None
        self._function: Tuple[Tuple[int, int], Any] = ((-1, 0), None)

    def run(self, command: Header, body: bytes) -> Outcome:
        """Run one command; the outcome of a large result is a message in ``tmp/`` by then."""
        started = time.monotonic()
        if command['do'] == 'command':
            header, result = _run_command(command, body)
        else:
            header, result = self._run_call(command, body)
        flush()
        header.update(
            event='outcome',
            call=command['call'],
            at=time.time(),
            seconds=round(time.monotonic() - started, 6),
            size=len(result),
            log_end=log_sizes(),
        )
        if len(result) > LARGE:
            return self._stage(header, result), b''
        return header, result

    def _stage(self, item: Header, result: bytes) -> Header:
        context = self._context
        name = message_name(context.topic)
        line = message_line(dict(context.header, items=[item]))
        context.spool.stage(name, [line, result])
        return dict(item, file=name)

    def _run_call(self, command: Header, body: bytes) -> Outcome:
        stage = 'load'
        try:
            os.chdir(command['cwd'])
            function, (args, kwargs) = self._load(command, body)
            stage = 'run'
            value = function(*args, **kwargs)
            stage = 'result'
            return {'kind': 'value'}, dumps(value)
        except BaseException as error:  # also SystemExit: it is the call's, not the worker's
            return _error(error, stage)

    def _load(self, command: Header, body: bytes) -> Tuple[Any, Any]:
        import pickle

        if 'sizes' in command:
            split = command['sizes'][0]
            return pickle.loads(body[:split]), pickle.loads(body[split:])
        if self._calls is None or self._calls.path != command['path']:
            self._calls = CallsFile(command['path'])
            self._function = ((-1, 0), None)
        call = self._calls[command['index']]
        where = (call.fn_start, call.fn_size)
        if self._function[0] != where:
            self._function = (where, pickle.loads(self._calls.read(*where)))
        args = pickle.loads(self._calls.read(call.args_start, call.args_size))
        return self._function[1], args


def _run_command(command: Header, body: bytes) -> Outcome:
    import subprocess

    argv = command['argv']
    if isinstance(argv, str):
        argv = ['/bin/bash' if os.path.exists('/bin/bash') else '/bin/sh', '-c', argv]
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv,
            cwd=command['cwd'],
            env=dict(os.environ, **command['env']),
            stdin=pipe if command['has_input'] else subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
    except (OSError, ValueError) as error:
        return _error(error, 'run')
    kind = 'completed'
    try:
        out, err = process.communicate(body or None, timeout=command['timeout'])
    except subprocess.TimeoutExpired:
        kind = 'timeout'
        out, err = _end(process)
    header = {'kind': kind, 'returncode': process.returncode, 'sizes': [len(out), len(err)]}
    return header, out + err


def _end(process: subprocess.Popen[bytes]) -> Tuple[bytes, bytes]:
    """End a command and what it started; return what it had printed."""
    import subprocess

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process leads the group that gets it
    os.killpg(0, signal.SIGTERM)
    try:
        return process.communicate(timeout=TERM_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        for stream in (process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)  # type: ignore[union-attr]
        return process.communicate()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _error(error: BaseException, stage: str) -> Outcome:
    """Describe an exception so that the client can rebuild it, or at least print it."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        text = ''.join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:
        text = f'{type(error).__qualname__} (its text cannot be had: {broken!r})\n'
    try:
        pickled = dumps(error)
    except Exception:
        pickled = b''
    name = f'{type(error).__module__}.{type(error).__qualname__}'
    header: Header = {'kind': 'error', 'stage': stage, 'text': text, 'type': name}
    if isinstance(error, ImportError):
        header['module'] = error.name
    return header, pickled


def dumps(value: Any) -> bytes:
    """Pickle what goes back to the client.

    A class that came from the client by value goes back by name, together with a copy for the
    case that the client, perhaps a new process by then, has no class of that name any more.
    """
    buffer = io.BytesIO()
    _pickler()(buffer, protocol=5).dump(value)
    return buffer.getvalue()


@functools.lru_cache(maxsize=1)
def _pickler() -> Any:
    import cloudpickle
    from cloudpickle import cloudpickle as internals

    class OutcomePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> Optional[Tuple[str, str, str, bytes]]:
            if not issubclass(type(obj), type):
                return None
            # cloudpickle has no public way to tell which class it took from another process.
            tracker = internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(obj)
            if tracker is None:
                return None
            return obj.__module__, obj.__qualname__, tracker, cloudpickle.dumps(obj)

    return OutcomePickler


def flush() -> None:
    """Write out what Python has buffered of what a call printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed or replaced by the call: its choice
            continue


def log_sizes() -> List[int]:
    """Return how many bytes the files behind stdout and stderr have."""
    return [os.fstat(descriptor).st_size for descriptor in (1, 2)]
