"""A seller's line: who is woken when money came, in which order, and whose balance is looked at."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.errors import StaleTransition
from marketplace.gateway.contract import (
    BalanceFacts,
    BalanceRetrieved,
    Busy,
    Denied,
    NotFound,
    Postponed,
    RateLimited,
    Refused,
    ServerError,
    Unknown,
)
from marketplace.models import BalanceWatch, Seller, SellerTransfer, TransferReversal
from marketplace.services import funds, leases, outcomes, reversal_claims
from marketplace.states import TransferStatus
from tests.factories import SellerFactory, SellerTransferFactory, TransferReversalFactory
from tests.lines import check_is_due, due, seconds_until_check, wait

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR = 3600


@pytest.fixture
def seller(db: None) -> Seller:
    return SellerFactory()


def arrived(seller: Seller, seen_at: datetime = NOON, **available: int) -> int:
    return funds.arrived(seller, available, seen_at=seen_at)


# --- Who is woken -----------------------------------------------------------------------------------------------------


def test_all_are_due_at_once_where_the_balance_covers_them(seller: Seller) -> None:
    line = [wait(seller, 3000), wait(seller, 2000)]
    assert arrived(seller, eur=5000) == 2
    assert due(line) == [True, True]


def test_the_longest_waiting_come_first_and_no_more_than_the_balance_covers(seller: Seller) -> None:
    line = [wait(seller, 2000, minutes=minutes) for minutes in (10, 30, 20, 40)]
    assert arrived(seller, eur=5999) == 2
    assert due(line) == [False, True, False, True]


def test_of_those_that_wait_equally_long_the_first_written_is_first(seller: Seller) -> None:
    line = [wait(seller, 2000) for _ in range(3)]
    TransferReversal.objects.update(waiting_for_funds_since=NOON)
    arrived(seller, eur=4000)
    assert due(line) == [True, True, False]


def test_the_head_is_tried_wherever_there_is_anything_and_nobody_passes_it(seller: Seller) -> None:
    line = [wait(seller, 9000, minutes=20), wait(seller, 1, minutes=10)]
    assert arrived(seller, eur=1) == 1
    assert due(line) == [True, False]


@pytest.mark.parametrize("available", [{}, {"eur": 0}, {"eur": -1}, {"eur": -9000, "jpy": 0}])
def test_nobody_is_woken_for_nothing(seller: Seller, available: dict[str, int]) -> None:
    line = [wait(seller, 2000), wait(seller, 1)]
    assert arrived(seller, **available) == 0
    assert due(line) == [False, False]


def test_each_currency_has_its_own_line(seller: Seller) -> None:
    euros = [wait(seller, 2000, minutes=50), wait(seller, 2000, minutes=40)]
    yen = [wait(seller, 500, minutes=30, currency="jpy"), wait(seller, 500, minutes=20, currency="jpy")]
    assert arrived(seller, eur=0, jpy=1000) == 2
    assert due(euros) == [False, False]
    assert due(yen) == [True, True]


def test_where_the_currency_is_not_listed_stripe_converts_and_the_head_is_tried(seller: Seller) -> None:
    line = [wait(seller, 2000, minutes=20), wait(seller, 1, minutes=10)]
    assert arrived(seller, usd=9000, jpy=-5) == 1
    assert due(line) == [True, False]


def test_an_amount_beyond_any_integer_of_the_database_is_enough_for_all(seller: Seller) -> None:
    line = [wait(seller, 2000), wait(seller, 2**62)]
    arrived(seller, eur=2**64)
    assert due(line) == [True, True]


def test_other_sellers_are_left_alone(seller: Seller) -> None:
    other = wait(SellerFactory(), 1)
    wait(seller, 2000)
    assert arrived(seller, eur=5000) == 1
    assert due([other]) == [False]


def test_those_that_are_due_or_in_hand_keep_their_place_and_are_not_touched(seller: Seller) -> None:
    past = timezone.now() - timedelta(minutes=1)
    lease: dict[str, Any] = {"lease_token": "11111111-2222-4333-8444-555555555555", "lease_expires_at": past}
    in_hand = wait(seller, 1000, minutes=50, next_retry_at=past, **lease)
    is_due = wait(seller, 1000, minutes=40, next_retry_at=past)
    first, second = wait(seller, 1000, minutes=30), wait(seller, 1000, minutes=20)
    before = {row.pk: row.updated_at for row in SellerTransfer.objects.all()}
    assert arrived(seller, eur=3999) == 1
    assert due([first, second]) == [True, False]
    for untouched in (in_hand, is_due):
        untouched.refresh_from_db()
        assert (untouched.next_retry_at, untouched.updated_at) == (past, before[untouched.pk])


def test_a_row_in_hand_is_not_touched_whenever_it_is_due(seller: Seller) -> None:
    lease: dict[str, Any] = {
        "lease_token": "11111111-2222-4333-8444-555555555555",
        "lease_expires_at": timezone.now() + timedelta(minutes=5),
    }
    transfer = wait(seller, 1000, **lease)
    assert arrived(seller, eur=1000) == 0
    funds.next_in_line(done(seller))
    assert due([transfer]) == [False]


def test_a_second_word_of_the_same_money_wakes_nobody_else(seller: Seller) -> None:
    line = [wait(seller, 2000, minutes=minutes) for minutes in (30, 20, 10)]
    assert [arrived(seller, eur=4000), arrived(seller, eur=4000)] == [2, 0]
    assert due(line) == [True, True, False]


def test_what_is_owed_first_counts_not_the_whole_transfer(seller: Seller) -> None:
    transfer = wait(seller, 5000, minutes=20, reversal=False)
    TransferReversalFactory(transfer=transfer, amount=1000)
    TransferReversalFactory(transfer=transfer, amount=4000, cause=TransferReversal.Cause.OPERATOR, refund=None)
    behind = wait(seller, 1000, minutes=10)
    arrived(seller, eur=2000)
    assert due([transfer, behind]) == [True, True]


@pytest.mark.parametrize(
    "fields",
    [{"last_error_code": "unknown"}, {"last_error_code": "pending_at_stripe"}, {"last_error_code": ""}],
    ids=lambda fields: fields["last_error_code"] or "none",
)
def test_who_waits_for_something_else_is_left_alone_and_has_no_place(seller: Seller, fields: dict[str, Any]) -> None:
    other = wait(seller, 9000, minutes=90, **fields)
    assert not funds.is_waited_for(seller)
    line = [wait(seller, 1000, minutes=60), wait(seller, 1000, minutes=30)]
    assert arrived(seller, eur=2000) == 2
    assert due([other, *line]) == [False, True, True]


def test_a_transfer_that_waits_for_our_own_balance_is_left_alone(seller: Seller) -> None:
    ours = SellerTransferFactory(
        seller=seller,
        failed=True,
        last_error_code="insufficient_funds",
        next_retry_at=timezone.now() + timedelta(hours=1),
    )
    assert arrived(seller, eur=5000) == 0
    assert due([ours]) == [False]
    assert not funds.is_waited_for(seller)


def test_being_woken_changes_nothing_but_the_time(seller: Seller) -> None:
    transfer = wait(seller, 2000, retry_count=3)
    events = transfer.history.count()
    arrived(seller, eur=5000)
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSAL_PENDING, 3)
    assert (transfer.last_error_code, transfer.lease_token) == ("insufficient_funds", None)
    assert transfer.reversals.get().look_first
    assert transfer.history.count() == events


@pytest.mark.django_db(transaction=True)
def test_a_woken_transfer_announces_itself() -> None:
    seller = SellerFactory()
    wait(seller, 2000)
    with listening("veza_reversals") as heard:
        assert heard() == []
        arrived(seller, eur=1)
        assert heard() == ["0"]
        arrived(seller, eur=1)
        assert heard() == []


# --- What Stripe said -------------------------------------------------------------------------------------------------


def kept(seller: Seller) -> tuple[dict[str, int], datetime | None]:
    found = BalanceWatch.objects.get(seller=seller)
    return found.available, found.seen_at


def test_the_newest_word_on_a_balance_is_kept(seller: Seller) -> None:
    wait(seller, 2000)
    arrived(seller, eur=-7, jpy=3)
    assert kept(seller) == ({"eur": -7, "jpy": 3}, NOON)
    arrived(seller, eur=8)
    assert kept(seller) == ({"eur": 8}, NOON)
    later = NOON + timedelta(seconds=1)
    arrived(seller, later, eur=9)
    assert kept(seller) == ({"eur": 9}, later)


def test_the_word_on_one_sellers_balance_says_nothing_of_anothers(seller: Seller) -> None:
    other = SellerFactory()
    arrived(other, NOON - timedelta(days=1), eur=5)
    arrived(seller, eur=8)
    assert kept(other) == ({"eur": 5}, NOON - timedelta(days=1))


def test_an_older_word_is_not_kept_and_may_wake_all_the_same(seller: Seller) -> None:
    line = [wait(seller, 2000)]
    arrived(seller, eur=0)
    assert arrived(seller, NOON - timedelta(seconds=1), eur=5000) == 1
    assert kept(seller) == ({"eur": 0}, NOON)
    assert due(line) == [True]


# --- Watching ---------------------------------------------------------------------------------------------------------


def test_a_watched_seller_is_due_after_the_interval(seller: Seller, settings: Any) -> None:
    settings.REVERSAL_BALANCE_CHECK_INTERVAL = timedelta(minutes=20)
    funds.watch(seller.pk)
    watch = BalanceWatch.objects.get()
    assert (watch.seller, watch.available, watch.seen_at, watch.lease_token) == (seller, {}, None, None)
    until = seconds_until_check(seller)
    assert until is not None
    assert 1190 < until <= 1200


def test_a_check_that_is_due_already_is_not_put_off(seller: Seller) -> None:
    funds.watch(seller.pk)
    due_at = timezone.now() + timedelta(minutes=3)
    BalanceWatch.objects.update(next_retry_at=due_at, available={"eur": 5}, seen_at=NOON)
    funds.watch(seller.pk)
    assert BalanceWatch.objects.get().next_retry_at == due_at
    assert kept(seller) == ({"eur": 5}, NOON)


def test_a_watch_that_had_ended_begins_again(seller: Seller) -> None:
    funds.watch(seller.pk)
    BalanceWatch.objects.update(next_retry_at=None)
    funds.watch(seller.pk)
    until = seconds_until_check(seller)
    assert until is not None
    assert HOUR - 10 < until <= HOUR


@pytest.mark.django_db(transaction=True)
def test_a_watch_announces_itself_once() -> None:
    seller = SellerFactory()
    with listening(funds.CHANNEL) as heard:
        funds.watch(seller.pk)
        funds.watch(seller.pk)
        assert heard() == [str(HOUR * 1000)]


# --- The line goes on -------------------------------------------------------------------------------------------------


def done(seller: Seller, currency: str = "eur") -> SellerTransfer:
    return SellerTransferFactory(seller=seller, reversed=True, currency=currency)


def test_after_a_success_the_longest_waiting_is_next(seller: Seller) -> None:
    line = [wait(seller, 9000, minutes=minutes) for minutes in (10, 30, 20)]
    funds.next_in_line(done(seller))
    assert due(line) == [False, True, False]


def test_after_a_success_nobody_else_is_woken_while_the_next_is_under_way(seller: Seller) -> None:
    line = [wait(seller, 9000, minutes=minutes) for minutes in (30, 20)]
    for _ in range(2):
        funds.next_in_line(done(seller))
    assert due(line) == [True, False]
    (claimed,) = reversal_claims.claim(batch_size=9, lease=timedelta(minutes=5))
    funds.next_in_line(done(seller))
    assert claimed.transfer.pk == line[0].pk
    assert due(line) == [True, False]


def test_only_the_same_sellers_line_in_the_same_currency_goes_on(seller: Seller) -> None:
    others = [wait(seller, 1, currency="jpy"), wait(SellerFactory(), 1)]
    funds.next_in_line(done(seller))
    assert due(others) == [False, False]


def test_a_success_with_nobody_behind_it_wakes_nobody(seller: Seller) -> None:
    funds.next_in_line(done(seller))
    assert not BalanceWatch.objects.exists()


# --- The check's answer -----------------------------------------------------------------------------------------------


@pytest.fixture
def claimed(seller: Seller) -> BalanceWatch:
    """A check in hand of a seller for whose 2000 euro cents a transfer waits."""
    wait(seller, 2000)
    funds.watch(seller.pk)
    return claim(seller)


def claim(seller: Seller, lease: timedelta = timedelta(minutes=5)) -> BalanceWatch:
    check_is_due(seller)
    (found,) = leases.claim(BalanceWatch, due=funds.DUE.condition, batch_size=9, lease=lease)
    return found


def retrieved(**available: int) -> BalanceRetrieved:
    return BalanceRetrieved(balance=BalanceFacts(available=available))


def test_a_check_wakes_the_line_and_is_due_again_after_the_interval(seller: Seller, claimed: BalanceWatch) -> None:
    funds.settle(claimed, retrieved(eur=2000))
    assert due(SellerTransfer.objects.all()) == [True]
    watch = BalanceWatch.objects.get()
    assert (watch.available, watch.seen_at) == ({"eur": 2000}, claimed.claimed_at)
    assert (watch.lease_token, watch.lease_expires_at, watch.last_error_code) == (None, None, "")
    until = seconds_until_check(seller)
    assert until is not None
    assert HOUR - 10 < until <= HOUR


def test_a_check_after_which_nothing_waits_is_the_last(seller: Seller, claimed: BalanceWatch) -> None:
    SellerTransfer.objects.update(last_error_code="unknown")
    funds.settle(claimed, retrieved(eur=2000))
    assert seconds_until_check(seller) is None


@pytest.mark.parametrize(
    "failure",
    [
        Unknown(message="no answer"),
        ServerError(message="oops"),
        Busy(message="busy"),
        RateLimited(message="too many"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_check_without_an_answer_spends_nothing_and_comes_again(
    seller: Seller, claimed: BalanceWatch, failure: Any
) -> None:
    funds.settle(claimed, failure)
    watch = BalanceWatch.objects.get()
    assert (watch.retry_count, watch.lease_token, watch.last_error_message) == (0, None, failure.message)
    assert watch.last_error_at is not None
    until = seconds_until_check(seller)
    assert until is not None
    assert HOUR - 10 < until <= HOUR
    assert due(SellerTransfer.objects.all()) == [False]


def test_an_error_is_forgotten_once_stripe_answers(seller: Seller, claimed: BalanceWatch) -> None:
    funds.settle(claimed, Unknown(message="no answer", request_id="req_1"))
    funds.settle(claim(seller), retrieved(eur=0))
    watch = BalanceWatch.objects.get()
    assert (watch.last_error_code, watch.last_error_message, watch.last_error_request_id) == ("", "", "")
    assert watch.last_error_at is None


def test_a_check_that_was_not_sent_comes_again_when_it_may(seller: Seller, claimed: BalanceWatch) -> None:
    funds.settle(claimed, Postponed(message="too many requests wait", seconds=5))
    until = seconds_until_check(seller)
    assert until is not None
    assert 0 < until <= 5


@pytest.mark.parametrize(
    "refusal",
    [
        NotFound(message="no such account"),
        Refused(message="closed", code="account_closed"),
        Denied(message="access may have been revoked", forbidden=True),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
def test_a_balance_that_we_may_not_read_is_asked_for_no_more_until_a_reversal_waits_again(
    seller: Seller, claimed: BalanceWatch, refusal: Any
) -> None:
    funds.settle(claimed, refusal)
    watch = BalanceWatch.objects.get()
    assert (watch.next_retry_at, watch.lease_token, watch.last_error_message) == (None, None, refusal.message)
    funds.watch(seller.pk)
    assert seconds_until_check(seller) is not None


def test_a_refused_key_leaves_the_check_as_due_as_it_was(seller: Seller, claimed: BalanceWatch) -> None:
    funds.settle(claimed, Denied(message="invalid key"))
    watch = BalanceWatch.objects.get()
    assert (watch.next_retry_at, watch.lease_token) == (claimed.next_retry_at, None)
    assert watch.last_error_code == "denied"


def test_an_error_of_our_own_leaves_this_check_out(seller: Seller, claimed: BalanceWatch) -> None:
    funds.settle_unexpected(claimed, ZeroDivisionError("a bug"))
    watch = BalanceWatch.objects.get()
    assert (watch.last_error_code, watch.last_error_message) == ("unexpected_error", "ZeroDivisionError: a bug")
    until = seconds_until_check(seller)
    assert until is not None
    assert HOUR - 10 < until <= HOUR


def test_a_check_not_made_ends_the_watch_only_where_nothing_waits(seller: Seller, claimed: BalanceWatch) -> None:
    funds.settle_unasked(claimed)
    assert seconds_until_check(seller) is not None
    SellerTransfer.objects.update(last_error_code="")
    funds.settle_unasked(claim(seller))
    assert seconds_until_check(seller) is None


@pytest.mark.parametrize(
    "late",
    [
        lambda claimed: funds.settle(claimed, retrieved(eur=5000)),
        lambda claimed: funds.settle(claimed, Unknown(message="no answer")),
        funds.settle_unasked,
        lambda claimed: funds.settle_unexpected(claimed, ValueError()),
    ],
    ids=["answer", "failure", "unasked", "unexpected"],
)
def test_who_lost_the_lease_changes_nothing(seller: Seller, late: Callable[[BalanceWatch], None]) -> None:
    line = [wait(seller, 2000)]
    funds.watch(seller.pk)
    lost = claim(seller, lease=timedelta(0))
    claim(seller)
    before = BalanceWatch.objects.values().get()
    with pytest.raises(StaleTransition):
        late(lost)
    assert BalanceWatch.objects.values().get() == before
    assert due(line) == [False]


def test_an_answer_is_not_written_inside_somebodys_transaction(transactional_db: None) -> None:
    seller = SellerFactory()
    funds.watch(seller.pk)
    claimed = claim(seller)
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        funds.settle(claimed, retrieved())


# --- Several at once --------------------------------------------------------------------------------------------------


class Thread:
    """Runs ``act`` at once, on a connection of its own."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self._pid = 0
        self._is_connected = threading.Event()
        with_one = ThreadPoolExecutor(max_workers=1)
        self._future = with_one.submit(self._run)
        with_one.shutdown(wait=False)
        assert self._is_connected.wait(timeout=10)

    def _run(self) -> Any:
        try:
            self._pid = connection_pid()
            self._is_connected.set()
            return self._act()
        finally:
            connections.close_all()

    def is_held_up_by(self, pid: int) -> bool:
        """Whether it comes to wait for a lock that ``pid`` has, rather than to its end."""
        while wait_for([self._future], timeout=0.01).not_done:
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s = ANY (pg_blocking_pids(%s))", [pid, self._pid])
                if cursor.fetchone()[0]:
                    return True
        return False

    def finish(self) -> Any:
        """What it returned, or raised."""
        return self._future.result(timeout=20)


def connection_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        found: int = cursor.fetchone()[0]
    return found


@contextmanager
def listening(channel: str) -> Iterator[Callable[[], list[str]]]:
    """The payloads heard since the last call, on a connection of its own."""
    params = connection.get_connection_params()
    plain = {name: params[name] for name in params.keys() & {"host", "port", "user", "password", "dbname"}}
    with psycopg.connect(**plain, autocommit=True) as own:
        own.execute(f"LISTEN {channel}")

        def heard() -> list[str]:
            # What was committed before a statement has been delivered with its answer.
            own.execute("SELECT 1")
            return [notified.payload for notified in own.notifies(timeout=0)]

        yield heard


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("amounts", [(2000, 4000), (4000, 2000), (3000, 3000)])
def test_two_words_at_once_wake_no_farther_than_the_larger_reaches(
    unblocked_database: None, amounts: tuple[int, int]
) -> None:
    seller = SellerFactory()
    line = [wait(seller, 1000, minutes=60 - number) for number in range(8)]
    together = threading.Barrier(2)

    def say(amount: int) -> int:
        together.wait(timeout=10)
        with transaction.atomic():
            return arrived(seller, eur=amount)

    threads = [Thread(lambda amount=amount: say(amount)) for amount in amounts]  # type: ignore[misc]
    assert sum(thread.finish() for thread in threads) == max(amounts) // 1000
    reached = max(amounts) // 1000
    assert due(line) == [True] * reached + [False] * (8 - reached)


@pytest.mark.django_db(transaction=True)
def test_an_event_and_a_check_at_once_each_finish_and_wake_the_line_once(unblocked_database: None) -> None:
    seller = SellerFactory()
    line = [wait(seller, 1000, minutes=60 - number) for number in range(4)]
    funds.watch(seller.pk)
    claimed = claim(seller)
    together = threading.Barrier(2)

    def event() -> None:
        together.wait(timeout=10)
        with transaction.atomic():
            arrived(seller, eur=2500)

    def check() -> None:
        together.wait(timeout=10)
        funds.settle(claimed, retrieved(eur=2500))

    threads = [Thread(event), Thread(check)]
    for thread in threads:
        thread.finish()
    assert due(line) == [True, True, False, False]
    assert BalanceWatch.objects.get().available == {"eur": 2500}


@pytest.mark.django_db(transaction=True)
def test_money_that_comes_while_a_refund_writes_into_the_line_waits_for_it_and_wakes_all(
    unblocked_database: None,
) -> None:
    seller = SellerFactory()
    line = [wait(seller, 1000, minutes=20), wait(seller, 1000, minutes=10)]
    with transaction.atomic():
        SellerTransfer.locked(line[0].pk).change(reason="more is owed", actor="test")
        mine = connection_pid()
        event = Thread(lambda: arrived(seller, eur=2000))
        assert event.is_held_up_by(mine)
    assert event.finish() == 2
    assert due(line) == [True, True]


@pytest.mark.django_db(transaction=True)
def test_a_success_does_not_wait_for_a_row_that_somebody_else_holds(unblocked_database: None) -> None:
    seller = SellerFactory()
    head = wait(seller, 1000)
    with transaction.atomic():
        SellerTransfer.locked(head.pk)
        mine = connection_pid()
        success = Thread(lambda: funds.next_in_line(done(seller)))
        assert not success.is_held_up_by(mine)
        success.finish()
    assert due([head]) == [False]


@pytest.mark.django_db(transaction=True)
def test_a_transfer_that_begins_to_wait_while_the_watch_ends_is_watched(unblocked_database: None) -> None:
    seller = SellerFactory()
    funds.watch(seller.pk)
    claimed = claim(seller)
    with transaction.atomic():
        wait(seller, 1000)
        funds.watch(seller.pk)
        mine = connection_pid()
        check = Thread(lambda: funds.settle_unasked(claimed))
        assert check.is_held_up_by(mine)
    check.finish()
    assert seconds_until_check(seller) is not None


@pytest.mark.django_db(transaction=True)
def test_a_transfer_that_begins_to_wait_when_the_watch_has_just_ended_is_watched(unblocked_database: None) -> None:
    seller = SellerFactory()
    funds.watch(seller.pk)
    claimed = claim(seller)
    with transaction.atomic():
        leases.held(BalanceWatch, claimed.pk, claimed.lease_token)
        mine = connection_pid()
        begins = Thread(lambda: funds.watch(seller.pk))
        assert begins.is_held_up_by(mine)
        funds._go_on(claimed, outcomes.CLEARED_ERROR)
    begins.finish()
    assert seconds_until_check(seller) is not None


@pytest.mark.django_db(transaction=True)
def test_settling_and_arriving_from_both_ends_of_a_line_do_not_deadlock(unblocked_database: None) -> None:
    """One holds the last of the line and then the watch; the other comes from the first."""
    seller = SellerFactory()
    first, last = wait(seller, 1000, minutes=20), wait(seller, 1000, minutes=10)
    funds.watch(seller.pk)
    with transaction.atomic():
        SellerTransfer.locked(last.pk).change(reason="insufficient funds", actor="test", last_error_at=Now())
        mine = connection_pid()
        event = Thread(lambda: arrived(seller, eur=2000))
        assert event.is_held_up_by(mine)
        funds.next_in_line(last)
        funds.watch(seller.pk)
    event.finish()
    assert due([first, last]) == [True, True]
