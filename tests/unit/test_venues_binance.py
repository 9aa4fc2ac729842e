"""The Binance test venue: as recorded to the letter, with Binance's bounds, limits and faults."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zipfile
from contextlib import asynccontextmanager, suppress

import httpx
import numpy as np
import pytest

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Instrument, Series, Symbol
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, parse_time
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.testing.venues.faults import (
    Misreport,
    Refuse,
    Reset,
    Rewrite,
    Stall,
    Truncate,
    duplicated,
    html_page,
    missing,
    not_a_number,
    stale,
    unsorted,
    wrong_checksum,
)
from tardisd.venue.budget import Limit

CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
SWAP_CANDLES = Series.parse("binance:BTC/USDT:USDT@candle_1m")
AGGS = Series.parse("binance:BTC/USDT@agg_trade")
SWAP_AGGS = Series.parse("binance:BTC/USDT:USDT@agg_trade")
TRADES = Series.parse("binance:BTC/USDT@trade")
START = parse_time("2024-03-01T00:00:00Z")
LATER = parse_time("2024-06-01T00:00:00Z")
KLINES = "/api/v3/klines"
FIELDS = ("open", "high", "low", "close", "volume", "quote_volume", "trades")


@asynccontextmanager
async def venue_and_client(data, **options):
    options.setdefault("clock", LATER)
    client = httpx.AsyncClient(timeout=60.0, trust_env=False, verify=False)
    async with BinanceVenue(data, **options).serve() as venue, client:
        yield venue, client


def ms(ts):
    return int(ts) // MILLISECOND


def ask(symbol="BTCUSDT", interval="1m", **more):
    return {"symbol": symbol, "interval": interval, **more}


def kline_batch(series, rows):
    """Return recorded klines (lists of text) as a batch."""
    at = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 5, "quote_volume": 7, "trades": 8}
    times = np.array([int(row[0]) for row in rows], np.int64)
    unit = 1000 if times[0] > 1e14 else MILLISECOND
    fields = {name: Decimals.of([str(row[n]) for row in rows]) for name, n in at.items()}
    return Batch(series, times * unit, fields)


def agg_batch(series, rows):
    return Batch(
        series,
        np.array([row["T"] for row in rows], np.int64) * MILLISECOND,
        {
            "price": Decimals.of([row["p"] for row in rows]),
            "amount": Decimals.of([row["q"] for row in rows]),
        },
        np.array([row["a"] for row in rows], np.int64),
        np.array([row["m"] for row in rows], np.uint8),
    )


def recorded(folder, path):
    with gzip.open(folder / "rest" / "binance_recorded.jsonl.gz", "rt") as lines:
        found = [json.loads(line) for line in lines]
    return [entry for entry in found if entry["path"] == path and entry["response"]]


def without_made_up(row):
    """Return a kline without the takers' part, which no batch holds."""
    return [*row[:9], row[11]]


# As recorded


async def test_klines_are_as_recorded(shared_data):
    entries = recorded(shared_data, KLINES)
    assert len(entries) >= 6
    for entry in entries:
        query = dict(part.split("=") for part in entry["query"].split("&"))
        series = Series.of("binance", query["symbol"], f"candle_{query['interval']}")
        rows = entry["response"]
        async with venue_and_client({series: kline_batch(series, rows)}) as (venue, client):
            answer = await client.get(
                venue.rest_url + KLINES,
                params={**query, "startTime": rows[0][0], "endTime": rows[-1][0]} | {"limit": 1000},
            )
        got = [without_made_up(row) for row in answer.json()]
        assert got == [without_made_up(row) for row in rows]
        assert b" " not in answer.content


async def test_usd_m_klines_are_as_recorded(shared_data):
    entries = recorded(shared_data, "/fapi/v1/klines")
    assert len(entries) >= 2
    compared = 0
    for entry in entries:
        query = dict(part.split("=") for part in entry["query"].split("&"))
        symbol = f"{query['symbol'].removesuffix('USDT')}/USDT:USDT"
        series = Series.of("binance", symbol, f"candle_{query['interval']}")
        # In its first months the venue printed as few digits as a number needs.
        rows = [row for row in entry["response"] if row[0] > 1_600_000_000_000]
        if not rows:
            continue
        batch = kline_batch(series, rows)
        lot = "0.001"
        known = Instrument("binance", series.symbol, "0.01", lot)
        async with venue_and_client({series: batch}, instruments=[known]) as (venue, client):
            answer = await client.get(
                venue.swap_rest_url + "/fapi/v1/klines",
                params=ask(query["symbol"], query["interval"], limit=1500),
            )
        got = [without_made_up(row) for row in answer.json()]
        assert got == [without_made_up(row) for row in rows]
        compared += len(rows)
    assert compared > 100


async def test_aggregate_trades_are_as_recorded(shared_data):
    for path, symbol in (
        ("/api/v3/aggTrades", "BTC/USDT"),
        ("/fapi/v1/aggTrades", "LTC/USDT:USDT"),
    ):
        entries = [e for e in recorded(shared_data, path) if "m" in e["response"][0]]
        rows = max((entry["response"] for entry in entries), key=len)
        series = Series.of("binance", symbol, "agg_trade")
        batch = agg_batch(series, rows)
        clock = int(batch.ts_event[-1]) + HOUR
        known = Instrument("binance", series.symbol, "0.01", "0.001")
        async with venue_and_client({series: batch}, clock=clock, instruments=[known]) as (
            venue,
            client,
        ):
            url = venue.rest_url if "api/v3" in path else venue.swap_rest_url
            answer = await client.get(
                url + path,
                params={"symbol": series.symbol.venue_id("binance"), "fromId": rows[0]["a"],
                        "limit": 1000},
            )  # fmt: skip
        made_up = {"f", "l"}
        got = answer.json()
        assert [{k: v for k, v in row.items() if k not in made_up | {"nq"}} for row in got] == [
            {k: v for k, v in row.items() if k not in made_up} for row in rows
        ]
        assert set(got[0]) - {"nq"} == set(rows[0])


async def test_raw_trades_are_as_recorded(shared_data):
    rows = recorded(shared_data, "/api/v3/historicalTrades")[0]["response"]
    rows += recorded(shared_data, "/api/v3/trades")[0]["response"]
    rows = sorted(rows[5:], key=lambda row: row["id"])
    series = Series.parse("binance:ETH/BTC@trade")
    batch = Batch(
        series,
        np.array([row["time"] for row in rows], np.int64) * MILLISECOND,
        {
            "price": Decimals.of([row["price"] for row in rows]),
            "amount": Decimals.of([row["qty"] for row in rows]),
        },
        np.array([row["id"] for row in rows], np.int64),
        np.array([row["isBuyerMaker"] for row in rows], np.uint8),
    )
    async with venue_and_client({series: batch}) as (venue, client):
        answer = await client.get(
            venue.rest_url + "/api/v3/historicalTrades",
            params={"symbol": "ETHBTC", "fromId": rows[0]["id"], "limit": 1000},
        )
    assert answer.json() == rows


async def test_exchange_info_has_what_the_recorded_one_has(shared_data):
    for path, role in (("/api/v3/exchangeInfo", "rest"), ("/fapi/v1/exchangeInfo", "swap")):
        real = recorded(shared_data, path)[0]["response"]
        data = {series: random_candles(series, 5, START) for series in (CANDLES, SWAP_CANDLES)}
        async with venue_and_client(data) as (venue, client):
            ours = (await client.get(venue.urls[role] + path)).json()
        assert set(ours) <= set(real)
        assert ours["serverTime"] == ms(LATER)
        symbol = next(entry for entry in real["symbols"] if entry["symbol"].endswith("USDT"))
        assert len(ours["symbols"]) == 1
        assert set(ours["symbols"][0]) <= set(symbol)
        assert {type(value) for value in ours["symbols"][0].values()} <= {str, int, bool, list}
        kinds = {entry["filterType"]: set(entry) for entry in symbol["filters"]}
        for entry in ours["symbols"][0]["filters"]:
            assert set(entry) <= kinds[entry["filterType"]]
        limit = next(e for e in ours["rateLimits"] if e["rateLimitType"] == "REQUEST_WEIGHT")
        assert limit in real["rateLimits"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (ask("NOPE"), "Invalid symbol"),
        (ask(interval="7m"), "Invalid interval"),
        ({"interval": "1m"}, "Mandatory parameter 'symbol'"),
        (ask("no pe"), "Illegal characters"),
    ],
)
async def test_errors_are_as_recorded(shared_data, params, words):
    with (shared_data / "rest" / "errors.jsonl").open() as lines:
        known = [json.loads(line) for line in lines]
    body = next(entry for entry in known if words in entry["body"])
    async with venue_and_client({CANDLES: random_candles(CANDLES, 5, START)}) as (venue, client):
        answer = await client.get(venue.rest_url + KLINES, params=params)
    assert (answer.status_code, answer.text) == (body["status"], body["body"])


@pytest.mark.parametrize(
    ("file", "symbol", "interval", "tick", "lot"),
    [
        ("klines/spot/BTCUSDT-1h-2024-12.csv", "BTC/USDT", "1h", None, None),
        ("klines/spot/BTCUSDT-1h-2025-01.csv", "BTC/USDT", "1h", None, None),
        ("klines/spot/ADABTC-1m-2021-11-27.csv", "ADA/BTC", "1m", None, None),
        ("klines/um/ALGOUSDT-1m-2023-02.zip", "ALGO/USDT:USDT", "1m", "0.0001", "0.1"),
        ("klines/um/FILUSDT-1m-2023-02.zip", "FIL/USDT:USDT", "1m", "0.001", "0.1"),
    ],
)
async def test_archive_files_are_as_published(shared_data, file, symbol, interval, tick, lot):
    path = shared_data / file
    raw = path.read_bytes()
    if file.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            raw = archive.read(archive.namelist()[0])
    lines = list(csv.reader(io.StringIO(raw.decode())))
    header = [] if lines[0][0].isdigit() else [lines[0]]
    rows = lines[len(header) :]
    series = Series.of("binance", symbol, f"candle_{interval}")
    venue_id = series.symbol.venue_id("binance")
    known = [Instrument("binance", series.symbol, tick, lot)] if tick else []
    stem = path.name.partition(".")[0]
    period = "daily" if stem.count("-") == 4 else "monthly"
    market = "futures/um" if series.symbol.settle else "spot"
    key = f"/data/{market}/{period}/klines/{venue_id}/{interval}/{stem}.zip"
    clock = parse_time("2026-01-01T00:00:00Z")
    batch = kline_batch(series, rows)
    async with venue_and_client({series: batch}, clock=clock, instruments=known) as (venue, client):
        answer = await client.get(venue.archive_url + key)
        checksum = (await client.get(venue.archive_url + key + ".CHECKSUM")).text
    assert checksum == f"{hashlib.sha256(answer.content).hexdigest()}  {stem}.zip\n"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [f"{stem}.csv"]
        ours = list(csv.reader(io.StringIO(archive.read(f"{stem}.csv").decode())))
    assert ours[: len(header)] == header
    assert [without_made_up(row) for row in ours[len(header) :]] == [
        without_made_up(row) for row in rows
    ]


# Bounds and pages


async def opens(client, venue, **params):
    answer = await client.get(venue.rest_url + KLINES, params=ask(**params))
    assert answer.status_code == 200, answer.text
    return [row[0] for row in answer.json()]


async def test_bounds_are_inclusive_and_the_limit_keeps_the_oldest_unless_only_the_end_is_given():
    batch = random_candles(CANDLES, 3000, START)
    times = (batch.ts_event // MILLISECOND).tolist()
    async with venue_and_client({CANDLES: batch}) as (venue, client):
        assert await opens(client, venue) == times[-500:]
        assert await opens(client, venue, limit=5000) == times[-1000:]
        assert await opens(client, venue, startTime=times[10], endTime=times[12]) == times[10:13]
        assert (
            await opens(client, venue, startTime=times[10], endTime=times[12] - 1) == times[10:12]
        )
        assert await opens(client, venue, startTime=times[10], endTime=times[10]) == [times[10]]
        assert await opens(client, venue, startTime=0, limit=1) == times[:1]
        assert await opens(client, venue, startTime=times[0] + 1, limit=2) == times[1:3]
        assert await opens(client, venue, endTime=times[99], limit=7) == times[93:100]
        assert await opens(client, venue, startTime=times[-1] + 1) == []
        assert await opens(client, venue, startTime=times[9] * 1000, limit=1) == [times[9]]


async def test_the_open_candle_shows_and_changes_until_it_closes():
    batch = random_candles(CANDLES, 10, START)
    at = START + 5 * MINUTE + 30 * 10**9
    async with venue_and_client({CANDLES: batch}, clock=at) as (venue, client):
        first = (await client.get(venue.rest_url + KLINES, params=ask())).json()
        assert [row[0] for row in first] == [ms(ts) for ts in batch.ts_event[:6]]
        venue.clock.advance(MINUTE)
        second = (await client.get(venue.rest_url + KLINES, params=ask())).json()
        served = (await client.get(venue.rest_url + "/api/v3/time")).json()
    assert served == {"serverTime": ms(at + MINUTE)}
    assert first[:5] == second[:5]
    assert first[5][0] == second[5][0]
    assert first[5] != second[5]
    assert first[5][6] >= ms(at)  # its closeTime tells that it is open


async def test_trades_page_by_id_and_by_time():
    batch = random_trades(AGGS, 3000, START, mean_gap_ms=50)
    raw = random_trades(TRADES, 3000, START, seed=1, first_id=5)
    async with venue_and_client({AGGS: batch, TRADES: raw}) as (venue, client):

        async def ids(path="aggTrades", **params):
            url = f"{venue.rest_url}/api/v3/{path}"
            rows = (await client.get(url, params={"symbol": "BTCUSDT", **params})).json()
            return [row["a" if path == "aggTrades" else "id"] for row in rows]

        every = batch.ids.tolist()
        assert await ids(fromId=every[7], limit=1000) == every[7:1007]
        assert await ids(fromId=every[-1] + 1) == []
        assert await ids() == every[-500:]
        seek = ms(batch.ts_event[1000])
        first = int(np.searchsorted(batch.ts_event, batch.ts_event[1000]))
        assert await ids(startTime=seek, limit=1) == [every[first]]
        last = int(np.searchsorted(batch.ts_event, batch.ts_event[1000], "right"))
        assert (await ids(startTime=0, endTime=seek, limit=1000))[:1] == every[:1]
        assert await ids(endTime=seek, limit=10) == every[last - 10 : last]
        assert await ids("historicalTrades", fromId=0, limit=3) == [5, 6, 7]
        assert await ids("trades", limit=2) == raw.ids[-2:].tolist()


async def test_usd_m_aggregate_trades_reach_back_two_days():
    start = LATER - 3 * DAY
    batch = random_trades(SWAP_AGGS, 5000, start, mean_gap_ms=52_000)
    async with venue_and_client({SWAP_AGGS: batch}) as (venue, client):
        url = venue.swap_rest_url + "/fapi/v1/aggTrades"

        async def get(**params):
            return await client.get(url, params={"symbol": "BTCUSDT", **params})

        for params in ({"startTime": ms(LATER - 2 * DAY) - 1}, {"fromId": int(batch.ids[0])}):
            answer = await get(**params)
            assert answer.status_code == 400
            assert answer.json()["code"] == -4166
        rows = (await get(startTime=ms(LATER - DAY), limit=1000)).json()
        assert set(rows[0]) == {"a", "p", "q", "nq", "f", "l", "T", "m"}
        answer = await client.get(venue.swap_rest_url + "/fapi/v1/historicalTrades?symbol=BTCUSDT")
        assert (answer.status_code, answer.json()["code"]) == (401, -2014)
        answer = await client.get(
            venue.swap_rest_url + "/fapi/v1/klines", params=ask(interval="1s")
        )
        assert answer.json()["code"] == -1120


async def test_what_is_not_listed_by_then_does_not_show():
    batch = random_candles(CANDLES, 100, START)
    async with venue_and_client({CANDLES: batch}, clock=START - DAY) as (venue, client):
        assert await opens(client, venue, startTime=0) == []


# Limits


async def test_weights_and_headers():
    data = {
        CANDLES: random_candles(CANDLES, 10, START),
        SWAP_CANDLES: random_candles(SWAP_CANDLES, 9, START),
    }
    async with venue_and_client(data, now=lambda: LATER) as (venue, client):
        answer = await client.get(venue.rest_url + KLINES, params=ask())
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "2"
        answer = await client.get(venue.rest_url + "/api/v3/exchangeInfo")
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "22"
        for limit, used in ((None, 5), (100, 6), (500, 8), (1000, 13), (1500, 23)):
            params = ask() if limit is None else ask(limit=limit)
            answer = await client.get(venue.swap_rest_url + "/fapi/v1/klines", params=params)
            assert answer.headers["X-MBX-USED-WEIGHT-1M"] == str(used)
        assert venue.most_used()["rest weight"] == 22 / 6000
        assert venue.most_used()["swap weight"] == 23 / 2400
        assert [seen.weight for seen in venue.requests] == [2, 20, 5, 1, 2, 5, 10]


async def test_too_much_is_refused_then_banned_then_forgiven():
    moment = [LATER]
    limits = {"rest weight": Limit("rest weight", 10, 60, aligned=True)}
    data = {CANDLES: random_candles(CANDLES, 10, START)}
    async with venue_and_client(data, limits=limits, now=lambda: moment[0]) as (venue, client):

        async def get():
            return await client.get(venue.rest_url + KLINES, params=ask())

        assert [(await get()).status_code for _ in range(5)] == [200] * 5
        refused = await get()
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "60"
        assert refused.json()["code"] == -1003
        assert refused.headers["X-MBX-USED-WEIGHT-1M"] == "12"
        while refused.status_code == 429:
            refused = await get()
        assert refused.status_code == 418
        assert f"banned until {ms(LATER) + 120_000}" in refused.json()["msg"]
        moment[0] += MINUTE
        assert (await get()).status_code == 418
        moment[0] += MINUTE
        assert (await get()).status_code == 200
        assert venue.most_used()["rest weight"] > 1


async def test_a_ban_is_worded_as_recorded(shared_data):
    with (shared_data / "rest" / "errors.jsonl").open() as lines:
        known = {entry["status"]: entry for entry in map(json.loads, lines)
                 if entry["exchange"] == "binance"}  # fmt: skip
    data = {CANDLES: random_candles(CANDLES, 10, START)}
    faults = [Refuse(status=418), Refuse(status=429, retry_after="7", match="fapi")]
    async with venue_and_client(data, faults=faults) as (venue, client):
        banned = await client.get(venue.rest_url + KLINES, params=ask())
        slow = await client.get(venue.swap_rest_url + "/fapi/v1/klines", params=ask())
    digits = str.maketrans("", "", "0123456789")
    assert banned.text.translate(digits) == known[418]["body"].translate(digits)
    assert banned.headers["Retry-After"] == "120"
    assert (slow.text, slow.headers["Retry-After"]) == (known[429]["body"], "7")


# Archives


async def test_files_come_out_when_the_venue_publishes_them_and_are_listed():
    batch = random_candles(CANDLES, 3 * 1440, parse_time("2024-02-28T00:00:00Z"))
    weekly = Series.parse("binance:BTC/USDT@candle_1w")
    data = {CANDLES: batch, weekly: random_candles(weekly, 8, parse_time("2024-01-01T00:00:00Z"))}
    day = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02-29.zip"
    month = "/data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02.zip"
    async with venue_and_client(data, clock=parse_time("2024-03-01T08:59:00Z")) as (venue, client):

        async def status(path):
            return (await client.get(venue.archive_url + path)).status_code

        async def listed(prefix):
            params = {"list-type": 2, "delimiter": "/", "prefix": prefix}
            return (await client.get(venue.archive_url + "/", params=params)).text

        assert await status(day) == 404
        venue.clock.set(parse_time("2024-03-01T09:00:00Z"))
        assert await status(day) == 200
        assert await status(month) == 404
        venue.clock.set(parse_time("2024-03-04T09:00:00Z"))  # the first Monday
        assert await status(month) == 200
        assert await status(day.replace("02-29", "02-27")) == 404
        assert await status(day.replace("02-29", "02-30")) == 404
        weekly_key = "/data/spot/{}/klines/BTCUSDT/1w/BTCUSDT-1w-2024-01{}.zip"
        assert await status(weekly_key.format("monthly", "")) == 200
        assert await status(weekly_key.format("daily", "-01")) == 404
        absent = await client.get(venue.archive_url + "/data/nothing.zip")
        assert "<Code>NoSuchKey</Code>" in absent.text
        assert "<CommonPrefixes><Prefix>data/spot/daily/</Prefix>" in await listed("data/spot/")
        page = await listed("data/spot/daily/klines/BTCUSDT/1m/")
        assert page.count("<Key>") == 6
        assert f"<Key>{day[1:]}.CHECKSUM</Key>" in page


async def test_trade_files_of_both_markets():
    start = parse_time("2025-01-01T00:00:00Z")
    data = {
        series: random_trades(series, 500, start, seed=n)
        for n, series in enumerate(
            (AGGS, TRADES, SWAP_AGGS, Series.parse("binance:BTC/USDT:USDT@trade"))
        )
    }
    paths = {
        "spot/daily/aggTrades": 8,
        "spot/daily/trades": 7,
        "futures/um/daily/aggTrades": 7,
        "futures/um/daily/trades": 6,
    }
    async with venue_and_client(data, clock=start + 9 * DAY) as (venue, client):
        for (path, columns), batch in zip(paths.items(), data.values(), strict=True):
            name = f"BTCUSDT-{path.rpartition('/')[2]}-2025-01-01"
            answer = await client.get(f"{venue.archive_url}/data/{path}/BTCUSDT/{name}.zip")
            with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
                rows = list(csv.reader(io.StringIO(archive.read(f"{name}.csv").decode())))
            spot = path.startswith("spot")
            assert rows[0][0].isdigit() == spot
            rows = rows if spot else rows[1:]
            assert {len(row) for row in rows} == {columns}
            assert [int(row[0]) for row in rows] == batch.ids.tolist()
            assert Decimals.of([row[1] for row in rows]).equals(batch.fields["price"]).all()
            assert Decimals.of([row[2] for row in rows]).equals(batch.fields["amount"]).all()
            time = 5 if "agg" in path else 4
            unit = 1000 if spot else MILLISECOND
            assert [int(row[time]) * unit for row in rows] == batch.ts_event.tolist()
            sold = "True" if spot else "true"
            flag = time + 1
            assert [row[flag] == sold for row in rows] == (batch.sides == 1).tolist()


async def test_downloads_resume_where_they_broke():
    day = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-03-01.zip"
    data = {CANDLES: random_candles(CANDLES, 1440, START)}
    faults = [Truncate(after_bytes=1000, match=r"\.zip$", skip=1)]
    async with venue_and_client(data, faults=faults) as (venue, client):
        whole = await client.get(venue.archive_url + day)
        got = b""
        async with client.stream("GET", venue.archive_url + day) as answer:
            with suppress(httpx.RemoteProtocolError):
                async for part in answer.aiter_raw():
                    got += part
        assert got == whole.content[:1000]
        headers = {"Range": f"bytes={len(got)}-", "If-Range": answer.headers["ETag"]}
        rest = await client.get(venue.archive_url + day, headers=headers)
        assert rest.status_code == 206
        assert got + rest.content == whole.content
        assert (
            rest.headers["Content-Range"]
            == f"bytes 1000-{len(whole.content) - 1}/{len(whole.content)}"
        )
        headers["If-Range"] = '"other"'
        assert (await client.get(venue.archive_url + day, headers=headers)).status_code == 200
        headers = {"Range": f"bytes={len(whole.content)}-"}
        assert (await client.get(venue.archive_url + day, headers=headers)).status_code == 416
        head = await client.head(venue.archive_url + day)
        assert int(head.headers["Content-Length"]) == len(whole.content)


# Faults


async def test_faults_meet_whom_they_should():
    data = {CANDLES: random_candles(CANDLES, 50, START)}
    faults = [
        Refuse(status=451, match="exchangeInfo", times=None),
        Refuse(status=503, match="klines", skip=1, times=2),
        html_page(match="klines"),
        not_a_number(match="klines"),
        Rewrite(match="klines", change=lambda body: body[:40]),
        Misreport(match="klines", change=duplicated),
        Misreport(match="klines", change=unsorted),
        Misreport(match="klines", change=missing),
        Misreport(match="klines", change=stale),
    ]
    async with venue_and_client(data, faults=faults) as (venue, client):

        async def get():
            return await client.get(venue.rest_url + KLINES, params=ask())

        info = await client.get(venue.rest_url + "/api/v3/exchangeInfo")
        assert (info.status_code, info.json()["code"]) == (451, 0)
        page = await get()  # the first one is let pass, then comes the fault after it
        assert page.text.startswith("<!DOCTYPE")
        assert page.headers["Content-Type"] == "text/html"
        assert [(await get()).status_code for _ in range(2)] == [503, 503]
        assert "[1709251200000,NaN," in (await get()).text
        assert len((await get()).text) == 40
        times = [ms(ts) for ts in data[CANDLES].ts_event]
        assert [row[0] for row in (await get()).json()] == times[:26] + times[25:]
        assert [row[0] for row in (await get()).json()] == times[25:] + times[:25]
        assert [row[0] for row in (await get()).json()] == times[:25] + times[26:]
        before = (await get()).json()
        after = (await get()).json()
        assert before[:-1] == after[:-1]
        assert before[-1][5] != after[-1][5]
        assert [seen.fault for seen in venue.requests][:4] == [
            "Refuse",
            "Rewrite",
            "Refuse",
            "Refuse",
        ]


async def test_broken_connections():
    data = {CANDLES: random_candles(CANDLES, 50, START)}
    faults = [Reset(), Reset(after_bytes=100), Truncate(after_bytes=100), Stall(secs=60.0),
              Stall(secs=60.0, after_bytes=10)]  # fmt: skip
    async with venue_and_client(data, faults=faults) as (venue, client):
        for error in (httpx.ReadError, httpx.ReadError, httpx.RemoteProtocolError,
                      httpx.ReadTimeout, httpx.ReadTimeout):  # fmt: skip
            # Only who is kept waiting on purpose is to lose patience, however slow the machine.
            patience = 0.2 if error is httpx.ReadTimeout else 60.0
            with pytest.raises(error):
                await client.get(venue.rest_url + KLINES, params=ask(), timeout=patience)
        assert (await client.get(venue.rest_url + KLINES, params=ask())).status_code == 200


async def test_a_wrong_checksum_is_put_right_when_asked_again():
    day = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-03-01.zip"
    data = {CANDLES: random_candles(CANDLES, 1440, START)}
    async with venue_and_client(data, faults=[wrong_checksum()]) as (venue, client):
        file = (await client.get(venue.archive_url + day)).content
        sums = [(await client.get(venue.archive_url + day + ".CHECKSUM")).text for _ in range(2)]
    right = hashlib.sha256(file).hexdigest()
    assert right not in sums[0]
    assert sums[1].startswith(right)


async def test_chances_are_the_same_for_the_same_seed():
    async def statuses(seed):
        faults = [Refuse(status=500, chance=0.3, times=None)]
        data = {CANDLES: random_candles(CANDLES, 5, START)}
        async with venue_and_client(data, faults=faults, seed=seed) as (venue, client):
            return [
                (await client.get(venue.rest_url + "/api/v3/ping")).status_code for _ in range(40)
            ]

    first = await statuses(1)
    assert first == await statuses(1)
    assert {200, 500} == set(first)


def test_a_symbol_without_price_or_order_of_time_is_refused():
    batch = random_candles(CANDLES, 5, START)
    with pytest.raises(ValueError, match="not in order of time"):
        BinanceVenue({CANDLES: batch[::-1]})
    trades = random_trades(AGGS, 5, START)
    named = Batch(AGGS, trades.ts_event, trades.fields, trades.ids.astype("S"), trades.sides)
    with pytest.raises(ValueError, match="integers"):
        BinanceVenue({AGGS: named})


async def test_wide_numbers_are_exact():
    series = Series("binance", Symbol("PEPE", "USDT"), CANDLES.data_type)
    fields = {name: Decimals.of(["0.000012345678", "0.00001"]) for name in FIELDS[:4]}
    fields["volume"] = Decimals.of(["9000000000000.123456789", "0.1"])
    fields["quote_volume"] = Decimals.of(["1.5", "123456789012345.12345678"])
    fields["trades"] = Decimals.of(["1", "0"])
    batch = Batch(series, np.array([START, START + MINUTE]), fields)
    async with venue_and_client({series: batch}) as (venue, client):
        rows = (await client.get(venue.rest_url + KLINES, params=ask("PEPEUSDT"))).json()
    for name, at in zip(FIELDS, (1, 2, 3, 4, 5, 7, 8), strict=True):
        assert Decimals.of([str(row[at]) for row in rows]).equals(fields[name]).all()
