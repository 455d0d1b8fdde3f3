"""A run that is broken off goes on where it was, one at a time; it asks Stripe little and holds little."""

import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.asking import StripeSaysNo
from marketplace.gateway import contract
from marketplace.models import Drift, Reconciliation, ReconciliationFinding, ReconciliationSubject
from marketplace.reconciliation import run as runs
from marketplace.reconciliation.run import OtherRunOpen, Reconciler, TakenOver, begin
from tests.factories import RefundFactory, SellerTransferFactory
from tests.reconciliation.conftest import Reconcile, last_run, only, the_transfer
from tests.services.conftest import Make

pytestmark = pytest.mark.django_db
LIST = "GET /v1/transfers"


@pytest.fixture
def foreign(simulator: Any) -> Callable[[int], list[str]]:
    """Transfers of another program."""
    account = simulator.create_account()["id"]
    return lambda count: [simulator.create_transfer(100, account)["id"] for _ in range(count)]


class BrokenOffError(Exception):
    pass


def break_off_at(step: str, cursor_is_set: bool) -> Any:
    def tell(run: Reconciliation) -> None:
        if run.step == step and bool(run.cursor) == cursor_is_set:
            raise BrokenOffError

    return tell


STEPS = [(step, is_set) for step in runs.STEPS for is_set in (False, True)]


@pytest.mark.parametrize(
    ("step", "cursor_is_set"),
    # One that has not begun is not broken off; and here nothing moves that would have to be looked at once more.
    [each for each in STEPS if each not in {("transfers", False), ("looking_once_more", True), ("own", True)}],
)
def test_broken_off_anywhere_it_goes_on_there_and_finds_the_same(
    reconcile: Reconcile, small_pages: Any, sold: Make, refund: Any, simulator: Any, step: str, cursor_is_set: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(runs, "LARGEST_PAGE", 1)
    orders = [sold() for _ in range(4)]
    for order in orders:
        refund(order, 1000)
        refund(order, 500, told=False)
        simulator.open_dispute(order.stripe_charge_id)
    missing = [SellerTransferFactory(completed=True) for _ in range(2)]
    refunds_missing = [RefundFactory(succeeded=True) for _ in range(2)]
    with pytest.raises(BrokenOffError):
        reconcile(tell=break_off_at(step, cursor_is_set))
    before = simulator.requests.total
    found = reconcile()
    assert sorted(each.kind for each in found) == sorted(
        [Drift.MISSING] * len(missing + refunds_missing)
        + [Drift.REFUND_NOT_RECORDED] * len(orders)
        + [Drift.DISPUTE_NOT_RECORDED] * len(orders)
        + [Drift.NOT_CLAWED_BACK] * len(orders)
    )
    counts = last_run().counts
    assert (counts["transfers"], counts["reversals"], counts["refunds"], counts["disputes"]) == (4, 4, 8, 4)
    assert counts["requests"] >= simulator.requests.total - before
    assert Reconciliation.objects.count() == 1


def test_with_other_flags_nothing_goes_on_but_anew(reconcile: Reconcile, foreign: Any) -> None:
    foreign(1)
    with pytest.raises(BrokenOffError):
        reconcile(tell=break_off_at("reversals", cursor_is_set=False))
    with pytest.raises(OtherRunOpen) as refused:
        begin(asked="other", since=None)
    assert refused.value.details == {"asked": "None False"}
    made = begin(asked="other", since=None, is_anew=True)
    assert (made.step, made.cursor, made.counts) == ("transfers", "", {})
    assert Reconciliation.objects.get() == made
    assert not ReconciliationSubject.objects.exists()


def test_two_at_a_time_do_not_go_on_with_the_same_run(reconcile: Reconcile, gateway: Any) -> None:
    first, second = begin(asked="", since=None), begin(asked="", since=None)
    assert first == second
    Reconciler(run=first, gateway=gateway).go()
    with pytest.raises(TakenOver):
        Reconciler(run=second, gateway=gateway).go()


def test_a_run_that_somebody_began_at_the_same_moment_is_taken_over_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Reconciliation.objects.create(until=timezone.now(), step="transfers", asked="")
    monkeypatch.setattr(runs.Reconciliation.objects, "filter", lambda **_: Reconciliation.objects.none())
    with pytest.raises(TakenOver):
        begin(asked="", since=None)


def test_what_was_found_long_ago_is_forgotten(reconcile: Reconcile) -> None:
    for days in (89, 91):
        made = Reconciliation.objects.create(until=timezone.now(), step="own", finished_at=Now() - timedelta(days=days))
        ReconciliationFinding.objects.create(run=made, kind=Drift.MISSING, subject="transfer 1", detail="")
    reconcile()
    assert ReconciliationFinding.objects.count() == 1


def test_each_says_what_it_is() -> None:
    assert str(Reconciliation(pk=7)) == "reconciliation 7"
    assert str(ReconciliationSubject(stripe_id="tr_1")) == "tr_1"
    assert str(ReconciliationFinding(kind=Drift.MISSING, subject="transfer 1")) == "missing transfer 1"


def test_stripe_that_does_not_answer_ends_it_and_what_was_compared_stands(
    reconcile: Reconcile, small_pages: Any, foreign: Any, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(7)
    monkeypatch.setattr("marketplace.asking.PAUSE_SECONDS", 0)
    with pytest.raises(StripeSaysNo):
        reconcile(tell=lambda _run: simulator.faults.add("unavailable"))
    simulator.faults.clear()
    assert last_run().cursor
    assert reconcile() == []
    assert len(simulator.requests.to(LIST)) == 3 + 5


# --- Periods ----------------------------------------------------------------------------------------------------------


def test_a_period_asks_for_what_is_new_and_for_what_was_reversed_in_it(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    simulator.clock.freeze(timezone.now().timestamp() - 40 * 86_400)
    old, reversed_since = sold(), sold()
    simulator.clock.advance(40 * 86_400)
    sold()
    simulator.create_reversal(the_transfer(reversed_since).stripe_transfer_id, 100)
    for order in (old, reversed_since):
        order.transfers.update(created_at=Now() - timedelta(days=40))
    found = only(reconcile(since=timezone.now() - timedelta(days=7)), Drift.REVERSED_UNKNOWN)
    assert found.subject == str(the_transfer(reversed_since))
    counts = last_run().counts
    assert (counts["transfers"], counts["reversals"]) == (1, 1)
    assert "rows_not_listed" not in counts


def test_an_old_row_that_says_reversed_since_is_asked_for(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    row = SellerTransferFactory(reversed=True)
    type(row).objects.filter(pk=row.pk).update(created_at=Now() - timedelta(days=40))
    found = reconcile(since=timezone.now() - timedelta(days=7))
    assert [each.kind for each in found if each.subject == str(row)] == [Drift.MISSING]


def test_a_period_from_before_stripe_is_all_there_is(reconcile: Reconcile, foreign: Any) -> None:
    foreign(2)
    assert reconcile(since=timezone.now().replace(year=1950)) == []
    assert last_run().counts["transfers"] == 2


# --- Cost -------------------------------------------------------------------------------------------------------------


def test_one_request_per_hundred_of_each_list(reconcile: Reconcile, foreign: Any, simulator: Any) -> None:
    foreign(201)
    before = simulator.requests.total
    assert reconcile() == []
    counts = last_run().counts
    assert counts == {"transfers": 201, "without_row": 201, "requests": 3 + 3}
    assert simulator.requests.total - before == 6


def test_a_suspicion_costs_three_requests(reconcile: Reconcile, foreign: Any, simulator: Any) -> None:
    account = simulator.create_account()["id"]
    for number in range(4):
        simulator.create_transfer(700, account, metadata={"operation_id": f"lost {number}"})
    assert len(reconcile()) == 4
    assert last_run().counts["requests"] == 4 + 3 * 4


def a_transfer(name: str) -> contract.ListedTransfer:
    """None of ours."""
    facts = contract.TransferFacts(
        stripe_transfer_id=f"tr_{name}", amount=1, amount_reversed=0, currency="eur", operation_id=""
    )
    return contract.ListedTransfer(transfer=facts, reversals=(), has_all_reversals=True)


def a_refund(name: str) -> contract.ListedRefund:
    """Of a charge that paid nobody."""
    now = timezone.now()
    refund = contract.RefundFacts(
        stripe_refund_id=f"re_{name}",
        stripe_payment_intent_id="",
        stripe_charge_id=f"ch_{name}",
        amount=1,
        currency="eur",
        status="succeeded",
        operation_id="",
        failure_reason="",
        seen_at=now,
    )
    charge = contract.ChargeFacts(
        stripe_charge_id=f"ch_{name}",
        stripe_payment_intent_id="",
        amount=1,
        amount_refunded=1,
        currency="eur",
        amount_settled=1,
        currency_settled="eur",
        transfer_group="",
        created_at=now,
    )
    return contract.ListedRefund(refund=refund, charge=charge)


@pytest.mark.parametrize(("what", "make"), [("transfers", a_transfer), ("refunds", a_refund)])
def test_memory_does_not_grow_with_the_number_of_rows_at_stripe(
    reconcile: Reconcile, gateway: Any, monkeypatch: pytest.MonkeyPatch, what: str, make: Callable[[str], Any]
) -> None:
    def peak(pages: int) -> int:
        """Of a Stripe that lists so many full pages."""
        left = iter(range(pages, 0, -1))

        def page(**_: Any) -> Any:
            number = next(left)
            items = tuple(make(f"{number}_{each}") for each in range(contract.LARGEST_PAGE))
            return contract.Page(items=items, has_more=number > 1, last_id=str(number))

        monkeypatch.setattr(gateway, f"page_of_{what}", page)
        tracemalloc.start()
        try:
            assert reconcile() == []
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    few, many = peak(2), peak(20)
    assert many < few * 1.5, f"{few} bytes for 200 {what}, {many} for 2000"
    assert last_run().counts[what] == 2000
