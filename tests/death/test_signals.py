"""SIGTERM and SIGINT: what is in hand is finished, what is not begun goes back at once, and nothing takes longer."""

import signal
import time
from typing import Any

import pytest

from marketplace.models import SellerTransfer
from marketplace.states import TransferStatus
from tests.death import rows
from tests.death.audit import assert_all_is_well, let_leases_run_out, make_due
from tests.death.conftest import listening
from tests.death.processes import REVERSALS, TRANSFERS, Nursery, Worker, wait_until
from tests.death.wire import Wire

# Besides the calls in hand: settling them, and the end of a Python process on a loaded machine.
MARGIN = 5


def start_with_rows_in_hand(workers: Nursery, wire: Wire, *, in_hand: int) -> Worker:
    worker = workers.start(REVERSALS, "--concurrency", str(in_hand), "--batch-size", "20")
    wire.wait_for_held_answers(in_hand)
    return worker


def leased() -> int:
    return SellerTransfer.objects.filter(lease_token__isnull=False).count()


def seconds_to_end(worker: Worker) -> float:
    started = time.monotonic()
    worker.wait(patience=2 * MARGIN)
    return time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_hand_is_finished_and_the_rest_goes_back_at_once(
    wired: Nursery, wire: Wire, simulator: Any, number: signal.Signals
) -> None:
    rows.owe_reversals(simulator, 12)
    wire.hold_answers()
    worker = start_with_rows_in_hand(wired, wire, in_hand=4)
    worker.send(number)
    # While the four calls are still out.
    wait_until(lambda: worker.logged("worker_stopping"), lambda: worker.text)
    wait_until(lambda: leased() == 4, lambda: f"{leased()} rows are leased, 4 are in hand", patience=MARGIN)
    assert worker.is_running
    wire.restore()
    assert seconds_to_end(worker) < MARGIN
    assert worker.status == 0, worker.text
    assert leased() == 0
    assert SellerTransfer.objects.filter(status=TransferStatus.REVERSAL_PENDING).count() == 8
    # No lease has to run out for them.
    assert wired.start(REVERSALS, "--once").wait() == 0
    assert len(simulator.requests) == 12
    assert_all_is_well(simulator)


def test_it_waits_for_the_longest_call_in_hand_and_no_longer(wired: Nursery, wire: Wire, simulator: Any) -> None:
    """A Stripe that never answers holds it up for the timeouts of one call."""
    rows.owe_reversals(simulator, 12)
    wire.hold_requests()
    limits = {"STRIPE_CONNECT_TIMEOUT": 1, "STRIPE_READ_TIMEOUT": 1}
    worker = wired.start(REVERSALS, "--concurrency", "4", settings=limits)
    wire.wait_for_held_requests(4)
    worker.send(signal.SIGTERM)
    assert seconds_to_end(worker) < 1 + 1 + MARGIN
    assert worker.status == 0, worker.text
    assert leased() == 0
    wire.restore()
    make_due()
    assert wired.start(REVERSALS, "--once").wait() == 0
    assert_all_is_well(simulator)


def test_sigterm_again_changes_nothing(wired: Nursery, wire: Wire, simulator: Any) -> None:
    """Supervisors send it twice; who wants it dead sends SIGKILL."""
    rows.owe_reversals(simulator, 6)
    wire.hold_answers()
    worker = start_with_rows_in_hand(wired, wire, in_hand=2)
    for count in (1, 2):
        worker.send(signal.SIGTERM)
        worker.wait_for_log("worker_stopping", count)
    assert worker.is_running
    wire.restore()
    assert seconds_to_end(worker) < MARGIN
    assert worker.status == 0, worker.text
    assert wired.start(REVERSALS, "--once").wait() == 0
    assert_all_is_well(simulator)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_sigint_after_a_first_signal_ends_it_at_once(
    wired: Nursery, wire: Wire, simulator: Any, first: signal.Signals
) -> None:
    """Two presses of Ctrl-C: whoever sits there does not want to wait for Stripe."""
    rows.owe_reversals(simulator, 6)
    wire.hold_answers()
    worker = start_with_rows_in_hand(wired, wire, in_hand=2)
    worker.send(first)
    worker.wait_for_log("worker_stopping")
    worker.send(signal.SIGINT)
    assert seconds_to_end(worker) < MARGIN
    assert worker.status == -signal.SIGINT, worker.text
    wire.restore()
    let_leases_run_out()
    assert wired.start(REVERSALS, "--once").wait() == 0
    assert_all_is_well(simulator)


@pytest.mark.parametrize("command", [REVERSALS, TRANSFERS])
def test_an_idle_worker_ends_at_once(workers: Nursery, command: str) -> None:
    worker = workers.start(command)
    wait_until(listening, lambda: f"the worker to listen\n{worker.text}")
    worker.send(signal.SIGTERM)
    assert seconds_to_end(worker) < 2
    assert worker.status == 0, worker.text
