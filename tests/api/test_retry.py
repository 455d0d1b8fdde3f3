"""POST /api/transfers/{id}/retry/."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from marketplace.errors import StaleTransition
from marketplace.services import transfers
from marketplace.states import TransferStatus
from tests.api.conftest import problem
from tests.factories import SellerTransferFactory

RETRY = "/api/transfers/{}/retry/"
BODY = {"reason": "the account is open again"}


def test_a_reversal_is_resumed_with_a_fresh_budget(operator: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    response = operator.post(RETRY.format(transfer.pk), BODY)

    shown = response.json()
    assert response.status_code == 200
    assert (shown["status"], shown["retry_count"], shown["failed_leg"]) == ("reversal_pending", 0, "")
    assert shown["reversals"][0]["status"] == "pending"
    newest = shown["history"][0]
    assert newest["status"] == "reversal_pending"
    assert newest["reason"] == BODY["reason"]
    assert newest["actor"].startswith("user:")


def test_a_sending_is_resumed(operator: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)

    assert operator.post(RETRY.format(transfer.pk), BODY).json()["status"] == "failed"


@pytest.mark.parametrize("status", [s for s in TransferStatus.values if s != "permanently_failed"])
def test_every_other_state_is_refused(status: str, operator: APIClient) -> None:
    transfer = SellerTransferFactory(**({} if status == "pending" else {status: True}))

    refused = problem(operator.post(RETRY.format(transfer.pk), BODY), 409, "not-allowed-now")

    assert refused["detail"] == f"transfer {transfer.pk} is {status}: only a permanently_failed one can be retried"
    transfer.refresh_from_db()
    assert transfer.status == status


def test_a_legacy_row_without_its_stripe_id_is_refused(operator: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")

    refused = problem(operator.post(RETRY.format(transfer.pk), BODY), 409, "not-allowed-now")

    assert "no Stripe transfer id" in refused["detail"]


def test_a_double_click_makes_one_retry(operator: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    first, second = (operator.post(RETRY.format(transfer.pk), BODY) for _ in range(2))

    assert first.status_code == 200
    problem(second, 409, "not-allowed-now")
    assert transfer.history.filter(pgh_label="status").count() == 1


def test_who_comes_second_at_the_same_moment_is_told(operator: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved_first(**_: Any) -> None:
        raise StaleTransition("transfer 7 is no longer permanently_failed")

    monkeypatch.setattr(transfers, "retry", moved_first)

    transfer = SellerTransferFactory(permanently_failed=True)
    problem(operator.post(RETRY.format(transfer.pk), BODY), 409, "stale-transition")


@pytest.mark.parametrize("reason", [None, "", "   ", "x" * 501, 5, "a\0b"])
def test_a_reason_is_demanded(reason: Any, operator: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    refused = problem(operator.post(RETRY.format(transfer.pk), {"reason": reason}), 400, "invalid-request")

    assert list(refused["errors"]) == ["reason"]
    assert list(problem(operator.post(RETRY.format(transfer.pk), {}), 400, "invalid-request")["errors"]) == ["reason"]


def test_an_unknown_field_is_refused(operator: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)

    refused = problem(operator.post(RETRY.format(transfer.pk), {**BODY, "force": True}), 400, "invalid-request")

    assert refused["errors"] == {"force": ["unknown field: expected only reason"]}


def test_a_transfer_that_is_not_there_is_not_found(operator: APIClient) -> None:
    problem(operator.post(RETRY.format(10**6), BODY), 404)
