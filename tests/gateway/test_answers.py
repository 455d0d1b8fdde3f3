"""What each failure at Stripe becomes: the right answer with its code, request id and a message without secrets."""

import json
import socket
from datetime import UTC, datetime
from typing import Any

import pytest

from marketplace.gateway import contract
from marketplace.gateway.contract import (
    Busy,
    Denied,
    InsufficientFunds,
    NotFound,
    RateLimited,
    Refused,
    Reversed,
    ServerError,
    Unknown,
)
from tests.gateway.conftest import CALLS, RETRIEVE, REVERSE, SECRET_KEY, Said, ScriptedServer, gateway_to, reverse

FAULTS: list[tuple[str, dict[str, Any], type[Any]]] = [
    ("lock_timeout", {}, Busy),
    ("conflict", {}, Busy),
    ("rate_limited", {"reason": "endpoint-rate"}, RateLimited),
    ("unauthorized", {}, Denied),
    ("forbidden", {}, Denied),
    ("error_500", {}, ServerError),
    ("unavailable", {"status": 503}, Unknown),
    ("unavailable", {"status": 503, "html": True}, Unknown),
    ("unavailable", {"status": 502, "html": True}, Unknown),
    ("unavailable", {"status": 504}, Unknown),
    ("unavailable", {"status": 424}, Unknown),
    ("drop_before", {}, Unknown),
    ("drop_after", {}, Unknown),
    ("unreadable", {}, Unknown),
    ("not_utf8", {}, Unknown),
    ("truncated", {}, Unknown),
]


def faulty(case: Any) -> str:
    return "-".join(map(str, [case[0], *case[1].values()])) if isinstance(case, tuple) else str(case)


# --- Every failure, for every call ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", FAULTS, ids=faulty)
def test_every_failure_has_its_answer_in_every_call(
    name: str, fault: tuple[str, dict[str, Any], type[Any]], gateway: Any, simulator: Any
) -> None:
    action, options, expected = fault
    # What spoils a success needs one: everything that the calls speak of is there.
    account = simulator.create_account("acct_1")
    simulator.add_funds(5000)
    charge = simulator.create_charge(10_000)
    transfer = simulator.create_transfer(7000, account["id"], transfer_group="order-1")
    simulator.faults.add(action, **options)
    renamed = _Renamed(gateway, {"tr_1": transfer["id"], "pi_1": charge["payment_intent"]})
    answer = CALLS[name](renamed)
    assert type(answer) is expected
    assert len(simulator.requests) == 1


class _Renamed:
    """The gateway, asked about the simulator's objects under the names that ``CALLS`` gives them."""

    def __init__(self, gateway: Any, names: dict[str, str]) -> None:
        self._gateway, self._names = gateway, names

    def __getattr__(self, call: str) -> Any:
        def ask(*args: Any, **kwargs: Any) -> Any:
            def named(value: Any) -> Any:
                return self._names.get(value, value) if isinstance(value, str) else value

            return getattr(self._gateway, call)(
                *map(named, args), **{name: named(value) for name, value in kwargs.items()}
            )

        return ask


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b'"text"', b"{}", b'{"object": "list"}', b'{"id": 7}'])
def test_a_success_of_an_unexpected_shape_is_unknown(
    name: str, body: bytes, scripted: ScriptedServer, to_scripted: Any
) -> None:
    scripted.says = Said(200, body)
    assert type(CALLS[name](to_scripted)) is Unknown


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 409, 418, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        b"<html>Bad gateway</html>",
        b"",
        b"[]",
        b"{}",
        b'{"error": null}',
        b'{"error": []}',
        b'{"error": 7}',
        b'{"error": "invalid_grant"}',
        b'{"error": {"type": 7, "code": {}, "message": ["x"]}}',
        b"\xff\xfe",
    ],
)
def test_an_error_that_is_not_of_stripe_never_settles_a_row(
    status: int, body: bytes, scripted: ScriptedServer, to_scripted: Any
) -> None:
    """Nor does it say that Stripe keeps it under the key (a proxy's 500, while the request goes on to Stripe), or that
    Stripe refuses ours (a firewall's 403): the worker would stop, and not begin again when that one is mended.
    """
    scripted.says = Said(status, body)
    assert type(reverse(to_scripted)) in ({Unknown, Busy} if status in {409, 429} else {Unknown})


# --- The failures of section 3 of Stripe's facts, one by one ----------------------------------------------------------


def test_a_missing_transfer_is_not_found_and_named(gateway: Any, simulator: Any) -> None:
    answer = reverse(gateway, "tr_none")
    assert answer == NotFound(message="No such transfer: 'tr_none'", request_id=simulator.requests[0].id)


def test_a_transfer_of_the_other_mode_is_not_found(simulator: Any, transfer: str) -> None:
    live = type(gateway_to(simulator.url))(
        api_key="sk_live_0123456789", api_base=simulator.url, connect_timeout=2.0, read_timeout=5.0
    )
    answer = reverse(live, transfer)
    assert isinstance(answer, NotFound)
    assert "a similar object exists in test mode" in answer.message


def test_a_missing_object_in_a_parameter_is_refused_for_the_path_was_right(gateway: Any, simulator: Any) -> None:
    answer = CALLS["create_transfer"](gateway)
    assert isinstance(answer, Refused)
    assert answer.code == "resource_missing"


def test_a_seller_without_money_is_told_apart(gateway: Any, simulator: Any, account: str, transfer: str) -> None:
    simulator.pay_out(account)
    answer = reverse(gateway, transfer)
    assert isinstance(answer, InsufficientFunds)
    assert answer.request_id == simulator.requests[0].id


def test_a_platform_without_money_is_told_apart(gateway: Any, simulator: Any) -> None:
    simulator.create_account("acct_1")
    assert isinstance(CALLS["create_transfer"](gateway), InsufficientFunds)


def test_a_key_used_with_other_parameters_says_nothing_of_the_earlier_send(
    gateway: Any, simulator: Any, transfer: str
) -> None:
    reverse(gateway, transfer, amount=2000)
    answer = reverse(gateway, transfer, amount=2001)
    assert isinstance(answer, ServerError)
    assert len(simulator.requests) == 2


def test_a_lock_timeout_is_busy_and_a_limiter_is_not(gateway: Any, simulator: Any, transfer: str) -> None:
    simulator.faults.add("lock_timeout", nth=1)
    simulator.faults.add("rate_limited", reason="global-concurrency", nth=1)
    busy, limited = reverse(gateway, transfer), reverse(gateway, transfer)
    assert isinstance(busy, Busy)
    assert isinstance(limited, RateLimited)
    assert limited.reason == "global-concurrency"
    assert (busy.request_id, limited.request_id) == tuple(request.id for request in simulator.requests)
    assert simulator.reversals_of(transfer) == []
    assert isinstance(reverse(gateway, transfer), Reversed)


@pytest.mark.parametrize(
    ("status", "code", "headers", "expected"),
    [
        (429, "rate_limit", {}, RateLimited),
        (429, None, {"Stripe_Rate_Limited_Reason": "endpoint-rate"}, RateLimited),
        (429, None, {}, Busy),
        (429, "lock_timeout", {}, Busy),
        (400, "rate_limit", {}, RateLimited),
        (409, None, {}, Busy),
        (400, "parameter_unknown", {}, Refused),
        (400, "parameter_invalid_integer", {}, Refused),
        (402, "card_declined", {}, Refused),
        (403, "account_invalid", {}, Denied),
        (401, "api_key_expired", {}, Denied),
        (404, "resource_missing", {}, NotFound),
        (404, "url_invalid", {}, Refused),
        (400, "balance_insufficient", {}, InsufficientFunds),
        (500, "rate_limit", {}, ServerError),
        (503, "balance_insufficient", {}, Unknown),
        (424, "resource_missing", {}, Unknown),
        (599, None, {}, Unknown),
    ],
)
def test_status_and_code_decide(
    status: int,
    code: str | None,
    headers: dict[str, str],
    expected: type[Any],
    scripted: ScriptedServer,
    to_scripted: Any,
) -> None:
    error = {"type": "invalid_request_error", "message": "No.", **({"code": code} if code else {})}
    scripted.says_json({"error": error}, status, **headers)
    answer = reverse(to_scripted)
    assert type(answer) is expected
    assert (answer.message, answer.request_id) == ("No.", "req_scripted")
    if isinstance(answer, Refused):
        assert answer.code == code


def test_an_unknown_parameter_is_refused_by_its_code(gateway: Any, simulator: Any, transfer: str) -> None:
    # The gateway sends none, so the SDK is asked to: Stripe's own wording of the error counts.
    from marketplace.gateway import stripe_api

    answer = stripe_api._call(
        "reverse_transfer",
        lambda: gateway._client.transfers.reversals.create(transfer, {"amount": 1, "colour": "red"}),
        lambda made: made,
    )
    assert isinstance(answer, Refused)
    assert answer.code == "parameter_unknown"


@pytest.mark.parametrize("action", ["unauthorized", "forbidden"])
def test_no_part_of_a_key_that_stripe_quotes_gets_into_a_message(
    gateway: Any, simulator: Any, transfer: str, action: str
) -> None:
    simulator.faults.add(action)
    answer = reverse(gateway, transfer)
    assert isinstance(answer, Denied)
    assert SECRET_KEY[-4:] not in answer.message
    assert "sk_test_***" in answer.message


def test_the_message_of_a_500_names_the_request(gateway: Any, simulator: Any, transfer: str) -> None:
    simulator.faults.add("error_500")
    answer = reverse(gateway, transfer)
    assert isinstance(answer, ServerError)
    assert answer.request_id == simulator.requests[0].id
    assert "An unknown error occurred" in answer.message


# --- No answer at all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop_after", "error_500_after", "unreadable", "not_utf8", "truncated"])
def test_what_was_done_without_a_readable_answer_is_told_by_the_same_key(
    fault: str, gateway: Any, simulator: Any, transfer: str
) -> None:
    simulator.faults.add(fault, endpoint=REVERSE, times=1)
    assert type(reverse(gateway, transfer)) in {Unknown, ServerError}
    (made,) = simulator.reversals_of(transfer)
    again = reverse(gateway, transfer)
    if fault == "error_500_after":
        # Stored under the key: only a look can tell.
        assert isinstance(again, ServerError)
        assert gateway.list_reversals(transfer).reversals[0].stripe_reversal_id == made["id"]
    else:
        assert isinstance(again, Reversed)
        assert again.reversal.stripe_reversal_id == made["id"]
    assert len(simulator.reversals_of(transfer)) == 1


def test_an_answer_later_than_the_timeout_is_unknown(simulator: Any, transfer: str) -> None:
    simulator.faults.add("latency", seconds=0.4)
    answer = gateway_to(simulator.url, read_timeout=0.2).retrieve_transfer(transfer)
    assert isinstance(answer, Unknown)
    assert len(simulator.requests) == 1


def test_what_was_done_before_the_timeout_is_told_by_the_same_key(simulator: Any, transfer: str) -> None:
    simulator.faults.add("drop_after", hold=0.4, times=1)
    assert isinstance(reverse(gateway_to(simulator.url, read_timeout=0.2), transfer), Unknown)
    (made,) = simulator.reversals_of(transfer)
    answer = reverse(gateway_to(simulator.url), transfer)
    assert isinstance(answer, Reversed)
    assert answer.reversal.stripe_reversal_id == made["id"]


def test_a_refused_connection_is_unknown() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        # Bound, but not listening: nobody else gets the port, and nobody answers.
        answer = reverse(gateway_to(f"http://127.0.0.1:{port}"))
    assert isinstance(answer, Unknown)
    assert answer.request_id == ""


def test_a_page_that_fails_in_the_middle_of_a_list_fails_the_list(gateway: Any, simulator: Any, transfer: str) -> None:
    for _ in range(101):
        simulator.create_reversal(transfer, 1)
    simulator.faults.add("unavailable", nth=2)
    assert isinstance(gateway.list_reversals(transfer), Unknown)


# --- Facts of odd shapes ----------------------------------------------------------------------------------------------

TRANSFER = {"id": "tr_1", "object": "transfer", "amount": 7000, "amount_reversed": 0, "currency": "eur"}
REVERSAL = {"id": "trr_1", "object": "transfer_reversal", "amount": 2000, "currency": "eur"}
REFUND = {"id": "re_1", "object": "refund", "amount": 5, "currency": "eur", "status": "pending", "created": 1}
PAYMENT = {
    "id": "pi_1",
    "object": "payment_intent",
    "amount_received": 5,
    "currency": "eur",
    "status": "succeeded",
    "created": 1,
}
ACCOUNT = {"id": "acct_1", "object": "account"}
GOOD: dict[str, dict[str, Any]] = {
    "retrieve_transfer": TRANSFER,
    "reverse_transfer": REVERSAL,
    "create_refund": REFUND,
    "create_payment": PAYMENT,
    "create_account": ACCOUNT,
}


@pytest.mark.parametrize("name", GOOD)
def test_what_stripe_may_leave_out_is_not_needed(name: str, scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json(GOOD[name])
    assert not isinstance(CALLS[name](to_scripted), contract._Failure)


@pytest.mark.parametrize("told", [{}, {"created": None}])
def test_an_account_that_does_not_tell_when_it_was_created_is_older_than_any_event(
    told: dict[str, Any], scripted: ScriptedServer, to_scripted: Any
) -> None:
    scripted.says_json(ACCOUNT | told)
    assert CALLS["create_account"](to_scripted).account.seen_at == datetime.fromtimestamp(0, tz=UTC)


def test_an_expanded_object_counts_as_its_id(scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json(PAYMENT | {"latest_charge": {"id": "ch_1", "object": "charge"}})
    assert CALLS["create_payment"](to_scripted).payment.stripe_charge_id == "ch_1"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("retrieve_transfer", {"id": None}),
        ("retrieve_transfer", {"id": ""}),
        ("retrieve_transfer", {"id": 5}),
        ("retrieve_transfer", {"amount": "7000"}),
        ("retrieve_transfer", {"amount": 7000.0}),
        ("retrieve_transfer", {"amount": True}),
        ("retrieve_transfer", {"amount": -1}),
        ("retrieve_transfer", {"amount": 2**63}),
        ("retrieve_transfer", {"amount_reversed": 7001}),
        ("retrieve_transfer", {"amount_reversed": -1}),
        ("retrieve_transfer", {"currency": None}),
        ("retrieve_transfer", {"metadata": ["operation_id"]}),
        ("retrieve_transfer", {"metadata": {"operation_id": 7}}),
        ("retrieve_transfer", {"metadata": "operation_id"}),
        ("reverse_transfer", {"status": 1}),
        ("reverse_transfer", {"metadata": {"operation_id": {"a": "b"}}}),
        ("create_refund", {"status": None}),
        ("create_refund", {"failure_reason": {}}),
        ("create_refund", {"payment_intent": 7}),
        ("create_refund", {"charge": {"object": "charge"}}),
        ("create_refund", {"created": "yesterday"}),
        ("create_refund", {"created": 10**18}),
        ("create_refund", {"created": 10**14}),
        ("create_refund", {"created": 2**63 - 1}),
        ("create_refund", {"created": None}),
        ("create_payment", {"latest_charge": []}),
        ("create_payment", {"amount_received": None}),
        ("create_account", {"capabilities": ["transfers"]}),
        ("create_account", {"capabilities": {"transfers": None}}),
        ("create_account", {"payouts_enabled": "false"}),
        ("create_account", {"created": "yesterday"}),
        ("create_account", {"created": False}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_facts_of_an_unexpected_shape_are_unknown_with_their_request(
    name: str, change: dict[str, Any], scripted: ScriptedServer, to_scripted: Any
) -> None:
    scripted.says_json(GOOD[name] | change)
    answer = CALLS[name](to_scripted)
    assert isinstance(answer, Unknown)
    assert answer.message.startswith("answer of an unexpected shape")
    assert answer.request_id == "req_scripted"


def test_more_reversed_than_transferred_reverses_nothing(scripted: ScriptedServer, to_scripted: Any) -> None:
    scripted.says_json(TRANSFER | {"amount_reversed": 7001})
    assert isinstance(reverse(to_scripted, amount=None), Unknown)
    assert [asked.method for asked in scripted.asked] == ["GET"]


@pytest.mark.parametrize("first", [RETRIEVE])
def test_a_refusal_that_cannot_be_looked_into_is_not_decided(
    first: str, gateway: Any, simulator: Any, transfer: str
) -> None:
    simulator.create_reversal(transfer)
    simulator.faults.add("unreadable", endpoint=first)
    assert isinstance(reverse(gateway, transfer), Unknown)
