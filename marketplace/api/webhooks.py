"""Where Stripe posts its events: verify, store, answer. No rule lives here, and Stripe is not called."""

import re

import structlog
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, JsonResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt

from marketplace import inbox
from marketplace.errors import DATABASE_TROUBLE, MalformedEvent, SignatureRefused
from marketplace.gateway import stripe_events

logger = structlog.get_logger(__name__)
# Python takes more for digits than HTTP does, and refuses to read very many.
NUMBER = re.compile(r"[0-9]{1,18}")


@csrf_exempt
def stripe_webhook(request: HttpRequest) -> JsonResponse:
    """Nobody signs in here: the signature over the raw body is the proof.

    200 is stored, stored before, or of no use to us; 4xx will never be anything else; 5xx asks Stripe to send it again.
    """
    if request.method != "POST":
        logger.warning("webhook_refused", reason="expected POST", method=request.method)
        return _refused(405, "expected POST", Allow="POST")
    if not settings.STRIPE_WEBHOOK_SECRETS:
        logger.error("webhook_secret_missing", setting="STRIPE_WEBHOOK_SECRETS")
        return _refused(500, "this server has no webhook secret, so it can accept no event")
    # Asked before the body is read: what is too large is not worth reading.
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not NUMBER.fullmatch(length) or int(length) > settings.STRIPE_WEBHOOK_MAX_BYTES:
        return _too_large(length)
    try:
        body = request.body
    except RequestDataTooBig:
        return _too_large(length)
    except UnreadablePostError:
        logger.warning("webhook_refused", reason="the body broke off")
        return _refused(400, "the body broke off")
    if len(body) > settings.STRIPE_WEBHOOK_MAX_BYTES:
        return _too_large(str(len(body)))
    return _receive(body, request.META.get("HTTP_STRIPE_SIGNATURE"))


def _receive(body: bytes, signature: str | None) -> JsonResponse:
    try:
        event = stripe_events.verify(body, signature)
    except (SignatureRefused, MalformedEvent) as error:
        logger.warning("webhook_refused", reason=error.message, kind=type(error).__name__, bytes=len(body))
        return _refused(400, error.message)
    except RecursionError:
        logger.warning("webhook_refused", reason="nested too deeply", bytes=len(body))
        return _refused(400, "the signed body is nested too deeply")
    if event.livemode != settings.STRIPE_LIVEMODE:
        described = {"event_id": event.stripe_event_id, "type": event.type, "livemode": event.livemode}
        if event.stripe_account_id:
            # Live Connect endpoints get test events too (docs.stripe.com/connect/webhooks): no fault, and none of ours.
            logger.info("webhook_ignored", reason="other mode", **described)
            return JsonResponse({"received": True, "event": event.stripe_event_id, "status": "ignored"})
        logger.warning("webhook_refused", reason="other mode", **described)
        modes = {True: "live", False: "test"}
        return _refused(
            400, f"a {modes[event.livemode]} event, while this server is in {modes[settings.STRIPE_LIVEMODE]} mode"
        )
    try:
        row = inbox.receive(event)
    except DATABASE_TROUBLE as error:
        # No traceback: it would say the same at every event until the database is back.
        logger.error(  # noqa: TRY400
            "webhook_not_stored", event_id=event.stripe_event_id, type=event.type, error=type(error).__name__
        )
        return _refused(503, "not stored: the database does not answer; send it again", Retry_After="60")
    return JsonResponse({"received": True, "event": row.stripe_event_id, "status": row.status})


def _too_large(length: str) -> JsonResponse:
    logger.warning("webhook_refused", reason="too large", bytes=length[:20])
    return _refused(413, f"larger than {settings.STRIPE_WEBHOOK_MAX_BYTES} bytes")


def _refused(status: int, detail: str, **headers: str) -> JsonResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JsonResponse({"received": False, "detail": detail}, status=status, headers=named)
