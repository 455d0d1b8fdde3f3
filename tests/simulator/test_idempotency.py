from __future__ import annotations

import threading
from typing import Any

import pytest
import stripe

from marketplace.simulator import StripeSimulator

from .conftest import body

REVERSALS = "POST /v1/transfers/{id}/reversals"
DAY = 24 * 3600


def reverse(client: stripe.StripeClient, transfer: str, key: str = "k1", **params: Any) -> Any:
    return client.v1.transfers.reversals.create(transfer, params, {"idempotency_key": key})  # type: ignore[arg-type]


def test_the_same_key_replays_the_first_answer(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    first = reverse(client, transfer["id"], amount=100, metadata={"op_id": "a"})
    again = reverse(client, transfer["id"], amount=100, metadata={"op_id": "a"})
    assert again.id == first.id
    one, two = first.last_response.headers, again.last_response.headers
    assert one["Request-Id"] == one["Original-Request"] == two["Original-Request"] != two["Request-Id"]
    assert two["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in one
    assert two["Idempotency-Key"] == "k1"
    assert one["Stripe-Should-Retry"] == two["Stripe-Should-Retry"] == "false"
    assert len(sim.reversals_of(transfer["id"])) == 1
    assert [record.replayed for record in sim.requests.to(REVERSALS)] == [False, True]


def test_the_order_of_parameters_does_not_matter(client: stripe.StripeClient, transfer: dict[str, Any]) -> None:
    first = reverse(client, transfer["id"], amount=100, metadata={"a": "1", "b": "2"})
    again = reverse(client, transfer["id"], metadata={"b": "2", "a": "1"}, amount=100)
    assert again.id == first.id


@pytest.mark.parametrize("params", [{"amount": 101}, {"amount": 100, "metadata": {"attempt": "2"}}])
def test_other_parameters_under_a_used_key_are_refused(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], params: dict[str, Any]
) -> None:
    reverse(client, transfer["id"], amount=100)
    with pytest.raises(stripe.IdempotencyError) as caught:
        reverse(client, transfer["id"], **params)
    assert caught.value.http_status == 400
    assert body(caught.value)["type"] == "idempotency_error"
    assert "code" not in body(caught.value)
    assert len(sim.reversals_of(transfer["id"])) == 1


def test_another_address_under_a_used_key_is_refused(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    other = sim.create_transfer(7000, transfer["destination"])
    reverse(client, transfer["id"], amount=100)
    with pytest.raises(stripe.IdempotencyError):
        reverse(client, other["id"], amount=100)


def test_a_refused_parameter_leaves_the_key_free(client: stripe.StripeClient, transfer: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        reverse(client, transfer["id"], amount="x")
    assert reverse(client, transfer["id"], amount=100).amount == 100


def test_a_missing_transfer_leaves_the_key_free(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        reverse(client, "tr_none", amount=100)
    assert reverse(client, transfer["id"], amount=100).amount == 100


def test_no_funds_is_kept_under_the_key_though_the_funds_came(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.pay_out(transfer["destination"])
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            reverse(client, transfer["id"], amount=100)
        assert caught.value.code == "balance_insufficient"
        sim.add_funds(7000, account=transfer["destination"])
    assert caught.value.headers["Idempotent-Replayed"] == "true"
    assert reverse(client, transfer["id"], "k2", amount=100).amount == 100


@pytest.mark.parametrize(("action", "done"), [("error_500", 0), ("error_500_after", 1)])
def test_a_500_is_kept_under_the_key_with_or_without_its_effect(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], action: str, done: int
) -> None:
    sim.faults.add(action, endpoint=REVERSALS, times=1)
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            reverse(client, transfer["id"], amount=100)
        assert caught.value.http_status == 500
    assert caught.value.headers["Idempotent-Replayed"] == "true"
    assert len(sim.reversals_of(transfer["id"])) == done
    assert reverse(client, transfer["id"], "k2", amount=100).amount == 100


@pytest.mark.parametrize("action", ["unavailable", "rate_limited", "lock_timeout", "unauthorized", "drop_before"])
def test_what_never_ran_is_not_kept(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], action: str
) -> None:
    sim.faults.add(action, endpoint=REVERSALS, times=1)
    with pytest.raises(stripe.StripeError):
        reverse(client, transfer["id"], amount=100)
    assert "Idempotent-Replayed" not in reverse(client, transfer["id"], amount=100).last_response.headers


@pytest.mark.parametrize("action", ["drop_after", "truncated", "unreadable"])
def test_a_lost_answer_is_replayed(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], action: str
) -> None:
    sim.faults.add(action, endpoint=REVERSALS, times=1)
    with pytest.raises(stripe.StripeError):
        reverse(client, transfer["id"], amount=100)
    again = reverse(client, transfer["id"], amount=100)
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert [row["id"] for row in sim.reversals_of(transfer["id"])] == [again.id]


def test_a_late_effect_holds_its_key_until_it_lands(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.faults.add("late", endpoint=REVERSALS, times=1, seconds=30)
    with pytest.raises(stripe.APIConnectionError):
        reverse(client, transfer["id"], amount=100)
    sim.clock.advance(20)
    with pytest.raises(stripe.APIError) as caught:
        reverse(client, transfer["id"], amount=100)
    assert caught.value.http_status == 409
    assert caught.value.error is not None
    assert caught.value.error.code == "idempotency_key_in_use"
    assert sim.reversals_of(transfer["id"]) == []
    sim.clock.advance(10)
    assert len(sim.reversals_of(transfer["id"])) == 1
    assert reverse(client, transfer["id"], amount=100).id == sim.reversals_of(transfer["id"])[0]["id"]


def test_two_at_once_under_one_key_make_one_reversal(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.faults.add("latency", endpoint=REVERSALS, seconds=0.3)
    start = threading.Barrier(2)
    answers: list[int | None] = []

    def send() -> None:
        start.wait()
        try:
            answers.append(reverse(client, transfer["id"], amount=100).last_response.code)
        except stripe.APIError as error:
            answers.append(error.http_status)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers, key=str) == [200, 409]
    assert len(sim.reversals_of(transfer["id"])) == 1


def test_a_key_is_forgotten_after_a_day_and_runs_anew(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    first = reverse(client, transfer["id"], amount=100)
    sim.clock.advance(DAY - 60)
    assert reverse(client, transfer["id"], amount=100).id == first.id
    sim.clock.advance(120)
    assert reverse(client, transfer["id"], amount=100).id != first.id
    assert len(sim.reversals_of(transfer["id"])) == 2


def test_a_key_belongs_to_one_account(client: stripe.StripeClient, sim: StripeSimulator, seller: str) -> None:
    params = {"url": "https://example.com/hook", "enabled_events": ["*"]}
    first = client.v1.webhook_endpoints.create(params, {"idempotency_key": "k"})  # type: ignore[arg-type]
    other = client.v1.webhook_endpoints.create(
        params,
        {"idempotency_key": "k", "stripe_account": seller},  # type: ignore[arg-type]
    )
    assert other.id != first.id


def test_a_key_of_more_than_255_characters_is_refused(client: stripe.StripeClient, transfer: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        reverse(client, transfer["id"], "k" * 256, amount=100)


def test_the_sdks_own_retry_after_a_lost_answer_reverses_once(
    sim: StripeSimulator, transfer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.01)
    sim.faults.add("drop_after", endpoint=REVERSALS, times=1)
    http = stripe.RequestsClient(timeout=10)
    retrying = stripe.StripeClient(
        "sk_test_x", base_addresses={"api": sim.url}, max_network_retries=2, http_client=http
    )
    made = retrying.v1.transfers.reversals.create(transfer["id"], {"amount": 100})
    http.close()
    assert [row["id"] for row in sim.reversals_of(transfer["id"])] == [made.id]
