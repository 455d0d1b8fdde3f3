"""Past the other middleware: Stripe has no session, no cookies and no forms, and sends many requests."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from marketplace.api.webhooks import stripe_webhook

# Without the slash too: Stripe takes a redirect for a failure.
WEBHOOK_ROUTES = ("webhooks/stripe", "webhooks/stripe/")
PATHS = frozenset(f"/{route}" for route in WEBHOOK_ROUTES)


def webhooks_at_once(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def respond(request: HttpRequest) -> HttpResponse:
        if request.path_info not in PATHS:
            return get_response(request)
        response = stripe_webhook(request)
        response.headers["Content-Length"] = str(len(response.content))
        return response

    return respond
