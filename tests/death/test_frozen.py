"""A worker that stands still for longer than its lease, as a host that swaps or is moved, and then goes on."""

import signal
from typing import Any

import pytest

from marketplace.models import SellerTransfer
from tests.death import rows
from tests.death.audit import assert_all_is_well, let_leases_run_out
from tests.death.processes import REVERSALS, TRANSFERS, Nursery, wait_until
from tests.death.wire import Wire

KINDS = {"reversal": (REVERSALS, rows.owe_reversals), "transfer": (TRANSFERS, rows.owe_transfers)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hold", [Wire.hold_answers, Wire.hold_requests])
def test_its_late_settle_changes_nothing(wired: Nursery, wire: Wire, simulator: Any, kind: str, hold: Any) -> None:
    command, make = KINDS[kind]
    make(simulator, 1)
    hold(wire)
    frozen = wired.start(command, "--once")
    wait_until(lambda: wire.held_answers + wire.held_requests, "the call of the first worker")
    frozen.send(signal.SIGSTOP)
    let_leases_run_out()
    wired.settings["STRIPE_API_BASE"] = simulator.url
    assert wired.start(command, "--once").wait() == 0
    done = SellerTransfer.objects.values().get(), written()
    wire.restore()
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert len(frozen.logged("late_settle")) == 1, frozen.text
    assert (SellerTransfer.objects.values().get(), written()) == done
    assert_all_is_well(simulator)


def written() -> int:
    return SellerTransfer.objects.get().history.count()


def test_rows_that_it_had_not_begun_are_done_once(wired: Nursery, wire: Wire, simulator: Any) -> None:
    """It may hold more rows than it works on; while it stood still another one has done them all."""
    rows.owe_reversals(simulator, 12)
    wire.hold_answers()
    frozen = wired.start(REVERSALS, "--once", "--concurrency", "2", "--batch-size", "12")
    wire.wait_for_held_answers(2)
    frozen.send(signal.SIGSTOP)
    let_leases_run_out()
    wired.settings["STRIPE_API_BASE"] = simulator.url
    assert wired.start(REVERSALS, "--once").wait() == 0
    wire.restore()
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert len(frozen.logged("late_settle")) >= 2, frozen.text
    assert_all_is_well(simulator)
