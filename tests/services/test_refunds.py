"""A buyer's refund: asked for once, recorded in any order, and what the sellers owe for it."""

import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.db.models.functions import Now
from django.utils import timezone
from structlog.testing import capture_logs

from marketplace import deadline
from marketplace.errors import (
    ConflictingFacts,
    MalformedEvent,
    NotAllowedNow,
    StaleTransition,
    StripeDenied,
    TooMuch,
    UnknownOrder,
)
from marketplace.gateway.contract import RefundFacts, Unknown
from marketplace.models import Order, Refund, RefundItem, SellerTransfer, TransferReversal
from marketplace.services import refund_attempts, refund_records, refunds
from marketplace.states import OrderStatus, RefundStatus, ReversalStatus, TransferStatus
from marketplace.workers import reversal
from tests.factories import (
    OrderFactory,
    RefundFactory,
    SellerTransferFactory,
    UserFactory,
    order_with_transfers,
)
from tests.services.test_confirmation import wait_until_blocked
from tests.workers.conftest import drain

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
CREATE_REFUND = "POST /v1/refunds"


def facts(order: Order, **changes: Any) -> RefundFacts:
    described: dict[str, Any] = {
        "stripe_refund_id": "re_1",
        "stripe_payment_intent_id": order.stripe_payment_intent_id,
        "stripe_charge_id": order.stripe_charge_id,
        "amount": order.amount,
        "currency": order.currency,
        "status": "succeeded",
        "operation_id": "",
        "failure_reason": "",
        "seen_at": NOON,
    }
    return RefundFacts(**{**described, **changes})


def record(order: Order, **changes: Any) -> Refund:
    return refund_records.record(facts(order, **changes), actor="stripe:evt_1")


def states(order: Order) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each transfer's status with its reversals."""
    return [
        (transfer.status, [(row.status, row.amount) for row in transfer.reversals.order_by("id")])
        for transfer in order.transfers.order_by("id")
    ]


# --- Recording --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_full_refund_makes_every_seller_owe_all_in_one_go() -> None:
    order = order_with_transfers((3000, 2000))
    refund = record(order)
    order.refresh_from_db()
    assert (order.status, order.amount_refunded) == (OrderStatus.REFUNDED, 5000)
    assert (refund.status, refund.succeeded_at) == (RefundStatus.SUCCEEDED, NOON)
    for transfer in order.transfers.all():
        owed = transfer.reversals.get()
        assert transfer.status == TransferStatus.REVERSAL_PENDING
        assert transfer.next_retry_at is not None
        assert transfer.next_retry_at <= timezone.now()
        assert (owed.amount, owed.refund, owed.status) == (transfer.amount, refund, ReversalStatus.PENDING)
        last = transfer.history.latest("pgh_id")
        assert last.pgh_context["actor"] == "stripe:evt_1"
        assert last.pgh_context["reason"] == f"refund {refund.pk} succeeded"


@pytest.mark.django_db
def test_the_same_facts_again_change_nothing() -> None:
    order = order_with_transfers((3000, 2000))
    record(order)
    before = states(order)
    history = SellerTransfer.history.rel.related_model.objects.count()
    record(order)
    assert states(order) == before
    assert SellerTransfer.history.rel.related_model.objects.count() == history


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["pending", "requires_action", "failed", "canceled"])
def test_only_a_refund_that_succeeded_makes_sellers_owe(status: str) -> None:
    order = order_with_transfers((3000,))
    refund = record(order, status=status)
    order.refresh_from_db()
    assert (refund.status, order.status) == (status, OrderStatus.PAID)
    assert states(order) == [("completed", [])]


@pytest.mark.django_db
def test_an_older_fact_does_not_undo_a_newer_one() -> None:
    order = order_with_transfers((3000,))
    record(order)
    refund = record(order, status="pending", seen_at=NOON - timedelta(seconds=5))
    assert refund.status == RefundStatus.SUCCEEDED


@pytest.mark.django_db
def test_of_the_same_second_the_status_further_along_stands() -> None:
    order = order_with_transfers((3000,))
    record(order)
    assert record(order, status="pending").status == RefundStatus.SUCCEEDED


@pytest.mark.django_db
def test_a_newer_fact_may_take_a_succeeded_refund_back_a_step() -> None:
    order = order_with_transfers((3000,))
    record(order)
    refund = record(order, status="requires_action", seen_at=NOON + timedelta(days=1))
    order.refresh_from_db()
    assert (refund.status, order.status, order.amount_refunded) == ("requires_action", OrderStatus.PAID, 0)
    assert refund.succeeded_at == NOON


@pytest.mark.django_db
def test_a_refund_that_fails_later_takes_the_debt_and_the_order_back() -> None:
    order = order_with_transfers((3000,))
    record(order)
    refund = record(order, status="failed", failure_reason="declined", seen_at=NOON + timedelta(days=1))
    order.refresh_from_db()
    assert (refund.status, order.status, order.amount_refunded) == (RefundStatus.FAILED, OrderStatus.PAID, 0)
    assert [status for status, _ in states(order)] == ["completed"]
    assert refund.history.latest("pgh_id").pgh_context["reason"] == "Stripe says failed (declined)"


@pytest.mark.django_db
def test_success_learnt_after_the_failure_ends_in_the_same_place() -> None:
    order = order_with_transfers((3000,))
    record(order, status="failed", seen_at=NOON + timedelta(days=1))
    refund = record(order)
    order.refresh_from_db()
    assert (refund.status, refund.succeeded_at, order.status) == (RefundStatus.FAILED, NOON, OrderStatus.PAID)
    assert [status for status, _ in states(order)] == ["completed"]


@pytest.mark.django_db
def test_partial_refunds_are_shared_in_proportion_and_add_up_to_the_whole() -> None:
    order = order_with_transfers((3333, 1667))
    record(order, amount=1)
    record(order, stripe_refund_id="re_2", amount=2499)
    order.refresh_from_db()
    assert (order.status, order.amount_refunded) == (OrderStatus.PARTIALLY_REFUNDED, 2500)
    record(order, stripe_refund_id="re_3", amount=2500)
    order.refresh_from_db()
    assert order.status == OrderStatus.REFUNDED
    for transfer in order.transfers.all():
        assert sum(row.amount for row in transfer.reversals.all()) == transfer.amount


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("commission", "owed"),
    [("proportional", [540, 360]), ("platform_keeps", [600, 400]), ("platform_bears", [300, 200])],
)
def test_who_bears_the_commission_stands_in_the_order(commission: str, owed: list[int]) -> None:
    order = order_with_transfers((3000, 2000), commission_basis_points=1000, refund_commission=commission)
    record(order, amount=1000)
    assert [reversal.amount for reversal in TransferReversal.objects.order_by("transfer_id")] == owed
    record(order, amount=4000, stripe_refund_id="re_2")
    for transfer in order.transfers.all():
        assert sum(reversal.amount for reversal in transfer.reversals.all()) == transfer.amount


@pytest.mark.django_db
@pytest.mark.parametrize(("currency", "step"), [("kwd", 10), ("isk", 100), ("jpy", 1)])
def test_what_is_owed_is_an_amount_that_stripe_takes_in_its_currency(currency: str, step: int) -> None:
    order = order_with_transfers((100 * step, 100 * step, 100 * step), currency=currency, commission_basis_points=1000)
    for number in (1, 2):
        record(order, amount=50 * step, stripe_refund_id=f"re_{number}")
    owed = [reversal.amount for reversal in TransferReversal.objects.all()]
    assert sum(owed) == 90 * step
    assert all(amount % step == 0 for amount in owed)
    record(order, amount=200 * step, stripe_refund_id="re_3")
    for transfer in order.transfers.all():
        assert sum(reversal.amount for reversal in transfer.reversals.all()) == transfer.amount


@pytest.mark.django_db
def test_a_further_refund_of_a_partly_reversed_transfer_makes_it_owe_again() -> None:
    order = OrderFactory(paid=True, amount=5000)
    transfer = SellerTransferFactory(order=order, amount=5000, partially_reversed=True)
    record(order)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSAL_PENDING
    assert transfer.reversals.get(status=ReversalStatus.PENDING).amount == 2500


@pytest.mark.django_db
@pytest.mark.parametrize("trait", ["pending", "failed"])
def test_a_transfer_not_yet_sent_is_canceled_and_never_paid(trait: str) -> None:
    order = order_with_transfers((3000,), status=trait)
    record(order)
    assert states(order) == [("canceled", [])]
    transfer = order.transfers.get()
    assert transfer.next_retry_at is None


@pytest.mark.django_db
def test_a_transfer_not_yet_sent_is_made_smaller_by_a_partial_refund() -> None:
    order = order_with_transfers((5000,), status="pending")
    record(order, amount=1000)
    transfer = order.transfers.get()
    assert (transfer.status, transfer.amount, transfer.amount_kept_back) == (TransferStatus.PENDING, 4000, 1000)
    record(order, stripe_refund_id="re_2", amount=4000)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.CANCELED


@pytest.mark.django_db
@pytest.mark.parametrize("trait", ["pending", "failed"])
def test_a_transfer_that_may_be_at_stripe_is_not_canceled(trait: str) -> None:
    order = order_with_transfers((3000,), status=trait)
    order.transfers.update(in_doubt=True)
    record(order)
    assert states(order) == [(trait, [("pending", 3000)])]


@pytest.mark.django_db
def test_a_transfer_that_needs_a_person_remembers_the_debt() -> None:
    order = OrderFactory(paid=True, amount=5000)
    transfer = SellerTransferFactory(order=order, amount=5000, permanently_failed_sending=True)
    record(order)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.PERMANENTLY_FAILED
    assert transfer.reversals.get().amount == 5000


@pytest.mark.django_db
def test_a_canceled_transfer_owes_nothing() -> None:
    order = OrderFactory(paid=True, amount=5000)
    SellerTransferFactory(order=order, amount=5000, canceled=True)
    record(order)
    assert states(order) == [("canceled", [])]


@pytest.mark.django_db
def test_a_refund_of_an_unknown_payment_is_told_apart() -> None:
    order = OrderFactory.build(stripe_payment_intent_id="pi_unknown")
    with pytest.raises(UnknownOrder, match="pi_unknown"):
        record(order)
    with pytest.raises(UnknownOrder):
        record(order, stripe_payment_intent_id="")


@pytest.mark.django_db
def test_a_refund_of_an_order_whose_payment_is_not_known_yet_waits() -> None:
    order = OrderFactory(stripe_payment_intent_id="pi_early")
    with pytest.raises(UnknownOrder, match="not heard yet"):
        record(order)


@pytest.mark.django_db
def test_a_status_that_stripe_does_not_document_is_refused() -> None:
    with pytest.raises(MalformedEvent, match="unknown status 'done'"):
        record(order_with_transfers((3000,)), status="done")


@pytest.mark.django_db
@pytest.mark.parametrize("changes", [{"amount": 3001}, {"currency": "usd"}])
def test_a_refund_made_at_stripe_must_fit_the_order(changes: dict[str, Any]) -> None:
    order = order_with_transfers((3000,))
    with pytest.raises(ConflictingFacts):
        record(order, **changes)


@pytest.mark.django_db
def test_other_facts_of_a_known_refund_are_refused() -> None:
    order = order_with_transfers((3000,))
    record(order, amount=1000)
    with pytest.raises(ConflictingFacts, match="is 999 eur"):
        record(order, amount=999)


@pytest.mark.django_db
@pytest.mark.parametrize("operation_id", ["", "nonsense", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_a_refund_without_our_operation_id_is_one_made_at_stripe(operation_id: str) -> None:
    order = order_with_transfers((3000,))
    refund = record(order, operation_id=operation_id)
    assert (refund.requested_by, refund.reason) == (None, "made at Stripe")


@pytest.mark.django_db
def test_our_own_refund_is_recognised_by_its_operation_id() -> None:
    order = order_with_transfers((3000,))
    ours = RefundFactory(order=order)
    refund = record(order, operation_id=str(ours.operation_id))
    assert (refund.pk, refund.stripe_refund_id, refund.status) == (ours.pk, "re_1", RefundStatus.SUCCEEDED)
    assert refund.next_retry_at is None


@pytest.mark.django_db
@pytest.mark.parametrize("by_items", [False, True])
def test_one_that_was_made_under_an_earlier_key_than_stripe_refused_makes_its_sellers_owe(by_items: bool) -> None:
    """After a 500 nothing was found, a new key was refused, and then Stripe told of what the first had made: the buyer
    had the money, the row had failed, and no seller was asked for anything.
    """
    order = order_with_transfers((3000, 2000), commission_basis_points=0)
    ours = RefundFactory(order=order, amount=3000, status="failed", next_retry_at=None, key_generation=2)
    if by_items:
        Refund.objects.filter(pk=ours.pk).update(by_items=True)
        RefundItem.objects.create(refund=ours, item=order.items.order_by("id")[0], quantity=1, amount=3000)
    for _ in range(2):
        made = record(order, amount=3000, operation_id=str(ours.operation_id))
    assert order.refunds.count() == 2
    assert (made.pk != ours.pk, made.status, made.by_items) == (True, RefundStatus.SUCCEEDED, by_items)
    owed = TransferReversal.objects.order_by("id").values_list("amount", flat=True)
    assert list(owed) == ([3000] if by_items else [1800, 1200])
    assert sum(made.seller_parts.values()) == 3000
    ours.refresh_from_db()
    assert (ours.status, ours.stripe_refund_id, ours.succeeded_at) == (RefundStatus.FAILED, "", None)
    order.refresh_from_db()
    assert (order.status, order.amount_refunded) == (OrderStatus.PARTIALLY_REFUNDED, 3000)


@pytest.mark.django_db
def test_another_amount_under_our_operation_is_not_of_the_goods_of_the_refused_one() -> None:
    order = order_with_transfers((3000, 2000), commission_basis_points=0)
    ours = RefundFactory(order=order, amount=3000, status="failed", next_retry_at=None, by_items=True)
    RefundItem.objects.create(refund=ours, item=order.items.order_by("id")[0], quantity=1, amount=3000)
    made = record(order, amount=2000, operation_id=str(ours.operation_id))
    assert (made.by_items, sum(made.seller_parts.values())) == (False, 2000)


# --- Asking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ask() -> Callable[..., refunds.Requested]:
    user = UserFactory(staff=True)

    def request(order: Order, **changes: Any) -> refunds.Requested:
        asked: dict[str, Any] = {
            "order_id": order.pk,
            "amount": order.amount,
            "currency": order.currency,
            "reason": "broken",
            "requested_by": user,
            "request_key": "key-1",
        }
        return refunds.request(**{**asked, **changes})

    return request


@pytest.mark.django_db
def test_a_request_is_written_down_before_stripe_is_asked(ask: Callable[..., refunds.Requested]) -> None:
    order = order_with_transfers((3000,))
    requested = ask(order)
    refund = requested.refund
    assert requested.is_new
    assert (refund.status, refund.amount, refund.stripe_refund_id) == (RefundStatus.REQUESTED, 3000, "")
    assert refund.first_attempted_at is not None
    assert states(order) == [("completed", [])]


@pytest.mark.django_db
def test_the_same_request_again_gives_the_first_refund(ask: Callable[..., refunds.Requested]) -> None:
    order = order_with_transfers((3000,))
    first = ask(order)
    again = ask(order)
    assert (again.refund, again.is_new) == (first.refund, False)


@pytest.mark.django_db
@pytest.mark.parametrize("changes", [{"amount": 1}, {"reason": "other"}, {"currency": "usd"}])
def test_the_same_key_with_other_facts_is_refused(
    ask: Callable[..., refunds.Requested], changes: dict[str, Any]
) -> None:
    order = order_with_transfers((3000,))
    ask(order)
    with pytest.raises(ConflictingFacts, match="was used before"):
        ask(order, **changes)


def test_the_same_key_for_two_orders_at_once_is_refused_for_the_later_one(
    transactional_db: None, unblocked_database: None, ask: Callable[..., refunds.Requested]
) -> None:
    one, other = order_with_transfers((3000,)), order_with_transfers((3000,))
    first = ask(one)
    user = first.refund.requested_by
    refused: list[ConflictingFacts] = []

    def ask_for_the_other() -> None:
        try:
            ask(other)
        except ConflictingFacts as error:
            refused.append(error)
        finally:
            connections.close_all()

    later = threading.Thread(target=ask_for_the_other)
    Refund.objects.filter(pk=first.refund.pk).update(request_key="")
    with transaction.atomic():
        # Written, and to be seen by nobody yet.
        Refund.objects.filter(pk=first.refund.pk).update(request_key="key-1")
        later.start()
        wait_until_blocked()
    later.join(10)
    (error,) = refused
    assert "was used before" in error.message
    assert list(Refund.objects.filter(requested_by=user)) == [first.refund]


@pytest.mark.django_db
def test_any_other_broken_rule_of_the_database_is_no_used_key(ask: Callable[..., refunds.Requested]) -> None:
    order = order_with_transfers((3000,))
    with pytest.raises(IntegrityError):
        ask(order, amount=-1)


@pytest.mark.django_db
def test_a_request_in_another_currency_is_refused(ask: Callable[..., refunds.Requested]) -> None:
    with pytest.raises(ConflictingFacts, match="is in eur, not usd"):
        ask(order_with_transfers((3000,)), currency="usd")


@pytest.mark.django_db
def test_an_order_that_is_not_paid_has_nothing_to_refund(ask: Callable[..., refunds.Requested]) -> None:
    with pytest.raises(NotAllowedNow, match="is not paid"):
        ask(OrderFactory())


@pytest.mark.django_db
def test_an_order_without_its_payment_intent_cannot_be_refunded(ask: Callable[..., refunds.Requested]) -> None:
    with pytest.raises(NotAllowedNow, match="has no payment intent"):
        ask(OrderFactory(paid=True, stripe_payment_intent_id=""))


@pytest.mark.django_db
def test_a_refund_known_by_its_id_alone_is_found() -> None:
    order = order_with_transfers((3000,))
    record(order, status="pending", seen_at=NOON - timedelta(seconds=1))
    assert record(order, stripe_payment_intent_id="", stripe_charge_id="").status == RefundStatus.SUCCEEDED


@pytest.mark.django_db
def test_more_than_is_left_is_refused_counting_what_is_under_way(ask: Callable[..., refunds.Requested]) -> None:
    order = order_with_transfers((3000,))
    ask(order, amount=2000)
    with pytest.raises(TooMuch, match="more than the 1000 eur left"):
        ask(order, amount=1001, request_key="key-2")
    RefundFactory(order=order, failed=True, amount=1000)
    assert ask(order, amount=1000, request_key="key-3").is_new


@pytest.fixture
def refundable_order(db: None, simulator: Any) -> Order:
    charge = simulator.create_charge(3000)
    order = order_with_transfers((3000,))
    Order.objects.filter(pk=order.pk).update(
        stripe_payment_intent_id=charge["payment_intent"], stripe_charge_id=charge["id"]
    )
    order.refresh_from_db()
    return order


def due(refund: Refund) -> None:
    Refund.objects.filter(pk=refund.pk).update(next_retry_at=Now())


def run(gateway: Any) -> int:
    return drain(reversal.RefundQueue(gateway))


@pytest.mark.django_db
def test_a_refund_that_stripe_makes_at_once_makes_the_sellers_owe(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = refund_attempts.send(ask(refundable_order).refund, gateway)
    assert refund.status == RefundStatus.SUCCEEDED
    made = simulator.get(refund.stripe_refund_id)
    assert (made["amount"], made["metadata"]["operation_id"]) == (3000, str(refund.operation_id))
    assert states(refundable_order) == [("reversal_pending", [("pending", 3000)])]


@pytest.mark.django_db
@pytest.mark.parametrize(("stood_still", "sent"), [(299, 1), (300, 0)])
def test_a_web_server_that_stood_still_for_a_lease_sends_no_refund_any_more(
    refundable_order: Order,
    gateway: Any,
    simulator: Any,
    ask: Callable[..., refunds.Requested],
    monkeypatch: pytest.MonkeyPatch,
    stood_still: int,
    sent: int,
) -> None:
    """It could wake a day later, when Stripe has forgotten its key, and a worker has used the next one."""
    requested = ask(refundable_order).refund
    times = itertools.chain([0.0], itertools.repeat(float(stood_still)))
    monkeypatch.setattr(deadline, "clock", lambda: next(times))
    refund = refund_attempts.send(requested, gateway)
    assert len(simulator.requests.to(CREATE_REFUND)) == sent
    monkeypatch.undo()
    if not sent:
        assert (refund.status, refund.last_error_code) == (RefundStatus.REQUESTED, "postponed")
        assert run(gateway) == 1
        refund.refresh_from_db()
    assert (refund.status, refund.retry_count) == (RefundStatus.SUCCEEDED, 0)


@pytest.mark.django_db
def test_a_refund_that_stripe_does_not_answer_is_asked_for_again_by_a_worker_under_the_same_key(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    simulator.faults.add("drop_after", endpoint=CREATE_REFUND, times=1)
    refund = refund_attempts.send(ask(refundable_order).refund, gateway)
    assert (refund.status, refund.retry_count, refund.last_error_code) == (RefundStatus.REQUESTED, 1, "unknown")
    due(refund)
    assert run(gateway) == 1
    refund.refresh_from_db()
    first, second = simulator.requests.to(CREATE_REFUND)
    assert (refund.status, first.key, second.replayed) == (RefundStatus.SUCCEEDED, second.key, True)


@pytest.mark.django_db
def test_a_caller_that_dies_before_asking_is_replaced_by_a_worker(
    refundable_order: Order, gateway: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    assert run(gateway) == 0, "the caller is still at it"
    due(refund)
    assert run(gateway) == 1
    refund.refresh_from_db()
    assert refund.status == RefundStatus.SUCCEEDED


@pytest.mark.django_db
def test_a_500_is_looked_into_and_not_refunded_twice(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    simulator.faults.add("error_500_after", endpoint=CREATE_REFUND, times=1)
    refund = refund_attempts.send(ask(refundable_order, amount=1000).refund, gateway)
    due(refund)
    run(gateway)
    refund.refresh_from_db()
    assert refund.status == RefundStatus.SUCCEEDED
    assert len(simulator.requests.to(CREATE_REFUND)) == 1


@pytest.mark.django_db
def test_a_500_without_effect_is_asked_for_under_a_new_key(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    simulator.faults.add("error_500", endpoint=CREATE_REFUND, times=1)
    refund = refund_attempts.send(ask(refundable_order).refund, gateway)
    due(refund)
    run(gateway)
    refund.refresh_from_db()
    assert (refund.status, refund.key_generation) == (RefundStatus.SUCCEEDED, 2)


@pytest.mark.django_db
def test_a_new_key_waits_until_whatever_was_sent_under_the_old_one_has_arrived(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    Refund.objects.filter(pk=refund.pk).update(first_attempted_at=timezone.now() - timedelta(hours=20, minutes=30))
    due(refund)
    run(gateway)
    refund.refresh_from_db()
    assert (refund.status, refund.last_error_code, refund.retry_count) == (RefundStatus.REQUESTED, "postponed", 0)
    assert simulator.requests.to(CREATE_REFUND) == []
    Refund.objects.filter(pk=refund.pk).update(first_attempted_at=timezone.now() - timedelta(hours=22))
    due(refund)
    run(gateway)
    refund.refresh_from_db()
    assert (refund.status, refund.key_generation) == (RefundStatus.SUCCEEDED, 2)


@pytest.mark.django_db
def test_looking_that_fails_asks_for_nothing(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    Refund.objects.filter(pk=refund.pk).update(first_attempted_at=timezone.now() - timedelta(hours=30))
    due(refund)
    simulator.faults.add("unavailable", endpoint="GET /v1/refunds", times=1)
    run(gateway)
    refund.refresh_from_db()
    assert (refund.status, refund.retry_count) == (RefundStatus.REQUESTED, 1)
    assert simulator.requests.to(CREATE_REFUND) == []


@pytest.mark.django_db
def test_a_refund_that_stripe_refuses_has_failed_and_says_why(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    simulator.create_refund(refundable_order.stripe_charge_id)
    refund = refund_attempts.send(ask(refundable_order).refund, gateway)
    assert (refund.status, refund.last_error_code) == (RefundStatus.FAILED, "charge_already_refunded")
    assert refund.next_retry_at is None


@pytest.mark.django_db
@pytest.mark.parametrize(("action", "code"), [("lock_timeout", "busy"), ("unauthorized", "denied")])
def test_a_refund_told_to_wait_spends_nothing(
    refundable_order: Order,
    gateway: Any,
    simulator: Any,
    ask: Callable[..., refunds.Requested],
    action: str,
    code: str,
) -> None:
    simulator.faults.add(action, endpoint=CREATE_REFUND, times=1)
    refund = refund_attempts.send(ask(refundable_order).refund, gateway)
    assert (refund.status, refund.retry_count, refund.last_error_code) == (RefundStatus.REQUESTED, 0, code)
    assert refund.next_retry_at is not None
    assert (refund.next_retry_at - timezone.now()).total_seconds() <= 5


@pytest.mark.django_db
def test_a_refused_key_stops_the_worker(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    due(ask(refundable_order).refund)
    simulator.faults.add("forbidden", endpoint=CREATE_REFUND)
    with pytest.raises(StripeDenied):
        run(gateway)


@pytest.mark.django_db
def test_a_refund_is_asked_for_without_end_at_the_pace_of_the_maximum(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    Refund.objects.filter(pk=refund.pk).update(retry_count=500)
    due(refund)
    simulator.faults.add("unavailable", endpoint=CREATE_REFUND)
    run(gateway)
    refund.refresh_from_db()
    assert refund.status == RefundStatus.REQUESTED
    assert refund.next_retry_at is not None
    assert 3000 < (refund.next_retry_at - timezone.now()).total_seconds() <= 3600


@pytest.mark.django_db
def test_the_webhook_that_overtakes_the_answer_wins_and_nothing_is_done_twice(
    refundable_order: Order, gateway: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    answer = refund_attempts.ask(refund, gateway)
    record(
        refundable_order,
        stripe_refund_id=answer.refund.stripe_refund_id,
        operation_id=str(refund.operation_id),
        seen_at=answer.refund.seen_at,
    )
    refund_attempts.settle(refund, answer, actor="late")
    with pytest.raises(StaleTransition):
        refund_attempts.settle(refund, Unknown(message="timeout"), actor="late")
    assert states(refundable_order) == [("reversal_pending", [("pending", 3000)])]


@pytest.mark.django_db
def test_an_answer_that_contradicts_the_request_is_kept_with_the_refund(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order, amount=2000).refund
    simulator.create_refund(
        refundable_order.stripe_charge_id, 1000, metadata={"operation_id": str(refund.operation_id)}
    )
    Refund.objects.filter(pk=refund.pk).update(look_first=True)
    due(refund)
    with capture_logs() as logs:
        run(gateway)
    refund.refresh_from_db()
    assert (refund.status, refund.last_error_code) == (RefundStatus.REQUESTED, "conflicting_facts")
    assert "is 1000 eur" in refund.last_error_message
    assert [entry["log_level"] for entry in logs if entry["event"] == "refund_needs_a_person"] == ["error"]
    assert simulator.requests.to(CREATE_REFUND) == []


@pytest.mark.django_db
def test_a_refund_of_a_payment_that_this_key_does_not_see_is_asked_for_again(
    refundable_order: Order, gateway: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    refund.order.stripe_payment_intent_id = "pi_of_another_account"
    refund = refund_attempts.send(refund, gateway)
    assert (refund.status, refund.last_error_code) == (RefundStatus.REQUESTED, "resource_missing")
    due(refund)
    run(gateway)
    refund.refresh_from_db()
    assert refund.status == RefundStatus.SUCCEEDED


@pytest.mark.django_db
def test_an_answer_too_late_for_its_caller_is_left_to_the_row(
    refundable_order: Order, gateway: Any, simulator: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    due(refund)
    # A worker has taken over, and the caller hears nothing from Stripe.
    refund_attempts.claim(batch_size=1, lease=timedelta(minutes=5))
    simulator.faults.add("drop_before", endpoint=CREATE_REFUND, times=1)
    assert refund_attempts.send(refund, gateway).retry_count == 0


@pytest.mark.django_db
def test_an_error_of_our_own_is_kept_with_the_refund(
    refundable_order: Order, gateway: Any, ask: Callable[..., refunds.Requested]
) -> None:
    refund = ask(refundable_order).refund
    due(refund)
    queue = reversal.RefundQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.settle_unexpected(claimed, ZeroDivisionError("a bug"))
    refund.refresh_from_db()
    assert (refund.retry_count, refund.look_first, refund.lease_token) == (1, False, None)
    due(refund)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    queue.release(claimed)
    assert run(gateway) == 1
