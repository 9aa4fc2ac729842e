"""What the AI analyzer asks, what it makes of good and odd answers, and what it keeps."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
import trio
from msgspec.structs import fields
from openai_rig import (
    CUT,
    HANG,
    KEY,
    OPEN_MS,
    USAGE,
    AiServer,
    candle,
    delta,
    event,
    make,
    question,
    raw,
    says,
    signal,
    stream,
    whole,
)

from tardisd.config.convert import decoder
from tardisd.config.load import load_config
from tardisd.errors import PluginError, RequestError
from tardisd.plugins.analyzer import Question
from tardisd.testing.analyzer import AnalyzerSuite
from tardisd_openai import service
from tardisd_openai.options import OpenaiOptions
from tardisd_openai.plugin import HolysheepAnalyzer


@asynccontextmanager
async def asking(folder, *actions, **options):
    """Run an analyzer before a service."""
    with trio.fail_after(60):
        async with AiServer(*actions).running() as server:
            analyzer = make(folder=folder, url=server.url, **options)
            async with analyzer.run():
                yield analyzer, server


def test_the_defaults_are_those_of_holysheep():
    for cls in (HolysheepAnalyzer, HolysheepAnalyzer.__mro__[1]):
        options = cls.Options()
        assert options.base_url == "https://api.holysheep.ai/v1"
        assert (options.model, options.temperature, options.max_tokens) == ("gpt-4.1", 0.3, 500)
        assert (options.connect_timeout_secs, options.read_timeout_secs) == (10, 120)
    assert [cls.name for cls in HolysheepAnalyzer.__mro__[:2]] == ["holysheep", "openai"]


async def test_it_asks_as_such_services_want_it(tmp_path):
    async with asking(tmp_path, extra={"seed": 7}, model="m-1") as (analyzer, server):
        answer = await analyzer.ask(question())
        assert (answer.content, answer.cached, answer.usage) == ("It goes up.", False, USAGE)
        assert (answer.model, answer.more) == ("gpt-4.1", {})
        [asked] = server.asked
        assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        body = asked.body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m-1", 0.3, 500)
        assert (body["stream"], body["seed"]) == (True, 7)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert "BTC/USDT" in asked.text
        assert "2024-03-01T00:03:00.000Z" in asked.text
        assert "replay_time" not in asked.text
        rows = [json.loads(line) for line in asked.text.splitlines() if line.startswith("{")]
        assert [row["timestamp"] for row in rows] == [OPEN_MS, OPEN_MS + 60_000, OPEN_MS + 120_000]


async def test_decimals_are_asked_about_as_they_are(tmp_path):
    async with asking(tmp_path) as (analyzer, server):
        tick = candle(close=Decimal("0.123456789012345678"))
        await analyzer.ask(Question([tick]))
        assert '"close":0.123456789012345678' in server.asked[0].text


async def test_it_asks_without_a_key_where_none_is_wanted(tmp_path):
    async with asking(tmp_path, api_key=None, stream=False, system="") as (analyzer, server):
        await analyzer.ask(question())
        assert "authorization" not in server.asked[0].headers
        assert "stream" not in server.asked[0].body
        assert len(server.asked[0].body["messages"]) == 1


async def test_every_type_has_its_question(tmp_path):
    mine = {"mood": "In one word, {symbols} ({count}) at {as_of}: {ticks} {else}"}
    async with asking(tmp_path, prompts=mine) as (analyzer, server):
        for kind in ("pattern", "trend", "anomaly", "mood"):
            await analyzer.ask(question(1, kind))
        texts = [asked.text for asked in server.asked]
        assert len(set(texts)) == 4
        assert texts[3].startswith("In one word, BTC/USDT (1) at 2024-03-01T00:01:00.000Z: {")
        assert texts[3].endswith("} {else}")
        with pytest.raises(RequestError) as raised:
            await analyzer.ask(question(1, "magic"))
        assert raised.value.code == "bad_request"
        assert raised.value.message == (
            "analysis_type: 'magic' is not one of: anomaly, mood, pattern, signal, trend"
        )
        assert len(server.asked) == 4


async def test_one_who_asks_too_much_is_told(tmp_path):
    async with asking(tmp_path, max_input_bytes=1000) as (analyzer, server):
        with pytest.raises(RequestError, match="more than max_input_bytes") as raised:
            await analyzer.ask(question(100))
        assert raised.value.code == "bad_request"
        assert server.asked == []


@pytest.mark.parametrize(
    "tick",
    [{}, {"close": 1}, {"timestamp": "soon"}, {"symbol": 7, "timestamp": 10**40}, {"x": "{"}],
)
async def test_ticks_of_any_shape_can_be_asked_about(tmp_path, tick):
    async with asking(tmp_path) as (analyzer, _):
        assert (await analyzer.ask(Question([tick]))).content == "It goes up."


LETTERS = "Größe ↑ 🚀"
CUT_LETTERS = [bytes([byte]) for byte in delta(LETTERS, "stop") + b"\n\n"]
ODD = {
    "whole, when a stream was asked for": (whole("It"), "It"),
    "content as a list of parts": (whole([{"text": "I"}, "t", {"type": "x"}]), "It"),
    "no usage": (whole("It", usage=None), "It"),
    "usage in part, fields of its own": (whole("It", usage={"x": "y"}, latency_ms=3), "It"),
    "no finish_reason in one piece": (whole("It", finish=None), "It"),
    "comments, events, blank lines, ids": (
        stream(b": hello\n\nevent: x\nid: 1\nretry: 5\n\n\n", delta("It", "stop") + b"\r\n\r\n"),
        "It",
    ),
    "characters cut in two": (stream(*CUT_LETTERS), LETTERS),
    "all in one piece": (stream(delta("I") + b"\n\n" + delta("t", "stop") + b"\n\n"), "It"),
    "empty reasons": (
        stream(*(delta(*it) + b"\n\n" for it in (("I", ""), ("t", "null"), ("", "stop")))),
        "It",
    ),
    "no [DONE]": (stream(delta("It") + b"\n\n", delta(None, "stop") + b"\n\n"), "It"),
    "no last line end": (stream(delta("It") + b"\n\n", delta(None, "stop")), "It"),
    "no blank lines": (stream(delta("I") + b"\n" + delta("t", "stop") + b"\n"), "It"),
    "no blank after data:": (
        stream(delta("It", "stop").replace(b"data: ", b"data:") + b"\n"),
        "It",
    ),
    "a value over two lines": (
        stream(
            b'data: {"choices": [\n',
            b'data: {"delta": {"content": "It"}, "finish_reason": "stop"}]}\n\n',
        ),
        "It",
    ),
    "message for delta": (
        stream(event({"choices": [{"message": {"content": "It"}, "finish_reason": "stop"}]})),
        "It",
    ),
    "a stream that says it is JSON": (
        raw(200, delta("It", "stop") + b"\n\n" + event("[DONE]") + b"\n\n"),
        "It",
    ),
    "an open end after [DONE]": (
        stream(delta("It", "stop") + b"\n\n" + event("[DONE]") + b"\n\n", end=(HANG,)),
        "It",
    ),
    "a break after the last word": (stream(delta("It", "stop") + b"\n\n", end=(CUT,)), "It"),
    "gzip, unasked": (
        raw(200, __import__("gzip").compress(
            whole("It")(None)[0].partition(b"\r\n\r\n")[2]), Content_Encoding="gzip"),
        "It",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
async def test_odd_answers_are_understood(tmp_path, case):
    action, content = ODD[case]
    async with asking(tmp_path, action) as (analyzer, server):
        answer = await analyzer.ask(question())
        assert answer.content == content
        assert len(server.asked) == 1


async def test_an_open_end_after_the_last_word_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "AFTERTHOUGHT_SECS", 0.05)
    action = stream(delta("It", "stop") + b"\n\n", end=(HANG,))
    async with asking(tmp_path, action) as (analyzer, _):
        assert (await analyzer.ask(question())).content == "It"


LACKS = {
    "stream": "stream_options is not supported",
    "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
    "temperature": "'temperature' does not support 0.3 with this model. Only the default (1) is.",
}


async def test_a_service_that_lacks_something_is_asked_without(tmp_path):
    refusals = [raw(400, {"error": {"message": told}}) for told in LACKS.values()]
    async with asking(tmp_path, *refusals, says("It")) as (analyzer, server):
        assert (await analyzer.ask(question())).content == "It"
        await analyzer.ask(question(4))  # it remembers
        bodies = [asked.body for asked in server.asked]
        assert [set(LACKS) & set(body) for body in bodies] == [
            {"stream", "max_tokens", "temperature"},
            {"max_tokens", "temperature"},
            {"temperature"},
            set(),
            set(),
        ]
        assert [body.get("max_completion_tokens") for body in bodies] == [None, None, 500, 500, 500]
        server.then(raw(400, {"error": {"message": LACKS["stream"]}}))
        with pytest.raises(RequestError, match="HTTP 400 Said: stream_options"):
            await analyzer.ask(question(5))
        assert len(server.asked) == 1


async def test_an_answer_that_cannot_be_read_any_more_is_asked_for_again(tmp_path):
    async with asking(tmp_path) as (analyzer, server):
        await analyzer.ask(question())
        with sqlite3.connect(tmp_path / "ai-answers.sqlite") as db:
            db.execute("UPDATE answers SET answer = x'7b'")
        db.close()
        assert [(await analyzer.ask(question())).cached for _ in range(2)] == [False, True]
        assert len(server.asked) == 2


async def test_an_answer_at_its_limit_says_so(tmp_path):
    async with asking(tmp_path, says("It goes", "length")) as (analyzer, _):
        answer = await analyzer.ask(question())
        assert (answer.content, answer.more) == ("It goes", {"truncated": True})


async def test_the_same_question_is_paid_once_and_answered_alike(tmp_path):
    async with asking(tmp_path, says("first"), says("second")) as (analyzer, server):
        first = await analyzer.ask(question(session_id="a"))
        later = question(session_id="b")
        for tick in later.ticks:
            tick["replay_time"] = 99
        again = await analyzer.ask(Question(later.ticks, "pattern", "b", 10**30))
        assert (first.cached, again.cached) == (False, True)
        assert (again.content, again.usage, again.model) == ("first", USAGE, "gpt-4.1")
        assert (await analyzer.ask(question(kind="trend"))).content == "second"
        assert len(server.asked) == 2
    async with asking(tmp_path, says("third")) as (analyzer, server):  # after a restart
        assert (await analyzer.ask(question())).content == "first"
        assert server.asked == []
    for other in ({"model": "m"}, {"temperature": 1}, {"max_tokens": 9}, {"extra": {"seed": 1}}):
        async with asking(tmp_path, says("third"), **other) as (analyzer, server):
            assert (await analyzer.ask(question())).content == "third"
    async with asking(tmp_path, says("third"), cache=False) as (analyzer, server):
        assert not (await analyzer.ask(question())).cached


async def test_who_asks_the_same_at_the_same_time_shares_the_answer(tmp_path):
    async with asking(tmp_path) as (analyzer, server):
        answers = []

        async def ask():
            answers.append(await analyzer.ask(question()))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert len(server.asked) == 1
        assert sorted(answer.cached for answer in answers) == [False] + [True] * 19


async def test_no_more_is_kept_than_may_be(tmp_path):
    async with asking(tmp_path, cache_entries=2) as (analyzer, server):
        for count in (1, 2, 3, 1, 3):
            await analyzer.ask(question(count))
        assert len(server.asked) == 4


async def test_ticks_before_the_end_of_the_models_knowledge_are_labelled(tmp_path):
    async with asking(tmp_path, knowledge_cutoff="2024-03-01T00:02:00Z") as (analyzer, _):
        for _ in range(2):  # kept answers, too
            assert (await analyzer.ask(question())).more == {"contaminated": True}
        later = Question([candle(2)])
        assert (await analyzer.ask(later)).more == {}


async def test_ticks_after_the_clock_are_labelled(tmp_path):
    async with asking(tmp_path) as (analyzer, _):
        clock = (OPEN_MS + 60_000) * 10**6
        assert (await analyzer.ask(Question([candle(0)], clock=clock))).more == {}
        assert (await analyzer.ask(Question([candle(1)], clock=clock))).more == {"lookahead": True}


GOOD = json.loads(signal())
CLUMSY = {
    "as asked": signal(),
    "fenced": f"Sure!\n```json\n{signal()}\n```\nGood luck {{}}",
    "after braces": f"{{not this}} but {signal()}",
    "with more": signal(mood="fine"),
}


@pytest.mark.parametrize("case", CLUMSY)
async def test_a_signal_is_read_however_it_is_wrapped(tmp_path, case):
    async with asking(tmp_path, says(CLUMSY[case])) as (analyzer, server):
        answer = await analyzer.ask(question(kind="signal"))
        assert answer.more["signal"] == json.loads(answer.content) == GOOD
        assert (await analyzer.ask(question(kind="signal"))).more["signal"] == GOOD
        [asked] = server.asked
        wanted = asked.body["response_format"]
        schema = wanted["json_schema"]["schema"]
        assert (wanted["type"], wanted["json_schema"]["strict"]) == ("json_schema", True)
        assert schema["required"] == list(schema["properties"]) == list(GOOD)
        assert schema["additionalProperties"] is False
        assert "JSON" in asked.text


async def test_a_signal_is_dated_by_its_last_record(tmp_path):
    """Not by the clock, which is elsewhere in each replay; beyond the clock it is refused."""
    clock = (OPEN_MS + 200_000) * 10**6
    asked = Question(question().ticks, "signal", None, clock)
    async with asking(tmp_path, says(signal(as_of="2024-03-01T00:03:20Z"))) as (analyzer, server):
        dated = {**GOOD, "as_of": "2024-03-01T00:03:00.000Z"}
        assert (await analyzer.ask(asked)).more == {"signal": dated}
        server.then(says(signal(as_of="2024-03-01T00:03:20.001Z")))
        with pytest.raises(RequestError, match="lies after 2024-03-01T00:03:"):
            await analyzer.ask(Question(asked.ticks[1:], "signal", None, clock))


UNFIT = {
    "not JSON": ("buy!", "there is no JSON object in it"),
    "cut": (signal()[:-3], "there is no JSON object in it"),
    "a word that is none": (signal(action="panic"), "invalid enum value 'panic'"),
    "too sure": (signal(confidence=1.5), "expected 'float' <= 1.0"),
    "another symbol": (signal(symbol="ETH/USDT"), "symbol 'ETH/USDT' was not asked about"),
    "from the future": (signal(as_of="2024-03-01T00:03:00.001Z"), "lies after 2024-03-01T00:03:"),
    "evidence from the future": (signal(evidence=["2025-01-01T00:00:00Z"]), "nothing later"),
    "no time": (signal(as_of="noon"), "as_of: "),
    "too long": (signal(rationale="x" * 501), "expected 'str' of length <= 500"),
    "nothing": ("", "there is no JSON object in it"),
}


@pytest.mark.parametrize("case", UNFIT)
async def test_an_unfit_signal_is_shown_to_the_model_once(tmp_path, case):
    said, reason = UNFIT[case]
    async with asking(tmp_path, says(said), says(signal())) as (analyzer, server):
        answer = await analyzer.ask(question(kind="signal"))
        assert answer.more["signal"] == GOOD
        assert answer.usage["total_tokens"] == 240
        assert reason in server.asked[1].text
        server.then(says(said))
        with pytest.raises(RequestError, match="gives no valid signal: ") as raised:
            await analyzer.ask(question(2, kind="signal"))
        assert raised.value.code == "analyzer_failed"
        assert len(server.asked) == 2
        server.then(says(signal()))  # a failure is not kept
        with pytest.raises(RequestError, match="lies after 2024-03-01T00:02:00"):
            await analyzer.ask(question(2, kind="signal"))


async def test_services_without_formats_are_asked_in_their_own_way(tmp_path):
    no_schema = raw(400, {"error": {"message": "response_format json_schema is unknown"}})
    no_json = raw(422, {"detail": "response_format: not allowed"})
    async with asking(tmp_path, no_schema, no_json, says(signal())) as (analyzer, server):
        assert (await analyzer.ask(question(kind="signal"))).more["signal"] == GOOD
        await analyzer.ask(question(4, kind="signal"))  # it remembers
        ways = [asked.body.get("response_format", {}).get("type") for asked in server.asked]
        assert ways == ["json_schema", "json_object", None, None]


async def test_a_signal_that_is_cut_off_or_refused_fails(tmp_path):
    refusal = whole(None, message={"content": None, "refusal": "I must not."})
    cases = {says(signal()[:20], "length"): "allow more", refusal: "refuses to answer: I must not."}
    for action, text in cases.items():
        async with asking(tmp_path, action) as (analyzer, server):
            with pytest.raises(RequestError, match=text):
                await analyzer.ask(question(kind="signal"))
            assert len(server.asked) == 1


async def test_probing_asks_for_the_models(tmp_path):
    models = raw(200, {"data": [{"id": "gpt-4.1"}, {"id": "other"}]})
    async with asking(tmp_path, models) as (analyzer, server):
        await analyzer.probe()
        assert server.asked[0].path == "/v1/models"
    async with asking(tmp_path, models, model="gpt-5") as (analyzer, _):
        with pytest.raises(PluginError, match=r"has no model 'gpt-5'; it has: gpt-4\.1, other"):
            await analyzer.probe()
    async with asking(tmp_path, raw(401, {"error": {"message": KEY}})) as (analyzer, _):
        with pytest.raises(PluginError, match=r"HTTP 401 Said: \*\*\*; check api_key"):
            await analyzer.probe()


BAD_OPTIONS = {
    "base_url": ["ftp://x", "nowhere", "https://key@host/v1", "https://host/v1?key=1"],
    "api_key": ["a b", "k\u00e4se", "x\r\ny"],
    "temperature": [-1, 3],
    "every_candles": [0],
    "comment_type": ["magic"],
    "prompts": [{"a b": "x"}, {"a": " "}],
    "extra": [{"model": "x"}],
    "knowledge_cutoff": ["-30d", "soon"],
    "max_attempts": [0],
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_are_checked(name):
    for value in BAD_OPTIONS[name]:
        with pytest.raises((ValueError, msgspec.ValidationError)) as raised:
            msgspec.convert({name: value}, OpenaiOptions, dec_hook=decoder({}))
        if name == "api_key":
            assert value not in str(raised.value)


FOLDER = Path(__file__).resolve().parents[2] / "plugins" / "tardisd_openai"


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()


def test_the_sample_shows_every_option_and_loads(tmp_path):
    text = (FOLDER / "sample.toml").read_text()
    kept = re.findall(r"^# (\[.*|[a-z_]+ = .*)$", text, re.MULTILINE)  # others are comments there
    path = tmp_path / "config.toml"
    path.write_text("\n".join([*kept, "[storages.some]", 'plugin = "sqlite"']))
    config = load_config(path, {"HOME": str(tmp_path), "HOLYSHEEP_API_KEY": KEY})
    instance = config.instances["analyzer"]["ai"]
    shown = {field.name: getattr(instance.options, field.name) for field in fields(OpenaiOptions)}
    examples = {"api_key", "extra", "system", "prompts", "knowledge_cutoff", "every_candles"}
    for field in fields(OpenaiOptions):
        assert f"\n# {field.name} = " in text
        if field.name not in examples | {"proxy", "tls_ca"}:
            assert shown[field.name] == field.default
    assert KEY not in repr(instance)


class TestOpenai(AnalyzerSuite):
    @asynccontextmanager
    async def analyzer(self, folder):
        def act(asked):
            models = raw(200, {"data": [{"id": "gpt-4.1"}]})
            return (says("It goes up.") if asked.method == "POST" else models)(asked)

        async with asking(folder, act, every_candles=50) as (analyzer, _):
            yield analyzer
