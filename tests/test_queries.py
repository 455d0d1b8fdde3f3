"""No page asks more questions of the database because more rows are on it."""

from collections.abc import Callable
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


def cost(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(address).status_code == 200, address
    return len(captured)


def rows_of(client: Client, address: str) -> int:
    response = client.get(address)
    if address.startswith("/api/"):
        return len(response.json()["results"])
    return len(response.context["cl"].result_list)


def test_no_page_asks_more_often_with_more_rows(root: Client, one_more: Callable[[], None]) -> None:
    lists = [
        *ADMIN_LISTS,
        *API_LISTS,
        f"/api/orders/{Order.objects.get().pk}/refunds/",
        f"/api/bulk-retries/{BulkRetry.objects.get().pk}/items/",
    ]
    addresses = [*lists, "/admin/", "/metrics", "/api/stats/"]
    costs = []
    for count in (FEW, MANY - FEW):
        for _ in range(count):
            one_more()
        # What Django remembers from the first time on is not asked again.
        for address in addresses:
            cost(root, address)
        costs.append({address: cost(root, address) for address in addresses})

    assert {address: rows_of(root, address) for address in lists if rows_of(root, address) < MANY} == {}
    few, many = costs
    # Of several pages the keys of one are found first.
    several = [address for address in ADMIN_LISTS if root.get(address).context["cl"].multi_page]
    assert several
    assert many == {address: number + (address in several) for address, number in few.items()}
    assert {address: number for address, number in many.items() if address in lists and number > 8} == {}
