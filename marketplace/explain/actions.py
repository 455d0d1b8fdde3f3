"""What a person may do about a transfer now. The services' own refusals decide, so a button never promises too much."""

from collections.abc import Iterable
from datetime import datetime

from django.contrib.auth.models import AnonymousUser, User

from marketplace.explain.shapes import Action
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.models.debts import OPEN
from marketplace.services import debts, give_backs, transfers

RETRY = "marketplace.retry_sellertransfer"
DECLINE = "marketplace.decline_sellertransfer"
WRITE_OFF = "marketplace.write_off_debt"


def of(transfer: SellerTransfer, *, user: User | AnonymousUser | None, now: datetime) -> tuple[Action, ...]:
    """``user`` None: whoever has the permission. ``now`` is the database's."""
    retry = Action(name="retry", title="Retry", permission=RETRY, refusal=transfers.why_no_retry(transfer))
    try_now = Action(
        name="try_now", title="Try now", permission=RETRY, refusal=transfers.why_not_now(transfer, now=now)
    )
    enter = Action(
        name="enter_transfer_id",
        title="Enter the Stripe id",
        permission=RETRY,
        refusal=transfers.why_no_id(transfer),
    )
    decline = Action(name="decline", title="Decline", permission=DECLINE, refusal=give_backs.why_no_decline(transfer))
    found = [retry, try_now, enter, *_write_offs(transfer.reversals.filter(OPEN).order_by("id")), decline]
    return tuple(found if user is None else (_for(user, action) for action in found))


def _write_offs(owed: Iterable[TransferReversal]) -> list[Action]:
    return [
        Action(
            name="write_off",
            title=f"Write off debt {debt.pk}",
            permission=WRITE_OFF,
            refusal=debts.why_not_settled_by_hand(debt),
            debt=debt.pk,
        )
        for debt in owed
    ]


def _for(user: User | AnonymousUser, action: Action) -> Action:
    if action.refusal or user.has_perm(action.permission):
        return action
    return Action(
        name=action.name,
        title=action.title,
        permission=action.permission,
        refusal=f"this needs the permission {action.permission}",
        debt=action.debt,
    )
