"""POST /webhooks/stripe/: signed bytes in, one row or none, and never anything but the documented answers."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe
import structlog
from django.db import InterfaceError, OperationalError
from django.test import Client
from structlog.testing import capture_logs

from marketplace import inbox
from marketplace.api.webhooks import stripe_webhook
from marketplace.models import Order, Seller, SellerTransfer, WebhookEvent
from tests.factories import SellerFactory, order_with_transfers

ADDRESS = "/webhooks/stripe/"
PLATFORM, CONNECT = "whsec_testPlatform", "whsec_testConnect"


@pytest.fixture(autouse=True)
def _no_stripe(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """No request that Stripe makes to us may make one to Stripe."""
    calls: list[Any] = []
    monkeypatch.setattr("stripe.RequestsClient.request", lambda *args, **_: calls.append(args))
    yield calls
    assert not calls


def event(kind: str = "customer.created", body: Any = None, **changes: Any) -> dict[str, Any]:
    made = {
        "id": f"evt_{time.monotonic_ns()}",
        "object": "event",
        "type": kind,
        "api_version": "2026-10-28.endive",
        "created": int(time.time()),
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "data": {"object": body or {"id": "cus_1", "object": "customer", "email": "private@example.com"}},
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def sign(body: bytes, secret: str = PLATFORM, *, at: int | None = None) -> str:
    made: str = stripe.WebhookSignature.generate_signature_header(
        body.decode(errors="surrogateescape"), secret, timestamp=at
    )
    return made


def post(
    client: Client, body: Any, *, signature: str | None = None, secret: str = PLATFORM, path: str = ADDRESS
) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    header = sign(raw, secret) if signature is None else signature
    headers = {"Stripe-Signature": header} if header else {}
    return client.post(path, raw, content_type="application/json; charset=utf-8", headers=headers)


def refund_event(order: Order, **changes: Any) -> dict[str, Any]:
    body = {
        "id": "re_1",
        "object": "refund",
        "status": "succeeded",
        "amount": order.amount,
        "currency": order.currency,
        "payment_intent": order.stripe_payment_intent_id,
        "charge": order.stripe_charge_id,
        "created": int(time.time()),
        "metadata": {},
    }
    return event("refund.updated", {**body, **changes})


# --- Accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ADDRESS, "/webhooks/stripe"])
@pytest.mark.parametrize("secret", [PLATFORM, CONNECT])
def test_an_event_of_no_use_is_stored_and_acknowledged(path: str, secret: str, client: Client, db: None) -> None:
    sent = event()

    response = post(client, sent, secret=secret, path=path)

    assert response.status_code == 200
    assert response.json() == {"received": True, "event": sent["id"], "status": "ignored"}
    assert WebhookEvent.objects.get().payload == sent


def test_a_refund_makes_reversals_owed(client: Client, db: None) -> None:
    order = order_with_transfers((3000, 2000))

    response = post(client, refund_event(order))

    assert response.json()["status"] == "processed"
    order.refresh_from_db()
    assert order.status == "refunded"
    for transfer in SellerTransfer.objects.all():
        assert transfer.status == "reversal_pending"
        assert transfer.next_retry_at is not None


def test_a_duplicate_is_acknowledged_and_does_nothing(client: Client, db: None) -> None:
    order = order_with_transfers()
    sent = refund_event(order)

    first, second = post(client, sent), post(client, sent)

    assert first.json() == second.json()
    assert WebhookEvent.objects.count() == 1
    assert order.transfers.earliest("id").reversals.count() == 1


def test_a_duplicate_has_a_line_of_its_own(client: Client, db: None) -> None:
    """So that who asks what Stripe sent finds each delivery."""
    sent = event()
    post(client, sent)

    with capture_logs() as logs:
        post(client, sent)

    assert [(line["event"], line["event_id"], line["status"]) for line in logs] == [
        ("webhook_event_duplicate", sent["id"], "ignored")
    ]


def test_what_is_sent_elsewhere_before_it_is_read_has_a_line(client: Client, settings: Any) -> None:
    """A proxy that does not say that the request came over TLS: Stripe takes each answer for a failure."""
    settings.SECURE_SSL_REDIRECT = True

    with capture_logs() as logs:
        response = post(client, event())

    assert response.status_code == 301
    assert [(line["event"], line["path"], line["status"]) for line in logs] == [("request", ADDRESS, 301)]


def test_an_event_for_an_unknown_order_waits(client: Client, db: None) -> None:
    sent = event(
        "refund.updated",
        {"id": "re_9", "status": "succeeded", "amount": 5, "currency": "eur", "payment_intent": "pi_9", "created": 1},
    )

    response = post(client, sent)

    assert (response.status_code, response.json()["status"]) == (200, "failed")
    assert WebhookEvent.objects.get().next_retry_at is not None


def test_a_known_type_of_an_unexpected_shape_is_kept_with_its_error(client: Client, db: None) -> None:
    response = post(client, event("refund.updated", {"id": 5}))

    assert (response.status_code, response.json()["status"]) == (200, "failed")
    assert WebhookEvent.objects.get().last_error_code == "MalformedEvent"


def test_an_event_of_a_connected_account_is_applied(client: Client, db: None) -> None:
    seller = SellerFactory()
    body = {
        "id": seller.stripe_account_id,
        "object": "account",
        "payouts_enabled": False,
        "capabilities": {"transfers": "inactive"},
    }

    response = post(client, event("account.updated", body, account=seller.stripe_account_id), secret=CONNECT)

    assert response.json()["status"] == "processed"
    assert Seller.objects.get().transfers_capability == "inactive"


def test_a_refund_of_a_connected_account_is_not_ours(client: Client, db: None) -> None:
    order = order_with_transfers()

    response = post(client, {**refund_event(order), "account": "acct_other"})

    assert response.json()["status"] == "ignored"
    order.refresh_from_db()
    assert order.status == "paid"


@pytest.mark.parametrize(
    ("name", "stored"),
    [("a\0b", "a\ufffdb"), ("\\\0", "\\\ufffd"), ("\\u0000", "\\u0000"), ("\ud800", "\ufffd"), ("ελιά 🫒", "ελιά 🫒")],
)
def test_text_that_the_database_cannot_hold_is_no_reason_to_lose_an_event(
    name: str, stored: str, client: Client, db: None
) -> None:
    assert post(client, event(body={"id": "cus_1", "name": name})).status_code == 200

    assert WebhookEvent.objects.get().payload["data"]["object"]["name"] == stored


def test_one_of_several_signatures_is_enough_and_other_schemes_do_not_count(client: Client, db: None) -> None:
    raw = json.dumps(event()).encode()
    stamp, good = sign(raw).split(",")
    _, other = sign(raw, "whsec_other").split(",")

    assert post(client, raw, signature=f"{stamp},{other},{good},v0=1234").status_code == 200
    assert post(client, raw, signature=f"{stamp},{good.replace('v1', 'v0')}").status_code == 400


# --- Refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("", "the Stripe-Signature header is missing"),
        ("nonsense", "signature"),
        ("t=1,v1=", "signature"),
        ("t=x,v1=00", "signature"),
        ("t=" + "9" * 400 + ",v1=00", "signature"),
        ("v1=00", "signature"),
    ],
)
def test_without_a_signature_of_ours_nothing_is_stored(signature: str, expected: str, client: Client, db: None) -> None:
    response = post(client, event(), signature=signature)

    assert response.status_code == 400
    assert expected in response.json()["detail"].lower() or expected in response.json()["detail"]
    assert not WebhookEvent.objects.exists()


def test_a_signature_by_another_secret_is_refused(client: Client, db: None) -> None:
    assert post(client, event(), secret="whsec_somebodyElse").status_code == 400
    assert not WebhookEvent.objects.exists()


def test_a_changed_body_is_refused(client: Client, db: None) -> None:
    raw = json.dumps(event()).encode()

    assert post(client, raw + b" ", signature=sign(raw)).status_code == 400


def test_a_stale_signature_is_refused(client: Client, db: None) -> None:
    raw = json.dumps(event()).encode()
    now = int(time.time())

    assert post(client, raw, signature=sign(raw, at=now - 301)).status_code == 400
    assert post(client, raw, signature=sign(raw, at=now - 290)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"5",
        b'"evt_1"',
        b"[" * 100_000,
        b"{}",
        b'{"object": "event"}',
    ],
)
def test_a_signed_body_that_is_no_event_is_refused(body: bytes, client: Client, db: None) -> None:
    try:
        signature = sign(body)
    except UnicodeError:
        signature = "t=1,v1=00"

    assert post(client, body, signature=signature).status_code == 400
    assert not WebhookEvent.objects.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ...},
        {"id": 5},
        {"id": "re_1"},
        {"id": "evt_" + "x" * 300},
        {"object": "v2.core.event"},
        {"type": ...},
        {"type": "x" * 300},
        {"type": None},
        {"livemode": ...},
        {"livemode": "false"},
        {"created": ...},
        {"created": "now"},
        {"created": 10**30},
        {"data": ...},
        {"data": []},
        {"data": {}},
        {"data": {"object": "re_1"}},
    ],
    ids=str,
)
def test_an_event_of_the_wrong_shape_is_refused(changes: dict[str, Any], client: Client, db: None) -> None:
    assert post(client, event(**changes)).status_code == 400
    assert not WebhookEvent.objects.exists()


def test_what_is_too_large_is_refused_before_it_is_read(client: Client, settings: Any, db: None) -> None:
    settings.STRIPE_WEBHOOK_MAX_BYTES = settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1024

    response = post(client, event(body={"id": "x" * 1024}))

    assert response.status_code == 413
    assert response.json()["detail"] == "larger than 1024 bytes"


def test_what_is_too_large_without_saying_so_is_refused_too(client: Client, settings: Any, db: None) -> None:
    # As when Django's own limit is the larger one, or a server gives the length of a chunked body only at its end.
    raw = json.dumps(event()).encode()
    settings.STRIPE_WEBHOOK_MAX_BYTES = len(raw)
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    assert post(client, raw).status_code == 413

    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = None
    assert post(client, raw).status_code == 200


def test_a_body_without_a_length_is_measured_itself(rf: Any, settings: Any) -> None:
    # Chunked, from a server that hands the whole body on: as ASGI does.
    settings.STRIPE_WEBHOOK_MAX_BYTES = 1024
    request = rf.post(ADDRESS, b"", content_type="application/json", CONTENT_LENGTH="")
    request._body = b"x" * 1025

    assert stripe_webhook(request).status_code == 413


@pytest.mark.parametrize("length", ["x", "-5", "9" * 30])
def test_a_length_that_is_none_is_refused(length: str, client: Client, db: None) -> None:
    response = client.generic("POST", ADDRESS, b"{}", CONTENT_LENGTH=length)

    assert response.status_code == 413


@pytest.mark.parametrize("method", ["get", "head", "put", "patch", "delete", "options"])
def test_only_post_is_taken(method: str, client: Client) -> None:
    with capture_logs() as logs:
        response = getattr(client, method)(ADDRESS)

    assert response.status_code == 405
    assert response["Allow"] == "POST"
    assert [(line["event"], line["method"]) for line in logs] == [("webhook_refused", method.upper())]


def test_no_sign_in_and_no_csrf_token_is_needed_or_looked_at(db: None) -> None:
    client = Client(enforce_csrf_checks=True, headers={"Authorization": "Token nonsense"})

    assert post(client, event()).status_code == 200


def test_without_a_secret_nothing_is_ever_accepted(client: Client, settings: Any, db: None) -> None:
    settings.STRIPE_WEBHOOK_SECRETS = []

    with capture_logs() as logs:
        response = post(client, event())

    assert response.status_code == 500
    assert [(line["event"], line["setting"]) for line in logs] == [("webhook_secret_missing", "STRIPE_WEBHOOK_SECRETS")]
    assert not WebhookEvent.objects.exists()


# --- The other mode -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True)])
def test_an_event_of_the_other_mode_is_refused(
    ours: bool, theirs: bool, client: Client, settings: Any, db: None
) -> None:
    settings.STRIPE_LIVEMODE = ours

    response = post(client, event(livemode=theirs))

    assert response.status_code == 400
    assert "mode" in response.json()["detail"]
    assert not WebhookEvent.objects.exists()


def test_test_events_of_connected_accounts_are_acknowledged_and_dropped(
    client: Client, settings: Any, db: None
) -> None:
    settings.STRIPE_LIVEMODE = True

    response = post(client, event("account.updated", account="acct_1"))

    assert (response.status_code, response.json()["status"]) == (200, "ignored")
    assert not WebhookEvent.objects.exists()


# --- A database that is away --------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [OperationalError, InterfaceError])
def test_stripe_is_asked_to_send_again_while_the_database_is_away(
    trouble: type[Exception], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Any) -> None:
        raise trouble("connection to postgres://veza:secret@db refused")

    monkeypatch.setattr(inbox, "receive", away)

    with capture_logs() as logs:
        response = post(client, event())

    assert response.status_code == 503
    assert "secret" not in response.content.decode()
    assert [(line["event"], line["log_level"]) for line in logs] == [("webhook_not_stored", "error")]


def test_the_same_event_is_taken_once_the_database_is_back(
    client: Client, monkeypatch: pytest.MonkeyPatch, db: None
) -> None:
    order = order_with_transfers()
    sent = refund_event(order)
    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.utils.CursorWrapper.execute", _refuse)
        assert post(client, sent).status_code == 503
    assert not WebhookEvent.objects.exists()

    assert post(client, sent).status_code == 200

    order.refresh_from_db()
    assert order.status == "refunded"


def _refuse(*_: Any) -> None:
    raise OperationalError("the connection is closed")


# --- Logs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", [None, "t=1,v1=00"])
def test_one_line_is_logged_and_nothing_of_the_payload(signature: str | None, client: Client, db: None) -> None:
    structlog.contextvars.clear_contextvars()

    with capture_logs() as logs:
        post(client, event(), signature=signature)

    assert len(logs) == 1
    assert "private@example.com" not in str(logs)
    assert "whsec" not in str(logs)
