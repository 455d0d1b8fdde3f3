"""What a seller owes that Stripe could not take back: netted from the seller's next transfers, paid by hand, written
off. The debt is the failed reversal itself; each part that is settled is an entry of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Min, OuterRef, QuerySet, Subquery, Sum

from marketplace.errors import ConflictingFacts, NotAllowedNow, TooMuch
from marketplace.models import Debt, DebtEntry, SellerTransfer, TransferReversal
from marketplace.models.debts import OWED_SINCE
from marketplace.money import Money, step
from marketplace.services import reversals
from marketplace.states import ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)
Kind = DebtEntry.Kind


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asked through the API, and under which Idempotency-Key."""

    by: User
    key: str


@dataclass(frozen=True, kw_only=True)
class Entered:
    entry: DebtEntry
    is_new: bool


def debts_of(seller_id: int) -> QuerySet[Debt]:
    """Open debts of a seller, the oldest first."""
    return Debt.objects.open().filter(transfer__seller=seller_id).order_by(OWED_SINCE, "id")


# --- By an operator ---------------------------------------------------------------------------------------------------


def pay_by_hand(
    *,
    reversal_id: int,
    amount: int,
    actor: str,
    reason: str,
    request: Request | None = None,
    if_version: frozenset[str] | None = None,
) -> Entered:
    """The seller paid ``amount`` (minor units) of the debt outside of Stripe; committed on return.

    The same key with the same facts gives the entry of the first request.

    Raises:
        TransferReversal.DoesNotExist: no such reversal.
        NotAllowedNow: it is no debt, or may be at Stripe.
        TooMuch: more than is left of the debt.
        ConflictingFacts: the key was used with other facts.
        ChangedMeanwhile: the reversal's version is none of ``if_version``.

    """
    return _settle_by_hand(
        reversal_id, Kind.PAID, amount, actor=actor, reason=reason, request=request, if_version=if_version
    )


def write_off(
    *,
    reversal_id: int,
    amount: int,
    actor: str,
    reason: str,
    request: Request | None = None,
    if_version: frozenset[str] | None = None,
) -> Entered:
    """Nobody asks for ``amount`` (minor units) of the debt any more; committed on return. Raises as ``pay_by_hand``."""
    return _settle_by_hand(
        reversal_id, Kind.WRITTEN_OFF, amount, actor=actor, reason=reason, request=request, if_version=if_version
    )


def _settle_by_hand(
    reversal_id: int,
    kind: DebtEntry.Kind,
    amount: int,
    *,
    actor: str,
    reason: str,
    request: Request | None,
    if_version: frozenset[str] | None,
) -> Entered:
    try:
        with transaction.atomic(durable=True):
            transfer = SellerTransfer.locked(TransferReversal.objects.get(pk=reversal_id).transfer_id)
            debt = TransferReversal.locked(reversal_id)
            earlier = _earlier(request)
            if earlier is not None:
                if (earlier.reversal_id, earlier.kind, earlier.amount, earlier.reason) != (
                    reversal_id,
                    kind,
                    amount,
                    reason,
                ):
                    raise _used_before(request)
                return Entered(entry=earlier, is_new=False)
            debt.require_version(if_version)
            if refusal := why_not_settled_by_hand(debt):
                raise NotAllowedNow(refusal)
            if amount > debt.amount_open:
                left = Money(debt.amount_open, debt.currency)
                raise TooMuch(f"{amount} is more than the {left.amount} {left.currency} left of debt {debt.pk}")
            entry = _settle(debt, transfer, kind, amount, actor=actor, reason=reason, request=request)
    except IntegrityError as error:
        if "debt_entry_once_per_request_key" not in str(error):
            raise
        # For another debt, at this very moment: those for this one wait for its lock.
        raise _used_before(request) from error
    logger.info("debt_settled", debt=reversal_id, kind=str(kind), amount=amount, actor=actor)
    return Entered(entry=entry, is_new=True)


def _earlier(request: Request | None) -> DebtEntry | None:
    if request is None:
        return None
    return DebtEntry.objects.filter(requested_by=request.by, request_key=request.key).first()


def _used_before(request: Request | None) -> ConflictingFacts:
    key = request.key if request else ""
    return ConflictingFacts(f"Idempotency-Key {key!r} was used before, with another request")


def why_not_settled_by_hand(debt: TransferReversal) -> str:
    """Why this debt can be neither paid nor written off as it is; empty where it can."""
    if debt.status != ReversalStatus.FAILED or not debt.amount_open:
        return f"reversal {debt.pk} is {debt.status}: only one that failed and is owed still is a debt"
    if not _is_surely_not_at_stripe(debt):
        return (
            f"reversal {debt.pk} may be at Stripe, so the seller could pay it twice: retry transfer"
            f" {debt.transfer_id} first, which looks there"
        )
    return ""


def _is_surely_not_at_stripe(debt: TransferReversal) -> bool:
    return debt.refused and not debt.unwanted_amount


def _settle(
    debt: TransferReversal,
    transfer: SellerTransfer,
    kind: DebtEntry.Kind,
    amount: int,
    *,
    actor: str,
    reason: str,
    netted_from: SellerTransfer | None = None,
    request: Request | None = None,
) -> DebtEntry:
    """Both rows of the debt, locked, and its entry."""
    column = "amount_written_off" if kind == Kind.WRITTEN_OFF else "amount_recovered"
    settled = {column: getattr(debt, column) + amount}
    if amount == debt.amount_open:
        debt.transition(ReversalStatus.CANCELED, actor=actor, reason=f"{kind.label}: {reason}", **settled)
    else:
        debt.change(actor=actor, reason=reason, **settled)
    entry = _enter(debt, kind, amount, actor=actor, reason=reason, netted_from=netted_from, request=request)
    reversals.debt_settled(transfer, actor=actor, reason=f"{debt}: {entry}")
    return entry


def _enter(
    debt: TransferReversal,
    kind: DebtEntry.Kind,
    amount: int,
    *,
    actor: str,
    reason: str,
    netted_from: SellerTransfer | None,
    request: Request | None = None,
) -> DebtEntry:
    return DebtEntry.objects.create(
        reversal=debt,
        kind=kind,
        amount=amount,
        currency=debt.currency,
        transfer=netted_from,
        actor=actor,
        reason=reason[:500],
        requested_by=request.by if request else None,
        request_key=request.key if request else "",
    )


# --- Netting ----------------------------------------------------------------------------------------------------------


def net(transfers: Sequence[SellerTransfer], *, actor: str) -> None:
    """Keep what their sellers owe, the oldest debts first, from transfers of one payment, where ``NET_DEBTS`` says so.

    Runs in the caller's transaction, which has just written them. The locks on older transfers come after all locks on
    the newer order, here and in ``undo_netting``.
    """
    if not settings.NET_DEBTS:
        return
    sellers = [transfer.seller_id for transfer in transfers]
    owing = _locked(
        Debt.objects.open()
        .filter(transfer__seller__in=sellers, currency__in={transfer.currency for transfer in transfers}, refused=True)
        .values_list("transfer_id", flat=True)
    )
    for transfer in transfers if owing else ():
        for debt in debts_of(transfer.seller_id).filter(currency=transfer.currency, transfer__in=list(owing)):
            if transfer.status == TransferStatus.CANCELED or not _may_be_netted(debt, owing[debt.transfer_id]):
                continue
            _net(transfer, TransferReversal.locked(debt.pk), owing[debt.transfer_id], actor=actor)


def _may_be_netted(debt: TransferReversal, owing: SellerTransfer) -> bool:
    """Where others took a part, so that less is left than is owed, a person says first whether theirs was for the same:
    it may be paid already.
    """
    left = reversals.left_with_seller(owing, list(owing.reversals.all()))
    return _is_surely_not_at_stripe(debt) and debt.amount_open <= left


def _net(transfer: SellerTransfer, debt: TransferReversal, owing: SellerTransfer, *, actor: str) -> None:
    amount = min(transfer.amount, debt.amount_open)
    # The rest of the transfer has to be an amount that Stripe takes: a seller may have paid any part by hand.
    amount -= amount % step(debt.currency)
    if not amount:
        return
    reason = f"netted {Money(amount, debt.currency)} of {debt} from {transfer}"
    less: dict[str, Any] = {"amount": transfer.amount - amount, "amount_netted": transfer.amount_netted + amount}
    if amount < transfer.amount:
        transfer.change(actor=actor, reason=reason, **less)
    else:
        transfer.transition(TransferStatus.CANCELED, actor=actor, reason=reason, next_retry_at=None, **less)
    _settle(debt, owing, Kind.NETTED, amount, actor=actor, reason=reason, netted_from=transfer)
    logger.info("debt_netted", debt=debt.pk, transfer=transfer.pk, amount=amount)


def undo_netting(parts: Sequence[tuple[SellerTransfer, int]], *, actor: str, reason: str) -> None:
    """Of each transfer so much (minor units) of what was netted is kept back for its buyer's refund instead, the newest
    netting first: those debts are owed again. Runs in the caller's transaction, which has locked the transfers.
    """
    if not parts:
        return
    netted = list(
        DebtEntry.objects.filter(transfer__in=[transfer.pk for transfer, _ in parts])
        .values_list("transfer_id", "reversal_id", "reversal__transfer_id")
        .annotate(total=Sum("amount"))
        .filter(total__gt=0)
        .order_by("-reversal_id")
    )
    owing = _locked([owing_id for _, _, owing_id, _ in netted])
    for transfer, amount in parts:
        left = amount
        for transfer_id, reversal_id, owing_id, total in netted:
            part = min(total, left) if transfer_id == transfer.pk else 0
            if part:
                debt = TransferReversal.locked(reversal_id)
                _undo(debt, owing[owing_id], part, netted_from=transfer, actor=actor, reason=reason)
                left -= part
        transfer.change(
            actor=actor,
            reason=reason,
            amount_netted=transfer.amount_netted - (amount - left),
            amount_kept_back=transfer.amount_kept_back + (amount - left),
        )


def _undo(
    debt: TransferReversal, owing: SellerTransfer, amount: int, *, netted_from: SellerTransfer, actor: str, reason: str
) -> None:
    reason = f"{reason}: not netted from {netted_from} any more"
    debt.change(actor=actor, reason=reason, amount_recovered=debt.amount_recovered - amount)
    _enter(debt, Kind.NETTED, -amount, actor=actor, reason=reason, netted_from=netted_from)
    owed = amount
    if debt.status == ReversalStatus.FAILED:
        owing.change(actor=actor, reason=reason)
    else:
        owed = reversals.owe_again(debt, owing, amount=amount, actor=actor, reason=reason)
    if owed < amount:
        logger.error("netting_undone_without_debt", debt=debt.pk, transfer=netted_from.pk, amount=amount - owed)


def _locked(ids: Iterable[int]) -> dict[int, SellerTransfer]:
    """In the order in which everybody locks transfers: the newest order first, since who holds one goes on to older
    ones that it was netted for; of one order by their numbers.
    """
    siblings = SellerTransfer.objects.filter(order=OuterRef("order")).order_by().values("order")
    first_of_order = Subquery(siblings.annotate(first=Min("pk")).values("first"))
    rows = SellerTransfer.objects.select_for_update(no_key=True).filter(pk__in=set(ids))
    return {transfer.pk: transfer for transfer in rows.order_by(first_of_order.desc(), "id")}
