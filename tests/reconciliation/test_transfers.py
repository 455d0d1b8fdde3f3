"""Each way in which a transfer's row and Stripe do not agree: reported once, healed or honestly not."""

import uuid
from typing import Any

import pytest

from marketplace.models import Drift, SellerTransfer, TransferReversal
from marketplace.simulator import ledger
from marketplace.states import ReversalStatus, TransferStatus
from tests.factories import SellerFactory, SellerTransferFactory
from tests.reconciliation.conftest import Reconcile, last_run, only, rewrite, tamper, the_transfer
from tests.services.conftest import Make

pytestmark = pytest.mark.django_db


def test_a_clean_world_has_no_drift(reconcile: Reconcile, sold: Make, refund: Any) -> None:
    sold((3000, 2000))
    refund(sold((5000, 1000)), 1234)
    refund(sold((700,)))
    assert reconcile() == []
    counts = last_run().counts
    assert (counts["transfers"], counts["reversals"], counts["refunds"]) == (5, 3, 2)
    assert "looked_at_again" not in counts


def test_nothing_at_all_has_no_drift(reconcile: Reconcile) -> None:
    assert reconcile() == []
    assert last_run().counts == {"requests": 4}


# --- Reversals --------------------------------------------------------------------------------------------------------


def test_a_reversal_that_stripe_does_not_have_is_not_healed(reconcile: Reconcile, sold: Make) -> None:
    transfer = the_transfer(sold())
    rewrite(transfer, status="reversed", amount_reversed=transfer.amount, stripe_reversal_id="trr_made_up")
    TransferReversal(
        transfer=transfer,
        amount=transfer.amount,
        currency="eur",
        cause="operator",
        status=ReversalStatus.SUCCEEDED,
        stripe_reversal_id="trr_made_up",
    ).add(actor="psql", reason="made up")
    for fix in (False, True):
        found = only(reconcile(fix=fix), Drift.NOT_REVERSED)
        assert (found.amount, found.currency, found.stripe_id) == (2700, "eur", "trr_made_up")
        assert (found.subject, found.stripe_account_id) == (str(transfer), transfer.seller.stripe_account_id)
        assert (found.remedy, found.detail) == (
            "",
            f"{transfer.reversals.get()} succeeded here, at Stripe it is not there",
        )


def test_a_row_that_says_reversed_without_a_record_is_not_reversed(reconcile: Reconcile, sold: Make) -> None:
    transfer = the_transfer(sold())
    rewrite(transfer, status="partially_reversed", amount_reversed=700, stripe_reversal_id="trr_old")
    found = only(reconcile(), Drift.NOT_REVERSED)
    assert (found.amount, found.detail) == (700, "700 reversed here, 0 at Stripe")


def test_a_reversal_made_elsewhere_is_recorded(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    made = simulator.create_reversal(transfer.stripe_transfer_id, 1000)
    found = only(reconcile(), Drift.REVERSED_UNKNOWN)
    assert (found.amount, found.stripe_id, found.remedy) == (1000, made["id"], "record the reversal")
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED
    only(reconcile(fix=True), Drift.REVERSED_UNKNOWN, healed=True)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.amount_reversed) == (TransferStatus.PARTIALLY_REVERSED, 1000)
    assert set(transfer.history.filter(status="partially_reversed").values_list("pgh_context__actor", flat=True)) == {
        "reconcile"
    }
    assert reconcile() == []


def test_more_reversals_than_a_transfer_shows_are_all_recorded(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    transfer = the_transfer(sold())
    for _ in range(12):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    found = reconcile(fix=True)
    assert [each.kind for each in found] == [Drift.REVERSED_UNKNOWN] * 12
    assert all(each.is_healed for each in found)
    transfer.refresh_from_db()
    assert transfer.amount_reversed == 1200
    assert reconcile() == []


def test_where_the_sums_agree_the_older_reversals_are_not_asked_for(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    transfer = the_transfer(sold())
    for _ in range(12):
        simulator.create_reversal(transfer.stripe_transfer_id, 100)
    reconcile(fix=True)
    before = len(simulator.requests.to("GET /v1/transfers/{id}/reversals"))
    assert reconcile() == []
    assert len(simulator.requests.to("GET /v1/transfers/{id}/reversals")) == before


def test_a_reversal_with_an_operation_of_no_row_is_an_orphan_and_counts_as_taken(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    transfer = the_transfer(sold())
    lost = {"operation_id": str(uuid.uuid4())}
    made = simulator.create_reversal(transfer.stripe_transfer_id, 1000, metadata=lost)
    assert only(reconcile(), Drift.ORPHAN_REVERSAL).stripe_id == made["id"]
    only(reconcile(fix=True), Drift.ORPHAN_REVERSAL, healed=True)
    assert reconcile() == []


def test_ours_that_failed_here_and_happened_all_the_same_is_recorded(
    reconcile: Reconcile, sold: Make, simulator: Any
) -> None:
    transfer = the_transfer(sold())
    rewrite(transfer, status="permanently_failed", failed_leg="reversing")
    row = TransferReversal(
        transfer=transfer, amount=2700, currency="eur", cause="operator", status=ReversalStatus.FAILED
    )
    row.add(actor="test", reason="no answer")
    simulator.create_reversal(transfer.stripe_transfer_id, metadata={"operation_id": str(row.operation_id)})
    found = {each.kind: each for each in reconcile()}
    assert set(found) == {Drift.REVERSED_UNKNOWN, Drift.NEEDS_A_PERSON}
    assert found[Drift.REVERSED_UNKNOWN].detail == f"{row} is failed here"
    only(reconcile(fix=True), Drift.REVERSED_UNKNOWN, healed=True)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSED


def test_a_reversal_of_another_amount_differs(reconcile: Reconcile, sold: Make, refund: Any, simulator: Any) -> None:
    order = sold()
    refund(order, 1000)
    row = the_transfer(order).reversals.get()
    rewrite(row, amount=row.amount + 1)
    found = only(reconcile(), Drift.REVERSAL_DIFFERS)
    assert (found.amount, found.detail) == (1, f"{row} is 901 eur here, 900 eur at Stripe")


# --- Transfers --------------------------------------------------------------------------------------------------------


def test_another_amount_differs(reconcile: Reconcile, sold: Make) -> None:
    transfer = the_transfer(sold())
    rewrite(transfer, amount=2699)
    for fix in (False, True):
        found = only(reconcile(fix=fix), Drift.TRANSFER_DIFFERS)
        assert (found.amount, found.detail) == (1, "2699 eur here, 2700 eur at Stripe")


def test_another_currency_differs(reconcile: Reconcile, sold: Make) -> None:
    rewrite(the_transfer(sold()), currency="usd")
    assert only(reconcile(), Drift.TRANSFER_DIFFERS).detail == "2700 usd here, 2700 eur at Stripe"


def test_another_destination_differs(reconcile: Reconcile, sold: Make) -> None:
    transfer = the_transfer(sold())
    rewrite(transfer, seller_id=SellerFactory(stripe_account_id="acct_other").pk)
    found = only(reconcile(), Drift.TRANSFER_DIFFERS)
    assert found.detail == f"to acct_other here, to {transfer.seller.stripe_account_id} at Stripe"


def test_a_transfer_that_stripe_does_not_have_is_missing(reconcile: Reconcile) -> None:
    row = SellerTransferFactory(completed=True)
    found = only(reconcile(), Drift.MISSING)
    assert (found.subject, found.stripe_id, found.amount) == (str(row), row.stripe_transfer_id, 5000)
    assert last_run().counts["rows_not_listed"] == 1


def test_many_rows_that_stripe_does_not_list_are_gone_through_once(
    reconcile: Reconcile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.reconciliation.run.LARGEST_PAGE", 2)
    rows = [SellerTransferFactory(completed=True) for _ in range(5)]
    found = reconcile()
    assert [each.kind for each in found] == [Drift.MISSING] * 5
    assert {each.subject for each in found} == {str(row) for row in rows}


def test_a_transfer_of_a_lost_row_is_an_orphan(reconcile: Reconcile, simulator: Any) -> None:
    account = simulator.create_account()["id"]
    made = simulator.create_transfer(700, account, metadata={"operation_id": str(uuid.uuid4())})
    for fix in (False, True):
        found = only(reconcile(fix=fix), Drift.ORPHAN_TRANSFER)
        assert (found.subject, found.amount, found.stripe_account_id) == (made["id"], 700, account)


def test_an_operation_id_that_is_none_of_ours_is_an_orphans_too(reconcile: Reconcile, simulator: Any) -> None:
    made = simulator.create_transfer(700, simulator.create_account()["id"], metadata={"operation_id": "7"})
    assert only(reconcile(), Drift.ORPHAN_TRANSFER).stripe_id == made["id"]


def test_a_second_transfer_of_the_same_row_is_an_orphan(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    again = {"operation_id": str(transfer.operation_id)}
    made = simulator.create_transfer(2700, transfer.seller.stripe_account_id, metadata=again)
    found = only(reconcile(), Drift.ORPHAN_TRANSFER)
    assert (found.stripe_id, found.subject) == (made["id"], str(transfer))
    assert transfer.stripe_transfer_id in found.detail


def test_a_transfer_of_another_program_is_no_drift(reconcile: Reconcile, simulator: Any) -> None:
    simulator.create_transfer(700, simulator.create_account()["id"])
    assert reconcile() == []
    assert last_run().counts["without_row"] == 1


def lost_answer(sold: Make, simulator: Any, **fields: Any) -> SellerTransfer:
    """Stripe made the transfer, and the row does not say so."""
    transfer = the_transfer(sold(sent=False))
    metadata = {"operation_id": str(transfer.operation_id)}
    order = transfer.order
    simulator.create_transfer(
        transfer.amount,
        transfer.seller.stripe_account_id,
        source_transaction=order.stripe_charge_id,
        transfer_group=order.transfer_group,
        metadata=metadata,
    )
    rewrite(transfer, **fields)
    return transfer


def test_a_transfer_whose_sending_a_person_was_asked_about_is_taken_over(
    reconcile: Reconcile, sold: Make, simulator: Any, work: Any
) -> None:
    given_up = {"status": "permanently_failed", "failed_leg": "sending", "in_doubt": True, "look_first": True}
    transfer = lost_answer(sold, simulator, **given_up, next_retry_at=None)
    found = {each.kind: each for each in reconcile()}
    assert set(found) == {Drift.SENT_UNKNOWN, Drift.NEEDS_A_PERSON}
    assert found[Drift.SENT_UNKNOWN].remedy
    only(reconcile(fix=True), Drift.SENT_UNKNOWN, healed=True)
    work()
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.COMPLETED
    assert len(simulator.events(type="transfer.created")) == 1
    assert reconcile() == []


def test_a_canceled_row_whose_seller_was_paid_is_not_healed(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    lost_answer(sold, simulator, status="canceled", next_retry_at=None)
    found = only(reconcile(fix=True), Drift.SENT_UNKNOWN)
    assert (found.remedy, found.amount, found.detail) == ("", 2700, "the row is canceled and has no tr_…")


def test_a_transfer_that_a_worker_will_find_is_no_drift(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    lost_answer(sold, simulator, in_doubt=True)
    assert reconcile() == []


# --- Stripe's ledger --------------------------------------------------------------------------------------------------


def test_a_transfer_that_took_another_amount_from_our_balance(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    entry = simulator.get(transfer.stripe_transfer_id)["balance_transaction"]
    tamper(simulator, "balance_transaction", entry, amount=-2600)
    found = only(reconcile(fix=True), Drift.LEDGER_DIFFERS)
    assert (found.amount, found.subject) == (100, str(transfer))
    assert found.detail == "balance transactions of type transfer sum up to -2600, the transfer says -2700"


def test_a_reversal_that_brought_another_amount(reconcile: Reconcile, sold: Make, refund: Any, simulator: Any) -> None:
    order = sold()
    refund(order, 1000)
    (made,) = simulator.reversals_of(the_transfer(order).stripe_transfer_id)
    tamper(simulator, "balance_transaction", made["balance_transaction"], amount=899)
    found = only(reconcile(), Drift.LEDGER_DIFFERS)
    assert found.detail == "balance transactions of type transfer_refund sum up to 899, the transfer says 900"


def test_an_entry_of_the_ledger_without_a_reversal(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    with simulator.core.world.transaction() as world:
        entry = {"amount": 5, "currency": "eur", "kind": "transfer_refund", "source": transfer.stripe_transfer_id}
        ledger.post(world, world.platform, **entry)
    assert only(reconcile(), Drift.LEDGER_DIFFERS).amount == 5


def test_a_reversal_without_an_entry_in_the_ledger(
    reconcile: Reconcile, sold: Make, refund: Any, simulator: Any
) -> None:
    order = sold()
    refund(order, 1000)
    (made,) = simulator.reversals_of(the_transfer(order).stripe_transfer_id)
    tamper(simulator, "transfer_reversal", made["id"], balance_transaction=None)
    tamper(simulator, "balance_transaction", made["balance_transaction"], type="adjustment")
    assert only(reconcile(), Drift.LEDGER_DIFFERS).amount == 900


def test_what_is_healed_beside_what_is_not(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    transfer = the_transfer(sold())
    made = simulator.create_reversal(transfer.stripe_transfer_id, 100)
    tamper(simulator, "balance_transaction", made["balance_transaction"], amount=99)
    found = reconcile(fix=True)
    assert {each.kind: each.is_healed for each in found} == {Drift.REVERSED_UNKNOWN: True, Drift.LEDGER_DIFFERS: False}


def test_an_entry_about_a_transfer_that_stripe_does_not_have(reconcile: Reconcile, sold: Make, simulator: Any) -> None:
    the_transfer(sold())
    with simulator.core.world.transaction() as world:
        entry = {"amount": 5, "currency": "eur", "kind": "transfer_refund", "source": "tr_gone"}
        ledger.post(world, world.platform, **entry)
    found = only(reconcile(), Drift.LEDGER_DIFFERS)
    assert (found.subject, found.stripe_id) == ("tr_gone", "tr_gone")
