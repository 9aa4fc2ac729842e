"""The budgets of all venues that one daemon talks to: one per address, whoever asks for it.

It spends nothing and asks no venue.
"""

from __future__ import annotations

from collections.abc import Sequence

from tardisd.venue.budget import Bans, Budget, Limit


class BudgetBook:
    """Hands out budgets; the daemon gives each plugin instance a `page` of its one book."""

    def __init__(self, bans: Bans | None = None) -> None:
        self._bans = bans
        self._budgets: dict[str, Budget] = {}
        self._opened: dict[str, Budget] = {}

    def page(self) -> BudgetBook:
        """Return a book of the same budgets that notes by itself which were asked of it."""
        page = BudgetBook(self._bans)
        page._budgets = self._budgets
        return page

    def of(self, address: str, limits: Sequence[Limit], share: float) -> Budget:
        """Return the budget of a venue's address (such as `api.venue.com`), made when first asked.

        It knows all limits it was ever asked for with; where two users name different shares of one
        limit, the smaller holds, until who named it has left.
        """
        budget = self._budgets.get(address)
        if budget is None:
            budget = Budget(address, limits, share, self._bans, user=self)
            self._budgets[address] = budget
        else:
            for limit in limits:
                budget.add(limit, share, self)
        self._opened[address] = budget
        return budget

    @property
    def opened(self) -> Sequence[Budget]:
        """The budgets that were asked of this book."""
        return tuple(self._opened.values())

    def leave(self) -> None:
        """Have the budgets forget the shares that were named through this book."""
        for budget in self._opened.values():
            budget.leave(self)
