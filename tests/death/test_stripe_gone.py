"""The way to Stripe is gone, for hours, and comes back. Nobody has to touch a row, whatever the retry budget."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from marketplace.models import CircuitBreaker, SellerTransfer
from marketplace.states import TransferStatus
from tests.death import rows
from tests.death.audit import assert_all_is_well, open_work, pass_time, wait_for_all_work
from tests.death.processes import REVERSALS, TRANSFERS, Nursery, wait_until
from tests.death.wire import Wire

HOUR = 3600
NO_RETRIES = {"REVERSAL_MAX_RETRIES": 0, "TRANSFER_RETRY_MAX_RETRIES": 0}
# Of a black hole each call takes so long. After it, a slow test machine must not: there is no retry to spend.
IMPATIENT = {"STRIPE_CONNECT_TIMEOUT": 1, "STRIPE_READ_TIMEOUT": 1}

Outage = Callable[[Wire, Any], object]
OUTAGES: dict[str, Outage] = {
    "nobody listens": lambda wire, _: wire.refuse(),
    "a black hole": lambda wire, _: wire.swallow(),
    "503 to everything": lambda _, simulator: simulator.faults.add("unavailable"),
}


def come_back(wire: Wire, simulator: Any) -> None:
    simulator.faults.clear()
    wire.restore()


def open_breakers() -> dict[str, CircuitBreaker]:
    found = CircuitBreaker.objects.filter(opened_at__isnull=False).annotate(wait=F("next_probe_at") - Now())
    return {breaker.work: breaker for breaker in found}


def wait_until_open(*works: str) -> None:
    wait_until(lambda: set(open_breakers()) == set(works), lambda: f"breakers of {works}: {set(open_breakers())}")


def outlast(seconds: float, *, steps: int) -> None:
    """In each step the breakers' time comes: one row of each kind asks whether Stripe is back, and it is not."""
    for _ in range(steps):
        before = {work: breaker.probes for work, breaker in open_breakers().items()}
        pass_time(seconds / steps)
        wait_until(lambda before=before: all(map(has_probed, before.items())), "a probe of each")  # type: ignore[misc]


def has_probed(before: tuple[str, int]) -> bool:
    """Made, and answered: while it is out, no other may be made within a lease."""
    work, probes = before
    breaker: Any = open_breakers()[work]
    return breaker.probes > probes and breaker.wait < timedelta(seconds=20)


@pytest.mark.parametrize("outage", OUTAGES)
def test_hundreds_of_rows_outlast_hours_without_any_retry(
    wired: Nursery, wire: Wire, simulator: Any, outage: str
) -> None:
    rows.owe_reversals(simulator, 100)
    rows.owe_transfers(simulator, 60)
    rows.request_refunds(simulator, 60)
    OUTAGES[outage](wire, simulator)
    settings = NO_RETRIES | (IMPATIENT if outage == "a black hole" else {})
    running = [wired.start(command, "--concurrency", "8", settings=settings) for command in (REVERSALS, TRANSFERS)]
    wait_until_open("reversal", "transfer", "refund")
    outlast(4 * HOUR, steps=2)
    assert not SellerTransfer.objects.filter(status=TransferStatus.PERMANENTLY_FAILED).exists()
    assert not SellerTransfer.objects.filter(retry_count__gt=0).exists()
    come_back(wire, simulator)
    # The breakers' own time, at most: until they ask again.
    pass_time(15)
    wait_until(lambda: not open_breakers(), lambda: f"the breakers to close: {open_breakers()}")
    wait_for_all_work()
    for worker in running:
        assert worker.is_running
        worker.stop()
    assert_all_is_well(simulator)


@pytest.mark.slow
def test_four_hours_without_stripe_and_five_thousand_rows(wired: Nursery, wire: Wire, simulator: Any) -> None:
    """Once Stripe is back, nothing is hurried on: within a minute the worker is at full speed by itself."""
    per_second = 50
    rows.owe_reversals(simulator, 5000)
    wire.refuse()
    wired.settings["STRIPE_MAX_REQUESTS_PER_SECOND"] = per_second
    worker = wired.start(REVERSALS)
    wait_until_open("reversal")
    outlast(4 * HOUR, steps=48)
    assert open_work() == {TransferStatus.REVERSAL_PENDING: 5000}
    assert not SellerTransfer.objects.filter(retry_count__gt=0).exists()
    come_back(wire, simulator)
    returned = time.monotonic()
    wait_until(lambda: simulator.requests.total > 0, "the first call", patience=60)
    first_after = time.monotonic() - returned
    wait_until(lambda: simulator.requests.total > per_second, "the next second of calls")
    counted, began = simulator.requests.total, time.monotonic()
    assert began - returned < 60
    wait_until(lambda: simulator.requests.total >= counted + 10 * per_second, "ten seconds of calls")
    rate = 10 * per_second / (time.monotonic() - began)
    print(f"first call after {first_after:.1f} s, then {rate:.1f} calls/s of {per_second}")  # noqa: T201
    assert rate > 0.9 * per_second
    wait_until(lambda: not open_work(), lambda: f"{open_work()}", patience=240)
    worker.stop()
    assert_all_is_well(simulator)
