"""The leak finder: refunds and lost disputes whose sellers have not given their part, to the cent."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace.models import Dispute, Drift, Order, Reconciliation, Refund, RefundItem, TransferReversal
from marketplace.services import clawback, disputes
from marketplace.states import OrderStatus, RefundStatus, TransferStatus
from tests.factories import RefundFactory, SellerFactory, SellerTransferFactory
from tests.reconciliation.conftest import Reconcile, kinds, last_run, only, receive, rewrite, tamper, the_transfer
from tests.services.conftest import Make

pytestmark = pytest.mark.django_db
LEAK, NOT_RECORDED, DISPUTE = Drift.NOT_CLAWED_BACK, Drift.REFUND_NOT_RECORDED, Drift.DISPUTE_NOT_RECORDED


def leaked(found: Any) -> dict[str, tuple[int, str]]:
    """By account what was not given."""
    return {each.stripe_account_id: (each.amount, each.currency) for each in found if each.kind == LEAK}


# --- Our own orders ---------------------------------------------------------------------------------------------------


def accounts(order: Order) -> list[str]:
    return list(order.transfers.order_by("id").values_list("seller__stripe_account_id", flat=True))


def test_a_refund_whose_webhooks_never_came_is_recorded_and_clawed_back(
    reconcile: Reconcile, sold: Make, refund: Any, work: Any
) -> None:
    order = sold((3000, 2000))
    made = refund(order, 1000, told=False)
    found = reconcile()
    assert kinds(found) == sorted([(NOT_RECORDED, False), (LEAK, False), (LEAK, False)])
    # Of 50.00 each seller got 90 %: of 10.00 it gives 5.40 and 3.60, the platform 1.00.
    assert leaked(found) == dict(zip(accounts(order), [(540, "eur"), (360, "eur")], strict=True))
    assert not Refund.objects.exists()
    healed = reconcile(fix=True)
    assert kinds(healed) == sorted([(NOT_RECORDED, True), (LEAK, True), (LEAK, True)])
    row = Refund.objects.get()
    assert (row.stripe_refund_id, row.status, row.amount) == (made["id"], RefundStatus.SUCCEEDED, 1000)
    order.refresh_from_db()
    assert (order.status, order.amount_refunded) == (OrderStatus.PARTIALLY_REFUNDED, 1000)
    assert set(row.history.values_list("pgh_context__actor", flat=True)) == {"reconcile"}
    work()
    assert reconcile() == []
    assert sorted(order.transfers.values_list("amount_reversed", flat=True)) == [360, 540]


def test_a_refund_that_failed_and_counts_here_is_recorded_and_given_back(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any, work: Any
) -> None:
    order = sold()
    made = refund(order)
    simulator.fail_refund(made["id"])
    found = only(reconcile(), NOT_RECORDED)
    assert (found.detail, found.amount) == ("failed at Stripe, not so here", 3000)
    only(reconcile(fix=True), NOT_RECORDED, healed=True)
    work()
    assert Refund.objects.get().status == RefundStatus.FAILED
    assert order.transfers.filter(gives_back_of__isnull=False, status=TransferStatus.COMPLETED).count() == 1
    assert reconcile() == []


@pytest.mark.parametrize(("days", "is_seen"), [(29, True), (38, False)])
def test_a_refund_of_before_the_period_that_failed_in_it_is_recorded(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any, days: int, is_seen: bool
) -> None:
    """The bank may give it back for 30 days. Lists have no date of that, only that of the refund."""
    simulator.clock.freeze(timezone.now().timestamp() - days * 86_400)
    made = refund(sold())
    Refund.objects.update(created_at=timezone.now() - timedelta(days=days))
    simulator.clock.advance(days * 86_400)
    simulator.fail_refund(made["id"])
    found = reconcile(since=timezone.now() - timedelta(days=7), fix=True)
    assert kinds(found) == [(NOT_RECORDED, True)] * is_seen


def test_an_old_refund_of_an_old_sale_is_not_looked_at_in_each_run(
    reconcile: Reconcile, history: "History", simulator: Any
) -> None:
    simulator.clock.freeze(timezone.now().timestamp() - 20 * 86_400)
    charge, _, _ = history.sale(10_000, (9000,))
    simulator.create_refund(charge, 1000, status="succeeded")
    simulator.clock.advance(20 * 86_400)
    assert reconcile(since=timezone.now() - timedelta(days=7)) == []
    assert last_run().counts["refunds"] == 1
    assert "looked_at_again" not in last_run().counts
    simulator.create_refund(charge, 1000, status="succeeded")
    assert only(reconcile(since=timezone.now() - timedelta(days=7)), LEAK).amount == 1800


def test_a_refund_of_another_amount_than_ours_is_told(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any
) -> None:
    made = refund(sold(), 1000)
    tamper(simulator, "refund", made["id"], amount=900)
    found = only(reconcile(fix=True), Drift.REFUND_DIFFERS)
    row = Refund.objects.get()
    assert (found.subject, found.stripe_id) == (str(row), made["id"])
    assert (found.amount, found.currency, found.detail) == (100, "eur", "1000 eur here, 900 eur at Stripe")


def test_a_refund_that_stripe_does_not_have_is_missing(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any, work: Any
) -> None:
    """Also of a charge of which Stripe lists another one, and nothing else."""
    alone, one_of_two = refund(sold(), 1000), refund(order := sold(), 1000)
    refund(order, 500)
    failed = refund(order, 100)
    simulator.fail_refund(failed["id"])
    receive(simulator, "refund.failed", failed["id"])
    work()
    assert reconcile() == []
    forget_refund(simulator, failed["id"])
    forget_refund(simulator, alone["id"])
    forget_refund(simulator, one_of_two["id"])
    found = reconcile(fix=True)
    assert kinds(found) == [(Drift.MISSING, False)] * 2
    assert {each.stripe_id for each in found} == {alone["id"], one_of_two["id"]}
    row = Refund.objects.get(stripe_refund_id=alone["id"])
    told = {each.stripe_id: each for each in found}[alone["id"]]
    assert (told.subject, told.amount, told.currency) == (str(row), 1000, "eur")
    assert told.detail == f"succeeded here, Stripe has no such refund of {row.order.stripe_charge_id}"
    assert last_run().counts["rows_not_listed"] == 2
    assert last_run().counts["refunds"] == 1


def test_a_refund_that_failed_or_is_of_before_the_period_is_not_missed(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any
) -> None:
    failed, old = refund(sold()), refund(sold())
    simulator.fail_refund(failed["id"])
    receive(simulator, "refund.failed", failed["id"])
    for each in (failed, old):
        forget_refund(simulator, each["id"])
    Refund.objects.filter(stripe_refund_id=old["id"]).update(created_at=timezone.now() - timedelta(days=8))
    assert reconcile(since=timezone.now() - timedelta(days=7)) == []
    assert only(reconcile(), Drift.MISSING).stripe_id == old["id"]


def test_a_refund_recorded_late_is_found_at_stripe_by_the_second_look(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any
) -> None:
    simulator.clock.freeze(timezone.now().timestamp() - 60 * 86_400)
    refund(sold())
    simulator.clock.advance(60 * 86_400)
    assert reconcile(since=timezone.now() - timedelta(days=7)) == []
    # And the transfer.
    assert last_run().counts["looked_at_again"] == 2


def forget_refund(simulator: Any, stripe_id: str) -> None:
    with simulator.core.world.transaction() as world:
        world.store.remove(world.platform, "refund", stripe_id)


def test_a_success_that_came_after_the_last_event_we_heard_is_recorded(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    order = sold()
    simulator.clock.freeze()
    made = simulator.create_refund(order.stripe_charge_id, status="pending")
    simulator.clock.advance(60)
    simulator.require_action(made["id"])
    receive(simulator, "refund.updated", made["id"])
    assert reconcile() == []
    simulator.succeed_refund(made["id"])
    assert kinds(reconcile(fix=True)) == sorted([(NOT_RECORDED, True), (LEAK, True)])
    assert Refund.objects.get().status == RefundStatus.SUCCEEDED
    # The event itself may come after all, and changes nothing.
    receive(simulator, "refund.updated", made["id"])
    assert TransferReversal.objects.count() == 1


def test_a_refund_of_items_whose_success_we_have_not_heard_of_is_their_sellers(
    reconcile: Reconcile, sold: Make, refund: Any
) -> None:
    """All sellers of the order were told to owe a part of it."""
    order = sold((3000, 2000))
    made = refund(order, 3000, told=False)
    row = RefundFactory(order=order, pending=True, amount=3000, by_items=True, stripe_refund_id=made["id"])
    item = order.items.order_by("id")[0]
    RefundItem.objects.create(refund=row, item=item, quantity=1, amount=3000)
    assert leaked(reconcile()) == {accounts(order)[0]: (2700, "eur")}


def test_of_another_amount_than_our_row_s_the_goods_are_not_known(
    reconcile: Reconcile, sold: Make, refund: Any
) -> None:
    order = sold((3000, 2000))
    made = refund(order, 2000, told=False)
    row = RefundFactory(order=order, pending=True, amount=3000, by_items=True, stripe_refund_id=made["id"])
    RefundItem.objects.create(refund=row, item=order.items.order_by("id")[0], quantity=1, amount=3000)
    first, second = accounts(order)
    assert leaked(reconcile()) == {first: (1080, "eur"), second: (720, "eur")}


def test_one_that_we_ask_stripe_for_is_the_workers(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    order = sold()
    row = RefundFactory(order=order, amount=1000)
    metadata = {"operation_id": str(row.operation_id)}
    simulator.create_refund(order.stripe_charge_id, 1000, status="succeeded", metadata=metadata)
    assert reconcile() == []


def test_what_a_seller_was_never_asked_for_is_a_leak(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any
) -> None:
    order = sold()
    tamper(simulator, "refund", refund(order, 1000)["id"], amount=1500)
    rewrite(Refund.objects.get(), amount=1500, seller_parts=None, platform_part=None)
    # As though 15.00 had been recorded with 9.00 asked for.
    found = only(reconcile(fix=True), LEAK)
    assert (found.amount, found.remedy) == (450, "")


def test_a_lost_dispute_whose_events_never_came_is_recorded_and_clawed_back_to_the_cent(
    reconcile: Reconcile, sold: Make, simulator: Any, work: Any
) -> None:
    order = sold((3000, 2000))
    dispute = simulator.open_dispute(order.stripe_charge_id, 999)
    simulator.close_dispute(dispute["id"], "lost")
    found = reconcile()
    assert kinds(found) == sorted([(DISPUTE, False), (LEAK, False), (LEAK, False)])
    assert leaked(found) == dict(zip(accounts(order), [(539, "eur"), (360, "eur")], strict=True))
    assert sum(amount for amount, _ in leaked(found).values()) == 899
    assert all(dispute["id"] in each.detail for each in found if each.kind == LEAK)
    assert last_run().counts["disputes"] == 1
    (told,) = [each for each in found if each.kind == DISPUTE]
    assert (told.subject, told.stripe_id, told.amount, told.currency) == (str(order), dispute["id"], 999, "eur")
    assert told.detail == "lost at Stripe, counts for 9.99 EUR; unknown here"
    assert not Dispute.objects.exists()
    assert kinds(reconcile(fix=True)) == sorted([(DISPUTE, True), (LEAK, True), (LEAK, True)])
    row = Dispute.objects.get()
    assert (row.status, row.amount_lost, row.order) == ("lost", 999, order)
    assert set(row.history.values_list("pgh_context__actor", flat=True)) == {"reconcile"}
    work()
    assert reconcile() == []
    assert sorted(order.transfers.values_list("amount_reversed", flat=True)) == [360, 539]
    # The events may come after all, in any order, and change nothing.
    for type_ in ("charge.dispute.closed", "charge.dispute.created", "charge.dispute.funds_withdrawn"):
        receive(simulator, type_, dispute["id"])
    assert TransferReversal.objects.count() == 2
    assert reconcile() == []


def test_an_open_dispute_whose_events_never_came_counts_from_when_the_setting_says(
    reconcile: Reconcile, sold: Make, simulator: Any, settings: Any
) -> None:
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id, 1000)
    settings.DISPUTE_CLAWBACK_ON = "lost"
    assert reconcile() == []
    settings.DISPUTE_CLAWBACK_ON = "opened"
    found = reconcile(fix=True)
    assert kinds(found) == sorted([(DISPUTE, True), (LEAK, True)])
    assert leaked(found) == {accounts(order)[0]: (900, "eur")}
    assert f"needs_response dispute {dispute['id']}" in found[1].detail
    assert TransferReversal.objects.get().amount == 900


def test_a_setting_that_changed_makes_no_drift_of_a_dispute_of_which_all_is_known(
    reconcile: Reconcile, sold: Make, simulator: Any, settings: Any, work: Any
) -> None:
    settings.DISPUTE_CLAWBACK_ON = "lost"
    dispute = simulator.open_dispute(sold().stripe_charge_id, 1000)
    for type_ in ("charge.dispute.created", "charge.dispute.funds_withdrawn"):
        receive(simulator, type_, dispute["id"])
    settings.DISPUTE_CLAWBACK_ON = "opened"
    assert reconcile() == []


def test_an_inquiry_that_we_have_not_heard_of_is_no_drift(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    simulator.open_dispute(sold().stripe_charge_id, withdraw=False)
    assert reconcile() == []


@pytest.mark.parametrize("status", ["won", "prevented"])
def test_a_dispute_won_whose_event_never_came_is_recorded_and_given_back(
    reconcile: Reconcile, sold: Make, simulator: Any, work: Any, status: str
) -> None:
    """Stripe gave the platform its money back, and the sellers' stayed with the platform."""
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id, 1000)
    receive(simulator, "charge.dispute.funds_withdrawn", dispute["id"])
    work()
    assert reconcile() == []
    simulator.close_dispute(dispute["id"], status)
    found = only(reconcile(), DISPUTE)
    assert found.detail == f"{status} at Stripe, counts for 0.00 EUR; needs_response here, counts for 10.00 EUR"
    only(reconcile(fix=True), DISPUTE, healed=True)
    work()
    again = order.transfers.get(gives_back_of__isnull=False)
    assert (again.amount, again.status) == (900, TransferStatus.COMPLETED)
    assert reconcile() == []


def test_a_dispute_won_and_lost_again_in_the_same_second_as_the_last_event_is_recorded(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    """Of one second a win is the newer of the two, among events. What Stripe says now is newer than any."""
    simulator.clock.freeze()
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id, 1000)
    booked = simulator.close_dispute(dispute["id"], "won")["balance_transactions"]
    receive(simulator, "charge.dispute.closed", dispute["id"])
    tamper(simulator, "dispute", dispute["id"], status="lost", balance_transactions=[*booked, booked[0]])
    assert kinds(reconcile(fix=True)) == sorted([(DISPUTE, True), (LEAK, True)])
    assert Dispute.objects.get().status == "lost"
    assert reconcile() == []


@pytest.mark.parametrize("status", ["won", "warning_closed"])
def test_a_dispute_that_was_not_lost_is_no_leak(reconcile: Reconcile, sold: Make, simulator: Any, status: str) -> None:
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id, withdraw=status == "won")
    simulator.close_dispute(dispute["id"], status)
    assert reconcile() == []


def test_a_dispute_lost_without_money_is_no_leak(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    dispute = simulator.open_dispute(sold().stripe_charge_id, withdraw=False)
    simulator.close_dispute(dispute["id"], "lost")
    assert reconcile() == []


def test_what_was_taken_by_hand_for_a_lost_dispute_is_no_leak_and_is_not_taken_again(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id)
    simulator.close_dispute(dispute["id"], "lost")
    simulator.create_reversal(the_transfer(order).stripe_transfer_id)
    receive(simulator, "transfer.reversed", the_transfer(order).stripe_transfer_id)
    only(reconcile(fix=True), DISPUTE, healed=True)
    assert TransferReversal.objects.get().cause == TransferReversal.Cause.SEEN_AT_STRIPE
    assert reconcile() == []


def test_a_refund_and_a_lost_dispute_together_take_no_more_than_the_share(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any
) -> None:
    order = sold()
    refund(order, 1000)
    dispute = simulator.open_dispute(order.stripe_charge_id)
    simulator.close_dispute(dispute["id"], "lost")
    found = reconcile()
    assert kinds(found) == sorted([(DISPUTE, False), (LEAK, False)])
    assert leaked(found) == {accounts(order)[0]: (2700 - 900, "eur")}


def test_a_lost_dispute_that_was_recorded_is_no_leak(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id, 1000)
    simulator.close_dispute(dispute["id"], "lost")
    receive(simulator, "charge.dispute.closed", dispute["id"])
    assert TransferReversal.objects.get().amount == 900
    assert reconcile() == []


def test_what_our_row_says_is_lost_counts_where_it_is_as_new_as_stripes(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id, 1000)
    simulator.close_dispute(dispute["id"], "lost")
    receive(simulator, "charge.dispute.closed", dispute["id"])
    rewrite(order.disputes.get(), order_amount=1500, amount_lost=1500, platform_part=600)
    assert only(reconcile(), LEAK).amount == 450


def test_a_lost_dispute_in_another_currency_is_a_persons(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    dispute = simulator.open_dispute(sold().stripe_charge_id, 1000, currency="usd")
    simulator.close_dispute(dispute["id"], "lost")
    found = reconcile(fix=True)
    assert kinds(found) == sorted([(DISPUTE, True), (Drift.NEEDS_A_PERSON, False)])
    told = {each.kind: each for each in found}
    assert "a person has to say how much of the order it is" in told[DISPUTE].detail
    assert (told[DISPUTE].amount, told[DISPUTE].currency) == (1000, "usd")
    row = Dispute.objects.get()
    assert (row.amount_lost, row.last_error_code) == (0, disputes.ANOTHER_CURRENCY)
    # From now on it is a row of ours that waits.
    waiting = only(reconcile(fix=True), Drift.NEEDS_A_PERSON)
    assert (waiting.subject, waiting.stripe_id, waiting.amount) == (str(row), dispute["id"], 1000)
    assert disputes.ANOTHER_CURRENCY in waiting.detail
    disputes.enter_amount(dispute_id=row.pk, amount=900, actor="somebody", reason="by the rate of that day")
    assert reconcile() == []


def test_a_dispute_opened_before_the_period_is_seen_when_it_is_lost(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    simulator.clock.freeze(timezone.now().timestamp() - 40 * 86_400)
    order = sold()
    dispute = simulator.open_dispute(order.stripe_charge_id)
    simulator.clock.advance(40 * 86_400)
    simulator.close_dispute(dispute["id"], "lost")
    found = reconcile(since=timezone.now() - timedelta(days=7))
    assert kinds(found) == sorted([(DISPUTE, False), (LEAK, False)])
    assert leaked(found) == {accounts(order)[0]: (2700, "eur")}


def test_an_order_that_knows_its_payment_and_not_its_charge_is_found(
    reconcile: Reconcile, sold: Make, refund: Any
) -> None:
    order = sold()
    refund(order, 1000, told=False)
    Order.objects.filter(pk=order.pk).update(stripe_charge_id="")
    assert {each.subject for each in reconcile()} == {str(order)}


# --- History ----------------------------------------------------------------------------------------------------------


class History:
    """What another program paid and refunded before this one was installed."""

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator

    def sale(self, amount: int, shares: tuple[int, ...], *, currency: str = "eur", by_source: bool = True) -> Any:
        """A charge and its sellers' accounts, each with its share."""
        group = None if by_source else f"old_{uuid.uuid4().hex}"
        charge = self.simulator.create_charge(amount, currency, transfer_group=group)
        source = {"source_transaction": charge["id"]} if by_source else {"transfer_group": group}
        found = [self.simulator.create_account()["id"] for _ in shares]
        made = [
            self.simulator.create_transfer(share, account, currency, **source)
            for share, account in zip(shares, found, strict=True)
        ]
        return charge["id"], found, [each["id"] for each in made]


@pytest.fixture
def history(simulator: Any) -> History:
    simulator.add_funds(1_000_000)
    return History(simulator)


@pytest.mark.parametrize("by_source", [True, False])
@pytest.mark.parametrize("lasts", ["all time", "the last hour, the charge is older"])
def test_refunds_of_old_sales_that_nobody_clawed_back_are_told_by_seller(
    reconcile: Reconcile, history: History, simulator: Any, by_source: bool, lasts: str
) -> None:
    if lasts != "all time":
        simulator.clock.freeze(timezone.now().timestamp() - 10 * 86_400)
    charge, (one, two), _ = history.sale(10_000, (6000, 3000), by_source=by_source)
    if lasts != "all time":
        simulator.clock.advance(10 * 86_400)
    made = simulator.create_refund(charge, 3333, status="succeeded")
    since = None if lasts == "all time" else timezone.now() - timedelta(hours=1)
    found = reconcile(since=since, fix=True)
    assert leaked(found) == {one: (2000, "eur"), two: (1000, "eur")}
    assert kinds(found) == [(LEAK, False)] * 2
    assert {(each.subject, each.stripe_id) for each in found} == {(f"charge {charge}", charge)}
    assert all(made["id"] in each.detail for each in found)


def test_what_was_reversed_then_is_taken_off(reconcile: Reconcile, history: History, simulator: Any) -> None:
    charge, (_, two), (first, second) = history.sale(10_000, (6000, 3000))
    simulator.create_refund(charge, status="succeeded")
    simulator.create_reversal(first)
    simulator.create_reversal(second, 2999)
    assert leaked(reconcile()) == {two: (1, "eur")}
    simulator.create_reversal(second)
    assert reconcile() == []


def test_what_was_reversed_while_a_run_was_broken_off_is_taken_off(
    reconcile: Reconcile, history: History, simulator: Any
) -> None:
    """Also of a transfer that its charge's group does not show."""
    charge, (seller,), _ = history.sale(10_000, (9000,))
    other = simulator.create_transfer(900, seller, "eur", source_transaction=charge, transfer_group="another")
    simulator.create_refund(charge, 1000, status="succeeded")

    def broken_off(run: Reconciliation) -> None:
        if run.step == "refunds":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconcile(tell=broken_off)
    simulator.create_reversal(other["id"], 900)
    assert leaked(reconcile()) == {seller: (90, "eur")}


def test_a_transfer_of_an_old_sale_that_stripe_does_not_have_any_more_gives_nothing(
    reconcile: Reconcile, history: History, simulator: Any
) -> None:
    charge, (seller,), _ = history.sale(10_000, (8000,))
    gone = simulator.create_transfer(1000, seller, "eur", source_transaction=charge, transfer_group="another")
    simulator.create_refund(charge, 1000, status="succeeded")

    def meanwhile(run: Reconciliation) -> None:
        if run.step == "refunds":
            with simulator.core.world.transaction() as world:
                world.store.remove(world.platform, "transfer", gone["id"])

    assert leaked(reconcile(tell=meanwhile)) == {seller: (800, "eur")}


@pytest.mark.parametrize(
    ("currency", "amount", "share", "refunded", "leak"),
    # Of three decimals the last must be 0; ISK ends in 00 (docs.stripe.com/currencies).
    [("kwd", 10_000, 9_000, 3_330, 3_000), ("isk", 100_000, 90_000, 33_300, 30_000)],
)
def test_what_is_told_of_an_old_sale_is_an_amount_that_stripe_takes(
    reconcile: Reconcile, history: History, currency: str, amount: int, share: int, refunded: int, leak: int,
    simulator: Any,
) -> None:  # fmt: skip
    simulator.add_funds(amount, currency)
    charge, (seller,), (transfer,) = history.sale(amount, (share,), currency=currency)
    simulator.create_refund(charge, refunded, status="succeeded")
    assert leaked(reconcile()) == {seller: (leak, currency)}
    simulator.create_reversal(transfer, leak)
    assert reconcile() == []


def test_several_refunds_of_one_old_sale_are_one_sum(reconcile: Reconcile, history: History, simulator: Any) -> None:
    charge, (seller,), (transfer,) = history.sale(10_000, (9000,))
    for amount in (1111, 2222, 3333):
        simulator.create_refund(charge, amount, status="succeeded")
    simulator.create_reversal(transfer, 999)
    assert leaked(reconcile()) == {seller: (5999 - 999, "eur")}


def test_refunds_that_did_not_succeed_take_nothing(reconcile: Reconcile, history: History, simulator: Any) -> None:
    charge, _, _ = history.sale(10_000, (9000,))
    simulator.create_refund(charge, 1000, status="pending")
    failed = simulator.create_refund(charge, 1000, status="succeeded")
    simulator.fail_refund(failed["id"])
    assert reconcile() == []


def test_an_old_dispute_that_was_lost_is_told(reconcile: Reconcile, history: History, simulator: Any) -> None:
    charge, (seller,), _ = history.sale(500, (450,), currency="jpy")
    simulator.close_dispute(simulator.open_dispute(charge, 100)["id"], "lost")
    assert leaked(reconcile()) == {seller: (90, "jpy")}


def test_an_old_dispute_of_which_money_came_back_takes_the_rest(
    reconcile: Reconcile, history: History, simulator: Any
) -> None:
    charge, (seller,), _ = history.sale(10_000, (9000,))
    simulator.close_dispute(simulator.open_dispute(charge, 1000)["id"], "lost", 400)
    assert leaked(reconcile()) == {seller: (540, "eur")}


def test_an_old_dispute_that_was_not_lost_takes_nothing(reconcile: Reconcile, history: History, simulator: Any) -> None:
    charge, _, _ = history.sale(10_000, (9000,))
    simulator.open_dispute(charge, 1000)
    simulator.close_dispute(simulator.open_dispute(charge, 1000)["id"], "won")
    assert reconcile() == []


def test_an_old_dispute_in_another_currency_is_a_persons_and_added_to_nothing(
    reconcile: Reconcile, history: History, simulator: Any
) -> None:
    charge, (seller,), (transfer,) = history.sale(10_000, (9000,))
    simulator.create_refund(charge, 1000, status="succeeded")
    dispute = simulator.open_dispute(charge, 150_000, currency="jpy")
    assert leaked(reconcile()) == {seller: (900, "eur")}
    simulator.close_dispute(dispute["id"], "lost")
    found = reconcile(fix=True)
    assert leaked(found) == {seller: (900, "eur")}
    (told,) = [each for each in found if each.kind == Drift.NEEDS_A_PERSON]
    assert (told.subject, told.stripe_id, told.is_healed) == (f"charge {charge}", dispute["id"], False)
    assert (told.amount, told.currency) == (150_000, "jpy")
    simulator.create_reversal(transfer, 900)
    only(reconcile(), Drift.NEEDS_A_PERSON)
    # Where nothing is left to be taken there is nothing to decide.
    simulator.create_reversal(transfer)
    assert reconcile() == []


@pytest.mark.parametrize("days", [0, 10])
def test_an_old_sale_without_sellers_leaks_nothing(
    reconcile: Reconcile, history: History, simulator: Any, days: int
) -> None:
    """Asking for the transfers of no group would list those of all."""
    history.sale(10_000, (9000,))
    simulator.clock.freeze(timezone.now().timestamp() - days * 86_400)
    charge = simulator.create_charge(1000)
    simulator.clock.advance(days * 86_400)
    simulator.create_refund(charge["id"], status="succeeded")
    assert reconcile(since=timezone.now() - timedelta(days=1)) == []


def test_what_is_about_no_charge_is_none_of_ours(reconcile: Reconcile, history: History, simulator: Any) -> None:
    charge, _, _ = history.sale(10_000, (9000,))
    tamper(simulator, "refund", simulator.create_refund(charge, 5000, status="succeeded")["id"], charge=None)
    dispute = simulator.open_dispute(charge)
    simulator.close_dispute(dispute["id"], "lost")
    tamper(simulator, "dispute", dispute["id"], charge=None)
    assert reconcile() == []


def test_all_refunds_of_a_charge_count_however_many(
    reconcile: Reconcile, history: History, simulator: Any, small_pages: Any
) -> None:
    charge, (seller,), _ = history.sale(10_000, (9000,))
    for _ in range(7):
        simulator.create_refund(charge, 100, status="succeeded")
    assert leaked(reconcile()) == {seller: (630, "eur")}


def test_a_transfer_in_another_currency_than_the_charge_settled_in_gives_in_proportion(
    reconcile: Reconcile, history: History, simulator: Any
) -> None:
    charge = simulator.create_charge(10_000, "eur", transfer_group="mixed")
    seller = simulator.create_account()["id"]
    simulator.create_transfer(701, seller, "usd", transfer_group="mixed")
    other = simulator.create_account()["id"]
    simulator.create_transfer(7010, other, "kwd", transfer_group="mixed")
    simulator.create_refund(charge["id"], 5000, status="succeeded")
    assert leaked(reconcile()) == {seller: (350, "usd"), other: (3500, "kwd")}


def test_rows_of_an_older_system_are_found_by_their_transfers(
    reconcile: Reconcile, history: History, simulator: Any
) -> None:
    """Their orders do not know the charge."""
    charge, (account,), (transfer,) = history.sale(5000, (4500,))
    row = SellerTransferFactory(
        completed=True, amount=4500, stripe_transfer_id=transfer, seller=SellerFactory(stripe_account_id=account)
    )
    rewrite(row.order, amount=5000)
    simulator.create_refund(charge, 1000, status="succeeded")
    found = reconcile()
    assert leaked(found) == {account: (900, "eur")}
    assert {each.subject for each in found} == {str(row.order)}
    # The refund names a charge that the order does not have: a person connects the two.
    (refused,) = [each for each in reconcile(fix=True) if each.kind == NOT_RECORDED]
    assert not refused.is_healed
    assert "not healed: " in refused.detail


def test_targets_are_those_of_the_services(reconcile: Reconcile, sold: Make, refund: Any, simulator: Any) -> None:
    """One arithmetic: what the finder says of our order is what the webhook makes its sellers owe."""
    order = sold((3333, 1667, 4))
    made = refund(order, 777, told=False)
    said = leaked(reconcile())
    receive(simulator, "refund.created", made["id"])
    owed = {row.transfer.seller.stripe_account_id: (row.amount, "eur") for row in TransferReversal.objects.all()}
    assert said == owed
    assert clawback.counts(Refund.objects.get())
