"""What is no longer owed, or not all of it, beside rows without a ``tr_…``, refusals, and what others reversed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pgtrigger
import pytest
from django.db import connection
from django.db.models import Value
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from marketplace.errors import StaleTransition
from marketplace.models import Order, SellerTransfer, TransferReversal
from marketplace.services import reversal_claims, reversal_settling, transfers
from marketplace.services.reversal_settling import NoLongerOwed
from marketplace.states import ReversalStatus
from marketplace.workers import reversal as reversal_worker
from tests.factories import order_with_transfers
from tests.services.conftest import REVERSE, Make, kept_at_stripe, long_unwanted
from tests.services.test_clawback import fails, given_up_unanswered, lands, lost, rows
from tests.services.test_disputes import record as record_dispute
from tests.services.test_refunds import record
from tests.workers.conftest import drain

LEASE = timedelta(minutes=5)
LIST = "GET /v1/transfers/{id}/reversals"


def named(order: Order, stripe_transfer_id: str) -> None:
    with pgtrigger.ignore("marketplace.SellerTransfer:transfer_id_stays"):
        order.transfers.update(stripe_transfer_id=stripe_transfer_id)


def work_once(queue: reversal_worker.ReversalQueue) -> None:
    """What is due now, and not what becomes due by that."""
    for claimed in queue.claim(batch_size=10, lease=LEASE):
        queue.perform(claimed)


# --- Stripe knows of no such transfer ---------------------------------------------------------------------------------


def test_where_stripe_finds_no_transfer_it_is_asked_once_and_a_person_decides(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None]
) -> None:
    """It may be the wrong key: what was sent before may be at Stripe. It was asked again at once, for ever."""
    order = sold()
    transfer = order.transfers.get()
    queue = reversal_worker.ReversalQueue(gateway)
    named(order, "tr_of_another_account")
    record(order)
    work_once(queue)
    assert rows(order) == [("permanently_failed", 2700, 0)]
    fails(order)
    work_once(queue)
    assert queue.claim(batch_size=1, lease=LEASE) == []
    now = order.transfers.get()
    assert (now.status, now.last_error_code, now.next_retry_at) == ("permanently_failed", "not_found", None)
    assert (len(simulator.requests.to(REVERSE)), len(simulator.requests.to(LIST))) == (1, 1)
    # The right key, and a retry.
    named(order, transfer.stripe_transfer_id)
    transfers.retry(transfer_id=transfer.pk, actor="user:eva", reason="the right key")
    work()
    assert rows(order) == [("completed", 2700, 0)]
    assert kept_at_stripe(simulator, order) == [2700]


# --- Rows without a tr_… ----------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("is_claimed", [False, True], ids=["not claimed", "claimed"])
def test_of_a_row_without_an_id_nothing_is_owed_once_its_debt_is_dropped(is_claimed: bool) -> None:
    """It stayed due without a reversal, and a worker then took it to owe the whole transfer."""
    order = order_with_transfers((3000,))
    named(order, "")
    record(order)
    claimed = reversal_claims.claim(batch_size=1, lease=LEASE) if is_claimed else []
    fails(order)
    for each in claimed:
        with pytest.raises(StaleTransition):
            reversal_settling.settle_missing_id(each, actor="reversal worker")
    assert rows(order) == [("completed", 3000, 0)]
    assert order.transfers.get().next_retry_at is None
    assert reversal_claims.claim(batch_size=1, lease=LEASE) == []
    assert [each.status for each in TransferReversal.objects.all()] == [ReversalStatus.CANCELED]


@pytest.mark.parametrize("is_settled", [False, True], ids=["in a worker's hands", "with a person"])
def test_of_a_row_without_an_id_that_a_worker_took_up_a_part_is_given_back(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None], is_settled: bool
) -> None:
    order = sold()
    transfer = order.transfers.get()
    named(order, "")
    record_dispute(order, amount=2000, withdrawn=2000)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=LEASE)
    if is_settled:
        reversal_settling.settle_missing_id(claimed, actor="reversal worker")
    record_dispute(order, amount=2000, withdrawn=2000, reinstated=1000, after=1)
    if not is_settled:
        reversal_settling.settle_missing_id(claimed, actor="reversal worker")
    now = order.transfers.get()
    assert (now.status, now.last_error_code) == ("permanently_failed", "missing_transfer_id")
    assert TransferReversal.objects.get().amount_open == 900
    facts = gateway.retrieve_transfer(transfer.stripe_transfer_id).transfer
    transfers.enter_transfer_id(transfer_id=transfer.pk, found=facts, actor="user:eva", reason="hers")
    transfers.retry(transfer_id=transfer.pk, actor="user:eva", reason="hers")
    work()
    assert kept_at_stripe(simulator, order) == [1800]


@pytest.mark.django_db
def test_of_a_row_without_an_id_that_a_worker_took_up_all_is_given_back_in_two_parts() -> None:
    order = order_with_transfers((3000,))
    named(order, "")
    record_dispute(order, amount=2000, withdrawn=2000)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=LEASE)
    reversal_settling.settle_missing_id(claimed, actor="reversal worker")
    record_dispute(order, amount=2000, withdrawn=2000, reinstated=1000, after=1)
    record_dispute(order, "won", amount=2000, withdrawn=2000, reinstated=2000, after=2)
    assert rows(order) == [("completed", 3000, 0)]
    assert [each.status for each in TransferReversal.objects.all()] == [ReversalStatus.CANCELED]


# --- Others took a part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["while it was sent", "afterwards"])
def test_what_is_still_owed_in_part_is_a_persons_matter_where_others_took_a_part(
    sold: Make, simulator: Any, gateway: Any, when: str
) -> None:
    """The rest was taken on top of theirs, and nobody had been asked whether theirs was for the same."""
    order = sold()
    record_dispute(order, amount=2000, withdrawn=2000)
    simulator.create_reversal(order.transfers.get().stripe_transfer_id, 1200)
    queue = reversal_worker.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=LEASE)
    answer = queue._ask(claimed)
    for step in ("reinstated", "settled") if when == "while it was sent" else ("settled", "reinstated"):
        if step == "settled":
            queue._settle(claimed, answer, stripe_is_down=False)
        else:
            record_dispute(order, amount=2000, withdrawn=2000, reinstated=1000, after=1)
    drain(queue)
    assert rows(order) == [("permanently_failed", 2700, 1200)]
    assert order.transfers.get().last_error_code == "partly_reversed_elsewhere"
    owed = TransferReversal.objects.get(cause="dispute")
    assert (owed.status, owed.amount_open) == (ReversalStatus.FAILED, 900)
    assert kept_at_stripe(simulator, order) == [1500]
    # Nothing of it is owed any more: nobody is needed.
    record_dispute(order, "won", amount=2000, withdrawn=2000, reinstated=2000, after=2)
    drain(queue)
    assert rows(order) == [("partially_reversed", 2700, 1200)]


def test_one_of_our_own_that_landed_late_asks_nobody_beside_what_is_still_owed_in_part(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None]
) -> None:
    order = sold()
    lands(simulator, lost(simulator, order, gateway, 1000))
    record_dispute(order, amount=2500, withdrawn=2500)
    queue = reversal_worker.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=LEASE)
    answer = queue._ask(claimed)
    record_dispute(order, amount=2500, withdrawn=2500, reinstated=500, after=1)
    queue._settle(claimed, answer, stripe_is_down=False)
    work()
    assert rows(order) == [("partially_reversed", 2700, 1800)]
    assert kept_at_stripe(simulator, order) == [900]


# --- While it is looked for -------------------------------------------------------------------------------------------


class Meanwhile:
    """The gateway, with something that happens once Stripe has listed the reversals."""

    def __init__(self, gateway: Any, act: Callable[[], None]) -> None:
        self._gateway, self._act = gateway, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gateway, name)

    def list_reversals(self, *asked: Any) -> Any:
        listed = self._gateway.list_reversals(*asked)
        self._act()
        return listed


@pytest.mark.parametrize("is_answered", [True, False], ids=["Stripe had answered", "its answer was lost"])
def test_what_is_no_longer_owed_after_the_look_is_not_sent(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None], is_answered: bool
) -> None:
    order = sold()
    simulator.faults.add("error_500" if is_answered else "drop_before", endpoint=REVERSE, times=1)
    record(order)
    drain(reversal_worker.ReversalQueue(gateway))
    reversal = TransferReversal.objects.get()
    assert reversal.look_first == is_answered
    if not is_answered:
        # Too old for its key, and long enough on its way for a new one.
        TransferReversal.objects.update(first_attempted_at=Now() - Value(timedelta(hours=30)))
    SellerTransfer.objects.update(next_retry_at=Now())
    sent = len(simulator.requests.to(REVERSE))
    work_once(reversal_worker.ReversalQueue(Meanwhile(gateway, lambda: fails(order))))  # type: ignore[arg-type]
    # Where it may be on its way still, it is looked for once more.
    assert rows(order) == [("completed" if is_answered else "reversal_pending", 2700, 0)]
    work()
    assert rows(order) == [("completed", 2700, 0)]
    assert len(simulator.requests.to(REVERSE)) == sent
    reversal.refresh_from_db()
    assert (reversal.status, reversal.key_generation) == (ReversalStatus.CANCELED, 1)


def test_a_new_send_under_way_is_waited_for_whatever_stripe_said_before(
    sold: Make, simulator: Any, gateway: Any
) -> None:
    """Stripe had answered an earlier one, under its key; of the newer one nothing is known."""
    order = sold()
    simulator.faults.add("error_500", endpoint=REVERSE, times=1)
    record(order)
    queue = reversal_worker.ReversalQueue(gateway)
    drain(queue)
    simulator.faults.add("drop_before", endpoint=REVERSE, times=1)
    SellerTransfer.objects.update(next_retry_at=Now())
    work_once(queue)
    reversal = TransferReversal.objects.get()
    assert (reversal.key_generation, reversal.look_first) == (2, False)
    fails(order)
    drain(queue)
    assert order.transfers.get().last_error_code == "postponed"
    assert TransferReversal.objects.get().status == ReversalStatus.PENDING
    long_unwanted()
    SellerTransfer.objects.update(next_retry_at=Now())
    drain(queue)
    assert rows(order) == [("completed", 2700, 0)]


@pytest.mark.parametrize(("minutes", "dropped"), [(0, False), (64, False), (66, True)])
def test_where_nobody_wrote_since_when_it_is_no_longer_owed_its_last_change_counts(
    sold: Make, simulator: Any, gateway: Any, minutes: int, dropped: bool
) -> None:
    """A web server of the version before, which goes on while workers are upgraded, knows of no such time."""
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    ago = Now() - Value(timedelta(minutes=minutes))
    TransferReversal.objects.update(unwanted_at=None, updated_at=ago)
    drain(queue)
    assert TransferReversal.objects.get().status == ("canceled" if dropped else "pending")


# --- Locks, and what the history says ---------------------------------------------------------------------------------


def test_the_breakers_row_is_the_last_that_is_locked(sold: Make, simulator: Any, gateway: Any) -> None:
    order = sold()
    simulator.faults.add("unavailable", endpoint=REVERSE, times=1)
    record(order)
    queue = reversal_worker.ReversalQueue(gateway)
    drain(queue)
    fails(order)
    (claimed,) = queue.claim(batch_size=1, lease=LEASE)
    with CaptureQueriesContext(connection) as told:
        queue._settle(claimed, NoLongerOwed(), stripe_is_down=False)
    asked = [each["sql"] for each in told.captured_queries if not each["sql"].startswith("RELEASE")]
    breaker = [at for at, sql in enumerate(asked) if "marketplace_circuitbreaker" in sql]
    assert breaker == [len(asked) - 1]


def test_what_was_owed_and_found_gone_is_not_said_to_be_no_longer_owed(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None]
) -> None:
    """One that was dropped lands after all, and stands in the way of the next one."""
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    long_unwanted()
    drain(queue)
    dropped = TransferReversal.objects.get()
    transfer = order.transfers.get()
    simulator.create_reversal(transfer.stripe_transfer_id, 2700, metadata={"operation_id": str(dropped.operation_id)})
    record(order, stripe_refund_id="re_2", amount=1500)
    drain(queue)
    again = order.transfers.get(gives_back_of=transfer)
    assert again.history.first().pgh_context["reason"] == f"{transfer} was reversed at Stripe already"
    work()
    assert kept_at_stripe(simulator, order) == [1350]
