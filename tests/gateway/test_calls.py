"""Each call of the gateway against the simulator over HTTP, and how it is sent."""

import threading
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest
import stripe
import urllib3

from marketplace import throttle
from marketplace.gateway import http_client, stripe_api
from marketplace.gateway.contract import (
    AccountCreated,
    AlreadyReversed,
    InsufficientFunds,
    NotFound,
    PaymentCreated,
    RefundCreated,
    RefundsListed,
    Refused,
    ReversalsListed,
    Reversed,
    TransferCreated,
    TransferRetrieved,
    TransfersListed,
)
from tests.gateway.conftest import (
    CALLS,
    KEY,
    LIST_REVERSALS,
    OPERATION,
    RETRIEVE,
    REVERSE,
    ScriptedServer,
    create_account,
    create_payment,
    create_refund,
    create_transfer,
    reverse,
)


def form_of(request: Any) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.form).items()}


# --- What each call does ----------------------------------------------------------------------------------------------


def test_a_transfer_is_created_from_its_charge_and_bears_our_operation(
    gateway: Any, simulator: Any, account: str
) -> None:
    charge = simulator.create_charge(10_000, transfer_group="order-1")
    answer = create_transfer(gateway, destination=account, source_transaction=charge["id"])
    assert isinstance(answer, TransferCreated)
    at_stripe = simulator.get(answer.transfer.stripe_transfer_id)
    assert (answer.transfer.amount, answer.transfer.amount_reversed, answer.transfer.currency) == (5000, 0, "eur")
    assert answer.transfer.operation_id == str(OPERATION) == at_stripe["metadata"]["operation_id"]
    assert (at_stripe["destination"], at_stripe["source_transaction"]) == (account, charge["id"])
    assert at_stripe["transfer_group"] == "order-1"
    (request,) = simulator.requests
    assert (request.key, answer.request_id) == (KEY, request.id)


def test_a_transfer_without_a_charge_is_paid_from_the_balance(gateway: Any, simulator: Any, account: str) -> None:
    simulator.add_funds(5000)
    assert isinstance(create_transfer(gateway, destination=account), TransferCreated)
    assert "source_transaction" not in form_of(simulator.requests[0])


def test_a_transfer_is_retrieved(gateway: Any, simulator: Any, transfer: str) -> None:
    simulator.create_reversal(transfer, 1500)
    answer = gateway.retrieve_transfer(transfer)
    assert isinstance(answer, TransferRetrieved)
    assert (answer.transfer.stripe_transfer_id, answer.transfer.operation_id) == (transfer, "op-transfer")
    assert (answer.transfer.amount, answer.transfer.amount_reversed) == (7000, 1500)
    assert answer.request_id == simulator.requests[0].id


def test_transfers_are_listed_by_their_group_over_all_pages(gateway: Any, simulator: Any, account: str) -> None:
    simulator.add_funds(1000)
    made = {simulator.create_transfer(1, account, transfer_group="order-1")["id"] for _ in range(101)}
    simulator.create_transfer(1, account, transfer_group="order-2")
    answer = gateway.list_transfers(transfer_group="order-1")
    assert isinstance(answer, TransfersListed)
    assert {transfer.stripe_transfer_id for transfer in answer.transfers} == made
    assert len(answer.transfers) == 101
    assert len(simulator.requests) == 2


def test_a_part_of_a_transfer_is_reversed(gateway: Any, simulator: Any, transfer: str) -> None:
    answer = reverse(gateway, transfer, amount=2000)
    assert isinstance(answer, Reversed)
    (made,) = simulator.reversals_of(transfer)
    assert (answer.reversal.stripe_reversal_id, answer.reversal.amount) == (made["id"], 2000)
    assert (answer.reversal.currency, answer.reversal.operation_id) == ("eur", str(OPERATION))
    assert answer.reversal.is_done
    assert made["metadata"] == {"operation_id": str(OPERATION), "reason": "refund 1"}
    (request,) = simulator.requests
    assert (request.key, answer.request_id) == (KEY, request.id)


def test_the_same_key_again_gives_the_same_reversal(gateway: Any, simulator: Any, transfer: str) -> None:
    first, second = reverse(gateway, transfer), reverse(gateway, transfer)
    assert isinstance(second, Reversed)
    assert second.reversal == first.reversal
    assert len(simulator.reversals_of(transfer)) == 1


@pytest.mark.parametrize(("taken", "remains"), [(None, 7000), (2500, 4500)])
def test_no_amount_means_all_that_remains_and_the_amount_is_sent(
    gateway: Any, simulator: Any, transfer: str, taken: int | None, remains: int
) -> None:
    if taken:
        simulator.create_reversal(transfer, taken)
    answer = reverse(gateway, transfer, amount=None)
    assert isinstance(answer, Reversed)
    assert answer.reversal.amount == remains
    (sent,) = simulator.requests.to(REVERSE)
    assert form_of(sent)["amount"] == str(remains)
    assert simulator.get(transfer)["reversed"] is True


def test_no_amount_where_nothing_remains_is_already_reversed_and_nothing_is_sent(
    gateway: Any, simulator: Any, transfer: str
) -> None:
    theirs = simulator.create_reversal(transfer)
    answer = reverse(gateway, transfer, amount=None)
    assert isinstance(answer, AlreadyReversed)
    assert [reversal.stripe_reversal_id for reversal in answer.reversals] == [theirs["id"]]
    assert answer.transfer.amount_reversed == 7000
    assert answer.request_id
    assert simulator.requests.to(REVERSE) == []


def test_no_amount_on_a_transfer_that_does_not_exist_is_not_found(gateway: Any, simulator: Any) -> None:
    assert isinstance(reverse(gateway, "tr_none", amount=None), NotFound)
    assert simulator.requests.to(REVERSE) == []


def test_a_pending_reversal_is_not_done(gateway: Any, simulator: Any, account: str) -> None:
    simulator.set(pending_reversals=True)
    transfer = simulator.create_transfer(7000, account)["id"]
    simulator.pay_out(account)
    answer = reverse(gateway, transfer)
    assert isinstance(answer, Reversed)
    assert (answer.reversal.status, answer.reversal.is_done) == ("pending", False)
    simulator.add_funds(7000, account=account)
    simulator.clock.advance(2 * 3600)
    (listed,) = gateway.list_reversals(transfer).reversals
    assert (listed.status, listed.is_done) == ("succeeded", True)


@pytest.mark.parametrize("number", [0, 11, 101])
def test_all_reversals_are_listed(gateway: Any, simulator: Any, transfer: str, number: int) -> None:
    made = [simulator.create_reversal(transfer, 1)["id"] for _ in range(number)]
    answer = gateway.list_reversals(transfer)
    assert isinstance(answer, ReversalsListed)
    assert [reversal.stripe_reversal_id for reversal in answer.reversals] == made[::-1]
    assert len(simulator.requests) == (2 if number > 100 else 1)


def test_a_refund_is_created_and_listed(gateway: Any, simulator: Any) -> None:
    charge = simulator.create_charge(10_000)
    answer = create_refund(gateway, payment_intent=charge["payment_intent"])
    assert isinstance(answer, RefundCreated)
    assert (answer.refund.amount, answer.refund.currency, answer.refund.status) == (500, "eur", "succeeded")
    assert answer.refund.stripe_payment_intent_id == charge["payment_intent"]
    assert answer.refund.stripe_charge_id == charge["id"]
    assert answer.refund.operation_id == str(OPERATION)
    assert answer.refund.failure_reason == ""
    made = simulator.get(answer.refund.stripe_refund_id)
    assert answer.refund.seen_at.timestamp() == made["created"]
    (request,) = simulator.requests
    assert (request.key, answer.request_id) == (KEY, request.id)
    assert gateway.list_refunds(payment_intent=charge["payment_intent"]) == RefundsListed(refunds=(answer.refund,))


def test_refunds_are_listed_over_all_pages(gateway: Any, simulator: Any) -> None:
    charge = simulator.create_charge(10_000)
    for _ in range(101):
        simulator.create_refund(charge["id"], 1)
    assert len(gateway.list_refunds(payment_intent=charge["payment_intent"]).refunds) == 101


def test_a_payment_is_confirmed_at_once(gateway: Any, simulator: Any) -> None:
    answer = create_payment(gateway)
    assert isinstance(answer, PaymentCreated)
    made = simulator.get(answer.payment.stripe_payment_intent_id)
    assert (made["status"], made["transfer_group"]) == ("succeeded", "order-1")
    assert answer.payment.stripe_charge_id == made["latest_charge"]
    assert (answer.payment.amount_received, answer.payment.currency, answer.payment.status) == (
        10_000,
        "eur",
        "succeeded",
    )
    assert answer.payment.order_operation_id == str(OPERATION)
    assert answer.payment.paid_at.timestamp() == made["created"]
    (request,) = simulator.requests
    assert (request.key, answer.request_id) == (KEY, request.id)


def test_a_declined_card_is_refused_by_its_code(gateway: Any, simulator: Any) -> None:
    answer = create_payment(gateway, payment_method="pm_card_chargeDeclined")
    assert isinstance(answer, Refused)
    assert answer.code == "card_declined"


def test_an_account_is_created_that_can_receive_transfers(gateway: Any, simulator: Any) -> None:
    simulator.clock.advance(3600)
    answer = create_account(gateway)
    assert isinstance(answer, AccountCreated)
    made = simulator.get(answer.account.stripe_account_id)
    assert made["controller"]["losses"]["payments"] == "application"
    assert answer.account.transfers_capability == made["capabilities"]["transfers"]
    # By Stripe's clock, as the events that may follow.
    assert answer.account.seen_at.timestamp() == made["created"]
    (request,) = simulator.requests
    assert (request.key, answer.request_id) == (KEY, request.id)
    simulator.add_funds(5000)
    sent = create_transfer(gateway, destination=made["id"], idempotency_key="another")
    assert isinstance(sent, TransferCreated)


# --- Already reversed: from evidence, never from the text -------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 11, 101])
def test_a_transfer_reversed_in_full_is_already_reversed_with_all_its_reversals(
    gateway: Any, simulator: Any, transfer: str, number: int
) -> None:
    made = [simulator.create_reversal(transfer, 10)["id"] for _ in range(number - 1)]
    made.append(simulator.create_reversal(transfer)["id"])
    answer = reverse(gateway, transfer, amount=10)
    assert isinstance(answer, AlreadyReversed)
    assert [reversal.stripe_reversal_id for reversal in answer.reversals] == made[::-1]
    assert answer.transfer.amount_reversed == answer.transfer.amount
    (refusal,) = simulator.requests.to(REVERSE)
    assert answer.request_id == refusal.id


def test_what_others_reverse_while_a_refusal_is_looked_into_counts(simulator: Any, transfer: str) -> None:
    """After the transfer was read, before its list is: the two agree in the answer."""

    class Meanwhile:
        def enter(self, endpoint: str) -> None:
            if endpoint == "GET /v1/transfers/{id}/reversals":
                simulator.create_reversal(transfer, 30)

        def limited(self, endpoint: str, reason: str) -> None: ...

    simulator.create_reversal(transfer, 6950)
    answer = reverse(stripe_api.connect(gate=Meanwhile()), transfer, amount=100)
    assert isinstance(answer, AlreadyReversed)
    assert [reversal.amount for reversal in answer.reversals] == [30, 6950]
    assert answer.transfer.amount_reversed == 6980


def test_less_left_than_asked_for_is_already_reversed_too(gateway: Any, simulator: Any, transfer: str) -> None:
    theirs = simulator.create_reversal(transfer, 6000)
    answer = reverse(gateway, transfer, amount=1001)
    assert isinstance(answer, AlreadyReversed)
    assert (answer.transfer.amount, answer.transfer.amount_reversed) == (7000, 6000)
    assert [(reversal.stripe_reversal_id, reversal.amount) for reversal in answer.reversals] == [(theirs["id"], 6000)]


def test_exactly_what_is_left_is_reversed(gateway: Any, simulator: Any, transfer: str) -> None:
    simulator.create_reversal(transfer, 6000)
    assert isinstance(reverse(gateway, transfer, amount=1000), Reversed)


def scripted_transfer(server: ScriptedServer, *, message: str, amount_reversed: int, status: str = "") -> None:
    """A Stripe that refuses the reversal with this text, and says this of the transfer, and of its one reversal."""
    from tests.gateway.conftest import Asked, Said  # its types are needed here alone

    said = b', "status": "%s"' % status.encode() if status else b""
    reversal = b'{"id": "trr_1", "object": "transfer_reversal", "amount": 7000, "currency": "eur"%s}' % said

    def says(asked: Asked) -> Said:
        if asked.method == "POST":
            return Said(400, b'{"error": {"type": "invalid_request_error", "message": "%s"}}' % message.encode())
        if "reversals" in asked.path:
            return Said(200, b'{"object": "list", "has_more": false, "url": "/x", "data": [%s]}' % reversal)
        return Said(
            200,
            b'{"id": "tr_1", "object": "transfer", "amount": 7000, "amount_reversed": %d, "currency": "eur"}'
            % amount_reversed,
        )

    server.says = says


def test_another_wording_of_the_refusal_is_already_reversed_all_the_same(
    scripted: ScriptedServer, to_scripted: Any
) -> None:
    scripted_transfer(scripted, message="Nothing doing.", amount_reversed=7000)
    answer = reverse(to_scripted)
    assert isinstance(answer, AlreadyReversed)
    assert [reversal.stripe_reversal_id for reversal in answer.reversals] == ["trr_1"]


def test_the_same_wording_with_money_left_is_refused(scripted: ScriptedServer, to_scripted: Any) -> None:
    message = "The transfer tr_1 is already fully reversed."
    scripted_transfer(scripted, message=message, amount_reversed=5000)
    answer = reverse(to_scripted, amount=2000)
    assert answer == Refused(message=message, request_id="req_scripted", code="invalid_request_error")


@pytest.mark.parametrize(
    ("status", "answer"), [("pending", InsufficientFunds), ("failed", Refused), ("canceled", Refused), ("", Refused)]
)
def test_what_another_reversal_waits_for_is_not_there_for_ours(
    scripted: ScriptedServer, to_scripted: Any, status: str, answer: type[Any]
) -> None:
    scripted_transfer(scripted, message="Nothing doing.", amount_reversed=0, status=status)
    assert isinstance(reverse(to_scripted, amount=2000), answer)


@pytest.mark.parametrize("look", [RETRIEVE, LIST_REVERSALS])
@pytest.mark.parametrize("amount", [10, None])
def test_a_look_that_fails_answers_its_own_failure(
    gateway: Any, simulator: Any, transfer: str, look: str, amount: int | None
) -> None:
    simulator.create_reversal(transfer)
    simulator.faults.add("unavailable", endpoint=look)
    assert type(reverse(gateway, transfer, amount=amount)).__name__ == "Unknown"


# --- How it is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_a_failing_call_is_sent_once_and_never_again_by_the_sdk(name: str, gateway: Any, simulator: Any) -> None:
    simulator.faults.add("drop_before")
    CALLS[name](gateway)
    assert len(simulator.requests) == 1


@pytest.mark.parametrize("name", CALLS)
def test_every_call_pins_the_version_and_bears_the_key(name: str, scripted: ScriptedServer, to_scripted: Any) -> None:
    CALLS[name](to_scripted)
    (asked,) = scripted.asked
    assert asked.headers["stripe-version"] == "2026-10-28.endive" == stripe_api.API_VERSION
    assert asked.headers["authorization"] == "Bearer sk_test_ForTestsOnly"
    if asked.method == "POST":
        assert asked.headers["idempotency-key"] == KEY


def test_no_call_reports_on_the_one_before(scripted: ScriptedServer, to_scripted: Any) -> None:
    to_scripted.retrieve_transfer("tr_1")
    to_scripted.retrieve_transfer("tr_1")
    assert not [name for asked in scripted.asked for name in asked.headers if "telemetry" in name]
    assert stripe.enable_telemetry is False


def test_a_thread_sends_all_its_calls_over_one_connection(scripted: ScriptedServer, to_scripted: Any) -> None:
    together = threading.Barrier(2)

    def work() -> None:
        for _ in range(3):
            to_scripted.retrieve_transfer("tr_1")
            reverse(to_scripted)
        together.wait(timeout=10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scripted.asked) == 12
    assert scripted.connections == 2


@pytest.mark.django_db(transaction=True)
def test_a_process_has_one_gateway_to_the_configured_stripe(gateway: Any, simulator: Any, transfer: str) -> None:
    assert throttle.gateway() is throttle.gateway()
    assert isinstance(throttle.gateway().retrieve_transfer(transfer), TransferRetrieved)


def test_without_a_key_stripe_is_asked_and_says_no(simulator: Any) -> None:
    unconfigured = stripe_api.StripeGateway(api_key="", api_base=simulator.url, connect_timeout=2.0, read_timeout=5.0)
    simulator.revoke_key("sk_test_not_configured")
    assert type(unconfigured.retrieve_transfer("tr_1")).__name__ == "Denied"


def test_without_an_address_it_is_stripe_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def request(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(url)
        raise stripe.APIConnectionError("not from here")

    monkeypatch.setattr(http_client.GatedClient, "request", request)
    real = stripe_api.StripeGateway(api_key="sk_test_x", api_base="", connect_timeout=2.0, read_timeout=5.0)
    real.retrieve_transfer("tr_1")
    assert asked == ["https://api.stripe.com/v1/transfers/tr_1"]


# --- Nonsense is refused before anything is sent ----------------------------------------------------------------------

Ask = Callable[..., Any]


@pytest.mark.parametrize("amount", [0, -1, 2000.0, True, "2000", float("nan")])
@pytest.mark.parametrize("ask", [reverse, create_transfer, create_refund, create_payment])
def test_an_amount_that_is_no_positive_whole_number_is_never_sent(
    scripted: ScriptedServer, to_scripted: Any, ask: Ask, amount: Any
) -> None:
    with pytest.raises(ValueError, match="positive whole number"):
        ask(to_scripted, amount=amount)
    assert scripted.asked == []


@pytest.mark.parametrize("ask", [create_transfer, create_refund, create_payment])
def test_only_a_reversal_may_leave_the_amount_out(scripted: ScriptedServer, to_scripted: Any, ask: Ask) -> None:
    with pytest.raises(ValueError, match="positive whole number"):
        ask(to_scripted, amount=None)
    assert scripted.asked == []


@pytest.mark.parametrize("empty", ["", "  ", None])
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(reverse, id="reverse"),
        pytest.param(lambda gateway, empty: reverse(gateway, empty, amount=None), id="reverse all"),
        pytest.param(lambda gateway, empty: gateway.retrieve_transfer(empty), id="retrieve"),
        pytest.param(lambda gateway, empty: gateway.list_reversals(empty), id="list reversals"),
        pytest.param(lambda gateway, empty: gateway.list_transfers(transfer_group=empty), id="list transfers"),
        pytest.param(lambda gateway, empty: gateway.list_refunds(payment_intent=empty), id="list refunds"),
        pytest.param(lambda gateway, empty: create_refund(gateway, payment_intent=empty), id="refund"),
        pytest.param(lambda gateway, empty: create_transfer(gateway, destination=empty), id="transfer"),
    ],
)
def test_an_empty_id_is_never_sent(scripted: ScriptedServer, to_scripted: Any, ask: Ask, empty: Any) -> None:
    with pytest.raises(ValueError, match="needed"):
        ask(to_scripted, empty)
    assert scripted.asked == []


@pytest.mark.parametrize("ask", [reverse, create_transfer, create_refund, create_payment, create_account])
def test_an_empty_key_is_never_sent_for_the_sdk_would_make_one_up(
    scripted: ScriptedServer, to_scripted: Any, ask: Ask
) -> None:
    with pytest.raises(ValueError, match="needed"):
        ask(to_scripted, idempotency_key="")
    assert scripted.asked == []


def test_an_id_cannot_lead_to_another_path(scripted: ScriptedServer, to_scripted: Any) -> None:
    to_scripted.retrieve_transfer("../charges/ch_1?x=y")
    assert scripted.asked[0].path == "/v1/transfers/..%2Fcharges%2Fch_1%3Fx%3Dy"


def test_two_operations_of_the_same_amount_are_two_reversals(gateway: Any, simulator: Any, transfer: str) -> None:
    first = reverse(gateway, transfer)
    second = reverse(gateway, transfer, operation_id=uuid.uuid4(), idempotency_key="another")
    assert first.reversal.stripe_reversal_id != second.reversal.stripe_reversal_id
    assert simulator.get(transfer)["amount_reversed"] == 4000


@pytest.mark.parametrize(
    ("variables", "proxied", "login"),
    [
        ({}, False, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, True, None),
        ({"HTTPS_PROXY": "http://anna:s3cr%40t@proxy.example:3128"}, True, "Basic YW5uYTpzM2NyQHQ="),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "api.stripe.com"}, False, None),
    ],
)
def test_the_environments_proxy_is_used(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], proxied: bool, login: str | None
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    pool = http_client.GatedClient(api_base="", timeout=(1.0, 1.0), gate=None)._pool
    assert isinstance(pool, urllib3.ProxyManager) == proxied
    if proxied:
        assert (pool.proxy.host, pool.proxy_headers.get("proxy-authorization")) == ("proxy.example", login)


def test_a_request_goes_by_the_proxy_where_there_is_one(simulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", simulator.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    client = http_client.GatedClient(api_base="http://stripe.invalid", timeout=(2.0, 5.0), gate=None)
    _, status, _ = client.request("get", "http://stripe.invalid/v1/balance", {"Authorization": "Bearer sk_test_x"})
    assert status == 200


def test_what_postgresql_cannot_hold_is_replaced() -> None:
    assert stripe_api.storable("a\x00b\ud800c") == "a\ufffdb?c"


def test_a_closed_gateway_opens_its_connections_anew(simulator: Any) -> None:
    client = http_client.GatedClient(api_base=simulator.url, timeout=(2.0, 5.0), gate=None)
    headers = {"Authorization": "Bearer sk_test_x"}
    for _ in range(2):
        body, status, _ = client.request("get", f"{simulator.url}/v1/balance", headers)
        assert (status, b"available" in body) == (200, True)
        client.close()
