"""The exchange `synthetic`: frozen rows, random access, candles against their trades."""

from __future__ import annotations

import itertools
import tomllib
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tardisd.market.check import check_batch, same_rows
from tardisd.market.series import Series, Symbol
from tardisd.market.span import Span
from tardisd.market.time import DAY, EARLIEST, HOUR, MINUTE, SECOND, Interval, parse_time
from tardisd.testing.exchange import Case, ExchangeSuite, fetch_pages, joined, suite_context
from tardisd_synthetic.candles import PAGE_ROWS
from tardisd_synthetic.market import market_of
from tardisd_synthetic.plugin import INTERVALS, Synthetic, SyntheticOptions

FOLDER = Path(__file__).parents[2] / "plugins" / "tardisd_synthetic"
MARCH = parse_time("2024-03-01T00:00:00Z")
NOW = parse_time("2025-07-03T10:20:30.456Z")
# The first seed's outage of March 2024.
OUTAGE = Span(parse_time("2024-03-25T04:56:00Z"), parse_time("2024-03-25T08:22:00Z"))


def synthetic(now=lambda: NOW, **options):
    return Synthetic(SyntheticOptions(**options), suite_context("synthetic"), now=now)


def series_of(data_type, symbol="BTC/USDT"):
    return Series.of("synthetic", symbol, data_type)


def fetch(data_type, span, symbol="BTC/USDT", **options):
    """Fetch without a loop of one's own: for hypothesis."""
    pages = trio.run(fetch_pages, synthetic(**options), series_of(data_type, symbol), span)
    return joined(series_of(data_type, symbol), pages)


class TestSynthetic(ExchangeSuite):
    cases = (
        Case("synthetic:BTC/USDT@trade", "2024-03-25T04:00:00Z", "2024-03-25T10:00:00Z"),
        Case("synthetic:BTC/USDT:USDT@trade", "2024-03-03T23:59:59.5Z", "2024-03-04T00:10:00Z"),
        Case("synthetic:BTC/USDT@candle_1m", "2024-03-24T00:00:00Z", "2024-03-26T00:00:00Z"),
        Case("synthetic:ETH/BTC@candle_1h", "2024-03-24T00:30:00Z", "2024-03-26T00:15:00Z"),
        Case("synthetic:anything/at-all@candle_1d", "2024-02-24T00:00:00Z", "2024-03-06T00:00:00Z"),
    )

    @asynccontextmanager
    async def exchange(self):
        plugin = synthetic(trades_per_second=2)
        async with plugin.run():
            yield plugin


def test_the_rows_are_frozen():
    # Whoever changes these numbers changes everybody's history.
    batch = fetch("trade", Span(MARCH, MARCH + 2 * SECOND))
    rows = zip(
        ((batch.ts_event - MARCH) // 1_000_000).tolist(),
        batch.ids.tolist(),
        batch.fields["price"].texts(),
        batch.fields["amount"].texts(),
        batch.sides.tolist(),
        strict=True,
    )
    assert list(rows)[:12] == [
        (999, 478774885, "65011.91", "0.00485", 1),
        (1001, 478774886, "65013.53", "0.00215", 0),
        (1002, 478774887, "65012.88", "0.00331", 0),
        (1024, 478774888, "65013.23", "0.00857", 0),
        (1108, 478774889, "65013.29", "0.00355", 0),
        (1257, 478774890, "65012.1", "0.00012", 1),
        (1298, 478774891, "65011.8", "0.00025", 1),
        (1307, 478774892, "65012.13", "0.00684", 1),
        (1375, 478774893, "65013.8", "0.00198", 0),
        (1391, 478774894, "65013.49", "0.00115", 0),
        (1710, 478774895, "65012.71", "0.00106", 1),
        (1715, 478774896, "65012.4", "0.00967", 1),
    ]
    candle = fetch("candle_1h", Span(MARCH, MARCH + HOUR))
    assert {name: column.texts() for name, column in candle.fields.items()} == {
        "open": ["65011.91"],
        "high": ["65229.62"],
        "low": ["64924.54"],
        "close": ["65133.62"],
        "volume": ["31.52659"],
        "quote_volume": ["2052028.823923"],
        "trades": ["4341"],
    }
    odd = fetch("trade", Span(MARCH, MARCH + MINUTE), "FOO/BAR", seed=7, trades_per_second=0.1)
    assert odd.fields["price"].texts() == ["13.211", "13.215", "13.214"]
    assert odd.fields["amount"].texts() == ["82.44", "31.06", "4.9"]


lengths = st.builds(
    lambda minutes, rest: minutes * MINUTE + rest,
    st.integers(0, 40) | st.integers(60, 180),
    st.just(0) | st.integers(0, MINUTE),
)
spans = st.builds(
    lambda start, length: Span(start, start + length),
    st.integers(EARLIEST + 7 * DAY, NOW - 4 * HOUR)
    | st.integers(OUTAGE.start - 2 * HOUR, OUTAGE.end + HOUR),
    lengths,
)
some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@some
@given(
    spans,
    st.lists(st.floats(0, 1), max_size=3),
    st.sampled_from(["trade", "candle_1s", "candle_1m", "candle_15m", "candle_1h"]),
    st.sampled_from([0.001, 0.05, 1.0, 30.0]),
)
def test_cutting_a_span_anywhere_changes_no_row(span, cuts, data_type, rate):
    whole = fetch(data_type, span, trades_per_second=rate)
    places = sorted(span.start + int(span.length * cut) for cut in cuts)
    edges = [span.start, *places, span.end]
    parts = [Span(*pair) for pair in itertools.pairwise(edges)]
    series = series_of(data_type)
    batches = [fetch(data_type, part, trades_per_second=rate) for part in parts if part]
    together = whole.concat([whole[:0], *batches])
    assert len(together) == len(whole)
    assert same_rows(together, whole).all()
    check_batch(together, span)
    assert together.series == series


@some
@given(
    spans,
    st.sampled_from(["1s", "1m", "5m", "1h", "4h"]),
    st.sampled_from([0.002, 0.1, 1.5]),
    st.sampled_from(["BTC/USDT", "SHIB/BTC", "qwerty/JPY"]),
)
def test_candles_are_what_their_trades_make(span, interval, rate, symbol):
    interval = Interval.parse(interval)
    aligned = Span(
        interval.ceil(span.start), max(interval.ceil(span.end), interval.ceil(span.start))
    )
    candles = fetch(f"candle_{interval}", span, symbol, trades_per_second=rate)
    trades = fetch("trade", aligned, symbol, trades_per_second=rate)
    assert rows_of(candles, span) == aggregated(
        trades, interval, candles.ts_event.tolist(), symbol, rate
    )


def rows_of(candles, span):
    assert all(open_ in span for open_ in candles.ts_event.tolist())
    columns = [candles.fields[name].texts() for name in candles.schema.fields if len(candles)]
    values = ([Fraction(text) for text in row] for row in zip(*columns, strict=True))
    return dict(zip(candles.ts_event.tolist(), map(list, values), strict=True))


def aggregated(trades, interval, flat_allowed, symbol, rate):
    """Build the candles in plain Python; flat ones only where the venue gave one."""
    result = {}
    prices = [Fraction(text) for text in trades.fields["price"].texts()]
    amounts = [Fraction(text) for text in trades.fields["amount"].texts()]
    for ts, price, amount in zip(trades.ts_event.tolist(), prices, amounts, strict=True):
        row = result.setdefault(interval.floor(ts), [price, price, price, price, 0, 0, 0])
        row[1], row[2], row[3] = max(row[1], price), min(row[2], price), price
        row[4], row[5], row[6] = row[4] + amount, row[5] + price * amount, row[6] + 1
    previous = None
    for open_ in sorted({*result, *flat_allowed}):
        if open_ not in result:
            if previous is None:
                previous = last_price(open_, symbol, rate)
            result[open_] = [previous] * 4 + [0, 0, 0]
        previous = result[open_][3]
    return result


def last_price(before, symbol, rate):
    reach = HOUR
    while True:
        trades = fetch("trade", Span(before - reach, before), symbol, trades_per_second=rate)
        if len(trades):
            return Fraction(trades.fields["price"].texts()[-1])
        reach *= 2


async def test_every_candle_is_there_except_in_an_outage():
    for interval in ("1s", "1m", "5m", "1h"):
        series = series_of(f"candle_{interval}")
        step = Interval.parse(interval).fixed_ns
        span = Span(OUTAGE.start - 6 * HOUR, OUTAGE.end + 6 * HOUR)
        span = Span(span.start - span.start % HOUR, span.end - span.end % HOUR)
        pages = await fetch_pages(synthetic(trades_per_second=0.01), series, span)
        gaps = [gap for page in pages for gap in page.gaps]
        missing = set(range(span.start, span.end, step)) - set(
            joined(series, pages).ts_event.tolist()
        )
        told = {ts for gap in gaps for ts in range(gap.span.start, gap.span.end, step)}
        assert missing == told
        whole = {ts for ts in range(span.start, span.end, step) if OUTAGE.start <= ts}
        assert missing == {ts for ts in whole if ts + step <= OUTAGE.end}
        assert {gap.cause for gap in gaps} == {"exchange_down"}


async def test_outages_hush_every_symbol_and_can_be_had_without():
    span = Span(OUTAGE.start - HOUR, OUTAGE.end + HOUR)
    for symbol in ("BTC/USDT", "ETH/USDT:USDT"):
        series = series_of("trade", symbol)
        pages = await fetch_pages(synthetic(), series, span)
        assert [gap.span for page in pages for gap in page.gaps] == [OUTAGE]
        assert not len(joined(series, pages).within(OUTAGE))
        pages = await fetch_pages(synthetic(gaps=False), series, span)
        assert not any(page.gaps for page in pages)
        assert len(joined(series, pages).within(OUTAGE)) > 1000


async def test_outages_come_about_once_a_month():
    year = Span(parse_time("2023-01-01T00:00:00Z"), parse_time("2024-01-01T00:00:00Z"))
    series = series_of("candle_1m")
    pages = await fetch_pages(synthetic(trades_per_second=0.001), series, year)
    gaps = [gap for page in pages for gap in page.gaps]
    assert 6 <= len(gaps) <= 20
    assert all(5 * MINUTE <= gap.span.length <= 4 * HOUR for gap in gaps)


def test_ids_follow_each_other_over_weeks_and_outages():
    span = Span(OUTAGE.start - DAY, OUTAGE.end + 8 * DAY)
    ids = fetch("trade", span, trades_per_second=0.2).ids
    assert (np.diff(ids) == 1).all()
    assert fetch("trade", Span(EARLIEST, EARLIEST + DAY)).ids[0] > 0


def test_the_mean_rate_is_what_was_asked_for():
    week = Span(parse_time("2024-03-04T00:00:00Z"), parse_time("2024-03-11T00:00:00Z"))
    for rate in (0.01, 0.5, 2):
        trades = fetch("trade", week, trades_per_second=rate)
        assert len(trades) == round(rate * 7 * 86_400)


def test_it_looks_like_a_market():
    week = Span(parse_time("2024-03-04T00:00:00Z"), parse_time("2024-03-11T00:00:00Z"))
    trades = fetch("trade", week)
    prices = trades.fields["price"].floats()
    assert 20_000 < prices.min() < prices.max() < 120_000
    assert 0.01 < (prices.max() - prices.min()) / prices.mean() < 0.3
    # No jump from one trade to the next, unless much time lies between them.
    near = np.diff(trades.ts_event) < SECOND
    assert np.abs(np.diff(prices) / prices[1:])[near].max() < 0.002
    assert (np.diff(trades.ts_event) == 0).mean() > 0.003
    assert not (trades.ts_event % 1_000_000).any()
    amounts = trades.fields["amount"].floats()
    assert amounts.max() > 100 * np.median(amounts)
    assert 0.4 < trades.sides.mean() < 0.6
    hours = np.bincount(trades.ts_event[: len(trades)] // HOUR % 24, minlength=24)
    assert hours[15] > 1.5 * hours[4]
    days = np.bincount((trades.ts_event - week.start) // DAY, minlength=7)
    assert days[5:].max() < days[:5].min()
    minutes = np.bincount((trades.ts_event - week.start) // MINUTE)
    assert minutes.max() > 3 * np.median(minutes)


def test_spot_and_swap_share_a_price_and_no_trade():
    span = Span(MARCH, MARCH + HOUR)
    spot, swap = fetch("trade", span), fetch("trade", span, "BTC/USDT:USDT")
    first, second = spot.fields["price"].floats(), swap.fields["price"].floats()
    assert abs(first.mean() / second.mean() - 1) < 0.001
    assert len(spot) != len(swap) or (spot.ts_event != swap.ts_event).any()
    other = fetch("trade", span, "ETH/USDT").fields["price"].floats()
    assert other.mean() < first.mean() / 5


def test_another_seed_is_another_history():
    span = Span(MARCH, MARCH + HOUR)
    one, two = fetch("trade", span), fetch("trade", span, seed=2)
    assert abs(one.fields["price"].floats()[0] - two.fields["price"].floats()[0]) > 1


@pytest.mark.parametrize(
    "symbol",
    [
        "BTC/USDT",
        "ETH/BTC",
        "SHIB/BTC",
        "BTC/SHIB",
        "x/y",
        "ĄŻ/ß:ß",
        "BTC/JPY",
        "1000PEPE/USDT",
        "A" * 40 + "/B",
    ],
)
async def test_any_symbol_trades_exactly(symbol):
    series = series_of("trade", symbol)
    market = market_of("synthetic", series.symbol)
    pages = await fetch_pages(synthetic(), series, Span(MARCH, MARCH + HOUR))
    batch = joined(series, pages)
    check_batch(batch)
    assert len(batch) > 1000
    for column, size in (("price", "tick_size"), ("amount", "lot_size")):
        unit = Fraction(getattr(market.instrument, size))
        assert all(
            (Fraction(text) / unit).denominator == 1 for text in batch.fields[column].texts()
        )
        assert batch.fields[column].mantissa.min() > 0
    day = series_of("candle_1d", symbol)
    check_batch(joined(day, await fetch_pages(synthetic(), day, Span(MARCH, MARCH + DAY))))


async def test_instruments_are_listed_with_their_sizes():
    instruments = {str(i.symbol): i for i in await synthetic().instruments()}
    assert instruments["BTC/USDT"].tick_size == "0.01"
    assert instruments["BTC/USDT"].lot_size == "0.00001"
    assert "BTC/USDT:USDT" in instruments


async def test_weeks_and_months_follow_the_calendar():
    span = Span(parse_time("2024-01-01T00:00:00Z"), parse_time("2024-05-15T00:00:00Z"))
    months = series_of("candle_1M")
    exchange = synthetic(trades_per_second=0.01)
    batch = joined(months, await fetch_pages(exchange, months, span))
    assert [datetime.fromtimestamp(ts / SECOND, UTC).month for ts in batch.ts_event] == [
        1,
        2,
        3,
        4,
        5,
    ]
    days = series_of("candle_1d")
    by_day = joined(days, await fetch_pages(exchange, days, span))
    february = by_day.within(
        Span(parse_time("2024-02-01T00:00:00Z"), parse_time("2024-03-01T00:00:00Z"))
    )
    assert sum(map(int, february.fields["trades"].texts())) == int(
        batch.fields["trades"].texts()[1]
    )
    assert february.fields["close"].texts()[-1] == batch.fields["close"].texts()[1]
    weeks = series_of("candle_1w")
    batch = joined(weeks, await fetch_pages(exchange, weeks, span))
    opens = [
        datetime(1970, 1, 1) + timedelta(seconds=ts // SECOND) for ts in batch.ts_event.tolist()
    ]
    assert {moment.weekday() for moment in opens} == {0}


async def test_nothing_is_ahead_of_the_clock():
    exchange = synthetic()
    for interval in ("1m", "1h", "1d"):
        series = series_of(f"candle_{interval}")
        length = Interval.parse(interval)
        pages = await fetch_pages(exchange, series, Span(length.floor(NOW - 2 * DAY), NOW + DAY))
        assert pages[-1].span.end == length.floor(NOW)
        batch = joined(series, pages)
        assert length.close(int(batch.ts_event[-1])) <= NOW
        assert not await fetch_pages(exchange, series, Span(length.floor(NOW), NOW + DAY))
    series = series_of("trade")
    pages = await fetch_pages(exchange, series, Span(NOW - HOUR, NOW + DAY))
    assert pages[-1].span.end == NOW
    assert not await fetch_pages(exchange, series, Span(NOW, NOW + DAY))


async def test_before_2009_nobody_traded():
    series = series_of("candle_1h")
    pages = await fetch_pages(synthetic(), series, Span(EARLIEST - DAY, EARLIEST + DAY))
    assert pages[0].span == Span(EARLIEST - DAY, EARLIEST)
    assert len(joined(series, pages)) == 24


async def test_pages_stay_small_at_any_rate():
    series = series_of("trade")
    span = Span(MARCH, MARCH + 10 * MINUTE)
    pages = await fetch_pages(synthetic(trades_per_second=1000), series, span)
    assert len(pages) > 5
    assert max(len(page.batch) for page in pages) <= PAGE_ROWS
    series = series_of("candle_1s")
    pages = await fetch_pages(synthetic(), series, Span(MARCH, MARCH + 2 * DAY))
    assert max(len(page.batch) for page in pages) <= PAGE_ROWS


async def test_the_first_page_of_a_century_comes_at_once():
    for data_type in ("trade", "candle_1m", "candle_1M"):
        span = Span(EARLIEST, NOW)
        async with synthetic().fetch(series_of(data_type), span) as pages:
            page = await pages.receive()
        assert page.span.start == EARLIEST


def test_options_are_bounded():
    for bad in ({"trades_per_second": 0}, {"seed": -1}, {"gaps": "often"}, {"speed": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, SyntheticOptions)


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()
    bare = tomllib.loads(sample)["exchanges"]["synthetic"]
    assert bare == {"plugin": "synthetic"}
    full = tomllib.loads(
        sample.replace("# seed", "seed")
        .replace("# trades_per", "trades_per")
        .replace("# gaps", "gaps")
    )
    del full["exchanges"]["synthetic"]["plugin"]
    options = msgspec.convert(full["exchanges"]["synthetic"], SyntheticOptions)
    assert options == SyntheticOptions()
    assert set(full["exchanges"]["synthetic"]) == set(SyntheticOptions.__struct_fields__)
    assert all(interval in (FOLDER / "README.md").read_text() for interval in INTERVALS)


def test_symbols_of_any_case_are_themselves():
    span = Span(MARCH, MARCH + HOUR)
    lower = fetch("trade", span, "btc/usdt")
    assert lower.series.symbol == Symbol("btc", "usdt")
    assert lower.fields["price"].floats().mean() > 20_000
