"""No page asks more questions of the database because more rows are on it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from marketplace import throttle
from marketplace.api.urls import router
from marketplace.models import (
    BulkRetry,
    Drift,
    Notice,
    NoticeMessage,
    Order,
    Reconciliation,
    ReconciliationFinding,
    RequestAllowance,
)
from marketplace.workers.heartbeat import Heartbeat
from tests.factories import (
    ApiTokenFactory,
    BulkRetryFactory,
    BulkRetryItemFactory,
    DisputeFactory,
    ProductFactory,
    RefundFactory,
    SellerTransferFactory,
    UserFactory,
    WebhookEventFactory,
    order_with_transfers,
)

ADMIN_LISTS = [
    reverse(f"admin:marketplace_{model._meta.model_name}_changelist")
    for model in apps.get_app_config("marketplace").get_models()
    if model in admin.site._registry
]
API_LISTS = [f"/api/{prefix}/" for prefix, _viewset, _name in router.registry]
FEW, MANY = 5, 50


@pytest.fixture
def root(db: None) -> Client:
    client = Client()
    client.force_login(UserFactory(superuser=True, staff=True))
    return client


@pytest.fixture
def one_more(root: Client) -> Callable[[], None]:
    """Makes one row more for each list."""
    order, bulk_retry = order_with_transfers(status="completed"), BulkRetryFactory()

    def make() -> None:
        failed = order_with_transfers((700,), status="permanently_failed").transfers.get()
        failed.reversals.update(waiting_for_funds_since=timezone.now())
        order_with_transfers((700, 300), status="reversal_pending", currency="jpy")
        SellerTransferFactory(reversed=True)
        ProductFactory()
        RefundFactory(order=order, amount=1)
        DisputeFactory()
        WebhookEventFactory(failed=True)
        BulkRetryFactory()
        BulkRetryItemFactory(bulk_retry=bulk_retry)
        NoticeMessage.objects.create(
            channel="email", notices=[Notice.objects.latest("id").pk], next_retry_at=timezone.now()
        )
        ApiTokenFactory()
        run = Reconciliation.objects.create(step="own", until=timezone.now(), finished_at=timezone.now())
        ReconciliationFinding.objects.create(run=run, kind=Drift.MISSING, subject="transfer 1", detail="none there")
        name = uuid4().hex[:8]
        throttle.failed(name, channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
        Heartbeat(name, ["reversal", "refund"], concurrency=16).beat(in_hand=3)
        RequestAllowance.objects.create(
            endpoint=f"GET /v1/{name}", next_free_at=timezone.now(), spacing=timedelta(milliseconds=52)
        )

    return make


@dataclass(frozen=True)
class Look:
    queries: int
    rows: int
    is_of_several: bool


def look(client: Client, address: str) -> Look:
    """At one page: what it asks, and for a list how many rows it has and whether there are more pages."""
    with CaptureQueriesContext(connection) as captured:
        response = client.get(address)
    assert response.status_code == 200, address
    if listed := (response.context or {}).get("cl"):
        return Look(len(captured), len(listed.result_list), listed.multi_page)
    body = response.json() if address.startswith("/api/") else {}
    return Look(len(captured), len(body.get("results", ())), is_of_several=False)


def test_no_page_asks_more_often_with_more_rows(root: Client, one_more: Callable[[], None]) -> None:
    lists = [
        *ADMIN_LISTS,
        *API_LISTS,
        f"/api/orders/{Order.objects.get().pk}/refunds/",
        f"/api/bulk-retries/{BulkRetry.objects.get().pk}/items/",
    ]
    addresses = [*lists, "/admin/", "/metrics", "/api/stats/"]
    looks = []
    for count in (FEW, MANY - FEW):
        for _ in range(count):
            one_more()
        if not looks:
            # What Django remembers from the first time on is not asked again.
            for address in addresses:
                look(root, address)
        looks.append({address: look(root, address) for address in addresses})

    few, many = looks
    assert {address: many[address].rows for address in lists if many[address].rows < MANY} == {}
    # Of several pages the keys of one are found first.
    assert any(each.is_of_several for each in many.values())
    allowed = {address: few[address].queries + many[address].is_of_several for address in addresses}
    assert {address: each.queries for address, each in many.items()} == allowed
    assert {address: many[address].queries for address in lists if many[address].queries > 8} == {}
