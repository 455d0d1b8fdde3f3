"""An operator's retry, and the id of a transfer that an older system did not keep."""

import pytest
from django.utils import timezone

from marketplace.errors import ConflictingFacts, NotAllowedNow
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import reversals, transfers
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


def test_with_its_id_entered_the_reversal_can_be_retried() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")
    transfers.enter_transfer_id(
        transfer_id=transfer.pk, stripe_transfer_id="tr_found", actor="user:olga", reason="from the dashboard"
    )
    retry(transfer)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.stripe_transfer_id) == (TransferStatus.REVERSAL_PENDING, "tr_found")


def test_a_row_that_was_being_sent_takes_no_id_for_then_a_retry_would_take_all_back() -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)
    with pytest.raises(NotAllowedNow, match="owes no reversal"):
        transfers.enter_transfer_id(transfer_id=transfer.pk, stripe_transfer_id="tr_1", actor="a", reason="r")


@pytest.mark.parametrize("text", ["", "ch_1", "tr_" + "x" * 300])
def test_only_the_id_of_a_transfer_is_taken(text: str) -> None:
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")
    with pytest.raises(ConflictingFacts, match="expected tr_"):
        transfers.enter_transfer_id(transfer_id=transfer.pk, stripe_transfer_id=text, actor="a", reason="r")


def test_an_id_that_is_there_is_not_replaced() -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    with pytest.raises(NotAllowedNow, match="has its id"):
        transfers.enter_transfer_id(transfer_id=transfer.pk, stripe_transfer_id="tr_other", actor="a", reason="r")


def test_a_row_that_waits_for_no_id_takes_none() -> None:
    transfer = SellerTransferFactory()
    with pytest.raises(NotAllowedNow, match="only a permanently_failed one takes an id"):
        transfers.enter_transfer_id(transfer_id=transfer.pk, stripe_transfer_id="tr_other", actor="a", reason="r")


def test_an_id_of_another_row_is_refused() -> None:
    other = SellerTransferFactory(completed=True)
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")
    with pytest.raises(ConflictingFacts, match="another transfer has the id"):
        transfers.enter_transfer_id(
            transfer_id=transfer.pk, stripe_transfer_id=other.stripe_transfer_id, actor="a", reason="r"
        )


def test_after_a_part_came_back_by_other_hands_the_retry_takes_what_is_left() -> None:
    transfer = SellerTransferFactory(permanently_failed=True, amount=5000)
    SellerTransfer.objects.filter(pk=transfer.pk).update(
        amount_reversed=3000,
        stripe_reversal_id="trr_theirs",
        last_error_code=reversals.PARTLY_REVERSED_ELSEWHERE,
    )
    retry(transfer)
    old, new = transfer.reversals.order_by("id")
    assert (old.status, old.amount) == (ReversalStatus.CANCELED, 5000)
    assert (new.status, new.amount, new.refund) == (ReversalStatus.PENDING, 2000, old.refund)


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
        reversals.owe(transfer, amount=1, cause=TransferReversal.Cause.DISPUTE, refund=None, actor="a", reason="r")
    assert transfer.reversals.filter(status=ReversalStatus.PENDING).count() == 0
