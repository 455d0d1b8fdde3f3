"""PostgreSQL's disk is full. Webhooks are answered 503, so that Stripe sends them again; workers come back.

Once with a PostgreSQL that says so, anywhere; and on a small file system in memory that is really full, which takes the
right to mount one. Without that right those tests are skipped, which says nothing of what they are about.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import Error, connection

from marketplace.models import SellerTransfer, WebhookEvent
from tests.death import rows
from tests.death.audit import assert_all_is_well, wait_for_all_work
from tests.death.postgres import Server, fill, may_mount
from tests.death.processes import REVERSALS, Nursery, Worker, wait_until

# The simulator sends again after 10 seconds of its own clock.
SENT_AGAIN_AFTER = 10
REVERSE = "POST /v1/transfers/{id}/reversals"


MOUNTING = "a full disk takes the right to mount a small one: NOT TESTED on this machine, run it as root elsewhere"


@pytest.fixture
def full_disk(server: Server) -> Iterator[Server]:
    """Whose file system may be filled."""
    assert server.disk_is_small
    yield server
    (server.disk / "ballast").unlink(missing_ok=True)
    connection.close()
    if not server.is_running:
        server.start()


@pytest.fixture
def web(its_workers: Nursery, full_disk: Server) -> tuple[Worker, str]:
    """Our server, and where it takes events."""
    return serving(its_workers)


def serving(programs: Nursery) -> tuple[Worker, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = programs.start("runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}")
    wait_until(lambda: answers(port), lambda: f"the server\n{process.text}")
    return process, f"http://127.0.0.1:{port}/webhooks/stripe/"


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def refund_until_it_is_full(simulator: Any, transfers: list[SellerTransfer]) -> None:
    """In Stripe's dashboard, one after the other."""
    for transfer in transfers:
        simulator.create_refund(transfer.order.stripe_charge_id, rows.PART)
        assert simulator.wait_for_webhooks()
        if refused(simulator):
            return
    raise AssertionError("the disk was never full")


def refused(simulator: Any) -> set[str]:
    """Events of which an attempt was not answered with 200."""
    return {sent.event for sent in simulator.webhooks_sent if sent.status != 200}


def stored(events: set[str]) -> int:
    return WebhookEvent.objects.filter(stripe_event_id__in=events).count()


@contextmanager
def no_room() -> Iterator[None]:
    """PostgreSQL answers each attempt to keep an event or a step with the error of a full disk."""
    tables = ("marketplace_webhookevent", "marketplace_sellertransferhistory")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = 'could not extend file: No space left on device';
            END $$
            """
        )
        for table in tables:
            cursor.execute(f"CREATE TRIGGER no_room BEFORE INSERT ON {table} EXECUTE FUNCTION no_room()")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION no_room() CASCADE")


def test_what_postgresql_has_no_room_for_is_told_again_and_written_then(workers: Nursery, simulator: Any) -> None:
    _, address = serving(workers)
    paid = rows.have_paid(simulator, 3)
    owed = rows.owe_reversals(simulator, 5)
    simulator.deliver_to(address)
    with no_room():
        worker = workers.start(REVERSALS, "--concurrency", "5")
        for transfer in paid:
            simulator.create_refund(transfer.order.stripe_charge_id, rows.PART)
        assert simulator.wait_for_webhooks()
        assert {sent.status for sent in simulator.webhooks_sent} == {503}
        wait_until(lambda: worker.text.count("No space left") >= 2 * len(owed), lambda: f"settles\n{worker.text}")
        open_rows = SellerTransfer.objects.filter(pk__in=owed, status="reversal_pending")
        assert open_rows.count() == len(owed)
    wait_until(lambda: not open_rows.exists(), "the answers in hand to be written")
    simulator.clock.advance(SENT_AGAIN_AFTER)
    assert simulator.wait_for_webhooks()
    assert stored(refused(simulator)) == len(refused(simulator))
    wait_for_all_work()
    worker.stop()
    # What was answered once is not asked for again.
    assert len(simulator.requests.to(REVERSE)) == len(owed) + len(paid)
    assert_all_is_well(simulator)


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason=MOUNTING)
def test_webhooks_are_sent_again_and_workers_go_on(
    full_disk: Server, its_workers: Nursery, web: tuple[Worker, str], simulator: Any
) -> None:
    server, address = web
    transfers = rows.have_paid(simulator, 100)
    rows.owe_reversals(simulator, 100)
    simulator.deliver_to(address)
    log_is_ahead()
    ballast = fill(full_disk.disk)
    worker = its_workers.start(REVERSALS, "--concurrency", "4")
    refund_until_it_is_full(simulator, transfers)
    wait_until(lambda: worker.logged("database_away"), lambda: f"the worker to meet the full disk\n{worker.text}")
    assert {sent.status for sent in simulator.webhooks_sent} <= {200, 503}
    told_in_vain = refused(simulator)
    assert stored(told_in_vain) == 0
    assert "No space left on device" in full_disk.log

    ballast.unlink()
    simulator.clock.advance(SENT_AGAIN_AFTER)
    assert simulator.wait_for_webhooks()
    assert stored(told_in_vain) == len(told_in_vain)
    wait_for_all_work()
    assert server.is_running
    worker.stop()
    assert_all_is_well(simulator)


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason=MOUNTING)
def test_a_postgresql_that_ends_for_want_of_room_costs_nothing(
    full_disk: Server, its_workers: Nursery, web: tuple[Worker, str], simulator: Any
) -> None:
    """Without room for its log it ends, and cannot start again before there is some."""
    server, address = web
    transfers = rows.have_paid(simulator, 20)
    rows.owe_reversals(simulator, 200)
    simulator.faults.add("latency", seconds=0.02)
    worker = its_workers.start(REVERSALS, "--concurrency", "4")
    wait_until(lambda: len(simulator.requests) > 20, "some calls")
    ballast = fill(full_disk.disk)
    wait_until(lambda: fill_the_log(full_disk), lambda: f"PostgreSQL to end\n{full_disk.log[-3000:]}")
    simulator.deliver_to(address)
    refund_until_it_is_full(simulator, transfers)
    assert {sent.status for sent in simulator.webhooks_sent} == {503}
    told_in_vain = refused(simulator)

    ballast.unlink()
    connection.close()
    # Whoever keeps PostgreSQL running starts it again; nothing of ours has to be.
    full_disk.start()
    assert stored(told_in_vain) == 0
    simulator.clock.advance(SENT_AGAIN_AFTER)
    assert simulator.wait_for_webhooks()
    assert stored(told_in_vain) == len(told_in_vain)
    wait_for_all_work()
    assert server.is_running
    worker.stop()
    assert_all_is_well(simulator)


def log_is_ahead() -> None:
    """Some segments of its log are there already, so that tables are what cannot grow."""
    with connection.cursor() as cursor:
        for _ in range(4):
            cursor.execute("CREATE TABLE grows_log (); DROP TABLE grows_log; SELECT pg_switch_wal()")
        cursor.execute("CHECKPOINT")


def fill_the_log(server: Server) -> bool:
    """Write until there is no room for more; whether that was the end of it."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_logical_emit_message(true, 'full', repeat('x', 8000000))")
    except Error:
        connection.close()
    return not server.is_running
