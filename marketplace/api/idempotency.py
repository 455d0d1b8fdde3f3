"""``Idempotency-Key``: a request that is sent again under the same key gets the first answer; nothing happens twice.

A claim of the key is committed before anything is done, and the answer after it. Only successes are kept: whatever was
refused changed nothing, and its key is free again. Where the process dies between the two, the claim runs out, and the
request is done anew; what must not happen twice then is held by the rows themselves (the keys of refunds and of debts'
entries, the statuses of all others).
"""

import hashlib
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, IntegrityError, InterfaceError, transaction
from django.db.models.functions import Now
from django.http import HttpResponse, HttpResponseBase
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.bounded import Bounded
from marketplace.api.problems import Malformed
from marketplace.errors import ConflictingFacts, StillRunning
from marketplace.models import IdempotentRequest

logger = structlog.get_logger(__name__)

HEADER = "Idempotency-Key"
# Stripe's name for the same.
REPLAYED = "Idempotent-Replayed"
LONGEST_KEY = 255
# Longer than any request takes: a refund's, the longest, ends after half a minute.
CLAIM_LASTS = timedelta(minutes=2)
KEPT_HEADERS = ("Content-Type", "Location", "ETag")
# Of those that are too old, with each new key: more than come in, so that they never pile up.
SWEPT_AT_ONCE = 10


class Answered(Exception):
    """There is an answer already."""

    def __init__(self, kept: IdempotentRequest) -> None:
        self.response = HttpResponse(kept.body, status=kept.status_code, headers={**kept.headers, REPLAYED: "true"})
        super().__init__()


def key_of(request: Request) -> str:
    """Empty where the request has none.

    Raises:
        Malformed: it is no key.

    """
    key = request.headers.get(HEADER)
    if key is None:
        return ""
    if not 1 <= len(key) <= LONGEST_KEY or not (key.isascii() and key.isprintable()):
        raise Malformed(HEADER, f"{len(key)} characters: expected 1 to {LONGEST_KEY} printable ASCII characters")
    return key


def required_key(request: Request) -> str:
    """Of a request that must not come without. Raises ``Malformed``."""
    key = key_of(request)
    if not key:
        raise Malformed(HEADER, f"missing: expected this header with 1 to {LONGEST_KEY} printable ASCII characters")
    return key


class Idempotent(Bounded):
    """All that change something take an ``Idempotency-Key``."""

    # Of the answer's body, what is told once and not kept.
    told_once: tuple[str, ...] = ()
    claimed: IdempotentRequest | None = None

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response: Any = super().dispatch(request, *args, **kwargs)
            if isinstance(response, Response):
                response.render()
        except BaseException:
            self._conclude(None)
            raise
        self._conclude(response)
        return response  # type: ignore[no-any-return]  # DRF's dispatch has no type

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        key = "" if request.method in SAFE_METHODS else key_of(request)
        if key:
            self.claimed = claim(request.user, key, fingerprint(request))

    def handle_exception(self, exc: Exception) -> Any:
        return exc.response if isinstance(exc, Answered) else super().handle_exception(exc)

    def _conclude(self, response: Any) -> None:
        """The request has happened whatever becomes of this: should the database be away, the claim runs out."""
        if self.claimed is None:
            return
        mine = IdempotentRequest.objects.filter(pk=self.claimed.pk, claimed_at=self.claimed.claimed_at)
        try:
            if response is not None and 200 <= response.status_code < 300:
                mine.update(
                    status_code=response.status_code,
                    headers={name: response[name] for name in KEPT_HEADERS if response.has_header(name)},
                    body=self._kept(response),
                )
            else:
                mine.delete()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("answer_not_kept", request=self.claimed.pk, error=type(error).__name__)

    def _kept(self, response: Any) -> str:
        if not self.told_once:
            return str(response.content.decode())
        shown = {name: None if name in self.told_once else value for name, value in response.data.items()}
        return str(response.accepted_renderer.render(shown).decode())


def fingerprint(request: Request) -> str:
    """Of the method, the address and the very bytes of the body: all that says what is asked."""
    asked = f"{request.method} {request.get_full_path()}\n".encode() + request._request.body  # noqa: SLF001 - DRF's way
    return hashlib.sha256(asked).hexdigest()


def claim(user: Any, key: str, asked: str) -> IdempotentRequest:
    """The row under which this request is the one to answer; committed on return.

    Raises:
        Answered: it has been answered.
        ConflictingFacts: the key was used for something else.
        StillRunning: another request under the same key is being answered now.

    """
    try:
        with transaction.atomic():
            row = IdempotentRequest.objects.create(user=user, key=key, fingerprint=asked)
            _sweep()
    except IntegrityError:
        return _claim_again(user, key, asked)
    row.refresh_from_db(fields=["claimed_at"])
    return row


def _claim_again(user: Any, key: str, asked: str) -> IdempotentRequest:
    with transaction.atomic():
        row = IdempotentRequest.objects.select_for_update(no_key=True).filter(user=user, key=key).first()
        if row is None:
            # Freed or swept at this very moment.
            raise StillRunning
        if row.fingerprint != asked:
            raise ConflictingFacts(f"{HEADER} {key!r} was used before, with another request")
        if row.status_code is not None:
            raise Answered(row)
        abandoned = IdempotentRequest.objects.filter(pk=row.pk, claimed_at__lt=Now() - CLAIM_LASTS)
        if not abandoned.update(claimed_at=Now()):
            raise StillRunning
        row.refresh_from_db(fields=["claimed_at"])
    return row


def _sweep() -> None:
    """Not those that another process is sweeping."""
    old = IdempotentRequest.objects.filter(claimed_at__lt=Now() - settings.API_IDEMPOTENCY_KEY_MAX_AGE)
    swept = old.select_for_update(skip_locked=True, no_key=True).order_by("claimed_at").values("pk")[:SWEPT_AT_ONCE]
    IdempotentRequest.objects.filter(pk__in=swept).delete()
