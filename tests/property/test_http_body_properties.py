"""Bodies of requests, however they are made: an answer in JSON with a known code, never a fault."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.errors import RequestError
from tardisd.plugins.requests import NewSession, decode
from tardisd.plugins.sessions import SessionRequest
from tardisd_http.verbs import VERBS

NAMES = [field.encode_name for field in msgspec.structs.fields(NewSession)]
ODD = st.sampled_from(
    ["", "max", "1m", "BTC/USDT", "binance", "trade", "2024-03-01T00:00:00Z", "\ud800", "a" * 200]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=8)
TIMES = st.sampled_from([0, 1709251200000, 1709337600000, "2024-03-01T00:00:00Z", "x", -1, 10**30])


def outcome(text, kind):
    """Return what decoding comes to: a struct, or the code of the refusal."""
    try:
        return decode(text, kind)
    except RequestError as error:
        return checked(error)


def checked(error):
    """Return the code of a refusal that can be sent."""
    assert error.code in ("bad_json", "bad_request", "too_large")
    assert ": " in error.message or error.message.endswith("deeply") or ";" in error.message
    error.message.encode()
    return error.code


@given(st.text())
def test_any_text(text):
    outcome(text, NewSession)


@given(BODIES, st.sampled_from([NewSession, *VERBS.values()]))
def test_any_object(body, kind):
    outcome(json.dumps(body), kind)


@given(BODIES, TIMES, TIMES)
def test_whatever_is_decoded_is_a_request_or_is_refused(body, start, end):
    base = {"exchange": "binance", "symbol": "BTC/USDT", "start_time": start, "end_time": end}
    found = outcome(json.dumps({**base, **body}), NewSession)
    if not isinstance(found, NewSession):
        return
    try:
        request = found.session_request("http")
    except RequestError as error:
        checked(error)
        return
    assert isinstance(request, SessionRequest)
    assert request.start < request.end
    assert request.series


@pytest.mark.parametrize("kind", [NewSession, *VERBS.values()], ids=lambda kind: kind.__name__)
def test_unknown_fields_and_nulls_are_refused(kind):
    assert outcome('{"surprise":1}', kind) == "bad_request"
    for field in msgspec.structs.fields(kind):
        if not field.required:
            found = outcome(json.dumps({field.encode_name: None}), kind)
            assert found == "bad_request" or kind is NewSession
