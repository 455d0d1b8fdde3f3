"""The field ``why`` of a transfer, and POST /api/transfers/{id}/try-now/."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from marketplace.models import SellerTransfer
from tests.api.conftest import Scene, problem
from tests.factories import SellerTransferFactory, TransferReversalFactory

TRY_NOW = "/api/transfers/{}/try-now/"
BODY = {"reason": "the seller has topped up"}


def test_staff_are_told_why(staff: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    reversal = transfer.reversals.get()

    why = staff.get(f"/api/transfers/{transfer.pk}/").json()["why"]

    assert why["kind"] == "needs_a_person"
    assert why["cause"] == "Stripe has no transfer with this id for our key."
    assert why["runbook"] == "docs/runbook.md#not_found"
    assert why["next_attempt"] is None
    assert (why["owed"][0]["reversal"], why["owed"][0]["refund"]) == (reversal.pk, reversal.refund_id)
    assert why["key"]["age_seconds"] in range(239, 300)
    retry = next(each for each in why["actions"] if each["name"] == "retry")
    assert (retry["is_allowed"], retry["refusal"]) == (
        False,
        "this needs the permission marketplace.retry_sellertransfer",
    )


def test_operators_are_told_what_they_may_do(operator: APIClient) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, next_retry_at=timezone.now() + timedelta(hours=1))

    why = operator.get(f"/api/transfers/{transfer.pk}/").json()["why"]

    assert why["next_attempt"]["at"] == transfer.next_retry_at.isoformat().replace("+00:00", "Z")
    assert [each["name"] for each in why["actions"] if each["is_allowed"]] == ["try_now"]


@pytest.mark.parametrize("who", ["seller"])
def test_it_is_for_staff_only(scene: Scene, who: str) -> None:
    assert "why" not in scene.clients[who].get(f"/api/transfers/{scene.transfer.pk}/").json()
    assert "why" in scene.clients["viewer"].get(f"/api/transfers/{scene.transfer.pk}/").json()


def test_lists_do_not_explain(staff: APIClient) -> None:
    SellerTransferFactory()
    assert "why" not in staff.get("/api/transfers/").json()["results"][0]


def test_it_asks_the_same_number_of_questions_whatever_hangs_on_it(staff: APIClient) -> None:
    few, many = (
        SellerTransferFactory(reversal_pending=True),
        SellerTransferFactory(reversal_pending=True, reversal=False),
    )
    for _ in range(5):
        TransferReversalFactory(transfer=many, amount=100, cause="operator", refund=None)

    def questions(transfer: SellerTransfer) -> int:
        with CaptureQueriesContext(
            connection,
        ) as asked:
            assert staff.get(f"/api/transfers/{transfer.pk}/").status_code == 200
        return len(asked)

    questions(few)
    assert questions(few) == questions(many) <= 20


def test_the_document_describes_it(staff: APIClient) -> None:
    document: Any = staff.get("/api/schema/", headers={"Accept": "application/json"}).json()

    schemas = document["components"]["schemas"]
    assert "why" in schemas["TransferDetail"]["properties"]
    assert "why" not in schemas["TransferDetail"]["required"]
    assert {"kind", "cause", "unblocks", "next_attempt", "actions"} <= schemas["Why"]["properties"].keys()
    examples = document["paths"]["/api/transfers/{id}/"]["get"]["responses"]["200"]["content"]["application/json"]
    shown = next(iter(examples["examples"].values()))["value"]
    assert set(shown["why"]) == set(schemas["Why"]["properties"])
    assert set(shown) == set(schemas["TransferDetail"]["properties"])


# --- Try now ----------------------------------------------------------------------------------------------------------


def test_a_waiting_transfer_is_tried_now(operator: APIClient) -> None:
    transfer = SellerTransferFactory(
        reversal_pending=True, next_retry_at=timezone.now() + timedelta(hours=1), retry_count=2
    )

    response = operator.post(TRY_NOW.format(transfer.pk), BODY)

    shown = response.json()
    assert response.status_code == 200
    assert shown["retry_count"] == 2
    newest = shown["history"][0]
    assert (newest["event"], newest["reason"]) == ("woken", BODY["reason"])
    transfer.refresh_from_db()
    assert transfer.next_retry_at is not None
    assert transfer.next_retry_at <= timezone.now()


def test_what_is_due_already_is_refused(operator: APIClient) -> None:
    transfer = SellerTransferFactory()

    refused = problem(operator.post(TRY_NOW.format(transfer.pk), BODY), 409, "not-allowed-now")

    assert "is due already" in refused["detail"]


def test_it_needs_the_permission_and_a_reason(staff: APIClient, operator: APIClient) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, next_retry_at=timezone.now() + timedelta(hours=1))

    problem(staff.post(TRY_NOW.format(transfer.pk), BODY), 403)
    problem(operator.post(TRY_NOW.format(transfer.pk), {}), 400, "invalid-request")
    problem(operator.post(TRY_NOW.format(10**6), BODY), 404)

    transfer.refresh_from_db()
    assert transfer.next_retry_at is not None
    assert transfer.next_retry_at > timezone.now()
