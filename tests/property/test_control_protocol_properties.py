"""Control lines with bytes cut anywhere, and garbage that must become proper errors."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.control import protocol
from tardisd.control.protocol import Lines, Notification, ProtocolError, Reply

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
ids = st.text(max_size=10) | st.integers(-(2**53), 2**53) | st.none()
params = st.dictionaries(st.text(max_size=8), json_values, max_size=4)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[first:last] for first, last in itertools.pairwise(edges)]


@given(st.lists(st.binary(max_size=30), max_size=8), st.lists(st.integers(0, 300), max_size=12))
def test_lines_do_not_depend_on_cuts(pieces, places):
    data = b"\n".join(pieces)
    whole = Lines(16)
    expected = whole.feed(data)
    parts = Lines(16)
    found = [line for piece in cut(data, places) for line in parts.feed(piece)]
    assert found == expected
    ended = data.split(b"\n")[:-1]
    kept = [line for line in ended if line.strip() or len(line) > 16]
    assert expected == [None if len(line) > 16 else line for line in kept]
    assert parts.within_line == (not data.endswith(b"\n") and data != b"")


@given(st.text(max_size=20), params, ids)
def test_requests_come_back(method, values, request_id):
    line = protocol.encode_request(method, values, request_id)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    request = protocol.parse_request(line)
    assert (request.method, request.params, request.request_id) == (method, values, request_id)
    assert not request.notification


@given(st.text(max_size=20), params)
def test_notifications_come_back(method, values):
    line = protocol.encode_notification(method, values)
    assert protocol.parse_answer(line) == Notification(method, values)
    assert protocol.parse_request(line).notification


@given(ids, json_values, st.text(max_size=10), st.text(max_size=30))
def test_replies_come_back(request_id, value, slug, message):
    assert protocol.parse_answer(protocol.encode_result(request_id, value)) == Reply(
        request_id, value
    )
    reply = protocol.parse_answer(protocol.encode_error(request_id, slug, message))
    assert reply.error["message"] == message
    assert reply.error["data"]["code"] == slug


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_refused_by_number(line):
    try:
        protocol.parse_request(line)
    except ProtocolError as error:
        reply = json.loads(error.reply())
        assert reply["error"]["code"] in (-32700, -32600, -32602)
        assert reply["error"]["data"]["code"] in ("bad_json", "bad_request")
    else:
        assert isinstance(json.loads(line)["method"], str)


@pytest.mark.parametrize(
    ("line", "number", "slug", "request_id"),
    [
        (b"{", -32700, "bad_json", None),
        (b"\xff\xfe", -32700, "bad_json", None),
        (b"[" * 100_000, -32700, "bad_json", None),
        (b"[]", -32600, "bad_request", None),
        (b'[{"jsonrpc":"2.0","method":"daemon.hello","id":1}]', -32600, "bad_request", None),
        (b"7", -32600, "bad_request", None),
        (b'{"jsonrpc":"2.0","id":1}', -32600, "bad_request", 1),
        (b'{"jsonrpc":"1.0","method":"a","id":"x"}', -32600, "bad_request", "x"),
        (b'{"jsonrpc":"2.0","method":5,"id":1}', -32600, "bad_request", 1),
        (b'{"jsonrpc":"2.0","method":"a","id":true}', -32600, "bad_request", None),
        (b'{"jsonrpc":"2.0","method":"a","id":{}}', -32600, "bad_request", None),
        (b'{"jsonrpc":"2.0","method":"a","id":1,"extra":1}', -32600, "bad_request", 1),
        (b'{"jsonrpc":"2.0","method":"a","id":1,"params":[1]}', -32602, "bad_request", 1),
        (b'{"jsonrpc":"2.0","method":"a","id":1,"params":null}', -32602, "bad_request", 1),
    ],
)
def test_refusals(line, number, slug, request_id):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_request(line)
    assert (caught.value.number, caught.value.slug) == (number, slug)
    assert json.loads(caught.value.reply())["id"] == request_id


@given(st.decimals(allow_nan=False, allow_infinity=False, places=18))
def test_numbers_print_as_they_were_written(number):
    text = f"{number:f}"
    line = f'{{"jsonrpc":"2.0","id":1,"result":[{text}]}}'.encode()
    (found,) = protocol.parse_answer(line).result
    assert str(found) == text
    assert found == float(text)
    assert json.loads(json.dumps(found)) == float(text)


def test_overlong_lines_take_no_memory():
    lines = Lines(100)
    for _ in range(1000):
        assert lines.feed(b"x" * 1000) == []
    assert lines.within_line
    assert lines.feed(b'\n{"a":1}\n') == [None, b'{"a":1}']
    assert not lines.within_line
