"""A world of orders that were really sold, paid and refunded at the simulator, and a reconciliation of it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from marketplace import inbox
from marketplace.gateway import stripe_events
from marketplace.models import Drift, Order, Reconciliation, ReconciliationFinding, SellerTransfer
from marketplace.reconciliation import run as runs
from tests.services.conftest import sold, work

__all__ = ["sold", "work"]

Reconcile = Callable[..., list[ReconciliationFinding]]


@pytest.fixture
def reconcile(db: None, gateway: Any) -> Reconcile:
    """What a whole run finds; nothing waits for rest, since nobody else is at work."""

    def run(*, fix: bool = False, since: datetime | None = None, **options: Any) -> list[ReconciliationFinding]:
        begun = runs.begin(asked=f"{since} {fix}", since=since)
        runs.Reconciler(run=begun, gateway=gateway, is_fixing=fix, patience=timedelta(0), **options).go()
        assert begun.finished_at is not None
        assert not begun.subjects.exists()
        return list(begun.findings.all())

    return run


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch, gateway: Any) -> Any:
    """A gateway whose pages are of three."""
    for name in ("page_of_transfers", "page_of_balance_transactions", "page_of_refunds", "page_of_disputes"):
        method = getattr(gateway, name)
        monkeypatch.setattr(gateway, name, lambda _method=method, **given: _method(**given, limit=3))
    return gateway


@pytest.fixture
def refund(simulator: Any, work: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    """A refund made at Stripe, of which its webhook tells unless ``told=False``, and its reversals."""

    def make(order: Order, amount: int | None = None, *, told: bool = True) -> dict[str, Any]:
        made: dict[str, Any] = simulator.create_refund(order.stripe_charge_id, amount, status="succeeded")
        if told:
            receive(simulator, "refund.created", made["id"])
            work()
        return made

    return make


def receive(simulator: Any, type_: str, about: str) -> None:
    """The webhook of this event reaches us."""
    event = simulator.events(type=type_, object=about)[-1]
    inbox.receive(stripe_events.verify(*simulator.sign(event, "whsec_testPlatform")))


def kinds(found: list[ReconciliationFinding]) -> list[tuple[Drift, bool]]:
    return sorted((Drift(each.kind), each.is_healed) for each in found)


def only(found: list[ReconciliationFinding], kind: Drift, *, healed: bool = False) -> ReconciliationFinding:
    """The one finding there is."""
    assert kinds(found) == [(kind, healed)], [(each.kind, each.subject, each.detail) for each in found]
    return found[0]


def the_transfer(order: Order) -> SellerTransfer:
    return order.transfers.get()


def last_run() -> Reconciliation:
    found = Reconciliation.objects.first()
    assert found is not None
    return found


def tamper(simulator: Any, kind: str, stripe_id: str, **fields: Any) -> None:
    """What Stripe's own object says is changed, past everything that keeps it true."""
    world = simulator.core.world
    with world.lock:
        world.store.get(world.platform, kind, stripe_id).update(fields)


def rewrite(row: Any, **fields: Any) -> None:
    """As a person with psql and every right could: no trigger is asked."""
    assignments = ", ".join(f"{name} = %s" for name in fields)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SET LOCAL session_replication_role = replica")
        statement = f"UPDATE {row._meta.db_table} SET {assignments} WHERE id = %s"  # noqa: S608 - names of our own
        cursor.execute(statement, [*fields.values(), row.pk])
        cursor.execute("SET LOCAL session_replication_role = origin")
