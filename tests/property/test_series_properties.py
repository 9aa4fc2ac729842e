"""Names of symbols, data types and series: printed and read back, both ways for each venue."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tardisd.market.columns import SCHEMAS
from tardisd.market.series import _QUOTES, KINDS, DataType, Series, Symbol

VENUES = ("binance", "bybit", "okx")
coins = st.from_regex(r"[A-Z0-9]{1,10}", fullmatch=True)
assets = st.from_regex(r"[A-Za-z0-9._~-]{1,12}", fullmatch=True)
intervals = st.from_regex(r"[1-9][0-9]{0,2}[smhdwM]", fullmatch=True)
indicators = st.from_regex(r"indicator_[a-z0-9_]{1,40}", fullmatch=True)
data_types = st.one_of(
    st.sampled_from([kind for kind in KINDS if kind not in {"candle", "indicator"}]),
    intervals.map("candle_{}".format),
    indicators,
)


@given(assets, assets, st.booleans(), data_types)
def test_series_are_read_as_they_are_printed(base, quote, swap, data_type):
    symbol = f"{base}/{quote}" + (f":{quote}" if swap else "")
    series = Series.parse(f"synthetic:{symbol}@{data_type}")
    assert str(series) == f"synthetic:{symbol}@{data_type}"
    assert Series.parse(series.text) == series == Series.of("synthetic", symbol, data_type)
    assert (series.symbol.kind == "swap") == swap
    assert series.key == ("synthetic", series.symbol.kind, symbol, data_type)


@given(st.sampled_from(VENUES), coins, st.sampled_from(_QUOTES), st.booleans(), st.booleans())
def test_unified_symbols_of_venues(venue, base, quote, swap, lower):
    text = f"{base}/{quote}" + (f":{quote}" if swap else "")
    symbol = Symbol.parse(text.lower() if lower else text, venue)
    assert str(symbol) == text
    assert Symbol.parse(str(symbol), venue) == symbol
    tail = {"okx": f"-{quote}" + ("-SWAP" if swap else "")}.get(venue, quote)
    assert symbol.venue_id(venue) == base + tail


@given(st.sampled_from(["binance", "bybit"]), coins, st.sampled_from(_QUOTES))
def test_a_concatenated_id_means_spot_and_keeps_its_text(venue, base, quote):
    symbol = Symbol.parse(base + quote, venue)
    assert symbol.kind == "spot"
    assert symbol.venue_id(venue) == base + quote
    assert symbol.quote in _QUOTES
    assert len(symbol.quote) >= len(quote)  # the longest quote that fits
    assert Symbol.parse((base + quote).lower(), venue) == symbol
    assert Symbol.parse(str(symbol), venue) == symbol


@given(coins, coins, st.booleans())
def test_okx_ids_go_both_ways(base, quote, swap):
    assume(swap or quote != "SWAP")
    venue_id = f"{base}-{quote}" + ("-SWAP" if swap else "")
    symbol = Symbol.parse(venue_id, "okx")
    assert symbol.venue_id("okx") == venue_id
    assert str(symbol) == f"{base}/{quote}" + (f":{quote}" if swap else "")
    assert Symbol.parse(str(symbol), "okx") == symbol


@given(coins, st.sampled_from(_QUOTES))
def test_spot_and_swap_of_one_id_are_stored_apart(base, quote):
    for venue in VENUES:
        spot = Series.of(venue, f"{base}/{quote}", "trade")
        swap = Series.of(venue, f"{base}/{quote}:{quote}", "trade")
        assert spot.key != swap.key
        assert spot.order != swap.order


@given(st.text(max_size=60))
def test_any_text_is_a_series_or_a_value_error(text):
    for candidate in (text, f"binance:{text}@trade", f"okx:BTC-USDT@{text}", f"{text}:A/B@trade"):
        series = None
        with suppress(ValueError):
            series = Series.parse(candidate)
        assert series is None or Series.parse(series.text) == series


@given(st.text(max_size=30), st.sampled_from([*VENUES, "synthetic"]))
def test_any_text_is_a_symbol_or_a_value_error(text, venue):
    try:
        symbol = Symbol.parse(text, venue)
    except ValueError:
        return
    assert Symbol.parse(str(symbol), venue) == symbol
    assert Symbol.parse(str(symbol), venue).venue_id(venue) == symbol.venue_id(venue)


@given(data_types)
def test_data_types(text):
    data_type = DataType.parse(text)
    assert str(data_type) == text
    named = text.startswith(("candle_", "indicator_"))
    assert data_type.kind == (text.split("_")[0] if named else text)
    assert (data_type.interval is not None) == text.startswith("candle_")
    assert data_type.order[0] == KINDS[data_type.kind]


@pytest.mark.parametrize(
    "text",
    ["", "candle", "candle_", "candle_0m", "Trade", "ohlcv", "trade ", "indicator", "indicator_A"],
)
def test_what_is_no_data_type_is_refused(text):
    with pytest.raises(ValueError, match=r"is not (a data type|an interval)"):
        DataType.parse(text)


def test_shorter_candles_come_first_and_trades_last():
    names = ["candle_1m", "candle_1h", "candle_1d", "candle_1w", "candle_1M", "quote", "trade"]
    orders = [Series.of("binance", "BTC/USDT", name).order for name in names]
    assert orders == sorted(orders)


def test_every_kind_has_a_schema():
    assert set(SCHEMAS) == set(KINDS)
    assert all(len(schema.fields) <= 30 for schema in SCHEMAS.values())  # bits of the content hash


def test_ids_of_real_venue_messages_go_both_ways(shared_data):
    """Every id that looks like a spot pair or linear swap comes back as it was."""
    forms = {
        "binance.jsonl": ("binance", r'"s":"([A-Z0-9]+)"'),
        "bybit-spot.jsonl": ("bybit", r'"symbol":"([A-Z0-9]+)"'),
        "okex.jsonl": ("okx", r'"instrument_id":"([A-Z0-9]+-[A-Z0-9]+)"'),
        "okex-swap.jsonl": ("okx", r'"instId":"([A-Z0-9]+-USDT-SWAP)"'),
    }
    for name, (venue, form) in forms.items():
        found = set()
        for line in (shared_data / "mapping" / name).read_text().splitlines():
            found |= set(re.findall(form, json.dumps(json.loads(line), separators=(",", ":"))))
        assert found
        for venue_id in found:
            assert Symbol.parse(venue_id, venue).venue_id(venue) == venue_id
