"""Writes that wait for each other: in their order, each with its own check and its own line in the history."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import DataError, IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from psycopg.pq import TransactionStatus
from pytest_django import DjangoAssertNumQueries

from marketplace.errors import AlreadyThere, StaleTransition
from marketplace.models import Order, Refund, SellerTransfer, WebhookEvent, lifecycle, together
from marketplace.models.together import committed_together, written_together
from marketplace.states import RefundStatus, TransferStatus
from tests.factories import OrderFactory, SellerTransferFactory, WebhookEventFactory

pytestmark = pytest.mark.django_db
BY = {"reason": "because", "actor": "tester"}


def give_up(row: SellerTransfer, **by: Any) -> None:
    row.transition(TransferStatus.PERMANENTLY_FAILED, next_retry_at=None, **{**BY, **by})


def stored(row: Any) -> str:
    """Past the ORM and its connection's wrappers."""
    assert connection.connection is not None
    found = connection.connection.execute(f"SELECT status FROM {row._meta.db_table} WHERE id = {row.pk}").fetchone()  # noqa: S608
    return str(found[0])


def new_refund(order: Order) -> Refund:
    return Refund(order=order, amount=100, currency="eur", status="pending", stripe_refund_id="re_1")


def test_writes_wait_for_the_end_of_the_block_and_go_in_one_message(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    rows = [SellerTransferFactory(reversal_pending=True) for _ in range(3)]
    with django_assert_num_queries(1), written_together():
        for number, row in enumerate(rows):
            give_up(row, reason=f"because {number}", actor=f"tester {number}")
        assert {stored(row) for row in rows} == {"reversal_pending"}
        assert {row.status for row in rows} == {"permanently_failed"}
    assert {stored(row) for row in rows} == {"permanently_failed"}
    told = [row.history.latest("pgh_id").pgh_context for row in rows]
    assert told == [{"reason": f"because {n}", "actor": f"tester {n}", "attempt": None} for n in range(3)]


def test_outside_of_a_block_a_write_waits_for_nothing() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    give_up(row)
    assert stored(row) == "permanently_failed"


def test_whoever_asks_sees_what_was_written_before() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    with written_together():
        give_up(row)
        assert SellerTransfer.objects.get(pk=row.pk).status == "permanently_failed"


def test_a_question_goes_with_what_waits(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    row = SellerTransferFactory(reversal_pending=True)
    with django_assert_num_queries(1), written_together():
        give_up(row)
        statuses, numbers = together.ask(
            ("SELECT status FROM marketplace_sellertransfer WHERE id = %s", [row.pk]), ("SELECT 7", [])
        )
    assert (statuses, numbers) == ([("permanently_failed",)], [(7,)])


def test_a_block_inside_of_a_block_is_part_of_it(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    rows = [SellerTransferFactory(reversal_pending=True) for _ in range(2)]
    with django_assert_num_queries(1), written_together():
        with written_together():
            give_up(rows[0])
        give_up(rows[1])


def test_a_block_that_fails_writes_nothing_that_waits() -> None:
    row = SellerTransferFactory(reversal_pending=True)

    @written_together()
    def fails() -> None:
        give_up(row)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert stored(row) == "reversal_pending"
    # And the next write is one of its own.
    give_up(SellerTransfer.objects.get(pk=row.pk))
    assert stored(row) == "permanently_failed"


def test_a_row_that_somebody_moved_first_is_stale_before_the_block_is_over() -> None:
    first, second = SellerTransferFactory(reversal_pending=True), SellerTransferFactory(reversal_pending=True)
    give_up(SellerTransfer.objects.get(pk=second.pk))

    @transaction.atomic
    def both() -> None:
        with written_together():
            give_up(first)
            give_up(second)

    with pytest.raises(StaleTransition, match=f"transfer {second.pk} is no longer"):
        both()
    assert stored(first) == "reversal_pending"


def test_a_new_row_gets_its_number_with_the_next_question_and_its_own_line_of_history() -> None:
    refund = new_refund(OrderFactory(paid=True))
    with Order.recording(actor="somebody", reason="something else"), written_together():
        refund.add(**BY)
        assert refund.pk is None
        together.ask(("SELECT 1", []))
        assert Refund.objects.get(pk=refund.pk).stripe_refund_id == "re_1"
    assert [line.pgh_context["actor"] for line in refund.history.all()] == ["tester"]
    assert not refund._state.adding


def test_a_new_row_that_waits_may_be_moved_at_once() -> None:
    refund = new_refund(OrderFactory(paid=True))
    with written_together():
        refund.add(**BY)
        refund.transition(RefundStatus.FAILED, **BY)
    assert stored(refund) == "failed"


def test_a_row_that_may_be_there_once_only_is_told_apart() -> None:
    known = WebhookEventFactory()
    twin = WebhookEvent(
        stripe_event_id=known.stripe_event_id, type="x", stripe_created_at=known.stripe_created_at, payload={}
    )
    with pytest.raises(AlreadyThere, match=known.stripe_event_id):
        twin.add(**BY, once_by="stripe_event_id")
    assert twin.pk is None
    assert WebhookEvent.objects.count() == 1


@pytest.mark.parametrize("has_default", [False, True])
def test_null_is_written_where_a_column_would_have_something_else_by_itself(
    monkeypatch: pytest.MonkeyPatch, has_default: bool
) -> None:
    """None of ours is such: as if the database had a default for a column that may be NULL."""
    columns = [
        (name, column, field, has_default or of_its_own)
        for name, column, field, of_its_own in lifecycle._columns(WebhookEvent)
        if name != "id"
    ]
    monkeypatch.setattr(lifecycle, "_columns", lambda _: columns)
    row = WebhookEvent.new(stripe_event_id="evt_1", type="x", stripe_created_at=timezone.now(), payload={})
    with CaptureQueriesContext(connection) as captured:
        row.add(**BY)
    assert ("next_retry_at" in captured.captured_queries[-1]["sql"]) == has_default


# --- The transaction's beginning --------------------------------------------------------------------------------------


def sent_in(act: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        act()
    return [query["sql"][:10] for query in captured.captured_queries]


@pytest.mark.django_db(transaction=True)
def test_a_transaction_begins_with_its_first_message_and_ends_as_ever() -> None:
    row = SellerTransferFactory(reversal_pending=True)

    def act() -> None:
        with transaction.atomic():
            together.ask(("SELECT 1", []))
            give_up(row)
            transaction.set_rollback(True)

    assert sent_in(act) == ["BEGIN", "BEGIN; SEL", "SET LOCAL ", "ROLLBACK"]
    assert stored(row) == "reversal_pending"
    # The next one is psycopg's again.
    with transaction.atomic():
        SellerTransfer.objects.filter(pk=row.pk).update(retry_count=7)
        assert connection.connection.pgconn.transaction_status == TransactionStatus.INTRANS
        transaction.set_rollback(True)
    row.refresh_from_db()
    assert row.retry_count == 0


@pytest.mark.django_db(transaction=True)
def test_an_error_in_the_first_message_takes_it_back() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    with pytest.raises(DataError), transaction.atomic():
        together.ask((f"UPDATE {row._meta.db_table} SET retry_count = 7 RETURNING id", []), ("SELECT 1 / 0", []))  # noqa: S608
    row.refresh_from_db()
    assert row.retry_count == 0
    assert connection.connection.pgconn.transaction_status == TransactionStatus.IDLE


@pytest.mark.django_db(transaction=True)
def test_outside_of_a_transaction_none_is_begun() -> None:
    assert sent_in(lambda: together.ask(("SELECT 1", []))) == ["SELECT 1"]
    assert connection.connection.pgconn.transaction_status == TransactionStatus.IDLE


@pytest.mark.django_db(transaction=True)
def test_a_level_that_was_asked_for_is_psycopgs_to_name() -> None:
    connection.ensure_connection()
    connection.connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    try:
        with transaction.atomic():
            (level,) = together.ask(("SHOW transaction_isolation", []))[0]
    finally:
        connection.connection.isolation_level = None
    assert level == ("serializable",)


# --- Committed together ----------------------------------------------------------------------------------------------


def messages_of(act: Callable[[], Any]) -> list[str]:
    """Without what Django notes of a transaction's begin and end, where no message is sent for it."""
    with CaptureQueriesContext(connection) as captured:
        act()
    return [query["sql"] for query in captured.captured_queries if query["sql"] not in {"BEGIN", "COMMIT"}]


def is_idle() -> bool:
    assert connection.connection is not None
    return bool(connection.connection.pgconn.transaction_status == TransactionStatus.IDLE)


@pytest.mark.django_db(transaction=True)
def test_the_last_writes_of_a_transaction_go_with_its_commit() -> None:
    rows = [SellerTransferFactory(reversal_pending=True) for _ in range(2)]

    def act() -> None:
        with committed_together():
            together.ask(("SELECT 1", []))
            for row in rows:
                give_up(row)
            assert not is_idle()

    first, last = messages_of(act)
    assert first.startswith("BEGIN; SELECT 1")
    assert last.endswith("; COMMIT")
    assert is_idle()
    assert {stored(row) for row in rows} == {"permanently_failed"}
    assert [row.history.latest("pgh_id").pgh_context["actor"] for row in rows] == ["tester", "tester"]
    # And the next transaction is as any other.
    with transaction.atomic():
        SellerTransfer.objects.update(retry_count=7)
        transaction.set_rollback(True)
    assert {row.retry_count for row in SellerTransfer.objects.all()} == {0}


@pytest.mark.django_db(transaction=True)
def test_a_row_that_somebody_moved_first_is_stale_before_the_commit() -> None:
    first, second = SellerTransferFactory(reversal_pending=True), SellerTransferFactory(reversal_pending=True)
    give_up(SellerTransfer.objects.get(pk=second.pk))

    @committed_together()
    def both() -> None:
        together.ask((f"UPDATE {first._meta.db_table} SET retry_count = 7 RETURNING id", []))  # noqa: S608
        give_up(first)
        give_up(second)

    with pytest.raises(StaleTransition, match="moved first"):
        both()
    first.refresh_from_db()
    assert (first.status, first.retry_count) == ("reversal_pending", 0)
    assert is_idle()


@pytest.mark.django_db(transaction=True)
def test_what_can_only_be_looked_at_afterwards_is_not_sent_with_the_commit() -> None:
    known = WebhookEventFactory()
    row = SellerTransferFactory(reversal_pending=True)
    twin = WebhookEvent.new(
        stripe_event_id=known.stripe_event_id, type="x", stripe_created_at=known.stripe_created_at, payload={}
    )

    @committed_together()
    def act() -> None:
        together.ask(("SELECT 1", []))
        give_up(row)
        twin.add(**BY, once_by="stripe_event_id")

    with pytest.raises(AlreadyThere):
        act()
    assert stored(row) == "reversal_pending"
    assert is_idle()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("odd", "error"),
    [({"amount": -1}, IntegrityError), ({"currency": "euro"}, DataError)],
    ids=["a constraint", "too long a value"],
)
def test_an_error_of_the_last_writes_is_told_as_it_is_and_nothing_is_committed(
    odd: dict[str, Any], error: type[Exception]
) -> None:
    row, refund = SellerTransferFactory(reversal_pending=True), new_refund(OrderFactory(paid=True))
    vars(refund).update(odd)

    @committed_together()
    def act() -> None:
        together.ask(("SELECT 1", []))
        give_up(row)
        refund.add(**BY)

    with pytest.raises(error):
        act()
    assert stored(row) == "reversal_pending"
    assert not Refund.objects.filter(stripe_refund_id=refund.stripe_refund_id).exists()
    assert is_idle()


@pytest.mark.django_db(transaction=True)
def test_what_was_marked_to_be_rolled_back_is_not_committed() -> None:
    row = SellerTransferFactory(reversal_pending=True)

    @committed_together()
    def act() -> None:
        together.ask(("SELECT 1", []))
        give_up(row)
        transaction.set_rollback(True)

    with pytest.raises(transaction.TransactionManagementError):
        act()
    assert stored(row) == "reversal_pending"
    assert is_idle()


@pytest.mark.django_db(transaction=True)
def test_a_transaction_whose_last_message_only_asked_is_committed_all_the_same() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    with committed_together():
        together.ask((f"UPDATE {row._meta.db_table} SET retry_count = 7 RETURNING id", []))  # noqa: S608
    row.refresh_from_db()
    assert row.retry_count == 7


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_others_began_is_theirs_to_commit() -> None:
    """As psycopg's with a level of its own."""
    row = SellerTransferFactory(reversal_pending=True)
    connection.ensure_connection()
    connection.connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE

    def act() -> None:
        with committed_together():
            give_up(row)

    try:
        assert not any("COMMIT" in sent for sent in messages_of(act))
    finally:
        connection.connection.isolation_level = None
    assert stored(row) == "permanently_failed"


def test_within_a_test_s_own_transaction_nothing_is_committed() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    with committed_together():
        together.ask(("SELECT 1", []))
        give_up(row)
    assert not is_idle()
