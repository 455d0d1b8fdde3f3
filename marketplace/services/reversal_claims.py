"""Transfers that owe a reversal, leased to a worker; and what it does before it sends: look, or take a new key."""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Model
from django.db.models.functions import Coalesce, Now

from marketplace import throttle
from marketplace.errors import DATABASE_TROUBLE, StaleTransition
from marketplace.gateway.contract import Postponed, ReversalFacts
from marketplace.metrics import POISON
from marketplace.models import SellerTransfer, TransferReversal, together
from marketplace.services import leases, outcomes, reversals
from marketplace.states import TransferStatus

logger = structlog.get_logger(__name__)

WORK = "reversal"
DUE = leases.Due(
    model=SellerTransfer, condition="status = 'reversal_pending'", work=WORK, whom="'seller ' || seller_id"
)


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
            results.execute(_PROBE if past_breaker else _CLAIM, params)
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
_MARKED = """
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
"""
_CLAIMED = leases.claiming(SellerTransfer, due=DUE.condition) + _MARKED
_FOUND = f"statement_timestamp(), {_listed(SellerTransfer, 'claimed')}, {_listed(TransferReversal, 'marked')}"
_READ = f"""
    SELECT {_FOUND} FROM claimed LEFT JOIN marked ON marked.transfer_id = claimed.id
    ORDER BY claimed.next_retry_at, claimed.id
"""  # noqa: S608 - columns of our own tables
_CLAIM = _CLAIMED + _READ
_PROBE = leases.claiming(SellerTransfer, due=DUE.condition, probe_for=DUE.whom) + _MARKED + _READ
_CLAIM_WITH_TURN = f"""
    {_CLAIMED}
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
        owed = next(iter(reversals.open_reversals(transfer)), None)
        if owed is None:
            owed = reversals.create(
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
