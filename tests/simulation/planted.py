"""Bugs put into the running program on purpose: a simulation that finds none of them would prove nothing.

Each is what somebody could write, and the program does not. ``test_planted.py`` says with which seed it is found.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from django.db import connection, transaction
from django.db.models import QuerySet
from django.test.utils import override_settings

from marketplace import inbox, throttle
from marketplace.errors import StaleTransition
from marketplace.models import Dispute, Order, SellerTransfer, TransferReversal, confirmation, together
from marketplace.services import clawback, debts, disputes, leases, outcomes, reversal_claims, reversals, transfers
from marketplace.shares import Loss
from marketplace.workers import reversal, stripe_queue, transfer_retry


@dataclass(frozen=True)
class Plant:
    what: str
    put: Callable[[], AbstractContextManager[Any]]


PLANTED: dict[str, Plant] = {}


def planted(what: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    def add(put: Callable[[], Iterator[None]]) -> None:
        PLANTED[put.__name__.replace("_", "-")] = Plant(what, contextmanager(put))

    return add


@planted("a new generation of the key is used without looking whether the old one got through")
def no_look() -> Iterator[None]:
    def ask(self: Any, claimed: Any) -> Any:
        if claimed.must_look and not claimed.reversal.stripe_reversal_id:
            claimed = reversal_claims.begin_generation(claimed)
            claimed = replace(claimed, claimed_at=claimed.reversal.first_attempted_at)
        return original(self, claimed)

    original = reversal.ReversalQueue._ask
    with patch.object(reversal.ReversalQueue, "_ask", ask):
        yield


@planted("the idempotency key is made of the transfer and the amount")
def key_from_amount() -> Iterator[None]:
    key = property(lambda self: f"{self.transfer.stripe_transfer_id}:{self.amount}")
    with patch.object(TransferReversal, "idempotency_key", key):
        yield


@planted("settling does not ask whether the lease is still ours")
def settle_without_token() -> Iterator[None]:
    def held(model: Any, pk: Any, _token: Any) -> Any:
        row = model._default_manager.select_for_update(no_key=True).filter(pk=pk).first()
        if row is None:
            raise StaleTransition
        return row

    statement = confirmation._CONFIRM.replace("AND lease_token = %(lease_token)s", "AND %(lease_token)s IS NOT NULL")
    assert statement != confirmation._CONFIRM
    with patch.object(leases, "held", held), patch.object(confirmation, "_CONFIRM", statement):
        yield


@planted("a row is taken off the queue before Stripe is called")
def done_before_call() -> Iterator[None]:
    def ask(self: Any, claimed: Any) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE marketplace_sellertransfer SET next_retry_at = '3000-01-01' WHERE id = %s",
                [claimed.transfer.pk],
            )
        return original(self, claimed)

    original = reversal.ReversalQueue._ask
    with patch.object(reversal.ReversalQueue, "_ask", ask):
        yield


@planted("a lease is shorter than a call may take")
def short_lease() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(override_settings(REVERSAL_LEASE=timedelta(seconds=10)))
        for module in (stripe_queue, reversal, transfer_retry):
            stack.enter_context(patch.object(module, "attempt", lambda: timedelta(seconds=2)))
        yield


@planted("rows are read without being locked")
def no_locks() -> Iterator[None]:
    def ask(*questions: Any) -> Any:
        return original(*((sql.replace(" FOR NO KEY UPDATE", ""), values) for sql, values in questions))

    original = together.ask
    with (
        patch.object(QuerySet, "select_for_update", lambda self, **_: self.all()),
        patch.object(together, "ask", ask),
    ):
        yield


@planted("an operator's retry takes a new key at once")
def retry_with_new_key() -> Iterator[None]:
    def reopen(transfer: Any, **said: Any) -> None:
        original(transfer, **said)
        for owed in reversals.open_reversals(transfer):
            owed.change(actor="planted", reason="planted", key_generation=owed.key_generation + 1, look_first=False)

    original = reversals.reopen
    with patch.object(reversals, "reopen", reopen):
        yield


@planted("a key is used for longer than Stripe remembers it")
def keys_for_ever() -> Iterator[None]:
    with patch.object(outcomes, "KEY_REUSE_WINDOW", timedelta(days=365)):
        yield


@planted("a transfer that is just being sent is not known to be in doubt")
def no_doubt() -> Iterator[None]:
    def claim(*args: Any, also_set: str = "", **more: Any) -> Any:
        return original(*args, also_set=also_set.replace("in_doubt = TRUE", "in_doubt = FALSE"), **more)

    original = leases.claim
    with patch.object(leases, "claim", claim):
        yield


@planted("claims take rows that are in another worker's hands")
def claims_ignore_leases() -> Iterator[None]:
    statement = reversal_claims._CLAIM.replace("lease_expires_at <= statement_timestamp()", "TRUE")
    assert statement != reversal_claims._CLAIM
    with patch.object(reversal_claims, "_CLAIM", statement):
        yield


@planted("an event is marked as taken before it is applied")
def event_marked_first() -> Iterator[None]:
    def receive(event: Any) -> Any:
        with transaction.atomic(durable=True):
            row = inbox._store(event)
        with transaction.atomic(durable=True):
            return inbox._apply(row)

    with patch.object(inbox, "_receive", receive):
        yield


@planted("a look takes any reversal of the same amount for ours")
def found_by_amount() -> Iterator[None]:
    def find(claimed: Any, listed: Any) -> Any:
        return next((facts for facts in listed if facts.amount == claimed.reversal.amount), None)

    with patch.object(reversal_claims, "find", find):
        yield


@planted("a timeout of a send counts as a transfer that was not made")
def timeout_means_no() -> Iterator[None]:
    def try_again(self: Any, error: Any, **fields: Any) -> None:
        if self._keep_back_what_is_owed(error):
            original(self, error, **fields)

    original = transfers._Settlement.try_again
    with patch.object(transfers._Settlement, "try_again", try_again):
        yield


@planted("the breaker never opens")
def no_breaker() -> Iterator[None]:
    with patch.object(throttle, "failed", lambda *_, **__: False):
        yield


@planted("each refund takes its own proportion, whatever came before")
def no_cumulative_targets() -> Iterator[None]:
    def plan(order: Order, losses: Sequence[Loss], holdings: Sequence[clawback.Holding]) -> list[int]:
        total = sum(loss.amount for loss in losses)
        due = []
        for held in holdings:
            rounded = round(held.share * total / order.amount)
            rounded_up = -(-held.share * total // order.amount)
            due.append(max(min((rounded_up if held.taken else rounded) - held.taken, held.share - held.taken), 0))
        return due

    with patch.object(clawback, "plan", plan):
        yield


@planted("what a dispute took is not given back when it is won")
def wins_give_nothing_back() -> Iterator[None]:
    with patch.object(clawback, "OWN", frozenset({TransferReversal.Cause.REFUND})):
        yield


@planted("of a dispute the last event to come is the newest")
def disputes_by_arrival() -> Iterator[None]:
    def age(said: Any, _at: Any) -> int:
        return 0 if isinstance(said, Dispute) else 1

    with patch.object(disputes, "_age", age):
        yield


@planted("what was netted is not owed again where the order that paid it is refunded")
def netting_for_ever() -> Iterator[None]:
    with patch.object(debts, "undo_netting", lambda *_, **__: None):
        yield


__all__ = ["PLANTED", "Plant", "SellerTransfer"]
