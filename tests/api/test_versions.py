"""ETag of a row, and If-Match of what is done to it."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from marketplace.models import SellerTransfer
from tests.api.conftest import VIEWS, client_of, problem
from tests.api.test_debts import BODY as PAYMENT
from tests.api.test_debts import owing
from tests.api.test_replay import failed_event
from tests.factories import OrderFactory, SellerTransferFactory, UserFactory

ACTS = ["retry_sellertransfer", "decline_sellertransfer", "replay_webhookevent", "record_debt_payment"]
KEY = {"Idempotency-Key": "k"}
REASON = {"reason": "again"}


@pytest.fixture
def client(db: None) -> APIClient:
    return client_of(UserFactory(staff=True, permissions=[*VIEWS, *ACTS, "write_off_debt"]))


def undecided() -> SellerTransfer:
    taken = SellerTransferFactory(reversed=True)
    gives_back = {"gives_back_of": taken, "undoes": taken.reversals.get()}
    again: SellerTransfer = SellerTransferFactory(
        permanently_failed_sending=True, order=taken.order, seller=taken.seller, amount=taken.amount, **gives_back
    )
    return again


def targets(act: str) -> tuple[str, str, dict[str, Any]]:
    """The address of a row, that of the act, and its body."""
    match act:
        case "retry":
            row = f"/api/transfers/{SellerTransferFactory(permanently_failed=True).pk}/"
        case "try-now":
            later = timezone.now() + timedelta(hours=1)
            row = f"/api/transfers/{SellerTransferFactory(reversal_pending=True, next_retry_at=later).pk}/"
        case "decline":
            row = f"/api/transfers/{undecided().pk}/"
        case "replay":
            row = f"/api/webhook-events/{failed_event().pk}/"
        case _:
            return (row := f"/api/debts/{owing()}/"), f"{row}{act}/", PAYMENT
    return row, f"{row}{act}/", REASON


def of_row(response: Any) -> dict[str, Any]:
    """Without what is told of the moment."""
    return {name: value for name, value in response.json().items() if name != "why"}


@pytest.mark.parametrize("act", ["retry", "try-now", "decline", "replay", "payments", "write-off"])
def test_a_row_that_moved_is_not_acted_on(act: str, client: APIClient) -> None:
    row, address, body = targets(act)
    seen = client.get(row)
    stale = problem(client.post(address, body, headers={**KEY, "If-Match": '"7-1"'}), 412, "changed-meanwhile")
    assert "has changed since you saw it" in stale["detail"]
    assert of_row(client.get(row)) == of_row(seen)
    done = client.post(address, body, headers={**KEY, "If-Match": f'"7-1", {seen["ETag"]}'})
    assert done.status_code in {200, 201}
    assert done["ETag"] != seen["ETag"]
    assert done["ETag"] == client.get(row)["ETag"]


@pytest.mark.parametrize("any_version", ["*", " * "])
def test_any_version_will_do_where_one_says_so(any_version: str, client: APIClient) -> None:
    _, address, body = targets("retry")
    assert client.post(address, body, headers={"If-Match": any_version}).status_code == 200


@pytest.mark.parametrize("tag", ["", "7-1", '"', '""', 'W/"7-1"', '"7-1" "8-1"x', '"' + "1" * 1000 + '"'])
def test_what_is_no_list_of_tags_is_refused(tag: str, client: APIClient) -> None:
    _, address, body = targets("retry")
    refused = problem(client.post(address, body, headers={"If-Match": tag}), 400, "invalid-request")
    assert list(refused["errors"]) == ["If-Match"]


def test_what_nobody_acts_on_has_none(client: APIClient) -> None:
    from tests.factories import SellerFactory

    assert not client.get(f"/api/sellers/{SellerFactory().pk}/").has_header("ETag")
    assert client.get(f"/api/orders/{OrderFactory().pk}/").has_header("ETag")
