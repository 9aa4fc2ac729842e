"""Exported CSV comes back as the same rows; files in any order come in as csv and Decimal say."""

from __future__ import annotations

import io
import random
from decimal import Decimal
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import tardisd_csv
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.plugins.exchange import Page
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.exporting import export_series
from tardisd.transfer.importing import import_files

FORMATS = [format_() for format_ in tardisd_csv.tardisd_formats()]
EVER = Span(0, 2**62)
START = 1_709_251_200 * 10**9
MINUTE = 60 * 10**9
CANDLES = Series.parse("okx:BTC/USDT@candle_1m")
TRADES = Series.parse("okx:BTC/USDT@trade")

amounts = st.builds(
    lambda whole, digits: f"{whole}.{digits}" if digits else str(whole),
    st.one_of(st.integers(0, 99), st.integers(0, 2**63 - 2)),
    st.text("0123456789", max_size=18),
)


async def read(storage: MemoryStorage, series: Series) -> Batch:
    async with storage.read(series, EVER) as batches:
        parts = [batch async for batch in batches]
    return Batch.concat(parts or [Batch.empty(series)])


async def load(series: Series, *texts: bytes) -> MemoryStorage:
    storage = MemoryStorage()
    await import_files(
        [(f"file {at}", io.BytesIO(text)) for at, text in enumerate(texts)],
        series, storage, FORMATS,
        covers=None, spool_dir=Path(gettempdir()), progress=lambda _: None,
    )  # fmt: skip
    return storage


async def round_trip(batch: Batch) -> tuple[Batch, Batch]:
    series = batch.series
    storage = MemoryStorage()
    await storage.append(series, Page(batch, batch.extent()))
    out = io.BytesIO()
    rows = await export_series(series, EVER, storage, out, "csv", lambda _: None)
    assert rows == len(batch)
    return await read(storage, series), await read(await load(series, out.getvalue()), series)


@st.composite
def candle_batches(draw) -> Batch:
    minutes = sorted(draw(st.sets(st.integers(0, 50), min_size=1)))
    minutes.append(minutes[-1] + 1)  # no two adjacent: then it would not be a file of minutes
    size = len(minutes)
    prices = [sorted(draw(st.lists(amounts, min_size=4, max_size=4)), key=Decimal) for _ in minutes]
    low, start, end, high = (list(column) for column in zip(*prices, strict=True))
    fields = {
        "open": start, "high": high, "low": low, "close": end,
        "volume": draw(st.lists(amounts, min_size=size, max_size=size)),
        "quote_volume": draw(st.lists(st.none() | amounts, min_size=size, max_size=size)),
    }  # fmt: skip
    columns = {name: Decimals.of(values) for name, values in fields.items()}
    return Batch(CANDLES, START + np.array(minutes) * MINUTE, columns)


@st.composite
def trade_batches(draw) -> Batch:
    steps = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
    size = len(steps)
    fields = {
        name: Decimals.of(draw(st.lists(amounts, min_size=size, max_size=size)))
        for name in ("price", "amount")
    }
    numbers = st.integers(1, 10**6).map(str)
    texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8)
    ids = draw(
        st.one_of(
            st.none(),
            st.lists(numbers, min_size=size, max_size=size, unique=True),
            st.lists(texts.filter(bool), min_size=size, max_size=size, unique=True),
        )
    )
    sides = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), np.uint8)
    times = START + np.cumsum(np.array(steps))
    return Batch(TRADES, times, fields, None if ids is None else pack_ids(ids), sides)


@settings(deadline=None, max_examples=60)
@given(st.one_of(candle_batches(), trade_batches()))
def test_an_export_comes_back_the_same(batch):
    before, after = trio.run(round_trip, batch)
    assert len(after) == len(before) == len(batch)
    assert same_rows(before, after).all()


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_files_in_any_order_come_in_sorted(data):
    size = data.draw(st.integers(1, 200))
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    rows = [
        (START // 10**6 + at // 3, at, f"{draw.randrange(10**6)}.{draw.randrange(10**4)}", "2.50")
        for at in range(size)
    ]
    lines = [f"{ms},{id_},{price},{amount},buy\n" for ms, id_, price, amount in rows]
    mixed = lines + draw.choices(lines, k=draw.randrange(20))
    draw.shuffle(mixed)
    cut = draw.randrange(len(mixed))
    header = "timestamp,id,price,amount,side\n"
    texts = [header + "".join(part) for part in (mixed[:cut], mixed[cut:]) if part]

    async def run() -> Batch:
        return await read(await load(TRADES, *(text.encode() for text in texts)), TRADES)

    batch = trio.run(run)
    found = zip(
        (batch.ts_event // 10**6).tolist(), batch.ids.tolist(),
        map(Decimal, batch.fields["price"].texts()), strict=True,
    )  # fmt: skip
    assert list(found) == [(ms, id_, Decimal(price)) for ms, id_, price, _ in rows]
