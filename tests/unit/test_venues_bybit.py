"""The Bybit test venue: as recorded to the letter, with Bybit's bounds, order, limits and files."""

from __future__ import annotations

import csv
import gzip
import io
import json
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Instrument, Series, Symbol
from tardisd.market.time import DAY, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.bybit import GEO_PAGE, BybitVenue
from tardisd.testing.venues.faults import Misreport, Refuse, missing
from tardisd.venue.budget import Limit

SWAP = Series.parse("bybit:BTC/USDT:USDT@candle_1m")
SPOT = Series.parse("bybit:BTC/USDT@candle_1m")
SWAP_TRADES = Series.parse("bybit:BTC/USDT:USDT@trade")
SPOT_TRADES = Series.parse("bybit:BTC/USDT@trade")
START = parse_time("2024-03-01T00:00:00Z")
LATER = parse_time("2024-06-01T00:00:00Z")
ENVELOPE = {"retCode", "retMsg", "result", "retExtInfo", "time"}


@asynccontextmanager
async def venue_and_client(data, **options):
    options.setdefault("clock", LATER)
    client = httpx.AsyncClient(timeout=60.0, trust_env=False, verify=False)
    async with BybitVenue(data, **options).serve() as venue, client:
        yield venue, client


async def ask(client, venue, path, **params):
    return await client.get(f"{venue.rest_url}/v5/market/{path}", params=params)


async def opens(client, venue, **params):
    params = {"category": "linear", "symbol": "BTCUSDT", "interval": "1", **params}
    body = (await ask(client, venue, "kline", **params)).json()
    assert body["retCode"] == 0, body
    return [int(row[0]) for row in body["result"]["list"]]


def example(folder, name):
    """Return the JSON of a recorded example: its file has three lines of words before it."""
    text = (folder / "fixtures" / "bybit" / name).read_text()
    return json.loads(text[text.index("{") :])


# As recorded


async def test_klines_are_as_recorded(shared_data):
    real = example(shared_data, "jkorf_Endpoints_V5Api_ExchangeData_GetKlines.txt")
    rows = real["result"]["list"][::-1]
    series = Series.parse("bybit:BTC/USDT:USDT@candle_1h")
    names = ("open", "high", "low", "close", "volume", "quote_volume")
    fields = {name: Decimals.of([row[at] for row in rows]) for at, name in enumerate(names, 1)}
    times = np.array([int(row[0]) for row in rows], np.int64) * MILLISECOND
    batch = Batch(series, times, fields)
    async with venue_and_client({series: batch}) as (venue, client):
        answer = await ask(
            client, venue, "kline", category="linear", symbol="BTCUSDT", interval="60",
            start=rows[0][0], end=rows[-1][0],
        )  # fmt: skip
    ours = answer.json()
    assert ours["result"]["list"] == real["result"]["list"]
    assert list(ours) == list(real)
    assert list(ours["result"]) == list(real["result"])
    assert b" " not in answer.content
    assert ours["time"] == LATER // MILLISECOND


async def test_recent_trades_are_as_recorded(shared_data):
    for name, series in (
        ("jkorf_Endpoints_V5Api_ExchangeData_GetTradeHistory.txt", SPOT_TRADES),
        ("http_get_trades_recent.json", SWAP_TRADES),
    ):
        real = example(shared_data, name)
        row = real["result"]["list"][0]
        ids = [int(row["execId"])] if row["execId"].isdigit() else [row["execId"].encode()]
        fields = {"price": Decimals.of([row["price"]]), "amount": Decimals.of([row["size"]])}
        batch = Batch(
            series, np.array([int(row["time"]) * MILLISECOND]), fields, np.array(ids),
            np.array([0], np.uint8),
        )  # fmt: skip
        known = Instrument("bybit", series.symbol, "0.01", "0.00001")
        async with venue_and_client({series: batch}, instruments=[known]) as (venue, client):
            answer = await ask(
                client, venue, "recent-trade", category=real["result"]["category"],
                symbol="BTCUSDT",
            )  # fmt: skip
        ours = answer.json()["result"]["list"][0]
        assert {key: ours[key] for key in row} == row


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("http_get_instruments_linear.json", "linear"),
        ("jkorf_Endpoints_V5Api_ExchangeData_GetLinearInverseSymbols.txt", "linear"),
        ("http_get_instruments_spot.json", "spot"),
        ("jkorf_Endpoints_V5Api_ExchangeData_GetSpotSymbols.txt", "spot"),
    ],
)
async def test_instruments_have_what_recorded_ones_have(shared_data, name, category):
    real = example(shared_data, name)["result"]
    data = {series: random_candles(series, 5, START) for series in (SWAP, SPOT)}
    async with venue_and_client(data) as (venue, client):
        ours = (await ask(client, venue, "instruments-info", category=category)).json()["result"]
    [entry], theirs = ours["list"], real["list"][0]
    # What one example leaves out another has, by its age.
    assert set(entry) - set(theirs) <= {"innovation", "stTag", "copyTrading"}
    for key in ("priceFilter", "lotSizeFilter"):
        assert set(entry[key]) <= set(theirs[key])
    assert {key: type(entry[key]) for key in entry if key in theirs} == {
        key: type(theirs[key]) for key in entry if key in theirs
    }
    assert ("nextPageCursor" in ours) == (category == "linear")
    assert ("launchTime" in entry) == (category == "linear")


async def test_too_many_visits_are_worded_as_recorded(shared_data):
    lines = (shared_data / "rest" / "errors.jsonl").read_text().splitlines()
    known = next(e for e in map(json.loads, lines) if "10006" in e["body"])
    data = {SWAP: random_candles(SWAP, 5, START)}
    async with venue_and_client(data, faults=[Refuse(status=200)]) as (venue, client):
        answer = await ask(client, venue, "time")
    assert answer.status_code == known["status"]
    assert {**answer.json(), "time": 0} == {**json.loads(known["body"]), "time": 0}
    assert {name.lower() for name in known["headers"]} <= set(answer.headers)


# Bounds, order, pages


async def test_klines_are_newest_first_between_inclusive_bounds():
    batch = random_candles(SWAP, 3000, START)
    times = (batch.ts_event // MILLISECOND).tolist()
    back = times[::-1]
    async with venue_and_client({SWAP: batch}) as (venue, client):
        assert await opens(client, venue) == back[:200]
        assert await opens(client, venue, limit=5000) == back[:1000]
        assert await opens(client, venue, start=times[5], end=times[9]) == times[5:10][::-1]
        assert await opens(client, venue, start=times[5], end=times[9] - 1) == times[5:9][::-1]
        assert await opens(client, venue, start=times[5], limit=3) == times[5:8][::-1]
        assert await opens(client, venue, end=times[9], limit=3) == times[7:10][::-1]
        assert (
            await opens(client, venue, start=times[0], end=times[9], limit=3) == times[7:10][::-1]
        )
        assert await opens(client, venue, start=0, end=times[0] - 1) == []
    async with venue_and_client({SWAP: batch}, keeps_oldest=True) as (venue, client):
        assert await opens(client, venue, start=times[0], end=times[9], limit=3) == times[:3][::-1]


async def test_the_open_candle_shows_first_and_unmarked():
    at = START + 5 * MINUTE + 20 * SECOND
    batch = random_candles(SWAP, 10, START)
    async with venue_and_client({SWAP: batch}, clock=at) as (venue, client):
        params = {"category": "linear", "symbol": "BTCUSDT", "interval": "1"}
        first = (await ask(client, venue, "kline", **params)).json()
        venue.clock.advance(MINUTE)
        second = (await ask(client, venue, "kline", **params)).json()
        time = (await ask(client, venue, "time")).json()
    rows, later = first["result"]["list"], second["result"]["list"]
    assert len(rows) == 6
    assert rows[0][0] == later[1][0]
    assert rows[0] != later[1]
    assert rows[1:] == later[2:]
    assert first["time"] == at // MILLISECOND
    assert time["result"]["timeNano"] == str(at + MINUTE)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"category": "linear", "symbol": "NOPEUSDT", "interval": "1"}, "Not supported symbols"),
        ({"category": "spot", "symbol": "BTCUSDT", "interval": "1"}, "Not supported symbols"),
        ({"category": "linear", "symbol": "BTCUSDT", "interval": "480"}, "Invalid period!"),
        ({"category": "linear", "symbol": "BTCUSDT", "interval": "1", "start": "x"}, "start"),
        ({"category": "future", "symbol": "BTCUSDT", "interval": "1"}, "Category"),
    ],
)
async def test_errors_come_with_status_200(params, text):
    async with venue_and_client({SWAP: random_candles(SWAP, 5, START)}) as (venue, client):
        answer = await ask(client, venue, "kline", **params)
    assert answer.status_code == 200
    assert answer.json()["retCode"] == 10001
    assert text in answer.json()["retMsg"]
    assert set(answer.json()) == ENVELOPE


async def test_recent_trades_are_all_there_is():
    data = {
        SPOT_TRADES: random_trades(SPOT_TRADES, 2000, START),
        SWAP_TRADES: random_trades(SWAP_TRADES, 2000, START, seed=1),
    }
    async with venue_and_client(data) as (venue, client):
        for series, category, most in ((SPOT_TRADES, "spot", 60), (SWAP_TRADES, "linear", 1000)):
            answer = await ask(
                client, venue, "recent-trade", category=category, symbol="BTCUSDT", limit=5000,
                startTime=0,
            )  # fmt: skip
            ids = [int(row["execId"]) for row in answer.json()["result"]["list"]]
            assert ids == data[series].ids[-most:][::-1].tolist()


async def test_linear_instruments_come_in_pages():
    names = [f"A{n:03d}" for n in range(7)]
    known = [Instrument("bybit", Symbol(name, "USDT", "USDT"), "0.1", "1") for name in names]
    async with venue_and_client({}, instruments=known) as (venue, client):
        found, cursor = [], ""
        for _ in range(3):
            answer = await ask(
                client, venue, "instruments-info", category="linear", limit=3, cursor=cursor
            )
            result = answer.json()["result"]
            found += [entry["baseCoin"] for entry in result["list"]]
            cursor = result["nextPageCursor"]
    assert found == names
    assert cursor == ""


# Limits


async def test_who_asks_too_much_is_shut_out_for_ten_minutes():
    moment = [LATER]
    limits = {"rest requests": Limit("rest requests", 3, 5)}
    data = {SWAP: random_candles(SWAP, 5, START)}
    async with venue_and_client(data, limits=limits, now=lambda: moment[0]) as (venue, client):

        async def status():
            answer = await ask(client, venue, "time")
            return answer.status_code, answer.text[:10]

        assert [(await status())[0] for _ in range(3)] == [200] * 3
        moment[0] += 5 * SECOND
        assert [(await status())[0] for _ in range(3)] == [200] * 3
        assert await status() == (403, "access too")
        moment[0] += 600 * SECOND - 1
        assert (await status())[0] == 403
        moment[0] += 601 * SECOND
        assert (await status())[0] == 200
        assert venue.most_used() == {"rest requests": 4 / 3}


async def test_a_geo_block_looks_otherwise():
    faults = [Refuse(status=403, body=GEO_PAGE, headers={"Content-Type": "text/html"})]
    async with venue_and_client({}, faults=faults) as (venue, client):
        answer = await ask(client, venue, "time")
    assert (answer.status_code, answer.headers["Content-Type"]) == (403, "text/html")
    assert "too frequent" not in answer.text


# Archives


async def lines(client, venue, path):
    answer = await client.get(venue.archive_url + path)
    assert answer.status_code == 200, path
    return list(csv.reader(io.StringIO(gzip.decompress(answer.content).decode())))


async def test_derivative_files():
    texts = [b"26bb8b97-1991-503f-b2c2-f4e8d0b94721", b"5", b"c"]
    fields = {
        "price": Decimals.of(["81095", "81095.5", "81095.5"]),
        "amount": Decimals.of(["0.001", "1", "0.5"]),
    }
    start = parse_time("2025-03-14T00:00:43.735700Z")
    times = np.array([start, start + 300 * MILLISECOND + 300_000, start + DAY])
    batch = Batch(SWAP_TRADES, times, fields, np.array(texts), np.array([0, 1, 0], np.uint8))
    known = Instrument("bybit", SWAP_TRADES.symbol, "0.10", "0.001")
    clock = parse_time("2025-03-15T01:09:00Z")
    async with venue_and_client({SWAP_TRADES: batch}, clock=clock, instruments=[known]) as (
        venue,
        client,
    ):
        path = "/trading/BTCUSDT/BTCUSDT2025-03-14.csv.gz"
        assert (await client.get(venue.archive_url + path)).status_code == 404
        venue.clock.advance(MINUTE)
        rows = await lines(client, venue, path)
        index = (await client.get(venue.archive_url + "/trading/BTCUSDT/")).text
        folders = (await client.get(venue.archive_url + "/trading/")).text
        head = await client.head(venue.archive_url + path)
    assert rows[0][:2] == ["timestamp", "symbol"]
    assert len(rows[0]) == 10
    first = ["1741910443.7357", "BTCUSDT", "Buy", "0.001", "81095.00", "ZeroPlusTick"]
    second = ["1741910444.036", "BTCUSDT", "Sell", "1", "81095.50", "PlusTick"]
    assert rows[1:] == [
        [*first, texts[0].decode(), "8.1095e+09", "0.001", "81.095"],
        [*second, "5", "8.10955e+12", "1", "81095.5"],
    ]
    assert 'href="BTCUSDT2025-03-14.csv.gz"' in index
    assert "2025-03-15" not in index
    assert 'href="BTCUSDT/"' in folders
    assert int(head.headers["Content-Length"]) > 0


async def test_spot_files_by_day_and_month_number_their_lines():
    batch = random_trades(SPOT_TRADES, 5000, parse_time("2025-05-30T00:00:00Z"), mean_gap_ms=60_000)
    async with venue_and_client({SPOT_TRADES: batch}, clock=parse_time("2025-07-01T00:00:00Z")) as (
        venue,
        client,
    ):
        daily = await lines(client, venue, "/spot/BTCUSDT/BTCUSDT_2025-05-31.csv.gz")
        monthly = await lines(client, venue, "/spot/BTCUSDT/BTCUSDT-2025-05.csv.gz")
        absent = await client.get(venue.archive_url + "/spot/BTCUSDT/BTCUSDT-2025-05-31.csv.gz")
        index = (await client.get(venue.archive_url + "/spot/BTCUSDT/")).text
    assert absent.status_code == 404
    assert daily[0] == ["id", "timestamp", "price", "volume", "side", "rpi"]
    assert [int(row[0]) for row in daily[1:]] == list(range(1, len(daily)))
    rows = monthly[1:]
    part = batch[: len(rows)]
    assert int(batch.ts_event[len(rows)]) >= parse_time("2025-06-01T00:00:00Z")
    assert [int(row[1]) * MILLISECOND for row in rows] == part.ts_event.tolist()
    assert Decimals.of([row[2] for row in rows]).equals(part.fields["price"]).all()
    assert Decimals.of([row[3] for row in rows]).equals(part.fields["amount"]).all()
    assert [row[4] == "sell" for row in rows] == (part.sides == 1).tolist()
    assert 'href="BTCUSDT-2025-05.csv.gz"' in index


async def test_a_file_can_lack_a_row_once():
    batch = random_trades(SWAP_TRADES, 100, START, mean_gap_ms=1000)
    path = "/trading/BTCUSDT/BTCUSDT2024-03-01.csv.gz"
    async with venue_and_client({SWAP_TRADES: batch}, faults=[Misreport(change=missing)]) as (
        venue,
        client,
    ):
        assert [len(await lines(client, venue, path)) for _ in range(2)] == [100, 101]
