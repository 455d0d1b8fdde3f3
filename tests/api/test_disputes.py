"""/api/disputes/: who sees them, how they are found, and the amount that a person enters."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from marketplace.models import Dispute, Order
from tests.api.conftest import Scene, client_of, problem
from tests.factories import DisputeFactory, UserFactory, order_with_transfers

LIST = "/api/disputes/"
ENTER = "/api/disputes/{}/amount/"
BODY = {"amount": 4000, "currency": "eur", "reason": "the bank's letter"}


@pytest.fixture
def finance(db: None) -> APIClient:
    return client_of(UserFactory(staff=True, permissions=["view_dispute", "enter_dispute_amount"]))


@pytest.fixture
def order(db: None) -> Order:
    return order_with_transfers((3000, 2000), commission_basis_points=0)


@pytest.fixture
def foreign(order: Order) -> Dispute:
    return DisputeFactory(order=order, needs_a_person=True)


def found(client: APIClient, **parameters: Any) -> list[int]:
    return [row["id"] for row in client.get(LIST, parameters).json()["results"]]


def test_a_dispute_is_shown_with_who_bears_it(finance: APIClient, order: Order) -> None:
    seller = order.transfers.earliest("id").seller_id
    dispute = DisputeFactory(order=order, amount_lost=900, seller_parts={str(seller): 700}, platform_part=200)
    shown = finance.get(f"{LIST}{dispute.pk}/").json()
    assert (shown["status"], shown["amount"], shown["currency"]) == ("needs_response", 5000, "eur")
    assert (shown["amount_lost"], shown["seller_parts"], shown["platform_part"]) == (900, {str(seller): 700}, 200)
    assert (shown["order"], shown["order_currency"], shown["fee"]) == (order.pk, "eur", 1500)


def test_buyers_and_sellers_see_none_and_staff_by_permission(scene: Scene) -> None:
    DisputeFactory(order=scene.order)
    for name in ("buyer", "seller", "staff"):
        problem(scene.clients[name].get(LIST), 403)
    problem(scene.clients["anonymous"].get(LIST), 401)


def test_they_are_found_by_each_filter(finance: APIClient, foreign: Dispute) -> None:
    other = DisputeFactory(status="a_new_word", amount_lost=10)
    assert found(finance, needs_a_person="true") == [foreign.pk]
    assert found(finance, needs_a_person="false") == [other.pk]
    assert found(finance, counts="true") == [other.pk]
    assert found(finance, counts="false") == [foreign.pk]
    assert found(finance, status="a_new_word") == [other.pk]
    assert found(finance, order=foreign.order_id) == [foreign.pk]
    assert found(finance, search=other.stripe_dispute_id) == [other.pk]
    assert found(finance, currency="usd") == [foreign.pk]
    problem(finance.get(LIST, {"state": "open"}), 400, "invalid-request")


def test_the_amount_is_entered_once_and_shared_at_once(finance: APIClient, foreign: Dispute) -> None:
    entered = finance.post(ENTER.format(foreign.pk), BODY)
    assert entered.status_code == 200
    assert (entered.json()["order_amount"], entered.json()["amount_lost"]) == (4000, 4000)
    assert [row.reversals.get().amount for row in foreign.order.transfers.order_by("id")] == [2400, 1600]
    assert foreign.history.latest("pgh_id").pgh_context["reason"] == BODY["reason"]
    problem(finance.post(ENTER.format(foreign.pk), BODY), 409, "not-allowed-now")


@pytest.mark.parametrize(
    ("changes", "status", "kind"),
    [
        ({"amount": 5001}, 422, "too-much"),
        ({"amount": 0}, 400, "invalid-request"),
        ({"currency": "usd"}, 400, "invalid-request"),
        ({"reason": " "}, 400, "invalid-request"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    finance: APIClient, foreign: Dispute, changes: dict[str, Any], status: int, kind: str
) -> None:
    refused = problem(finance.post(ENTER.format(foreign.pk), {**BODY, **changes}), status, kind)
    if status == 400:
        assert list(refused["errors"]) == list(changes)
    foreign.refresh_from_db()
    assert foreign.order_amount is None


def test_who_may_only_look_enters_nothing(foreign: Dispute) -> None:
    viewer = client_of(UserFactory(staff=True, permissions=["view_dispute"]))
    problem(viewer.post(ENTER.format(foreign.pk), BODY), 403)


def test_a_row_that_has_changed_since_it_was_seen_is_not_entered(finance: APIClient, foreign: Dispute) -> None:
    problem(finance.post(ENTER.format(foreign.pk), BODY, headers={"If-Match": '"1-1"'}), 412, "changed-meanwhile")
    seen = finance.get(f"{LIST}{foreign.pk}/")["ETag"]
    assert finance.post(ENTER.format(foreign.pk), BODY, headers={"If-Match": seen}).status_code == 200


def test_reversals_name_their_dispute(order: Order, foreign: Dispute, finance: APIClient) -> None:
    finance.post(ENTER.format(foreign.pk), BODY)
    staff = client_of(UserFactory(staff=True, permissions=["view_transferreversal"]))
    shown = staff.get("/api/reversals/", {"dispute": foreign.pk}).json()["results"]
    assert [(row["cause"], row["dispute"], row["refund"]) for row in shown] == [("dispute", foreign.pk, None)] * 2
