"""Events as Stripe lists them: filters, directions, connected accounts, and bodies as a webhook would bring them."""

from typing import Any

import pytest

from marketplace.gateway import stripe_events
from marketplace.gateway.contract import Denied, EventsListed, Refused, Unknown
from tests.gateway.conftest import ScriptedServer

TYPES = ("refund.created", "transfer.created", "account.updated")
ALWAYS = {"since": 0, "until": 2**40}


def ids(answer: Any) -> list[str]:
    assert isinstance(answer, EventsListed), answer
    return [event.stripe_event_id for event in answer.events]


@pytest.fixture
def told(simulator: Any) -> list[str]:
    """Of five events about one refund the ids, oldest first, a minute apart."""
    simulator.clock.freeze()
    made = []
    for _ in range(5):
        made.append(simulator.emit("refund.created", {"id": "re_1", "object": "refund"})["id"])
        simulator.emit("refund.updated", {"id": "re_1", "object": "refund"})
        simulator.clock.advance(60)
    return made


def test_a_page_is_newest_first_and_of_the_types_that_were_asked_for(gateway: Any, told: list[str]) -> None:
    answer = gateway.list_events(types=["refund.created"], **ALWAYS)
    assert (ids(answer), answer.has_more) == (told[::-1], False)
    both = gateway.list_events(types=["refund.updated", "refund.created"], **ALWAYS)
    assert len(both.events) == 10


def test_an_event_reads_as_the_one_that_a_webhook_brings(gateway: Any, simulator: Any) -> None:
    refund = simulator.create_refund(simulator.create_charge(5000)["id"], status="succeeded")
    (listed,) = gateway.list_events(types=["refund.created"], **ALWAYS).events
    (event,) = simulator.events(type="refund.created", object=refund["id"])
    assert listed.body == event
    signed = stripe_events.verify(*simulator.sign(event, "whsec_testPlatform"))
    assert stripe_events.read(listed.body) == signed
    assert listed.created_at == signed.created_at


def test_only_the_period_is_listed_with_both_its_ends(gateway: Any, simulator: Any, told: list[str]) -> None:
    created = [event["created"] for event in simulator.events(type="refund.created")]
    assert len(created) == 5
    answer = gateway.list_events(types=["refund.created"], since=created[1], until=created[3])
    assert ids(answer) == told[1:4][::-1]


def test_pages_go_on_in_both_directions(gateway: Any, told: list[str]) -> None:
    def page(**more: Any) -> tuple[list[str], bool]:
        answer = gateway.list_events(types=["refund.created"], limit=2, **ALWAYS, **more)
        return ids(answer), answer.has_more

    assert page() == ([told[4], told[3]], True)
    assert page(starting_after=told[3]) == ([told[2], told[1]], True)
    assert page(starting_after=told[1]) == ([told[0]], False)
    assert page(ending_before=told[0]) == ([told[2], told[1]], True)
    assert page(ending_before=told[3]) == ([told[4]], False)


def test_what_was_not_delivered_is_listed_alone(gateway: Any, simulator: Any) -> None:
    simulator.emit("refund.created", {"id": "re_1", "object": "refund"})
    simulator.deliver_to("http://127.0.0.1:9/")
    simulator.webhook_faults.dropped = 1.0
    lost = simulator.emit("refund.created", {"id": "re_1", "object": "refund"})["id"]
    assert ids(gateway.list_events(types=["refund.created"], undelivered=True, **ALWAYS)) == [lost]


def test_a_connected_accounts_events_are_listed_as_that_account_and_name_it(
    gateway: Any, simulator: Any, account: str, scripted: ScriptedServer, to_scripted: Any
) -> None:
    assert ids(gateway.list_events(types=["account.updated"], **ALWAYS)) == []
    simulator.set_capability(account, status="inactive")
    listed = gateway.list_events(types=["account.updated"], stripe_account=account, **ALWAYS).events
    assert {event.body["account"] for event in listed} == {account}
    body = {"id": "evt_1", "object": "event", "created": 5, "account": None}
    scripted.says_json({"object": "list", "has_more": False, "data": [body]})
    (bare,) = to_scripted.list_events(types=["account.updated"], stripe_account="acct_1", **ALWAYS).events
    assert bare.body["account"] == "acct_1"
    assert scripted.asked[0].headers["stripe-account"] == "acct_1"
    (own,) = to_scripted.list_events(types=["account.updated"], **ALWAYS).events
    assert own.body["account"] is None


def test_an_account_that_is_closed_to_us_is_forbidden(gateway: Any, simulator: Any, account: str) -> None:
    simulator.deauthorize(account)
    answer = gateway.list_events(types=["account.updated"], stripe_account=account, **ALWAYS)
    assert isinstance(answer, Denied)
    assert answer.forbidden


def test_an_unknown_cursor_is_no_page(gateway: Any, told: list[str]) -> None:
    answer = gateway.list_events(types=["refund.created"], ending_before="evt_gone", **ALWAYS)
    assert not isinstance(answer, EventsListed | Unknown)


@pytest.mark.parametrize("types", [[], [f"type.{number}" for number in range(21)]])
def test_no_type_and_more_than_stripe_takes_are_never_asked_for(gateway: Any, simulator: Any, types: list[str]) -> None:
    with pytest.raises(ValueError, match="from 1 to 20 types may be asked for"):
        gateway.list_events(types=types, **ALWAYS)
    assert simulator.requests.total == 0


def test_twenty_types_are_one_request(gateway: Any, simulator: Any) -> None:
    assert not isinstance(gateway.list_events(types=[f"a.{number}" for number in range(20)], **ALWAYS), Refused)
    assert simulator.requests.total == 1


EVENT = {"id": "evt_1", "object": "event", "created": 5}


@pytest.mark.parametrize(
    "page",
    [
        {"data": [EVENT]},
        {"data": [EVENT], "has_more": "yes"},
        {"data": None, "has_more": False},
        {"data": [None], "has_more": False},
        {"data": ["evt_1"], "has_more": False},
        {"data": [EVENT | {"id": None}], "has_more": False},
        {"data": [EVENT | {"created": None}], "has_more": False},
        {"data": [EVENT | {"created": 10**17}], "has_more": False},
    ],
)
def test_a_page_of_another_shape_is_unknown(page: Any, scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json({"object": "list", **page})
    assert isinstance(to_scripted.list_events(types=["refund.created"], **ALWAYS), Unknown)


def test_a_number_that_is_none_makes_the_page_unknown(scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json(
        {"object": "list", "has_more": False, "data": [EVENT | {"data": {"object": {"a": float("nan")}}}]}
    )
    assert isinstance(to_scripted.list_events(types=["refund.created"], **ALWAYS), Unknown)
