"""The tests that every storage plugin passes; knows no database.

Subclass `StorageSuite` in a test module, name the class `Test…`, and open the plugin in a folder:

    class TestMyStorage(StorageSuite):
        @asynccontextmanager
        async def storage(self, folder):
            plugin = MyStorage(MyStorage.Options(), suite_context("mine", folder))
            async with plugin.run():
                yield plugin

Opening it a second time in the same folder must show what was stored the first time. Needs pytest
with pytest-trio in trio mode.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from tardisd.errors import DataError
from tardisd.market.check import same_rows
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import HOUR, MILLISECOND, MINUTE, SECOND
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended, Storage
from tardisd.testing.storage_model import START, Draw, Model, Row, joined, page_of, rows_of
from tardisd.testing.ticks import random_candles, random_trades

TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT:USDT@candle_1m")
QUOTES = Series.parse("okx:BTC/USDT@quote")
TEXT_IDS = Series.parse("okx:BTC/USDT:USDT@liquidation")
ALL_TIME = Span(START - 1000 * HOUR, START + 1000 * HOUR)
_BIG = "9223372036854775807"
_LITTLE = "0.000000000000000001"
# Columns: narrow, of many digits, wide (too large for one mantissa), negative.
_VALUES = (["1", "2.50"], ["65000.01", _LITTLE], [_BIG, _LITTLE], [f"{_BIG[:-1]}.5", "0.1"])


def trade(at_ms: int, trade_id: int, price: str = "1", amount: str = "1", side: int = 0) -> Row:
    """Return a trade `at_ms` milliseconds after the suite's start."""
    return Row(START + at_ms * MILLISECOND, str(trade_id), side, (price, amount))


def between(first_ms: int, last_ms: int) -> Span:
    """Return a span in milliseconds after the suite's start."""
    return Span(START + first_ms * MILLISECOND, START + last_ms * MILLISECOND)


async def read(storage: Storage[Any], series: Series, span: Span = ALL_TIME) -> Batch:
    """Return all rows of a span as one batch."""
    async with storage.read(series, span) as batches:
        return Batch.concat([batch async for batch in batches] or [Batch.empty(series)])


def page_with(batch: Batch, span: Span | None = None) -> Page:
    """Return a page of the batch; without a span, it covers just its rows."""
    return Page(batch, batch.extent() if span is None else span)


def cut(batch: Batch, rows: int) -> list[Page]:
    """Return pages of about so many rows, whole instants each, without holes between them."""
    times = batch.ts_event
    marks = [*times[::rows].tolist(), int(times[-1]) + 1]
    return [
        page_with(batch.within(span), span)
        for span in (Span(*marks[at : at + 2]) for at in range(len(marks) - 1))
        if span
    ]


class StorageSuite:
    """What the core relies on in every storage plugin."""

    @asynccontextmanager
    async def storage(self, folder: Path) -> AsyncIterator[Storage[Any]]:
        """Open the plugin under test with its data in `folder`. Override it."""
        raise NotImplementedError("override StorageSuite.storage")
        yield

    async def test_an_unknown_series_is_empty(self, tmp_path: Path) -> None:
        async with self.storage(tmp_path) as storage:
            assert len(await read(storage, TRADES)) == 0
            assert await storage.coverage(TRADES) == Coverage()
            assert list(await storage.gaps(TRADES)) == []
            assert list(await storage.list_series()) == []
            assert await storage.last_before(TRADES, START) is None
            assert await storage.version(TRADES) == 0
            assert await storage.instrument(TRADES) is None
            assert await storage.delete(TRADES, ALL_TIME) == 0

    @pytest.mark.parametrize("kind", sorted(SCHEMAS))
    @pytest.mark.parametrize("values", _VALUES, ids=["narrow", "digits", "wide", "mixed"])
    async def test_values_come_back_exactly(
        self, tmp_path: Path, kind: str, values: list[str]
    ) -> None:
        series = Series.parse(f"okx:ETH/BTC@{'candle_1h' if kind == 'candle' else kind}")
        schema = SCHEMAS[kind]
        rows = []
        for at in range(40):
            text = values[at % 2]
            one = tuple(
                None if name in schema.optional and at % 3 else text for name in schema.fields
            )
            name = f"id-{at:03}" if at % 4 else None
            side = at % 2 if schema.has_side else None
            rows.append(Row(START + at * HOUR, name if schema.has_id else None, side, one))
        page = page_of(series, rows)
        async with self.storage(tmp_path) as storage:
            assert await storage.append(series, page) == Appended(added=40)
            assert rows_of(await read(storage, series)) == rows_of(page.batch)
            assert await storage.append(series, page) == Appended(unchanged=40)
        async with self.storage(tmp_path) as storage:
            assert rows_of(await read(storage, series)) == rows_of(page.batch)
            assert await storage.coverage(series) == Coverage([page.span])

    async def test_negative_values_and_extreme_ids(self, tmp_path: Path) -> None:
        series = Series.parse("okx:BTC/USDT:USDT@funding")
        rates = [Row(START + at * HOUR, None, None, (f"-0.000{at}",)) for at in range(1, 9)]
        trades = [trade(at, name) for at, name in enumerate([0, 2**63 - 1, 1, 2**62])]
        async with self.storage(tmp_path) as storage:
            await storage.append(series, page_of(series, rates))
            await storage.append(TRADES, page_of(TRADES, trades))
            assert rows_of(await read(storage, series)) == rates
            assert rows_of(await read(storage, TRADES)) == trades

    async def test_an_optional_field_may_come_later(self, tmp_path: Path) -> None:
        bare = Row(START, None, None, ("1", "2", "1", "2", "5", None, None))
        full = Row(START + MINUTE, None, None, ("2", "2", "2", "2", "5", "7.5", "3"))
        async with self.storage(tmp_path) as storage:
            await storage.append(CANDLES, page_of(CANDLES, [full]))
            await storage.append(CANDLES, page_of(CANDLES, [bare]))
            assert rows_of(await read(storage, CANDLES)) == [bare, full]

    async def test_a_page_again_changes_nothing(self, tmp_path: Path) -> None:
        page = page_with(random_trades(TRADES, 3000, START))
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page)
            version = await storage.version(TRADES)
            assert version > 0
            assert await storage.append(TRADES, page) == Appended(unchanged=3000)
            part = page_with(page.batch[1000:2000])
            assert await storage.append(TRADES, part) == Appended(unchanged=1000)
            assert await storage.version(TRADES) == version
            assert same_rows(await read(storage, TRADES), page.batch).all()

    async def test_overlaps_add_only_what_is_new(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 3000, START)
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_with(batch[500:2000]))
            appended = await storage.append(TRADES, page_with(batch))
            assert appended == Appended(added=1500, unchanged=1500)
            assert same_rows(await read(storage, TRADES), batch).all()

    async def test_other_content_of_a_key_is_a_revision(self, tmp_path: Path) -> None:
        old = random_candles(CANDLES, 100, START)
        fields = {**old.fields, "volume": Decimals(np.arange(100), 2)}
        new = Batch(CANDLES, old.ts_event, fields)
        async with self.storage(tmp_path) as storage:
            await storage.append(CANDLES, page_with(old))
            version = await storage.version(CANDLES)
            assert await storage.append(CANDLES, page_with(new[50:])) == Appended(revised=50)
            assert await storage.version(CANDLES) > version
            expected = rows_of(old[:50]) + rows_of(new[50:])
            assert rows_of(await read(storage, CANDLES)) == expected
            trades = [trade(1, 1), trade(1, 2, "3"), trade(2, 3)]
            await storage.append(TRADES, page_of(TRADES, trades))
            revised = [trade(1, 1), trade(1, 2, "4"), trade(1, 5)]
            appended = await storage.append(TRADES, page_of(TRADES, revised))
            assert appended == Appended(added=1, unchanged=1, revised=1)
            assert rows_of(await read(storage, TRADES)) == [*revised, trade(2, 3)]

    async def test_equal_rows_without_an_id_are_counted(self, tmp_path: Path) -> None:
        once, other = ("1", "2", "3", "4"), ("1", "2", "3", "5")
        ts = START + SECOND
        rows = [Row(ts, None, None, values) for values in (once, other, once)]
        async with self.storage(tmp_path) as storage:
            await storage.append(QUOTES, page_of(QUOTES, rows))
            assert await storage.append(QUOTES, page_of(QUOTES, rows)) == Appended(unchanged=3)
            more = [rows[0], rows[0], rows[0]]
            appended = await storage.append(QUOTES, page_of(QUOTES, more))
            assert appended == Appended(added=1, unchanged=2)
            assert rows_of(await read(storage, QUOTES)) == [*rows, rows[0]]

    async def test_rows_of_an_instant_keep_their_order(self, tmp_path: Path) -> None:
        numbered = [trade(0, 3), trade(0, 10), trade(0, 1), trade(0, 2)]
        named = [Row(START, name, 1, ("1", "1")) for name in ("z", "b", "a", "c")]
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_of(TRADES, numbered[:2]))
            await storage.append(TRADES, page_of(TRADES, numbered[2:]))
            found = [row.id for row in rows_of(await read(storage, TRADES))]
            assert found == ["1", "2", "3", "10"]
            await storage.append(TEXT_IDS, page_of(TEXT_IDS, named[:2]))
            await storage.append(TEXT_IDS, page_of(TEXT_IDS, named[1:]))
            assert rows_of(await read(storage, TEXT_IDS)) == named

    @pytest.mark.parametrize("rows", [1, 37, 1000, 9000])
    async def test_pages_may_come_in_any_order(self, tmp_path: Path, rows: int) -> None:
        batch = random_trades(TRADES, min(200 * rows, 30_000), START)
        pages = cut(batch, rows)
        random.Random(rows).shuffle(pages)
        async with self.storage(tmp_path) as storage:
            total = Appended()
            for page in pages:
                total += await storage.append(TRADES, page)
            assert total == Appended(added=len(batch))
            assert same_rows(await read(storage, TRADES), batch).all()
            assert await storage.coverage(TRADES) == Coverage([batch.extent()])

    async def test_an_empty_page_covers(self, tmp_path: Path) -> None:
        empty = Page(Batch.empty(TRADES), between(0, 10))
        async with self.storage(tmp_path) as storage:
            assert await storage.append(TRADES, empty) == Appended()
            assert await storage.coverage(TRADES) == Coverage([between(0, 10)])
            version = await storage.version(TRADES)
            await storage.append(TRADES, empty)
            assert await storage.version(TRADES) == version
            await storage.append(TRADES, Page(Batch.empty(TRADES), between(10, 20)))
            assert await storage.coverage(TRADES) == Coverage([between(0, 20)])
            assert await storage.version(TRADES) > version

    async def test_a_bad_page_is_refused_whole(self, tmp_path: Path) -> None:
        outside = page_of(TRADES, [trade(1, 1), trade(30, 2)], between(0, 30))
        backwards = page_of(TRADES, [trade(5, 1), trade(1, 2)], between(0, 30))
        async with self.storage(tmp_path) as storage:
            for page in (outside, backwards):
                with pytest.raises(DataError):
                    await storage.append(TRADES, page)
            assert len(await read(storage, TRADES)) == 0
            assert await storage.coverage(TRADES) == Coverage()
            assert await storage.version(TRADES) == 0

    async def test_a_read_ends_where_its_span_does(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 20_000, START, mean_gap_ms=3)
        times = batch.ts_event
        ends = [int(times[at]) + by for at in (0, 1, 7000, 8192, 19_999) for by in (-1, 0, 1)]
        async with self.storage(tmp_path) as storage:
            for page in cut(batch, 7000):
                await storage.append(TRADES, page)
            for start in ends:
                for end in ends:
                    if start <= end:
                        expected = batch[(times >= start) & (times < end)]
                        found = await read(storage, TRADES, Span(start, end))
                        assert len(found) == len(expected)
                        assert same_rows(found, expected).all()

    async def test_very_many_rows_at_one_instant(self, tmp_path: Path) -> None:
        count, names = 20_000, np.arange(20_000)
        times = START + np.where(names < 5, names, np.where(names < 19_995, 5, names))
        ones = Decimals(np.ones(count, np.int64))
        batch = Batch(
            TRADES, times, {"price": ones, "amount": ones}, names, np.zeros(count, np.uint8)
        )
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_with(batch[::2], batch.extent()))
            await storage.append(TRADES, page_with(batch[1::2], batch.extent()))
            assert same_rows(await read(storage, TRADES), batch).all()
            instant = await read(storage, TRADES, Span(START + 5, START + 6))
            assert len(instant) == 19_990
            last = await storage.last_before(TRADES, START + 6)
            assert last is not None
            assert last.ids is not None
            assert last.ids.tolist() == [19_994]
            assert await storage.delete(TRADES, Span(START + 5, START + 6)) == 19_990
            assert len(await read(storage, TRADES)) == 10

    async def test_a_read_sees_one_state(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 60_000, START)
        late = batch[1::2]
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_with(batch[::2], batch.extent()))
            before = await read(storage, TRADES)
            async with storage.read(TRADES, ALL_TIME) as batches:
                found = [await batches.receive()]
                for page in cut(late, 5000):
                    await storage.append(TRADES, page)
                assert len(await read(storage, TRADES)) == 60_000
                await storage.delete(TRADES, Span(int(batch.ts_event[30_000]), ALL_TIME.end))
                await storage.append(TRADES, page_with(batch[:1]))
                found += [one async for one in batches]
            assert len(found) > 1  # memory does not grow with the span
            assert same_rows(Batch.concat(found), before).all()
            kept = batch[batch.ts_event < batch.ts_event[30_000]]
            assert same_rows(await read(storage, TRADES), kept).all()

    async def test_many_tasks_at_once(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 20_000, START)
        mark = int(batch.ts_event[10_000])

        async def add(pages: list[Page]) -> None:
            for page in pages:
                await storage.append(TRADES, page)

        async def watch() -> None:
            known = 0
            while known < len(batch):
                covered = await storage.coverage(TRADES)
                found = await read(storage, TRADES)
                known, times = len(found), found.ts_event
                assert (times[1:] >= times[:-1]).all()
                for span in covered:
                    there = int(((times >= span.start) & (times < span.end)).sum())
                    assert there == len(batch.within(span))

        async with self.storage(tmp_path) as storage, trio.open_nursery() as nursery:
            nursery.start_soon(add, cut(batch[batch.ts_event < mark], 1000))
            nursery.start_soon(add, cut(batch[batch.ts_event >= mark], 1000))
            for _ in range(6):
                nursery.start_soon(watch)

    async def test_a_read_may_be_left_early(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 50_000, START)
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_with(batch))
            for _ in range(10):
                async with storage.read(TRADES, ALL_TIME) as batches:
                    assert len(await batches.receive())
                async with storage.read(TRADES, ALL_TIME) as batches:
                    await batches.aclose()
                with trio.move_on_after(0):
                    await read(storage, TRADES)
            with pytest.raises(KeyError, match="the caller's own"):
                async with storage.read(TRADES, ALL_TIME) as batches:
                    raise KeyError("the caller's own")
            assert len(await read(storage, TRADES)) == 50_000

    async def test_a_cancelled_append_is_whole_or_nothing(self, tmp_path: Path) -> None:
        async with self.storage(tmp_path) as storage:
            expected = 0
            for at in range(20):
                rows = [trade(at * 10 + n, at * 10 + n) for n in range(10)]
                page = page_of(TRADES, rows, between(at * 10, at * 10 + 10))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(storage.append, TRADES, page)
                    for _ in range(at % 5):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                found = len(await read(storage, TRADES))
                assert found - expected in (0, 10)
                covered = (await storage.coverage(TRADES)).covers(page.span)
                assert covered == (found > expected)
                expected = found

    async def test_last_before(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 20_000, START, mean_gap_ms=3)
        times = batch.ts_event
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_with(batch))
            assert await storage.last_before(TRADES, int(times[0])) is None
            for at in (1, 2, 4000, 8192, 19_999):
                for ts in (int(times[at]), int(times[at]) + 1):
                    last = await storage.last_before(TRADES, ts)
                    found = [] if last is None else rows_of(last)
                    assert found == rows_of(batch[times < ts][-1:])

    async def test_gaps_are_kept(self, tmp_path: Path) -> None:
        down = Gap(between(2, 5), "exchange_down")
        failed = Gap(between(0, 20), "fetch_failed")
        async with self.storage(tmp_path) as storage:
            await storage.record_gaps(TRADES, [failed])
            assert list(await storage.gaps(TRADES)) == [failed]
            assert await storage.coverage(TRADES) == Coverage()
            await storage.append(TRADES, Page(Batch.empty(TRADES), between(0, 10), (down,)))
            # What was covered has not failed any more.
            left = Gap(between(10, 20), "fetch_failed")
            assert list(await storage.gaps(TRADES)) == [down, left]
            version = await storage.version(TRADES)
            await storage.record_gaps(TRADES, [Gap(between(4, 12), "unknown")])
            assert await storage.version(TRADES) > version
            assert list(await storage.gaps(TRADES)) == [
                Gap(between(2, 4), "exchange_down"),
                Gap(between(4, 12), "unknown"),
                Gap(between(12, 20), "fetch_failed"),
            ]

    async def test_instruments_are_kept(self, tmp_path: Path) -> None:
        full = Instrument(
            "binance", TRADES.symbol, "0.01000000", "0.00001000", START, None, {"status": "TRADING"}
        )
        async with self.storage(tmp_path) as storage:
            await storage.put_instrument(Instrument("binance", TRADES.symbol))
            await storage.put_instrument(full)
        async with self.storage(tmp_path) as storage:
            assert await storage.instrument(TRADES) == full
            assert await storage.instrument(CANDLES) is None  # the swap is another one
            assert list(await storage.list_series()) == []

    async def test_list_series(self, tmp_path: Path) -> None:
        trades = random_trades(TRADES, 1000, START)
        async with self.storage(tmp_path) as storage:
            await storage.append(QUOTES, Page(Batch.empty(QUOTES), between(0, 1)))
            await storage.append(TRADES, page_with(trades))
            await storage.append(CANDLES, page_with(random_candles(CANDLES, 10, START)))
            infos = await storage.list_series()
            assert [info.series for info in infos] == [CANDLES, TRADES, QUOTES]
            assert [info.rows for info in infos] == [10, 1000, 0]
            assert infos[1].size_bytes > 1000
            assert (infos[1].first, infos[1].last) == (START, int(trades.ts_event[-1]))
            assert (infos[2].first, infos[2].last) == (None, None)
            assert infos[1].version == await storage.version(TRADES)

    async def test_delete(self, tmp_path: Path) -> None:
        batch = random_trades(TRADES, 20_000, START)
        middle = Span(int(batch.ts_event[5000]), int(batch.ts_event[15_000]))
        kept = batch[(batch.ts_event < middle.start) | (batch.ts_event >= middle.end)]
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page_with(batch))
            version = await storage.version(TRADES)
            assert await storage.delete(TRADES, middle) == len(batch) - len(kept)
            assert await storage.version(TRADES) > version
            assert same_rows(await read(storage, TRADES), kept).all()
            assert await storage.coverage(TRADES) == Coverage([batch.extent()]).subtract(middle)
            assert await storage.delete(TRADES, middle) == 0
            again = await storage.append(TRADES, page_with(batch))
            assert again == Appended(len(batch) - len(kept), len(kept))
            assert await storage.delete(TRADES, ALL_TIME) == len(batch)
            assert list(await storage.list_series()) == []
            assert await storage.version(TRADES) > version  # never begins anew

    @pytest.mark.parametrize("series", [TRADES, CANDLES, QUOTES, TEXT_IDS], ids=str)
    @pytest.mark.parametrize("seed", range(4))
    async def test_like_the_model(self, tmp_path: Path, series: Series, seed: int) -> None:
        chance = random.Random(seed)
        draw, model = Draw(series, chance), Model(series)
        for _ in range(2):  # what it holds survives being closed
            async with self.storage(tmp_path) as storage:
                for _ in range(25):
                    await self._one_step(storage, draw, model)

    async def _one_step(self, storage: Storage[Any], draw: Draw, model: Model) -> None:
        series, version = model.series, await storage.version(model.series)
        before = (dict(model.rows), model.coverage, list(model.gaps))
        match draw.random.choices(["append", "delete", "gap"], [8, 1, 1])[0]:
            case "append":
                page = draw.page()
                assert await storage.append(series, page) == model.append(page)
            case "delete":
                span = draw.span()
                assert await storage.delete(series, span) == model.delete(span)
            case "gap":
                gaps = [draw.gap(), draw.gap()]
                await storage.record_gaps(series, gaps)
                model.record_gaps(gaps)
        if before != (model.rows, model.coverage, model.gaps):
            assert await storage.version(series) > version
        span = draw.span()
        for part in (span, ALL_TIME):
            assert rows_of(await read(storage, series, part)) == model.read(part)
        assert await storage.coverage(series) == model.coverage
        assert joined(await storage.gaps(series)) == model.gaps
        last = await storage.last_before(series, span.end)
        expected = model.read(Span(ALL_TIME.start, span.end))[-1:]
        assert ([] if last is None else rows_of(last)) == expected
        listed = {info.series: info.rows for info in await storage.list_series()}
        assert listed.get(series, 0) == len(model.rows)
