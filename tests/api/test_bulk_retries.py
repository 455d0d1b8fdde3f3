"""/api/bulk-retries/: planned, started, approved, stopped; the result of each transfer."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client
from rest_framework.test import APIClient

from marketplace import throttle
from marketplace.models import BulkRetry, BulkRetryItem
from marketplace.services import bulk_steps
from marketplace.states import BulkRetryItemStatus
from tests.api.conftest import VIEWS, client_of, problem, session_of
from tests.factories import (
    BulkRetryFactory,
    BulkRetryItemFactory,
    SellerTransferFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

BODY: dict[str, Any] = {"criteria": {"error_code": "not_found"}, "reason": "the accounts are open again"}


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.BULK_RETRY_APPROVAL_ABOVE = {"": 20_000}


def allowed(*permissions: str) -> APIClient:
    return session_of(UserFactory(staff=True, permissions=[*VIEWS, *permissions]))


@pytest.fixture
def ann() -> APIClient:
    return client_of(
        UserFactory(username="ann", staff=True, permissions=[*VIEWS, "retry_sellertransfer", "stop_bulkretry"])
    )


def act(client: APIClient, bulk_retry: int, name: str, **body: Any) -> Any:
    return client.post(f"/api/bulk-retries/{bulk_retry}/{name}/", body)


def step() -> None:
    for claimed in bulk_steps.claim(batch_size=9, lease=timedelta(minutes=5)):
        bulk_steps.go_on(claimed, actor="worker")


# --- From the plan to the end -----------------------------------------------------------------------------------------


def test_a_plan_is_a_dry_run(ann: APIClient) -> None:
    transfers = [SellerTransferFactory(permanently_failed=True, amount=9000) for _ in range(3)]
    refused = SellerTransferFactory(permanently_failed=True, stripe_transfer_id="", amount=100)
    SellerTransferFactory(permanently_failed=True, last_error_code="account_invalid")
    response = ann.post("/api/bulk-retries/", BODY)
    assert response.status_code == 201, response.content
    shown = response.json()
    assert response["Location"] == f"/api/bulk-retries/{shown['id']}/"
    assert {name: shown[name] for name in ("status", "criteria", "requested_by", "approved_by", "is_paused")} == {
        "status": "planned",
        "criteria": {"error_code": "not_found"},
        "requested_by": "ann",
        "approved_by": None,
        "is_paused": False,
    }
    assert shown["totals"] == [
        {"status": "planned", "currency": "eur", "count": 3, "amount": 27_000},
        {"status": "refused", "currency": "eur", "count": 1, "amount": 100},
    ]
    assert [each["count"] for each in shown["refused"]] == [1]
    assert shown["over_limit"] == [{"currency": "eur", "amount": 27_000, "limit": 20_000}]
    assert [each["status"] for each in shown["history"]] == ["planned"]
    for row in (*transfers, refused):
        row.refresh_from_db()
        assert row.status == "permanently_failed"


def test_all_criteria_choose(ann: APIClient) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    criteria = {
        "failed_leg": "reversing",
        "error_code": "not_found",
        "seller": transfer.seller_id,
        "currency": "eur",
        "failed_after": "2020-01-01T00:00:00Z",
        "failed_before": "2100-01-01T00:00:00Z",
    }
    shown = ann.post("/api/bulk-retries/", {**BODY, "criteria": criteria}).json()
    assert shown["criteria"]["seller_id"] == transfer.seller_id
    assert shown["totals"][0]["count"] == 1


@pytest.mark.parametrize(
    ("criteria", "field"),
    [
        ({"failed_leg": "flying"}, "criteria.failed_leg"),
        ({"currency": "EUR"}, "criteria.currency"),
        ({"seller": "7"}, "criteria.seller"),
        ({"failed_after": "yesterday"}, "criteria.failed_after"),
        ({"error": "not_found"}, "criteria.error"),
    ],
)
def test_a_criterion_that_cannot_be_is_refused_by_name(criteria: Any, field: str, ann: APIClient) -> None:
    refused = problem(ann.post("/api/bulk-retries/", {**BODY, "criteria": criteria}), 400, "invalid-request")
    assert list(refused["errors"]) == [field]


def test_where_nothing_matches_nothing_is_planned(ann: APIClient) -> None:
    refused = problem(ann.post("/api/bulk-retries/", BODY), 409, "not-allowed-now")
    assert refused["detail"] == "no transfer that needs a person matches"


@pytest.mark.parametrize("lacking", ["retry_sellertransfer", "view_bulkretry", "view_sellertransfer"])
def test_who_plans_sees_what_is_chosen_and_may_retry_it(lacking: str) -> None:
    SellerTransferFactory(permanently_failed=True)
    permissions = {"retry_sellertransfer", "view_bulkretry", "view_sellertransfer"} - {lacking}
    client = client_of(UserFactory(staff=True, permissions=[*permissions]))
    assert problem(client.post("/api/bulk-retries/", BODY), 403)["detail"].endswith(f"marketplace.{lacking}.")
    assert not BulkRetry.objects.exists()


def test_started_approved_by_another_and_stopped(ann: APIClient) -> None:
    SellerTransferFactory(permanently_failed=True, amount=20_001)
    pk = ann.post("/api/bulk-retries/", BODY).json()["id"]
    assert act(ann, pk, "start").json()["status"] == "awaiting_approval"
    bob = allowed("approve_bulkretry")
    shown = act(bob, pk, "approve", reason="agreed").json()
    assert (shown["status"], shown["needs_approval"]) == ("canary", True)
    assert shown["approved_by"]
    step()
    shown = act(ann, pk, "stop", reason="the wrong cause").json()
    assert (shown["status"], shown["stop_reason"]) == ("stopped", "the wrong cause")
    (item,) = ann.get(f"/api/bulk-retries/{pk}/items/").json()["results"]
    assert (item["status"], item["transfer_status"]) == ("retried", "reversal_pending")


def test_nobody_approves_their_own() -> None:
    user = UserFactory(staff=True, permissions=[*VIEWS, "retry_sellertransfer", "approve_bulkretry"])
    bulk_retry = BulkRetryFactory(awaiting_approval=True, requested_by=user)
    refused = problem(act(session_of(user), bulk_retry.pk, "approve", reason="sure"), 409, "not-allowed-now")
    assert "another person has to approve it" in refused["detail"]


def test_no_program_is_the_second_person() -> None:
    """Whoever's token it is: a person looks, signed in."""
    bulk_retry = BulkRetryFactory(awaiting_approval=True)
    user = UserFactory(staff=True, permissions=[*VIEWS, "approve_bulkretry"])
    refused = problem(act(client_of(user), bulk_retry.pk, "approve", reason="agreed"), 403)
    assert refused["detail"] == "This token may not do this: sign in."
    bulk_retry.refresh_from_db()
    assert (bulk_retry.status, bulk_retry.approved_by) == ("awaiting_approval", None)
    assert act(session_of(user), bulk_retry.pk, "approve", reason="agreed").json()["status"] == "canary"


def test_a_second_person_declines_by_canceling() -> None:
    bulk_retry = BulkRetryFactory(awaiting_approval=True)
    shown = act(allowed("stop_bulkretry"), bulk_retry.pk, "cancel", reason="too much").json()
    assert shown["status"] == "canceled"
    assert "too much" in [each["reason"] for each in shown["history"]]


@pytest.mark.parametrize("name", ["start", "approve", "stop", "cancel"])
def test_what_is_not_there_is_not_found(name: str) -> None:
    problem(act(allowed("retry_sellertransfer", "approve_bulkretry", "stop_bulkretry"), 9, name, reason="x"), 404)


@pytest.mark.parametrize("name", ["approve", "stop", "cancel"])
def test_a_decision_needs_a_reason(name: str) -> None:
    bulk_retry = BulkRetryFactory(awaiting_approval=True)
    client = allowed("approve_bulkretry", "stop_bulkretry")
    assert list(problem(act(client, bulk_retry.pk, name), 400, "invalid-request")["errors"]) == ["reason"]
    problem(act(allowed("retry_sellertransfer"), bulk_retry.pk, "start", reason="x"), 400, "invalid-request")


# --- Shown ------------------------------------------------------------------------------------------------------------


def test_it_is_paused_while_stripe_fails_for_everyone(ann: APIClient) -> None:
    item = BulkRetryItemFactory()
    BulkRetry.objects.filter(pk=item.bulk_retry_id).update(status="canary", started_at=Now(), next_retry_at=Now())
    throttle.failed("reversal", channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
    assert ann.get(f"/api/bulk-retries/{item.bulk_retry_id}/").json()["is_paused"]


def test_the_list_is_filtered_by_status(ann: APIClient) -> None:
    BulkRetryFactory()
    stopped = BulkRetryFactory(stopped=True)
    (shown,) = ann.get("/api/bulk-retries/", {"status": "stopped"}).json()["results"]
    assert (shown["id"], "totals" in shown) == (stopped.pk, False)


def test_results_are_filtered_and_belong_to_one(ann: APIClient) -> None:
    failed = BulkRetryItemFactory(failed=True)
    BulkRetryItemFactory(bulk_retry=failed.bulk_retry)
    BulkRetryItemFactory(failed=True)
    address = f"/api/bulk-retries/{failed.bulk_retry_id}/items/"
    (shown,) = ann.get(address, {"status": BulkRetryItemStatus.FAILED.value}).json()["results"]
    assert (shown["transfer"], shown["why"]) == (failed.transfer_id, "not_found: No such transfer")
    assert len(ann.get(address).json()["results"]) == 2
    problem(ann.get("/api/bulk-retries/999/items/"), 404)


def test_buyers_and_sellers_see_none() -> None:
    problem(client_of(UserFactory()).get("/api/bulk-retries/"), 403)
    problem(client_of(UserFactory()).get(f"/api/bulk-retries/{BulkRetryFactory().pk}/items/"), 403)


# --- In the admin -----------------------------------------------------------------------------------------------------


def in_admin(*permissions: str) -> Client:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=[*VIEWS, *permissions]))
    return client


@pytest.mark.parametrize(
    ("name", "permission"),
    [
        ("start", "retry_sellertransfer"),
        ("approve", "approve_bulkretry"),
        ("stop", "stop_bulkretry"),
        ("cancel", "stop_bulkretry"),
        ("", "retry_sellertransfer"),
    ],
)
def test_who_may_not_see_one_decides_nothing(name: str, permission: str) -> None:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=[permission]))
    bulk_retry = BulkRetryFactory(awaiting_approval=True)
    address = f"/admin/marketplace/bulkretry/{bulk_retry.pk}/{name}/" if name else "/admin/marketplace/bulkretry/add/"
    assert client.post(address, {"reason": "x", "apply": "yes"}).status_code == 403
    assert client.get(f"/admin/marketplace/bulkretry/{bulk_retry.pk}/progress/").status_code == 403
    bulk_retry.refresh_from_db()
    assert bulk_retry.status == "awaiting_approval"


def test_a_refusal_stands_beside_the_question() -> None:
    bulk_retry = BulkRetryFactory(finished=True)
    client = in_admin("retry_sellertransfer", "approve_bulkretry", "stop_bulkretry")
    for name in ("start", "approve", "stop", "cancel"):
        shown = client.post(f"/admin/marketplace/bulkretry/{bulk_retry.pk}/{name}/", {"reason": "x", "apply": "yes"})
        assert f"bulk retry {bulk_retry.pk} is finished: expected" in shown.content.decode()
        assert client.get(f"/admin/marketplace/bulkretry/999/{name}/").status_code == 302


def test_what_is_not_there_has_no_page() -> None:
    client = in_admin()
    assert client.get("/admin/marketplace/bulkretry/999/change/").status_code == 302
    assert client.get("/admin/marketplace/bulkretry/999/progress/").status_code == 404


def moved(item: BulkRetryItem, *statuses: str, **fields: Any) -> None:
    """Its bulk retry is in the last of these, by way of the others."""
    for status in statuses:
        is_last = status == statuses[-1]
        begun = {} if status == "canceled" else {"started_at": Now()}
        due = {"next_retry_at": Now() if status in {"canary", "running"} else None}
        row = BulkRetry.objects.filter(pk=item.bulk_retry_id)
        row.update(status=status, **begun, **due, **(fields if is_last else {}))


STATES: dict[str, tuple[tuple[str, ...], str]] = {
    "planned": ((), "Nothing is retried yet. Start it within 24 hours"),
    "awaiting_approval": (("awaiting_approval",), "A second person has to approve: "),
    "canary": (("canary",), "the rest waits for what becomes of it"),
    "running": (("canary", "running"), "the rest is being retried"),
    "stopped": (("canary", "stopped"), "Stopped: too many failed. The rest is untouched."),
    "finished": (("canary", "finished"), "1 of 1 done"),
    "canceled": (("canceled",), "1 transfer would be retried"),
}


@pytest.mark.parametrize("status", STATES)
def test_each_state_says_what_has_to_happen(status: str) -> None:
    item = BulkRetryItemFactory(failed=True)
    way, expected = STATES[status]
    moved(item, *way, **({"stop_reason": "too many failed"} if status == "stopped" else {}))
    shown = in_admin().get(f"/admin/marketplace/bulkretry/{item.bulk_retry_id}/progress/").content.decode()
    is_live = status in {"awaiting_approval", "canary", "running"}
    assert f'data-state="{status}" data-over="{"no" if is_live else "yes"}"' in shown
    assert expected in shown


def test_a_paused_one_says_so_and_a_stopped_one_is_watched_until_it_is_settled() -> None:
    item = BulkRetryItemFactory(retried=True)
    moved(item, "canary")
    throttle.failed("reversal", channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
    address = f"/admin/marketplace/bulkretry/{item.bulk_retry_id}/progress/"
    assert "Paused: Stripe fails for everyone" in in_admin().get(address).content.decode()
    moved(item, "stopped", stop_reason="x")
    assert 'data-over="no"' in in_admin().get(address).content.decode()


def test_results_are_filtered_and_paged_in_the_admin() -> None:
    bulk_retry = BulkRetryFactory()
    rows = [BulkRetryItemFactory(bulk_retry=bulk_retry) for _ in range(52)]
    failed = BulkRetryItemFactory(bulk_retry=bulk_retry, failed=True)
    address = f"/admin/marketplace/bulkretry/{bulk_retry.pk}/progress/"
    second = in_admin().get(address, {"page": "2"}).content.decode()
    assert "Page 2 of 2" in second
    assert f"transfer {rows[51].transfer_id}<" in second
    only = in_admin().get(address, {"result": "failed"}).content.decode()
    assert f"transfer {failed.transfer_id}<" in only
    assert f"transfer {rows[0].transfer_id}<" not in only


@pytest.mark.parametrize(
    ("query", "carried", "hint"),
    [
        ("", 'add/?"', "first a few"),
        ("failed_leg__exact=sending&currency__exact=eur", 'add/?failed_leg=sending&amp;currency=eur"', "first"),
        ("failed_leg__exact=sending&failed_leg__exact=reversing", 'add/?"', "first a few"),
        ("created_at_from_0=2026-01-01", 'add/?"', "not taken along"),
    ],
)
def test_the_list_of_transfers_leads_to_a_plan_with_its_filters(query: str, carried: str, hint: str) -> None:
    SellerTransferFactory(permanently_failed=True)
    client = in_admin("retry_sellertransfer")
    shown = client.get(f"/admin/marketplace/sellertransfer/?{query}").content.decode()
    assert f"/admin/marketplace/bulkretry/{carried}" in shown
    assert hint in shown


@pytest.mark.parametrize("name", ["number", "account", "other"])
def test_a_seller_is_named_by_number_or_account(name: str) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    SellerTransferFactory(permanently_failed=True)
    named = {"number": str(transfer.seller_id), "account": transfer.seller.stripe_account_id, "other": "acct_none"}
    client = in_admin("retry_sellertransfer")
    shown = client.post("/admin/marketplace/bulkretry/add/", {"seller": named[name], "reason": "again"})
    if name == "other":
        assert "No seller has this number or account." in shown.content.decode()
        return
    assert shown.status_code == 302
    assert BulkRetry.objects.get().items.get().transfer == transfer


@pytest.mark.parametrize(
    ("name", "status", "then"),
    [
        ("start", "planned", "canary"),
        ("approve", "awaiting_approval", "canary"),
        ("stop", "running", "stopped"),
        ("cancel", "planned", "canceled"),
    ],
)
def test_who_acts_may_say_which_version_was_seen(name: str, status: str, then: str) -> None:
    user = UserFactory(staff=True, permissions=[*VIEWS, "retry_sellertransfer", "approve_bulkretry", "stop_bulkretry"])
    own = {"requested_by": user} if name == "start" else {}
    item = BulkRetryItemFactory(bulk_retry=BulkRetryFactory(**own))
    moved(item, *{"running": ("canary", "running"), "planned": ()}.get(status, (status,)))
    client, address = session_of(user), f"/api/bulk-retries/{item.bulk_retry_id}/"
    seen = client.get(address)["ETag"]
    body = {} if name == "start" else {"reason": "x"}
    stale = problem(client.post(f"{address}{name}/", body, headers={"If-Match": '"7-1"'}), 412, "changed-meanwhile")
    assert f"it is {status} now" in stale["detail"]
    assert client.get(address)["ETag"] == seen
    done = client.post(f"{address}{name}/", body, headers={"If-Match": f'"7-1", {seen}'})
    assert (done.json()["status"], done["ETag"]) == (then, client.get(address)["ETag"])
    assert done["ETag"] != seen
