"""The queue of hours that are over and not counted: one at a time, whatever it covers."""

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog

from marketplace.services import figures, leases

logger = structlog.get_logger(__name__)

# After an error of our own: figures may wait.
PAUSE_SECONDS = 60


class Hours:
    """All hours that are over; one worker counts them, whoever else has them in hand as well."""


class FigureQueue:
    """Needs no lease: counting is one transaction, and of two at once one does nothing."""

    name = "figures"
    channel = figures.CHANNEL
    due: leases.Due = figures.DUE

    def __init__(self) -> None:
        # Taken by this process until it is counted or given back.
        self._in_hand = threading.Lock()
        # Monotonic.
        self._not_before = 0.0

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[Hours]:  # noqa: ARG002 - neither is of use here
        if time.monotonic() < self._not_before or not self._in_hand.acquire(blocking=False):
            return []
        is_due = False
        try:
            is_due = figures.is_due()
        finally:
            if not is_due:
                self._in_hand.release()
        return [Hours()] if is_due else []

    def is_held_back(self, claimed: Hours) -> bool:  # noqa: ARG002 - it asks nothing of Stripe
        return False

    def describe(self, claimed: Hours) -> dict[str, Any]:  # noqa: ARG002 - one is as another
        return {"figures": "of hours that are over"}

    def perform(self, claimed: Hours) -> None:  # noqa: ARG002 - the same
        try:
            logger.info("hours_counted", figures=figures.count())
        finally:
            self._in_hand.release()

    def settle_unexpected(self, claimed: Hours, exception: Exception) -> None:  # noqa: ARG002 - it is logged already
        """Nothing was written: it is due still, and tried again a little later."""
        self._not_before = time.monotonic() + PAUSE_SECONDS

    def release(self, claimed: Hours) -> None:  # noqa: ARG002 - the same
        self._in_hand.release()
