"""Disputes in the admin: what is shown, and the amount that a person enters."""

import html

import pytest
from django.test import Client
from django.urls import reverse

from marketplace.models import Dispute
from tests.factories import DisputeFactory, UserFactory, order_with_transfers

LIST = "admin:marketplace_dispute_changelist"


def client_of(*permissions: str) -> Client:
    client = Client()
    views = ["view_dispute", "view_order", "view_transferreversal", "view_sellertransfer"]
    client.force_login(UserFactory(username="ada", staff=True, permissions=[*views, *permissions]))
    return client


@pytest.fixture
def finance(db: None) -> Client:
    return client_of("enter_dispute_amount")


@pytest.fixture
def foreign(db: None) -> Dispute:
    order = order_with_transfers((3000, 2000), commission_basis_points=0)
    made: Dispute = DisputeFactory(order=order, needs_a_person=True)
    return made


def address(name: str, dispute: Dispute) -> str:
    return reverse(f"admin:marketplace_dispute_{name}", args=[dispute.pk])


def test_the_front_page_says_how_many_need_an_amount(finance: Client, foreign: Dispute) -> None:
    card = next(each for each in finance.get("/admin/").context["cards"] if "dispute" in each.title)
    assert (card.count, card.colour) == (1, "danger")
    assert [row.pk for row in finance.get(card.href).context["cl"].queryset] == [foreign.pk]
    Dispute.objects.update(last_error_code="")
    card = next(each for each in finance.get("/admin/").context["cards"] if "dispute" in each.title)
    assert (card.count, card.colour) == (0, "default")


@pytest.mark.parametrize(("state", "expected"), [("person", 0), ("lost", 1), ("open", 1), ("", 2)])
def test_they_are_found_by_their_state(finance: Client, state: str, expected: int) -> None:
    DisputeFactory(amount_lost=5)
    DisputeFactory(status="won")
    assert finance.get(reverse(LIST), {"state": state} if state else {}).context["cl"].queryset.count() == expected


def test_the_amount_is_entered_with_a_reason(finance: Client, foreign: Dispute) -> None:
    assert address("enter_amount", foreign) in finance.get(address("change", foreign)).content.decode()
    form = finance.get(address("enter_amount", foreign)).context["form"]
    assert form["amount"].value() == 5000
    done = finance.post(address("enter_amount", foreign), {"amount": 4000, "reason": "a letter"}, follow=True)
    page = done.content.decode()
    assert "The amount is entered" in page
    assert address("enter_amount", foreign) not in page
    assert "40.00 EUR" in page
    first, second = foreign.order.transfers.order_by("id")
    assert f"{first.seller.name} 24.00 EUR, {second.seller.name} 16.00 EUR" in html.unescape(page)
    order = finance.get(reverse("admin:marketplace_order_change", args=[foreign.order_id])).content.decode()
    assert foreign.stripe_dispute_id in order


def test_too_much_is_refused_and_said(finance: Client, foreign: Dispute) -> None:
    page = finance.post(address("enter_amount", foreign), {"amount": 5001, "reason": "a letter"}).content.decode()
    assert "5001 is more than order" in page
    foreign.refresh_from_db()
    assert foreign.order_amount is None


def test_who_may_only_look_has_no_button(foreign: Dispute) -> None:
    viewer = client_of()
    assert address("enter_amount", foreign) not in viewer.get(address("change", foreign)).content.decode()
    assert viewer.post(address("enter_amount", foreign), {"amount": 1, "reason": "r"}).status_code == 403


def test_a_dispute_that_is_not_there_leads_back_to_the_list(finance: Client, foreign: Dispute) -> None:
    gone = reverse("admin:marketplace_dispute_enter_amount", args=[foreign.pk + 1])
    assert finance.get(gone)["Location"] == reverse(LIST)


def test_the_list_says_of_which_a_person_is_asked(finance: Client, foreign: Dispute) -> None:
    DisputeFactory(amount_lost=5)
    shown = finance.get(reverse(LIST)).content.decode()
    rows = shown[shown.index('id="result_list"') : shown.index("</table>")]
    assert rows.count("needs a person") == 1
    assert "0.05 EUR" in rows
    assert foreign.last_error_message in finance.get(address("change", foreign)).content.decode()


@pytest.mark.parametrize(("status", "is_shown"), [("needs_response", True), ("lost", False), ("won", False)])
def test_of_one_that_is_over_no_evidence_is_wanted(finance: Client, status: str, is_shown: bool) -> None:
    dispute = DisputeFactory(status=status)
    due_by = f"{dispute.evidence_due_by:%Y-%m-%d %H:%M}"
    shown = finance.get(address("change", dispute)).content.decode()
    assert (due_by in shown) == is_shown
    assert dispute.last_error_code == ""
    assert "needs a person" not in shown


def test_what_the_platform_bears_is_said(finance: Client) -> None:
    dispute = DisputeFactory(amount_lost=5, status="a_new_word")
    page = finance.get(address("change", dispute)).content.decode()
    assert "the platform 0.05 EUR" in page
    assert "a new word" in page
