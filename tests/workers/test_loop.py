"""The loop itself: threads, wake-ups, signals, and a database or a Stripe that goes away. On committed rows."""

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.models.functions import Now
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from marketplace import deadline
from marketplace.errors import NotAllowedNow, StaleTransition, StripeDenied
from marketplace.models import BalanceWatch, SellerTransfer
from marketplace.services import leases, refund_records, reversal_settling, transfers
from marketplace.states import TransferStatus
from marketplace.workers import loop, reversal, transfer_retry
from marketplace.workers.listener import APPLICATION_NAME, Listener
from marketplace.workers.loop import Worker, persistently, threads_for
from tests.conftest import plain_parameters
from tests.factories import SellerFactory, SellerTransferFactory, WebhookEventFactory, order_with_transfers
from tests.lines import BALANCE
from tests.outgoing.receivers import raw_server, webhook_receiver
from tests.outgoing.test_webhook import SECRET
from tests.services.test_refunds import facts
from tests.workers.conftest import CREATE, REVERSE, drain

pytestmark = pytest.mark.django_db(transaction=True)
Make = Callable[..., SellerTransfer]
# Long enough for a loaded machine; nothing waits that long when it works.
PATIENCE = 20


class Rows:
    """A queue of plain numbers, to see what the loop does with them."""

    name = "rows"
    channel = "veza_test_rows"
    # The database knows of none: they come by notification, or by the first look.
    due = leases.Due(model=SellerTransfer, condition="FALSE")

    def __init__(self, rows: Sequence[int] = (), perform: Callable[[int], None] = lambda _row: None) -> None:
        self.waiting = list(rows)
        self.performed: list[int] = []
        self.released: list[int] = []
        self.kept: list[tuple[int, str]] = []
        self.held_back: set[int] = set()
        self.claims = 0
        self._perform = perform

    def claim(self, *, batch_size: int, lease: timedelta) -> list[int]:
        self.claims += 1
        claimed, self.waiting = self.waiting[:batch_size], self.waiting[batch_size:]
        return claimed

    def perform(self, row: int) -> None:
        self._perform(row)
        self.performed.append(row)

    def settle_unexpected(self, row: int, exception: Exception) -> None:
        self.kept.append((row, str(exception)))

    def release(self, row: int) -> None:
        self.released.append(row)

    def describe(self, row: int) -> dict[str, Any]:
        return {"row": row}

    def is_held_back(self, row: int) -> bool:
        return row in self.held_back


def worker(
    *queues: Any,
    concurrency: int = 2,
    batch_size: int = 10,
    check_interval: float = 60,
    attempt: timedelta = timedelta(minutes=1),
) -> Worker:
    return Worker(
        queues,
        name="a worker",
        concurrency=concurrency,
        batch_size=batch_size,
        lease=timedelta(minutes=5),
        attempt=attempt,
        check_interval=timedelta(seconds=check_interval),
    )


@pytest.fixture
def running(unblocked_database: None) -> Iterator[Callable[[Worker], threading.Thread]]:
    """Run a worker in a thread of its own until the test ends."""
    started: list[tuple[Worker, threading.Thread]] = []

    def run(made: Worker) -> threading.Thread:
        thread = threading.Thread(target=made.run)
        thread.start()
        started.append((made, thread))
        return thread

    yield run
    for made, thread in started:
        made.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_once_does_all_that_is_due_however_small_the_batch() -> None:
    rows = Rows(range(25))
    assert worker(rows, batch_size=3).run_once() == 25
    assert sorted(rows.performed) == list(range(25))


def test_a_little_is_claimed_ahead_of_the_threads_and_no_more() -> None:
    begun: list[int] = []
    ahead: list[int] = []

    class Counted(Rows):
        def claim(self, *, batch_size: int, lease: timedelta) -> list[int]:
            claimed = super().claim(batch_size=batch_size, lease=lease)
            ahead.append(1000 - len(self.waiting) - len(begun))
            return claimed

    worker(Counted(range(1000), begun.append), concurrency=3, batch_size=10).run_once()
    # At most a batch and a half, and what the threads have taken and not begun.
    assert 3 < max(ahead) <= 15 + threads_for(3)


def test_a_row_whose_lease_would_end_during_the_attempt_is_given_back() -> None:
    rows = Rows([1, 2])
    assert worker(rows, attempt=timedelta(minutes=6)).run_once() == 0
    assert (rows.performed, sorted(rows.released)) == ([], [1, 2])


def test_a_row_that_its_queue_holds_back_is_given_back() -> None:
    rows = Rows([1, 2])
    rows.held_back = {2}
    assert worker(rows).run_once() == 1
    assert (rows.performed, rows.released) == ([1], [2])


def test_an_idle_thread_gives_its_connection_back_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.workers.loop.IDLE_SECONDS", 0.0)
    given_back = threading.Event()
    # The worker's threads alone: this one keeps the connection of the test.
    monkeypatch.setattr("marketplace.workers.loop.connections.close_all", given_back.set)

    class Late(Rows):
        def claim(self, *, batch_size: int, lease: timedelta) -> list[int]:
            assert given_back.wait(PATIENCE)
            return super().claim(batch_size=batch_size, lease=lease)

    rows = Late([1, 2])
    assert worker(rows).run_once() == 2
    assert sorted(rows.performed) == [1, 2]


def test_a_slow_call_does_not_hold_up_the_others() -> None:
    others_done = threading.Event()

    def perform(row: int) -> None:
        if row == 0:
            # A loop that waits for its batch would never get to the last row.
            assert others_done.wait(PATIENCE)
        elif row == 9:
            others_done.set()

    rows = Rows(range(10), perform)
    worker(rows, concurrency=2, batch_size=2).run_once()
    assert rows.kept == []
    assert len(rows.performed) == 10


def test_a_long_backlog_of_one_queue_does_not_keep_the_others_waiting() -> None:
    order: list[str] = []
    long = Rows(range(50), lambda _row: order.append("long"))
    short = Rows([1], lambda _row: order.append("short"))
    worker(long, short, concurrency=1, batch_size=1).run_once()
    assert order.index("short") <= 2


@pytest.fixture
def silent_mail_server(settings: Any) -> Iterator[list[Any]]:
    """It takes connections and says nothing, as one behind a firewall that drops. Those that wait for it."""
    waiting: list[Any] = []
    over = threading.Event()

    def answer(connected: Any) -> None:
        waiting.append(connected)
        over.wait(PATIENCE)

    with raw_server(answer) as port:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT, settings.EMAIL_TIMEOUT = "127.0.0.1", port, 2 * PATIENCE
        settings.SELLER_NOTICES = True
        yield waiting
        over.set()


def test_a_silent_mail_server_holds_up_sellers_mails_and_nothing_else(
    running: Callable[[Worker], threading.Thread],
    silent_mail_server: list[Any],
    at_stripe: Make,
    gateway: Any,
    settings: Any,
) -> None:
    for number in range(12):
        SellerTransferFactory(reversed=True, seller=SellerFactory(email=f"seller-{number}@example.com"))
    running(reversal.worker(gateway, concurrency=4))
    wait_until(lambda: bool(silent_mail_server))
    with webhook_receiver() as operators:
        settings.NOTICE_WEBHOOK_URL = f"{operators.url}/hook"
        settings.NOTICE_WEBHOOK_SECRET = SECRET
        SellerTransferFactory(permanently_failed=True)
        wait_for(at_stripe(), TransferStatus.REVERSED)
        wait_until(lambda: bool(operators.received))


def test_balances_that_are_slow_to_come_hold_up_their_checks_and_nothing_else(
    running: Callable[[Worker], threading.Thread], at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    for _ in range(12):
        transfer = at_stripe()
        SellerTransfer.objects.filter(pk=transfer.pk).update(
            last_error_code="insufficient_funds", next_retry_at=Now() + timedelta(hours=6)
        )
        BalanceWatch.objects.create(seller=transfer.seller, available={}, next_retry_at=Now())
    simulator.faults.add("latency", seconds=3, endpoint=BALANCE)
    running(reversal.worker(gateway, concurrency=4))
    wait_until(lambda: BalanceWatch.objects.filter(lease_token__isnull=False).exists())
    wait_for(at_stripe(), TransferStatus.REVERSED)
    assert not BalanceWatch.objects.filter(seen_at__isnull=False).exists()


def test_a_poison_row_does_not_stop_the_queue() -> None:
    def perform(row: int) -> None:
        if row == 1:
            raise ZeroDivisionError("a bug")

    rows = Rows(range(4), perform)
    with capture_logs() as logs:
        worker(rows).run_once()
    assert sorted(rows.performed) == [0, 2, 3]
    assert rows.kept == [(1, "a bug")]
    assert "unexpected_error" in [entry["event"] for entry in logs]


class Unclaimable(Rows):
    """The claim itself fails, as long as ``is_broken``."""

    name = "unclaimable"
    is_broken = True

    def claim(self, *, batch_size: int, lease: timedelta) -> Any:
        if self.is_broken:
            raise ZeroDivisionError("a bug")
        return super().claim(batch_size=batch_size, lease=lease)


def test_a_queue_that_cannot_be_claimed_keeps_no_other_waiting() -> None:
    broken, rows = Unclaimable([7]), Rows(range(4))
    with capture_logs() as logs, pytest.raises(RuntimeError, match="could not be claimed"):
        worker(broken, rows).run_once()
    assert REGISTRY.get_sample_value("veza_unexpected_errors_total", {"work": "unclaimable"})
    assert sorted(rows.performed) == [0, 1, 2, 3]
    assert ("unexpected_error", "unclaimable", "claim") in [
        (entry["event"], entry.get("work"), entry.get("step")) for entry in logs
    ]


def test_a_claim_that_finds_the_database_away_is_no_error_of_the_queue() -> None:
    class Away(Rows):
        def claim(self, *, batch_size: int, lease: timedelta) -> Any:
            raise OperationalError("the database is away")

    with pytest.raises(OperationalError):
        worker(Away()).run_once()


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_cannot_be_claimed_is_tried_again_and_ends_no_worker(
    running: Callable[[Worker], threading.Thread],
) -> None:
    broken, rows = Unclaimable([7]), Rows(range(4))
    # Something of it is always due, as far as the database knows.
    SellerTransferFactory(next_retry_at=Now())
    broken.due = leases.Due(model=SellerTransfer, condition="TRUE")
    thread = running(worker(broken, rows))
    wait_until(lambda: len(rows.performed) == 4)
    broken.is_broken = False
    wait_until(lambda: broken.performed == [7])
    assert thread.is_alive()


def test_a_late_settle_is_logged_and_not_an_error() -> None:
    def perform(_row: int) -> None:
        raise StaleTransition("lease gone")

    rows = Rows([1], perform)
    with capture_logs() as logs:
        worker(rows).run_once()
    assert rows.kept == []
    assert [entry["event"] for entry in logs if entry["event"] != "claimed"] == ["late_settle"]


def test_a_database_error_while_settling_leaves_the_row_to_its_lease() -> None:
    def perform(_row: int) -> None:
        raise OperationalError("server closed the connection")

    rows = Rows([1], perform)
    with capture_logs() as logs:
        worker(rows).run_once()
    assert rows.kept == []
    assert [entry["event"] for entry in logs if entry["event"] != "claimed"] == ["database_away"]


def test_a_database_that_only_reads_is_away_and_no_bug_of_ours(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    """A former primary after a failover."""
    transfer = at_stripe()
    queue = reversal.ReversalQueue(gateway)

    class OnlyRead(Rows):
        def perform(self, row: int) -> None:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
                SellerTransfer.locked(transfer.pk).change(actor="a worker", reason="written")

    rows = OnlyRead([1])
    with capture_logs() as logs:
        worker(rows).run_once()
    assert rows.kept == []
    assert [entry["event"] for entry in logs if entry["event"] != "claimed"] == ["database_away"]
    assert drain(queue) == 1


def test_a_database_error_that_is_our_bug_is_kept_with_the_row() -> None:
    def perform(_row: int) -> None:
        raise IntegrityError("violates check constraint")

    rows = Rows([1], perform)
    worker(rows).run_once()
    assert rows.kept == [(1, "violates check constraint")]


def test_an_error_that_cannot_be_kept_is_logged_and_the_worker_goes_on() -> None:
    class Hopeless(Rows):
        def settle_unexpected(self, row: int, exception: Exception) -> None:
            raise ValueError("cannot be written down")

    def perform(row: int) -> None:
        if row == 0:
            raise ZeroDivisionError

    rows = Hopeless(range(3), perform)
    with capture_logs() as logs:
        assert worker(rows).run_once() == 3
    assert sorted(rows.performed) == [1, 2]
    assert "could_not_settle" in [entry["event"] for entry in logs]


def test_a_refused_key_stops_the_loop_and_gives_back_what_was_not_begun(
    unblocked_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(_row: int) -> None:
        raise StripeDenied("revoked")

    # A second one could have begun the next row before the first is refused.
    monkeypatch.setattr(loop, "threads_for", lambda _concurrency: 1)
    rows = Rows(range(3), perform)
    with pytest.raises(StripeDenied, match="revoked"):
        worker(rows, concurrency=1, batch_size=3).run_once()
    assert (rows.performed, sorted(rows.released)) == ([], [1, 2])
    rows = Rows([0], perform)
    with pytest.raises(StripeDenied, match="revoked"):
        worker(rows).run()


def test_a_stopped_worker_claims_nothing() -> None:
    rows = Rows([1])
    stopped = worker(rows)
    stopped.stop()
    assert stopped.run_once() == 0
    stopped.run()
    assert rows.claims == 0


def test_the_worker_wakes_on_a_notification(running: Callable[[Worker], threading.Thread]) -> None:
    done, first_claim, second_claim = threading.Event(), threading.Event(), threading.Event()

    class Seen(Rows):
        def claim(self, *, batch_size: int, lease: timedelta) -> list[int]:
            (second_claim if first_claim.is_set() else first_claim).set()
            return super().claim(batch_size=batch_size, lease=lease)

    rows = Seen(perform=lambda _row: done.set())
    # Its next look of its own would be in an hour.
    running(worker(rows, check_interval=3600))
    # The listener's: what was written while nobody listened.
    assert first_claim.wait(PATIENCE)
    rows.waiting.append(1)
    assert not second_claim.is_set()
    with connection.cursor() as cursor:
        cursor.execute("NOTIFY veza_test_rows")
    assert done.wait(PATIENCE)


def test_who_was_called_before_waiting_waits_once_less() -> None:
    wake = loop._Wake()
    wake.set()
    wake.set()
    wake.wait()
    began = time.monotonic()
    wake.wait(0.05)
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("listens_elsewhere", [False, True])
def test_plans_are_kept_where_the_database_has_sessions_for_us(
    running: Callable[[Worker], threading.Thread], settings: Any, *, listens_elsewhere: bool
) -> None:
    """Through a pooler's transactions a prepared statement would be another one's, or nobody's."""
    if listens_elsewhere:
        settings.DATABASE_LISTEN_URL = psycopg.conninfo.make_conninfo(**plain_parameters())
    seen: list[Any] = []
    done = threading.Event()

    class Seen(Rows):
        def claim(self, *, batch_size: int, lease: timedelta) -> list[int]:
            seen.append(connection.connection.prepare_threshold if connection.connection else None)
            return super().claim(batch_size=batch_size, lease=lease)

    rows = Seen(perform=lambda _row: done.set())
    made = worker(rows, check_interval=3600)
    running(made)
    wait_until(lambda: rows.claims > 0)
    rows.waiting.append(1)
    with connection.cursor() as cursor:
        cursor.execute("NOTIFY veza_test_rows")
    assert done.wait(PATIENCE)
    assert seen[-1] == (None if listens_elsewhere else 0)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_notification_of_a_later_time_wakes_the_worker_then(running: Callable[[Worker], threading.Thread]) -> None:
    made = worker(Rows(), check_interval=3600)
    made.notify("veza_test_rows", 50.0)
    made.notify("veza_test_rows", 70.0)
    made.notify("veza_another", 1.0)
    began = time.monotonic()
    made._claim_what_is_due()
    (watched,) = made._watched
    assert 49 < watched.due_at - began < 51
    assert watched.queue.claims == 0  # type: ignore[attr-defined]


def test_claims_in_vain_come_less_and_less_often_until_one_finds_something() -> None:
    """Rows that are due and locked by others: their due time is seen, and they cannot be claimed."""
    rows = Rows()
    made = worker(rows)
    (watched,) = made._watched
    pauses = []
    for _ in range(7):
        watched.due_at, made._ask_at = 0.0, math.inf
        began = time.monotonic()
        made._claim_what_is_due()
        pauses.append(made._ask_at - began)
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.04)
    rows.waiting = [1]
    watched.due_at, made._ask_at = 0.0, math.inf
    began = time.monotonic()
    made._claim_what_is_due()
    assert made._ask_at - began == pytest.approx(0.05, abs=0.04)


def test_the_worker_looks_again_when_the_next_row_comes_due(
    at_stripe: Make, gateway: Any, running: Callable[[Worker], threading.Thread]
) -> None:
    transfer = at_stripe()
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now() + timedelta(milliseconds=300))
    running(reversal.worker(gateway, concurrency=1))
    wait_for(transfer, TransferStatus.REVERSED)


def test_the_worker_comes_back_when_the_database_does(
    at_stripe: Make, gateway: Any, running: Callable[[Worker], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.workers.loop.DATABASE_PAUSE_SECONDS", 0.01)
    transfer = at_stripe()
    failures = iter(range(3))

    class Away(reversal.ReversalQueue):
        def claim(self, *, batch_size: int, lease: timedelta) -> Any:
            if next(failures, None) is not None:
                raise OperationalError("the database system is shutting down")
            return super().claim(batch_size=batch_size, lease=lease)

    running(worker(Away(gateway), check_interval=3600))
    wait_for(transfer, TransferStatus.REVERSED)


def test_the_listener_reconnects_and_wakes_the_worker(
    unblocked_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.workers.listener.RECONNECT_SECONDS", 0.01)
    woken = threading.Semaphore(0)
    listener = Listener(["veza_test_rows"], on_notification=lambda _channel, _seconds: woken.release())
    listener.start()
    try:
        assert woken.acquire(timeout=PATIENCE)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s AND datname = current_database()",
                [APPLICATION_NAME],
            )
        assert woken.acquire(timeout=PATIENCE), "it did not come back"
    finally:
        listener.stop()
    assert not listener.is_alive()


def test_a_connection_of_the_worker_that_died_is_replaced(
    at_stripe: Make, gateway: Any, running: Callable[[Worker], threading.Thread]
) -> None:
    """PostgreSQL's backends end under the worker, as in a restart; the next row is done all the same."""
    with psycopg.connect(**plain_parameters(), autocommit=True) as watcher:
        running(reversal.worker(gateway, concurrency=2))
        first = at_stripe()
        wait_for(first, TransferStatus.REVERSED)
        watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)",
            [own_backend()],
        )
        second = at_stripe()
        wait_for(second, TransferStatus.REVERSED)


def own_backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return int(pid)


def wait_for(transfer: SellerTransfer, status: TransferStatus) -> None:
    """Look until the row is there, for as long as a loaded machine may need."""
    deadline = threading.Event()
    for _ in range(PATIENCE * 50):
        transfer.refresh_from_db()
        if transfer.status == status:
            return
        deadline.wait(0.02)
    raise AssertionError(f"transfer {transfer.pk} is {transfer.status}: {transfer.last_error_message}")


# --- The real queues, in real threads ---------------------------------------------------------------------------------


def test_no_transaction_is_open_while_stripe_is_called(at_stripe: Make, gateway: Any, unblocked_database: None) -> None:
    seen: list[tuple[str, str]] = []
    at_stripe()

    class Watching:
        """Looks at the other connections of this database in the middle of each call."""

        def __getattr__(self, name: str) -> Any:
            call = getattr(gateway, name)

            def watched(*args: Any, **kwargs: Any) -> Any:
                with psycopg.connect(**plain_parameters(), autocommit=True) as watcher:
                    rows = watcher.execute(
                        "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
                        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                    ).fetchall()
                seen.append((name, str([row for row in rows if row[0] != "idle"])))
                return call(*args, **kwargs)

            return watched

    # In one thread, so that the only connection at work is the one that calls.
    assert drain(reversal.ReversalQueue(Watching())) == 1  # type: ignore[arg-type]
    assert [name for name, _ in seen] == ["reverse_transfer"]
    assert [busy for _, busy in seen] == ["[]"]


def test_many_rows_and_two_workers_make_each_reversal_once(
    at_stripe: Make, gateway: Any, simulator: Any, unblocked_database: None
) -> None:
    rows = [at_stripe() for _ in range(30)]
    workers = [reversal.worker(gateway, concurrency=4, batch_size=3) for _ in range(2)]
    done: list[int] = []

    def drain_all(made: Worker) -> None:
        done.append(made.run_once())
        connections.close_all()

    threads = [threading.Thread(target=drain_all, args=(made,)) for made in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sum(done) == 30
    assert SellerTransfer.objects.filter(status=TransferStatus.REVERSED).count() == len(rows)
    assert len(simulator.requests.to(REVERSE)) == 30
    assert simulator.audit()["suspicious"] == []


def test_an_event_given_back_unbegun_is_due_at_once(gateway: Any) -> None:
    WebhookEventFactory(failed=True)
    queue = reversal.EventQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    assert queue.claim(batch_size=1, lease=timedelta(minutes=5)) == []
    assert not queue.is_held_back(claimed)
    event_id = claimed.stripe_event_id
    assert queue.describe(claimed) == {
        "event_id": event_id,
        "type": claimed.type,
        "attempt": 2,
        "correlation_id": event_id,
    }
    queue.release(claimed)
    queue.settle_unexpected(claimed, ValueError("kept by applying itself"))
    assert len(queue.claim(batch_size=1, lease=timedelta(minutes=5))) == 1


def test_two_operators_at_once_give_one_retry(unblocked_database: None) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    barrier = threading.Barrier(2)
    results: list[str] = []

    def retry(name: str) -> None:
        try:
            barrier.wait(PATIENCE)
            transfers.retry(transfer_id=transfer.pk, actor=f"user:{name}", reason="again")
            results.append("retried")
        except (NotAllowedNow, StaleTransition):
            results.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=retry, args=(name,)) for name in ("olga", "omar")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == ["refused", "retried"]
    assert transfer.history.filter(pgh_context__reason="again").count() == 1


def test_a_refund_during_the_call_that_sends_the_money_brings_it_back(
    at_stripe: Make, gateway: Any, simulator: Any, unblocked_database: None
) -> None:
    """The refund commits exactly between claim and answer."""
    order = order_with_transfers((5000,), status="pending")
    row = order.transfers.get()
    account = simulator.create_account()
    type(row.seller).objects.filter(pk=row.seller_id).update(stripe_account_id=account["id"])
    type(order).objects.filter(pk=order.pk).update(stripe_charge_id="")
    simulator.add_funds(10_000)
    order.refresh_from_db()

    class RefundedMeanwhile:
        def __getattr__(self, name: str) -> Any:
            call = getattr(gateway, name)

            def refunded(*args: Any, **kwargs: Any) -> Any:
                if name == "create_transfer":
                    in_another_transaction(lambda: refund_records.record(facts(order), actor="stripe:evt"))
                return call(*args, **kwargs)

            return refunded

    transfer_retry.worker(RefundedMeanwhile(), concurrency=1).run_once()  # type: ignore[arg-type]
    row.refresh_from_db()
    assert row.status == TransferStatus.REVERSAL_PENDING
    reversal.worker(gateway, concurrency=1).run_once()
    row.refresh_from_db()
    assert row.status == TransferStatus.REVERSED
    assert len(simulator.requests.to(CREATE)) == 1


def in_another_transaction(act: Callable[[], Any]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with transaction.atomic():
                act()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert failures == []


# --- The commands -----------------------------------------------------------------------------------------------------


def test_once_drains_and_says_how_much(at_stripe: Make, gateway: Any, capsys: Any) -> None:
    at_stripe()
    at_stripe()
    call_command("run_reversal_worker", "--once", "--batch-size", "1", "--concurrency", "2")
    assert capsys.readouterr().out == "2 done.\n"
    call_command("run_transfer_retry_worker", "--once")
    assert capsys.readouterr().out == "0 done.\n"


@pytest.mark.parametrize(
    ("command", "switch"),
    [("run_reversal_worker", "REVERSAL_WORKER_ENABLED"), ("run_transfer_retry_worker", "TRANSFER_RETRY_ENABLED")],
)
def test_a_worker_that_is_switched_off_says_so_and_does_nothing(
    at_stripe: Make, simulator: Any, settings: Any, capsys: Any, command: str, switch: str
) -> None:
    at_stripe()
    setattr(settings, switch, False)
    call_command(command, "--once")
    assert capsys.readouterr().out == f"{switch} is false: nothing to do here.\n"
    assert simulator.requests.total == 0


def test_a_worker_without_a_key_does_not_start(settings: Any) -> None:
    settings.STRIPE_SECRET_KEY = ""
    with pytest.raises(CommandError, match="STRIPE_SECRET_KEY is not set"):
        call_command("run_reversal_worker", "--once")


def test_a_refused_key_ends_the_command_with_an_error(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    at_stripe()
    simulator.faults.add("unauthorized")
    with pytest.raises(CommandError, match="Stripe refuses our key"):
        call_command("run_reversal_worker", "--once")


@pytest.mark.parametrize("flags", [["--batch-size", "0"], ["--concurrency", "many"], ["--metrics-port", "70000"]])
def test_nonsense_flags_are_refused_by_name(flags: list[str]) -> None:
    with pytest.raises(CommandError, match=f"{flags[0]}.*expected a whole number from"):
        call_command("run_reversal_worker", "--once", *flags)


def test_a_busy_metrics_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"--metrics-port {port}: Address already in use"):
            call_command("run_reversal_worker", "--once", "--metrics-port", str(port))


def started_worker(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", "run_reversal_worker"],
        env={**environment, "LOG_FORMAT": "json", "LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_the_call(simulator: Any, process: subprocess.Popen[str]) -> None:
    """Until the worker's call is at Stripe, which has not answered it yet."""
    pause = threading.Event()
    for _ in range(PATIENCE * 50):
        if simulator.requests.to(REVERSE):
            return
        assert process.poll() is None, process.communicate()[1]
        pause.wait(0.02)
    process.kill()
    raise AssertionError(f"no call came: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_worker_finish_what_is_in_hand(
    at_stripe: Make, simulator: Any, child_environment: dict[str, str], number: signal.Signals
) -> None:
    transfer = at_stripe()
    simulator.faults.add("latency", endpoint=REVERSE, seconds=1.0)
    process = started_worker(child_environment)
    try:
        wait_for_the_call(simulator, process)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    transfer.refresh_from_db()
    assert process.returncode == 0, errors
    assert transfer.status == TransferStatus.REVERSED, errors
    assert "worker_stopping" in errors
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_a_killed_worker_leaves_a_row_that_another_one_finishes(
    at_stripe: Make, gateway: Any, simulator: Any, child_environment: dict[str, str]
) -> None:
    transfer = at_stripe()
    # The reversal happens, and the answer never comes.
    simulator.faults.add("drop_after", endpoint=REVERSE, hold=30, times=1)
    process = started_worker(child_environment)
    try:
        wait_for_the_call(simulator, process)
    finally:
        process.kill()
        _, errors = process.communicate(timeout=PATIENCE)
    simulator.faults.clear()
    held = SellerTransfer.objects.filter(pk=transfer.pk, lease_token__isnull=False)
    assert held.update(lease_expires_at=Now()) == 1, errors
    reversal.worker(gateway, concurrency=1).run_once()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


# --- Writing an answer down while the database is away ----------------------------------------------------------------


def test_an_answer_is_written_down_again_and_again_until_the_database_is_back(
    at_stripe: Make, gateway: Any, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.workers.loop.DATABASE_PAUSE_SECONDS", 0.0)
    transfer = at_stripe()
    failures = iter(range(3))
    settle = reversal_settling.settle

    def away(*args: Any, **kwargs: Any) -> Any:
        if next(failures, None) is not None:
            raise OperationalError("the database system is shutting down")
        return settle(*args, **kwargs)

    monkeypatch.setattr(reversal_settling, "settle", away)
    with capture_logs() as logs:
        assert drain(reversal.ReversalQueue(gateway)) == 1
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert [entry["event"] for entry in logs].count("database_away") == 3
    assert len(simulator.requests.to(REVERSE)) == 1


def test_a_database_that_stays_away_leaves_the_answer_to_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.workers.loop.SETTLING_SECONDS", 0.0)

    def away() -> None:
        raise OperationalError("away")

    with pytest.raises(OperationalError):
        persistently(away)


# --- Leases that ended while the host stood still, and threads that die ----------------------------------------------


@pytest.mark.parametrize(
    ("queue_class", "make", "endpoint"),
    [(reversal.ReversalQueue, "at_stripe", REVERSE), (transfer_retry.TransferQueue, "payable", CREATE)],
)
def test_who_stood_still_past_its_lease_sends_nothing(
    request: pytest.FixtureRequest, gateway: Any, simulator: Any, queue_class: type[Any], make: str, endpoint: str
) -> None:
    """Another worker may have looked and taken a new key meanwhile: the old one must not leave any more."""
    row = request.getfixturevalue(make)()
    queue = queue_class(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    simulator.requests.clear()
    with deadline.sending_until(deadline.clock()):
        queue.perform(claimed)
    assert simulator.requests.to(endpoint) == []
    row.refresh_from_db()
    assert (row.retry_count, row.last_error_code) == (0, "postponed")
    (again,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    with deadline.sending_until(deadline.clock() + 60):
        queue.perform(again)
    assert len(simulator.requests.to(endpoint)) == 1


def test_a_worker_whose_thread_dies_ends_and_says_so() -> None:
    class Deadly(Rows):
        def release(self, row: int) -> None:
            raise SystemExit("from a library")

    rows = Deadly([1])
    rows.held_back = {1}
    with capture_logs() as logs, pytest.raises(RuntimeError, match="thread"):
        worker(rows).run_once()
    assert "thread_died" in [entry["event"] for entry in logs]
