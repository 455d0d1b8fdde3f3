"""Money that comes and goes outside the API, and what its coming sets off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import events, ledger, refunds, reversals
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World


def add(world: World, owner: str, amount: int, currency: str) -> Obj:
    """A top-up: available at once."""
    entry = ledger.post(world, owner, amount=amount, currency=currency, kind="topup", source=None, description="Top-up")
    world.funds_arrived(owner, currency, announce=True)
    return entry


def pay_out(world: World, owner: str, currency: str | None = None) -> list[Obj]:
    """Send everything available to the bank, so that reversals find nothing."""
    entries = []
    for who, each in list(world.balances):
        amount = ledger.available(world, who, each)
        if who == owner and currency in {None, each} and amount > 0:
            entries.append(
                ledger.post(
                    world,
                    owner,
                    amount=-amount,
                    currency=each,
                    kind="payout",
                    source=None,
                    description="Payout",
                )
            )
    return entries


def arrived(world: World, owner: str, currency: str, announce: bool) -> None:  # noqa: FBT001
    """Waiting refunds and waiting reversals are served first, then `balance.available` tells of it.

    For sellers it is also told for a transfer that is available at once: a platform that waits for a seller's
    funds would otherwise never hear of them.
    """
    if owner == world.platform:
        refunds.pay_waiting(world, owner, currency)
    else:
        reversals.take_waiting(world, owner, currency)
    if announce:
        events.emit(world, owner, "balance.available", ledger.as_object(world, owner))
