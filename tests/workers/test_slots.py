"""A worker's requests at Stripe at once: one slot each, from its turn to its answer."""

import math
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from marketplace import slots
from marketplace.gateway import stripe_api
from marketplace.models import SellerTransfer
from marketplace.slots import CallSlots, Stopped
from marketplace.states import TransferStatus
from marketplace.workers import reversal
from tests.workers.conftest import REVERSE

Make = Callable[..., SellerTransfer]


class Gate:
    """Lets every request pass at once, and tells ``on_turn`` of each."""

    def __init__(self, on_turn: Callable[[str], None]) -> None:
        self._on_turn = on_turn

    def enter(self, endpoint: str) -> float:
        self._on_turn(endpoint)
        return math.inf

    def limited(self, endpoint: str, reason: str) -> None:
        raise AssertionError(f"{endpoint} was limited: {reason}")


@pytest.fixture
def two() -> CallSlots:
    return CallSlots(2)


@pytest.fixture
def perform(two: CallSlots) -> Iterator[Callable[[Callable[[str], None]], None]]:
    """All that is due, by a worker of two slots."""

    def do(on_turn: Callable[[str], None]) -> None:
        queue = reversal.ReversalQueue(stripe_api.connect(gate=Gate(on_turn)), two)
        for claimed in queue.claim(batch_size=10, lease=timedelta(minutes=5)):
            queue.perform(claimed)

    return do


def test_each_request_of_an_attempt_has_a_slot_and_leaves_it(
    at_stripe: Make, simulator: Any, two: CallSlots, perform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the attempt as a whole: what is done between its requests and after them holds nobody up."""
    row = at_stripe()
    simulator.create_reversal(row.stripe_transfer_id)
    with_slot: list[tuple[str, bool]] = []

    def watched(name: str) -> None:
        original = getattr(reversal.ReversalQueue, name)

        def watching(*args: Any, **kwargs: Any) -> Any:
            with_slot.append((name, not two.are_all_free))
            return original(*args, **kwargs)

        monkeypatch.setattr(reversal.ReversalQueue, name, watching)

    watched("_ask")
    watched("_settle")
    perform(lambda endpoint: with_slot.append((endpoint.split()[0], not two.are_all_free)))
    assert with_slot == [("_ask", False), ("POST", True), ("GET", True), ("GET", True), ("_settle", False)]
    assert two.are_all_free


def test_a_worker_that_stops_begins_nothing_and_gives_the_row_back(
    at_stripe: Make, simulator: Any, two: CallSlots, perform: Any
) -> None:
    row = at_stripe()
    two.stop()
    turns: list[str] = []
    perform(turns.append)
    assert (turns, simulator.reversals_of(row.stripe_transfer_id)) == ([], [])
    row.refresh_from_db()
    assert (row.status, row.lease_token, row.retry_count) == (TransferStatus.REVERSAL_PENDING, None, 0)
    assert two.are_all_free


def test_what_the_first_request_began_is_ended_by_a_worker_that_stops(
    at_stripe: Make, simulator: Any, two: CallSlots, perform: Any
) -> None:
    """Stripe refuses, and is asked why: else its answer would be lost."""
    row = at_stripe()
    simulator.create_reversal(row.stripe_transfer_id)
    turns: list[str] = []

    def stop_at_the_first(endpoint: str) -> None:
        turns.append(endpoint)
        two.stop()

    perform(stop_at_the_first)
    assert (turns[0], len(turns)) == (REVERSE, 3)
    row.refresh_from_db()
    assert row.status == TransferStatus.REVERSED


def test_who_waits_for_a_slot_gets_the_next_one_that_is_free() -> None:
    one, got = CallSlots(1), threading.Event()

    def call() -> None:
        with one.used(), slots.taken():
            got.set()

    with one.taken():
        thread = threading.Thread(target=call)
        thread.start()
        assert not got.wait(0.1)
    thread.join(10)
    assert got.is_set()


def test_who_waits_when_the_worker_stops_is_told_at_once() -> None:
    one, told = CallSlots(1), threading.Event()

    def call() -> None:
        with pytest.raises(Stopped), one.used(), slots.taken():
            raise AssertionError("it got a slot")
        told.set()

    with one.taken():
        thread = threading.Thread(target=call)
        thread.start()
        one.stop()
        assert told.wait(10)
        thread.join(10)


def test_who_uses_no_slots_waits_for_none(two: CallSlots) -> None:
    with two.taken(), two.taken(), slots.taken():
        assert not two.are_all_free
    with two.used():
        pass
    two.stop()
    with slots.taken():
        """A web request's, say."""
