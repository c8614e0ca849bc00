"""The spool: a maildir on the cluster's shared file system, one per run.

A message is a file that appears in ``new/`` complete or not at all: written in ``tmp/``, fsynced,
renamed. Its first line is a JSON header, the rest its body. A claim is a symbolic link, whose
creation is atomic together with its content, on NFS too.
"""

from __future__ import annotations

import json
import os
import stat
import time

from .protocol import Header

TYPE_CHECKING = False  # see remote/__init__.py
if TYPE_CHECKING:
    from typing import Iterable, Sequence, Set, Tuple

FOLDERS = ('calls', 'claims', 'done', 'logs', 'new', 'tmp')
REVOKED = 'revoked'
"""The owner in whose name the client claims a task that must not run any more."""


class UnsafeFolder(Exception):
    """A folder that holds pickles belongs to somebody else, or others may write to it."""


def secure_folder(path: str) -> None:
    """Make sure that ``path`` is a folder that only its owner, the user, can write to.

    Raises:
        UnsafeFolder: it is not; what is in it must not be unpickled.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeFolder(f'{path} is not a folder')
    if status.st_uid != os.getuid():
        raise UnsafeFolder(f'{path} belongs to user id {status.st_uid}, not to {os.getuid()}')
    if status.st_mode & 0o022:
        raise UnsafeFolder(f'others may write to {path}: run chmod go-w on it')


class Spool:
    """The folder of one run."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.run = os.path.basename(folder)

    def path(self, kind: str, name: str = '') -> str:
        """Return the path of a file in one of ``FOLDERS``."""
        return os.path.join(self.folder, kind, name)

    def create(self) -> None:
        """Create what is missing of the run's folders."""
        for kind in FOLDERS:
            os.makedirs(self.path(kind), mode=0o700, exist_ok=True)

    def remove(self, keep_logs: bool) -> None:
        """Remove the run's folders, all of them or all but the logs."""
        import shutil  # costs 2 ms, which every task would pay

        for kind in FOLDERS:
            if kind != 'logs' or not keep_logs:
                shutil.rmtree(self.path(kind), ignore_errors=True)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, kind: str, name: str, pieces: Iterable[bytes]) -> str:
        """Write a file that appears complete or not at all; return its path."""
        self.stage(name, pieces)
        path = self.path(kind, name)
        os.rename(self.path('tmp', name), path)
        return path

    def stage(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write and fsync a file in ``tmp/``."""
        with open(self.path('tmp', name), 'wb') as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def post(self, topic: str, header: Header, body: Iterable[bytes] = ()) -> str:
        """Write a message; return its name once it is safely in ``new/``."""
        name = message_name(topic)
        self.stage(name, [message_line(header), *body])
        self.deliver(name)
        return name

    def deliver(self, name: str) -> None:
        """Move a message that is already complete in ``tmp/`` to ``new/``."""
        os.rename(self.path('tmp', name), self.path('new', name))
        self.sync_new()

    def sync_new(self) -> None:
        """Make renames into ``new/`` durable."""
        descriptor = os.open(self.path('new'), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def claim(self, name: str, owner: str) -> str:
        """Try to become the owner of ``name``; return whoever is its owner now.

        An NFS client that repeats a request sees its own success as EEXIST, so what counts
        is whose name the link holds.
        """
        path = self.path('claims', name)
        try:
            os.symlink(owner, path)
        except FileExistsError:
            return os.readlink(path)
        return owner

    def owner(self, name: str) -> str:
        """Return who has claimed ``name``, or an empty string."""
        try:
            return os.readlink(self.path('claims', name))
        except FileNotFoundError:
            return ''


def message_name(topic: str) -> str:
    """Return a name that no other message has; names of one topic sort by time."""
    # Clocks may be coarse or set back, and containers share host names and process ids.
    unique = f'{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}'
    return f'{topic}-{time.time_ns():020d}-{unique}'


def message_line(header: Header) -> bytes:
    """Return the first line of a message's file."""
    return json.dumps(header, separators=(',', ':')).encode() + b'\n'


def read_header(path: str) -> Tuple[Header, int]:
    """Return a message's header and where its body starts, in bytes."""
    with open(path, 'rb') as file:
        line = file.readline()
    if not line.endswith(b'\n'):
        raise ValueError(f'{path} is not a message: its first line is {line[:80]!r}')
    header: Header = json.loads(line)
    return header, len(line)


class DoneList:
    """Which calls of a task have outcomes, and the newest restart of the task.

    Outcomes are deleted once the client has recorded them; this list stays as long as the run, so
    that a task that Slurm starts again runs only what is left. A line is added when the message
    is complete in ``tmp/`` and names it: whatever dies between the line and the rename, the next
    start of the task finds the message and delivers it. A line has a newline before it and
    a full stop at its end, so that one that was cut off by a full disk or a crash neither counts
    nor spoils the next.
    """

    def __init__(self, spool: Spool, topic: str) -> None:
        self._spool = spool
        self._path = spool.path('done', topic)

    def read(self) -> Tuple[Set[int], Set[str], int]:
        """Return the finished calls, the messages that hold their outcomes, and the restart."""
        calls: Set[int] = set()
        names: Set[str] = set()
        restart = 0
        for word, numbers, name in self._lines():
            if word == 'restart':
                restart = max(restart, int(numbers))
            else:
                calls.update(map(int, numbers.split(',')))
                names.add(name)
        return calls, names, restart

    def _lines(self) -> Iterable[Tuple[str, str, str]]:
        try:
            with open(self._path, encoding='utf-8', errors='replace') as file:
                text = file.read()
        except FileNotFoundError:
            return
        for line in text.split('\n'):
            words = line.split(' ')
            if len(words) == 4 and words[3] == '.':
                yield words[0], words[1], words[2]

    def resume(self, restart: int) -> Set[int]:
        """Note a restart of the task, deliver what its last run left, return the finished calls."""
        self._append(f'restart {restart} -')
        calls, names, _ = self.read()
        for name in names:
            try:
                self._spool.deliver(name)
            except FileNotFoundError:  # delivered before, the normal case
                continue
        return calls

    def deliver(self, calls: Sequence[int], name: str) -> None:
        """Deliver a message that is complete in ``tmp/`` and holds the outcomes of ``calls``."""
        if calls:
            self._append(f'calls {",".join(map(str, calls))} {name}')
        self._spool.deliver(name)

    def _append(self, text: str) -> None:
        data = f'\n{text} .\n'.encode()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
