"""The indicators by name: how each is computed, and how much it needs to have seen.

Names are those of the configuration, `ema_50` or `macd_12_26_9`. Nothing here keeps state: an
indicator is a function of columns, whose values at a row depend on that row and those before it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tardisd.errors import Unavailable

try:
    import talib
except ImportError:
    raise Unavailable(
        "package TA-Lib is missing or does not fit", "pip install 'tardisd[indicators]'"
    ) from None

Floats = NDArray[np.float64]
Outputs = Sequence[NDArray[np.float64] | NDArray[np.int32]]

LARGEST_PERIOD = 500
# After so many times its period, nothing that a float can tell is left of what an average that
# weighs the past exponentially saw before: (1 - 1/n)**(37 n) < 1e-16.
_FORGETS = 37
_PATTERN_CANDLES = 40  # TA-Lib's patterns look at the last 10 or so, to know what is long or short


@dataclass(frozen=True, slots=True)
class Columns:
    """Candles as TA-Lib takes them."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


@dataclass(frozen=True, slots=True)
class Indicator:
    """One indicator. `outputs` are what its series' names end in: nothing, or `_upper`.

    `memory` is the number of candles whose values it depends on. `priced` outputs are in units of
    price. A `sparse` one says something now and then: 0 is nothing.
    """

    name: str
    outputs: tuple[str, ...]
    memory: int
    compute: Callable[[Columns], Outputs]
    priced: bool = False
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class _Family:
    """Indicators that differ by their numbers, `least` of which are the smallest allowed.

    `example` is how one of them is written.
    """

    example: str
    make: Callable[..., Indicator]
    least: tuple[int, ...]


def _sma(name: str, n: int) -> Indicator:
    return Indicator(name, ("",), n, lambda c: [talib.SMA(c.close, n)], priced=True)


def _ema(name: str, n: int) -> Indicator:
    memory = _FORGETS * (n + 1) // 2 + n
    return Indicator(name, ("",), memory, lambda c: [talib.EMA(c.close, n)], priced=True)


def _wma(name: str, n: int) -> Indicator:
    return Indicator(name, ("",), n, lambda c: [talib.WMA(c.close, n)], priced=True)


def _roc(name: str, n: int) -> Indicator:
    return Indicator(name, ("",), n + 1, lambda c: [talib.ROC(c.close, n)])


def _rsi(name: str, n: int) -> Indicator:
    return Indicator(name, ("",), (_FORGETS + 1) * n, lambda c: [talib.RSI(c.close, n)])


def _atr(name: str, n: int) -> Indicator:
    return Indicator(
        name, ("",), (_FORGETS + 1) * n, lambda c: [talib.ATR(c.high, c.low, c.close, n)],
        priced=True,
    )  # fmt: skip


def _adx(name: str, n: int) -> Indicator:
    # An average of averages: each of them has to forget.
    return Indicator(
        name, ("",), 2 * (_FORGETS + 1) * n, lambda c: [talib.ADX(c.high, c.low, c.close, n)]
    )


def _cci(name: str, n: int) -> Indicator:
    return Indicator(name, ("",), n, lambda c: [talib.CCI(c.high, c.low, c.close, n)])


def _mfi(name: str, n: int) -> Indicator:
    def compute(c: Columns) -> Outputs:
        return [talib.MFI(c.high, c.low, c.close, c.volume, n)]

    return Indicator(name, ("",), n + 1, compute)


def _macd(name: str, fast: int, slow: int, signal: int) -> Indicator:
    if fast >= slow:
        raise ValueError(f"the first number is the faster one, below {slow}")
    memory = _ema("", slow).memory + _ema("", signal).memory
    outputs = ("_line", "_signal", "_histogram")
    return Indicator(
        name, outputs, memory, lambda c: talib.MACD(c.close, fast, slow, signal), priced=True
    )


def _bollinger(name: str, n: int, width: int) -> Indicator:
    return Indicator(
        name, ("_upper", "_middle", "_lower"), n, partial(_bands, n, float(width)), priced=True
    )


def _bands(n: int, width: float, columns: Columns) -> Outputs:
    # TA-Lib takes the variance as the difference of two large numbers; near zero they are small.
    base = columns.close[0]
    return [band + base for band in talib.BBANDS(columns.close - base, n, width, width)]


def _stochastic(name: str, n: int, slow: int, signal: int) -> Indicator:
    def compute(c: Columns) -> Outputs:
        return talib.STOCH(
            c.high, c.low, c.close, fastk_period=n, slowk_period=slow, slowd_period=signal
        )

    return Indicator(name, ("_k", "_d"), n + slow + signal, compute)


FAMILIES: Mapping[str, _Family] = {
    "sma": _Family("sma_20", _sma, (2,)),
    "ema": _Family("ema_50", _ema, (2,)),
    "wma": _Family("wma_20", _wma, (2,)),
    "rsi": _Family("rsi_14", _rsi, (2,)),
    "macd": _Family("macd_12_26_9", _macd, (2, 3, 2)),
    "bollinger": _Family("bollinger_20_2", _bollinger, (2, 1)),
    "atr": _Family("atr_14", _atr, (2,)),
    "adx": _Family("adx_14", _adx, (2,)),
    "stochastic": _Family("stochastic_14_3_3", _stochastic, (2, 1, 1)),
    "roc": _Family("roc_10", _roc, (1,)),
    "cci": _Family("cci_20", _cci, (2,)),
    "mfi": _Family("mfi_14", _mfi, (2,)),
}
PATTERNS: Mapping[str, str] = {
    "dark_cloud_cover": "CDLDARKCLOUDCOVER",
    "doji": "CDLDOJI",
    "dragonfly_doji": "CDLDRAGONFLYDOJI",
    "engulfing": "CDLENGULFING",
    "evening_star": "CDLEVENINGSTAR",
    "gravestone_doji": "CDLGRAVESTONEDOJI",
    "hammer": "CDLHAMMER",
    "hanging_man": "CDLHANGINGMAN",
    "harami": "CDLHARAMI",
    "inverted_hammer": "CDLINVERTEDHAMMER",
    "marubozu": "CDLMARUBOZU",
    "morning_star": "CDLMORNINGSTAR",
    "piercing": "CDLPIERCING",
    "shooting_star": "CDLSHOOTINGSTAR",
    "spinning_top": "CDLSPINNINGTOP",
    "three_black_crows": "CDL3BLACKCROWS",
    "three_white_soldiers": "CDL3WHITESOLDIERS",
}
VWAP = "vwap"
KNOWN = (*(family.example for family in FAMILIES.values()), VWAP, *PATTERNS)


def _pattern(name: str) -> Indicator:
    function = getattr(talib, PATTERNS[name])

    def compute(c: Columns) -> Outputs:
        return [function(c.open, c.high, c.low, c.close)]

    return Indicator(name, ("",), _PATTERN_CANDLES, compute, sparse=True)


def indicator(name: str) -> Indicator | None:
    """Return the indicator of that name, None for `vwap`, which is not a function of a window.

    Raises ValueError that says which ones there are.
    """
    if name == VWAP:
        return None
    if name in PATTERNS:
        return _pattern(name)
    word, *numbers = name.split("_")
    family = FAMILIES.get(word)
    if family is None:
        near = difflib.get_close_matches(name, KNOWN, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name[:60]!r} is not an indicator; {hint}known: {', '.join(KNOWN)}")
    least = family.least
    if len(numbers) != len(least) or not all(re.fullmatch(r"[1-9]\d{0,3}", it) for it in numbers):
        raise ValueError(f"{name[:60]!r} is not an indicator; write it as {family.example!r}")
    found = [int(number) for number in numbers]
    for number, smallest in zip(found, least, strict=True):
        if not smallest <= number <= LARGEST_PERIOD:
            raise ValueError(
                f"{name!r}: {number} is not within {smallest}..{LARGEST_PERIOD};"
                f" write it as {family.example!r}"
            )
    try:
        return family.make(name, *found)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None
