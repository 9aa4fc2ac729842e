"""Sessions with derived candles: what is refused, what is chosen, and what comes out, spelt out."""

from __future__ import annotations

import json
from decimal import Decimal
from hashlib import blake2b
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Notice, Resume
from tardisd.testing.engine import run_engine

ROOT = Path(__file__).resolve().parents[2]
START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 20 * MINUTE)


def series(name, symbol="BTC/USDT"):
    return Series.of("binance", symbol, name)


TRADES, MINUTES, FIVES = series("trade"), series("candle_1m"), series("candle_5m")


def trades(seconds, kind="trade"):
    """Return trades at these seconds: of 1 each, at 100, 101, …."""
    count = len(seconds)
    return Batch(
        series(kind),
        START + np.array([int(at * SECOND) for at in seconds]),
        {"price": Decimals(np.arange(count) + 100), "amount": Decimals(np.ones(count, np.int64))},
        np.arange(count),
        np.zeros(count, np.uint8),
    )


def candles(minutes, name="candle_1m"):
    """Return candles that open at these minutes, of a volume of 2 each."""
    ones = np.ones(len(minutes), np.int64)
    fields = {name: Decimals(ones * 7) for name in ("open", "high", "low", "close")}
    fields |= {"volume": Decimals(ones * 2), "trades": Decimals(ones)}
    return Batch(series(name), START + np.array(minutes) * MINUTE, fields)


def rows(listener, form="batch"):
    """Return the data of the ticks received, as JSON has it."""
    text = b"".join(bytes(block.encode(form).bytes()) for block in listener.blocks)
    return json.loads(b"[" + text.rstrip(b",") + b"]", parse_float=Decimal)


def gaps(listener):
    """Return (series, from, to, cause) of the marks received, in minutes from the start."""
    return [
        (
            notice.fields["series"].partition("@")[2],
            (notice.fields["from"] * MILLISECOND - START) / MINUTE,
            (notice.fields["to"] * MILLISECOND - START) / MINUTE,
            notice.fields["cause"],
        )
        for notice in listener.notices("gap")
    ]


def test_five_minutes_of_trades():
    async def main(engine):
        await engine.store(trades([0, 61, 299.5, 300, 900, 905]), SPAN)
        return await engine.play([TRADES], SPAN, derive=(FIVES,), speed="max")

    listener = run_engine(main)
    found = [(row["channel"], row["timestamp"] - START // MILLISECOND) for row in rows(listener)]
    assert found == [
        ("trade", 0),
        ("trade", 61_000),
        ("trade", 299_500),
        ("candle_5m", 0),
        ("trade", 300_000),
        ("candle_5m", 300_000),
        ("trade", 900_000),
        ("trade", 905_000),
        ("candle_5m", 900_000),
    ]
    assert gaps(listener) == [("candle_5m", 10, 15, "no_trades")]
    first = rows(listener)[3]
    assert first["derived"] is True
    assert first["derived_from"] == "trade"
    assert "closed" not in first
    fields = ("open", "high", "low", "close", "volume", "quote_volume", "trades")
    assert [first[name] for name in fields] == [100, 102, 100, 102, 3, 303, 3]
    assert first["close_time"] == (START + 5 * MINUTE) // MILLISECOND
    assert "derived" not in rows(listener)[0]


def test_forming_candles_show_each_second_with_trades():
    async def main(engine):
        await engine.store(trades([0, 0.25, 1, 61, 299.5, 300]), SPAN)
        return await engine.play([], SPAN, derive=(FIVES,), forming=True, speed=100.0)

    listener = run_engine(main)
    found = [
        ((release - START) / SECOND, row.get("closed", True), row["volume"])
        for (_, release), row in zip(listener.arrivals(), rows(listener), strict=True)
    ]
    for (_, release), row in zip(listener.arrivals(), rows(listener), strict=True):
        assert row.get("as_of", row["close_time"]) == release // MILLISECOND
        assert ("as_of" in row) == ("closed" in row)
    assert found == [
        (1, False, 2),
        (2, False, 3),
        (62, False, 4),
        (300, True, 5),
        (301, False, 1),
        (600, True, 1),
    ]
    for at, release in listener.arrivals():
        assert at == pytest.approx((release - START) / SECOND / 100, abs=0.002)
    assert listener.seqs() == list(range(1, len(found) + 2))
    assert gaps(listener) == [("candle_5m", 10, 20, "no_trades")]
    assert listener.end["ticks"] == 6


def test_what_the_source_does_not_cover_is_a_gap_of_whole_candles():
    async def main(engine):
        covered = Coverage([Span(START, START + 7 * MINUTE), Span(START + 8 * MINUTE, SPAN.end)])
        await engine.store(trades([0, 100, 400, 500, 1000]), covered)
        return await engine.play([], SPAN, derive=(FIVES,), speed="max", on_gap="mark")

    listener = run_engine(main)
    assert [row["trades"] for row in rows(listener)] == [2, 1]
    assert gaps(listener) == [
        ("candle_5m", 5, 10, "not_fetched"),
        ("candle_5m", 10, 15, "no_trades"),
    ]


def test_a_hole_among_minutes_spoils_a_candle_unless_nothing_was_traded():
    async def main(engine):
        minutes = [m for m in range(20) if m not in (2, 7, 11, 12)]
        await engine.store(candles(minutes), SPAN)
        down = Gap(Span(START + 7 * MINUTE, START + 8 * MINUTE), "exchange_down")
        await engine.storage.record_gaps(MINUTES, [down])
        return await engine.play([MINUTES], SPAN, derive=(FIVES,), speed="max")

    listener = run_engine(main)
    built = [row for row in rows(listener) if row["channel"] == "candle_5m"]
    assert [(row["timestamp"] - START // MILLISECOND) // 300_000 for row in built] == [1, 3]
    assert [row["volume"] for row in built] == [8, 10]
    assert gaps(listener) == [
        ("candle_1m", 2, 3, "unknown"),
        ("candle_5m", 0, 5, "unknown"),
        ("candle_1m", 7, 8, "exchange_down"),
        ("candle_1m", 11, 13, "unknown"),
        ("candle_5m", 10, 15, "unknown"),
    ]


@pytest.mark.parametrize(
    ("stored", "source"),
    [
        ([("trade", 20), ("candle_1m", 20), ("candle_15s", 20)], "candle_1m"),
        ([("trade", 20), ("candle_1m", 10)], "trade"),
        ([("trade", 10), ("candle_1m", 10)], "candle_1m"),
        ([("agg_trade", 20), ("trade", 10)], "trade"),
        ([("agg_trade", 20), ("candle_7m", 20)], "agg_trade"),
    ],
)
def test_the_source_is_what_covers_most_and_is_the_coarsest(stored, source):
    async def main(engine):
        for name, minutes in stored:
            covered = Span(START, START + minutes * MINUTE)
            if name.endswith("trade"):
                await engine.store(trades(range(0, 600, 20), name), covered)
            else:
                await engine.store(candles(range(10), name), covered)
        await engine.store(candles([0, 5, 10, 15], "candle_10m"), Span(START - DAY, START + DAY))
        return await engine.play([], SPAN, derive=(FIVES,), speed="max")

    listener = run_engine(main)
    found = rows(listener)
    assert {row["derived_from"] for row in found} == {source}
    assert {"trades" in row for row in found} == {source != "agg_trade"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"derive": (series("quote"),)}, "bad_request", "not a series of candles"),
        ({"derive": (MINUTES,), "series": ()}, "bad_request", "is stored; ask for it in 'series'"),
        ({"derive": (series("candle_1d"),)}, "bad_request", "no whole candle"),
        ({"derive": (series("candle_7s", "ETH/USDT"),)}, "no_data", "nothing is stored to build"),
        (
            {"derive": (series("candle_90s"),)},
            "no_data",
            "whose interval divides 90s; stored: binance:BTC/USDT@candle_1m",
        ),
        ({"derive": (FIVES,), "release": "open-lookahead"}, "bad_request", "open-lookahead"),
        ({"forming": True}, "bad_request", "forming: "),
        ({"derive": (FIVES,), "series": (FIVES,)}, "bad_request", "as stored, too"),
        ({"series": ()}, "bad_request", "at least one"),
    ],
)
def test_what_cannot_be_derived_is_refused_by_name(options, code, words):
    async def main(engine):
        await engine.store(candles(range(20)), SPAN)
        asked = {"series": (MINUTES,), **options}
        with pytest.raises(RequestError) as caught:
            await engine.create(asked.pop("series"), SPAN, **asked)
        return caught.value

    error = run_engine(main)
    assert error.code == code
    assert words in error.message


def test_what_is_stored_for_a_part_is_built_for_the_whole():
    async def main(engine):
        await engine.store(candles(range(20)), SPAN)
        await engine.store(candles([0, 5], "candle_5m"), Span(START, START + 10 * MINUTE))
        listener = await engine.play([], SPAN, derive=(FIVES,), speed="max")
        await engine.store(candles([10, 15], "candle_5m"), SPAN)
        with pytest.raises(RequestError, match="is stored; ask for it in 'series'"):
            await engine.create([], SPAN, derive=(FIVES,))
        return listener

    found = rows(run_engine(main))
    assert [row["volume"] for row in found] == [10] * 4
    assert {row["derived_from"] for row in found} == {"candle_1m"}


def test_several_series_of_one_hidden_source():
    async def main(engine):
        await engine.store(trades([n * 7.5 for n in range(160)]), SPAN)
        wanted = (series("candle_10m"), FIVES, MINUTES)
        listener = await engine.play([], SPAN, derive=wanted, speed="max")
        session = next(iter(engine.sessions.list()))
        return listener, session.status()

    listener, status = run_engine(main)
    assert status["series"] == []
    assert status["derive"] == [f"binance:BTC/USDT@candle_{n}m" for n in (10, 5, 1)]
    found = rows(listener)
    assert {row["channel"] for row in found} == {"candle_10m", "candle_5m", "candle_1m"}
    ends = [(row["close_time"], int(row["interval"][:-1])) for row in found]
    assert ends == sorted(ends)  # the shorter ones first
    for name, length in (("candle_10m", 80), ("candle_5m", 40), ("candle_1m", 8)):
        assert {row["trades"] for row in found if row["channel"] == name} == {length}


def test_who_comes_late_or_back_finds_the_candles():
    async def main(engine):
        await engine.store(trades([n * 7.5 for n in range(160)]), SPAN)
        session = await engine.create([TRADES], SPAN, derive=(FIVES,), forming=True, speed=60.0)
        whole = engine.listen(session)
        session.begin()
        await trio.sleep(7.01)
        late = engine.listen(session)
        await trio.sleep(5)
        seq = session.status()["seq"]
        back = engine.listen_from(session, Resume(1, seq - 40))
        await whole.done.wait()
        await late.done.wait()
        await back.done.wait()
        return whole, late, back, seq

    whole, late, back, seq = run_engine(main)
    assert back.seqs() == list(range(seq - 39, whole.seqs()[-1] + 1))
    assert rows_without_time(back) == rows_without_time(whole)[-len(rows(back)) :]
    [snapshot] = late.notices("snapshot")
    found = {
        (row["channel"], row.get("closed", True)): row
        for row in json.loads(bytes(snapshot.fields["data"]))
    }
    assert set(found) == {("trade", True), ("candle_5m", True), ("candle_5m", False)}
    assert found["candle_5m", True]["timestamp"] == START // MILLISECOND
    assert found["candle_5m", False]["timestamp"] == (START + 5 * MINUTE) // MILLISECOND
    assert found["candle_5m", False]["trades"] == 16


def rows_without_time(listener):
    return [{k: v for k, v in row.items() if k != "replay_time"} for row in rows(listener)]


def test_loops_and_speeds_have_one_hash():
    async def main(engine):
        await engine.store(trades([n * 7.5 for n in range(160)]), SPAN)
        hashes = set()
        for speed in ("max", 1000.0, 77.7):
            listener = await engine.play([TRADES], SPAN, derive=(FIVES,), forming=True, speed=speed)
            hashes.add(listener.end["hash"])
        session = await engine.create(
            [TRADES], SPAN, derive=(FIVES,), forming=True, speed="max", loop=True
        )
        follower = session.subscribe("block")
        session.begin()
        seen = 0
        while seen < 2:
            item = await follower.receive()
            if isinstance(item, Notice) and item.type == "reset":
                hashes.add(item.fields["hash"])
                seen += 1
        session.stop()
        return hashes

    assert len(run_engine(main)) == 1


def test_a_client_can_compute_the_hash_of_forming_candles():
    spec = spec_from_file_location("verify_hash", ROOT / "examples" / "verify_hash.py")
    example = module_from_spec(spec)
    spec.loader.exec_module(example)

    async def main(engine):
        await engine.store(trades([n * 7.5 for n in range(160)]), SPAN)
        session = await engine.create(
            [TRADES], SPAN, derive=(FIVES, MINUTES), forming=True, speed="max"
        )
        listener = engine.listen(session)
        session.begin()
        await listener.done.wait()
        return listener, await session.verify()

    listener, proof = run_engine(main)
    digest = blake2b(digest_size=32)
    for row in rows(listener):
        digest.update(example.record(row["channel"], row))
    assert digest.hexdigest() == listener.end["hash"] == proof["hash"]
    assert proof["equal"]


def test_calendar_months_and_weeks():
    async def main(engine):
        days = np.arange(0, 62)
        ones = Decimals(np.ones(62, np.int64))
        fields = dict.fromkeys(("open", "high", "low", "close", "volume"), ones)
        await engine.store(Batch(series("candle_1d"), START + days * DAY, fields))
        span = Span(START, START + 62 * DAY)
        wanted = (series("candle_1M"), series("candle_1w"))
        return await engine.play([], span, derive=wanted, speed="max")

    listener = run_engine(main)
    found = rows(listener)
    months = [row for row in found if row["channel"] == "candle_1M"]
    assert [(row["datetime"][:10], row["volume"]) for row in months] == [
        ("2024-03-01", 31),
        ("2024-04-01", 30),
    ]
    weeks = [row["datetime"][:10] for row in found if row["channel"] == "candle_1w"]
    assert weeks[0] == "2024-03-04"  # the first Monday
    assert {row["volume"] for row in found if row["channel"] == "candle_1w"} == {7}
    assert all(b["close_time"] >= a["close_time"] for a, b in pairwise(found))


def test_a_durable_session_goes_on_with_its_candles(tmp_path):
    state = tmp_path / "state.sqlite"
    options = {"derive": (FIVES,), "forming": True}
    kept = {}

    async def first(engine):
        await engine.store(trades([n * 7.5 for n in range(160)]), SPAN)
        kept["storage"] = engine.storage
        kept["whole"] = await engine.play([], SPAN, speed="max", **options)
        session = await engine.create([], SPAN, speed=60.0, durable=True, session_id="d", **options)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(8)
        await engine.sessions.end_all()
        await listener.done.wait()

    run_engine(first, state=state)

    # Better candles come in meanwhile: what was chosen stays.
    run_engine(lambda engine: engine.store(candles(range(20)), SPAN), storage=kept["storage"])

    async def second(engine):
        session = engine.sessions.get("d")
        assert session.status()["derive"] == [FIVES.text]
        back = engine.listen_from(session, Resume(1, 40), "block")
        session.resume()
        await back.done.wait()
        return back

    back = run_engine(second, state=state, storage=kept["storage"])
    assert back.seqs() == kept["whole"].seqs()[40:]
    assert rows_without_time(back) == rows_without_time(kept["whole"])[40:]
    assert back.end == kept["whole"].end
