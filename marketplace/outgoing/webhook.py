"""Webhooks of our own: one POST, signed as Stripe signs its own, to the one address in the settings.

Redirects are not followed, proxies of the environment not asked: what is sent goes there, or nowhere.
"""

import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit
from uuid import UUID

from marketplace.outgoing.contract import Answer, NotSent, Sent
from marketplace.redaction import redact

SIGNATURE = "Veza-Signature"
# For each read and write; and for all of it, since a receiver may send a byte at a time.
TIMEOUT_SECONDS = 10.0
LONGEST_SECONDS = 20.0
ACCEPTED = range(200, 300)


def signature(body: bytes, *, secret: str, timestamp: int) -> str:
    """``t=…,v1=…``: HMAC-SHA256 over ``<t>.<body>`` (docs.stripe.com/webhooks#verify-manually), ``timestamp`` in Unix
    seconds: a receiver that refuses old ones cannot be told the same thing again by somebody who listened.
    """
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={signed}"


def post(url: str, body: bytes, *, secret: str, message_id: UUID) -> Answer:
    """Send ``body`` (JSON); anything but a 2xx is not sent. Takes ``LONGEST_SECONDS`` at most, and raises nothing."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "veza-marketplace",
        "Veza-Message-Id": str(message_id),
        SIGNATURE: signature(body, secret=secret, timestamp=int(time.time())),
    }
    try:
        status = _status(url, body, headers)
    except (OSError, http.client.HTTPException) as error:
        return NotSent(code="no_answer", message=redact(f"{type(error).__name__}: {error}"))
    if status in ACCEPTED:
        return Sent()
    return NotSent(code=f"http_{status}", message=f"the receiver answered {status}")


def _status(url: str, body: bytes, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    assert parts.hostname is not None, "settings refuse an address without a host"
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.connect()
        breaks_off = threading.Timer(LONGEST_SECONDS - TIMEOUT_SECONDS, _break_off, [connection.sock])
        breaks_off.daemon = True
        breaks_off.start()
        try:
            connection.request("POST", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", body, headers)
            return connection.getresponse().status
        finally:
            breaks_off.cancel()
    finally:
        connection.close()


def _break_off(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
