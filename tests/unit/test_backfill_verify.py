"""What `data verify` finds, and what it must not find."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace

import numpy as np
import pytest
from backfill_rig import START, Venue

from tardisd.backfill.job import run_backfill
from tardisd.backfill.verify import MAX_DETAILS, verify_series
from tardisd.errors import StorageCorrupt
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, SECOND
from tardisd.plugins.exchange import Page
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.ticks import random_candles, random_trades

SPOT = Series.parse("binance:BTC/USDT@trade")
SWAP = Series.parse("binance:BTC/USDT:USDT@trade")
AGGREGATED = Series.parse("binance:BTC/USDT:USDT@agg_trade")
MADE = Series.parse("synthetic:BTC/USDT@trade")
MINUTES = Series.parse("synthetic:BTC/USDT@candle_1m")
HOURS = Series.parse("synthetic:BTC/USDT@candle_1h")
TODAY = Span(START, START + DAY)
EVER = Span(START - DAY, START + 2 * DAY)


class Storage(MemoryStorage):
    """Reads what it was told to, sane or not."""

    def spoil(self, series, change):
        kept = self._kept[series.key]
        kept.batch = change(kept.batch)


async def stored(*batches, spans=None):
    storage = Storage()
    for at, batch in enumerate(batches):
        span = spans[at] if spans else batch.extent()
        await storage.append(batch.series, Page(batch, span))
    return storage


async def checked(storage, series, span=EVER):
    return {check.name: check for check in await verify_series(storage, series, span)}


def without(batch, *rows):
    return batch[np.delete(np.arange(len(batch)), rows)]


async def filled(*wanted):
    storage = Storage()
    for series in wanted:
        await run_backfill(series, TODAY, Venue(), storage, lambda _: None)
    return storage


async def test_everything_is_fine():
    storage = await filled(MADE, MINUTES, HOURS)
    found = await checked(storage, MADE)
    assert {check.state for check in found.values()} == {"ok"}
    assert list(found) == [
        *("checksums", "order", "trade ids"),
        *("candle_1m against trades", "candle_1h against trades"),
    ]
    assert found["candle_1m against trades"].checked == 1440
    assert found["candle_1h against trades"].checked == 24
    assert found["trade ids"].checked == found["order"].checked > 1000
    candles = await checked(storage, MINUTES)
    assert candles["trade ids"].state == "skipped"
    assert candles["candle_1m against trades"].state == "ok"


async def test_a_bad_checksum_ends_the_reading(monkeypatch):
    storage = await filled(MADE, MINUTES)

    def read(series, span):
        raise StorageCorrupt("chunk 7 fails its checksum")

    monkeypatch.setattr(storage, "read", read)
    found = await checked(storage, MADE)
    assert found["checksums"].state == "wrong"
    assert "chunk 7 fails its checksum" in found["checksums"].details[0]
    assert "candle_1m against trades" not in found


@pytest.mark.parametrize(
    ("rows", "text"),
    [([100, 50], "time goes backwards"), ([8192, 20], "time goes backwards")],
    ids=["within a batch", "between batches"],
)
async def test_rows_out_of_order(rows, text):
    storage = await stored(random_trades(SPOT, 9000, START))

    def change(batch):
        order = np.arange(len(batch))
        order[rows] = order[rows[::-1]]
        return batch[order]

    storage.spoil(SPOT, change)
    found = await checked(storage, SPOT)
    assert found["order"].state == "wrong"
    assert text in found["order"].details[0]


async def test_missing_ids_within_covered_time():
    batch = random_trades(SPOT, 20_000, START, first_id=500)
    storage = await stored(without(batch, 10, 11, 12_000), spans=[batch.extent()])
    ids = (await checked(storage, SPOT))["trade ids"]
    assert (ids.state, ids.problems, ids.checked) == ("wrong", 3, 19_997)
    assert ids.details[0] == "3 ids from 500 to 20499 are missing"
    assert ids.details[1].startswith("after 509 comes 512 at 2024-03-01T00:00:")
    assert ids.details[2].startswith("after 12499 comes 12501")


async def test_what_was_never_fetched_is_no_missing_id():
    batch = random_trades(SPOT, 20_000, START, mean_gap_ms=1000)
    cut = int(batch.ts_event[9_000]), int(batch.ts_event[9_500])
    first, last = np.searchsorted(batch.ts_event, cut)
    parts = batch[:first], batch[last:]
    spans = Span(START, cut[0]), Span(cut[1], batch.extent().end)
    ids = (await checked(await stored(*parts, spans=spans), SPOT))["trade ids"]
    assert (ids.state, ids.checked) == ("ok", len(parts[0]) + len(parts[1]))


async def test_ids_in_another_order_than_times_are_not_missing():
    batch = random_trades(SPOT, 100, START, mean_gap_ms=0)
    ids = batch.ids.copy()
    ids[[3, 4]] = ids[[4, 3]]
    storage = await stored(batch)
    storage.spoil(SPOT, lambda kept: replace(kept, ids=ids))
    assert (await checked(storage, SPOT))["trade ids"].state == "ok"


async def test_venues_burn_ids_of_swaps():
    for series, state in ((SWAP, "ok"), (AGGREGATED, "wrong")):
        batch = random_trades(series, 1000, START)
        storage = await stored(without(batch, 500), spans=[batch.extent()])
        ids = (await checked(storage, series))["trade ids"]
        assert (ids.state, ids.problems) == (state, 1)


async def test_ids_that_are_no_integers_are_skipped():
    batch = random_trades(SPOT, 10, START)
    storage = await stored(replace(batch, ids=np.array([f"x{i}" for i in range(10)], "S3")))
    ids = (await checked(storage, SPOT))["trade ids"]
    assert (ids.state, ids.details) == ("skipped", ["the ids are no integers"])


async def test_candles_that_their_trades_contradict():
    storage = await filled(MADE, MINUTES)

    def change(batch):
        fields = dict(batch.fields)
        for row, name in ((5, "volume"), (700, "high"), (900, "close")):
            column = fields[name]
            mantissa = column.mantissa.copy()
            mantissa[row] += 1
            fields[name] = Decimals(mantissa, column.scale)
        return replace(batch, fields=fields)

    storage.spoil(MINUTES, change)
    check = (await checked(storage, MINUTES))["candle_1m against trades"]
    traded = check.problems
    assert check.state == "wrong"
    assert 1 <= traded <= 3
    assert check.details[0].startswith("2024-03-01T00:05:00.000Z: volume ")
    assert ", by its trades " in check.details[0]


async def test_trades_without_a_candle():
    storage = await filled(MADE, MINUTES)
    async with storage.read(MADE, TODAY) as batches:
        batch = await batches.receive()
    minute = (int(batch.ts_event[0]) - START) // MINUTE
    storage.spoil(MINUTES, lambda kept: without(kept, minute))
    check = (await checked(storage, MINUTES))["candle_1m against trades"]
    assert check.state == "wrong"
    assert check.details[-1].endswith("trades lie in no candle")
    last = (int(batch.ts_event[-1]) - START) // MINUTE
    storage.spoil(MINUTES, lambda kept: kept[: last - 1])
    check = (await checked(storage, MINUTES))["candle_1m against trades"]
    assert check.problems > 1


async def test_only_time_that_both_cover_is_compared():
    trades = random_trades(SPOT, 3000, START, mean_gap_ms=1000)
    candles = random_candles(Series.parse("binance:BTC/USDT@candle_1m"), 60, START - 3 * HOUR)
    storage = await stored(trades, candles)
    check = (await checked(storage, SPOT))["candle_1m against trades"]
    assert check.state == "skipped"


async def test_sums_of_any_size_are_exact():
    """A sum of amounts beyond int64 at the scale of its amounts, and prices too wide for one."""
    amounts = ["4611686018427387904.5", "4611686018427387904.25", "0.000000000000000001"]
    prices = ["9000000000000000000.123", "0.000000000000000003", "12"]
    trades = Batch(
        SPOT,
        START + np.arange(3, dtype=np.int64) * SECOND,
        {"price": Decimals.of(prices), "amount": Decimals.of(amounts)},
        np.arange(3),
        np.zeros(3, np.uint8),
    )
    candle = Series.parse("binance:BTC/USDT@candle_2s")
    values = {
        "open": [prices[0], prices[2]],
        "high": [prices[0], prices[2]],
        "low": [prices[1], prices[2]],
        "close": [prices[1], prices[2]],
        "volume": ["9223372036854775807", amounts[2]],
    }
    fields = {name: Decimals.of(texts) for name, texts in values.items()}
    candles = Batch(candle, START + np.array([0, 2], np.int64) * SECOND, fields)
    storage = await stored(trades, candles, spans=[Span(START, START + MINUTE)] * 2)
    check = (await checked(storage, candle))["candle_2s against trades"]
    assert check.problems == 1
    assert check.details == [
        "2024-03-01T00:00:00.000Z: volume 9223372036854775807, by its trades 9223372036854775808.75"
    ]


async def test_details_are_few():
    batch = random_trades(SPOT, 1000, START)
    storage = await stored(without(batch, *range(1, 900, 3)), spans=[batch.extent()])
    ids = (await checked(storage, SPOT))["trade ids"]
    assert ids.problems == 300
    assert len(ids.details) == MAX_DETAILS


async def test_real_trades_make_the_bars_that_others_made_of_them(shared_data):
    folder = shared_data / "expected"
    stem = "binance-futures_2024-07_BTCUSDT"
    with gzip.open(folder / f"{stem}_trades.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    trades = Batch(
        SWAP,
        np.array([int(row["time_ms"]) for row in rows]) * MILLISECOND,
        {
            "price": Decimals.of([row["price"] for row in rows]),
            "amount": Decimals.of([row["qty"] for row in rows]),
        },
        np.array([int(row["id"]) for row in rows]),
        np.array([row["side"] == "sell" for row in rows], np.uint8),
    )
    with (folder / f"{stem}_bars1m.csv").open() as file:
        bars = list(csv.DictReader(file))
    minutes = Series.parse("binance:BTC/USDT:USDT@candle_1m")
    names = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "trades": "n"}
    candles = Batch(
        minutes,
        np.array([int(bar["open_ms"]) for bar in bars]) * MILLISECOND,
        {name: Decimals.of([bar[column] for bar in bars]) for name, column in names.items()},
    )
    span = Span(int(candles.ts_event[0]), int(candles.ts_event[-1]) + MINUTE)
    storage = await stored(trades, candles, spans=[span, span])
    found = await checked(storage, SWAP, span)
    assert {name: check.state for name, check in found.items()} == dict.fromkeys(found, "ok")
    assert found["trade ids"].checked == len(rows)
    assert found["candle_1m against trades"].checked == len(bars)
    storage.spoil(SWAP, lambda kept: without(kept, 5000))
    found = await checked(storage, minutes, span)
    assert found["candle_1m against trades"].problems == 1
