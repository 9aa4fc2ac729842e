"""The OKX test venue: as recorded to the letter, with OKX's bounds, order, contracts and days."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from contextlib import asynccontextmanager
from decimal import Decimal

import httpx
import numpy as np
import pytest
import zstandard

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Instrument, Series
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.faults import Misreport, Refuse, duplicated
from tardisd.testing.venues.okx import OkxVenue
from tardisd.venue.budget import Limit

SPOT = Series.parse("okx:BTC/USDT@candle_1m")
SWAP = Series.parse("okx:BTC/USDT:USDT@candle_1m")
SPOT_TRADES = Series.parse("okx:BTC/USDT@trade")
SWAP_TRADES = Series.parse("okx:BTC/USDT:USDT@trade")
START = parse_time("2024-03-01T00:00:00Z")
LATER = parse_time("2024-06-01T00:00:00Z")
NAMES = ("open", "high", "low", "close")


@asynccontextmanager
async def venue_and_client(data, **options):
    options.setdefault("clock", LATER)
    client = httpx.AsyncClient(timeout=60.0, trust_env=False, verify=False)
    async with OkxVenue(data, **options).serve() as venue, client:
        yield venue, client


async def ask(client, venue, path, **params):
    return await client.get(f"{venue.rest_url}/api/v5/{path}", params=params)


async def rows(client, venue, path, **params):
    params = {"instId": "BTC-USDT", **params}
    body = (await ask(client, venue, path, **params)).json()
    assert body["code"] == "0", body
    return body["data"]


async def opens(client, venue, path="market/history-candles", **params):
    return [int(row[0]) for row in await rows(client, venue, path, **params)]


def example(folder, name):
    """Return the JSON of a recorded example: its file may have three lines of words before it."""
    text = (folder / "fixtures" / "okx" / name).read_text()
    return json.loads(text[text.index("{") :])


# As recorded


async def test_candles_of_swaps_are_as_recorded(shared_data):
    real = example(shared_data, "http_get_candlesticks_full.json")
    known = real["data"][::-1]
    fields = {name: Decimals.of([row[at] for row in known]) for at, name in enumerate(NAMES, 1)}
    fields["volume"] = Decimals.of([row[6] for row in known])
    fields["quote_volume"] = Decimals.of([row[7] for row in known])
    batch = Batch(SWAP, np.array([int(row[0]) for row in known]) * MILLISECOND, fields)
    clock = parse_time("2025-06-01T00:00:00Z")
    async with venue_and_client({SWAP: batch}, clock=clock) as (venue, client):
        answer = await ask(client, venue, "market/history-candles", instId="BTC-USDT-SWAP")
    assert answer.json() == real
    assert list(answer.json()) == list(real)
    assert b" " not in answer.content


async def test_trades_are_as_recorded(shared_data):
    for name in (
        "http_get_trades.json",
        "jkorf_Endpoints_UnifiedApi_ExchangeData_GetTradeHistory.txt",
    ):
        real = example(shared_data, name)
        known = real["data"][::-1]
        fields = {
            "price": Decimals.of([row["px"] for row in known]),
            "amount": Decimals.of([row["sz"] for row in known]),
        }
        batch = Batch(
            SPOT_TRADES, np.array([int(row["ts"]) for row in known]) * MILLISECOND, fields,
            np.array([int(row["tradeId"]) for row in known]),
            np.array([row["side"] == "sell" for row in known], np.uint8),
        )  # fmt: skip
        clock = int(batch.ts_event[-1]) + DAY
        async with venue_and_client({SPOT_TRADES: batch}, clock=clock) as (venue, client):
            for path in ("market/trades", "market/history-trades"):
                ours = await rows(client, venue, path)
                assert {row.pop("source") for row in ours} == {"0"}
                assert ours == real["data"]


async def test_instruments_have_what_recorded_ones_have(shared_data):
    data = {series: random_candles(series, 5, START) for series in (SPOT, SWAP)}
    known = [Instrument("okx", SWAP.symbol, "0.1", "0.0001", 1573557408000 * MILLISECOND)]
    recorded = {}
    path = shared_data / "rest" / "okx_recording.jsonl.zst"
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as plain:
        for line in io.TextIOWrapper(plain):
            entry = json.loads(line) if line.strip() else {}
            if "instType=S" in entry.get("url", ""):
                recorded[entry["url"].rpartition("=")[2]] = entry["data"]
    async with venue_and_client(data, instruments=known) as (venue, client):
        for kind, text in recorded.items():
            answer = await ask(client, venue, "public/instruments", instType=kind)
            real = json.loads(text)
            assert list(answer.json()) == list(real)
            [ours] = answer.json()["data"]
            theirs = next(row for row in real["data"] if row["instId"] == ours["instId"])
            assert set(ours) - set(theirs) <= {"instFamily"}  # younger than the recording
            assert {type(value) for value in ours.values()} == {str}
            for field in ("ctVal", "ctType", "ctValCcy", "baseCcy", "quoteCcy", "settleCcy"):
                assert ours[field] == theirs[field]
    assert set(recorded) == {"SPOT", "SWAP"}
    fixture = example(shared_data, "http_get_instruments_swap.json")["data"]
    theirs = next(row for row in fixture if row["instId"] == "BTC-USDT-SWAP")
    shared = ("ctVal", "lotSz", "tickSz", "listTime", "instFamily", "uly", "state")
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


async def test_an_unknown_instrument_is_refused_as_recorded(shared_data):
    lines = (shared_data / "rest" / "errors.jsonl").read_text().splitlines()
    known = next(e for e in map(json.loads, lines) if e["exchange"] == "okx")
    async with venue_and_client({SPOT: random_candles(SPOT, 5, START)}) as (venue, client):
        answer = await ask(client, venue, "market/candles", instId="NO-PE")
    assert (answer.status_code, answer.text) == (known["status"], known["body"])


# Bounds, order, pages


async def test_candles_are_newest_first_between_exclusive_bounds():
    batch = random_candles(SPOT, 3000, START)
    times = (batch.ts_event // MILLISECOND).tolist()
    back = times[::-1]
    async with venue_and_client({SPOT: batch}) as (venue, client):
        assert await opens(client, venue) == back[:100]
        assert await opens(client, venue, limit=1000) == back[:300]
        assert await opens(client, venue, after=times[9], before=times[5]) == times[6:9][::-1]
        assert await opens(client, venue, after=times[10], before=times[5] - 1) == times[5:10][::-1]
        assert await opens(client, venue, after=times[9], limit=3) == times[6:9][::-1]
        assert await opens(client, venue, before=times[9], limit=3) == back[:3]
        assert await opens(client, venue, after=times[0]) == []


async def test_the_newest_bars_are_elsewhere():
    batch = random_candles(SPOT, 3000, START)
    times = (batch.ts_event // MILLISECOND).tolist()
    at = int(batch.ts_event[2000]) + 30 * SECOND
    async with venue_and_client({SPOT: batch}, clock=at) as (venue, client):
        newest = await rows(client, venue, "market/candles", limit=3)
        assert [int(row[0]) for row in newest] == times[1998:2001][::-1]
        assert [row[8] for row in newest] == ["0", "1", "1"]
        assert (await opens(client, venue))[0] == times[1998]
        assert (
            await opens(client, venue, "market/candles", after=times[600]) == times[561:600][::-1]
        )
        venue.clock.advance(MINUTE)
        closed = (await rows(client, venue, "market/candles"))[1]
        assert closed[8] == "1"
        assert closed[:1] == newest[0][:1]
        assert closed[5] != newest[0][5]


async def test_bars_of_a_day_open_at_utc8_unless_asked_otherwise():
    daily = Series.parse("okx:BTC/USDT@candle_1d")
    seconds = Series.parse("okx:BTC/USDT@candle_1s")
    data = {daily: random_candles(daily, 9, START), seconds: random_candles(seconds, 9, START)}
    async with venue_and_client(data, clock=START + 20 * DAY) as (venue, client):
        utc = await opens(client, venue, bar="1Dutc")
        assert utc == (data[daily].ts_event // MILLISECOND).tolist()[::-1]
        assert await opens(client, venue, bar="1D") == [ts - 8 * HOUR // MILLISECOND for ts in utc]
        assert len(await opens(client, venue, bar="1s")) == 9
        for path, bar in (("candles", "1s"), ("candles", "1h"), ("history-candles", "8H")):
            answer = await ask(client, venue, f"market/{path}", instId="BTC-USDT", bar=bar)
            assert answer.json()["code"] == "51000"


async def test_trades_page_by_id_and_by_time():
    batch = random_trades(SPOT_TRADES, 3000, LATER - HOUR, mean_gap_ms=500)
    back = batch.ids[::-1].tolist()
    async with venue_and_client({SPOT_TRADES: batch}) as (venue, client):

        async def ids(path="market/history-trades", **params):
            return [int(row["tradeId"]) for row in await rows(client, venue, path, **params)]

        assert await ids("market/trades", limit=5000) == back[:500]
        assert await ids(limit=5000) == back[:100]
        assert await ids(after=back[99]) == back[100:200]
        assert await ids(after=back[10], before=back[20]) == back[11:20]
        at = int(batch.ts_event[1000])
        first = int(np.searchsorted(batch.ts_event, at))
        assert await ids(type=2, after=at // MILLISECOND, limit=1) == [int(batch.ids[first - 1])]
        answer = await ask(
            client, venue, "market/history-trades", instId="BTC-USDT", type=2, before=1
        )
        assert answer.json()["code"] == "50039"
        venue.clock.set(LATER + 100 * DAY)
        assert await ids() == []


async def test_swaps_count_contracts():
    ether = Series.parse("okx:ETH/USDT:USDT@trade")
    whole = Series.parse("okx:DOGE/USDT:USDT@trade")
    data = {
        SWAP_TRADES: random_trades(SWAP_TRADES, 50, LATER - HOUR),
        ether: random_trades(ether, 50, LATER - HOUR, seed=1),
        whole: random_trades(whole, 50, LATER - HOUR, seed=2, amount_scale=0),
    }
    known = [Instrument("okx", whole.symbol, "0.01", "1000", extra={"ctVal": "1000"})]
    async with venue_and_client(data, instruments=known) as (venue, client):
        for series, value in ((SWAP_TRADES, "0.01"), (ether, "0.1"), (whole, "1000")):
            name = series.symbol.venue_id("okx")
            got = await rows(client, venue, "market/history-trades", instId=name)
            base = [Decimal(row["sz"]) * Decimal(value) for row in got[::-1]]
            assert base == [Decimal(text) for text in data[series].fields["amount"].texts()]
    odd = [Instrument("okx", whole.symbol, "0.01", "1", extra={"ctVal": "25"})]
    with pytest.raises(ValueError, match="power of ten"):
        OkxVenue({whole: data[whole]}, instruments=odd)


# Limits


async def test_each_endpoint_has_a_window_of_its_own():
    moment = [LATER]
    limits = {"public/time": Limit("public/time", 2, 2)}
    data = {SPOT: random_candles(SPOT, 5, START)}
    async with venue_and_client(data, limits=limits, now=lambda: moment[0]) as (venue, client):

        async def code():
            answer = await ask(client, venue, "public/time")
            return answer.status_code, answer.json()["code"]

        assert [await code() for _ in range(3)] == [(200, "0")] * 2 + [(429, "50011")]
        assert len(await opens(client, venue)) == 5
        moment[0] += 2 * SECOND
        assert await code() == (200, "0")
        assert venue.most_used() == {"public/time": 1.5}


async def test_the_limit_also_comes_with_status_200():
    async with venue_and_client({}, faults=[Refuse(status=200), Refuse(status=503)]) as (
        venue,
        client,
    ):
        answers = [await ask(client, venue, "public/time") for _ in range(3)]
    told = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert told == [(200, "50011"), (503, "50001"), (200, "0")]


# Archives


async def lines(client, venue, url, encoding="utf-8"):
    answer = await client.get(url)
    assert answer.status_code == 200, url
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        [name] = archive.namelist()
        assert name == url.rpartition("/")[2].replace(".zip", ".csv")
        return list(csv.reader(io.StringIO(archive.read(name).decode(encoding))))


async def test_trade_files_are_cut_at_utc8_and_come_out_late():
    start = parse_time("2024-03-01T00:00:00Z")
    batch = random_trades(SWAP_TRADES, 4000, start, mean_gap_ms=60_000)
    midnight = parse_time("2024-03-01T16:00:00Z")
    folder = "/cdn/okex/traderecords/trades"
    async with venue_and_client({SWAP_TRADES: batch}, clock=midnight + 2 * DAY) as (venue, client):
        url = f"{venue.archive_url}{folder}/daily/20240302/BTC-USDT-SWAP-trades-2024-03-02.zip"
        got = await lines(client, venue, url)
        assert got[0] == ["instrument_name", "trade_id", "side", "price", "size", "created_time"]
        part = batch[
            np.flatnonzero((batch.ts_event >= midnight) & (batch.ts_event < midnight + DAY))
        ]
        assert [int(row[1]) for row in got[1:]] == part.ids.tolist()
        assert [int(row[5]) * MILLISECOND for row in got[1:]] == part.ts_event.tolist()
        assert {row[0] for row in got[1:]} == {"BTC-USDT-SWAP"}
        assert all("." in row[3] and "." in row[4] for row in got[1:])
        base = [Decimal(row[4]) / 100 for row in got[1:]]
        assert base == [Decimal(text) for text in part.fields["amount"].texts()]
        later = url.replace("20240302", "20240303").replace("03-02", "03-03")
        assert (await client.get(later)).status_code == 404
        venue.clock.advance(DAY)
        assert (await client.get(later)).status_code == 200
        venue.clock.set(parse_time("2024-04-01T16:00:00Z"))
        month = f"{venue.archive_url}{folder}/monthly/202403/BTC-USDT-SWAP-trades-2024-03.zip"
        assert [
            int(row[1]) for row in (await lines(client, venue, month))[1:]
        ] == batch.ids.tolist()


async def test_old_headers_are_chinese_and_new_trades_have_a_source():
    for start, encoding, header, columns in (
        ("2021-12-01T00:00:00Z", "gbk", "trade_id/交易id", 6),
        ("2026-03-01T00:00:00Z", "utf-8", "trade_id", 7),
    ):
        ts = parse_time(start)
        batch = random_trades(SPOT_TRADES, 100, ts)
        async with venue_and_client({SPOT_TRADES: batch}, clock=ts + 9 * DAY) as (venue, client):
            day = start[:10]
            url = (
                f"{venue.archive_url}/cdn/okex/traderecords/trades/daily/{day.replace('-', '')}"
                f"/BTC-USDT-trades-{day}.zip"
            )
            got = await lines(client, venue, url, encoding)
        assert got[0][1] == header
        assert {len(row) for row in got} == {columns}


async def test_candle_files_and_their_index():
    batch = random_candles(SWAP, 5 * 1440, parse_time("2024-03-01T16:00:00Z"))
    data = {SWAP: batch}
    faults = [Misreport(change=duplicated, match="candlesticks-2024-03-04")]
    async with venue_and_client(data, faults=faults) as (venue, client):
        answer = await ask(
            client, venue, "public/market-data-history", module=2, instType="SWAP",
            instFamilyList="BTC-USDT", dateAggrType="daily", begin=0,
            end=LATER // MILLISECOND,
        )  # fmt: skip
        assert answer.json()["code"] == "50076"
        begin = parse_time("2024-03-01T00:00:00Z") // MILLISECOND
        answer = await ask(
            client, venue, "public/market-data-history", module=2, instType="SWAP",
            instFamilyList="BTC-USDT", dateAggrType="daily", begin=begin,
            end=begin + 19 * DAY // MILLISECOND,
        )  # fmt: skip
        [detail] = answer.json()["data"][0]["details"]
        urls = [entry["url"] for entry in detail["groupDetails"]]
        assert [entry["filename"] for entry in detail["groupDetails"]] == [
            f"BTC-USDT-SWAP-candlesticks-2024-03-0{day}.zip" for day in (6, 5, 4, 3, 2)
        ]
        files = [await lines(client, venue, url) for url in reversed(urls)]
        assert [len(file) for file in files] == [1441, 1441, 1442, 1441, 1441]
        got = files[0]
    assert got[0][8:] == ["open_time", "confirm"]
    assert [int(row[8]) * MILLISECOND for row in got[1:]] == batch.ts_event[:1440].tolist()
    for at, name in enumerate(NAMES, 1):
        values = Decimals.of([row[at] for row in got[1:]])
        assert values.equals(batch.fields[name][:1440]).all()
    assert Decimals.of([row[6] for row in got[1:]]).equals(batch.fields["volume"][:1440]).all()
    assert (
        Decimals.of([row[7] for row in got[1:]]).equals(batch.fields["quote_volume"][:1440]).all()
    )
    assert all(Decimal(row[5]) == Decimal(row[6]) * 100 for row in got[1:])
