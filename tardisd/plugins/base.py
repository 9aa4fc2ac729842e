"""What every plugin is: a named class with typed options and a lifetime; does no I/O itself."""

from __future__ import annotations

from abc import ABC
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec

from tardisd.plugins.host import Alone, Board, Host

if TYPE_CHECKING:
    from tardisd.plugins.sessions import Sessions
    from tardisd.venue.book import BudgetBook

KINDS = ("exchange", "storage", "sink", "analyzer", "format")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of plugin options: frozen, unknown keys refused. Subclass it with the same flags.

    A field's `Meta(description=…)` becomes the comment in `config.example.toml`; a field of type
    `Secret` is never printed. Raise ValueError in `__post_init__` for what types cannot say.
    """


OptionsT = TypeVar("OptionsT", bound=Options)


def _own_budgets() -> BudgetBook:
    from tardisd.venue.book import BudgetBook  # noqa: PLC0415 - trio, which tardisctl never needs

    return BudgetBook()


@dataclass(frozen=True, slots=True)
class Context:
    """What the daemon hands to a plugin instance.

    `name` is the instance's section name in the config (`[sinks.ws]` → `ws`), `data_dir` a folder
    the daemon may write to, `sessions` the way to create and control replays, `budgets` the rate
    budgets of venues, which instances that talk to one address share. `host` is the daemon itself:
    its storages and figures. `board` is where instances offer each other what the core knows
    nothing of.
    """

    name: str
    data_dir: Path
    sessions: Sessions
    budgets: BudgetBook = field(default_factory=_own_budgets)
    host: Host = field(default_factory=Alone)
    board: Board = field(default_factory=Board)

    def offer(self, topic: str, thing: Any) -> AbstractContextManager[None]:
        """Offer something to the other instances for as long as the block lasts."""
        return self.board.offer(topic, thing, self.name)


class Plugin(ABC, Generic[OptionsT]):
    """Base of all plugins. Construction does no I/O; `run` is the instance's whole lifetime.

    `run` has `start_secs` until its yield, and `stop_secs` after it, before it is cancelled.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = Options
    start_secs: ClassVar[float] = 60.0
    stop_secs: ClassVar[float] = 15.0

    def __init__(self, options: OptionsT, context: Context) -> None:
        self.options = options
        self.context = context

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Hold the instance open; entered before any other call and left after the last.

        It may own a nursery. An exception before the yield means that the instance cannot start:
        raise PluginError or StorageError with what to do. Cancellation may come at any await.
        """
        yield

    def claims(self) -> frozenset[str]:
        """Return what only one instance can hold at a time: `tcp port 8001`, `file /x/y`.

        When a configuration is read again, the new form of an instance is started beside the old
        one; where their claims meet, the old one is stopped first. Asked before `run`.
        """
        return frozenset()

    async def probe(self) -> None:
        """Return when the instance is usable; raise PluginError when it is not."""
