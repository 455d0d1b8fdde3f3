"""Sample data: as much as was asked for, the same for the same seed, and real at Stripe."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from marketplace import throttle
from marketplace.demo import seed
from marketplace.models import Dispute, Order, OrderItem, Product, Refund, Seller, SellerTransfer, TransferReversal
from marketplace.simulator import StripeSimulator
from marketplace.states import OrderStatus, RefundStatus, TransferStatus
from marketplace.workers import reversal

Run = Callable[..., str]
SMALL = ("seed_demo", "--sellers", "3", "--orders", "4", "--refund-fraction", "0.5")


def bought() -> list[tuple[str, str, int, int, str]]:
    items = OrderItem.objects.order_by("order_id", "id").select_related("order__buyer", "product", "seller")
    return [
        (item.order.buyer.username, item.product.name, item.quantity, item.unit_amount, item.order.currency)
        for item in items
    ]


def test_it_makes_as_much_as_was_asked_for(run: Run, simulator: Any) -> None:
    printed = run(*SMALL, "--sellers-per-order", "2", "--seed", "7")
    assert Seller.objects.count() == 3
    assert Order.objects.count() == 4
    assert [order.transfers.count() for order in Order.objects.all()] == [2, 2, 2, 2]
    assert Order.objects.filter(status=OrderStatus.REFUNDED).count() == 2
    assert Refund.objects.filter(status=RefundStatus.SUCCEEDED).count() == 2
    by_status = SellerTransfer.objects.values_list("status", flat=True)
    assert sorted(by_status) == [TransferStatus.COMPLETED] * 4 + [TransferStatus.REVERSAL_PENDING] * 4
    assert "seed 7" in printed
    assert "orders refunded" in printed


def test_everything_it_tells_of_is_at_stripe(run: Run, simulator: Any, gateway: Any) -> None:
    run(*SMALL)
    reversal.worker(gateway).run_once()
    for transfer in SellerTransfer.objects.select_related("seller"):
        at_stripe = simulator.get(transfer.stripe_transfer_id)
        assert at_stripe["destination"] == transfer.seller.stripe_account_id
        assert (at_stripe["amount"], at_stripe["amount_reversed"]) == (transfer.amount, transfer.amount_reversed)
    assert set(SellerTransfer.objects.filter(order__status=OrderStatus.REFUNDED).values_list("status", flat=True)) == {
        TransferStatus.REVERSED
    }
    audit = simulator.audit()
    assert (audit["problems"], audit["suspicious"]) == ([], [])


def test_no_refund_waits_for_funds_however_many_there_are(run: Run) -> None:
    run("seed_demo", "--sellers", "2", "--orders", "6", "--refund-fraction", "1")
    assert set(Refund.objects.values_list("status", flat=True)) == {RefundStatus.SUCCEEDED}
    assert set(Order.objects.values_list("currency", flat=True)) == {"eur", "jpy"}


def test_a_dispute_is_opened_by_the_buyers_card_and_claws_back_what_was_sent(
    run: Run, simulator: Any, gateway: Any
) -> None:
    printed = run(*SMALL, "--disputes", "2")
    assert "disputes needs_response" in printed
    found = Dispute.objects.order_by("order_id")
    assert [(each.status, each.amount_lost) for each in found] == [
        ("needs_response", each.order.amount) for each in found
    ]
    assert set(found.values_list("order__status", flat=True)) == {OrderStatus.PAID}
    sent = SellerTransfer.objects.filter(order__disputes__isnull=False)
    assert set(sent.values_list("status", flat=True)) == {TransferStatus.REVERSAL_PENDING}
    reversal.worker(gateway).run_once()
    assert set(sent.values_list("status", flat=True)) == {TransferStatus.REVERSED}
    causes = TransferReversal.objects.filter(transfer__in=sent).values_list("cause", flat=True)
    assert set(causes) == {TransferReversal.Cause.DISPUTE}
    audit = simulator.audit()
    assert (audit["problems"], audit["suspicious"]) == ([], [])


def test_a_dispute_that_stripe_does_not_open_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.demo.ground.DISPUTED_METHOD", "pm_card_visa")
    monkeypatch.setattr("marketplace.demo.ground.DISPUTE_SECONDS", 0.1)
    with pytest.raises(CommandError, match=r"looking for the dispute of order \d+: Stripe shows none of ch_"):
        run(*SMALL, "--disputes", "1")


def test_a_stripe_that_does_not_show_disputes_is_told(run: Run, simulator: Any) -> None:
    simulator.faults.add("unavailable", endpoint="GET /v1/disputes")
    with pytest.raises(CommandError, match=r"Stripe does not answer, looking for the dispute of order \d+"):
        run(*SMALL, "--disputes", "1")


def test_no_order_is_both_refunded_and_disputed() -> None:
    orders = seed.plan(seed.Wanted(orders=8, refund_fraction=0.5, disputes=4)).orders
    assert all(order.is_refunded != order.is_disputed for order in orders)


def test_the_operator_asks_for_the_refunds_and_cannot_log_in(run: Run) -> None:
    run(*SMALL)
    operator = User.objects.get(username="demo-operator")
    assert operator.is_staff
    assert not operator.has_usable_password()
    assert set(Refund.objects.values_list("requested_by", flat=True)) == {operator.pk}


def test_a_second_run_adds_orders_to_the_same_sellers(run: Run, simulator: Any) -> None:
    run(*SMALL)
    first = bought()
    run(*SMALL)
    assert bought() == first + first
    assert (Seller.objects.count(), Product.objects.count(), Order.objects.count()) == (3, 6, 8)
    assert len([each for each in simulator.requests if each.path == "/v1/accounts"]) == 3


def test_another_stripe_gets_sellers_of_its_own(run: Run, settings: Any) -> None:
    run(*SMALL)
    before = set(Seller.objects.values_list("stripe_account_id", flat=True))
    with StripeSimulator(seed="another") as another:
        settings.STRIPE_API_BASE = another.url
        throttle.gateway.cache_clear()
        run(*SMALL)
    after = set(Seller.objects.exclude(user=None).values_list("stripe_account_id", flat=True))
    assert len(after) == 3
    assert before.isdisjoint(after)
    assert not Order.objects.filter(status=OrderStatus.PENDING).exists()


def test_a_seller_without_transfers_is_found_again_at_stripe(run: Run, simulator: Any) -> None:
    one_seller = ("seed_demo", "--sellers", "6", "--orders", "1", "--sellers-per-order", "1")
    run(*one_seller)
    run(*one_seller)
    assert Seller.objects.count() == 6


def test_the_plan_depends_on_the_seed_alone() -> None:
    assert seed.plan(seed.Wanted(seed=3)) == seed.plan(seed.Wanted(seed=3))
    assert seed.plan(seed.Wanted(seed=3)) != seed.plan(seed.Wanted(seed=4))


def test_more_of_it_leaves_the_beginning_as_it_was() -> None:
    few, many = (
        seed.plan(seed.Wanted(sellers=6, orders=orders, refund_fraction=0, seed=3)).orders for orders in (5, 50)
    )
    assert many[:5] == few


def test_sellers_of_one_seed_have_different_names() -> None:
    names = [seller.name for seller in seed.plan(seed.Wanted(sellers=50)).sellers]
    assert len(set(names)) == 50


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sellers", "0"), "argument --sellers: '0' is not valid: expected a whole number from 1 to 1000"),
        (("--orders", "many"), "argument --orders: 'many' is not valid: expected a whole number"),
        (("--orders=-1",), "argument --orders: '-1' is not valid"),
        (("--sellers-per-order", "1.5"), "argument --sellers-per-order: '1.5' is not valid"),
        (("--refund-fraction", "2"), "argument --refund-fraction: '2' is not valid: expected a number from 0 to 1"),
        (("--refund-fraction", "nan"), "argument --refund-fraction: 'nan' is not valid"),
        (("--refund-fraction", "half"), "argument --refund-fraction: 'half' is not valid"),
        (("--disputes=-1",), "argument --disputes: '-1' is not valid"),
        (
            ("--orders", "4", "--disputes", "4"),
            "--disputes 4 is not valid: expected at most the orders that are not refunded, which are 3",
        ),
        (("--seed", "x"), "argument --seed: 'x' is not valid"),
        (("--sellers", "2", "--sellers-per-order", "3"), "--sellers-per-order 3 is not valid: expected at most --sell"),
    ],
)
def test_nonsense_is_refused_by_name_with_what_is_accepted(flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError) as refused:
        call_command("seed_demo", *flags)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sk_live_1234567890", "STRIPE_SECRET_KEY is a live key"),
        ("rk_live_1234567890", "STRIPE_SECRET_KEY is a live key"),
        ("", "STRIPE_SECRET_KEY is not set"),
    ],
)
@pytest.mark.parametrize("command", ["seed_demo", "smoke_probe"])
def test_it_starts_with_a_test_key_only(settings: Any, command: str, key: str, said: str) -> None:
    settings.STRIPE_SECRET_KEY = key
    with pytest.raises(CommandError, match=said) as refused:
        call_command(command)
    assert "1234567890" not in str(refused.value)


def test_a_stripe_that_does_not_answer_is_named_and_nothing_is_claimed(run: Run, simulator: Any) -> None:
    simulator.faults.add("unavailable")
    printed = io.StringIO()
    with pytest.raises(CommandError, match="Stripe does not answer, opening the account of"):
        call_command(*SMALL, stdout=printed)
    assert not Seller.objects.exists()
    assert "orders" not in printed.getvalue()


def test_a_stripe_that_goes_away_half_way_is_told_with_what_was_done(run: Run, simulator: Any) -> None:
    rule = simulator.faults.add("unavailable", endpoint="POST /v1/payment_intents", nth=(3,))
    with pytest.raises(CommandError, match=r"paying for order \d+: .*\nStopped after 3 sellers, 2 orders paid, 0 ref"):
        run(*SMALL)
    simulator.faults.remove(rule)
    run(*SMALL)
    assert Order.objects.exclude(status=OrderStatus.PENDING).count() == 6


def test_transfers_that_cannot_be_sent_are_told(run: Run, simulator: Any) -> None:
    simulator.faults.add("unavailable", endpoint="POST /v1/transfers")
    with pytest.raises(CommandError, match=r"none of the \d+ transfers could be sent"):
        run(*SMALL)
    assert set(SellerTransfer.objects.values_list("status", flat=True)) == {TransferStatus.FAILED}


def test_a_key_that_is_refused_half_way_is_told(run: Run, simulator: Any) -> None:
    simulator.faults.add("unauthorized", endpoint="POST /v1/transfers")
    with pytest.raises(CommandError, match="Stripe refuses our key or its permissions, sending transfers"):
        run(*SMALL)


def test_a_card_that_is_refused_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.demo.ground.PAYMENT_METHOD", "pm_card_chargeDeclined")
    with pytest.raises(CommandError, match=r"Stripe says no, paying for order \d+: Your card was declined"):
        run(*SMALL)
