"""SIGKILL at each step of each kind of work. Another worker finishes, and Stripe did it once."""

from collections.abc import Callable
from typing import Any

import pytest

from marketplace.models import Refund, SellerTransfer
from tests.death import rows
from tests.death.audit import assert_all_is_well, let_leases_run_out
from tests.death.conftest import Session, asked
from tests.death.processes import REVERSALS, TRANSFERS, Nursery, wait_until
from tests.death.steps import AFTER_ANSWER, AFTER_CLAIM, AFTER_WRITING, BEFORE_CALL, BEFORE_WRITING, STEPS, TABLES
from tests.death.wire import Wire

KINDS: dict[str, tuple[str, Callable[..., list[int]], type[Any]]] = {
    "reversal": (REVERSALS, rows.owe_reversals, SellerTransfer),
    "transfer": (TRANSFERS, rows.owe_transfers, SellerTransfer),
    "refund": (REVERSALS, rows.request_refunds, Refund),
}
HELD = {AFTER_CLAIM, BEFORE_CALL, AFTER_ANSWER, BEFORE_WRITING}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_another_worker_finishes_what_a_killed_one_left(workers: Nursery, simulator: Any, kind: str, step: str) -> None:
    command, make, model = KINDS[kind]
    make(simulator, 1)
    workers.start(command, "--once", die={"work": kind, "step": step}).wait_for_its_death()
    if step != AFTER_WRITING:
        # That one may be committed or not; of all others it is known whether the dead worker holds the row.
        assert model.objects.filter(lease_token__isnull=False).count() == (step in HELD)
    let_leases_run_out()
    assert workers.start(command, "--once").wait() == 0
    assert_all_is_well(simulator)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_its_request_arrives_which_then_comes_last(
    wired: Nursery, wire: Wire, simulator: Any, kind: str
) -> None:
    """The request of a dead worker travels on, and arrives when another one has done it."""
    command, make, _ = KINDS[kind]
    make(simulator, 1)
    wire.hold_requests()
    killed = wired.start(command, "--once")
    wire.wait_for_held_requests(1)
    killed.kill()
    let_leases_run_out()
    wired.settings["STRIPE_API_BASE"] = simulator.url
    assert wired.start(command, "--once").wait() == 0
    wire.restore()
    wait_until(lambda: len(posts(simulator)) == 2, "the dead worker's request to arrive")
    first, late = posts(simulator)
    assert first.key == late.key
    wait_until(lambda: late.replayed, "Stripe to repeat its answer under the key")
    assert_all_is_well(simulator)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_the_answer_is_on_its_way(wired: Nursery, wire: Wire, simulator: Any, kind: str) -> None:
    command, make, _ = KINDS[kind]
    make(simulator, 1)
    wire.hold_answers()
    killed = wired.start(command, "--once")
    wire.wait_for_held_answers(1)
    killed.kill()
    wire.restore()
    let_leases_run_out()
    assert wired.start(command, "--once").wait() == 0
    first, second = posts(simulator)
    assert (first.key, second.replayed) == (second.key, True)
    assert_all_is_well(simulator)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_its_settling_statement_runs(
    wired: Nursery, wire: Wire, simulator: Any, session: Session, kind: str
) -> None:
    """PostgreSQL may finish the statement of a client that is gone, or take it back. Both are fine."""
    command, make, _ = KINDS[kind]
    (row,) = make(simulator, 1)
    wire.hold_answers()
    killed = wired.start(command, "--once")
    wire.wait_for_held_answers(1)
    with session.transaction():
        session.execute(f"SELECT 1 FROM {TABLES[kind]} WHERE id = %s FOR UPDATE", [row])  # noqa: S608
        wire.restore()
        settling = wait_until(lambda: waiting_for(session), "the worker to wait for the row's lock")
        killed.kill()
    wait_until(lambda: not is_connected(settling), "PostgreSQL to notice that the client is gone")
    let_leases_run_out()
    assert wired.start(command, "--once").wait() == 0
    assert_all_is_well(simulator)


def posts(simulator: Any) -> list[Any]:
    return [record for record in simulator.requests if record.method == "POST"]


def waiting_for(session: Session) -> int | None:
    """The backend that waits for a lock of this session."""
    mine = session.info.backend_pid
    found = asked("SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", mine)
    return int(found[0][0]) if found else None


def is_connected(pid: int) -> bool:
    return bool(asked("SELECT pid FROM pg_stat_activity WHERE pid = %s", pid))
