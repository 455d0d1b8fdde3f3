"""Seen from another connection to the database, while Stripe takes its time: no worker is in a transaction."""

from typing import Any

from tests.death import rows
from tests.death.audit import assert_all_is_well, open_work
from tests.death.conftest import asked
from tests.death.processes import REVERSALS, TRANSFERS, Nursery, wait_until
from tests.death.wire import Wire

OTHERS = """
    SELECT pid, state, xact_start, query FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def test_no_worker_is_in_a_transaction_while_stripe_is_called(wired: Nursery, wire: Wire, simulator: Any) -> None:
    """Of reversals, transfers and refunds at once. What a worker does besides its calls may take an instant, but it
    has to end while they last.
    """
    rows.owe_reversals(simulator, 3)
    rows.owe_transfers(simulator, 3)
    rows.request_refunds(simulator, 3)
    wire.hold_answers()
    running = [wired.start(REVERSALS, "--concurrency", "8"), wired.start(TRANSFERS, "--concurrency", "8")]
    wire.wait_for_held_answers(9)
    wait_until(lambda: not in_transactions(), lambda: f"all to be idle: {in_transactions()}")
    assert wire.held_answers == 9
    assert len(asked(OTHERS)) >= 2
    wire.restore()
    wait_until(lambda: not open_work(), lambda: str(open_work()))
    for worker in running:
        worker.stop()
    assert_all_is_well(simulator)


def in_transactions() -> list[tuple[Any, ...]]:
    return [row for row in asked(OTHERS) if row[2] is not None]
