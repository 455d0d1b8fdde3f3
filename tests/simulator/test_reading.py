"""Lists, cursors, filters, expansion, and the shape of what is read."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from marketplace.simulator import StripeSimulator, shapes

from .conftest import body


@pytest.fixture
def many(sim: StripeSimulator, seller: str) -> list[str]:
    """25 transfers, oldest first."""
    return [sim.create_transfer(100 + n, seller, transfer_group=f"g{n % 2}")["id"] for n in range(25)]


def ids(page: Any) -> list[str]:
    return [each.id for each in page.data]


def test_a_list_is_newest_first_and_ten_long_unless_asked(client: stripe.StripeClient, many: list[str]) -> None:
    page = client.v1.transfers.list()
    assert ids(page) == many[:14:-1]
    assert page.has_more
    assert ids(client.v1.transfers.list({"limit": 100})) == many[::-1]


@pytest.mark.parametrize("limit", [0, 101])
def test_a_limit_out_of_bounds_is_refused(client: stripe.StripeClient, sim: StripeSimulator, limit: int) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.list({"limit": limit})
    assert (caught.value.code, caught.value.param) == ("parameter_invalid_integer", "limit")


def test_cursors_walk_both_ways(client: stripe.StripeClient, many: list[str]) -> None:
    older = client.v1.transfers.list({"limit": 3, "starting_after": many[10]})
    assert ids(older) == [many[9], many[8], many[7]]
    newer = client.v1.transfers.list({"limit": 3, "ending_before": many[10]})
    assert ids(newer) == [many[13], many[12], many[11]]
    assert newer.has_more
    assert not client.v1.transfers.list({"limit": 20, "ending_before": many[10]}).has_more


def test_auto_paging_sees_all_once_while_new_ones_arrive(
    client: stripe.StripeClient, sim: StripeSimulator, seller: str, many: list[str]
) -> None:
    seen = []
    for transfer in client.v1.transfers.list({"limit": 4}).auto_paging_iter():
        seen.append(transfer.id)
        if len(seen) == 6:
            sim.create_transfer(1, seller)
    assert seen == many[::-1]


def test_an_unknown_cursor_is_refused(client: stripe.StripeClient, many: list[str]) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.list({"starting_after": "tr_none"})
    assert (caught.value.code, caught.value.param) == ("resource_missing", "starting_after")


def test_filters_narrow_a_list(client: stripe.StripeClient, sim: StripeSimulator, seller: str, many: list[str]) -> None:
    other = sim.create_transfer(5, sim.create_account()["id"])
    assert ids(client.v1.transfers.list({"destination": other["destination"]})) == [other["id"]]
    assert ids(client.v1.transfers.list({"transfer_group": "g1", "limit": 100})) == many[1::2][::-1]
    assert ids(client.v1.transfers.list({"transfer_group": "g1", "starting_after": many[3]})) == [many[1]]
    assert ids(client.v1.transfers.list({"destination": seller, "transfer_group": "none"})) == []


def test_created_filters_have_whole_seconds(client: stripe.StripeClient, sim: StripeSimulator, seller: str) -> None:
    sim.clock.freeze(1_800_000_000)
    made = []
    for _ in range(3):
        made.append(sim.create_transfer(1, seller)["id"])
        sim.clock.advance(10)
    at = 1_800_000_010
    assert ids(client.v1.transfers.list({"created": at})) == [made[1]]
    assert ids(client.v1.transfers.list({"created": {"gte": at}})) == [made[2], made[1]]
    assert ids(client.v1.transfers.list({"created": {"gt": at, "lt": at + 11}})) == [made[2]]
    assert ids(client.v1.transfers.list({"created": {"lt": at}})) == [made[0]]


def test_a_transfer_embeds_its_ten_latest_reversals(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    made = [sim.create_reversal(transfer["id"], 10 + n)["id"] for n in range(12)]
    read = client.v1.transfers.retrieve(transfer["id"])
    assert ids(read.reversals) == made[:1:-1]
    assert read.reversals.has_more
    assert read.reversals["total_count"] == 12
    assert [each.id for each in read.reversals.auto_paging_iter()] == made[::-1]
    listed = client.v1.transfers.reversals.list(transfer["id"], {"limit": 100})
    assert ids(listed) == made[::-1]
    assert (read.amount_reversed, read.reversed) == (sum(range(10, 22)), False)


def test_a_reversals_money_is_a_transfer_refund_whose_source_is_the_transfer(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    reversal = sim.create_reversal(transfer["id"], 100)
    sim.create_reversal(sim.create_transfer(5, transfer["destination"])["id"])
    listed = client.v1.balance_transactions.list(
        {"type": "transfer_refund", "source": transfer["id"], "expand": ["data.source", "data.source.destination"]}
    )
    (entry,) = listed.data
    assert entry.id == reversal["balance_transaction"]
    assert (entry.net, entry.reporting_category) == (100, "transfer_reversal")
    assert entry.source.amount_reversed == 100  # type: ignore[union-attr]
    assert entry.source.destination.object == "account"  # type: ignore[union-attr]


def test_the_sellers_side_is_read_as_the_seller(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    reversal = sim.create_reversal(transfer["id"], 100)
    seller = {"stripe_account": transfer["destination"]}
    refund = client.v1.refunds.retrieve(
        reversal["destination_payment_refund"],
        {"expand": ["balance_transaction"]},
        seller,  # type: ignore[arg-type]
    )
    assert refund.source_transfer_reversal == reversal["id"]
    assert refund.balance_transaction.net == -100  # type: ignore[union-attr]
    assert refund.balance_transaction.type == "payment_refund"  # type: ignore[union-attr]
    payment = client.v1.charges.retrieve(transfer["destination_payment"], {}, seller)  # type: ignore[arg-type]
    assert (payment.amount_refunded, payment.source_transfer) == (100, transfer["id"])
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.charges.retrieve(transfer["destination_payment"])


def test_nested_lists_expand_down_to_four_levels(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    sim.create_reversal(transfer["id"], 100)
    read = client.v1.transfers.retrieve(transfer["id"], {"expand": ["reversals.data.balance_transaction.source"]})
    assert read.reversals.data[0].balance_transaction.source.id == transfer["id"]  # type: ignore[union-attr]
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.transfers.retrieve(transfer["id"], {"expand": ["a.b.c.d.e"]})


def test_expanding_leaves_the_stored_object_alone(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    client.v1.transfers.retrieve(transfer["id"], {"expand": ["destination"]})
    assert client.v1.transfers.retrieve(transfer["id"]).destination == transfer["destination"]


def test_what_cannot_be_expanded_is_refused_before_anything_happens(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.reversals.create(transfer["id"], {"amount": 1, "expand": ["metadata.x"]})
    assert body(caught.value)["message"] == "This property cannot be expanded (metadata.x)."
    assert sim.reversals_of(transfer["id"]) == []


def test_a_charge_shows_its_refunds_only_when_asked(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    refund = sim.create_refund(charge["id"], 300)
    assert "refunds" not in client.v1.charges.retrieve(charge["id"])
    shown = client.v1.charges.retrieve(charge["id"], {"expand": ["refunds"]})
    assert ids(shown.refunds) == [refund["id"]]


def test_a_test_object_is_not_seen_with_a_live_key(
    sim: StripeSimulator, transfer: dict[str, Any], make_client: Any
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        make_client("sk_live_x").v1.transfers.retrieve(transfer["id"])
    assert caught.value.code == "resource_missing"
    assert "a similar object exists in test mode" in str(caught.value)


def everything(sim: StripeSimulator) -> dict[str, dict[str, Any]]:
    """One object of every kind, as sent."""
    seller = sim.create_account()
    charge = sim.create_charge(10_000)
    transfer = sim.create_transfer(7000, seller["id"], source_transaction=charge["id"])
    reversal = sim.create_reversal(transfer["id"], 100)
    made = [
        seller,
        charge,
        transfer,
        reversal,
        sim.create_refund(charge["id"], 100),
        sim.open_dispute(charge["id"], 500),
        sim.get(charge["payment_intent"]),
        sim.get(charge["balance_transaction"]),
        sim.get(transfer["destination_payment"]),
        sim.get(reversal["destination_payment_refund"]),
        sim.events()[0],
    ]
    return {each["id"]: each for each in made if each is not None}


def test_every_object_has_stripes_full_shape(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    made = list(everything(sim).values())
    made.append(client.v1.balance.retrieve().to_dict())
    made.append(client.v1.webhook_endpoints.create({"url": "https://example.com", "enabled_events": ["*"]}).to_dict())
    assert {each["object"] for each in made} >= set(shapes.EXPANDABLE)
    for each in made:
        about = shapes.reference(each["object"])
        assert [name for name in about["required"] if name not in each] == [], each["object"]
        unknown = [name for name in each if name not in about["fields"] and name not in about["sample"]]
        assert unknown == [], each["object"]
        for name, value in each.items():
            field = about["fields"].get(name)
            if field is not None and value is None:
                assert field["nullable"] or each["object"] in {"account", "dispute"}, (each["object"], name)
            elif field is not None:
                assert fits(field["type"], value), (each["object"], name, value)


def fits(kind: str, value: Any) -> bool:
    types: dict[str, type | tuple[type, ...]] = {
        "string": str,
        "integer": int,
        "boolean": bool,
        "array": list,
        "object": dict,
        "number": (int, float),
    }
    return kind == "any" or isinstance(value, types[kind])


def test_ids_say_what_they_are_and_come_from_the_seed(sim: StripeSimulator) -> None:
    first = list(everything(sim))
    assert {id_.partition("_")[0] for id_ in first} == {
        "acct", "ch", "tr", "trr", "re", "dp", "pi", "txn", "py", "pyr", "evt",
    }  # fmt: skip
    sim.reset()
    assert list(everything(sim)) == first
    assert list(everything(StripeSimulator(seed=8))) != first
