"""An operator's retry, and the id of a transfer that an older system did not keep."""

from dataclasses import replace
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from marketplace.errors import ConflictingFacts, NotAllowedNow, NotNow, StripeDenied
from marketplace.gateway.contract import TransferFacts
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import reversal_settling, reversals, transfers
from marketplace.states import ReversalStatus, TransferStatus
from tests.factories import SellerTransferFactory, TransferReversalFactory

pytestmark = pytest.mark.django_db


def retry(transfer: SellerTransfer) -> SellerTransfer:
    return transfers.retry(transfer_id=transfer.pk, actor="user:olga", reason="looked into it")


def test_retrying_a_reversal_makes_it_due_now_with_a_fresh_budget() -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    retried = retry(transfer)
    transfer.refresh_from_db()
    assert transfer.status == retried.status == TransferStatus.REVERSAL_PENDING
    assert (transfer.retry_count, transfer.failed_leg) == (0, "")
    assert transfer.next_retry_at is not None
    assert transfer.next_retry_at <= timezone.now()
    owed = transfer.reversals.get()
    assert (owed.status, owed.waiting_for_funds_since) == (ReversalStatus.PENDING, None)
    last = transfer.history.latest("pgh_id")
    assert (last.pgh_context["actor"], last.pgh_context["reason"]) == ("user:olga", "looked into it")


def test_retrying_a_sending_makes_it_failed_and_due_now() -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)
    retry(transfer)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.FAILED, 0)
    assert transfer.next_retry_at is not None


def test_retrying_a_sending_that_was_refunded_meanwhile_cancels_it() -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)
    owed = TransferReversalFactory(transfer=transfer, amount=transfer.amount)
    retry(transfer)
    transfer.refresh_from_db()
    owed.refresh_from_db()
    assert (transfer.status, owed.status) == (TransferStatus.CANCELED, ReversalStatus.CANCELED)


def test_retrying_a_sending_of_unknown_outcome_keeps_the_debt_until_it_is_settled() -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True, in_doubt=True)
    owed = TransferReversalFactory(transfer=transfer, amount=transfer.amount)
    retry(transfer)
    transfer.refresh_from_db()
    owed.refresh_from_db()
    assert (transfer.status, owed.status) == (TransferStatus.FAILED, ReversalStatus.PENDING)


@pytest.mark.parametrize(
    "trait",
    ["", "failed", "completed", "reversal_pending", "partially_reversed", "reversed", "canceled"],
)
def test_a_retry_of_any_other_status_is_refused(trait: str) -> None:
    transfer = SellerTransferFactory(**({trait: True} if trait else {}))
    before = SellerTransfer.objects.values().get(pk=transfer.pk)
    with pytest.raises(NotAllowedNow, match="only a permanently_failed one"):
        retry(transfer)
    assert SellerTransfer.objects.values().get(pk=transfer.pk) == before


def test_a_second_retry_is_refused() -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    retry(transfer)
    with pytest.raises(NotAllowedNow):
        retry(transfer)
    assert transfer.history.filter(pgh_context__actor="user:olga").count() == 1


def test_a_row_without_its_transfer_id_is_never_paid_again() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")
    with pytest.raises(NotAllowedNow, match="enter its tr_… first"):
        retry(transfer)


def test_a_row_without_any_leg_is_never_paid_again() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="", failed_leg="", reversal=False)
    with pytest.raises(NotAllowedNow, match="enter its tr_… first"):
        retry(transfer)


def at_stripe(transfer: SellerTransfer, **changes: Any) -> TransferFacts:
    """The transfer as Stripe has it."""
    facts = TransferFacts(
        stripe_transfer_id="tr_found",
        amount=transfer.amount,
        amount_reversed=0,
        currency=transfer.currency,
        operation_id="",
        destination=transfer.seller.stripe_account_id,
    )
    return replace(facts, **changes)


def enter(transfer: SellerTransfer, **changes: Any) -> SellerTransfer:
    return transfers.enter_transfer_id(
        transfer_id=transfer.pk, found=at_stripe(transfer, **changes), actor="user:olga", reason="from the dashboard"
    )


def without_id(**fields: Any) -> SellerTransfer:
    return SellerTransferFactory(permanently_failed=True, stripe_transfer_id="", **fields)


def test_with_its_id_entered_the_reversal_can_be_retried() -> None:
    transfer = without_id()
    enter(transfer)
    retry(transfer)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.stripe_transfer_id) == (TransferStatus.REVERSAL_PENDING, "tr_found")


def test_one_that_was_made_for_this_row_is_taken() -> None:
    transfer = without_id()
    assert enter(transfer, operation_id=str(transfer.operation_id)).stripe_transfer_id == "tr_found"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"amount": 4999}, "4999 eur to acct_"),
        ({"currency": "usd"}, "5000 usd to acct_"),
        ({"destination": "acct_other"}, "5000 eur to acct_other at Stripe, while transfer"),
        ({"destination": ""}, "to no account at Stripe"),
        ({"operation_id": "of another"}, "its operation_id at Stripe is of another"),
    ],
)
def test_an_id_of_another_transfer_is_refused(changes: dict[str, Any], said: str) -> None:
    transfer = without_id(amount=5000, currency="eur")
    with pytest.raises(ConflictingFacts, match=said):
        enter(transfer, **changes)
    transfer.refresh_from_db()
    assert transfer.stripe_transfer_id == ""


def test_what_stripe_has_is_looked_up(gateway: Any, simulator: Any) -> None:
    account = simulator.create_account()["id"]
    made = simulator.create_transfer(5000, account)["id"]
    found = transfers.look_up(made, gateway)
    assert (found.stripe_transfer_id, found.amount, found.destination) == (made, 5000, account)


@pytest.mark.parametrize("text", ["", "ch_1", "tr_" + "x" * 300])
def test_only_the_id_of_a_transfer_is_looked_up(gateway: Any, simulator: Any, text: str) -> None:
    with pytest.raises(ConflictingFacts, match="expected tr_"):
        transfers.look_up(text, gateway)
    assert simulator.requests.total == 0


def test_an_id_that_stripe_does_not_know_is_refused(gateway: Any) -> None:
    with pytest.raises(ConflictingFacts, match="Stripe has no transfer tr_nowhere"):
        transfers.look_up("tr_nowhere", gateway)


@pytest.mark.parametrize(("fault", "error"), [("unauthorized", StripeDenied), ("unavailable", NotNow)])
def test_no_answer_is_no_transfer(gateway: Any, simulator: Any, fault: str, error: type[Exception]) -> None:
    simulator.faults.add(fault)
    with pytest.raises(error):
        transfers.look_up("tr_1", gateway)


@pytest.mark.django_db(transaction=True)
def test_nothing_is_looked_up_inside_of_a_transaction(gateway: Any, simulator: Any) -> None:
    with transaction.atomic(), pytest.raises(RuntimeError):
        transfers.look_up("tr_1", gateway)
    assert simulator.requests.total == 0


def test_a_row_that_was_being_sent_takes_no_id_for_then_a_retry_would_take_all_back() -> None:
    with pytest.raises(NotAllowedNow, match="owes no reversal"):
        enter(SellerTransferFactory(permanently_failed_sending=True))


def test_an_id_that_is_there_is_not_replaced() -> None:
    with pytest.raises(NotAllowedNow, match="has its id"):
        enter(SellerTransferFactory(permanently_failed=True))


def test_a_row_that_waits_for_no_id_takes_none() -> None:
    with pytest.raises(NotAllowedNow, match="only a permanently_failed one takes an id"):
        enter(SellerTransferFactory())


def test_an_id_of_another_row_is_refused() -> None:
    other = SellerTransferFactory(completed=True)
    with pytest.raises(ConflictingFacts, match="another transfer has the id"):
        enter(without_id(), stripe_transfer_id=other.stripe_transfer_id)


def test_after_a_part_came_back_by_other_hands_the_retry_takes_what_is_left() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, amount=5000)
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        amount_reversed=3000,
        stripe_reversal_id="trr_theirs",
        last_error_code=reversal_settling.PARTLY_REVERSED_ELSEWHERE,
    )
    retry(transfer)
    old, new = transfer.reversals.order_by("id")
    assert (old.status, old.amount) == (ReversalStatus.CANCELED, 5000)
    assert (new.status, new.amount, new.refund) == (ReversalStatus.PENDING, 2000, old.refund)


def test_a_retry_owes_no_more_than_is_left_beside_what_is_owed_already() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, amount=5000, reversal=False)
    TransferReversalFactory(transfer=transfer, failed=True, amount=3000)
    TransferReversalFactory(transfer=transfer, amount=2000)
    SellerTransfer.objects.filter(pk=transfer.pk).update(amount_reversed=2500, stripe_reversal_id="trr_theirs")
    retry(transfer)
    assert [(each.status, each.amount) for each in transfer.reversals.order_by("id")] == [
        (ReversalStatus.CANCELED, 3000),
        (ReversalStatus.PENDING, 2000),
        (ReversalStatus.PENDING, 500),
    ]


def test_a_retry_owes_nothing_more_where_what_is_owed_already_is_all_that_is_left() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, amount=5000, reversal=False)
    TransferReversalFactory(transfer=transfer, failed=True, amount=3000)
    TransferReversalFactory(transfer=transfer, amount=2000)
    SellerTransfer.objects.filter(pk=transfer.pk).update(amount_reversed=4000, stripe_reversal_id="trr_theirs")
    retry(transfer)
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSAL_PENDING
    assert [each.status for each in transfer.reversals.order_by("id")] == [
        ReversalStatus.CANCELED,
        ReversalStatus.PENDING,
    ]


def test_a_reversal_that_stripe_gave_up_is_not_reopened() -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    transfer.reversals.update(stripe_reversal_id="trr_given_up", stripe_status="failed")
    TransferReversalFactory(transfer=transfer, failed=True)
    retry(transfer)
    given_up, replacement = transfer.reversals.order_by("id")
    assert (given_up.status, replacement.status) == (ReversalStatus.FAILED, ReversalStatus.PENDING)


@pytest.mark.parametrize("trait", ["reversed", "canceled"])
def test_nothing_can_be_owed_on_what_is_at_its_end(trait: str) -> None:
    transfer = SellerTransferFactory(**{trait: True})
    with pytest.raises(NotAllowedNow, match="nothing is left"):
        reversals.owe(transfer, amount=1, cause=TransferReversal.Cause.OPERATOR, source=None, actor="a", reason="r")
    assert transfer.reversals.filter(status=ReversalStatus.PENDING).count() == 0
