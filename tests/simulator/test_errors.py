"""The errors of Stripe's that a platform meets when it reverses, as stripe-python shows them."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import stripe

from marketplace.simulator import StripeSimulator

from .conftest import KEY, MakeClient, body

REVERSALS = "POST /v1/transfers/{id}/reversals"


def reverse(client: stripe.StripeClient, transfer: dict[str, Any], **params: Any) -> Any:
    return client.v1.transfers.reversals.create(transfer["id"], params)  # type: ignore[arg-type]


def test_a_fully_reversed_transfer_is_refused_without_a_code(
    client: stripe.StripeClient, transfer: dict[str, Any]
) -> None:
    reverse(client, transfer, amount=7000)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        reverse(client, transfer, amount=1)
    assert caught.value.http_status == 400
    assert caught.value.code is None
    assert caught.value.param is None
    assert body(caught.value)["message"] == f"The transfer {transfer['id']} is already fully reversed."
    assert caught.value.headers["Stripe-Should-Retry"] == "false"


def test_more_than_the_remainder_is_refused_for_its_amount(
    client: stripe.StripeClient, transfer: dict[str, Any]
) -> None:
    reverse(client, transfer, amount=5000)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        reverse(client, transfer, amount=2001)
    assert (caught.value.http_status, caught.value.code, caught.value.param) == (400, None, "amount")


def test_an_omitted_amount_means_the_whole_transfer(client: stripe.StripeClient, transfer: dict[str, Any]) -> None:
    assert reverse(client, transfer).amount == 7000


def test_an_omitted_amount_after_a_partial_reversal_is_too_much(
    client: stripe.StripeClient, transfer: dict[str, Any]
) -> None:
    reverse(client, transfer, amount=1)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        reverse(client, transfer)
    assert caught.value.param == "amount"


@pytest.mark.parametrize("amount", [0, -5, "5.0", "many", True])
def test_an_amount_that_is_no_positive_integer_is_refused(
    client: stripe.StripeClient, transfer: dict[str, Any], amount: Any
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        reverse(client, transfer, amount=amount)
    assert (caught.value.code, caught.value.param) == ("parameter_invalid_integer", "amount")
    assert "Stripe-Should-Retry" not in caught.value.headers


def test_a_transfer_that_does_not_exist_is_missing(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        reverse(client, {"id": "tr_none"}, amount=1)
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")
    assert body(caught.value)["message"] == "No such transfer: 'tr_none'"


def test_an_object_missing_in_a_parameter_is_a_400(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.create({"amount": 1, "currency": "eur", "destination": "acct_none"})
    assert (caught.value.http_status, caught.value.code) == (400, "resource_missing")
    assert caught.value.param == "destination"


def test_a_seller_without_funds_is_balance_insufficient(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.pay_out(transfer["destination"])
    with pytest.raises(stripe.InvalidRequestError) as caught:
        reverse(client, transfer, amount=7000)
    assert (caught.value.http_status, caught.value.code) == (400, "balance_insufficient")
    assert caught.value.headers["Stripe-Should-Retry"] == "false"
    assert sim.balance(transfer["destination"]) == (0, 0)


def test_a_seller_who_may_go_negative_is_reversed_all_the_same(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.pay_out(transfer["destination"])
    sim.may_go_negative(transfer["destination"])
    reverse(client, transfer, amount=7000)
    assert sim.balance(transfer["destination"]) == (-7000, 0)
    assert client.v1.balance.retrieve().connect_reserved[0].amount == 7000  # type: ignore[index]


def test_a_missing_key_is_401(sim: StripeSimulator, make_client: MakeClient) -> None:
    with pytest.raises(stripe.AuthenticationError) as caught:
        make_client("pk_test_public").v1.balance.retrieve()
    assert caught.value.http_status == 401
    assert "public" not in str(caught.value)[:-6]


def test_a_revoked_key_is_401_with_its_code_only_in_the_body(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.revoke_key(KEY)
    with pytest.raises(stripe.AuthenticationError) as caught:
        client.v1.balance.retrieve()
    assert body(caught.value)["code"] == "api_key_expired"
    assert KEY not in body(caught.value)["message"]
    sim.restore_key(KEY)
    client.v1.balance.retrieve()


def test_a_seller_who_disconnected_answers_403(client: stripe.StripeClient, sim: StripeSimulator, seller: str) -> None:
    client.v1.balance.retrieve(None, {"stripe_account": seller})
    sim.deauthorize(seller)
    with pytest.raises(stripe.PermissionError) as caught:
        client.v1.balance.retrieve(None, {"stripe_account": seller})
    assert caught.value.http_status == 403
    assert body(caught.value)["code"] == "account_invalid"
    assert body(caught.value)["message"].endswith("Application access may have been revoked.")
    assert sim.events(type="account.application.deauthorized", account=seller)[0]["account"] == seller


FAULTS: list[tuple[dict[str, Any], type[stripe.StripeError], int, str | None, str | None]] = [
    ({"action": "lock_timeout"}, stripe.RateLimitError, 429, "lock_timeout", "true"),
    (
        {"action": "rate_limited", "reason": "endpoint-concurrency"},
        stripe.RateLimitError,
        429,
        "rate_limit",
        None,
    ),
    ({"action": "conflict"}, stripe.APIError, 409, "idempotency_key_in_use", None),
    ({"action": "unauthorized"}, stripe.AuthenticationError, 401, None, None),
    ({"action": "forbidden"}, stripe.PermissionError, 403, "account_invalid", None),
    ({"action": "error_500"}, stripe.APIError, 500, None, "false"),
    ({"action": "unavailable", "status": 502}, stripe.APIError, 502, None, None),
    ({"action": "unavailable", "status": 424}, stripe.APIError, 424, None, None),
]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case[0]["action"])
def test_a_fault_is_what_the_sdk_takes_it_for(
    client: stripe.StripeClient,
    sim: StripeSimulator,
    transfer: dict[str, Any],
    case: tuple[dict[str, Any], type[stripe.StripeError], int, str | None, str | None],
) -> None:
    fault, kind, status, code, retry = case
    sim.faults.add(**fault, endpoint=REVERSALS, times=1)
    with pytest.raises(kind) as caught:
        reverse(client, transfer, amount=100)
    assert type(caught.value) is kind
    assert caught.value.http_status == status
    assert body(caught.value).get("code") == code
    assert caught.value.headers.get("Stripe-Should-Retry") == retry
    assert caught.value.headers.get("Stripe-Rate-Limited-Reason") == fault.get("reason")
    assert sim.reversals_of(transfer["id"]) == []
    assert reverse(client, transfer, amount=100).amount == 100


@pytest.mark.parametrize("action", ["unreadable", "not_utf8"])
def test_an_unreadable_200_is_an_api_error_though_it_happened(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], action: str
) -> None:
    sim.faults.add(action, endpoint=REVERSALS)
    with pytest.raises((stripe.APIError, UnicodeDecodeError)) as caught:
        reverse(client, transfer, amount=100)
    if isinstance(caught.value, stripe.APIError):
        assert caught.value.http_status == 200
    assert len(sim.reversals_of(transfer["id"])) == 1


def test_an_html_503_has_no_error_body(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.faults.add("unavailable", html=True)
    with pytest.raises(stripe.APIError) as caught:
        reverse(client, transfer, amount=100)
    assert caught.value.http_status == 503
    assert caught.value.error is None


@pytest.mark.parametrize(("action", "done"), [("drop_before", 0), ("drop_after", 1), ("truncated", 1)])
def test_a_lost_connection_says_nothing_about_the_effect(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], action: str, done: int
) -> None:
    sim.faults.add(action, endpoint=REVERSALS)
    with pytest.raises(stripe.APIConnectionError):
        reverse(client, transfer, amount=100)
    assert len(sim.reversals_of(transfer["id"])) == done


def test_refunding_twice_and_too_much_are_told_apart(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    client.v1.refunds.create({"charge": charge["id"], "amount": 400})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.refunds.create({"charge": charge["id"], "amount": 601})
    assert (caught.value.code, caught.value.param) == (None, "amount")
    client.v1.refunds.create({"charge": charge["id"]})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.refunds.create({"charge": charge["id"]})
    assert caught.value.code == "charge_already_refunded"


def test_a_charged_back_charge_cannot_be_refunded(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    sim.open_dispute(charge["id"])
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.refunds.create({"charge": charge["id"]})
    assert caught.value.code == "charge_disputed"


def test_an_unknown_address_is_404(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.raw_request("get", "/v1/nonsense")
    assert caught.value.http_status == 404


def test_an_empty_id_is_not_taken_for_a_list(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.transfers.reversals.create("", {"amount": 1})


def test_a_declined_card_is_a_card_error_and_leaves_a_failed_charge(
    client: stripe.StripeClient, sim: StripeSimulator
) -> None:
    with pytest.raises(stripe.CardError) as caught:
        client.v1.payment_intents.create(
            {"amount": 1000, "currency": "eur", "confirm": True, "payment_method": "pm_card_chargeDeclined"}
        )
    assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
    assert [event["type"] for event in sim.events()][-1] == "payment_intent.payment_failed"
    assert sim.balance() == (0, 0)


def test_curls_basic_authentication_is_a_key_too(sim: StripeSimulator) -> None:
    assert requests.get(f"{sim.url}/v1/balance", auth=(KEY, ""), timeout=10).status_code == 200
    assert requests.get(f"{sim.url}/v1/balance", timeout=10).status_code == 401


def test_an_unreadable_answer_spoils_only_what_succeeded(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.faults.add("unreadable")
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.transfers.retrieve("tr_none")
