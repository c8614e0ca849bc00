"""The line to the agent: requests and replies, losing it, opening it again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from fakes import PATIENCE_S, Clock, Message, Stream, Transport, Wire
from slurm_futures.connection import KILLS, KILLS_WITHIN, Connection
from slurm_futures.errors import ConnectionFailed
from slurm_futures.line import Patience, Recipe, open_line
from slurm_futures.remote.protocol import CHUNK, encode

PATIENCE = Patience(ping=10.0, silence=30.0, back_off=(0.2, 30.0))
LARGE = 8 * CHUNK


class Client:
    """A connection, and what it says to its owner.

    Attributes:
        hellos: how often an agent has said hello.
        on_hello_ask: a request to be made then.
        events: that have come.
        pings: that agents have got.
        failures: to connect for the first time.
        replies: to requests made by `ask`, in the order in which they came.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.transport = Transport()
        self.hellos = 0
        self.on_hello_ask = ''
        self.events: list[Message] = []
        self.pings = 0
        self.failures: list[BaseException] = []
        self.replies: list[Message] = []
        self.opened = threading.Event()
        recipe = Recipe(self.transport, 'python3', '', {}, PATIENCE)
        self.connection = Connection(
            recipe,
            self.opened.set,
            self.on_hello,
            lambda header, body: self.events.append((dict(header), body)),
            self.failures.append,
            clock=self.clock,
        )

    def on_hello(self, hello: Mapping[str, Any]) -> None:
        """Count it, and make a request if the test says so."""
        self.hellos += 1
        if self.on_hello_ask:
            self.ask(self.on_hello_ask)

    @property
    def wire(self) -> Wire:
        """The newest agent's end."""
        return self.transport.wires[-1]

    def connect(self) -> Wire:
        """Open a line, as soon as that may be tried again; return the agent's end."""
        self.clock.now = max(self.clock.now, self.connection._retry_at)
        self.connection.open()
        return self.await_line()

    def await_line(self) -> Wire:
        """Wait until a line that is being opened is open."""
        assert self.opened.wait(PATIENCE_S)
        self.opened.clear()
        self.connection.step()
        return self.wire

    def await_line_failed(self) -> None:
        """Wait until a line that is being opened could not be."""
        assert self.opened.wait(PATIENCE_S)
        self.opened.clear()
        self.connection.step()

    def ask(self, what: str, body: bytes = b'') -> int:
        """Make a request whose reply is noted."""
        return self.connection.request(
            {'do': what}, body, lambda header, body: self.replies.append((dict(header), body))
        )

    def talk(self) -> list[Message]:
        """Let both sides send and receive all they can; return what the agent got but pings."""
        got: list[Message] = []
        for _ in range(100):
            self.connection.write()
            messages = self.wire.listen()
            pings = [message for message in messages if message[0]['do'] == 'ping']
            self.pings += len(pings)
            got += [message for message in messages if message not in pings]
            self.connection.read()
            if not self.connection.wants_to_write:
                break
        return got

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Let time go by, in steps such as the polling thread makes."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            self.connection.step()
            self.connection.write()


@pytest.fixture
def client() -> Iterator[Client]:
    """A connection that has not been opened."""
    client = Client()
    yield client
    client.connection.close()
    for wire in client.transport.wires:
        wire.cut()


def is_open(client: Client) -> bool:
    """Return whether there is a line."""
    return client.connection.stream is not None


def asked(messages: Sequence[Message]) -> list[tuple[str, int]]:
    """Return kinds and ids of requests."""
    return [(header['do'], header.get('id', 0)) for header, _ in messages]


# ---- requests


def test_request_and_reply(client: Client) -> None:
    """A request opens the line, is sent once, and gets the reply with its id."""
    number = client.ask('something', b'with a body')
    client.await_line()
    ((header, body),) = client.talk()
    assert (header, body) == ({'do': 'something', 'id': number}, b'with a body')
    client.wire.say({'id': number, 'fine': True}, b'answer')
    client.talk()
    assert client.replies == [({'id': number, 'fine': True}, b'answer')]


def test_made_while_the_agent_says_hello(client: Client) -> None:
    """A request made in answer to the hello is sent once."""
    client.on_hello_ask = 'at once'
    client.ask('before')
    client.await_line()
    assert sorted(asked(client.talk())) == [('at once', 2), ('before', 1)]


def test_sent_again_after_a_loss(client: Client) -> None:
    """What has no reply is sent to the next agent under its old id; what has one is not."""
    first, second = client.ask('first'), client.ask('second', b'body')
    client.await_line()
    client.talk()
    client.wire.say({'id': first})
    client.talk()
    client.wire.cut()
    client.connection.read()
    third = client.ask('third')
    client.connect()
    assert client.hellos == 2
    assert asked(client.talk()) == [('second', second), ('third', third)]
    client.wire.say({'id': second})
    client.talk()
    assert [header['id'] for header, _ in client.replies] == [first, second]


def test_half_sent(client: Client) -> None:
    """A large request that was cut in the middle is sent again from its start."""
    client.connect()
    number = client.ask('large', b'x' * LARGE)
    client.connection.write()
    assert client.connection.wants_to_write
    client.wire.cut()
    client.connection.write()
    client.connect()
    ((header, body),) = client.talk()
    assert (header['id'], len(body)) == (number, LARGE)


def test_forgotten(client: Client) -> None:
    """A request that is taken back is not sent again, and its reply goes nowhere."""
    client.connect()
    number = client.ask('something')
    client.talk()
    client.connection.forget(number)
    client.wire.say({'id': number})
    client.talk()
    assert client.replies == []
    client.wire.cut()
    client.connection.read()
    client.connect()
    assert client.talk() == []


def test_forgotten_on_hello(client: Client) -> None:
    """What is taken back when the next agent says hello is not sent to it."""
    client.connect()
    number = client.ask('something')
    client.talk()
    client.wire.cut()
    client.connection.read()
    client.connection._on_hello = lambda hello: client.connection.forget(number)
    client.connect()
    assert client.talk() == []


def test_told_to_this_agent_only(client: Client) -> None:
    """What is told means nothing to the next agent, nor without one."""
    client.connection.tell({'do': 'too early'})
    client.connect()
    client.connection.tell({'do': 'lost'})
    client.wire.cut()
    client.connection.read()
    client.connection.tell({'do': 'too late'})
    client.connect()
    client.connection.tell({'do': 'right'})
    assert asked(client.talk()) == [('right', 0)]


def test_large_messages_do_not_hold_up_small_ones(client: Client) -> None:
    """A small request made behind a large one arrives before it."""
    client.connect()
    client.ask('large', b'x' * LARGE)
    client.connection.write()
    client.ask('small')
    assert [what for what, _ in asked(client.talk())] == ['small', 'large']


def test_large_messages_arrive_whole(client: Client) -> None:
    """Large messages in both directions, interleaved, arrive as they were sent."""
    client.connect()
    bodies = [bytes([n]) * LARGE for n in range(3)]
    numbers = [client.ask('large', body) for body in bodies]
    got = client.talk()
    assert sorted(body for _, body in got) == bodies
    for number, body in zip(numbers, bodies, strict=True):
        client.wire.say({'id': number}, body)
    for _ in range(100):
        client.wire.listen()
        client.connection.read()
    assert [body for _, body in client.replies] == bodies


# ---- what agents say unasked


def test_events_that_come_with_the_hello(client: Client) -> None:
    """Messages that arrive in one piece with the hello are not lost."""
    client.transport.early = [({'event': 'message', 'n': n}, b'body') for n in range(3)]
    client.connect()
    assert [header['n'] for header, _ in client.events] == [0, 1, 2]


def test_event_that_is_cut_by_the_hello(client: Client) -> None:
    """A message whose first bytes come with the hello is put together with the rest."""
    client.ask('something')
    assert client.opened.wait(PATIENCE_S)
    data = encode({'event': 'message'}, b'body')
    wire = client.transport.wires[0]
    wire.babble(data[:9])
    client.await_line()
    client.connection.read()
    wire.babble(data[9:])
    client.connection.read()
    assert client.events == [({'event': 'message'}, b'body')]


def test_expected_messages(client: Client) -> None:
    """The agent looks for messages as long as anybody expects some; the next one is told, too."""
    client.connect()
    for who, expected in (('a', True), ('b', True), ('a', True), ('a', False), ('c', False)):
        client.connection.expect_messages(who, expected=expected)
    assert [header['on'] for header, _ in client.talk()] == [True]
    client.wire.cut()
    client.connection.read()
    client.connect()
    assert [header['on'] for header, _ in client.talk()] == [True]
    client.connection.expect_messages('b', expected=False)
    assert [header['on'] for header, _ in client.talk()] == [False]
    client.wire.cut()
    client.connection.read()
    client.connect()
    assert client.talk() == []


# ---- losing the line


def test_loss_is_noticed(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The end of the stream is the end of the line, said with the agent's last words."""
    client.connect()
    client.wire.cut()
    with caplog.at_level(logging.WARNING, 'slurm_futures'):
        client.connection.read()
    assert client.connection.stream is None
    assert 'lost the agent on login1' in caplog.text
    assert 'last words' in caplog.text


def test_nonsense_ends_the_line(client: Client) -> None:
    """Bytes that are no message end the line, and nothing else."""
    client.connect()
    number = client.ask('something')
    client.talk()
    client.wire.babble(b'\0\0\0\1\0\0\0\x08\1' + b'nonsense')
    client.connection.read()
    assert client.connection.stream is None
    client.connect()
    assert asked(client.talk()) == [('something', number)]


def test_silence_is_a_loss(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that does not answer pings is given up after the time set for it."""
    client.connect()
    with caplog.at_level(logging.WARNING, 'slurm_futures'):
        client.pass_time(29)
        assert client.talk() == []
        assert client.pings == 3
        assert is_open(client)
        client.pass_time(1)
    assert not is_open(client)
    assert 'it has not answered for 30 s' in caplog.text


def test_any_word_breaks_the_silence(client: Client) -> None:
    """Whatever an agent says shows that it lives."""
    client.connect()
    for _ in range(5):
        client.pass_time(29)
        client.wire.say({'id': 0})
        client.connection.read()
    assert client.connection.stream is not None


def test_silence_counts_while_listening(client: Client) -> None:
    """Time in which nobody listened, because this process was stopped, is no silence."""
    client.connect()
    client.pass_time(3600, step=600)
    assert client.connection.stream is not None


def test_back_off(client: Client) -> None:
    """Lines are opened again ever more seldom, however often that fails, and at once when asked."""
    client.connect()
    client.ask('something')
    client.transport.refusals = [ConnectionFailed('no route')] * 1500
    client.wire.cut()
    client.connection.read()
    pauses = []
    for _ in range(1500):
        pause = client.connection.deadline() - client.clock.now
        pauses.append(pause)
        client.clock.now += pause
        client.connection.step()
        client.await_line()
    assert pauses[0] <= 0.2
    assert all(pause > 0 for pause in pauses)
    assert 15 <= pauses[20] <= 30
    assert pauses[-1] <= 30
    client.connect()
    assert asked(client.talk()) == [('something', 1)]


def test_not_reopened_for_nothing(client: Client) -> None:
    """Without a request, and without anybody who expects messages, no line is opened again."""
    client.connect()
    client.wire.cut()
    client.connection.read()
    client.pass_time(100)
    assert len(client.transport.wires) == 1
    assert client.connection.deadline() == float('inf')
    client.connection.expect_messages('somebody', expected=True)
    client.pass_time(1)
    client.await_line()
    assert len(client.transport.wires) == 2


def lose(client: Client, times: int, apart: float) -> None:
    """Lose agents, one after the other."""
    for _ in range(times):
        client.connect()
        client.wire.cut()
        client.connection.read()
        client.clock.now += apart


def test_killed_again_and_again(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Three agents lost within ten minutes are no accident: the site's policy is named."""
    with caplog.at_level(logging.ERROR, 'slurm_futures'):
        lose(client, KILLS - 1, apart=100)
        assert not caplog.records
        lose(client, 1, apart=0)
    assert 'most likely the site ends long processes on its login nodes' in caplog.text
    assert client.connection._retry_at - client.clock.now > 5, 'there is no hurry any more'


def test_lost_now_and_then(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Agents that are lost once in a while are nothing to talk about."""
    with caplog.at_level(logging.ERROR, 'slurm_futures'):
        lose(client, 3 * KILLS, apart=KILLS_WITHIN)
    assert not caplog.records


# ---- opening, closing


def test_first_line_fails(client: Client) -> None:
    """If the first line cannot be opened the owner hears of it; it can be tried again at once."""
    error = ConnectionFailed('no such host')
    client.transport.refusals = [error]
    client.ask('something')
    client.await_line_failed()
    assert client.failures == [error]
    client.ask('something else')
    client.await_line()
    assert asked(client.talk()) == [('something else', 2)]


def test_later_line_fails(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """If a later line cannot be opened nobody's request is lost."""
    number = client.ask('something')
    client.await_line()
    client.talk()
    client.transport.refusals = [ConnectionFailed('no route')]
    client.wire.cut()
    with caplog.at_level(logging.WARNING, 'slurm_futures'):
        client.connection.read()
        client.clock.now = client.connection.deadline()
        client.connection.step()
        client.await_line_failed()
    assert client.failures == []
    assert 'cannot reconnect to login1: no route' in caplog.text
    client.clock.now = client.connection.deadline()
    client.connection.step()
    client.await_line()
    assert asked(client.talk()) == [('something', number)]


def test_opened_once(client: Client) -> None:
    """However many requests are made meanwhile, one line is opened."""
    for _ in range(10):
        client.ask('something')
        client.connection.open()
        client.connection.step()
    client.await_line()
    client.connection.open()
    assert len(client.transport.wires) == 1
    assert len(client.talk()) == 10


def test_closed(client: Client) -> None:
    """A closed connection keeps no stream, and no line that was opened too late."""
    client.connect()
    stream = client.wire.stream
    client.connection.close()
    assert stream.closed
    assert client.connection.stream is None


def test_closed_while_opening(client: Client) -> None:
    """A line that is open only after the connection was closed is closed at once."""
    may_go_on = threading.Event()
    real = client.transport.open

    def open_late(command: Sequence[str]) -> Stream:
        assert may_go_on.wait(PATIENCE_S)
        return real(command)

    client.transport.open = open_late  # type: ignore[method-assign]
    client.connection.open()
    client.connection.close()
    may_go_on.set()
    assert client.opened.wait(PATIENCE_S)
    assert client.wire.stream.closed


# ---- the first words


def recipe(transport: Transport) -> Recipe:
    """Return how to open a line."""
    return Recipe(transport, 'python3', '', {'a': 1})


def test_hello() -> None:
    """Banners before the marker are skipped; the hello and what comes with it are kept."""
    transport = Transport()
    transport.early = [({'event': 'message'}, b'x')]
    line = open_line(recipe(transport))
    assert line.hello['host'] == 'login1'
    assert line.early == [({'event': 'message'}, b'x')]
    line.stream.close()
    transport.wires[0].cut()


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('\n{marker} python 3.6.8\n', 'Python 3.6.8'),
        ('bash: python3: command not found\n', 'command not found'),
        ('{marker} ready', 'did not start'),
    ],
    ids=['old', 'none', 'no line'],
)
def test_no_hello(text: str, words: str) -> None:
    """Where Python is too old, or does not start, the error says so, and the stream is closed."""
    transport = Transport()

    def start(command: Sequence[str]) -> Stream:
        transport.wires.append(Wire(command[-1], None))
        transport.wires[-1].babble(text.format(marker=command[-1]).encode())
        transport.wires[-1].cut()
        return transport.wires[-1].stream

    transport.open = start  # type: ignore[method-assign]
    with pytest.raises(ConnectionFailed, match=words):
        open_line(recipe(transport))
    assert transport.wires[0].stream.closed


def test_agent_gives_up() -> None:
    """An agent that cannot work says why, and that is the error."""
    transport = Transport({'event': 'fatal', 'text': 'it cannot use work_dir /nowhere'})
    with pytest.raises(ConnectionFailed, match='cannot use work_dir /nowhere'):
        open_line(recipe(transport))
    transport.wires[0].cut()


def test_agent_ends_before_hello() -> None:
    """An agent that ends before it has said anything: its last words are shown."""
    transport = Transport()

    def start(command: Sequence[str]) -> Stream:
        transport.wires.append(Wire(command[-1], None))
        transport.wires[-1].babble(f'\n{command[-1]} ready\n'.encode())
        thread = threading.Thread(target=die_behind_payload, args=(transport.wires[-1],))
        thread.start()
        return transport.wires[-1].stream

    transport.open = start  # type: ignore[method-assign]
    with pytest.raises(ConnectionFailed, match='ended before it said hello; it printed:\nlast'):
        open_line(recipe(transport))


def die_behind_payload(wire: Wire) -> None:
    """End as soon as the agent's source has arrived."""
    while wire._payload is not None:
        wire.listen()
    wire.cut()
