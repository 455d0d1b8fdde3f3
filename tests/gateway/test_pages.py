"""Whole periods of Stripe's lists, page by page, each with what belongs to it."""

from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest

from marketplace.gateway.contract import (
    BookedFacts,
    ChargeFacts,
    Denied,
    ListedDispute,
    ListedEntry,
    ListedRefund,
    ListedTransfer,
    Page,
    Refused,
    Unknown,
)
from marketplace.gateway.reading import dispute_facts
from tests.gateway.conftest import ScriptedServer

ALWAYS = {"since": 0, "until": 2**33}
PAGES = ["page_of_transfers", "page_of_balance_transactions", "page_of_refunds", "page_of_disputes"]


def asked(gateway: Any, name: str, **more: Any) -> Any:
    kind = {"type": ""} if name == "page_of_balance_transactions" else {}
    return getattr(gateway, name)(**ALWAYS | kind | more)


def items(answer: Any) -> Any:
    assert isinstance(answer, Page), answer
    return answer.items


def one(answer: Any) -> Any:
    (item,) = items(answer)
    return item


def test_a_transfer_comes_with_its_reversals_and_what_it_took_from_our_balance(
    gateway: Any, simulator: Any, account: str
) -> None:
    charge = simulator.create_charge(10_000, transfer_group="order-1")
    source = {"source_transaction": charge["id"], "transfer_group": "order-1"}
    made = simulator.create_transfer(7000, account, metadata={"operation_id": "op"}, **source)
    reversal = simulator.create_reversal(made["id"], 1000, metadata={"operation_id": "op 2"})
    listed = one(gateway.page_of_transfers(**ALWAYS))
    assert isinstance(listed, ListedTransfer)
    assert (listed.transfer.stripe_transfer_id, listed.transfer.operation_id) == (made["id"], "op")
    assert (listed.transfer.amount, listed.transfer.amount_reversed, listed.transfer.destination) == (
        7000,
        1000,
        account,
    )
    assert (listed.source_transaction, listed.transfer_group) == (charge["id"], "order-1")
    (told,) = listed.reversals
    assert (told.stripe_reversal_id, told.amount, told.operation_id) == (reversal["id"], 1000, "op 2")
    assert told.stripe_balance_transaction_id == reversal["balance_transaction"]
    assert listed.has_all_reversals
    assert listed.booked == BookedFacts(
        stripe_balance_transaction_id=made["balance_transaction"],
        type="transfer",
        amount=-7000,
        currency="eur",
        stripe_source_id=made["id"],
    )


def test_a_transfer_shows_ten_reversals_and_says_that_there_are_more(
    gateway: Any, simulator: Any, transfer: str
) -> None:
    made = [simulator.create_reversal(transfer, 10)["id"] for _ in range(11)]
    listed = one(gateway.page_of_transfers(**ALWAYS))
    assert [each.stripe_reversal_id for each in listed.reversals] == made[:0:-1]
    assert not listed.has_all_reversals


def test_transfers_of_one_group_alone(gateway: Any, simulator: Any, account: str) -> None:
    made = simulator.create_transfer(700, account, transfer_group="this")
    simulator.create_transfer(700, account, transfer_group="that")
    listed = one(gateway.page_of_transfers(transfer_group="this", **ALWAYS))
    assert listed.transfer.stripe_transfer_id == made["id"]


def test_a_reversals_entry_names_the_transfer_and_brings_it(gateway: Any, simulator: Any, transfer: str) -> None:
    reversal = simulator.create_reversal(transfer, 1000)
    entry = one(gateway.page_of_balance_transactions(type="transfer_refund", **ALWAYS))
    assert isinstance(entry, ListedEntry)
    assert entry.booked.stripe_balance_transaction_id == reversal["balance_transaction"]
    assert (entry.booked.amount, entry.booked.type, entry.booked.stripe_source_id) == (
        1000,
        "transfer_refund",
        transfer,
    )
    assert entry.about is not None
    assert entry.about.transfer.amount_reversed == 1000
    assert entry.about.booked is None


def test_all_entries_about_one_transfer(gateway: Any, simulator: Any, account: str, transfer: str) -> None:
    simulator.create_transfer(500, account)
    simulator.create_reversal(transfer, 1000)
    found = items(gateway.page_of_balance_transactions(type="", source=transfer, **ALWAYS))
    assert [(each.booked.type, each.booked.amount) for each in found] == [
        ("transfer_refund", 1000),
        ("transfer", -7000),
    ]


def test_an_entry_about_something_else_brings_no_transfer(gateway: Any, simulator: Any) -> None:
    charge = simulator.create_charge(1000)
    entry = one(gateway.page_of_balance_transactions(type="charge", **ALWAYS))
    assert (entry.about, entry.booked.stripe_source_id) == (None, charge["id"])


def test_a_refund_comes_with_its_charge(gateway: Any, simulator: Any) -> None:
    charge = simulator.create_charge(10_000, transfer_group="order-1")
    made = simulator.create_refund(charge["id"], 2500, status="succeeded")
    listed = one(gateway.page_of_refunds(**ALWAYS))
    assert isinstance(listed, ListedRefund)
    assert (listed.refund.stripe_refund_id, listed.refund.amount, listed.refund.status) == (
        made["id"],
        2500,
        "succeeded",
    )
    told = listed.charge
    assert isinstance(told, ChargeFacts)
    assert (told.stripe_charge_id, told.stripe_payment_intent_id) == (charge["id"], charge["payment_intent"])
    assert (told.amount, told.amount_refunded, told.currency, told.transfer_group) == (10_000, 2500, "eur", "order-1")
    assert (told.amount_settled, told.currency_settled) == (10_000, "eur")
    assert int(told.created_at.timestamp()) == charge["created"]


def test_of_one_charge_alone(gateway: Any, simulator: Any) -> None:
    one_, other = simulator.create_charge(1000), simulator.create_charge(1000)
    for charge in (one_, other):
        simulator.create_refund(charge["id"], 100)
        simulator.open_dispute(charge["id"], 200)
    assert one(gateway.page_of_refunds(charge=one_["id"], **ALWAYS)).charge.stripe_charge_id == one_["id"]
    assert one(gateway.page_of_disputes(charge=other["id"], **ALWAYS)).charge.stripe_charge_id == other["id"]


def test_a_dispute_comes_with_its_charge_and_what_it_has_withdrawn(gateway: Any, simulator: Any) -> None:
    charge = simulator.create_charge(10_000)
    dispute = simulator.open_dispute(charge["id"], 4000)
    listed = one(gateway.page_of_disputes(**ALWAYS))
    assert isinstance(listed, ListedDispute)
    told = listed.dispute
    assert (told.stripe_dispute_id, told.amount, told.currency) == (dispute["id"], 4000, "eur")
    assert (told.stripe_charge_id, told.stripe_payment_intent_id) == (charge["id"], charge["payment_intent"])
    assert (told.status, told.amount_withdrawn, told.balance_currency) == ("needs_response", 4000, "eur")
    assert int(told.seen_at.timestamp()) == dispute["created"]
    assert listed.charge is not None
    assert listed.charge.stripe_charge_id == charge["id"]
    simulator.close_dispute(dispute["id"], "won")
    told = one(gateway.page_of_disputes(**ALWAYS)).dispute
    assert (told.status, told.amount_withdrawn, told.amount_reinstated) == ("won", 4000, 4000)


@pytest.mark.parametrize(
    ("amounts", "times"),
    [
        ([], 0),
        ([-4000], 1),
        ([-4000, -500], 1),
        ([-4000, 0, -500], 1),
        ([-4000, 4000], 1),
        ([-4000, -500, 4500], 1),
        ([-4000, 0, 4000, -3900], 2),
        ([-1, 1, -1, 1], 2),
    ],
)
def test_what_is_taken_again_after_it_was_given_back_is_withdrawn_twice(
    simulator: Any, amounts: list[int], times: int
) -> None:
    dispute = simulator.open_dispute(simulator.create_charge(10_000)["id"], withdraw=False)
    entries = [
        {"amount": amount, "fee": 0, "currency": "usd", "created": 1_795_000_000 + second}
        for second, amount in enumerate(amounts)
    ]
    # In whatever order Stripe lists them.
    for listed in permutations(entries):
        body = dispute | {"balance_transactions": list(listed)}
        told = dispute_facts(body, seen_at=datetime.now(UTC), event_type="charge.dispute.closed")
        assert told.times_withdrawn == times


def test_an_inquiry_has_withdrawn_nothing(gateway: Any, simulator: Any) -> None:
    simulator.open_dispute(simulator.create_charge(10_000)["id"], withdraw=False)
    told = one(gateway.page_of_disputes(**ALWAYS)).dispute
    assert (told.amount_withdrawn, told.is_withdrawn) == (0, False)


def test_pages_go_on_from_the_last_one(gateway: Any, simulator: Any, account: str) -> None:
    made = [simulator.create_transfer(100, account)["id"] for _ in range(5)][::-1]
    seen: list[str] = []
    after = ""
    for more in (True, True, False):
        page = gateway.page_of_transfers(**ALWAYS, limit=2, starting_after=after)
        assert page.has_more == more
        seen += [each.transfer.stripe_transfer_id for each in page.items]
        after = page.last_id
    assert seen == made


def test_only_the_period_is_listed_with_both_its_ends(gateway: Any, simulator: Any, account: str) -> None:
    simulator.clock.freeze()
    made = []
    for _ in range(3):
        made.append(simulator.create_transfer(100, account))
        simulator.clock.advance(60)
    at = made[1]["created"]
    assert one(gateway.page_of_transfers(since=at, until=at)).transfer.stripe_transfer_id == made[1]["id"]


@pytest.mark.parametrize("name", PAGES)
def test_an_empty_list_is_an_empty_page(gateway: Any, name: str) -> None:
    assert asked(gateway, name) == Page(items=(), has_more=False)


@pytest.mark.parametrize("name", PAGES)
def test_each_is_one_request_of_a_hundred(gateway: Any, scripted: ScriptedServer, to_scripted: Any, name: str) -> None:
    scripted.says_json({"object": "list", "data": [], "has_more": False})
    asked(to_scripted, name, starting_after="x_1")
    (request,) = scripted.asked
    assert "limit=100" in request.path
    assert "starting_after=x_1" in request.path
    assert "created[gte]=0" in request.path.replace("%5B", "[").replace("%5D", "]")


@pytest.mark.parametrize("name", PAGES)
def test_failures_are_answers(gateway: Any, simulator: Any, name: str) -> None:
    simulator.faults.add("unauthorized", times=1)
    assert isinstance(asked(gateway, name), Denied)
    assert isinstance(asked(gateway, name, starting_after="gone_1"), Refused)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "page",
    [
        {"data": []},
        {"data": [], "has_more": "no"},
        {"data": None, "has_more": False},
        {"data": [None], "has_more": False},
        {"data": ["x_1"], "has_more": False},
        {"data": [{"id": "x_1"}], "has_more": False},
    ],
)
def test_a_page_of_another_shape_is_unknown(page: Any, name: str, scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json({"object": "list", **page})
    assert isinstance(asked(to_scripted, name), Unknown)


CHARGE = {"id": "ch_1", "object": "charge", "amount": 10, "amount_refunded": 0, "currency": "usd", "created": 5}
REFUND = {"id": "re_1", "object": "refund", "amount": 10, "currency": "usd", "status": "succeeded", "created": 5}


def test_a_refund_without_a_charge_has_none(scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json({"object": "list", "data": [REFUND | {"charge": None}], "has_more": False})
    assert one(to_scripted.page_of_refunds(**ALWAYS)).charge is None


@pytest.mark.parametrize(
    ("booked", "settled"),
    [
        (None, (10, "usd")),
        ("txn_1", (10, "usd")),
        ({"object": "balance_transaction", "id": "txn_1", "amount": 9, "currency": "eur"}, (9, "eur")),
    ],
)
def test_a_charge_says_what_reached_our_balance(
    booked: Any, settled: Any, scripted: ScriptedServer, to_scripted: Any
) -> None:
    charge = CHARGE | {"balance_transaction": booked}
    scripted.says_json({"object": "list", "data": [REFUND | {"charge": charge}], "has_more": False})
    told = one(to_scripted.page_of_refunds(**ALWAYS)).charge
    assert (told.amount_settled, told.currency_settled) == settled


TRANSFER = {"id": "tr_1", "object": "transfer", "amount": 10, "amount_reversed": 0, "currency": "eur"}


@pytest.mark.parametrize(
    ("reversals", "are_all"),
    [({"data": [], "has_more": False}, True), ({"data": [], "has_more": True}, False), (None, False)],
)
def test_where_stripe_does_not_say_that_these_are_all_they_are_not(
    reversals: Any, are_all: bool, scripted: ScriptedServer, to_scripted: Any
) -> None:
    scripted.says_json({"object": "list", "data": [TRANSFER | {"reversals": reversals}], "has_more": False})
    listed = one(to_scripted.page_of_transfers(**ALWAYS))
    assert (listed.has_all_reversals, listed.booked) == (are_all, None)
