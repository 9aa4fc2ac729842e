"""Encoded rows: WebSocket headers at every size, pieces of whole rows, and the stamped time."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.ticks import Ticks
from tardisd.market.time import MINUTE, parse_time
from tardisd.testing.blocks import SENT_MS, make_blocks
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.wire.digits import Grid, digit_count, shared_digits
from tardisd.wire.encode import Encoder, Frame, text_frame_header
from tardisd.wire.rows import EncodedRows, Run, interleave

START = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("okx:BTC/USDT@trade")
CANDLES = Series.parse("okx:BTC/USDT@candle_1s")


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "8100"),
        (125, "817d"),
        (126, "817e007e"),
        (65_535, "817effff"),
        (65_536, "817f0000000000010000"),
    ],
)
def test_frame_headers(length, header):
    assert text_frame_header(length).hex() == header


@pytest.mark.parametrize("around", range(65_535 - 3, 65_535 + 4))
def test_frames_of_ticks_around_the_largest_short_length(around):
    def frame(id_length):
        ids = np.array([b"x" * id_length], np.bytes_)
        one = Decimals.of(["1"])
        fields = {"price": one, "amount": one}
        sides = np.zeros(1, np.uint8)
        batch = Batch(TRADES, np.array([START]), fields, ids, sides)
        [block] = make_blocks([batch], "s")
        return bytes(block.encode("tick").bytes())

    base = len(frame(60_000)) - 4 - 60_000
    made = frame(around - base)
    header = text_frame_header(around)
    assert made[: len(header)] == header
    assert len(made) == len(header) + around
    assert len(json.loads(made[len(header) :])["data"]["id"]) == around - base


def test_integers_of_every_length_in_one_block():
    values = [0, 2**63 - 1]
    for digits in range(1, 19):
        values += [10**digits - 1, 10**digits]
    ids = np.array(values, np.int64)
    ones = Decimals(np.ones(len(ids), np.int64))
    fields = {"price": Decimals(ids), "amount": ones}
    times = START + np.arange(len(ids))
    batch = Batch(TRADES, times, fields, ids, np.zeros(len(ids), np.uint8))
    blocks = make_blocks([batch], "s")
    rows = [line for b in blocks for line in bytes(b.encode("ndjson").bytes()).splitlines()]
    assert [json.loads(row)["id"] for row in rows] == [str(value) for value in values]
    assert [json.loads(row)["price"] for row in rows] == values


def grid(rows, width, fill):
    return np.full((rows, width), ord(fill), np.uint8)


def test_interleaved_rows_are_found_at_their_places():
    a, b = grid(3, 4, "a"), grid(2, 7, "b")
    rows = interleave([(a, None), (b, None)], [(0, 0, 1), (1, 0, 2), (0, 1, 2)])
    assert bytes(rows.bytes()) == b"aaaa" + b"b" * 14 + b"a" * 8
    assert [len(rows.bytes(row, row + 1)) for row in range(5)] == [4, 7, 7, 4, 4]
    assert bytes(rows.bytes(2, 4)) == b"b" * 7 + b"a" * 4
    assert bytes(rows.bytes(5)) == bytes(rows.bytes(3, 3)) == b""
    for limit, sizes in [
        (1, [4, 7, 7, 4, 4]),
        (8, [4, 7, 7, 8]),
        (11, [11, 11, 4]),
        (18, [18, 8]),
        (100, [26]),
    ]:
        assert [len(piece) for piece in rows.cut(limit)] == sizes


def test_no_rows():
    rows = EncodedRows(np.empty(0, np.uint8), [])
    assert len(rows) == 0
    assert list(rows.cut(10)) == []


def test_stamping_touches_only_the_rows_asked_for():
    buffer = np.frombuffer(b"<.............>" * 4, np.uint8).copy()
    rows = EncodedRows(buffer, [Run(0, 2, 0, 15, 1), Run(2, 2, 30, 15, 1)])
    rows.stamp(1, 3, 1_700_000_000_123)
    assert bytes(rows.bytes(1, 3)) == b"<1700000000123>" * 2
    assert bytes(rows.bytes(0, 1)) == bytes(rows.bytes(3, 4)) == b"<.............>"


def test_every_slice_has_its_own_time_of_sending():
    batches = [random_trades(TRADES, 40, START, mean_gap_ms=500), random_candles(CANDLES, 9, START)]
    blocks = make_blocks(batches, "s", slice_ticks=7)
    for number, block in enumerate(blocks):
        block.sent_ms = SENT_MS + number
    for form in ("tick", "ndjson"):
        for number, block in enumerate(blocks):
            text = bytes(block.encode(form).bytes())
            assert text.count(b'"replay_time":%d' % (SENT_MS + number)) == len(block)
    again = blocks[0].encode("ndjson")
    assert bytes(again.bytes()) == bytes(blocks[0].encode("ndjson").bytes())


def test_a_grid_writes_only_its_own_field():
    buffer = grid(2, 12, ".")
    Grid(buffer).put_fixed(4, np.array([7, 123]), 3)
    assert [bytes(row) for row in buffer] == [b"....007.....", b"....123....."]


@pytest.mark.parametrize("first", [1, 7, 9_998, 10_000, 12_345, 19_998, 99_997, 10**12 - 2])
@pytest.mark.parametrize("rows", [1, 2, 5, 10_001, 25_000])
def test_counting_rows_hold_their_numbers(first, rows):
    numbers = np.arange(first, first + rows)
    width = digit_count(first + rows - 1)
    buffer = grid(rows, width + 2, ".")
    buffer[:, 1:-1] = np.frombuffer(shared_digits(first, first + rows - 1).ljust(width), np.uint8)
    Grid(buffer).put_counting(1, first)
    assert [bytes(row) for row in buffer] == [b".%*d." % (width, n) for n in numbers.tolist()]


def test_threads_that_encode_at_once_share_one_encoding():
    """Sinks may ask for bytes from threads of their own, for blocks that nobody encoded ahead."""
    for seed in range(20):
        [block, *_] = make_blocks([random_trades(TRADES, 4000, START, seed)], "s")
        parts = [block.cut(at, at + 100) for at in range(0, 1600, 100)]
        barrier = Barrier(len(parts))

        def encode(part, barrier=barrier):
            barrier.wait()
            return part.encode("ndjson").whole

        with ThreadPoolExecutor(len(parts)) as pool:
            wholes = list(pool.map(encode, parts))
        assert all(whole is wholes[0] for whole in wholes)
        text = b"".join(bytes(part.encode("ndjson").bytes()) for part in parts)
        assert text.count(b'"replay_time":%d' % SENT_MS) == 1600


def test_blocks_that_have_other_columns_name_them_right():
    """One encoder serves all blocks of a session: what one lacks, the next may have instead."""

    def candle(series, minute, name):
        one = Decimals.of(["7"])
        fields = dict.fromkeys(("open", "high", "low", "close", "volume", name), one)
        return Batch(series, np.array([START + minute * MINUTE]), fields)

    def ticks_of(batch, table):
        return Ticks.concat([batch], [batch.ts_event], table)

    def trade(series, ids):
        one, sides = Decimals.of(["1"]), np.zeros(1, np.uint8)
        return Batch(series, np.array([START]), {"price": one, "amount": one}, ids, sides)

    venues = ("binance", "okx")
    candles = tuple(Series.of(venue, "BTC/USDT", "candle_1m") for venue in venues)
    trades = tuple(Series.of(venue, "BTC/USDT", "trade") for venue in venues)
    ids = [np.array([123_456_789_012]), np.array([b"abcde"])]  # as wide, with what is around them
    encoder = Encoder(Frame("data", stamped=False))
    made = [
        json.loads(encoder.encode(ticks_of(one, table), np.ones(1, int))[0].tobytes())
        for one, table in [
            (candle(candles[0], 0, "quote_volume"), candles),
            (candle(candles[1], 1, "trades"), candles),
            (trade(trades[0], ids[0]), trades),
            (trade(trades[1], ids[1]), trades),
        ]
    ]
    assert [row.get("quote_volume") for row in made] == [7, None, None, None]
    assert [row.get("trades") for row in made] == [None, 7, None, None]
    assert [row.get("id") for row in made] == [None, None, "123456789012", "abcde"]


def test_a_quoted_cell_of_csv_begins_right_after_its_comma():
    """Readers take a quote for one only there; times of unequal precision are padded before it."""
    ones = Decimals.of(["1", "1"])
    ids, sides = np.array([b"a,b", b"c"]), np.zeros(2, np.uint8)
    times = START + np.array([0, 1])
    batch = Batch(TRADES, times, {"price": ones, "amount": ones}, ids, sides)
    rows, _ = Encoder(Frame("csv")).encode(Ticks.of(batch), np.array([1, 2]))
    lines = csv.reader(rows.tobytes().decode().splitlines())
    assert [line[1].strip() for line in lines] == ["a,b", "c"]
