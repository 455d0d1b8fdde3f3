"""What each answer of Stripe makes of a transfer that owes a reversal: the table of answers."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Coalesce, Now

from marketplace.backoff import RetryPolicy
from marketplace.errors import Unwanted
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
from marketplace.models import REVERSING_CHANNEL, SellerTransfer, TransferReversal, confirmation
from marketplace.services import funds, leases, outcomes, reversals
from marketplace.services.reversal_claims import WORK, Claimed
from marketplace.states import ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)

PARTLY_REVERSED_ELSEWHERE = "partly_reversed_elsewhere"
RETRIES_EXHAUSTED = "retries_exhausted"
PENDING_AT_STRIPE = "pending_at_stripe"
# Stripe looks at a pending reversal about hourly (docs.stripe.com/connect/pending-transfer-reversals).
PENDING_REVERSAL_INTERVAL = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class NoLongerOwed:
    """Not an answer of Stripe's: looked for there because it is not wanted any more, and not found."""


# What the worker settles a claim with.
ReversalAnswer = ReverseTransferAnswer | NoLongerOwed


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
        remaining = reversals.open_reversals(self.transfer)
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
            self._move(reversals.after_part(amount_reversed), reason, next_retry_at=None, **proven)

    def _follow_pending(self, facts: ReversalFacts) -> None:
        reason = f"{facts.stripe_reversal_id} is pending at Stripe"
        self.reversal.change(
            reason=reason,
            actor=self.actor,
            stripe_reversal_id=facts.stripe_reversal_id,
            stripe_status=facts.status,
        )
        waiting = outcomes.error(PENDING_AT_STRIPE, f"{reason}: the seller's balance does not cover it yet")
        self._wait_for_long(reason, waiting, outcomes.in_(PENDING_REVERSAL_INTERVAL))

    def _pending_ended(self, facts: ReversalFacts) -> None:
        """Stripe gave the pending reversal up. A ``trr_…`` is a fact of its row, so the next try has its own row."""
        reason = f"{facts.stripe_reversal_id} ended as {facts.status} at Stripe"
        old = self.reversal
        proof: dict[str, Any] = {"stripe_reversal_id": facts.stripe_reversal_id, "stripe_status": facts.status}
        if old.unwanted_amount:
            self._end(ReversalStatus.FAILED, reason, **proof)
            return
        old.transition(ReversalStatus.FAILED, reason=reason, actor=self.actor, **proof)
        replacement = reversals.create(
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
        reversals.adopt(self.transfer, answer.reversals, actor=self.actor)
        # One that Stripe gave up took nothing. Whether its total counts those that are pending is not documented.
        done = [facts for facts in answer.reversals if facts.is_done] or answer.reversals
        newest = done[0].stripe_reversal_id if done else self.transfer.stripe_reversal_id
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
        next_try = outcomes.in_(settings.REVERSAL_INSUFFICIENT_FUNDS_INTERVAL)
        self._wait_for_long("waiting for the seller's balance", error, next_try)
        funds.watch(self.transfer.seller_id)

    def _wait_for_long(self, reason: str, error: dict[str, Any], next_retry_at: Any) -> None:
        """Stripe answered. So retries that were spent before are had again: in weeks of asking some answers are lost,
        and only those in a row say that something is wrong.
        """
        self._stay(reason, next_retry_at=next_retry_at, retry_count=0, **leases.RELEASED, **error)

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
