"""What sellers owe, and get back when a refund fails after they had given their part."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pgtrigger
import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import Value
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from marketplace.errors import NotAllowedNow
from marketplace.explain import transfers as explain_transfers
from marketplace.explain.shapes import Kind
from marketplace.gateway.contract import AlreadyReversed, Refused, ReversalFacts
from marketplace.models import GIVE_BACK_UNDECIDED, Order, SellerTransfer, TransferReversal
from marketplace.services import (
    clawback,
    debts,
    give_backs,
    outcomes,
    reversal_claims,
    reversal_settling,
    reversals,
    seen_at_stripe,
    transfers,
)
from marketplace.services.reversal_settling import NoLongerOwed
from marketplace.shares import Loss, RefundCommission
from marketplace.states import ReversalStatus, TransferStatus
from marketplace.workers import reversal as reversal_worker
from marketplace.workers import transfer_retry
from tests.factories import (
    SellerTransferFactory,
    TransferReversalFactory,
    order_with_transfers,
)
from tests.services.conftest import REVERSE, Make, kept_at_stripe, long_unwanted
from tests.services.test_refunds import NOON, record
from tests.workers.conftest import drain

LATER = NOON + timedelta(days=1)


# --- How much ---------------------------------------------------------------------------------------------------------


def held(shares: list[int], taken: list[int]) -> list[clawback.Holding]:
    return [
        clawback.Holding(seller=seller, share=share, taken=gone)
        for seller, (share, gone) in enumerate(zip(shares, taken, strict=True))
    ]


@given(
    shares=st.lists(st.integers(1, 10_000), min_size=1, max_size=6),
    platform=st.integers(0, 5000),
    commission=st.sampled_from(RefundCommission),
    steps=st.lists(st.integers(1, 3000), max_size=6),
)
def test_no_seller_owes_more_than_the_share_and_all_of_it_at_the_end(
    shares: list[int], platform: int, commission: RefundCommission, steps: list[int]
) -> None:
    order = Order(amount=sum(shares) + platform, refund_commission=commission)
    taken = [0] * len(shares)
    refunded = 0
    for step in [*steps, order.amount]:
        refunded = min(refunded + step, order.amount)
        losses = [Loss(amount=refunded)]
        due = clawback.plan(order, losses, held(shares, taken))
        taken = [before + more for before, more in zip(taken, due, strict=True)]
        assert all(more >= 0 for more in due)
        assert all(part <= share for part, share in zip(taken, shares, strict=True))
        assert clawback.plan(order, losses, held(shares, taken)) == [0] * len(shares)
    assert taken == shares


@given(
    shares=st.lists(st.sampled_from([1, 2, 100, 1000]), min_size=2, max_size=6),
    unsent=st.lists(st.booleans(), min_size=6, max_size=6),
    refunded=st.integers(0, 6000),
)
def test_who_was_not_paid_yet_changes_nothing_of_who_gives_how_much(
    shares: list[int], unsent: list[bool], refunded: int
) -> None:
    order, losses = Order(amount=sum(shares)), [Loss(amount=min(refunded, sum(shares)))]
    all_sent = held(shares, [0] * len(shares))
    some_sent = [replace(each, is_unsent=is_unsent) for each, is_unsent in zip(all_sent, unsent, strict=False)]
    assert clawback.plan(order, losses, some_sent) == clawback.plan(order, losses, all_sent)


def test_of_a_sellers_transfers_the_one_that_was_not_sent_gives_first() -> None:
    sent = clawback.Holding(seller=1, share=1000, taken=400)
    again = clawback.Holding(seller=1, share=400, taken=0, is_again=True, is_unsent=True)
    assert clawback.plan(Order(amount=1000), [Loss(amount=500)], [sent, again]) == [100, 400]


def test_a_tie_for_a_cent_is_decided_alike_after_some_were_paid(
    sold: Make, gateway: Any, work: Callable[[], None]
) -> None:
    """It was laid on the one that was not sent yet, and given back to it as the other's: nobody gave it."""
    order = sold((1000, 1000), sent=False)
    record(order, amount=1)
    order.transfers.filter(pk=order.transfers.latest("id").pk).update(next_retry_at=Now() + Value(timedelta(hours=1)))
    drain(transfer_retry.TransferQueue(gateway))
    assert [row.is_unsent for row in order.transfers.order_by("id")] == [False, True]
    record(order, stripe_refund_id="re_2", amount=2)
    work()
    assert [row.share - row.amount + row.amount_reversed for row in order.transfers.order_by("id")] == [2, 1]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("stripe_status", "counts"), [("", True), ("pending", True), ("failed", False), ("canceled", False)]
)
def test_what_a_person_has_to_see_to_is_owed_once(stripe_status: str, counts: bool) -> None:
    """A reversal of which we lost sight counts, unless Stripe gave it up: that one has a row in its place."""
    transfer = SellerTransferFactory(permanently_failed=True, amount=5000, failed_leg="reversing", reversal=False)
    number = "trr_1" if stripe_status else ""
    TransferReversalFactory(
        transfer=transfer, failed=True, amount=1200, stripe_reversal_id=number, stripe_status=stripe_status
    )
    counted = 1200 if counts else 0
    assert clawback.taken(transfer, transfer.reversals.all()) == clawback.Taken(total=counted, own=counted)


@pytest.mark.django_db
def test_what_an_older_program_took_without_a_record_of_it_and_what_is_owed_are_both_taken() -> None:
    """The second refund counted the larger of the two alone, and took the first one's part twice."""
    order = order_with_transfers((2000,))
    order.transfers.update(status="partially_reversed", amount_reversed=500, stripe_reversal_id="trr_old")
    record(order, amount=800)
    record(order, stripe_refund_id="re_2", amount=400)
    (transfer,) = order.transfers.all()
    assert [each.amount for each in transfer.reversals.order_by("id")] == [300, 400]
    assert clawback.taken(transfer, transfer.reversals.all()) == clawback.Taken(total=1200, own=700)


# --- Giving back ------------------------------------------------------------------------------------------------------


def fails(order: Order, **changes: Any) -> None:
    record(order, status="failed", failure_reason="declined", seen_at=LATER, **changes)


def spent(simulator: Any, order: Order) -> None:
    """The sellers have nothing left at Stripe, and may owe it nothing."""
    for transfer in order.transfers.all():
        simulator.may_go_negative(transfer.seller.stripe_account_id, allowed=False)
        simulator.pay_out(transfer.seller.stripe_account_id)


def rows(order: Order) -> list[tuple[str, int, int]]:
    return [(transfer.status, transfer.amount, transfer.amount_reversed) for transfer in order.transfers.order_by("id")]


def given_up_unanswered(simulator: Any, order: Order, gateway: Any, **refund: Any) -> reversal_worker.ReversalQueue:
    """A refund that failed after a worker had sent its reversal, which has not arrived; that worker's queue."""
    simulator.faults.add("drop_before", endpoint=REVERSE, times=1)
    record(order, **refund)
    queue = reversal_worker.ReversalQueue(gateway)
    drain(queue)
    fails(order, **refund)
    return queue


def test_a_debt_that_was_not_collected_is_dropped(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold((3000, 2000))
    record(order)
    fails(order)
    assert rows(order) == [("completed", 2700, 0), ("completed", 1800, 0)]
    work()
    assert simulator.requests.to(REVERSE) == []


def test_of_two_debts_that_of_the_refund_that_failed_is_dropped(sold: Make) -> None:
    order = sold()
    record(order, amount=1000)
    record(order, stripe_refund_id="re_2", amount=1000)
    fails(order, amount=1000)
    debts = {each.refund.stripe_refund_id: each.status for each in TransferReversal.objects.all()}
    assert debts == {"re_1": ReversalStatus.CANCELED, "re_2": ReversalStatus.PENDING}


def test_what_undoes_a_refund_names_the_reversal_that_was_for_it(sold: Make, work: Callable[[], None]) -> None:
    order = sold()
    record(order, amount=1000)
    record(order, stripe_refund_id="re_2", amount=1000)
    work()
    fails(order, amount=1000)
    assert order.transfers.get(undoes__isnull=False).undoes.refund.stripe_refund_id == "re_1"


@pytest.mark.django_db
def test_a_seller_who_could_not_be_paid_is_still_a_persons_matter() -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True, in_doubt=True)
    record(transfer.order, amount=transfer.order.amount)
    assert transfer.reversals.get().status == ReversalStatus.PENDING
    fails(transfer.order, amount=transfer.order.amount)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.reversals.get().status) == ("permanently_failed", ReversalStatus.CANCELED)


def test_what_came_back_is_paid_again_from_the_platforms_balance(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    record(order)
    work()
    assert rows(order) == [("reversed", 2700, 2700)]
    fails(order)
    work()
    first, again = order.transfers.order_by("id")
    assert rows(order) == [("reversed", 2700, 2700), ("completed", 2700, 0)]
    assert (again.gives_back_of, again.undoes) == (first, first.reversals.get())
    assert again.operation_id != first.operation_id
    assert kept_at_stripe(simulator, order) == [2700]
    assert simulator.get(again.stripe_transfer_id)["source_transaction"] is None


def test_it_is_paid_again_once_however_often_the_failure_is_told(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    record(order)
    work()
    for _ in range(3):
        fails(order)
        work()
    assert kept_at_stripe(simulator, order) == [2700]
    assert order.transfers.count() == 2


def test_of_two_refunds_the_one_that_failed_is_given_back(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold((3333, 1667))
    record(order, amount=1001)
    record(order, stripe_refund_id="re_2", amount=777)
    work()
    fails(order, amount=1001)
    work()
    alone = sold((3333, 1667))
    record(alone, stripe_refund_id="re_3", amount=777)
    work()
    assert kept_at_stripe(simulator, order) == kept_at_stripe(simulator, alone)


def test_a_share_that_was_kept_back_is_paid_after_all(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold((3000, 2000), sent=False)
    record(order, amount=5000)
    assert [status for status, *_ in rows(order)] == ["canceled", "canceled"]
    fails(order, amount=5000)
    assert [each.undoes for each in order.transfers.exclude(gives_back_of=None)] == [None, None]
    work()
    assert kept_at_stripe(simulator, order) == [2700, 1800]


def test_a_transfer_that_was_made_smaller_and_is_not_sent_grows_again(sold: Make) -> None:
    order = sold(sent=False)
    record(order, amount=1000)
    assert rows(order) == [("pending", 1800, 0)]
    fails(order, amount=1000)
    transfer = order.transfers.get()
    assert (transfer.status, transfer.amount, transfer.amount_kept_back) == ("pending", 2700, 0)


def test_a_transfer_that_was_sent_smaller_is_followed_by_another(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold(sent=False)
    record(order, amount=1000)
    work()
    fails(order, amount=1000)
    work()
    assert rows(order) == [("completed", 1800, 0), ("completed", 900, 0)]
    assert kept_at_stripe(simulator, order) == [2700]


@pytest.mark.parametrize(
    ("fault", "paid_again"), [("drop_after", True), ("drop_before", False)], ids=["it was done", "it never arrived"]
)
def test_a_reversal_of_unknown_outcome_is_looked_for_before_it_is_dropped(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any, fault: str, paid_again: bool
) -> None:
    order = sold()
    simulator.faults.add(fault, endpoint=REVERSE, times=1)
    record(order)
    drain(reversal_worker.ReversalQueue(gateway))
    fails(order)
    reversal = TransferReversal.objects.get()
    assert (reversal.status, reversal.unwanted_amount) == (ReversalStatus.PENDING, 2700)
    work()
    reversal.refresh_from_db()
    assert (reversal.status, reversal.unwanted_amount) == ("succeeded" if paid_again else "canceled", 0)
    assert rows(order) == (
        [("reversed", 2700, 2700), ("completed", 2700, 0)] if paid_again else [("completed", 2700, 0)]
    )
    assert kept_at_stripe(simulator, order) == [2700]
    assert len(simulator.requests.to(REVERSE)) == 1, "nothing was sent that was no longer owed"


def test_what_may_be_on_its_way_is_not_dropped_before_it_must_have_arrived(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    """A look sees nothing of a request whose caller has given up; one that lands after it was dropped is taken."""
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    assert drain(queue) == 1
    reversal, transfer = TransferReversal.objects.get(), order.transfers.get()
    assert (reversal.status, reversal.unwanted_amount) == (ReversalStatus.PENDING, 2700)
    assert (transfer.status, transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "postponed")
    assert transfer.next_retry_at - transfer.updated_at > outcomes.LONGEST_WAY
    assert explain_transfers.explain(transfer).kind == Kind.KEY_RESTS
    simulator.create_reversal(transfer.stripe_transfer_id, 2700, metadata={"operation_id": str(reversal.operation_id)})
    work()
    assert rows(order) == [("reversed", 2700, 2700), ("completed", 2700, 0)]
    assert kept_at_stripe(simulator, order) == [2700]


@pytest.mark.parametrize(("minutes", "dropped"), [(64, False), (66, True)])
def test_it_is_dropped_after_a_lease_and_the_longest_way(
    sold: Make, simulator: Any, gateway: Any, minutes: int, dropped: bool
) -> None:
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    TransferReversal.objects.update(unwanted_at=Now() - Value(timedelta(minutes=minutes)))
    drain(queue)
    assert TransferReversal.objects.get().status == ("canceled" if dropped else "pending")


def test_a_500_to_the_look_says_nothing_of_what_was_sent(sold: Make, simulator: Any, gateway: Any) -> None:
    """As if it had been Stripe's answer under the key, a new key was taken at the next look that found nothing."""
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    simulator.faults.add("error_500", endpoint="GET /v1/transfers/{id}/reversals", times=1)
    drain(queue)
    assert not TransferReversal.objects.get().look_first
    record(order, stripe_refund_id="re_second")
    SellerTransfer.objects.update(next_retry_at=Now())
    drain(queue)
    assert TransferReversal.objects.get().key_generation == 1
    assert rows(order) == [("reversed", 2700, 2700)]


def test_one_that_waits_for_funds_does_not_wait_any_longer(sold: Make, simulator: Any, gateway: Any) -> None:
    order = sold()
    spent(simulator, order)
    record(order)
    queue = reversal_worker.ReversalQueue(gateway)
    drain(queue)
    assert order.transfers.get().last_error_code == "insufficient_funds"
    fails(order)
    # Due at once, not in hours.
    assert drain(queue) == 1
    assert rows(order) == [("completed", 2700, 0)]
    assert order.transfers.get().last_error_code == ""


def test_who_waits_behind_one_that_waits_no_longer_is_next(
    sold: Make, simulator: Any, gateway: Any, settings: Any
) -> None:
    order = sold()
    first = order.transfers.get()
    other = sold(sent=False)
    other.transfers.update(seller=first.seller)
    drain(transfer_retry.TransferQueue(gateway))
    spent(simulator, order)
    queue = reversal_worker.ReversalQueue(gateway)
    for each, refund in ((order, "re_1"), (other, "re_2")):
        record(each, stripe_refund_id=refund)
    drain(queue)
    second = other.transfers.get()
    assert second.last_error_code == "insufficient_funds"
    fails(order)
    assert drain(queue) == 2, "the one that is dropped, and the next in line"


def test_one_that_took_the_place_of_another_is_dropped_and_the_other_stays_as_it_ended(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    order = sold()
    simulator.set(pending_reversals=True)
    spent(simulator, order)
    record(order)
    drain(reversal_worker.ReversalQueue(gateway))
    given_up = TransferReversal.objects.get()
    simulator.stop_waiting(given_up.stripe_reversal_id)
    SellerTransfer.objects.update(next_retry_at=Now())
    drain(reversal_worker.ReversalQueue(gateway))
    assert TransferReversal.objects.count() == 2
    fails(order)
    given_up.refresh_from_db()
    assert (given_up.status, given_up.unwanted_amount) == (ReversalStatus.FAILED, 0)
    assert rows(order) == [("completed", 2700, 0)]


def test_a_debt_for_another_reason_stays(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold()
    record(order, amount=1000)
    work()
    transfer = order.transfers.get()
    reversals.owe(
        transfer, amount=300, cause=TransferReversal.Cause.OPERATOR, source=None, actor="user:eva", reason="agreed"
    )
    fails(order, amount=1000)
    work()
    assert kept_at_stripe(simulator, order) == [2400]


def lost(simulator: Any, order: Order, gateway: Any, amount: int, **refund: Any) -> TransferReversal:
    """A reversal whose refund failed before it arrived at Stripe: it was looked for, not found, and canceled."""
    queue = given_up_unanswered(simulator, order, gateway, amount=amount, **refund)
    long_unwanted()
    drain(queue)
    reversal = TransferReversal.objects.latest("id")
    assert reversal.status == ReversalStatus.CANCELED
    return reversal


def lands(simulator: Any, reversal: TransferReversal) -> None:
    """After all."""
    named = {"operation_id": str(reversal.operation_id)}
    simulator.create_reversal(reversal.transfer.stripe_transfer_id, reversal.amount, metadata=named)


def seen(gateway: Any, transfer: SellerTransfer) -> None:
    listed = gateway.list_reversals(transfer.stripe_transfer_id).reversals
    with transaction.atomic():
        seen_at_stripe.record(gateway.retrieve_transfer(transfer.stripe_transfer_id).transfer, listed, actor="inbox")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (3000, 1500, [("reversed", 2700, 2700), ("completed", 1350, 0)]),
        (1000, 2500, [("partially_reversed", 2700, 2250)]),
        (2000, 3000, [("reversed", 2700, 2700)]),
    ],
    ids=["all was gone", "the rest is enough", "all of the rest is owed"],
)
def test_what_landed_late_and_stands_in_the_way_of_the_next_reversal_counts_as_taken(
    sold: Make,
    simulator: Any,
    work: Callable[[], None],
    gateway: Any,
    first: int,
    second: int,
    expected: list[tuple[str, int, int]],
) -> None:
    """No event told of it: that it is there shows when Stripe refuses the next one."""
    order = sold()
    lands(simulator, lost(simulator, order, gateway, first))
    record(order, amount=second, stripe_refund_id="re_second")
    work()
    assert rows(order) == expected
    assert kept_at_stripe(simulator, order) == [(3000 - second) * 9 // 10]


def test_what_landed_late_is_given_back_also_where_another_was_taken_for_it_since(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    """It was wanted again while it was dropped, so that its place was taken; then both arrived."""
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway, amount=1000)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    record(order, amount=1000, stripe_refund_id="re_second")
    queue._settle(claimed, NoLongerOwed(), stripe_is_down=False)
    work()
    dropped, taken = TransferReversal.objects.order_by("id")
    assert (dropped.status, taken.status, taken.source) == (ReversalStatus.CANCELED, "succeeded", dropped.source)
    lands(simulator, dropped)
    assert kept_at_stripe(simulator, order) == [900]
    seen(gateway, order.transfers.get())
    work()
    assert rows(order) == [("partially_reversed", 2700, 1800), ("completed", 900, 0)]
    assert kept_at_stripe(simulator, order) == [1800]
    landed = TransferReversal.objects.latest("id")
    assert (landed.cause, landed.source, landed.in_place_of) == (dropped.cause, dropped.source, dropped)


def test_what_a_person_wanted_and_finds_gone_by_one_that_landed_late_is_given_back(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    order = sold()
    lands(simulator, lost(simulator, order, gateway, 3000))
    # As a row of an older version: that it owes is known, not what for.
    SellerTransfer.objects.update(status=TransferStatus.REVERSAL_PENDING, next_retry_at=Now())
    work()
    assert rows(order) == [("reversed", 2700, 2700), ("completed", 2700, 0)]
    assert kept_at_stripe(simulator, order) == [2700]


def test_what_a_person_wanted_and_others_took_concerns_no_refund(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    simulator.create_reversal(order.transfers.get().stripe_transfer_id, 2700)
    SellerTransfer.objects.update(status=TransferStatus.REVERSAL_PENDING, next_retry_at=Now())
    work()
    assert rows(order) == [("reversed", 2700, 2700)]
    assert set(TransferReversal.objects.values_list("cause", "status")) == {
        ("operator", "canceled"),
        ("seen_at_stripe", "succeeded"),
    }


def test_what_stripe_gave_up_is_no_proof_of_what_others_took(sold: Make, gateway: Any) -> None:
    """The newest in Stripe's list stood as the transfer's latest reversal, though it took nothing."""
    order = sold()
    record(order)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    given_up = ReversalFacts(stripe_reversal_id="trr_2", amount=1500, currency="eur", operation_id="", status="failed")
    done = replace(given_up, stripe_reversal_id="trr_1", amount=1200, status="succeeded")
    facts = gateway.retrieve_transfer(claimed.transfer.stripe_transfer_id).transfer
    answer = AlreadyReversed(transfer=replace(facts, amount_reversed=1200), reversals=(given_up, done))
    clawback.settle(claimed, answer, actor="worker")
    assert order.transfers.get().stripe_reversal_id == "trr_1"


def test_what_is_wanted_no_more_when_stripe_says_that_less_is_left_needs_no_person(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    order = sold()
    record(order, amount=2000)
    simulator.create_reversal(order.transfers.get().stripe_transfer_id, 1500)
    queue = reversal_worker.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    answer = queue._ask(claimed)
    fails(order, amount=2000)
    queue._settle(claimed, answer, stripe_is_down=False)
    work()
    assert rows(order) == [("partially_reversed", 2700, 1500)]
    assert kept_at_stripe(simulator, order) == [1200]


@pytest.mark.parametrize("ended", ["succeeded", "failed"])
def test_one_that_is_pending_at_stripe_is_followed_to_its_end(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any, ended: str
) -> None:
    order = sold()
    simulator.set(pending_reversals=True)
    spent(simulator, order)
    record(order)
    drain(reversal_worker.ReversalQueue(gateway))
    reversal = TransferReversal.objects.get()
    assert (reversal.status, reversal.stripe_status) == (ReversalStatus.PENDING, "pending")
    fails(order)
    work()
    assert rows(order) == [("reversal_pending", 2700, 0)]
    if ended == "succeeded":
        simulator.add_funds(2700, account=order.transfers.get().seller.stripe_account_id)
    else:
        simulator.stop_waiting(reversal.stripe_reversal_id)
    simulator.clock.advance(24 * 3600)
    work()
    paid_again = [("completed", 2700, 0)] if ended == "succeeded" else []
    first = ("reversed", 2700, 2700) if ended == "succeeded" else ("completed", 2700, 0)
    assert rows(order) == [first, *paid_again]
    assert TransferReversal.objects.count() == 1, "nothing took its place"
    assert kept_at_stripe(simulator, order) == [2700]


def test_one_of_which_less_was_left_is_owed_no_more(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    """Somebody took the most of it: what is left at Stripe is less than is owed, and a person was asked."""
    order = sold((3000,))
    transfer = order.transfers.get()
    record(order, amount=3000)
    simulator.create_reversal(transfer.stripe_transfer_id, 2200)
    work()
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == ("permanently_failed", "partly_reversed_elsewhere")
    fails(order, amount=3000)
    work()
    assert rows(order) == [("partially_reversed", 2700, 2200)]
    assert kept_at_stripe(simulator, order) == [500]


def test_one_that_a_person_was_asked_about_needs_nobody_any_more(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    simulator.faults.add("unavailable", endpoint=REVERSE)
    record(order)
    work()
    work()
    assert rows(order) == [("permanently_failed", 2700, 0)]
    sent = len(simulator.requests.to(REVERSE))
    fails(order)
    work()
    assert rows(order) == [("completed", 2700, 0)]
    assert len(simulator.requests.to(REVERSE)) == sent


@pytest.mark.django_db
def test_one_that_was_never_sent_because_its_id_is_missing_is_dropped_at_once() -> None:
    order = order_with_transfers((3000,))
    record(order)
    with pgtrigger.ignore("marketplace.SellerTransfer:transfer_id_stays"):
        order.transfers.update(stripe_transfer_id="")
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    reversal_settling.settle_missing_id(claimed, actor="reversal worker")
    assert rows(order) == [("permanently_failed", 3000, 0)]
    fails(order)
    assert [each.status for each in TransferReversal.objects.all()] == [ReversalStatus.CANCELED]


@pytest.mark.parametrize("answer", ["done", "refused", "no funds"])
def test_a_refund_that_fails_while_the_reversal_is_on_its_way_ends_in_the_same_place(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any, answer: str
) -> None:
    order = sold()
    if answer == "no funds":
        spent(simulator, order)
    record(order)
    queue = reversal_worker.ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    refused = Refused(code="something_new", message="no")
    answered = refused if answer == "refused" else queue._ask(claimed)
    fails(order)
    queue._settle(claimed, answered, stripe_is_down=False)
    work()
    assert [each.unwanted_amount for each in TransferReversal.objects.all()] == [0]
    assert kept_at_stripe(simulator, order) == [2700]
    assert {status for status, *_ in rows(order)} <= {"completed", "reversed"}


def test_a_part_that_is_still_owed_is_owed_anew(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None]
) -> None:
    """The first refund's debt was rounded up by a cent that is the second's when the first is gone."""
    order = sold((3333, 1667))
    simulator.faults.add("drop_before", endpoint=REVERSE, times=4)
    record(order, amount=1001)
    record(order, stripe_refund_id="re_2", amount=4999 - 1001)
    drain(reversal_worker.ReversalQueue(gateway))
    fails(order, amount=1001)
    work()
    must_give = clawback.plan(
        order,
        [Loss(amount=4999 - 1001)],
        [clawback.Holding(seller=each, share=share, taken=0) for each, share in enumerate((3000, 1501))],
    )
    assert kept_at_stripe(simulator, order) == [
        share - part for share, part in zip((3000, 1501), must_give, strict=True)
    ]


def test_what_was_no_longer_wanted_is_wanted_again_by_the_next_refund(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    order = sold()
    given_up_unanswered(simulator, order, gateway)
    record(order, stripe_refund_id="re_2", amount=1000)
    reversal = TransferReversal.objects.get()
    assert (reversal.amount, reversal.unwanted_amount) == (2700, 1800)
    work()
    assert kept_at_stripe(simulator, order) == [1800]


def test_one_that_lands_after_it_was_dropped_is_given_back(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    order = sold()
    given_up_unanswered(simulator, order, gateway)
    work()
    assert rows(order) == [("completed", 2700, 0)]
    lost = TransferReversal.objects.get()
    transfer = order.transfers.get()
    simulator.create_reversal(transfer.stripe_transfer_id, 2700, metadata={"operation_id": str(lost.operation_id)})
    listed = gateway.list_reversals(transfer.stripe_transfer_id).reversals
    with transaction.atomic():
        seen_at_stripe.record(gateway.retrieve_transfer(transfer.stripe_transfer_id).transfer, listed, actor="inbox")
    landed = TransferReversal.objects.latest("id")
    assert (landed.cause, landed.refund_id) == (TransferReversal.Cause.REFUND, lost.refund_id)
    work()
    assert rows(order) == [("reversed", 2700, 2700), ("completed", 2700, 0)]
    assert kept_at_stripe(simulator, order) == [2700]


def test_settling_what_is_no_longer_owed_locks_the_order_before_the_transfer(
    sold: Make, simulator: Any, gateway: Any
) -> None:
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    with CaptureQueriesContext(connection) as told:
        queue._settle(claimed, NoLongerOwed(), stripe_is_down=False)
    # At first as every claim is settled, and from the start where it is found to be no longer owed.
    claim = ["marketplace_sellertransfer", "marketplace_transferreversal"]
    assert tables_locked(told) == [*claim, *ORDER_FIRST, *claim, *ORDER_FIRST]


def test_what_is_wanted_again_while_the_worker_drops_it_is_owed_anew(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    """Looked for while nobody wanted it, not found, and wanted again by another refund before that was written."""
    order = sold()
    queue = given_up_unanswered(simulator, order, gateway)
    (claimed,) = queue.claim(batch_size=1, lease=timedelta(minutes=5))
    record(order, stripe_refund_id="re_second")
    queue._settle(claimed, NoLongerOwed(), stripe_is_down=False)
    work()
    assert rows(order) == [("reversed", 2700, 2700)]


def test_an_event_of_a_reversal_locks_the_order_before_the_transfer(sold: Make, simulator: Any, gateway: Any) -> None:
    order = sold()
    transfer = order.transfers.get()
    simulator.create_reversal(transfer.stripe_transfer_id, 700)
    listed = gateway.list_reversals(transfer.stripe_transfer_id).reversals
    facts = gateway.retrieve_transfer(transfer.stripe_transfer_id).transfer
    with CaptureQueriesContext(connection) as told, transaction.atomic():
        seen_at_stripe.record(facts, listed, actor="inbox")
    assert tables_locked(told) == ORDER_FIRST
    # Told again it says nothing new, and nobody has to wait.
    with CaptureQueriesContext(connection) as told, transaction.atomic():
        assert seen_at_stripe.record(facts, listed, actor="inbox") is not None
    assert tables_locked(told) == []


def tables_locked(told: CaptureQueriesContext) -> list[str]:
    statements = [statement for each in told.captured_queries for statement in each["sql"].split("; ")]
    locking = [statement for statement in statements if "FOR NO KEY UPDATE" in statement]
    return [re.findall(r'FROM "?(\w+)', statement)[0] for statement in locking]


# In this order, by everyone.
ORDER_FIRST = ["marketplace_order", "marketplace_refund", "marketplace_sellertransfer"]


def test_what_was_taken_elsewhere_is_not_given_back(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    """Somebody took it for a reason that we do not know."""
    order = sold()
    transfer = order.transfers.get()
    simulator.create_reversal(transfer.stripe_transfer_id, 700)
    listed = gateway.list_reversals(transfer.stripe_transfer_id).reversals
    with transaction.atomic():
        seen_at_stripe.record(gateway.retrieve_transfer(transfer.stripe_transfer_id).transfer, listed, actor="inbox")
    record(order, amount=1000)
    work()
    assert kept_at_stripe(simulator, order) == [1800], "200 more"
    fails(order, amount=1000)
    work()
    assert kept_at_stripe(simulator, order) == [2000], "all but the 700"


def test_beside_what_was_paid_by_hand_what_others_took_is_not_taken_once_more(
    sold: Make, simulator: Any, work: Callable[[], None], gateway: Any
) -> None:
    """At Stripe there was enough left for it, and the seller had given more than the share."""
    order = sold()
    transfer = order.transfers.get()
    record(order, amount=1000)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    clawback.settle(claimed, Refused(message="account closed", code="account_closed"), actor="worker")
    debts.pay_by_hand(reversal_id=claimed.reversal.pk, amount=900, actor="user:ann", reason="by bank transfer")
    record(order, stripe_refund_id="re_2", amount=2000)
    simulator.faults.add("drop_before", endpoint=REVERSE, times=1)
    drain(reversal_worker.ReversalQueue(gateway))
    simulator.create_reversal(transfer.stripe_transfer_id, 600)
    seen(gateway, transfer)
    work()
    # Of 27.00 she has given 9.00 by hand, others took 6.00, and that leaves 12.00 to be taken.
    assert kept_at_stripe(simulator, order) == [900]
    assert not TransferReversal.objects.filter(status__in=["pending", "failed"]).exists()


def test_where_nothing_was_settled_another_way_stripe_decides_what_is_left(
    sold: Make, simulator: Any, gateway: Any
) -> None:
    order = sold()
    record(order)
    simulator.faults.add("drop_before", endpoint=REVERSE, times=1)
    drain(reversal_worker.ReversalQueue(gateway))
    transfer = order.transfers.get()
    simulator.create_reversal(transfer.stripe_transfer_id, 600)
    seen(gateway, transfer)
    sent = TransferReversal.objects.get(cause="refund")
    assert (sent.amount, sent.unwanted_amount) == (2700, 0)


def test_what_a_person_asks_for_stays_wanted_whatever_others_took(sold: Make, simulator: Any, gateway: Any) -> None:
    """Levelling, which would owe anew what is left of it, knows of refunds and disputes alone."""
    order = sold()
    record(order, amount=1000)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    clawback.settle(claimed, Refused(message="account closed", code="account_closed"), actor="worker")
    debts.pay_by_hand(reversal_id=claimed.reversal.pk, amount=900, actor="user:ann", reason="by bank transfer")
    transfer = order.transfers.get()
    with transaction.atomic():
        cause = TransferReversal.Cause.OPERATOR
        reversals.owe(transfer, amount=1800, cause=cause, source=None, actor="user:ann", reason="all of it")
    simulator.faults.add("drop_before", endpoint=REVERSE, times=1)
    drain(reversal_worker.ReversalQueue(gateway))
    simulator.create_reversal(transfer.stripe_transfer_id, 600)
    seen(gateway, transfer)
    asked = TransferReversal.objects.get(cause="operator")
    assert (asked.amount, asked.unwanted_amount) == (1800, 0)


def test_a_refund_after_a_payment_back_that_is_not_sent_cancels_that(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    record(order)
    work()
    fails(order)
    record(order, stripe_refund_id="re_2")
    assert rows(order) == [("reversed", 2700, 2700), ("canceled", 2700, 0)]
    fails(order, stripe_refund_id="re_2")
    work()
    assert kept_at_stripe(simulator, order) == [2700]


def test_a_payment_back_that_is_not_sent_is_canceled_before_anything_is_reversed(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold()
    record(order, amount=1000)
    work()
    fails(order, amount=1000)
    record(order, stripe_refund_id="re_2", amount=1000)
    assert rows(order) == [("partially_reversed", 2700, 900), ("canceled", 900, 0)]


def test_what_was_kept_back_is_paid_once_and_then_what_was_reversed(
    sold: Make, simulator: Any, work: Callable[[], None]
) -> None:
    order = sold(sent=False)
    record(order, amount=500)
    work()
    record(order, stripe_refund_id="re_2", amount=500)
    work()
    fails(order, amount=500)
    fails(order, stripe_refund_id="re_2", amount=500)
    work()
    assert rows(order) == [("partially_reversed", 2250, 450), ("completed", 450, 0), ("completed", 450, 0)]
    assert kept_at_stripe(simulator, order) == [2700]


def test_a_refund_after_a_payment_back_takes_that_too(sold: Make, simulator: Any, work: Callable[[], None]) -> None:
    order = sold()
    record(order)
    work()
    fails(order)
    work()
    record(order, stripe_refund_id="re_2")
    work()
    assert rows(order) == [("reversed", 2700, 2700), ("reversed", 2700, 2700)]
    fails(order, stripe_refund_id="re_2")
    work()
    assert kept_at_stripe(simulator, order) == [2700]


# --- An operator decides ----------------------------------------------------------------------------------------------


@pytest.fixture
def undecided(sold: Make, work: Callable[[], None], settings: Any) -> SellerTransfer:
    settings.GIVE_BACK = "ask"
    order = sold()
    record(order)
    work()
    fails(order)
    work()
    return order.transfers.latest("id")


def test_a_payment_back_waits_for_a_decision_where_that_is_wanted(undecided: SellerTransfer, simulator: Any) -> None:
    assert (undecided.status, undecided.last_error_code) == (TransferStatus.PERMANENTLY_FAILED, GIVE_BACK_UNDECIDED)
    assert kept_at_stripe(simulator, undecided.order) == [0]


def test_a_retry_pays(undecided: SellerTransfer, simulator: Any, work: Callable[[], None]) -> None:
    transfers.retry(transfer_id=undecided.pk, actor="user:eva", reason="hers")
    work()
    assert kept_at_stripe(simulator, undecided.order) == [2700]


def test_declined_the_seller_is_not_paid_again_and_what_the_platform_keeps_is_not_taken_twice(
    undecided: SellerTransfer, simulator: Any, work: Callable[[], None]
) -> None:
    order = undecided.order
    declined = give_backs.decline(transfer_id=undecided.pk, actor="user:eva", reason="fraud")
    assert (declined.status, declined.declined) == (TransferStatus.CANCELED, True)
    record(order, stripe_refund_id="re_2")
    assert order.transfers.filter(status=TransferStatus.REVERSAL_PENDING).count() == 0
    fails(order, stripe_refund_id="re_2")
    work()
    assert (kept_at_stripe(simulator, order), order.transfers.count()) == ([0], 2)
    assert declined.history.latest("pgh_id").pgh_context == {"actor": "user:eva", "reason": "fraud", "attempt": None}


def test_a_new_refund_makes_the_question_needless(undecided: SellerTransfer) -> None:
    record(undecided.order, stripe_refund_id="re_2")
    undecided.refresh_from_db()
    assert (undecided.status, undecided.declined) == (TransferStatus.CANCELED, False)
    assert (undecided.last_error_code, undecided.failed_leg) == ("", "")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gives_back_of": None, "undoes": None}, "a seller's share of a sale"),
        ({"status": TransferStatus.FAILED, "next_retry_at": NOON}, "is failed"),
        ({"stripe_transfer_id": "tr_1"}, "never sent"),
        ({"in_doubt": True}, "may have been sent"),
    ],
)
def test_only_a_payment_back_that_waits_and_never_left_is_declined(
    undecided: SellerTransfer, changes: dict[str, Any], why: str
) -> None:
    with pgtrigger.ignore("marketplace.SellerTransfer:listed_steps_only"):
        SellerTransfer.objects.filter(pk=undecided.pk).update(**changes)
    with pytest.raises(NotAllowedNow, match=why):
        give_backs.decline(transfer_id=undecided.pk, actor="user:eva", reason="fraud")


@pytest.mark.parametrize(
    ("refunded", "kept_back", "declined", "given_back"), [(1000, 900, True, 900), (3000, 0, False, 2700)]
)
def test_what_was_refunded_before_a_payment_back_is_declined_is_none_of_the_decision(
    undecided: SellerTransfer, refunded: int, kept_back: int, declined: bool, given_back: int
) -> None:
    """Its debt stood on a transfer that is over, for ever, and was not given back when that refund failed too."""
    order = undecided.order
    transfers.retry(transfer_id=undecided.pk, actor="user:eva", reason="hers")
    (claimed,) = transfers.claim(batch_size=1, lease=timedelta(minutes=5))
    transfers.settle(claimed, Refused(message="account closed", code="account_closed"), actor="worker")
    record(order, stripe_refund_id="re_2", amount=refunded)
    assert undecided.reversals.filter(status="pending").exists()
    over = give_backs.decline(transfer_id=undecided.pk, actor="user:eva", reason="fraud")
    assert (over.status, over.declined, over.amount_kept_back) == (TransferStatus.CANCELED, declined, kept_back)
    assert not TransferReversal.objects.filter(status="pending").exists()
    fails(order, stripe_refund_id="re_2", amount=refunded)
    again = order.transfers.latest("id")
    assert (again.gives_back_of, again.amount, again.last_error_code) == (undecided, given_back, GIVE_BACK_UNDECIDED)


# --- The database's own guard -----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_more_than_was_reversed_cannot_be_given_back() -> None:
    transfer = SellerTransferFactory(reversed=True, amount=5000)
    undone = transfer.reversals.get()
    again = {"order": transfer.order, "seller": transfer.seller, "gives_back_of": transfer, "undoes": undone}
    SellerTransferFactory(amount=3000, **again)
    SellerTransferFactory(amount=2000, **again)
    with pytest.raises(IntegrityError, match="more would be given back than was taken"), transaction.atomic():
        SellerTransferFactory(amount=1, **again)


@pytest.mark.django_db
def test_more_than_was_kept_back_cannot_be_given_back() -> None:
    transfer = SellerTransferFactory(completed=True, amount=5000, amount_kept_back=300)
    again = {"order": transfer.order, "seller": transfer.seller, "gives_back_of": transfer}
    SellerTransferFactory(amount=300, **again)
    with pytest.raises(IntegrityError, match="more would be given back than was taken"), transaction.atomic():
        SellerTransferFactory(amount=1, **again)


@pytest.mark.django_db
def test_what_did_not_come_back_cannot_be_given_back() -> None:
    transfer = SellerTransferFactory(reversal_pending=True, amount=5000)
    with pytest.raises(IntegrityError, match="more would be given back than was taken"), transaction.atomic():
        SellerTransferFactory(
            amount=1,
            order=transfer.order,
            seller=transfer.seller,
            gives_back_of=transfer,
            undoes=transfer.reversals.get(),
        )


@pytest.mark.django_db
def test_a_transfer_never_owes_more_than_it_was() -> None:
    transfer = SellerTransferFactory(partially_reversed=True, amount=5000, amount_reversed=2000)
    owed = TransferReversalFactory(transfer=transfer, amount=2900)
    with pytest.raises(IntegrityError, match="would owe more than it was"), transaction.atomic():
        TransferReversalFactory(transfer=transfer, amount=101, cause="operator", refund=None)
    TransferReversalFactory(transfer=transfer, amount=100, cause="operator", refund=None)
    owed.change(actor="test", reason="no longer wanted", unwanted_amount=50)
    TransferReversalFactory(transfer=transfer, amount=50, cause="operator", refund=None)


@pytest.mark.django_db
@pytest.mark.parametrize(("stripe_status", "counts"), [("", True), ("failed", False), ("canceled", False)])
def test_a_debt_that_a_person_has_to_see_to_counts_unless_it_was_replaced(stripe_status: str, counts: bool) -> None:
    transfer = SellerTransferFactory(permanently_failed=True, amount=5000, reversal=False)
    number = "trr_1" if stripe_status else ""
    TransferReversalFactory(
        transfer=transfer, failed=True, amount=5000, stripe_reversal_id=number, stripe_status=stripe_status
    )
    more = {"transfer": transfer, "amount": 1, "cause": "operator", "refund": None}
    if counts:
        with pytest.raises(IntegrityError, match="would owe more than it was"), transaction.atomic():
            TransferReversalFactory(**more)
    else:
        TransferReversalFactory(**more)
