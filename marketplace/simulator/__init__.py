"""A stateful local Stripe over HTTP. It imports nothing of this project, so it cannot share a bug with it.

with StripeSimulator(seed=1) as sim:
    client = stripe.StripeClient("sk_test_x", base_addresses={"api": sim.url})
"""

from .audit import audit
from .core import DEFAULT_SECRET, Core, Options
from .delivery import WebhookFaults
from .errors import StripeError
from .faults import ACTIONS, Plan, Rule
from .handle import StripeSimulator
from .world import Settings

__all__ = [
    "ACTIONS",
    "DEFAULT_SECRET",
    "Core",
    "Options",
    "Plan",
    "Rule",
    "Settings",
    "StripeError",
    "StripeSimulator",
    "WebhookFaults",
    "audit",
]
