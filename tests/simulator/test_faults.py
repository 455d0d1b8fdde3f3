"""When faults strike, and the limits on requests."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import stripe

from marketplace.simulator import Plan, StripeSimulator
from marketplace.simulator.faults import Call, RateLimit

REVERSALS = "POST /v1/transfers/{id}/reversals"


def call(method: str = "POST", endpoint: str = REVERSALS, ids: tuple[str, ...] = ("tr_1",), account: str = "") -> Call:
    return Call(method=method, endpoint=endpoint, ids=ids, accounts=(account,))


def fired(plan: Plan, *calls: Call) -> list[bool]:
    return [plan.judge(each).rule is not None for each in calls]


@pytest.mark.parametrize(
    ("condition", "hit", "miss"),
    [
        ({"method": "POST"}, call(), call("GET", "GET /v1/transfers")),
        ({"endpoint": REVERSALS}, call(), call(endpoint="POST /v1/transfers")),
        ({"endpoint": "/v1/transfers/{transfer}/reversals"}, call(), call(endpoint="POST /v1/refunds")),
        ({"object": "tr_1"}, call(), call(ids=("tr_2",))),
        ({"account": "acct_1"}, call(account="acct_1"), call(account="acct_2")),
    ],
)
def test_a_rule_strikes_what_it_names(condition: dict[str, Any], hit: Call, miss: Call) -> None:
    plan = Plan(1)
    plan.add("drop_before", **condition)
    assert fired(plan, hit, miss) == [True, False]


def test_nth_and_times_count_the_matching_calls_only() -> None:
    plan = Plan(1)
    plan.add("drop_before", endpoint=REVERSALS, nth=(2, 4))
    plan.add("drop_after", endpoint=REVERSALS, nth=99)
    other = call(endpoint="POST /v1/transfers")
    assert fired(plan, call(), other, call(), call(), call()) == [False, False, True, False, True]
    plan.clear()
    plan.add("drop_before", times=2)
    assert fired(plan, call(), call(), call()) == [True, True, False]


def test_chances_come_from_the_seed() -> None:
    def luck(seed: int) -> list[bool]:
        plan = Plan(seed)
        plan.add("drop_after", probability=0.3)
        return fired(plan, *[call()] * 200)

    assert luck(1) == luck(1) != luck(2)
    assert 30 < sum(luck(1)) < 90


def test_a_window_opens_and_closes_with_the_simulators_clock(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.faults.outage(60, 120)
    client.v1.balance.retrieve()
    sim.clock.advance(61)
    with pytest.raises(stripe.APIError) as caught:
        client.v1.balance.retrieve()
    assert caught.value.http_status == 503
    sim.clock.advance(120)
    client.v1.balance.retrieve()


def test_the_first_rule_that_fires_decides_and_latency_adds_up() -> None:
    plan = Plan(1)
    plan.add("latency", seconds=0.1)
    plan.add("drop_before", times=1)
    plan.add("latency", seconds=0.2)
    plan.add("drop_after")
    first, second = plan.judge(call()), plan.judge(call())
    assert first.rule is not None
    assert second.rule is not None
    assert (first.rule.action, second.rule.action) == ("drop_before", "drop_after")
    assert first.seconds == second.seconds == pytest.approx(0.3)


def test_a_rule_can_be_taken_back() -> None:
    plan = Plan(1)
    rule = plan.add("drop_before")
    assert plan.remove(rule)
    assert not plan.remove(rule)
    assert fired(plan, call()) == [False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "explode"},
        {"action": "drop_after", "probability": 1.5},
        {"action": "unavailable", "status": 200},
        {"action": "rate_limited", "reason": "mood"},
        {"action": "latency", "endpoint": "transfers"},
    ],
)
def test_a_nonsensical_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|no fault action"):
        Plan(1).add(**wrong)


def test_a_rule_finds_the_seller_behind_a_transfer(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.faults.add("lock_timeout", account=transfer["destination"])
    other = sim.create_transfer(100, sim.create_account()["id"])
    client.v1.transfers.reversals.create(other["id"], {"amount": 1})
    with pytest.raises(stripe.RateLimitError):
        client.v1.transfers.reversals.create(transfer["id"], {"amount": 1})
    with pytest.raises(stripe.RateLimitError):
        client.v1.transfers.create({"amount": 1, "currency": "eur", "destination": transfer["destination"]})


def test_latency_lets_calls_overlap(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.faults.add("latency", endpoint=REVERSALS, seconds=0.2)
    started = time.monotonic()
    threads = [
        threading.Thread(target=client.v1.transfers.reversals.create, args=(transfer["id"], {"amount": 1}))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.2 <= time.monotonic() - started < 1.2
    assert sim.requests.in_flight_max[REVERSALS] == 8
    assert all(record.seconds >= 0.2 for record in sim.requests.to(REVERSALS))
    assert len(sim.reversals_of(transfer["id"])) == 8


@pytest.mark.parametrize("action", ["drop_before", "drop_after"])
def test_a_dropped_caller_is_kept_waiting_for_as_long_as_was_asked(
    client: stripe.StripeClient, sim: StripeSimulator, action: str
) -> None:
    sim.faults.add(action, hold=0.3, times=1)
    began = time.monotonic()
    with pytest.raises(stripe.APIConnectionError):
        client.v1.balance.retrieve()
    assert time.monotonic() - began >= 0.3


def test_a_limit_counts_an_endpoint_whatever_the_id(
    client: stripe.StripeClient, sim: StripeSimulator, seller: str
) -> None:
    sim.core.endpoint_limit.per_second = 3
    made = [sim.create_transfer(100, seller)["id"] for _ in range(4)]
    for each in made[:3]:
        client.v1.transfers.reversals.create(each, {"amount": 1})
    with pytest.raises(stripe.RateLimitError) as caught:
        client.v1.transfers.reversals.create(made[3], {"amount": 1}, {"idempotency_key": made[3]})
    assert caught.value.headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    assert [len(sim.reversals_of(each)) for each in made] == [1, 1, 1, 0]
    client.v1.balance.retrieve()
    sim.core.endpoint_limit.per_second = None
    again = client.v1.transfers.reversals.create(made[3], {"amount": 1}, {"idempotency_key": made[3]})
    assert "Idempotent-Replayed" not in again.last_response.headers  # type: ignore[union-attr]


def test_the_global_limit_counts_everything(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.core.global_limit.per_second = 2
    client.v1.balance.retrieve()
    client.v1.transfers.list()
    with pytest.raises(stripe.RateLimitError) as caught:
        client.v1.charges.list()
    assert caught.value.headers["Stripe-Rate-Limited-Reason"] == "global-rate"


def test_no_second_sees_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("marketplace.simulator.faults.time.monotonic", lambda: now[0])
    limit, allowed = RateLimit(5), []
    for step in range(400):
        now[0] = 100 + step / 37
        if limit.allows("x"):
            allowed.append(now[0])
    assert len(allowed) >= 50
    assert all(sum(1 for other in allowed if at <= other < at + 1) <= 5 for at in allowed)


def test_a_sender_who_keeps_its_keys_reverses_once_through_everything(
    client: stripe.StripeClient, sim: StripeSimulator, seller: str
) -> None:
    sim.faults.add("latency", seconds=0.001, jitter=0.005)
    for action in (
        "drop_before",
        "drop_after",
        "truncated",
        "unreadable",
        "unavailable",
        "lock_timeout",
        "rate_limited",
    ):
        sim.faults.add(action, endpoint=REVERSALS, probability=0.08)
    transfers = [sim.create_transfer(100, seller)["id"] for _ in range(48)]
    kept: list[str] = []

    def send(mine: list[str]) -> None:
        for transfer in mine:
            for _ in range(100):
                try:
                    made = client.v1.transfers.reversals.create(
                        transfer, {"amount": 40, "metadata": {"op_id": transfer}}, {"idempotency_key": transfer}
                    )
                except stripe.StripeError:
                    continue
                kept.append(made.id)
                break

    threads = [threading.Thread(target=send, args=(transfers[n::6] * 2,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sim.audit()
    assert found["problems"] == found["suspicious"] == []
    assert [each["amount_reversed"] for each in found["transfers"]] == [40] * 48
    assert len(kept) == 96
    assert set(kept) == {sim.reversals_of(each)[0]["id"] for each in transfers}
