"""/api/debts/: what sellers owe, listed and aged; paid by hand and written off."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client
from rest_framework.test import APIClient

from marketplace.models import DebtEntry, IdempotentRequest, Seller, TransferReversal
from tests.api.conftest import client_of, problem
from tests.factories import DebtEntryFactory, SellerFactory, SellerTransferFactory, UserFactory

BODY = {"amount": 300, "reason": "bank transfer"}
KEY = {"Idempotency-Key": "k-1"}
ACTS = {"payments": "record_debt_payment", "write-off": "write_off_debt"}


def owing(amount: int = 1000, *, seller: Seller | None = None, currency: str = "eur", days: int = 0) -> int:
    named = {"seller": seller} if seller else {}
    transfer = SellerTransferFactory(permanently_failed=True, amount=amount, currency=currency, **named)
    TransferReversal.objects.filter(transfer=transfer).update(created_at=Now() - timedelta(days=days))
    return transfer.reversals.get().pk


def entered(debt: int, **fields: Any) -> int:
    DebtEntryFactory(reversal=TransferReversal.objects.get(pk=debt), **fields)
    return debt


def allowed(*acts: str) -> APIClient:
    return client_of(UserFactory(staff=True, permissions=["view_debt", *(ACTS[act] for act in acts)]))


def address(debt: int, act: str = "") -> str:
    return f"/api/debts/{debt}/{act}/" if act else f"/api/debts/{debt}/"


# --- Listed -----------------------------------------------------------------------------------------------------------


def test_open_debts_are_listed_with_what_is_left(staff: APIClient) -> None:
    debt = owing()
    settled = entered(owing(2000), amount=500)
    SellerTransferFactory(reversal_pending=True)
    found = {row["id"]: row for row in staff.get("/api/debts/").json()["results"]}
    assert {pk: row["amount_left"] for pk, row in found.items()} == {debt: 1000, settled: 1500}
    row = found[settled]
    transfer = TransferReversal.objects.get(pk=settled).transfer
    assert (row["seller"], row["seller_name"], row["order"]) == (
        transfer.seller_id,
        transfer.seller.name,
        transfer.order_id,
    )
    assert (row["amount"], row["amount_recovered"], row["last_error_code"]) == (2000, 500, "not_found")


@pytest.mark.django_db
def test_they_are_filtered_by_seller_currency_and_age(staff: APIClient) -> None:
    seller = SellerFactory()
    mine, dollars, old = owing(seller=seller), owing(currency="usd"), owing(days=40)
    for query, expected in (
        ({"seller": seller.pk}, {mine}),
        ({"currency": "usd"}, {dollars}),
        ({"age": "31-90"}, {old}),
        ({"age": ["31-90", "0-7"]}, {mine, dollars, old}),
        ({"age": "8-30"}, set()),
        ({"search": str(old)}, {old}),
    ):
        rows = staff.get("/api/debts/", query).json()["results"]
        assert {row["id"] for row in rows} == expected, query
    problem(staff.get("/api/debts/", {"age": "7"}), 400, "invalid-request")


@pytest.mark.parametrize(("days", "age"), [(6, "0-7"), (8, "8-30"), (29, "8-30"), (31, "31-90"), (91, "over-90")])
def test_totals_are_by_seller_currency_and_age(days: int, age: str, staff: APIClient) -> None:
    seller = SellerFactory(name="Cups & Co")
    owing(700, seller=seller, days=days)
    entered(owing(600, seller=seller), amount=200)
    owing(50, seller=seller, currency="usd")
    totals = staff.get("/api/debts/totals/").json()
    ages = dict.fromkeys(["0-7", "8-30", "31-90", "over-90"], 0)
    by_age = {**ages, "0-7": 400}
    by_age[age] += 700
    named = {"seller": seller.pk, "seller_name": "Cups & Co"}
    assert totals == [
        {**named, "currency": "eur", "count": 2, "amount": 1100, "by_age": by_age},
        {**named, "currency": "usd", "count": 1, "amount": 50, "by_age": {**ages, "0-7": 50}},
    ]
    assert [row["currency"] for row in staff.get("/api/debts/totals/", {"currency": "usd"}).json()] == ["usd"]


@pytest.mark.django_db
def test_a_seller_sees_the_own_debts_and_not_who_entered_what() -> None:
    seller = SellerFactory(with_user=True)
    mine, other = owing(seller=seller), owing()
    entered(mine, amount=100, requested_by=UserFactory(), request_key="k")
    client = client_of(seller.user)
    assert [row["id"] for row in client.get("/api/debts/").json()["results"]] == [mine]
    assert [row["seller"] for row in client.get("/api/debts/totals/").json()] == [seller.pk]
    shown = client.get(address(mine)).json()
    assert {"last_error_code", "refused"}.isdisjoint(shown)
    assert [set(entry) for entry in shown["entries"]] == [
        {"id", "kind", "amount", "currency", "transfer", "reason", "created_at"}
    ]
    problem(client.get(address(other)), 404)
    for act in ACTS:
        problem(client.post(address(mine, act), BODY, headers=KEY), 403)


@pytest.mark.django_db
def test_staff_need_the_permission_to_see_debts() -> None:
    client = client_of(UserFactory(staff=True, permissions=["view_transferreversal"]))
    for path in ("/api/debts/", "/api/debts/totals/"):
        assert "marketplace.view_debt" in problem(client.get(path), 403)["detail"]


# --- Settled ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(("act", "column"), [("payments", "amount_recovered"), ("write-off", "amount_written_off")])
def test_a_part_is_settled_once_however_often_it_is_sent(act: str, column: str) -> None:
    debt, client = owing(), allowed(act)
    first = client.post(address(debt, act), BODY, headers=KEY)
    again = client.post(address(debt, act), BODY, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    # The entry knows its key for good, also when the answer is kept no more.
    IdempotentRequest.objects.all().delete()
    later = client.post(address(debt, act), BODY, headers=KEY)
    assert (later.status_code, later.json()) == (200, first.json())
    shown = first.json()
    assert (shown["amount_left"], shown[column], shown["status"]) == (700, 300, "failed")
    (entry,) = shown["entries"]
    assert (entry["amount"], entry["reason"], entry["request_key"]) == (300, "bank transfer", "k-1")
    assert entry["actor"].startswith("user:")


@pytest.mark.django_db
def test_a_repeated_request_is_answered_after_all_is_settled() -> None:
    debt, client = owing(300), allowed("payments")
    for expected in (201, 200):
        response = client.post(address(debt, "payments"), BODY, headers=KEY)
        IdempotentRequest.objects.all().delete()
        assert (response.status_code, response.json()["status"], response.json()["amount_left"]) == (
            expected,
            "canceled",
            0,
        )
    assert client.get("/api/debts/").json()["results"] == []


@pytest.mark.django_db
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({**BODY, "amount": 1001}, 422, "too-much"),
        ({**BODY, "amount": 0}, 400, "invalid-request"),
        ({**BODY, "amount": "300"}, 400, "invalid-request"),
        ({"reason": "-"}, 400, "invalid-request"),
        ({"amount": 1}, 400, "invalid-request"),
        ({**BODY, "currency": "usd"}, 400, "invalid-request"),
        ({**BODY, "amout": 1}, 400, "invalid-request"),
    ],
)
def test_what_cannot_be_is_refused(act: str, body: dict[str, Any], status: int, kind: str) -> None:
    problem(allowed(act).post(address(owing(), act), body, headers=KEY), status, kind)
    assert not DebtEntry.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("act", ACTS)
def test_a_key_is_demanded_and_stands_for_one_request(act: str) -> None:
    debt, client = owing(), allowed(*ACTS)
    problem(client.post(address(debt, act), BODY), 400, "invalid-request")
    client.post(address(debt, act), {**BODY, "currency": "eur"}, headers=KEY)
    # By the entry itself.
    IdempotentRequest.objects.all().delete()
    (other_act,) = {*ACTS} - {act}
    for other, body in ((act, {**BODY, "amount": 1}), (other_act, BODY)):
        problem(client.post(address(debt, other), body, headers=KEY), 409, "conflicting-facts")


@pytest.mark.django_db
@pytest.mark.parametrize("act", ACTS)
def test_one_of_unknown_outcome_is_looked_for_first(act: str) -> None:
    debt = owing()
    TransferReversal.objects.filter(pk=debt).update(refused=False)
    refused = problem(allowed(act).post(address(debt, act), BODY, headers=KEY), 409, "not-allowed-now")
    assert "which looks there" in refused["detail"]


@pytest.mark.django_db
@pytest.mark.parametrize("act", ACTS)
def test_each_needs_a_permission_of_its_own(act: str) -> None:
    (other,) = {*ACTS} - {act}
    refused = problem(allowed(other).post(address(owing(), act), BODY, headers=KEY), 403)
    assert f"marketplace.{ACTS[act]}" in refused["detail"]


@pytest.mark.django_db
def test_what_was_never_a_debt_is_not_found() -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    for act in ACTS:
        problem(allowed(*ACTS).post(address(transfer.reversals.get().pk, act), BODY, headers=KEY), 404)


@pytest.mark.django_db
def test_the_metrics_tell_of_debts_by_currency(client: Client) -> None:
    owing(700)
    owing(300)
    owing(5, currency="usd")
    text = client.get("/metrics").content.decode()
    assert 'veza_seller_debt_minor_units{currency="eur"} 1000.0' in text
    assert 'veza_seller_debt_minor_units{currency="usd"} 5.0' in text
