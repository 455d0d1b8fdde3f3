"""Beside running workers: nothing is told of what moves, and what is told was looked at twice."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from marketplace.gateway.contract import Page
from marketplace.models import Drift, Order, Reconciliation, SellerTransfer
from marketplace.reconciliation import looking
from marketplace.reconciliation import run as runs
from marketplace.services import reversal_claims
from marketplace.states import TransferStatus
from marketplace.workers import reversal as reversal_worker
from tests.reconciliation.conftest import Reconcile, kinds, last_run, only, receive, the_transfer
from tests.services.conftest import Make
from tests.workers.conftest import drain

pytestmark = pytest.mark.django_db


class Meanwhile:
    """The gateway, and what happens right after the first calls of that name were answered."""

    def __init__(self, gateway: Any, call: str, happens: Any, *, times: int) -> None:
        self._gateway, self._call, self._happens, self._left = gateway, call, happens, times

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._gateway, name)
        if name != self._call:
            return method

        def answered(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if self._left:
                self._left -= 1
                self._happens()
            return answer

        return answered


@pytest.fixture
def beside(gateway: Any, reconcile: Reconcile, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run during which something happens."""

    def run(call: str, happens: Any, *, times: int = 1, **options: Any) -> Any:
        made = Meanwhile(gateway, call, happens, times=times)
        original = runs.Reconciler
        monkeypatch.setattr(runs, "Reconciler", lambda **given: original(**given | {"gateway": made}))
        found = reconcile(**options)
        monkeypatch.setattr(runs, "Reconciler", original)
        return found

    return run


def owing(sold: Make, simulator: Any) -> tuple[Order, SellerTransfer]:
    """Its refund has come, and no worker has done anything yet."""
    order = sold()
    made = simulator.create_refund(order.stripe_charge_id, status="succeeded")
    receive(simulator, "refund.created", made["id"])
    return order, the_transfer(order)


def test_what_is_owed_and_due_is_no_drift(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    owing(sold, simulator)
    assert reconcile() == []


def test_a_reversal_whose_answer_is_on_its_way_is_no_drift(
    reconcile: Reconcile, sold: Make, simulator: Any, gateway: Any
) -> None:
    """Stripe has made it, the worker has not heard yet."""
    owing(sold, simulator)
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    simulator.create_reversal(
        claimed.transfer.stripe_transfer_id, metadata={"operation_id": str(claimed.reversal.operation_id)}
    )
    assert reconcile() == []


def test_one_whose_answer_was_lost_is_the_next_workers_and_no_drift(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    """Nobody holds the row any more; whoever takes it up looks at Stripe."""
    _, transfer = owing(sold, simulator)
    owed = transfer.reversals.get()
    simulator.create_reversal(transfer.stripe_transfer_id, metadata={"operation_id": str(owed.operation_id)})
    assert reconcile() == []


def test_a_reversal_that_is_settled_after_stripe_was_asked_is_no_drift(
    beside: Any, sold: Make, simulator: Any, gateway: Any
) -> None:
    """The page is older than the row: at first they do not agree."""
    _, transfer = owing(sold, simulator)
    assert beside("page_of_transfers", lambda: drain(reversal_worker.ReversalQueue(gateway))) == []
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED
    assert last_run().counts["looked_at_again"] == 1


def test_what_was_recorded_between_both_looks_is_no_drift(beside: Any, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    simulator.create_reversal(transfer.stripe_transfer_id, 100)
    told = lambda: receive(simulator, "transfer.reversed", transfer.stripe_transfer_id)  # noqa: E731
    assert beside("page_of_disputes", told) == []
    assert "in_motion" not in last_run().counts
    assert last_run().counts["looked_at_again"] == 2


def test_a_row_that_somebody_wrote_meanwhile_is_looked_at_once_more_and_told(
    beside: Any, sold: Make, simulator: Any
) -> None:
    """That it was written does not mean that it is right now."""
    transfer = the_transfer(sold())
    simulator.create_reversal(transfer.stripe_transfer_id, 100)
    found = only(beside("retrieve_transfer", lambda: touch(transfer)), Drift.REVERSED_UNKNOWN)
    assert found.subject == str(transfer)
    assert "in_motion" not in last_run().counts


def test_a_row_that_changes_whenever_stripe_is_asked_is_left(beside: Any, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    simulator.create_reversal(transfer.stripe_transfer_id, 100)
    assert beside("retrieve_transfer", lambda: touch(transfer), times=2) == []
    assert last_run().counts["in_motion"] == 1


def test_a_row_written_while_the_run_was_broken_off_is_looked_at_once_more(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    """Its suspicion may be of the day before yesterday, and the row was written since for another reason."""
    transfer = the_transfer(sold())
    simulator.create_reversal(transfer.stripe_transfer_id, 100)

    def broken_off(run: Reconciliation) -> None:
        if run.step == "looking_again":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconcile(tell=broken_off)
    touch(transfer)
    only(reconcile(), Drift.REVERSED_UNKNOWN)


def touch(transfer: SellerTransfer) -> None:
    transfer.refresh_from_db()
    transfer.change(actor="somebody", reason="touched")


def test_a_row_that_a_worker_holds_is_left(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    simulator.create_reversal(transfer.stripe_transfer_id, 100)
    lease = {"lease_token": transfer.operation_id, "lease_expires_at": Now() + timedelta(minutes=1)}
    SellerTransfer.objects.filter(pk=transfer.pk).update(**lease)
    assert reconcile(fix=True) == []
    assert last_run().counts["in_motion"] == 1
    SellerTransfer.objects.filter(pk=transfer.pk).update(lease_expires_at=Now() - timedelta(minutes=1))
    only(reconcile(), Drift.REVERSED_UNKNOWN)


def test_a_refund_whose_webhook_comes_between_both_looks_is_no_drift(
    beside: Any, reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    made = simulator.create_refund(sold().stripe_charge_id, status="succeeded")
    assert beside("page_of_refunds", lambda: receive(simulator, "refund.created", made["id"])) == []
    again = simulator.create_refund(sold().stripe_charge_id, status="succeeded")
    assert beside("page_of_disputes", lambda: receive(simulator, "refund.created", again["id"])) == []
    assert last_run().counts["looked_at_again"] == 2
    assert reconcile() == []


def test_the_missing_row_that_somebody_changes_is_left(beside: Any, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    forget(simulator, "transfer", transfer.stripe_transfer_id)
    assert kinds(beside("retrieve_transfer", lambda: touch(transfer), times=2)) == []
    assert last_run().counts["in_motion"] == 1


def test_the_second_look_waits_until_the_youngest_suspicion_is_old_enough(
    reconcile: Reconcile, sold: Make, simulator: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.create_reversal(the_transfer(sold()).stripe_transfer_id, 100)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    begun = runs.begin(asked="", since=None)
    runs.Reconciler(run=begun, gateway=gateway).go()
    (waited,) = slept
    patience = looking.PATIENCE.total_seconds()
    assert patience - 10 < waited <= patience


def test_a_reversal_that_is_pending_at_stripe_is_no_drift(
    reconcile: Reconcile, sold: Make, simulator: Any, gateway: Any
) -> None:
    simulator.set(pending_reversals=True)
    _, transfer = owing(sold, simulator)
    simulator.pay_out(transfer.seller.stripe_account_id)
    drain(reversal_worker.ReversalQueue(gateway))
    assert transfer.reversals.get().stripe_status == "pending"
    assert reconcile() == []


def test_a_page_of_an_empty_list_has_no_end() -> None:
    assert Page(items=(), has_more=False).last_id == ""


def test_what_stripe_lists_and_does_not_have_is_told(beside: Any, simulator: Any) -> None:
    made = simulator.create_transfer(
        100, simulator.create_account()["id"], metadata={"operation_id": "an operation of nobody"}
    )
    found = only(beside("page_of_transfers", lambda: forget(simulator, "transfer", made["id"])), Drift.LEDGER_DIFFERS)
    assert (found.subject, found.amount, found.detail) == (made["id"], None, "Stripe lists it, and does not have it")


def test_a_charge_of_which_stripe_lists_nothing_any_more_is_no_drift(beside: Any, sold: Make, simulator: Any) -> None:
    made = simulator.create_refund(sold().stripe_charge_id, status="succeeded")
    assert beside("page_of_refunds", lambda: forget(simulator, "refund", made["id"])) == []


def forget(simulator: Any, kind: str, stripe_id: str) -> None:
    with simulator.core.world.transaction() as world:
        world.store.remove(world.platform, kind, stripe_id)
