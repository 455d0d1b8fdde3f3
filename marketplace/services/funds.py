"""Waiting for a seller's money: whose balance is looked at, and which reversals are due once something came.

A seller's *line* in one currency: the transfers whose reversal Stripe refused because the balance was too small, those
that wait for the longest first. It is woken from its head, as far as the balance reaches; each success of one that
had waited wakes the next. Stripe decides in the end: what is woken in vain spends nothing and waits on.

Locks are taken in the order that all keep (docs/architecture.md): the line's transfers, the newest order first and of
one order by number, then the watch. Settling a reversal holds its own transfer before that, or all of its order, and
waits for none of the line's.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, assert_never

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q

from marketplace.gateway.contract import (
    BalanceRetrieved,
    Busy,
    Denied,
    InsufficientFunds,
    NotFound,
    Postponed,
    RateLimited,
    Refused,
    RetrieveBalanceAnswer,
    ServerError,
    Unknown,
)
from marketplace.models import BalanceWatch, Seller, SellerTransfer
from marketplace.services import leases, outcomes
from marketplace.states import TransferStatus

logger = structlog.get_logger(__name__)

WORK = "balance"
CHANNEL = "veza_balances"
DUE = leases.Due(model=BalanceWatch, condition="next_retry_at IS NOT NULL")

# A transfer's oldest open reversal is the one that waits. Rows that are due already, or in some worker's hands, keep
# their place: what they will take is not there for those behind them.
_LINE = """
    WITH line AS MATERIALIZED (
        SELECT waiting.id, waiting.currency,
            sum(owed.amount) OVER oldest_first AS amount_so_far, row_number() OVER oldest_first AS place
        FROM marketplace_sellertransfer AS waiting
        CROSS JOIN LATERAL (
            SELECT amount, waiting_for_funds_since FROM marketplace_transferreversal
            WHERE transfer_id = waiting.id AND status = 'pending' ORDER BY id LIMIT 1
        ) AS owed
        WHERE waiting.seller_id = %(seller)s
          AND waiting.status = 'reversal_pending' AND waiting.last_error_code = 'insufficient_funds'
        WINDOW oldest_first AS (PARTITION BY waiting.currency ORDER BY owed.waiting_for_funds_since, waiting.id)
    )
"""
# As ``debts`` locks transfers of several orders.
_NEWEST_ORDER_FIRST = """
    (SELECT min(sibling.id) FROM marketplace_sellertransfer AS sibling WHERE sibling.order_id = t.order_id) DESC
"""
# By the clock, not by the statement's time: this is asked again when the row's lock was waited for.
_STILL_WAITS = """
    t.status = 'reversal_pending' AND t.last_error_code = 'insufficient_funds'
    AND t.lease_token IS NULL AND t.next_retry_at > clock_timestamp()
"""
_WAKE = """
    UPDATE marketplace_sellertransfer AS woken
    SET next_retry_at = statement_timestamp(), updated_at = statement_timestamp()
    FROM chosen WHERE woken.id = chosen.id
"""


def is_waited_for(seller: Seller) -> bool:
    """Whether the seller has a line."""
    return SellerTransfer.objects.filter(
        seller=seller, status=TransferStatus.REVERSAL_PENDING, last_error_code=outcomes.CODES[InsufficientFunds]
    ).exists()


def watch(seller_id: int) -> None:
    """See to it that the seller's balance is looked at: in ``REVERSAL_BALANCE_CHECK_INTERVAL``, unless it will be
    sooner. Part of the transaction that makes a transfer wait; whoever ends the watch meanwhile waits for it.
    """
    interval = settings.REVERSAL_BALANCE_CHECK_INTERVAL
    params: dict[str, Any] = {
        "seller": seller_id,
        "interval": interval,
        "channel": CHANNEL,
        "milliseconds": str(round(interval.total_seconds() * 1000)),
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH watched AS (
                INSERT INTO marketplace_balancewatch AS w (
                    seller_id, next_retry_at, available, retry_count,
                    last_error_code, last_error_message, last_error_request_id
                ) VALUES (%(seller)s, statement_timestamp() + %(interval)s, '{}', 0, '', '', '')
                ON CONFLICT (seller_id) DO UPDATE SET next_retry_at = EXCLUDED.next_retry_at
                WHERE w.next_retry_at IS NULL
                RETURNING 1
            )
            SELECT pg_notify(%(channel)s, %(milliseconds)s) FROM watched
            """,
            params,
        )


def arrived(seller: Seller, available: Mapping[str, int], *, seen_at: datetime) -> int:
    """Stripe says what the seller has: make due what it covers, and keep Stripe's word. How many transfers were woken.

    The head of a line is woken wherever there is anything, for more may have come since. So it is where the balance
    does not list the line's currency and has something in another one: there Stripe converts.

    Whether the word is old, or another one comes at the same time: no line is woken farther than the larger amount
    reaches, since rows that are due already keep their place. The older word is used, but not kept.

    A transfer in some worker's hands is not woken: should Stripe have refused it just before the money came, the next
    check finds it. Runs inside the caller's transaction.
    """
    unlisted = 1 if any(amount > 0 for amount in available.values()) else 0
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            {_LINE}, reached AS (
                SELECT id, place, amount_so_far,
                    COALESCE((%(available)s::jsonb ->> currency)::numeric, %(unlisted)s) AS available
                FROM line
            ), chosen AS MATERIALIZED (
                SELECT t.id FROM marketplace_sellertransfer AS t JOIN reached ON reached.id = t.id
                WHERE available > 0 AND (amount_so_far <= available OR place = 1) AND {_STILL_WAITS}
                ORDER BY {_NEWEST_ORDER_FIRST}, t.id FOR NO KEY UPDATE OF t
            )
            {_WAKE}
            """,  # noqa: S608 - constants of this module
            {"seller": seller.pk, "available": json.dumps(available), "unlisted": unlisted},
        )
        woken: int = cursor.rowcount
    watch(seller.pk)
    older = Q(seen_at__isnull=True) | Q(seen_at__lte=seen_at)
    BalanceWatch.objects.filter(older, seller=seller).update(available=available, seen_at=seen_at)
    logger.info("balance_seen", seller=seller.pk, woken=woken)
    return woken


def next_in_line(transfer: SellerTransfer) -> None:
    """A reversal that had waited is done with: the one that waits for the longest now is due, if it is not already.

    Part of the settling transaction, which holds ``transfer``: so a row that somebody else holds is left to the checks.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            {_LINE}, chosen AS MATERIALIZED (
                SELECT t.id FROM marketplace_sellertransfer AS t JOIN line ON line.id = t.id
                WHERE line.currency = %(currency)s AND line.place = 1 AND {_STILL_WAITS}
                FOR NO KEY UPDATE OF t SKIP LOCKED
            )
            {_WAKE}
            """,  # noqa: S608 - constants of this module
            {"seller": transfer.seller_id, "currency": transfer.currency},
        )


# --- The paced check --------------------------------------------------------------------------------------------------


def settle(claimed: BalanceWatch, answer: RetrieveBalanceAnswer) -> None:
    """Write down what Stripe said of a watched balance, and when it is asked next; committed on return.

    Raises:
        StaleTransition: the lease was lost meanwhile; nothing was changed.

    """
    with transaction.atomic(durable=True):
        if isinstance(answer, BalanceRetrieved):
            # By the database's clock, before Stripe was asked: the word is no older than that.
            arrived(claimed.seller, answer.balance.available, seen_at=claimed.claimed_at)
        leases.held(BalanceWatch, claimed.pk, claimed.lease_token)
        match answer:
            case BalanceRetrieved():
                _go_on(claimed, outcomes.CLEARED_ERROR)
            case NotFound() | Refused() | Denied(forbidden=True):
                # Disconnected or closed, or a key that may not read balances: what is left is the transfers' own
                # schedule, and each refusal there puts the seller under watch again.
                error = outcomes.error_of(answer)
                logger.warning("balance_not_readable", seller=claimed.seller_id, error=error["last_error_message"])
                _put_back(claimed, None, error)
            case Denied():
                # Our key is at fault, not this seller: as due as it was.
                _put_back(claimed, claimed.next_retry_at, outcomes.error_of(answer))
            case Postponed():
                # Stripe was not asked.
                _put_back(claimed, outcomes.in_(timedelta(seconds=answer.seconds)), outcomes.error_of(answer))
            case InsufficientFunds() | Busy() | RateLimited() | ServerError() | Unknown():
                _go_on(claimed, outcomes.error_of(answer))
            case _:
                assert_never(answer)


def settle_unasked(claimed: BalanceWatch) -> None:
    """Nothing waited any more when the check was due. Raises as ``settle``."""
    with transaction.atomic(durable=True):
        leases.held(BalanceWatch, claimed.pk, claimed.lease_token)
        _go_on(claimed, outcomes.CLEARED_ERROR)


def settle_unexpected(claimed: BalanceWatch, exception: Exception) -> None:
    """An error of our own: this check is left out. Raises as ``settle``."""
    with transaction.atomic(durable=True):
        leases.held(BalanceWatch, claimed.pk, claimed.lease_token)
        _go_on(claimed, outcomes.error("unexpected_error", f"{type(exception).__name__}: {exception}"))


def _go_on(claimed: BalanceWatch, error: Mapping[str, Any]) -> None:
    """The next check, if anything waits still. The caller holds the watch, so that nothing begins to wait between this
    look and its being written down: see ``watch``.
    """
    waits = is_waited_for(claimed.seller)
    _put_back(claimed, outcomes.in_(settings.REVERSAL_BALANCE_CHECK_INTERVAL) if waits else None, error)


def _put_back(claimed: BalanceWatch, next_check: Any, error: Mapping[str, Any]) -> None:
    BalanceWatch.objects.filter(pk=claimed.pk).update(
        next_retry_at=next_check,
        last_error_code=error["last_error_code"],
        last_error_message=error["last_error_message"],
        last_error_request_id=error["last_error_request_id"],
        last_error_at=error["last_error_at"],
        lease_token=None,
        lease_expires_at=None,
    )
