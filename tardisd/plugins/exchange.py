"""The contract of exchange plugins: where market data comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio

from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.base import OptionsT, Plugin


@dataclass(frozen=True, slots=True)
class Availability:
    """How much of a data type a venue gives; `hint` says where the rest can be had."""

    since: int | None = None
    depth_ns: int | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One fetched, checked step: the rows of `span`, complete for it but for its `holes`.

    `gaps` are the holes within `span` whose cause the venue is known to have (exchange_down, …);
    `source` says where the rows come from, for the provenance kept with them; `holes` are parts of
    `span` of which the page knows nothing: they do not become covered.
    """

    batch: Batch
    span: Span
    gaps: tuple[Gap, ...] = ()
    source: str = ""
    holes: tuple[Span, ...] = ()

    @property
    def covered(self) -> Coverage:
        """What the page proves to be complete: its span without the holes."""
        return Coverage([self.span]).subtract(Coverage(self.holes))


class Exchange(Plugin[OptionsT]):
    """A venue. Safe to call from several tasks at once."""

    @abstractmethod
    def data_types(self) -> Mapping[str, Availability]:
        """Return what the venue can give, by data type name (`trade`, `candle_1m`, …)."""

    @abstractmethod
    async def instruments(self) -> Sequence[Instrument]:
        """Return the instruments that the venue lists."""

    @abstractmethod
    async def server_time(self) -> int:
        """Return the venue's clock (ns); it decides which candles are closed."""

    @abstractmethod
    def fetch(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Page]]:
        """Open a stream of pages that cover `span` in order, without holes between page spans.

        Rows are in the venue's order, each inside its page's span (candles by their open), candles
        closed: the last page ends early where the venue's clock does, and no page comes for what
        lies ahead of it. Raises RequestError for what the venue does not have, PluginError for
        what may pass.
        """
