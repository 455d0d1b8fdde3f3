"""Refunds and lost disputes whose sellers have not given their part: the leak, in money.

Of our own orders by what each order says (``clawback.plan``); of charges that were paid out before this program was
installed, or by another one, by Stripe's transfers alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from django.conf import settings

from marketplace import money
from marketplace.gateway.contract import ChargeFacts, DisputeFacts, RefundFacts
from marketplace.models import Dispute, Order, Refund
from marketplace.services import clawback, disputes
from marketplace.shares import Loss, RefundCommission, Sale, targets
from marketplace.states import RefundStatus

SUCCEEDED = RefundStatus.SUCCEEDED


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What went back to the buyer of one charge, as Stripe says: all of it, or what one page shows."""

    charge: ChargeFacts
    refunds: Sequence[RefundFacts] = ()
    disputes: Sequence[DisputeFacts] = ()


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What one seller has not given, in the minor unit of ``currency``; ``stripe_transfer_ids`` are where it is."""

    stripe_account_id: str
    amount: int
    currency: str
    stripe_transfer_ids: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A transfer without a row of ours."""

    stripe_transfer_id: str
    destination: str
    currency: str
    amount: int
    amount_reversed: int


# --- Of our orders ----------------------------------------------------------------------------------------------------


def unrecorded(order: Order, refunds: Iterable[RefundFacts]) -> list[RefundFacts]:
    """Refunds that succeeded at Stripe and do not count here; or that failed, and count.

    One that we ask Stripe for just now is none: the worker goes on with it.
    """
    found = []
    for facts in refunds:
        row = _row(order, facts)
        if row is not None and row.status == RefundStatus.REQUESTED:
            continue
        counts = row is not None and clawback.counts(row)
        if counts != (facts.status == SUCCEEDED) and (not counts or facts.status in clawback.NOT_REFUNDED):
            found.append(facts)
    return found


def differing(order: Order, refunds: Iterable[RefundFacts]) -> list[tuple[Refund, RefundFacts]]:
    """Of which our row has another amount or currency."""
    found = [(_row(order, facts), facts) for facts in refunds]
    return [
        (row, facts)
        for row, facts in found
        if row is not None and (row.amount, row.currency) != (facts.amount, facts.currency)
    ]


def unlisted(order: Order, refunds: Iterable[RefundFacts]) -> list[Refund]:
    """Refunds of ours that Stripe does not have among all those of the charge; of one that failed no money moved."""
    listed = {facts.stripe_refund_id for facts in refunds}
    ours = [each for each in order.refunds.all() if each.stripe_refund_id and each.stripe_refund_id not in listed]
    return [each for each in ours if each.status not in clawback.NOT_REFUNDED]


def _row(order: Order, facts: RefundFacts) -> Refund | None:
    rows = list(order.refunds.all())
    by_id = next((each for each in rows if each.stripe_refund_id == facts.stripe_refund_id), None)
    return by_id or next((each for each in rows if str(each.operation_id) == facts.operation_id), None)


def as_of_now(order: Order, facts: RefundFacts) -> RefundFacts:
    """What a list says of a refund is newer than all that we heard, and does not tell when, by Stripe's clock. So
    it counts as told in the second of the last event, and one that comes later has the last word.
    """
    row = _row(order, facts)
    known = row.stripe_seen_at if row is not None else None
    return facts if known is None else replace(facts, seen_at=max(facts.seen_at, known))


@dataclass(frozen=True, kw_only=True)
class DisputeNews:
    """What Stripe says of a dispute, the row as it is, if there is one, and as it would be."""

    facts: DisputeFacts
    before: Dispute | None
    row: Dispute


def unrecorded_disputes(order: Order, told: Iterable[DisputeFacts]) -> list[DisputeNews]:
    """Those of which something else counts as lost by what Stripe says; or of which a person has to say it."""
    found = []
    for facts in told:
        if facts.status == disputes.LOST and not facts.is_withdrawn:
            # Nobody took any money.
            continue
        row = _dispute_row(order, facts)
        now = disputes.foreseen(dispute_as_of_now(order, facts), row, order)
        before = row or Dispute()
        if now and (now.amount_lost, now.last_error_code) != (before.amount_lost, before.last_error_code):
            found.append(DisputeNews(facts=facts, before=row, row=now))
    return found


def _dispute_row(order: Order, facts: DisputeFacts) -> Dispute | None:
    return next((each for each in order.disputes.all() if each.stripe_dispute_id == facts.stripe_dispute_id), None)


def dispute_as_of_now(order: Order, facts: DisputeFacts) -> DisputeFacts:
    """As ``as_of_now``, and a second later: what changed since the last event may be a step back, from won to lost."""
    row = _dispute_row(order, facts)
    known = facts.seen_at if row is None else row.stripe_seen_at + timedelta(seconds=1)
    return replace(facts, seen_at=max(facts.seen_at, known))


def of_order(order: Order, told: Losses) -> list[Leak]:
    """What each seller owes by what Stripe says, and our rows do not ask for."""
    news = unrecorded(order, told.refunds)
    gone = {facts.stripe_refund_id for facts in news if facts.status != SUCCEEDED}
    standing = [row for row in order.refunds.all() if clawback.counts(row) and row.stripe_refund_id not in gone]
    told_now = [(_row(order, facts), facts) for facts in news if facts.status == SUCCEEDED]
    # A row of ours knows whose goods it is for.
    ours = [row for row, facts in told_now if row is not None and row.amount == facts.amount]
    losses = clawback.losses([*standing, *ours])
    losses += [clawback.loss(facts.amount, ()) for row, facts in told_now if row not in ours]
    disputed = {each.stripe_dispute_id: each for each in order.disputes.all()}
    disputed |= {each.row.stripe_dispute_id: each.row for each in unrecorded_disputes(order, told.disputes)}
    losses += clawback.lost_by(disputed.values())
    transfers = sorted(order.transfers.all(), key=lambda each: each.pk)
    holdings = [clawback.holding(each, each.reversals.all()) for each in transfers]
    if not losses or not holdings:
        return []
    due: dict[str, int] = defaultdict(int)
    ids: dict[str, list[str]] = defaultdict(list)
    for transfer, amount in zip(transfers, clawback.plan(order, losses, holdings), strict=True):
        if amount:
            due[transfer.seller.stripe_account_id] += amount
            ids[transfer.seller.stripe_account_id].append(transfer.stripe_transfer_id or str(transfer))
    return [
        Leak(stripe_account_id=who, amount=amount, currency=order.currency, stripe_transfer_ids=ids[who])
        for who, amount in due.items()
    ]


# --- Of history -------------------------------------------------------------------------------------------------------


def lost(charge: ChargeFacts, facts: DisputeFacts) -> int:
    """What a dispute took for good of the charge, in its minor unit; nothing unless it is lost, and in its currency."""
    if facts.status != disputes.LOST or not facts.is_withdrawn or facts.currency != charge.currency:
        return 0
    return disputes.lost(facts, facts.amount)


def unclear(told: Losses) -> list[DisputeFacts]:
    """Lost in another currency than the charge's: how much of the charge, nobody can know from Stripe."""
    in_another = [each for each in told.disputes if each.currency != told.charge.currency]
    return [each for each in in_another if each.status == disputes.LOST and each.is_withdrawn]


def lost_in_all(told: Losses) -> int:
    """In the minor unit of the charge; never more than the charge."""
    refunded = sum(each.amount for each in told.refunds if each.status == SUCCEEDED)
    return min(refunded + sum(lost(told.charge, each) for each in told.disputes), told.charge.amount)


def of_history(charge: ChargeFacts, total: int, paid: Sequence[Paid]) -> list[Leak]:
    """What each account would have had to give of a ``total`` that was lost, by the present policy, and has not. Those
    of another currency than reached our balance give in proportion, less than Stripe's smallest amount to their favour.
    """
    found = []
    for currency in dict.fromkeys(each.currency for each in paid):
        of_currency = [each for each in paid if each.currency == currency]
        accounts = list(dict.fromkeys(each.destination for each in of_currency))
        shares = {
            number: sum(each.amount for each in of_currency if each.destination == account)
            for number, account in enumerate(accounts)
        }
        must_give = _targets(charge, total, shares, currency)
        for number, account in enumerate(accounts):
            own = [each for each in of_currency if each.destination == account]
            amount = must_give[number] - sum(each.amount_reversed for each in own)
            if amount > 0:
                ids = [each.stripe_transfer_id for each in own]
                found.append(Leak(stripe_account_id=account, amount=amount, currency=currency, stripe_transfer_ids=ids))
    return found


def _targets(charge: ChargeFacts, total: int, shares: dict[int, int], currency: str) -> dict[int, int]:
    step = money.step(currency)
    if currency != charge.currency_settled:
        return {number: share * total // (charge.amount * step) * step for number, share in shares.items()}
    settled = total * charge.amount_settled // charge.amount
    commission = RefundCommission(settings.REFUND_COMMISSION)
    sale = Sale(amount=charge.amount_settled, commission=commission, shares=shares, step=step)
    return targets(sale, [Loss(amount=settled)])
