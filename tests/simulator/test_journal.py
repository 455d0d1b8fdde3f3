"""What a restart keeps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import stripe

from marketplace.simulator import StripeSimulator

from .conftest import MakeClient

REVERSALS = "POST /v1/transfers/{id}/reversals"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.jsonl"


def reverse(client: stripe.StripeClient, transfer: str, key: str) -> Any:
    return client.v1.transfers.reversals.create(transfer, {"amount": 10}, {"idempotency_key": key})


def snapshot(sim: StripeSimulator) -> dict[str, Any]:
    found = sim.audit()
    return {name: found[name] for name in ("accounts", "transfers", "totals", "problems")} | {
        "events": sim.events(account="*")
    }


def test_a_restart_keeps_objects_balances_events_and_keys(state: Path, make_client: MakeClient) -> None:
    with StripeSimulator(state_file=state) as sim:
        client = make_client(url=sim.url)
        seller = sim.create_account()["id"]
        charge = sim.create_charge(9000)
        transfer = sim.create_transfer(7000, seller, source_transaction=charge["id"])
        first = reverse(client, transfer["id"], "k1")
        endpoint = client.v1.webhook_endpoints.create({"url": "http://127.0.0.1:1/", "enabled_events": ["payout.paid"]})
        sim.create_refund(charge["id"], 100)
        before = snapshot(sim)
    for _ in range(2):  # the second time from a compacted file
        with StripeSimulator(state_file=state) as sim:
            client = make_client(url=sim.url)
            assert snapshot(sim) == before
            again = reverse(client, transfer["id"], "k1")
            assert again.id == first.id
            assert again.last_response.headers["Idempotent-Replayed"] == "true"
            assert client.v1.webhook_endpoints.retrieve(endpoint.id).url == endpoint.url
    with StripeSimulator(state_file=state) as sim:
        new = sim.create_reversal(transfer["id"], 5)
        assert new["id"] not in str(before)
        read = make_client(url=sim.url).v1.transfers.retrieve(transfer["id"])
        assert [each.id for each in read.reversals.data] == [new["id"], first.id]


def test_metadata_changed_after_a_restart_shows_in_the_embedded_list(state: Path, make_client: MakeClient) -> None:
    with StripeSimulator(state_file=state) as sim:
        transfer = sim.create_transfer(7000, sim.create_account()["id"])
        reversal = sim.create_reversal(transfer["id"], 10)
    with StripeSimulator(state_file=state) as sim:
        client = make_client(url=sim.url)
        client.v1.transfers.reversals.update(transfer["id"], reversal["id"], {"metadata": {"a": "b"}})
        read = client.v1.transfers.retrieve(transfer["id"])
        assert read.reversals.data[0].metadata.to_dict() == {"a": "b"}  # type: ignore[union-attr]


def test_what_was_due_later_still_comes(state: Path, make_client: MakeClient) -> None:
    with StripeSimulator(state_file=state, charge_settles_after=3600) as sim:
        sim.create_charge(1000)
        transfer = sim.create_transfer(500, sim.create_account()["id"])
        sim.faults.add("late", endpoint=REVERSALS, seconds=60)
        with pytest.raises(stripe.APIConnectionError):
            reverse(make_client(url=sim.url), transfer["id"], "k1")
    with StripeSimulator(state_file=state) as sim:
        client = make_client(url=sim.url)
        assert sim.balance() == (0, 1000)
        with pytest.raises(stripe.APIError) as caught:
            reverse(client, transfer["id"], "k1")
        assert caught.value.http_status == 409
        sim.clock.advance(3601)
        assert sim.balance() == (1010, 0)
        assert reverse(client, transfer["id"], "k1").last_response.headers["Idempotent-Replayed"] == "true"


def test_a_moved_clock_stays_moved(state: Path) -> None:
    with StripeSimulator(state_file=state) as sim:
        sim.clock.advance(100 * 24 * 3600)
        then = sim.clock.now()
    with StripeSimulator(state_file=state) as sim:
        assert then <= sim.clock.now() < then + 60


def test_a_torn_last_line_is_left_out_with_a_warning(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StripeSimulator(state_file=state) as sim:
        transfer = sim.create_transfer(500, sim.create_account()["id"])
        before = snapshot(sim)
        sim.create_reversal(transfer["id"], 10)
    state.write_bytes(state.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING), StripeSimulator(state_file=state) as sim:
        assert "torn" in caplog.text
        assert snapshot(sim) == before


def test_a_broken_line_in_the_middle_stops_the_start(state: Path) -> None:
    with StripeSimulator(state_file=state) as sim:
        sim.create_account()
    state.write_text("{broken\n" + state.read_text())
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        StripeSimulator(state_file=state)


def test_every_line_is_a_whole_transaction(state: Path, make_client: MakeClient) -> None:
    """Whichever line the process died after, effect and kept answer are both there or both not."""
    with StripeSimulator(state_file=state) as sim:
        transfer = sim.create_transfer(500, sim.create_account()["id"])
        for number in range(3):
            reverse(make_client(url=sim.url), transfer["id"], f"k{number}")
    lines = state.read_text().splitlines(keepends=True)
    for end in range(1, len(lines) + 1):
        state.write_text("".join(lines[:end]))
        with StripeSimulator(state_file=state) as sim:
            assert sim.audit()["problems"] == []
            kept = len(sim.world.keys)
            assert kept == len(sim.reversals_of(transfer["id"]))
            assert kept == len(sim.events(type="transfer.reversed"))
    assert kept == 3


def test_a_reset_empties_the_file(state: Path) -> None:
    with StripeSimulator(state_file=state) as sim:
        sim.create_charge(1000)
        sim.reset()
        assert sim.audit()["accounts"] == []
        charge = sim.create_charge(2000)
    with StripeSimulator(state_file=state) as sim:
        assert sim.balance() == (2000, 0)
        assert sim.get(charge["id"]) == charge
    assert all(json.loads(line) for line in state.read_text().splitlines())
