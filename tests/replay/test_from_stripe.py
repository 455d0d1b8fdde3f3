"""Events that never reached us are fetched from Stripe, however many, however interrupted; and each counts once."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connections
from structlog.testing import capture_logs

from marketplace import asking, inbox, replay
from marketplace.asking import StripeSaysNo
from marketplace.errors import StripeDenied
from marketplace.gateway import stripe_events
from marketplace.gateway.contract import (
    LARGEST_PAGE,
    Busy,
    Denied,
    EventsListed,
    ListedEvent,
    NotFound,
    Postponed,
    Refused,
    ServerError,
)
from marketplace.models import Order, SellerTransfer, WebhookEvent
from marketplace.replay import FromStripe, Period, Tally
from marketplace.states import OrderStatus, TransferStatus
from tests.factories import SellerFactory, order_with_transfers

EVER = Period(since=datetime(2020, 1, 1, tzinfo=UTC), until=datetime(2100, 1, 1, tzinfo=UTC), sellers_types=())
SELLERS = replace(EVER, own_types=(), sellers_types=replay.SELLERS_TYPES)
BALANCE = {"object": "balance"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of a request that is made again; how long each would have been."""
    paused: list[float] = []
    monkeypatch.setattr(asking.time, "sleep", paused.append)
    return paused


@pytest.fixture
def run(db: None, gateway: Any) -> Callable[..., dict[str, Tally]]:
    def run(period: Period = EVER, **options: Any) -> dict[str, Tally]:
        return {tally.name: tally for tally in FromStripe(gateway=gateway, **options).run(period)}

    return run


@pytest.fixture
def order(db: None, simulator: Any) -> Order:
    charge = simulator.create_charge(5000)
    return order_with_transfers(
        (3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"]
    )


def ignored_events(simulator: Any, count: int) -> list[str]:
    """Of a type that is used, about charges that carry no refund; their ids, oldest first."""
    body = {"id": "ch_1", "object": "charge"}
    return [simulator.emit("charge.refunded", body)["id"] for _ in range(count)]


def stored() -> list[str]:
    return list(WebhookEvent.objects.order_by("id").values_list("stripe_event_id", flat=True))


# --- What was missed --------------------------------------------------------------------------------------------------


def test_a_refund_whose_webhook_never_came_is_taken_in(run: Any, simulator: Any, order: Order) -> None:
    simulator.create_refund(order.stripe_charge_id, status="succeeded")
    tally = run()["all"]
    assert tally.processed >= 1
    assert tally.not_applied == 0
    order.refresh_from_db()
    assert order.status == OrderStatus.REFUNDED
    assert order.transfers.filter(status=TransferStatus.REVERSAL_PENDING).count() == 2


def test_once_more_changes_nothing(run: Any, simulator: Any, order: Order) -> None:
    simulator.create_refund(order.stripe_charge_id, status="succeeded")
    found = run()["all"].found
    before = list(SellerTransfer.objects.order_by("id").values())
    tally = run()["all"]
    assert (tally.found, tally.seen, tally.processed) == (found, found, 0)
    assert list(SellerTransfer.objects.order_by("id").values()) == before


def test_what_a_webhook_brought_counts_as_seen(run: Any, simulator: Any) -> None:
    ignored_events(simulator, 3)
    event = simulator.events(type="charge.refunded")[1]
    inbox.receive(stripe_events.verify(*simulator.sign(event, "whsec_testPlatform")))
    tally = run()["all"]
    assert (tally.found, tally.seen, tally.ignored) == (3, 1, 2)


def test_what_was_not_delivered_comes_first(run: Any, simulator: Any) -> None:
    delivered = ignored_events(simulator, 2)
    simulator.deliver_to("http://127.0.0.1:9/")
    simulator.webhook_faults.dropped = 1.0
    lost = ignored_events(simulator, 2)
    tallies = run()
    assert list(tallies) == ["undelivered", "all"]
    assert (tallies["undelivered"].found, tallies["undelivered"].ignored) == (2, 2)
    assert (tallies["all"].found, tallies["all"].seen, tallies["all"].ignored) == (4, 2, 2)
    assert stored() == [*lost, *delivered]


def test_types_that_nobody_uses_are_not_asked_for(run: Any, simulator: Any) -> None:
    simulator.emit("customer.created", {"id": "cus_1", "object": "customer"})
    assert run()["all"].found == 0


def test_one_that_failed_before_is_named_as_not_applied(run: Any, simulator: Any) -> None:
    simulator.emit("refund.created", {"id": "re_1", "object": "refund"})
    assert run()["all"].failed == 1
    tally = run()["all"]
    assert (tally.seen_failed, tally.not_applied) == (1, 1)


def test_a_dry_run_counts_and_takes_nothing(run: Any, simulator: Any) -> None:
    ignored_events(simulator, 3)
    tally = run(is_dry_run=True)["all"]
    assert (tally.found, tally.new, tally.ignored) == (3, 3, 0)
    assert stored() == []


def test_events_of_the_other_mode_are_left_alone(run: Any, simulator: Any, settings: Any) -> None:
    ignored_events(simulator, 2)
    settings.STRIPE_LIVEMODE = True
    assert run()["all"].other_mode == 2
    assert stored() == []


# --- However many -----------------------------------------------------------------------------------------------------


def test_several_pages_come_oldest_first(run: Any, simulator: Any) -> None:
    simulator.clock.freeze()
    made = []
    for _ in range(5):
        made += ignored_events(simulator, 50)
        simulator.clock.advance(60)
    reached: list[datetime | None] = []
    tally = run(tell=lambda tally: reached.append(tally.reached))["all"]
    assert (tally.found, stored()) == (250, made)
    told = [moment for moment in reached if moment is not None]
    assert told == sorted(told)
    # Two lists of three pages, and some twenty questions for the oldest second.
    assert simulator.requests.total < 80


def test_more_in_one_second_than_a_page_holds(run: Any, simulator: Any) -> None:
    simulator.clock.freeze()
    made = ignored_events(simulator, 2 * LARGEST_PAGE + 30)
    simulator.clock.advance(1)
    made += ignored_events(simulator, 5)
    assert run()["all"].found == len(made)
    assert stored() == made


def test_only_the_period_is_taken(run: Any, simulator: Any) -> None:
    simulator.clock.freeze()
    made = []
    for _ in range(3):
        made += ignored_events(simulator, 1)
        simulator.clock.advance(60)
    second = datetime.fromtimestamp(simulator.events(type="charge.refunded")[1]["created"], tz=UTC)
    assert run(replace(EVER, since=second, until=second))["all"].found == 1
    assert stored() == [made[1]]


# --- However interrupted ----------------------------------------------------------------------------------------------


def test_an_outage_in_the_middle_leaves_what_was_taken_and_the_next_run_goes_on(
    run: Any, simulator: Any, no_pause: list[float]
) -> None:
    simulator.clock.freeze()
    made = []
    for _ in range(3):
        made += ignored_events(simulator, LARGEST_PAGE)
        simulator.clock.advance(60)
    taken: list[int] = []

    def tell(tally: Tally) -> None:
        taken.append(tally.found)
        simulator.faults.add("unavailable")

    with pytest.raises(StripeSaysNo, match=f"no answer to {asking.TRIES} requests"):
        run(tell=tell)
    assert taken == [LARGEST_PAGE]
    assert stored() == made[:LARGEST_PAGE]
    assert no_pause == [asking.PAUSE_SECONDS] * (asking.TRIES - 1)
    simulator.faults.clear()
    tally = run()["all"]
    assert (tally.seen, tally.ignored) == (LARGEST_PAGE, 2 * LARGEST_PAGE)
    assert stored() == made


def test_a_moment_of_trouble_is_sat_out(run: Any, simulator: Any, no_pause: list[float]) -> None:
    ignored_events(simulator, 1)
    simulator.faults.add("unavailable", times=asking.TRIES - 1)
    assert run()["all"].ignored == 1
    assert no_pause == [asking.PAUSE_SECONDS] * (asking.TRIES - 1)


def test_a_refused_key_ends_it_at_once(run: Any, simulator: Any, no_pause: list[float]) -> None:
    simulator.faults.add("unauthorized")
    with pytest.raises(StripeDenied):
        run()
    assert no_pause == []


def test_two_at_once_take_each_event_once(
    transactional_db: None, gateway: Any, simulator: Any, unblocked_database: None
) -> None:
    made = ignored_events(simulator, 40)
    tallies: list[Tally] = []
    together = threading.Barrier(2)

    def take() -> None:
        try:
            together.wait(timeout=10)
            tallies.extend(FromStripe(gateway=gateway).run(EVER))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(stored()) == sorted(made)
    assert sum(tally.ignored for tally in tallies) == 40
    assert sum(tally.seen for tally in tallies) == 40


# --- Odd answers ------------------------------------------------------------------------------------------------------


class Scripted:
    """A gateway of which only this call is used: one answer after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers: Iterator[Any] = iter(answers)
        self.asked: list[dict[str, Any]] = []

    def list_events(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return next(self._answers)


def listed(number: int, at: datetime, **changes: Any) -> ListedEvent:
    body = {
        "id": f"evt_{number}",
        "object": "event",
        "type": "charge.refunded",
        "livemode": False,
        "created": int(at.timestamp()),
        "data": {"object": {}},
        **changes,
    }
    return ListedEvent(stripe_event_id=body["id"], created_at=at, body=body)


MORNING = datetime(2026, 11, 23, 8, tzinfo=UTC)
NOTHING = EventsListed(events=(), has_more=False)


def page(*events: ListedEvent, has_more: bool = False) -> EventsListed:
    return EventsListed(events=events, has_more=has_more)


def take(*answers: Any, period: Period = EVER) -> tuple[dict[str, Tally], Scripted]:
    """``undelivered`` gets the answers, ``all`` an empty list."""
    scripted = Scripted(*answers, NOTHING)
    gateway: Any = scripted
    return {tally.name: tally for tally in FromStripe(gateway=gateway).run(period)}, scripted


def test_one_that_cannot_be_read_stops_no_other(db: None) -> None:
    bad = listed(2, MORNING, data=None)
    with capture_logs() as logs:
        tallies, _ = take(page(listed(3, MORNING), bad, listed(1, MORNING)))
    assert (tallies["undelivered"].unreadable, tallies["undelivered"].ignored) == (1, 2)
    assert tallies["undelivered"].not_applied == 1
    (warned,) = (each for each in logs if each["event"] == "listed_event_unreadable")
    assert warned["event_id"] == "evt_2"


def test_one_that_comes_by_webhook_meanwhile_counts_as_seen(db: None) -> None:
    tallies, _ = take(page(listed(1, MORNING), listed(1, MORNING)))
    assert (tallies["undelivered"].ignored, tallies["undelivered"].seen) == (1, 1)


def test_the_oldest_may_vanish_while_it_is_looked_for(db: None) -> None:
    """Stripe's thirty days go on while we ask."""
    minute = timedelta(minutes=1)
    since = replace(EVER, since=MORNING - timedelta(seconds=1), until=MORNING + 2 * minute)
    tallies, scripted = take(
        page(listed(3, MORNING + minute), listed(2, MORNING), has_more=True),
        # The first second of the two; then all of it, and it is gone.
        page(listed(1, MORNING - timedelta(seconds=1))),
        NOTHING,
        # From the next second on.
        page(listed(3, MORNING + minute), listed(2, MORNING)),
        period=since,
    )
    assert tallies["undelivered"].ignored == 2
    assert scripted.asked[3]["since"] == int(MORNING.timestamp())


@pytest.mark.parametrize("answer", [NotFound(message="no such event"), Refused(message="bad cursor", code="x")])
def test_what_stripe_does_not_list_is_said(db: None, answer: Any) -> None:
    with pytest.raises(StripeSaysNo, match=answer.message):
        take(answer)


def test_a_turn_that_is_far_off_is_waited_for(db: None, no_pause: list[float]) -> None:
    tallies, _ = take(Postponed(message="later", seconds=2), Busy(message="busy"), ServerError(message="500"), NOTHING)
    assert tallies["undelivered"].found == 0
    assert no_pause == [2, asking.PAUSE_SECONDS, asking.PAUSE_SECONDS]


# --- Sellers' accounts ------------------------------------------------------------------------------------------------


def test_sellers_accounts_are_asked_one_by_one(run: Any, simulator: Any) -> None:
    seller = SellerFactory(stripe_account_id=simulator.create_account()["id"])
    simulator.set_capability(seller.stripe_account_id, status="inactive")
    tallies = run(SELLERS)
    assert list(tallies) == ["sellers"]
    assert (tallies["sellers"].accounts, tallies["sellers"].accounts_closed) == (1, 0)
    assert tallies["sellers"].processed >= 1
    seller.refresh_from_db()
    assert seller.transfers_capability == "inactive"


def test_an_account_that_is_closed_to_us_stops_no_other(run: Any, simulator: Any) -> None:
    gone, there = (SellerFactory(stripe_account_id=simulator.create_account()["id"]) for _ in range(2))
    simulator.set_capability(there.stripe_account_id, status="inactive")
    simulator.deauthorize(gone.stripe_account_id)
    tally = run(SELLERS)["sellers"]
    assert (tally.accounts, tally.accounts_closed) == (2, 1)
    assert tally.processed >= 1


def test_a_key_that_is_refused_for_all_ends_it_among_sellers_too(db: None) -> None:
    SellerFactory()
    with pytest.raises(StripeDenied):
        take(Denied(message="Invalid API Key", forbidden=False), period=SELLERS)


def test_what_a_balance_was_is_never_asked_for() -> None:
    assert "balance.available" not in {*replay.OWN_TYPES, *replay.SELLERS_TYPES}
    assert {*replay.OWN_TYPES, *replay.SELLERS_TYPES, "balance.available"} == set(inbox.HANDLERS)
