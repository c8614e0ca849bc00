"""Messages on byte streams, and the file of a batch's calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_futures.remote.protocol import (
    CHUNK,
    CallsFile,
    Inbox,
    Message,
    encode,
    encode_calls,
    frame,
    frames,
    head,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
headers = st.dictionaries(st.text(), json_values, max_size=4)
# Around the limits at which a message is cut, not only the small ones that are easily made.
sizes = st.integers(0, 40) | st.integers(CHUNK - 60, CHUNK + 60) | st.just(2 * CHUNK)
messages = st.tuples(headers, st.builds(bytes, sizes))


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """Yield data in pieces that end at these places and at its end."""
    start = 0
    for end in [*sorted(place % (len(data) + 1) for place in places), len(data)]:
        yield data[start:end]
        start = end


def received(pieces: Iterator[bytes]) -> list[Message]:
    """Return the messages that come out of a stream."""
    inbox = Inbox()
    return [message for piece in pieces for message in inbox.feed(piece)]


@given(st.lists(messages, max_size=4), st.lists(st.integers(0), max_size=8))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_messages_survive_any_cutting(sent: list[Message], places: list[int]) -> None:
    """Messages come out whole and in order, however the stream cuts them."""
    data = b''.join(encode(header, body) for header, body in sent)
    assert received(cut(data, places)) == sent


@given(st.data(), st.lists(messages, min_size=1, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_channels_may_interleave(data: st.DataObject, sent: list[Message]) -> None:
    """Messages on different channels come out whole, in whatever order their frames are sent."""
    waiting = {channel: list(frames(channel, *message)) for channel, message in enumerate(sent)}
    stream, order = b'', []
    while waiting:
        channel = data.draw(st.sampled_from(sorted(waiting)))
        stream += waiting[channel].pop(0)
        if not waiting[channel]:
            del waiting[channel]
            order.append(channel)
    places = data.draw(st.lists(st.integers(0), max_size=4))
    assert received(cut(stream, places)) == [sent[channel] for channel in order]


@pytest.mark.parametrize('body', [b'', b'x', b'x' * CHUNK], ids=len)
def test_a_large_header_needs_several_frames(body: bytes) -> None:
    """A header larger than a frame, such as ten thousand names, arrives; no frame is larger."""
    header = {'names': ['x' * 40] * (CHUNK // 20)}
    pieces = list(frames(7, header, body))
    assert received(iter(pieces)) == [(header, body)]
    assert max(map(len, pieces)) <= CHUNK + 16


def test_a_message_of_unknown_size() -> None:
    """A message that is sent piece by piece ends with an empty last frame."""
    pieces = [frame(3, head({'event': 'message'}), False), frame(3, b'abc', False)]
    pieces += [frame(3, b'def', False), frame(3, b'', True)]
    assert received(iter(pieces)) == [({'event': 'message'}, b'abcdef')]


def test_hostile_text_in_a_header() -> None:
    """File names that are no UTF-8 travel as the surrogates that Python makes of them."""
    header = {'path': b'/caf\xe9\n"$(x)'.decode(errors='surrogateescape')}
    assert received(iter([encode(header)])) == [(header, b'')]


@given(
    headers,
    st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=20)), max_size=6),
)
def test_calls_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    header: dict[str, Any],
    functions: list[bytes],
    calls: list[tuple[int, bytes]],
) -> None:
    """Each call of a file has its own function and arguments; the header keeps its facts."""
    calls = [(number % len(functions), args) for number, args in calls]
    path = tmp_path_factory.getbasetemp() / 'some.calls'
    path.write_bytes(b''.join(encode_calls(header, functions, calls)))
    file = CallsFile(str(path))
    assert file.header == {**json.loads(json.dumps(header)), 'count': len(calls)}
    for index, (number, args) in enumerate(calls):
        call = file[index]
        assert file.read(call.fn_start, call.fn_size) == functions[number]
        assert file.read(call.args_start, call.args_size) == args
    for index in (-1, len(calls)):
        with pytest.raises(IndexError, match='has no call'):
            file[index]
    file.close()


def test_a_function_is_kept_once(tmp_path: Path) -> None:
    """A function that calls share is written once, so that a worker unpickles it once."""
    path = tmp_path / 'some.calls'
    path.write_bytes(b''.join(encode_calls({}, [b'f' * 1000], [(0, b'a')] * 50)))
    file = CallsFile(str(path))
    assert {(file[i].fn_start, file[i].fn_size) for i in range(50)} == {(file[0].fn_start, 1000)}
    assert path.stat().st_size < 1000 + 50 * 40
    file.close()


def test_not_a_file_of_calls(tmp_path: Path) -> None:
    """Another file is refused, naming it and what it starts with; a short one when it is read."""
    path = tmp_path / 'some.calls'
    path.write_text('#!/bin/bash\n')
    with pytest.raises(ValueError, match='not a file of calls'):
        CallsFile(str(path))
    path.write_bytes(b''.join(encode_calls({}, [b'function'], [(0, b'arguments')]))[:-4])
    file = CallsFile(str(path))
    call = file[0]
    with pytest.raises(EOFError, match='ends before byte'):
        file.read(call.args_start, call.args_size)
    file.close()
