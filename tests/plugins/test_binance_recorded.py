"""What Binance really answered: every recorded page read to the digit, every error understood."""

from __future__ import annotations

import gzip
import io
import json
from decimal import Decimal
from pathlib import Path

import httpx
import msgspec
import pytest
import zstandard

from tardisd.errors import RequestError
from tardisd.market.check import check_batch
from tardisd.market.columns import Batch
from tardisd.market.series import SPOT, SWAP, Series
from tardisd.venue.budget import Budget
from tardisd.venue.client import Unreadable, Verdict
from tardisd_binance import rows
from tardisd_binance.judge import RestJudge, judge_archive
from tardisd_binance.rest import RULES, _instrument

MS = 1_000_000


def recorded(shared_data: Path, *names: str) -> list[tuple[str, str, object]]:
    lines = gzip.decompress((shared_data / "rest/binance_recorded.jsonl.gz").read_bytes())
    found = [json.loads(line) for line in lines.splitlines()]
    return [
        (it["path"], it["query"], it["response"])
        for it in found
        if it["path"].split("/")[1] in ("api", "fapi") and it["path"].rpartition("/")[2] in names
    ]


def values(batch: Batch, *names: str) -> list[tuple[Decimal, ...]]:
    return list(
        zip(*([Decimal(text) for text in batch.fields[n].texts()] for n in names), strict=True)
    )


def series(path: str, data_type: str) -> Series:
    return Series.parse(f"binance:BTC/USDT{':USDT' if 'fapi' in path else ''}@{data_type}")


def test_every_recorded_candle(shared_data):
    pages = recorded(shared_data, "klines")
    assert len(pages) >= 10
    for path, query, response in pages:
        interval = dict(part.split("=") for part in query.split("&"))["interval"]
        batch = rows.klines(json.dumps(response).encode(), series(path, f"candle_{interval}"))
        check_batch(batch)
        assert (batch.ts_event // MS).tolist() == [row[0] for row in response]
        names = ("open", "high", "low", "close", "volume", "quote_volume", "trades")
        assert values(batch, *names) == [
            tuple(map(Decimal, [*row[1:6], row[7], row[8]])) for row in response
        ]


def test_every_recorded_trade(shared_data):
    pages = recorded(shared_data, "aggTrades", "trades", "historicalTrades")
    assert len(pages) >= 10
    spoilt = 0
    for path, _, response in pages:
        body = json.dumps(response).encode()
        if any("" in row for row in response):  # a name was lost on the way into the recording
            with pytest.raises(Unreadable, match="missing required field `m`"):
                rows.agg_trades(body, series(path, "agg_trade"))
            spoilt += 1
            continue
        if "aggTrades" in path:
            batch = rows.agg_trades(body, series(path, "agg_trade"))
            expected = [(r["T"], r["a"], r["p"], r["q"], r["m"]) for r in response]
        else:
            batch = rows.trades(body, series(path, "trade"))
            expected = [
                (r["time"], r["id"], r["price"], r["qty"], r["isBuyerMaker"]) for r in response
            ]
        check_batch(batch)
        expected = sorted(set(expected))
        assert (batch.ts_event // MS).tolist() == [row[0] for row in expected]
        assert batch.ids.tolist() == [row[1] for row in expected]
        assert values(batch, "price", "amount") == [
            (Decimal(row[2]), Decimal(row[3])) for row in expected
        ]
        assert batch.sides.tolist() == [int(row[4]) for row in expected]
    assert spoilt == 2


@pytest.mark.parametrize(("kind", "prefix"), [(SPOT, "/api"), (SWAP, "/fapi")])
def test_every_recorded_instrument(shared_data, kind, prefix):
    [response] = [r for path, _, r in recorded(shared_data, "exchangeInfo") if prefix in path]
    info = msgspec.json.decode(json.dumps(response), type=rows.ExchangeInfo)
    assert info.rate_limits[0].limit == RULES[kind].limit.weight
    found = {it.extra["venue_id"]: it for it in
             (_instrument("binance", kind, listed) for listed in info.symbols)
             if it is not None}  # fmt: skip
    assert found
    for symbol in response["symbols"]:
        if kind == SWAP and symbol["contractType"] != "PERPETUAL":
            assert symbol["symbol"] not in found
            continue
        instrument = found.get(symbol["symbol"])
        if instrument is None:
            assert symbol["symbol"] != symbol["baseAsset"] + symbol["quoteAsset"] or (
                symbol.get("marginAsset", symbol["quoteAsset"]) != symbol["quoteAsset"]
            )
            continue
        sizes = {it["filterType"]: it for it in symbol["filters"]}
        assert instrument.tick_size == sizes["PRICE_FILTER"]["tickSize"]
        assert instrument.lot_size == sizes["LOT_SIZE"]["stepSize"]
        assert instrument.symbol.kind == kind
        if kind == SWAP:
            assert instrument.listed_at == symbol["onboardDate"] * MS


def test_a_whole_exchange_as_of_2021(shared_data):
    packed = (shared_data / "rest/binance_recording.jsonl.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as reader:
        lines = io.TextIOWrapper(reader).read().splitlines()
    answers = [
        json.loads(line) for line in lines if '"exchangeInfo' in line or 'exchangeInfo"' in line
    ]
    body = next(it["data"] for it in answers if it["t"] == "http")
    info = msgspec.json.decode(body, type=rows.ExchangeInfo)
    found = [_instrument("binance", SPOT, listed) for listed in info.symbols]
    assert sum(it is not None for it in found) >= 4
    assert {"NKN/USDT", "BLZ/ETH", "LRC/BTC", "RUNE/EUR"} <= {str(it.symbol) for it in found if it}


FIXTURES = {
    "spot_http_json_klines_response.json": ("klines", "candle_1w"),
    "spot_http_json_trades_response.json": ("trades", "trade"),
    "jkorf_Endpoints_Spot_ExchangeData_GetKlines.txt": ("klines", "candle_1w"),
    "jkorf_Endpoints_UsdFutures_ExchangeData_GetKlines.txt": ("klines", "candle_1w"),
    "jkorf_Endpoints_Spot_ExchangeData_GetAggregatedTradeHistory.txt": ("agg_trades", "agg_trade"),
    "jkorf_Endpoints_UsdFutures_ExchangeData_GetAggregatedTradeHistory.txt": (
        "agg_trades", "agg_trade"),
    "jkorf_Endpoints_Spot_ExchangeData_GetTradeHistory.txt": ("trades", "trade"),
    "jkorf_Endpoints_UsdFutures_ExchangeData_GetTradeHistory.txt": ("trades", "trade"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXTURES)
def test_documented_answers(shared_data, name):
    reader, data_type = FIXTURES[name]
    text = (shared_data / "fixtures/binance" / name).read_text()
    body = text[text.index("[") :].encode()
    batch = getattr(rows, reader)(body, series("", data_type))
    assert len(batch) == 1
    if data_type == "candle_1w":
        assert values(batch, "open", "quote_volume", "trades") == [
            (Decimal("0.01634790"), Decimal("2434.19055334"), Decimal(308))
        ]
    else:
        amount = "4.70443515" if data_type == "agg_trade" else "12"
        assert values(batch, "amount") == [(Decimal(amount),)]


def judged(
    status: int, body: str, headers: dict[str, str] | None = None, path: str = ""
) -> Verdict:
    url = f"https://api.binance.com/api/v3/klines?symbol=XUSDT&interval=7m{path}"
    answer = httpx.Response(status, headers=headers or {}, request=httpx.Request("GET", url))
    budget = Budget("binance", [RULES[SPOT].limit], 0.85)
    return RestJudge(budget, RULES[SPOT].limit.name)(answer, body.encode())


def test_every_recorded_error(shared_data):
    lines = (shared_data / "rest/errors.jsonl").read_text().splitlines()
    errors = [it for it in map(json.loads, lines) if it["exchange"] == "binance"]
    assert len(errors) >= 7
    for it in errors:
        verdict = judged(it["status"], it["body"], it["headers"])
        code = json.loads(it["body"])["code"]
        if code == -1003:
            assert verdict.fatal is None
            assert verdict.ban == (it["status"] == 418)
            assert verdict.cool_down_secs == 7.0 or it["status"] == 418
        else:
            assert isinstance(verdict.fatal, RequestError)
            assert json.loads(it["body"])["msg"] in verdict.fatal.message


def test_how_long_a_ban_lasts():
    import time

    until = int(time.time() * 1000) + 300_000
    text = f'{{"code":-1003,"msg":"Way too much request weight used; IP banned until {until}."}}'
    verdict = judged(418, text)
    assert 295 < verdict.cool_down_secs <= 300
    assert verdict.ban
    assert judged(400, text).ban
    # A clock of ours that is an hour ahead must not make light of it.
    past = text.replace(str(until), str(until - 3_600_000))
    assert judged(418, past, {"Retry-After": "120"}).cool_down_secs == 120
    assert judged(418, "").cool_down_secs == 120
    assert judged(429, "").cool_down_secs == 60


@pytest.mark.parametrize(
    ("status", "body", "code", "told"),
    [
        (400, '{"code":-1121,"msg":"Invalid symbol."}', "bad_request", "no symbol XUSDT"),
        (400, '{"code":-1120,"msg":"Invalid interval."}', "bad_request", "no candles of 7m"),
        (400, '{"code":-4166,"msg":"Search window is restricted to recent 2 days only."}',
         "bad_request", 'set archives = "prefer"'),
        (451, '{"code":0,"msg":"Service unavailable from a restricted location"}', "fetch_failed",
         "data-api.binance.vision"),
        (403, "<html>restricted location</html>", "fetch_failed", "refuses to serve this place"),
        (404, "<html>", "fetch_failed", "not there (HTTP 404"),
    ],
)  # fmt: skip
def test_what_is_final(status, body, code, told):
    error = judged(status, body).fatal
    assert isinstance(error, RequestError)
    assert error.code == code
    assert told in error.message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, ""),
        (502, "<html>bad gateway"),
        (503, '{"code":-1008,"msg":"Server is busy."}'),
        (504, ""),
        (400, '{"code":-1001,"msg":"Internal error"}'),
        (408, '{"code":-1007,"msg":"Timeout waiting for response"}'),
        (403, "<html>Request blocked."),
    ],
)
def test_what_may_pass(status, body):
    verdict = judged(status, body)
    assert verdict.fatal is None
    assert verdict.retry


def test_the_archive_host_may_ask_to_slow_down():
    request = httpx.Request("GET", "https://data.binance.vision/x.zip")
    slow = judge_archive(httpx.Response(503, request=request), b"<Code>SlowDown</Code>")
    assert (slow.cool_down_secs, slow.fatal) == (5.0, None)
    blocked = judge_archive(httpx.Response(451, request=request), b"").fatal
    assert blocked is not None
    assert "data.binance.vision refuses to serve this place" in blocked.message


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not the JSON expected"),
        (b"[[1,", "not the JSON expected"),
        (b"<!DOCTYPE html><title>Login</title>", "a web page came instead of JSON"),
        (b'{"code":0}', "not the JSON expected"),
        (b'[[1586987400000,NaN,"1","1","1","1",1586987699999,"1",1,"1","1","0"]]', "not the JSON"),
        (b'[[1586987400000,"NaN","1","1","1","1",1586987699999,"1",1,"1","1","0"]]',
         "open 'NaN': not a finite number"),
        (b'[[1586987400000,"1","1","1","1",null,1586987699999,"1",1,"1","1","0"]]', "not the JSON"),
        (b'[[1586987400,"1","1","1","1","1",1586987699,"1",1,"1","1","0"]]', "in milliseconds"),
        (b'[[1586987400000,"1","1","1","1","1",1586987699999,"1",1,"1","1"]]', "not the JSON"),
        (b'[[1586987400000,"1","1","1","1","1",1586987699999,"1",1,"1","1","0"],'
         b'[1586987400000,"1","1","1","1","2",1586987699999,"1",1,"1","1","0"]]', "contradicts"),
        (b"\xff\xfe", "not the JSON expected"),
    ],
)  # fmt: skip
def test_what_is_no_page_is_never_read(body, told):
    with pytest.raises(Unreadable, match=told):
        rows.klines(body, series("", "candle_5m"))
