"""The one statement that settles a success: it says what the longer way would say, or nothing at all."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pgtrigger
import psycopg
import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import throttle
from marketplace.errors import StaleTransition
from marketplace.gateway.contract import REVERSE_ENDPOINT, ReversalFacts, Reversed
from marketplace.metrics import POISON
from marketplace.models import CircuitBreaker, SellerTransfer, TransferReversal, confirmation
from marketplace.services import leases, reversal_claims, reversal_settling, reversals, transfers
from marketplace.services.reversal_claims import Claimed
from marketplace.states import ReversalStatus, TransferStatus
from tests.conftest import plain_parameters
from tests.factories import SellerTransferFactory, TransferReversalFactory

LEASE = timedelta(minutes=5)
PATIENCE = 20
Cause = TransferReversal.Cause


def claimed_one(**traits: Any) -> Claimed:
    SellerTransferFactory(**(traits or {"reversal_pending": True}))
    (claimed,) = reversal_claims.claim(batch_size=1, lease=LEASE)
    return claimed


def facts(claimed: Claimed, **changes: Any) -> Reversed:
    told = {
        "stripe_reversal_id": f"trr_{uuid4().hex}",
        "amount": claimed.reversal.amount,
        "currency": claimed.reversal.currency,
        "operation_id": str(claimed.reversal.operation_id),
    }
    return Reversed(reversal=ReversalFacts(**{**told, **changes}))


def both_ways(
    make: Callable[[], Claimed], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[dict[str, Any], dict[str, Any], list[Any], list[Any]]]:
    """What the short and the long way make of equal rows, with all columns and the history."""
    ends = []
    for short in (True, False):
        claimed = make()
        with monkeypatch.context() as patched:
            if not short:
                patched.setattr(confirmation, "confirm", lambda *_, **__: "")
            settled = reversal_settling.settle(
                claimed, facts(claimed, stripe_reversal_id=f"trr_{short}"), actor="a worker"
            )
        transfer = SellerTransfer.objects.get(pk=claimed.transfer.pk)
        reversal = TransferReversal.objects.get(pk=claimed.reversal.pk)
        assert settled.status == transfer.status
        ends.append(
            (
                columns(transfer),
                columns(reversal),
                # Without their creation, which is the factory's.
                [history(row) for row in transfer.history.order_by("pgh_id")[1:]],
                [history(row) for row in reversal.history.order_by("pgh_id")[1:]],
            )
        )
    return ends


OWN = {"id", "order_id", "seller_id", "operation_id", "stripe_transfer_id", "transfer_id", "refund_id"}
TIMES = {"created_at", "updated_at", "first_attempted_at", "succeeded_at"}


def columns(row: Any) -> dict[str, Any]:
    shown = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    return {
        name: str(value).replace("trr_True", "trr_").replace("trr_False", "trr_")
        for name, value in shown.items()
        if name not in OWN | TIMES | {"next_retry_at"}
    } | {"is_due": str(shown.get("next_retry_at") is not None)}


def history(row: Any) -> Any:
    context = {
        name: str(value).replace("trr_True", "trr_").replace("trr_False", "trr_")
        for name, value in (row.pgh_context or {}).items()
    }
    return row.pgh_label, row.status, context


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["whole", "part", "rest", "part with more owed", "after failures"])
def test_the_short_way_says_what_the_long_one_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Claimed:
        match kind:
            case "part" | "part with more owed":
                transfer = SellerTransferFactory(reversal_pending=True, amount=5000, reversal=False)
                TransferReversalFactory(transfer=transfer, amount=1200, cause=Cause.OPERATOR, refund=None)
                if kind == "part with more owed":
                    TransferReversalFactory(transfer=transfer, amount=800, cause=Cause.OPERATOR, refund=None)
            case "rest":
                transfer = SellerTransferFactory(
                    reversal_pending=True, amount=5000, amount_reversed=1000, stripe_reversal_id="trr_0", reversal=False
                )
                TransferReversalFactory(transfer=transfer, amount=4000, cause=Cause.OPERATOR, refund=None)
            case "after failures":
                SellerTransferFactory(
                    reversal_pending=True, retry_count=3, last_error_code="unknown", last_error_message="503"
                )
            case _:
                SellerTransferFactory(reversal_pending=True)
        (claimed,) = reversal_claims.claim(batch_size=1, lease=LEASE)
        return claimed

    short, long = both_ways(make, monkeypatch)
    assert short == long
    assert short[0]["status"] in {"reversed", "partially_reversed", "reversal_pending"}
    assert {"actor": "a worker", "reason": "Stripe confirmed trr_"}.items() <= short[3][-1][2].items()


@pytest.mark.django_db
def test_a_success_is_one_statement(django_assert_num_queries: Any) -> None:
    claimed = claimed_one()
    with django_assert_num_queries(1):
        reversal_settling.settle(claimed, facts(claimed), actor="a worker")


@pytest.mark.django_db
def test_a_claim_is_one_statement_however_many_rows(django_assert_num_queries: Any) -> None:
    for _ in range(5):
        SellerTransferFactory(reversal_pending=True)
    with django_assert_num_queries(1):
        claimed = reversal_claims.claim(batch_size=10, lease=LEASE)
    assert len(claimed) == 5
    assert {(row.reversal.transfer_id, row.reversal.amount) for row in claimed} == {
        (row.transfer.pk, row.transfer.amount) for row in claimed
    }
    assert all(row.reversal.first_attempted_at is not None for row in claimed)


@pytest.mark.django_db
def test_a_lost_lease_changes_nothing() -> None:
    claimed = claimed_one()
    SellerTransfer.objects.filter(pk=claimed.transfer.pk).update(lease_token=uuid4())
    before = SellerTransfer.objects.values().get(), TransferReversal.objects.values().get()
    with pytest.raises(StaleTransition):
        reversal_settling.settle(claimed, facts(claimed), actor="a worker")
    assert (SellerTransfer.objects.values().get(), TransferReversal.objects.values().get()) == before


@pytest.mark.django_db
@pytest.mark.parametrize("changes", [{"amount": 1}, {"currency": "usd"}])
def test_other_facts_than_ours_are_not_confirmed(changes: dict[str, Any]) -> None:
    claimed = claimed_one()
    settled = reversal_settling.settle(claimed, facts(claimed, **changes), actor="a worker")
    assert settled.status == TransferStatus.PERMANENTLY_FAILED
    assert TransferReversal.objects.get().status == ReversalStatus.FAILED


@pytest.mark.django_db
def test_more_than_the_transfer_is_not_confirmed() -> None:
    claimed = claimed_one()
    TransferReversal.objects.filter(pk=claimed.reversal.pk).update(first_attempted_at=None)
    TransferReversal.objects.filter(pk=claimed.reversal.pk).update(amount=claimed.transfer.amount + 1)
    too_much = facts(claimed, amount=claimed.transfer.amount + 1)
    assert confirm(claimed, too_much) == ""
    assert TransferReversal.objects.get().status == ReversalStatus.PENDING


def confirm(claimed: Claimed, answer: Reversed) -> str:
    return confirmation.confirm(
        claimed.transfer,
        claimed.reversal,
        amount=answer.reversal.amount,
        currency=answer.reversal.currency,
        stripe_reversal_id=answer.reversal.stripe_reversal_id,
        stripe_status="",
        work="reversal",
        actor="a worker",
        reason="why",
    )


@pytest.mark.django_db
def test_a_debt_added_since_the_claim_is_seen() -> None:
    """The row was touched by whoever added it, so the short way declines and the long one looks."""
    transfer = SellerTransferFactory(reversal_pending=True, amount=5000, reversal=False)
    TransferReversalFactory(transfer=transfer, amount=1200, cause=Cause.OPERATOR, refund=None)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=LEASE)
    with transaction.atomic():
        locked = SellerTransfer.locked(transfer.pk)
        reversals.owe(locked, amount=800, cause=Cause.OPERATOR, source=None, actor="another", reason="more")
    answer = facts(claimed)
    assert confirm(claimed, answer) == ""
    settled = reversal_settling.settle(claimed, answer, actor="a worker")
    assert settled.status == TransferStatus.REVERSAL_PENDING
    (rest,) = reversal_claims.claim(batch_size=1, lease=LEASE)
    assert rest.reversal.amount == 800


@pytest.mark.django_db(transaction=True)
def test_a_debt_that_is_added_while_the_statement_waits_for_the_row_is_seen(unblocked_database: None) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, amount=5000, reversal=False)
    TransferReversalFactory(transfer=transfer, amount=1200, cause=Cause.OPERATOR, refund=None)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=LEASE)
    locked, settled = threading.Event(), []

    def settle() -> None:
        assert locked.wait(PATIENCE)
        settled.append(reversal_settling.settle(claimed, facts(claimed), actor="a worker").status)
        connections.close_all()

    thread = threading.Thread(target=settle)
    thread.start()
    with transaction.atomic():
        row = SellerTransfer.locked(transfer.pk)
        locked.set()
        wait_until_blocked()
        reversals.owe(row, amount=800, cause=Cause.OPERATOR, source=None, actor="another", reason="more")
    thread.join(PATIENCE)
    assert settled == [TransferStatus.REVERSAL_PENDING]
    assert TransferReversal.objects.get(amount=800).status == ReversalStatus.PENDING


def wait_until_blocked() -> None:
    """Until some other connection waits for a lock that is held."""
    pause = threading.Event()
    # Beside Django's: inside of a transaction the view would not change.
    with psycopg.connect(**plain_parameters(), autocommit=True) as watcher:
        for _ in range(PATIENCE * 100):
            waiting = watcher.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall()
            if waiting:
                return
            pause.wait(0.01)
    raise AssertionError("nobody waits")


@pytest.mark.django_db
def test_what_is_wanted_no_more_is_not_confirmed_though_its_transfer_looks_as_it_was_claimed() -> None:
    """Touched at the instant of the claim, by the same clock, a transfer tells nothing of it."""
    claimed = claimed_one()
    TransferReversal.objects.filter(pk=claimed.reversal.pk).update(unwanted_amount=1)
    assert confirm(claimed, facts(claimed)) == ""
    assert TransferReversal.objects.get(pk=claimed.reversal.pk).status == ReversalStatus.PENDING


@pytest.mark.django_db
def test_a_debt_beyond_the_whole_is_canceled_by_the_long_way() -> None:
    claimed = claimed_one()
    with pgtrigger.ignore("marketplace.TransferReversal:never_owes_more_than_it_was"):
        extra = TransferReversalFactory(transfer=claimed.transfer, amount=1, cause=Cause.OPERATOR, refund=None)
    answer = facts(claimed)
    assert confirm(claimed, answer) == ""
    assert TransferReversal.objects.get(pk=claimed.reversal.pk).status == ReversalStatus.PENDING
    assert reversal_settling.settle(claimed, answer, actor="a worker").status == TransferStatus.REVERSED
    extra.refresh_from_db()
    assert extra.status == ReversalStatus.CANCELED


@pytest.mark.django_db
def test_the_breaker_hears_of_the_success() -> None:
    claimed = claimed_one()
    CircuitBreaker.objects.create(work="reversal", channel="c", failing=["seller 1", "seller 2"])
    reversal_settling.settle(claimed, facts(claimed), actor="a worker")
    assert CircuitBreaker.objects.get().failing == ["seller 2"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", ["claim", "settle"])
def test_neither_is_part_of_somebodys_transaction(act: str) -> None:
    claimed = claimed_one()
    acts: dict[str, Callable[[], Any]] = {
        "claim": lambda: reversal_claims.claim(batch_size=1, lease=LEASE),
        "settle": lambda: reversal_settling.settle(claimed, facts(claimed), actor="a worker"),
    }
    with transaction.atomic(), pytest.raises(RuntimeError, match="transaction"):
        acts[act]()
    assert SellerTransfer.objects.get().status == TransferStatus.REVERSAL_PENDING


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("keeps", [False, True])
def test_a_claim_with_a_turn_is_planned_once_where_plans_are_kept(*, keeps: bool) -> None:
    connection.close_pool()
    leases.keep_plans(in_sessions=keeps)
    allowance = throttle.RequestAllowance(20)
    for number in range(8):
        SellerTransferFactory(reversal_pending=True)
        allowance._departures.clear()
        turn = throttle.in_advance(allowance, REVERSE_ENDPOINT)
        assert len(reversal_claims.claim(batch_size=9, lease=LEASE, turn=turn)) == 1, number
    with connection.cursor() as cursor:
        cursor.execute("SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%SKIP LOCKED%'")
        assert [plans > 0 for (plans,) in cursor.fetchall()] == [True] * keeps
    leases.keep_plans(in_sessions=False)
    connection.close_pool()


@pytest.mark.django_db
def test_a_claim_that_saw_no_reversal_looks_again_before_it_makes_one() -> None:
    """Written by a transaction that ended while the claiming statement ran."""
    transfer = SellerTransferFactory(reversal_pending=True, amount=5000, reversal=False)
    (row,) = leases.claim(SellerTransfer, due=reversal_claims.DUE.condition, batch_size=1, lease=LEASE)
    owed = TransferReversalFactory(transfer=transfer, amount=1200, cause=Cause.OPERATOR, refund=None)
    found = reversal_claims._owed_without_mark(row)
    assert (found.pk, found.first_attempted_at is not None, found.look_first) == (owed.pk, True, False)
    assert TransferReversal.objects.count() == 1


@pytest.mark.django_db
def test_a_row_that_cannot_be_is_set_aside_and_the_others_of_its_batch_are_claimed() -> None:
    """Somebody moved it to ``reversal_pending`` by SQL: it ended the worker, and the next one, and so on."""
    broken = SellerTransferFactory(permanently_failed=True)
    SellerTransfer.objects.filter(pk=broken.pk).update(status="reversal_pending", next_retry_at=Now())
    other = SellerTransferFactory(reversal_pending=True)
    counter = POISON.labels(work="reversal")
    before = counter._value.get()
    with capture_logs() as logs:
        claimed = reversal_claims.claim(batch_size=9, lease=LEASE)
    assert [each.transfer.pk for each in claimed] == [other.pk]
    assert counter._value.get() == before + 1
    broken.refresh_from_db()
    assert (broken.status, broken.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, "unexpected_error")
    assert "would owe more than it was" in broken.last_error_message
    assert (broken.failed_leg, broken.next_retry_at, broken.lease_token) == ("reversing", None, None)
    assert [entry["transfer"] for entry in logs if entry["event"] == "unexpected_error"] == [broken.pk]
    transfers.retry(transfer_id=broken.pk, actor="user:olga", reason="so it was meant")
    (again,) = reversal_claims.claim(batch_size=9, lease=LEASE)
    assert again.reversal == broken.reversals.get()


@pytest.mark.django_db
def test_a_row_whose_lease_was_lost_while_it_was_claimed_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    lost, other = (
        SellerTransferFactory(reversal_pending=True, reversal=False),
        SellerTransferFactory(reversal_pending=True),
    )
    held = leases.held

    def lose(model: Any, pk: int, token: Any) -> Any:
        SellerTransfer.objects.filter(pk=pk).update(lease_token=uuid4())
        return held(model, pk, token)

    monkeypatch.setattr(leases, "held", lose)
    with capture_logs() as logs:
        assert [each.transfer.pk for each in reversal_claims.claim(batch_size=9, lease=LEASE)] == [other.pk]
    assert logs == []
    assert (lost.reversals.count(), SellerTransfer.objects.get(pk=lost.pk).status) == (0, "reversal_pending")


@pytest.mark.django_db
def test_a_claim_during_which_the_database_goes_away_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, reversal=False)

    def away(*_: Any) -> None:
        raise OperationalError("the connection is closed")

    monkeypatch.setattr(leases, "held", away)
    with pytest.raises(OperationalError), capture_logs() as logs:
        reversal_claims.claim(batch_size=9, lease=LEASE)
    assert [entry["event"] for entry in logs] == []
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "")


@pytest.mark.django_db
def test_the_age_of_a_key_is_told_by_the_databases_clock() -> None:
    claimed = claimed_one()
    first = claimed.reversal.first_attempted_at
    assert first is not None
    assert not replace(claimed, claimed_at=first + timedelta(hours=20)).must_look
    assert replace(claimed, claimed_at=first + timedelta(hours=20, seconds=1)).must_look
