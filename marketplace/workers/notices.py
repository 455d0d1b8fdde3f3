"""The queue of messages to people: to operators by e-mail and by a webhook, to sellers by e-mail."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any, assert_never

import structlog
from django.conf import settings
from django.template.loader import render_to_string
from django.urls import reverse

from marketplace import selectors
from marketplace.metrics import NOTICES
from marketplace.models import (
    NOTICES_CHANNEL,
    BulkRetry,
    Dispute,
    Notice,
    NoticeMessage,
    SellerTransfer,
    WebhookEvent,
)
from marketplace.money import Money
from marketplace.outgoing import mail, webhook
from marketplace.outgoing.contract import Answer, NotSent, Sent
from marketplace.services import leases, notices
from marketplace.services.notices import Told, ToldSeller
from marketplace.states import BulkRetryItemStatus
from marketplace.workers.loop import Few, elapsed_ms, persistently

logger = structlog.get_logger(__name__)


class NoticeQueue:
    """Messages that are due. A receiver that fails holds back its own messages, and nothing else: of those to sellers,
    which may be thousands, this process has at most ``most_to_sellers`` in hand. A mail server that says nothing keeps
    the thread of each for ``EMAIL_TIMEOUT``.
    """

    name = notices.WORK
    channel = NOTICES_CHANNEL
    due: leases.Due = notices.DUE

    def __init__(self, *, most_to_sellers: int = 1) -> None:
        self._to_sellers = Few(most_to_sellers)

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[NoticeMessage]:
        claimed = notices.claim(batch_size=batch_size, lease=lease, most_to_sellers=self._to_sellers.room)
        self._to_sellers.add(each.pk for each in claimed if each.channel == NoticeMessage.Channel.SELLER)
        return claimed

    def is_held_back(self, claimed: NoticeMessage) -> bool:  # noqa: ARG002 - nothing of it concerns Stripe
        return False

    def describe(self, claimed: NoticeMessage) -> dict[str, Any]:
        return {
            "message": str(claimed.message_id),
            "channel": claimed.channel,
            "notices": len(claimed.notices),
            "attempt": claimed.retry_count + 1,
        }

    def perform(self, claimed: NoticeMessage) -> None:
        try:
            self._perform(claimed)
        finally:
            self._to_sellers.done_with(claimed.pk)

    def _perform(self, claimed: NoticeMessage) -> None:
        started = time.monotonic()
        answer = _send(claimed)
        if answer is None:
            persistently(lambda: notices.settle_mended(claimed))
            logger.info("notice_mended", **self.describe(claimed))
            return
        NOTICES.labels(channel=claimed.channel, answer=type(answer).__name__).inc()
        described = {**self.describe(claimed), "milliseconds": elapsed_ms(started)}
        match answer:
            case Sent():
                logger.info("notice_sent", **described)
                persistently(lambda: notices.settle_sent(claimed))
            case NotSent(code=code, message=message):
                logger.warning("notice_not_sent", **described, code=code, error=message)
                persistently(lambda: notices.settle_not_sent(claimed, code, message))
            case _:
                assert_never(answer)

    def settle_unexpected(self, claimed: NoticeMessage, exception: Exception) -> None:
        notices.settle_not_sent(claimed, "unexpected_error", f"{type(exception).__name__}: {exception}")

    def release(self, claimed: NoticeMessage) -> None:
        self._to_sellers.done_with(claimed.pk)
        leases.release(NoticeMessage, claimed.pk, claimed.lease_token)


def _send(claimed: NoticeMessage) -> Answer | None:
    """None: there is nothing to say any more."""
    if claimed.channel == NoticeMessage.Channel.SELLER:
        return _send_to_seller(claimed)
    if claimed.channel not in notices.channels():
        return NotSent(code="not_configured", message=f"{claimed.channel} was switched off after it was written")
    told = notices.told(claimed)
    if told is None:
        return None
    if claimed.channel == NoticeMessage.Channel.EMAIL:
        return _mail(settings.NOTICE_EMAILS, claimed, "person", mail_context(told))
    body = json.dumps(payload(told)).encode()
    return webhook.post(
        settings.NOTICE_WEBHOOK_URL, body, secret=settings.NOTICE_WEBHOOK_SECRET, message_id=told.message_id
    )


def _send_to_seller(claimed: NoticeMessage) -> Answer | None:
    told = notices.told_seller(claimed)
    return _mail([told.seller.email], claimed, "seller", seller_context(told)) if told is not None else None


def _mail(to: Sequence[str], claimed: NoticeMessage, template: str, context: Mapping[str, Any]) -> Answer:
    return mail.send(
        to,
        message_id=claimed.message_id,
        subject=render_to_string(f"notices/{template}_subject.txt", context),
        text=render_to_string(f"notices/{template}.txt", context),
        html=render_to_string(f"notices/{template}.html", context),
    )


# --- What is said -----------------------------------------------------------------------------------------------------


def payload(told: Told) -> Mapping[str, Any]:
    """For programs: ids and amounts, no names. docs/operations.md describes it."""
    return {
        "id": str(told.message_id),
        "type": "needs_a_person",
        "created": int(told.created_at.timestamp()),
        "count": told.count,
        "totals": [
            {"code": total.code, "currency": total.currency, "count": total.count, "amount": total.amount}
            for total in told.totals
        ],
        "notices": [_described(notice) for notice in told.listed],
    }


def _described(notice: Notice) -> dict[str, Any]:
    """Its ``url`` is of the row's page in the admin; without ``SITE_URL`` only its path is known."""
    common = {"id": str(notice.notice_id), "kind": notice.kind, "created": int(notice.created_at.timestamp())}
    row = notice.transfer or notice.event or notice.bulk_retry or notice.dispute
    assert row is not None, "a constraint says so"
    common["url"] = settings.SITE_URL + reverse(f"admin:marketplace_{row._meta.model_name}_change", args=[row.pk])
    match row:
        case SellerTransfer():
            return common | {
                **_error_of(row),
                "request_id": row.last_error_request_id,
                "transfer": row.pk,
                "stripe_transfer_id": row.stripe_transfer_id,
                "failed_leg": row.failed_leg,
                "order": row.order_id,
                "seller": row.seller_id,
                "amount": row.amount_unreversed,
                "currency": row.currency,
            }
        case WebhookEvent():
            return common | {
                **_error_of(row),
                "request_id": row.last_error_request_id,
                "event": row.stripe_event_id,
                "type": row.type,
            }
        case BulkRetry():
            return common | {
                "code": row.status,
                "message": row.stop_reason or row.reason,
                "bulk_retry": row.pk,
                "totals": [asdict(tally) for tally in selectors.bulk_tallies(row)],
            }
        case Dispute():
            return common | {
                **_error_of(row),
                "dispute": row.pk,
                "stripe_dispute_id": row.stripe_dispute_id,
                "order": row.order_id,
                "amount": row.amount,
                "currency": row.currency,
            }
        case _:
            assert_never(row)


def _error_of(row: SellerTransfer | WebhookEvent | Dispute) -> dict[str, str]:
    return {"code": row.last_error_code, "message": row.last_error_message}


def mail_context(told: Told) -> Mapping[str, Any]:
    """For the templates in templates/notices/."""
    return {
        "count": told.count,
        "left_off": told.count - len(told.listed),
        "totals": [
            {"code": total.code, "count": total.count, "money": _money(total.amount, total.currency)}
            for total in told.totals
        ],
        "rows": [{**(described := _described(notice)), **_for_people(notice, described)} for notice in told.listed],
        "site": settings.SITE_URL,
    }


def _for_people(notice: Notice, described: Mapping[str, Any]) -> dict[str, Any]:
    """What a mail says besides: names, and money in words."""
    return {
        "money": _money(described.get("amount", 0), described.get("currency", "")),
        "seller_name": notice.transfer.seller.name if notice.transfer else "",
        "requested_by": notice.bulk_retry.requested_by.get_username() if notice.bulk_retry else "",
        "results": [
            {
                "count": total["count"],
                "result": BulkRetryItemStatus(total["status"]).label,
                "money": _money(total["amount"], total["currency"]),
            }
            for total in described.get("totals", [])
        ],
        "since": notice.created_at,
    }


def seller_context(told: ToldSeller) -> Mapping[str, Any]:
    """For the templates of sellers."""
    sums: dict[str, int] = {}
    for movement in told.movements:
        sums[movement.currency] = sums.get(movement.currency, 0) + movement.amount
    return {
        "seller_name": told.seller.name,
        "movements": [
            {
                "money": _money(abs(movement.amount), movement.currency),
                "is_taken": movement.amount < 0,
                "order": movement.order,
                "description": movement.description,
                "stripe_id": movement.stripe_id,
                "at": movement.at,
            }
            for movement in told.movements
        ],
        "sums": [_money(amount, currency) for currency, amount in sorted(sums.items())],
    }


def _money(amount: int, currency: str) -> str:
    return str(Money(amount, currency)) if currency else ""
