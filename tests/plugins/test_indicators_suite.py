"""The indicators do what every analyzer must, over long and short candles, sparse ones too."""

from __future__ import annotations

from contextlib import asynccontextmanager

import numpy as np

from tardisd.market.series import Series
from tardisd.testing.analyzer import START, AnalyzerSuite, analyzer_context
from tardisd.testing.ticks import random_candles
from tardisd_indicators.catalogue import KNOWN
from tardisd_indicators.plugin import Indicators, IndicatorsOptions


class IndicatorsSuite(AnalyzerSuite):
    options = IndicatorsOptions()

    @asynccontextmanager
    async def analyzer(self, folder):
        plugin = Indicators(self.options, analyzer_context(folder))
        async with plugin.run():
            yield plugin


class TestAsItComes(IndicatorsSuite):
    pass


class TestEveryOneOfThem(IndicatorsSuite):
    """Candles enough for a session to be begun in their middle, with holes of every length."""

    options = IndicatorsOptions(indicators=KNOWN, decimals=12)

    def ticks(self):
        found = []
        for seed, text in enumerate(("binance:BTC/USDT@candle_1m", "okx:PEPE/USDT@candle_1M")):
            price, step = (("65000", "0.01"), ("0.00001", "0.000000001"))[seed]
            candles = random_candles(
                Series.parse(text), (5000, 70)[seed], START, seed, base_price=price, tick_size=step
            )
            draw = np.random.default_rng(seed)
            kept = draw.random(len(candles)) > 0.02
            for hole in (1500, 2200, 2900, 4200):
                kept[hole : hole + int(draw.integers(1, 700))] = False
            found.append(candles[kept])
        return found
