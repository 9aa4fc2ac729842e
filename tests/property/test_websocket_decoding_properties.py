"""Whatever text a client sends, decoding gives a request or an error that can be answered."""

from __future__ import annotations

import json
import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tardisd_websocket.decoding import ERROR_CODES, Refused, decode, error_message
from tardisd_websocket.messages import SUPPORTED, CreateSession, Request

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
fields = st.sampled_from([*CreateSession.__struct_fields__, "to", "by", "count"]) | st.text()
requests = st.dictionaries(fields, values, max_size=6).flatmap(
    lambda body: st.sampled_from([*SUPPORTED, "seek", "fly"]).map(lambda t: {**body, "type": t})
)


def answer(text):
    """Return the request, or the error message as a client would read it."""
    try:
        return decode(text)
    except Refused as error:
        message = error_message(error, error.request_id, error.session_id)
        return json.loads(msgspec.json.encode(message))


@given(st.text() | values.map(json.dumps) | requests.map(json.dumps))
def test_any_text_is_a_request_or_an_error(text):
    found = answer(text)
    if not isinstance(found, Request):
        assert found["type"] == "error"
        assert found["code"] in ERROR_CODES - {"internal", "unauthorized"}
        assert found["message"]


@given(requests, st.text(max_size=40) | st.integers() | st.floats(allow_nan=False))
def test_the_id_comes_back_as_it_was(body, request_id):
    text = json.dumps({**body, "id": request_id})
    found = answer(text)
    wanted = json.loads(json.dumps(request_id))
    if isinstance(found, Request):
        assert json.loads(msgspec.json.encode(found.id)) == wanted
    elif isinstance(request_id, float) and math.isinf(request_id):
        assert "id" not in found
    elif "\\ud" not in text:  # half a surrogate pair is no text, so that the whole is no JSON
        assert found["id"] == wanted
