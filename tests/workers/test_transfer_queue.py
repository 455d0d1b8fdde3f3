"""Sending the sellers their shares: what each answer makes of a row, and what a refund meanwhile does."""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.errors import StaleTransition, StripeDenied
from marketplace.gateway.contract import RateLimited, Refused
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import leases, reversals, transfers
from marketplace.states import ReversalStatus, TransferStatus
from marketplace.workers import transfer_retry
from tests.factories import TransferReversalFactory
from tests.workers.conftest import CREATE, drain
from tests.workers.test_reversal_queue import Answering

Make = Callable[..., SellerTransfer]
Run = Callable[[], int]


def due_again(transfer: SellerTransfer) -> None:
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now())


def made_for(simulator: Any, transfer: SellerTransfer) -> list[dict[str, Any]]:
    return [made for made in simulator.audit()["transfers"] if made["destination"] == transfer.seller.stripe_account_id]


def owe(transfer: SellerTransfer, amount: int) -> TransferReversal:
    return TransferReversalFactory(transfer=transfer, amount=amount, cause=TransferReversal.Cause.OPERATOR, refund=None)


@pytest.mark.parametrize("trait", [{}, {"failed": True}], ids=["pending", "failed"])
def test_a_due_transfer_is_made_once_and_completed(
    payable: Make, run_transfers: Run, simulator: Any, trait: dict[str, bool]
) -> None:
    transfer = payable(**trait)
    assert run_transfers() == 1
    transfer.refresh_from_db()
    made = simulator.get(transfer.stripe_transfer_id)
    assert transfer.status == TransferStatus.COMPLETED
    assert (made["amount"], made["currency"], made["destination"]) == (5000, "eur", transfer.seller.stripe_account_id)
    assert made["source_transaction"] == transfer.order.stripe_charge_id
    assert made["metadata"]["operation_id"] == str(transfer.operation_id)
    assert (transfer.in_doubt, transfer.retry_count, transfer.next_retry_at) == (False, 0, None)
    assert (transfer.lease_token, transfer.last_error_code) == (None, "")
    assert run_transfers() == 0


def test_a_lost_answer_is_asked_for_under_the_same_key(payable: Make, run_transfers: Run, simulator: Any) -> None:
    transfer = payable()
    simulator.faults.add("drop_after", endpoint=CREATE, times=1)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count, transfer.in_doubt) == (TransferStatus.FAILED, 1, True)
    due_again(transfer)
    run_transfers()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED
    assert len(made_for(simulator, transfer)) == 1


def test_a_failed_transfer_that_fails_again_stays_failed_and_waits_longer(
    payable: Make, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable(failed=True)
    simulator.faults.add("unavailable", endpoint=CREATE)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.FAILED, 2)
    assert transfer.next_retry_at is not None
    assert 100 < (transfer.next_retry_at - timezone.now()).total_seconds() <= 120


def test_exhausted_retries_ask_a_person_and_the_outcome_stays_unknown(
    payable: Make, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable(failed=True, retry_count=5)
    simulator.faults.add("unavailable", endpoint=CREATE)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.failed_leg) == (TransferStatus.PERMANENTLY_FAILED, "sending")
    assert (transfer.last_error_code, transfer.in_doubt) == ("retries_exhausted", True)


def test_a_500_after_the_effect_is_found_and_not_paid_again(payable: Make, run_transfers: Run, simulator: Any) -> None:
    transfer = payable()
    simulator.faults.add("error_500_after", endpoint=CREATE, times=1)
    run_transfers()
    due_again(transfer)
    run_transfers()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED
    assert len(made_for(simulator, transfer)) == 1


def test_a_500_without_effect_is_sent_under_a_new_key(payable: Make, run_transfers: Run, simulator: Any) -> None:
    transfer = payable()
    simulator.faults.add("error_500", endpoint=CREATE, times=1)
    run_transfers()
    due_again(transfer)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.key_generation) == (TransferStatus.COMPLETED, 2)


def test_an_old_key_is_not_trusted(payable: Make, run_transfers: Run, simulator: Any) -> None:
    transfer = payable()
    simulator.faults.add("drop_after", endpoint=CREATE, times=1)
    run_transfers()
    simulator.clock.advance(25 * 3600)
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        first_attempted_at=timezone.now() - timedelta(hours=25), next_retry_at=Now()
    )
    run_transfers()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED
    assert len(made_for(simulator, transfer)) == 1


def test_a_new_key_waits_until_whatever_was_sent_under_the_old_one_has_arrived(
    payable: Make, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable(in_doubt=True, first_attempted_at=timezone.now() - timedelta(hours=20, minutes=30))
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.last_error_code, transfer.key_generation, transfer.retry_count) == ("postponed", 1, 0)
    assert transfer.in_doubt
    assert simulator.requests.to(CREATE) == []
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        first_attempted_at=timezone.now() - timedelta(hours=22), next_retry_at=Now()
    )
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.key_generation) == (TransferStatus.COMPLETED, 2)


def test_looking_that_fails_sends_nothing(payable: Make, run_transfers: Run, simulator: Any) -> None:
    transfer = payable(failed=True, look_first=True)
    simulator.faults.add("unavailable", endpoint="GET /v1/transfers", times=1)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.key_generation) == (TransferStatus.FAILED, 1)
    assert simulator.requests.to(CREATE) == []


def test_a_refusal_asks_a_person_who_knows_that_nothing_was_sent(payable: Make, run_transfers: Run) -> None:
    transfer = payable()
    type(transfer.seller).objects.filter(pk=transfer.seller_id).update(stripe_account_id="acct_missing")
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.in_doubt) == (TransferStatus.PERMANENTLY_FAILED, False)
    assert transfer.failed_leg == SellerTransfer.Leg.SENDING


def test_an_empty_platform_balance_waits_and_then_uses_a_new_key(
    payable: Make, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable()
    # Without the charge as its source, a transfer needs money that is available now.
    type(transfer.order).objects.filter(pk=transfer.order_id).update(stripe_charge_id="")
    simulator.pay_out()
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.FAILED, "insufficient_funds")
    assert (transfer.in_doubt, transfer.look_first) == (False, True)
    simulator.add_funds(10_000)
    due_again(transfer)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.key_generation) == (TransferStatus.COMPLETED, 2)


@pytest.mark.parametrize("action", ["conflict", "lock_timeout", "rate_limited"])
def test_being_told_to_wait_spends_nothing(payable: Make, run_transfers: Run, simulator: Any, action: str) -> None:
    transfer = payable()
    reason = {"reason": "global-rate"} if action == "rate_limited" else {}
    simulator.faults.add(action, endpoint=CREATE, times=1, **reason)
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.PENDING, 0)
    assert transfer.next_retry_at is not None
    assert (transfer.next_retry_at - timezone.now()).total_seconds() <= 5


def test_a_refused_key_stops_the_worker_and_spends_nothing(payable: Make, gateway: Any, simulator: Any) -> None:
    transfer = payable()
    simulator.faults.add("unauthorized", endpoint=CREATE)
    with pytest.raises(StripeDenied):
        drain(transfer_retry.TransferQueue(gateway))
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count, transfer.lease_token) == (TransferStatus.PENDING, 0, None)


def test_a_transfer_found_with_another_amount_asks_a_person(payable: Make, run_transfers: Run, simulator: Any) -> None:
    transfer = payable(failed=True, look_first=True)
    simulator.create_transfer(
        4000,
        transfer.seller.stripe_account_id,
        transfer_group=transfer.order.transfer_group,
        metadata={"operation_id": str(transfer.operation_id)},
    )
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "conflicting_facts")


def test_a_late_settle_changes_nothing(payable: Make, gateway: Any) -> None:
    transfer = payable()
    (late,) = transfers.claim(batch_size=1, lease=timedelta(minutes=5))
    SellerTransfer.objects.filter(pk=transfer.pk).update(lease_expires_at=Now())
    transfers.claim(batch_size=1, lease=timedelta(minutes=5))
    answer = transfer_retry.TransferQueue(gateway)._ask(late)
    before = SellerTransfer.objects.values().get(pk=transfer.pk)
    for act in (
        lambda: transfers.settle(late, answer, actor="late"),
        lambda: leases.begin_generation(late, actor="w"),
        lambda: transfers.settle_unexpected(late, ValueError("late"), actor="late"),
    ):
        with pytest.raises(StaleTransition):
            act()
    assert SellerTransfer.objects.values().get(pk=transfer.pk) == before


def test_a_transfer_given_back_unbegun_is_due_at_once(payable: Make, gateway: Any, run_transfers: Run) -> None:
    payable()
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.release(claimed)
    assert run_transfers() == 1


def test_a_transfer_given_back_unbegun_still_tells_what_went_wrong_last(
    payable: Make, gateway: Any, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable()
    simulator.faults.add("unreadable", times=1)
    run_transfers()
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now())
    before = SellerTransfer.objects.get(pk=transfer.pk)
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.release(claimed)
    transfer.refresh_from_db()
    assert transfer.lease_token is None
    assert (transfer.last_error_code, transfer.last_error_at) == ("unknown", before.last_error_at)
    assert transfer.history.count() == before.history.count()


def test_an_error_of_our_own_is_kept_with_the_row(payable: Make, gateway: Any) -> None:
    transfer = payable()
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.settle_unexpected(claimed, ZeroDivisionError("a bug"))
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count, transfer.look_first) == (TransferStatus.FAILED, 1, False)
    assert transfer.last_error_message == "ZeroDivisionError: a bug"


def test_a_retry_while_the_lost_call_still_runs_pays_once(payable: Make, run_transfers: Run, simulator: Any) -> None:
    """The effect lands late: a look finds nothing yet, so a new key would pay the seller twice."""
    transfer = payable(failed=True, retry_count=5)
    simulator.faults.add("late", endpoint=CREATE, seconds=60, times=1)
    run_transfers()
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="again")
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.FAILED, "busy")
    simulator.clock.advance(61)
    due_again(transfer)
    run_transfers()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED
    assert len(made_for(simulator, transfer)) == 1


def test_a_retry_after_a_refusal_looks_and_then_uses_a_new_key(
    payable: Make, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable()
    simulator.set_capability(transfer.seller.stripe_account_id, "transfers", "inactive")
    run_transfers()
    simulator.set_capability(transfer.seller.stripe_account_id, "transfers", "active")
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="they completed their account")
    run_transfers()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.key_generation) == (TransferStatus.COMPLETED, 2)


@pytest.mark.parametrize("action", ["rate_limited", "lock_timeout", "unauthorized"])
def test_what_was_refunded_before_anything_ran_is_never_paid(
    payable: Make, gateway: Any, simulator: Any, action: str
) -> None:
    transfer = payable()
    simulator.faults.add(action, endpoint=CREATE, times=1)
    with contextlib.suppress(StripeDenied):
        drain(transfer_retry.TransferQueue(gateway))
    transfer.refresh_from_db()
    assert not transfer.in_doubt
    give_back(transfer)
    assert transfer.status == TransferStatus.CANCELED


@pytest.mark.parametrize("how", ["rate limited", "released"])
def test_what_was_refunded_during_a_call_that_did_not_run_is_never_paid(
    payable: Make, gateway: Any, simulator: Any, how: str
) -> None:
    transfer = payable()
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    give_back(SellerTransfer.objects.get(pk=transfer.pk))
    if how == "released":
        queue.release(claimed)
        queue.release(claimed)
    else:
        simulator.faults.add("rate_limited", endpoint=CREATE, times=1)
        queue.perform(claimed)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.lease_token) == (TransferStatus.CANCELED, None)


def give_back(transfer: SellerTransfer) -> None:
    cause = TransferReversal.Cause.OPERATOR
    reversals.owe(transfer, amount=5000, cause=cause, source=None, actor="test", reason="clawed back")


@pytest.mark.parametrize("act", ["refused", "limited"])
def test_an_earlier_send_of_unknown_outcome_stays_in_doubt(
    payable: Make, gateway: Any, run_transfers: Run, simulator: Any, act: str
) -> None:
    """The money moved and the answer was lost; a later no says nothing about that."""
    transfer = payable()
    simulator.faults.add("drop_after", endpoint=CREATE, times=1)
    run_transfers()
    give_back(SellerTransfer.objects.get(pk=transfer.pk))
    due_again(transfer)
    no = (
        Refused(code="resource_missing", message="No such destination")
        if act == "refused"
        else RateLimited(message="slow down", reason="global-rate")
    )
    drain(transfer_retry.TransferQueue(Answering(gateway, create_transfer=no)))  # type: ignore[arg-type]
    transfer.refresh_from_db()
    assert transfer.in_doubt
    assert transfer.status == (TransferStatus.PERMANENTLY_FAILED if act == "refused" else TransferStatus.FAILED)
    if act == "refused":
        transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="the right key again")
    due_again(transfer)
    simulator.clock.advance(25 * 3600)
    SellerTransfer.objects.filter(pk=transfer.pk).update(look_first=True)
    type(transfer.order).objects.filter(pk=transfer.order_id).update(operation_id=transfer.order.operation_id)
    run_transfers()
    assert len(made_for(simulator, transfer)) == 1


def test_a_refused_look_says_nothing_of_the_sending(payable: Make, gateway: Any, simulator: Any) -> None:
    transfer = payable(failed=True, look_first=True, in_doubt=True)
    owe(transfer, 5000)
    no = Refused(code="invalid_request_error", message="too many with this transfer group")
    drain(transfer_retry.TransferQueue(Answering(gateway, list_transfers=no)))  # type: ignore[arg-type]
    transfer.refresh_from_db()
    assert (transfer.status, transfer.in_doubt) == (TransferStatus.FAILED, True)
    assert simulator.requests.to(CREATE) == []


# --- Refunded while it was being sent ---------------------------------------------------------------------------------


def test_what_was_refunded_in_flight_is_reversed_once_it_is_sent(payable: Make, gateway: Any) -> None:
    transfer = payable()
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    reversals.owe(
        SellerTransfer.locked(transfer.pk),
        amount=5000,
        cause=TransferReversal.Cause.OPERATOR,
        source=None,
        actor="test",
        reason="clawed back",
    )
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.PENDING
    queue.perform(claimed)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSAL_PENDING
    assert transfer.next_retry_at is not None
    assert transfer.history.latest("pgh_id").pgh_context["reason"] == "refunded while it was being sent"


def test_what_was_refunded_in_flight_and_never_sent_is_canceled(payable: Make, gateway: Any) -> None:
    transfer = payable()
    type(transfer.seller).objects.filter(pk=transfer.seller_id).update(stripe_account_id="acct_missing")
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    owed = owe(transfer, 5000)
    queue.perform(claimed)
    transfer.refresh_from_db()
    owed.refresh_from_db()
    assert (transfer.status, transfer.lease_token, transfer.next_retry_at) == (TransferStatus.CANCELED, None, None)
    assert owed.status == ReversalStatus.CANCELED


def test_what_was_refunded_in_flight_and_not_sent_for_lack_of_funds_is_canceled(
    payable: Make, gateway: Any, simulator: Any
) -> None:
    transfer = payable()
    type(transfer.order).objects.filter(pk=transfer.order_id).update(stripe_charge_id="")
    simulator.pay_out()
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    owe(transfer, 5000)
    queue.perform(claimed)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.lease_token) == (TransferStatus.CANCELED, None)


def test_what_was_partly_refunded_in_flight_and_not_sent_is_sent_smaller(
    payable: Make, gateway: Any, run_transfers: Run, simulator: Any
) -> None:
    transfer = payable()
    type(transfer.order).objects.filter(pk=transfer.order_id).update(stripe_charge_id="")
    simulator.pay_out()
    queue = transfer_retry.TransferQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    owe(transfer, 2000)
    queue.perform(claimed)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount, transfer.amount_kept_back) == (TransferStatus.FAILED, 3000, 2000)
    simulator.add_funds(10_000)
    due_again(transfer)
    run_transfers()
    transfer.refresh_from_db()
    assert simulator.get(transfer.stripe_transfer_id)["amount"] == 3000
    assert transfer.status == TransferStatus.COMPLETED
