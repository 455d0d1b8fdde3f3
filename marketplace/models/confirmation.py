"""The most frequent step of all, of two rows at once: Stripe confirmed a reversal.

It says what ``transition()`` of the reversal and of its transfer would say, in one statement and one commit; the same
triggers refuse unlisted steps, and write the same history.
"""

import json
from typing import Any

from django.db import connection

from marketplace.models.coordination import SUCCEEDED
from marketplace.models.reversals import TransferReversal
from marketplace.models.transfers import SellerTransfer

_CONFIRM = f"""
    WITH held AS MATERIALIZED (
        SELECT id, amount, amount_reversed, set_config('pghistory.context_metadata', %(context)s, true)
        FROM marketplace_sellertransfer
        WHERE id = %(transfer)s AND lease_token = %(lease_token)s AND status = 'reversal_pending'
          -- Whoever adds a debt touches the row: then this statement's snapshot may not know of it.
          AND updated_at = %(updated_at)s AND amount_reversed + %(amount)s <= amount
        FOR NO KEY UPDATE
    ), others AS (
        SELECT count(*) AS owed FROM marketplace_transferreversal
        WHERE transfer_id = %(transfer)s AND status = 'pending' AND id <> %(reversal)s
    ), ours AS (
        UPDATE marketplace_transferreversal AS reversal
        SET status = 'succeeded', stripe_reversal_id = %(stripe_reversal_id)s, stripe_status = %(stripe_status)s,
            updated_at = statement_timestamp()
        FROM held, others
        WHERE reversal.id = %(reversal)s AND reversal.transfer_id = held.id AND reversal.status = 'pending'
          AND reversal.amount = %(amount)s AND reversal.currency = %(currency)s
          -- Wanted no more by now: who says so touches the transfer too, perhaps at the instant of the claim.
          AND reversal.unwanted_amount = 0
          -- What is owed beyond the whole is canceled: the longer way does that.
          AND (others.owed = 0 OR held.amount_reversed + %(amount)s < held.amount)
        RETURNING reversal.id
    ), breaker AS ({SUCCEEDED} AND EXISTS (SELECT FROM ours))
    UPDATE marketplace_sellertransfer AS transfer
    SET status = CASE
            WHEN held.amount_reversed + %(amount)s = held.amount THEN 'reversed'
            WHEN others.owed > 0 THEN 'reversal_pending'
            ELSE 'partially_reversed' END,
        next_retry_at = CASE WHEN others.owed > 0 THEN statement_timestamp() END,
        retry_count = CASE WHEN others.owed > 0 THEN 0 ELSE transfer.retry_count END,
        amount_reversed = held.amount_reversed + %(amount)s, stripe_reversal_id = %(stripe_reversal_id)s,
        failed_leg = '', last_error_code = '', last_error_message = '', last_error_request_id = '',
        last_error_at = NULL, lease_token = NULL, lease_expires_at = NULL, updated_at = statement_timestamp()
    FROM held, ours, others
    WHERE transfer.id = held.id
    RETURNING transfer.status
"""  # noqa: S608 - a constant of this program


def confirm(
    transfer: SellerTransfer,
    reversal: TransferReversal,
    *,
    amount: int,
    currency: str,
    stripe_reversal_id: str,
    stripe_status: str,
    work: str,
    actor: str,
    reason: str,
) -> str:
    """Move ``reversal`` to succeeded, and ``transfer``, as it was claimed, to what follows; its new status.

    Empty where anything is not as it was claimed (the lease, the row, the amount): then nothing was changed. ``work``
    is the kind of work whose circuit breaker hears of the success. Amounts in minor units.
    """
    params: dict[str, Any] = {
        "context": json.dumps({"actor": actor, "reason": reason, "attempt": transfer.retry_count + 1}),
        "transfer": transfer.pk,
        "lease_token": transfer.lease_token,
        "updated_at": transfer.updated_at,
        "reversal": reversal.pk,
        "amount": amount,
        "currency": currency,
        "stripe_reversal_id": stripe_reversal_id,
        "stripe_status": stripe_status,
        "work": work,
    }
    with connection.cursor() as cursor:
        cursor.execute(_CONFIRM, params)
        row = cursor.fetchone()
    return row[0] if row else ""
