"""Disputes: told in any order, what counts as lost and when, what sellers give for it and get back."""

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from marketplace.errors import NotAllowedNow, TooMuch, UnknownOrder
from marketplace.gateway.contract import DisputeFacts
from marketplace.models import Dispute, Order, TransferReversal
from marketplace.services import disputes, refunds, transfers
from marketplace.states import OrderStatus
from marketplace.workers import reversal as reversal_worker
from tests.factories import DisputeFactory, OrderFactory, UserFactory, order_with_transfers
from tests.inbox.test_any_order import rolled_back
from tests.services.conftest import REVERSE, Make, kept_at_stripe
from tests.services.test_refunds import NOON, states
from tests.services.test_refunds import record as record_refund
from tests.workers.conftest import drain

OPENED, WITHDRAWN, LOST = "opened", "funds_withdrawn", "lost"
ALL = (OPENED, WITHDRAWN, LOST)


def facts(order: Order, status: str = "needs_response", *, after: int = 0, **changes: Any) -> DisputeFacts:
    """Of the whole order, before any money moved; ``withdrawn`` and ``reinstated`` are what moved by then."""
    withdrawn, reinstated = changes.pop("withdrawn", 0), changes.pop("reinstated", 0)
    described: dict[str, Any] = {
        "stripe_dispute_id": "dp_1",
        "stripe_payment_intent_id": order.stripe_payment_intent_id,
        "stripe_charge_id": order.stripe_charge_id,
        "amount": order.amount,
        "currency": order.currency,
        "status": status,
        "stripe_reason": "fraudulent",
        "is_charge_refundable": False,
        "evidence_due_by": NOON + timedelta(days=7),
        "amount_withdrawn": withdrawn,
        "amount_reinstated": reinstated,
        "fee": 1500 if withdrawn else 0,
        "balance_currency": order.currency if withdrawn else "",
        "is_withdrawn": withdrawn > 0,
        "is_reinstated": reinstated > 0,
        "opened_at": NOON,
        "seen_at": NOON + timedelta(seconds=after),
    }
    return DisputeFacts(**{**described, **changes})


def record(order: Order, status: str = "needs_response", **changes: Any) -> Dispute:
    disputes.record(facts(order, status, **changes), actor="stripe:evt_1")
    return Dispute.objects.get(stripe_dispute_id=changes.get("stripe_dispute_id", "dp_1"))


def told(dispute: Dispute) -> dict[str, Any]:
    """All that the facts decide."""
    ignored = {"id", "created_at", "updated_at"}
    return {
        field.attname: getattr(dispute, field.attname)
        for field in Dispute._meta.concrete_fields
        if field.attname not in ignored
    }


@pytest.fixture
def order(db: None) -> Order:
    """5000 over two sellers, of whom each has all of its share."""
    return order_with_transfers((3000, 2000), commission_basis_points=0)


# --- When it counts ---------------------------------------------------------------------------------------------------

WHEN = {
    "an inquiry": ({"status": "warning_needs_response"}, ()),
    "an inquiry under review": ({"status": "warning_under_review"}, ()),
    "an inquiry that came to nothing": ({"status": "warning_closed"}, ()),
    "an inquiry of which money was taken": (
        {"status": "warning_needs_response", "withdrawn": 5000},
        (OPENED, WITHDRAWN),
    ),
    "opened": ({"status": "needs_response"}, (OPENED,)),
    "under review": ({"status": "under_review"}, (OPENED,)),
    "a word we do not know": ({"status": "on_the_moon"}, (OPENED,)),
    "withdrawn": ({"status": "needs_response", "withdrawn": 5000}, (OPENED, WITHDRAWN)),
    "withdrawn, as the event's type says": ({"status": "needs_response", "is_withdrawn": True}, (OPENED, WITHDRAWN)),
    "an appeal": ({"status": "appeal_under_review", "withdrawn": 5000}, (OPENED, WITHDRAWN)),
    "lost": ({"status": "lost", "withdrawn": 5000}, ALL),
    "lost, without an entry": ({"status": "lost"}, ALL),
    "won, before the money is back": ({"status": "won", "withdrawn": 5000}, ()),
    "won": ({"status": "won", "withdrawn": 5000, "reinstated": 5000}, ()),
    "prevented": ({"status": "prevented"}, ()),
    "open, and the money is back": ({"status": "under_review", "withdrawn": 5000, "reinstated": 5000}, ()),
}


@pytest.mark.parametrize("setting", ALL)
@pytest.mark.parametrize("name", WHEN)
def test_when_a_dispute_counts(order: Order, settings: Any, name: str, setting: str) -> None:
    settings.DISPUTE_CLAWBACK_ON = setting
    changes, counts_on = WHEN[name]
    dispute = record(order, **changes)
    is_counted = setting in counts_on
    assert dispute.amount_lost == (5000 if is_counted else 0)
    assert dispute.last_error_code == ""
    owed = [("reversal_pending", [("pending", 3000)]), ("reversal_pending", [("pending", 2000)])]
    assert states(order) == (owed if is_counted else [("completed", []), ("completed", [])])


def test_what_is_owed_names_the_dispute_and_why(order: Order) -> None:
    dispute = record(order)
    owed = TransferReversal.objects.filter(transfer__order=order)
    assert {(each.cause, each.dispute, each.refund, each.source) for each in owed} == {
        ("dispute", dispute, None, dispute)
    }
    last = owed[0].transfer.history.latest("pgh_id")
    assert last.pgh_context["actor"] == "stripe:evt_1"
    assert last.pgh_context["reason"] == f"dispute {dispute.pk} is needs_response: 5000 eur lost"


def test_the_order_is_paid_still(order: Order) -> None:
    record(order, "lost", withdrawn=5000)
    order.refresh_from_db()
    assert (order.status, order.amount_refunded) == (OrderStatus.PAID, 0)


def test_the_same_facts_again_change_nothing(order: Order) -> None:
    first = record(order)
    before = states(order)
    again = record(order)
    assert (told(again), states(order)) == (told(first), before)
    assert again.history.count() == 1
    assert again.updated_at == first.updated_at


# --- How much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "owed", "platform"),
    [(5000, [3000, 2000], 0), (1000, [600, 400], 0), (1, [1, 0], 0), (9000, [3000, 2000], 4000), (0, [0, 0], 0)],
    ids=["all", "a part", "a cent", "more than the order", "nothing"],
)
def test_it_is_shared_as_a_refund_of_that_amount(order: Order, amount: int, owed: list[int], platform: int) -> None:
    dispute = record(order, amount=amount)
    first, second = order.transfers.order_by("id")
    assert [sum(each.amount for each in row.reversals.all()) for row in (first, second)] == owed
    parts = {str(row.seller_id): part for row, part in zip((first, second), owed, strict=True) if part}
    assert (dispute.seller_parts, dispute.platform_part, dispute.amount_lost) == (parts, platform, amount)


def test_after_a_partial_refund_only_what_is_left_is_taken(order: Order) -> None:
    record_refund(order, amount=2000)
    dispute = record(order)
    owed = [sum(each.amount for each in row.reversals.all()) for row in order.transfers.order_by("id")]
    assert owed == [3000, 2000]
    assert [row.reversals.get(dispute=dispute).amount for row in order.transfers.order_by("id")] == [1800, 1200]
    # The buyer got 7000 of 5000: what is more than the order is the platform's.
    assert (sum(dispute.seller_parts.values()), dispute.platform_part) == (3000, 2000)


def test_a_refund_after_a_dispute_takes_only_what_is_left(order: Order) -> None:
    record(order, amount=4000)
    record_refund(order, amount=2000)
    owed = [sum(each.amount for each in row.reversals.all()) for row in order.transfers.order_by("id")]
    assert owed == [3000, 2000]


def test_two_disputes_of_an_order_are_two(order: Order) -> None:
    record(order, amount=1000)
    record(order, stripe_dispute_id="du_2", amount=1500)
    owed = [sum(each.amount for each in row.reversals.all()) for row in order.transfers.order_by("id")]
    assert owed == [1500, 1000]
    record(order, "won", amount=1000, after=5)
    owed = [sum(each.amount for each in row.reversals.filter(status="pending")) for row in order.transfers.all()]
    assert sorted(owed) == [600, 900]


@pytest.mark.parametrize("status", ["lost", "under_review"])
def test_what_stripe_gave_back_of_it_is_not_lost(order: Order, status: str) -> None:
    """In proportion, for the balance may be in a third currency."""
    dispute = record(order, status, withdrawn=5500, reinstated=550, balance_currency="usd")
    assert (dispute.amount_lost, dispute.fee) == (4500, 1500)


def test_what_was_taken_given_back_and_taken_again_is_lost_once(order: Order) -> None:
    dispute = record(order, "lost", withdrawn=10000, reinstated=5000)
    assert dispute.amount_lost == 5000


def test_so_it_is_where_the_balance_is_in_a_third_currency(order: Order) -> None:
    """Half of it counted, and the sellers kept the other half of what the platform had lost."""
    told = {"withdrawn": 11000, "reinstated": 5500, "balance_currency": "usd"}
    assert record(order, "lost", times_withdrawn=2, **told).amount_lost == 5000
    # An older event, whatever comes first.
    assert record(order, "needs_response", after=-9, withdrawn=5500, times_withdrawn=1).amount_lost == 5000


def test_a_dispute_of_nothing_loses_nothing(order: Order) -> None:
    assert record(order, "lost", amount=0, withdrawn=5000).amount_lost == 0


def test_a_dispute_of_nothing_in_another_currency_counts_as_a_person_says(order: Order) -> None:
    told = {"amount": 0, "currency": "usd", "balance_currency": "usd", "withdrawn": 5000}
    dispute = record(order, "lost", **told)
    disputes.enter_amount(dispute_id=dispute.pk, amount=1000, actor="user:ann", reason="-")
    assert record(order, "lost", after=1, **told).amount_lost == 1000


def test_more_given_back_than_taken_is_all(order: Order) -> None:
    assert record(order, "lost", withdrawn=5000, reinstated=6000).amount_lost == 0


def test_who_was_not_paid_yet_is_paid_less(db: None) -> None:
    order = order_with_transfers((3000, 2000), status="pending")
    record(order, amount=2500)
    rows = [(row.status, row.amount, row.amount_kept_back) for row in order.transfers.order_by("id")]
    assert rows == [("pending", 1500, 1500), ("pending", 1000, 1000)]


# --- Another currency -------------------------------------------------------------------------------------------------


def test_in_another_currency_a_person_is_asked_and_nothing_is_taken(order: Order) -> None:
    with capture_logs() as logs:
        dispute = record(order, currency="usd", amount=5400)
    assert (dispute.order_amount, dispute.amount_lost) == (None, 0)
    assert dispute.last_error_code == "dispute_in_another_currency"
    assert "dp_1 is 5400 usd, order" in dispute.last_error_message
    assert [(each["log_level"], each["dispute"]) for each in logs if each["event"] == "dispute_needs_a_person"] == [
        ("error", dispute.pk)
    ]
    assert states(order) == [("completed", []), ("completed", [])]


def test_a_person_is_asked_once_and_no_more_when_it_is_won(order: Order) -> None:
    record(order, currency="usd")
    with capture_logs() as logs:
        record(order, "under_review", currency="usd", after=1)
        dispute = record(order, "won", currency="usd", after=2)
    assert not [each for each in logs if each["event"] == "dispute_needs_a_person"]
    assert (dispute.last_error_code, dispute.last_error_message) == ("", "")


def test_an_inquiry_in_another_currency_needs_nobody(order: Order) -> None:
    assert record(order, "warning_needs_response", currency="usd").last_error_code == ""


def enter(dispute: Dispute, amount: int = 4000) -> Dispute:
    entered = disputes.enter_amount(dispute_id=dispute.pk, amount=amount, actor="user:eva", reason="by the bank's rate")
    dispute.refresh_from_db()
    assert entered.pk == dispute.pk
    return dispute


def test_what_a_person_entered_counts(order: Order) -> None:
    dispute = enter(record(order, currency="usd"))
    assert (dispute.order_amount, dispute.amount_lost, dispute.last_error_code) == (4000, 4000, "")
    assert [row.reversals.get().amount for row in order.transfers.order_by("id")] == [2400, 1600]
    assert dispute.history.latest("pgh_id").pgh_context["actor"] == "user:eva"


def test_what_a_person_entered_stays_whatever_stripe_says_next(order: Order) -> None:
    dispute = enter(record(order, currency="usd"))
    record(order, "lost", currency="usd", amount=5500, after=9)
    dispute.refresh_from_db()
    assert (dispute.amount, dispute.order_amount, dispute.amount_lost) == (5500, 4000, 4000)


def test_an_amount_can_be_entered_before_it_counts(order: Order) -> None:
    dispute = enter(record(order, "warning_needs_response", currency="usd"))
    assert dispute.amount_lost == 0
    assert record(order, currency="usd", after=1).amount_lost == 4000


def test_an_amount_is_entered_once_and_within_the_order(order: Order) -> None:
    dispute = record(order, currency="usd")
    with pytest.raises(TooMuch, match="5001 is more than order"):
        enter(dispute, 5001)
    enter(dispute)
    with pytest.raises(NotAllowedNow, match="an amount is entered once"):
        enter(dispute)
    with pytest.raises(NotAllowedNow, match="only where it is in another currency"):
        enter(record(order, stripe_dispute_id="dp_2"))
    with pytest.raises(Dispute.DoesNotExist):
        disputes.enter_amount(dispute_id=10**9, amount=1, actor="a", reason="r")


# --- Whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["stripe_payment_intent_id", "stripe_charge_id", "stripe_dispute_id"])
def test_its_order_is_found_by_each_of_stripes_ids(order: Order, known: str) -> None:
    record(order, "warning_needs_response")
    ids: dict[str, Any] = {"stripe_payment_intent_id": "", "stripe_charge_id": ""}
    if known != "stripe_dispute_id":
        ids[known] = getattr(order, known)
    assert record(order, after=1, **ids).order == order
    assert Dispute.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("paid", [True, False])
def test_a_payment_that_we_do_not_know_of_has_to_come_first(paid: bool) -> None:
    order = OrderFactory(paid=paid, stripe_payment_intent_id="pi_1")
    unknown = {"stripe_payment_intent_id": "pi_other", "stripe_charge_id": ""} if paid else {}
    with pytest.raises(UnknownOrder, match=r"dp_1 disputes (pi_other|order \d+, of whose payment)"):
        record(order, **unknown)


# --- Any order --------------------------------------------------------------------------------------------------------


STORY: list[dict[str, Any]] = [
    {"status": "warning_needs_response", "is_charge_refundable": True},
    {"status": "warning_under_review", "is_charge_refundable": True, "after": 10},
    {"status": "needs_response", "after": 20, "amount": 4000},
    {"status": "needs_response", "after": 20, "amount": 4000, "withdrawn": 4000},
    {"status": "under_review", "after": 30, "amount": 4000, "withdrawn": 4000, "evidence_due_by": None},
    {"status": "lost", "after": 40, "amount": 4000, "withdrawn": 4000},
    {"status": "lost", "after": 40, "amount": 4000, "withdrawn": 4000, "reinstated": 100},
]
ENDS = {"lost": [], "won": [{"status": "won", "after": 50, "amount": 4000, "withdrawn": 4000, "reinstated": 4000}]}


@pytest.mark.parametrize("setting", ALL)
@pytest.mark.parametrize("end", ENDS)
@hypothesis_settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
@given(dice=st.randoms(use_true_random=False), extra=st.lists(st.integers(0, 20), max_size=5))
def test_any_order_any_number_of_times_ends_in_the_same_place(
    order: Order, settings: Any, end: str, setting: str, dice: Any, extra: list[int]
) -> None:
    settings.DISPUTE_CLAWBACK_ON = setting
    story = [*STORY, *ENDS[end]]
    ended = []
    arriving = [*story, *(story[number % len(story)] for number in extra)]
    dice.shuffle(arriving)
    for events in (story, arriving):
        with rolled_back():
            for event in events:
                record(order, **event)
            taken = sum(
                each.amount - each.unwanted_amount
                for each in TransferReversal.objects.filter(transfer__order=order).exclude(status="canceled")
            )
            ended.append((told(Dispute.objects.get()), taken))
    assert ended[0] == ended[1]
    dispute, taken = ended[0]
    assert taken == dispute["amount_lost"] == (3900 if end == "lost" else 0)
    assert dispute["closed_at"] == NOON + timedelta(seconds=40)
    assert dispute["withdrawn_at"] == NOON + timedelta(seconds=20)


@pytest.mark.parametrize("order_of_two", list(itertools.permutations(range(2))), ids=["straight", "turned"])
@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        ({"status": "needs_response"}, {"status": "under_review"}, "under_review"),
        ({"status": "lost"}, {"status": "won"}, "won"),
        ({"status": "appeal_under_review"}, {"status": "lost"}, "lost"),
        ({"status": "a_new_word"}, {"status": "warning_closed"}, "warning_closed"),
        ({"status": "a_new_word"}, {"status": "b_new_word"}, "b_new_word"),
    ],
)
def test_of_the_same_second_the_one_further_along_stands(
    order: Order, order_of_two: tuple[int, ...], first: dict[str, Any], second: dict[str, Any], stands: str
) -> None:
    for number in order_of_two:
        dispute = record(order, **(first, second)[number])
    assert dispute.status == stands


@pytest.mark.parametrize("turned", [False, True])
def test_of_the_same_second_and_status_it_does_not_matter_which_comes_last(order: Order, *, turned: bool) -> None:
    several: list[dict[str, Any]] = [
        {"amount": 5000, "evidence_due_by": None},
        {"amount": 4000},
        {"amount": 5000, "evidence_due_by": NOON + timedelta(days=9)},
    ]
    for each in reversed(several) if turned else several:
        dispute = record(order, **each)
    assert (dispute.amount, dispute.evidence_due_by) == (5000, NOON + timedelta(days=9))


# --- The money --------------------------------------------------------------------------------------------------------


def test_a_win_pays_back_what_was_taken_and_once(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold((3000, 2000))
    record(order, withdrawn=5000)
    work()
    assert kept_at_stripe(simulator, order) == [0, 0]
    for _ in range(3):
        record(order, "won", after=5, withdrawn=5000, reinstated=5000)
        work()
    assert kept_at_stripe(simulator, order) == [2700, 1800]
    again = order.transfers.exclude(gives_back_of=None)
    assert {each.undoes.dispute.stripe_dispute_id for each in again if each.undoes and each.undoes.dispute} == {"dp_1"}


def test_a_win_waits_for_a_person_where_the_setting_says_so(
    sold: Make, simulator: Any, work: Callable[[], None], settings: Any
) -> None:
    settings.GIVE_BACK = "ask"
    order = sold()
    record(order, withdrawn=3000)
    work()
    record(order, "won", after=5, withdrawn=3000, reinstated=3000)
    work()
    assert order.transfers.latest("id").last_error_code == "give_back_undecided"
    assert kept_at_stripe(simulator, order) == [0]


def test_a_win_before_anything_was_collected_drops_the_debt(sold: Make, simulator: Any, work: Any) -> None:
    order = sold()
    record(order)
    record(order, "won", after=5)
    work()
    assert states(order) == [("completed", [("canceled", 2700)])]


def test_lost_after_all_is_taken_once_more(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold((3000, 2000))
    for number, status in enumerate(["needs_response", "won", "lost", "won", "lost"]):
        record(order, status, after=number)
        work()
        assert kept_at_stripe(simulator, order) == ([2700, 1800] if status == "won" else [0, 0])


def test_one_that_became_larger_stands_in_no_way_of_a_retry_of_what_failed(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    record(order, amount=1000)
    reversal = TransferReversal.objects.get()
    reversal.transition("failed", actor="worker", reason="refused")
    reversal.transfer.transition(
        "permanently_failed",
        actor="worker",
        reason="refused",
        failed_leg="reversing",
        next_retry_at=None,
        last_error_code="insufficient_funds",
        last_error_message="refused",
    )
    record(order, amount=2000, after=1)
    transfers.retry(transfer_id=reversal.transfer_id, actor="user:ann", reason="funded")
    work()
    assert states(order) == [("partially_reversed", [("succeeded", 900), ("succeeded", 900)])]
    assert kept_at_stripe(simulator, order) == [900]


def test_lost_after_all_beside_a_refund_is_in_place_of_the_first_time(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    """What was paid again is taken by the refund, so the dispute takes of the same transfer for the second time."""
    order = sold()
    record(order, amount=1000)
    work()
    record(order, "won", amount=1000, after=1)
    work()
    record_refund(order, amount=1000)
    work()
    record(order, "lost", amount=1000, after=2)
    work()
    assert kept_at_stripe(simulator, order) == [900]
    record_refund(order, amount=1000, status="failed", seen_at=NOON + timedelta(days=1))
    work()
    assert kept_at_stripe(simulator, order) == [1800]


def test_the_refund_that_the_dispute_made_fail_and_the_dispute_take_once(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold((3000, 2000))
    record_refund(order, amount=2000)
    work()
    record(order, amount=5000, withdrawn=5000)
    record_refund(
        order,
        amount=2000,
        status="failed",
        failure_reason="charge_for_pending_refund_disputed",
        seen_at=NOON + timedelta(seconds=1),
    )
    work()
    assert kept_at_stripe(simulator, order) == [0, 0]
    record(order, "won", after=9, withdrawn=5000, reinstated=5000)
    work()
    assert kept_at_stripe(simulator, order) == [2700, 1800]


def test_a_reversal_of_unknown_outcome_that_a_win_made_needless_is_looked_for(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    order = sold()
    simulator.faults.add("drop_after", endpoint=REVERSE, times=1)
    record(order)
    drain(reversal_worker.ReversalQueue(gateway))
    record(order, "won", after=1)
    assert TransferReversal.objects.get().unwanted_amount == 2700
    work()
    assert kept_at_stripe(simulator, order) == [2700]


# --- Refunds of a disputed order --------------------------------------------------------------------------------------


def ask(order: Order, amount: int) -> refunds.Requested:
    return refunds.request(
        order_id=order.pk,
        amount=amount,
        currency=order.currency,
        reason="",
        requested_by=UserFactory(staff=True),
        request_key="key-1",
    )


def test_what_stripe_would_refuse_is_not_asked_for(order: Order) -> None:
    dispute = record(order, withdrawn=5000)
    with pytest.raises(NotAllowedNow, match=f"disputed \\({dispute.stripe_dispute_id} is needs_response\\)"):
        ask(order, 1)
    with pytest.raises(NotAllowedNow):
        refunds.planned(order, 1)


@pytest.mark.parametrize(
    ("status", "refundable"),
    [("warning_needs_response", True), ("won", False), ("warning_closed", False), ("prevented", False)],
)
def test_an_inquiry_and_a_closed_dispute_refuse_no_refund(order: Order, status: str, *, refundable: bool) -> None:
    record(order, status, is_charge_refundable=refundable)
    assert refunds.refundable(order) == 5000
    assert ask(order, 5000).is_new


def test_what_a_dispute_took_cannot_be_refunded(order: Order) -> None:
    DisputeFactory(order=order, amount=4000, amount_lost=4000, is_charge_refundable=True)
    assert refunds.refundable(order) == 1000
    with pytest.raises(TooMuch, match="1001 is more than the 1000"):
        ask(order, 1001)
    # What is lost beyond the order is nobody's to refund.
    DisputeFactory(order=order, amount=4000, amount_lost=4000, is_charge_refundable=True)
    assert refunds.refundable(order) == 0


def test_a_plan_reckons_with_disputes(order: Order) -> None:
    before = refunds.planned(order, 1000)
    assert [part.amount for part in before.parts] == [600, 400]
    record(order, amount=4500, is_charge_refundable=True)
    with pytest.raises(TooMuch):
        refunds.planned(order, 1000)
    after = refunds.planned(order, 500)
    assert [(part.amount, part.taken) for part in after.parts] == [(300, 2700), (200, 1800)]
    assert after.version != before.version


# --- Properties -------------------------------------------------------------------------------------------------------


def test_times_are_stripes(order: Order) -> None:
    dispute = record(order, "lost", after=60, withdrawn=5000)
    expected: tuple[datetime, ...] = (NOON, *(NOON + timedelta(seconds=60),) * 2)
    assert (dispute.opened_at, dispute.withdrawn_at, dispute.closed_at) == expected
