"""The process that runs calls, one by one, and nothing else.

It is forked by a supervisor, which it gets commands from and sends outcomes to over two pipes.
Whatever a call does to it (a segmentation fault, ``os._exit``, being killed for its memory) ends
this process only. What calls print goes to the file descriptors 1 and 2 and never near the pipes.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import time
import types
from collections import namedtuple

from .page import Begun, Page
from .protocol import LARGE, CallsFile, Header, Inbox, encode
from .results import Outcome, describe_error, dumps
from .spool import Spool, message_line, message_name

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import Any, Iterator, List, NoReturn, Optional, Tuple


class Context:
    """What a child knows of the supervisor that forked it.

    Args:
        spool: of the run.
        topic: what messages are called.
        header: of every message this supervisor writes.
        sys_path: folders to look for modules in, after the interpreter's own.
        modules: the folder to look for modules in first; None: there is none.
        places: the most calls of one command.
    """

    def __init__(
        self,
        spool: Spool,
        topic: str,
        header: Header,
        sys_path: List[str],
        modules: Optional[str] = None,
        places: int = 1,
    ) -> None:
        self.spool = spool
        self.topic = topic
        self.header = header
        self.sys_path = sys_path
        self.modules = modules
        self.places = places


class Pipes(namedtuple('Pipes', 'commands events')):
    """The child's ends of its pipes."""

    __slots__ = ()


def serve(pipes: Pipes, context: Context, page: Page) -> NoReturn:
    """Run commands until the supervisor closes the pipe; never return."""
    _leave_the_supervisor_behind(pipes, context)
    runner = _Runner(context, page)
    inbox = Inbox()
    while True:
        data = os.read(pipes.commands, LARGE)
        if not data:
            os._exit(0)
        for command, body in inbox.feed(data):
            for outcome in runner.run(command, body):
                _write(pipes.events, outcome)


def _leave_the_supervisor_behind(pipes: Pipes, context: Context) -> None:
    """Give user code the surroundings of a fresh interpreter."""
    os.setpgid(0, 0)
    _close_all_but(pipes)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # blocked since the fork
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
    if context.modules is not None:
        _put_first(context.modules)


def _put_first(folder: str) -> None:
    """Have modules imported from a folder, before all others that have the same name."""
    try:
        names = {name.partition('.')[0] for name in os.listdir(folder)}
    except OSError:  # whoever needs a module will miss it
        names = set()
    # Python knows them since 3.10, and calls come from no older one.
    if not names.isdisjoint(getattr(sys, 'stdlib_module_names', ())):
        _import_what_is_missing()
    sys.path.insert(0, folder)


def _import_what_is_missing() -> None:
    """Import what this process imports when it needs it, while that is still what it expects."""
    for name in ('subprocess', 'traceback', 'cloudpickle'):
        __import__(name)


def _close_all_but(pipes: Pipes) -> None:
    """Close what the supervisor has opened: who waits for its end must not wait for user code."""
    for name in os.listdir('/proc/self/fd'):
        descriptor = int(name)
        try:
            if descriptor not in pipes and not os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:
            continue  # the one that listed the others


def _write(descriptor: int, outcome: Outcome) -> None:
    data = memoryview(encode(*outcome))
    while data:
        data = data[os.write(descriptor, data) :]


class _Runner:
    """Runs commands and turns whatever comes of them into outcomes."""

    def __init__(self, context: Context, page: Page) -> None:
        self._context = context
        self._page = page
        self._calls: Optional[CallsFile] = None
        self._function: Tuple[Tuple[int, int], Any] = ((-1, 0), None)

    def run(self, command: Header, body: bytes) -> Iterator[Outcome]:
        """Run a command, and yield the outcome of each of its calls as soon as it is there."""
        if command['do'] != 'calls':
            yield self._run_one(command, body)
            return
        first = command['first']
        for index in command['indices']:
            if self._page.stopped:
                break
            one = dict(command, call=first + index, index=index)
            if self._page.is_unwanted(index - command['base']):
                yield {'event': 'outcome', 'kind': 'cancelled', 'call': one['call'], 'size': 0}, b''
            else:
                yield self._run_one(one, b'')
        yield {'event': 'idle'}, b''

    def _run_one(self, command: Header, body: bytes) -> Outcome:
        """Run one call; the outcome of a large result is a message in ``tmp/`` by then."""
        begun = Begun(command['call'], time.time(), *log_sizes())
        self._page.begin(begun)
        outcome = self._outcome(command, body, begun)
        self._page.end()
        return outcome

    def _outcome(self, command: Header, body: bytes, begun: Begun) -> Outcome:
        if command['do'] == 'command':
            from .command import run_command  # imports what no task needs

            header, result = run_command(command, body, self._page)
        else:
            header, result = self._run_call(command, body)
        flush()
        facts = {
            'event': 'outcome',
            'call': begun.call,
            'began': begun.at,
            'at': time.time(),
            'log': [begun.out, begun.err],
            'log_end': log_sizes(),
        }
        header.update(facts, size=len(result))
        if len(result) > LARGE:
            try:
                return self._stage(header, result), b''
            except OSError as error:  # such as a full disk
                header, result = describe_error(error, 'result')
                header.update(facts, size=len(result))
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
            return describe_error(error, stage)

    def _load(self, command: Header, body: bytes) -> Tuple[Any, Any]:
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


def flush() -> None:
    """Write out what Python has buffered of what a call printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed, or replaced by whatever: the call's choice
            continue


def log_sizes() -> List[int]:
    """Return how many bytes the files behind stdout and stderr have."""
    return [_size(descriptor) for descriptor in (1, 2)]


def _size(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_size
    except OSError:  # closed by the call
        return 0
