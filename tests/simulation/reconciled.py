"""When all is quiet the program's own reconciliation finds nothing but what the simulation did on purpose; and what it
can heal of that it heals.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from marketplace.models import Drift, ReconciliationFinding
from marketplace.reconciliation.run import Reconciler, begin

# Of the seeds one in so many is reconciled: it asks Stripe for all it has.
ONE_IN = 4


def breaches(gateway: Any, counts: Counter[str], *, reversed_by_hand: set[str]) -> Iterator[str]:
    for found in _reconcile(gateway, counts, is_fixing=False):
        if not _is_known(found, reversed_by_hand):
            yield f"R: reconcile says {_said(found)}"
    for found in _reconcile(gateway, counts, is_fixing=True):
        if found.remedy and not found.is_healed:
            yield f"R: reconcile does not heal {_said(found)}"
    for found in _reconcile(gateway, counts, is_fixing=False):
        if found.remedy:
            yield f"R: healed, and found again: {_said(found)}"


def _reconcile(gateway: Any, counts: Counter[str], *, is_fixing: bool) -> list[ReconciliationFinding]:
    """Nobody is at work any more, so nothing waits for rest."""
    run = begin(asked="at the end", since=None)
    Reconciler(run=run, gateway=gateway, is_fixing=is_fixing, patience=timedelta(0)).go()
    found = list(run.findings.all())
    counts["reconciled: transfers"] += run.counts.get("transfers", 0)
    counts["reconciled: drift"] += len(found)
    counts["reconciled: healed"] += sum(each.is_healed for each in found)
    return found


def _is_known(found: ReconciliationFinding, reversed_by_hand: set[str]) -> bool:
    # Where no webhook tells of them, nobody else does.
    is_by_hand = found.kind == Drift.REVERSED_UNKNOWN and found.stripe_id in reversed_by_hand
    # Whether that was without need, the auditor says.
    return is_by_hand or found.kind == Drift.NEEDS_A_PERSON


def _said(found: ReconciliationFinding) -> str:
    return f"{found.kind} of {found.subject}: {found.stripe_id} {found.detail}"
