"""What a finished run found, as numbers: of any number of findings, none of which has to be in memory at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q, Sum

from marketplace.models import Drift, Reconciliation, ReconciliationFinding, Seller

# What is counted, in words.
MEANINGS = {
    "transfers": "transfers at Stripe",
    "without_row": "of them not of this program",
    "reversals": "reversals in Stripe's ledger",
    "refunds": "refunds at Stripe",
    "disputes": "disputes at Stripe",
    "rows_not_listed": "rows asked for one by one",
    "looked_at_again": "looked at again",
    "in_motion": "in motion, left for the next time",
    "requests": "requests to Stripe",
}


@dataclass(frozen=True, kw_only=True)
class Total:
    """Of one kind in one currency; ``amount`` in its minor unit, 0 of what has none."""

    kind: str
    currency: str
    count: int
    healed: int
    amount: int


@dataclass(frozen=True, kw_only=True)
class SellersLeak:
    """What one account has not given, in the currency's minor unit; empty is the name of one that we do not know."""

    stripe_account_id: str
    seller: str
    currency: str
    count: int
    amount: int


def counts(run: Reconciliation) -> dict[str, int]:
    return {name: run.counts.get(name, 0) for name in MEANINGS}


def left(run: Reconciliation) -> int:
    """How much drift there is that was not healed."""
    return run.findings.filter(is_healed=False).count()


def totals(run: Reconciliation) -> list[Total]:
    rows: Any = run.findings.order_by().values("kind", "currency")
    healed = Count("id", filter=Q(is_healed=True))
    found = rows.annotate(count=Count("id"), healed=healed, total=Sum("amount", default=0))
    listed = [
        Total(
            kind=row["kind"],
            currency=row["currency"],
            count=row["count"],
            healed=row["healed"],
            amount=row["total"],
        )
        for row in found
    ]
    return sorted(listed, key=lambda each: (Drift.values.index(each.kind), each.currency))


def leaks(run: Reconciliation) -> list[SellersLeak]:
    """By account and currency, those who owe most first. What was healed is no leak any more."""
    rows: Any = run.findings.filter(kind=Drift.NOT_CLAWED_BACK, is_healed=False).order_by()
    grouped = rows.values("stripe_account_id", "currency").annotate(count=Count("id"), total=Sum("amount"))
    found = list(grouped.order_by("-total", "stripe_account_id", "currency"))
    accounts = {row["stripe_account_id"] for row in found}
    names = dict(Seller.objects.filter(stripe_account_id__in=accounts).values_list("stripe_account_id", "name"))
    return [
        SellersLeak(
            stripe_account_id=row["stripe_account_id"],
            seller=names.get(row["stripe_account_id"], ""),
            currency=row["currency"],
            count=row["count"],
            amount=row["total"],
        )
        for row in found
    ]


def findings(run: Reconciliation) -> Iterator[ReconciliationFinding]:
    return run.findings.order_by("pk").iterator()


def first(run: Reconciliation, most: int) -> Sequence[ReconciliationFinding]:
    return list(run.findings.order_by("is_healed", "pk")[:most])
