"""Refunds that succeed and fail, disputes that are opened, lost and won, in any order, beside any trouble of Stripe's:
at the end sellers have what is due.
"""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from marketplace.models import Order, TransferReversal
from marketplace.services import clawback
from marketplace.shares import Loss
from marketplace.states import RefundStatus
from tests.inbox.test_any_order import rolled_back
from tests.services.conftest import REVERSE, Make, kept_at_stripe
from tests.services.test_disputes import record as record_dispute
from tests.services.test_refunds import NOON, record

CREATE = "POST /v1/transfers"
TROUBLE = [
    (action, endpoint) for action in ("drop_after", "drop_before", "unavailable") for endpoint in (REVERSE, CREATE)
]


@st.composite
def stories(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "amounts": tuple(draw(st.lists(st.integers(50, 3000), min_size=1, max_size=3))),
        "sent": draw(st.booleans()),
        "steps": draw(
            st.lists(
                st.one_of(
                    st.tuples(st.just("refund"), st.integers(1, 2000)),
                    st.tuples(st.just("fail"), st.integers(0, 5)),
                    st.tuples(st.just("dispute"), st.integers(1, 4000)),
                    st.tuples(st.sampled_from(["lost", "won", "under_review"]), st.integers(0, 5)),
                    st.tuples(st.just("work"), st.none() | st.sampled_from(TROUBLE)),
                ),
                min_size=4,
                max_size=14,
            )
        ),
    }


@pytest.mark.parametrize("policy", ["proportional", "platform_keeps", "platform_bears"])
@settings(
    max_examples=20, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(story=stories())
def test_whatever_succeeds_and_fails_each_seller_ends_with_what_is_due(
    policy: str,
    sold: Make,
    work: Any,
    simulator: Any,
    story: dict[str, Any],
) -> None:
    with rolled_back():
        simulator.reset()
        order = sold(story["amounts"], sent=story["sent"])
        Order.objects.filter(pk=order.pk).update(refund_commission=policy)
        order.refresh_from_db()
        for number, (step, what) in enumerate(story["steps"]):
            take(order, number, step, what, simulator=simulator, work=work)
        work()
        originals = list(order.transfers.filter(gives_back_of=None).order_by("id"))
        standing = clawback.losses(list(order.refunds.filter(status=RefundStatus.SUCCEEDED)))
        for dispute in order.disputes.all():
            assert dispute.amount_lost == (0 if dispute.status == "won" else dispute.amount)
            assert sum(dispute.seller_parts.values()) + dispute.platform_part == dispute.amount_lost
            standing.append(Loss(amount=dispute.amount_lost))
        untouched = [clawback.Holding(seller=each.seller_id, share=each.share, taken=0) for each in originals]
        must_give = clawback.plan(order, standing, untouched)
        assert kept_at_stripe(simulator, order) == [
            each.share - part for each, part in zip(originals, must_give, strict=True)
        ]
        for refund in order.refunds.exclude(seller_parts=None):
            assert sum(refund.seller_parts.values()) + refund.platform_part == refund.amount
        assert not order.refunds.filter(status=RefundStatus.SUCCEEDED, seller_parts=None).exists()
        assert not order.transfers.filter(status__in=["pending", "failed", "reversal_pending"]).exists()
        assert not TransferReversal.objects.filter(status__in=["pending", "failed"]).exists()
        assert not order.transfers.exclude(amount_reversed__lte=F("amount")).exists()


def take(order: Order, number: int, step: str, what: Any, *, simulator: Any, work: Any) -> None:
    if step == "refund":
        left = order.amount - sum(each.amount for each in order.refunds.filter(status=RefundStatus.SUCCEEDED))
        if left:
            record(order, stripe_refund_id=f"re_{number}", amount=min(what, left))
    elif step == "fail":
        refunds = list(order.refunds.filter(status=RefundStatus.SUCCEEDED).order_by("id"))
        if refunds:
            chosen = refunds[what % len(refunds)]
            later = NOON + timedelta(days=1)
            record(
                order,
                stripe_refund_id=chosen.stripe_refund_id,
                amount=chosen.amount,
                status="failed",
                failure_reason="declined",
                seen_at=later,
            )
    elif step == "dispute":
        record_dispute(order, stripe_dispute_id=f"dp_{number}", amount=what, after=number)
    elif step in {"lost", "won", "under_review"}:
        disputes = list(order.disputes.order_by("id"))
        if disputes:
            chosen = disputes[what % len(disputes)]
            of_it = {"stripe_dispute_id": chosen.stripe_dispute_id, "amount": chosen.amount}
            record_dispute(order, step, after=number, **of_it)
    else:
        if what is not None:
            simulator.faults.add(what[0], endpoint=what[1], times=1)
        work()
