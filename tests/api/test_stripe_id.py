"""POST /api/transfers/{id}/stripe-id/: the id that a transfer of an older system lacks, verified at Stripe."""

from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from marketplace.models import SellerTransfer
from marketplace.services import transfers
from tests.api.conftest import VIEWS, client_of, problem
from tests.factories import SellerFactory, SellerTransferFactory, UserFactory

ADDRESS = "/api/transfers/{}/stripe-id/"
WHY = "the only one of its transfer group"


@pytest.fixture
def nameless(db: None, gateway: Any, simulator: Any) -> tuple[SellerTransfer, str]:
    """A row without its id, and the id that it has at Stripe."""
    seller = SellerFactory(stripe_account_id=simulator.create_account()["id"])
    row = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="", seller=seller)
    return row, simulator.create_transfer(row.amount, seller.stripe_account_id, currency=row.currency)["id"]


def enter(client: APIClient, transfer: SellerTransfer, made: Any, **headers: str) -> Any:
    body = {"stripe_transfer_id": made, "reason": WHY}
    return client.post(ADDRESS.format(transfer.pk), body, headers=headers)


def id_of(transfer: SellerTransfer) -> str:
    transfer.refresh_from_db()
    return transfer.stripe_transfer_id


def test_it_is_entered_once_and_then_retried(operator: APIClient, nameless: tuple[SellerTransfer, str]) -> None:
    transfer, made = nameless
    answer = enter(operator, transfer, made)
    shown = answer.json()
    assert (answer.status_code, shown["stripe_transfer_id"], shown["failed_leg"]) == (200, made, "reversing")
    refused = problem(enter(operator, transfer, made), 409, "not-allowed-now")
    assert refused["detail"] == f"transfer {transfer.pk} has its id: {made}"
    retried = operator.post(f"/api/transfers/{transfer.pk}/retry/", {"reason": WHY})
    assert retried.json()["status"] == "reversal_pending"


@pytest.mark.parametrize("what", ["another amount", "another account", "another currency", "of another row", "none"])
def test_what_is_not_this_transfer_at_stripe_is_refused(
    what: str, operator: APIClient, nameless: tuple[SellerTransfer, str], simulator: Any
) -> None:
    transfer, made = nameless
    account, amount, currency = transfer.seller.stripe_account_id, transfer.amount, transfer.currency
    match what:
        case "another amount":
            made = simulator.create_transfer(amount - 1, account, currency=currency)["id"]
        case "another account":
            made = simulator.create_transfer(amount, simulator.create_account()["id"], currency=currency)["id"]
        case "another currency":
            made = simulator.create_transfer(amount, account, currency="usd")["id"]
        case "of another row":
            SellerTransferFactory(completed=True, stripe_transfer_id=made)
        case _:
            made = "tr_nowhere"
    problem(enter(operator, transfer, made), 409, "conflicting-facts")
    assert id_of(transfer) == ""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"stripe_transfer_id": "pi_1", "reason": WHY}, "stripe_transfer_id"),
        ({"stripe_transfer_id": 7, "reason": WHY}, "stripe_transfer_id"),
        ({"reason": WHY}, "stripe_transfer_id"),
        ({"stripe_transfer_id": "tr_1"}, "reason"),
        ({"stripe_transfer_id": "tr_1", "reason": WHY, "amount": 1}, "amount"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_stripe_is_not_asked(
    body: Any, field: str, operator: APIClient, nameless: tuple[SellerTransfer, str], simulator: Any
) -> None:
    before = simulator.requests.total
    refused = problem(operator.post(ADDRESS.format(nameless[0].pk), body), 400, "invalid-request")
    assert list(refused["errors"]) == [field]
    assert simulator.requests.total == before


@pytest.mark.parametrize(
    ("fault", "status", "kind"), [("unauthorized", 502, "stripe-denied"), ("unavailable", 503, "not-now")]
)
def test_no_answer_writes_nothing_and_says_so(
    fault: str, status: int, kind: str, operator: APIClient, nameless: tuple[SellerTransfer, str], simulator: Any
) -> None:
    transfer, made = nameless
    simulator.faults.add(fault)
    answer = enter(operator, transfer, made)
    problem(answer, status, kind)
    assert answer.get("Retry-After") == ("5" if status == 503 else None)
    assert id_of(transfer) == ""
    simulator.faults.clear()
    assert enter(operator, transfer, made, **{"Idempotency-Key": "k"}).status_code == 200


def test_a_row_that_has_changed_since_it_was_seen_takes_none(
    operator: APIClient, nameless: tuple[SellerTransfer, str]
) -> None:
    transfer, made = nameless
    seen = operator.get(f"/api/transfers/{transfer.pk}/")["ETag"]
    problem(enter(operator, transfer, made, **{"If-Match": '"7-1"'}), 412, "changed-meanwhile")
    assert id_of(transfer) == ""
    assert enter(operator, transfer, made, **{"If-Match": seen}).status_code == 200


def test_it_needs_the_permission(nameless: tuple[SellerTransfer, str], simulator: Any) -> None:
    transfer, made = nameless
    before = simulator.requests.total
    viewer = client_of(UserFactory(staff=True, permissions=VIEWS))
    assert "retry_sellertransfer" in problem(enter(viewer, transfer, made), 403)["detail"]
    assert (simulator.requests.total, id_of(transfer)) == (before, "")


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_stripe_is_asked(
    operator: APIClient, nameless: tuple[SellerTransfer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer, made = nameless
    look_up, seen = transfers.look_up, []

    def looked_up(stripe_transfer_id: str, gateway: Any) -> Any:
        seen.append(connection.in_atomic_block)
        return look_up(stripe_transfer_id, gateway)

    monkeypatch.setattr(transfers, "look_up", looked_up)
    assert enter(operator, transfer, made, **{"Idempotency-Key": "one"}).status_code == 200
    assert seen == [False]
