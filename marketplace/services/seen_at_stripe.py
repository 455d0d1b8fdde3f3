"""Reversals that Stripe tells of by itself: made in its dashboard, by Stripe, by another program; and our own, of which
no worker has heard yet.

What was made elsewhere counts as taken back: what was owed and not sent is so much less, and the next refund's targets
reckon with it. Facts only grow, so events may come in any order, and any number of times.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from django.db.models.functions import Now

from marketplace.errors import ConflictingFacts, NotAllListed, UnknownTransfer
from marketplace.gateway.contract import ReversalFacts, TransferFacts
from marketplace.models import SellerTransfer, TransferReversal, taking_back
from marketplace.services import clawback, funds, leases, outcomes, reversals
from marketplace.states import ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)


def record(facts: TransferFacts, listed: Sequence[ReversalFacts], *, actor: str) -> str | None:
    """Write down which of the ``listed`` reversals (newest first) we did not know of; what there was to do, or None
    where the transfer is not ours. Runs in the caller's transaction.

    A worker that holds the transfer for a reversal of ours that Stripe shows here loses its lease: what it will hear is
    known already. For any other one it keeps it.

    Raises:
        UnknownTransfer: its sending is not settled yet.
        NotAllListed: there are more than those listed and those known.
        ConflictingFacts: another amount or currency than ours.

    """
    transfer = _ours(facts)
    if transfer is None:
        return None
    before = list(transfer.reversals.order_by("id"))
    if not _are_known(before, listed):
        transfer, before = _locked(transfer)
    _require_agreement(transfer, before, facts, listed)
    is_older_than_ours = _require_all(before, facts, listed)
    adopted = reversals.adopt(transfer, listed, actor=actor)
    if not adopted:
        return f"all reversals of {facts.stripe_transfer_id} were known"
    ids = ", ".join(each.stripe_reversal_id for each in adopted)
    elsewhere = sum(each.amount for each in adopted if each.cause == TransferReversal.Cause.SEEN_AT_STRIPE)
    if elsewhere:
        logger.warning("reversed_elsewhere", transfer=transfer.pk, amount=elsewhere, reversals=ids)
    reason = f"{ids} seen at Stripe"
    # Rows of an older program may know of an amount without its reversals: what is owed was reckoned beside that.
    confirmed = sum(each.amount for each in before if each.status == ReversalStatus.SUCCEEDED)
    known = max(transfer.amount_reversed - confirmed, 0)
    _owe_less(transfer, max(elsewhere - known, 0), reason=reason, actor=actor)
    newest = next(each.stripe_reversal_id for each in listed if each.is_done)
    if is_older_than_ours and transfer.stripe_reversal_id not in {"", *(each.stripe_reversal_id for each in listed)}:
        newest = transfer.stripe_reversal_id
    _conclude(transfer, before, newest=newest, reason=reason, actor=actor)
    done = {each.pk for each in adopted}
    if any(each.pk in done and each.waiting_for_funds_since is not None for each in before):
        funds.next_in_line(transfer)
    _give_back(transfer, adopted, reason=reason, actor=actor)
    return reason


def _give_back(transfer: SellerTransfer, adopted: Sequence[TransferReversal], *, reason: str, actor: str) -> None:
    """What Stripe did of our own after it was no longer owed."""
    source = next((each.source for each in adopted if each.source is not None), None)
    if source is not None:
        found = taking_back.found(taking_back.BY_ID, transfer.order_id)
        assert found is not None
        clawback.give_back(found, source=source, reason=reason, actor=actor)


def _are_known(ours: Sequence[TransferReversal], listed: Sequence[ReversalFacts]) -> bool:
    """Whether there is nothing to write down, and so nothing to lock: what was confirmed once stays so."""
    confirmed = {each.stripe_reversal_id for each in ours if each.status == ReversalStatus.SUCCEEDED}
    return all(each.stripe_reversal_id in confirmed for each in listed if each.is_done)


def _locked(transfer: SellerTransfer) -> tuple[SellerTransfer, list[TransferReversal]]:
    """As it is now, with its reversals by number. All of its order is locked, in the order that all keep: what has to
    be given back is looked for in the transfers before it too.
    """
    found = taking_back.found(taking_back.BY_ID, transfer.order_id)
    assert found is not None
    now, rows = next(each for each in found.transfers if each[0].pk == transfer.pk)
    return now, sorted(rows, key=lambda each: each.pk)


def _ours(facts: TransferFacts) -> SellerTransfer | None:
    known = SellerTransfer.objects.filter(stripe_transfer_id=facts.stripe_transfer_id).first()
    if known is not None:
        return known
    try:
        operation_id = UUID(facts.operation_id)
    except ValueError:
        return None
    if SellerTransfer.objects.filter(operation_id=operation_id).exists():
        raise UnknownTransfer(f"{facts.stripe_transfer_id} is a transfer of ours, whose sending is not settled yet")
    return None


def _require_agreement(
    transfer: SellerTransfer, ours: Sequence[TransferReversal], facts: TransferFacts, listed: Sequence[ReversalFacts]
) -> None:
    if (facts.amount, facts.currency) != (transfer.amount, transfer.currency):
        raise ConflictingFacts(
            f"{facts.stripe_transfer_id} at Stripe is {facts.amount} {facts.currency}, transfer {transfer.pk} is"
            f" {transfer.amount} {transfer.currency}"
        )
    by_operation = {str(each.operation_id): each for each in ours}
    for told in listed:
        own = by_operation.get(told.operation_id)
        if own is not None and (told.amount, told.currency) != (own.amount, own.currency):
            raise ConflictingFacts(
                f"{told.stripe_reversal_id} at Stripe is {told.amount} {told.currency}, our reversal {own.pk} is"
                f" {own.amount} {own.currency}"
            )


def _require_all(ours: Sequence[TransferReversal], facts: TransferFacts, listed: Sequence[ReversalFacts]) -> bool:
    """Whether we know of more than Stripe's total counts: then the event is older. Raises ``NotAllListed``."""
    known = {each.stripe_reversal_id: each.amount for each in ours if each.status == ReversalStatus.SUCCEEDED}
    # Whether Stripe's total counts pending ones is not documented.
    known |= {each.stripe_reversal_id: each.amount for each in listed if not each.is_given_up}
    missing = facts.amount_reversed - sum(known.values())
    if missing > 0:
        raise NotAllListed(f"{missing} more of {facts.stripe_transfer_id} is reversed than is listed")
    return missing < 0


def _owe_less(transfer: SellerTransfer, amount: int, *, reason: str, actor: str) -> None:
    """What was taken elsewhere is not taken again, the newest debts first. One that may be at Stripe stays as it was
    sent: Stripe decides whether there is enough left for it.
    """
    for reversal in reversed(reversals.open_reversals(transfer)):
        if reversal.first_attempted_at is not None:
            continue
        if reversal.amount <= amount:
            reversal.transition(ReversalStatus.CANCELED, reason=reason, actor=actor)
            amount -= reversal.amount
        elif amount:
            reversal.change(reason=reason, actor=actor, amount=reversal.amount - amount)
            amount = 0
    _want_less(transfer, reason=reason, actor=actor)


def _want_less(transfer: SellerTransfer, *, reason: str, actor: str) -> None:
    """Of what was settled another way Stripe knows nothing, and would not refuse what is too much beside it: so much is
    no longer wanted, of the newest debts first. They are looked for, and what is still owed is owed anew.
    """
    rows = list(transfer.reversals.all())
    owed = sum(each.amount_open for each in rows if each.status == ReversalStatus.PENDING)
    settled = sum(each.amount_settled for each in rows)
    too_much = min(owed - reversals.left_with_seller(transfer, rows), settled)
    for reversal in reversed(reversals.open_reversals(transfer)):
        # What is asked for by a person, no levelling would owe anew.
        part = min(reversal.amount_open, too_much) if reversal.cause in clawback.OWN else 0
        if part > 0:
            unwanted_amount = reversal.unwanted_amount + part
            reversal.change(reason=reason, actor=actor, unwanted_amount=unwanted_amount, unwanted_at=Now())
            too_much -= part


def _conclude(
    transfer: SellerTransfer, before: Sequence[TransferReversal], *, newest: str, reason: str, actor: str
) -> None:
    """The transfer's own row, after what its reversals' rows say now."""
    now = list(transfer.reversals.order_by("id"))
    confirmed = sum(each.amount for each in now if each.status == ReversalStatus.SUCCEEDED)
    # Rows of an older program may know of an amount without its reversals.
    amount_reversed = max(transfer.amount_reversed, confirmed)
    if amount_reversed > transfer.amount:
        raise ConflictingFacts(f"{amount_reversed} would be reversed of {transfer}, which is {transfer.amount}")
    proven: dict[str, Any] = {"amount_reversed": amount_reversed, "stripe_reversal_id": newest}
    settled = {**proven, **outcomes.CLEARED_ERROR, **leases.RELEASED, "failed_leg": "", "next_retry_at": None}
    owed = [each for each in now if each.status == ReversalStatus.PENDING]
    failed = [each for each in now if each.status == ReversalStatus.FAILED and not each.is_replaced]
    if amount_reversed == transfer.amount:
        for reversal in (*owed, *failed):
            reversal.transition(
                ReversalStatus.CANCELED, reason="nothing is left to take back", actor=actor, unwanted_amount=0
            )
        _move(transfer, TransferStatus.REVERSED, settled, reason=reason, actor=actor)
    elif transfer.status == TransferStatus.PERMANENTLY_FAILED and failed:
        transfer.change(reason=reason, actor=actor, **proven)
    elif owed and transfer.status == TransferStatus.REVERSAL_PENDING and owed[0].pk == _oldest_open(before):
        # In a worker's hands perhaps, and as due as it was.
        transfer.change(reason=reason, actor=actor, **proven)
    elif owed:
        due = {**settled, "next_retry_at": Now(), "retry_count": 0}
        _move(transfer, TransferStatus.REVERSAL_PENDING, due, reason=f"{reason}; more is owed", actor=actor)
    else:
        _move(transfer, TransferStatus.PARTIALLY_REVERSED, settled, reason=reason, actor=actor)


def _oldest_open(rows: Sequence[TransferReversal]) -> int | None:
    return next((each.pk for each in rows if each.status == ReversalStatus.PENDING), None)


def _move(transfer: SellerTransfer, to: TransferStatus, fields: dict[str, Any], *, reason: str, actor: str) -> None:
    if transfer.lease_token is not None:
        logger.info("lease_ended_by_event", transfer=transfer.pk)
    if transfer.status == to:
        transfer.change(reason=reason, actor=actor, **fields)
    else:
        transfer.transition(to, reason=reason, actor=actor, **fields)
