"""``transfer.reversed``: reversals made elsewhere, and our own when the webhook is quicker than the worker."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from marketplace import inbox
from marketplace.errors import StaleTransition, StripeDenied
from marketplace.gateway import stripe_events
from marketplace.gateway.contract import Postponed
from marketplace.models import SellerTransfer, TransferReversal, WebhookEvent
from marketplace.services import clawback, reversal_claims, reversal_settling, transfers
from marketplace.states import EventStatus, ReversalStatus, TransferStatus
from marketplace.workers.reversal import EventQueue
from tests.factories import SellerTransferFactory, TransferReversalFactory

Make = Callable[..., SellerTransfer]
Run = Callable[[], int]
Deliver = Callable[[dict[str, Any]], WebhookEvent]
Cause = TransferReversal.Cause


@pytest.fixture
def deliver(db: None, simulator: Any) -> Deliver:
    def receive(event: dict[str, Any]) -> WebhookEvent:
        row = inbox.receive(stripe_events.verify(*simulator.sign(event, "whsec_testPlatform")))
        return WebhookEvent.objects.get(pk=row.pk)

    return receive


@pytest.fixture
def told(simulator: Any) -> Callable[[], list[dict[str, Any]]]:
    """The events of all reversals so far, oldest first."""
    return lambda: simulator.events(type="transfer.reversed")


def now(transfer: SellerTransfer) -> tuple[str, int]:
    transfer.refresh_from_db()
    return transfer.status, transfer.amount_reversed


def rows(transfer: SellerTransfer) -> list[tuple[str, str, int]]:
    return [(each.cause, each.status, each.amount) for each in transfer.reversals.order_by("id")]


def owed(transfer: SellerTransfer, amount: int) -> TransferReversal:
    """All that the transfer owes from now on."""
    (only,) = transfer.reversals.all()
    TransferReversal.objects.filter(pk=only.pk).update(amount=amount)
    only.refresh_from_db()
    return only


def claimed_one() -> reversal_claims.Claimed:
    (one,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    return one


def sent(claimed: reversal_claims.Claimed, gateway: Any) -> Any:
    return gateway.reverse_transfer(
        claimed.transfer.stripe_transfer_id,
        amount=claimed.reversal.amount,
        reason=claimed.reason,
        operation_id=claimed.reversal.operation_id,
        idempotency_key=claimed.reversal.idempotency_key,
    )


def rerun_events(gateway: Any) -> Iterable[WebhookEvent]:
    queue = EventQueue(gateway)
    WebhookEvent.objects.filter(status=EventStatus.FAILED, next_retry_at__isnull=False).update(next_retry_at=Now())
    for claimed in queue.claim(batch_size=10, lease=timedelta(minutes=5)):
        queue.perform(claimed)
    return WebhookEvent.objects.order_by("id")


# --- Made elsewhere ---------------------------------------------------------------------------------------------------


def test_a_part_taken_in_the_dashboard_is_recorded_with_its_cause(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    made = simulator.create_reversal(transfer.stripe_transfer_id, 2000)
    event = deliver(told()[0])
    assert (event.status, event.outcome) == (EventStatus.PROCESSED, f"{made['id']} seen at Stripe")
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 2000)
    assert rows(transfer) == [(Cause.SEEN_AT_STRIPE, ReversalStatus.SUCCEEDED, 2000)]
    assert transfer.stripe_reversal_id == made["id"]
    assert simulator.requests.total == 0


def test_all_of_it_taken_in_steps_is_reversed_in_whatever_order_the_events_come(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    made = [simulator.create_reversal(transfer.stripe_transfer_id, amount)["id"] for amount in (1000, 1500, 2500)]
    first, second, third = told()
    deliver(second)
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 2500)
    assert deliver(first).outcome == f"all reversals of {transfer.stripe_transfer_id} were known"
    assert transfer.stripe_reversal_id == made[1]
    deliver(third)
    assert now(transfer) == (TransferStatus.REVERSED, 5000)
    assert transfer.stripe_reversal_id == made[2]
    assert sorted(transfer.reversals.values_list("stripe_reversal_id", flat=True)) == sorted(made)


def test_a_second_part_leaves_it_partially_reversed(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for _ in range(2):
        simulator.create_reversal(transfer.stripe_transfer_id, 1000)
        deliver(told()[-1])
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 2000)


def test_what_is_owed_and_not_sent_is_so_much_less(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    simulator.create_reversal(transfer.stripe_transfer_id, 2000)
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 2000)
    assert rows(transfer)[0] == (Cause.REFUND, ReversalStatus.PENDING, 3000)
    run_reversals()
    assert now(transfer) == (TransferStatus.REVERSED, 5000)


def test_what_is_owed_is_nothing_any_more_where_as_much_was_taken_elsewhere(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    simulator.create_reversal(transfer.stripe_transfer_id, 2000)
    deliver(told()[0])
    assert rows(transfer)[0] == (Cause.REFUND, ReversalStatus.CANCELED, 1000)
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 2000)
    assert run_reversals() == 0


def test_the_newest_debts_are_made_smaller_first_and_the_oldest_goes_on(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    TransferReversalFactory(transfer=transfer, amount=800, cause=Cause.OPERATOR, refund=None)
    due = transfer.next_retry_at
    simulator.create_reversal(transfer.stripe_transfer_id, 900)
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 900)
    assert rows(transfer)[:2] == [
        (Cause.REFUND, ReversalStatus.PENDING, 900),
        (Cause.OPERATOR, ReversalStatus.CANCELED, 800),
    ]
    assert transfer.next_retry_at == due


def test_one_that_may_be_at_stripe_keeps_its_amount_and_its_worker(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    claimed = claimed_one()
    simulator.create_reversal(transfer.stripe_transfer_id, 2000)
    deliver(told()[0])
    transfer.refresh_from_db()
    assert transfer.lease_token == claimed.transfer.lease_token
    settled = reversal_settling.settle(claimed, sent(claimed, gateway), actor="reversal worker")
    assert settled.status == TransferStatus.PARTIALLY_REVERSED
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 3000)


def test_all_taken_elsewhere_while_a_worker_has_it_in_hand_leaves_nothing_to_settle(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    claimed = claimed_one()
    simulator.create_reversal(transfer.stripe_transfer_id)
    deliver(told()[0])
    with pytest.raises(StaleTransition):
        reversal_settling.settle(claimed, sent(claimed, gateway), actor="reversal worker")
    assert now(transfer) == (TransferStatus.REVERSED, 5000)
    assert rows(transfer) == [
        (Cause.REFUND, ReversalStatus.CANCELED, 5000),
        (Cause.SEEN_AT_STRIPE, ReversalStatus.SUCCEEDED, 5000),
    ]


# --- Our own ----------------------------------------------------------------------------------------------------------


def test_our_own_told_after_the_workers_answer_changes_nothing(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, told: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    run_reversals()
    transfer.refresh_from_db()
    before = SellerTransfer.objects.values().get(pk=transfer.pk)
    deliver(told()[0])
    assert SellerTransfer.objects.values().get(pk=transfer.pk) == before
    assert rows(transfer) == [(Cause.REFUND, ReversalStatus.SUCCEEDED, 1000)]


@pytest.mark.parametrize("amount", [1000, 5000])
def test_our_own_told_before_the_workers_answer_counts_once(
    at_stripe: Make, deliver: Deliver, gateway: Any, told: Any, amount: int
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, amount)
    claimed = claimed_one()
    answer = sent(claimed, gateway)
    deliver(told()[0])
    with pytest.raises(StaleTransition):
        reversal_settling.settle(claimed, answer, actor="reversal worker")
    done = TransferStatus.REVERSED if amount == 5000 else TransferStatus.PARTIALLY_REVERSED
    assert now(transfer) == (done, amount)
    assert rows(transfer) == [(Cause.REFUND, ReversalStatus.SUCCEEDED, amount)]
    assert (transfer.lease_token, transfer.next_retry_at) == (None, None)


def test_the_next_debt_is_due_when_the_webhook_tells_of_the_one_before(
    at_stripe: Make, deliver: Deliver, gateway: Any, run_reversals: Run, told: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    sent(claimed_one(), gateway)
    TransferReversalFactory(transfer=transfer, amount=500, cause=Cause.OPERATOR, refund=None)
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 1000)
    assert run_reversals() == 1
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1500)


def test_one_that_was_given_to_a_person_turns_out_done(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, simulator: Any, settings: Any, told: Any
) -> None:
    settings.REVERSAL_MAX_RETRIES = 0
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    simulator.faults.add("unreadable", times=1)
    run_reversals()
    assert now(transfer) == (TransferStatus.PERMANENTLY_FAILED, 0)
    simulator.faults.clear()
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert (transfer.failed_leg, transfer.last_error_code) == ("", "")


def test_what_is_with_a_person_stays_there_and_a_retry_takes_what_is_left(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, permanently_failed=True)
    (failed,) = transfer.reversals.all()
    simulator.create_reversal(transfer.stripe_transfer_id, 2000)
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.PERMANENTLY_FAILED, 2000)
    transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="again")
    run_reversals()
    assert now(transfer) == (TransferStatus.REVERSED, 5000)
    failed.refresh_from_db()
    assert failed.status == ReversalStatus.CANCELED


def test_a_person_need_not_decide_once_all_was_taken_elsewhere(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, permanently_failed=True)
    simulator.create_reversal(transfer.stripe_transfer_id)
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.REVERSED, 5000)
    assert rows(transfer)[0][1] == ReversalStatus.CANCELED


@pytest.mark.parametrize("ending", ["succeeded", "failed", "canceled"])
def test_one_that_was_pending_at_stripe_is_done_only_when_it_succeeded(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, simulator: Any, told: Any, ending: str
) -> None:
    transfer = at_stripe(5000)
    account = transfer.seller.stripe_account_id
    simulator.set(pending_reversals=True)
    simulator.pay_out(account)
    run_reversals()
    (waiting,) = transfer.reversals.all()
    assert (waiting.status, waiting.stripe_status, told()) == (ReversalStatus.PENDING, "pending", [])
    if ending != "succeeded":
        simulator.stop_waiting(waiting.stripe_reversal_id, ending)
        SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now())
        run_reversals()
        assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 0)
        waiting.refresh_from_db()
        assert (waiting.status, waiting.stripe_status) == (ReversalStatus.FAILED, ending)
        assert transfer.reversals.get(status=ReversalStatus.PENDING).amount == 5000
        return
    simulator.add_funds(transfer.amount, account=account)
    simulator.clock.advance(2 * 3600)
    (event,) = told()
    deliver(event)
    assert now(transfer) == (TransferStatus.REVERSED, 5000)
    waiting.refresh_from_db()
    assert (waiting.status, waiting.stripe_status) == (ReversalStatus.SUCCEEDED, "succeeded")


def test_the_next_in_the_sellers_line_is_due_when_one_that_had_waited_is_done(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    (ours,) = transfer.reversals.all()
    TransferReversal.objects.filter(pk=ours.pk).update(waiting_for_funds_since=Now())
    behind = SellerTransferFactory(
        seller=transfer.seller,
        reversal_pending=True,
        last_error_code="insufficient_funds",
        next_retry_at=Now() + timedelta(hours=6),
    )
    simulator.create_reversal(transfer.stripe_transfer_id, metadata={"operation_id": str(ours.operation_id)})
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.REVERSED, 5000)
    assert SellerTransfer.objects.filter(pk=behind.pk, next_retry_at__lte=Now()).exists()


# --- What the event does not say --------------------------------------------------------------------------------------


def shortened(event: dict[str, Any]) -> dict[str, Any]:
    """As of a transfer with more reversals than an event lists."""
    body = event["data"]["object"]
    listed = body["reversals"] | {"data": body["reversals"]["data"][:1], "has_more": True}
    return event | {"data": {"object": body | {"reversals": listed}}}


def test_more_than_the_event_lists_is_asked_for_by_the_worker(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for _ in range(12):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    event = deliver(told()[-1])
    assert (event.status, event.last_error_code) == (EventStatus.FAILED, inbox.NOT_ALL_LISTED)
    assert (now(transfer), simulator.requests.total) == ((TransferStatus.COMPLETED, 0), 0)
    (event,) = rerun_events(gateway)
    assert (event.status, event.last_error_code) == (EventStatus.PROCESSED, "")
    assert (now(transfer), simulator.requests.total) == ((TransferStatus.PARTIALLY_REVERSED, 1200), 1)


def test_a_look_without_an_answer_comes_again_and_spends_nothing(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for _ in range(2):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    deliver(shortened(told()[-1]))
    simulator.faults.add("unavailable", times=1)
    (event,) = rerun_events(gateway)
    assert (event.status, event.last_error_code, event.retry_count) == (EventStatus.FAILED, inbox.NOT_ALL_LISTED, 0)
    assert event.lease_token is None
    (event,) = rerun_events(gateway)
    assert event.status == EventStatus.PROCESSED
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 200)


def test_a_key_that_stripe_refuses_stops_the_worker_and_the_event_waits(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for _ in range(2):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    deliver(shortened(told()[-1]))
    simulator.faults.add("unauthorized", times=1)
    with pytest.raises(StripeDenied):
        rerun_events(gateway)
    event = WebhookEvent.objects.get()
    assert (event.status, event.last_error_code, event.retry_count) == (EventStatus.FAILED, inbox.NOT_ALL_LISTED, 0)


def test_a_list_that_stays_short_is_for_a_person_in_the_end(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any, settings: Any
) -> None:
    settings.REVERSAL_MAX_RETRIES = 1
    transfer = at_stripe(5000, completed=True)
    for _ in range(2):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    event = shortened(told()[-1])
    event["data"]["object"]["amount_reversed"] = 300
    deliver(event)
    for retries in (1, 1):
        (row,) = rerun_events(gateway)
        assert (row.status, row.last_error_code, row.retry_count) == (
            EventStatus.FAILED,
            inbox.NOT_ALL_LISTED,
            retries,
        )
    assert row.next_retry_at is None
    assert now(transfer) == (TransferStatus.COMPLETED, 0)


def test_a_transfer_that_stripe_no_longer_knows_spends_the_events_tries(
    at_stripe: Make, deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for _ in range(2):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    event = shortened(told()[-1])
    deliver(event)
    simulator.reset()
    (row,) = rerun_events(gateway)
    assert (row.status, row.last_error_code, row.retry_count) == (EventStatus.FAILED, inbox.NOT_ALL_LISTED, 1)
    assert row.last_error_message.startswith("looking failed: ")
    assert now(transfer) == (TransferStatus.COMPLETED, 0)


def test_a_look_for_which_the_allowance_has_no_room_comes_when_it_has(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for _ in range(2):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    deliver(shortened(told()[-1]))
    (claimed,) = inbox.claim(batch_size=1, lease=timedelta(minutes=5))
    inbox.not_looked_up(claimed, Postponed(message="no turn", seconds=30))
    row = WebhookEvent.objects.get()
    assert row.next_retry_at is not None
    assert 0 < (row.next_retry_at - row.last_error_at).total_seconds() <= 30


# --- Whose it is, and facts that contradict ---------------------------------------------------------------------------


@pytest.mark.parametrize("operation_id", ["", "8b1f8d3e-0000-4000-8000-000000000000"])
def test_a_transfer_of_another_program_is_ignored(
    deliver: Deliver, simulator: Any, told: Any, operation_id: str
) -> None:
    metadata = {"operation_id": operation_id} if operation_id else {}
    transfer = simulator.create_transfer(5000, simulator.create_account()["id"], metadata=metadata)
    simulator.create_reversal(transfer["id"])
    event = deliver(told()[0])
    assert (event.status, event.outcome) == (EventStatus.IGNORED, f"{transfer['id']} is no transfer of ours")
    assert not TransferReversal.objects.exists()


def test_one_whose_sending_is_not_settled_waits_for_that(
    deliver: Deliver, gateway: Any, simulator: Any, told: Any
) -> None:
    transfer = SellerTransferFactory(amount=5000)
    metadata = {"operation_id": str(transfer.operation_id)}
    made = simulator.create_transfer(5000, simulator.create_account()["id"], metadata=metadata)
    simulator.create_reversal(made["id"], 1000)
    event = deliver(told()[0])
    assert (event.status, event.last_error_code) == (EventStatus.FAILED, inbox.UNKNOWN_TRANSFER)
    # It is settled some day, if by a person: no number of tries is enough.
    WebhookEvent.objects.update(retry_count=1000)
    (event,) = rerun_events(gateway)
    assert (event.retry_count, event.next_retry_at is None) == (1001, False)
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        status=TransferStatus.COMPLETED, stripe_transfer_id=made["id"], next_retry_at=None
    )
    (event,) = rerun_events(gateway)
    assert event.status == EventStatus.PROCESSED
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1000)


def refused(deliver: Deliver, event: dict[str, Any]) -> str:
    row = deliver(event)
    assert (row.status, row.last_error_code) == (EventStatus.FAILED, "ConflictingFacts")
    return row.last_error_message


@pytest.mark.parametrize("other", [{"amount": 6000}, {"currency": "usd"}])
def test_another_transfer_than_ours_changes_nothing(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any, other: dict[str, Any]
) -> None:
    transfer = at_stripe(5000, completed=True)
    simulator.create_reversal(transfer.stripe_transfer_id, 1000)
    event = told()[0]
    assert "at Stripe is" in refused(deliver, event | {"data": {"object": event["data"]["object"] | other}})
    assert now(transfer) == (TransferStatus.COMPLETED, 0)


def test_our_own_with_another_amount_changes_nothing(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    (ours,) = transfer.reversals.all()
    simulator.create_reversal(transfer.stripe_transfer_id, 1000, metadata={"operation_id": str(ours.operation_id)})
    assert "our reversal" in refused(deliver, told()[0])
    assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 0)


def test_more_than_the_transfer_was_is_never_reversed(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    TransferReversalFactory(transfer=transfer, amount=3000, succeeded=True)
    simulator.create_reversal(transfer.stripe_transfer_id, 3000)
    assert "6000 would be reversed" in refused(deliver, told()[0])
    assert now(transfer) == (TransferStatus.COMPLETED, 0)


def test_what_is_known_already_locks_nothing_of_the_order(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    for amount in (1000, 1500):
        simulator.create_reversal(transfer.stripe_transfer_id, amount)
    first, second = told()

    def locked(event: dict[str, Any]) -> bool:
        with CaptureQueriesContext(connection) as asked:
            deliver(event)
        statements = [each["sql"] for each in asked.captured_queries if "FOR NO KEY UPDATE" in each["sql"]]
        return any("marketplace_order" in each or "marketplace_sellertransfer" in each for each in statements)

    assert [locked(second), locked(first)] == [True, False]


def test_an_older_event_does_not_take_the_place_of_the_newest_reversal(
    at_stripe: Make, deliver: Deliver, run_reversals: Run, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000)
    owed(transfer, 1000)
    theirs = simulator.create_reversal(transfer.stripe_transfer_id, 500)
    run_reversals()
    transfer.refresh_from_db()
    ours = transfer.stripe_reversal_id
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1500)
    assert transfer.stripe_reversal_id == ours != theirs["id"]


def test_an_amount_that_an_older_program_wrote_without_its_reversal_counts_once(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    first = simulator.create_reversal(transfer.stripe_transfer_id, 1000)
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        status=TransferStatus.PARTIALLY_REVERSED, amount_reversed=1000, stripe_reversal_id=first["id"]
    )
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    simulator.create_reversal(transfer.stripe_transfer_id, 500)
    deliver(told()[1])
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1500)


def test_what_an_older_program_knew_of_is_not_forgotten_for_an_event_that_tells_of_less(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    simulator.create_reversal(transfer.stripe_transfer_id, 1000)
    second = simulator.create_reversal(transfer.stripe_transfer_id, 500)
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        status=TransferStatus.PARTIALLY_REVERSED, amount_reversed=1500, stripe_reversal_id=second["id"]
    )
    deliver(told()[0])
    assert now(transfer) == (TransferStatus.PARTIALLY_REVERSED, 1500)


@pytest.mark.parametrize(("more", "left"), [(0, 300), (200, 100)])
def test_what_an_older_program_knew_of_is_not_taken_off_what_is_owed_once_more(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any, more: int, left: int
) -> None:
    """What is owed was reckoned beside it. What nobody knew of is taken off."""
    transfer = at_stripe(2000)
    owed(transfer, 300)
    first = simulator.create_reversal(transfer.stripe_transfer_id, 500)
    SellerTransfer.objects.filter(pk=transfer.pk).update(amount_reversed=500, stripe_reversal_id=first["id"])
    if more:
        simulator.create_reversal(transfer.stripe_transfer_id, more)
    deliver(told()[-1])
    assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 500 + more)
    assert rows(transfer)[0] == (Cause.REFUND, ReversalStatus.PENDING, left)


def test_what_others_take_is_taken_off_what_is_owed_whatever_was_recorded_before(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(2000)
    owed(transfer, 1000)
    for amount, left in ((500, 500), (200, 300)):
        simulator.create_reversal(transfer.stripe_transfer_id, amount)
        deliver(told()[-1])
        assert rows(transfer)[0] == (Cause.REFUND, ReversalStatus.PENDING, left)


def test_ours_is_adopted_beside_what_an_older_program_knew_of(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any, gateway: Any
) -> None:
    transfer = at_stripe(2000)
    owed(transfer, 300)
    later = TransferReversalFactory(transfer=transfer, amount=400, cause=Cause.OPERATOR, refund=None)
    first = simulator.create_reversal(transfer.stripe_transfer_id, 500)
    SellerTransfer.objects.filter(pk=transfer.pk).update(amount_reversed=500, stripe_reversal_id=first["id"])
    sent(claimed_one(), gateway)
    deliver(told()[-1])
    later.refresh_from_db()
    assert now(transfer) == (TransferStatus.REVERSAL_PENDING, 800)
    assert (later.status, later.amount) == (ReversalStatus.PENDING, 400)


def test_one_that_stripe_gave_up_is_left_as_it_ended_when_all_has_come_back(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    given_up = TransferReversalFactory(
        transfer=transfer, failed=True, amount=5000, stripe_reversal_id="trr_given_up", stripe_status="failed"
    )
    simulator.create_reversal(transfer.stripe_transfer_id, 5000)
    deliver(told()[0])
    given_up.refresh_from_db()
    assert (now(transfer), given_up.status) == ((TransferStatus.REVERSED, 5000), ReversalStatus.FAILED)


def test_the_next_refund_takes_only_what_was_not_taken_elsewhere(
    at_stripe: Make, deliver: Deliver, simulator: Any, told: Any
) -> None:
    transfer = at_stripe(5000, completed=True)
    simulator.create_reversal(transfer.stripe_transfer_id, 2000)
    deliver(told()[0])
    transfer.refresh_from_db()
    assert clawback.taken(transfer, transfer.reversals.all()) == clawback.Taken(total=2000, own=0)
