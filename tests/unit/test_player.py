"""What the player on the terminal shows of what it is told."""

from __future__ import annotations

from rich.console import Console

from tardisd.cli.player import CHART_WIDTH, Picture, draw

MINUTE = 60_000


def trade(at, price):
    return {"channel": "trade", "symbol": "BTC/USDT", "timestamp": at, "price": price}


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
    [quote] = picture.quotes.values()
    # At 60x a column is a minute: the last price of each.
    assert list(quote.trail) == [(minute, 150.0 + 60 * minute) for minute in range(10)]
    text = shown(picture)
    assert "BTC/USDT trades" in text
    assert "█" in text
    assert "690.00" in text


def test_at_max_the_columns_of_trades_span_the_session():
    picture = Picture()
    picture.status = {"speed": "max", "start_time": 0, "end_time": CHART_WIDTH * MINUTE}
    for minute in range(CHART_WIDTH):
        ticks = [trade(minute * MINUTE, 1.0), trade(minute * MINUTE + 1, 2.0)]
        picture.take("session.ticks", {"data": ticks})
    [quote] = picture.quotes.values()
    assert list(quote.trail) == [(minute, 2.0) for minute in range(CHART_WIDTH)]


def test_candles_are_charted_when_there_are_any():
    picture = Picture()
    candle = {"symbol": "BTC/USDT", "close": 5.0, "volume": 1.0, "timestamp": 0}
    picture.take("session.ticks", {"data": [trade(0, 100.0), candle]})
    assert "BTC/USDT candle closes" in shown(picture)
