"""GET /api/orders/{id}/refund-plan/, and the refund that follows."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import ProgrammingError, transaction
from rest_framework.test import APIClient

from marketplace.errors import ConflictingFacts
from marketplace.models import IdempotentRequest, Order, Refund, RefundItem, Seller, TransferReversal
from marketplace.services import refund_plans, refunds
from marketplace.states import ReversalStatus
from tests.api.conftest import problem
from tests.factories import RefundFactory, SellerTransferFactory, UserFactory, order_with_items

BALANCE = "GET /v1/balance"

Plan = dict[str, Any]


@pytest.fixture
def order(paid_at_stripe: Callable[..., Order], simulator: Any) -> Order:
    """Of two sellers with accounts at Stripe, who got all of it."""
    made = paid_at_stripe(3000, 2000)
    for item in made.items.select_related("seller"):
        Seller.objects.filter(pk=item.seller_id).update(stripe_account_id=simulator.create_account()["id"])
        SellerTransferFactory(order=made, seller=item.seller, amount=item.amount, completed=True)
    return made


def ask(client: APIClient, order: Order, **query: Any) -> Any:
    return client.get(f"/api/orders/{order.pk}/refund-plan/", query)


def refund(client: APIClient, order: Order, key: str = "key-1", **body: Any) -> Any:
    return client.post(f"/api/orders/{order.pk}/refunds/", body, headers={"Idempotency-Key": key})


def part(plan: Plan, number: int, *names: str) -> Any:
    return tuple(plan["parts"][number][name] for name in names)


def owed() -> list[int]:
    return list(TransferReversal.objects.order_by("id").values_list("amount", flat=True))


# --- What it tells ----------------------------------------------------------------------------------------------------


def test_each_sellers_part_is_told_with_whether_the_balance_covers_it(
    operator: APIClient, order: Order, simulator: Any
) -> None:
    rich, poor = (item.seller for item in order.items.select_related("seller"))
    simulator.add_funds(600, account=rich.stripe_account_id)
    simulator.add_funds(399, account=poor.stripe_account_id)

    plan = ask(operator, order, amount=1000).json()

    assert (plan["order"], plan["amount"], plan["currency"], plan["platform_amount"]) == (order.pk, 1000, "eur", 0)
    assert part(plan, 0, "seller", "share", "amount", "balance_covers") == (rich.pk, 3000, 600, "yes")
    assert part(plan, 1, "seller", "share", "amount", "balance_covers") == (poor.pk, 2000, 400, "no")
    assert not Refund.objects.exists()


def test_without_an_amount_all_that_is_left_is_planned(operator: APIClient, order: Order) -> None:
    assert refund(operator, order, amount=1000).status_code == 201

    plan = ask(operator, order).json()

    assert (plan["amount"], plan["platform_amount"]) == (4000, 0)
    assert part(plan, 0, "amount", "amount_taken", "amount_reversed") == (2400, 600, 0)
    assert part(plan, 1, "amount", "amount_taken", "amount_reversed") == (1600, 400, 0)


def test_who_bears_the_commission_stands_in_the_plan(operator: APIClient, paid_at_stripe: Callable[..., Order]) -> None:
    order = paid_at_stripe(10_000, refund_commission="platform_bears")
    SellerTransferFactory(order=order, seller=order.items.get().seller, amount=9000)

    plan = ask(operator, order, amount=2000).json()

    assert plan["platform_amount"] == 1000
    assert part(plan, 0, "amount", "balance_covers") == (1000, "not_needed")


def test_refunds_under_way_are_taken_to_succeed_first(operator: APIClient, order: Order) -> None:
    before = ask(operator, order, amount=2).json()
    RefundFactory(order=order, amount=1)

    after = ask(operator, order, amount=2).json()

    assert [each["amount"] for each in before["parts"]] == [1, 1]
    assert [each["amount"] for each in after["parts"]] == [1, 1]
    assert before["version"] != after["version"]
    problem(ask(operator, order, amount=5000), 422, "too-much")


# --- When Stripe does not answer --------------------------------------------------------------------------------------


def test_a_balance_that_is_not_answered_is_unknown_and_no_further_one_is_asked_for(
    operator: APIClient, order: Order, simulator: Any
) -> None:
    simulator.faults.add("unavailable", endpoint=BALANCE)

    plan = ask(operator, order, amount=1000).json()

    assert [each["balance_covers"] for each in plan["parts"]] == ["unknown", "unknown"]
    assert len(list(simulator.requests.to(BALANCE))) == 1


def test_a_balance_that_may_not_be_read_is_unknown_and_the_next_is_asked_for(
    operator: APIClient, order: Order, simulator: Any
) -> None:
    Seller.objects.filter(pk=order.items.all()[0].seller_id).update(stripe_account_id="acct_of_nobody")

    plan = ask(operator, order, amount=1000).json()

    assert [each["balance_covers"] for each in plan["parts"]] == ["unknown", "no"]


def test_nobody_waits_longer_for_balances_than_people_wait(
    operator: APIClient, order: Order, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refund_plans, "LONGEST_ASKING_SECONDS", -1)

    assert part(ask(operator, order, amount=1000).json(), 0, "balance_covers") == ("unknown",)
    assert not list(simulator.requests.to(BALANCE))


# --- The refund that follows ------------------------------------------------------------------------------------------


def test_the_refund_that_follows_takes_what_was_planned(operator: APIClient, order: Order) -> None:
    for number, amount in enumerate((1, 1233, 999), start=1):
        plan = ask(operator, order, amount=amount).json()
        before = len(owed())

        response = refund(operator, order, key=f"key-{number}", amount=amount, plan_version=plan["version"])

        assert response.status_code == 201
        assert owed()[before:] == [each["amount"] for each in plan["parts"] if each["amount"]]


def test_a_plan_of_an_order_that_has_changed_is_refused_and_stripe_is_not_asked(
    operator: APIClient, order: Order, simulator: Any
) -> None:
    plan = ask(operator, order, amount=1000).json()
    assert refund(operator, order, amount=1000).status_code == 201
    before = len(simulator.requests)

    response = refund(operator, order, key="key-2", amount=1000, plan_version=plan["version"])

    assert "look at a new plan" in problem(response, 409, "plan-changed")["detail"]
    assert len(simulator.requests) == before
    assert Refund.objects.count() == 1


def test_a_plan_for_another_amount_is_refused(operator: APIClient, order: Order) -> None:
    plan = ask(operator, order, amount=1000).json()

    problem(refund(operator, order, amount=1001, plan_version=plan["version"]), 409, "plan-changed")


def test_the_same_request_again_gives_the_refund_though_the_plan_is_old(operator: APIClient, order: Order) -> None:
    plan = ask(operator, order, amount=1000).json()
    body = {"amount": 1000, "plan_version": plan["version"]}

    assert refund(operator, order, **body).status_code == 201
    IdempotentRequest.objects.all().delete()
    assert refund(operator, order, **body).status_code == 200


def test_money_that_comes_back_meanwhile_changes_no_plan(operator: APIClient, order: Order) -> None:
    refund(operator, order, amount=1000)
    before = refunds.planned(order, 500)
    for reversal in TransferReversal.objects.all():
        reversal.transition(
            ReversalStatus.SUCCEEDED, reason="came back", actor="a test", stripe_reversal_id=f"trr_{reversal.pk}"
        )

    assert refunds.planned(order, 500).version == before.version


# --- By items ---------------------------------------------------------------------------------------------------------


def test_refunded_items_are_borne_by_their_sellers_alone_as_planned(operator: APIClient, order: Order) -> None:
    _, item = order.items.all()
    plan = ask(operator, order, items=f"{item.pk}:1").json()
    assert (plan["amount"], [each["amount"] for each in plan["parts"]]) == (2000, [0, 2000])

    body = {"items": [{"item": item.pk, "quantity": 1}], "plan_version": plan["version"]}
    response = refund(operator, order, **body)

    assert (response.status_code, response.json()["amount"]) == (201, 2000)
    assert owed() == [2000]
    shown = operator.get(response["Location"]).json()
    assert shown["items"] == [{"item": item.pk, "quantity": 1, "amount": 2000}]
    IdempotentRequest.objects.all().delete()
    assert refund(operator, order, **body).status_code == 200
    problem(refund(operator, order, amount=2000), 409, "conflicting-facts")
    problem(refund(operator, order, key="key-2", items=body["items"]), 422, "too-much")
    # By amount what is left is the other's.
    assert refund(operator, order, key="key-3", amount=1000).status_code == 201
    assert owed() == [2000, 1000]


def test_a_plan_by_amount_is_none_by_items(operator: APIClient, order: Order) -> None:
    _, item = order.items.all()
    plan = ask(operator, order, amount=2000).json()
    body = {"items": [{"item": item.pk, "quantity": 1}], "plan_version": plan["version"]}
    problem(refund(operator, order, **body), 409, "plan-changed")


def test_items_of_another_order_or_named_twice_are_refused(operator: APIClient, order: Order) -> None:
    item, _ = order.items.all()
    other = order_with_items((1000,), paid=True).items.get()
    for items in (f"{other.pk}:1", f"{item.pk}:1,{item.pk}:1"):
        problem(ask(operator, order, items=items), 409, "conflicting-facts")
    assert not Refund.objects.exists()


def test_items_that_do_not_cost_the_amount_are_refused(order: Order) -> None:
    item, _ = order.items.all()
    with pytest.raises(ConflictingFacts, match="do not cost 5"):
        refunds.request(
            order_id=order.pk,
            amount=5,
            currency="eur",
            reason="",
            requested_by=UserFactory(),
            request_key="key",
            items=[(item.pk, 1)],
        )


def test_either_items_or_an_amount(operator: APIClient, order: Order) -> None:
    item, _ = order.items.all()
    problem(refund(operator, order, amount=5, items=[{"item": item.pk, "quantity": 1}]), 400, "invalid-request")
    problem(ask(operator, order, amount=5, items=f"{item.pk}:1"), 400, "invalid-request")


def test_an_item_that_was_refunded_stays_as_written(operator: APIClient, order: Order) -> None:
    item, _ = order.items.all()
    refund(operator, order, items=[{"item": item.pk, "quantity": 1}])
    for act in (lambda: RefundItem.objects.update(quantity=2), lambda: RefundItem.objects.all().delete()):
        with pytest.raises(ProgrammingError, match="Cannot"), transaction.atomic():
            act()
    assert str(RefundItem.objects.get()) == f"1 x {item.product}"


# --- Refused ----------------------------------------------------------------------------------------------------------


def test_an_order_that_is_not_paid_has_no_plan(operator: APIClient) -> None:
    problem(ask(operator, order_with_items((1000,))), 409, "not-allowed-now")


@pytest.mark.parametrize(
    "query",
    [{"amount": "0"}, {"items": "7"}, {"items": "7:0"}, {"amount": "a lot"}, {"amount": str(2**63)}, {"sum": "5"}],
)
def test_nonsense_is_refused(query: dict[str, str], operator: APIClient, order: Order) -> None:
    problem(ask(operator, order, **query), 400, "invalid-request")
