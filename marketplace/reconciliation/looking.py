"""The second look: what did not agree is read again, on both sides, before anybody hears of it; and healed if wanted.

Beside running workers a first difference means little: a page of Stripe's may be older than our row, or the row older
than a reversal that is just being settled. So a drift is what is still there ``PATIENCE`` later, in rows that nobody
has written since it was noted, that nobody holds, and that did not change while Stripe was asked.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from django.db import transaction

from marketplace.asking import StripeHasNone
from marketplace.errors import MarketplaceError
from marketplace.gateway.contract import (
    BookedFacts,
    ChargeFacts,
    ListedTransfer,
    RefundFacts,
    ReversalFacts,
    TransferFacts,
)
from marketplace.models import Drift, Order, ReconciliationFinding, ReconciliationSubject, SellerTransfer
from marketplace.money import Money
from marketplace.reconciliation import comparing, leaks, rows
from marketplace.reconciliation.comparing import Ours
from marketplace.reconciliation.leaks import Losses, Paid
from marketplace.reconciliation.reading import Reader
from marketplace.services import disputes, refund_records, seen_at_stripe, transfers
from marketplace.states import TransferStatus

logger = structlog.get_logger(__name__)

ACTOR = "reconcile"
PATIENCE = timedelta(minutes=1)
ADOPT, RETRY = "record the reversal", "retry its sending, which finds it"
RECORD, RECORD_DISPUTE = "record the refund", "record the dispute"
REMEDIES = {Drift.REVERSED_UNKNOWN: ADOPT, Drift.ORPHAN_REVERSAL: ADOPT}


class InMotion(MarketplaceError):
    """A row moves while it is looked at: what it says will be compared the next time."""


@dataclass(frozen=True, kw_only=True)
class SecondLook:
    """``is_fixing``: what is provably safe is done, through the services that do it for webhooks and operators."""

    reader: Reader
    is_fixing: bool = False

    def at(self, subject: ReconciliationSubject) -> list[ReconciliationFinding]:
        """Not saved. Raises ``InMotion``, and as ``asking.ask``."""
        if subject.stripe_id.startswith("tr_"):
            return self._transfer(subject)
        return self._charge(subject)

    # --- A transfer -------------------------------------------------------------------------------------------

    def _transfer(self, subject: ReconciliationSubject) -> list[ReconciliationFinding]:
        stripe_id = subject.stripe_id
        before = rows.by_id(stripe_id)
        gateway = self.reader.gateway
        try:
            facts = self.reader.ask(lambda: gateway.retrieve_transfer(stripe_id)).transfer
        except StripeHasNone:
            return self._missing(subject, before)
        listed = self.reader.ask(lambda: gateway.list_reversals(stripe_id)).reversals
        entries = [
            each.booked for each in self.reader.all_of(gateway.page_of_balance_transactions, type="", source=stripe_id)
        ]

        def look() -> list[ReconciliationFinding]:
            ours = rows.of_transfers([facts]).get(stripe_id)
            return _of_transfer(ours, facts, listed, entries)

        self._require_rest(before, rows.of_transfers([facts]).get(stripe_id), subject)
        return self._healed(look, lambda finding: _heal_transfer(finding, facts, listed))

    def _missing(self, subject: ReconciliationSubject, before: Ours | None) -> list[ReconciliationFinding]:
        ours = rows.by_id(subject.stripe_id)
        self._require_rest(before, ours, subject)
        if ours is None:
            return [
                _finding(Drift.LEDGER_DIFFERS, None, subject.stripe_id, None, "Stripe lists it, and does not have it")
            ]
        return [_finding(Drift.MISSING, ours, subject.stripe_id, ours.transfer.amount, "Stripe has no such transfer")]

    def _require_rest(self, before: Ours | None, after: Ours | None, subject: ReconciliationSubject) -> None:
        changed = before is not None and after is not None and _stamp(before) != _stamp(after)
        if changed or rows.moved(after, subject.noted_at, rows.now()):
            raise InMotion

    # --- A charge ---------------------------------------------------------------------------------------------

    def _charge(self, subject: ReconciliationSubject) -> list[ReconciliationFinding]:
        told = self._losses(subject.stripe_id)
        intent = told.charge.stripe_payment_intent_id if told is not None else ""
        order = rows.of_charges({subject.stripe_id: intent}).get(subject.stripe_id)
        paid = self._paid(subject, told.charge) if order is None and told is not None else []
        order_id = order.pk if order is not None else _order_id_of(paid)
        if order_id is None:
            return _of_history(told, paid) if told is not None else []

        if rows.order_moved(rows.order(order_id), subject.noted_at, rows.now()):
            raise InMotion
        if told is None:
            return _missing_refunds(rows.order(order_id), [])

        def look() -> list[ReconciliationFinding]:
            order = rows.order(order_id)
            return _of_order(order, told) + _missing_refunds(order, told.refunds)

        return self._healed(look, lambda finding: _heal_order(finding, told, order_id))

    def _losses(self, stripe_charge_id: str) -> Losses | None:
        gateway = self.reader.gateway
        refunded = list(self.reader.all_of(gateway.page_of_refunds, charge=stripe_charge_id))
        disputes = list(self.reader.all_of(gateway.page_of_disputes, charge=stripe_charge_id))
        charges = [each.charge for each in refunded] + [each.charge for each in disputes]
        if not charges or charges[0] is None:
            return None
        return Losses(
            charge=charges[0],
            refunds=[each.refund for each in refunded],
            disputes=[each.dispute for each in disputes],
        )

    def _paid(self, subject: ReconciliationSubject, charge: ChargeFacts) -> list[Paid]:
        """As Stripe has them now: those of the charge's group, and others that were seen to name it as their source."""
        group: list[ListedTransfer] = []
        gateway = self.reader.gateway
        if charge.transfer_group:
            group = list(self.reader.all_of(gateway.page_of_transfers, transfer_group=charge.transfer_group))
        found = {each.transfer.stripe_transfer_id: each.transfer for each in group}
        seen = ReconciliationSubject.objects.filter(run=subject.run_id, source_transaction=charge.stripe_charge_id)
        for stripe_id in seen.exclude(stripe_id__in=found).values_list("stripe_id", flat=True):
            with suppress(StripeHasNone):
                found[stripe_id] = self.reader.ask(partial(gateway.retrieve_transfer, stripe_id)).transfer
        return list(map(_paid, found.values()))

    # --- Healing ----------------------------------------------------------------------------------------------

    def _healed(
        self, look: Callable[[], list[ReconciliationFinding]], heal: Callable[[ReconciliationFinding], None]
    ) -> list[ReconciliationFinding]:
        """What was found; healed is what another look does not find any more."""
        found = look()
        if not self.is_fixing or not any(each.remedy for each in found):
            return found
        for each in found:
            if each.remedy:
                _try(heal, each)
        left = {_key(each) for each in look()}
        for each in found:
            each.is_healed = bool(each.remedy) and _key(each) not in left
            if each.is_healed:
                logger.info("drift_healed", kind=each.kind, subject=each.subject, stripe_id=each.stripe_id)
        return found


def _try(heal: Callable[[ReconciliationFinding], None], finding: ReconciliationFinding) -> None:
    try:
        heal(finding)
    except MarketplaceError as error:
        finding.detail = f"{finding.detail}; not healed: {error.message}"


def _key(finding: ReconciliationFinding) -> tuple[str, str, str]:
    return finding.kind, finding.stripe_id, finding.stripe_account_id


def _heal_transfer(finding: ReconciliationFinding, facts: TransferFacts, listed: Sequence[ReversalFacts]) -> None:
    ours = rows.of_transfers([facts])[facts.stripe_transfer_id].transfer
    if finding.remedy == RETRY:
        transfers.retry(transfer_id=ours.pk, actor=ACTOR, reason=f"{facts.stripe_transfer_id} is at Stripe")
        return
    with transaction.atomic(durable=True):
        seen_at_stripe.record(facts, listed, actor=ACTOR)


def _heal_order(finding: ReconciliationFinding, told: Losses, order_id: int) -> None:
    """As Stripe's lists say it now, and no newer than what our row knows: a later event has the last word."""
    order = rows.order(order_id)
    with transaction.atomic(durable=True):
        if finding.kind == Drift.REFUND_NOT_RECORDED:
            refund = next(each for each in told.refunds if each.stripe_refund_id == finding.stripe_id)
            refund_records.record(leaks.as_of_now(order, refund), actor=ACTOR)
        elif finding.kind == Drift.DISPUTE_NOT_RECORDED:
            dispute = next(each for each in told.disputes if each.stripe_dispute_id == finding.stripe_id)
            disputes.record(leaks.dispute_as_of_now(order, dispute), actor=ACTOR)


# --- Findings ---------------------------------------------------------------------------------------------------------


def _stamp(ours: Ours) -> Any:
    return {(type(each), each.pk, each.updated_at) for each in (ours.transfer, *ours.reversals)}


def _finding(kind: Drift, ours: Ours | None, stripe_id: str, amount: int | None, detail: str) -> ReconciliationFinding:
    transfer = ours.transfer if ours is not None else None
    return ReconciliationFinding(
        kind=kind,
        subject=str(transfer or stripe_id),
        stripe_id=stripe_id,
        stripe_account_id=transfer.seller.stripe_account_id if transfer is not None else "",
        amount=amount,
        currency=transfer.currency if transfer is not None else "",
        detail=detail,
    )


def _of_transfer(
    ours: Ours | None, facts: TransferFacts, listed: Sequence[ReversalFacts], entries: Sequence[BookedFacts]
) -> list[ReconciliationFinding]:
    found = comparing.differences(ours, facts, listed, are_all=True) + comparing.ledger_differences(facts, entries)
    findings = []
    for each in found:
        finding = _finding(each.kind, ours, each.stripe_id, each.amount, each.detail)
        finding.currency, finding.stripe_account_id = each.currency, facts.destination
        finding.remedy = REMEDIES.get(each.kind, "")
        if each.kind == Drift.SENT_UNKNOWN and ours is not None and _can_be_retried(ours.transfer):
            finding.remedy = RETRY
        findings.append(finding)
    return findings


def _can_be_retried(row: SellerTransfer) -> bool:
    """Whether a retry surely sends nothing a second time: it looks, or sends under the key that Stripe knows."""
    return (
        row.status == TransferStatus.PERMANENTLY_FAILED
        and row.failed_leg == SellerTransfer.Leg.SENDING
        and row.in_doubt
    )


def is_suspect(order: Order, told: Losses) -> bool:
    """Whether a second look at its charge is worth it, by what one page shows."""
    return bool(_of_order(order, told))


def _of_order(order: Order, told: Losses) -> list[ReconciliationFinding]:
    unknown_refunds = leaks.unrecorded(order, told.refunds)
    unknown_disputes = leaks.unrecorded_disputes(order, told.disputes)
    found = [
        ReconciliationFinding(
            kind=Drift.REFUND_NOT_RECORDED,
            subject=str(order),
            stripe_id=facts.stripe_refund_id,
            amount=facts.amount,
            currency=facts.currency,
            detail=f"{facts.status} at Stripe, not so here",
            remedy=RECORD,
        )
        for facts in unknown_refunds
    ]
    found += [
        ReconciliationFinding(
            kind=Drift.REFUND_DIFFERS,
            subject=str(row),
            stripe_id=facts.stripe_refund_id,
            amount=abs(facts.amount - row.amount),
            currency=row.currency,
            detail=f"{row.amount} {row.currency} here, {facts.amount} {facts.currency} at Stripe",
        )
        for row, facts in leaks.differing(order, told.refunds)
    ]
    found += [
        ReconciliationFinding(
            kind=Drift.DISPUTE_NOT_RECORDED,
            subject=str(order),
            stripe_id=each.facts.stripe_dispute_id,
            amount=each.facts.amount,
            currency=each.facts.currency,
            detail=_of_dispute(each, order),
            remedy=RECORD_DISPUTE,
        )
        for each in unknown_disputes
    ]
    remedies = ([RECORD] if unknown_refunds else []) + ([RECORD_DISPUTE] if unknown_disputes else [])
    for leak in leaks.of_order(order, told):
        finding = _of_leak(leak, told, str(order))
        finding.remedy = " and ".join(remedies)
        found.append(finding)
    return found


def _missing_refunds(order: Order, listed: Sequence[RefundFacts]) -> list[ReconciliationFinding]:
    """``listed`` are all that Stripe has of the order's charge."""
    return [
        ReconciliationFinding(
            kind=Drift.MISSING,
            subject=str(row),
            stripe_id=row.stripe_refund_id,
            amount=row.amount,
            currency=row.currency,
            detail=f"{row.status} here, Stripe has no such refund of {order.stripe_charge_id}",
        )
        for row in leaks.unlisted(order, listed)
    ]


def _of_dispute(news: leaks.DisputeNews, order: Order) -> str:
    now = f"counts for {Money(news.row.amount_lost, order.currency)}"
    if news.row.last_error_code:
        now = "a person has to say how much of the order it is"
    before = "unknown here"
    if news.before is not None:
        before = f"{news.before.status} here, counts for {Money(news.before.amount_lost, order.currency)}"
    return f"{news.facts.status} at Stripe, {now}; {before}"


def _of_history(told: Losses, paid: Sequence[Paid]) -> list[ReconciliationFinding]:
    subject = f"charge {told.charge.stripe_charge_id}"
    found = [_of_leak(leak, told, subject) for leak in leaks.of_history(told.charge, leaks.lost_in_all(told), paid)]
    if any(each.amount > each.amount_reversed for each in paid):
        found += [
            ReconciliationFinding(
                kind=Drift.NEEDS_A_PERSON,
                subject=subject,
                stripe_id=each.stripe_dispute_id,
                amount=each.amount,
                currency=each.currency,
                detail=f"lost in another currency than the charge's ({told.charge.currency}): nobody can tell from"
                " Stripe how much of the charge it is, so nothing of it is counted as lost",
            )
            for each in leaks.unclear(told)
        ]
    return found


def _of_leak(leak: leaks.Leak, told: Losses, subject: str) -> ReconciliationFinding:
    why = [f"refund {each.stripe_refund_id}" for each in told.refunds if each.status == leaks.SUCCEEDED]
    why += [f"{each.status} dispute {each.stripe_dispute_id}" for each in told.disputes if each.is_withdrawn]
    return ReconciliationFinding(
        kind=Drift.NOT_CLAWED_BACK,
        subject=subject,
        stripe_id=told.charge.stripe_charge_id,
        stripe_account_id=leak.stripe_account_id,
        amount=leak.amount,
        currency=leak.currency,
        detail=f"{', '.join(why)}; to be taken from {', '.join(leak.stripe_transfer_ids)}",
    )


def _order_id_of(paid: Sequence[Paid]) -> int | None:
    order = rows.order_of_transfers(each.stripe_transfer_id for each in paid)
    return None if order is None else order.pk


def _paid(facts: TransferFacts) -> Paid:
    return Paid(
        stripe_transfer_id=facts.stripe_transfer_id,
        destination=facts.destination,
        currency=facts.currency,
        amount=facts.amount,
        amount_reversed=facts.amount_reversed,
    )


def paid_as_seen(subject: ReconciliationSubject) -> Paid:
    return Paid(
        stripe_transfer_id=subject.stripe_id,
        destination=subject.destination,
        currency=subject.currency,
        amount=subject.amount,
        amount_reversed=subject.amount_reversed,
    )
