"""What holds a transfer back, one after the other: each kind with its sentence, its time and its reason."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.utils import timezone

from marketplace import throttle
from marketplace.admin.why import COLOURS
from marketplace.explain import causes, runbook, transfers
from marketplace.explain.shapes import Explanation, Kind
from marketplace.models import (
    GIVE_BACK_UNDECIDED,
    BalanceWatch,
    CircuitBreaker,
    RequestAllowance,
    SellerTransfer,
    TransferReversal,
)
from marketplace.services import outcomes, reversal_settling
from marketplace.states import TransferStatus
from marketplace.workers.heartbeat import Heartbeat
from tests.docs.test_runbook import PAGE
from tests.factories import DisputeFactory, SellerTransferFactory, TransferReversalFactory

pytestmark = pytest.mark.django_db

QUARTER = timedelta(minutes=15)


@pytest.fixture(autouse=True)
def _defaults(settings: LazySettings) -> None:
    settings.REVERSAL_MAX_RETRIES = settings.TRANSFER_RETRY_MAX_RETRIES = 5
    settings.REVERSAL_BACKOFF_BASE = settings.TRANSFER_RETRY_BACKOFF_BASE = timedelta(minutes=1)
    settings.REVERSAL_BACKOFF_MAX = settings.TRANSFER_RETRY_BACKOFF_MAX = timedelta(hours=1)
    settings.STRIPE_MAX_REQUESTS_PER_SECOND = 20


@pytest.fixture
def workers(db: None) -> None:
    Heartbeat("both", ["reversal", "transfer"], concurrency=4).beat(in_hand=0)


def reversing(**columns: Any) -> SellerTransfer:
    return changed(SellerTransferFactory(reversal_pending=True), **columns)


def sending(**columns: Any) -> SellerTransfer:
    return changed(SellerTransferFactory(failed=True), **columns)


def changed(transfer: SellerTransfer, **columns: Any) -> SellerTransfer:
    if columns:
        SellerTransfer.objects.filter(pk=transfer.pk).update(**columns)
    return SellerTransfer.objects.get(pk=transfer.pk)


def failed_with(code: str, **columns: Any) -> dict[str, Any]:
    return {
        "last_error_code": code,
        "last_error_message": "as Stripe said it",
        "last_error_at": timezone.now(),
        "next_retry_at": timezone.now() + QUARTER,
        **columns,
    }


def open_breaker(work: str) -> None:
    throttle.failed(work, channel="c", whom="seller 1", everyone=True, is_probe=False, error="unknown: 503")


def told(explanation: Explanation) -> str:
    return "\n".join([explanation.cause, explanation.unblocks, *explanation.notes])


# --- In motion --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("make", [reversing, sending, SellerTransferFactory])
def test_due_and_alone(make: Any) -> None:
    transfer = make()

    found = transfers.explain(transfer if transfer.status != "pending" else changed(transfer))

    assert found.kind == Kind.QUEUED
    assert found.next_attempt is not None
    assert found.next_attempt.why == "it is due: nothing is before it"
    assert found.since == found.next_attempt.at <= found.now


@pytest.mark.usefixtures("workers")
def test_due_behind_others(settings: LazySettings) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    for _ in range(2):
        reversing(next_retry_at=long_ago)
    sending(next_retry_at=long_ago)
    reversing(next_retry_at=long_ago, lease_token="0" * 32, lease_expires_at=timezone.now() + QUARTER)
    transfer = reversing()

    found = transfers.explain(transfer).next_attempt
    assert found is not None
    assert found.why == "it is due: 2 rows go before it, at most 20 requests a second"
    settings.STRIPE_MAX_REQUESTS_PER_SECOND = 0
    again = transfers.explain(transfer).next_attempt
    assert again is not None
    assert again.why == "it is due: 2 rows go before it"


@pytest.mark.usefixtures("workers")
def test_more_than_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.explain.surroundings.MOST_COUNTED", 1)
    monkeypatch.setattr(transfers, "MOST_COUNTED", 1)
    for _ in range(2):
        reversing(next_retry_at=timezone.now() - timedelta(hours=1))

    found = transfers.explain(reversing()).next_attempt

    assert found is not None
    assert "1 rows or more go before it" in found.why


@pytest.mark.usefixtures("workers")
def test_the_rate_was_limited_just_now() -> None:
    endpoint = "POST /v1/transfers/{id}/reversals"
    spacing = timedelta(milliseconds=52)
    slowed = RequestAllowance.objects.create(
        endpoint=endpoint, next_free_at=timezone.now(), spacing=spacing, slowed_at=timezone.now()
    )
    transfer = reversing()

    assert "Stripe limited our rate at" in told(transfers.explain(transfer))
    RequestAllowance.objects.filter(pk=slowed.pk).update(slowed_at=timezone.now() - timedelta(minutes=3))
    assert "limited our rate" not in told(transfers.explain(transfer))


@pytest.mark.parametrize("make", [reversing, sending])
def test_in_a_workers_hands(make: Any, settings: LazySettings) -> None:
    settings.REVERSAL_LEASE = timedelta(minutes=5)
    expires = timezone.now() + timedelta(minutes=4)
    transfer = make(lease_token="0" * 32, lease_expires_at=expires)

    found = transfers.explain(transfer)

    assert (found.kind, found.until, found.next_attempt) == (Kind.IN_HAND, expires, None)
    assert found.since == expires - timedelta(minutes=5)


@pytest.mark.usefixtures("workers")
def test_a_lease_that_ended_holds_nothing_back() -> None:
    transfer = reversing(lease_token="0" * 32, lease_expires_at=timezone.now() - timedelta(minutes=1))

    found = transfers.explain(transfer)

    assert found.kind == Kind.QUEUED
    assert "The worker that had it did not come back by" in told(found)


@pytest.mark.parametrize(
    ("make", "switch", "command"),
    [
        (reversing, "REVERSAL_WORKER_ENABLED", "run_reversal_worker"),
        (sending, "TRANSFER_RETRY_ENABLED", "run_transfer_retry_worker"),
    ],
)
@pytest.mark.usefixtures("workers")
def test_switched_off(make: Any, switch: str, command: str, settings: LazySettings) -> None:
    setattr(settings, switch, False)

    found = transfers.explain(make())

    assert found.kind == Kind.SWITCHED_OFF
    assert switch in found.cause
    assert command in found.unblocks
    setattr(settings, switch, True)
    assert transfers.explain(make()).kind == Kind.QUEUED


@pytest.mark.parametrize(("make", "other"), [(reversing, "transfer"), (sending, "reversal")])
def test_nobody_serves_this_queue(make: Any, other: str) -> None:
    Heartbeat("other", [other], concurrency=4).beat(in_hand=0)

    found = transfers.explain(make())

    assert found.kind == Kind.NO_WORKER
    assert found.cause.startswith("Nobody serves this queue")
    assert "Start run_" in found.unblocks


def test_the_worker_stopped_for_our_key() -> None:
    found = transfers.explain(reversing(**failed_with("denied", next_retry_at=timezone.now())))

    assert found.kind == Kind.NO_WORKER
    assert found.cause == causes.OF_CODES["denied"].cause
    assert found.runbook == "`denied`"


@pytest.mark.parametrize(("make", "work"), [(reversing, "reversal"), (sending, "transfer")])
@pytest.mark.usefixtures("workers")
def test_the_breaker_is_open(make: Any, work: str) -> None:
    open_breaker(work)
    breaker = CircuitBreaker.objects.get()

    found = transfers.explain(make())

    assert (found.kind, found.since) == (Kind.BREAKER_OPEN, breaker.opened_at)
    assert found.next_attempt is not None
    assert found.next_attempt.at == breaker.next_probe_at
    assert "unknown: 503" in told(found)
    throttle.succeeded(work)
    assert transfers.explain(make()).kind == Kind.QUEUED


@pytest.mark.usefixtures("workers")
def test_the_other_breaker_holds_nothing_back() -> None:
    open_breaker("transfer")
    assert transfers.explain(reversing()).kind == Kind.QUEUED


# --- Waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("make", [reversing, sending])
@pytest.mark.parametrize("code", ["unknown", "server_error", "unexpected_error"])
def test_backoff_says_which_of_how_many_and_how_long(make: Any, code: str) -> None:
    transfer = make(**failed_with(code, retry_count=3))

    found = transfers.explain(transfer)

    assert found.kind == Kind.BACKOFF
    assert found.cause == causes.OF_CODES[code].cause
    assert found.next_attempt is not None
    # The third failure found two retries spent: 1 min doubled twice.
    assert found.next_attempt.why.startswith("backoff 3 of 5: 4 min after the last answer, less up to 10%")
    assert found.next_attempt.at == transfer.next_retry_at
    assert "2 retries are left." in found.notes


@pytest.mark.usefixtures("workers")
def test_the_last_backoff_says_so() -> None:
    assert (
        "The next failure asks for a person."
        in transfers.explain(reversing(**failed_with("unknown", retry_count=5))).notes
    )


@pytest.mark.usefixtures("workers")
def test_our_own_balance_is_too_small() -> None:
    found = transfers.explain(sending(**failed_with("insufficient_funds", retry_count=1)))

    assert found.kind == Kind.BACKOFF
    assert "platform's own" in found.cause


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("code", ["busy", "rate_limited", "postponed"])
def test_short_waits_spend_nothing(code: str) -> None:
    found = transfers.explain(reversing(**failed_with(code, retry_count=2)))

    assert (found.kind, found.cause) == (Kind.POSTPONED, causes.OF_CODES[code].cause)


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(("hours", "kind"), [(19, Kind.POSTPONED), (21, Kind.KEY_RESTS)])
def test_an_old_key_rests(hours: int, kind: Kind) -> None:
    transfer = reversing(**failed_with("postponed"))
    transfer.reversals.update(first_attempted_at=timezone.now() - timedelta(hours=hours))

    found = transfers.explain(transfer)

    assert found.kind == kind
    assert found.key is not None
    assert found.key.looks_first == (hours > 20)
    assert found.key.age is not None
    assert timedelta(hours=hours) <= found.key.age < timedelta(hours=hours, minutes=1)


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("hours", [1, 21])
def test_what_is_no_longer_owed_rests_before_it_is_dropped_and_takes_no_new_key(hours: int) -> None:
    transfer = reversing(**failed_with("postponed"))
    transfer.reversals.update(first_attempted_at=timezone.now() - timedelta(hours=hours), unwanted_amount=5000)

    found = transfers.explain(transfer)

    assert (found.kind, "is no longer owed" in found.cause) == (Kind.KEY_RESTS, True)
    assert "what is not there is canceled" in found.unblocks


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("unwanted", [0, 5000])
def test_what_the_allowance_postponed_rests_for_seconds_alone(unwanted: int) -> None:
    now = timezone.now()
    transfer = reversing(**failed_with("postponed", last_error_at=now, next_retry_at=now + throttle.LONGEST_WAIT))
    transfer.reversals.update(first_attempted_at=now - timedelta(hours=21), unwanted_amount=unwanted)

    assert transfers.explain(transfer).kind == Kind.POSTPONED


@pytest.mark.usefixtures("workers")
def test_a_key_that_was_never_used_does_not_rest() -> None:
    found = transfers.explain(reversing(**failed_with("postponed")))

    assert found.kind == Kind.POSTPONED
    assert found.key is not None
    assert (found.key.age, found.key.reused_until, found.key.looks_first) == (None, None, False)


@pytest.mark.usefixtures("workers")
def test_pending_at_stripe() -> None:
    found = transfers.explain(reversing(**failed_with("pending_at_stripe")))

    assert found.kind == Kind.PENDING_AT_STRIPE
    assert found.next_attempt is not None
    assert "every 1 h" in found.next_attempt.why


@pytest.mark.usefixtures("workers")
def test_a_time_that_somebody_wrote() -> None:
    found = transfers.explain(reversing(next_retry_at=timezone.now() + QUARTER))

    assert (found.kind, found.since) == (Kind.SCHEDULED, None)


def test_who_would_not_be_served_then_is_told_so() -> None:
    open_breaker("reversal")
    text = told(transfers.explain(reversing(**failed_with("unknown", retry_count=1))))

    assert "No worker lives that would take it up then." in text
    assert "if it still does then, the row waits on" in text


# --- Waiting for a seller's money -------------------------------------------------------------------------------------


def waiting_for_funds(days: int = 3, **more: Any) -> SellerTransfer:
    transfer = changed(SellerTransferFactory(reversal_pending=True, **more), **failed_with("insufficient_funds"))
    transfer.reversals.update(waiting_for_funds_since=timezone.now() - timedelta(days=days))
    return transfer


@pytest.mark.usefixtures("workers")
def test_waiting_for_money_tells_since_when_and_how_long_at_most(settings: LazySettings) -> None:
    settings.REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE = timedelta(days=45)
    settings.REVERSAL_INSUFFICIENT_FUNDS_INTERVAL = timedelta(hours=6)
    transfer = waiting_for_funds()
    since = transfer.reversals.get().waiting_for_funds_since
    assert since is not None

    found = transfers.explain(transfer)

    assert (found.kind, found.since, found.until) == (Kind.WAITING_FOR_FUNDS, since, since + timedelta(days=45))
    assert found.next_attempt is not None
    assert found.next_attempt.at == transfer.next_retry_at
    assert "every 6 h; sooner when money comes" in found.next_attempt.why
    assert "The seller's balance is not looked at" in told(found)


@pytest.mark.usefixtures("workers")
def test_waiting_for_money_tells_what_stripe_last_said_and_when_we_look_again() -> None:
    transfer = waiting_for_funds()
    watch = BalanceWatch.objects.create(seller=transfer.seller, next_retry_at=timezone.now() + QUARTER)
    assert "We have not looked at the seller's balance yet; the next look is at" in told(transfers.explain(transfer))

    BalanceWatch.objects.filter(pk=watch.pk).update(available={"eur": 1234}, seen_at=timezone.now())
    assert "Stripe said that the seller has 12.34 EUR; the next look is at" in told(transfers.explain(transfer))
    BalanceWatch.objects.filter(pk=watch.pk).update(next_retry_at=None)
    assert "12.34 EUR; it is not looked at any more." in told(transfers.explain(transfer))


@pytest.mark.usefixtures("workers")
def test_waiting_for_money_tells_who_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = waiting_for_funds(days=3)
    waiting_for_funds(days=9)
    waiting_for_funds(days=1, seller=transfer.seller)
    waiting_for_funds(days=9, seller=transfer.seller, currency="usd")
    assert "Before it in line" not in told(transfers.explain(transfer))

    waiting_for_funds(days=5, seller=transfer.seller)
    assert "in line for the same seller's money: 1 transfer that waited longer." in told(transfers.explain(transfer))
    monkeypatch.setattr("marketplace.explain.surroundings.MOST_COUNTED", 1)
    monkeypatch.setattr(transfers, "MOST_COUNTED", 1)
    assert "1 transfer or more that waited longer" in told(transfers.explain(transfer))


@pytest.mark.usefixtures("workers")
def test_a_row_of_an_older_version_that_waits_for_money() -> None:
    transfer = changed(
        SellerTransferFactory(reversal_pending=True, reversal=False), **failed_with("insufficient_funds")
    )

    found = transfers.explain(transfer)

    assert (found.kind, found.since, found.until, found.key) == (Kind.WAITING_FOR_FUNDS, None, None, None)


# --- A person ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(causes.OF_CODES))
@pytest.mark.parametrize("trait", ["permanently_failed", "permanently_failed_sending"])
def test_each_code_that_needs_a_person_has_its_sentences(code: str, trait: str) -> None:
    transfer = SellerTransferFactory(**{trait: True}, last_error_code=code, last_error_message="as Stripe said it")

    found = transfers.explain(transfer)

    assert found.kind == Kind.NEEDS_A_PERSON
    assert found.next_attempt is None
    leg = transfer.failed_leg
    assert (found.cause, found.unblocks) == (causes.of_code(code, leg).cause, causes.of_code(code, leg).unblocks)
    assert found.runbook == f"`{code}`"
    assert ("as Stripe said it" in told(found)) == (code != GIVE_BACK_UNDECIDED)


def test_a_code_of_stripes_own_is_a_plain_no() -> None:
    found = transfers.explain(SellerTransferFactory(permanently_failed=True, last_error_code="account_closed"))

    assert "Stripe refused it: account_closed." in found.cause
    assert found.runbook == "Transfer `permanently_failed`"


def test_which_leg_failed_says_who_has_the_money() -> None:
    assert "the seller still has the money" in told(transfers.explain(SellerTransferFactory(permanently_failed=True)))
    sent = told(transfers.explain(SellerTransferFactory(permanently_failed_sending=True)))
    assert "the seller may not be paid" in sent


# The inbox's: no transfer bears them.
OF_EVENTS = {"unknown_order", "unknown_transfer", "not_all_listed"}


def test_every_error_code_of_the_runbook_has_its_sentences() -> None:
    section = PAGE.split("\n## Error codes\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"^### `(\w+)`$", section, flags=re.MULTILINE))

    assert listed - OF_EVENTS == set(causes.OF_CODES) - {GIVE_BACK_UNDECIDED}
    assert set(causes.OF_CODES_SENDING) <= set(causes.OF_CODES)
    assert {*outcomes.CODES.values(), reversal_settling.RETRIES_EXHAUSTED} <= set(causes.OF_CODES)


# --- At rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"completed": True}, "the seller has the money"),
        ({"partially_reversed": True}, "Stripe confirmed that 25.00 EUR of 50.00 EUR came back"),
        ({"reversed": True}, "all of it came back: 50.00 EUR"),
        ({"canceled": True}, "refunded before any money moved"),
    ],
)
def test_at_rest(traits: dict[str, Any], said: str) -> None:
    found = transfers.explain(SellerTransferFactory(**traits))

    assert found.kind == Kind.AT_REST
    assert said in found.cause
    assert (found.next_attempt, found.key, found.runbook) == (None, None, "")
    assert not found.is_in_motion


def test_canceled_for_other_reasons() -> None:
    transfer = SellerTransferFactory(canceled=True)
    transfer.declined = True
    assert "A person decided" in transfers.explain(transfer).cause
    transfer.declined, transfer.amount, transfer.amount_netted = False, 0, 5000
    assert "paid debts of earlier orders" in transfers.explain(transfer).cause


@pytest.mark.parametrize("status", TransferStatus)
def test_every_status_is_explained(status: TransferStatus) -> None:
    transfer = changed(SellerTransferFactory(**({} if status == "pending" else {status.value: True})))

    found = transfers.explain(transfer)

    assert (found.transfer, found.status) == (transfer.pk, status)
    assert found.cause.endswith(".")
    assert found.unblocks.endswith(".")
    assert not found.runbook or found.runbook in runbook.entries()


def test_every_kind_has_a_colour_on_the_page() -> None:
    assert set(COLOURS) == set(Kind)


# --- What is behind it ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("workers")
def test_an_older_debt_of_the_same_transfer_goes_first() -> None:
    transfer = reversing()
    first = transfer.reversals.get()
    TransferReversal.objects.filter(pk=first.pk).update(amount=2000)
    TransferReversalFactory(transfer=transfer, amount=1000, cause="operator", refund=None)

    found = transfers.explain(transfer)

    assert [(each.amount, each.cause, each.is_in_turn) for each in found.owed] == [
        (2000, "refund", True),
        (1000, "operator", False),
    ]
    assert (found.owed[0].refund, found.owed[0].dispute) == (first.refund_id, None)
    assert f"the oldest, reversal {first.pk}, goes first, 1 newer one waits behind it" in told(found)


@pytest.mark.usefixtures("workers")
def test_what_a_dispute_takes_back_names_it() -> None:
    transfer = reversing()
    TransferReversal.objects.filter(transfer=transfer).update(amount=2000)
    dispute = DisputeFactory(order=transfer.order)
    TransferReversalFactory(transfer=transfer, amount=1000, cause="dispute", refund=None, dispute=dispute)

    owed = transfers.explain(transfer).owed[-1]

    assert (owed.refund, owed.dispute, owed.stripe_dispute_id) == (None, dispute.pk, dispute.stripe_dispute_id)


@pytest.mark.usefixtures("workers")
def test_refunded_while_it_was_being_sent() -> None:
    transfer = sending(in_doubt=True)
    TransferReversalFactory(transfer=transfer, amount=1000)

    text = told(transfers.explain(transfer))

    assert "It was refunded meanwhile: 10.00 EUR comes off, or is taken back" in text
    assert "It may have been sent" in text


@pytest.mark.usefixtures("workers")
def test_no_longer_owed_is_only_looked_for() -> None:
    transfer = reversing()
    transfer.reversals.update(unwanted_amount=5000)

    assert "is no longer owed as it was" in told(transfers.explain(transfer))


def test_attempts_come_from_the_history_with_stripes_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "MOST_ATTEMPTS", 2)
    transfer = reversing()
    for number in (1, 2):
        transfer.change(
            actor="worker",
            reason="unknown",
            attempt=number,
            last_error_code="unknown",
            last_error_message="no answer",
            last_error_request_id=f"req_{number}",
            last_error_at=timezone.now() + timedelta(seconds=number),
        )
    transfer.transition(
        TransferStatus.REVERSED,
        actor="worker",
        reason="Stripe confirmed trr_1",
        attempt=3,
        last_error_code="",
        last_error_message="",
        last_error_request_id="",
        next_retry_at=None,
        amount_reversed=transfer.amount,
        stripe_reversal_id="trr_1",
    )

    found = transfers.explain(transfer)

    assert found.attempts_made == 3
    assert [(each.number, each.code, each.answer, each.request_id) for each in found.attempts] == [
        (3, "", "Stripe confirmed trr_1", ""),
        (2, "unknown", "no answer", "req_2"),
    ]


def test_the_key_of_what_failed_is_told() -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    reversal = transfer.reversals.get()

    found = transfers.explain(transfer).key

    assert found is not None
    assert (found.operation_id, found.generation) == (str(reversal.operation_id), 1)
    unsent = SellerTransferFactory(permanently_failed_sending=True)
    key = transfers.explain(unsent).key
    assert key is not None
    assert key.operation_id == str(unsent.operation_id)
