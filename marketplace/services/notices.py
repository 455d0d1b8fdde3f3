"""Telling people once: operators of each row that needs them, sellers of what was taken back and paid again.

Triggers write a notice for each such visit of a row. Here notices become messages, one by each channel that is
configured, and what Stripe is to other queues a receiver is to this one: claim (committed), send, settle (committed).
A crash after sending sends the same message again, under the same ids.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import BigIntegerField, Exists, F, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Coalesce, Now

from marketplace import selectors
from marketplace.backoff import RetryPolicy
from marketplace.errors import NotAllowedNow, StaleTransition
from marketplace.models import NOTICES_CHANNEL, Notice, NoticeMessage, Seller
from marketplace.models.lifecycle import Lifecycle
from marketplace.services import leases, outcomes, statement_lines

logger = structlog.get_logger(__name__)

WORK = "notice"
# So long a receiver is tried: once it answers again, what is still true is told.
GIVEN_UP_AFTER = timedelta(days=3)
# A seller is not told of what is older: it is no news, though SELLER_NOTICES be switched on today.
NEWS_FOR = timedelta(days=3)
RETRIES = RetryPolicy(max_retries=0, base=timedelta(minutes=1), maximum=timedelta(hours=1))
# In one message. What is beyond goes into the next one.
MOST_IN_A_MESSAGE = 10_000
# Written out one by one; all are in the totals.
LISTED = 50
# Two workers must not both think that they are within the limit. Any constant number.
_TURN = 0x6E6F7469636573


@dataclass(frozen=True, kw_only=True)
class _Due(leases.Due):
    """A notice that waits to become a message counts as well."""

    def sql(self) -> str:
        waiting = [f"({_DUE_IN} AND seller_id IS NULL ORDER BY due_at LIMIT 1)"] if channels() else []
        if settings.SELLER_NOTICES:
            waiting.append(f"({_DUE_IN} AND seller_id IS NOT NULL ORDER BY due_at LIMIT 1)")
        return f"LEAST({', '.join([super().sql(), *waiting])})"


_DUE_IN = """
    SELECT EXTRACT(EPOCH FROM due_at - statement_timestamp())::float8 FROM marketplace_notice WHERE due_at IS NOT NULL
"""
DUE = _Due(model=NoticeMessage, condition="next_retry_at IS NOT NULL")


def is_on() -> bool:
    """Whether anybody is told of anything, by the settings."""
    return bool(channels()) or settings.SELLER_NOTICES


def channels() -> list[NoticeMessage.Channel]:
    """By which operators are told, by the settings. None: notices wait until there is one."""
    return [
        channel
        for channel, is_set in (
            (NoticeMessage.Channel.EMAIL, settings.NOTICE_EMAILS),
            (NoticeMessage.Channel.WEBHOOK, settings.NOTICE_WEBHOOK_URL),
        )
        if is_set
    ]


# --- From notices to messages -----------------------------------------------------------------------------------------


def compose() -> None:
    """Make messages of the notices that are due; committed on return.

    Up to ``NOTICE_DIGEST_ABOVE`` in any ``NOTICE_DIGEST_INTERVAL`` are told at once, each by itself. When there are
    more, all that wait go together, and what comes after that waits for the interval's end. Each seller has such an
    interval, and so have all operators together.
    """
    with transaction.atomic(durable=True):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_TURN])
        if channels():
            _compose_for_operators()
        if settings.SELLER_NOTICES:
            _compose_for_sellers()


def _due() -> QuerySet[Notice, Notice]:
    return Notice.objects.filter(due_at__lte=Now())


def _compose_for_operators() -> None:
    waiting = list(_due().filter(seller=None).order_by("id").values_list("pk", flat=True)[:MOST_IN_A_MESSAGE])
    standing = list(standing_of(waiting).order_by("pk").values_list("pk", flat=True))
    to = [NoticeMessage(channel=channel) for channel in channels()]
    _write(to, waiting, standing, all_due=_due().filter(seller=None))


def _compose_for_sellers() -> None:
    _due().filter(seller__isnull=False, created_at__lt=Now() - NEWS_FOR).update(due_at=None)
    waiting: dict[int | None, list[int]] = {}
    due = _due().filter(seller__isnull=False).order_by("id").values_list("seller_id", "pk")
    for seller, notice in due[:MOST_IN_A_MESSAGE]:
        waiting.setdefault(seller, []).append(notice)
    for to, notices in waiting.items():
        like = NoticeMessage(channel=NoticeMessage.Channel.SELLER, seller_id=to)
        _write([like], notices, notices, all_due=_due().filter(seller=to))


def _write(
    to: Sequence[NoticeMessage],
    waiting: Sequence[int],
    standing: Sequence[int],
    *,
    all_due: QuerySet[Notice, Notice],
) -> None:
    """Messages like those in ``to`` of the notices that stand. Where it is too early, all are due when it is not."""
    together = _together(standing, lately=NoticeMessage.objects.filter(channel=to[0].channel, seller=to[0].seller_id))
    if isinstance(together, datetime):
        all_due.update(due_at=together)
        return
    NoticeMessage.objects.bulk_create(
        NoticeMessage(channel=like.channel, seller_id=like.seller_id, notices=notices, next_retry_at=Now())
        for like in to
        for notices in together
    )
    Notice.objects.filter(pk__in=waiting).update(due_at=None)


def _together(standing: Sequence[int], *, lately: QuerySet[NoticeMessage, NoticeMessage]) -> list[list[int]] | datetime:
    """Which notices go in one message; or when they may."""
    if not standing:
        return []
    one_by_one, interval = settings.NOTICE_DIGEST_ABOVE, settings.NOTICE_DIGEST_INTERVAL
    made = list(
        lately.filter(created_at__gt=Now() - interval)
        .order_by("-created_at")
        .values_list("created_at", flat=True)[: one_by_one + 1]
    )
    if len(made) + len(standing) <= one_by_one:
        return [[notice] for notice in standing]
    return made[0] + interval if made else [list(standing)]


def standing_of(notices: Sequence[int]) -> QuerySet[Notice, Notice]:
    """Those whose row still needs a person. One that was mended and failed anew has a later notice instead."""
    is_standing = (
        Q(transfer__status="permanently_failed")
        | Q(event__status="failed", event__next_retry_at=None)
        | Q(bulk_retry__status__in=["awaiting_approval", "stopped"])
        | Q(dispute__last_error_code__gt="")
    )
    of_the_same = Q()
    for row in ("transfer", "event", "bulk_retry", "dispute"):
        of_the_same |= Q(**{row: OuterRef(row)})
    later = Notice.objects.filter(of_the_same, kind=OuterRef("kind"), pk__gt=OuterRef("pk"))
    return Notice.objects.filter(is_standing, ~Exists(later), pk__in=notices)


# --- Sending ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Total:
    """Of one error code (of bulk retries: status) and currency; amount in minor units. Events have no currency and no
    amount, and bulk retries may have several.
    """

    code: str
    currency: str
    count: int
    amount: int


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a message says: of the rows as they are now."""

    message_id: UUID
    created_at: datetime
    count: int
    listed: Sequence[Notice]
    totals: Sequence[Total]


def claim(*, batch_size: int, lease: timedelta, most_to_sellers: int) -> list[NoticeMessage]:
    """Make messages of what waits, and lease those that are due, operators' first; committed on return."""
    leases.require_no_transaction()
    compose()
    claimed: list[NoticeMessage] = []
    for to, most in (("<>", batch_size), ("=", most_to_sellers)):
        room = min(most, batch_size - len(claimed))
        due = f"{DUE.condition} AND channel {to} 'seller'"
        claimed += leases.claim(NoticeMessage, due=due, batch_size=room, lease=lease) if room else []
    return claimed


def told(claimed: NoticeMessage) -> Told | None:
    """What there is to say still; None where all was mended meanwhile."""
    notices = standing_of(claimed.notices).select_related(
        "transfer__order", "transfer__seller", "event", "bulk_retry__requested_by", "dispute__order"
    )
    listed = list(notices.order_by("pk")[:LISTED])
    if not listed:
        return None
    totals: dict[tuple[str, str], Total] = {}
    rows = notices.values_list(
        Coalesce(
            "transfer__last_error_code", "event__last_error_code", "dispute__last_error_code", "bulk_retry__status"
        ),
        Coalesce("transfer__currency", "dispute__currency", Value("")),
        Coalesce(
            F("transfer__amount") - F("transfer__amount_reversed"),
            "dispute__amount",
            0,
            output_field=BigIntegerField(),
        ),
    )
    for code, currency, amount in rows.order_by("pk"):
        before = totals.get((code, currency)) or Total(code=code, currency=currency, count=0, amount=0)
        totals[code, currency] = replace(before, count=before.count + 1, amount=before.amount + amount)
    return Told(
        message_id=claimed.message_id,
        created_at=claimed.created_at,
        count=sum(total.count for total in totals.values()),
        listed=listed,
        totals=sorted(totals.values(), key=lambda total: (-total.count, total.code, total.currency)),
    )


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Money that left a seller (less than zero) or came again, in minor units of ``currency``."""

    amount: int
    currency: str
    order: int
    description: str
    stripe_id: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ToldSeller:
    """What a message to a seller says."""

    seller: Seller
    movements: Sequence[Movement]


def told_seller(claimed: NoticeMessage) -> ToldSeller | None:
    """What a message to a seller says; None where it is not wanted any more, or has no address."""
    seller = claimed.seller
    assert seller is not None, "a constraint says so"
    if not (seller.email and settings.SELLER_NOTICES):
        return None
    rows = Notice.objects.filter(pk__in=claimed.notices).select_related("reversal__transfer", "transfer")
    return ToldSeller(seller=seller, movements=[_movement(notice) for notice in rows.order_by("pk")])


def _movement(notice: Notice) -> Movement:
    if notice.reversal is not None:
        row, order, amount = notice.reversal, notice.reversal.transfer.order_id, -notice.reversal.amount
        return Movement(
            amount=amount,
            currency=row.currency,
            order=order,
            description=row.description or statement_lines.of_reversal(row.transfer, row.Cause(row.cause)),
            stripe_id=row.stripe_reversal_id,
            at=notice.created_at,
        )
    transfer = notice.transfer
    assert transfer is not None, "a constraint says so"
    return Movement(
        amount=transfer.amount,
        currency=transfer.currency,
        order=transfer.order_id,
        description=transfer.description or statement_lines.of_transfer(transfer),
        stripe_id=transfer.stripe_transfer_id,
        at=notice.created_at,
    )


def settle_sent(claimed: NoticeMessage) -> None:
    """The receiver took it; committed on return. Raises ``StaleTransition`` where the lease was lost."""
    _settle(claimed, outcome=NoticeMessage.Outcome.SENT)


def settle_mended(claimed: NoticeMessage) -> None:
    """Nothing is left to tell; committed on return. Raises as ``settle_sent``."""
    _settle(claimed, outcome=NoticeMessage.Outcome.MENDED)


def settle_not_sent(claimed: NoticeMessage, code: str, message: str) -> None:
    """Try again later, or not any more; committed on return. Raises as ``settle_sent``."""
    error = outcomes.error(code, message)
    if claimed.claimed_at - (claimed.resent_at or claimed.created_at) > GIVEN_UP_AFTER:
        _settle(claimed, outcome=NoticeMessage.Outcome.GIVEN_UP, error=error)
        logger.error("notice_given_up", message=str(claimed.message_id), channel=claimed.channel, error=message)
        return
    delay = RETRIES.delay(claimed.retry_count, jitter=random.random())  # noqa: S311 - no secret
    _settle(claimed, next_retry_at=outcomes.in_(delay), error=error)


def resend(*, message_id: int, actor: str, reason: str) -> NoticeMessage:
    """A message that its receiver has not taken is due now, for ``GIVEN_UP_AFTER`` anew, under the same ids: who got it
    after all can tell. Committed on return; the history says who and why.

    Raises:
        NoticeMessage.DoesNotExist: no such message.
        NotAllowedNow: it was taken, has nothing to tell any more, is due already, or is in a worker's hands.

    """
    with transaction.atomic(durable=True):
        message = NoticeMessage.objects.select_for_update(no_key=True).get(pk=message_id)
        if refusal := why_not_again(message, now=selectors.now()):
            raise NotAllowedNow(refusal)
        with Lifecycle.recording(actor=actor, reason=reason):
            NoticeMessage.objects.filter(pk=message_id).update(
                outcome="", ended_at=None, resent_at=Now(), next_retry_at=Now(), retry_count=0
            )
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '0')", [NOTICES_CHANNEL])
    logger.info("notice_resent", message=str(message.message_id), channel=message.channel, actor=actor)
    return NoticeMessage.objects.get(pk=message_id)


def why_not_again(message: NoticeMessage, *, now: datetime) -> str:
    """Why this message cannot be sent again as it is; empty where it can. ``now`` is the database's."""
    if message.outcome not in {"", NoticeMessage.Outcome.GIVEN_UP}:
        ended = NoticeMessage.Outcome(message.outcome).label
        return f"{message} is {ended}: only one that was given up, or waits for its next try, can be sent again"
    if message.lease_expires_at is not None and message.lease_expires_at > now:
        return f"{message} is in a worker's hands: it is being sent at this moment"
    if message.next_retry_at is not None and message.next_retry_at <= now:
        return f"{message} is due already: a worker takes it up as soon as it can"
    return ""


def _settle(
    claimed: NoticeMessage,
    *,
    outcome: str = "",
    next_retry_at: Any = None,
    error: Mapping[str, Any] = outcomes.CLEARED_ERROR,
) -> None:
    leases.require_no_transaction()
    ours = NoticeMessage.objects.filter(pk=claimed.pk, lease_token=claimed.lease_token)
    changed = ours.update(
        outcome=outcome,
        ended_at=Now() if outcome else None,
        next_retry_at=next_retry_at,
        retry_count=claimed.retry_count + (0 if outcome else 1),
        last_error_code=error["last_error_code"],
        last_error_message=error["last_error_message"],
        last_error_at=error["last_error_at"],
        lease_token=None,
        lease_expires_at=None,
    )
    if changed != 1:
        raise StaleTransition(f"the lease on {claimed} is no longer ours")
