"""What each answer of Stripe makes of a transfer that owes a reversal: the table of answers, over HTTP."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from structlog.testing import capture_logs

from marketplace import throttle
from marketplace.errors import StaleTransition, StripeDenied
from marketplace.gateway import stripe_api
from marketplace.gateway.contract import NotFound, Refused, Reversed, ServerError
from marketplace.models import RequestAllowance, SellerTransfer, TransferReversal
from marketplace.services import debts, leases, reversal_claims, reversal_settling, transfers
from marketplace.slots import CallSlots
from marketplace.states import ReversalStatus, TransferStatus
from marketplace.workers import reversal
from tests.docs.test_runbook import STATEMENTS
from tests.factories import SellerTransferFactory, TransferReversalFactory
from tests.services.test_debts import paid
from tests.workers.conftest import REVERSE, drain

Make = Callable[..., SellerTransfer]
Run = Callable[[], int]
LEASE = timedelta(minutes=5)


def only_reversal(transfer: SellerTransfer) -> TransferReversal:
    return transfer.reversals.get()


def owed(transfer: SellerTransfer, **fields: Any) -> None:
    transfer.reversals.update(**fields)


def due_again(transfer: SellerTransfer) -> None:
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now())


def seconds_until(transfer: SellerTransfer) -> float:
    assert transfer.next_retry_at is not None
    return (transfer.next_retry_at - timezone.now()).total_seconds()


def assert_released(transfer: SellerTransfer) -> None:
    assert (transfer.lease_token, transfer.lease_expires_at) == (None, None)


# --- The turn of a request --------------------------------------------------------------------------------------------


def test_a_worker_with_nothing_else_to_do_has_its_turn_with_the_claim(
    at_stripe: Make, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long this machine takes until it is used.
    monkeypatch.setattr(throttle, "LATEST_DEPARTURE", 20.0)
    at_stripe()
    queue = reversal.ReversalQueue(stripe_api.connect(gate=throttle.RequestAllowance(20)), CallSlots(2))
    (claimed,) = queue.claim(batch_size=1, lease=LEASE)
    assert RequestAllowance.objects.get().endpoint == REVERSE
    with CaptureQueriesContext(connection) as asked:
        queue.perform(claimed)
    assert len(simulator.reversals_of(claimed.transfer.stripe_transfer_id)) == 1
    assert not [query["sql"] for query in asked if "requestallowance" in query["sql"]]


def test_while_a_call_is_under_way_a_claim_takes_no_turn(at_stripe: Make) -> None:
    at_stripe()
    slots = CallSlots(2)
    queue = reversal.ReversalQueue(stripe_api.connect(gate=throttle.RequestAllowance(20)), slots)
    with slots.taken():
        assert not slots.are_all_free
        assert len(queue.claim(batch_size=1, lease=LEASE)) == 1
    assert slots.are_all_free
    assert RequestAllowance.objects.count() == 0


# --- Done -------------------------------------------------------------------------------------------------------------


def test_a_reversal_that_stripe_makes_is_reversed_with_its_proof(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    assert run_reversals() == 1
    transfer.refresh_from_db()
    (made,) = simulator.reversals_of(transfer.stripe_transfer_id)
    reversed_row = only_reversal(transfer)
    assert transfer.status == TransferStatus.REVERSED
    assert transfer.amount_reversed == transfer.amount
    assert transfer.stripe_reversal_id == made["id"] == reversed_row.stripe_reversal_id
    assert reversed_row.status == ReversalStatus.SUCCEEDED
    assert made["metadata"]["operation_id"] == str(reversed_row.operation_id)
    assert transfer.next_retry_at is None
    assert_released(transfer)
    last = transfer.history.latest("pgh_id")
    assert last.pgh_context["actor"].startswith("reversal worker on ")
    assert made["id"] in last.pgh_context["reason"]
    assert last.pgh_context["attempt"] == 1
    assert simulator.audit()["suspicious"] == []


def test_a_partial_reversal_leaves_the_rest_with_the_seller(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1200)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1200)
    assert simulator.get(transfer.stripe_transfer_id)["amount_reversed"] == 1200


def test_equal_amounts_owed_twice_are_two_reversals(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1200)
    TransferReversalFactory(transfer=transfer, amount=1200, cause=TransferReversal.Cause.OPERATOR, refund=None)
    assert run_reversals() == 2
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 2400)
    assert [made["amount"] for made in simulator.reversals_of(transfer.stripe_transfer_id)] == [1200, 1200]


def test_a_lost_answer_is_asked_for_again_under_the_same_key(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    simulator.faults.add("drop_after", endpoint=REVERSE, times=1)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 1)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    first, second = simulator.requests.to(REVERSE)
    assert first.key == second.key
    assert second.replayed
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_an_error_is_forgotten_once_the_reversal_is_done(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    simulator.faults.add("unavailable", endpoint=REVERSE, times=1)
    run_reversals()
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.last_error_code, transfer.last_error_message, transfer.last_error_at) == ("", "", None)


# --- Already reversed -------------------------------------------------------------------------------------------------


def test_a_transfer_reversed_by_others_is_reversed_with_their_proof_and_a_warning(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    theirs = simulator.create_reversal(transfer.stripe_transfer_id)
    with capture_logs() as logs:
        run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSED, transfer.amount)
    assert transfer.stripe_reversal_id == theirs["id"]
    ours, seen = transfer.reversals.order_by("id")
    assert (ours.status, ours.stripe_reversal_id) == (ReversalStatus.CANCELED, "")
    assert (seen.status, seen.cause) == (ReversalStatus.SUCCEEDED, TransferReversal.Cause.SEEN_AT_STRIPE)
    (warning,) = [entry for entry in logs if entry["event"] == "transfer_already_reversed"]
    assert warning["log_level"] == "warning"
    assert theirs["id"] in warning["reversals"]


def test_who_waits_behind_one_that_others_reversed_is_next_in_line(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    """Nobody was woken before the next look at the balance."""
    head, behind = at_stripe(1000), at_stripe(2000)
    SellerTransfer.objects.filter(pk=behind.pk).update(seller=head.seller)
    for transfer in (head, behind):
        owed(transfer, waiting_for_funds_since=Now(), look_first=True)
    waiting = SellerTransfer.objects.filter(pk__in=[head.pk, behind.pk])
    waiting.update(last_error_code="insufficient_funds", next_retry_at=Now() + timedelta(hours=1))
    simulator.create_reversal(head.stripe_transfer_id)
    due_again(head)
    (claimed,) = reversal_claims.claim(batch_size=9, lease=LEASE)
    assert claimed.transfer == head
    leases.release(SellerTransfer, head.pk, claimed.transfer.lease_token)
    run_reversals()
    head.refresh_from_db()
    behind.refresh_from_db()
    assert (head.status, behind.status) == (TransferStatus.REVERSED, TransferStatus.REVERSED)
    ended = head.reversals.get(cause=TransferReversal.Cause.REFUND)
    assert (ended.status, ended.waiting_for_funds_since) == (ReversalStatus.CANCELED, None)


def test_our_own_reversal_found_after_a_refusal_is_adopted(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    operation_id = str(only_reversal(transfer).operation_id)
    # Made by a worker that died, under a key that Stripe has forgotten since.
    made = simulator.create_reversal(transfer.stripe_transfer_id, metadata={"operation_id": operation_id})
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.stripe_reversal_id) == (TransferStatus.REVERSED, made["id"])
    assert only_reversal(transfer).status == ReversalStatus.SUCCEEDED


def test_partly_reversed_elsewhere_asks_a_person(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe(5000)
    theirs = simulator.create_reversal(transfer.stripe_transfer_id, 3000)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.PERMANENTLY_FAILED
    assert transfer.last_error_code == reversal_settling.PARTLY_REVERSED_ELSEWHERE
    assert (transfer.amount_reversed, transfer.stripe_reversal_id) == (3000, theirs["id"])
    assert transfer.failed_leg == SellerTransfer.Leg.REVERSING


def test_a_transfer_of_another_amount_at_stripe_asks_a_person(db: None, run_reversals: Run, simulator: Any) -> None:
    other = simulator.create_transfer(100, simulator.create_account()["id"])
    smaller = SellerTransferFactory(amount=900, reversal_pending=True, stripe_transfer_id=other["id"])
    run_reversals()
    smaller.refresh_from_db()
    assert (smaller.status, smaller.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "amount_differs")


def test_reversals_that_we_know_are_not_recorded_twice(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    run_reversals()
    SellerTransfer.objects.get(pk=transfer.pk).transition(
        TransferStatus.REVERSAL_PENDING, reason="more", actor="test", next_retry_at=Now()
    )
    TransferReversalFactory(transfer=transfer, amount=4000, cause=TransferReversal.Cause.OPERATOR, refund=None)
    simulator.create_reversal(transfer.stripe_transfer_id, 4000)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSED, 5000)
    proofs = [row.stripe_reversal_id for row in transfer.reversals.filter(status=ReversalStatus.SUCCEEDED)]
    assert len(proofs) == len(set(proofs)) == 2


def test_another_of_our_reversals_found_at_stripe_is_confirmed_too(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=3000)
    second = TransferReversalFactory(transfer=transfer, amount=2000, cause=TransferReversal.Cause.OPERATOR, refund=None)
    metadata = {"operation_id": str(second.operation_id)}
    simulator.create_reversal(transfer.stripe_transfer_id, 2000, metadata=metadata)
    simulator.create_reversal(transfer.stripe_transfer_id, 3000)
    run_reversals()
    transfer.refresh_from_db()
    second.refresh_from_db()
    assert second.status == ReversalStatus.SUCCEEDED
    assert transfer.status == TransferStatus.REVERSED
    assert sorted(row.status for row in transfer.reversals.all()) == ["canceled", "succeeded", "succeeded"]


# --- A person is needed -----------------------------------------------------------------------------------------------


def test_a_transfer_that_stripe_does_not_have_asks_a_person(db: None, run_reversals: Run) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, stripe_transfer_id="tr_missing")
    with capture_logs() as logs:
        run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "not_found")
    assert transfer.last_error_request_id.startswith("req_")
    assert transfer.next_retry_at is None
    assert only_reversal(transfer).status == ReversalStatus.FAILED
    assert [entry["log_level"] for entry in logs if entry["event"] == "reversal_needs_a_person"] == ["error"]


def test_a_look_that_finds_no_transfer_asks_a_person(db: None, run_reversals: Run, simulator: Any) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, stripe_transfer_id="tr_missing")
    owed(transfer, look_first=True)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "not_found")
    assert simulator.requests.to(REVERSE) == []


@pytest.fixture
def of_another_mode(simulator: Any, settings: Any) -> Any:
    """A gateway whose key sees none of the simulator's objects."""
    settings.STRIPE_SECRET_KEY = "sk_live_51Wrong"
    return stripe_api.connect()


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "unavailable", "error_500_after", "rate_limited"])
def test_a_404_says_nothing_of_what_was_sent_before(
    at_stripe: Make, run_reversals: Run, simulator: Any, of_another_mode: Any, settings: Any, fault: str
) -> None:
    """It was netted from the seller's next transfer, and had been taken already."""
    settings.NET_DEBTS = True
    transfer = at_stripe(1000)
    simulator.faults.add(fault, endpoint=REVERSE, times=1)
    run_reversals()
    due_again(transfer)
    drain(reversal.ReversalQueue(of_another_mode))
    transfer.refresh_from_db()
    owing = only_reversal(transfer)
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "not_found")
    assert (owing.status, owing.refused) == (ReversalStatus.FAILED, False)
    assert "may be at Stripe" in debts.why_not_settled_by_hand(owing)
    assert paid(transfer.seller, 5000).amount_netted == 0
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="the right key")
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, len(simulator.reversals_of(transfer.stripe_transfer_id))) == (TransferStatus.REVERSED, 1)


def test_a_404_to_the_first_send_says_that_it_is_not_there(at_stripe: Make, of_another_mode: Any) -> None:
    transfer = at_stripe(1000)
    drain(reversal.ReversalQueue(of_another_mode))
    assert debts.why_not_settled_by_hand(only_reversal(transfer)) == ""


def test_a_404_to_the_first_send_under_a_next_key_says_that_it_is_not_there(
    at_stripe: Make, run_reversals: Run, simulator: Any, gateway: Any
) -> None:
    """What was sent under the key before was looked for in the same attempt."""
    transfer = at_stripe(1000)
    simulator.faults.add("error_500", endpoint=REVERSE, times=1)
    run_reversals()
    due_again(transfer)
    queue = reversal.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=LEASE)
    reversal_claims.begin_generation(claimed)
    queue._settle(claimed, NotFound(message="No such transfer"), stripe_is_down=False)
    assert debts.why_not_settled_by_hand(only_reversal(transfer)) == ""


def test_where_a_person_has_looked_and_found_no_transfer_the_debt_can_be_settled(
    db: None, run_reversals: Run, at_stripe: Make, simulator: Any, of_another_mode: Any
) -> None:
    transfer = at_stripe(1000)
    simulator.faults.add("drop_before", endpoint=REVERSE, times=1)
    run_reversals()
    due_again(transfer)
    drain(reversal.ReversalQueue(of_another_mode))
    owing = only_reversal(transfer)
    (said_in_the_runbook,) = [each for each in STATEMENTS if "refused = TRUE" in each]
    with connection.cursor() as cursor:
        cursor.execute(said_in_the_runbook.replace("id = 7", f"id = {owing.pk}"))
    debts.write_off(reversal_id=owing.pk, amount=1000, actor="user:olga", reason="never was there")
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED


def test_a_404_says_nothing_of_what_an_older_program_may_have_sent(db: None, of_another_mode: Any) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, reversal=False)
    drain(reversal.ReversalQueue(of_another_mode))
    assert "may be at Stripe" in debts.why_not_settled_by_hand(only_reversal(transfer))


def test_a_404_says_nothing_of_one_that_is_pending_there(at_stripe: Make, of_another_mode: Any) -> None:
    transfer = at_stripe(1000)
    owed(transfer, stripe_reversal_id="trr_1", stripe_status="pending")
    drain(reversal.ReversalQueue(of_another_mode))
    assert "may be at Stripe" in debts.why_not_settled_by_hand(only_reversal(transfer))


def test_a_row_without_its_transfer_id_asks_a_person_and_stripe_is_not_called(
    db: None, run_reversals: Run, simulator: Any
) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, stripe_transfer_id="")
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "missing_transfer_id")
    assert simulator.requests.total == 0


def test_a_key_used_with_other_parameters_is_looked_into(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    operation_id = only_reversal(transfer).operation_id
    # Something else was sent under this key: a bug of ours, which Stripe refuses as idempotency_error.
    import stripe

    client = stripe.StripeClient("sk_test_x", base_addresses={"api": simulator.url})
    client.v1.transfers.reversals.create(
        transfer.stripe_transfer_id, {"amount": 1}, {"idempotency_key": f"{operation_id}:1"}
    )
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "server_error")
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.last_error_code == reversal_settling.PARTLY_REVERSED_ELSEWHERE


def test_ours_with_another_amount_at_stripe_asks_a_person(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe(5000)
    owed(transfer, look_first=True)
    metadata = {"operation_id": str(only_reversal(transfer).operation_id)}
    simulator.create_reversal(transfer.stripe_transfer_id, 4000, metadata=metadata)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "conflicting_facts")


# --- Unknown outcomes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "unavailable", "status": 503},
        {"action": "unavailable", "status": 502, "html": True},
        {"action": "unavailable", "status": 504},
        {"action": "unavailable", "status": 424},
        {"action": "drop_before"},
        {"action": "unreadable"},
        {"action": "not_utf8"},
        {"action": "truncated"},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_an_unknown_outcome_waits_for_the_backoff_and_spends_one_retry(
    at_stripe: Make, run_reversals: Run, simulator: Any, fault: dict[str, Any]
) -> None:
    transfer = at_stripe()
    simulator.faults.add(endpoint=REVERSE, times=1, **fault)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSAL_PENDING
    assert transfer.retry_count == 1
    assert 50 < seconds_until(transfer) <= 60
    assert (transfer.last_error_code, only_reversal(transfer).key_generation) == ("unknown", 1)
    assert_released(transfer)
    attempt = transfer.history.latest("pgh_id")
    assert (attempt.pgh_label, attempt.pgh_context["attempt"]) == ("attempt", 1)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_the_backoff_is_capped(at_stripe: Make, run_reversals: Run, simulator: Any, settings: Any) -> None:
    settings.REVERSAL_BACKOFF_BASE, settings.REVERSAL_BACKOFF_MAX = timedelta(seconds=1), timedelta(seconds=10)
    transfer = at_stripe()
    SellerTransfer.objects.filter(pk=transfer.pk).update(retry_count=4)
    simulator.faults.add("unavailable", endpoint=REVERSE)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.retry_count == 5
    assert 8 < seconds_until(transfer) <= 10


def test_exhausted_retries_ask_a_person(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    SellerTransfer.objects.filter(pk=transfer.pk).update(retry_count=5)
    simulator.faults.add("unavailable", endpoint=REVERSE)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "retries_exhausted")
    assert "unknown" in transfer.last_error_message
    assert transfer.next_retry_at is None


def test_after_a_500_that_spent_the_last_retry_an_operators_retry_looks_first(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    SellerTransfer.objects.filter(pk=transfer.pk).update(retry_count=5)
    simulator.faults.add("error_500", endpoint=REVERSE, times=1)
    run_reversals()
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="again")
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, only_reversal(transfer).key_generation) == (TransferStatus.REVERSED, 2)


def test_a_500_is_looked_into_before_a_new_key_is_used(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    simulator.faults.add("error_500", endpoint=REVERSE, times=1)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.retry_count, transfer.last_error_code) == (1, "server_error")
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    first, second = simulator.requests.to(REVERSE)
    assert (first.key[-2:], second.key[-2:]) == (":1", ":2")


def test_a_500_that_stripe_repeats_under_its_key_all_day_is_looked_past(
    at_stripe: Make, run_reversals: Run, gateway: Any, simulator: Any
) -> None:
    transfer = at_stripe()
    simulator.faults.add("error_500", endpoint=REVERSE, times=1)
    run_reversals()
    simulator.clock.advance(18 * 3600)
    reversal = only_reversal(transfer)
    repeated = gateway.reverse_transfer(
        transfer.stripe_transfer_id,
        amount=reversal.amount,
        reason=f"refund {reversal.refund_id}",
        operation_id=reversal.operation_id,
        idempotency_key=reversal.idempotency_key,
    )
    assert isinstance(repeated, ServerError)
    assert simulator.requests.to(REVERSE)[-1].replayed
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_an_effect_that_lands_after_our_timeout_is_waited_for_under_the_same_key(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    simulator.faults.add("late", endpoint=REVERSE, seconds=60, times=1)
    run_reversals()
    # While it runs at Stripe the key answers 409, which spends nothing.
    for _ in range(3):
        due_again(transfer)
        run_reversals()
    transfer.refresh_from_db()
    assert (transfer.retry_count, transfer.last_error_code) == (1, "busy")
    simulator.clock.advance(61)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert {request.key[-2:] for request in simulator.requests.to(REVERSE)} == {":1"}
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_a_500_after_the_effect_is_found_and_not_done_again(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    simulator.faults.add("error_500_after", endpoint=REVERSE, times=1)
    run_reversals()
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert len(simulator.requests.to(REVERSE)) == 1


def test_an_old_key_is_not_trusted(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    simulator.faults.add("drop_after", endpoint=REVERSE, times=1)
    run_reversals()
    # Stripe has forgotten the key; sent blindly, the reversal would happen twice.
    simulator.clock.advance(25 * 3600)
    owed(transfer, first_attempted_at=timezone.now() - timedelta(hours=25))
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_an_old_key_that_did_nothing_is_replaced_by_a_new_one(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    owed(transfer, first_attempted_at=timezone.now() - timedelta(hours=21, minutes=6))
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    (sent,) = simulator.requests.to(REVERSE)
    assert sent.key.endswith(":2")


def test_a_new_key_waits_until_whatever_was_sent_under_the_old_one_has_arrived(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    """A look sees nothing of a request that is on its way: under another key it would happen twice."""
    transfer = at_stripe()
    owed(transfer, first_attempted_at=timezone.now() - timedelta(hours=21, minutes=4))
    run_reversals()
    transfer.refresh_from_db()
    assert simulator.requests.to(REVERSE) == []
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 0)
    assert transfer.last_error_code == "postponed"
    assert only_reversal(transfer).key_generation == 1
    assert 50 < seconds_until(transfer) <= 60
    assert_released(transfer)


def test_looking_that_fails_changes_no_key(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    owed(transfer, look_first=True)
    simulator.faults.add("unavailable", endpoint="GET /v1/transfers/{id}/reversals", times=1)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 1)
    assert only_reversal(transfer).key_generation == 1
    assert simulator.requests.to(REVERSE) == []


def test_a_retry_while_the_lost_call_still_runs_reverses_once(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    """The effect lands late: a look finds nothing yet, so a new key would reverse twice."""
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    SellerTransfer.objects.filter(pk=transfer.pk).update(retry_count=5)
    simulator.faults.add("late", endpoint=REVERSE, seconds=60, times=1)
    run_reversals()
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="again")
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "busy")
    simulator.clock.advance(61)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_a_retry_after_a_refusal_looks_and_then_uses_a_new_key(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    simulator.pay_out(transfer.seller.stripe_account_id)
    owed(transfer, waiting_for_funds_since=timezone.now() - timedelta(days=46))
    run_reversals()
    simulator.add_funds(transfer.amount, account=transfer.seller.stripe_account_id)
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="they sold again")
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, only_reversal(transfer).key_generation) == (TransferStatus.REVERSED, 2)


# --- Nothing ran ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"action": "conflict"}, "busy"),
        ({"action": "lock_timeout"}, "busy"),
        ({"action": "rate_limited", "reason": "endpoint-rate"}, "rate_limited"),
    ],
    ids=["conflict", "lock_timeout", "rate_limited"],
)
def test_being_told_to_wait_spends_nothing(
    at_stripe: Make, run_reversals: Run, simulator: Any, fault: dict[str, Any], code: str
) -> None:
    transfer = at_stripe()
    simulator.faults.add(endpoint=REVERSE, times=1, **fault)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 0)
    assert transfer.last_error_code == code
    assert seconds_until(transfer) <= 5
    assert only_reversal(transfer).key_generation == 1
    assert_released(transfer)


@pytest.mark.parametrize("action", ["unauthorized", "forbidden"])
def test_a_refused_key_stops_the_worker_and_spends_nothing(
    at_stripe: Make, gateway: Any, simulator: Any, action: str
) -> None:
    transfer = at_stripe()
    due = transfer.next_retry_at
    simulator.faults.add(action, endpoint=REVERSE)
    with pytest.raises(StripeDenied):
        drain(reversal.ReversalQueue(gateway))
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count, transfer.next_retry_at) == ("reversal_pending", 0, due)
    assert transfer.last_error_code == "denied"
    assert_released(transfer)


# --- No funds ---------------------------------------------------------------------------------------------------------


def test_too_little_balance_waits_on_its_own_schedule_and_then_uses_a_new_key(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    account = transfer.seller.stripe_account_id
    simulator.pay_out(account)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 0)
    assert transfer.last_error_code == "insufficient_funds"
    assert 6 * 3600 - 60 < seconds_until(transfer) <= 6 * 3600
    assert only_reversal(transfer).waiting_for_funds_since is not None
    simulator.add_funds(transfer.amount, account=account)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert [sent.key[-2:] for sent in simulator.requests.to(REVERSE)] == [":1", ":2"]
    assert only_reversal(transfer).waiting_for_funds_since is None


def test_waiting_for_funds_ends_with_a_person(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    simulator.pay_out(transfer.seller.stripe_account_id)
    owed(transfer, waiting_for_funds_since=timezone.now() - timedelta(days=46))
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "insufficient_funds")


def test_a_reversal_pending_at_stripe_is_not_done_until_stripe_says_so(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    account = transfer.seller.stripe_account_id
    simulator.set(pending_reversals=True)
    simulator.pay_out(account)
    run_reversals()
    transfer.refresh_from_db()
    waiting = only_reversal(transfer)
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSAL_PENDING, 0)
    assert (waiting.status, waiting.stripe_status) == (ReversalStatus.PENDING, "pending")
    assert waiting.stripe_reversal_id.startswith("trr_")
    simulator.add_funds(transfer.amount, account=account)
    simulator.clock.advance(2 * 3600)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.stripe_reversal_id) == (TransferStatus.REVERSED, waiting.stripe_reversal_id)
    assert len(simulator.requests.to(REVERSE)) == 1


@pytest.mark.parametrize("waits", ["for funds", "pending at Stripe"])
def test_what_waits_for_weeks_is_not_given_up_for_answers_lost_now_and_then(
    at_stripe: Make, run_reversals: Run, simulator: Any, settings: Any, waits: str
) -> None:
    transfer = at_stripe()
    simulator.set(pending_reversals=waits == "pending at Stripe")
    simulator.pay_out(transfer.seller.stripe_account_id)
    run_reversals()
    for _ in range(settings.REVERSAL_MAX_RETRIES + 1):
        simulator.faults.add("unreadable", object=transfer.stripe_transfer_id, times=1)
        for spent in (1, 0):
            due_again(transfer)
            run_reversals()
            transfer.refresh_from_db()
            assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, spent)


def test_a_pending_reversal_is_found_by_its_own_number(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    simulator.set(pending_reversals=True)
    simulator.pay_out(transfer.seller.stripe_account_id)
    run_reversals()
    waiting = only_reversal(transfer)
    simulator.add_funds(9000, account=transfer.seller.stripe_account_id)
    # A newer one, made elsewhere, stands before ours in Stripe's list.
    simulator.create_reversal(transfer.stripe_transfer_id, 500)
    simulator.clock.advance(2 * 3600)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.stripe_reversal_id == waiting.stripe_reversal_id
    assert transfer.amount_reversed == 1000


def test_a_pending_reversal_that_stripe_gives_up_is_tried_again_by_a_row_of_its_own(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    account = transfer.seller.stripe_account_id
    simulator.set(pending_reversals=True)
    simulator.pay_out(account)
    run_reversals()
    given_up = only_reversal(transfer)
    simulator.stop_waiting(given_up.stripe_reversal_id, "failed")
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    given_up.refresh_from_db()
    replacement = transfer.reversals.get(status=ReversalStatus.PENDING)
    assert (given_up.status, given_up.stripe_status) == (ReversalStatus.FAILED, "failed")
    assert (replacement.refund, replacement.amount) == (given_up.refund, given_up.amount)
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "insufficient_funds")
    assert seconds_until(transfer) > 5 * 3600
    simulator.add_funds(transfer.amount, account=account)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED


def pending_at_stripe_and_given_to_a_person(transfer: SellerTransfer, run: Run, simulator: Any, settings: Any) -> None:
    """Stripe waits for the balance, and our looks at it stay without an answer to the last retry."""
    settings.REVERSAL_MAX_RETRIES = 0
    simulator.set(pending_reversals=True)
    simulator.pay_out(transfer.seller.stripe_account_id)
    run()
    simulator.faults.add("unreadable", times=1)
    due_again(transfer)
    run()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.PERMANENTLY_FAILED
    simulator.faults.clear()


def test_a_retry_goes_on_with_the_reversal_that_is_pending_at_stripe(
    at_stripe: Make, run_reversals: Run, simulator: Any, settings: Any
) -> None:
    """And makes no second one of all that is left."""
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    pending_at_stripe_and_given_to_a_person(transfer, run_reversals, simulator, settings)
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="again")
    run_reversals()
    waiting = only_reversal(transfer)
    assert (waiting.status, waiting.stripe_status) == (ReversalStatus.PENDING, "pending")
    simulator.add_funds(5000, account=transfer.seller.stripe_account_id)
    simulator.clock.advance(2 * 3600)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert len(simulator.requests.to(REVERSE)) == 1


def test_a_pending_reversal_that_went_through_unseen_is_recorded_with_those_made_elsewhere(
    at_stripe: Make, run_reversals: Run, simulator: Any, settings: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1000)
    pending_at_stripe_and_given_to_a_person(transfer, run_reversals, simulator, settings)
    given_up = only_reversal(transfer)
    simulator.add_funds(9000, account=transfer.seller.stripe_account_id)
    simulator.clock.advance(2 * 3600)
    simulator.create_reversal(transfer.stripe_transfer_id, 4000)
    another = TransferReversalFactory(
        transfer=transfer, amount=4000, cause=TransferReversal.Cause.OPERATOR, refund=None
    )
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        status=TransferStatus.REVERSAL_PENDING, failed_leg="", next_retry_at=Now()
    )
    run_reversals()
    transfer.refresh_from_db()
    given_up.refresh_from_db()
    another.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSED, 5000)
    assert (given_up.status, another.status) == (ReversalStatus.SUCCEEDED, ReversalStatus.CANCELED)


# --- What is not touched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trait", ["completed", "partially_reversed", "reversed", "failed", "canceled", "permanently_failed"]
)
def test_every_other_status_is_left_alone(db: None, run_reversals: Run, simulator: Any, trait: str) -> None:
    transfer = SellerTransferFactory(**{trait: True})
    before = SellerTransfer.objects.values().get(pk=transfer.pk)
    assert run_reversals() == 0
    assert SellerTransfer.objects.values().get(pk=transfer.pk) == before
    assert simulator.requests.total == 0


def test_a_row_that_is_not_due_is_left_alone(at_stripe: Make, run_reversals: Run, simulator: Any) -> None:
    transfer = at_stripe()
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=timezone.now() + timedelta(minutes=1))
    assert run_reversals() == 0
    assert simulator.requests.total == 0


def test_a_leased_row_is_left_alone_until_the_lease_has_run_out(at_stripe: Make, run_reversals: Run) -> None:
    transfer = at_stripe()
    assert reversal_claims.claim(batch_size=10, lease=timedelta(minutes=5))
    assert run_reversals() == 0
    SellerTransfer.objects.filter(pk=transfer.pk).update(lease_expires_at=Now())
    assert run_reversals() == 1


# --- Leases -----------------------------------------------------------------------------------------------------------


def test_a_late_settle_changes_nothing(at_stripe: Make, gateway: Any) -> None:
    transfer = at_stripe()
    (late,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    SellerTransfer.objects.filter(pk=transfer.pk).update(lease_expires_at=Now())
    (current,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    answer = reversal.ReversalQueue(gateway)._ask(late)
    before = SellerTransfer.objects.values().get(pk=transfer.pk)
    with pytest.raises(StaleTransition):
        reversal_settling.settle(late, answer, actor="late worker")
    with pytest.raises(StaleTransition):
        reversal_claims.begin_generation(late)
    assert SellerTransfer.objects.values().get(pk=transfer.pk) == before
    # The one that holds the lease learns the same from the same key.
    reversal_settling.settle(current, reversal.ReversalQueue(gateway)._ask(current), actor="current worker")
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED


def test_a_row_given_back_unbegun_is_due_at_once(at_stripe: Make, gateway: Any, run_reversals: Run) -> None:
    at_stripe()
    queue = reversal.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.release(claimed)
    assert run_reversals() == 1


def test_an_error_of_our_own_is_kept_with_the_row_which_then_waits(at_stripe: Make, gateway: Any) -> None:
    transfer = at_stripe()
    queue = reversal.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.settle_unexpected(claimed, ZeroDivisionError("a bug"))
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 1)
    assert transfer.last_error_message == "ZeroDivisionError: a bug"
    # The call may be running still, and under the same key it cannot happen twice.
    assert not only_reversal(transfer).look_first
    assert_released(transfer)


# --- Rows of older versions -------------------------------------------------------------------------------------------


def test_a_row_that_does_not_say_which_reversal_is_owed_gives_back_all_that_is_left(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(5000, reversal_pending=True, reversal=False)
    assert run_reversals() == 1
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSED, 5000)
    assert only_reversal(transfer).cause == TransferReversal.Cause.OPERATOR
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_the_next_due_time_is_that_of_the_rows_nobody_holds(at_stripe: Make, gateway: Any) -> None:
    queue = reversal.ReversalQueue(gateway)
    assert leases.seconds_until_due([queue.due]) == [None]
    at_stripe()
    (seconds,) = leases.seconds_until_due([queue.due])
    assert seconds is not None
    assert seconds <= 0
    queue.claim(batch_size=1, lease=timedelta(minutes=5))
    assert leases.seconds_until_due([queue.due]) == [None]


class Answering:
    """The gateway, with some of its answers replaced."""

    def __init__(self, gateway: Any, **answers: Any) -> None:
        self._gateway, self._answers = gateway, answers

    def __getattr__(self, name: str) -> Any:
        return (lambda *_, **__: self._answers[name]) if name in self._answers else getattr(self._gateway, name)


def test_any_other_refusal_asks_a_person(at_stripe: Make, gateway: Any) -> None:
    transfer = at_stripe()
    no = Refused(code="account_closed", message="The account is closed.", request_id="req_1")
    drain(reversal.ReversalQueue(Answering(gateway, reverse_transfer=no)))  # type: ignore[arg-type]
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "account_closed")
    assert (transfer.last_error_request_id, only_reversal(transfer).look_first) == ("req_1", True)


def test_a_refused_look_is_no_answer_to_the_send(at_stripe: Make, gateway: Any, simulator: Any) -> None:
    transfer = at_stripe()
    owed(transfer, look_first=True)
    no = Refused(code="invalid_request_error", message="too many")
    drain(reversal.ReversalQueue(Answering(gateway, list_reversals=no)))  # type: ignore[arg-type]
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 1)
    assert simulator.requests.to(REVERSE) == []


def test_a_status_that_we_do_not_know_is_followed_and_not_sent_again(
    at_stripe: Make, gateway: Any, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount=1200)
    facts = gateway.reverse_transfer(
        transfer.stripe_transfer_id,
        amount=1200,
        reason="x",
        operation_id=only_reversal(transfer).operation_id,
        idempotency_key="made before",
    ).reversal
    odd = Reversed(reversal=dataclasses.replace(facts, status="processing"))
    drain(reversal.ReversalQueue(Answering(gateway, reverse_transfer=odd)))  # type: ignore[arg-type]
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSAL_PENDING, 0)
    due_again(transfer)
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1200)
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1


def test_a_reversal_of_ours_that_is_not_in_the_list_is_not_sent_again(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe()
    owed(transfer, stripe_reversal_id="trr_not_listed_yet", stripe_status="pending")
    run_reversals()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "unknown")
    assert simulator.requests.to(REVERSE) == []
