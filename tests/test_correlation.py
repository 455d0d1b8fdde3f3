"""One id from the request or the event to the worker's log lines."""

import json
from typing import Any

import pytest
import structlog
from django.db.models.functions import Now
from django.test import Client
from structlog.testing import capture_logs

from marketplace import correlation, inbox
from marketplace.models import Refund, SellerTransfer, TransferReversal, WebhookEvent
from marketplace.services import refunds
from marketplace.workers import reversal, transfer_retry
from tests.api.test_webhooks import post
from tests.factories import OrderFactory, SellerTransferFactory, UserFactory, WebhookEventFactory, order_with_items
from tests.inbox.conftest import paid, pay, verified  # noqa: F401 - fixtures
from tests.workers.conftest import drain


def lines() -> Any:
    """What is logged, as it is written: with what is bound."""
    return capture_logs(processors=[structlog.contextvars.merge_contextvars])


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("sent", ["abc-123", "01J9_ZK.x:7", "x" * 100])
def test_a_callers_id_is_kept_and_sent_back(sent: str, client: Client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.django_db
@pytest.mark.parametrize("sent", ["", " ", "x" * 101, "a@example.com", "a b", "sk_live_s3cret", "é"])
def test_what_one_should_not_keep_is_replaced(sent: str, client: Client) -> None:
    answered = client.get("/healthz", headers={"X-Request-ID": sent}).headers["X-Request-ID"]
    assert answered != sent
    assert len(answered) == 32
    assert client.get("/healthz").headers["X-Request-ID"] != answered


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "status"),
    [("/nothing/here?q=buyer@example.com", 404), ("/", 200), ("/api/orders/", 401)],
)
def test_each_request_has_a_line_with_its_id_and_without_its_query(path: str, status: int, client: Client) -> None:
    with lines() as logged:
        client.get(path, headers={"X-Request-ID": "call-1"})
    (line,) = [line for line in logged if line["event"] == "request"]
    assert line.pop("milliseconds") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "correlation_id": "call-1",
        "method": "GET",
        "path": path.partition("?")[0],
        "status": status,
    }


@pytest.mark.django_db
def test_probes_have_a_line_only_when_they_find_something_wrong(client: Client, monkeypatch: Any) -> None:
    with lines() as logged:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
    assert logged == []
    monkeypatch.setattr("marketplace.selectors.queues_without_worker", lambda: ["reversal"])
    with lines() as logged:
        assert client.get("/readyz").status_code == 503
    assert [line["status"] for line in logged if line["event"] == "request"] == [503]


def test_outside_of_everything_there_is_none() -> None:
    assert correlation.current() == ""
    with correlation.bound("a"):
        with correlation.bound("b"):
            assert correlation.current() == "b"
        assert correlation.current() == "a"
    assert correlation.current() == ""


@pytest.mark.django_db
def test_a_refund_bears_the_id_of_its_request_and_so_do_its_lines(gateway: Any) -> None:
    order = OrderFactory(paid=True)
    with correlation.bound("request-7"):
        asked = refunds.request(
            order_id=order.pk,
            amount=order.amount,
            currency=order.currency,
            reason="",
            requested_by=UserFactory(staff=True),
            request_key="k",
        )
    Refund.objects.filter(pk=asked.refund.pk).update(next_retry_at=Now())
    assert Refund.objects.get(pk=asked.refund.pk).correlation_id == "request-7"
    with lines() as logged:
        assert drain(reversal.RefundQueue(gateway)) == 1
    (line,) = [line for line in logged if line["event"] == "refund_answered"]
    assert line["correlation_id"] == "request-7"


# --- Events -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_event_is_followed_from_the_webhook_to_the_reversal(
    client: Client,
    gateway: Any,
    simulator: Any,
    paid: Any,  # noqa: F811
) -> None:
    order, charge = paid
    simulator.create_refund(charge=charge)
    event = simulator.events(type="refund.created")[-1]
    body = json.dumps(event).encode()
    with lines() as logged:
        answer = post(client, body)
    assert answer.status_code == 200
    assert {line["correlation_id"] for line in logged} == {event["id"]}
    owed = TransferReversal.objects.filter(transfer__order=order)
    assert {each.correlation_id for each in owed} == {event["id"]}
    with lines() as logged:
        drain(reversal.ReversalQueue(gateway))
    answered = [line for line in logged if line["event"] in {"reversal_answered", "reversal_needs_a_person"}]
    assert answered
    assert {line["correlation_id"] for line in answered} == {event["id"]}


@pytest.mark.django_db
def test_a_sellers_transfer_bears_the_payments_event(
    simulator: Any,
    gateway: Any,
    verified: Any,  # noqa: F811
) -> None:
    order = order_with_items((3000, 2000))
    pay(simulator, order)
    event = simulator.events(type="payment_intent.succeeded")[-1]
    inbox.receive(verified(event))
    assert {each.correlation_id for each in SellerTransfer.objects.all()} == {event["id"]}
    with lines() as logged:
        drain(transfer_retry.TransferQueue(gateway))
    answered = [line for line in logged if line["event"] == "transfer_answered"]
    assert [line["correlation_id"] for line in answered] == [event["id"]] * 2


@pytest.mark.django_db
def test_an_event_that_is_applied_again_keeps_its_own_id() -> None:
    event = WebhookEventFactory(given_up=True, stripe_event_id="evt_again")
    seen: list[str] = []

    def handle(row: WebhookEvent, body: Any) -> str:
        seen.append(correlation.current())
        return "done"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inbox, "HANDLERS", {event.type: handle})
        with correlation.bound("the-operators-request"):
            inbox.replay(event_id=event.pk, actor="tester", reason="because")
    assert seen == ["evt_again"]


@pytest.mark.django_db
def test_an_id_that_is_longer_than_a_column_does_not_fail_its_event() -> None:
    with correlation.bound("evt_" + "x" * 200):
        transfer = SellerTransferFactory()
    transfer.refresh_from_db()
    assert transfer.correlation_id == "evt_" + "x" * 96


# --- In the log -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_what_is_said_deep_inside_bears_it_too(gateway: Any) -> None:
    with correlation.bound("evt_1"):
        SellerTransferFactory(reversal_pending=True)
    with lines() as logged:
        drain(reversal.ReversalQueue(gateway))
    (asks,) = [line for line in logged if line["event"] == "reversal_needs_a_person"]
    (answered,) = [line for line in logged if line["event"] == "reversal_answered"]
    assert asks["correlation_id"] == answered["correlation_id"] == "evt_1"
    for name in ("transfer", "reversal", "operation_id", "generation", "attempt", "request_id", "milliseconds"):
        assert name in answered
    assert correlation.current() == "", "the next row has its own"


@pytest.mark.django_db
def test_no_line_holds_what_is_personal(client: Client, gateway: Any, simulator: Any, paid: Any) -> None:  # noqa: F811
    order, charge = paid
    simulator.create_refund(charge=charge)
    event = simulator.events(type="refund.created")[-1]
    event["data"]["object"]["metadata"] = {"email": "private@example.com"}
    body = json.dumps(event).encode()
    with lines() as logged:
        post(client, body)
        drain(reversal.ReversalQueue(gateway))
    written = str(logged)
    seller = order.transfers.first().seller
    for personal in ("private@example.com", order.buyer.username, order.buyer.email, seller.name):
        assert personal not in written
