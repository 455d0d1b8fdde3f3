"""What a worker does while Stripe fails for everyone, and while it fails for one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import throttle
from marketplace.errors import NotNow
from marketplace.gateway import stripe_api
from marketplace.models import CircuitBreaker, Refund, SellerTransfer
from marketplace.services import leases, refunds
from marketplace.states import TransferStatus
from marketplace.workers import reversal, transfer_retry
from tests.factories import SellerTransferFactory, UserFactory, order_with_transfers
from tests.workers.conftest import REVERSE, drain

pytestmark = pytest.mark.django_db
Make = Callable[..., SellerTransfer]
LEASE = timedelta(minutes=5)
NOBODY = "GET /v1/balance"


@pytest.fixture
def refund_in_hand(simulator: Any) -> Refund:
    return asked_for(simulator, "key-1")


def asked_for(simulator: Any, request_key: str) -> Refund:
    """Asked for by us, not answered yet, and due."""
    charge = simulator.create_charge(3000)
    order = order_with_transfers((3000,))
    order.change(
        actor="test",
        reason="the charge is the simulator's",
        stripe_payment_intent_id=charge["payment_intent"],
        stripe_charge_id=charge["id"],
    )
    requested = refunds.request(
        order_id=order.pk,
        amount=3000,
        currency=order.currency,
        reason="broken",
        requested_by=UserFactory(staff=True),
        request_key=request_key,
    )
    Refund.objects.update(next_retry_at=Now())
    return requested.refund


def make_due() -> None:
    SellerTransfer.objects.filter(status=TransferStatus.REVERSAL_PENDING).update(next_retry_at=Now())
    CircuitBreaker.objects.filter(opened_at__isnull=False).update(next_probe_at=Now())


def test_an_outage_spends_nothing_however_long_it_lasts(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    """One row alone: a question that concerns nobody tells an outage from a row's own trouble."""
    transfer = at_stripe()
    rule = simulator.faults.add("unavailable")
    queue = reversal.ReversalQueue(gateway)
    for _ in range(50):
        drain(queue)
        make_due()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 0)
    assert transfer.last_error_code == "unknown"
    assert CircuitBreaker.objects.get(work="reversal").opened_at is not None
    simulator.faults.remove(rule)
    drain(queue)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert CircuitBreaker.objects.get(work="reversal").opened_at is None
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


@pytest.mark.parametrize("action", ["unavailable", "error_500", "drop_before", "not_utf8"])
def test_one_transfer_that_fails_spends_its_own_retries_and_stops_nobody(
    at_stripe: Make, gateway: Any, simulator: Any, action: str
) -> None:
    poison, other = at_stripe(), at_stripe()
    simulator.faults.add(action, object=poison.stripe_transfer_id)
    queue = reversal.ReversalQueue(gateway)
    for _ in range(6):
        drain(queue)
        make_due()
    poison.refresh_from_db()
    other.refresh_from_db()
    assert poison.status == TransferStatus.PERMANENTLY_FAILED
    assert other.status == TransferStatus.REVERSED
    breaker = CircuitBreaker.objects.get(work="reversal")
    assert (breaker.opened_at, breaker.failing) == (None, [f"seller {poison.seller_id}, transfer {poison.pk}"])


def test_one_endpoint_that_fails_for_all_sellers_opens_it_though_stripe_answers_otherwise(
    at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    rows = [at_stripe() for _ in range(throttle.OPENS_AFTER + 3)]
    simulator.faults.add("unavailable", endpoint=REVERSE)
    queue = reversal.ReversalQueue(gateway)
    claimed = queue.claim(batch_size=100, lease=LEASE)
    for row in claimed[: throttle.OPENS_AFTER]:
        assert not queue.is_held_back(row)
        queue.perform(row)
    # What is in hand already is not begun.
    assert [queue.is_held_back(row) for row in claimed[throttle.OPENS_AFTER :]] == [True] * 3
    for row in claimed[throttle.OPENS_AFTER :]:
        queue.release(row)
    spent = [SellerTransfer.objects.get(pk=row.pk).retry_count for row in rows]
    assert spent == [1] * (throttle.OPENS_AFTER - 1) + [0] * 4
    assert queue.claim(batch_size=100, lease=LEASE) == []


def many_of_one_seller(at_stripe: Make, simulator: Any, count: int) -> list[SellerTransfer]:
    first = at_stripe()
    rows = [first]
    for _ in range(count - 1):
        transfer = simulator.create_transfer(5000, first.seller.stripe_account_id)
        rows.append(
            SellerTransferFactory(
                seller=first.seller, amount=5000, stripe_transfer_id=transfer["id"], reversal_pending=True
            )
        )
    return rows


@pytest.mark.parametrize("count", [throttle.OPENS_AFTER_ROWS, throttle.OPENS_AFTER_ROWS - 1])
def test_an_endpoint_that_fails_while_one_seller_has_all_the_rows_opens_it_if_there_are_many(
    at_stripe: Make, gateway: Any, simulator: Any, count: int
) -> None:
    many_of_one_seller(at_stripe, simulator, count)
    simulator.faults.add("unavailable", endpoint=REVERSE)
    queue = reversal.ReversalQueue(gateway)
    for _ in range(8):
        drain(queue)
        make_due()
    lost = SellerTransfer.objects.filter(status=TransferStatus.PERMANENTLY_FAILED).count()
    assert lost == (0 if count == throttle.OPENS_AFTER_ROWS else count)


def test_rows_that_fail_by_themselves_when_nothing_else_is_due_reach_a_person_in_the_end(
    at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    poison = [at_stripe() for _ in range(throttle.OPENS_AFTER)]
    for row in poison:
        simulator.faults.add("error_500", object=row.stripe_transfer_id)
    queue = reversal.ReversalQueue(gateway)
    with capture_logs() as logs:
        for _ in range(20):
            drain(queue)
            make_due()
            later = Now() - throttle.DOUBTED_AFTER - timedelta(seconds=1)
            CircuitBreaker.objects.filter(opened_at__isnull=False).update(opened_at=later)
    assert "breaker_doubted" in [entry["event"] for entry in logs]
    assert {SellerTransfer.objects.get(pk=row.pk).status for row in poison} == {TransferStatus.PERMANENTLY_FAILED}
    assert CircuitBreaker.objects.get().opened_at is None


@pytest.mark.parametrize("what", ["before its time", "Stripe does not answer either", "the limiter answers"])
def test_no_outage_is_doubted(at_stripe: Make, gateway: Any, simulator: Any, what: str) -> None:
    rows = [at_stripe() for _ in range(throttle.OPENS_AFTER)]
    simulator.faults.add("unavailable", endpoint=REVERSE)
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    opened = throttle.DOUBTED_AFTER + timedelta(minutes=-1 if what == "before its time" else 1)
    CircuitBreaker.objects.update(opened_at=Now() - opened)
    if what != "before its time":
        simulator.faults.add("rate_limited" if what == "the limiter answers" else "unavailable", endpoint=NOBODY)
    spent = sum(SellerTransfer.objects.get(pk=row.pk).retry_count for row in rows)
    simulator.requests.clear()
    for _ in range(10):
        make_due()
        drain(queue)
    assert len(simulator.requests.to(REVERSE)) == 10
    assert (NOBODY in {request.endpoint for request in simulator.requests}) == (what != "before its time")
    assert sum(SellerTransfer.objects.get(pk=row.pk).retry_count for row in rows) == spent
    assert CircuitBreaker.objects.get().opened_at is not None


def test_while_it_is_open_one_row_asks_and_the_others_wait(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    for _ in range(5):
        at_stripe()
    rule = simulator.faults.add("unavailable")
    queue, another = reversal.ReversalQueue(gateway), reversal.ReversalQueue(gateway)
    drain(queue)
    make_due()
    (probe,) = queue.claim(batch_size=100, lease=LEASE)
    assert probe.is_probe
    assert not queue.is_held_back(probe)
    assert another.claim(batch_size=100, lease=LEASE) == []
    with capture_logs() as logs:
        queue.perform(probe)
    assert "breaker_probed" in [entry["event"] for entry in logs]
    assert another.claim(batch_size=100, lease=LEASE) == []
    make_due()
    simulator.faults.remove(rule)
    simulator.requests.clear()
    (probe,) = another.claim(batch_size=100, lease=LEASE)
    another.perform(probe)
    assert NOBODY not in {request.endpoint for request in simulator.requests}
    assert len(queue.claim(batch_size=100, lease=LEASE)) == 4


def test_a_probe_that_finds_no_row_is_free_for_the_next(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    at_stripe()
    simulator.faults.add("unavailable", times=2)
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    CircuitBreaker.objects.update(next_probe_at=Now())
    SellerTransfer.objects.update(next_retry_at=Now() + timedelta(hours=1))
    assert queue.claim(batch_size=1, lease=LEASE) == []
    make_due()
    SellerTransfer.objects.update(next_retry_at=Now())
    assert len(queue.claim(batch_size=1, lease=LEASE)) == 1


def test_rows_that_fail_by_themselves_do_not_keep_it_open(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    """Each probe is another row's: one of those that Stripe serves closes it."""
    poison = [at_stripe() for _ in range(throttle.OPENS_AFTER)]
    for row in poison:
        simulator.faults.add("error_500", object=row.stripe_transfer_id)
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    healthy = at_stripe()
    for _ in range(throttle.OPENS_AFTER + 1):
        make_probe_due()
        drain(queue)
    healthy.refresh_from_db()
    assert healthy.status == TransferStatus.REVERSED
    assert CircuitBreaker.objects.get().opened_at is None


def test_a_sellers_many_failing_rows_do_not_keep_another_seller_waiting(
    at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    """Behind all that are due for longer a healthy row would wait for as many probes: for hours."""
    for row in many_of_one_seller(at_stripe, simulator, throttle.OPENS_AFTER_ROWS + 20):
        simulator.faults.add("error_500", object=row.stripe_transfer_id)
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    assert CircuitBreaker.objects.get().opened_at is not None
    healthy = at_stripe()
    make_probe_due()
    drain(queue)
    healthy.refresh_from_db()
    assert healthy.status == TransferStatus.REVERSED
    assert CircuitBreaker.objects.get().opened_at is None


def test_once_a_probe_of_another_seller_failed_too_the_longest_due_asks_again(
    at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    """A seller whose rows fail by themselves does not keep it open after an outage that hit another one first."""
    hit, poison = at_stripe(), at_stripe()
    rule = simulator.faults.add("unavailable")
    queue = reversal.ReversalQueue(gateway)
    (row,) = queue.claim(batch_size=1, lease=LEASE)
    queue.perform(row)
    simulator.faults.remove(rule)
    simulator.faults.add("error_500", object=poison.stripe_transfer_id)
    for _ in range(2):
        make_probe_due()
        drain(queue)
    hit.refresh_from_db()
    assert hit.status == TransferStatus.REVERSED


@pytest.mark.parametrize("kind", ["reversal", "transfer", "refund"])
def test_a_probe_is_for_somebody_for_whom_stripe_has_not_failed(
    at_stripe: Make, payable: Make, gateway: Any, simulator: Any, kind: str
) -> None:
    rows: list[Any] = []
    queue: Any
    for number in range(2):
        if kind == "refund":
            rows.append(asked_for(simulator, f"key-{number}"))
        else:
            rows.append(at_stripe() if kind == "reversal" else payable())
    queues = {
        "reversal": reversal.ReversalQueue,
        "transfer": transfer_retry.TransferQueue,
        "refund": reversal.RefundQueue,
    }
    queue = queues[kind](gateway)
    model = type(rows[0])
    simulator.faults.add("unavailable")
    (failed,) = queue.claim(batch_size=1, lease=LEASE)
    queue.perform(failed)
    failed_pk = failed.transfer.pk if kind == "reversal" else failed.pk
    # It would be the first again.
    model._default_manager.filter(pk=failed_pk).update(next_retry_at=Now() - timedelta(hours=1))
    make_probe_due()
    (probe,) = queue.claim(batch_size=1, lease=LEASE)
    probe_pk = probe.transfer.pk if kind == "reversal" else probe.pk
    assert {failed_pk, probe_pk} == {row.pk for row in rows}


def test_a_probe_that_stripe_refuses_closes_it(gateway: Any, simulator: Any) -> None:
    """Stripe works: it says no to this one row, of which it knows no transfer."""
    SellerTransferFactory(reversal_pending=True)
    rule = simulator.faults.add("unavailable")
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    simulator.faults.remove(rule)
    make_due()
    drain(queue)
    assert SellerTransfer.objects.get().last_error_code == "not_found"
    assert CircuitBreaker.objects.get().opened_at is None


@pytest.mark.parametrize("action", ["lock_timeout", "rate_limited", "conflict"])
def test_a_probe_that_was_told_to_wait_tells_nothing_and_the_next_one_comes_soon(
    at_stripe: Make, gateway: Any, simulator: Any, action: str
) -> None:
    at_stripe()
    other = at_stripe()
    rule = simulator.faults.add("unavailable")
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    simulator.faults.remove(rule)
    simulator.faults.add(action, times=1)
    make_probe_due()
    (probe,) = queue.claim(batch_size=1, lease=LEASE)
    queue.perform(probe)
    breaker = CircuitBreaker.objects.get()
    assert breaker.opened_at is not None
    assert queue.is_held_back(Other())  # type: ignore[arg-type]
    assert_next_probe_soon()
    make_probe_due()
    drain(queue)
    other.refresh_from_db()
    assert CircuitBreaker.objects.get().opened_at is None


class Other:
    """A row in hand that is no probe."""

    is_probe = False


def assert_next_probe_soon() -> None:
    (seconds,) = leases.seconds_until_due([reversal.ReversalQueue.due])
    assert seconds is not None
    assert seconds <= throttle.PROBE_INTERVAL.total_seconds()


def make_probe_due() -> None:
    CircuitBreaker.objects.filter(opened_at__isnull=False).update(next_probe_at=Now())


def test_a_probe_without_its_transfer_id_or_given_back_leaves_the_next_one_its_turn(
    at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    first = at_stripe()
    simulator.faults.add("unavailable")
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    make_probe_due()
    (probe,) = queue.claim(batch_size=1, lease=LEASE)
    queue.release(probe)
    assert_next_probe_soon()
    first.refresh_from_db()
    assert first.lease_token is None
    SellerTransferFactory(reversal_pending=True, stripe_transfer_id="")
    SellerTransfer.objects.filter(pk=first.pk).update(next_retry_at=Now() + timedelta(hours=1))
    make_probe_due()
    drain(queue)
    SellerTransfer.objects.filter(pk=first.pk).update(next_retry_at=Now())
    assert SellerTransfer.objects.get(stripe_transfer_id="").status == TransferStatus.PERMANENTLY_FAILED
    assert_next_probe_soon()


def test_the_next_due_time_is_the_probes_while_it_is_open(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    at_stripe()
    simulator.faults.add("unavailable", times=2)
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    (seconds,) = leases.seconds_until_due([queue.due])
    assert seconds is not None
    assert 3 < seconds <= 5


def test_an_outage_that_left_its_mark_under_the_key_is_looked_into_and_spends_nothing(
    at_stripe: Make, gateway: Any, simulator: Any
) -> None:
    """A 500 is stored under its key; the effect may have happened."""
    transfer = at_stripe()
    simulator.faults.add("error_500_after", endpoint=REVERSE, times=1)
    simulator.faults.add("error_500", endpoint=NOBODY, times=1)
    queue = reversal.ReversalQueue(gateway)
    drain(queue)
    transfer.refresh_from_db()
    assert (transfer.retry_count, transfer.reversals.get().look_first) == (0, True)
    make_due()
    drain(queue)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_a_transfer_that_could_not_be_sent_in_an_outage_stays_as_it_was(
    payable: Make, gateway: Any, simulator: Any
) -> None:
    transfer = payable()
    rule = simulator.faults.add("unavailable")
    queue = transfer_retry.TransferQueue(gateway)
    for _ in range(20):
        drain(queue)
        CircuitBreaker.objects.update(next_probe_at=Now())
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count, transfer.in_doubt) == (TransferStatus.PENDING, 0, True)
    assert CircuitBreaker.objects.get().work == "transfer"
    simulator.faults.remove(rule)
    drain(queue)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED


def test_a_refund_asked_for_in_an_outage_goes_out_as_soon_as_stripe_is_back(
    refund_in_hand: Refund, gateway: Any, simulator: Any
) -> None:
    refund = refund_in_hand
    rule = simulator.faults.add("unavailable")
    queue = reversal.RefundQueue(gateway)
    for _ in range(20):
        drain(queue)
        CircuitBreaker.objects.update(next_probe_at=Now())
    refund.refresh_from_db()
    assert refund.retry_count == 0
    simulator.faults.remove(rule)
    drain(queue)
    refund.refresh_from_db()
    assert refund.status == "succeeded"


class Full:
    """A gate before which too many wait."""

    def enter(self, endpoint: str) -> None:
        raise NotNow("too many requests wait for their turn", seconds=5.0)

    def limited(self, endpoint: str, reason: str) -> None:
        raise AssertionError("nothing was sent")


@pytest.mark.parametrize("queue_class", [reversal.ReversalQueue, reversal.RefundQueue, transfer_retry.TransferQueue])
def test_a_turn_that_would_come_too_late_costs_the_row_nothing(
    at_stripe: Make, payable: Make, refund_in_hand: Refund, simulator: Any, queue_class: type[Any]
) -> None:
    rows: dict[type[Any], Any] = {
        reversal.ReversalQueue: at_stripe(),
        reversal.RefundQueue: refund_in_hand,
        transfer_retry.TransferQueue: payable(),
    }
    SellerTransfer.objects.exclude(
        pk__in=[rows[reversal.ReversalQueue].pk, rows[transfer_retry.TransferQueue].pk]
    ).update(next_retry_at=Now() + timedelta(days=1))
    row = rows[queue_class]
    status = row.status
    simulator.requests.clear()
    drain(queue_class(stripe_api.connect(gate=Full())))
    row.refresh_from_db()
    assert (row.status, row.retry_count, row.last_error_code) == (status, 0, "postponed")
    assert len(list(simulator.requests)) == 0
    (seconds,) = leases.seconds_until_due([queue_class.due])
    assert seconds == pytest.approx(5, abs=1)
