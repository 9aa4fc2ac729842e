"""The file sink and a session that is moved in time: an epoch has files of its own, each exact."""

from __future__ import annotations

import json
from decimal import Decimal

import hash_reference
import msgspec
import pytest
import trio
from file_reading import rows_of
from test_file_sink_formats import ticks_of

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, SECOND, parse_time
from tardisd.testing.engine import run_engine
from tardisd.testing.sink import sink_context
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_file.plugin import FileOptions, FileSink

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 10 * MINUTE)
TRADES = random_trades(Series.parse("binance:BTC/USDT@trade"), 1100, START, mean_gap_ms=500)
CANDLES = random_candles(Series.parse("binance:BTC/USDT@candle_1m"), 10, START)
FORMS = {
    "ndjson": {"path": "{session_id}.ndjson"},
    "zstd": {"path": "{session_id}-{epoch}.ndjson", "compression": "zstd"},
    "parquet": {"path": "{session_id}/{epoch}/{data_type}-{symbol}.parquet", "format": "parquet"},
}


def sink_in(folder, form):
    options = msgspec.convert(FORMS[form], FileOptions)
    return FileSink(options, sink_context(folder, "files"))


async def fill(engine):
    await engine.store(TRADES, SPAN)
    await engine.store(CANDLES, SPAN)


def files_by_epoch(folder, form, epochs):
    """Return the rows that were written of each epoch, in order; nothing else may be there."""
    found, known = {}, set()
    for epoch in epochs:
        if form == "ndjson":
            paths = [folder / ("s.ndjson" if epoch == 1 else f"s.e{epoch}.ndjson")]
        elif form == "zstd":
            paths = [folder / f"s-{epoch}.ndjson.zst"]
        else:
            paths = list((folder / "s" / str(epoch)).glob("*.parquet"))
        known |= set(paths)
        rows = [row for path in paths if path.exists() for row in rows_of(path)]
        found[epoch] = sorted(rows, key=lambda row: row["seq"])
    assert {path for path in folder.rglob("*") if path.is_file()} <= known
    return found


def heard_of(listener, epoch):
    """Return the numbers of the ticks that a follower got in an epoch."""
    blocks = [block for block in listener.blocks if block.epoch == epoch]
    return [block.first_seq + row for block in blocks for row in range(len(block))]


@pytest.mark.parametrize("form", FORMS)
def test_seeks_and_steps_do_not_mix_what_is_written(tmp_path, form):
    sink = sink_in(tmp_path, form)

    async def main(engine):
        await fill(engine)
        async with sink.run():
            session = await engine.create(
                [TRADES.series, CANDLES.series], SPAN, speed=60.0, session_id="s", sinks=("f",)
            )
            listener = engine.listen(session)
            session.begin()
            await trio.sleep(3)
            session.seek(START + 7 * MINUTE)
            await trio.sleep(1)
            session.seek(START + 90 * SECOND)
            await trio.sleep(1)
            session.pause()
            await session.step(-20).wait()
            await session.step(5).wait()
            # Paused, as it may be for days: what came before the last move is complete already.
            await trio.sleep(1)
            early = files_by_epoch_so_far(tmp_path)
            session.resume()
            session.change_speed("max")
            await listener.done.wait()
            await engine.sessions.end_all()
            return listener, early

    listener, early = run_engine(main, sinks={"f": sink}, limiters=[sink._threads])
    assert early
    epochs = sorted({block.epoch for block in listener.blocks})
    assert len(epochs) >= 3
    found = files_by_epoch(tmp_path, form, epochs)
    for epoch in epochs:
        assert [row["seq"] for row in found[epoch]] == heard_of(listener, epoch), epoch
    if form == "ndjson":
        path = tmp_path / f"s.e{epochs[-1]}.ndjson"
        lines = path.read_text().splitlines()
        rows = [json.loads(line, parse_float=Decimal) for line in lines]
        assert hash_reference.content_hash(list(ticks_of(rows))) == listener.end["hash"]


def files_by_epoch_so_far(folder):
    """Return the complete files there are."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]


def test_every_round_of_a_loop_is_a_file(tmp_path):
    sink = sink_in(tmp_path, "ndjson")

    async def main(engine):
        await fill(engine)
        async with sink.run():
            session = await engine.create(
                [TRADES.series, CANDLES.series],
                SPAN,
                speed=600.0,
                loop=True,
                session_id="s",
                sinks=("f",),
            )
            session.begin()
            await trio.sleep(3.5)
            session.stop()
            await engine.sessions.end_all()

    run_engine(main, sinks={"f": sink}, limiters=[sink._threads])
    rounds = [tmp_path / name for name in ("s.ndjson", "s.e2.ndjson", "s.e3.ndjson")]
    texts = [path.read_text() for path in rounds]
    assert [len(text.splitlines()) for text in texts] == [1110] * 3
    without_stamps = [
        [{k: v for k, v in json.loads(line).items() if k != "replay_time"} for line in text.split()]
        for text in texts
    ]
    assert without_stamps[0] == without_stamps[1] == without_stamps[2]
    assert 0 < len((tmp_path / "s.e4.ndjson").read_text().splitlines()) < 1110
