"""Addresses in Stripe's dashboard. None where Stripe is a local simulator, or no key says which mode."""

from django.conf import settings

STRIPE = "https://api.stripe.com"
DASHBOARD = "https://dashboard.stripe.com"
# Of requests: ``request_log_url`` of Stripe's errors, "a URL to the request log entry in your dashboard", has this form
# (docs.stripe.com/api/errors). Of the others: what the dashboard itself shows in the browser; unconfirmed in writing.
TRANSFER = "connect/transfers"
ACCOUNT = "connect/accounts"
PAYMENT = "payments"
REQUEST = "logs"


def dashboard(page: str, stripe_id: str) -> str:
    """``page`` is one of the constants above. Empty where there is no such page."""
    is_elsewhere = settings.STRIPE_API_BASE and settings.STRIPE_API_BASE != STRIPE
    if not stripe_id or not settings.STRIPE_SECRET_KEY or is_elsewhere:
        return ""
    mode = "" if settings.STRIPE_LIVEMODE else "test/"
    return f"{DASHBOARD}/{mode}{page}/{stripe_id}"
