"""Columns of exact decimals; never rounds, and makes no float unless asked for one.

A column is int64 mantissas with one power-of-ten scale: value = mantissa / 10**scale. A column in
which some value does not fit int64 at the scale it needs takes the wide form instead: value =
mantissa + fraction / 10**18, both int64 and of one sign. More than 18 fraction digits, or a whole
part beyond int64, are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal, InvalidOperation

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DIGITS = 18
POWERS = tuple(10**n for n in range(DIGITS + 1))
_INT64_MAX = 2**63 - 1
_EXACT = Context(prec=120)


def check_decimal(text: str) -> Decimal:
    """Return the value of decimal text, or raise ValueError when it cannot be kept exactly."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError("not a number") from None
    if not value.is_finite():
        raise ValueError("not a finite number")
    if value.adjusted() > DIGITS and value:  # before any digit is spelt out: 1e999999 is short
        raise ValueError("too large to be kept exactly")
    _, digits, exponent = value.as_tuple()
    beyond = -DIGITS - int(exponent)
    if beyond > 0 and any(digits[-beyond:]):
        raise ValueError(f"more than {DIGITS} fraction digits")
    if abs(int(value)) > _INT64_MAX:
        raise ValueError("too large to be kept exactly")
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Decimals:
    """A column of exact decimals, each present or absent (an absent value is stored as 0)."""

    mantissa: Ints
    scale: int = 0
    fraction: Ints | None = None
    present: Bools | None = None

    def __len__(self) -> int:
        return len(self.mantissa)

    def __getitem__(self, at: slice | NDArray[np.intp] | Bools) -> Decimals:
        return Decimals(
            self.mantissa[at],
            self.scale,
            None if self.fraction is None else self.fraction[at],
            None if self.present is None else self.present[at],
        )

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Decimals:
        """Return a column of decimal text (None: absent); ValueError when one cannot be kept."""
        exact = [Decimal(0) if text is None else check_decimal(text) for text in values]
        whole = np.array([int(value) for value in exact], dtype=np.int64)
        fraction = np.array(
            [int((value - int(value)).scaleb(DIGITS)) for value in exact], dtype=np.int64
        )
        present = np.array([text is not None for text in values], dtype=np.bool_)
        return cls.from_parts(whole, fraction, None if present.all() else present)

    @classmethod
    def from_parts(cls, whole: Ints, fraction: Ints, present: Bools | None = None) -> Decimals:
        """Return the narrowest column for whole parts and fractions times 10**18."""
        scale = _needed_scale(fraction)
        if len(whole) and int(np.abs(whole).max()) > _INT64_MAX // POWERS[scale] - 1:
            return cls(whole, 0, fraction, present)
        mantissa = whole * POWERS[scale] + fraction // POWERS[DIGITS - scale]
        return cls(mantissa, scale, None, present)

    @classmethod
    def concat(cls, columns: Sequence[Decimals]) -> Decimals:
        """Return the columns one after another, at one scale that keeps them exact."""
        # Columns without rows have no say in the scale, nor in whether anything is absent.
        columns = [column for column in columns if len(column)] or columns[:1]
        if len(columns) == 1:
            return columns[0]
        present = None
        if any(column.present is not None for column in columns):
            present = np.concatenate([column.presence() for column in columns])
        scale = max(column.scale for column in columns)
        raised = [mantissa for c in columns if (mantissa := _raised(c, scale)) is not None]
        if len(raised) == len(columns):
            return cls(np.concatenate(raised), scale, None, present)
        parts = [column.parts() for column in columns]
        whole = np.concatenate([part[0] for part in parts])
        return cls.from_parts(whole, np.concatenate([part[1] for part in parts]), present)

    def presence(self) -> Bools:
        """Return a mask of the values that are present."""
        return np.ones(len(self), np.bool_) if self.present is None else self.present

    def parts(self, scale: int = DIGITS) -> tuple[Ints, Ints]:
        """Return (whole parts, fractions times 10**scale); both carry the sign.

        `scale` must be at least the column's own.
        """
        if self.fraction is not None:
            if scale == DIGITS:
                return self.mantissa, self.fraction
            return self.mantissa, self.fraction // POWERS[DIGITS - scale]
        if self.scale == 0:
            return self.mantissa, np.zeros(len(self), np.int64)
        power = POWERS[self.scale]
        whole = self.mantissa // power
        if len(whole) and int(self.mantissa.min()) < 0:  # floor division: move towards zero
            whole = whole + ((self.mantissa < 0) & (whole * power != self.mantissa))
        fraction = self.mantissa - whole * power
        if scale > self.scale:
            fraction *= POWERS[scale - self.scale]
        return whole, fraction

    @property
    def needed_scale(self) -> int:
        """The number of fraction digits that print every value exactly."""
        return self.scale if self.fraction is None else _needed_scale(self.fraction)

    def reduced(self) -> Decimals:
        """Return the same values at the smallest scale."""
        if self.fraction is not None:
            return Decimals.from_parts(self.mantissa, self.fraction, self.present)
        mantissa, scale = self.mantissa, self.scale
        # A few values bound how far it can go; one division of the whole column then settles it.
        drop = scale
        while drop and (mantissa[:64] % POWERS[drop]).any():
            drop -= 1
        while drop and (mantissa % POWERS[drop]).any():
            drop -= 1
        if not drop:
            return self
        return Decimals(mantissa // POWERS[drop], scale - drop, None, self.present)

    def times(self, factor: Decimal) -> Decimals:
        """Return the values multiplied; ValueError when a product cannot be kept exactly."""
        sign, digits, exponent = factor.as_tuple()
        if sign or not isinstance(exponent, int):
            raise ValueError(f"{factor} is not a factor")
        number = int("".join(map(str, digits))) * 10 ** max(exponent, 0)
        column = self.reduced()
        scale = column.scale + max(-exponent, 0)
        if column.fraction is None and scale <= DIGITS and 0 < number <= _INT64_MAX:
            limit = _INT64_MAX // number
            if not len(self) or int(np.abs(column.mantissa).max()) <= limit:
                return Decimals(column.mantissa * number, scale, None, self.present)
        # Python's integers have room for what is left; zeros stand where a value is absent.
        whole, fraction = self.parts()
        texts = [
            str(_EXACT.multiply(_EXACT.scaleb(Decimal(w * POWERS[DIGITS] + f), -DIGITS), factor))
            for w, f in zip(whole.tolist(), fraction.tolist(), strict=True)
        ]
        return replace(Decimals.of(texts), present=self.present)

    def texts(self) -> list[str | None]:
        """Return decimal text per value, without insignificant zeros; None where absent."""
        whole, fraction = self.parts()
        rows = zip(whole.tolist(), fraction.tolist(), self.presence().tolist(), strict=True)
        return [_text(w, f) if here else None for w, f, here in rows]

    def floats(self) -> NDArray[np.float64]:
        """Return the nearest floats (an edge that asks for them); NaN where absent."""
        if self.fraction is None:
            values = self.mantissa / float(POWERS[self.scale])
        else:
            values = self.mantissa + self.fraction / float(POWERS[DIGITS])
        if self.present is not None:
            values = np.where(self.present, values, np.nan)
        return values

    def less_than(self, other: Decimals) -> Bools:
        """Return a mask of the rows whose value is below the other column's."""
        if self.fraction is None and other.fraction is None and self.scale == other.scale:
            below: Bools = self.mantissa < other.mantissa
            return below
        (whole, fraction), (other_whole, other_fraction) = self.parts(), other.parts()
        less: Bools = (whole < other_whole) | ((whole == other_whole) & (fraction < other_fraction))
        return less

    def equals(self, other: Decimals) -> Bools:
        """Return a mask of the rows whose value and presence are the other column's."""
        if self.fraction is None and other.fraction is None and self.scale == other.scale:
            same: Bools = self.mantissa == other.mantissa
        else:
            (whole, fraction), (other_whole, other_fraction) = self.parts(), other.parts()
            same = (whole == other_whole) & (fraction == other_fraction)
        if self.present is None and other.present is None:
            return same
        same &= self.presence() == other.presence()
        return same


def _raised(column: Decimals, scale: int) -> Ints | None:
    """Return the mantissas at a larger scale, or None when one does not fit."""
    if column.fraction is not None:
        return None
    if scale == column.scale or not len(column):
        return column.mantissa
    power = POWERS[scale - column.scale]
    limit = _INT64_MAX // power
    if int(column.mantissa.max()) > limit or int(column.mantissa.min()) < -limit:
        return None
    raised: Ints = column.mantissa * power
    return raised


def _needed_scale(fraction: Ints) -> int:
    scale = DIGITS
    while scale and not (fraction % POWERS[DIGITS - scale + 1]).any():
        scale -= 1
    return scale


def _text(whole: int, fraction: int) -> str:
    sign = "-" if whole < 0 or fraction < 0 else ""
    digits = f"{abs(fraction):018d}".rstrip("0")
    return f"{sign}{abs(whole)}" + (f".{digits}" if digits else "")
