"""Until when the present thread may still send what it holds: as long as its lease lasts.

A host that stood still (frozen, swapped out, moved) goes on where it stopped, with an old key, while another worker may
have looked at Stripe and taken a new one. So the gateway asks once more, directly before each request with an effect.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float | None] = ContextVar("until", default=None)


def clock() -> float:
    """Seconds that only grow, those in which the machine was suspended included where the system tells them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@contextmanager
def sending_until(at: float) -> Iterator[None]:
    """``at`` by ``clock()``."""
    token = _until.set(at)
    try:
        yield
    finally:
        _until.reset(token)


def has_passed() -> bool:
    until = _until.get()
    return until is not None and clock() >= until
