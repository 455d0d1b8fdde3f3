"""The clock of one host is wrong. Leases, due times and the age of keys are the database's: nothing comes of it."""

from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from marketplace.models import SellerTransfer
from tests.death import rows
from tests.death.audit import assert_all_is_well, let_leases_run_out, make_due, pass_time
from tests.death.clocks import ASKED
from tests.death.processes import REVERSALS, Nursery, wait_until
from tests.death.steps import AFTER_ANSWER
from tests.death.test_killed_at_every_step import KINDS, posts
from tests.death.wire import Wire

HOUR = 3600
OFFSETS = [HOUR, -HOUR, 30 * HOUR, -30 * HOUR]
LEASE = 300


def seconds_until(field: str) -> float:
    """By the database's clock."""
    found: Any = SellerTransfer.objects.annotate(until=F(field) - Now()).get()
    return float(found.until.total_seconds())


@pytest.mark.parametrize("offset", OFFSETS)
def test_leases_and_due_times_are_as_with_a_right_one(
    wired: Nursery, wire: Wire, simulator: Any, offset: float
) -> None:
    rows.owe_reversals(simulator, 1)
    simulator.faults.add("unavailable", method="POST", times=1)
    wire.hold_answers()
    wrong = wired.start(REVERSALS, "--once", clock_offset=offset, settings={"REVERSAL_LEASE": LEASE})
    wire.wait_for_held_answers(1)
    assert LEASE - 30 < seconds_until("lease_expires_at") <= LEASE
    # Beside it one with a right clock, which finds the row held.
    assert wired.start(REVERSALS, "--once").wait() == 0
    assert wire.held_answers == 1
    wire.restore()
    assert wrong.wait() == 0
    # After the first failure a row waits for up to a minute.
    assert 0 < seconds_until("next_retry_at") <= 60
    make_due()
    assert wired.start(REVERSALS, "--once", clock_offset=offset).wait() == 0
    assert wrong.logged(ASKED) == []
    assert_all_is_well(simulator)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_is_behind_does_not_make_an_old_key_young(workers: Nursery, simulator: Any, kind: str) -> None:
    """Stripe has forgotten the key after a day. Sent again under it, without a look, it would be done again."""
    command, make, _ = KINDS[kind]
    make(simulator, 1)
    workers.start(command, "--once", die={"work": kind, "step": AFTER_ANSWER}).wait_for_its_death()
    simulator.clock.advance(25 * HOUR)
    pass_time(25 * HOUR)
    assert workers.start(command, "--once", clock_offset=-30 * HOUR).wait() == 0
    assert len(posts(simulator)) == 1
    assert_all_is_well(simulator)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_is_ahead_does_not_make_a_young_key_old(
    wired: Nursery, wire: Wire, simulator: Any, kind: str
) -> None:
    """The first request is still on its way. A look finds nothing yet, and under a new key it would be done twice."""
    command, make, _ = KINDS[kind]
    make(simulator, 1)
    wire.hold_requests()
    killed = wired.start(command, "--once")
    wire.wait_for_held_requests(1)
    killed.kill()
    let_leases_run_out()
    wired.settings["STRIPE_API_BASE"] = simulator.url
    assert wired.start(command, "--once", clock_offset=30 * HOUR).wait() == 0
    wire.restore()
    wait_until(
        lambda: len(posts(simulator)) == 2 and posts(simulator)[1].status, "the dead worker's request to be done"
    )
    assert_all_is_well(simulator)
