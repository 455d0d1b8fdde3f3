"""What Stripe says of the sellers' accounts."""

from datetime import datetime

import structlog
from django.db.models import Q

from marketplace.errors import MalformedEvent
from marketplace.gateway.contract import AccountFacts
from marketplace.models import Seller

logger = structlog.get_logger(__name__)


def record(facts: AccountFacts) -> bool:
    """Keep the newest word on an account; False where it is no seller of ours, or an older word than the one we have.

    Raises:
        MalformedEvent: a capability status that Stripe does not document.

    """
    if facts.transfers_capability not in Seller.Capability.values:
        raise MalformedEvent(f"the transfers capability {facts.transfers_capability!r} is unknown")
    changed = (
        Seller.objects.filter(stripe_account_id=facts.stripe_account_id)
        .filter(Q(stripe_seen_at__isnull=True) | Q(stripe_seen_at__lte=facts.seen_at))
        .update(
            transfers_capability=facts.transfers_capability,
            payouts_enabled=facts.payouts_enabled,
            stripe_seen_at=facts.seen_at,
        )
    )
    return bool(changed)


def record_deauthorized(stripe_account_id: str, *, at: datetime) -> bool:
    """The seller disconnected the account from us: reversals may need a person from now on."""
    changed = Seller.objects.filter(stripe_account_id=stripe_account_id, deauthorized_at__isnull=True).update(
        deauthorized_at=at
    )
    if changed:
        logger.warning("seller_deauthorized", stripe_account_id=stripe_account_id)
    return bool(changed)
