"""One shape for every error under /api/: problem details (RFC 9457), for unknown addresses and our own faults too."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse
from django.views import defaults
from rest_framework import exceptions
from rest_framework.views import set_rollback

from marketplace.errors import (
    DATABASE_TROUBLE,
    ChangedMeanwhile,
    ConflictingFacts,
    IllegalTransition,
    MarketplaceError,
    NotAllowedNow,
    NotNow,
    PlanChanged,
    StaleTransition,
    StillRunning,
    StripeDenied,
    TooMuch,
)

logger = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"
TYPES = "urn:veza:problem:"
STATUS_OF: Mapping[type[MarketplaceError], HTTPStatus] = {
    ChangedMeanwhile: HTTPStatus.PRECONDITION_FAILED,
    ConflictingFacts: HTTPStatus.CONFLICT,
    IllegalTransition: HTTPStatus.CONFLICT,
    NotAllowedNow: HTTPStatus.CONFLICT,
    NotNow: HTTPStatus.SERVICE_UNAVAILABLE,
    PlanChanged: HTTPStatus.CONFLICT,
    StaleTransition: HTTPStatus.CONFLICT,
    StillRunning: HTTPStatus.CONFLICT,
    StripeDenied: HTTPStatus.BAD_GATEWAY,
    TooMuch: HTTPStatus.UNPROCESSABLE_ENTITY,
}
DATABASE_AWAY = "The database does not answer. Nothing was changed; try again in a moment."


class BodyTooLarge(exceptions.APIException):
    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body is too large."
    default_code = "body_too_large"


class Malformed(exceptions.ValidationError):
    """A part of the request other than its body: a header, or a parameter of the address."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__({name: [message]})


def problem(status: int, detail: str, *, kind: str = "", errors: Any = None) -> dict[str, Any]:
    """``kind`` names a problem of ours; without one the status says all, which RFC 9457 writes as ``about:blank``."""
    body: dict[str, Any] = {
        "type": f"{TYPES}{kind}" if kind else "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
    }
    if errors is not None:
        body["errors"] = errors
    return body


def handle(exception: Exception, _context: Mapping[str, Any]) -> JsonResponse | None:
    """DRF's exception handler. None leaves what we did not raise on purpose to ``server_error``, and to the logs."""
    headers: dict[str, str] = {}
    match exception:
        case Http404():
            body = problem(404, "No such thing, or none that you may see.")
        case PermissionDenied():
            body = problem(403, "You may not do this.")
        case _ if isinstance(exception, DATABASE_TROUBLE):
            logger.error("database_away", error=str(exception))
            headers["Retry-After"] = "5"
            body = problem(503, DATABASE_AWAY, kind="database-away")
        case MarketplaceError() if type(exception) in STATUS_OF:
            body = problem(STATUS_OF[type(exception)], exception.message, kind=_kind(exception))
            if isinstance(exception, NotNow):
                headers["Retry-After"] = str(math.ceil(exception.details.get("seconds", 5)))
        case exceptions.APIException():
            headers = _headers(exception)
            body = _of_framework(exception)
        case _:
            return None
    set_rollback()
    # Not DRF's Response: that would be written in whatever the view speaks, such as the schema's YAML.
    return _plain(body, headers)


def _of_framework(exception: exceptions.APIException) -> dict[str, Any]:
    if isinstance(exception, exceptions.ValidationError):
        errors = _by_field(exception.detail)
        detail = "; ".join(f"{name}: {message}" for name, messages in errors.items() for message in messages)
        return problem(exception.status_code, detail, kind="invalid-request", errors=errors)
    return problem(exception.status_code, str(exception.detail))


def _by_field(detail: Any, prefix: str = "") -> dict[str, list[str]]:
    """``{"amount": ["…"]}``; what concerns the body as a whole stands under ``body``."""
    if isinstance(detail, Mapping):
        found: dict[str, list[str]] = {}
        for name, inner in detail.items():
            whole = "body" if name == "non_field_errors" else str(name)
            found.update(_by_field(inner, f"{prefix}.{whole}" if prefix else whole))
        return found
    messages = detail if isinstance(detail, list) else [detail]
    return {prefix or "body": [str(message) for message in messages]}


def _headers(exception: exceptions.APIException) -> dict[str, str]:
    headers = {}
    if challenge := getattr(exception, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if wait := getattr(exception, "wait", None):
        headers["Retry-After"] = str(math.ceil(wait))
    return headers


def _kind(exception: MarketplaceError) -> str:
    """``NotAllowedNow`` as ``not-allowed-now``."""
    name = type(exception).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


# --- What Django answers outside of any view ----------------------------------------------------------------


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if request.path.startswith("/api/"):
        return _plain(problem(404, f"There is nothing at {request.path}."))
    return defaults.page_not_found(request, exception)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if request.path.startswith("/api/"):
        return _plain(problem(400, "The request is not one that we can read."))
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if request.path.startswith("/api/"):
        return _plain(problem(403, "You may not do this."))
    return defaults.permission_denied(request, exception)


def server_error(request: HttpRequest) -> HttpResponseBase:
    if request.path.startswith("/api/"):
        return _plain(problem(500, "Our fault. It is in our logs."))
    return defaults.server_error(request)


def _plain(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> JsonResponse:
    return JsonResponse(body, status=body["status"], content_type=CONTENT_TYPE, headers=dict(headers or {}))
