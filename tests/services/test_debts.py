"""What a seller owes that Stripe could not take back: netted, paid by hand, written off; and never twice."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import selectors
from marketplace.errors import ConflictingFacts, NotAllowedNow, TooMuch
from marketplace.gateway.contract import PaymentFacts, Refused, ReversalFacts, Reversed, ServerError
from marketplace.models import Debt, DebtEntry, Order, Seller, SellerTransfer, TransferReversal
from marketplace.services import debts, payments, reversal_claims, reversal_settling, transfers
from marketplace.states import ReversalStatus
from tests.factories import (
    SellerFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    UserFactory,
    order_with_items,
    order_with_transfers,
)
from tests.services.test_confirmation import wait_until_blocked
from tests.services.test_payments import facts as payment_facts
from tests.services.test_refunds import NOON, record

pytestmark = pytest.mark.django_db


def debt(amount: int = 1000, *, seller: Seller | None = None, of: int | None = None, **fields: Any) -> TransferReversal:
    """Of a transfer of ``of``, so much could not be had."""
    named = {"seller": seller} if seller else {}
    currency = {"currency": fields.pop("currency")} if "currency" in fields else {}
    transfer = SellerTransferFactory(permanently_failed=True, amount=of or amount, reversal=False, **named, **currency)
    return TransferReversalFactory(transfer=transfer, failed=True, amount=amount, **fields)


def paid(seller: Seller, amount: int = 1000, *, currency: str = "eur") -> SellerTransfer:
    """The seller's transfer of a new order, whose payment has just succeeded; without commission."""
    order = order_with_items((amount,), currency=currency, commission_basis_points=0)
    order.items.update(seller=seller)
    payments.record(payment(order), actor="stripe")
    return SellerTransfer.objects.select_related("order").get(order=order)


def payment(order: Order) -> PaymentFacts:
    named = {"stripe_payment_intent_id": f"pi_{order.pk}", "stripe_charge_id": f"ch_{order.pk}"}
    return payment_facts(order, currency=order.currency, **named)


def books() -> None:
    """What a commit would look at, and the checked query."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
    assert selectors.debt_drift() == []


def pay(owed: TransferReversal, amount: int, **changes: Any) -> debts.Entered:
    asked = {"actor": "user:ann", "reason": "by bank transfer", **changes}
    return debts.pay_by_hand(reversal_id=owed.pk, amount=amount, **asked)


def shown(owed: TransferReversal) -> tuple[str, int, int, str]:
    owed = TransferReversal.objects.select_related("transfer").get(pk=owed.pk)
    return owed.status, owed.amount_recovered, owed.amount_written_off, owed.transfer.status


def taken_elsewhere(owed: TransferReversal, amount: int) -> None:
    """Somebody reversed so much of its transfer in Stripe's dashboard."""
    of_it = {"transfer": owed.transfer, "amount": amount, "cause": "seen_at_stripe", "refund": None}
    theirs = TransferReversalFactory(succeeded=True, **of_it)
    proof = {"amount_reversed": amount, "stripe_reversal_id": theirs.stripe_reversal_id}
    SellerTransfer.objects.filter(pk=owed.transfer_id).update(**proof)


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_a_debt_paid_in_full_needs_nobody_any_more() -> None:
    owed = debt()
    entry = pay(owed, 1000).entry
    books()
    assert shown(owed) == ("canceled", 1000, 0, "completed")
    assert (entry.kind, entry.amount, entry.currency, entry.transfer, entry.actor, entry.reason) == (
        "paid",
        1000,
        "eur",
        None,
        "user:ann",
        "by bank transfer",
    )
    assert not Debt.objects.open().exists()
    last = owed.history.latest("pgh_id")
    assert (last.pgh_context["actor"], last.pgh_context["reason"]) == ("user:ann", "paid by hand: by bank transfer")
    transfer = owed.transfer
    transfer.refresh_from_db()
    assert (transfer.last_error_code, transfer.failed_leg) == ("", "")


def test_of_a_debt_paid_in_part_the_rest_is_owed() -> None:
    owed = debt()
    pay(owed, 300)
    books()
    assert shown(owed) == ("failed", 300, 0, "permanently_failed")
    assert [(each.pk, each.amount_left) for each in Debt.objects.open()] == [(owed.pk, 700)]
    pay(owed, 700)
    books()
    assert shown(owed) == ("canceled", 1000, 0, "completed")


def test_a_debt_written_off_is_asked_for_no_more() -> None:
    owed = debt(600, of=1000)
    owed.transfer.change(actor="test", reason="-", amount_reversed=400, stripe_reversal_id="trr_1")
    debts.write_off(reversal_id=owed.pk, amount=600, actor="user:ann", reason="insolvent")
    books()
    assert shown(owed) == ("canceled", 0, 600, "partially_reversed")
    assert owed.debt_entries.get().kind == "written_off"


@pytest.mark.parametrize("amount", [1001, 10**15])
def test_more_than_is_left_is_refused(amount: int) -> None:
    owed = debt()
    with pytest.raises(TooMuch, match="more than the 1000 eur left"):
        pay(owed, amount)
    pay(owed, 1)
    with pytest.raises(TooMuch):
        pay(owed, 1000)
    assert owed.debt_entries.count() == 1


@pytest.mark.parametrize("status", ["pending", "succeeded", "canceled"])
def test_only_a_reversal_that_failed_is_a_debt(status: str) -> None:
    trait = {} if status == "pending" else {status: True}
    owed = TransferReversalFactory(**trait)
    with pytest.raises(NotAllowedNow, match=f"is {status}: only one that failed"):
        pay(owed, 1)


@pytest.mark.parametrize(
    "doubt",
    [{"refused": False}, {"unwanted_amount": 1}, {"stripe_reversal_id": "trr_9", "refused": False}],
    ids=["unknown outcome", "looked for", "pending at Stripe"],
)
def test_what_may_be_at_stripe_has_to_be_looked_for_first(doubt: dict[str, Any]) -> None:
    owed = debt(**doubt)
    with pytest.raises(NotAllowedNow, match=f"retry transfer {owed.transfer_id} first"):
        pay(owed, 1)
    with pytest.raises(NotAllowedNow):
        debts.write_off(reversal_id=owed.pk, amount=1, actor="user:ann", reason="-")


def test_one_that_stripe_gave_up_is_no_debt_since_another_stands_in_its_place() -> None:
    owed = debt(stripe_reversal_id="trr_9", stripe_status="failed", refused=False)
    assert not Debt.objects.open().exists()
    with pytest.raises(NotAllowedNow):
        pay(owed, 1)


def test_what_waited_behind_a_settled_debt_is_due() -> None:
    owed = debt(600, of=1000)
    behind = TransferReversalFactory(transfer=owed.transfer, amount=400, cause="operator", refund=None)
    pay(owed, 600)
    transfer = SellerTransfer.objects.get(pk=owed.transfer_id)
    assert (transfer.status, transfer.retry_count, transfer.failed_leg) == ("reversal_pending", 0, "")
    claimed = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=1))
    assert [each.reversal for each in claimed] == [behind]


def test_while_another_debt_of_the_transfer_is_open_a_person_is_needed() -> None:
    owed = debt(600, of=1000)
    TransferReversalFactory(transfer=owed.transfer, failed=True, amount=400, cause="operator", refund=None)
    pay(owed, 600)
    assert shown(owed) == ("canceled", 600, 0, "permanently_failed")


# --- Asked for twice --------------------------------------------------------------------------------------------------


def test_the_same_key_pays_once() -> None:
    owed = debt()
    request = debts.Request(by=UserFactory(), key="k-1")
    first, again = (pay(owed, 1000, request=request) for _ in range(2))
    assert (first.is_new, again.is_new, again.entry) == (True, False, first.entry)
    books()


@pytest.mark.parametrize(
    "other", [{"amount": 301}, {"reason": "cash"}, {"kind": "written_off"}], ids=["amount", "reason", "kind"]
)
def test_the_same_key_for_another_request_is_refused(other: dict[str, Any]) -> None:
    owed = debt()
    request = debts.Request(by=UserFactory(), key="k-1")
    pay(owed, 300, request=request)
    act = debts.write_off if other.pop("kind", "") else debts.pay_by_hand
    asked = {"amount": 300, "actor": "user:ann", "reason": "by bank transfer", **other}
    with pytest.raises(ConflictingFacts, match="'k-1' was used before"):
        act(reversal_id=owed.pk, request=request, **asked)


def test_the_key_of_another_debt_or_person() -> None:
    owed, other = debt(), debt()
    ann, bob = UserFactory(), UserFactory()
    pay(owed, 300, request=debts.Request(by=ann, key="k-1"))
    with pytest.raises(ConflictingFacts):
        pay(other, 300, request=debts.Request(by=ann, key="k-1"))
    assert pay(owed, 300, request=debts.Request(by=bob, key="k-1")).is_new


# --- Retried ----------------------------------------------------------------------------------------------------------


def test_the_same_key_for_two_debts_at_once_is_refused_for_the_later_one(
    transactional_db: None, unblocked_database: None
) -> None:
    one, other = debt(), debt()
    user = UserFactory()
    request = debts.Request(by=user, key="key-1")
    refused: list[ConflictingFacts] = []

    def pay_the_other() -> None:
        try:
            pay(other, 1000, request=request)
        except ConflictingFacts as error:
            refused.append(error)
        finally:
            connections.close_all()

    later = threading.Thread(target=pay_the_other)
    with transaction.atomic():
        # Written, and to be seen by nobody yet.
        one.change(actor="user:ann", reason="-", amount_recovered=300)
        DebtEntry.objects.create(
            reversal=one,
            kind="paid",
            amount=300,
            currency="eur",
            actor="user:ann",
            reason="-",
            requested_by=user,
            request_key="key-1",
        )
        later.start()
        wait_until_blocked()
    later.join(10)
    (error,) = refused
    assert "was used before" in error.message
    assert DebtEntry.objects.get().reversal == one
    assert shown(other)[:2] == ("failed", 0)


def test_any_other_broken_rule_of_the_database_is_no_used_key() -> None:
    with pytest.raises(IntegrityError):
        pay(debt(), -1)


def test_a_retry_asks_stripe_only_for_what_is_left() -> None:
    owed = debt(cause="refund")
    pay(owed, 300)
    debts.write_off(reversal_id=owed.pk, amount=100, actor="user:ann", reason="goodwill")
    transfers.retry(transfer_id=owed.transfer_id, actor="user:ann", reason="funds again")
    books()
    rest = TransferReversal.objects.get(status=ReversalStatus.PENDING)
    assert (rest.amount, rest.refund, rest.in_place_of) == (600, owed.refund, owed)
    assert shown(owed) == ("canceled", 300, 100, "reversal_pending")
    with pytest.raises(NotAllowedNow):
        pay(rest, 1)


@pytest.mark.parametrize(
    ("amount", "beside", "elsewhere"),
    # Of the last two each alone is no more than is left.
    [(1000, (), 300), (400, (350, 250), 300), (400, (250, 250), 200)],
)
def test_a_retry_takes_no_more_than_the_seller_has_left(amount: int, beside: tuple[int, ...], elsewhere: int) -> None:
    """What was settled stands beside what others took. Stripe knows of theirs alone, and would not refuse."""
    owed = debt(amount, of=1000)
    for other in beside:
        TransferReversalFactory(transfer=owed.transfer, failed=True, amount=other, cause="operator", refund=None)
    pay(owed, 400)
    taken_elsewhere(owed, elsewhere)
    transfers.retry(transfer_id=owed.transfer_id, actor="user:ann", reason="funds again")
    books()
    pending = TransferReversal.objects.filter(status="pending").values_list("amount", flat=True)
    assert sum(pending) == 1000 - 400 - elsewhere


def test_a_debt_that_is_retried_is_not_refused_any_more() -> None:
    owed = debt()
    transfers.retry(transfer_id=owed.transfer_id, actor="user:ann", reason="funds again")
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=1))
    assert claimed.reversal == owed
    SellerTransfer.objects.filter(pk=owed.transfer_id).update(retry_count=100)
    reversal_settling.settle(claimed, ServerError(message="503"), actor="w")
    owed.refresh_from_db()
    assert (owed.status, owed.refused) == (ReversalStatus.FAILED, False)


# --- Netting ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def netting(settings: Any) -> None:
    settings.NET_DEBTS = True


def amounts(transfer: SellerTransfer) -> tuple[str, int, int, int]:
    transfer = SellerTransfer.objects.get(pk=transfer.pk)
    return transfer.status, transfer.amount, transfer.amount_netted, transfer.amount_kept_back


def test_without_the_setting_nothing_is_netted() -> None:
    owed = debt()
    assert amounts(paid(owed.transfer.seller)) == ("pending", 1000, 0, 0)
    assert DebtEntry.objects.count() == 0


def test_a_debt_is_kept_from_the_sellers_next_transfer(netting: None) -> None:
    owed = debt(300)
    transfer = paid(owed.transfer.seller)
    books()
    assert amounts(transfer) == ("pending", 700, 300, 0)
    assert transfer.share == 1000
    assert shown(owed) == ("canceled", 300, 0, "completed")
    entry = DebtEntry.objects.get()
    assert (entry.kind, entry.amount, entry.reversal, entry.transfer, entry.actor) == (
        "netted",
        300,
        owed,
        transfer,
        "stripe",
    )


def test_where_more_is_owed_than_is_sold_nothing_is_sent(netting: None) -> None:
    owed = debt(1500)
    transfer = paid(owed.transfer.seller)
    books()
    assert amounts(transfer) == ("canceled", 0, 1000, 0)
    assert (transfer.next_retry_at, transfer.share) == (None, 1000)
    assert transfers.claim(batch_size=9, lease=timedelta(minutes=1)) == []
    assert shown(owed) == ("failed", 1000, 0, "permanently_failed")
    second = paid(owed.transfer.seller)
    books()
    assert amounts(second) == ("pending", 500, 500, 0)
    assert shown(owed) == ("canceled", 1500, 0, "completed")
    assert amounts(paid(owed.transfer.seller)) == ("pending", 1000, 0, 0)


def test_the_oldest_debts_are_netted_first(netting: None) -> None:
    seller = SellerFactory()
    first, second, third = (debt(400, seller=seller) for _ in range(3))
    TransferReversal.objects.filter(pk=third.pk).update(created_at=Now() - timedelta(days=3))
    paid(seller, 500)
    books()
    assert [shown(each)[1] for each in (first, second, third)] == [100, 0, 400]


def test_what_is_owed_in_place_of_an_old_debt_is_as_old(netting: None) -> None:
    seller = SellerFactory()
    old = debt(400, seller=seller, of=900)
    TransferReversal.objects.filter(pk=old.pk).update(created_at=Now() - timedelta(days=3))
    old.transition(ReversalStatus.CANCELED, actor="test", reason="-")
    young = debt(400, seller=seller)
    rest = TransferReversalFactory(transfer=old.transfer, refund=old.refund, failed=True, amount=400, in_place_of=old)
    paid(seller, 400)
    assert (shown(young)[1], shown(rest)[1]) == (0, 400)


@pytest.mark.parametrize(
    "other",
    [{"currency": "usd"}, {"refused": False}, {"unwanted_amount": 1}, {"seller": None}],
    ids=["another currency", "may be at Stripe", "looked for", "another seller"],
)
def test_not_everything_is_netted(netting: None, other: dict[str, Any]) -> None:
    seller = SellerFactory()
    owed = debt(**{"seller": seller, **other})
    assert amounts(paid(seller)) == ("pending", 1000, 0, 0)
    assert shown(owed)[:2] == ("failed", 0)


def test_where_others_took_a_part_a_person_decides_before_anything_is_netted(netting: None) -> None:
    """All of it was netted, and the seller had given more than the transfer."""
    owed = debt(1000)
    taken_elsewhere(owed, 400)
    assert amounts(paid(owed.transfer.seller, 5000)) == ("pending", 5000, 0, 0)
    transfers.retry(transfer_id=owed.transfer_id, actor="user:ann", reason="theirs was for another matter")
    rest = TransferReversal.objects.get(status=ReversalStatus.PENDING)
    assert (rest.amount, rest.in_place_of) == (600, owed)


def test_where_enough_is_left_beside_what_others_took_a_debt_is_netted(netting: None) -> None:
    owed = debt(500, of=1000)
    taken_elsewhere(owed, 500)
    assert amounts(paid(owed.transfer.seller, 5000)) == ("pending", 4500, 500, 0)
    assert shown(owed)[:2] == ("canceled", 500)


@pytest.mark.parametrize(("currency", "smallest"), [("isk", 100), ("kwd", 10)])
def test_after_netting_what_is_sent_is_an_amount_that_stripe_takes(netting: None, currency: str, smallest: int) -> None:
    """A seller paid an odd part by bank transfer. Stripe refused the next transfer, and each retry of it."""
    owed = debt(50 * smallest, currency=currency)
    pay(owed, 20 * smallest + 1)
    transfer = paid(owed.transfer.seller, 100 * smallest, currency=currency)
    books()
    assert amounts(transfer) == ("pending", 71 * smallest, 29 * smallest, 0)
    assert shown(owed)[0] == "failed"
    assert [each.amount_left for each in Debt.objects.open()] == [smallest - 1]
    second = paid(owed.transfer.seller, 100 * smallest, currency=currency)
    assert amounts(second) == ("pending", 100 * smallest, 0, 0)


def test_each_seller_of_an_order_pays_the_own_debt(netting: None) -> None:
    owing, free = debt(300), SellerFactory()
    order = order_with_items((1000, 1000), commission_basis_points=0)
    for item, seller in zip(order.items.order_by("id"), (free, owing.transfer.seller), strict=True):
        order.items.filter(pk=item.pk).update(seller=seller)
    payments.record(payment(order), actor="stripe")
    books()
    netted = dict(order.transfers.values_list("seller_id", "amount_netted"))
    assert netted == {free.pk: 0, owing.transfer.seller_id: 300}


def test_the_same_payment_again_nets_nothing_more(netting: None) -> None:
    owed = debt(1500)
    transfer = paid(owed.transfer.seller)
    order = transfer.order
    payments.record(payment(order), actor="stripe")
    assert DebtEntry.objects.count() == 1


# --- The order that paid is refunded ----------------------------------------------------------------------------------


def test_first_what_was_sent_comes_back_then_the_debt_stands_again(netting: None) -> None:
    owed = debt(300)
    transfer = paid(owed.transfer.seller)
    record(transfer.order, amount=600)
    books()
    assert amounts(transfer) == ("pending", 100, 300, 600)
    assert shown(owed)[:2] == ("canceled", 300)
    record(transfer.order, amount=250, stripe_refund_id="re_2")
    books()
    assert amounts(transfer) == ("canceled", 100, 150, 750)
    (again,) = owed.transfer.reversals.filter(status="pending")
    assert (again.amount, again.in_place_of, again.refund) == (150, owed, owed.refund)
    assert shown(owed) == ("canceled", 150, 0, "reversal_pending")
    assert [(each.amount, each.transfer) for each in owed.debt_entries.order_by("id")] == [
        (300, transfer),
        (-150, transfer),
    ]
    record(transfer.order, amount=150, stripe_refund_id="re_3")
    books()
    assert amounts(transfer) == ("canceled", 100, 0, 900)
    assert sum(each.amount for each in owed.transfer.reversals.filter(status="pending")) == 300


def test_of_a_debt_that_is_open_still_so_much_more_is_owed(netting: None) -> None:
    owed = debt(1500)
    transfer = paid(owed.transfer.seller)
    record(transfer.order)
    books()
    assert amounts(transfer) == ("canceled", 0, 0, 1000)
    assert shown(owed) == ("failed", 0, 0, "permanently_failed")
    assert [each.amount_left for each in debts.debts_of(owed.transfer.seller_id)] == [1500]


def test_of_several_debts_the_newest_netting_is_undone_first(netting: None) -> None:
    seller = SellerFactory()
    old, young = debt(300, seller=seller), debt(300, seller=seller)
    transfer = paid(seller, 600)
    record(transfer.order, amount=400)
    books()
    assert [shown(each)[1] for each in (old, young)] == [200, 0]


def test_what_others_took_meanwhile_is_not_owed_again(netting: None) -> None:
    owed = debt(300)
    transfer = paid(owed.transfer.seller, 300)
    SellerTransfer.objects.filter(pk=owed.transfer_id).update(
        amount_reversed=200, stripe_reversal_id="trr_1", status="partially_reversed"
    )
    record(transfer.order)
    books()
    assert sum(each.amount for each in owed.transfer.reversals.filter(status="pending")) == 100


def test_where_others_took_all_meanwhile_nothing_is_owed_again_and_it_is_said(netting: None) -> None:
    owed = debt(300)
    transfer = paid(owed.transfer.seller, 300)
    SellerTransfer.objects.filter(pk=owed.transfer_id).update(
        amount_reversed=300, stripe_reversal_id="trr_1", status="reversed"
    )
    with capture_logs() as logs:
        record(transfer.order)
    books()
    assert not owed.transfer.reversals.filter(status="pending").exists()
    (said,) = [line for line in logs if line["event"] == "netting_undone_without_debt"]
    assert (said["debt"], said["transfer"], said["amount"]) == (owed.pk, transfer.pk, 300)


def test_each_sellers_debt_stands_again_where_the_order_that_paid_several_is_refunded(netting: None) -> None:
    owed = [debt(300), debt(400)]
    order = order_with_items((1000, 1000), commission_basis_points=0)
    for item, each in zip(order.items.order_by("id"), owed, strict=True):
        order.items.filter(pk=item.pk).update(seller=each.transfer.seller)
    payments.record(payment(order), actor="stripe")
    record(Order.objects.get(pk=order.pk))
    books()
    assert [each.transfer.reversals.get(status="pending").amount for each in owed] == [300, 400]
    assert [shown(each)[1] for each in owed] == [0, 0]


def test_a_refund_that_fails_pays_what_was_not_netted_any_more(netting: None) -> None:
    owed = debt(300)
    transfer = paid(owed.transfer.seller)
    order = transfer.order
    record(order)
    record(order, status="failed", failure_reason="declined", seen_at=NOON + timedelta(days=1))
    books()
    again = order.transfers.get(gives_back_of=transfer)
    # The debt stands again, so the whole share is the seller's.
    assert (again.amount, again.status) == (1000, "pending")


def test_what_was_taken_otherwise_is_given_back_when_the_refund_fails() -> None:
    order = order_with_transfers((3000,), commission_basis_points=0)
    record(order)
    owed = given_up(order)
    pay(owed, 1000)
    debts.write_off(reversal_id=owed.pk, amount=500, actor="user:ann", reason="-")
    record(order, status="failed", failure_reason="declined", seen_at=NOON + timedelta(days=1))
    books()
    again = order.transfers.exclude(gives_back_of=None).get()
    assert (again.amount, again.undoes) == (1000, owed)
    assert not Debt.objects.open().exists()


@pytest.mark.parametrize("way", ["paid", "written off", "netted"])
def test_the_next_refund_does_not_take_again_what_was_settled(netting: None, way: str) -> None:
    order = order_with_transfers((3000,), commission_basis_points=0)
    record(order, amount=1000)
    owed = given_up(order)
    if way == "paid":
        pay(owed, 1000)
    elif way == "netted":
        paid(owed.transfer.seller)
    else:
        debts.write_off(reversal_id=owed.pk, amount=1000, actor="user:ann", reason="-")
    record(order, amount=500, stripe_refund_id="re_2")
    books()
    assert [each.amount for each in order.transfers.get().reversals.filter(status="pending")] == [500]


def given_up(order: Order) -> TransferReversal:
    """Stripe says no to what is owed on the order's only transfer."""
    SellerTransfer.objects.filter(pk=order.transfers.get().pk).update(next_retry_at=Now())
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=1))
    reversal_settling.settle(claimed, Refused(message="closed", code="account_invalid"), actor="w")
    owed: TransferReversal = claimed.reversal
    owed.refresh_from_db()
    assert owed.refused
    return owed


def come_back() -> None:
    """Stripe reverses all that is owed, but for what needs a person."""
    SellerTransfer.objects.filter(status="reversal_pending").update(next_retry_at=Now())
    while claims := reversal_claims.claim(batch_size=1, lease=timedelta(minutes=1)):
        owed = claims[0].reversal
        made = ReversalFacts(
            stripe_reversal_id=f"trr_{owed.pk}",
            amount=owed.amount,
            currency=owed.currency,
            operation_id=str(owed.operation_id),
        )
        reversal_settling.settle(claims[0], Reversed(reversal=made), actor="w")


def test_what_was_given_back_of_a_netting_that_is_undone_since_does_not_stop_the_next_give_back(netting: None) -> None:
    """The seller had it back by a transfer, and then it was owed again: more was given for that debt than it took."""
    later = {"status": "failed", "failure_reason": "declined", "seen_at": NOON + timedelta(days=1)}
    order = order_with_transfers((3000,), commission_basis_points=0)
    record(order, amount=1000)
    owed = given_up(order)
    newer = paid(owed.transfer.seller, 2000)
    assert newer.amount_netted == 1000
    record(order, amount=1000, **later)
    again = order.transfers.get(gives_back_of=owed.transfer)
    assert (again.amount, again.undoes) == (1000, owed)
    for each in (again, newer):
        sent = {"stripe_transfer_id": f"tr_{each.pk}", "next_retry_at": None}
        SellerTransfer.objects.filter(pk=each.pk).update(status="completed", **sent)
    record(newer.order, amount=1400, stripe_refund_id="re_newer")
    owed.refresh_from_db()
    assert owed.amount_recovered == 600
    come_back()
    record(order, amount=600, stripe_refund_id="re_2")
    come_back()
    record(order, amount=600, stripe_refund_id="re_2", **later)
    books()
    given = order.transfers.exclude(gives_back_of=None).order_by("id")
    assert [(each.amount, each.undoes.refund.stripe_refund_id) for each in given] == [(1000, "re_1"), (600, "re_2")]
