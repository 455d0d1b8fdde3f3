"""Giving sellers back what was taken from them for nothing: their refund failed or was canceled, a dispute was won.

First debts that nobody has collected are dropped, then transfers that are not sent yet grow again; only what really
came back is paid once more, by a transfer of its own.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from marketplace.errors import NotAllowedNow
from marketplace.models import GIVE_BACK_UNDECIDED, SellerTransfer, Source, TransferReversal, together
from marketplace.services import outcomes, reversals, statement_lines
from marketplace.states import ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)

# The setting: pay by ourselves, or let an operator decide of each.
AUTOMATIC, ASK = "automatic", "ask"
OfSeller = Sequence[tuple[SellerTransfer, Sequence[TransferReversal]]]


def give_back(
    transfers: OfSeller, amount: int, *, own: Container[str], source: Source, actor: str, reason: str
) -> None:
    """Give one seller ``amount`` (minor units) back, of what these transfers of one order, each with all its reversals,
    lost by reversals whose cause is in ``own``. Runs in the caller's transaction, which holds their locks.
    """
    ways: Sequence[Callable[..., int]] = (_drop_debts, _grow, _pay_again)
    for way in ways:
        if amount:
            amount = way(transfers, amount, own=own, source=source, actor=actor, reason=reason)


def _drop_debts(
    transfers: OfSeller, amount: int, *, own: Container[str], source: Source, actor: str, reason: str
) -> int:
    """Those of ``source`` first, then the newest. One that may be at Stripe is looked for there, and canceled only if
    it is not. What is left of ``amount``.
    """
    touched: dict[int, SellerTransfer] = {}
    debts = [(transfer, row) for transfer, rows in transfers for row in rows if row.cause in own and _is_owed(row)]
    for transfer, row in sorted(debts, key=lambda debt: (not debt[1].is_owed_for(source), -debt[1].pk)):
        part = min(row.amount_open, amount)
        if not part:
            continue
        # Without the transfer's id nothing was sent; what a worker took up keeps its amount all the same.
        may_be_there = row.first_attempted_at is not None and transfer.stripe_transfer_id
        if part == row.amount_open and not may_be_there:
            row.transition(ReversalStatus.CANCELED, actor=actor, reason=reason, unwanted_amount=0)
        elif row.first_attempted_at is not None:
            row.change(actor=actor, reason=reason, unwanted_amount=row.unwanted_amount + part, unwanted_at=Now())
        else:
            row.change(actor=actor, reason=reason, amount=row.amount - part)
        touched[transfer.pk] = transfer
        amount -= part
    for transfer in touched.values():
        reversals.relieve(transfer, actor=actor, reason=reason)
    return amount


def _is_owed(row: TransferReversal) -> bool:
    return row.status in {ReversalStatus.PENDING, ReversalStatus.FAILED} and not row.is_replaced


def _grow(transfers: OfSeller, amount: int, *, actor: str, reason: str, **_: Any) -> int:
    """A transfer that was made smaller and never left is made larger again. What is left of ``amount``."""
    for transfer, _rows in transfers:
        part = min(_kept_back(transfer, transfers), amount) if transfer.is_unsent else 0
        if part:
            transfer.change(
                actor=actor,
                reason=reason,
                amount=transfer.amount + part,
                amount_kept_back=transfer.amount_kept_back - part,
            )
            amount -= part
    return amount


def _pay_again(
    transfers: OfSeller, amount: int, *, own: Container[str], source: Source, actor: str, reason: str
) -> int:
    """New transfers for what was kept back or reversed. What is left of ``amount``."""
    for transfer, undone, most in _taken(transfers, own=own, source=source):
        # Less than none of a debt that was netted, given back, and then owed again: the newer order was refunded.
        part = min(most, amount)
        if part > 0:
            _pay(transfer, undone, part, source=source, actor=actor, reason=reason)
            amount -= part
    return amount


def _taken(
    transfers: OfSeller, *, own: Container[str], source: Source
) -> Iterator[tuple[SellerTransfer, TransferReversal | None, int]]:
    for transfer, _rows in transfers:
        yield transfer, None, _kept_back(transfer, transfers)
    done = [
        (transfer, row)
        for transfer, rows in transfers
        for row in rows
        if row.cause in own and (row.status == ReversalStatus.SUCCEEDED or row.amount_recovered)
    ]
    for transfer, row in sorted(done, key=lambda each: (not each[1].is_owed_for(source), -each[1].pk)):
        reversed_amount = row.amount if row.status == ReversalStatus.SUCCEEDED else 0
        yield transfer, row, reversed_amount + row.amount_recovered - _given_back(transfer, row.pk, transfers)


def _kept_back(transfer: SellerTransfer, transfers: OfSeller) -> int:
    """What the seller was never sent of this transfer, and was not given since."""
    if transfer.status == TransferStatus.CANCELED and not transfer.declined:
        return transfer.share - transfer.amount_netted - _given_back(transfer, None, transfers)
    return transfer.amount_kept_back - _given_back(transfer, None, transfers)


def _given_back(transfer: SellerTransfer, reversal_id: int | None, transfers: OfSeller) -> int:
    return sum(
        each.share for each, _ in transfers if each.gives_back_of_id == transfer.pk and each.undoes_id == reversal_id
    )


def _pay(
    transfer: SellerTransfer,
    undone: TransferReversal | None,
    amount: int,
    *,
    source: Source,
    actor: str,
    reason: str,
) -> None:
    is_asked = settings.GIVE_BACK == ASK
    again = SellerTransfer(
        order_id=transfer.order_id,
        seller_id=transfer.seller_id,
        amount=amount,
        currency=transfer.currency,
        gives_back_of=transfer,
        undoes=undone,
        **(_undecided(reason) if is_asked else {"next_retry_at": Now()}),
    )
    again.description = statement_lines.of_transfer(again, source=source)
    again.add(actor=actor, reason=reason)
    # Now it gets its number.
    together.ask()
    if is_asked:
        logger.error("transfer_needs_a_person", transfer=again.pk, code=GIVE_BACK_UNDECIDED, request_id="")
    logger.info("paying_again", transfer=again.pk, of=transfer.pk, amount=amount)


def _undecided(reason: str) -> dict[str, Any]:
    return {
        "status": TransferStatus.PERMANENTLY_FAILED,
        "failed_leg": SellerTransfer.Leg.SENDING,
        **outcomes.error(GIVE_BACK_UNDECIDED, f"{reason}: pay the seller again by a retry, or decline"),
    }


# --- By an operator ---------------------------------------------------------------------------------------------------


def decline(*, transfer_id: int, actor: str, reason: str, if_version: frozenset[str] | None = None) -> SellerTransfer:
    """Not to pay the seller again: the platform keeps the money; committed on return. A retry pays instead. What was
    refunded since it failed is taken off first: that is not a decision.

    Raises:
        SellerTransfer.DoesNotExist: no such transfer.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it pays nothing again, or does not wait for a person, or may have been sent.

    """
    with transaction.atomic(durable=True):
        transfer = SellerTransfer.locked(transfer_id)
        transfer.require_version(if_version)
        if refusal := why_no_decline(transfer):
            raise NotAllowedNow(refusal)
        reversals.keep_back_owed(transfer, actor=actor, reason="refunded before it was sent")
        if transfer.status != TransferStatus.CANCELED:
            settled = {**outcomes.CLEARED_ERROR, "failed_leg": ""}
            transfer.transition(TransferStatus.CANCELED, actor=actor, reason=reason, declined=True, **settled)
    logger.info("give_back_declined", transfer=transfer_id, actor=actor)
    return transfer


def why_no_decline(transfer: SellerTransfer) -> str:
    """Why this transfer cannot be declined as it is; empty where it can."""
    if transfer.gives_back_of_id is None:
        return f"transfer {transfer.pk} is a seller's share of a sale: only a payment back is declined"
    if transfer.status != TransferStatus.PERMANENTLY_FAILED or transfer.stripe_transfer_id:
        return (
            f"transfer {transfer.pk} is {transfer.status}: only one that waits for a person and was never sent can"
            " be declined"
        )
    if transfer.in_doubt:
        return f"transfer {transfer.pk} may have been sent: retry it, which looks at Stripe before anything is paid"
    return ""
