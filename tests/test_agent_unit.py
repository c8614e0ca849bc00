"""The real agent over a real byte stream, as the client opens it; no Slurm."""

from __future__ import annotations

import operator
import os
import select
import shlex
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers import PATIENCE, find_python, is_gone, listed, wait_for
from slurm_futures import payload
from slurm_futures.errors import ConnectionFailed
from slurm_futures.line import Recipe, open_line
from slurm_futures.remote.protocol import frames
from slurm_futures.remote.spool import Spool
from slurm_futures.transports.local import LocalTransport

SLURM = {'slurm': {'sbatch_bin': '/no/such/sbatch', 'squeue_bin': '/no/such/squeue'}}
LOCAL = {'local': {'max_jobs': 2, 'daemon': {'idle': 0.2}}}


def recipe(
    work_dir: Path | str,
    python_cmd: str = sys.executable,
    setup: str = '',
    queue: Mapping[str, Any] = SLURM,
) -> Recipe:
    """Return how to start an agent on this machine."""
    config = {
        'run': 'run1',
        'work_dir': str(work_dir),
        'login_workers': 2,
        'sys_path': [],
        **queue,
    }
    return Recipe(LocalTransport(), python_cmd, setup, config)


class Client:
    """The client's end of a line, in a test's simple hands.

    Attributes:
        arrived: the messages that nobody has taken yet.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.line = open_line(recipe)
        self.hello = self.line.hello
        self.spool = Spool(self.hello['folder'])
        self.arrived = list(self.line.early)
        self._sent = 0
        self._closed = False

    def tell(self, do: str, body: bytes = b'', **header: Any) -> int:
        """Send a request; return its id."""
        self._sent += 1
        data = memoryview(
            b''.join(frames(self._sent, {'do': do, 'id': self._sent, **header}, body))
        )
        while data:
            data = data[self._send(data) :]
        return self._sent

    def _send(self, data: memoryview) -> int:
        try:
            return self.line.stream.send(data)
        except BlockingIOError:
            time.sleep(0.005)
            return 0

    def ask(self, do: str, body: bytes = b'', **header: Any) -> tuple[dict[str, Any], bytes]:
        """Return the reply to a request."""
        number = self.tell(do, body, **header)
        return self.await_message(lambda header: header.get('id') == number)

    def await_event(self, event: str, **facts: Any) -> tuple[dict[str, Any], bytes]:
        """Return the first message that is this event, and take it off the pile."""
        wanted = {'event': event, **facts}
        return self.await_message(lambda header: header.items() >= wanted.items())

    def await_message(
        self, wanted: Callable[[dict[str, Any]], bool]
    ) -> tuple[dict[str, Any], bytes]:
        """Return the first message that is wanted, and take it off the pile."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for message in self.arrived:
                if wanted(message[0]):
                    self.arrived.remove(message)
                    return message
            left = deadline - time.monotonic()
            select.select([self.line.stream.fileno()], [], [], max(0.0, left))
            try:
                data = self.line.stream.recv(1 << 20)
            except BlockingIOError:
                assert left > 0, f'no such message, but {[m[0] for m in self.arrived]}'
                continue
            assert data, f'the agent has ended: {self.line.stream.stderr()}'
            self.arrived += self.line.inbox.feed(data)

    def call(self, number: int, function: Callable[..., Any], *args: Any, **more: Any) -> None:
        """Send a call for a login worker."""
        parts = payload.dump_function(function), payload.dump_arguments(args, {})
        header: dict[str, Any] = {'do_kind': 'call', 'call': number, 'cwd': '/', 'python': None}
        header.update(more)
        self.tell('call', b''.join(parts), sizes=[len(part) for part in parts], **header)

    def command(self, number: int, argv: str | list[str]) -> None:
        """Send a command."""
        header: dict[str, Any] = {'cwd': '/', 'env': {}, 'timeout': None, 'has_input': False}
        self.tell('call', do_kind='command', call=number, argv=argv, **header)

    def outcome(self, number: int) -> Any:
        """Return the value of a login call."""
        header, body = self.await_event('outcome', call=number)
        assert header['kind'] == 'value', header
        return payload.load_value(body)

    def close(self) -> None:
        """Go away."""
        if not self._closed:
            self._closed = True
            self.line.stream.close()


@pytest.fixture
def connect(work_dir: Path) -> Iterator[Callable[..., Client]]:
    """Opens lines; keywords are those of recipe."""
    clients: list[Client] = []

    def connect(**settings: Any) -> Client:
        clients.append(Client(recipe(work_dir, **settings)))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


Connect = Callable[..., Client]


# ---- opening a line


def test_hello(connect: Connect, work_dir: Path) -> None:
    """The agent says who and where it is; its folder is the user's alone."""
    hello = connect().hello
    assert hello['work_dir'] == str(work_dir)
    assert hello['folder'] == f'{work_dir}/.slurm_futures/runs/run1'
    assert hello['entry'].startswith(f'{work_dir}/.slurm_futures/lib/')
    assert hello['python'] == list(sys.version_info[:3])
    assert hello['host'] == os.uname().nodename
    assert (work_dir / '.slurm_futures').stat().st_mode & 0o777 == 0o700


def test_a_work_dir_is_created(work_dir: Path) -> None:
    """A missing work_dir is created for the user alone; a tilde is the login node's home."""
    client = Client(recipe(work_dir / 'new' / 'deep'))
    assert (work_dir / 'new' / 'deep').stat().st_mode & 0o777 == 0o700
    client.close()
    setup = f'export HOME={shlex.quote(str(work_dir))}'
    for name in ('~/there', 'there'):
        client = Client(recipe(name, setup=setup))
        assert client.hello['work_dir'] == str(work_dir / 'there')
        client.close()


@pytest.mark.parametrize(
    'setup',
    [
        'echo welcome; echo motd >&2',
        'printf "no newline"',
        "printf '\\0\\377binary\\n\\n'; head -c 300000 /dev/urandom",
        'echo "deadbeef ready"; echo ready; echo "python 2.7.1"',
        'cat; read -r line; dd bs=1 count=5',
        'trap "echo bye" EXIT; set -euo pipefail; cd /',
        'export A="it\'s" # a comment',
    ],
)
def test_noise_before_the_agent(connect: Connect, setup: str) -> None:
    """Whatever setup lines and login scripts print or read, the agent is understood."""
    assert connect(setup=setup).ask('ping')[0].keys() == {'id'}


def test_setup_is_the_agents_environment(connect: Connect) -> None:
    """What setup exports is seen by commands and calls on the login node."""
    client = connect(setup='export FROM_SETUP=yes')
    client.command(1, 'echo $FROM_SETUP')
    _, body = client.await_event('outcome', call=1)
    assert body == b'yes\n'
    client.call(2, os.getenv, 'FROM_SETUP')
    assert client.outcome(2) == 'yes'


@pytest.mark.parametrize('version', ['2.7', '3.6', '3.7'])
def test_a_python_that_is_too_old(work_dir: Path, version: str) -> None:
    """An old interpreter is named with its version, and what to do about it."""
    old = find_python(version) or pytest.skip(f'there is no Python {version} here')
    with pytest.raises(ConnectionFailed) as caught:
        open_line(recipe(work_dir, python_cmd=old))
    for words in (old, f'is Python {version}', 'needs 3.8', 'python_cmd'):
        assert words in str(caught.value)


@pytest.mark.parametrize('version', ['3.8', '3.13'])
def test_other_supported_pythons(work_dir: Path, version: str) -> None:
    """The agent and its workers for commands run on any Python since 3.8."""
    python = find_python(version) or pytest.skip(f'there is no Python {version} here')
    client = Client(recipe(work_dir, python_cmd=python))
    assert client.hello['python'][:2] == [int(word) for word in version.split('.')]
    client.command(1, ['echo', 'here'])
    _, body = client.await_event('outcome', call=1)
    assert body == b'here\n'
    client.call(2, operator.add, 1, 2)
    assert client.outcome(2) == 3
    assert client.ask('close', remove=True, keep_logs=False)[0].keys() == {'id'}
    client.close()


@pytest.mark.parametrize(
    ('python_cmd', 'setup', 'words'),
    [
        ('/no/such/python', '', ['/no/such/python', 'python_cmd']),
        ('/no/such/python', ':', ['/no/such/python', 'No such file', 'python_cmd']),
        ('/bin/true', '', ['/bin/true', 'did not start', 'python_cmd']),
        ('/bin/cat', '', ['/bin/cat', 'did not start', 'python_cmd']),
        (sys.executable, 'echo oh dear; exit 3', ['setup', 'oh dear']),
        (sys.executable, 'if', ['setup', 'syntax error']),
    ],
)
def test_no_agent(work_dir: Path, python_cmd: str, setup: str, words: list[str]) -> None:
    """What keeps the agent from starting is named, with what was printed and what to change."""
    with pytest.raises(ConnectionFailed) as caught:
        open_line(recipe(work_dir, python_cmd=python_cmd, setup=setup))
    for word in words:
        assert word in str(caught.value)


def test_a_folder_that_cannot_be_made(work_dir: Path) -> None:
    """A work_dir that cannot be is named, as the setting to change."""
    (work_dir / 'file').touch()
    path = work_dir / 'file' / 'below'
    with pytest.raises(ConnectionFailed, match='cannot use work_dir') as caught:
        open_line(recipe(path))
    assert str(path) in str(caught.value)


@pytest.mark.skipif(os.getuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written(work_dir: Path) -> None:
    """A work_dir without permission to write is named, as the setting to change."""
    folder = work_dir / 'readonly'
    folder.mkdir(mode=0o500)
    with pytest.raises(ConnectionFailed, match='cannot use work_dir') as caught:
        open_line(recipe(folder))
    assert 'Permission denied' in str(caught.value)


@pytest.mark.parametrize(
    ('mode', 'words'), [(0o770, 'chmod go-w'), (None, 'is not a folder')], ids=['open', 'file']
)
def test_an_unsafe_folder(work_dir: Path, mode: int | None, words: str) -> None:
    """Pickles are not read from a folder that others may write to."""
    root = work_dir / '.slurm_futures'
    if mode is None:
        root.touch()
    else:
        root.mkdir()
        root.chmod(mode)
    with pytest.raises(ConnectionFailed, match=words):
        open_line(recipe(work_dir))


# ---- requests


def test_login_calls_and_commands(connect: Connect) -> None:
    """Calls and commands run side by side, each with its own outcome."""
    client = connect()
    for number in range(1, 9):
        client.call(number, operator.add, number, 1)
    client.command(9, ['printf', '%s', '$HOME'])
    assert [client.outcome(number) for number in range(1, 9)] == list(range(2, 10))
    _, body = client.await_event('outcome', call=9)
    assert body == b'$HOME'


def test_large_calls(connect: Connect) -> None:
    """Large arguments and results take their way through files, and leave none behind."""
    client = connect()
    data = os.urandom(3 << 20)
    client.call(1, bytes.upper, data)
    header, body = client.await_event('message')
    assert payload.load_value(body) == data.upper()
    assert [item['call'] for item in header['message']['items']] == [1]
    assert listed(client.spool, 'calls') == []
    client.tell('ack', names=[header['name']])
    wait_for(lambda: listed(client.spool, 'new') == [])


def test_a_worker_that_dies(connect: Connect) -> None:
    """The death of a worker ends its call, and no other."""
    client = connect()
    client.call(1, time.sleep, 60)
    begun, _ = client.await_event('begun', call=1)
    os.kill(begun['pid'], 9)
    header, _ = client.await_event('outcome', call=1)
    assert (header['kind'], header['signal']) == ('died', 9)
    client.call(2, operator.add, 1, 1)
    assert client.outcome(2) == 2


def test_a_worker_that_dies_with_a_command(connect: Connect, work_dir: Path) -> None:
    """What is reported as dead is dead: no command lives on behind a worker that was killed."""
    client = connect()
    path = work_dir / 'pid'
    client.command(1, f'echo $$ >{shlex.quote(str(path))}; sleep 61.4; true')
    begun, _ = client.await_event('begun', call=1)
    pid = int(wait_for(lambda: path.exists() and path.read_text()))
    os.kill(begun['pid'], 9)
    header, _ = client.await_event('outcome', call=1)
    assert (header['kind'], header['signal']) == ('died', 9)
    assert wait_for(lambda: is_gone(pid))


def test_dropped_calls(connect: Connect) -> None:
    """A call that waits for a worker is forgotten, one under way is ended."""
    client = connect()
    for number in (1, 2, 3):
        client.call(number, time.sleep, 60)
    client.await_event('begun', call=1)
    client.await_event('begun', call=2)
    for number in (3, 2, 1):
        client.tell('drop', call=number)
    for number in (1, 2):
        assert client.await_event('outcome', call=number)[0]['kind'] == 'killed'
    client.call(4, operator.add, 1, 1)
    assert client.outcome(4) == 2
    assert client.spool.owner('call-3') == ''


def test_an_interpreter_that_cannot_be_started(connect: Connect) -> None:
    """Calls for an interpreter that is not there, or is none, fail with its words."""
    client = connect()
    for number, python in enumerate(('/no/such/python', '/bin/false', '/bin/ls'), 1):
        client.call(number, operator.add, 1, 1, python=python)
        header, _ = client.await_event('outcome', call=number)
        assert header['kind'] == 'unstartable'
    assert client.ask('python', python=sys.executable)[0]['version'].count('.') == 2
    assert 'error' in client.ask('python', python='/no/such/python')[0]


MODULES = {'only_shipped.py': b'answer = 42\n', 'pack/__init__.py': b'', 'pack/tool': b'#!'}


def ship(client: Client, digest: str, files: dict[str, bytes]) -> None:
    """Put modules into the agent's library."""
    sizes = {name: len(content) for name, content in files.items()}
    assert client.ask('lacking', modules=digest, sizes=sizes)[0]['names'] == list(files)
    body = b''.join(files.values())
    reply, _ = client.ask('put', body, modules=digest, sizes=sizes, programs=['pack/tool'])
    assert 'error' not in reply
    assert client.ask('lacking', modules=digest, sizes=sizes)[0]['names'] == []


def answer() -> int:
    """Look for what has been shipped."""
    import only_shipped  # type: ignore[import-not-found]

    return int(only_shipped.answer)


def test_modules_are_shipped(connect: Connect) -> None:
    """The agent says what it lacks, writes it into its library, and gives it to workers."""
    client = connect()
    ship(client, 'digest1', MODULES)
    ship(client, 'digest2', {**MODULES, 'only_shipped.py': b'answer = 43\n'})
    folder = Path(client.hello['library'], 'digest1')
    assert (folder / 'pack' / 'tool').stat().st_mode & 0o100
    typed_in = types.FunctionType(answer.__code__, {'int': int}, 'typed_in')
    typed_in.__module__ = '__main__'
    for number, digest in enumerate(['digest1', 'digest2', 'digest1'], 1):
        client.call(number, typed_in, modules=digest)
    assert [client.outcome(number) for number in (1, 2, 3)] == [42, 43, 42]
    client.call(4, typed_in)
    assert client.await_event('outcome', call=4)[0]['module'] == 'only_shipped'


def test_modules_that_cannot_be_written(connect: Connect) -> None:
    """What keeps them from being written is the answer, and leaves nothing behind."""
    client = connect()
    library = Path(client.hello['library'])
    before = set(library.iterdir())
    sizes = {'a.py': 1, 'a.py/b.py': 1}
    reply, _ = client.ask('put', b'xy', modules='digest', sizes=sizes, programs=[])
    assert 'FileExistsError' in reply['error']
    assert set(library.iterdir()) == before


def test_workers_make_room_for_others(connect: Connect) -> None:
    """Whatever modules they have, so many run at a time; an idle one goes when another has to come.

    Calls begin in the order in which they came.
    """
    client = connect()  # with two workers
    for digest in ('digest1', 'digest2'):
        ship(client, digest, MODULES)
    for number, digest in enumerate(['digest1', 'digest1'], 1):
        client.call(number, os.getppid, modules=digest)
    first = {client.outcome(number) for number in (1, 2)}
    client.call(3, time.sleep, 60, modules='digest2')
    client.call(4, time.sleep, 60, modules='digest1')
    client.await_event('begun', call=3)
    client.await_event('begun', call=4)
    client.call(5, os.getppid, modules='digest1')
    client.call(6, os.getppid, modules='digest2')
    client.ask('ping')
    assert not [header for header, _ in client.arrived if header.get('call') in (5, 6)]
    client.tell('drop', call=3)
    client.await_event('outcome', call=3)
    # In the place of the worker that has become idle and has other modules.
    assert client.outcome(5) not in first
    assert client.outcome(6) not in first
    client.tell('drop', call=4)
    client.await_event('outcome', call=4)
    wait_for(lambda: sum(not is_gone(pid) for pid in first) <= 1)


def test_an_idle_worker_with_the_same_modules_is_used(connect: Connect) -> None:
    """Calls with different modules in turn find a warm worker each, as long as there is room."""
    client = connect()
    ship(client, 'digest1', MODULES)
    pids = []
    for number in range(1, 9):
        client.call(number, os.getppid, modules='digest1' if number % 2 else None)
        pids.append(client.outcome(number))
    assert len(set(pids)) == 2


def test_messages_are_pushed(connect: Connect) -> None:
    """Messages are sent once to each agent's client, and stay until they are acknowledged.

    What lies in the spool is sent at once, what comes later while the client watches.
    """
    client = connect()
    early = client.spool.post('1.0', {'batch': 1}, [b'early'])
    client.tell('watch', on=True)
    header, body = client.await_event('message', name=early)
    assert (header['message'], body) == ({'batch': 1}, b'early')
    large = client.spool.post('1.1', {'batch': 2}, [bytes(2 << 20)])
    later = client.spool.post('1.2', {'batch': 3}, [b'later'])
    assert client.await_event('message', name=later)[1] == b'later'
    assert client.await_event('message', name=large)[1] == bytes(2 << 20)
    client.tell('ack', names=[early])
    wait_for(lambda: set(listed(client.spool, 'new')) == {large, later})
    second = connect()
    assert second.await_event('message', name=later)[1] == b'later'
    assert second.await_event('message', name=large)[1] == bytes(2 << 20)


def test_all_messages_have_been_sent(connect: Connect) -> None:
    """Whoever asks for it learns that all is sent that the spool held, large messages too."""
    client = connect()
    client.spool.post('1.0', {'batch': 1}, [bytes(4 << 20)])
    client.spool.post('1.1', {'batch': 2}, [b'small'])
    client.ask('catch_up')
    sent = [header['message']['batch'] for header, _ in client.arrived if 'message' in header]
    assert sorted(sent) == [1, 2]


def test_a_submission_that_cannot_be_claimed(connect: Connect) -> None:
    """Where not even a claim can be written, nothing is submitted, and that is said."""
    client = connect()
    claims = Path(client.spool.path('claims'))
    claims.rmdir()
    claims.touch()
    reply, _ = client.ask('submit', batch=1, token='run1-1.1')
    assert reply['kind'] == 'refused'
    assert 'claims' in reply['stderr']


@pytest.mark.parametrize('version', ['3.8', ''])
def test_embedded_queue(connect: Connect, work_dir: Path, version: str) -> None:
    """A batch goes to the queue of this machine, which reads no #SBATCH lines: it is told them."""
    python = find_python(version) if version else sys.executable
    client = connect(queue=LOCAL, python_cmd=python or pytest.skip(f'no Python {version} here'))
    script = b'#!/bin/bash\n#SBATCH --array=0-9\necho $SLURM_JOB_NAME $SLURM_ARRAY_TASK_ID\n'
    order = {
        'batch': 1,
        'token': 'run1-1.1',
        'options': ['--job-name=mine', f'--chdir={work_dir}'],
        'script_options': [['array', '1,3'], ['output', '%a.txt']],
        'cwd': str(work_dir),
        'mkdir': False,
        'folders': [],
        'script_size': len(script),
    }
    reply, _ = client.ask('submit', script, **order)
    assert (reply['kind'], reply['job_id']) == ('submitted', '1')
    assert client.ask('lookup', token='run1-1.1', clusters='')[0]['job_id'] == '1'

    def states() -> set[str]:
        return {row[2] for row in client.ask('query', clusters='')[0]['rows']}

    assert wait_for(lambda: states() == {'COMPLETED'})
    found = {path.name: path.read_text() for path in work_dir.glob('*.txt')}
    assert found == {'1.txt': 'mine 1\n', '3.txt': 'mine 3\n'}
    assert client.ask('limits')[0]['known']
    history = client.ask('history', jobs=['1'], clusters='')[0]
    assert [row[4] for row in history['rows']] == [0, 0]
    assert client.ask('scancel', jobs=['1'], clusters='')[0]['ok']


def test_embedded_queue_of_another_host(connect: Connect, work_dir: Path) -> None:
    """The jobs of a run stay on the host where its first agent was: another does not see them."""
    claims = work_dir / '.slurm_futures' / 'runs' / 'run1' / 'claims'
    claims.mkdir(parents=True)
    for folder in (work_dir / '.slurm_futures', *claims.parents[:2]):
        folder.chmod(0o700)
    (claims / 'queue').symlink_to('elsewhere')
    reply, _ = connect(queue=LOCAL).ask('query', clusters='')
    assert not reply['ok']
    assert 'are in the embedded queue of elsewhere, not of' in reply['error']


def test_junk_among_the_messages(connect: Connect) -> None:
    """A file that is no message keeps nobody from reading the others."""
    client = connect()
    Path(client.spool.path('new', '0-junk')).write_bytes(b'\0\0\0')
    Path(client.spool.path('new', '1-junk')).write_bytes(b'no json\n')
    name = client.spool.post('1.0', {'batch': 1})
    client.tell('watch', on=True)
    client.await_event('message', name=name)
    other = client.spool.post('1.0', {'batch': 2})
    client.await_event('message', name=other)


def test_ten_thousand_names(connect: Connect) -> None:
    """An acknowledgement may be larger than a frame."""
    client = connect()
    name = client.spool.post('1.0', {})
    client.tell('watch', on=True)
    client.await_event('message', name=name)
    client.tell('ack', names=[*(f'no-such-message-{n:030d}' for n in range(10_000)), name])
    wait_for(lambda: listed(client.spool, 'new') == [])


def test_orders_about_tasks(connect: Connect) -> None:
    """Tasks are revoked unless they have begun; calls are noted as not wanted; owners are told."""
    client = connect()
    client.spool.claim('1.1', 'job:12')
    assert client.ask('revoke', tasks=['1.0', '1.1'])[0]['owners'] == ['revoked', 'job:12']
    client.ask('discard', batch=1, how='cancel', calls=[3, 4])
    client.ask('discard', batch=1, how='kill', calls=[5])
    text = Path(client.spool.path('calls', '1.cancel')).read_text()
    assert text == 'cancel 3\ncancel 4\nkill 5\n'
    client.call(7, operator.add, 1, 1)
    client.outcome(7)
    owner, _ = client.ask('owner', call=7)
    assert (owner['alive'], owner['owner']) == (True, client.spool.owner('call-7'))
    nobody, _ = client.ask('owner', call=8)
    assert (nobody['alive'], nobody['owner'], nobody['lease']) == (False, '', '')


@pytest.mark.parametrize(
    ('span', 'found'),
    [
        ((0, None, 100), b'0123456789'),
        ((3, None, 100), b'3456789'),
        ((3, 5, 100), b'34'),
        ((0, None, 4), b'6789'),
        ((2, 8, 3), b'567'),
        ((5, 50, 100), b'56789'),
        ((50, None, 100), b''),
        ((5, 3, 100), b''),
    ],
)
def test_tails(connect: Connect, work_dir: Path, span: tuple[Any, ...], found: bytes) -> None:
    """Of a log one part is read, and of that no more than its end."""
    path = work_dir / 'log'
    path.write_bytes(b'0123456789')
    client = connect()

    def tail(path: str) -> tuple[dict[str, Any], bytes]:
        start, end, limit = span
        return client.ask('tail', path=path, start=start, end=end, limit=limit)

    assert tail(str(path))[1] == found
    assert tail(f'{path}.none')[0]['missing'] is True
    assert 'error' in tail(str(work_dir))[0]


def test_a_request_that_fails(connect: Connect) -> None:
    """What goes wrong with one request is its reply; the others go on."""
    client = connect()
    assert 'KeyError' in client.ask('tail')[0]['error']
    assert client.ask('ping')[0].keys() == {'id'}


# ---- ends


def test_the_stream_closes(connect: Connect) -> None:
    """An agent whose client has gone ends with its idle workers, and leaves the run's folder."""
    client = connect()
    client.call(1, os.getppid)
    worker = client.outcome(1)
    agent = int(Path(f'/proc/{worker}/stat').read_text().rpartition(')')[2].split()[1])
    client.close()
    wait_for(lambda: is_gone(worker) and is_gone(agent))
    assert Path(client.spool.folder).is_dir()


@pytest.mark.parametrize('keep_logs', [True, False])
def test_a_run_is_closed(connect: Connect, keep_logs: bool) -> None:
    """At the end of a run its folder goes, but for logs that may be wanted."""
    client = connect()
    client.call(1, print, 'text')
    client.outcome(1)
    client.ask('close', remove=True, keep_logs=keep_logs)
    assert Path(client.spool.folder).is_dir() == keep_logs
    assert not Path(client.spool.path('new')).exists()
