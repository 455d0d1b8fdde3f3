"""The queue of bulk retries that are under way: each a step at a time. Stripe is not asked here."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from marketplace.models import BulkRetry
from marketplace.services import bulk_steps, leases
from marketplace.workers.loop import identity


class BulkRetryQueue:
    """Without a breaker of its own: while one of its transfers' breakers is open, a step retries nothing."""

    name = bulk_steps.WORK
    channel = bulk_steps.CHANNEL
    due = bulk_steps.DUE

    def __init__(self) -> None:
        self._actor = identity("bulk retry worker")

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[BulkRetry]:
        return bulk_steps.claim(batch_size=batch_size, lease=lease)

    def is_held_back(self, claimed: BulkRetry) -> bool:  # noqa: ARG002 - see above
        return False

    def describe(self, claimed: BulkRetry) -> dict[str, Any]:
        return {"bulk_retry": claimed.pk}

    def perform(self, claimed: BulkRetry) -> None:
        bulk_steps.go_on(claimed, actor=self._actor)

    def settle_unexpected(self, claimed: BulkRetry, exception: Exception) -> None:
        bulk_steps.settle_unexpected(claimed, exception, actor=self._actor)

    def release(self, claimed: BulkRetry) -> None:
        leases.release(BulkRetry, claimed.pk, claimed.lease_token)
