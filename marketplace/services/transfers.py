"""Paying the sellers: claim and settle sending, and an operator's retry of either leg."""

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_never

import structlog
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from marketplace import selectors
from marketplace.backoff import RetryPolicy
from marketplace.errors import ConflictingFacts, NotAllowedNow, NotNow, StaleTransition, StripeDenied
from marketplace.gateway.contract import (
    Busy,
    CreateTransferAnswer,
    Denied,
    InsufficientFunds,
    NotFound,
    Postponed,
    RateLimited,
    Refused,
    ServerError,
    TransferCreated,
    TransferFacts,
    TransferGateway,
    TransferRetrieved,
    Unknown,
)
from marketplace.models import SENDING_CHANNEL, SellerTransfer
from marketplace.services import leases, outcomes, reversal_settling, reversals
from marketplace.states import IN_MOTION, TransferStatus

logger = structlog.get_logger(__name__)

WORK = "transfer"
DUE = leases.Due(
    model=SellerTransfer, condition="status IN ('pending', 'failed')", work=WORK, whom="'seller ' || seller_id"
)

# --- Sending ----------------------------------------------------------------------------------------------------------


def claim(*, batch_size: int, lease: timedelta, past_breaker: bool = False) -> list[SellerTransfer]:
    """Lease transfers that are due to be sent; committed on return.

    From here on each may be at Stripe: a refund no longer cancels it, but waits for the outcome.
    """
    return leases.claim(
        SellerTransfer,
        due=DUE.condition,
        batch_size=batch_size,
        lease=lease,
        work=WORK,
        past_breaker=past_breaker,
        whom=DUE.whom,
        also_set=(
            ", in_doubt_before = taken.in_doubt, in_doubt = TRUE,"
            " first_attempted_at = COALESCE(taken.first_attempted_at, statement_timestamp())"
        ),
    )


def must_look(transfer: SellerTransfer) -> bool:
    """Whether Stripe's list of the order's transfers has to be read before anything may be sent."""
    first = transfer.first_attempted_at
    return transfer.look_first or (first is not None and transfer.claimed_at - first > outcomes.KEY_REUSE_WINDOW)


def find(transfer: SellerTransfer, listed: tuple[TransferFacts, ...]) -> TransferFacts | None:
    return next((facts for facts in listed if facts.operation_id == str(transfer.operation_id)), None)


def settle(
    claimed: SellerTransfer, answer: CreateTransferAnswer, *, actor: str, stripe_is_down: bool = False
) -> outcomes.Settled:
    """Write down what Stripe answered to sending, and what follows; committed on return.

    ``stripe_is_down``: Stripe gave no answer here, nor to a question that has nothing to do with this row.

    Raises:
        StaleTransition: the lease was lost meanwhile; nothing was changed.

    """
    with transaction.atomic(durable=True):
        transfer = leases.held(SellerTransfer, claimed.pk, claimed.lease_token)
        is_breaker_open = outcomes.count_failure(
            WORK,
            answer,
            channel=SENDING_CHANNEL,
            whom=f"seller {transfer.seller_id}, transfer {transfer.pk}",
            stripe_is_down=stripe_is_down,
            is_probe=claimed.is_probe,
        )
        settlement = _Settlement(transfer=transfer, actor=actor, spends=not is_breaker_open)
        match answer:
            case TransferCreated():
                settlement.completed(answer.transfer)
            case NotFound() | Refused():
                settlement.refused(outcomes.error_of(answer))
            case InsufficientFunds():
                settlement.not_sent(outcomes.error_of(answer))
            case Busy() | RateLimited():
                due = outcomes.in_(outcomes.BUSY_DELAY)
                settlement.nothing_ran(outcomes.error_of(answer), next_retry_at=due)
            case Postponed():
                due = outcomes.in_(timedelta(seconds=answer.seconds))
                settlement.nothing_ran(outcomes.error_of(answer), next_retry_at=due)
            case Denied():
                settlement.nothing_ran(outcomes.error_of(answer))
            case ServerError():
                settlement.try_again(outcomes.error_of(answer), look_first=True)
            case Unknown():
                settlement.try_again(outcomes.error_of(answer))
            case _:
                assert_never(answer)
        outcomes.count_success(WORK, answer)
    return outcomes.Settled(status=transfer.status, is_breaker_open=is_breaker_open)


def settle_unexpected(claimed: SellerTransfer, exception: Exception, *, actor: str) -> None:
    """An error of our own: the row waits like after an unknown outcome, so that it cannot stop the queue."""
    error = outcomes.error("unexpected_error", f"{type(exception).__name__}: {exception}")
    with transaction.atomic(durable=True):
        transfer = leases.held(SellerTransfer, claimed.pk, claimed.lease_token)
        # The call may be running still: the same key is safe, a new one would not be.
        _Settlement(transfer=transfer, actor=actor).try_again(error)


@dataclass(frozen=True, kw_only=True)
class _Settlement:
    """A claimed transfer, locked, and what may become of it."""

    transfer: SellerTransfer
    actor: str
    # False while Stripe fails for everyone: a failure then says nothing of this row.
    spends: bool = True

    def completed(self, facts: TransferFacts) -> None:
        if (facts.amount, facts.currency) != (self.transfer.amount, self.transfer.currency):
            stripes = f"{facts.stripe_transfer_id} at Stripe is {facts.amount} {facts.currency}"
            message = f"{stripes}, the row is {self.transfer.amount} {self.transfer.currency}"
            self._move_to_person(outcomes.error("conflicting_facts", message))
            return
        reason = f"Stripe made {facts.stripe_transfer_id}"
        self._move(
            TransferStatus.COMPLETED,
            reason,
            stripe_transfer_id=facts.stripe_transfer_id,
            in_doubt=False,
            retry_count=0,
            next_retry_at=None,
            **outcomes.CLEARED_ERROR,
        )
        if reversals.open_reversals(self.transfer):
            self.transfer.transition(
                TransferStatus.REVERSAL_PENDING,
                reason="refunded while it was being sent",
                actor=self.actor,
                next_retry_at=Now(),
            )

    def refused(self, error: dict[str, Any]) -> None:
        """Stripe said no to this send. Unless an earlier one may have got through, the seller was not paid and owes
        nothing; what is still to be paid needs a person.
        """
        if self.transfer.in_doubt_before or self._keep_back_what_is_owed(error):
            # Stripe may repeat its no under this key for a day, so a retry looks and then takes a new one.
            self._move_to_person(error, look_first=True)

    def not_sent(self, error: dict[str, Any]) -> None:
        """The platform's balance is too small. Stripe repeats that under this key for a day, so the next one is new."""
        if self.transfer.in_doubt_before or self._keep_back_what_is_owed(error):
            self.try_again(error, look_first=True)

    def nothing_ran(self, error: dict[str, Any], **fields: Any) -> None:
        """The send did not reach the endpoint, so whether the money moved is as known as before. Where it surely did
        not, refunds that came meanwhile are taken off, and nobody is paid for what was refunded first.
        """
        if self.transfer.in_doubt_before or self._keep_back_what_is_owed(error):
            self.stay(error, **fields)

    def _keep_back_what_is_owed(self, error: dict[str, Any]) -> bool:
        """Whether anything is left to pay once refunds that waited for the outcome are taken off."""
        reason = f"never sent ({error['last_error_code']}), and refunded meanwhile"
        self.transfer.change(reason="not sent", actor=self.actor, in_doubt=False)
        reversals.keep_back_owed(self.transfer, actor=self.actor, reason=reason)
        if self.transfer.status == TransferStatus.CANCELED:
            self.transfer.change(reason=reason, actor=self.actor, **leases.RELEASED)
            return False
        return True

    def try_again(self, error: dict[str, Any], *, look_first: bool = False) -> None:
        looks = {"look_first": True} if look_first else {}
        if not self.spends:
            # Due, while the breaker holds it back; behind the others, so that the next probe is another row's.
            self.stay(error, next_retry_at=Now(), **looks)
            return
        policy = RetryPolicy.from_settings("TRANSFER_RETRY")
        if policy.is_exhausted(self.transfer.retry_count):
            spent = f"{self.transfer.retry_count} retries spent; last: {error['last_error_code']}:"
            message = f"{spent} {error['last_error_message']}"
            self._move_to_person(
                {**error, "last_error_code": reversal_settling.RETRIES_EXHAUSTED, "last_error_message": message},
                **looks,
            )
            return
        waiting = {**outcomes.next_try(self.transfer, policy), **error, **looks}
        if self.transfer.status == TransferStatus.FAILED:
            self.stay(error, **waiting)
        else:
            self._move(TransferStatus.FAILED, error["last_error_code"], **waiting)

    def stay(self, error: dict[str, Any], **fields: Any) -> None:
        self.transfer.change(
            reason=error["last_error_code"],
            actor=self.actor,
            attempt=self.transfer.retry_count + 1,
            **{**leases.RELEASED, **error, **fields},
        )

    def _move_to_person(self, error: dict[str, Any], **fields: Any) -> None:
        self._move(
            TransferStatus.PERMANENTLY_FAILED,
            f"{error['last_error_code']}: {error['last_error_message']}",
            next_retry_at=None,
            failed_leg=SellerTransfer.Leg.SENDING,
            **error,
            **fields,
        )
        logger.error(
            "transfer_needs_a_person",
            transfer=self.transfer.pk,
            code=error["last_error_code"],
            request_id=error["last_error_request_id"],
        )

    def _move(self, to: TransferStatus, reason: str, **fields: Any) -> None:
        attempt = self.transfer.retry_count + 1
        self.transfer.transition(to, reason=reason, actor=self.actor, attempt=attempt, **leases.RELEASED, **fields)


def release(claimed: SellerTransfer, *, actor: str) -> None:
    """Give a row back that was not begun; committed on return. A row that is no longer ours stays as it is."""
    with transaction.atomic(durable=True), contextlib.suppress(StaleTransition):
        transfer = leases.held(SellerTransfer, claimed.pk, claimed.lease_token)
        # What went wrong last still did.
        error = {name: getattr(transfer, name) for name in outcomes.CLEARED_ERROR}
        _Settlement(transfer=transfer, actor=actor).nothing_ran(error)


# --- By an operator ---------------------------------------------------------------------------------------------------


def retry(*, transfer_id: int, actor: str, reason: str, if_version: frozenset[str] | None = None) -> SellerTransfer:
    """Resume the leg that failed, due now and with a fresh budget; committed on return.

    Two operators, or one who clicks twice, make one retry: the second finds another status.

    Raises:
        SellerTransfer.DoesNotExist: no such transfer.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: the status does not allow it, the ``tr_…`` is missing, or everything is refunded.

    """
    with transaction.atomic(durable=True):
        transfer = SellerTransfer.locked(transfer_id)
        transfer.require_version(if_version)
        resume(transfer, actor=actor, reason=reason)
    logger.info("transfer_retried", transfer=transfer_id, status=transfer.status, actor=actor)
    return transfer


def resume(transfer: SellerTransfer, *, actor: str, reason: str) -> None:
    """``retry`` inside the caller's transaction, which holds the lock.

    Raises:
        NotAllowedNow: as in ``retry``.

    """
    if refusal := why_no_retry(transfer):
        raise NotAllowedNow(refusal)
    if transfer.stripe_transfer_id:
        reversals.reopen(transfer, actor=actor, reason=reason)
    else:
        _retry_sending(transfer, actor=actor, reason=reason)


def why_no_retry(transfer: SellerTransfer) -> str:
    """Why this transfer cannot be retried as it is; empty where it can."""
    if transfer.status != TransferStatus.PERMANENTLY_FAILED:
        return f"transfer {transfer.pk} is {transfer.status}: only a permanently_failed one can be retried"
    if not transfer.stripe_transfer_id and transfer.failed_leg != SellerTransfer.Leg.SENDING:
        return (
            f"transfer {transfer.pk} has no Stripe transfer id: enter its tr_… first, since paying it again"
            " could pay the seller twice"
        )
    return ""


def _retry_sending(transfer: SellerTransfer, *, actor: str, reason: str) -> None:
    transfer.transition(
        TransferStatus.FAILED,
        reason=reason,
        actor=actor,
        next_retry_at=Now(),
        retry_count=0,
        failed_leg="",
    )
    if not transfer.in_doubt:
        reversals.keep_back_owed(transfer, actor=actor, reason="refunded before it was sent")


def try_now(*, transfer_id: int, actor: str, reason: str, if_version: frozenset[str] | None = None) -> SellerTransfer:
    """The next attempt of a transfer that waits is due now, in place of later; committed on return.

    Only its time changes: retries that are spent stay spent, the key stays, and what has to be looked for first is. So
    a worker comes to the same end as it would have later. The history says who and why.

    Raises:
        SellerTransfer.DoesNotExist: no such transfer.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it waits for no time: it is due already, in a worker's hands, or not in motion.

    """
    with transaction.atomic(durable=True):
        transfer = SellerTransfer.locked(transfer_id)
        transfer.require_version(if_version)
        if refusal := why_not_now(transfer, now=selectors.now()):
            raise NotAllowedNow(refusal)
        transfer.change(actor=actor, reason=reason, next_retry_at=Now())
        transfer.tell("woken", actor=actor, reason=reason)
    logger.info("transfer_woken", transfer=transfer_id, status=transfer.status, actor=actor)
    return transfer


def why_not_now(transfer: SellerTransfer, *, now: datetime) -> str:
    """Why this transfer's next attempt cannot be had sooner; empty where it can. ``now`` is the database's."""
    if transfer.next_retry_at is None or transfer.status not in IN_MOTION:
        return f"transfer {transfer.pk} is {transfer.status}: only one that waits for its next attempt can be tried now"
    if transfer.lease_expires_at is not None and transfer.lease_expires_at > now:
        return f"transfer {transfer.pk} is in a worker's hands: it is being tried at this moment"
    if transfer.next_retry_at <= now:
        return f"transfer {transfer.pk} is due already: a worker takes it up as soon as it can"
    return ""


def look_up(stripe_transfer_id: str, gateway: TransferGateway) -> TransferFacts:
    """What Stripe says of a transfer, for ``enter_transfer_id``; no transaction is open meanwhile.

    Raises:
        ConflictingFacts: not an id of a transfer, or Stripe has none of that id.
        StripeDenied: Stripe refuses our key or its permissions.
        NotNow: no answer, or one that says nothing of the transfer.

    """
    leases.require_no_transaction()
    if not stripe_transfer_id.startswith("tr_") or len(stripe_transfer_id) > 255:
        raise ConflictingFacts(f"{stripe_transfer_id[:50]!r} is not the id of a transfer: expected tr_…")
    match gateway.retrieve_transfer(stripe_transfer_id):
        case TransferRetrieved(transfer=found):
            return found
        case NotFound():
            raise ConflictingFacts(f"Stripe has no transfer {stripe_transfer_id}")
        case Denied(message=message):
            raise StripeDenied(message)
        case failure:
            raise NotNow(f"Stripe did not say what {stripe_transfer_id} is, try again: {failure.message}")


def why_no_id(transfer: SellerTransfer) -> str:
    """Why no id can be entered for this transfer as it is; empty where one can."""
    if transfer.stripe_transfer_id:
        return f"transfer {transfer.pk} has its id: {transfer.stripe_transfer_id}"
    if transfer.status != TransferStatus.PERMANENTLY_FAILED:
        return f"transfer {transfer.pk} is {transfer.status}: only a permanently_failed one takes an id"
    if transfer.failed_leg == SellerTransfer.Leg.SENDING:
        return (
            f"transfer {transfer.pk} failed while it was being sent and owes no reversal by itself:"
            " retry it, which finds a transfer that Stripe made after all"
        )
    return ""


def enter_transfer_id(
    *, transfer_id: int, found: TransferFacts, actor: str, reason: str, if_version: frozenset[str] | None = None
) -> SellerTransfer:
    """Give a row of an older system its ``tr_…``, so that its reversal can be retried; committed on return.

    ``found`` is what Stripe says of it, by ``look_up``: under another's id the retry would take the money from somebody
    who does not owe it.

    Raises:
        SellerTransfer.DoesNotExist: no such transfer.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: the row has an id, or does not wait for one.
        ConflictingFacts: at Stripe it is another transfer than the row says, or another row has it.

    """
    try:
        with transaction.atomic(durable=True):
            transfer = SellerTransfer.locked(transfer_id)
            transfer.require_version(if_version)
            if refusal := why_no_id(transfer):
                raise NotAllowedNow(refusal)
            _require_same(transfer, found)
            transfer.change(
                actor=actor,
                reason=reason,
                stripe_transfer_id=found.stripe_transfer_id,
                failed_leg=SellerTransfer.Leg.REVERSING,
            )
    except IntegrityError as error:
        # Of the table's constraints only the one on unique ids can speak here.
        raise ConflictingFacts(f"another transfer has the id {found.stripe_transfer_id}") from error
    return transfer


def _require_same(transfer: SellerTransfer, found: TransferFacts) -> None:
    """Raises ``ConflictingFacts`` where amount, currency or account differ, or it was made for another row of ours."""
    account = transfer.seller.stripe_account_id
    if (found.amount, found.currency, found.destination) != (transfer.amount, transfer.currency, account):
        raise ConflictingFacts(
            f"{found.stripe_transfer_id} is another transfer: {found.amount} {found.currency} to"
            f" {found.destination or 'no account'} at Stripe, while transfer {transfer.pk} is {transfer.amount}"
            f" {transfer.currency} to {account}"
        )
    if found.operation_id not in {"", str(transfer.operation_id)}:
        raise ConflictingFacts(
            f"{found.stripe_transfer_id} is another transfer: its operation_id at Stripe is {found.operation_id}"
        )
