"""The analyzer `indicators`: its options, and how much of the past a session needs; computes none.

What it derives from candles of 1m is called `indicator_1m_rsi_14`, of the same exchange and symbol.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from tardisd.market.time import EARLIEST, LATEST
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.base import Context, Options
from tardisd.plugins.sessions import SessionRequest

from .analysis import IndicatorAnalysis, Recipe

# What a session takes from one analyzer: 64 derived ticks for each one that it looks at.
MOST_OUTPUTS = 64


class IndicatorsOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the indicators."""

    indicators: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="what to compute of every series of candles; the README has them all",
        ),
    ] = (
        "sma_20",
        "ema_50",
        "rsi_14",
        "macd_12_26_9",
        "bollinger_20_2",
        "atr_14",
        "vwap",
        "doji",
        "engulfing",
    )
    decimals: Annotated[
        int, Meta(ge=0, le=12, description="digits after the point that values are rounded to")
    ] = 8

    def __post_init__(self) -> None:
        outputs = self.recipe().outputs
        if outputs > MOST_OUTPUTS:
            raise ValueError(
                f"indicators: {outputs} values for each candle, {MOST_OUTPUTS} are allowed;"
                " use a second analyzer for some of them"
            )

    def recipe(self) -> Recipe:
        """Return what is to be computed; ValueError names what is unknown."""
        return Recipe.of(self.indicators, self.decimals)


class Indicators(Analyzer[IndicatorsOptions]):
    """Computes indicators of every series of candles in a session, stored or built on the fly."""

    name: ClassVar[str] = "indicators"
    Options: ClassVar[type[IndicatorsOptions]] = IndicatorsOptions
    consumes = frozenset({"candle"})

    def __init__(self, options: IndicatorsOptions, context: Context) -> None:
        super().__init__(options, context)
        self._recipe = options.recipe()

    @property
    def warmup(self) -> int:
        """All there is: for a session that is not known, whose candles may be months."""
        return LATEST - EARLIEST

    def warmup_for(self, request: SessionRequest) -> int:
        """Return what the longest candles of the session need."""
        types = [one.data_type for one in (*request.series, *request.derive)]
        needs = [self._recipe.warmup(it.interval) for it in types if it.interval is not None]
        return max(needs) + request.publish_delay if needs else 0

    def start(self, request: SessionRequest) -> IndicatorAnalysis:
        """Begin with candles as a session releases them."""
        opens = request.release == "open-lookahead"
        return IndicatorAnalysis(self._recipe, None if opens else request.publish_delay)
