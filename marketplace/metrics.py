"""Counters and histograms of this process, named by Prometheus' conventions; labels are few and known."""

from prometheus_client import Counter, Histogram

STRIPE_REQUEST_SECONDS = Histogram(
    "veza_stripe_request_seconds",
    "Time of one HTTP request to Stripe, whatever it answered.",
    ["endpoint"],
    buckets=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6),
)
ANSWERS = Counter("veza_stripe_answers_total", "Answers of Stripe as the worker understood them.", ["work", "answer"])
ALLOWANCE_SECONDS = Histogram(
    "veza_allowance_wait_seconds",
    "Time that a request waited for its turn under the common allowance.",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10),
)
SLOWED = Counter("veza_rate_limited_total", "429s of Stripe's limiters, by its reason.", ["reason"])
BREAKER_OPENED = Counter("veza_breaker_opened_total", "Times that this process saw Stripe fail for everyone.", ["work"])
SETTLE_SECONDS = Histogram(
    "veza_settle_seconds",
    "Time of writing one answer down.",
    ["work"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
CLAIMED = Counter("veza_claimed_total", "Rows claimed.", ["work"])
RELEASED = Counter("veza_released_total", "Claimed rows that were given back before they were begun.", ["work"])
LATE_SETTLES = Counter(
    "veza_late_settles_total", "Answers that came after the lease was lost: nothing was changed.", ["work"]
)
POISON = Counter("veza_unexpected_errors_total", "Errors of our own while working on a row.", ["work"])
WEBHOOK_EVENTS = Counter("veza_webhook_events_total", "Webhook events by what became of them.", ["outcome"])
NOTICES = Counter("veza_notices_total", "Messages to people that were sent, or were not taken.", ["channel", "answer"])
