"""The request allowance and the circuit breaker: what workers agree on through PostgreSQL."""

import threading
import time
from bisect import bisect_left
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import deadline, throttle
from marketplace.errors import NotNow
from marketplace.gateway import http_client, stripe_api
from marketplace.gateway.contract import (
    REVERSE_ENDPOINT,
    BalanceRetrieved,
    Postponed,
    RateLimited,
    ReversalsListed,
)
from marketplace.models import CircuitBreaker, RequestAllowance
from marketplace.services import leases, reversal_claims
from tests.conftest import plain_parameters
from tests.factories import SellerTransferFactory

REVERSE = "POST /v1/transfers/{id}/reversals"
LIST = "GET /v1/transfers/{id}/reversals"
PATIENCE = 20


# --- The request allowance --------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_no_window_of_a_second_sees_more_than_the_rate_though_two_processes_send(unblocked_database: None) -> None:
    rate, left = 40, []
    allowances = [throttle.RequestAllowance(rate), throttle.RequestAllowance(rate)]

    def send(allowance: throttle.RequestAllowance) -> None:
        for _ in range(15):
            allowance.enter(REVERSE)
            left.append(time.monotonic())
        connections.close_all()

    threads = [threading.Thread(target=send, args=(allowances[number % 2],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    left.sort()
    assert len(left) == 90
    assert max(bisect_left(left, since + 1) - at for at, since in enumerate(left)) <= rate


def late_by(seconds: float) -> Any:
    """Replies of the database come so late."""

    def execute(run: Any, *query: Any) -> Any:
        answer = run(*query)
        threading.Event().wait(seconds)
        return answer

    return connection.execute_wrapper(execute)


@pytest.mark.django_db
def test_a_reply_that_comes_late_shifts_no_turn() -> None:
    slow, quick = throttle.RequestAllowance(20), throttle.RequestAllowance(20)
    for allowance in (slow, quick):
        allowance._reserve(REVERSE, 1)
    RequestAllowance.objects.update(next_free_at=Now() + timedelta(seconds=1))
    with late_by(0.15):
        departures = slow._reserve(REVERSE, 3)
    departures += quick._reserve(REVERSE, 3)
    gaps = [later - earlier for earlier, later in pairwise(departures)]
    assert gaps == pytest.approx([1 / (20 * throttle.UTILISATION)] * 5, abs=0.015)


@pytest.mark.django_db
def test_while_replies_come_late_turns_are_taken_so_far_ahead_that_they_are_of_use() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance._reserve(REVERSE, 1)
    RequestAllowance.objects.update(next_free_at=Now() - timedelta(seconds=1))
    with late_by(0.15):
        (over,) = allowance._reserve(REVERSE, 1)
        assert time.monotonic() - over > throttle.LATEST_DEPARTURE
        (useful,) = allowance._reserve(REVERSE, 1)
        assert time.monotonic() - useful < throttle.LATEST_DEPARTURE
    allowance._reserve(REVERSE, 1)
    RequestAllowance.objects.update(next_free_at=Now() - timedelta(seconds=1))
    (soon,) = allowance._reserve(REVERSE, 1)
    assert soon - time.monotonic() < 0.1
    with late_by(0.15):
        allowance._reserve(REVERSE, 1)
    # Also by the first request to an endpoint.
    assert allowance._reserve(LIST, 1)[0] - time.monotonic() > 0.1


def test_the_databases_time_is_never_early_here_and_late_by_the_quickest_reply_at_most() -> None:
    clock = throttle._DatabaseClock()
    clock.read(1000.010, asked_at=0.0, heard_at=0.030)
    assert clock.ours(1000.0) == pytest.approx(0.020)
    assert clock.late == 0
    clock.read(1001.002, asked_at=1.0, heard_at=1.004)
    assert clock.ours(1000.0) == pytest.approx(0.002)
    clock.read(1002.010, asked_at=2.0, heard_at=2.500)
    assert clock.ours(1000.0) == pytest.approx(0.002, abs=0.0003)
    assert clock.late == pytest.approx(0.488, abs=0.001)


def test_clocks_that_part_slowly_are_followed() -> None:
    clock = throttle._DatabaseClock()
    clock.read(1000.001, asked_at=0.0, heard_at=0.002)
    # An hour later theirs is behind, and nothing but a slow reply tells.
    database = 1000.0 + 3600.25 - 3600 * throttle.DRIFT / 2
    clock.read(database, asked_at=3600.0, heard_at=3600.5)
    assert 3600.25 <= clock.ours(database) <= 3600.5


@pytest.mark.parametrize("seconds", [-3600.0, -0.1, 0.1, 3600.0])
def test_a_database_whose_clock_jumped_is_believed_at_once(seconds: float) -> None:
    clock = throttle._DatabaseClock()
    clock.read(1000.001, asked_at=0.0, heard_at=0.002)
    clock.read(1001.001 + seconds, asked_at=1.0, heard_at=1.002)
    assert clock.ours(1001.0 + seconds) == pytest.approx(1.001)
    assert clock.late == 0


@pytest.mark.django_db(transaction=True)
def test_taking_turns_waits_for_no_disk_and_nothing_else_is_spared_it() -> None:
    allowance = throttle.RequestAllowance(20)

    def setting() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            return str(cursor.fetchone()[0])

    before = setting()
    assert before != "off"
    for _ in range(2):
        with transaction.atomic():
            allowance._reserve(REVERSE, 1)
            assert setting() == "off"
        assert setting() == before
        allowance._reserve(REVERSE, 1)
        assert setting() == before


@pytest.mark.django_db
def test_endpoints_do_not_share_their_allowance() -> None:
    allowance = throttle.RequestAllowance(1)
    began = time.monotonic()
    allowance.enter(REVERSE)
    allowance.enter(LIST)
    assert time.monotonic() - began < 0.9
    assert RequestAllowance.objects.count() == 2


@pytest.mark.django_db
def test_what_waits_here_is_reserved_at_once_and_no_more_than_half_a_second_of_it(
    django_assert_num_queries: Any,
) -> None:
    allowance = throttle.RequestAllowance(20)
    allowance._waiting[REVERSE] = 50
    with django_assert_num_queries(1):
        departures = [allowance._next_departure(REVERSE) for _ in range(10)]
    gaps = [later - earlier for earlier, later in pairwise(departures)]
    assert gaps == pytest.approx([1 / (20 * throttle.UTILISATION)] * 9, rel=1e-4)
    with django_assert_num_queries(1):
        allowance._next_departure(REVERSE)


@pytest.mark.django_db
def test_a_turn_that_was_overslept_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    allowance = throttle.RequestAllowance(20)
    now = time.monotonic()
    departures = iter([now - 5, now - throttle.LATEST_DEPARTURE * 1.5, now + 0.001])
    asked = []
    monkeypatch.setattr(allowance, "_next_departure", lambda endpoint: asked.append(endpoint) or next(departures))
    assert allowance.enter(REVERSE) == pytest.approx(now + 0.001 + throttle.LATEST_DEPARTURE)
    assert asked == [REVERSE] * 3


@pytest.mark.django_db
def test_turns_that_nobody_took_in_time_are_forgotten() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance._departures[REVERSE].extend([time.monotonic() - 1, time.monotonic() - 0.5])
    assert allowance._next_departure(REVERSE) > time.monotonic() - throttle.LATEST_DEPARTURE


@pytest.mark.django_db
def test_who_would_wait_too_long_is_told_when_to_come_again() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance.enter(REVERSE)
    RequestAllowance.objects.update(next_free_at=Now() + throttle.LONGEST_WAIT + timedelta(seconds=1))
    with pytest.raises(NotNow) as caught:
        allowance.enter(REVERSE)
    assert caught.value.details["seconds"] == throttle.LONGEST_WAIT.total_seconds()
    RequestAllowance.objects.update(next_free_at=Now())
    allowance.enter(REVERSE)


@pytest.mark.django_db
def test_a_clock_that_was_set_back_stops_nobody() -> None:
    """A database that failed over to a host whose clock is behind."""
    allowance = throttle.RequestAllowance(20)
    allowance.enter(REVERSE)
    RequestAllowance.objects.update(next_free_at=Now() + timedelta(hours=1))
    assert allowance._next_departure(REVERSE) - time.monotonic() < 1
    assert RequestAllowance.objects.filter(next_free_at__lt=Now() + timedelta(seconds=1)).exists()


@pytest.mark.django_db
def test_a_429_of_a_time_to_come_is_forgotten_and_does_not_hide_the_next() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance.enter(REVERSE)
    RequestAllowance.objects.update(slowness=throttle.SLOWEST, slowed_at=Now() + timedelta(hours=1))
    allowance._reserve(REVERSE, 1)
    assert RequestAllowance.objects.get().spacing.total_seconds() * 20 * throttle.UTILISATION < 1.1
    allowance.limited(REVERSE, "endpoint-rate")
    assert RequestAllowance.objects.filter(slowed_at__lte=Now()).exists()


@pytest.mark.django_db
def test_while_it_is_slow_no_more_than_half_a_second_is_taken_ahead() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance._waiting[REVERSE] = 50
    allowance._last_spacing[REVERSE] = 0.25
    allowance._next_departure(REVERSE)
    assert len(allowance._departures[REVERSE]) == 1


@pytest.mark.parametrize(
    ("reason", "slowed"),
    [
        ("endpoint-rate", {REVERSE}),
        ("endpoint-concurrency", {REVERSE}),
        ("global-rate", {REVERSE, LIST}),
        ("global-concurrency", {REVERSE, LIST}),
        ("resource-specific", set()),
        ("a word of next year", {REVERSE}),
    ],
)
@pytest.mark.django_db
def test_a_429_slows_what_its_reason_names(reason: str, slowed: set[str]) -> None:
    allowance = throttle.RequestAllowance(20)
    allowance.enter(REVERSE)
    allowance.enter(LIST)
    allowance.limited(REVERSE, reason)
    assert set(RequestAllowance.objects.filter(slowness=throttle.SLOWER).values_list("endpoint", flat=True)) == slowed
    # The others of the same moment are the same news.
    allowance.limited(REVERSE, reason)
    assert not RequestAllowance.objects.filter(slowness__gt=throttle.SLOWER).exists()


@pytest.mark.django_db
def test_a_lone_429_slows_a_little_and_one_soon_after_it_much() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance.enter(REVERSE)
    slowness = []
    for since in (None, 100 * throttle.AGAIN_SECONDS, throttle.AGAIN_SECONDS - 1):
        if since is not None:
            RequestAllowance.objects.update(slowed_at=Now() - timedelta(seconds=since))
        allowance.limited(REVERSE, "endpoint-rate")
        slowness.append(RequestAllowance.objects.get().slowness)
    forgotten = 0.5 ** ((throttle.AGAIN_SECONDS - 1) / throttle.HALF_FORGOTTEN_SECONDS)
    again = (1 + (throttle.SLOWER - 1) * forgotten) * throttle.SLOWER_AGAIN
    assert slowness == pytest.approx([throttle.SLOWER, throttle.SLOWER, again], rel=0.01)


@pytest.mark.django_db
def test_slowness_grows_with_each_429_up_to_a_bound_and_is_forgotten() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance.enter(REVERSE)
    for _ in range(20):
        RequestAllowance.objects.update(slowed_at=Now() - timedelta(seconds=1.5))
        allowance.limited(REVERSE, "endpoint-rate")
    assert RequestAllowance.objects.get().slowness == throttle.SLOWEST
    spacings = []
    for seconds in (0, throttle.HALF_FORGOTTEN_SECONDS, 100, 10**6):
        RequestAllowance.objects.update(next_free_at=Now(), slowed_at=Now() - timedelta(seconds=seconds))
        allowance._reserve(REVERSE, 1)
        spacings.append(RequestAllowance.objects.get().spacing.total_seconds() * 20 * throttle.UTILISATION)
    assert spacings == pytest.approx([32, 16.5, 1.03, 1], rel=0.05)


@pytest.mark.django_db
def test_a_429_pauses_the_endpoint_and_drops_the_turns_taken_before() -> None:
    allowance = throttle.RequestAllowance(20)
    allowance._waiting[REVERSE] = 10
    allowance._next_departure(REVERSE)
    allowance.limited(REVERSE, "endpoint-rate")
    assert allowance._next_departure(REVERSE) - time.monotonic() > 0.9


def test_without_the_database_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def cursor(self) -> Any:
            raise OperationalError("away")

        def close(self) -> None:
            closed.append(True)

    closed: list[bool] = []
    monkeypatch.setattr(throttle, "connection", Away())
    allowance = throttle.RequestAllowance(20)
    with pytest.raises(NotNow, match="away"):
        allowance.enter(REVERSE)
    allowance.limited(REVERSE, "endpoint-rate")
    assert closed == [True, True]


# --- A turn with the claim --------------------------------------------------------------------------------------------


@pytest.fixture
def allowance() -> throttle.RequestAllowance:
    return throttle.RequestAllowance(20)


def claim(allowance: throttle.RequestAllowance) -> list[reversal_claims.Claimed]:
    turn = throttle.in_advance(allowance, REVERSE)
    assert turn is not None
    return reversal_claims.claim(batch_size=9, lease=timedelta(minutes=5), turn=turn)


@pytest.mark.django_db
@pytest.mark.parametrize("due", [1, 3])
def test_a_claim_brings_one_turn_and_the_request_asks_for_none(
    allowance: throttle.RequestAllowance, django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch, due: int
) -> None:
    # However long this machine takes until it is used.
    monkeypatch.setattr(throttle, "LATEST_DEPARTURE", PATIENCE)
    for _ in range(due):
        SellerTransferFactory(reversal_pending=True)
    claimed = claim(allowance)
    assert [each.reversal.transfer_id for each in claimed] == [each.transfer.pk for each in claimed]
    assert (len(claimed), len(allowance._departures[REVERSE])) == (due, 1)
    with django_assert_num_queries(0):
        assert 0 < allowance.enter(REVERSE) - time.monotonic() <= PATIENCE
    with django_assert_num_queries(1):
        allowance.enter(REVERSE)


@pytest.mark.django_db
def test_a_claim_that_finds_nothing_takes_no_turn(allowance: throttle.RequestAllowance) -> None:
    allowance._reserve(REVERSE, 1)
    before = RequestAllowance.objects.get().next_free_at
    SellerTransferFactory(reversal_pending=True, next_retry_at=Now() + timedelta(hours=1))
    assert claim(allowance) == []
    assert RequestAllowance.objects.get().next_free_at == before
    assert not allowance._departures[REVERSE]


@pytest.mark.django_db
def test_a_turn_that_comes_with_a_claim_stands_behind_those_of_others(allowance: throttle.RequestAllowance) -> None:
    throttle.RequestAllowance(20)._reserve(REVERSE, 90)
    before = RequestAllowance.objects.get().next_free_at
    SellerTransferFactory(reversal_pending=True)
    claim(allowance)
    after = RequestAllowance.objects.get().next_free_at
    assert (after - before).total_seconds() == pytest.approx(allowance._spacing, abs=1e-5)
    (departure,) = allowance._departures[REVERSE]
    assert 1 < departure - time.monotonic() < 90 * allowance._spacing


@pytest.mark.django_db
def test_a_turn_too_far_away_is_not_taken_and_the_rows_are_claimed(allowance: throttle.RequestAllowance) -> None:
    slow = throttle.RequestAllowance(1)
    slow._reserve(REVERSE, 9)
    before = RequestAllowance.objects.get().next_free_at
    SellerTransferFactory(reversal_pending=True)
    assert len(claim(allowance)) == 1
    assert RequestAllowance.objects.get().next_free_at == before
    with pytest.raises(NotNow, match="too many"):
        allowance.enter(REVERSE)


@pytest.mark.django_db
def test_no_turn_is_taken_in_advance_where_there_is_one_or_others_wait(allowance: throttle.RequestAllowance) -> None:
    allowance._departures[REVERSE].append(time.monotonic() - 1)
    assert throttle.in_advance(allowance, REVERSE) is not None
    allowance._departures[REVERSE].append(time.monotonic() + 1)
    assert throttle.in_advance(allowance, REVERSE) is None
    assert throttle.in_advance(allowance, LIST) is not None
    with allowance._counted(LIST):
        assert throttle.in_advance(allowance, LIST) is None


def test_no_turn_can_be_had_of_another_gate() -> None:
    assert throttle.in_advance(None, REVERSE) is None
    assert throttle.in_advance(Counting(), REVERSE) is None


@pytest.mark.django_db(transaction=True)
def test_a_claim_with_a_turn_waits_for_the_disk(
    allowance: throttle.RequestAllowance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "require_no_transaction", lambda: None)
    SellerTransferFactory(reversal_pending=True)
    with transaction.atomic(), connection.cursor() as cursor:
        assert len(claim(allowance)) == 1
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() != ("off",)


class Counting:
    """A gate that only counts, or refuses."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.entered: list[str] = []
        self.slowed: list[tuple[str, str]] = []
        self._refuses = refuses

    def enter(self, endpoint: str) -> None:
        self.entered.append(endpoint)
        if self._refuses:
            raise NotNow("not your turn", seconds=3.0)

    def limited(self, endpoint: str, reason: str) -> None:
        self.slowed.append((endpoint, reason))


def test_every_page_of_a_list_asks_for_its_own_turn(simulator: Any) -> None:
    transfer = simulator.create_transfer(10_000, simulator.create_account()["id"])
    for _ in range(101):
        simulator.create_reversal(transfer["id"], 1)
    gate = Counting()
    listed = stripe_api.connect(gate=gate).list_reversals(transfer["id"])
    assert isinstance(listed, ReversalsListed)
    assert len(listed.reversals) == 101
    assert gate.entered == [LIST, LIST]


def test_the_endpoint_of_a_reversal_is_the_one_whose_turn_is_taken_in_advance(simulator: Any) -> None:
    gate = Counting()
    sent: dict[str, Any] = {"amount": 1, "reason": "test", "operation_id": uuid4(), "idempotency_key": "key-1"}
    stripe_api.connect(gate=gate).reverse_transfer("tr_1", **sent)
    assert gate.entered == [REVERSE_ENDPOINT]


def test_what_the_gate_refuses_is_never_sent(simulator: Any) -> None:
    answer = stripe_api.connect(gate=Counting(refuses=True)).retrieve_transfer("tr_1")
    assert answer == Postponed(message="not your turn", seconds=3.0)
    assert len(list(simulator.requests)) == 0


class Late:
    """A gate whose turns are over before the request can leave, but for the last one."""

    def __init__(self, *, is_let_through: bool = True) -> None:
        self.entered = 0
        self._is_let_through = is_let_through

    def enter(self, endpoint: str) -> float:
        self.entered += 1
        if self.entered == 3 and not self._is_let_through:
            raise NotNow("not your turn", seconds=3.0)
        return time.monotonic() + (-0.001 if self.entered < 3 else 60)

    def limited(self, endpoint: str, reason: str) -> None: ...


def test_a_turn_that_is_over_before_the_bytes_go_out_is_taken_anew(simulator: Any) -> None:
    """As by the time that it takes to connect."""
    gate = Late()
    calling = stripe_api.connect(gate=gate)
    for _ in range(2):
        assert isinstance(calling.retrieve_balance(), BalanceRetrieved)
    assert (gate.entered, len(list(simulator.requests))) == (4, 2)


def test_a_turn_that_is_not_to_be_had_again_sends_nothing(simulator: Any) -> None:
    answer = stripe_api.connect(gate=Late(is_let_through=False)).retrieve_balance()
    assert answer == Postponed(message="not your turn", seconds=3.0)
    assert len(list(simulator.requests)) == 0


def test_connecting_uses_up_no_turn(simulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    connect = http_client.HTTPConnection.connect
    require = http_client.Turn.require
    monkeypatch.setattr(http_client.HTTPConnection, "connect", lambda self: (steps.append("connect"), connect(self)))
    monkeypatch.setattr(http_client.Turn, "require", lambda self: (steps.append("turn"), require(self)))
    calling = stripe_api.connect(gate=Counting())
    for _ in range(2):
        assert isinstance(calling.retrieve_balance(), BalanceRetrieved)
    assert steps == ["connect", "turn", "turn"]


def test_a_lease_that_ends_while_it_connects_sends_nothing(simulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(deadline, "has_passed", lambda: asked.append(True) or len(asked) > 1)
    sent: dict[str, Any] = {"amount": 1, "reason": "test", "operation_id": uuid4(), "idempotency_key": "key-1"}
    answer = stripe_api.connect().reverse_transfer("tr_1", **sent)
    assert isinstance(answer, Postponed)
    assert len(list(simulator.requests)) == 0


@pytest.mark.parametrize(
    ("action", "slowed"), [("rate_limited", [("GET /v1/transfers/{id}", "endpoint-rate")]), ("lock_timeout", [])]
)
def test_the_gate_hears_of_a_limiter_and_not_of_a_lock(simulator: Any, action: str, slowed: list[Any]) -> None:
    transfer = simulator.create_transfer(10_000, simulator.create_account()["id"])
    simulator.faults.add(action, times=1)
    gate = Counting()
    answer = stripe_api.connect(gate=gate).retrieve_transfer(transfer["id"])
    assert isinstance(answer, RateLimited) == bool(slowed)
    assert gate.slowed == slowed


@pytest.mark.django_db
def test_the_process_has_one_gateway_under_the_configured_allowance(settings: Any, simulator: Any) -> None:
    throttle.gateway.cache_clear()
    settings.STRIPE_MAX_REQUESTS_PER_SECOND = 7
    assert isinstance(throttle.gateway().retrieve_balance(), BalanceRetrieved)
    assert throttle.gateway() is throttle.gateway()
    assert RequestAllowance.objects.get().endpoint == "GET /v1/balance"
    throttle.gateway.cache_clear()
    settings.STRIPE_MAX_REQUESTS_PER_SECOND = 0
    RequestAllowance.objects.all().delete()
    assert isinstance(throttle.gateway().retrieve_balance(), BalanceRetrieved)
    assert not RequestAllowance.objects.exists()
    throttle.gateway.cache_clear()


# --- The circuit breaker ----------------------------------------------------------------------------------------------


def fail(whom: str, **changes: Any) -> bool:
    told = {"channel": "veza_test", "everyone": False, "is_probe": False, "error": "503"}
    return throttle.failed("reversal", whom=whom, **{**told, **changes})


@pytest.fixture
def breaker(db: None) -> Any:
    return lambda: CircuitBreaker.objects.get(work="reversal")


def test_it_opens_when_stripe_fails_for_many(breaker: Any) -> None:
    with capture_logs() as logs:
        assert [fail(f"seller {number}") for number in range(throttle.OPENS_AFTER)] == [False] * 4 + [True]
    assert [entry["event"] for entry in logs] == ["breaker_opened"]
    assert breaker().next_probe_at > breaker().opened_at
    assert fail("another")
    assert len(breaker().failing) == throttle.OPENS_AFTER


def test_it_stays_closed_when_stripe_fails_for_one_seller(breaker: Any) -> None:
    assert not any(fail("seller 1") for _ in range(50))
    assert breaker().failing == ["seller 1"]


def test_it_opens_when_stripe_fails_for_many_rows_of_few_sellers(breaker: Any) -> None:
    rows = [f"seller {number % 2}, transfer {number}" for number in range(throttle.OPENS_AFTER_ROWS)]
    assert not any(fail(row) for row in rows[:-1] * 2)
    assert fail(rows[-1])
    assert breaker().failing == rows
    assert fail("seller 1, transfer 1000")
    assert breaker().failing == rows


def test_many_rows_of_one_seller_count_as_one_seller(breaker: Any) -> None:
    for number in range(throttle.OPENS_AFTER - 1):
        assert not fail(f"seller 1, transfer {number}")
        assert not fail(f"seller {number}, transfer 1000")
    assert fail("seller 1000, transfer 1")


def test_a_success_outweighs_the_failures_of_one_seller(breaker: Any) -> None:
    for whom in ("seller 1, transfer 1", "seller 2, transfer 2", "seller 1, transfer 3", "seller 11, transfer 4"):
        fail(whom)
    throttle.succeeded("reversal")
    assert breaker().failing == ["seller 2, transfer 2", "seller 11, transfer 4"]


def test_an_outage_that_lasts_for_long_is_doubted(breaker: Any) -> None:
    fail("seller 1", everyone=True)
    for long_ago, doubts in ((timedelta(seconds=-10), False), (timedelta(seconds=10), True)):
        CircuitBreaker.objects.update(next_probe_at=Now(), opened_at=Now() - throttle.DOUBTED_AFTER - long_ago)
        assert throttle.take_probe("reversal", lease=timedelta(0)) == throttle.Probe(doubts=doubts)


def test_successes_outweigh_failures(breaker: Any) -> None:
    for number in range(50):
        assert not fail(f"seller {number}")
        throttle.succeeded("reversal")
    assert breaker().failing == []
    throttle.succeeded("reversal")
    throttle.succeeded("never heard of")


def test_it_opens_at_once_where_a_question_of_nobody_fails_too(breaker: Any) -> None:
    assert fail("seller 1", everyone=True)
    throttle.succeeded("reversal")
    assert (breaker().opened_at, breaker().next_probe_at, breaker().failing) == (None, None, [])
    assert fail("seller 1", everyone=True)


def test_one_kind_of_work_does_not_stop_another(breaker: Any) -> None:
    assert fail("seller 1", everyone=True)
    assert not throttle.failed("transfer", channel="c", whom="seller 1", everyone=False, is_probe=False, error="503")


def test_one_probe_at_a_time_and_none_before_its_time(breaker: Any) -> None:
    lease = timedelta(minutes=2)
    assert not throttle.take_probe("reversal", lease=lease)
    fail("seller 1", everyone=True)
    assert not throttle.take_probe("reversal", lease=lease)
    CircuitBreaker.objects.update(next_probe_at=Now())
    assert throttle.take_probe("reversal", lease=lease)
    assert not throttle.take_probe("reversal", lease=lease)
    assert breaker().probes == 1
    throttle.give_probe_back("reversal")
    assert breaker().probes == 0
    assert breaker().next_probe_at - breaker().opened_at < lease
    CircuitBreaker.objects.update(next_probe_at=Now())
    assert throttle.take_probe("reversal", lease=lease)


def test_probes_become_rarer_up_to_a_bound(breaker: Any) -> None:
    fail("seller 1", everyone=True)
    waits = []
    for _ in range(5):
        CircuitBreaker.objects.update(next_probe_at=Now())
        assert throttle.take_probe("reversal", lease=timedelta(minutes=2))
        assert fail("seller 1", is_probe=True)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT EXTRACT(EPOCH FROM next_probe_at - statement_timestamp()) FROM marketplace_circuitbreaker"
            )
            waits.append(float(cursor.fetchone()[0]))
    assert waits == pytest.approx([5, 10, 15, 15, 15], abs=0.5)


def test_a_failure_that_is_no_probe_leaves_the_next_probe_as_it_is(breaker: Any) -> None:
    fail("seller 1", everyone=True)
    before = breaker().next_probe_at
    fail("seller 2", everyone=True)
    assert (breaker().next_probe_at, breaker().opened_at is None) == (before, False)


def test_who_is_found_to_fail_by_a_probe_is_evidence_once(breaker: Any) -> None:
    fail("seller 1, transfer 1", everyone=True)
    assert fail("seller 2, transfer 2", is_probe=True)
    assert fail("seller 2, transfer 3", is_probe=True)
    assert fail("seller 3, transfer 4")
    assert breaker().failing == ["seller 1, transfer 1", "seller 2, transfer 2"]


@pytest.mark.django_db(transaction=True)
def test_closing_wakes_the_workers() -> None:
    fail("seller 1", everyone=True)
    with psycopg.connect(**plain_parameters(), autocommit=True) as listening:
        listening.execute("LISTEN veza_test")
        throttle.succeeded("reversal")
        (heard,) = listening.notifies(timeout=PATIENCE, stop_after=1)
        assert heard.payload == "0"
        fail("seller 1")
        throttle.succeeded("reversal")
        assert list(listening.notifies(timeout=0.1)) == []
