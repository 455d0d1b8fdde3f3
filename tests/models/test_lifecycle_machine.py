"""A transfer led through random steps, right and wrong ones, beside a model of a few lines that says what must become
of it. Hypothesis looks for a sequence in which the two differ, and prints the shortest.
"""

from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, IntegrityError, transaction
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

from marketplace.errors import IllegalTransition, StaleTransition
from marketplace.models import SellerTransfer
from marketplace.states import ALLOWED_TRANSITIONS, TransferStatus
from tests.factories import SellerTransferFactory

AMOUNT = 3
T = TransferStatus
WAITING = {T.PENDING, T.FAILED, T.REVERSAL_PENDING}
NEVER_SENT = {T.PENDING, T.FAILED, T.CANCELED}
NOTHING_BACK = NEVER_SENT | {T.COMPLETED}
BY = {"actor": "machine", "reason": "a step"}
anywhere = st.sampled_from(sorted(TransferStatus))
taken_back = st.integers(0, AMOUNT)


class Transfer(RuleBasedStateMachine):
    """``self.status``, ``self.back`` and so on are the model; ``SellerTransfer`` is asked to agree."""

    @initialize()
    def begin(self) -> None:
        # What one example writes, the next must not see.
        self.outer = transaction.atomic()
        self.outer.__enter__()
        self.pk = SellerTransferFactory(amount=AMOUNT).pk
        self.status, self.back, self.is_sent, self.is_due = T.PENDING, 0, False, True
        self.lease: UUID | None = None
        self.path = [T.PENDING]
        self.old_copies = [self.read()]

    def teardown(self) -> None:
        if hasattr(self, "outer"):
            transaction.set_rollback(True)
            self.outer.__exit__(None, None, None)

    def read(self) -> SellerTransfer:
        return SellerTransfer.objects.get(pk=self.pk)

    # --- Steps --------------------------------------------------------------------------------------------------------

    @rule(to=anywhere, back=taken_back, sent=st.booleans(), due=st.booleans())
    def step(self, to: TransferStatus, back: int, sent: bool, due: bool) -> None:
        """With any columns: what is not listed is refused before any SQL, what is not true by the database."""
        self._step(self.read(), to, back=back, sent=sent or self.is_sent, due=due)

    @rule(data=st.data())
    def listed_step(self, data: st.DataObject) -> None:
        """One that should go well, so that far states are reached often."""
        listed = sorted(ALLOWED_TRANSITIONS[self.status])
        if not listed:
            return
        to = data.draw(st.sampled_from(listed))
        back = {T.REVERSED: AMOUNT, T.PARTIALLY_REVERSED: min(self.back + 1, AMOUNT - 1)}.get(to, self.back)
        self._step(self.read(), to, back=back, sent=self.is_sent or to not in NEVER_SENT, due=to in WAITING)

    @rule(data=st.data(), to=anywhere)
    def step_of_an_old_copy(self, data: st.DataObject, to: TransferStatus) -> None:
        """Somebody read the row earlier, and acts on what it was."""
        copy = data.draw(st.sampled_from(self.old_copies))
        self._step(copy, to, back=self.back, sent=self.is_sent, due=to in WAITING)

    def _step(
        self, row: SellerTransfer, to: TransferStatus, *, back: int, sent: bool, due: bool, held_by: UUID | None = None
    ) -> None:
        fields: dict[str, Any] = {
            "amount_reversed": back,
            "stripe_reversal_id": "trr_machine" if back else "",
            "stripe_transfer_id": f"tr_{self.pk}" if sent else "",
            "next_retry_at": Now() if due else None,
        }
        seen = TransferStatus(row.status)
        expected: type[Exception] | None = None
        if to not in ALLOWED_TRANSITIONS[seen]:
            expected = IllegalTransition
        elif seen != self.status or (held_by is not None and held_by != self.lease):
            expected = StaleTransition
        elif not self._is_true(to, back=back, sent=sent, due=due):
            expected = IntegrityError
        raised: type[Exception] | None = None
        try:
            with transaction.atomic():
                row.transition(to, **BY, held_by=held_by, **fields)
        except (IllegalTransition, StaleTransition, IntegrityError) as error:
            raised = type(error)
        assert raised is expected, f"{seen} to {to}, while it is {self.status}"
        if raised is None:
            assert row.status == to
            self.old_copies.append(self.read())
            self.status, self.back, self.is_sent, self.is_due = to, back, sent, due
            self.path.append(to)

    @staticmethod
    def _is_true(status: TransferStatus, *, back: int, sent: bool, due: bool) -> bool:
        return (
            (status == T.REVERSED) == (back == AMOUNT)
            and (status != T.PARTIALLY_REVERSED or back > 0)
            and (status not in NOTHING_BACK or back == 0)
            and (back == 0 or sent)
            and not (status in NEVER_SENT and sent)
            and (status not in WAITING or due)
        )

    # --- Past transition() --------------------------------------------------------------------------------------------

    @rule(to=anywhere)
    def status_by_sql(self, to: TransferStatus) -> None:
        if to == self.status or to in ALLOWED_TRANSITIONS[self.status]:
            return
        with pytest.raises(DatabaseError, match="transition"), transaction.atomic():
            SellerTransfer.objects.filter(pk=self.pk).update(status=to)

    @precondition(lambda self: self.is_sent)
    @rule(amount=st.sampled_from([AMOUNT - 1, AMOUNT + 1]))
    def another_amount_once_it_was_sent(self, amount: int) -> None:
        with pytest.raises(DatabaseError, match="Cannot update"), transaction.atomic():
            SellerTransfer.objects.filter(pk=self.pk).update(amount=amount)

    @precondition(lambda self: self.is_sent)
    @rule()
    def another_transfer_id(self) -> None:
        with pytest.raises(DatabaseError, match="Cannot update"), transaction.atomic():
            SellerTransfer.objects.filter(pk=self.pk).update(stripe_transfer_id="tr_another")

    @rule()
    def delete(self) -> None:
        with pytest.raises(DatabaseError), transaction.atomic():
            SellerTransfer.objects.filter(pk=self.pk)._raw_delete("default")  # type: ignore[attr-defined]

    # --- Leases -------------------------------------------------------------------------------------------------------

    @rule()
    def claim(self) -> None:
        self.lease = uuid4()
        SellerTransfer.objects.filter(pk=self.pk).update(lease_token=self.lease, lease_expires_at=Now())

    @precondition(lambda self: self.lease is not None)
    @rule(data=st.data(), is_ours=st.booleans())
    def step_under_a_lease(self, data: st.DataObject, is_ours: bool) -> None:
        to = data.draw(anywhere)
        token = self.lease if is_ours else uuid4()
        back = {T.REVERSED: AMOUNT, T.PARTIALLY_REVERSED: min(self.back + 1, AMOUNT - 1)}.get(to, self.back)
        sent = self.is_sent or to not in NEVER_SENT
        self._step(self.read(), to, back=back, sent=sent, due=to in WAITING, held_by=token)

    # --- What must hold after each ------------------------------------------------------------------------------------

    @invariant()
    def the_row_is_as_the_model_says(self) -> None:
        if not hasattr(self, "pk"):
            return
        row = self.read()
        assert (row.status, row.amount_reversed, bool(row.stripe_transfer_id), row.next_retry_at is not None) == (
            self.status,
            self.back,
            self.is_sent,
            self.is_due,
        )
        assert row.lease_token == self.lease

    @invariant()
    def the_history_tells_every_step(self) -> None:
        if not hasattr(self, "pk"):
            return
        history = list(self.read().history.order_by("pgh_id"))
        assert [each.status for each in history] == self.path
        assert all(each.pgh_context["actor"] == "machine" for each in history[1:])


@pytest.mark.django_db
def test_a_transfer_goes_where_it_may_and_nowhere_else() -> None:
    run_state_machine_as_test(Transfer, settings=settings(max_examples=40, stateful_step_count=25))
