"""Events, their signatures, and how they are delivered."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import stripe

from marketplace.simulator import DEFAULT_SECRET, StripeSimulator

from .conftest import MakeClient


class Inbox:
    """A webhook endpoint that keeps what it gets and answers `status`."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, str]] = []
        self.status = 200
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.got.append((raw, self.headers["Stripe-Signature"]))
                self.send_response(inbox.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None: ...

        class HookServer(ThreadingHTTPServer):
            request_queue_size = 100

        self.server = HookServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def types(self) -> list[str]:
        return [json.loads(raw)["type"] for raw, _ in self.got]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def inbox(sim: StripeSimulator) -> Iterator[Inbox]:
    made = Inbox()
    yield made
    sim.reset()  # nothing may be sent to a closed address
    made.close()


def verify(raw: bytes, header: str, secret: str = DEFAULT_SECRET) -> None:
    assert stripe.WebhookSignature.verify_header(raw.decode(), header, secret, 300)


def test_a_checkout_and_a_refund_tell_their_story_in_order(
    client: stripe.StripeClient, sim: StripeSimulator, seller: str
) -> None:
    intent = client.v1.payment_intents.create(
        {"amount": 10_000, "currency": "eur", "confirm": True, "payment_method": "pm_card_visa"}
    )
    transfer = client.v1.transfers.create({"amount": 7000, "currency": "eur", "destination": seller})
    client.v1.refunds.create({"payment_intent": intent.id, "amount": 2000})
    client.v1.transfers.reversals.create(transfer.id, {"amount": 1400})
    assert [event["type"] for event in sim.events()] == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
        "transfer.created",
        "refund.created",
        "charge.refunded",
        "transfer.reversed",
    ]


def test_an_event_has_stripes_envelope_and_names_its_request(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    made = client.v1.transfers.reversals.create(transfer["id"], {"amount": 5}, {"idempotency_key": "key-1"})
    (event,) = sim.events(type="transfer.reversed")
    assert set(event) == {
        "id", "object", "api_version", "created", "data", "livemode", "pending_webhooks", "request", "type",
    }  # fmt: skip
    assert event["request"] == {"id": made.last_response.request_id, "idempotency_key": "key-1"}
    assert event["data"]["object"]["object"] == "transfer"
    assert event["data"]["object"]["reversals"]["data"][0]["id"] == made.id
    assert "previous_attributes" not in event["data"]
    assert sim.events(type="transfer.created")[0]["request"] == {"id": None, "idempotency_key": None}


def test_a_snapshot_does_not_change_with_its_object(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    for _ in range(2):
        client.v1.transfers.reversals.create(transfer["id"], {"amount": 5})
    amounts = [each["data"]["object"]["amount_reversed"] for each in sim.events(type="transfer.reversed")]
    assert amounts == [5, 10]


def test_events_are_listed_by_type_and_read_by_id(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.create_reversal(transfer["id"], 5)
    (event,) = client.v1.events.list({"type": "transfer.reversed"}).data
    assert client.v1.events.retrieve(event.id).data.object["id"] == transfer["id"]
    several = client.v1.events.list({"types": ["transfer.reversed", "transfer.created"]})
    assert [each.type for each in several.data] == ["transfer.reversed", "transfer.created"]
    assert [each.type for each in client.v1.events.list({"type": "transfer.*"}).data] == [
        "transfer.reversed",
        "transfer.created",
    ]
    sim.clock.advance(31 * 24 * 3600)
    assert client.v1.events.list().data == []


def test_a_sellers_events_are_read_as_the_seller(
    client: stripe.StripeClient, sim: StripeSimulator, seller: str
) -> None:
    sim.set_capability(seller, status="inactive")
    assert client.v1.events.list({"type": "account.updated"}).data == []
    (event,) = client.v1.events.list({"type": "account.updated"}, {"stripe_account": seller}).data
    assert event.account == seller
    assert event.data.previous_attributes is not None
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.create({"amount": 1, "currency": "eur", "destination": seller})
    assert caught.value.code == "insufficient_capabilities_for_transfer"


def test_a_signature_is_stripes_own(sim: StripeSimulator, transfer: dict[str, Any]) -> None:
    event = sim.events()[-1]
    raw, header = sim.sign(event)
    verify(raw, header)
    with pytest.raises(stripe.SignatureVerificationError):
        verify(raw + b" ", header)
    with pytest.raises(stripe.SignatureVerificationError):
        verify(raw, header, "whsec_other")
    raw, header = sim.sign(event, ["whsec_new", "whsec_old"])
    assert header.count("v1=") == 2
    verify(raw, header, "whsec_new")
    verify(raw, header, "whsec_old")
    raw, header = sim.sign(event, at=time.time() - 301)
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        verify(raw, header)


def test_webhooks_are_sent_signed(sim: StripeSimulator, inbox: Inbox, seller: str) -> None:
    sim.deliver_to(inbox.url)
    made = sim.create_transfer(100, seller)
    assert sim.wait_for_webhooks()
    for raw, header in inbox.got:
        verify(raw, header)
    assert Counter(inbox.types()) == Counter(event["type"] for event in sim.events(account="*"))
    event = sim.events(type="transfer.created", object=made["id"])[0]
    assert event["pending_webhooks"] == 0


def test_an_endpoint_gets_what_it_asked_for_and_shows_its_secret_once(
    client: stripe.StripeClient, sim: StripeSimulator, inbox: Inbox, seller: str
) -> None:
    made = client.v1.webhook_endpoints.create(
        {"url": inbox.url, "enabled_events": ["transfer.created"], "api_version": "2025-01-27.acacia"}
    )
    assert made.secret is not None
    assert "secret" not in client.v1.webhook_endpoints.retrieve(made.id)
    transfer = sim.create_transfer(100, seller)
    sim.create_reversal(transfer["id"], 50)
    assert sim.wait_for_webhooks()
    ((raw, header),) = inbox.got
    verify(raw, header, made.secret)
    assert json.loads(raw)["api_version"] == "2025-01-27.acacia"
    client.v1.webhook_endpoints.delete(made.id)
    sim.create_transfer(100, seller)
    assert sim.wait_for_webhooks()
    assert len(inbox.got) == 1


def test_connect_endpoints_get_the_sellers_events_only(
    client: stripe.StripeClient, sim: StripeSimulator, inbox: Inbox, seller: str
) -> None:
    client.v1.webhook_endpoints.create({"url": inbox.url, "enabled_events": ["*"], "connect": True})
    sim.set_capability(seller, status="inactive")
    sim.create_charge(1000)
    assert sim.wait_for_webhooks()
    assert inbox.types() == ["account.updated"]
    assert json.loads(inbox.got[0][0])["account"] == seller


def test_a_rolled_secret_signs_beside_the_old_one(
    client: stripe.StripeClient, sim: StripeSimulator, inbox: Inbox, seller: str
) -> None:
    made = client.v1.webhook_endpoints.create({"url": inbox.url, "enabled_events": ["transfer.created"]})
    fresh = sim.roll_secret(made.id)
    sim.create_transfer(100, seller)
    assert sim.wait_for_webhooks()
    ((raw, header),) = inbox.got
    assert made.secret is not None
    verify(raw, header, made.secret)
    verify(raw, header, fresh)


def test_a_refused_webhook_is_sent_again_with_a_new_signature(
    client: stripe.StripeClient, sim: StripeSimulator, inbox: Inbox, seller: str
) -> None:
    client.v1.webhook_endpoints.create({"url": inbox.url, "enabled_events": ["transfer.created"]})
    inbox.status = 500
    sim.create_transfer(100, seller)
    assert sim.wait_for_webhooks()
    assert [each.type for each in client.v1.events.list({"delivery_success": False}).data] == ["transfer.created"]
    inbox.status = 302
    sim.clock.advance(10)
    assert sim.wait_for_webhooks()
    inbox.status = 200
    sim.clock.advance(60)
    assert sim.wait_for_webhooks()
    bodies, headers = zip(*inbox.got, strict=True)
    assert len({json.loads(each)["id"] for each in bodies}) == 1
    assert len(set(headers)) == 3
    assert [each.status for each in sim.webhooks_sent] == [500, 302, 200]
    assert client.v1.events.list({"delivery_success": False}).data == []
    sim.clock.advance(7200)
    assert sim.wait_for_webhooks()
    assert len(inbox.got) == 3


def test_a_dead_address_is_tried_for_about_three_days(
    client: stripe.StripeClient, sim: StripeSimulator, seller: str
) -> None:
    client.v1.webhook_endpoints.create({"url": "http://127.0.0.1:1/x", "enabled_events": ["transfer.created"]})
    sim.create_transfer(100, seller)
    for _ in range(24 * 4):
        assert sim.wait_for_webhooks()
        sim.clock.advance(3600)
    assert 8 < len(sim.webhooks_sent) < 20
    assert {each.status for each in sim.webhooks_sent} == {None}


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("duplicates", lambda counts: set(counts.values()) == {2}),
        ("dropped", lambda counts: not counts),
        ("reordered", lambda counts: set(counts.values()) == {1}),
    ],
)
def test_delivery_has_stripes_vices_when_asked(
    sim: StripeSimulator, inbox: Inbox, seller: str, fault: str, check: Callable[[Counter[str]], bool]
) -> None:
    sim.deliver_to(inbox.url)
    setattr(sim.webhook_faults, fault, 1.0)
    sim.clock.freeze()
    made = [sim.create_transfer(100, seller)["id"] for _ in range(12)]
    sim.clock.advance(3)
    assert sim.wait_for_webhooks()
    got = [json.loads(raw) for raw, _ in inbox.got]
    assert check(Counter(event["id"] for event in got))
    if fault == "reordered":
        arrived = [e["data"]["object"]["id"] for e in got if e["type"] == "transfer.created"]
        assert sorted(arrived) == sorted(made)
        assert arrived != made


def test_an_event_can_be_sent_again_by_hand(sim: StripeSimulator, inbox: Inbox, seller: str) -> None:
    sim.create_transfer(100, seller)
    sim.deliver_to(inbox.url)
    event = sim.events(type="transfer.created")[0]
    assert sim.resend(event["id"]) == 1
    assert sim.wait_for_webhooks()
    assert [json.loads(raw)["id"] for raw, _ in inbox.got] == [event["id"]]


def test_a_redirecting_or_silent_endpoint_does_not_stop_the_simulator(
    sim: StripeSimulator, make_client: MakeClient
) -> None:
    with StripeSimulator(seed=3, webhook_urls=["http://127.0.0.1:1/"]) as other:
        other.create_charge(1000)
        assert make_client(url=other.url).v1.charges.list().data
