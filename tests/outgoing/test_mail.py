"""E-mail over a real connection."""

from typing import Any
from uuid import uuid4

import pytest

from marketplace.outgoing import mail
from marketplace.outgoing.contract import NotSent, Sent
from tests.outgoing.receivers import MailServer, mail_server

MESSAGE = {"subject": "Zwölf rows", "text": "plain", "html": "<p>rich</p>"}


def through(server: MailServer, settings: Any) -> None:
    """Django's tests would keep mail in memory."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
    settings.DEFAULT_FROM_EMAIL = "Veza <veza@pay.example.com>"


def test_a_message_arrives_as_text_and_as_html(settings: Any) -> None:
    message_id = uuid4()
    with mail_server() as server:
        through(server, settings)
        assert mail.send(["a@example.com", "b@example.com"], message_id=message_id, **MESSAGE) == Sent()
    ((to, received),) = server.received
    assert to == ["a@example.com", "b@example.com"]
    assert received["From"] == "Veza <veza@pay.example.com>"
    assert received["Subject"] == "Zwölf rows"
    assert received["Message-ID"] == f"<{message_id}@pay.example.com>"
    assert received["Auto-Submitted"] == "auto-generated"
    plain, rich = received.get_body(["plain"]), received.get_body(["html"])
    assert plain is not None
    assert rich is not None
    assert plain.get_content().strip() == "plain"
    assert rich.get_content().strip() == "<p>rich</p>"


@pytest.mark.parametrize("said", ["451 later", "554 never"])
def test_a_refusal_is_not_sent(said: str, settings: Any) -> None:
    with mail_server() as server:
        through(server, settings)
        server.answers = [said]
        answer = mail.send(["a@example.com"], message_id=uuid4(), **MESSAGE)
    assert isinstance(answer, NotSent)
    assert answer.code == "not_accepted"
    assert said[4:] in answer.message


def test_no_server_is_not_sent(settings: Any) -> None:
    with mail_server() as server:
        through(server, settings)
    answer = mail.send(["a@example.com"], message_id=uuid4(), **MESSAGE)
    assert isinstance(answer, NotSent)
