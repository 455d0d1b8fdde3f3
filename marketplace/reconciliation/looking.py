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
from marketplace.reconciliation import comparing, leaks, rows
from marketplace.reconciliation.comparing import Ours
from marketplace.reconciliation.leaks import Losses, Paid
from marketplace.reconciliation.reading import Reader
from marketplace.services import refunds, seen_at_stripe, transfers
from marketplace.states import TransferStatus

logger = structlog.get_logger(__name__)

ACTOR = "reconcile"
PATIENCE = timedelta(minutes=1)
ADOPT, RECORD, RETRY = "record the reversal", "record the refund", "retry its sending, which finds it"
REMEDIES = {Drift.REVERSED_UNKNOWN: ADOPT, Drift.ORPHAN_REVERSAL: ADOPT, Drift.REFUND_NOT_RECORDED: RECORD}


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
        if told is None:
            return []
        order = rows.of_charges([told.charge]).get(subject.stripe_id)
        paid = [] if order is not None else self._paid(subject, told.charge)
        order_id = order.pk if order is not None else _order_id_of(paid)
        if order_id is None:
            return [_of_leak(leak, told, f"charge {subject.stripe_id}") for leak in _of_history(told, paid)]

        def look() -> list[ReconciliationFinding]:
            return _of_order(rows.order(order_id), told)

        if rows.order_moved(rows.order(order_id), subject.noted_at, rows.now()):
            raise InMotion
        by_id = {facts.stripe_refund_id: facts for facts in told.refunds}
        return self._healed(look, lambda finding: _heal_refund(finding, by_id, order_id))

    def _losses(self, stripe_charge_id: str) -> Losses | None:
        gateway = self.reader.gateway
        refunded = list(self.reader.all_of(gateway.page_of_refunds, charge=stripe_charge_id))
        disputes = list(self.reader.all_of(gateway.page_of_disputes, charge=stripe_charge_id))
        charges = [each.charge for each in refunded] + [each.charge for each in disputes]
        if not charges or charges[0] is None:
            return None
        return Losses(charge=charges[0], refunds=[each.refund for each in refunded], disputes=disputes)

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


def _heal_refund(finding: ReconciliationFinding, told: dict[str, RefundFacts], order_id: int) -> None:
    """As Stripe's list says it now, and no newer than what our row knows: a later event has the last word."""
    if finding.kind == Drift.REFUND_NOT_RECORDED:
        with transaction.atomic(durable=True):
            refunds.record(leaks.as_of_now(rows.order(order_id), told[finding.stripe_id]), actor=ACTOR)


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


def _of_order(order: Order, told: Losses) -> list[ReconciliationFinding]:
    news = leaks.unrecorded(order, told.refunds)
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
        for facts in news
    ]
    for leak in leaks.of_order(order, told):
        finding = _of_leak(leak, told, str(order))
        finding.remedy = RECORD if news else ""
        found.append(finding)
    return found


def _of_history(told: Losses, paid: Sequence[Paid]) -> list[leaks.Leak]:
    return leaks.of_history(told.charge, leaks.lost_in_all(told), paid)


def _of_leak(leak: leaks.Leak, told: Losses, subject: str) -> ReconciliationFinding:
    why = [f"refund {each.stripe_refund_id}" for each in told.refunds if each.status == leaks.SUCCEEDED]
    why += [f"lost dispute {each.stripe_dispute_id}" for each in told.disputes if leaks.lost(each)]
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
