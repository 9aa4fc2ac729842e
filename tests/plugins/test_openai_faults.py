"""A service that fails in every way: what is asked again, what is not, and what people are told."""

from __future__ import annotations

import json
import logging

import pytest
import trio
from openai_rig import (
    CUT,
    HANG,
    KEY,
    USAGE,
    AiServer,
    delta,
    event,
    make,
    question,
    raw,
    says,
    stream,
    whole,
)
from test_openai_answers import asking

from tardisd.errors import RequestError

RELAY = {"code": "rate_limit_exceeded", "message": "slow down", "param": None, "type": "rate_limit"}
HTML = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
PASSING = {
    "HTML 502": raw(502, HTML, "text/html"),
    "504": raw(504, ""),
    "500 in the relay's words": raw(500, {"error": "upstream", "message": "oh"}),
    "408": raw(408, {"message": "late"}),
    "409": raw(409, {"detail": "conflict"}),
    "429": raw(429, {"error": RELAY}),
    "429 with Retry-After": raw(429, "", Retry_After="0"),
    "429 with retry_after in the body": raw(429, {"error": {**RELAY, "retry_after": 0.01}}),
    "a reset before the answer": lambda asked: [CUT],
    "half a head": lambda asked: [b"HTTP/1.1 20", CUT],
    "half a body": lambda asked: [HEAD + b'{"choices":', CUT],
    "half a stream": stream(delta("It") + b"\n\n", end=(CUT,)),
    "half a stream, ended well": stream(delta("It") + b"\n\n"),
    "half a piece": stream(delta("It")[:-9]),
    "[DONE] before the end": stream(delta("It") + b"\n\n" + event("[DONE]") + b"\n\n"),
    "an error in mid-stream": stream(
        delta("It") + b"\n\n", event({"error": {"message": "Overloaded", "type": "server_error"}})
    ),
    "a code in mid-stream": stream(event({"error": {"code": 503, "message": "no"}}) + b"\n\n"),
    "200 with a passing error": raw(200, {"error": RELAY}),
    "an empty answer": raw(200, ""),
    "silence": lambda asked: [HANG],
    "silence in mid-stream": stream(delta("It") + b"\n\n", end=(HANG,)),
}
FINAL = {
    "400": (raw(400, {"error": {"message": "bad thing"}}), "analyzer_failed", "bad thing"),
    "401": (raw(401, {"error": {"message": "bad key"}}), "analyzer_unavailable", "check api_key"),
    "403": (raw(403, "no"), "analyzer_unavailable", "HTTP 403 Said: no; check api_key"),
    "404": (raw(404, {"error": "x"}), "analyzer_unavailable", "check base_url and model"),
    "422": (raw(422, {"detail": "temp"}), "analyzer_failed", "HTTP 422 Said: temp"),
    "402": (raw(402, {"error": "x"}), "analyzer_unavailable", "no balance left"),
    "429 for want of money": (
        raw(429, {"error": {"code": "insufficient_quota", "message": "pay"}}),
        "analyzer_unavailable",
        "insufficient_quota: pay; the account has no balance left",
    ),
    "200 for want of money": (
        raw(200, {"error": {"message": "Insufficient balance"}}),
        "analyzer_unavailable",
        "no balance left",
    ),
    "money ends in mid-stream": (
        stream(delta("It") + b"\n\n", event({"error": "insufficient balance"}) + b"\n\n"),
        "analyzer_unavailable",
        "no balance left",
    ),
    "a wait longer than any": (
        raw(429, {"error": {**RELAY, "retry_after": 4000}}),
        "analyzer_unavailable",
        "it asks to wait 4000 s, longer than total_timeout_secs",
    ),
    "200 with an error": (raw(200, {"error": {"message": "odd"}}), "analyzer_failed", ": odd"),
    "200 with HTML": (raw(200, HTML, "text/html"), "analyzer_failed", "a page of HTML: 502 Bad"),
    "nonsense": (raw(200, b"\xff\xfe\0what"), "analyzer_failed", "answers with no JSON"),
    "wrong JSON": (raw(200, [1]), "analyzer_failed", "JSON that is no object (list)"),
    "other JSON": (raw(200, {"choices": 1}), "analyzer_failed", "without choices"),
    "more JSON": (raw(200, {"choices": [1]}), "analyzer_failed", "choices that are no objects"),
    "deep JSON": (raw(200, "[" * 100_000), "analyzer_failed", "no JSON"),
    "nonsense in mid-stream": (stream(b"data: {oh\n\n"), "analyzer_failed", "a piece that is no"),
    "bytes in mid-stream": (stream(b"data: \xff\n\n"), "analyzer_failed", "not UTF-8"),
    "damaged gzip": (
        raw(200, b"xyz123", Content_Encoding="gzip"),
        "analyzer_failed",
        "damaged content",
    ),
    "nothing said": (whole(None), "analyzer_failed", "the answer is empty (stop)"),
    "no choices": (raw(200, {"choices": []}), "analyzer_failed", "the answer is empty"),
    "a filter": (whole("x", "content_filter"), "analyzer_failed", "content filter"),
    "a tool": (whole(None, "tool_calls"), "analyzer_failed", "calls a tool"),
    "a refusal": (
        whole(None, message={"content": None, "refusal": "never\never"}),
        "analyzer_failed",
        "refuses to answer: never ever",
    ),
    "a refusal in pieces": (
        stream(delta(refusal="ne") + b"\n\n", delta(None, "stop", refusal="ver") + b"\n\n"),
        "analyzer_failed",
        "refuses to answer: never",
    ),
}


async def refused(analyzer, text="", code=None, **fields):
    """Ask; return the error, which is one line in plain words."""
    with pytest.raises(RequestError) as raised:
        await analyzer.ask(question(**fields))
    error = raised.value
    assert text in error.message, error.message
    assert code in {None, error.code}
    assert error.message.isprintable()
    assert len(error.message) < 500
    assert KEY not in repr(error)
    return error


@pytest.mark.parametrize("case", PASSING)
async def test_what_may_pass_is_asked_again(tmp_path, case):
    fault = PASSING[case]
    options = {"read_timeout_secs": 0.1} if "silence" in case else {}
    async with asking(tmp_path, fault, fault, says("It"), **options) as (analyzer, server):
        assert (await analyzer.ask(question())).content == "It"
        assert len(server.asked) == 3
        server.then(fault)
        await refused(analyzer, "; given up after 4 attempts", "analyzer_unavailable", count=4)
        assert len(server.asked) == 4


@pytest.mark.parametrize("case", FINAL)
async def test_what_does_not_pass_is_asked_once(tmp_path, case):
    action, code, text = FINAL[case]
    async with asking(tmp_path, action) as (analyzer, server):
        await refused(analyzer, text, code)
        assert len(server.asked) == 1
        server.then(says("It"))
        assert (await analyzer.ask(question())).content == "It"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_the_key_is_taken_nowhere_else(tmp_path, status):
    async with AiServer().running() as elsewhere:
        away = raw(status, "", Location=f"{elsewhere.url}/chat/completions?key={KEY}")
        async with asking(tmp_path, away) as (analyzer, server):
            await refused(analyzer, "redirects are not followed", "analyzer_unavailable")
            assert len(server.asked) == 1
        assert elsewhere.asked == []


async def test_nobody_there(tmp_path):
    analyzer = make(folder=tmp_path)
    async with analyzer.run():
        error = await refused(analyzer, "127.0.0.1:1: cannot connect (", "analyzer_unavailable")
        assert error.message.endswith("; given up after 4 attempts")
    await refused(analyzer, "the analyzer is not running", "analyzer_unavailable")


async def test_one_that_drips_is_given_up_in_time(tmp_path):
    def drip(asked):
        yield from stream(b": x\n\n", end=())(asked)
        while True:
            yield b"4\r\n: x\n\r\n"

    async with asking(tmp_path, drip, total_timeout_secs=0.3) as (analyzer, server):
        await refused(analyzer, "no answer within total_timeout_secs (0.3 s)")
        assert len(server.asked) == 1


async def test_one_that_floods_is_given_up(tmp_path):
    line = b": " + b"x" * 65_000 + b"\n"

    def flood(asked):
        yield from stream(end=())(asked)
        while True:
            yield b"%x\r\n%s\r\n" % (len(line), line)

    async with asking(tmp_path, flood) as (analyzer, _):
        await refused(analyzer, "more than 8388608 bytes", "analyzer_failed")


async def test_a_wait_that_is_asked_for_is_waited(tmp_path):
    waits = raw(429, {"error": {**RELAY, "retry_after": "0.3"}}), raw(503, "", Retry_After="0.2")
    at = []

    def told(action):
        def act(asked):
            at.append(trio.current_time())
            return action(asked)

        return act

    async with asking(tmp_path, *map(told, (*waits, says("It")))) as (analyzer, _):
        await analyzer.ask(question())
    assert at[1] - at[0] >= 0.3
    assert at[2] - at[1] >= 0.2


async def test_the_key_is_seen_nowhere(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="tardisd")
    caplog.set_level(logging.INFO, logger="httpx")
    echo = [
        raw(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        raw(500, f"<html>{KEY}</html>", "text/html"),
        raw(400, {"error": json.dumps({"Authorization": f"Bearer {KEY}"})}),
        raw(400, {"error": {"message": "x" * 290 + KEY}}),
        raw(200, f"no JSON but {KEY}"),
        whole(f"your key is {KEY}", model=KEY, usage={"cost": 1, "key": KEY, KEY: "x"}),
        stream(delta(KEY[:9]) + b"\n\n", delta(KEY[9:], "stop") + b"\n\n"),
        whole(None, message={"refusal": KEY}),
        raw(307, "", Location=f"http://{KEY}@host/"),
    ]
    shown = []
    for number, action in enumerate(echo):
        async with asking(tmp_path / str(number), action) as (analyzer, _):
            try:
                shown.append(repr(await analyzer.ask(question())))
            except RequestError as error:
                shown.append(repr(error))
            shown += [repr(analyzer.options), repr(analyzer._service.__dict__), str(analyzer)]
    assert len(shown) == 4 * len(echo)
    text = "\n".join([*shown, caplog.text, *(str(vars(one)) for one in caplog.records)])
    text += "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*.sqlite*"))
    assert KEY not in text
    assert KEY[3:15] not in text


async def test_the_slots_are_never_more_than_allowed(tmp_path):
    async with asking(tmp_path, max_concurrent=3) as (analyzer, server):
        async with trio.open_nursery() as nursery:
            for count in range(1, 13):
                nursery.start_soon(analyzer.ask, question(count))
        assert len(server.asked) == 12
        assert server.most_busy <= 3


async def test_one_who_gives_up_leaves_nothing_behind(tmp_path):
    async with asking(tmp_path, lambda asked: [HANG], max_concurrent=1) as (analyzer, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(analyzer.ask, question())
            while not server.asked:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        server.then(says("It"))
        answer = await analyzer.ask(question())
        assert (answer.content, answer.usage) == ("It", USAGE)
