"""POST /api/transfers/{id}/decline/."""

import pytest
from rest_framework.test import APIClient

from marketplace.models import SellerTransfer
from tests.api.conftest import client_of, problem
from tests.factories import SellerTransferFactory, UserFactory

DECLINE = "/api/transfers/{}/decline/"
BODY = {"reason": "agreed with the seller"}


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
def decider(db: None) -> APIClient:
    return client_of(UserFactory(staff=True, permissions=["view_sellertransfer", "decline_sellertransfer"]))


def test_the_platform_keeps_the_money(undecided: SellerTransfer, decider: APIClient) -> None:
    shown = decider.post(DECLINE.format(undecided.pk), BODY).json()
    assert (shown["status"], shown["declined"]) == ("canceled", True)
    assert (shown["gives_back_of"], shown["undoes"]) == (undecided.gives_back_of_id, undecided.undoes_id)
    assert shown["history"][0]["reason"] == BODY["reason"]
    # A second click.
    problem(decider.post(DECLINE.format(undecided.pk), BODY), 409, "not-allowed-now")


def test_a_share_of_a_sale_is_not_declined(decider: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)
    refused = problem(decider.post(DECLINE.format(transfer.pk), BODY), 409, "not-allowed-now")
    assert "a seller's share of a sale" in refused["detail"]


def test_who_may_retry_may_not_decline(undecided: SellerTransfer, operator: APIClient) -> None:
    problem(operator.post(DECLINE.format(undecided.pk), BODY), 403)
    undecided.refresh_from_db()
    assert undecided.status == "permanently_failed"


def test_a_reason_is_demanded(undecided: SellerTransfer, decider: APIClient) -> None:
    problem(decider.post(DECLINE.format(undecided.pk), {"reason": " "}), 400, "invalid-request")
