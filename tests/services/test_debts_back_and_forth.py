"""Debts that are netted, paid by hand, written off and retried, while refunds of older and newer orders succeed and
fail: at the end the seller has what is due over all orders.
"""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db.models import F, Sum
from django.test.utils import override_settings
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from marketplace.errors import NotAllowedNow
from marketplace.models import DebtEntry, Order, Seller, SellerTransfer, TransferReversal
from marketplace.services import clawback, debts, payments, transfers
from marketplace.states import RefundStatus
from tests.factories import SellerFactory, order_with_items
from tests.inbox.test_any_order import rolled_back
from tests.services.conftest import kept_at_stripe
from tests.services.test_back_and_forth import take
from tests.services.test_payments import facts

BY_HAND = {"paid": debts.pay_by_hand, "written_off": debts.write_off}


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, int, int, bool]]:
    """Each step with the number of an order or debt, an amount, and whether the workers work and the seller spends all
    that there is after it.
    """
    steps = [*2 * ["sell", "fail", "earn"], *3 * ["refund"], "paid", "written_off", "retry"]
    one = st.tuples(
        st.sampled_from(steps), st.integers(0, 5), st.integers(1, 2000), st.sampled_from([True, True, True, False])
    )
    return [("sell", 0, draw(st.integers(100, 3000)), True), *draw(st.lists(one, min_size=6, max_size=20))]


@settings(
    max_examples=30, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(story=stories())
def test_whatever_is_netted_paid_and_retried_the_seller_ends_with_what_is_due(
    db: None, simulator: Any, work: Any, story: list[tuple[str, int, int, bool]]
) -> None:
    with rolled_back(), override_settings(NET_DEBTS=True, REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE=timedelta(0)):
        simulator.reset()
        simulator.add_funds(1_000_000)
        seller = SellerFactory(stripe_account_id=simulator.create_account()["id"])
        orders: list[Order] = []
        for number, (step, which, amount, rests) in enumerate(story):
            act(orders, seller, number, step, which, amount, simulator=simulator)
            if rests:
                work()
                simulator.may_go_negative(seller.stripe_account_id, False)
                simulator.pay_out(seller.stripe_account_id)
        simulator.may_go_negative(seller.stripe_account_id, True)
        for _ in range(3):
            retry_all()
            work()
        due = kept = 0
        for order in orders:
            standing = clawback.losses(list(order.refunds.filter(status=RefundStatus.SUCCEEDED)))
            row = order.transfers.get(gives_back_of=None)
            untouched = clawback.Holding(seller=row.seller_id, share=row.share, taken=0)
            due += row.share - clawback.plan(order, standing, [untouched])[0]
            kept += sum(kept_at_stripe(simulator, order))
        entered = dict(DebtEntry.objects.values_list("kind").annotate(Sum("amount")).order_by())
        due += entered.get("paid", 0)
        assert due <= kept <= due + entered.get("written_off", 0)
        assert not SellerTransfer.objects.filter(next_retry_at__isnull=False).exists()
        assert not TransferReversal.objects.filter(status__in=["pending", "failed"]).exists()
        assert not SellerTransfer.objects.exclude(amount_reversed__lte=F("amount")).exists()


def act(
    orders: list[Order],
    seller: Seller,
    number: int,
    step: str,
    which: int,
    amount: int,
    *,
    simulator: Any,
) -> None:
    if step == "sell":
        orders.append(sell(seller, amount + 100, simulator))
    elif step in {"refund", "fail"}:
        what = amount if step == "refund" else which
        take(orders[which % len(orders)], number, step, what, simulator=simulator, work=None)
    elif step == "earn":
        simulator.add_funds(amount, account=seller.stripe_account_id)
    elif step in BY_HAND:
        owed = list(TransferReversal.objects.filter(status="failed").order_by("id"))
        if owed:
            debt = owed[which % len(owed)]
            part = min(amount, max(debt.amount_open, 1))
            with suppress(NotAllowedNow):
                BY_HAND[step](reversal_id=debt.pk, amount=part, actor="user:ann", reason="-")
    else:
        retry_all()


def sell(seller: Seller, amount: int, simulator: Any) -> Order:
    charge = simulator.create_charge(amount)
    order = order_with_items((amount,), commission_basis_points=1000)
    order.items.update(seller=seller)
    told = {"stripe_payment_intent_id": charge["payment_intent"], "stripe_charge_id": charge["id"]}
    payments.record(facts(order, **told), actor="stripe")
    order.refresh_from_db()
    return order


def retry_all() -> None:
    for row in SellerTransfer.objects.filter(status="permanently_failed").order_by("id"):
        transfers.retry(transfer_id=row.pk, actor="user:ann", reason="-")
