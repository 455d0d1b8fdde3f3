"""One transfer: what our rows say, what Stripe says, and what Stripe's ledger says. Pure: nothing is asked here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from marketplace.gateway.contract import BookedFacts, ListedEntry, ListedTransfer, ReversalFacts, TransferFacts
from marketplace.models import Drift, SellerTransfer, TransferReversal
from marketplace.states import ReversalStatus, TransferStatus

# Their sending is not settled: a worker looks for them at Stripe before anything else.
BEING_SENT = (TransferStatus.PENDING, TransferStatus.FAILED)
TRANSFER, REVERSAL = "transfer", "transfer_refund"


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A row with its reversals and its seller; ``is_claimed_by_id``: it has this ``tr_…``, and not only its operation
    id.
    """

    transfer: SellerTransfer
    reversals: Sequence[TransferReversal]
    has_its_id: bool = True


@dataclass(frozen=True, kw_only=True)
class Difference:
    """``amount`` in the minor unit of ``currency``: what the drift is about."""

    kind: Drift
    amount: int
    currency: str
    detail: str
    stripe_id: str


def operation_of(facts: TransferFacts | ReversalFacts) -> UUID | None:
    try:
        return UUID(facts.operation_id)
    except ValueError:
        return None


def differences(
    ours: Ours | None, facts: TransferFacts, listed: Sequence[ReversalFacts], *, are_all: bool
) -> list[Difference]:
    """``listed`` are its reversals at Stripe, or, unless ``are_all``, the newest of them: then a difference of the sums
    tells that there is one, not which.

    What a worker will find by itself is none: a transfer being sent, a reversal that is owed still.
    """
    if ours is None:
        return [] if not facts.operation_id else [_of(facts, Drift.ORPHAN_TRANSFER, "no row has its operation id")]
    if not ours.has_its_id:
        return _of_sending(ours.transfer, facts)
    found = _of_transfer(ours.transfer, facts)
    unknown, owed = _unknown(ours, listed)
    found += unknown
    if are_all:
        found += _not_reversed(ours, listed)
    is_waiting = any(not (told.is_done or told.is_given_up) for told in listed)
    missing = ours.transfer.amount_reversed + owed - facts.amount_reversed
    if missing and not found and not is_waiting:
        kind = Drift.NOT_REVERSED if missing > 0 else Drift.REVERSED_UNKNOWN
        said = f"{ours.transfer.amount_reversed} reversed here, {facts.amount_reversed} at Stripe"
        found.append(_of(facts, kind, said, amount=abs(missing)))
    return found


def _of(facts: TransferFacts, kind: Drift, detail: str, *, amount: int | None = None) -> Difference:
    return Difference(
        kind=kind,
        amount=facts.amount if amount is None else amount,
        currency=facts.currency,
        detail=detail,
        stripe_id=facts.stripe_transfer_id,
    )


def _of_sending(transfer: SellerTransfer, facts: TransferFacts) -> list[Difference]:
    if transfer.stripe_transfer_id:
        said = f"a second transfer with the operation id of {transfer}, which is {transfer.stripe_transfer_id}"
        return [_of(facts, Drift.ORPHAN_TRANSFER, said)]
    if transfer.status in BEING_SENT:
        return []
    return [_of(facts, Drift.SENT_UNKNOWN, f"the row is {transfer.status} and has no tr_…")]


def _of_transfer(transfer: SellerTransfer, facts: TransferFacts) -> list[Difference]:
    found = []
    if (facts.amount, facts.currency) != (transfer.amount, transfer.currency):
        said = f"{transfer.amount} {transfer.currency} here, {facts.amount} {facts.currency} at Stripe"
        found.append(_of(facts, Drift.TRANSFER_DIFFERS, said, amount=abs(facts.amount - transfer.amount)))
    account = transfer.seller.stripe_account_id
    if facts.destination not in {"", account}:
        found.append(_of(facts, Drift.TRANSFER_DIFFERS, f"to {account} here, to {facts.destination} at Stripe"))
    return found


def _unknown(ours: Ours, listed: Sequence[ReversalFacts]) -> tuple[list[Difference], int]:
    """What Stripe has done and our rows do not say; and how much of what is done is owed still by our rows."""
    by_id = {each.stripe_reversal_id: each for each in ours.reversals if each.stripe_reversal_id}
    by_operation = {each.operation_id: each for each in ours.reversals}
    found: list[Difference] = []
    owed = 0
    for told in listed:
        if not told.is_done:
            continue
        operation_id = operation_of(told)
        row = by_id.get(told.stripe_reversal_id) or (by_operation.get(operation_id) if operation_id else None)
        if row is None:
            kind = Drift.ORPHAN_REVERSAL if told.operation_id else Drift.REVERSED_UNKNOWN
            found.append(_of_reversal(told, kind, "no row of ours is this reversal"))
        elif (told.amount, told.currency) != (row.amount, row.currency):
            said = f"{row} is {row.amount} {row.currency} here, {told.amount} {told.currency} at Stripe"
            found.append(_of_reversal(told, Drift.REVERSAL_DIFFERS, said, amount=abs(told.amount - row.amount)))
        elif row.status == ReversalStatus.PENDING:
            owed += told.amount
        elif row.status != ReversalStatus.SUCCEEDED:
            found.append(_of_reversal(told, Drift.REVERSED_UNKNOWN, f"{row} is {row.status} here"))
    return found, owed


def _of_reversal(told: ReversalFacts, kind: Drift, detail: str, *, amount: int | None = None) -> Difference:
    return Difference(
        kind=kind,
        amount=told.amount if amount is None else amount,
        currency=told.currency,
        detail=detail,
        stripe_id=told.stripe_reversal_id,
    )


def _not_reversed(ours: Ours, listed: Sequence[ReversalFacts]) -> list[Difference]:
    done = {told.stripe_reversal_id for told in listed if told.is_done}
    statuses = {told.stripe_reversal_id: told.status for told in listed}
    return [
        Difference(
            kind=Drift.NOT_REVERSED,
            amount=row.amount,
            currency=row.currency,
            detail=f"{row} succeeded here, at Stripe it is {statuses.get(row.stripe_reversal_id, 'not there')}",
            stripe_id=row.stripe_reversal_id,
        )
        for row in ours.reversals
        if row.status == ReversalStatus.SUCCEEDED and row.stripe_reversal_id not in done
    ]


# --- Stripe's own ledger ----------------------------------------------------------------------------------------------


def is_booked(listed: ListedTransfer) -> bool:
    """Whether the ledger says what the transfer says, and each of its reversals has an entry there."""
    booked, facts = listed.booked, listed.transfer
    is_as_sent = booked is None or _says(booked, -facts.amount, facts.currency)
    return is_as_sent and all(each.stripe_balance_transaction_id for each in listed.reversals if each.is_done)


def is_entry_of_a_reversal(entry: ListedEntry) -> bool:
    """Whether one of the transfer's reversals is what the ledger says. Of older ones than it shows nobody knows."""
    about = entry.about
    if about is None:
        return False
    for each in about.reversals:
        if each.stripe_balance_transaction_id == entry.booked.stripe_balance_transaction_id:
            return _says(entry.booked, each.amount, each.currency)
    return not about.has_all_reversals


def ledger_differences(facts: TransferFacts, entries: Iterable[BookedFacts]) -> list[Difference]:
    """All that the ledger has of a transfer, against the transfer's own sums."""
    found = []
    booked = list(entries)
    for kind, said in ((TRANSFER, -facts.amount), (REVERSAL, facts.amount_reversed)):
        of_kind = [each for each in booked if each.type == kind and each.currency == facts.currency]
        total = sum(each.amount for each in of_kind)
        if total != said:
            detail = f"balance transactions of type {kind} sum up to {total}, the transfer says {said}"
            found.append(_of(facts, Drift.LEDGER_DIFFERS, detail, amount=abs(total - said)))
    return found


def _says(booked: BookedFacts, amount: int, currency: str) -> bool:
    # Another currency is another matter: our balance of the transfer's own was converted.
    return booked.currency != currency or booked.amount == amount
