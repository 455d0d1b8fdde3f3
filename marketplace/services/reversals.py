"""Bringing the money back: what is owed on a transfer, and what each answer of Stripe makes of it.

The transfer's row is the work that a worker claims; the oldest open ``TransferReversal`` is what it is about.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

import psycopg
import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Model
from django.db.models.functions import Coalesce, Now

from marketplace import throttle
from marketplace.backoff import RetryPolicy
from marketplace.errors import DATABASE_TROUBLE, NotAllowedNow, StaleTransition, Unwanted
from marketplace.gateway.contract import (
    AlreadyReversed,
    Busy,
    Denied,
    Failure,
    InsufficientFunds,
    NotFound,
    Postponed,
    RateLimited,
    Refused,
    ReversalFacts,
    Reversed,
    ReverseTransferAnswer,
    ServerError,
    Unknown,
)
from marketplace.metrics import POISON
from marketplace.models import (
    REVERSING_CHANNEL,
    Dispute,
    Refund,
    SellerTransfer,
    Source,
    TransferReversal,
    confirmation,
    together,
)
from marketplace.services import funds, leases, outcomes, statement_lines
from marketplace.states import ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)

WORK = "reversal"
DUE = leases.Due(model=SellerTransfer, condition="status = 'reversal_pending'", work=WORK)
PARTLY_REVERSED_ELSEWHERE = "partly_reversed_elsewhere"
RETRIES_EXHAUSTED = "retries_exhausted"
# Stripe looks at a pending reversal about hourly (docs.stripe.com/connect/pending-transfer-reversals).
PENDING_REVERSAL_INTERVAL = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class NoLongerOwed:
    """Not an answer of Stripe's: looked for there because it is not wanted any more, and not found."""


# What the worker settles a claim with.
ReversalAnswer = ReverseTransferAnswer | NoLongerOwed


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A transfer leased to us, and the reversal owed on it."""

    transfer: SellerTransfer
    reversal: TransferReversal
    # By the database's clock, as all times in rows: the host's may be wrong.
    claimed_at: datetime
    # The breaker is open, and this row is the one that asks whether Stripe is back.
    is_probe: bool = False

    @property
    def must_look(self) -> bool:
        """Whether Stripe's list of reversals has to be read before anything may be sent."""
        reversal = self.reversal
        if reversal.look_first or reversal.stripe_reversal_id or reversal.unwanted_amount:
            return True
        first = reversal.first_attempted_at
        return first is not None and self.claimed_at - first > outcomes.KEY_REUSE_WINDOW

    @property
    def reason(self) -> str:
        """Sent as metadata: equal in every attempt, for Stripe compares the parameters under a key."""
        owed = self.reversal
        if owed.refund_id:
            return f"refund {owed.refund_id}"
        return f"dispute {owed.dispute_id}" if owed.dispute_id else str(owed.cause)


# --- Owing ------------------------------------------------------------------------------------------------------------


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
    rows = list(transfer.reversals.exclude(status=ReversalStatus.CANCELED))
    gone = max(transfer.amount_reversed, sum(each.amount for each in rows if each.status == ReversalStatus.SUCCEEDED))
    gone += sum(each.amount_settled for each in transfer.reversals.all())
    gone += sum(each.amount_open for each in rows if each.status != ReversalStatus.SUCCEEDED and not each.is_replaced)
    owed = min(amount, transfer.amount - gone)
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


def open_reversals(transfer: SellerTransfer) -> list[TransferReversal]:
    return list(transfer.reversals.filter(status=ReversalStatus.PENDING).order_by("id"))


# --- Claiming ---------------------------------------------------------------------------------------------------------


def claim(
    *, batch_size: int, lease: timedelta, past_breaker: bool = False, turn: throttle.Reservation | None = None
) -> list[Claimed]:
    """Lease due transfers to this worker, each with the oldest reversal owed on it; committed on return.

    One statement: the reversal's key and the time of its first use are in the database before anything can be sent.
    With ``turn`` it also takes the first request's turn, where a row is due: for a worker that has nothing else to do,
    so that the request need not ask once more.
    """
    leases.require_no_transaction()
    params: dict[str, Any] = {
        "batch_size": batch_size,
        "lease": lease,
        "work": WORK,
        "past_breaker": past_breaker,
    }
    with connection.cursor() as cursor, connection.wrap_database_errors:
        if turn is None:
            results: Any = cursor
            results.adapters.register_loader("timestamptz", together.TIMESTAMPTZ_LOADER)
            results.execute(_CLAIM, params)
        else:
            # Bound by the server, which can keep the plan then: see ``leases.keep_plans``.
            results = psycopg.Cursor(cursor.connection)
            results.adapters.register_loader("timestamptz", together.TIMESTAMPTZ_LOADER)
            results.execute(_CLAIM_WITH_TURN, {**params, **turn.params}, prepare=True)
        rows = results.fetchall()
    if turn is not None and rows and rows[0][-1] is not None:
        turn.keep(rows[0][-3:])
    claimed = []
    for claimed_at, *values in rows:
        transfer = SellerTransfer.read(values[:_OWED_AT])
        owed = values[_OWED_AT:_OWED_UNTIL]
        reversal = _owed_or_set_aside(transfer) if owed[0] is None else TransferReversal.read(owed)
        if reversal is not None:
            claimed.append(Claimed(transfer=transfer, reversal=reversal, claimed_at=claimed_at, is_probe=past_breaker))
    return claimed


def _listed(model: type[Model], alias: str) -> str:
    return ", ".join(f"{alias}.{field.column}" for field in model._meta.concrete_fields)


_OWED_AT = len(SellerTransfer._meta.concrete_fields)
_OWED_UNTIL = _OWED_AT + len(TransferReversal._meta.concrete_fields)
_MARKED = f"""
    {leases.claiming(SellerTransfer, due=DUE.condition)}
    , marked AS (
        UPDATE marketplace_transferreversal AS owed
        SET first_attempted_at = COALESCE(owed.first_attempted_at, statement_timestamp())
        FROM (
            -- Looked up row by row: as a join, old statistics make it read all that are owed for each.
            SELECT (
                SELECT pending.id FROM marketplace_transferreversal AS pending
                WHERE pending.transfer_id = due.id AND pending.status = 'pending' ORDER BY pending.id LIMIT 1
            ) AS id
            FROM due
        ) AS oldest
        WHERE owed.id = oldest.id AND owed.status = 'pending'
        RETURNING owed.*
    )
"""  # noqa: S608 - columns of our own tables
_FOUND = f"statement_timestamp(), {_listed(SellerTransfer, 'claimed')}, {_listed(TransferReversal, 'marked')}"
_CLAIM = f"""
    {_MARKED}
    SELECT {_FOUND} FROM claimed LEFT JOIN marked ON marked.transfer_id = claimed.id
    ORDER BY claimed.next_retry_at, claimed.id
"""  # noqa: S608 - the same
_CLAIM_WITH_TURN = f"""
    {_MARKED}
    , turn AS ({throttle.reserving(when="EXISTS (SELECT FROM due)")})
    SELECT {_FOUND}, turn.after_last, turn.spaced, turn.read_at
    FROM claimed LEFT JOIN marked ON marked.transfer_id = claimed.id LEFT JOIN turn ON true
    ORDER BY claimed.next_retry_at, claimed.id
"""  # noqa: S608 - the same


def _owed_or_set_aside(transfer: SellerTransfer) -> TransferReversal | None:
    """As ``_owed_without_mark``. None where the lease was lost meanwhile, or where the row cannot be as it is: that one
    is a person's, and the others of the batch are worked on.
    """
    try:
        return _owed_without_mark(transfer)
    except StaleTransition:
        return None
    except DATABASE_TROUBLE:
        raise
    except Exception as exception:
        POISON.labels(work=WORK).inc()
        logger.exception("unexpected_error", work=WORK, transfer=transfer.pk)
        error = outcomes.error("unexpected_error", f"{type(exception).__name__}: {exception}")
        with suppress(StaleTransition), transaction.atomic(durable=True):
            leases.held(SellerTransfer, transfer.pk, transfer.lease_token).transition(
                TransferStatus.PERMANENTLY_FAILED,
                reason=f"{error['last_error_code']}: {error['last_error_message']}",
                actor="reversal worker",
                next_retry_at=None,
                failed_leg=SellerTransfer.Leg.REVERSING,
                **leases.RELEASED,
                **error,
            )
        return None


def _owed_without_mark(transfer: SellerTransfer) -> TransferReversal:
    """A claimed row of which the claiming statement saw no reversal. Either a reversal was written or settled while it
    ran; or a row of an older version says that a reversal is owed, but not which: then all that is left is.
    """
    with transaction.atomic(durable=True):
        leases.held(SellerTransfer, transfer.pk, transfer.lease_token)
        owed = next(iter(open_reversals(transfer)), None)
        if owed is None:
            owed = create(
                transfer,
                amount=transfer.amount_unreversed,
                cause=TransferReversal.Cause.OPERATOR,
                source=None,
                actor="reversal worker",
                reason="the row said that a reversal is owed, without a record of it",
                first_attempted_at=Now(),
                # Whoever wrote the row may have sent something already.
                look_first=True,
            )
            owed.refresh_from_db()
            return owed
        owed.change(actor="reversal worker", reason="claimed", first_attempted_at=Coalesce("first_attempted_at", Now()))
        return owed


def begin_generation(claimed: Claimed) -> Claimed:
    """A new idempotency key for an operation that a look at Stripe did not find; committed before it is sent. What came
    to be no longer owed meanwhile keeps its key: it is not to be sent.

    Raises:
        StaleTransition: the lease was lost meanwhile.

    """
    with transaction.atomic(durable=True):
        transfer = leases.held(SellerTransfer, claimed.transfer.pk, claimed.transfer.lease_token)
        reversal = TransferReversal.locked(claimed.reversal.pk)
        if not reversal.unwanted_amount:
            reversal.change(
                actor="reversal worker",
                reason="not found at Stripe",
                key_generation=reversal.key_generation + 1,
                first_attempted_at=Now(),
                # Of what is sent now nothing is known: ``too_early_to_drop`` waits for it.
                look_first=False,
            )
        return replace(claimed, transfer=transfer, reversal=reversal)


def find(claimed: Claimed, listed: tuple[ReversalFacts, ...]) -> ReversalFacts | None:
    """Ours among the reversals that Stripe lists: by its id once we know it, else by our operation id."""
    for facts in listed:
        if claimed.reversal.stripe_reversal_id:
            if facts.stripe_reversal_id == claimed.reversal.stripe_reversal_id:
                return facts
        elif facts.operation_id == str(claimed.reversal.operation_id):
            return facts
    return None


def too_early_to_drop(claimed: Claimed) -> Postponed | None:
    """Whether what is not wanted any more, and was not found, may reach Stripe after the look: what left as late as the
    lease of that time allowed, and takes the longest way.

    Nothing is on its way where ``look_first`` is set: Stripe has answered under this key, or nothing was sent under it.
    Each new send clears that. Where nobody wrote since when it is not wanted (the version before did not), the row's
    last change counts.
    """
    reversal = claimed.reversal
    if reversal.look_first:
        return None
    since = reversal.unwanted_at or reversal.updated_at
    wait = since + settings.REVERSAL_LEASE + outcomes.LONGEST_WAY - claimed.claimed_at
    if wait <= timedelta(0):
        return None
    message = "it is no longer owed, but may still be on its way to Stripe"
    return Postponed(message=message, seconds=wait.total_seconds())


# --- Settling ---------------------------------------------------------------------------------------------------------


def settle(claimed: Claimed, answer: ReversalAnswer, *, actor: str, stripe_is_down: bool = False) -> outcomes.Settled:
    """Write down what Stripe answered, and what follows; committed on return.

    ``stripe_is_down``: Stripe gave no answer here, nor to a question that has nothing to do with this row.

    Raises:
        StaleTransition: the lease was lost meanwhile; nothing was changed. Another worker finds the same answer, under
            the same key or by looking.
        Unwanted: it is no longer owed, or not all of it, or others of ours may be at Stripe: the order has to be locked
            first. Nothing was changed.

    """
    if isinstance(answer, Reversed) and answer.reversal.is_done:
        status = _settle_success(claimed, answer.reversal, actor=actor)
        if status:
            return outcomes.Settled(status=status)
    with transaction.atomic(durable=True):
        settled = settle_step_by_step(claimed, answer, actor=actor, stripe_is_down=stripe_is_down)
        outcomes.count_success(WORK, answer)
    return settled


def settle_step_by_step(
    claimed: Claimed, answer: ReversalAnswer, *, actor: str, stripe_is_down: bool, is_order_locked: bool = False
) -> outcomes.Settled:
    """As ``settle``, in the caller's transaction, which counts the success at its end."""
    transfer = leases.held(SellerTransfer, claimed.transfer.pk, claimed.transfer.lease_token)
    reversal = TransferReversal.locked(claimed.reversal.pk)
    # Wanted again since the look, it is canceled all the same, and owed anew: by levelling. And what was there already
    # may be one of ours that landed after it was dropped: then too much was taken.
    if (reversal.unwanted_amount or isinstance(answer, NoLongerOwed | AlreadyReversed)) and not is_order_locked:
        raise Unwanted(f"{reversal} may be no longer owed as it was")
    is_breaker_open = outcomes.count_failure(
        WORK,
        answer,
        channel=REVERSING_CHANNEL,
        whom=f"seller {transfer.seller_id}, transfer {transfer.pk}",
        stripe_is_down=stripe_is_down,
        is_probe=claimed.is_probe,
    )
    settlement = _Settlement(
        transfer=transfer,
        reversal=reversal,
        actor=actor,
        now=claimed.claimed_at,
        spends=not is_breaker_open,
    )
    match answer:
        case NoLongerOwed():
            settlement.no_longer_owed()
        case Reversed():
            settlement.reversed(answer.reversal)
        case AlreadyReversed():
            settlement.already_reversed(answer)
        case NotFound() | Refused():
            # No such transfer, for this key: another account's, perhaps. That says nothing of what was sent before.
            is_sure = isinstance(answer, Refused) or settlement.is_first_send
            settlement.refused(outcomes.error_of(answer), is_sure=is_sure)
        case InsufficientFunds():
            settlement.wait_for_funds(answer)
        case Busy() | RateLimited():
            settlement.wait(answer, outcomes.BUSY_DELAY)
        case Postponed():
            settlement.wait(answer, timedelta(seconds=answer.seconds))
        case Denied():
            settlement.give_back(answer)
        case ServerError():
            settlement.try_again(outcomes.error_of(answer), look_first=True)
        case Unknown():
            settlement.try_again(outcomes.error_of(answer), look_first=False)
        case _:
            assert_never(answer)
    return outcomes.Settled(status=transfer.status, is_breaker_open=is_breaker_open)


def _settle_success(claimed: Claimed, facts: ReversalFacts, *, actor: str) -> str:
    """Both rows and their history in one statement, under the lease's token; the new status. Empty where anything is
    not as it was claimed: nothing was changed, and the longer way finds out what it is.
    """
    transfer, reversal = claimed.transfer, claimed.reversal
    if reversal.waiting_for_funds_since is not None or reversal.unwanted_amount:
        # Others may wait in line behind it; or the order has to be levelled.
        return ""
    leases.require_no_transaction()
    return confirmation.confirm(
        transfer,
        reversal,
        amount=facts.amount,
        currency=facts.currency,
        stripe_reversal_id=facts.stripe_reversal_id,
        stripe_status=facts.status,
        work=WORK,
        actor=actor,
        reason=_confirmed(facts),
    )


def _confirmed(facts: ReversalFacts) -> str:
    return f"Stripe confirmed {facts.stripe_reversal_id}"


def settle_missing_id(claimed: Claimed, *, actor: str) -> None:
    """The row owes a reversal but has no ``tr_…``: nothing can be sent. Raises as ``settle``."""
    message = "the row has no Stripe transfer id: enter it, then retry"
    _settle_without_answer(claimed, outcomes.error("missing_transfer_id", message), actor=actor, final=True)


def settle_unexpected(claimed: Claimed, exception: Exception, *, actor: str) -> None:
    """An error of our own: the row waits like after an unknown outcome, so that it cannot stop the queue."""
    error = outcomes.error("unexpected_error", f"{type(exception).__name__}: {exception}")
    _settle_without_answer(claimed, error, actor=actor, final=False)


def _settle_without_answer(claimed: Claimed, error: dict[str, Any], *, actor: str, final: bool) -> None:
    with transaction.atomic(durable=True):
        transfer = leases.held(SellerTransfer, claimed.transfer.pk, claimed.transfer.lease_token)
        reversal = TransferReversal.locked(claimed.reversal.pk)
        settlement = _Settlement(transfer=transfer, reversal=reversal, actor=actor, now=claimed.claimed_at)
        if final:
            settlement.needs_a_person(error)
        else:
            # The call may be running still: the same key is safe, a new one would not be.
            settlement.try_again(error, look_first=False)


@dataclass(frozen=True, kw_only=True)
class _Settlement:
    """Both rows of one claim, locked, and what may become of them."""

    transfer: SellerTransfer
    reversal: TransferReversal
    actor: str
    # The database's, as it was when the row was claimed.
    now: datetime
    # False while Stripe fails for everyone: a failure then says nothing of this row.
    spends: bool = True

    def reversed(self, facts: ReversalFacts) -> None:
        ours = self.reversal
        if (facts.amount, facts.currency) != (ours.amount, ours.currency):
            stripes = f"{facts.stripe_reversal_id} at Stripe is {facts.amount} {facts.currency}"
            message = f"{stripes}, our reversal {ours.pk} is {ours.amount} {ours.currency}"
            self.needs_a_person(outcomes.error("conflicting_facts", message))
        elif facts.is_done:
            self._succeed(facts)
        elif facts.is_given_up:
            self._pending_ended(facts)
        else:
            # Pending, or a word we do not know: it lives until Stripe says otherwise.
            self._follow_pending(facts)

    def _succeed(self, facts: ReversalFacts) -> None:
        self._end(
            ReversalStatus.SUCCEEDED,
            _confirmed(facts),
            amount_reversed=self.transfer.amount_reversed + facts.amount,
            newest=facts.stripe_reversal_id,
            attempt=self.transfer.retry_count + 1,
            stripe_reversal_id=facts.stripe_reversal_id,
            stripe_status=facts.status,
        )

    def no_longer_owed(self) -> None:
        """It was not wanted any more, and is not at Stripe. What of it is owed still is owed anew by levelling."""
        self._end(ReversalStatus.CANCELED, "no longer owed, and not at Stripe")

    def _end(
        self, to: ReversalStatus, reason: str, *, amount_reversed: int | None = None, newest: str = "", **fields: Any
    ) -> None:
        """The reversal is done with, and so is its place in the seller's line. Of the transfer is reversed what was, by
        the ``newest`` of its reversals, unless said otherwise.
        """
        had_waited = self.reversal.waiting_for_funds_since is not None
        self.reversal.transition(
            to, reason=reason, actor=self.actor, unwanted_amount=0, waiting_for_funds_since=None, **fields
        )
        self._conclude(
            amount_reversed=self.transfer.amount_reversed if amount_reversed is None else amount_reversed,
            stripe_reversal_id=newest or self.transfer.stripe_reversal_id,
            reason=reason,
        )
        if had_waited:
            funds.next_in_line(self.transfer)

    def _conclude(self, *, amount_reversed: int, stripe_reversal_id: str, reason: str) -> None:
        """The transfer after a reversal is done with: done, or on to the next one owed."""
        proven = {
            **outcomes.CLEARED_ERROR,
            **leases.RELEASED,
            "amount_reversed": amount_reversed,
            "stripe_reversal_id": stripe_reversal_id,
            "failed_leg": "",
        }
        remaining = open_reversals(self.transfer)
        if amount_reversed == self.transfer.amount:
            for reversal in remaining:
                reversal.transition(
                    ReversalStatus.CANCELED,
                    reason="nothing is left to take back",
                    actor=self.actor,
                    unwanted_amount=0,
                )
            self._move(TransferStatus.REVERSED, reason, next_retry_at=None, **proven)
        elif remaining:
            self._stay(f"{reason}; more is owed", next_retry_at=Now(), retry_count=0, **proven)
        else:
            self._move(after_part(amount_reversed), reason, next_retry_at=None, **proven)

    def _follow_pending(self, facts: ReversalFacts) -> None:
        reason = f"{facts.stripe_reversal_id} is pending at Stripe"
        self.reversal.change(
            reason=reason,
            actor=self.actor,
            stripe_reversal_id=facts.stripe_reversal_id,
            stripe_status=facts.status,
        )
        waiting = outcomes.error("pending_at_stripe", f"{reason}: the seller's balance does not cover it yet")
        self._stay(reason, next_retry_at=outcomes.in_(PENDING_REVERSAL_INTERVAL), **leases.RELEASED, **waiting)

    def _pending_ended(self, facts: ReversalFacts) -> None:
        """Stripe gave the pending reversal up. A ``trr_…`` is a fact of its row, so the next try has its own row."""
        reason = f"{facts.stripe_reversal_id} ended as {facts.status} at Stripe"
        old = self.reversal
        proof: dict[str, Any] = {"stripe_reversal_id": facts.stripe_reversal_id, "stripe_status": facts.status}
        if old.unwanted_amount:
            self._end(ReversalStatus.FAILED, reason, **proof)
            return
        old.transition(ReversalStatus.FAILED, reason=reason, actor=self.actor, **proof)
        replacement = create(
            self.transfer,
            amount=old.amount,
            cause=TransferReversal.Cause(old.cause),
            source=old.source,
            actor=self.actor,
            reason=reason,
            in_place_of=old.in_place_of or old,
            waiting_for_funds_since=old.waiting_for_funds_since or Now(),
        )
        replacement.refresh_from_db()
        replace(self, reversal=replacement).wait_for_funds(InsufficientFunds(message=reason))

    def already_reversed(self, answer: AlreadyReversed) -> None:
        """Too little is left. Ours is there: adopt it. Others took all: adopt theirs. Else a person decides."""
        ours = next((f for f in answer.reversals if f.operation_id == str(self.reversal.operation_id)), None)
        if ours is not None:
            self.reversed(ours)
            return
        if answer.transfer.amount != self.transfer.amount:
            message = f"the transfer is {answer.transfer.amount} at Stripe, {self.transfer.amount} here"
            self.needs_a_person(outcomes.error("amount_differs", message, answer.request_id))
            return
        adopt(self.transfer, answer.reversals, actor=self.actor)
        newest = answer.reversals[0].stripe_reversal_id if answer.reversals else self.transfer.stripe_reversal_id
        taken = answer.transfer.amount_reversed
        logger.warning(
            "transfer_already_reversed",
            transfer=self.transfer.pk,
            stripe_transfer_id=self.transfer.stripe_transfer_id,
            amount_reversed=taken,
            amount=self.transfer.amount,
            reversals=[facts.stripe_reversal_id for facts in answer.reversals],
        )
        if taken == self.transfer.amount:
            reason = f"already reversed at Stripe by {newest}"
            self._end(ReversalStatus.CANCELED, reason, amount_reversed=taken, newest=newest)
        else:
            message = f"{self.transfer.amount - taken} is left at Stripe, {self.reversal.amount} is owed"
            self.refused(
                outcomes.error(PARTLY_REVERSED_ELSEWHERE, message, answer.request_id),
                amount_reversed=taken,
                stripe_reversal_id=newest,
            )

    @property
    def is_first_send(self) -> bool:
        """Whether its key was first sent in this attempt, which has looked for whatever was sent under earlier ones."""
        first = self.reversal.first_attempted_at
        return first is not None and first >= self.now and not self.reversal.look_first

    def refused(self, error: dict[str, Any], *, is_sure: bool = True, **fields: Any) -> None:
        """A plain no. Stripe may repeat it under this key for a day, so a retry looks and then takes a new one.

        ``is_sure``: nothing that was sent before is there either.
        """
        refused = is_sure and not self.reversal.stripe_reversal_id
        self.needs_a_person(error, look_first=True, refused=refused, **fields)

    def needs_a_person(
        self, error: dict[str, Any], *, look_first: bool | None = None, refused: bool = False, **fields: Any
    ) -> None:
        reason = f"{error['last_error_code']}: {error['last_error_message']}"
        self.reversal.transition(
            ReversalStatus.FAILED,
            reason=reason,
            actor=self.actor,
            look_first=self.reversal.look_first if look_first is None else look_first,
            refused=refused,
        )
        self._move(
            TransferStatus.PERMANENTLY_FAILED,
            reason,
            next_retry_at=None,
            failed_leg=SellerTransfer.Leg.REVERSING,
            **leases.RELEASED,
            **error,
            **fields,
        )
        logger.error(
            "reversal_needs_a_person",
            transfer=self.transfer.pk,
            reversal=self.reversal.pk,
            stripe_transfer_id=self.transfer.stripe_transfer_id,
            code=error["last_error_code"],
            request_id=error["last_error_request_id"],
        )

    def wait_for_funds(self, failure: InsufficientFunds) -> None:
        """Waits on its own, longer schedule and spends no retry: the seller may sell again any day."""
        error = outcomes.error_of(failure)
        since = self.reversal.waiting_for_funds_since
        if since is not None and self.now - since > settings.REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE:
            self.refused(error)
            return
        self.reversal.change(
            reason="insufficient funds",
            actor=self.actor,
            waiting_for_funds_since=Coalesce("waiting_for_funds_since", Now()),
            # Stripe repeats this answer under the same key for a day.
            look_first=True,
        )
        next_retry_at = outcomes.in_(settings.REVERSAL_INSUFFICIENT_FUNDS_INTERVAL)
        self._stay("waiting for the seller's balance", next_retry_at=next_retry_at, **leases.RELEASED, **error)
        funds.watch(self.transfer.seller_id)

    def wait(self, failure: Failure, delay: timedelta) -> None:
        """Nothing ran at Stripe, so nothing is spent."""
        error = outcomes.error_of(failure)
        self._stay(error["last_error_code"], next_retry_at=outcomes.in_(delay), **leases.RELEASED, **error)

    def give_back(self, failure: Denied) -> None:
        """Our key is at fault, not the row: it stays due as it was."""
        self._stay("denied", **leases.RELEASED, **outcomes.error_of(failure))

    def try_again(self, error: dict[str, Any], *, look_first: bool) -> None:
        if not self.spends:
            self._mark_look_first(error, look_first=look_first)
            # Due, while the breaker holds it back; behind the others, so that the next probe is another row's.
            self._stay(error["last_error_code"], next_retry_at=Now(), **leases.RELEASED, **error)
            return
        policy = RetryPolicy.from_settings("REVERSAL")
        if policy.is_exhausted(self.transfer.retry_count):
            spent = f"{self.transfer.retry_count} retries spent; last: {error['last_error_code']}:"
            message = f"{spent} {error['last_error_message']}"
            exhausted = {**error, "last_error_code": RETRIES_EXHAUSTED, "last_error_message": message}
            self.needs_a_person(exhausted, look_first=look_first or None)
            return
        self._mark_look_first(error, look_first=look_first)
        self._stay(error["last_error_code"], **outcomes.next_try(self.transfer, policy), **leases.RELEASED, **error)

    def _mark_look_first(self, error: dict[str, Any], *, look_first: bool) -> None:
        if look_first and not self.reversal.look_first:
            self.reversal.change(reason=error["last_error_code"], actor=self.actor, look_first=True)

    def _move(self, to: TransferStatus, reason: str, **fields: Any) -> None:
        attempt = self.transfer.retry_count + 1
        self.transfer.transition(to, reason=reason, actor=self.actor, attempt=attempt, **fields)

    def _stay(self, reason: str, **fields: Any) -> None:
        attempt = self.transfer.retry_count + 1
        self.transfer.change(reason=reason, actor=self.actor, attempt=attempt, **fields)


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
    failed = [
        each for each in transfer.reversals.filter(status=ReversalStatus.FAILED).order_by("id") if not each.is_replaced
    ]
    replaced = []
    for reversal in failed:
        if reversal.amount <= transfer.amount_unreversed and not reversal.amount_settled:
            again: dict[str, Any] = {"waiting_for_funds_since": None, "refused": False}
            reversal.transition(ReversalStatus.PENDING, reason=reason, actor=actor, **again)
        else:
            replaced.append((reversal, reversal.amount_open))
            less = f"{reason}; less is left"
            reversal.transition(ReversalStatus.CANCELED, reason=less, actor=actor, unwanted_amount=0)
    left = transfer.amount_unreversed - sum(each.amount_open for each in open_reversals(transfer))
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
