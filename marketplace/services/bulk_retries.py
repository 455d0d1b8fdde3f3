"""Retrying many transfers that need a person, under guard.

They are chosen once and counted (``plan``); their requester starts it, and over a configured sum a second person
approves. Then a worker goes on with it (``bulk_steps``), until all have their results, too many fail again, or a person
stops it.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Case, F, OuterRef, Q, QuerySet, Subquery, Sum, When
from django.db.models.functions import Coalesce, Now

from marketplace.errors import NotAllowedNow
from marketplace.models import (
    GIVE_BACK_UNDECIDED,
    BulkRetry,
    BulkRetryItem,
    SellerTransfer,
    TransferReversal,
)
from marketplace.models.debts import OPEN
from marketplace.money import Money
from marketplace.services import outcomes, transfers
from marketplace.states import BulkRetryItemStatus, BulkRetryStatus, TransferStatus

logger = structlog.get_logger(__name__)

# At most so many transfers in one: more are hard to judge, and to hold in one's head.
LARGEST = 10_000
# What was planned may be started, and approved, for so long; so long too are one person's sums added up.
PLAN_LASTS = timedelta(hours=24)

_B, _I = BulkRetryStatus, BulkRetryItemStatus


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What transfers that need a person are chosen by; what is left out does not matter."""

    failed_leg: str = ""
    error_code: str = ""
    seller_id: int | None = None
    currency: str = ""
    # When the last error was.
    failed_after: datetime | None = None
    failed_before: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
            if value
        }

    def matching(self) -> QuerySet[SellerTransfer]:
        wanted = {
            "failed_leg": self.failed_leg,
            "last_error_code": self.error_code,
            "seller_id": self.seller_id,
            "currency": self.currency,
            "last_error_at__gte": self.failed_after,
            "last_error_at__lt": self.failed_before,
        }
        given = {name: value for name, value in wanted.items() if value}
        return with_amount(SellerTransfer.objects.filter(status=TransferStatus.PERMANENTLY_FAILED, **given))


@dataclass(frozen=True, kw_only=True)
class Over:
    """A sum, in minor units, that one person alone may not retry; ``before`` is what of it belongs to earlier ones."""

    currency: str
    amount: int
    before: int
    limit: int

    def __str__(self) -> str:
        earlier = f" with {Money(self.before, self.currency)} of the last 24 hours" if self.before else ""
        return f"{Money(self.amount, self.currency)}{earlier} is over {Money(self.limit, self.currency)}"


def with_amount(rows: QuerySet[SellerTransfer]) -> QuerySet[SellerTransfer]:
    """``amount_at_stake``: what the retry of a transfer moves, in minor units."""
    owed: QuerySet[TransferReversal, Any] = (
        TransferReversal.objects.filter(Q(status="pending") | OPEN, transfer=OuterRef("pk"))
        .order_by()
        .values("transfer")
        .annotate(total=Sum(F("amount") - F("unwanted_amount") - F("amount_recovered") - F("amount_written_off")))
        .values("total")
    )
    sending = Q(failed_leg=SellerTransfer.Leg.SENDING, stripe_transfer_id="")
    return rows.annotate(amount_at_stake=Case(When(sending, then=F("amount")), default=Coalesce(Subquery(owed), 0)))


# --- By people --------------------------------------------------------------------------------------------------------


def plan(*, criteria: Criteria, by: User, reason: str) -> BulkRetry:
    """Choose and count; nothing is retried. Committed on return.

    Raises:
        NotAllowedNow: no transfer matches, or more than ``LARGEST`` do.

    """
    with transaction.atomic(durable=True):
        rows = list(criteria.matching().order_by("id")[: LARGEST + 1])
        if not rows:
            raise NotAllowedNow("no transfer that needs a person matches")
        if len(rows) > LARGEST:
            raise NotAllowedNow(f"more than {LARGEST} transfers match: choose fewer, such as those of one error code")
        bulk_retry = BulkRetry(
            criteria=criteria.as_json(),
            reason=reason,
            requested_by=by,
            canary_size=settings.BULK_RETRY_CANARY_SIZE,
            per_minute=settings.BULK_RETRY_PER_MINUTE,
            max_error_percent=settings.BULK_RETRY_MAX_ERROR_PERCENT,
        )
        bulk_retry.add(actor=name_of(by), reason=reason)
        BulkRetryItem.objects.bulk_create(
            [_chosen(bulk_retry, number, row, criteria) for number, row in enumerate(_mixed(rows), start=1)],
            batch_size=1000,
        )
    logger.info("bulk_retry_planned", bulk_retry=bulk_retry.pk, transfers=len(rows), actor=name_of(by))
    return BulkRetry.objects.get(pk=bulk_retry.pk)


def _mixed(rows: list[SellerTransfer]) -> list[SellerTransfer]:
    """Of each cause one, then of each a second one, and so on: so the canary tries as many causes as it can."""
    seen: dict[tuple[str, str], int] = {}
    placed = []
    for row in rows:
        cause = (row.failed_leg, row.last_error_code)
        seen[cause] = seen.get(cause, 0) + 1
        placed.append((seen[cause], row.pk, row))
    return [row for _, _, row in sorted(placed, key=lambda each: each[:2])]


def _chosen(bulk_retry: BulkRetry, position: int, transfer: Any, criteria: Criteria) -> BulkRetryItem:
    why_not = transfers.why_no_retry(transfer).removeprefix(f"{transfer} ")
    if transfer.last_error_code == GIVE_BACK_UNDECIDED and criteria.error_code != GIVE_BACK_UNDECIDED:
        why_not = f"waits for a decision: choose the error code {GIVE_BACK_UNDECIDED} to pay such ones again"
    return BulkRetryItem(
        bulk_retry=bulk_retry,
        status=_I.REFUSED if why_not else _I.PLANNED,
        outcome=why_not,
        position=position,
        transfer=transfer,
        failed_leg=transfer.failed_leg,
        amount=transfer.amount_at_stake,
        currency=transfer.currency,
        error_code=transfer.last_error_code,
        transfer_updated_at=transfer.updated_at,
    )


def start(*, bulk_retry_id: int, by: User, if_version: frozenset[str] | None = None) -> BulkRetry:
    """Begin with what was planned, or ask for a second person where it is over the sum; committed on return.

    Raises:
        BulkRetry.DoesNotExist: no such bulk retry.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it is not planned, is too old, is another's, or nothing of it can be retried.

    """
    with transaction.atomic(durable=True):
        # What one person starts at the same time is added up: see ``over_limit``.
        User.objects.select_for_update(no_key=True).get(pk=by.pk)
        bulk_retry = BulkRetry.locked(bulk_retry_id)
        bulk_retry.require_version(if_version)
        _require(bulk_retry, _B.PLANNED)
        if bulk_retry.requested_by_id != by.pk:
            raise NotAllowedNow(f"{bulk_retry} was planned by another person, who starts it: plan your own")
        _require_fresh(bulk_retry)
        if not bulk_retry.items.filter(status=_I.PLANNED).exists():
            raise NotAllowedNow(f"nothing of {bulk_retry} can be retried")
        over = over_limit(bulk_retry)
        if over:
            bulk_retry.transition(
                _B.AWAITING_APPROVAL,
                actor=name_of(by),
                reason="; ".join(map(str, over)),
                started_at=Now(),
                needs_approval=True,
            )
        else:
            _begin(bulk_retry, actor=name_of(by), reason=bulk_retry.reason, started_at=Now())
    logger.info("bulk_retry_started", bulk_retry=bulk_retry_id, status=bulk_retry.status, actor=name_of(by))
    return BulkRetry.objects.get(pk=bulk_retry_id)


def approve(*, bulk_retry_id: int, by: User, reason: str, if_version: frozenset[str] | None = None) -> BulkRetry:
    """As the second person; committed on return.

    Raises:
        BulkRetry.DoesNotExist: no such bulk retry.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it does not wait for approval, is too old, or ``by`` is who asked for it.

    """
    with transaction.atomic(durable=True):
        bulk_retry = BulkRetry.locked(bulk_retry_id)
        bulk_retry.require_version(if_version)
        _require(bulk_retry, _B.AWAITING_APPROVAL)
        if bulk_retry.requested_by_id == by.pk:
            raise NotAllowedNow(f"{bulk_retry} is your own: another person has to approve it")
        _require_fresh(bulk_retry)
        _begin(bulk_retry, actor=name_of(by), reason=reason, approved_by_id=by.pk)
    logger.info("bulk_retry_approved", bulk_retry=bulk_retry_id, actor=name_of(by))
    return BulkRetry.objects.get(pk=bulk_retry_id)


def cancel(*, bulk_retry_id: int, by: User, reason: str, if_version: frozenset[str] | None = None) -> BulkRetry:
    """Give it up before anything was retried; committed on return.

    Raises:
        BulkRetry.DoesNotExist: no such bulk retry.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it has begun, or is over.

    """
    with transaction.atomic(durable=True):
        bulk_retry = BulkRetry.locked(bulk_retry_id)
        bulk_retry.require_version(if_version)
        _require(bulk_retry, _B.PLANNED, _B.AWAITING_APPROVAL)
        bulk_retry.transition(_B.CANCELED, actor=name_of(by), reason=reason)
    logger.info("bulk_retry_canceled", bulk_retry=bulk_retry_id, actor=name_of(by))
    return BulkRetry.objects.get(pk=bulk_retry_id)


def stop(*, bulk_retry_id: int, by: User, reason: str, if_version: frozenset[str] | None = None) -> BulkRetry:
    """Retry no further; what was retried goes on by itself. Committed on return: nothing is retried after it.

    Raises:
        BulkRetry.DoesNotExist: no such bulk retry.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it has not begun, or is over.

    """
    with transaction.atomic(durable=True):
        bulk_retry = BulkRetry.locked(bulk_retry_id)
        bulk_retry.require_version(if_version)
        _require(bulk_retry, _B.CANARY, _B.RUNNING)
        # A worker sees to the results of those that were retried.
        bulk_retry.transition(_B.STOPPED, actor=name_of(by), reason=reason, stop_reason=reason, next_retry_at=Now())
    logger.info("bulk_retry_stopped_by_person", bulk_retry=bulk_retry_id, actor=name_of(by))
    return BulkRetry.objects.get(pk=bulk_retry_id)


def over_limit(bulk_retry: BulkRetry) -> list[Over]:
    """Sums that need a second person, with what the same person started in the last ``PLAN_LASTS``: a sum is not under
    the limit for being asked for in parts.
    """
    limits = settings.BULK_RETRY_APPROVAL_ABOVE
    earlier = BulkRetryItem.objects.filter(
        bulk_retry__requested_by=bulk_retry.requested_by_id, bulk_retry__started_at__gt=Now() - PLAN_LASTS
    ).exclude(bulk_retry__status=_B.CANCELED)
    before = _sums(earlier.exclude(bulk_retry=bulk_retry))
    found = []
    for currency, amount in _sums(bulk_retry.items.all()).items():
        limit = limits.get(currency, limits[""])
        together = amount + before.get(currency, 0)
        if together > limit:
            found.append(Over(currency=currency, amount=together, before=before.get(currency, 0), limit=limit))
    return found


def _sums(items: QuerySet[BulkRetryItem]) -> dict[str, int]:
    chosen = items.exclude(status__in=[_I.REFUSED, _I.SKIPPED]).order_by().values("currency")
    return {row["currency"]: int(row["total"]) for row in chosen.annotate(total=Sum("amount")).order_by("currency")}


def name_of(user: User) -> str:
    return f"user:{user.get_username()}"


def _require(bulk_retry: BulkRetry, *statuses: BulkRetryStatus) -> None:
    if bulk_retry.status not in statuses:
        expected = " or ".join(status.value for status in statuses)
        raise NotAllowedNow(f"{bulk_retry} is {bulk_retry.status}: expected {expected}")


def _require_fresh(bulk_retry: BulkRetry) -> None:
    if not BulkRetry.objects.filter(pk=bulk_retry.pk, created_at__gt=Now() - PLAN_LASTS).exists():
        raise NotAllowedNow(f"{bulk_retry} was planned more than 24 hours ago: plan it again")


def _begin(bulk_retry: BulkRetry, *, actor: str, reason: str, **fields: Any) -> None:
    until = outcomes.in_(settings.BULK_RETRY_CANARY_WAIT)
    bulk_retry.transition(_B.CANARY, actor=actor, reason=reason, next_retry_at=Now(), canary_until=until, **fields)
