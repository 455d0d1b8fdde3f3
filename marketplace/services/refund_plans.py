"""What a refund would take, from whom, and whether it is there: for people, before they refund."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import models
from django.utils.translation import gettext_lazy as _

from marketplace.gateway.contract import BalanceRetrieved, TransferGateway
from marketplace.models import Order, Seller, SellerTransfer
from marketplace.services import outcomes, refunds

# People wait for it. Sellers who are not asked by then are unknown.
LONGEST_ASKING_SECONDS = 10


class Covers(models.TextChoices):
    YES = "yes", _("the seller's balance covers it now")
    NO = "no", _("the seller's balance is too small now")
    UNKNOWN = "unknown", _("Stripe did not answer, or was not asked")
    NOT_NEEDED = "not_needed", _("nothing has to come back from Stripe")


@dataclass(frozen=True, kw_only=True)
class SellersPart:
    """``part`` in minor units, with whether that seller's balance at Stripe covers what all its parts need."""

    part: refunds.Part
    balance_covers: Covers


def with_balances(order: Order, planned: refunds.Planned, gateway: TransferGateway) -> list[SellersPart]:
    """Asks Stripe for each balance that is needed, until it does not answer. Opens no transaction.

    A look at this moment: money that others take in between is not set aside.
    """
    needed: dict[int, int] = {}
    for part in planned.parts:
        if _comes_back_from_stripe(part):
            needed[part.transfer.seller_id] = needed.get(part.transfer.seller_id, 0) + part.amount
    covers = _ask(list(Seller.objects.filter(pk__in=needed).order_by("pk")), needed, order.currency, gateway)
    return [
        SellersPart(
            part=part,
            balance_covers=covers.get(part.transfer.seller_id, Covers.UNKNOWN)
            if _comes_back_from_stripe(part)
            else Covers.NOT_NEEDED,
        )
        for part in planned.parts
    ]


def _comes_back_from_stripe(part: refunds.Part) -> bool:
    transfer: SellerTransfer = part.transfer
    return part.amount > 0 and (transfer.in_doubt or bool(transfer.stripe_transfer_id))


def _ask(
    sellers: Sequence[Seller], needed: dict[int, int], currency: str, gateway: TransferGateway
) -> dict[int, Covers]:
    covers: dict[int, Covers] = {}
    began = time.monotonic()
    for seller in sellers:
        if time.monotonic() - began > LONGEST_ASKING_SECONDS:
            break
        answer = gateway.retrieve_balance(stripe_account=seller.stripe_account_id)
        if isinstance(answer, BalanceRetrieved):
            enough = answer.balance.available.get(currency, 0) >= needed[seller.pk]
            covers[seller.pk] = Covers.YES if enough else Covers.NO
        elif outcomes.is_outage(answer):
            # The next one would wait as long.
            break
    return covers
