"""What one request holds of limits and budgets while it is under way: it is taken step by step, and given back once."""

from __future__ import annotations

from firstkit.accounting.budgets import Budgets
from firstkit.accounting.estimate import Estimate, Means
from firstkit.accounting.limits import Limits
from firstkit.accounting.tallies import Reservation
from firstkit.auth.permissions import Identity
from firstkit.clock import monotonic
from firstkit.gateway.request import Account
from firstkit.links.messages import Usage


class Holding:
    """Of one request, from its admission to its end."""

    __slots__ = ("_account", "_budgets", "_means", "_reservation", "_stay")

    def __init__(self, limits: Limits, identity: Identity) -> None:
        """Counts it in; raises RateLimited."""
        self._stay = limits.enter(identity, monotonic())
        self._reservation: Reservation | None = None
        self._account: Account | None = None
        self._budgets: Budgets
        self._means: Means

    def charge(self, account: Account, estimate: Estimate, budgets: Budgets, means: Means) -> int | None:
        """Take what it may need in advance. Returns how many tokens its answer may have, all choices together; None:
        as it likes. Raises RateLimited, OverLimit, BudgetSpent, or StoreUnavailable where it is not known what
        is left; what it holds then is given back by ``over`` all the same."""
        if self._stay is not None:
            self._stay.charge(account.model, estimate, monotonic())
        self._budgets, self._means, self._account = budgets, means, account
        self._reservation = reservation = budgets.reserve(account.identity, account.model, estimate, account.at)
        account.reserved = estimate.prompt + estimate.completion
        return None if reservation is None else reservation.most_completion

    def lines(self) -> bytes:
        """What its sender is told of limits and budgets, as header lines."""
        lines = b"" if self._stay is None else self._stay.lines(monotonic())
        warning = None if self._reservation is None else self._reservation.warning
        return lines if warning is None else lines + b"x-first-budget-warning: %b\r\n" % _line(warning)

    def over(self, usage: Usage | None) -> None:
        """It has ended, in whatever way; to be called once. ``usage``: what was accounted; None: nothing was."""
        if self._stay is not None:
            self._stay.leave(0 if usage is None else usage.prompt_tokens + usage.completion_tokens, monotonic())
        if self._reservation is not None:
            self._budgets.settle(self._reservation)
        if usage is not None and self._account is not None:
            self._means.learn(self._account.model, usage.completion_tokens)


def _line(text: str) -> bytes:
    """``text`` as it may stand in a header."""
    return "".join(letter if letter.isprintable() else " " for letter in text).encode("ascii", "replace")
