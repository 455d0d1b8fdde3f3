"""What Stripe answers when it refuses: one exception, and a function per refusal.

`ran` says whether the endpoint had begun to run. Only then is the answer kept under the idempotency key and
marked `Stripe-Should-Retry: false`; a refused parameter and a missing object leave no trace.
"""

from __future__ import annotations

from typing import Any


class StripeError(Exception):
    """An answer other than 200, with Stripe's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        ran: bool = False,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.ran = ran
        self.headers = headers or {}
        error: dict[str, Any] = {"message": message, "type": kind}
        if code is not None:
            error["code"] = code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
        if param is not None:
            error["param"] = param
        self.body: dict[str, Any] = {"error": error | more}


def refused(message: str, *, code: str | None = None, param: str | None = None, **more: Any) -> StripeError:
    """A 400 of an endpoint that ran and said no: kept under the key."""
    return StripeError(400, message, code=code, param=param, ran=True, **more)


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> StripeError:
    """A 400 of parameter validation: nothing ran, nothing is kept."""
    return StripeError(400, message, code=code, param=param)


def missing_object(noun: str, id_: str, *, param: str = "id") -> StripeError:
    """404 for an object named in the path. Its `param` is `id`, as recorded for charges."""
    return StripeError(404, f"No such {noun}: '{id_}'", code="resource_missing", param=param)


def other_mode(noun: str, id_: str, *, here: str, used: str) -> StripeError:
    return StripeError(
        404,
        f"No such {noun}: '{id_}'; a similar object exists in {here} mode, but a {used} mode key was used to make "
        "this request.",
        code="resource_missing",
        param="id",
    )


def missing_reference(noun: str, id_: str, *, param: str) -> StripeError:
    """400 for an object named in a parameter."""
    return StripeError(400, f"No such {noun}: '{id_}'", code="resource_missing", param=param)


def not_simulated(what: str, *, param: str | None = None) -> StripeError:
    """Stripe would do something here that this simulator does not: better a clear no than a silent lie."""
    return StripeError(400, f"The Stripe simulator does not model {what}.", param=param)


def unrecognized(method: str, path: str) -> StripeError:
    return StripeError(
        404,
        f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we can help at "
        "https://support.stripe.com/.",
    )


def unauthorized(shown_key: str | None) -> StripeError:
    if shown_key is None:
        return StripeError(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization "
            "header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        )
    return StripeError(401, f"Invalid API Key provided: {shown_key}")


def expired_key(shown_key: str) -> StripeError:
    return StripeError(401, f"Expired API Key provided: {shown_key}", code="api_key_expired")


def no_access(account: str, shown_key: str) -> StripeError:
    return StripeError(
        403,
        f"The provided key '{shown_key}' does not have access to account '{account}' (or that account "
        "does not "
        "exist). Application access may have been revoked.",
        code="account_invalid",
    )


def server_fault() -> StripeError:
    return StripeError(
        500,
        "An unknown error occurred. If you have any questions, we can help at https://support.stripe.com/.",
        kind="api_error",
        ran=True,
    )


def unavailable(status: int) -> StripeError:
    if status == 424:
        return StripeError(status, "A dependency outside of Stripe failed.", kind="api_error")
    return StripeError(status, "Stripe is temporarily unavailable. Please try again.", kind="api_error")


def too_many_requests(reason: str) -> StripeError:
    """A limiter's 429. The code is `rate_limit`, listed among Stripe's codes; whether it is sent is
    unconfirmed.
    """
    return StripeError(
        429,
        "Request rate limit exceeded. Learn more about rate limits here: https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        headers={"Stripe-Rate-Limited-Reason": reason},
    )


def lock_timeout() -> StripeError:
    return StripeError(
        429,
        "This object cannot be accessed right now because another API request or Stripe process is currently "
        "accessing it. If you see this error intermittently, retry the request.",
        code="lock_timeout",
        headers={"Stripe-Should-Retry": "true"},
    )


def key_in_use(key: str) -> StripeError:
    """409. Its type is given differently by different sources; `idempotency_error` is the likelier."""
    return StripeError(
        409,
        "There is currently another in-progress request using this Idempotent Key (that probably means you "
        f"submitted twice, and the other request is still going through): {key}. Please try again later.",
        kind="idempotency_error",
        code="idempotency_key_in_use",
    )


def key_reused(key: str, *, first_path: str, path: str) -> StripeError:
    if first_path != path:
        message = (
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{path}' vs '{first_path}'). Try using a key other than '{key}' if you meant to execute a "
            "different request."
        )
    else:
        message = (
            "Keys for idempotent requests can only be used with the same parameters they were first used "
            "with. "
            f"Try using a key other than '{key}' if you meant to execute a different request."
        )
    return StripeError(400, message, kind="idempotency_error")
