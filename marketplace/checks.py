"""Django system checks: limits that have to agree with each other, and what must be there before money moves."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as Caution

from marketplace.services.outcomes import KEY_REUSE_WINDOW, LONGEST_WAY
from marketplace.throttle import LONGEST_WAIT
from marketplace.workers.loop import threads_for
from marketplace.workers.stripe_queue import CALLS_PER_ATTEMPT, shortest_lease

# Besides the threads of a worker: its claimer, its listener, the metrics page, and one to spare.
CONNECTIONS_BESIDES_THREADS = 4

# Requests a second to one endpoint (docs.stripe.com/rate-limits).
STRIPES_DEFAULT_LIMIT = 25

# At least (docs.stripe.com/api/idempotent_requests).
STRIPE_REMEMBERS_KEYS = timedelta(hours=24)

UNFINISHED = [
    ("STRIPE_SECRET_KEY", "nothing can be asked of Stripe"),
    ("STRIPE_WEBHOOK_SECRETS", "every webhook is refused"),
]


def seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g}s"


@register
def lease_outlasts_an_attempt(**_: Any) -> list[CheckMessage]:
    """A lease that ends during an attempt lets a second worker send what the first one is sending."""
    needed = shortest_lease()
    if needed <= settings.REVERSAL_LEASE:
        return []
    return [
        Error(
            f"REVERSAL_LEASE is {seconds(settings.REVERSAL_LEASE)}, but a row may be held for {seconds(needed)}.",
            hint=(
                f"{CALLS_PER_ATTEMPT} calls, each of STRIPE_CONNECT_TIMEOUT + STRIPE_READ_TIMEOUT and up to"
                f" {seconds(LONGEST_WAIT)} for its turn, and time to begin and to settle: raise the lease, or lower the"
                " timeouts."
            ),
            id="marketplace.E001",
        )
    ]


@register
def lease_ends_while_keys_are_remembered(**_: Any) -> list[CheckMessage]:
    """A key's age is judged at the claim; what is sent at the lease's end must be within Stripe's 24 hours too."""
    longest = STRIPE_REMEMBERS_KEYS - LONGEST_WAY - KEY_REUSE_WINDOW
    if longest >= settings.REVERSAL_LEASE:
        return []
    text = f"REVERSAL_LEASE is {seconds(settings.REVERSAL_LEASE)}, longer than {seconds(longest)}."
    hint = "A worker that stood still could send under a key that Stripe has forgotten: lower it."
    return [Error(text, hint=hint, id="marketplace.E006")]


@register
def delays_are_in_order(**_: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for shorter, longer in (
        ("REVERSAL_BACKOFF_BASE", "REVERSAL_BACKOFF_MAX"),
        ("TRANSFER_RETRY_BACKOFF_BASE", "TRANSFER_RETRY_BACKOFF_MAX"),
        ("REVERSAL_INSUFFICIENT_FUNDS_INTERVAL", "REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE"),
    ):
        low, high = getattr(settings, shorter), getattr(settings, longer)
        if low > high:
            text = f"{shorter} is {seconds(low)}, but {longer} is {seconds(high)}."
            found.append(Error(text, hint=f"{shorter} must be at most {longer}.", id="marketplace.E002"))
    return found


@register
def database_is_postgresql(**_: Any) -> list[CheckMessage]:
    """Triggers, SKIP LOCKED and NOTIFY carry the promises; no other database has them."""
    engine = settings.DATABASES["default"]["ENGINE"]
    if engine in {"django.db.backends.postgresql", "veza.postgresql", "veza.embedded_postgresql"}:
        return []
    hint = "Give DATABASE_URL a postgres:// address, or leave it empty for the embedded one."
    return [Error(f"The database is {engine}, which is not PostgreSQL.", hint=hint, id="marketplace.E003")]


@register
def pool_serves_every_thread(**_: Any) -> list[CheckMessage]:
    """A thread that waits for a connection while its lease runs is as bad as a slow Stripe."""
    pool = settings.DATABASES["default"].get("OPTIONS", {}).get("pool")
    if not isinstance(pool, dict):
        return []
    needed = threads_for(settings.REVERSAL_CONCURRENCY) + CONNECTIONS_BESIDES_THREADS
    # psycopg's pool is as large as its minimum where no maximum is given; that is 4 by default.
    largest = pool.get("max_size") or pool.get("min_size", 4)
    if largest >= needed:
        return []
    return [
        Error(
            f"REVERSAL_CONCURRENCY is {settings.REVERSAL_CONCURRENCY}, for which a worker needs {needed} connections,"
            f" but its pool holds {largest}.",
            hint=(
                f"A quarter more threads than calls at once, a connection for each, and {CONNECTIONS_BESIDES_THREADS}"
                " for the rest of the program: expected a smaller number, or a larger pool."
            ),
            id="marketplace.E004",
        )
    ]


@register
def allowance_is_below_stripes_limit(**_: Any) -> list[CheckMessage]:
    if settings.STRIPE_MAX_REQUESTS_PER_SECOND in range(1, STRIPES_DEFAULT_LIMIT):
        return []
    rate = settings.STRIPE_MAX_REQUESTS_PER_SECOND or "0, which is no limit"
    return [
        Caution(
            f"STRIPE_MAX_REQUESTS_PER_SECOND is {rate}.",
            hint=f"Stripe's default limit is {STRIPES_DEFAULT_LIMIT}: expected less, unless it granted you more.",
            id="marketplace.W002",
        )
    ]


@register
def stripe_is_configured(**_: Any) -> list[CheckMessage]:
    return [
        Caution(f"{name} is empty: {effect}.", hint="See docs/stripe-setup.md.", id="marketplace.W001")
        for name, effect in UNFINISHED
        if not getattr(settings, name)
    ]


@register(deploy=True)
def stripe_is_configured_where_it_counts(**_: Any) -> list[CheckMessage]:
    return [
        Error(f"{name} is empty: {effect}.", hint="See docs/stripe-setup.md.", id="marketplace.E005")
        for name, effect in UNFINISHED
        if not getattr(settings, name)
    ]
