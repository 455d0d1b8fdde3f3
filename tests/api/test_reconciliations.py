"""Reconciliations and their drift in the API: read only, by staff who may."""

from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from marketplace.models import Drift, Reconciliation, ReconciliationFinding
from tests.api.conftest import client_of, problem
from tests.factories import UserFactory


def drift_found(**fields: Any) -> ReconciliationFinding:
    """By a run of its own, unless ``run`` is given."""
    now = timezone.now()
    run = fields.pop("run", None) or Reconciliation.objects.create(
        step="own", until=now, finished_at=now, asked="--fix", counts={"transfers": 1200, "requests": 13}
    )
    told = {"kind": Drift.MISSING, "subject": "transfer 7", "amount": 700, "currency": "eur", "detail": "not there"}
    return ReconciliationFinding.objects.create(run=run, **told | fields)


@pytest.fixture
def watcher(db: None) -> APIClient:
    return client_of(UserFactory(staff=True, permissions=["view_reconciliation", "view_reconciliationfinding"]))


def test_a_run_says_what_it_compared_and_what_is_left(watcher: APIClient) -> None:
    finding = drift_found()
    drift_found(run=finding.run, is_healed=True)
    told = watcher.get(f"/api/reconciliations/{finding.run_id}/").json()
    assert (told["found"], told["left"], told["asked"], told["since"]) == (2, 1, "--fix", None)
    assert (told["counts"]["transfers"], told["counts"]["requests"], told["counts"]["in_motion"]) == (1200, 13, 0)
    Reconciliation.objects.create(step="own", until=timezone.now())
    assert watcher.get("/api/reconciliations/").json()["results"][0]["finished_at"] is None
    assert [each["id"] for each in watcher.get("/api/reconciliations/?finished=true").json()["results"]] == [
        finding.run_id
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, 4),
        ({"kind": "missing"}, 3),
        ({"kind": ["missing", "overdue"]}, 4),
        ({"currency": "jpy"}, 1),
        ({"is_healed": "true"}, 1),
        ({"is_healed": "false"}, 3),
    ],
)
def test_drift_is_found_by_its_kind_and_state(watcher: APIClient, asked: dict[str, Any], expected: int) -> None:
    finding = drift_found()
    drift_found(run=finding.run, is_healed=True)
    drift_found(run=finding.run, currency="jpy")
    drift_found(run=finding.run, kind=Drift.OVERDUE, amount=None, currency="")
    drift_found(subject="of another run", kind=Drift.DEBTS, currency="usd")
    found = watcher.get("/api/drift/", {"run": finding.run_id, **asked}).json()["results"]
    assert len(found) == expected
    told = watcher.get(f"/api/drift/{finding.pk}/").json()
    assert (told["kind"], told["subject"], told["amount"], told["currency"]) == ("missing", "transfer 7", 700, "eur")


def test_a_kind_that_is_none_is_refused_with_all_there_are(watcher: APIClient) -> None:
    refused = problem(watcher.get("/api/drift/?kind=lost"), 400, "invalid-request")
    assert "expected one of not_reversed" in str(refused)


@pytest.mark.parametrize("address", ["/api/reconciliations/", "/api/drift/"])
def test_nobody_else_sees_any_of_it(address: str, db: None) -> None:
    drift_found()
    problem(client_of(UserFactory(staff=True)).get(address), 403)
    problem(client_of(UserFactory()).get(address), 403)
