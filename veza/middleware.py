"""An id and a log line for each request; and the webhooks' way past the other middleware: Stripe has no session, no
cookies and no forms, and sends many requests.
"""

import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from django.http import HttpRequest, HttpResponse

from marketplace import correlation, tracing
from marketplace.api.webhooks import stripe_webhook

# Without the slash too: Stripe takes a redirect for a failure.
WEBHOOK_ROUTES = ("webhooks/stripe", "webhooks/stripe/")
PATHS = frozenset(f"/{route}" for route in WEBHOOK_ROUTES)
# Asked so often that lines about all that is well would hide all else.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

logger = structlog.get_logger(__name__)


def request_ids(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """``X-Request-ID`` in, or one of our own; in all log lines and rows of the request, and out. When it is answered, a
    line says so, without the query: people search for addresses there.
    """

    def respond(request: HttpRequest) -> HttpResponse:
        began = time.monotonic()
        request_id = correlation.of_request(request.META.get("HTTP_X_REQUEST_ID", ""))
        with correlation.bound(request_id), tracing.span("request", method=request.method or "", id=request_id):
            response = get_response(request)
            tracing.note(route=_route(request), status=response.status_code)
            if _has_a_line(request.path_info, response.status_code):
                logger.info(
                    "request",
                    method=request.method,
                    path=request.path_info,
                    status=response.status_code,
                    milliseconds=round((time.monotonic() - began) * 1000),
                )
        response.headers["X-Request-ID"] = request_id
        return response

    return respond


def _has_a_line(path: str, status: int) -> bool:
    if path in PATHS:
        # Webhooks have lines of their own, which say more; unless one is sent elsewhere before it is read.
        return HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
    return status >= HTTPStatus.BAD_REQUEST or path not in PROBES


def _route(request: HttpRequest) -> str:
    """By its pattern: addresses hold numbers of rows. Empty where there is no such page."""
    if request.path_info in PATHS:
        return WEBHOOK_ROUTES[-1]
    return request.resolver_match.route if request.resolver_match else ""


def webhooks_at_once(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def respond(request: HttpRequest) -> HttpResponse:
        if request.path_info not in PATHS:
            return get_response(request)
        response = stripe_webhook(request)
        response.headers["Content-Length"] = str(len(response.content))
        return response

    return respond
