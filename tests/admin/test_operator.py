"""What an operator does to transfers in the admin, through the services."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from marketplace.errors import StaleTransition
from marketplace.models import SellerTransfer
from marketplace.services import transfers
from marketplace.states import TransferStatus
from tests.api.conftest import VIEWS
from tests.factories import SellerFactory, SellerTransferFactory, UserFactory

LIST = "admin:marketplace_sellertransfer_changelist"
REASON = "the account is open again"


@pytest.fixture
def user(db: None) -> User:
    return UserFactory(username="ada", staff=True, permissions=[*VIEWS, "retry_sellertransfer"])


@pytest.fixture
def operator(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer(db: None) -> Client:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=VIEWS))
    return client


def address(name: str, transfer: SellerTransfer) -> str:
    return reverse(f"admin:marketplace_sellertransfer_{name}", args=[transfer.pk])


def select(client: Client, *rows: SellerTransfer, **more: Any) -> Any:
    data = {"action": "retry_selected", "_selected_action": [row.pk for row in rows], **more}
    return client.post(reverse(LIST), data, follow=True)


def status(transfer: SellerTransfer) -> str:
    transfer.refresh_from_db()
    return transfer.status


# --- Several --------------------------------------------------------------------------------------------------


def test_a_reason_is_asked_for_first(operator: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    for response in (select(operator, transfer), select(operator, transfer, apply="yes", reason="  ")):
        assert response.status_code == 200
        assert "What has changed" in response.content.decode()
        assert status(transfer) == "permanently_failed"
    assert "This field is required" in response.content.decode()


def test_each_row_is_reported(operator: Client) -> None:
    reversing = SellerTransferFactory(permanently_failed=True)
    sending = SellerTransferFactory(permanently_failed_sending=True)
    completed = SellerTransferFactory(completed=True)
    legacy = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")

    response = select(operator, reversing, sending, completed, legacy, apply="yes", reason=REASON)

    messages = [str(message) for message in response.context["messages"]]
    assert f"Transfers {reversing.pk}, {sending.pk} are due again." in messages
    assert f"transfer {completed.pk} is completed: only a permanently_failed one can be retried" in messages
    assert any(f"transfer {legacy.pk} has no Stripe transfer id" in message for message in messages)
    assert (status(reversing), status(sending)) == ("reversal_pending", "failed")
    assert (status(completed), status(legacy)) == ("completed", "permanently_failed")


def test_actor_and_reason_are_recorded(operator: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    select(operator, transfer, apply="yes", reason=REASON)

    context = transfer.history.latest("pgh_id").pgh_context
    assert (context["actor"], context["reason"]) == ("user:ada", REASON)


def test_a_double_click_makes_one_retry(operator: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    select(operator, transfer, apply="yes", reason=REASON)
    response = select(operator, transfer, apply="yes", reason=REASON)

    assert "is reversal_pending: only a permanently_failed one" in response.content.decode()
    assert transfer.history.filter(pgh_label="status").count() == 1


def test_who_comes_second_at_the_same_moment_is_told(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved_first(**_: Any) -> None:
        raise StaleTransition("somebody else was faster")

    monkeypatch.setattr(transfers, "retry", moved_first)

    response = select(operator, SellerTransferFactory(permanently_failed=True), apply="yes", reason=REASON)

    assert "somebody else was faster" in response.content.decode()


def test_without_the_permission_the_action_is_not_there(viewer: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    assert "retry_selected" not in viewer.get(reverse(LIST)).content.decode()
    select(viewer, transfer, apply="yes", reason=REASON)

    assert status(transfer) == "permanently_failed"


def test_too_many_at_once_are_refused(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.admin.asking.LARGEST_SELECTION", 1)
    rows = [SellerTransferFactory(permanently_failed=True) for _ in range(2)]

    response = select(operator, *rows, apply="yes", reason=REASON)

    assert "Select at most 1 seller transfers" in response.content.decode()
    assert {status(row) for row in rows} == {"permanently_failed"}


# --- One ------------------------------------------------------------------------------------------------------


def test_the_page_of_a_failed_transfer_has_a_button(operator: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    shown = operator.get(address("change", transfer)).content.decode()

    assert address("retry_one", transfer) in shown
    assert address("enter_transfer_id", transfer) not in shown


@pytest.mark.parametrize("state", [s for s in TransferStatus.values if s != "permanently_failed"])
def test_other_states_have_no_button(state: str, operator: Client) -> None:
    transfer = SellerTransferFactory(**({} if state == "pending" else {state: True}))

    shown = operator.get(address("change", transfer)).content.decode()

    assert address("retry_one", transfer) not in shown
    assert address("enter_transfer_id", transfer) not in shown


def test_one_is_retried_from_its_page(operator: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    assert "What has changed" in operator.get(address("retry_one", transfer)).content.decode()

    response = operator.post(address("retry_one", transfer), {"reason": REASON}, follow=True)

    assert response.redirect_chain == [(address("change", transfer), 302)]
    assert f"Transfer {transfer.pk} is due again." in response.content.decode()
    assert status(transfer) == "reversal_pending"


def test_one_that_cannot_be_retried_says_why(operator: Client) -> None:
    transfer = SellerTransferFactory(completed=True)

    response = operator.post(address("retry_one", transfer), {"reason": REASON}, follow=True)

    assert "is completed: only a permanently_failed one can be retried" in response.content.decode()


@pytest.mark.parametrize("name", ["retry_one", "enter_transfer_id"])
def test_pages_of_acts_need_the_permission(name: str, viewer: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")

    assert address(name, transfer) not in viewer.get(address("change", transfer)).content.decode()
    for response in (
        viewer.get(address(name, transfer)),
        viewer.post(address(name, transfer), {"reason": REASON, "stripe_transfer_id": "tr_1"}),
    ):
        assert response.status_code == 403
    assert status(transfer) == "permanently_failed"


@pytest.mark.parametrize("name", ["retry_one", "enter_transfer_id"])
def test_who_may_retry_but_not_see_sees_nothing(name: str, db: None) -> None:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=["retry_sellertransfer"]))
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")

    response = client.get(address(name, transfer))

    assert response.status_code == 403
    assert client.post(address(name, transfer), {"reason": REASON, "stripe_transfer_id": "tr_1"}).status_code == 403


@pytest.mark.parametrize("name", ["retry_one", "enter_transfer_id"])
def test_an_act_on_a_row_that_is_not_there(name: str, operator: Client) -> None:
    gone = reverse(f"admin:marketplace_sellertransfer_{name}", args=[10**6])

    assert operator.get(gone)["Location"] == reverse(LIST)
    assert operator.post(gone, {"reason": REASON})["Location"] == reverse(LIST)


# --- The missing id -------------------------------------------------------------------------------------------


@pytest.fixture
def nameless(db: None, gateway: Any, simulator: Any) -> tuple[SellerTransfer, str]:
    """A row of an older system without its id, and the id that it has at Stripe."""
    seller = SellerFactory(stripe_account_id=simulator.create_account()["id"])
    row = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="", seller=seller)
    return row, simulator.create_transfer(row.amount, seller.stripe_account_id, currency=row.currency)["id"]


def test_a_missing_id_is_entered_and_then_retried(operator: Client, nameless: tuple[SellerTransfer, str]) -> None:
    transfer, made = nameless
    shown = operator.get(address("change", transfer)).content.decode()
    assert address("enter_transfer_id", transfer) in shown
    assert address("retry_one", transfer) not in shown

    response = operator.post(
        address("enter_transfer_id", transfer),
        {"stripe_transfer_id": f" {made} ", "reason": "looked up"},
        follow=True,
    )

    assert "The Stripe id is entered" in response.content.decode()
    transfer.refresh_from_db()
    assert transfer.stripe_transfer_id == made
    operator.post(address("retry_one", transfer), {"reason": REASON})
    assert status(transfer) == "reversal_pending"


def test_what_is_no_id_is_refused_on_the_form(
    operator: Client, nameless: tuple[SellerTransfer, str], simulator: Any
) -> None:
    transfer, made = nameless
    SellerTransferFactory(completed=True, stripe_transfer_id=made)
    somebodys = simulator.create_transfer(1, transfer.seller.stripe_account_id)["id"]

    for entered, expected in (
        ("pi_1", "is not the id of a transfer: expected tr_…"),
        ("tr_nowhere", "Stripe has no transfer tr_nowhere"),
        (somebodys, "is another transfer: 1 eur to acct_"),
        (made, "another transfer has the id"),
        ("", "This field is required"),
    ):
        response = operator.post(
            address("enter_transfer_id", transfer), {"stripe_transfer_id": entered, "reason": "looked up"}
        )
        assert expected in response.content.decode()
    transfer.refresh_from_db()
    assert transfer.stripe_transfer_id == ""


def test_an_id_that_is_there_stays(operator: Client, nameless: tuple[SellerTransfer, str]) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    response = operator.post(
        address("enter_transfer_id", transfer), {"stripe_transfer_id": nameless[1], "reason": "looked up"}
    )

    assert "has its id" in response.content.decode()


def test_a_sending_that_failed_may_be_retried_and_takes_no_id(operator: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)

    shown = operator.get(address("change", transfer)).content.decode()

    assert address("retry_one", transfer) in shown
    assert address("enter_transfer_id", transfer) not in shown


# --- Paying a seller again ------------------------------------------------------------------------------------


@pytest.fixture
def undecided(db: None) -> SellerTransfer:
    taken = SellerTransferFactory(reversed=True, amount=5000)
    return SellerTransferFactory(
        permanently_failed_sending=True,
        last_error_code="give_back_undecided",
        amount=5000,
        order=taken.order,
        seller=taken.seller,
        gives_back_of=taken,
        undoes=taken.reversals.get(),
    )


@pytest.fixture
def decider(db: None) -> Client:
    client = Client()
    client.force_login(UserFactory(username="eva", staff=True, permissions=[*VIEWS, "decline_sellertransfer"]))
    return client


def test_a_payment_back_is_declined_with_a_reason(decider: Client, undecided: SellerTransfer) -> None:
    assert address("decline", undecided) in decider.get(address("change", undecided)).content.decode()
    assert "This field is required" in decider.post(address("decline", undecided), {"reason": ""}).content.decode()
    response = decider.post(address("decline", undecided), {"reason": REASON}, follow=True)
    assert "the seller is not paid again" in response.content.decode()
    assert status(undecided) == "canceled"
    assert undecided.history.latest("pgh_id").pgh_context["actor"] == "user:eva"
    assert (
        "only one that waits for a person"
        in decider.post(address("decline", undecided), {"reason": REASON}).content.decode()
    )


def test_only_a_payment_back_has_the_button(decider: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)
    assert address("decline", transfer) not in decider.get(address("change", transfer)).content.decode()


def test_who_may_retry_may_not_decline(operator: Client, undecided: SellerTransfer) -> None:
    assert address("decline", undecided) not in operator.get(address("change", undecided)).content.decode()
    assert operator.post(address("decline", undecided), {"reason": REASON}).status_code == 403
    assert status(undecided) == "permanently_failed"


def test_a_payment_back_that_is_not_there(decider: Client) -> None:
    gone = reverse("admin:marketplace_sellertransfer_decline", args=[10**6])
    assert decider.get(gone)["Location"] == reverse(LIST)
