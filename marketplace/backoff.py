"""When to try again: pure arithmetic, from settings that were checked at start."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from django.conf import settings

# Jitter only shortens a delay, so that the configured maximum holds.
LARGEST_JITTER = 0.1
# Past this the power of two would only cost memory: any base is far over any maximum.
LARGEST_EXPONENT = 40


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    max_retries: int
    base: timedelta
    maximum: timedelta

    @classmethod
    def from_settings(cls, prefix: str) -> Self:
        """``prefix`` is ``REVERSAL`` or ``TRANSFER_RETRY``."""
        return cls(
            max_retries=getattr(settings, f"{prefix}_MAX_RETRIES"),
            base=getattr(settings, f"{prefix}_BACKOFF_BASE"),
            maximum=getattr(settings, f"{prefix}_BACKOFF_MAX"),
        )

    def delay(self, retry_count: int, jitter: float = 0.0) -> timedelta:
        """``min(base·2^retry_count, maximum)``, shortened by ``jitter`` (0 to 1) times a tenth.

        ``retry_count`` is the number of retries spent before this failure.
        """
        doublings = 2 ** min(retry_count, LARGEST_EXPONENT)
        # Compared by division: the product may be longer than a timedelta can say.
        is_capped = self.base >= self.maximum / doublings
        full: timedelta = self.maximum if is_capped else self.base * doublings
        return full * (1 - LARGEST_JITTER * jitter)

    def is_exhausted(self, retry_count: int) -> bool:
        return retry_count >= self.max_retries
