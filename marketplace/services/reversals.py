"""What is owed on a transfer: written down, made smaller, settled otherwise, due again.

The transfer's row is the work that a worker claims; the oldest open ``TransferReversal`` is what it is about. A worker
takes it by ``reversal_claims`` and writes Stripe's answer down by ``reversal_settling``.
"""

from collections.abc import Sequence
from typing import Any

from django.db.models.functions import Now

from marketplace.errors import NotAllowedNow
from marketplace.gateway.contract import ReversalFacts
from marketplace.models import Dispute, Refund, SellerTransfer, Source, TransferReversal
from marketplace.services import leases, outcomes, statement_lines
from marketplace.states import OPEN_REVERSALS, ReversalStatus, TransferStatus


def owe(
    transfer: SellerTransfer,
    *,
    amount: int,
    cause: TransferReversal.Cause,
    source: Source | None,
    actor: str,
    reason: str,
    in_place_of: TransferReversal | None = None,
) -> None:
    """Take ``amount`` (minor units, at most what is left) back from the seller, by the way its state asks for.

    Not sent yet: the transfer is canceled or made smaller, for who was never paid owes nothing. In flight, or of
    unknown outcome: the debt is written down, and settled once the sending is. With the seller: due at once.
    Runs inside the caller's transaction, which holds the lock on ``transfer``.
    """
    if transfer.is_unsent:
        keep_back(transfer, amount=amount, actor=actor, reason=reason)
        return
    if transfer.status in {TransferStatus.REVERSED, TransferStatus.CANCELED}:
        raise NotAllowedNow(f"transfer {transfer.pk} is {transfer.status}: nothing is left to take back")
    create(transfer, amount=amount, cause=cause, source=source, actor=actor, reason=reason, in_place_of=in_place_of)
    if transfer.status in {TransferStatus.COMPLETED, TransferStatus.PARTIALLY_REVERSED}:
        transfer.transition(
            TransferStatus.REVERSAL_PENDING, reason=reason, actor=actor, next_retry_at=Now(), retry_count=0
        )
    else:
        # Touched, so that a settle under way sees that more is owed than when it claimed the row.
        transfer.change(reason=reason, actor=actor)


def create(
    transfer: SellerTransfer,
    *,
    amount: int,
    cause: TransferReversal.Cause,
    source: Source | None,
    actor: str,
    reason: str,
    in_place_of: TransferReversal | None = None,
    **columns: Any,
) -> TransferReversal:
    reversal = TransferReversal.new(
        transfer_id=transfer.pk,
        amount=amount,
        currency=transfer.currency,
        cause=cause,
        refund_id=source.pk if isinstance(source, Refund) else None,
        dispute_id=source.pk if isinstance(source, Dispute) else None,
        description=statement_lines.of_reversal(transfer, cause),
        in_place_of_id=in_place_of.pk if in_place_of else None,
        **columns,
    )
    reversal.add(actor=actor, reason=reason)
    return reversal


def keep_back(transfer: SellerTransfer, *, amount: int, actor: str, reason: str) -> None:
    """Shrink a transfer that never left, or cancel it where nothing remains."""
    if amount < transfer.amount:
        transfer.change(
            amount=transfer.amount - amount,
            amount_kept_back=transfer.amount_kept_back + amount,
            actor=actor,
            reason=reason,
        )
    else:
        # Whatever it waited for, nobody is asked any more.
        settled = {**outcomes.CLEARED_ERROR, "failed_leg": "", "next_retry_at": None}
        transfer.transition(TransferStatus.CANCELED, actor=actor, reason=reason, **settled)


def keep_back_owed(transfer: SellerTransfer, *, actor: str, reason: str) -> None:
    """What is owed on a transfer that never left is owed by nobody: it is made so much smaller, or canceled."""
    owed = open_reversals(transfer)
    for reversal in owed:
        reversal.transition(ReversalStatus.CANCELED, reason=reason, actor=actor)
    if owed:
        keep_back(transfer, amount=sum(each.amount for each in owed), actor=actor, reason=reason)


def after_part(amount_reversed: int) -> TransferStatus:
    """What a transfer is of which no more is owed, and less than all came back."""
    return TransferStatus.PARTIALLY_REVERSED if amount_reversed else TransferStatus.COMPLETED


def relieve(transfer: SellerTransfer, *, actor: str, reason: str) -> None:
    """The transfer's own row after debts on it were dropped or made smaller. Those that may be at Stripe are due: they
    are looked for. Where others took a part, so that less is left than was to be taken, a person still says whether
    theirs was for the same. Runs in the caller's transaction.
    """
    rows = list(transfer.reversals.all())
    failed = [each for each in rows if each.status == ReversalStatus.FAILED and not each.is_replaced]
    is_owing = [each for each in rows if each.status == ReversalStatus.PENDING]
    is_sent = bool(transfer.stripe_transfer_id)
    is_reversing = transfer.status == TransferStatus.REVERSAL_PENDING
    if transfer.status == TransferStatus.PERMANENTLY_FAILED:
        is_reversing = is_sent or transfer.failed_leg == SellerTransfer.Leg.REVERSING
    theirs = sum(each.amount for each in rows if each.cause == TransferReversal.Cause.SEEN_AT_STRIPE)
    stands_in_the_way = any(each.amount_open and each.amount > transfer.amount - theirs for each in failed)
    if not is_reversing:
        transfer.change(reason=reason, actor=actor)
    elif any(each.unwanted_amount for each in failed) and is_sent and not stands_in_the_way:
        reopen(transfer, actor=actor, reason=reason)
    elif any(each.unwanted_amount for each in is_owing):
        # In a worker's hands perhaps, whose settling sees that the row was touched.
        transfer.change(reason=reason, actor=actor, next_retry_at=Now())
    elif failed or is_owing:
        transfer.change(reason=reason, actor=actor)
    else:
        settled = {**outcomes.CLEARED_ERROR, **leases.RELEASED, "failed_leg": "", "next_retry_at": None}
        transfer.transition(after_part(transfer.amount_reversed), reason=reason, actor=actor, **settled)


def debt_settled(transfer: SellerTransfer, *, actor: str, reason: str) -> None:
    """The transfer's own row after a debt on it was settled another way than by its reversal: it needs a person no more
    once no failed reversal is left, and what waited behind that one is due. Runs in the caller's transaction.
    """
    has_failed = any(not each.is_replaced for each in transfer.reversals.filter(status=ReversalStatus.FAILED))
    if transfer.status != TransferStatus.PERMANENTLY_FAILED or has_failed:
        transfer.change(reason=reason, actor=actor)
        return
    settled: dict[str, Any] = {**outcomes.CLEARED_ERROR, "failed_leg": ""}
    if open_reversals(transfer):
        due: dict[str, Any] = {"next_retry_at": Now(), "retry_count": 0}
        transfer.transition(TransferStatus.REVERSAL_PENDING, reason=reason, actor=actor, **settled, **due)
    else:
        transfer.transition(after_part(transfer.amount_reversed), reason=reason, actor=actor, **settled)


def owe_again(undone: TransferReversal, transfer: SellerTransfer, *, amount: int, actor: str, reason: str) -> int:
    """What was settled of a reversal is owed after all, in a row of its own; so much as the transfer has left, in minor
    units. Runs in the caller's transaction, which holds the lock on ``transfer``.
    """
    rows = list(transfer.reversals.all())
    is_open = [each for each in rows if each.status in OPEN_REVERSALS and not each.is_replaced]
    owed = min(amount, left_with_seller(transfer, rows) - sum(each.amount_open for each in is_open))
    if owed <= 0:
        return 0
    owe(
        transfer,
        amount=owed,
        cause=TransferReversal.Cause(undone.cause),
        source=undone.source,
        actor=actor,
        reason=reason,
        in_place_of=undone.in_place_of or undone,
    )
    return owed


def left_with_seller(transfer: SellerTransfer, rows: Sequence[TransferReversal]) -> int:
    """What the seller still has of a transfer, ``rows`` being all its reversals, in minor units: neither come back, by
    whomever, nor settled another way.
    """
    came_back = sum(each.amount for each in rows if each.status == ReversalStatus.SUCCEEDED)
    settled = sum(each.amount_settled for each in rows)
    # Rows of an older program may know of an amount without its reversals.
    return transfer.amount - max(transfer.amount_reversed, came_back) - settled


def open_reversals(transfer: SellerTransfer) -> list[TransferReversal]:
    return list(transfer.reversals.filter(status=ReversalStatus.PENDING).order_by("id"))


def adopt(transfer: SellerTransfer, listed: Sequence[ReversalFacts], *, actor: str) -> list[TransferReversal]:
    """Record reversals that Stripe shows and we have not confirmed: our own by operation id, others as made elsewhere.
    Those that were new to us.

    Changes no amount of the transfer: the caller knows Stripe's total.
    """
    adopted = []
    recorded = list(transfer.reversals.all())
    known = {each.stripe_reversal_id for each in recorded if each.status == ReversalStatus.SUCCEEDED}
    ours_by_operation = {str(each.operation_id): each for each in recorded if each.status != ReversalStatus.SUCCEEDED}
    for facts in listed:
        if facts.stripe_reversal_id in known or not facts.is_done:
            continue
        proof: dict[str, Any] = {"stripe_reversal_id": facts.stripe_reversal_id, "stripe_status": facts.status}
        reason = f"{facts.stripe_reversal_id} seen at Stripe"
        ours = ours_by_operation.get(facts.operation_id)
        if ours is not None and ours.status != ReversalStatus.CANCELED:
            proof |= {"waiting_for_funds_since": None, "unwanted_amount": 0}
            ours.transition(ReversalStatus.SUCCEEDED, reason=reason, actor=actor, **proof)
        else:
            # One of ours that was canceled, and landed late, was taken for its own cause all the same; also where
            # another was owed for that by then.
            ours = create(
                transfer,
                amount=facts.amount,
                cause=TransferReversal.Cause(ours.cause) if ours else TransferReversal.Cause.SEEN_AT_STRIPE,
                source=ours.source if ours else None,
                actor=actor,
                reason=reason,
                status=ReversalStatus.SUCCEEDED,
                in_place_of=(ours.in_place_of or ours) if ours else None,
                **proof,
            )
        adopted.append(ours)
    return adopted


# --- Retrying by an operator ------------------------------------------------------------------------------------------


def reopen(transfer: SellerTransfer, *, actor: str, reason: str) -> None:
    """Make the reversals of a permanently failed transfer due again, with a fresh budget.

    Each keeps its key: where the last outcome is unknown the call may still be running at Stripe, and only the same key
    is safe. Where a part came back by other hands, or was settled otherwise, what is left becomes a new reversal in
    place of the old one. Runs inside the caller's transaction, which holds the lock.
    """
    rows = list(transfer.reversals.order_by("id"))
    failed = [each for each in rows if each.status == ReversalStatus.FAILED and not each.is_replaced]
    most = left_with_seller(transfer, rows)
    left = most - sum(each.amount_open for each in rows if each.status == ReversalStatus.PENDING)
    is_any_settled = any(each.amount_settled for each in rows)
    replaced = []
    for reversal in failed:
        # Of what was settled Stripe knows nothing, and would not refuse what is too much beside it.
        is_left = reversal.amount_open <= left if is_any_settled else reversal.amount <= most
        if is_left and not reversal.amount_settled:
            left -= reversal.amount_open
            again: dict[str, Any] = {"waiting_for_funds_since": None, "refused": False}
            reversal.transition(ReversalStatus.PENDING, reason=reason, actor=actor, **again)
        else:
            replaced.append((reversal, reversal.amount_open))
            less = f"{reason}; less is left"
            reversal.transition(ReversalStatus.CANCELED, reason=less, actor=actor, unwanted_amount=0)
    for reversal, owed in replaced:
        amount = min(owed, left)
        if amount > 0:
            left -= amount
            create(
                transfer,
                amount=amount,
                cause=TransferReversal.Cause(reversal.cause),
                source=reversal.source,
                actor=actor,
                reason=f"{reason}; in place of reversal {reversal.pk}",
                in_place_of=reversal.in_place_of or reversal,
            )
    if failed and not open_reversals(transfer):
        settled = {**outcomes.CLEARED_ERROR, "failed_leg": "", "next_retry_at": None}
        transfer.transition(after_part(transfer.amount_reversed), reason=reason, actor=actor, **settled)
        return
    transfer.transition(
        TransferStatus.REVERSAL_PENDING,
        reason=reason,
        actor=actor,
        next_retry_at=Now(),
        retry_count=0,
        failed_leg="",
    )
