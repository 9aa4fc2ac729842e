"""What the vectorised reader reads, the careful one reads too; both agree with csv and Decimal."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tardisd.dumps.blocks import BlockReader
from tardisd.dumps.cells import read_carefully
from tardisd.dumps.formats import Recipe
from tardisd.dumps.source import Block
from tardisd.errors import DataError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.plugins.format import Layout

TRADES = Series.parse("okx:BTC/USDT@trade")
COLUMNS = ("id", "price", "amount", "note", "time", "side", "symbol")
MS = 1_709_251_200_000


def recipe(scale: int) -> Recipe:
    return Recipe("test", Layout(COLUMNS, False), ",", COLUMNS, {"price": scale, "amount": scale})


def rows(batch: Batch) -> list[tuple]:
    ids = [b""] * len(batch) if batch.ids is None else batch.ids.astype(np.bytes_).tolist()
    sides = batch.sides.tolist()
    values = [[Decimal(text) for text in batch.fields[n].texts()] for n in ("price", "amount")]
    return list(zip(ids, *values, batch.ts_event.tolist(), sides, strict=True))


good_numbers = st.one_of(
    st.builds(
        lambda sign, whole, digits: f"{sign}{whole}{'.' if digits else ''}{digits}",
        st.sampled_from(["", "-", "+"]),
        st.integers(0, 2**63 - 2).map(str) | st.sampled_from(["0", "007"]),
        st.text("0123456789", max_size=18),
    ),
    st.sampled_from(["1e-8", "2.5E3", ".5", "5.", "1e18", "0.000000000000000001", "1e-18"]),
)
bad_numbers = st.sampled_from(
    ["", " ", "nan", "inf", "-Infinity", "1_000", "0x1F", "1e30", "9" * 24, "9" * 34, "1,5", "--1",
     "1e-19", "null", "None", "12.3456789012345678901", "٣", "1 2"]
)  # fmt: skip
ids = st.one_of(
    st.integers(0, 2**70).map(str),
    st.sampled_from(["", "007", "-5", "+5", "0x10", "a b", "ab-cd", "é", " 5", "x" * 128]),
)
times = st.one_of(
    st.sampled_from([1, 10**3, 10**6]).map(lambda unit: str(MS * unit + 7)),
    st.sampled_from([str(MS // 1000), "2024-03-01T00:00:00Z", "2024-03-01 01:00:00.5+01:00",
                     "1709251200000.0", "1709251200.125", "2024-03-01"]),
)  # fmt: skip
bad_times = st.sampled_from(["", "0", "-1", "99999999999", "2024-03-01T00:00:00", "soon", "1e400"])
sides = st.sampled_from(["buy", "sell", "Buy", "SELL", "b", " s "])


def cell(text: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([text, ""])
    return out.getvalue()[:-1]


def lines(number: st.SearchStrategy[str], time: st.SearchStrategy[str]) -> st.SearchStrategy:
    row = st.tuples(
        ids, number, number, st.text("ab ,\"'", max_size=3), time, sides,
        st.sampled_from(["BTC-USDT", "btcusdt", "BTC/USDT"]),
    )  # fmt: skip
    return st.lists(row, min_size=1, max_size=6)


def text_of(table: list[tuple[str, ...]], end: str = "\n") -> bytes:
    return end.join(",".join(cell(text) for text in row) for row in table).encode()


@given(lines(good_numbers, times), st.integers(0, 18), st.sampled_from(["\n", "\r\n", "\n\n"]))
@example([("1", "1", "1", "", str(MS), "buy", "BTCUSDT")] * 2, 0, "\n")
def test_both_readers_give_what_the_cells_say(table, scale, end):
    block = Block(text_of(table, end), 1)
    expected = read_carefully(block, recipe(scale), TRADES, "f")
    found = BlockReader(recipe(scale), TRADES, "f").read(block)
    assert rows(found.batch) == rows(expected.batch)
    assert [(row[1], row[2]) for row in rows(found.batch)] == [
        (Decimal(row[1]), Decimal(row[2])) for row in table
    ]
    assert [row[0] for row in rows(found.batch)] == [row[0].encode() for row in table]
    assert [row[4] for row in rows(found.batch)] == [
        "bs".index(row[5].strip().lower()[0]) for row in table
    ]


@given(lines(good_numbers | bad_numbers, times | bad_times), st.integers(0, 18), st.integers(1, 99))
def test_both_readers_refuse_the_same(table, scale, first_line):
    block = Block(text_of(table), first_line)
    outcomes = []
    for read in (
        lambda: read_carefully(block, recipe(scale), TRADES, "f"),
        lambda: BlockReader(recipe(scale), TRADES, "f").read(block),
    ):
        try:
            outcomes.append(rows(read().batch))
        except DataError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@given(st.lists(st.integers(0, 2**31).map(str), min_size=30, max_size=60), st.data())
def test_fast_reader_takes_plain_rows_itself(numbers, data):
    """A reader that always gave up to the careful one would pass the tests above."""
    table = [(str(at), n, n, "", str(MS + at), "buy", "BTCUSDT") for at, n in enumerate(numbers)]
    reader = BlockReader(recipe(0), TRADES, "f")
    reader.file = "never read carefully"
    parsed = reader._read_fast(Block(text_of(table), 1))
    assert [row[1] for row in rows(parsed.batch)] == [Decimal(n) for n in numbers]
    at = data.draw(st.integers(0, len(table) - 1))
    table[at] = (*table[at][:1], "1." + "0" * 11 + "7", *table[at][2:])
    parsed = reader._read_fast(Block(text_of(table), 1))
    assert rows(parsed.batch)[at][1] == Decimal("1.000000000007")


@given(st.lists(st.integers(0, 10**13), min_size=2, max_size=20), st.integers(1, 9))
def test_fast_reader_takes_seconds_with_a_fraction(offsets, digits):
    """Bybit's dumps have them, by the million."""
    step = 10 ** (9 - digits)
    expected = [MS * 10**6 + offset // step * step for offset in offsets]
    expected[0] += step  # one fraction at least, or they are plain integers
    texts = [f"{ts // 10**9}.{ts % 10**9:09d}".rstrip("0").rstrip(".") for ts in expected]
    table = [(str(at), "1", "1", "", text, "buy", "BTCUSDT") for at, text in enumerate(texts)]
    reader = BlockReader(recipe(0), TRADES, "f")
    for _ in range(2):
        parsed = reader._read_fast(Block(text_of(table), 1))
        assert parsed.batch.ts_event.tolist() == expected
