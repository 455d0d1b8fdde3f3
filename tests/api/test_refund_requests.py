"""POST /api/orders/{id}/refunds/ against the simulator."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from marketplace.models import IdempotentRequest, Order, Refund
from tests.api.conftest import problem
from tests.factories import RefundFactory, order_with_items

CREATE = "POST /v1/refunds"


def ask(client: APIClient, order: Order, body: Any = None, key: str | None = "key-1") -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"/api/orders/{order.pk}/refunds/", body if body is not None else {}, headers=headers)


def test_a_refund_is_asked_for_at_stripe(operator: APIClient, paid_at_stripe: Callable[..., Order]) -> None:
    order = paid_at_stripe(3000, 2000)

    response = ask(operator, order, {"amount": 1250, "currency": "eur", "reason": "one cup broken"})

    assert response.status_code == 201
    refund = Refund.objects.get()
    assert response["Location"] == f"/api/refunds/{refund.pk}/"
    shown = response.json()
    assert (shown["amount"], shown["currency"], shown["status"]) == (1250, "eur", "succeeded")
    assert shown["stripe_refund_id"].startswith("re_")
    assert shown["request_key"] == "key-1"
    assert refund.history.earliest("pgh_id").pgh_context["actor"].startswith("user:")


def test_without_an_amount_all_that_is_left_is_refunded(
    operator: APIClient, paid_at_stripe: Callable[..., Order]
) -> None:
    order = paid_at_stripe(3000, 2000)
    assert ask(operator, order, {"amount": 4000}).status_code == 201

    response = ask(operator, order, key="key-2")

    assert response.status_code == 201
    assert response.json()["amount"] == 1000
    order.refresh_from_db()
    assert order.status == "refunded"


@pytest.mark.parametrize("body", [{}, {"amount": 1250}])
def test_the_same_key_again_gives_the_first_answer(
    body: dict[str, Any], operator: APIClient, paid_at_stripe: Callable[..., Order], simulator: Any
) -> None:
    order = paid_at_stripe()
    first = ask(operator, order, body)
    before = len(simulator.requests)

    again = ask(operator, order, body)

    assert (first.status_code, again.status_code) == (201, 201)
    assert (again.content, again["Location"]) == (first.content, first["Location"])
    assert again["Idempotent-Replayed"] == "true"
    # The refund knows its key for good, also when the answer is kept no more.
    IdempotentRequest.objects.all().delete()
    later = ask(operator, order, body)
    assert (later.status_code, later.json()["id"]) == (200, first.json()["id"])
    assert len(simulator.requests) == before


@pytest.mark.parametrize("body", [{"amount": 1251}, {"amount": 1250, "reason": "another"}])
def test_the_same_key_with_another_request_is_refused(
    body: dict[str, Any], operator: APIClient, paid_at_stripe: Callable[..., Order]
) -> None:
    order = paid_at_stripe()
    ask(operator, order, {"amount": 1250})

    refused = problem(ask(operator, order, body), 409, "conflicting-facts")

    assert "'key-1' was used before" in refused["detail"]
    assert Refund.objects.count() == 1


def test_the_same_key_for_another_order_is_refused(operator: APIClient, paid_at_stripe: Callable[..., Order]) -> None:
    ask(operator, paid_at_stripe(), {"amount": 100})

    problem(ask(operator, paid_at_stripe(), {"amount": 100}), 409, "conflicting-facts")


def test_a_request_that_stripe_did_not_answer_waits_for_the_worker(
    operator: APIClient, paid_at_stripe: Callable[..., Order], simulator: Any
) -> None:
    order = paid_at_stripe()
    simulator.faults.add("unavailable", endpoint=CREATE)

    response = ask(operator, order)
    again = ask(operator, order)

    assert response.status_code == 202
    assert (response.json()["status"], response.json()["last_error_code"]) == ("requested", "unknown")
    assert response.json()["next_retry_at"]
    assert (again.status_code, again.content) == (202, response.content)


def test_a_refund_that_stripe_refuses_is_shown_as_failed(
    operator: APIClient, gateway: Any, simulator: Any, paid_at_stripe: Callable[..., Order]
) -> None:
    order = paid_at_stripe()
    simulator.create_refund(order.stripe_charge_id)

    response = ask(operator, order)

    assert response.status_code == 201
    assert (response.json()["status"], response.json()["last_error_code"]) == ("failed", "charge_already_refunded")


def test_a_payment_that_our_key_does_not_see_leaves_the_refund_requested(operator: APIClient, gateway: Any) -> None:
    """The key of another account or mode, perhaps: no answer to whether an earlier request got through."""
    response = ask(operator, order_with_items(paid=True))

    assert response.status_code == 202
    assert (response.json()["status"], response.json()["last_error_code"]) == ("requested", "resource_missing")


def test_zero_decimal_currencies_count_whole_units(operator: APIClient, paid_at_stripe: Callable[..., Order]) -> None:
    order = paid_at_stripe(1200, currency="jpy")

    assert ask(operator, order, {"amount": 1200, "currency": "jpy"}).json()["currency"] == "jpy"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0"),
        (-1, "-1"),
        (10.0, "10.0"),
        (10.5, "10.5"),
        (True, "True"),
        ("10", "'10'"),
        ("10.0", "'10.0'"),
        ([], "[]"),
        ({}, "{}"),
        (2**63, str(2**63)),
        pytest.param(10**4000, "1" + "0" * 59 + "…", id="huge"),
    ],
)
def test_an_amount_that_is_none_is_refused_by_name(amount: Any, shown: str, operator: APIClient) -> None:
    refused = problem(ask(operator, order_with_items(paid=True), {"amount": amount}), 400, "invalid-request")

    assert refused["errors"]["amount"] == [
        f"{shown}: expected a whole number from 1 to 9223372036854775807, in the currency's minor unit"
    ]
    assert not Refund.objects.exists()


def test_null_is_no_amount(operator: APIClient) -> None:
    problem(ask(operator, order_with_items(paid=True), {"amount": None}), 400, "invalid-request")


@pytest.mark.parametrize("currency", ["usd", "EUR", "eu", "euro", 5, None])
def test_another_currency_is_refused(currency: Any, operator: APIClient) -> None:
    refused = problem(
        ask(operator, order_with_items(paid=True), {"amount": 1, "currency": currency}), 400, "invalid-request"
    )

    assert list(refused["errors"]) == ["currency"]


def test_the_expected_currency_is_named(operator: APIClient) -> None:
    refused = problem(ask(operator, order_with_items(paid=True), {"currency": "usd"}), 400, "invalid-request")

    assert refused["errors"]["currency"] == ["'usd': expected 'eur', the order's currency"]


@pytest.mark.parametrize("reason", ["x" * 501, "a\0b", 5, ["x"], None])
def test_a_reason_is_short_text(reason: Any, operator: APIClient) -> None:
    refused = problem(ask(operator, order_with_items(paid=True), {"reason": reason}), 400, "invalid-request")

    assert list(refused["errors"]) == ["reason"]


def test_an_unknown_field_is_refused_by_name(operator: APIClient) -> None:
    refused = problem(ask(operator, order_with_items(paid=True), {"amout": 100}), 400, "invalid-request")

    assert refused["errors"] == {
        "amout": ["unknown field: expected only amount, currency, reason, items, plan_version"]
    }
    assert not Refund.objects.exists()


@pytest.mark.parametrize("key", [None, "", "x" * 256, "clé", "a\tb"])
def test_an_idempotency_key_is_demanded(key: str | None, operator: APIClient) -> None:
    refused = problem(ask(operator, order_with_items(paid=True), {}, key=key), 400, "invalid-request")

    assert list(refused["errors"]) == ["Idempotency-Key"]


def test_more_than_is_left_is_refused(operator: APIClient) -> None:
    order = order_with_items((5000,), paid=True)
    RefundFactory(order=order, amount=2000, succeeded=True)

    refused = problem(ask(operator, order, {"amount": 3001}), 422, "too-much")

    assert refused["detail"] == f"3001 is more than the 3000 eur left to refund on order {order.pk}"


def test_nothing_left_is_refused_without_an_amount_too(operator: APIClient) -> None:
    order = RefundFactory(succeeded=True).order

    refused = problem(ask(operator, order), 422, "too-much")

    assert "nothing is left" in refused["detail"]


def test_a_refund_on_its_way_counts_as_taken(operator: APIClient) -> None:
    order = order_with_items((5000,), paid=True)
    RefundFactory(order=order, amount=5000)

    problem(ask(operator, order, {"amount": 1}), 422, "too-much")


def test_an_order_that_is_not_paid_is_refused(operator: APIClient) -> None:
    refused = problem(ask(operator, order_with_items()), 409, "not-allowed-now")

    assert "not paid" in refused["detail"]


def test_an_order_that_is_not_there_is_not_found(operator: APIClient) -> None:
    for pk in (10**6, 2**63, 10**30):
        problem(operator.post(f"/api/orders/{pk}/refunds/", {}, headers={"Idempotency-Key": "k"}), 404)
