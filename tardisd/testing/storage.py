"""The tests that every storage plugin passes; knows no database.

Subclass `StorageSuite` in a test module, name the class `Test…`, and open the plugin in a folder:

    class TestMyStorage(StorageSuite):
        @asynccontextmanager
        async def storage(self, folder):
            plugin = MyStorage(MyStorage.Options(), suite_context("mine", folder))
            async with plugin.run():
                yield plugin

Opening it a second time in the same folder must show what was stored the first time. Needs pytest
with pytest-trio in trio mode; `pytest.register_assert_rewrite("tardisd.testing")` in a conftest
makes failures say what was compared.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio

from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, HOUR
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended, Storage
from tardisd.testing.storage_appends import AppendSuite
from tardisd.testing.storage_model import START, Draw, Model, joined, page_of, rows_of
from tardisd.testing.storage_pages import (
    ALL_TIME,
    CANDLES,
    QUOTES,
    TEXT_IDS,
    TRADES,
    between,
    check_quarters,
    cut,
    page_with,
    read,
    trade,
)
from tardisd.testing.ticks import random_candles, random_trades


class StorageSuite(AppendSuite):
    """What the core relies on in every storage plugin."""

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

    @pytest.mark.parametrize("seed", range(4))
    async def test_quarters_are_those_of_the_rows(self, tmp_path: Path, seed: int) -> None:
        chance = random.Random(seed)
        batch = random_trades(TRADES, 6000, START, seed, mean_gap_ms=60_000)
        days = (batch.extent().end - START) // DAY + 1
        async with self.storage(tmp_path) as storage:
            at = 0
            while at < len(batch):
                upto = at + chance.choice([1, 40, 400, 1500])
                await storage.append(TRADES, page_with(batch[at:upto]))
                again = chance.random() < 0.2  # or some rows once more, or some that are missing
                at = max(0, upto - chance.choice([1, 20])) if again else upto
                if chance.random() < 0.3:
                    at += chance.choice([1, 30])
                await check_quarters(storage, TRADES, ALL_TIME)
            for _ in range(6):
                begin = START + chance.randrange(days) * DAY + chance.choice([0, HOUR])
                span = Span(begin, begin + chance.choice([HOUR, DAY]))
                if chance.random() < 0.5:
                    await storage.delete(TRADES, span)
                    await check_quarters(storage, TRADES, ALL_TIME)
                if len(rows := batch.within(span)):
                    await storage.append(TRADES, page_with(rows))
                await check_quarters(storage, TRADES, ALL_TIME)
                await check_quarters(storage, TRADES, Span(span.start, span.start + 2 * HOUR))

    @pytest.mark.parametrize("series", [TRADES, CANDLES, QUOTES, TEXT_IDS], ids=str)
    @pytest.mark.parametrize("seed", range(5))
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
        await check_quarters(storage, series, ALL_TIME)
