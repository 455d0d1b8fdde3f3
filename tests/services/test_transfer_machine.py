"""A transfer in the hands of all services and both queues, in any order, beside a Stripe of a few lines that may fail
in every way. Hypothesis looks for a sequence after which the books do not agree, and prints the shortest.

The rows' own steps are compared with a model in ``tests/models/test_lifecycle_machine.py``; here is what the services
make of them.
"""

import sys
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from marketplace.errors import NotAllowedNow, StaleTransition, StripeDenied
from marketplace.gateway.contract import (
    AlreadyReversed,
    BalanceFacts,
    BalanceRetrieved,
    Busy,
    Denied,
    InsufficientFunds,
    Postponed,
    RateLimited,
    Refused,
    ReversalFacts,
    ReversalsListed,
    Reversed,
    ServerError,
    TransferCreated,
    TransferFacts,
    TransfersListed,
    Unknown,
)
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import reversals, transfers
from marketplace.states import ALLOWED_TRANSITIONS, ReversalStatus, TransferStatus
from marketplace.workers.reversal import ReversalQueue
from marketplace.workers.transfer_retry import TransferQueue
from tests.factories import SellerTransferFactory

T = TransferStatus
SHARE = 6
LEASE = timedelta(minutes=5)
DAY = timedelta(hours=25)
WAITING = {T.PENDING, T.FAILED, T.REVERSAL_PENDING}
RESTING = {T.COMPLETED, T.PARTIALLY_REVERSED, T.REVERSED, T.CANCELED}
BY = {"actor": "machine", "reason": "a step"}
# Nothing ran at Stripe; and what Stripe keeps under the key, like an effect.
NOT_RUN = {
    "busy": Busy(message=""),
    "limited": RateLimited(message=""),
    "denied": Denied(message=""),
    "postponed": Postponed(message="", seconds=3600),
    "lost_before": Unknown(message=""),
}
KEPT = {
    "error": ServerError(message=""),
    "too_little": InsufficientFunds(message=""),
    "refused": Refused(message="", code="account_invalid"),
}
MISHAPS = ["", "", "lost_after", "lost_after", "error_after", "error_after", *NOT_RUN, *KEPT]
series = st.lists(st.sampled_from(MISHAPS), min_size=2, max_size=6)


class Stripe:
    """One transfer, its reversals, and the answers kept under idempotency keys."""

    def __init__(self) -> None:
        self.transfers: list[TransferFacts] = []
        self.reversals: list[ReversalFacts] = []
        self.answers: dict[str, Any] = {}
        self.mishap = ""
        # Nobody waits for a turn here.
        self.gate = None

    def left(self) -> int:
        return sum(each.amount for each in self.transfers) - sum(each.amount for each in self.reversals)

    def reverse(self, amount: int, operation_id: str = "") -> ReversalFacts:
        facts = ReversalFacts(
            stripe_reversal_id=f"trr_{len(self.reversals)}", amount=amount, currency="eur", operation_id=operation_id
        )
        self.reversals.insert(0, facts)
        return facts

    def _answer(self, key: str, do: Any) -> Any:
        mishap, self.mishap = self.mishap, ""
        if mishap in NOT_RUN:
            return NOT_RUN[mishap]
        if key not in self.answers:
            self.answers[key] = KEPT[mishap] if mishap in KEPT else do()
            if mishap == "error_after":
                self.answers[key] = KEPT["error"]
        return NOT_RUN["lost_before"] if mishap == "lost_after" else self.answers[key]

    def create_transfer(self, *, amount: int, operation_id: UUID, idempotency_key: str, **said: Any) -> Any:
        def do() -> TransferCreated:
            facts = TransferFacts(
                stripe_transfer_id=f"tr_{len(self.transfers)}_{operation_id}",
                amount=amount,
                amount_reversed=0,
                currency=said["currency"],
                operation_id=str(operation_id),
            )
            self.transfers.append(facts)
            return TransferCreated(transfer=facts)

        return self._answer(idempotency_key, do)

    def list_transfers(self, **_: Any) -> Any:
        return TransfersListed(transfers=tuple(self.transfers))

    def reverse_transfer(self, _id: str, *, amount: int, operation_id: UUID, idempotency_key: str, **_: Any) -> Any:
        if amount > self.left() and idempotency_key not in self.answers:
            whole = self.transfers[0]
            now = TransferFacts(**{**vars(whole), "amount_reversed": whole.amount - self.left()})
            return AlreadyReversed(transfer=now, reversals=tuple(self.reversals))
        return self._answer(idempotency_key, lambda: Reversed(reversal=self.reverse(amount, str(operation_id))))

    def list_reversals(self, _id: str) -> Any:
        return ReversalsListed(reversals=tuple(self.reversals))

    def retrieve_balance(self, **_: Any) -> Any:
        return BalanceRetrieved(balance=BalanceFacts(available={}))


class Services(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(["new", "paid", "paid", "older"]), mishaps=series)
    def begin(self, kind: str, mishaps: list[str]) -> None:
        # What one example writes, the next must not see; and to the services it is no transaction of anybody.
        self.outer = transaction.atomic()
        self.outer._from_testcase = True  # type: ignore[attr-defined]
        self.outer.__enter__()
        self.stripe = Stripe()
        self.queues: Any = [TransferQueue(self.stripe), ReversalQueue(self.stripe)]  # type: ignore[arg-type]
        self.hands: list[tuple[Any, Any]] = []
        self.owed, self.is_by_hand = 0, False
        # Of an older system: it does not say which transfer it was.
        traits = {"older": {"reversal_pending": True, "stripe_transfer_id": ""}, "paid": {"completed": True}}
        row = SellerTransferFactory(amount=SHARE, **traits.get(kind, {}))
        self.pk = row.pk
        if kind != "new":
            facts = TransferFacts(
                stripe_transfer_id=row.stripe_transfer_id or "tr_older",
                amount=SHARE,
                amount_reversed=0,
                currency="eur",
                operation_id=str(row.operation_id),
            )
            self.stripe.transfers.append(facts)
        if kind == "older":
            self.owed = SHARE
        if kind == "paid":
            # Equal parts: what is made of amounts alone would meet.
            self.owe(amount=2)
            self.owe(amount=2)
        self.attempts(mishaps)

    def teardown(self) -> None:
        if hasattr(self, "outer"):
            if sys.exc_info()[0] is None:
                self.come_to_rest()
            transaction.set_rollback(True)
            self.outer.__exit__(None, None, None)

    def read(self) -> SellerTransfer:
        return SellerTransfer.objects.get(pk=self.pk)

    @property
    def found(self) -> Any:
        return SellerTransfer.objects.filter(pk=self.pk)

    # --- Workers ------------------------------------------------------------------------------------------------------

    @rule()
    def claim(self) -> None:
        for queue in self.queues:
            self.hands += [(queue, claimed) for claimed in queue.claim(batch_size=5, lease=LEASE)]

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), mishap=st.sampled_from(MISHAPS))
    def work(self, data: st.DataObject, mishap: str) -> None:
        """Also of one that came to itself after another had taken the row over."""
        queue, claimed = self.hands.pop(data.draw(st.integers(0, len(self.hands) - 1)))
        self._perform(queue, claimed, mishap)

    def _perform(self, queue: Any, claimed: Any, mishap: str) -> None:
        before = SellerTransfer.objects.values().get(pk=self.pk)
        is_ours = before["lease_token"] == getattr(claimed, "transfer", claimed).lease_token
        self.stripe.mishap = mishap
        was_late = False
        try:
            queue.perform(claimed)
        except StripeDenied:
            assert mishap == "denied"
        except StaleTransition:
            was_late = True
        self.stripe.mishap = ""
        assert was_late is not is_ours
        if was_late:
            assert SellerTransfer.objects.values().get(pk=self.pk) == before

    @precondition(lambda self: self.hands)
    @rule()
    def give_back(self) -> None:
        queue, claimed = self.hands.pop()
        queue.release(claimed)

    @rule()
    def time_passes(self) -> None:
        """All leases end, and whatever waits is due."""
        self.found.filter(lease_token__isnull=False).update(lease_expires_at=Now())
        self.found.filter(next_retry_at__isnull=False).update(next_retry_at=Now())

    @rule(mishaps=series)
    def attempts(self, mishaps: list[str]) -> None:
        for mishap in mishaps:
            self.time_passes()
            for queue in self.queues:
                for claimed in queue.claim(batch_size=5, lease=LEASE):
                    self._perform(queue, claimed, mishap)
            self.the_books_are_right()

    @rule()
    def a_day_passes(self) -> None:
        """Keys are forgotten, and nobody holds a row for so long: what a gateway would send, it no longer does."""
        self.time_passes()
        self.hands.clear()
        self.stripe.answers.clear()
        self.found.update(first_attempted_at=F("first_attempted_at") - DAY)
        TransferReversal.objects.update(first_attempted_at=F("first_attempted_at") - DAY)

    # --- People -------------------------------------------------------------------------------------------------------

    @rule(amount=st.integers(1, SHARE))
    def owe(self, amount: int) -> None:
        with transaction.atomic():
            row = SellerTransfer.locked(self.pk)
            owed = row.reversals.filter(status__in=[ReversalStatus.PENDING, ReversalStatus.FAILED])
            left = row.amount_unreversed - sum(each.amount for each in owed)
            if row.status == T.CANCELED or amount > left:
                return
            reversals.owe(row, amount=amount, cause=TransferReversal.Cause.OPERATOR, source=None, **BY)
            self.owed += amount

    @precondition(lambda self: self.stripe.left() > 0)
    @rule(amount=st.integers(1, SHARE))
    def reverse_by_hand(self, amount: int) -> None:
        if amount <= self.stripe.left():
            self.stripe.reverse(amount)
            self.is_by_hand = True

    @rule()
    def retry(self) -> None:
        row = self.read()
        lacks_id = row.failed_leg == SellerTransfer.Leg.REVERSING and not row.stripe_transfer_id
        is_allowed = row.status == T.PERMANENTLY_FAILED and not lacks_id
        try:
            transfers.retry(transfer_id=self.pk, **BY)
        except NotAllowedNow:
            assert not is_allowed
        else:
            assert is_allowed

    @rule()
    def enter_the_id(self) -> None:
        row = self.read()
        is_allowed = row.status == T.PERMANENTLY_FAILED and row.failed_leg == SellerTransfer.Leg.REVERSING
        made = self.stripe.transfers[0].stripe_transfer_id if self.stripe.transfers else "tr_unknown"
        found = TransferFacts(
            stripe_transfer_id=made,
            amount=row.amount,
            amount_reversed=0,
            currency=row.currency,
            operation_id="",
            destination=row.seller.stripe_account_id,
        )
        try:
            transfers.enter_transfer_id(transfer_id=self.pk, found=found, **BY)
        except NotAllowedNow:
            assert not is_allowed or row.stripe_transfer_id
        else:
            assert is_allowed

    def come_to_rest(self) -> None:
        """Stripe is well, time passes and people look after what asks for them: then the books agree."""
        for _ in range(40):
            self.hands.clear()
            before = self.read().updated_at
            self.attempts([""])
            row = self.read()
            if row.status == T.PERMANENTLY_FAILED:
                self.enter_the_id()
                self.retry()
            elif row.updated_at == before:
                break
        row = self.read()
        assert row.status in RESTING, row.last_error_message
        taken = sum(each.amount for each in self.stripe.reversals)
        kept = SHARE if row.status == T.CANCELED else row.amount_kept_back
        assert self.stripe.left() + taken == (0 if row.status == T.CANCELED else row.amount)
        assert kept + taken >= min(self.owed, SHARE)
        if not self.is_by_hand:
            assert kept + taken == self.owed
            assert row.amount_reversed == taken

    # --- What must hold after each ------------------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "pk"))
    @invariant()
    def the_books_are_right(self) -> None:
        row = self.read()
        self.nothing_is_done_twice()
        self.the_sums_are_right(row)
        self.a_worker_can_take_it_up_or_has_no_need_to(row)
        self.the_history_tells_of_allowed_steps_by_whom_and_why(row)

    def nothing_is_done_twice(self) -> None:
        assert len(self.stripe.transfers) <= 1
        ours = [each.operation_id for each in self.stripe.reversals if each.operation_id]
        assert len(set(ours)) == len(ours)
        assert self.stripe.left() >= 0

    def the_sums_are_right(self, row: SellerTransfer) -> None:
        done = row.reversals.filter(status=ReversalStatus.SUCCEEDED)
        assert row.amount + row.amount_kept_back == SHARE
        assert row.amount_reversed == sum(each.amount for each in done) <= row.amount
        at_stripe = {each.stripe_reversal_id: each.amount for each in self.stripe.reversals}
        assert all(at_stripe.get(each.stripe_reversal_id) == each.amount for each in done)

    @staticmethod
    def a_worker_can_take_it_up_or_has_no_need_to(row: SellerTransfer) -> None:
        assert (row.lease_token is None) == (row.lease_expires_at is None)
        assert (row.next_retry_at is not None) == (row.status in WAITING)
        if row.status not in WAITING:
            assert row.lease_token is None

    @staticmethod
    def the_history_tells_of_allowed_steps_by_whom_and_why(row: SellerTransfer) -> None:
        history = list(row.history.order_by("pgh_id"))
        for before, after in pairwise(history):
            if before.status != after.status:
                assert after.status in ALLOWED_TRANSITIONS[TransferStatus(before.status)]
                assert after.pgh_context["actor"]
                assert after.pgh_context["reason"]
        assert history[-1].status == row.status


@pytest.mark.django_db
def test_whatever_the_services_do_in_whatever_order_the_books_agree() -> None:
    run_state_machine_as_test(Services, settings=settings(max_examples=25, stateful_step_count=12))
