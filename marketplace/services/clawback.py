"""What the sellers of an order owe, or get back: levelled after whatever changes what the buyer has got back, by
refunds or disputes.

What each seller must have given is a function of the facts that stand now (``shares.targets``). Where less was taken,
the rest is owed; where more was taken in the name of refunds and disputes, it is given back. So any order of events,
any number of times, ends in the same place. What was taken by other hands counts as taken, and is never given back by a
program.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog
from django.db import transaction
from django.db.models import Sum

from marketplace import money
from marketplace.errors import UnknownOrder, Unwanted
from marketplace.gateway.contract import AlreadyReversed, InsufficientFunds, Refused
from marketplace.models import (
    Dispute,
    Order,
    Refund,
    RefundItem,
    SellerTransfer,
    Source,
    TransferReversal,
    taking_back,
)
from marketplace.services import debts, give_backs, outcomes, reversal_claims, reversal_settling, reversals
from marketplace.services.reversal_claims import Claimed
from marketplace.services.reversal_settling import ReversalAnswer
from marketplace.shares import Loss, RefundCommission, Sale, targets
from marketplace.states import OrderStatus, RefundStatus, ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)

NOT_REFUNDED = (RefundStatus.FAILED, RefundStatus.CANCELED)
# Causes of our own: what went back to the buyer. The others are a person's, or Stripe's.
OWN = frozenset({TransferReversal.Cause.REFUND, TransferReversal.Cause.DISPUTE})


def locked(what: str, *ways: tuple[str, str]) -> taking_back.Found:
    """The paid order of a refund or dispute, found by the first of the ``ways`` (how, Stripe's id) that leads to one.

    Orders are locked first and transfers after them, by everyone: no two refunds of an order decide at once.
    Raises ``UnknownOrder``; ``what`` is for its message.
    """
    found = None
    for by, stripe_id in ways:
        found = found or (taking_back.found(by, stripe_id) if stripe_id else None)
    if found is None:
        raise UnknownOrder(f"{what} {' or '.join(stripe_id for _, stripe_id in ways[:-1] if stripe_id)}")
    if found.order.status == OrderStatus.PENDING:
        raise UnknownOrder(f"{what} order {found.order.pk}, of whose payment we have not heard yet")
    return found


# --- What was taken ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Of a seller's share of an order, in minor units: never sent, owed back, or come back.

    ``own`` in the name of refunds and disputes; ``total`` by anybody, or left with the platform by a person's decision.
    What was netted from the share for debts of other orders is not taken: the seller has had it.
    """

    total: int
    own: int


def taken(transfer: SellerTransfer, reversals_of_it: Iterable[TransferReversal]) -> Taken:
    """What was taken of this transfer alone."""
    if transfer.status == TransferStatus.CANCELED:
        never_sent = transfer.share - transfer.amount_netted
        return Taken(total=never_sent, own=transfer.amount_kept_back if transfer.declined else never_sent)
    came_back = still_owed = settled = own = 0
    for reversal in reversals_of_it:
        if reversal.status == ReversalStatus.SUCCEEDED:
            wanted = reversal.amount
            came_back += wanted
        else:
            wanted = reversal.amount_open if _stands(reversal) else 0
            still_owed += wanted
        settled += reversal.amount_settled
        own += wanted + reversal.amount_recovered if reversal.cause in OWN else 0
    return Taken(
        # Rows of an older program may know of an amount without its reversals. What is owed comes on top of it.
        total=transfer.amount_kept_back + max(came_back, transfer.amount_reversed) + still_owed + settled,
        own=transfer.amount_kept_back + own,
    )


def _stands(reversal: TransferReversal) -> bool:
    # One that Stripe gave up has a row in its place.
    return reversal.status != ReversalStatus.CANCELED and not reversal.is_replaced


# --- What has to be taken ---------------------------------------------------------------------------------------------


def counts(refund: Refund) -> bool:
    """Whether the buyer has got it, and has not sent it back."""
    return refund.succeeded_at is not None and refund.status not in NOT_REFUNDED


def losses(refunds: Sequence[Refund]) -> list[Loss]:
    """What went back to the buyer by these refunds; of those by items, whose goods."""
    by_items = [refund.pk for refund in refunds if refund.by_items]
    goods: dict[int, list[tuple[int, int]]] = {number: [] for number in by_items}
    if by_items:
        listed = RefundItem.objects.filter(refund__in=by_items)
        for number, seller, amount in listed.values_list("refund_id", "item__seller_id", "amount"):
            goods[number].append((seller, amount))
    return [loss(refund.amount, goods.get(refund.pk, ())) for refund in refunds]


def lost_by(disputes: Iterable[Dispute]) -> list[Loss]:
    """What counts as lost by these disputes now."""
    return [loss(each.amount_lost, ()) for each in disputes if each.amount_lost]


def loss(amount: int, goods: Sequence[tuple[int, int]]) -> Loss:
    """``goods`` as (seller, amount)."""
    items: dict[int, int] = {}
    for seller, of_it in goods:
        items[seller] = items.get(seller, 0) + of_it
    return Loss(amount=amount, items=items)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A transfer as far as it matters to what its seller has to give: amounts in minor units."""

    seller: int
    share: int
    taken: int
    # It pays again what had been taken, and so is no share of the sale.
    is_again: bool = False
    is_unsent: bool = False


def plan(order: Order, losses: Sequence[Loss], holdings: Sequence[Holding]) -> list[int]:
    """What has to be taken of each transfer now, in minor units; all transfers of the order, by id: so a tie for a cent
    is always decided alike. Of a seller's transfers those that were not sent yet give first.

    It depends on all that was lost alone, not on the steps that led there: computing it twice changes nothing, and
    rounding cannot pile up. Who bears the commission stands in the order (``shares.RefundCommission``).
    """
    must_give = _targets(order, losses, holdings)
    for holding in holdings:
        must_give[holding.seller] -= holding.taken - (holding.share if holding.is_again else 0)
    due = [0] * len(holdings)
    for at, holding in sorted(enumerate(holdings), key=lambda each: not each[1].is_unsent):
        due[at] = max(min(must_give[holding.seller], holding.share - holding.taken), 0)
        must_give[holding.seller] -= due[at]
    return due


def parts(found: taking_back.Found, loss: Loss) -> dict[str, int]:
    """Each seller's part of one more ``loss``, in minor units; those that bear none are left out. Never below zero."""
    holdings = [holding(transfer, rows) for transfer, rows in found.transfers]
    before = _standing(found)
    given = _targets(found.order, before, holdings)
    return {
        str(seller): target - given[seller]
        for seller, target in _targets(found.order, [*before, loss], holdings).items()
        if target != given[seller]
    }


def _targets(order: Order, losses: Sequence[Loss], holdings: Sequence[Holding]) -> dict[int, int]:
    shares: dict[int, int] = {}
    for holding in holdings:
        if not holding.is_again:
            shares[holding.seller] = shares.get(holding.seller, 0) + holding.share
    gross: dict[int, int] = {}
    if any(loss.items for loss in losses):
        gross = dict(order.items.values_list("seller_id").annotate(total=Sum("amount")).order_by())
    commission = RefundCommission(order.refund_commission)
    sale = Sale(amount=order.amount, commission=commission, shares=shares, gross=gross, step=money.step(order.currency))
    return targets(sale, losses)


def holding(transfer: SellerTransfer, reversals_of_it: Iterable[TransferReversal]) -> Holding:
    return Holding(
        seller=transfer.seller_id,
        share=transfer.share,
        taken=taken(transfer, reversals_of_it).total,
        is_again=transfer.gives_back_of_id is not None,
        is_unsent=transfer.is_unsent,
    )


# --- Taking and giving back -------------------------------------------------------------------------------------------


def level(found: taking_back.Found, *, source: Source, actor: str, reason: str) -> None:
    """Write down what each seller owes now, or gets back, and make it due. No call is made.

    ``source`` is what changed, and what new debts are owed for. Runs in the caller's transaction, which has locked what
    was ``found``.
    """
    holdings = [holding(transfer, rows) for transfer, rows in found.transfers]
    owed = 0
    netted: list[tuple[SellerTransfer, int]] = []
    parts = plan(found.order, _standing(found), holdings)
    for (transfer, rows), held, amount in zip(found.transfers, holdings, parts, strict=True):
        # Only what was sent can come back from Stripe. The rest paid older debts, which are owed again then.
        sent = min(amount, held.share - held.taken - transfer.amount_netted)
        if sent > 0:
            _owe(transfer, rows, sent, source=source, actor=actor, reason=reason)
        if amount > max(sent, 0):
            netted.append((transfer, amount - max(sent, 0)))
        owed += amount
    debts.undo_netting(netted, actor=actor, reason=reason)
    given = give_back(found, source=source, actor=actor, reason=reason)
    logger.debug("order_levelled", order=found.order.pk, owed=owed, given_back=given, transfers=len(holdings))


def _standing(found: taking_back.Found) -> list[Loss]:
    return [*losses([each for each in found.refunds if counts(each)]), *lost_by(found.disputes)]


def _owe(
    transfer: SellerTransfer,
    rows: Sequence[TransferReversal],
    amount: int,
    *,
    source: Source,
    actor: str,
    reason: str,
) -> None:
    for row in rows:
        # What was not wanted any more is wanted again, before anything is owed anew.
        again = min(row.unwanted_amount, amount)
        if again:
            row.change(actor=actor, reason=reason, unwanted_amount=row.unwanted_amount - again)
            amount -= again
    if amount:
        is_refund = isinstance(source, Refund)
        # A dispute that was won can be lost after all, or become larger. The row of the first time stays, also one that
        # failed: a person may have it tried again.
        earlier = [each for each in rows if each.is_owed_for(source) and each.status != ReversalStatus.CANCELED]
        reversals.owe(
            transfer,
            amount=amount,
            cause=TransferReversal.Cause.REFUND if is_refund else TransferReversal.Cause.DISPUTE,
            source=source,
            in_place_of=min(earlier, key=lambda each: each.pk) if earlier and not is_refund else None,
            actor=actor,
            reason=reason,
        )


def give_back(found: taking_back.Found, *, source: Source, actor: str, reason: str) -> int:
    """The half of ``level`` that gives; so much in all, in minor units."""
    holdings = []
    own: dict[int, int] = {}
    for transfer, rows in found.transfers:
        again = transfer.share if transfer.gives_back_of_id is not None else 0
        own[transfer.seller_id] = own.get(transfer.seller_id, 0) + taken(transfer, rows).own - again
        holdings.append(holding(transfer, rows))
    if not any(own.values()):
        return 0
    given = 0
    for seller, target in _targets(found.order, _standing(found), holdings).items():
        too_much = own[seller] - target
        if too_much > 0:
            of_seller = [each for each in found.transfers if each[0].seller_id == seller]
            give_backs.give_back(of_seller, too_much, own=OWN, source=source, actor=actor, reason=reason)
            given += too_much
    return given


# --- Settling what is no longer owed ----------------------------------------------------------------------------------


def settle(claimed: Claimed, answer: ReversalAnswer, *, actor: str, stripe_is_down: bool = False) -> outcomes.Settled:
    """As ``reversal_settling.settle``. Where the reversal was no longer owed, or not all of it, or others of ours were
    found to be at Stripe, the order is levelled then: what Stripe took all the same is given back, what was canceled
    and is owed in part is owed anew.
    """
    try:
        return reversal_settling.settle(claimed, answer, actor=actor, stripe_is_down=stripe_is_down)
    except Unwanted:
        with transaction.atomic(durable=True):
            # The order's lock comes before those of its transfers, and theirs by number: levelling needs them all.
            taking_back.found(taking_back.BY_ID, claimed.transfer.order_id)
            settled = reversal_settling.settle_step_by_step(
                claimed, answer, actor=actor, stripe_is_down=stripe_is_down, is_order_locked=True
            )
            _after_settling(claimed, answer, actor=actor)
            outcomes.count_success(reversal_claims.WORK, answer)
        return settled


def _after_settling(claimed: Claimed, answer: ReversalAnswer, *, actor: str) -> None:
    found = taking_back.found(taking_back.BY_ID, claimed.transfer.order_id)
    assert found is not None
    sources: list[Source] = [*found.refunds, *found.disputes]
    if sources:
        # A person's reversal is owed for none of them; what it found at Stripe may be.
        source = next((each for each in sources if claimed.reversal.is_owed_for(each)), sources[-1])
        is_there_already = isinstance(answer, AlreadyReversed)
        already = f"{claimed.transfer} was reversed at Stripe already"
        reason = already if is_there_already else f"{claimed.reversal} was no longer owed as it was"
        level(found, source=source, actor=actor, reason=reason)
    # After levelling, which knows the rows as they were read.
    for transfer, rows in found.transfers:
        is_unwanted = any(each.pk == claimed.reversal.pk and each.unwanted_amount for each in rows)
        # Stripe said no to what was sent before. Whether it is there is asked at once, not when it would be sent. Not
        # where it finds no transfer: it would say so again, and a person has to see to that.
        if is_unwanted and isinstance(answer, AlreadyReversed | InsufficientFunds | Refused):
            reversals.relieve(transfer, actor=actor, reason="no longer owed")
