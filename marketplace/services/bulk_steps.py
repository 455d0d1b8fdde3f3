"""A worker goes on with a bulk retry, a step at a time: it retries a few transfers (the canary), waits for what becomes
of these, and goes on with the rest at a limited rate. A transfer that changed after it was chosen is left alone.

Locks are taken in one order: the bulk retry, then the transfer. Nobody else needs both.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_never

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from marketplace import selectors
from marketplace.gateway.contract import InsufficientFunds
from marketplace.models import BULK_RETRIES_CHANNEL, BulkRetry, BulkRetryItem, SellerTransfer
from marketplace.money import Money
from marketplace.services import bulk_retries, leases, outcomes, reversal_claims, transfers
from marketplace.services.reversal_settling import PENDING_AT_STRIPE
from marketplace.states import BulkRetryItemStatus, BulkRetryStatus, TransferStatus

logger = structlog.get_logger(__name__)

WORK = "bulk_retry"
CHANNEL = BULK_RETRIES_CHANNEL
DUE = leases.Due(model=BulkRetry, condition="next_retry_at IS NOT NULL")

# At most so many are retried and not settled: so many can go wrong before that is seen.
MOST_OPEN = 50
# Whether too many fail again is judged by the last so many results.
WINDOW = 20
# How often results are looked at while nothing can be retried.
LOOK_INTERVAL = timedelta(seconds=5)

_B, _I = BulkRetryStatus, BulkRetryItemStatus
# Whose breaker holds a leg back.
WORK_OF_LEG = {SellerTransfer.Leg.SENDING: transfers.WORK, SellerTransfer.Leg.REVERSING: reversal_claims.WORK}
# In these more may be retried.
OPEN = (_B.CANARY, _B.RUNNING)
# Whose retry was made, and what became of it is known.
SETTLED = (_I.SUCCEEDED, _I.WAITING, _I.FAILED)


def claim(*, batch_size: int, lease: timedelta) -> list[BulkRetry]:
    return leases.claim(BulkRetry, due=DUE.condition, batch_size=batch_size, lease=lease)


def go_on(claimed: BulkRetry, *, actor: str) -> None:
    """See what became of those that were retried, retry the next, decide when to go on. Each retry is committed by
    itself and may be the last thing that happens: the next worker begins again, and finds what is done.

    Raises:
        StaleTransition: the lease was lost meanwhile; what was done until then stands.

    """
    is_held_back = held_back(claimed)
    if _review(claimed, actor=actor, is_held_back=is_held_back):
        for _ in range(0 if is_held_back else a_round(claimed.per_minute)):
            if not _retry_next(claimed):
                break
        _put_back(claimed, actor=actor, is_held_back=is_held_back)


def held_back(bulk_retry: BulkRetry) -> bool:
    """Whether Stripe is taken to fail for everyone, for a leg of these transfers: that says nothing of them."""
    is_open = selectors.breakers()
    legs = [leg for leg, work in WORK_OF_LEG.items() if is_open[work]]
    waiting = bulk_retry.items.filter(status__in=[_I.PLANNED, _I.RETRIED], failed_leg__in=legs)
    return bool(legs) and waiting.exists()


def _retry_next(claimed: BulkRetry) -> bool:
    """Retry one, or leave it alone, in one transaction with its row: whenever we die, it is retried once. Whether there
    may be another.
    """
    with transaction.atomic(durable=True):
        bulk_retry = leases.held(BulkRetry, claimed.pk, claimed.lease_token)
        if bulk_retry.status not in OPEN:
            return False
        open_ones = bulk_retry.items.filter(status=_I.RETRIED).count()
        if open_ones >= MOST_OPEN:
            return False
        settled = bulk_retry.items.filter(status__in=SETTLED).count()
        if bulk_retry.status == _B.CANARY and open_ones + settled >= bulk_retry.canary_size:
            return False
        item = bulk_retry.items.filter(status=_I.PLANNED).order_by("position").first()
        if item is None:
            return False
        actor = bulk_retries.name_of(bulk_retry.requested_by)
        transfer = SellerTransfer.locked(item.transfer_id)
        if moved := _moved(item, transfer):
            item.transition(_I.SKIPPED, actor=actor, reason=moved, outcome=moved, settled_at=Now())
        else:
            reason = f"{bulk_retry}: {bulk_retry.reason}"
            transfers.resume(transfer, actor=actor, reason=reason[:500])
            item.transition(_I.RETRIED, actor=actor, reason=reason, retried_at=Now())
    return True


def _moved(item: BulkRetryItem, transfer: SellerTransfer) -> str:
    """Why the transfer is not as it was chosen; empty where it is."""
    if why_not := transfers.why_no_retry(transfer):
        return why_not
    if transfer.updated_at != item.transfer_updated_at:
        return "it changed after it was chosen"
    now: Any = bulk_retries.with_amount(SellerTransfer.objects.filter(pk=transfer.pk)).get()
    if now.amount_at_stake != item.amount:
        return f"it is about {Money(now.amount_at_stake, item.currency)} now, not {item.money}"
    return ""


def _review(claimed: BulkRetry, *, actor: str, is_held_back: bool) -> bool:
    """Note results; whether it may go on after them. Where it stops by itself the row is given back."""
    with transaction.atomic(durable=True):
        bulk_retry = leases.held(BulkRetry, claimed.pk, claimed.lease_token)
        for item in bulk_retry.items.filter(status=_I.RETRIED).select_related("transfer").order_by("position"):
            result = _result(item)
            if result is not None:
                status, outcome = result
                item.transition(status, actor=actor, reason=outcome, outcome=outcome, settled_at=Now())
        why = ""
        if bulk_retry.status in OPEN:
            why = _progress(bulk_retry, is_held_back=is_held_back).why_stop(now=claimed.claimed_at)
        if why:
            _stop_by_itself(bulk_retry, why, actor=actor)
    return not why


def _result(item: BulkRetryItem) -> tuple[BulkRetryItemStatus, str] | None:
    """What became of a retry, as far as it is known."""
    transfer = item.transfer
    match TransferStatus(transfer.status):
        case TransferStatus.PERMANENTLY_FAILED:
            return _I.FAILED, f"{transfer.last_error_code}: {transfer.last_error_message}"
        case TransferStatus.COMPLETED | TransferStatus.PARTIALLY_REVERSED | TransferStatus.REVERSED:
            return _I.SUCCEEDED, transfer.status
        case TransferStatus.CANCELED:
            return _I.SUCCEEDED, "canceled: nothing was left to send"
        case TransferStatus.REVERSAL_PENDING if item.failed_leg == SellerTransfer.Leg.SENDING:
            return _I.SUCCEEDED, "sent, and refunded since"
        case TransferStatus.REVERSAL_PENDING if _waits_for_funds(item):
            return _I.WAITING, f"{transfer.last_error_code}: it is reversed when the seller has money"
        case TransferStatus.REVERSAL_PENDING | TransferStatus.PENDING | TransferStatus.FAILED:
            return None
        case never:
            assert_never(never)


def _waits_for_funds(item: BulkRetryItem) -> bool:
    transfer = item.transfer
    # The error before the retry stands until the next answer.
    assert item.retried_at is not None
    is_new = transfer.last_error_at is not None and transfer.last_error_at > item.retried_at
    return is_new and transfer.last_error_code in {outcomes.CODES[InsufficientFunds], PENDING_AT_STRIPE}


def _put_back(claimed: BulkRetry, *, actor: str, is_held_back: bool) -> None:
    """Give the row back: over, on to the rest, or due for its next step."""
    with transaction.atomic(durable=True):
        bulk_retry = leases.held(BulkRetry, claimed.pk, claimed.lease_token)
        progress = _progress(bulk_retry, is_held_back=is_held_back)
        if bulk_retry.status in OPEN and progress.is_done:
            _move(bulk_retry, _B.FINISHED, progress.told(), actor=actor, next_retry_at=None)
            logger.info("bulk_retry_finished", bulk_retry=bulk_retry.pk, **progress.counts)
        elif bulk_retry.status == _B.CANARY and progress.is_canary_settled:
            _move(bulk_retry, _B.RUNNING, progress.told(), actor=actor, next_retry_at=Now())
        else:
            fields: dict[str, Any] = {**leases.RELEASED, "next_retry_at": progress.next_time()}
            if progress.canary_waits_anew:
                fields["canary_until"] = outcomes.in_(settings.BULK_RETRY_CANARY_WAIT)
            bulk_retry.change(actor=actor, reason="goes on", **fields)


def _progress(bulk_retry: BulkRetry, *, is_held_back: bool) -> "_Progress":
    counts = dict.fromkeys(BulkRetryItemStatus.values, 0)
    for tally in selectors.bulk_tallies(bulk_retry):
        counts[tally.status] += tally.count
    return _Progress(bulk_retry=bulk_retry, counts=counts, is_held_back=is_held_back)


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """Where a bulk retry stands, locked."""

    bulk_retry: BulkRetry
    counts: dict[str, int]
    is_held_back: bool

    @property
    def open_ones(self) -> int:
        return self.counts[_I.RETRIED]

    @property
    def is_done(self) -> bool:
        return not self.open_ones and not self.counts[_I.PLANNED]

    @property
    def canary(self) -> int:
        """How many the canary is of: all of them, where they are fewer."""
        return min(self.bulk_retry.canary_size, self._tried + self.counts[_I.PLANNED])

    @property
    def _tried(self) -> int:
        return self.open_ones + sum(self.counts[status] for status in SETTLED)

    @property
    def is_canary_settled(self) -> bool:
        return not self.open_ones and self._tried >= self.canary

    @property
    def canary_waits_anew(self) -> bool:
        """Whether the canary's time does not run: not all of it is retried, or Stripe fails for everyone."""
        return self.bulk_retry.status == _B.CANARY and (self._tried < self.canary or self.is_held_back)

    def why_stop(self, *, now: datetime) -> str:
        """Why it must not go on; empty where it may."""
        allowed = self.bulk_retry.max_error_percent
        if self.bulk_retry.status == _B.CANARY:
            failed, judged = self.counts[_I.FAILED], self.canary
            if failed * 100 > allowed * judged:
                return f"{failed} of {judged} of the canary failed again; at most {allowed} % may"
            until = self.bulk_retry.canary_until
            assert until is not None
            if self.open_ones and not self.canary_waits_anew and until <= now:
                return f"{self.open_ones} of {judged} of the canary are not settled in time"
            return ""
        last = self.bulk_retry.items.filter(status__in=SETTLED).order_by("-settled_at", "-position")
        failed = list(last.values_list("status", flat=True)[:WINDOW]).count(_I.FAILED)
        if failed * 100 > allowed * WINDOW:
            return f"{failed} of the last {WINDOW} failed again; at most {allowed} % may"
        return ""

    def told(self) -> str:
        return ", ".join(f"{self.counts[status]} {status.label}" for status in SETTLED)

    def next_time(self) -> Any:
        """When the next step is due; None where nothing is left to see to."""
        match self.bulk_retry.status:
            case _B.RUNNING:
                may_retry = self.counts[_I.PLANNED] > 0 and self.open_ones < MOST_OPEN
            case _B.CANARY:
                may_retry = self._tried < self.canary
            case _:
                if not self.open_ones:
                    return None
                may_retry = False
        is_next = may_retry and not self.is_held_back
        return outcomes.in_(pause(self.bulk_retry.per_minute) if is_next else LOOK_INTERVAL)


def a_round(per_minute: int) -> int:
    """How many are retried in one step."""
    return max(per_minute // 60, 1)


def pause(per_minute: int) -> timedelta:
    """From one step to the next: a second, or longer where that would be too many in a minute."""
    return timedelta(seconds=math.ceil(60 / per_minute))


def _stop_by_itself(bulk_retry: BulkRetry, why: str, *, actor: str) -> None:
    _move(bulk_retry, _B.STOPPED, why, actor=actor, stop_reason=why[:500], stopped_by_itself=True, next_retry_at=Now())
    logger.error("bulk_retry_stopped", bulk_retry=bulk_retry.pk, why=why)


def _move(bulk_retry: BulkRetry, to: BulkRetryStatus, reason: str, *, actor: str, **fields: Any) -> None:
    bulk_retry.transition(to, actor=actor, reason=reason, **leases.RELEASED, **fields)


def settle_unexpected(claimed: BulkRetry, exception: Exception, *, actor: str) -> None:
    """An error of our own: what nobody foresaw is not done to the rest. Raises ``StaleTransition`` as ``go_on``."""
    why = f"unexpected_error: {type(exception).__name__}: {exception}"
    with transaction.atomic(durable=True):
        bulk_retry = leases.held(BulkRetry, claimed.pk, claimed.lease_token)
        if bulk_retry.status == _B.STOPPED:
            bulk_retry.change(actor=actor, reason=why, next_retry_at=outcomes.in_(LOOK_INTERVAL), **leases.RELEASED)
        else:
            _stop_by_itself(bulk_retry, why, actor=actor)
