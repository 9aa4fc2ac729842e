"""What OKX really answered, read to the digit; every error understood, nothing odd believed."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
import zstandard

from tardisd.errors import RequestError
from tardisd.market.columns import BUY, SELL
from tardisd.market.series import SPOT, SWAP, Series
from tardisd.venue.client import FINE, Missing, Unreadable
from tardisd_okx import rows
from tardisd_okx.archive import DAILY, MONTHLY, file_at
from tardisd_okx.judge import judge_archive, judge_rest
from tardisd_okx.rest import _instrument

CANDLES = Series.parse("okx:BTC/USDT@candle_1m")
SWAP_CANDLES = Series.parse("okx:BTC/USDT:USDT@candle_1m")
TRADES = Series.parse("okx:BTC/USDT@trade")
SWAP_TRADES = Series.parse("okx:BTC/USDT:USDT@trade")
URL = "https://www.okx.com/api/v5/market/history-candles?instId=NOPE-USDT&bar=8H"


def recorded(shared_data: Path, name: str) -> bytes:
    text = (shared_data / "fixtures" / "okx" / name).read_text()
    return text[text.index("{") :].encode()


@pytest.mark.parametrize(
    "name",
    [
        "http_get_candlesticks.json",
        "http_get_candlesticks_full.json",
        "jkorf_Endpoints_UnifiedApi_ExchangeData_GetKlineHistory.txt",
    ],
)
@pytest.mark.parametrize(("series", "volume"), [(CANDLES, 5), (SWAP_CANDLES, 6)])
def test_recorded_candles(shared_data, name, series, volume):
    body = recorded(shared_data, name)
    theirs = sorted(json.loads(body)["data"])
    if len({row[0] for row in theirs}) < len(theirs):
        with pytest.raises(Unreadable, match="contradicts itself"):
            rows.candles(body, series)
        return
    found = rows.candles(body, series)
    assert (found.batch.ts_event // 10**6).tolist() == [int(row[0]) for row in theirs]
    assert found.confirmed.tolist() == [row[8] == "1" for row in theirs]
    columns = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": volume, "quote_volume": 7}
    for field, at in columns.items():
        texts = found.batch.fields[field].texts()
        assert [Decimal(text) for text in texts] == [Decimal(row[at]) for row in theirs]


@pytest.mark.parametrize(
    "name",
    [
        "http_get_trades.json",
        "jkorf_Endpoints_UnifiedApi_ExchangeData_GetRecentTrades.txt",
        "jkorf_Endpoints_UnifiedApi_ExchangeData_GetTradeHistory.txt",
    ],
)
def test_recorded_trades(shared_data, name):
    body = recorded(shared_data, name)
    theirs = json.loads(body)["data"][::-1]
    found = rows.trades(body, TRADES, None)
    assert found.ids.tolist() == [int(it["tradeId"]) for it in theirs]
    assert (found.ts_event // 10**6).tolist() == [int(it["ts"]) for it in theirs]
    assert found.sides.tolist() == [BUY if it["side"] == "buy" else SELL for it in theirs]
    assert [Decimal(text) for text in found.fields["price"].texts()] == [
        Decimal(it["px"]) for it in theirs
    ]
    amounts = [Decimal(text) for text in found.fields["amount"].texts()]
    assert amounts == [Decimal(it["sz"]) for it in theirs]
    swap = body.replace(b'"BTC-USDT"', b'"BTC-USDT-SWAP"')
    contracts = rows.trades(swap, SWAP_TRADES, Decimal("0.01")).fields["amount"].texts()
    assert [Decimal(text) for text in contracts] == [it / 100 for it in amounts]
    with pytest.raises(Unreadable, match="asked for BTC-USDT-SWAP, got BTC-USDT"):
        rows.trades(body, SWAP_TRADES, Decimal("0.01"))


def test_every_recorded_list_of_instruments(shared_data):
    packed = (shared_data / "rest/okx_recording.jsonl.zst").read_bytes()
    text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), "utf-8")
    answers = [it for it in map(json.loads, text) if it["t"] == "http"]
    assert len(answers) == 25
    seen = {}
    for answer in answers:
        kind = answer["url"].partition("instType=")[2].partition("&")[0]
        listed = rows.instruments(answer["data"].encode())
        assert len(listed) == len(json.loads(answer["data"])["data"])
        if kind in ("SPOT", "SWAP"):
            known = [_instrument("okx", kind.lower(), it) for it in listed]
            seen[kind] = {str(it.symbol): it for it in known if it is not None}
    spot, swap = seen["SPOT"]["BTC/USDT"], seen["SWAP"]["BTC/USDT:USDT"]
    assert (spot.symbol.kind, swap.symbol.kind) == (SPOT, SWAP)
    assert (spot.tick_size, spot.lot_size) == ("0.1", "0.00000001")
    assert spot.listed_at == 1548133413000 * 10**6
    assert (swap.tick_size, swap.lot_size) == ("0.1", "0.01")
    assert swap.extra == {
        "venue_id": "BTC-USDT-SWAP", "status": "live", "contract_size": "0.01",
    }  # fmt: skip
    assert all(it.extra["contract_size"] for it in seen["SWAP"].values())
    assert not any("USD:" in name for name in seen["SWAP"]), "inverse ones are left out"


@pytest.mark.parametrize("kind", ["spot", "swap", "futures", "margin", "option"])
def test_instruments_of_today(shared_data, kind):
    listed = rows.instruments(recorded(shared_data, f"http_get_instruments_{kind}.json"))
    assert listed
    if kind == "spot":
        assert [_instrument("okx", SPOT, it) is not None for it in listed] == [True] * len(listed)


def candle(at: str = "1709251200000", price: str = "1", confirm: str = "1") -> str:
    return f'["{at}","1","1","{price}","1","1","1","1","{confirm}"]'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "not the JSON expected"),
        ("<html>", "a web page came instead of JSON"),
        ('{"code":"0","data":[["1709251200000","1"]]}', "length"),
        (f'{{"code":"0","data":[{candle("17")}]}}', "2009"),
        (f'{{"code":"0","data":[{candle("x")}]}}', "integer"),
        (f'{{"code":"0","data":[{candle(price="NaN")}]}}', "price 'NaN': not a finite"),
        (f'{{"code":"0","data":[{candle(confirm="2")}]}}', "not the JSON expected"),
        (f'{{"code":"0","data":[{candle()},{candle(price="2")}]}}', "contradicts itself"),
    ],
)
def test_odd_answers_are_never_rows(body, words):
    with pytest.raises(Unreadable, match=words):
        rows.candles(body.encode(), CANDLES)


@pytest.mark.parametrize("change", ["side", "tradeId", "px", "ts"])
def test_odd_trades_are_never_rows(change):
    trade = {"instId": "BTC-USDT", "side": "buy", "sz": "1", "px": "2", "tradeId": "3",
             "ts": "1709251200000"}  # fmt: skip
    body = json.dumps({"code": "0", "data": [trade]}).encode()
    assert len(rows.trades(body, TRADES, None)) == 1
    with pytest.raises(Unreadable):
        rows.trades(json.dumps({"data": [{**trade, change: "x"}]}).encode(), TRADES, None)


# What answers mean ------------------------------------------------------------------------------


def judged(status: int, body: str, **headers: str):
    answer = httpx.Response(
        status, headers=headers, request=httpx.Request("GET", URL, headers={"User-Agent": "me/1"})
    )
    return judge_rest(answer, body.encode())


def coded(status: int, code: str, text: str = "words", **headers: str):
    return judged(status, json.dumps({"code": code, "data": [], "msg": text}), **headers)


def test_every_recorded_error(shared_data):
    lines = (shared_data / "rest/errors.jsonl").read_text().splitlines()
    found = [it for it in map(json.loads, lines) if it["exchange"] == "okx"]
    assert found
    for it in found:
        verdict = judged(it["status"], it["body"])
        assert isinstance(verdict.fatal, RequestError)
        assert verdict.fatal.code == "bad_request"
        assert "no instrument NOPE-USDT" in verdict.fatal.message


@pytest.mark.parametrize(
    ("status", "code", "secs"),
    [(200, "50011", 2), (429, "50011", 2), (429, "50013", 2), (200, "50040", 2),
     (503, "50001", None), (200, "50013", None), (500, "50026", None),
     (504, "50004", None), (502, "123", None)],
)  # fmt: skip
def test_what_passes_is_tried_again(status, code, secs):
    verdict = coded(status, code)
    assert code in verdict.retry
    assert (verdict.fatal, verdict.ban, verdict.cool_down_secs) == (None, False, secs)
    if secs:
        assert coded(status, code, **{"Retry-After": "7"}).cool_down_secs == 7


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "50121", "refuses to serve this place"),
        (200, "50051", "us.okx.com"),
        (503, "50051", "us.okx.com"),
        (400, "51000", "refused .51000"),
        (200, "50077", "refused .50077"),
    ],
)
def test_what_is_final(status, code, words):
    verdict = coded(status, code)
    assert verdict.retry is None
    with pytest.raises(RequestError, match=words):
        raise verdict.fatal


def test_answers_without_a_code():
    assert judged(200, '{"code":"0","msg":"","data":[]}') == FINE
    assert judged(200, '{"msg":"","code":"0","data":[]}') == FINE
    assert judged(200, "<html>") == FINE, "its reader tells"
    assert "no candles of 8H" in coded(400, "51000", "Parameter bar error").fatal.message
    assert "user agent (me/1)" in judged(403, "<html>").fatal.message
    assert "HTTP 451" in judged(451, "").fatal.message
    assert judged(429, "").cool_down_secs == 2
    assert judged(502, "<html>").retry == "HTTP 502 Bad Gateway"
    gone = judged(404, '{"code":"404","msg":"Invalid path"}').fatal
    assert not isinstance(gone, Missing)
    assert "check rest_url" in gone.message


def test_the_archive_host():
    request = httpx.Request("GET", "https://static.okx.com/a.zip")
    assert judge_archive(httpx.Response(200, request=request), b"") == FINE
    assert isinstance(judge_archive(httpx.Response(404, request=request), b"").fatal, Missing)
    assert "user agent" in judge_archive(httpx.Response(403, request=request), b"").fatal.message


def test_the_names_of_files():
    evening = 1709310600 * 10**9  # 2024-03-01T16:30Z, when it is March 2 in UTC+8
    day = file_at(SWAP_TRADES, evening, DAILY)
    assert day.path == (
        "/cdn/okex/traderecords/trades/daily/20240302/BTC-USDT-SWAP-trades-2024-03-02.zip"
    )
    assert (day.span.start, day.span.end) == (1709308800 * 10**9, 1709395200 * 10**9)
    month = file_at(CANDLES, evening, MONTHLY)
    assert month.path == (
        "/cdn/okex/traderecords/candlesticks/monthly/202403/BTC-USDT-candlesticks-2024-03.zip"
    )
    assert (month.span.start, month.span.end) == (1709222400 * 10**9, 1711900800 * 10**9)
