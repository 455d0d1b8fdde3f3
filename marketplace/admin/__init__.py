"""Django's admin: everything can be seen, what may be done goes through the services, nothing is edited or deleted that
Stripe has a say in.
"""

from marketplace.admin import (
    access,
    api_tokens,
    bulk_retries,
    coordination,
    debts,
    disputes,
    notices,
    reconciliations,
    refunds,
    reversals,
    sales,
    transfers,
    webhook_events,
)

__all__ = [
    "access",
    "api_tokens",
    "bulk_retries",
    "coordination",
    "debts",
    "disputes",
    "notices",
    "reconciliations",
    "refunds",
    "reversals",
    "sales",
    "transfers",
    "webhook_events",
]
