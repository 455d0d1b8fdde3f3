"""Reconciliations in the admin: what was compared, the drift by kind in money, and the way to each row."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from marketplace.models import Drift, Reconciliation, ReconciliationFinding
from tests.factories import SellerTransferFactory, UserFactory

pytestmark = pytest.mark.django_db
LIST = "admin:marketplace_reconciliationfinding_changelist"


@pytest.fixture
def viewer(db: None) -> Client:
    client = Client()
    permissions = ["view_reconciliation", "view_reconciliationfinding", "view_sellertransfer"]
    client.force_login(UserFactory(staff=True, permissions=permissions))
    return client


def ran(**fields: Any) -> Reconciliation:
    now = timezone.now()
    return Reconciliation.objects.create(
        step="own", until=now, **{"finished_at": now, "counts": {"transfers": 12_345, "requests": 125}, **fields}
    )


def drift(run: Reconciliation, kind: Drift = Drift.MISSING, **fields: Any) -> ReconciliationFinding:
    told = {"subject": "transfer 1", "amount": 700, "currency": "eur", "detail": "Stripe has none", **fields}
    return ReconciliationFinding.objects.create(run=run, kind=kind, **told)


def page(run: Reconciliation) -> str:
    return reverse("admin:marketplace_reconciliation_change", args=[run.pk])


def test_a_run_says_what_it_compared_and_its_drift_by_kind_in_money(viewer: Client) -> None:
    run, other = ran(asked="--since=3d --fix", since=timezone.now() - timedelta(days=3)), ran()
    drift(run, amount=700)
    drift(run, amount=300, is_healed=True)
    drift(run, amount=50_000, currency="jpy")
    drift(run, Drift.OVERDUE, amount=None, currency="")
    drift(other, amount=999)
    seller = SellerTransferFactory().seller
    drift(run, Drift.NOT_CLAWED_BACK, amount=4200, stripe_account_id=seller.stripe_account_id)
    answer = viewer.get(page(run))
    shown = answer.content.decode()
    assert [(each["kind"], each["count"], each["healed"]) for each in answer.context["totals"]] == [
        (Drift.MISSING.label, 2, 1),
        (Drift.MISSING.label, 1, 0),
        (Drift.NOT_CLAWED_BACK.label, 1, 0),
        (Drift.OVERDUE.label, 1, 0),
    ]
    for text in ("10.00 EUR", "50000 JPY", "42.00 EUR", "4 of 5 drift left", "12345", "--since=3d --fix", seller.name):
        assert text in shown, text
    # Each number leads to its rows.
    for each, expected in zip(answer.context["totals"], (2, 1, 1, 1), strict=True):
        assert viewer.get(each["address"]).context["cl"].queryset.count() == expected
    (leak,) = answer.context["leaks"]
    assert viewer.get(leak["address"]).context["cl"].queryset.count() == 1


@pytest.mark.parametrize(
    ("healed", "finished", "said"),
    [
        ([], True, "no drift"),
        ([True], True, "1 drift, healed"),
        ([True, False], True, "1 of 2 drift left"),
        ([False], False, "running, or broken off"),
    ],
)
def test_the_list_says_how_each_ended(viewer: Client, healed: list[bool], finished: bool, said: str) -> None:
    run = ran() if finished else ran(finished_at=None)
    for each in healed:
        drift(run, is_healed=each)
    shown = viewer.get(reverse("admin:marketplace_reconciliation_changelist")).content.decode()
    assert said in shown
    assert "the beginning" in shown


def test_drift_leads_to_the_row_that_it_is_about(viewer: Client) -> None:
    run, row = ran(), SellerTransferFactory()
    to_row = reverse("admin:marketplace_sellertransfer_change", args=[row.pk])
    found = drift(run, subject=str(row))
    refund = drift(run, subject="refund 7", currency="", amount=None)
    foreign = drift(run, subject="charge ch_1")
    shown = viewer.get(reverse(LIST)).content.decode()
    assert shown.count(f'href="{to_row}"') == 1
    assert f'href="{reverse("admin:marketplace_refund_change", args=[7])}"' in shown
    assert "charge ch_1" in shown
    for each in (found, refund, foreign):
        assert viewer.get(reverse("admin:marketplace_reconciliationfinding_change", args=[each.pk])).status_code == 200


@pytest.mark.parametrize(("state", "expected"), [("left", 1), ("healed", 2), ("", 3)])
def test_drift_is_found_by_its_state_and_kind(viewer: Client, state: str, expected: int) -> None:
    run = ran()
    drift(run)
    drift(run, is_healed=True)
    drift(run, Drift.REVERSED_UNKNOWN, is_healed=True)
    asked = {"state": state} if state else {}
    assert viewer.get(reverse(LIST), asked).context["cl"].queryset.count() == expected
    by_kind = viewer.get(reverse(LIST), {"kind__exact": Drift.REVERSED_UNKNOWN})
    assert by_kind.context["cl"].queryset.count() == 1


def test_a_run_that_is_not_there_leads_back(viewer: Client) -> None:
    assert viewer.get(reverse("admin:marketplace_reconciliation_change", args=[1])).status_code == 302


def test_nobody_changes_any_of_it(viewer: Client) -> None:
    found = drift(ran())
    for name in ("reconciliation", "reconciliationfinding"):
        assert viewer.get(reverse(f"admin:marketplace_{name}_add")).status_code == 403
        row = found if name.endswith("finding") else found.run
        address = reverse(f"admin:marketplace_{name}_change", args=[row.pk])
        assert viewer.post(address, {"detail": "other"}).status_code == 403
