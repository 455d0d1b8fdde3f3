"""Choosing, starting and approving a bulk retry: what people may do, and what is refused."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connections, transaction
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.errors import NotAllowedNow
from marketplace.models import GIVE_BACK_UNDECIDED, BulkRetry, BulkRetryItem, SellerTransfer
from marketplace.services import bulk_retries, transfers
from marketplace.services.bulk_retries import Criteria
from marketplace.states import BulkRetryStatus
from tests.factories import (
    BulkRetryFactory,
    BulkRetryItemFactory,
    DebtEntryFactory,
    SellerTransferFactory,
    UserFactory,
)
from tests.services.test_confirmation import wait_until_blocked

pytestmark = pytest.mark.django_db

WHY = "the accounts are open again"


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.BULK_RETRY_APPROVAL_ABOVE = {"": 20_000, "jpy": 50_000}


@pytest.fixture
def ann() -> User:
    return UserFactory(username="ann", staff=True)


@pytest.fixture
def bob() -> User:
    return UserFactory(username="bob", staff=True)


def failed(**fields: Any) -> SellerTransfer:
    return SellerTransferFactory(permanently_failed=True, **fields)


def plan(by: User, **criteria: Any) -> BulkRetry:
    return bulk_retries.plan(criteria=Criteria(**criteria), by=by, reason=WHY)


def chosen(bulk_retry: BulkRetry) -> list[int]:
    return list(bulk_retry.items.order_by("position").values_list("transfer_id", flat=True))


def aged(bulk_retry: BulkRetry, **fields: Any) -> None:
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(**fields)


LONG_AGO = Now() - bulk_retries.PLAN_LASTS - timedelta(seconds=1)


# --- Choosing ---------------------------------------------------------------------------------------------------------


def test_each_criterion_chooses_those_that_it_names(ann: User) -> None:
    now = timezone.now()
    other = failed(last_error_at=now - timedelta(days=9))
    code = failed(last_error_code="account_invalid", last_error_at=now)
    sending = SellerTransferFactory(permanently_failed_sending=True, last_error_code="declined", last_error_at=now)
    dollars = failed(currency="usd", last_error_at=now)
    SellerTransferFactory(reversal_pending=True, last_error_code="account_invalid")
    yesterday = now - timedelta(days=1)
    for criteria, expected in (
        ({"error_code": "account_invalid"}, [code]),
        ({"failed_leg": "sending"}, [sending]),
        ({"seller_id": other.seller_id}, [other]),
        ({"currency": "usd"}, [dollars]),
        ({"failed_before": yesterday}, [other]),
        ({"failed_after": yesterday, "currency": "eur"}, [code, sending]),
        ({}, [other, code, sending, dollars]),
    ):
        assert sorted(chosen(plan(ann, **criteria))) == [each.pk for each in expected], criteria


def test_nothing_is_retried_by_planning(ann: User) -> None:
    transfer = failed()
    bulk_retry = plan(ann, error_code="not_found")
    transfer.refresh_from_db()
    assert (transfer.status, bulk_retry.status, bulk_retry.next_retry_at) == ("permanently_failed", "planned", None)
    assert bulk_retry.criteria == {"error_code": "not_found"}
    assert bulk_retry.history.get().pgh_context == {"actor": "user:ann", "reason": WHY, "attempt": None}


def test_times_are_kept_as_text(ann: User) -> None:
    failed()
    before = timezone.now() + timedelta(days=1)
    assert plan(ann, failed_before=before).criteria == {"failed_before": before.isoformat()}


def test_the_amount_is_what_the_retry_moves(ann: User) -> None:
    part = failed(amount=5000)
    part.reversals.update(unwanted_amount=3000)
    settled = DebtEntryFactory(amount=1000).reversal
    unsent = SellerTransferFactory(permanently_failed_sending=True, amount=700)
    bare = failed(reversal=False)
    items = {item.transfer_id: item for item in plan(ann).items.all()}
    assert {pk: item.amount for pk, item in items.items()} == {
        part.pk: 2000,
        settled.transfer_id: settled.amount - 1000,
        unsent.pk: 700,
        bare.pk: 0,
    }
    assert (items[part.pk].money.amount, str(items[part.pk].money)) == (2000, "20.00 EUR")
    assert str(items[part.pk]) == f"transfer {part.pk} of bulk retry {items[part.pk].bulk_retry_id}"


def test_what_cannot_be_retried_is_refused_with_why(ann: User) -> None:
    without_id = failed(stripe_transfer_id="")
    undecided = SellerTransferFactory(permanently_failed_sending=True, last_error_code=GIVE_BACK_UNDECIDED)
    good = failed()
    items = {item.transfer_id: item for item in plan(ann).items.all()}
    assert {pk: item.status for pk, item in items.items()} == {
        without_id.pk: "refused",
        undecided.pk: "refused",
        good.pk: "planned",
    }
    assert items[without_id.pk].outcome.startswith("has no Stripe transfer id: enter its tr_… first")
    assert GIVE_BACK_UNDECIDED in items[undecided.pk].outcome


def test_payments_back_are_paid_together_only_where_they_are_chosen_by_name(ann: User) -> None:
    SellerTransferFactory(permanently_failed_sending=True, last_error_code=GIVE_BACK_UNDECIDED)
    assert plan(ann, error_code=GIVE_BACK_UNDECIDED).items.get().status == "planned"


def test_causes_are_mixed_so_that_the_canary_tries_each(ann: User) -> None:
    first, second = failed(), failed()
    other = failed(last_error_code="account_invalid")
    assert chosen(plan(ann)) == [first.pk, other.pk, second.pk]


def test_where_nothing_matches_nothing_is_planned(ann: User) -> None:
    failed()
    with pytest.raises(NotAllowedNow, match="no transfer that needs a person matches"):
        plan(ann, error_code="of_no_row")
    assert not BulkRetry.objects.exists()


@pytest.mark.parametrize("most", [2, 1])
def test_too_many_are_refused(most: int, ann: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_retries, "LARGEST", most)
    failed(), failed()
    if most == 2:
        assert len(chosen(plan(ann))) == 2
        return
    with pytest.raises(NotAllowedNow, match="more than 1 transfers match"):
        plan(ann)


def test_nothing_is_added_once_it_was_started() -> None:
    bulk_retry = BulkRetryFactory(canary=True)
    with pytest.raises(DatabaseError, match="was started"), transaction.atomic():
        BulkRetryItemFactory(bulk_retry=bulk_retry)


def test_what_was_planned_stays() -> None:
    item = BulkRetryItemFactory()
    for row, change in (
        (item, {"amount": 1}),
        (item.bulk_retry, {"criteria": {}}),
        (item.bulk_retry, {"canary_size": 9}),
    ):
        with pytest.raises(DatabaseError, match="Cannot update"), transaction.atomic():
            type(row)._default_manager.filter(pk=row.pk).update(**change)
    with pytest.raises(DatabaseError, match="Cannot delete rows"), transaction.atomic():
        BulkRetryItem.objects.filter(pk=item.pk).delete()


# --- Starting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "currency", "expected"),
    [
        ((10_000, 10_000), "eur", "canary"),
        ((10_000, 10_001), "eur", "awaiting_approval"),
        ((50_000,), "jpy", "canary"),
        ((50_001,), "jpy", "awaiting_approval"),
    ],
)
def test_over_the_sum_a_second_person_is_needed(
    amounts: tuple[int, ...], currency: str, expected: str, ann: User
) -> None:
    for amount in amounts:
        failed(amount=amount, currency=currency)
    started = bulk_retries.start(bulk_retry_id=plan(ann).pk, by=ann)
    assert (started.status, started.needs_approval) == (expected, expected != "canary")
    assert started.started_at is not None
    assert (started.next_retry_at is not None) == (expected == "canary")


def test_currencies_are_not_added_to_each_other(ann: User) -> None:
    failed(amount=20_000)
    failed(amount=20_000, currency="usd")
    assert bulk_retries.start(bulk_retry_id=plan(ann).pk, by=ann).status == "canary"


def test_what_is_refused_does_not_count(ann: User) -> None:
    failed(amount=20_000)
    failed(amount=20_000, stripe_transfer_id="")
    assert bulk_retries.start(bulk_retry_id=plan(ann).pk, by=ann).status == "canary"


def test_a_sum_in_parts_is_one_sum(ann: User, bob: User) -> None:
    """Whoever is over the limit with what was started before, asks for a second person too."""
    failed(amount=15_000, last_error_code="one")
    failed(amount=15_000, last_error_code="two")
    theirs = plan(bob, error_code="one")
    first, second = plan(ann, error_code="one"), plan(ann, error_code="two")
    assert bulk_retries.start(bulk_retry_id=theirs.pk, by=bob).status == "canary"
    assert bulk_retries.start(bulk_retry_id=first.pk, by=ann).status == "canary"
    (over,) = bulk_retries.over_limit(second)
    assert str(over) == "300.00 EUR with 150.00 EUR of the last 24 hours is over 200.00 EUR"
    assert bulk_retries.start(bulk_retry_id=second.pk, by=ann).status == "awaiting_approval"


@pytest.mark.parametrize("what", ["canceled", "long ago"])
def test_what_was_canceled_or_long_ago_does_not_count(what: str, ann: User) -> None:
    failed(amount=15_000, last_error_code="one")
    failed(amount=15_000, last_error_code="two")
    first, second = plan(ann, error_code="one"), plan(ann, error_code="two")
    if what == "canceled":
        bulk_retries.cancel(bulk_retry_id=first.pk, by=ann, reason="a mistake")
        aged(first, started_at=Now())
    else:
        bulk_retries.start(bulk_retry_id=first.pk, by=ann)
        aged(first, started_at=LONG_AGO)
    assert bulk_retries.over_limit(second) == []


def test_what_was_left_alone_does_not_count(ann: User) -> None:
    failed(amount=15_000, last_error_code="one")
    failed(amount=15_000, last_error_code="two")
    first, second = plan(ann, error_code="one"), plan(ann, error_code="two")
    bulk_retries.start(bulk_retry_id=first.pk, by=ann)
    first.items.get().transition("skipped", actor="worker", reason="-", outcome="it changed", settled_at=Now())
    assert bulk_retries.over_limit(second) == []


@pytest.mark.django_db(transaction=True)
def test_what_one_person_starts_at_the_same_time_is_one_sum(
    unblocked_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = UserFactory(staff=True)
    failed(amount=15_000, last_error_code="one")
    failed(amount=15_000, last_error_code="two")
    first, second = plan(ann, error_code="one"), plan(ann, error_code="two")
    over_limit = bulk_retries.over_limit
    other: list[threading.Thread] = []

    def start_second() -> None:
        try:
            bulk_retries.start(bulk_retry_id=second.pk, by=ann)
        finally:
            connections.close_all()

    def meanwhile(bulk_retry: BulkRetry) -> list[bulk_retries.Over]:
        found = over_limit(bulk_retry)
        if not other:
            other.append(threading.Thread(target=start_second))
            other[0].start()
            wait_until_blocked()
        return found

    monkeypatch.setattr(bulk_retries, "over_limit", meanwhile)
    assert bulk_retries.start(bulk_retry_id=first.pk, by=ann).status == "canary"
    other[0].join(30)
    second.refresh_from_db()
    assert second.status == "awaiting_approval"


def test_without_a_limit_for_its_currency_each_sum_needs_a_second_person(ann: User, settings: Any) -> None:
    settings.BULK_RETRY_APPROVAL_ABOVE = {"": 0, "usd": 20_000}
    failed(amount=1)
    assert str(bulk_retries.over_limit(plan(ann))[0]) == "0.01 EUR is over 0.00 EUR"


def test_only_its_requester_starts_it(ann: User, bob: User) -> None:
    failed()
    bulk_retry = plan(ann)
    with pytest.raises(NotAllowedNow, match="planned by another person"):
        bulk_retries.start(bulk_retry_id=bulk_retry.pk, by=bob)
    bulk_retry.refresh_from_db()
    assert bulk_retry.status == "planned"


def test_it_is_started_once(ann: User) -> None:
    failed()
    bulk_retry = plan(ann)
    bulk_retries.start(bulk_retry_id=bulk_retry.pk, by=ann)
    with pytest.raises(NotAllowedNow, match=f"bulk retry {bulk_retry.pk} is canary: expected planned"):
        bulk_retries.start(bulk_retry_id=bulk_retry.pk, by=ann)


def test_an_old_plan_is_not_started(ann: User) -> None:
    failed()
    bulk_retry = plan(ann)
    aged(bulk_retry, created_at=LONG_AGO)
    with pytest.raises(NotAllowedNow, match="more than 24 hours ago"):
        bulk_retries.start(bulk_retry_id=bulk_retry.pk, by=ann)


def test_where_all_are_refused_there_is_nothing_to_start(ann: User) -> None:
    failed(stripe_transfer_id="")
    with pytest.raises(NotAllowedNow, match="nothing of bulk retry"):
        bulk_retries.start(bulk_retry_id=plan(ann).pk, by=ann)


# --- Approving --------------------------------------------------------------------------------------------------------


@pytest.fixture
def awaiting(ann: User) -> BulkRetry:
    failed(amount=20_001)
    return bulk_retries.start(bulk_retry_id=plan(ann).pk, by=ann)


def test_who_approves_sees_its_sum_once(awaiting: BulkRetry) -> None:
    """It was started itself, and is no earlier one."""
    assert [str(over) for over in bulk_retries.over_limit(awaiting)] == ["200.01 EUR is over 200.00 EUR"]


def test_another_person_approves(awaiting: BulkRetry, bob: User) -> None:
    approved = bulk_retries.approve(bulk_retry_id=awaiting.pk, by=bob, reason="agreed")
    assert (approved.status, approved.approved_by) == ("canary", bob)
    assert approved.next_retry_at is not None
    told = approved.history.order_by("pgh_id").last()
    assert (told.pgh_context["actor"], told.pgh_context["reason"]) == ("user:bob", "agreed")


def test_nobody_approves_their_own(awaiting: BulkRetry, ann: User) -> None:
    with pytest.raises(NotAllowedNow, match="another person has to approve it"):
        bulk_retries.approve(bulk_retry_id=awaiting.pk, by=ann, reason="I am sure")
    awaiting.refresh_from_db()
    assert (awaiting.status, awaiting.approved_by) == ("awaiting_approval", None)


def test_only_what_waits_for_it_is_approved(ann: User, bob: User) -> None:
    failed()
    with pytest.raises(NotAllowedNow, match="is planned: expected awaiting_approval"):
        bulk_retries.approve(bulk_retry_id=plan(ann).pk, by=bob, reason="agreed")


def test_an_old_one_is_not_approved(awaiting: BulkRetry, bob: User) -> None:
    aged(awaiting, created_at=LONG_AGO)
    with pytest.raises(NotAllowedNow, match="plan it again"):
        bulk_retries.approve(bulk_retry_id=awaiting.pk, by=bob, reason="agreed")


# --- Giving up and stopping -------------------------------------------------------------------------------------------

ACTS: dict[str, Any] = {
    "cancel": (bulk_retries.cancel, {"planned", "awaiting_approval"}, "canceled"),
    "stop": (bulk_retries.stop, {"canary", "running"}, "stopped"),
}


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("status", BulkRetryStatus.values)
def test_it_is_canceled_before_it_begins_and_stopped_after(status: str, name: str, ann: User) -> None:
    bulk_retry = BulkRetryFactory(**({} if status == "planned" else {status: True}))
    act, begins_in, ends = ACTS[name]
    if status not in begins_in:
        with pytest.raises(NotAllowedNow, match=f"is {status}: expected"):
            act(bulk_retry_id=bulk_retry.pk, by=ann, reason="a mistake")
        return
    assert act(bulk_retry_id=bulk_retry.pk, by=ann, reason="a mistake").status == ends
    told = bulk_retry.history.order_by("pgh_id").last()
    assert (told.pgh_context["actor"], told.pgh_context["reason"]) == ("user:ann", "a mistake")


def test_a_single_retry_goes_on_as_before() -> None:
    transfer = failed(stripe_transfer_id="")
    with pytest.raises(NotAllowedNow, match=f"transfer {transfer.pk} has no Stripe transfer id"):
        transfers.retry(transfer_id=transfer.pk, actor="user:ann", reason="again")
