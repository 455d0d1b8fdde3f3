"""What Stripe says of the sellers' accounts."""

from collections.abc import Mapping
from datetime import datetime

import structlog
from django.db import transaction
from django.db.models import Q

from marketplace.errors import MalformedEvent
from marketplace.gateway.contract import AccountFacts
from marketplace.models import Seller

logger = structlog.get_logger(__name__)

# Stripe's times are whole seconds. Of two words of the same second the one further along counts as the newer, so that
# their order of arrival does not matter.
RANK: Mapping[str, int] = {
    Seller.Capability.INACTIVE: 0,
    Seller.Capability.UNREQUESTED: 1,
    Seller.Capability.PENDING: 2,
    Seller.Capability.ACTIVE: 3,
}


def record(facts: AccountFacts) -> bool:
    """Keep the newest word on an account; False where it is no seller of ours, or an older word than the one we have.

    Raises:
        MalformedEvent: a capability status that Stripe does not document.

    """
    if facts.transfers_capability not in RANK:
        raise MalformedEvent(f"the transfers capability {facts.transfers_capability!r} is unknown")
    word = (facts.seen_at, RANK[facts.transfers_capability], facts.payouts_enabled)
    with transaction.atomic():
        seller = Seller.objects.select_for_update(no_key=True).filter(stripe_account_id=facts.stripe_account_id).first()
        if seller is None:
            return False
        if seller.stripe_seen_at is not None:
            known = (seller.stripe_seen_at, RANK[seller.transfers_capability], seller.payouts_enabled)
            if word < known:
                return False
        seller.stripe_seen_at = facts.seen_at
        seller.transfers_capability = facts.transfers_capability
        seller.payouts_enabled = facts.payouts_enabled
        seller.save(update_fields=["stripe_seen_at", "transfers_capability", "payouts_enabled"])
    return True


def record_deauthorized(stripe_account_id: str, *, at: datetime) -> bool:
    """The seller disconnected the account from us: reversals may need a person from now on.

    The earliest time stands. False where the account is no seller's, or was known to be disconnected by then.
    """
    known = Seller.objects.filter(stripe_account_id=stripe_account_id)
    changed = known.filter(Q(deauthorized_at__isnull=True) | Q(deauthorized_at__gt=at)).update(deauthorized_at=at)
    if changed:
        logger.warning("seller_deauthorized", stripe_account_id=stripe_account_id)
    return bool(changed)
