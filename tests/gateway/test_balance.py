"""Balances as the gateway tells of them: of our own account and of sellers, also below zero."""

from typing import Any

import pytest

from marketplace.gateway import reading
from marketplace.gateway.contract import BalanceFacts, BalanceRetrieved, Denied, Unknown
from tests.gateway.conftest import ScriptedServer

BALANCE = "GET /v1/balance"


def test_our_own_balance_is_asked_for_without_naming_an_account(gateway: Any, simulator: Any) -> None:
    simulator.add_funds(1200)
    answer = gateway.retrieve_balance()
    (request,) = simulator.requests.to(BALANCE)
    assert answer == BalanceRetrieved(balance=BalanceFacts(available={"eur": 1200}), request_id=request.id)


def test_a_sellers_balance_is_asked_for_as_that_account(
    scripted: ScriptedServer, to_scripted: Any, gateway: Any, simulator: Any, account: str
) -> None:
    simulator.add_funds(1200)
    simulator.add_funds(700, account=account)
    simulator.add_funds(30, "jpy", account=account)
    answer = gateway.retrieve_balance(stripe_account=account)
    assert answer.balance.available == {"eur": 700, "jpy": 30}
    for named in ("acct_1", ""):
        to_scripted.retrieve_balance(stripe_account=named)
    assert [asked.headers.get("stripe-account") for asked in scripted.asked] == ["acct_1", None]


def test_a_balance_may_be_below_zero(gateway: Any, simulator: Any, account: str, transfer: str) -> None:
    simulator.pay_out(account)
    simulator.may_go_negative(account)
    simulator.create_reversal(transfer)
    assert gateway.retrieve_balance(stripe_account=account).balance.available == {"eur": -7000}


def test_what_is_pending_is_not_available(scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json(
        {
            "object": "balance",
            "available": [{"amount": -5, "currency": "eur"}],
            "pending": [{"amount": 900, "currency": "eur"}],
            "instant_available": [{"amount": 900, "currency": "eur"}],
        }
    )
    assert to_scripted.retrieve_balance().balance.available == {"eur": -5}


def test_the_parts_of_one_currency_count_together() -> None:
    parts = [{"amount": 5, "currency": "eur"}, {"amount": -7, "currency": "eur"}, {"amount": 1, "currency": "jpy"}]
    assert reading.balance_facts({"available": parts}).available == {"eur": -2, "jpy": 1}


def test_no_part_is_no_money() -> None:
    assert reading.balance_facts({"available": []}).available == {}


@pytest.mark.parametrize("amount", [None, "5", 5.0, True, False, -5.0, 2**63, -(2**63)])
def test_an_amount_that_is_no_whole_number_of_any_size_we_can_hold_is_unknown(
    scripted: ScriptedServer, to_scripted: Any, amount: Any
) -> None:
    scripted.says_json({"object": "balance", "available": [{"amount": amount, "currency": "eur"}]})
    assert isinstance(to_scripted.retrieve_balance(), Unknown)


@pytest.mark.parametrize("amount", [2**63 - 1, -(2**63 - 1), 0])
def test_any_other_whole_number_is_taken(scripted: ScriptedServer, to_scripted: Any, amount: int) -> None:
    scripted.says_json({"object": "balance", "available": [{"amount": amount, "currency": "eur"}]})
    assert to_scripted.retrieve_balance().balance.available == {"eur": amount}


def test_an_account_that_is_not_ours_is_forbidden_and_a_bad_key_is_not(
    gateway: Any, simulator: Any, account: str
) -> None:
    simulator.deauthorize(account)
    gone, never = (gateway.retrieve_balance(stripe_account=named) for named in (account, "acct_unknown"))
    assert isinstance(gone, Denied)
    assert isinstance(never, Denied)
    assert (gone.forbidden, never.forbidden) == (True, True)
    assert isinstance(gateway.retrieve_balance(), BalanceRetrieved)
    simulator.faults.add("unauthorized")
    bad_key = gateway.retrieve_balance(stripe_account=account)
    assert isinstance(bad_key, Denied)
    assert not bad_key.forbidden
