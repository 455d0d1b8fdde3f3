"""Counters and histograms of this process, named by Prometheus' conventions; labels are few and known."""

from prometheus_client import Counter, Histogram

STRIPE_REQUEST_SECONDS = Histogram(
    "veza_stripe_request_seconds",
    "Time of one call at Stripe, whatever it answered.",
    ["call"],
    buckets=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6),
)
ANSWERS = Counter("veza_stripe_answers_total", "Answers of Stripe as the worker understood them.", ["work", "answer"])
CLAIMED = Counter("veza_claimed_total", "Rows claimed.", ["work"])
LATE_SETTLES = Counter(
    "veza_late_settles_total", "Answers that came after the lease was lost: nothing was changed.", ["work"]
)
POISON = Counter("veza_unexpected_errors_total", "Errors of our own while working on a row.", ["work"])
WEBHOOK_EVENTS = Counter("veza_webhook_events_total", "Webhook events by what became of them.", ["outcome"])
