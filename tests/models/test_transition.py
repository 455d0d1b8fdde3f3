"""transition() and the trigger behind it, over all pairs of statuses of all models."""

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import F, TextChoices
from django.db.models.expressions import DatabaseDefault
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from marketplace import states
from marketplace.errors import IllegalTransition, StaleTransition
from marketplace.models import SellerTransfer
from marketplace.models.lifecycle import Lifecycle
from marketplace.states import RefundStatus, TransferStatus
from tests.factories import SellerTransferFactory
from tests.models.rows import MODELS, as_stored, going_with, pairs_of, row_in, statuses

pytestmark = pytest.mark.django_db

BY = {"reason": "because", "actor": "tester"}


@pytest.mark.parametrize(("model", "old", "new"), pairs_of(listed=True))
def test_a_listed_step_moves_the_row(model: type[Lifecycle], old: TextChoices, new: TextChoices) -> None:
    row = row_in(model, old, toward=new)
    assert row.status == old
    row.transition(new, **BY, **going_with(row, new))
    assert row.status == new
    assert as_stored(row)["status"] == new


@pytest.mark.parametrize(("model", "old", "new"), pairs_of(listed=False))
def test_any_other_step_is_illegal_and_sends_no_sql(
    model: type[Lifecycle],
    old: TextChoices,
    new: TextChoices,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    row = row_in(model, old)
    before = as_stored(row)
    with django_assert_num_queries(0), pytest.raises(IllegalTransition, match=f"cannot go from {old} to {new}"):
        row.transition(new, **BY)
    assert row.status == old
    assert as_stored(row) == before


@pytest.mark.parametrize(("model", "old", "new"), [p for p in pairs_of(listed=False) if p.values[1] != p.values[2]])
def test_the_database_refuses_any_other_step_too(model: type[Lifecycle], old: TextChoices, new: TextChoices) -> None:
    row = row_in(model, old)
    before = as_stored(row)
    with pytest.raises(DatabaseError, match="transition"), transaction.atomic():
        model._default_manager.filter(pk=row.pk).update(status=new)
    table = model._meta.db_table
    with pytest.raises(DatabaseError, match="transition"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET status = %s WHERE id = %s", [new.value, row.pk])  # noqa: S608
    assert as_stored(row) == before


@pytest.mark.parametrize(("model", "old", "new"), pairs_of(listed=True))
def test_the_database_lets_a_listed_step_pass(model: type[Lifecycle], old: TextChoices, new: TextChoices) -> None:
    row = row_in(model, old, toward=new)
    assert model._default_manager.filter(pk=row.pk).update(status=new, **going_with(row, new)) == 1
    assert as_stored(row)["status"] == new


@pytest.mark.parametrize("model", MODELS)
def test_every_status_of_a_model_has_its_line_in_the_table_of_steps(model: type[Lifecycle]) -> None:
    (choices,) = {type(status) for status in statuses(model)}
    assert statuses(model) == list(choices) or set(statuses(model)) == set(choices)
    assert {value for value, _label in model._meta.get_field("status").flatchoices} == set(choices.values)


def test_the_steps_of_a_transfer_are_those_of_the_design_and_the_ways_out_of_what_is_no_longer_owed() -> None:
    assert {old.value: {new.value for new in to} for old, to in states.ALLOWED_TRANSITIONS.items()} == {
        "pending": {"completed", "failed", "canceled", "permanently_failed"},
        "failed": {"completed", "canceled", "permanently_failed"},
        "completed": {"reversal_pending", "partially_reversed", "reversed"},
        "reversal_pending": {"reversed", "partially_reversed", "completed", "permanently_failed"},
        "partially_reversed": {"reversal_pending", "reversed"},
        "permanently_failed": {
            "reversal_pending",
            "failed",
            "partially_reversed",
            "reversed",
            "completed",
            "canceled",
        },
        "reversed": set(),
        "canceled": set(),
    }


def test_the_table_of_steps_cannot_be_changed_while_running() -> None:
    with pytest.raises(TypeError):
        states.ALLOWED_TRANSITIONS[TransferStatus.REVERSED] = frozenset()  # type: ignore[index]


def test_pairs_are_in_a_fixed_order_so_that_migrations_stay_still() -> None:
    assert states.pairs(states.EVENT_TRANSITIONS) == [
        ("failed", "ignored"),
        ("failed", "processed"),
        ("processed", "failed"),
        ("processed", "ignored"),
        ("ignored", "processed"),
    ]


# --- The row count is the lock ----------------------------------------------------------------------------------------


def refused(row: SellerTransfer, **arguments: Any) -> None:
    """The step is refused as stale, and neither the row, nor the history, nor the instance has changed."""
    before, known, history = as_stored(row), dict(row.__dict__), row.history.count()
    with pytest.raises(StaleTransition, match=f"seller transfer {row.pk} is no longer {row.status}, or no longer ours"):
        row.transition(TransferStatus.REVERSED, **BY, **going_with(row, TransferStatus.REVERSED), **arguments)
    assert as_stored(row) == before
    assert row.history.count() == history
    assert {name: value for name, value in row.__dict__.items() if name != "_state"} == {
        name: value for name, value in known.items() if name != "_state"
    }


def leased() -> SellerTransfer:
    return SellerTransferFactory(reversal_pending=True, lease_token=uuid4(), lease_expires_at=timezone.now())


def test_a_row_that_someone_moved_first_is_stale() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    same = SellerTransfer.objects.get(pk=row.pk)
    same.transition(TransferStatus.PERMANENTLY_FAILED, **BY, next_retry_at=None)
    refused(row)


def test_a_row_that_is_gone_is_stale() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    gone = SellerTransfer.objects.get(pk=row.pk)
    gone.pk = row.pk + 1
    with pytest.raises(StaleTransition):
        gone.transition(TransferStatus.PERMANENTLY_FAILED, **BY, next_retry_at=None)


def test_another_lease_is_stale() -> None:
    refused(leased(), held_by=uuid4())


def test_a_lease_on_a_row_that_nobody_holds_is_stale() -> None:
    refused(SellerTransferFactory(reversal_pending=True), held_by=uuid4())


def test_the_holder_of_the_lease_moves_the_row() -> None:
    row = leased()
    row.transition(TransferStatus.REVERSED, **BY, held_by=row.lease_token, **going_with(row, TransferStatus.REVERSED))
    assert as_stored(row)["status"] == "reversed"


def test_the_second_of_two_equal_steps_is_stale() -> None:
    first = SellerTransferFactory(completed=True)
    second = SellerTransfer.objects.get(pk=first.pk)
    first.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now())
    with pytest.raises(StaleTransition):
        second.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now())


# --- What is written --------------------------------------------------------------------------------------------------


def test_fields_are_written_with_the_step_and_known_to_the_instance() -> None:
    row = SellerTransferFactory(completed=True)
    row.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now(), retry_count=F("retry_count") + 2)
    stored = as_stored(row)
    # Computed by the database, and read back from it when asked for.
    assert (row.retry_count, row.next_retry_at) == (2, stored["next_retry_at"])
    assert row.updated_at == stored["updated_at"]


def test_a_word_that_two_kinds_of_rows_share_is_judged_by_the_rows_own_table() -> None:
    row = SellerTransferFactory(completed=True)
    with pytest.raises(IllegalTransition):
        row.transition(RefundStatus.REQUIRES_ACTION, **BY)


def test_change_writes_fields_and_leaves_the_status() -> None:
    row = SellerTransferFactory(reversal_pending=True)
    before = as_stored(row)
    row.change(**BY, retry_count=3)
    stored = as_stored(row)
    assert stored == {**before, "retry_count": 3, "updated_at": stored["updated_at"]}
    assert stored["updated_at"] > before["updated_at"]
    assert row.retry_count == 3


def test_change_refuses_a_status(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    row = SellerTransferFactory(reversal_pending=True)
    with django_assert_num_queries(0), pytest.raises(TypeError, match="transition"):
        row.change(**BY, status="reversed")


def test_change_under_another_lease_is_stale() -> None:
    row = leased()
    before = as_stored(row)
    with pytest.raises(StaleTransition):
        row.change(**BY, held_by=uuid4(), retry_count=3)
    assert as_stored(row) == before


def test_change_of_a_row_that_moved_is_stale() -> None:
    row = SellerTransferFactory(completed=True)
    SellerTransfer.objects.get(pk=row.pk).transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now())
    with pytest.raises(StaleTransition):
        row.change(**BY, retry_count=3)


def test_locked_reads_the_row_anew() -> None:
    row = SellerTransferFactory(completed=True)
    SellerTransfer.objects.filter(pk=row.pk).update(retry_count=7)
    assert SellerTransfer.locked(row.pk).retry_count == 7


@pytest.mark.django_db(transaction=True)
def test_locked_keeps_everyone_else_off_the_row_until_the_transaction_ends() -> None:
    row = SellerTransferFactory(completed=True)
    described = connection.get_connection_params()
    address = {name: described[name] for name in ("host", "port", "dbname", "user", "password") if name in described}
    statement = "SELECT FROM marketplace_sellertransfer WHERE id = %s FOR UPDATE NOWAIT"
    with psycopg.connect(**address, autocommit=True) as other:
        with transaction.atomic():
            SellerTransfer.locked(row.pk)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(statement, [row.pk])
        assert other.execute(statement, [row.pk]).rowcount == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_new_row_is_as_one_by_the_class(model: type[Lifecycle]) -> None:
    def told(row: Lifecycle) -> dict[str, Any]:
        """What is made anew for each row, and what the database gives, has no equal: of that its kind."""
        made = {
            "operation_id",
            "_state",
            *(name for name, value in vars(row).items() if isinstance(value, DatabaseDefault)),
        }
        return {name: type(value) if name in made else value for name, value in vars(row).items()}

    assert told(model.new()) == told(model())
    one, other = model.new(status="new"), model.new()
    assert (one.status, vars(one)["_state"].adding, vars(one)["_state"] is vars(other)["_state"]) == (
        "new",
        True,
        False,
    )


def test_what_a_new_row_is_given_is_not_made_anew() -> None:
    given = uuid4()
    assert SellerTransfer.new(operation_id=given).operation_id == given
    assert SellerTransfer.new().operation_id != given


def test_a_new_row_knows_its_columns_alone() -> None:
    with pytest.raises(TypeError, match="SellerTransfer has no column order"):
        SellerTransfer.new(order=None, amount=5)


@pytest.mark.parametrize("model", MODELS)
def test_a_row_that_is_read_is_as_one_by_the_class(model: type[Lifecycle]) -> None:
    first = next(iter(model.TRANSITIONS))
    row = row_in(model, first)
    columns = [field.attname for field in model._meta.concrete_fields]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {model._meta.db_table} WHERE id = %s", [row.pk])  # noqa: S608
        read = model.read(cursor.fetchone())
    assert {name: value for name, value in vars(read).items() if name != "_state"} == as_stored(row)
    assert (read._state.adding, read._state.db) == (False, "default")
