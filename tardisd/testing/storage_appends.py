"""The part of the storage suite about what pages leave behind.

Subclass `tardisd.testing.storage.StorageSuite`, which has all of it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tardisd.errors import DataError, StorageError
from tardisd.market.check import same_rows
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import HOUR, MINUTE, SECOND
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended, Storage
from tardisd.testing.storage_model import START, Row, page_of, rows_of
from tardisd.testing.storage_pages import (
    CANDLES,
    QUOTES,
    TEXT_IDS,
    TRADES,
    between,
    cut,
    page_with,
    read,
    trade,
)
from tardisd.testing.ticks import random_candles, random_trades

_BIG = "9223372036854775807"
_LITTLE = "0.000000000000000001"
# Narrow; of many digits; wide, for want of a scale that holds both; wide with a large fraction.
_VALUES = (["1", "2.50"], ["65000.01", _LITTLE], [_BIG, _LITTLE], [f"{_BIG[:-1]}.5", "0.1"])


class AppendSuite:
    """Rows come back exactly, once each, in order, however their pages came."""

    @asynccontextmanager
    async def storage(self, folder: Path) -> AsyncIterator[Storage[Any]]:
        """Open the plugin under test with its data in `folder`. Override it."""
        raise NotImplementedError("override StorageSuite.storage")
        yield

    @pytest.mark.parametrize("kind", sorted(set(SCHEMAS) - {"indicator"}))  # never stored
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

    async def test_holes_of_a_page_are_not_covered(self, tmp_path: Path) -> None:
        holes = (between(2, 4), between(9, 12))
        page = Page(Batch.empty(TRADES), between(0, 10), holes=holes)
        async with self.storage(tmp_path) as storage:
            await storage.append(TRADES, page)
            assert await storage.coverage(TRADES) == Coverage([between(0, 2), between(4, 9)])

    async def test_a_bad_page_is_refused_whole(self, tmp_path: Path) -> None:
        outside = page_of(TRADES, [trade(1, 1), trade(30, 2)], between(0, 30))
        backwards = page_of(TRADES, [trade(5, 1), trade(1, 2)], between(0, 30))
        async with self.storage(tmp_path) as storage:
            for page in (outside, backwards):
                with pytest.raises((DataError, StorageError)):
                    await storage.append(TRADES, page)
            assert len(await read(storage, TRADES)) == 0
            assert await storage.coverage(TRADES) == Coverage()
            assert await storage.version(TRADES) == 0

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
