"""Every recorded REST answer and vendor file: read here, read in another test, or not of our kind.

A file that comes new into the folder of real data fails here until somebody says which it is. What
is read here is compared row by row with what stands in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.series import SPOT, SWAP, Series
from tardisd.venue.client import FINE, Unreadable
from tardisd_binance import rows as binance
from tardisd_binance.rest import _instrument as binance_instrument
from tardisd_bybit import judge as bybit_judge
from tardisd_bybit import rows as bybit
from tardisd_bybit.rest import _instrument as bybit_instrument
from tardisd_okx import rows as okx
from tardisd_okx.rest import _instrument as okx_instrument

TESTS = Path(__file__).parent
MS = 10**6
BN, BY, OK = "fixtures/binance/", "fixtures/bybit/", "fixtures/okx/"
EXCHANGE_DATA = "jkorf_Endpoints_{}_ExchangeData_{}.txt"

# What no plugin asks for: other kinds of data and instruments, and what is no REST answer at all.
NOT_OURS = {
    r"CoinFutures_": "coin-margined contracts",
    r"(Book|Ticker|Margin)[A-Za-z]*\.txt$": "quotes, books, tickers, margin",
    r"(Index|Price|ContinuousContract)Klines": "indices",
    r"Get(Spread|Option|Block|Index)[A-Za-z]*\.txt$": "spreads, options, blocks, indices",
    r"spread_trades|option": "spreads, options",
    r"/ws_|_stream(_closed|_open)?\.json$|_Subscriptions_|BYBIT\.ws": "WebSocket",
    r"tardis_csv/.*(quotes|book_snapshot|incremental)": "quotes and books",
    r"tardis_csv/bitmex": "a venue that we do not know",
}
# Read in full elsewhere; there the file is named, or what it is made of.
ELSEWHERE = {
    "rest/binance_recorded.jsonl.gz": ("test_binance_recorded.py", "binance_recorded.jsonl.gz"),
    "rest/binance_recording.jsonl.zst": ("test_binance_recorded.py", "binance_recording.jsonl"),
    "rest/okx_recording.jsonl.zst": ("test_okx_recorded.py", "okx_recording.jsonl.zst"),
    "rest/errors.jsonl": ("test_okx_recorded.py", "rest/errors.jsonl"),
    "tardis_csv/binance-futures_BTCUSDT_2020-02-22_trades.csv.gz": (
        "test_binance_archives.py", "binance-futures_BTCUSDT_2020-02-22_trades.csv.gz"),
    **{
        f"klines/um/{coin}USDT-1m-2023-02.zip": ("test_binance_archives.py", f'"{coin}"')
        for coin in ("ALGO", "AVAX", "FIL", "LINK", "NEAR")
    },
    **{
        f"klines/{name}": ("test_binance_archives.py", name)
        for name in ("um/AVAXUSDT-1m-2023-09.csv.gz", "um/FILUSDT-1m-2025-02.csv.gz",
                     "spot/ADABTC-1m-2021-11-27.csv", "spot/BTCUSDT-1h-2024-12.csv",
                     "spot/BTCUSDT-1h-2025-01.csv")
    },
}  # fmt: skip


def same(batch: Batch, fields: dict[str, list[str]]) -> None:
    for name, texts in fields.items():
        assert list(map(Decimal, batch.fields[name].texts())) == list(map(Decimal, texts)), name


def binance_klines(body: bytes, found: Any) -> int:
    batch = binance.klines(body, Series.parse("binance:BTC/USDT@candle_1w"))
    assert (batch.ts_event // MS).tolist() == [row[0] for row in found]
    names = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 5, "quote_volume": 7}
    same(batch, {name: [row[at] for row in found] for name, at in names.items()})
    return len(batch)


def binance_trades(body: bytes, found: Any) -> int:
    batch = binance.trades(body, Series.parse("binance:BTC/USDT@trade"))
    assert batch.ids is not None
    assert batch.ids.tolist() == [row["id"] for row in found]
    assert (batch.ts_event // MS).tolist() == [row["time"] for row in found]
    same(batch, {"price": [r["price"] for r in found], "amount": [r["qty"] for r in found]})
    return len(batch)


def binance_aggs(body: bytes, found: Any) -> int:
    batch = binance.agg_trades(body, Series.parse("binance:BTC/USDT@agg_trade"))
    assert batch.ids is not None
    assert batch.ids.tolist() == [row["a"] for row in found]
    assert batch.sides is not None
    assert batch.sides.tolist() == [int(row["m"]) for row in found]
    same(batch, {"price": [row["p"] for row in found], "amount": [row["q"] for row in found]})
    return len(batch)


def binance_info(kind: str) -> Callable[[bytes, Any], int]:
    def read(body: bytes, found: Any) -> int:
        info = msgspec.json.decode(body, type=binance.ExchangeInfo)
        assert [it.symbol for it in info.symbols] == [it["symbol"] for it in found["symbols"]]
        known = [binance_instrument("binance", kind, listed) for listed in info.symbols]
        return sum(it is not None for it in known)

    return read


def bybit_instruments(category: str) -> Callable[[bytes, Any], int]:
    def read(body: bytes, found: Any) -> int:
        listed, _ = bybit.instruments(body)
        assert [it.symbol for it in listed] == [it["symbol"] for it in found["result"]["list"]]
        known = [bybit_instrument("bybit", category, it) for it in listed]
        for it, told in zip(known, found["result"]["list"], strict=True):
            assert it is None or it.tick_size == told["priceFilter"]["tickSize"]
        return sum(it is not None for it in known)

    return read


def bybit_klines(body: bytes, found: Any) -> int:
    result = found["result"]
    answer = bybit.klines(body, Series.parse("bybit:BTC/USD@candle_1h"), result["category"])
    rows = result["list"][::-1]
    assert (answer.batch.ts_event // MS).tolist() == [int(row[0]) for row in rows]
    names = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 5, "quote_volume": 6}
    same(answer.batch, {name: [row[at] for row in rows] for name, at in names.items()})
    return len(answer.batch)


def bybit_kline(body: bytes, found: Any) -> int:
    series = Series.parse("bybit:BTC/USDT:USDT@candle_1m")
    batch = bybit.klines(body, series, "linear").batch
    assert (batch.ts_event // MS).tolist() == [int(r[0]) for r in found["result"]["list"][::-1]]
    return len(batch)


def okx_candles(body: bytes, found: Any) -> int:
    theirs = sorted(found["data"])
    series = Series.parse("okx:BTC/USDT@candle_1m")
    if len({row[0] for row in theirs}) < len(theirs):  # examples of the docs repeat a time
        with pytest.raises(Unreadable, match="contradicts itself"):
            okx.candles(body, series)
        return 0
    batch = okx.candles(body, series).batch
    assert (batch.ts_event // MS).tolist() == [int(row[0]) for row in theirs]
    names = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 5, "quote_volume": 7}
    same(batch, {name: [row[at] for row in theirs] for name, at in names.items()})
    return len(batch)


def okx_trades(body: bytes, found: Any) -> int:
    theirs = sorted(found["data"], key=lambda it: (int(it["ts"]), int(it["tradeId"])))
    swap = theirs[0]["instId"].endswith("-SWAP")
    series = Series.parse(f"okx:BTC/USDT{':USDT' if swap else ''}@trade")
    batch = okx.trades(body, series, Decimal("0.01") if swap else None)
    assert batch.ids is not None
    assert batch.ids.tolist() == [int(it["tradeId"]) for it in theirs]
    size = Decimal("0.01") if swap else 1
    same(batch, {"price": [it["px"] for it in theirs],
                 "amount": [str(Decimal(it["sz"]) * size) for it in theirs]})  # fmt: skip
    return len(batch)


def okx_instruments(kind: str) -> Callable[[bytes, Any], int]:
    def read(body: bytes, found: Any) -> int:
        listed = okx.instruments(body)
        assert [it.inst_id for it in listed] == [it["instId"] for it in found["data"]]
        return sum(okx_instrument("okx", kind, it) is not None for it in listed)

    return read


def unread(_body: bytes, _found: Any) -> int:
    """Stand for an endpoint that gives no history: nothing asks it."""
    return 0


# The reader, and how many rows or instruments come of the file.
READ: dict[str, tuple[Callable[[bytes, Any], int], int]] = {
    BN + "spot_http_json_klines_response.json": (binance_klines, 1),
    BN + EXCHANGE_DATA.format("Spot", "GetKlines"): (binance_klines, 1),
    BN + EXCHANGE_DATA.format("Spot", "GetUiKlines"): (binance_klines, 1),
    BN + EXCHANGE_DATA.format("UsdFutures", "GetKlines"): (binance_klines, 1),
    BN + "jkorf_Socket_Spot_ExchangeData_GetKlines.txt": (binance_klines, 1),
    BN + "jkorf_Socket_Spot_ExchangeData_GetUIKlines.txt": (binance_klines, 1),
    BN + "spot_http_json_trades_response.json": (binance_trades, 1),
    BN + EXCHANGE_DATA.format("Spot", "GetRecentTrades"): (binance_trades, 1),
    BN + EXCHANGE_DATA.format("Spot", "GetTradeHistory"): (binance_trades, 1),
    BN + EXCHANGE_DATA.format("UsdFutures", "GetRecentTrades"): (binance_trades, 1),
    BN + EXCHANGE_DATA.format("UsdFutures", "GetTradeHistory"): (binance_trades, 1),
    BN + "jkorf_Socket_Spot_ExchangeData_GetRecentTrades.txt": (binance_trades, 1),
    BN + "jkorf_Socket_Spot_ExchangeData_GetTradeHistory.txt": (binance_trades, 1),
    BN + EXCHANGE_DATA.format("Spot", "GetAggregatedTradeHistory"): (binance_aggs, 1),
    BN + EXCHANGE_DATA.format("UsdFutures", "GetAggregatedTradeHistory"): (binance_aggs, 1),
    BN + "jkorf_Socket_Spot_ExchangeData_GetAggregatedTradeHistory.txt": (binance_aggs, 1),
    BN + "spot_http_json_exchange_info_response.json": (binance_info(SPOT), 1),
    BN + EXCHANGE_DATA.format("Spot", "GetExchangeInfo"): (binance_info(SPOT), 1),
    BN + "jkorf_Socket_Spot_ExchangeData_GetExchangeInfo.txt": (binance_info(SPOT), 1),
    BN + EXCHANGE_DATA.format("UsdFutures", "GetExchangeInfo"): (binance_info(SWAP), 1),
    BY + "http_get_klines_linear.json": (bybit_kline, 1),
    BY + EXCHANGE_DATA.format("V5Api", "GetKlines"): (bybit_klines, 3),
    BY + "http_get_instruments_linear.json": (bybit_instruments("linear"), 2),
    BY + "http_get_instruments_linear_symbol_type.json": (bybit_instruments("linear"), 1),
    BY + "http_get_instruments_inverse.json": (bybit_instruments("linear"), 0),
    BY + "http_get_instruments_inverse_symbol_type.json": (bybit_instruments("linear"), 0),
    BY + "http_get_instruments_spot.json": (bybit_instruments("spot"), 2),
    BY + "http_get_instruments_spot_xstocks.json": (bybit_instruments("spot"), 1),
    BY + EXCHANGE_DATA.format("V5Api", "GetSpotSymbols"): (bybit_instruments("spot"), 1),
    BY + EXCHANGE_DATA.format("V5Api", "GetLinearInverseSymbols"): (bybit_instruments("linear"), 1),
    BY + EXCHANGE_DATA.format("V5Api", "GetLinearInverseSymbolsPreListing"): (
        bybit_instruments("linear"), 1),
    BY + "http_get_trades_recent.json": (unread, 0),
    BY + EXCHANGE_DATA.format("V5Api", "GetTradeHistory"): (unread, 0),
    OK + "http_get_candlesticks.json": (okx_candles, 2),
    OK + "http_get_candlesticks_full.json": (okx_candles, 2),
    OK + EXCHANGE_DATA.format("UnifiedApi", "GetKlines"): (okx_candles, 0),
    OK + EXCHANGE_DATA.format("UnifiedApi", "GetKlineHistory"): (okx_candles, 0),
    OK + "http_get_trades.json": (okx_trades, 2),
    OK + EXCHANGE_DATA.format("UnifiedApi", "GetRecentTrades"): (okx_trades, 2),
    OK + EXCHANGE_DATA.format("UnifiedApi", "GetTradeHistory"): (okx_trades, 2),
    OK + "http_get_instruments_spot.json": (okx_instruments(SPOT), 5),
    OK + "http_get_instruments_margin.json": (okx_instruments(SPOT), 4),
    OK + "http_get_instruments_swap.json": (okx_instruments(SWAP), 2),
    OK + "http_get_instruments_futures.json": (okx_instruments(SWAP), 0),
    OK + EXCHANGE_DATA.format("UnifiedApi", "GetSymbols"): (okx_instruments(SPOT), 1),
}  # fmt: skip


def answer_in(path: Path) -> Any:
    """Return the JSON of a fixture: as it is, after a request's lines, or within an envelope."""
    text = path.read_text()
    if path.name.startswith("jkorf_Socket"):
        return json.loads(text[text.index("\n= ") + 2 :])["result"]
    if path.suffix == ".txt":
        text = text[min(at for mark in "[{" if (at := text.find(mark)) >= 0) :]
    return json.loads(text)


def test_every_file_is_read_or_not_of_our_kind(shared_data):
    folders = ("rest", "fixtures", "klines", "tardis_csv")
    files = {
        str(path.relative_to(shared_data))
        for folder in folders
        for path in (shared_data / folder).rglob("*")
        if path.is_file()
    }
    known = READ.keys() | ELSEWHERE.keys()
    assert known <= files, "not there any more"
    left = {name for name in files - known if not any(re.search(it, name) for it in NOT_OURS)}
    assert not left, "say who reads these, or why nobody does"
    assert not {name for name in known if any(re.search(it, name) for it in NOT_OURS)}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_who_reads_the_others(name):
    module, words = ELSEWHERE[name]
    assert words in (TESTS / module).read_text()


@pytest.mark.parametrize("name", READ)
def test_each_answer_gives_its_rows(shared_data, name):
    read, count = READ[name]
    found = answer_in(shared_data / name)
    body = json.dumps(found, separators=(",", ":")).encode()
    assert read(body, found) == count


def test_every_recorded_error_of_bybit(shared_data):
    lines = (shared_data / "rest/errors.jsonl").read_text().splitlines()
    errors = [it for it in map(json.loads, lines) if it["exchange"] == "bybit"]
    assert len(errors) >= 2
    for it in errors:
        request = httpx.Request("GET", "https://api.bybit.com/v5/market/kline?symbol=X")
        answer = httpx.Response(it["status"], headers=it["headers"], request=request)
        verdict = bybit_judge.judge_rest(answer, it["body"].encode())
        assert verdict != FINE
        if json.loads(it["body"])["retCode"] == 10006:
            assert verdict.fatal is None
            assert verdict.cool_down_secs is not None
        else:
            assert isinstance(verdict.fatal, RequestError)
            assert json.loads(it["body"])["retMsg"] in verdict.fatal.message
