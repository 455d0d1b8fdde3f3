"""What must never be false is refused by the database: each constraint is violated once, by name."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, transaction
from django.db.models import PROTECT, CheckConstraint, ForeignKey, ProtectedError
from django.utils import timezone

from marketplace.models import (
    BalanceWatch,
    CircuitBreaker,
    Dispute,
    FigureTotal,
    HourlyFigure,
    IdempotentRequest,
    Notice,
    NoticeMessage,
    Order,
    Product,
    Reconciliation,
    ReconciliationFinding,
    ReconciliationSubject,
    Refund,
    RefundItem,
    RequestAllowance,
    Seller,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
    WorkerHeartbeat,
)
from marketplace.money import LARGEST_AMOUNT
from tests.factories import (
    ApiTokenFactory,
    BulkRetryFactory,
    BulkRetryItemFactory,
    DebtEntryFactory,
    DisputeFactory,
    OrderFactory,
    OrderItemFactory,
    ProductFactory,
    RefundFactory,
    SellerFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    UserFactory,
    WebhookEventFactory,
)

pytestmark = pytest.mark.django_db

MODELS = list(apps.get_app_config("marketplace").get_models())
Cause = TransferReversal.Cause
Violation = Callable[[], Any]


def changed(row: Any, **fields: Any) -> Violation:
    return lambda: type(row)._default_manager.filter(pk=row.pk).update(**fields)


def half_a_lease() -> dict[str, Any]:
    return {"lease_token": uuid4(), "lease_expires_at": None}


def payment_twice() -> Violation:
    return changed(OrderFactory(), stripe_payment_intent_id=OrderFactory(paid=True).stripe_payment_intent_id)


def charge_twice() -> Violation:
    return changed(OrderFactory(), stripe_charge_id=OrderFactory(paid=True).stripe_charge_id)


def refund_id_twice() -> Violation:
    taken = RefundFactory(pending=True).stripe_refund_id
    return changed(RefundFactory(), stripe_refund_id=taken)


def request_key_twice() -> Violation:
    taken = RefundFactory()
    return lambda: RefundFactory(requested_by=taken.requested_by, request_key=taken.request_key)


def idempotency_key_twice() -> Violation:
    user = UserFactory()
    IdempotentRequest.objects.create(user=user, key="k", fingerprint="one")
    return lambda: IdempotentRequest.objects.create(user=user, key="k", fingerprint="two")


def a_reconciliation() -> Reconciliation:
    return Reconciliation.objects.create(step="transfers", until=timezone.now())


def second_open_reconciliation() -> Violation:
    a_reconciliation()
    return a_reconciliation


def reconciled_twice() -> Violation:
    run = a_reconciliation()
    ReconciliationSubject.objects.create(run=run, stripe_id="tr_1")
    return lambda: ReconciliationSubject.objects.create(run=run, stripe_id="tr_1")


def refund_item(**wrong: Any) -> Violation:
    written = {"refund": RefundFactory(), "item": OrderItemFactory(), "quantity": 1, "amount": 100, **wrong}
    return lambda: RefundItem.objects.create(**written)


def refund_item_twice() -> Violation:
    again = refund_item(refund=RefundFactory(), item=OrderItemFactory())
    again()
    return again


def transfer_id_twice() -> Violation:
    return lambda: SellerTransferFactory(
        completed=True, stripe_transfer_id=SellerTransferFactory(completed=True).stripe_transfer_id
    )


def reversal_id_twice() -> Violation:
    taken = TransferReversalFactory(succeeded=True).stripe_reversal_id
    return lambda: TransferReversalFactory(succeeded=True, stripe_reversal_id=taken)


def figure_twice(model: Any, **fields: Any) -> Violation:
    written = {"what": "recovered", "cause": "refund", "currency": "eur", "count": 1, "amount": 5, **fields}
    model.objects.create(**written)
    return lambda: model.objects.create(**written)


def reversal_twice() -> Violation:
    first = TransferReversalFactory(amount=1000)
    return lambda: TransferReversalFactory(transfer=first.transfer, refund=first.refund, amount=1000)


def disputed_twice() -> Violation:
    first = TransferReversalFactory(disputed=True, amount=1000)
    return lambda: TransferReversalFactory(disputed=True, transfer=first.transfer, dispute=first.dispute, amount=1000)


def dispute_id_twice() -> Violation:
    taken = DisputeFactory().stripe_dispute_id
    return lambda: DisputeFactory(stripe_dispute_id=taken)


def debt_entry(**wrong: Any) -> Violation:
    return lambda: DebtEntryFactory(book=False, **wrong)


def debt_key_twice() -> Violation:
    first = DebtEntryFactory(requested_by=UserFactory(), request_key="k-1")
    return debt_entry(requested_by=first.requested_by, request_key="k-1")


def approved_by_oneself() -> Violation:
    bulk_retry = BulkRetryFactory(awaiting_approval=True)
    return changed(bulk_retry, approved_by=bulk_retry.requested_by)


def item_twice(*same: str) -> Violation:
    first = BulkRetryItemFactory()
    taken = {name: getattr(first, name) for name in same}
    return lambda: BulkRetryItemFactory(bulk_retry=first.bulk_retry, **taken)


# Constraint -> a violation of it. Each is made of a row that is valid but for one thing.
VIOLATIONS: dict[str, Callable[[], Violation]] = {
    "bulk_retry_status_listed": lambda: lambda: BulkRetryFactory(status="lost", started=True),
    "bulk_retry_approved_by_another": approved_by_oneself,
    "bulk_retry_begins_approved": lambda: lambda: BulkRetryFactory(canary=True, needs_approval=True),
    "bulk_retry_waiting_is_started": lambda: lambda: BulkRetryFactory(finished=True, started_at=None),
    "bulk_retry_due_while_under_way": lambda: lambda: BulkRetryFactory(running=True, next_retry_at=None),
    "bulk_retry_stopped_has_reason": lambda: lambda: BulkRetryFactory(stopped=True, stop_reason=""),
    "bulk_retry_only_a_stopped_one_stopped_by_itself": lambda: (
        lambda: BulkRetryFactory(canary=True, stopped_by_itself=True)
    ),
    "bulk_retry_limits_make_sense": lambda: lambda: BulkRetryFactory(canary_size=0),
    "bulk_retry_lease_whole": lambda: lambda: BulkRetryFactory(canary=True, **half_a_lease()),
    "bulk_retry_item_status_listed": lambda: (
        lambda: BulkRetryItemFactory(status="lost", retried_at=timezone.now(), settled_at=timezone.now())
    ),
    "bulk_retry_item_amount": lambda: lambda: BulkRetryItemFactory(amount=-1),
    "bulk_retry_item_retried_has_time": lambda: lambda: BulkRetryItemFactory(retried=True, retried_at=None),
    "bulk_retry_item_settled_has_time": lambda: lambda: BulkRetryItemFactory(succeeded=True, settled_at=None),
    "bulk_retry_item_says_why": lambda: lambda: BulkRetryItemFactory(refused=True, outcome=""),
    "bulk_retry_item_position_once": lambda: item_twice("position"),
    "bulk_retry_item_transfer_once": lambda: item_twice("transfer"),
    "bulk_retry_item_currency": lambda: lambda: BulkRetryItemFactory(currency="EUR"),
    "seller_has_account": lambda: lambda: SellerFactory(stripe_account_id=""),
    "seller_capability_listed": lambda: lambda: SellerFactory(transfers_capability="restricted"),
    "product_amount_positive": lambda: lambda: ProductFactory(unit_amount=0),
    "product_currency": lambda: lambda: ProductFactory(currency="EUR"),
    "item_amounts_positive": lambda: lambda: OrderItemFactory(quantity=0),
    "order_amount_positive": lambda: lambda: OrderFactory(amount=0),
    "order_refunded_within_amount": lambda: lambda: OrderFactory(amount_refunded=-1),
    "order_status_listed": lambda: lambda: OrderFactory(status="lost"),
    "order_refunded_means_all": lambda: lambda: OrderFactory(paid=True, amount=5000, amount_refunded=5000),
    "order_paid_has_time": lambda: lambda: OrderFactory(paid=True, paid_at=None),
    "order_payment_intent_once": payment_twice,
    "order_charge_once": charge_twice,
    "order_refund_commission_listed": lambda: lambda: OrderFactory(refund_commission="nobody"),
    "order_commission_below_all": lambda: lambda: OrderFactory(commission_basis_points=10_000),
    "order_currency": lambda: lambda: OrderFactory(currency="eu"),
    "refund_amount_positive": lambda: lambda: RefundFactory(amount=0),
    "refund_parts_are_the_amount": lambda: (
        lambda: RefundFactory(amount=1000, seller_parts={"1": 700, "2": 199}, platform_part=100)
    ),
    "refund_status_listed": lambda: lambda: RefundFactory(status="lost", stripe_refund_id="re_1"),
    "refund_at_stripe_has_id": lambda: lambda: RefundFactory(pending=True, stripe_refund_id=""),
    "refund_succeeded_has_time": lambda: lambda: RefundFactory(succeeded=True, succeeded_at=None),
    "refund_waiting_has_due_time": lambda: lambda: RefundFactory(next_retry_at=None),
    "refund_stripe_id_once": refund_id_twice,
    "refund_once_per_request_key": request_key_twice,
    "refund_lease_whole": lambda: lambda: RefundFactory(**half_a_lease()),
    "refund_item_positive": lambda: refund_item(quantity=0),
    "refund_item_once": refund_item_twice,
    "refund_currency": lambda: lambda: RefundFactory(currency="euro"[:3].upper()),
    "dispute_has_status": lambda: lambda: DisputeFactory(status=""),
    "dispute_amounts_not_negative": lambda: lambda: DisputeFactory(fee=-1),
    "dispute_entered_positive": lambda: lambda: DisputeFactory(entered_amount=0),
    "dispute_lost_within_part": lambda: lambda: DisputeFactory(amount_lost=5001),
    "dispute_parts_are_the_amount_lost": lambda: (
        lambda: DisputeFactory(amount_lost=1000, seller_parts={"1": 700, "2": 199}, platform_part=100)
    ),
    "dispute_stripe_id_once": dispute_id_twice,
    "dispute_currency": lambda: lambda: DisputeFactory(currency="EUR"),
    "transfer_amount_positive": lambda: lambda: SellerTransferFactory(amount=0, order=OrderFactory(paid=True)),
    "transfer_kept_back_not_negative": lambda: lambda: SellerTransferFactory(amount_kept_back=-1),
    "transfer_reversed_within_amount": lambda: (
        lambda: SellerTransferFactory(partially_reversed=True, amount_reversed=-1, reversal=False)
    ),
    "transfer_status_listed": lambda: lambda: SellerTransferFactory(status="lost"),
    "transfer_reversed_means_all": lambda: (
        lambda: SellerTransferFactory(reversed=True, amount_reversed=4999, reversal=False)
    ),
    "transfer_part_means_part": lambda: (
        lambda: SellerTransferFactory(partially_reversed=True, amount_reversed=0, reversal=False)
    ),
    "transfer_whole_means_none": lambda: (
        lambda: SellerTransferFactory(completed=True, amount_reversed=1, stripe_reversal_id="trr_1")
    ),
    "transfer_reversed_with_proof": lambda: (
        lambda: SellerTransferFactory(reversed=True, stripe_reversal_id="", reversal=False)
    ),
    "transfer_not_sent_has_no_id": lambda: lambda: SellerTransferFactory(failed=True, stripe_transfer_id="tr_1"),
    "transfer_waiting_has_due_time": lambda: (
        lambda: SellerTransferFactory(reversal_pending=True, next_retry_at=None, reversal=False)
    ),
    "transfer_undoes_of_a_transfer": lambda: lambda: SellerTransferFactory(undoes=TransferReversalFactory()),
    "transfer_declined_is_canceled": lambda: lambda: SellerTransferFactory(canceled=True, declined=True),
    "transfer_stripe_id_once": transfer_id_twice,
    "transfer_lease_whole": lambda: lambda: SellerTransferFactory(**half_a_lease()),
    "transfer_currency": lambda: lambda: SellerTransferFactory(currency="e1r", order=OrderFactory(paid=True)),
    "reversal_amount_positive": lambda: lambda: TransferReversalFactory(amount=0),
    "reversal_unwanted_within_amount": lambda: lambda: TransferReversalFactory(amount=1000, unwanted_amount=1001),
    "reversal_unwanted_while_open": lambda: lambda: TransferReversalFactory(canceled=True, unwanted_amount=1),
    "reversal_status_listed": lambda: lambda: TransferReversalFactory(status="lost"),
    "reversal_done_with_proof": lambda: lambda: TransferReversalFactory(succeeded=True, stripe_reversal_id=""),
    "reversal_cause_has_source": lambda: lambda: TransferReversalFactory(cause=Cause.OPERATOR),
    "reversal_stripe_id_once": reversal_id_twice,
    "reversal_once_per_refund": reversal_twice,
    "reversal_once_per_dispute": disputed_twice,
    "reversal_currency": lambda: lambda: TransferReversalFactory(currency="Eur"),
    "transfer_netted_not_negative": lambda: lambda: SellerTransferFactory(amount_netted=-1),
    "reversal_settled_within_amount": lambda: lambda: TransferReversalFactory(failed=True, amount_recovered=-1),
    "reversal_settled_is_not_owed": lambda: lambda: TransferReversalFactory(amount_recovered=1),
    "reversal_refused_is_over": lambda: lambda: TransferReversalFactory(refused=True),
    "debt_entry_amount": lambda: debt_entry(amount=-1),
    "debt_entry_netted_from": lambda: debt_entry(kind="netted"),
    "debt_entry_has_reason": lambda: debt_entry(reason=""),
    "debt_entry_once_per_request_key": debt_key_twice,
    "debt_entry_currency": lambda: debt_entry(currency="EUR"),
    "event_has_id": lambda: lambda: WebhookEventFactory(stripe_event_id="re_1"),
    "event_status_listed": lambda: lambda: WebhookEventFactory(status="lost"),
    "event_lease_whole": lambda: lambda: WebhookEventFactory(**half_a_lease()),
    "notice_is_about_one_row": lambda: lambda: Notice.objects.create(kind="transfer"),
    "message_to_a_seller_names_it": lambda: (
        lambda: NoticeMessage.objects.create(channel="seller", notices=[1], next_retry_at=timezone.now())
    ),
    "message_tells_something": lambda: (
        lambda: NoticeMessage.objects.create(channel="email", notices=[], next_retry_at=timezone.now())
    ),
    "message_is_due_or_ended": lambda: lambda: NoticeMessage.objects.create(channel="email", notices=[1]),
    "message_lease_whole": lambda: (
        lambda: NoticeMessage.objects.create(
            channel="email", notices=[1], next_retry_at=timezone.now(), **half_a_lease()
        )
    ),
    "reversal_succeeded_has_time": lambda: changed(TransferReversalFactory(), succeeded_at=timezone.now()),
    "figure_total_once": lambda: figure_twice(FigureTotal),
    "hourly_figure_once": lambda: figure_twice(HourlyFigure, hour=timezone.now()),
    "balance_watch_lease_whole": lambda: lambda: BalanceWatch.objects.create(seller=SellerFactory(), **half_a_lease()),
    "idempotent_request_once_per_key": idempotency_key_twice,
    "idempotent_request_keeps_successes": lambda: (
        lambda: IdempotentRequest.objects.create(user=UserFactory(), key="k", fingerprint="f", status_code=404)
    ),
    "reconciliation_one_open": second_open_reconciliation,
    "reconciled_once_per_run": reconciled_twice,
    "drift_kind_listed": lambda: (
        lambda: ReconciliationFinding.objects.create(run=a_reconciliation(), kind="odd", subject="transfer 1")
    ),
    "api_token_has_name": lambda: lambda: ApiTokenFactory(name=""),
    "api_token_scopes_known": lambda: lambda: ApiTokenFactory(scopes=["read", "everything"]),
    "api_token_expires_later": lambda: lambda: ApiTokenFactory(expires_at=timezone.now() - timedelta(days=1)),
    "breaker_open_has_probe": lambda: (
        lambda: CircuitBreaker.objects.create(work="reversal", channel="c", opened_at=timezone.now())
    ),
}


def test_every_constraint_has_its_violation_here() -> None:
    named = {constraint.name for model in MODELS for constraint in model._meta.constraints}
    assert set(VIOLATIONS) == named


def leave_alone(name: str) -> None:
    """Drop, until the test's end, the other check constraints of the table: several may refuse the same row."""
    (model,) = {model for model in MODELS for constraint in model._meta.constraints if constraint.name == name}
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for constraint in model._meta.constraints:
            if isinstance(constraint, CheckConstraint) and constraint.name != name:
                cursor.execute(f'ALTER TABLE {model._meta.db_table} DROP CONSTRAINT "{constraint.name}"')


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_database_refuses(name: str) -> None:
    violate = VIOLATIONS[name]()
    leave_alone(name)
    with pytest.raises(IntegrityError, match=rf'constraint "{re.escape(name)}"'), transaction.atomic():
        violate()


FURTHER: dict[str, Violation] = {
    "order_refunded_within_amount": lambda: OrderFactory(paid=True, amount=5000, amount_refunded=5001),
    "order_refunded_means_all": lambda: OrderFactory(
        paid=True, amount=5000, status="partially_refunded", amount_refunded=0
    ),
    "item_amounts_positive": lambda: OrderItemFactory(unit_amount=0),
    "transfer_reversed_within_amount": lambda: SellerTransferFactory(
        partially_reversed=True, amount_reversed=5001, reversal=False
    ),
    "transfer_reversed_means_all": lambda: SellerTransferFactory(
        partially_reversed=True, amount_reversed=5000, reversal=False
    ),
    "transfer_reversed_with_proof": lambda: SellerTransferFactory(reversed=True, stripe_transfer_id="", reversal=False),
    "transfer_waiting_has_due_time": lambda: SellerTransferFactory(next_retry_at=None),
    "transfer_not_sent_has_no_id": lambda: SellerTransferFactory(canceled=True, stripe_transfer_id="tr_1"),
    "reversal_cause_has_source": lambda: TransferReversalFactory(refund=None),
    "dispute_lost_within_part": lambda: DisputeFactory(needs_a_person=True, amount_lost=1),
    "dispute_parts_are_the_amount_lost": lambda: DisputeFactory(
        amount_lost=1000, seller_parts={"1": 1100}, platform_part=-100
    ),
    "dispute_amounts_not_negative": lambda: DisputeFactory(amount_reinstated=-1),
    "transfer_amount_positive": lambda: SellerTransferFactory(amount=0, canceled=True, order=OrderFactory(paid=True)),
    "reversal_settled_within_amount": lambda: TransferReversalFactory(
        canceled=True, amount=5000, amount_recovered=4000, amount_written_off=1001
    ),
    "reversal_settled_is_not_owed": lambda: TransferReversalFactory(failed=True, amount=500, amount_recovered=500),
    "debt_entry_amount": lambda: DebtEntryFactory(book=False, amount=0),
    "debt_entry_netted_from": lambda: DebtEntryFactory(book=False, transfer=SellerTransferFactory()),
    "debt_entry_has_reason": lambda: DebtEntryFactory(book=False, actor=""),
    "transfer_lease_whole": lambda: SellerTransferFactory(lease_expires_at=timezone.now()),
}


@pytest.mark.parametrize("name", FURTHER)
def test_the_database_refuses_the_other_side_too(name: str) -> None:
    leave_alone(name)
    with pytest.raises(IntegrityError, match=rf'constraint "{re.escape(name)}"'), transaction.atomic():
        FURTHER[name]()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (SellerFactory, "stripe_account_id"),
        (OrderFactory, "operation_id"),
        (RefundFactory, "operation_id"),
        (SellerTransferFactory, "operation_id"),
        (TransferReversalFactory, "operation_id"),
        (WebhookEventFactory, "stripe_event_id"),
    ],
)
def test_names_that_stripe_or_we_gave_are_given_once(make: Any, field: str) -> None:
    taken = getattr(make(), field)
    with pytest.raises(IntegrityError, match=field), transaction.atomic():
        make(**{field: taken})


def test_a_user_is_one_seller() -> None:
    seller = SellerFactory(with_user=True)
    with pytest.raises(IntegrityError, match="user_id"), transaction.atomic():
        SellerFactory(user=seller.user)


REFERENCES = [
    pytest.param(field, id=f"{model.__name__}.{field.name}")
    for model in MODELS
    for field in model._meta.get_fields()
    if isinstance(field, ForeignKey)
]


@pytest.mark.parametrize("field", REFERENCES)
def test_what_a_row_speaks_of_is_not_deleted_under_it(field: ForeignKey) -> None:
    assert field.remote_field.on_delete is PROTECT


def test_a_product_that_was_sold_and_a_seller_who_sells_cannot_be_deleted() -> None:
    item = OrderItemFactory()
    for row in (item.product, item.seller, item.order):
        with pytest.raises(ProtectedError):
            row.delete()


# --- What they must let pass ------------------------------------------------------------------------------------------


def test_many_rows_without_an_id_of_stripe_stand_side_by_side() -> None:
    for make in (OrderFactory, RefundFactory, SellerTransferFactory, TransferReversalFactory):
        make()
        make()


def test_request_keys_are_each_callers_own() -> None:
    RefundFactory(request_key="1")
    RefundFactory(request_key="1")
    user = UserFactory()
    RefundFactory(requested_by=user, request_key="")
    RefundFactory(requested_by=user, request_key="")
    assert Refund.objects.count() == 4


@pytest.mark.parametrize("given_up", ["failed", "canceled"])
def test_a_reversal_that_was_given_up_is_not_in_the_way_of_the_next(given_up: str) -> None:
    first = TransferReversalFactory(**{given_up: True}, amount=1000)
    TransferReversalFactory(transfer=first.transfer, refund=first.refund, amount=1000)
    assert TransferReversal.objects.count() == 2


def test_what_a_dispute_takes_once_more_is_in_place_of_the_first() -> None:
    first = TransferReversalFactory(disputed=True, amount=1000)
    again = {"transfer": first.transfer, "dispute": first.dispute, "amount": 1000, "in_place_of": first}
    TransferReversalFactory(disputed=True, **again)
    assert TransferReversal.objects.count() == 2


@pytest.mark.parametrize(
    "wrong", [{"cause": Cause.DISPUTE}, {"cause": Cause.REFUND}, {"cause": Cause.OPERATOR}], ids=lambda w: w["cause"]
)
def test_a_reversal_has_one_source_that_fits_its_cause(wrong: dict[str, Any]) -> None:
    sources = {"refund": RefundFactory(), "dispute": DisputeFactory()}
    with pytest.raises(IntegrityError, match="reversal_cause_has_source"), transaction.atomic():
        TransferReversalFactory(**sources, **wrong)


def test_a_reversal_seen_at_stripe_has_no_refund() -> None:
    TransferReversalFactory(cause=Cause.SEEN_AT_STRIPE, refund=None, succeeded=True)


def test_a_failed_refund_need_not_have_reached_stripe() -> None:
    RefundFactory(status="failed", next_retry_at=None, stripe_refund_id="")


def test_amounts_are_as_large_as_postgresql_can_count() -> None:
    assert OrderFactory(amount=LARGEST_AMOUNT).amount == LARGEST_AMOUNT


@pytest.mark.parametrize(
    "model", [Seller, Product, Order, Refund, Dispute, SellerTransfer, TransferReversal, WebhookEvent]
)
def test_every_row_has_a_name_for_people(model: Any) -> None:
    make = {
        Seller: SellerFactory,
        Product: ProductFactory,
        Order: OrderFactory,
        Refund: RefundFactory,
        Dispute: DisputeFactory,
        SellerTransfer: SellerTransferFactory,
        TransferReversal: TransferReversalFactory,
        WebhookEvent: WebhookEventFactory,
    }[model]
    assert "object" not in str(make())


def test_the_workers_rows_have_names_too() -> None:
    rows = [
        BalanceWatch(seller_id=7),
        CircuitBreaker(work="reversal"),
        RequestAllowance(endpoint="GET /v1/balance"),
        WorkerHeartbeat(identity="a worker on a host"),
        FigureTotal(what="recovered"),
        HourlyFigure(what="settled", hour=datetime(2026, 11, 28, 9, tzinfo=UTC)),
    ]
    assert [str(row) for row in rows] == [
        "balance of seller 7",
        "reversal",
        "GET /v1/balance",
        "a worker on a host",
        "recovered in all",
        "settled in 2026-11-28 09",
    ]


def test_an_items_amount_is_computed_by_the_database() -> None:
    item = OrderItemFactory(quantity=3, unit_amount=250)
    item.refresh_from_db()
    assert item.amount == 750
    assert str(item) == f"3 x {item.product}"


def test_rows_tell_their_money_and_keys() -> None:
    reversal = TransferReversalFactory(amount=1250, transfer__amount=5000)
    transfer, refund, order = reversal.transfer, reversal.refund, reversal.transfer.order
    assert (str(reversal.money), str(transfer.money)) == ("12.50 EUR", "50.00 EUR")
    assert (str(refund.money), str(order.total)) == ("50.00 EUR", "50.00 EUR")
    assert str(ProductFactory(unit_amount=1250, currency="jpy").price) == "1250 JPY"
    assert transfer.amount_unreversed == 5000
    assert SellerTransferFactory(amount=4000, amount_kept_back=1000).share == 5000
    for row in (reversal, transfer, refund):
        assert row.idempotency_key == f"{row.operation_id}:1"
    assert order.transfer_group == f"order_{order.operation_id.hex}"
