"""E-mail, by the server in the settings."""

import smtplib
from collections.abc import Sequence
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMultiAlternatives

from marketplace.outgoing.contract import Answer, NotSent, Sent
from marketplace.redaction import redact


def send(to: Sequence[str], *, message_id: UUID, subject: str, text: str, html: str) -> Answer:
    """Takes ``EMAIL_TIMEOUT`` at most for each step of the protocol. ``message_id`` is in the ``Message-ID``, so that
    mailboxes can tell the same message sent twice.
    """
    domain = settings.DEFAULT_FROM_EMAIL.rpartition("@")[2].rstrip(">")
    message = EmailMultiAlternatives(
        # A header is one line, whatever Stripe or a seller wrote into it.
        " ".join(subject.split()),
        text,
        to=list(to),
        headers={
            "Message-ID": f"<{message_id}@{domain}>",
            # Out-of-office programs leave it alone (RFC 3834).
            "Auto-Submitted": "auto-generated",
        },
    )
    message.attach_alternative(html, "text/html")
    try:
        message.send()
    except (OSError, smtplib.SMTPException) as error:
        return NotSent(code="not_accepted", message=redact(f"{type(error).__name__}: {error}"))
    return Sent()
