"""Our own webhooks: signed, to the one address, and never longer than they may take."""

import hashlib
import hmac
import socket
import threading
import time
from typing import Any
from uuid import uuid4

import pytest

from marketplace.outgoing import webhook
from marketplace.outgoing.contract import NotSent, Sent
from tests.outgoing.receivers import raw_server, webhook_receiver

SECRET = "a-secret-of-32-characters-or-more"
BODY = b'{"id": "x"}'


def post(url: str, body: bytes = BODY) -> Any:
    return webhook.post(url, body, secret=SECRET, message_id=uuid4())


def is_signed(header: str, body: bytes, secret: str) -> bool:
    """As docs/operations.md tells receivers to verify it."""
    parts = dict(part.split("=", 1) for part in header.split(","))
    signed = f"{parts['t']}.".encode() + body
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"]) and abs(time.time() - int(parts["t"])) < 300


def test_what_is_posted_is_signed_over_time_and_body() -> None:
    with webhook_receiver() as receiver:
        assert post(f"{receiver.url}/hooks/veza/?team=7") == Sent()
    (received,) = receiver.received
    assert received.path == "/hooks/veza/?team=7"
    assert received.body == BODY
    assert received.headers["Content-Type"] == "application/json"
    header = received.headers["Veza-Signature"]
    assert is_signed(header, received.body, SECRET)
    assert not is_signed(header, received.body + b" ", SECRET)
    assert not is_signed(header, received.body, "another")
    assert not is_signed(header.replace("t=", "t=1"), received.body, SECRET)


def test_the_signature_is_the_same_as_stripes() -> None:
    """By Stripe's own library, in its own format."""
    import stripe

    header = webhook.signature(BODY, secret=SECRET, timestamp=int(time.time()))
    assert stripe.WebhookSignature.verify_header(BODY.decode(), header, SECRET, tolerance=300)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 410, 429, 500, 503])
def test_any_other_answer_is_not_sent_and_redirects_are_not_followed(status: int) -> None:
    with webhook_receiver() as receiver:
        receiver.answers = [status]
        answer = post(receiver.url)
    assert answer == NotSent(code=f"http_{status}", message=f"the receiver answered {status}")
    assert [received.path for received in receiver.received] == ["/"]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_sent(status: int) -> None:
    with webhook_receiver() as receiver:
        receiver.answers = [status]
        assert post(receiver.url) == Sent()


def test_nobody_there_is_no_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        answer = post(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert isinstance(answer, NotSent)
    assert answer.code == "no_answer"


def test_an_answer_that_is_no_http_is_no_answer() -> None:
    with raw_server(lambda connected: connected.sendall(b"hello\r\n")) as port:
        answer = post(f"http://127.0.0.1:{port}")
    assert isinstance(answer, NotSent)
    assert answer.code == "no_answer"


def test_without_tls_at_the_other_end_nothing_is_sent() -> None:
    heard: list[bytes] = []
    with raw_server(lambda connected: heard.append(connected.recv(1000)) or connected.close()) as port:
        answer = post(f"https://127.0.0.1:{port}")
    assert isinstance(answer, NotSent)
    assert BODY not in b"".join(heard)


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with webhook_receiver() as receiver:
        assert post(receiver.url) == Sent()


def test_a_receiver_that_says_nothing_is_left_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.2)
    done = threading.Event()
    with raw_server(lambda _: done.wait(10)) as port:
        answer = post(f"http://127.0.0.1:{port}")
        done.set()
    assert isinstance(answer, NotSent)
    assert answer.code == "no_answer"


def test_a_receiver_that_sends_a_byte_at_a_time_is_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(webhook, "LONGEST_SECONDS", 5.4)
    stop = threading.Event()

    def dribble(connected: socket.socket) -> None:
        connected.sendall(b"HTTP/1.1 200")
        while not stop.wait(0.05):
            try:
                connected.sendall(b" ")
            except OSError:
                return

    began = time.monotonic()
    with raw_server(dribble) as port:
        answer = post(f"http://127.0.0.1:{port}")
        stop.set()
    assert time.monotonic() - began < 4, "less than one timeout"
    assert isinstance(answer, Sent | NotSent)
