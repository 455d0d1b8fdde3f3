"""The history: written by triggers, so no path can forget it; nobody edits it."""

from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import ProtectedError
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.errors import IllegalTransition
from marketplace.models import BulkRetry, Dispute, Order, Refund, SellerTransfer, TransferReversal
from marketplace.models.lifecycle import Lifecycle
from marketplace.states import TransferStatus
from tests.factories import (
    BulkRetryFactory,
    DisputeFactory,
    OrderFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
)
from tests.models.rows import going_with, row_in

pytestmark = pytest.mark.django_db

TRACKED: list[type[Lifecycle]] = [SellerTransfer, TransferReversal, Refund, Order, Dispute, BulkRetry]
REFUSED = "Cannot update or delete rows"
BY = {"reason": "the buyer was refunded", "actor": "webhook:evt_1"}


def told(row: Any) -> list[tuple[str, str, Any]]:
    """(label, status, context) of the row's history, oldest first."""
    return list(row.history.order_by("pgh_id").values_list("pgh_label", "status", "pgh_context"))


def a_step(model: type[Lifecycle]) -> tuple[Any, Any]:
    """A row in its first status, and a status that may follow."""
    if model is Dispute:
        # Stripe's own words, and any step between them.
        return DisputeFactory(), "lost"
    old = next(iter(model.TRANSITIONS))
    return row_in(model, old), min(model.TRANSITIONS[old])


@pytest.mark.parametrize("model", TRACKED)
def test_a_step_is_told_with_who_why_and_which_attempt(model: type[Lifecycle]) -> None:
    row, to = a_step(model)
    known = len(told(row))
    row.transition(to, **BY, attempt=3, **going_with(row, to))
    assert told(row)[known:] == [("status", str(to), {**BY, "attempt": 3})]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("model", TRACKED)
def test_a_step_past_transition_is_told_too_by_nobody(model: type[Lifecycle]) -> None:
    row, to = a_step(model)
    known = len(told(row))
    model._default_manager.filter(pk=row.pk).update(status=to, **going_with(row, to))
    ((label, status, context),) = told(row)[known:]
    assert (label, status) == ("status", str(to))
    assert not context


def test_a_step_by_a_bare_sql_statement_is_told_by_nobody() -> None:
    row = SellerTransferFactory(completed=True)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE marketplace_sellertransfer SET status = 'reversal_pending', next_retry_at = now() WHERE id = %s",
            [row.pk],
        )
    label, status, context = told(row)[-1]
    assert (label, status) == ("status", "reversal_pending")
    assert not context


def test_a_new_row_is_told_with_who_and_why() -> None:
    with SellerTransfer.recording(actor="webhook:evt_2", reason="order paid"):
        row = SellerTransferFactory()
    assert told(row) == [("created", "pending", {"actor": "webhook:evt_2", "reason": "order paid", "attempt": None})]


def test_a_change_that_is_neither_a_step_nor_a_failure_is_not_told() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    known = len(told(row))
    row.change(**BY, next_retry_at=Now(), retry_count=1)
    assert len(told(row)) == known


def test_a_failed_attempt_that_leaves_the_status_is_told() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    known = len(told(row))
    row.change(**BY, attempt=1, retry_count=1, last_error_code="unknown", last_error_at=Now(), next_retry_at=Now())
    assert told(row)[known:] == [("attempt", "reversal_pending", {**BY, "attempt": 1})]
    newest = row.history.latest("pgh_id")
    assert (newest.last_error_code, newest.retry_count) == ("unknown", 1)


def test_of_a_dispute_what_counts_as_lost_and_what_a_person_entered_is_told_too() -> None:
    row = DisputeFactory(needs_a_person=True)
    row.change(**BY, entered_amount=700, order_amount=700, amount_lost=700, platform_part=700)
    row.change(**BY, stripe_reason="general")
    assert told(row)[1:] == [("change", "needs_response", {**BY, "attempt": None})]
    newest = row.history.latest("pgh_id")
    assert (newest.entered_amount, newest.amount_lost) == (700, 700)


def test_a_dispute_takes_any_step_and_any_word() -> None:
    row = DisputeFactory()
    for status in ("lost", "won", "lost", "a_new_word"):
        row.transition(status, **BY)
    assert [status for _label, status, _context in told(row)][1:] == ["lost", "won", "lost", "a_new_word"]
    with pytest.raises(IllegalTransition):
        row.transition("", **BY)


def test_a_step_that_brings_an_error_is_told_once() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    known = len(told(row))
    row.transition(TransferStatus.PERMANENTLY_FAILED, **BY, next_retry_at=None, last_error_at=Now())
    assert [label for label, _status, _context in told(row)[known:]] == ["status"]


def test_a_step_that_is_rolled_back_is_not_told() -> None:
    row = SellerTransferFactory(completed=True)
    known = len(told(row))
    with transaction.atomic():
        row.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now())
        transaction.set_rollback(True)
    assert len(told(row)) == known


def test_a_status_may_be_visited_twice() -> None:
    row = SellerTransferFactory(completed=True)
    for to in ("reversal_pending", "permanently_failed", "reversal_pending", "reversed"):
        row.transition(TransferStatus(to), **BY, **going_with(row, TransferStatus(to)))
    assert [status for _label, status, _context in told(row)] == [
        "completed",
        "reversal_pending",
        "permanently_failed",
        "reversal_pending",
        "reversed",
    ]


def test_the_history_says_when_each_row_was_written_also_inside_one_transaction() -> None:
    row = SellerTransferFactory(completed=True)
    row.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now())
    row.transition(TransferStatus.PERMANENTLY_FAILED, **BY, next_retry_at=None)
    first, second = row.history.order_by("-pgh_id")[:2][::-1]
    assert first.pgh_created_at < second.pgh_created_at <= timezone.now()


# --- Append only ------------------------------------------------------------------------------------------------------

FACTORIES: dict[type[Lifecycle], Any] = {
    SellerTransfer: SellerTransferFactory,
    TransferReversal: TransferReversalFactory,
    Refund: RefundFactory,
    Order: OrderFactory,
    Dispute: DisputeFactory,
    BulkRetry: BulkRetryFactory,
}


@pytest.mark.parametrize("model", TRACKED)
def test_the_history_cannot_be_edited(model: type[Lifecycle]) -> None:
    row = FACTORIES[model]()
    before = list(row.history.values())
    assert before
    with pytest.raises(DatabaseError, match=REFUSED), transaction.atomic():
        row.history.update(status="reversed")
    newest = row.history.latest("pgh_id")
    newest.status = "reversed"
    with pytest.raises(DatabaseError, match=REFUSED), transaction.atomic():
        newest.save()
    table = newest._meta.db_table
    with (
        pytest.raises(DatabaseError, match=REFUSED),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(f"UPDATE {table} SET pgh_context = NULL")  # noqa: S608
    assert list(row.history.values()) == before


@pytest.mark.parametrize("model", TRACKED)
def test_the_history_cannot_be_deleted(model: type[Lifecycle]) -> None:
    row = FACTORIES[model]()
    count = row.history.count()
    with pytest.raises(DatabaseError, match=REFUSED), transaction.atomic():
        row.history.all().delete()
    with pytest.raises(DatabaseError, match=REFUSED), transaction.atomic():
        row.history.latest("pgh_id").delete()
    table = row.history.model._meta.db_table
    with (
        pytest.raises(DatabaseError, match=REFUSED),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(f"DELETE FROM {table}")  # noqa: S608
    assert row.history.count() == count


def refuse(statement: str, message: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        with pytest.raises(DatabaseError, match=message), transaction.atomic():
            cursor.execute(statement)


# --- Nothing that has a past is deleted -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TRACKED)
def test_a_row_with_a_history_cannot_be_deleted(model: type[Lifecycle]) -> None:
    row = FACTORIES[model]()
    with pytest.raises(ProtectedError):
        row.delete()
    refuse(f"DELETE FROM {model._meta.db_table} WHERE id = {row.pk}", "Cannot delete rows")  # noqa: S608
    assert model._default_manager.filter(pk=row.pk).exists()


def test_people_products_and_orders_of_transfers_cannot_be_deleted() -> None:
    reversal = TransferReversalFactory()
    transfer = reversal.transfer
    for row in (transfer.order, transfer.order.buyer, transfer.seller, transfer, reversal.refund):
        with pytest.raises(ProtectedError):
            row.delete()
