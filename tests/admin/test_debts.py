"""What an operator does about debts in the admin."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from marketplace.models import Debt, DebtEntry, TransferReversal
from tests.api.conftest import VIEWS
from tests.factories import DebtEntryFactory, SellerTransferFactory, UserFactory

LIST = "admin:marketplace_debt_changelist"


def client_of(*permissions: str, name: str = "ada") -> Client:
    client = Client()
    client.force_login(UserFactory(username=name, staff=True, permissions=[*VIEWS, *permissions]))
    return client


@pytest.fixture
def operator(db: None) -> Client:
    return client_of("record_debt_payment", "write_off_debt")


@pytest.fixture
def debt(db: None) -> TransferReversal:
    owed: TransferReversal = SellerTransferFactory(permanently_failed=True, amount=5000).reversals.get()
    return owed


def address(name: str, debt: TransferReversal) -> str:
    return reverse(f"admin:marketplace_debt_{name}", args=[debt.pk])


def send(client: Client, act: str, debt: TransferReversal, amount: Any = 2000, **more: Any) -> str:
    """Fills in the form that is shown, and sends it."""
    form = client.get(address(act, debt)).context["form"]
    body = {"amount": amount, "reason": "by bank transfer", "key": form["key"].value(), **more}
    page: str = client.post(address(act, debt), body, follow=True).content.decode()
    return page


def listed(client: Client, **filters: str) -> list[int]:
    return [debt.pk for debt in client.get(reverse(LIST), filters).context["cl"].queryset]


@pytest.mark.parametrize(
    ("act", "kind", "said"),
    [("record_payment", "paid", "The payment is recorded"), ("write_off", "written_off", "It is written off")],
)
def test_a_part_is_settled_with_a_reason(
    act: str, kind: str, said: str, operator: Client, debt: TransferReversal
) -> None:
    assert address(act, debt) in operator.get(address("change", debt)).content.decode()
    assert said in send(operator, act, debt)
    entry = DebtEntry.objects.get()
    assert (entry.kind, entry.amount, entry.actor, entry.reason) == (kind, 2000, "user:ada", "by bank transfer")
    assert "30.00" in operator.get(reverse(LIST)).content.decode()
    send(operator, act, debt, 3000)
    shown = operator.get(address("change", debt)).content.decode()
    assert address(act, debt) not in shown
    assert "by bank transfer" in shown


def test_all_that_is_left_is_proposed(operator: Client, debt: TransferReversal) -> None:
    DebtEntryFactory(reversal=debt, amount=1500)
    assert operator.get(address("write_off", debt)).context["form"]["amount"].value() == 3500


def test_a_second_click_settles_nothing_more(operator: Client, debt: TransferReversal) -> None:
    key = str(operator.get(address("record_payment", debt)).context["form"]["key"].value())
    for _ in range(2):
        send(operator, "record_payment", debt, key=key)
    assert DebtEntry.objects.count() == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"amount": 5001}, "more than the 5000 eur left"),
        ({"amount": 0}, "greater than or equal to 1"),
        ({"amount": "12.50"}, "Enter a whole number"),
        ({"reason": " "}, "This field is required"),
        ({"key": "x"}, "Enter a valid UUID"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], said: str, operator: Client, debt: TransferReversal) -> None:
    form = operator.get(address("record_payment", debt)).context["form"]
    body = {"amount": 1, "reason": "-", "key": form["key"].value(), **wrong}
    refused = operator.post(address("record_payment", debt), body)
    assert said in refused.content.decode() + str(refused.context["form"].errors)
    assert not DebtEntry.objects.exists()


@pytest.mark.parametrize(
    ("permission", "allowed"), [("record_debt_payment", "record_payment"), ("write_off_debt", "write_off")]
)
def test_each_needs_a_permission_of_its_own(permission: str, allowed: str, debt: TransferReversal) -> None:
    client = client_of(permission)
    for act in ("record_payment", "write_off"):
        shown = client.get(address("change", debt)).content.decode()
        assert (address(act, debt) in shown) == (act == allowed)
        body = {"amount": 1, "reason": "-", "key": "0b0e7ac5-1c1f-4b4c-8ec5-0d8f2a2a8f3e"}
        assert client.post(address(act, debt), body).status_code == (302 if act == allowed else 403)
    assert DebtEntry.objects.count() == 1


def test_a_debt_that_is_not_there(operator: Client) -> None:
    gone = reverse("admin:marketplace_debt_write_off", args=[10**6])
    assert operator.get(gone)["Location"] == reverse(LIST)
    assert operator.get(reverse("admin:marketplace_debt_change", args=[10**6])).status_code == 302


def test_open_ones_are_listed_unless_others_are_asked_for(operator: Client, debt: TransferReversal) -> None:
    settled = SellerTransferFactory(permanently_failed=True, amount=100).reversals.get()
    send(operator, "write_off", settled, 100)
    TransferReversal.objects.filter(pk=debt.pk).update(created_at=Now() - timedelta(days=31))
    young = SellerTransferFactory(permanently_failed=True, amount=100).reversals.get()
    assert sorted(listed(operator)) == [debt.pk, young.pk]
    assert listed(operator, state="settled") == [settled.pk]
    assert len(listed(operator, state="all")) == Debt.objects.count() == 3
    assert (listed(operator, age="31-90"), listed(operator, age="0-7")) == ([debt.pk], [young.pk])
    assert sorted(listed(operator, age="nonsense")) == [debt.pk, young.pk]


def test_above_the_list_stands_what_each_seller_owes_by_age(operator: Client, debt: TransferReversal) -> None:
    DebtEntryFactory(reversal=debt, amount=1500)
    shown = operator.get(reverse(LIST)).content.decode().split('id="debt-totals"')[1].split("</table>")[0]
    assert debt.transfer.seller.name.split("'")[0] in shown.replace("&#x27;", "'")
    assert shown.count("35.00") == 2
    DebtEntryFactory(reversal=debt, amount=3000)
    assert "over-90 days" in shown


def test_without_debts_no_totals(operator: Client) -> None:
    assert 'id="debt-totals"' not in operator.get(reverse(LIST)).content.decode()
