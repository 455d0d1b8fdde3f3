"""What sellers read beside their money: sent with it, the same each time, and shown by the API."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.db.models.functions import Now
from django.utils import timezone
from rest_framework.test import APIClient

from marketplace.gateway.contract import PaymentFacts
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import give_backs, payments, reversals, statement_lines
from marketplace.states import TransferStatus
from tests.factories import (
    DisputeFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    UserFactory,
    order_with_items,
)
from tests.workers.conftest import CREATE, REVERSE

pytestmark = pytest.mark.django_db
Run = Callable[[], int]
Make = Callable[..., SellerTransfer]
Cause = TransferReversal.Cause
BY = {"actor": "tester", "reason": "because"}


def sent(simulator: Any, endpoint: str) -> list[dict[str, list[str]]]:
    return [parse_qs(request.form) for request in simulator.requests.to(endpoint)]


def owe(transfer: SellerTransfer, **more: Any) -> TransferReversal:
    make = {Cause.REFUND: RefundFactory, Cause.DISPUTE: DisputeFactory}.get(more["cause"])
    source = make(order=transfer.order) if make else None
    reversals.owe(SellerTransfer.objects.get(pk=transfer.pk), amount=2000, source=source, **more, **BY)
    return transfer.reversals.order_by("id").last()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (Cause.REFUND, "refund to the buyer"),
        (Cause.DISPUTE, "payment disputed by the buyer"),
        (Cause.OPERATOR, "taken back by the marketplace"),
    ],
)
def test_a_reversal_says_which_order_and_why(
    cause: str, text: str, at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(completed=True)
    reversal = owe(transfer, cause=cause)
    assert reversal.description == f"Order {transfer.order_id}: {text}"
    assert run_reversals() == 1
    (form,) = sent(simulator, REVERSE)
    assert form["description"] == [reversal.description]


def test_every_cause_has_its_words(at_stripe: Make) -> None:
    transfer = at_stripe(completed=True)
    said = {
        reversals.create(transfer, amount=1, cause=cause, source=None, status="canceled", **BY).description
        for cause in Cause
        if cause not in {Cause.REFUND, Cause.DISPUTE}
    }
    assert len(said) == len(Cause) - 2
    assert all(line.startswith(f"Order {transfer.order_id}: ") for line in said)


def test_what_is_sent_again_under_a_key_is_the_same_to_the_letter(
    at_stripe: Make, run_reversals: Run, simulator: Any
) -> None:
    transfer = at_stripe(completed=True)
    owe(transfer, cause=Cause.REFUND)
    simulator.faults.add("drop_after", endpoint=REVERSE, times=1)
    run_reversals()
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=Now())
    run_reversals()
    first, second = simulator.requests.to(REVERSE)
    assert (first.key, first.form) == (second.key, second.form)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 2000)


def test_rows_of_older_versions_are_sent_as_those_sent_them(
    at_stripe: Make, payable: Make, run_reversals: Run, run_transfers: Run, simulator: Any
) -> None:
    at_stripe()
    assert run_reversals() == 1
    payable()
    assert run_transfers() == 1
    for endpoint in (REVERSE, CREATE):
        (form,) = sent(simulator, endpoint)
        assert "description" not in form


def test_a_sellers_share_says_of_which_order_it_is(simulator: Any, run_transfers: Run) -> None:
    charge = simulator.create_charge(5000)
    order = order_with_items((5000,))
    type(order.items.get().seller).objects.update(stripe_account_id=simulator.create_account()["id"])
    payments.record(
        PaymentFacts(
            stripe_payment_intent_id=charge["payment_intent"],
            stripe_charge_id=charge["id"],
            amount_received=order.amount,
            currency="eur",
            status="succeeded",
            order_operation_id=str(order.operation_id),
            paid_at=timezone.now(),
        ),
        actor="tester",
    )
    assert run_transfers() == 1
    (form,) = sent(simulator, CREATE)
    assert form["description"] == [f"Order {order.pk}: your share of the sale"]
    assert SellerTransfer.objects.get().description == form["description"][0]


def test_what_is_paid_again_says_so() -> None:
    transfer = SellerTransferFactory(reversed=True)
    reversal = transfer.reversals.get()
    reversal.refresh_from_db()
    transfer.refresh_from_db()
    give_backs.give_back(
        [(transfer, [reversal])],
        5000,
        own={reversal.cause},
        source=reversal.refund,
        **BY,  # type: ignore[arg-type]
    )
    again = SellerTransfer.objects.get(gives_back_of=transfer)
    assert again.description == f"Order {transfer.order_id}: paid again, a refund did not go through"


def test_what_is_paid_for_a_win_says_so_also_where_it_had_not_been_sent() -> None:
    """It told the seller of a refund that there never was."""
    transfer = SellerTransferFactory(canceled=True, amount=5000)
    transfer.refresh_from_db()
    won = DisputeFactory(order=transfer.order, status="won")
    give_backs.give_back([(transfer, [])], 5000, own=set(), source=won, **BY)  # type: ignore[arg-type]
    again = SellerTransfer.objects.get(gives_back_of=transfer)
    assert again.description == f"Order {transfer.order_id}: paid again, the dispute was won"


def test_a_row_of_an_older_version_that_pays_again_says_what_it_undoes() -> None:
    disputed = TransferReversalFactory(disputed=True, succeeded=True)
    again = SellerTransfer(order=disputed.transfer.order, gives_back_of=disputed.transfer, undoes=disputed)
    assert statement_lines.of_transfer(again).endswith("paid again, the dispute was won")


def test_sellers_see_their_lines(at_stripe: Make) -> None:
    transfer = at_stripe(completed=True)
    reversal = owe(transfer, cause=Cause.REFUND)
    transfer.seller.user = UserFactory()
    transfer.seller.save(update_fields=["user"])
    client = APIClient()
    client.force_authenticate(transfer.seller.user)
    (listed,) = client.get("/api/reversals/").json()["results"]
    assert listed["description"] == reversal.description
    (shown,) = client.get("/api/transfers/").json()["results"]
    assert "description" in shown
