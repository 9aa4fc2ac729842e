"""What the player on the terminal shows of what it is told."""

from __future__ import annotations

from rich.console import Console

from tardisd.cli.player import CHART_WIDTH, MOST_ROWS, Picture, draw

MINUTE = 60_000
BTC = {"exchange": "binance", "symbol": "BTC/USDT"}


def trade(at, price):
    return {**BTC, "channel": "trade", "timestamp": at, "price": price, "amount": 1.0}


def candle(at, close, interval="1m", **more):
    fields = {"channel": f"candle_{interval}", "timestamp": at, "close": close, "volume": 2.0}
    return {**BTC, **fields, **more}


def shown(picture):
    console = Console(width=100, file=None)
    with console.capture() as capture:
        console.print(draw(picture, "title", "footer"))
    return capture.get()


def test_a_session_of_trades_has_a_chart_of_their_prices():
    picture = Picture()
    picture.status = {"speed": 60}
    assert "waiting" not in shown(picture)  # there is no symbol yet
    for second in range(0, 600, 10):
        tick = trade(second * 1000, 100.0 + second)
        picture.take("session.ticks", {"data": [tick]})
    [track] = picture.tracks.values()
    # At 60x a column is a minute: the last price of each.
    assert list(track.trail) == [(minute, 150.0 + 60 * minute) for minute in range(10)]
    text = shown(picture)
    assert "binance:BTC/USDT@trade prices" in text
    assert "█" in text
    assert "690.00" in text


def test_at_max_the_columns_of_trades_span_the_session():
    picture = Picture()
    picture.status = {"speed": "max", "start_time": 0, "end_time": CHART_WIDTH * MINUTE}
    for minute in range(CHART_WIDTH):
        ticks = [trade(minute * MINUTE, 1.0), trade(minute * MINUTE + 1, 2.0)]
        picture.take("session.ticks", {"data": ticks})
    [track] = picture.tracks.values()
    assert list(track.trail) == [(minute, 2.0) for minute in range(CHART_WIDTH)]


def test_series_are_charted_one_at_a_time():
    """Neither candles of two lengths nor those of two venues are points of one curve."""
    picture = Picture()
    picture.status = {"speed": 60}
    for minute in range(60):
        ticks = [candle(minute * MINUTE, 100.0 + minute), trade(minute * MINUTE, 7.0)]
        picture.take("session.ticks", {"data": ticks})
    hour = candle(0, 5000.0, "1h")
    picture.take("session.ticks", {"data": [hour, candle(0, 900.0, "1h", exchange="okx")]})
    picture.take("session.ticks", {"data": [{**BTC, "channel": "indicator_x", "value": 1.0}]})
    orders = ["binance:BTC/USDT@candle_1m closes", "binance:BTC/USDT@candle_1h closes"]
    orders += ["binance:BTC/USDT@trade prices", "okx:BTC/USDT@candle_1h closes"]
    charted = []
    for title in [*orders, orders[0]]:
        text = shown(picture)
        assert title in text
        charted.append(text[text.index(title) :])
        picture.chart_next()
    assert "159.00" in charted[0]
    assert "100.00" in charted[0]
    assert "5,000" not in charted[0]
    assert "900.00" in charted[3]
    assert charted[4] == charted[0]
    assert [track.ticks for track in picture.tracks.values()] == [60, 60, 1, 1]
    assert "BTC/USDT" in picture.line()


def test_a_candle_that_forms_is_the_last_price_and_not_charted():
    picture = Picture()
    picture.take("session.ticks", {"data": [candle(0, 5.0), candle(MINUTE, 9.0, closed=False)]})
    [track] = picture.tracks.values()
    assert (track.last, track.volume, list(track.trail)) == (9.0, 2.0, [(0, 5.0)])


def test_of_many_series_the_charted_one_is_always_among_those_shown():
    picture = Picture()
    picture.chart_next()  # there is nothing yet
    symbols = [f"A{number:02}/USDT" for number in range(30)]
    picture.take("session.ticks", {"data": [candle(0, 1.0, symbol=name) for name in symbols]})
    for name in [*symbols, *symbols[:2]]:
        text = shown(picture)
        assert text.count(f"binance:{name}@candle_1m ") == 2
        assert f"{MOST_ROWS} of 30 series" in text
        assert len(text.splitlines()) <= 31
        picture.chart_next()
    picture.take("session.notice", {"type": "reset"})
    assert "closes" not in shown(picture)
    picture.chart_next()
