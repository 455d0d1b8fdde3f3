"""Asking Stripe for a refund, once or again until it answers; and what is written down then."""

from datetime import timedelta
from typing import Any, assert_never

import structlog
from django.conf import settings
from django.db import OperationalError, transaction
from django.db.models.functions import Now

from marketplace import deadline
from marketplace.backoff import RetryPolicy
from marketplace.errors import ConflictingFacts, MalformedEvent, StaleTransition
from marketplace.gateway.contract import (
    Busy,
    CreateRefundAnswer,
    Denied,
    Failure,
    InsufficientFunds,
    NotFound,
    Postponed,
    RateLimited,
    RefundCreated,
    RefundFacts,
    RefundsListed,
    Refused,
    ServerError,
    TransferGateway,
    Unknown,
)
from marketplace.models import REFUNDING_CHANNEL, Refund
from marketplace.services import leases, outcomes, refund_records
from marketplace.states import RefundStatus

logger = structlog.get_logger(__name__)

WORK = "refund"
DUE = leases.Due(model=Refund, condition="status = 'requested'", work=WORK, whom="'order ' || order_id")


def send(refund: Refund, gateway: TransferGateway) -> Refund:
    """Ask Stripe for a refund just requested, and write down the answer. Without one it stays ``requested``: a worker
    goes on with the same key. Opens no transaction while Stripe is called.

    Nothing is sent any more after a lease's time: a worker may have looked and taken a new key, a day later.
    """
    with deadline.sending_until(deadline.clock() + settings.REVERSAL_LEASE.total_seconds()):
        answer = ask(refund, gateway)
    actor = f"user:{refund.requested_by.get_username()}" if refund.requested_by else "api"
    try:
        settle(refund, answer, actor=actor)
    except StaleTransition:
        logger.info("refund_settled_by_another", refund=refund.pk)
    return Refund.objects.get(pk=refund.pk)


def ask(refund: Refund, gateway: TransferGateway) -> CreateRefundAnswer:
    return gateway.create_refund(
        payment_intent=refund.order.stripe_payment_intent_id,
        amount=refund.amount,
        operation_id=refund.operation_id,
        idempotency_key=refund.idempotency_key,
    )


def claim(*, batch_size: int, lease: timedelta, past_breaker: bool = False) -> list[Refund]:
    """Lease requested refunds that are due; committed on return."""
    return leases.claim(
        Refund,
        due=DUE.condition,
        batch_size=batch_size,
        lease=lease,
        work=WORK,
        past_breaker=past_breaker,
        whom=DUE.whom,
    )


def must_look(refund: Refund) -> bool:
    first = refund.first_attempted_at
    return refund.look_first or (first is not None and refund.claimed_at - first > outcomes.KEY_REUSE_WINDOW)


def find(refund: Refund, listed: RefundsListed) -> RefundFacts | None:
    return next((facts for facts in listed.refunds if facts.operation_id == str(refund.operation_id)), None)


def settle(
    claimed: Refund, answer: CreateRefundAnswer, *, actor: str, stripe_is_down: bool = False
) -> outcomes.Settled:
    """Write down what Stripe answered to a refund that was asked for; committed on return.

    ``stripe_is_down``: Stripe gave no answer here, nor to a question that has nothing to do with this row.

    Raises:
        StaleTransition: the row is no longer as it was claimed; nothing was changed.

    """
    with transaction.atomic(durable=True):
        is_breaker_open = False
        if isinstance(answer, RefundCreated):
            refund = _settle_created(claimed, answer.refund, actor=actor)
        else:
            refund = _still_asking(claimed)
            is_breaker_open = outcomes.count_failure(
                WORK,
                answer,
                channel=REFUNDING_CHANNEL,
                whom=f"order {refund.order_id}",
                stripe_is_down=stripe_is_down,
                is_probe=claimed.is_probe,
            )
            _settle_failure(refund, answer, actor=actor, spends=not is_breaker_open)
        outcomes.count_success(WORK, answer)
    return outcomes.Settled(status=refund.status, is_breaker_open=is_breaker_open)


def _settle_failure(refund: Refund, answer: Failure, *, actor: str, spends: bool) -> None:
    match answer:
        case NotFound() | Refused(code="resource_missing"):
            # Another account's or mode's key, perhaps: no answer to whether an earlier send got through.
            _try_again(refund, outcomes.error_of(answer), actor=actor, look_first=True)
        case Refused():
            error = outcomes.error_of(answer)
            refund.transition(
                RefundStatus.FAILED,
                reason=f"{error['last_error_code']}: {error['last_error_message']}",
                actor=actor,
                next_retry_at=None,
                **leases.RELEASED,
                **error,
            )
        case Busy() | RateLimited():
            _stay(
                refund,
                outcomes.error_of(answer),
                actor=actor,
                next_retry_at=outcomes.in_(outcomes.BUSY_DELAY),
            )
        case Postponed():
            due = outcomes.in_(timedelta(seconds=answer.seconds))
            _stay(refund, outcomes.error_of(answer), actor=actor, next_retry_at=due)
        case Denied():
            _stay(refund, outcomes.error_of(answer), actor=actor, next_retry_at=Now())
        case InsufficientFunds() | ServerError():
            _try_again(refund, outcomes.error_of(answer), actor=actor, spends=spends, look_first=True)
        case Unknown():
            _try_again(refund, outcomes.error_of(answer), actor=actor, spends=spends)
        case _:
            assert_never(answer)


def _settle_created(claimed: Refund, facts: RefundFacts, *, actor: str) -> Refund:
    """Facts are facts, whoever holds the lease. Those that contradict ours are kept with the row, for a person."""
    try:
        with transaction.atomic():
            return refund_records.record(facts, actor=actor)
    except (ConflictingFacts, MalformedEvent) as conflict:
        if transaction.get_rollback():
            # Not even what was begun could be taken back: the database went away just then. The settle comes again.
            raise OperationalError("the database went away while facts were taken back") from conflict
        error = outcomes.error("conflicting_facts", conflict.message)
        refund = _still_asking(claimed)
        _try_again(refund, error, actor=actor)
        logger.exception("refund_needs_a_person", refund=claimed.pk, code="conflicting_facts")
        return refund


def settle_unexpected(claimed: Refund, exception: Exception, *, actor: str) -> None:
    error = outcomes.error("unexpected_error", f"{type(exception).__name__}: {exception}")
    with transaction.atomic(durable=True):
        _try_again(_still_asking(claimed), error, actor=actor)


def _still_asking(claimed: Refund) -> Refund:
    refund = (
        Refund.objects.select_for_update(no_key=True).filter(pk=claimed.pk, lease_token=claimed.lease_token).first()
    )
    if refund is None or refund.status != RefundStatus.REQUESTED:
        raise StaleTransition(f"refund {claimed.pk} is no longer ours to ask for")
    return refund


def _try_again(refund: Refund, error: dict[str, Any], *, actor: str, spends: bool = True, **fields: Any) -> None:
    """The buyer was promised the money, and unknown is not failed: this never gives up, at the pace of the maximum.

    While Stripe fails for everyone it is due at once: the breaker holds it back.
    """
    if not spends:
        _stay(refund, error, actor=actor, next_retry_at=Now(), **fields)
        return
    policy = RetryPolicy.from_settings("REVERSAL")
    _stay(refund, error, actor=actor, **outcomes.next_try(refund, policy), **fields)


def _stay(refund: Refund, error: dict[str, Any], *, actor: str, **fields: Any) -> None:
    refund.change(
        reason=error["last_error_code"],
        actor=actor,
        attempt=refund.retry_count + 1,
        **leases.RELEASED,
        **error,
        **fields,
    )
