"""Every page opens for whom it should, shows what it should, and changes nothing by itself."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection, models
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from marketplace import selectors, states, throttle
from marketplace.admin.base import COLOURS, label
from marketplace.models import (
    CircuitBreaker,
    Drift,
    Notice,
    NoticeMessage,
    Product,
    Reconciliation,
    ReconciliationFinding,
    RequestAllowance,
    Seller,
    SellerTransfer,
    WorkerHeartbeat,
)
from marketplace.workers.heartbeat import Heartbeat
from tests.api.conftest import VIEWS
from tests.factories import (
    ApiTokenFactory,
    BulkRetryItemFactory,
    DisputeFactory,
    ProductFactory,
    RefundFactory,
    SellerFactory,
    SellerTransferFactory,
    UserFactory,
    WebhookEventFactory,
    order_with_transfers,
)

MODELS = [
    model._meta.model_name
    for model in apps.get_app_config("marketplace").get_models()
    if model in admin.site._registry  # history and items stand on the pages of their rows
]


COORDINATION = ["workerheartbeat", "circuitbreaker", "requestallowance"]


def listing(name: str) -> str:
    return reverse(f"admin:marketplace_{name}_changelist")


def page(row: models.Model) -> str:
    return reverse(f"admin:marketplace_{row._meta.model_name}_change", args=[row.pk])


@pytest.fixture
def viewer(db: None) -> Client:
    client = Client()
    seen = [
        *VIEWS,
        "view_apitoken",
        "view_notice",
        "view_noticemessage",
        "view_reconciliation",
        "view_reconciliationfinding",
        *(f"view_{name}" for name in COORDINATION),
    ]
    client.force_login(UserFactory(staff=True, permissions=seen))
    return client


@pytest.fixture
def root(db: None) -> Client:
    client = Client()
    client.force_login(UserFactory(superuser=True))
    return client


@pytest.fixture
def populate(db: None) -> Callable[[], None]:
    def make() -> None:
        order_with_transfers(status="reversed")
        order_with_transfers(status="permanently_failed", currency="jpy")
        ProductFactory()
        RefundFactory()
        DisputeFactory()
        WebhookEventFactory(failed=True)
        BulkRetryItemFactory()
        NoticeMessage.objects.create(channel="email", notices=[Notice.objects.latest("id").pk], next_retry_at=Now())
        run = Reconciliation.objects.create(step="own", until=timezone.now(), finished_at=timezone.now())
        ReconciliationFinding.objects.create(run=run, kind=Drift.MISSING, subject="transfer 1", detail="none there")
        name = uuid4().hex[:8]
        throttle.failed(name, channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
        Heartbeat(name, ["reversal", "refund"], concurrency=16).beat(in_hand=3)
        spacing = timedelta(milliseconds=52)
        ApiTokenFactory()
        RequestAllowance.objects.create(endpoint=f"GET /v1/{name}", next_free_at=timezone.now(), spacing=spacing)

    return make


def test_every_model_has_its_pages() -> None:
    assert set(MODELS) == {
        "seller",
        "product",
        "order",
        "refund",
        "dispute",
        "sellertransfer",
        "transferreversal",
        "debt",
        "bulkretry",
        "webhookevent",
        "notice",
        "noticemessage",
        "reconciliation",
        "reconciliationfinding",
        "apitoken",
        *COORDINATION,
    }


def test_every_status_has_its_colour() -> None:
    for name in ("TransferStatus", "ReversalStatus", "RefundStatus", "OrderStatus", "EventStatus", "BulkRetryStatus"):
        status_class = getattr(states, name)
        assert COLOURS[status_class].keys() == set(status_class)
    assert "bg-orange" in label(states.TransferStatus.FAILED)
    assert "bg-red" in label(states.ReversalStatus.FAILED)


@pytest.mark.parametrize("name", MODELS)
def test_lists_and_pages_open(name: str, root: Client, populate: Callable[[], None]) -> None:
    populate()
    model = apps.get_model("marketplace", name)

    assert root.get(listing(name)).status_code == 200
    for row in model.objects.all():
        assert root.get(page(row)).status_code == 200


@pytest.mark.parametrize("name", MODELS)
def test_empty_lists_say_so(name: str, viewer: Client) -> None:
    plural = apps.get_model("marketplace", name)._meta.verbose_name_plural

    assert f"No {plural} yet" in viewer.get(listing(name)).content.decode()
    assert f"No {plural} match" in viewer.get(listing(name), {"q": "nothing_of_the_kind"}).content.decode()


def test_the_page_of_an_order_costs_as_many_queries_with_many_rows(root: Client) -> None:
    def cost(sellers: int) -> int:
        order = order_with_transfers(tuple(range(100, 100 + sellers)), status="reversal_pending")
        with CaptureQueriesContext(connection) as captured:
            root.get(page(order))
        return len(captured)

    cost(1)  # what Django remembers from the first time on
    assert cost(2) == cost(12)


@pytest.mark.parametrize("name", MODELS)
def test_nobody_sees_a_page_without_the_permission(name: str, populate: Callable[[], None]) -> None:
    populate()
    row = apps.get_model("marketplace", name).objects.first()
    staff, buyer, stranger = Client(), Client(), Client()
    staff.force_login(UserFactory(staff=True))
    buyer.force_login(UserFactory())

    for address in (listing(name), page(row)):
        assert staff.get(address).status_code == 403
        assert buyer.get(address).status_code == stranger.get(address).status_code == 302


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_deleted_here(name: str, root: Client, populate: Callable[[], None]) -> None:
    populate()
    model = apps.get_model("marketplace", name)
    row = model.objects.first()

    assert root.post(reverse(f"admin:marketplace_{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    root.post(listing(name), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"})
    assert model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize(
    "name", ["order", "refund", "dispute", "sellertransfer", "transferreversal", "debt", "webhookevent", *COORDINATION]
)
def test_nothing_that_stripe_has_a_say_in_is_added_or_edited(
    name: str, root: Client, populate: Callable[[], None]
) -> None:
    populate()
    row = apps.get_model("marketplace", name).objects.first()

    assert root.get(reverse(f"admin:marketplace_{name}_add")).status_code == 403
    shown = root.get(page(row)).content.decode()
    assert 'name="_save"' not in shown
    assert root.post(page(row), {"status": "reversed", "amount": 1}).status_code == 403


def test_of_a_seller_only_the_name_and_the_user_are_edited(root: Client) -> None:
    seller = SellerFactory(stripe_account_id="acct_1")
    user = UserFactory()

    root.post(page(seller), {"name": "New", "user": user.pk, "stripe_account_id": "acct_2", "payouts_enabled": ""})

    seller.refresh_from_db()
    assert (seller.name, seller.user, seller.stripe_account_id) == ("New", user, "acct_1")
    assert seller.payouts_enabled


def test_a_seller_is_added_with_its_account(root: Client) -> None:
    root.post(reverse("admin:marketplace_seller_add"), {"name": "New", "stripe_account_id": "acct_9"})

    assert Seller.objects.get().stripe_account_id == "acct_9"


def test_the_price_of_a_product_stays(root: Client) -> None:
    product = ProductFactory(unit_amount=2500)

    root.post(page(product), {"name": "Cup", "unit_amount": "1", "currency": "usd"})

    product.refresh_from_db()
    assert (product.name, product.unit_amount, product.currency, product.active) == ("Cup", 2500, "eur", False)


def test_a_product_is_added_with_a_price(root: Client) -> None:
    seller = SellerFactory()
    fields = {"name": "Cup", "seller": seller.pk, "unit_amount": "2500", "currency": "eur", "active": "on"}

    root.post(reverse("admin:marketplace_product_add"), fields)

    assert Product.objects.get().price.amount == 2500


def test_money_is_written_for_people(viewer: Client) -> None:
    order = order_with_transfers((123456,), status="completed")
    order_with_transfers((1200,), status="completed", currency="jpy")

    shown = viewer.get(listing("sellertransfer")).content.decode()

    assert "1234.56 EUR" in shown
    assert "1200 JPY" in shown
    assert "1234.56 EUR" in viewer.get(page(order)).content.decode()


def test_search_finds_whole_ids(viewer: Client) -> None:
    transfer = SellerTransferFactory(reversed=True)
    SellerTransferFactory(reversed=True)
    event = WebhookEventFactory()

    def found(name: str, value: str) -> list[Any]:
        return list(viewer.get(listing(name), {"q": value}).context["cl"].result_list)

    for value in (transfer.stripe_transfer_id, transfer.stripe_reversal_id, str(transfer.pk)):
        assert found("sellertransfer", value) == [transfer]
    assert found("sellertransfer", transfer.stripe_transfer_id[:-1]) == []
    assert found("order", transfer.order.stripe_charge_id) == [transfer.order]
    assert found("refund", transfer.order.refunds.get().stripe_refund_id) == [transfer.order.refunds.get()]
    assert found("transferreversal", transfer.stripe_reversal_id) == [transfer.reversals.get()]
    assert found("seller", transfer.seller.stripe_account_id) == [transfer.seller]
    assert found("webhookevent", event.stripe_event_id) == [event]


def test_transfers_are_filtered_by_status(viewer: Client) -> None:
    failed = SellerTransferFactory(permanently_failed=True)
    SellerTransferFactory(completed=True)

    response = viewer.get(listing("sellertransfer"), {"status__exact": "permanently_failed"})

    assert list(response.context["cl"].result_list) == [failed]


def test_a_transfers_page_tells_its_history(viewer: Client) -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    transfer.change(
        reason="unknown",
        actor="reversal worker",
        attempt=1,
        last_error_code="unknown",
        last_error_message="no answer within 20 s",
        last_error_at=transfer.next_retry_at,
    )
    transfer.transition(
        states.TransferStatus.REVERSED,
        reason="trr_77 confirmed",
        actor="reversal worker",
        attempt=2,
        amount_reversed=transfer.amount,
        stripe_reversal_id="trr_77",
        next_retry_at=None,
    )

    shown = viewer.get(page(transfer)).content.decode()

    for expected in ("trr_77 confirmed", "reversal worker", "no answer within 20 s", "stays", "→"):
        assert expected in shown


# --- Workers, breakers, allowances -------------------------------------------------------------------------------


def test_a_worker_without_a_sign_of_life_is_shown_as_such(viewer: Client) -> None:
    for name in ("alive", "dead"):
        Heartbeat(name, ["reversal", "refund"], concurrency=16).beat(in_hand=3)
    dead = WorkerHeartbeat.objects.get(identity__startswith="dead")
    WorkerHeartbeat.objects.filter(pk=dead.pk).update(seen_at=Now() - selectors.DEAD_AFTER)

    shown = viewer.get(listing("workerheartbeat")).content.decode()

    assert "reversal, refund" in shown
    first, second = shown.split("no sign of life")
    assert ("alive on" in first, "dead on" in first, "dead on" in second) == (True, True, False)
    assert "no sign of life" in viewer.get(page(dead)).content.decode()


def test_an_open_breaker_tells_since_when_and_why(viewer: Client) -> None:
    throttle.failed("reversal", channel="c", whom="seller 7, transfer 8", everyone=True, is_probe=False, error="502")
    throttle.failed("refund", channel="c", whom="order 9", everyone=False, is_probe=False, error="503")
    breakers = {breaker.work: breaker for breaker in CircuitBreaker.objects.all()}

    shown = viewer.get(listing("circuitbreaker")).content.decode()

    assert shown.count("open: rows wait") == shown.count("closed: work goes on") == 1
    opened = viewer.get(page(breakers["reversal"])).content.decode()
    assert all(each in opened for each in ("open: rows wait", "seller 7, transfer 8", "502"))
    closed = viewer.get(page(breakers["refund"])).content.decode()
    assert "closed: work goes on" in closed
    throttle.succeeded("refund")
    assert "order 9" not in viewer.get(page(breakers["refund"])).content.decode()


def test_an_allowance_tells_its_pace(viewer: Client) -> None:
    endpoint = "POST /v1/transfers/{id}/reversals"
    slow = RequestAllowance.objects.create(
        endpoint=endpoint, next_free_at=timezone.now(), spacing=timedelta(milliseconds=80), slowed_at=timezone.now()
    )
    RequestAllowance.objects.create(endpoint="GET /v1/balance", next_free_at=timezone.now(), spacing=timedelta(0))

    shown = viewer.get(listing("requestallowance")).content.decode()

    assert endpoint in shown
    assert "12.5" in shown
    assert "12.5" in viewer.get(page(slow)).content.decode()


# --- Users, groups, tokens ----------------------------------------------------------------------------------


def test_users_and_groups_open(root: Client) -> None:
    user, group = UserFactory(with_password=True), Group.objects.create(name="Operators")

    for name, row in (("user", user), ("group", group)):
        assert root.get(reverse(f"admin:auth_{name}_changelist")).status_code == 200
        shown = root.get(reverse(f"admin:auth_{name}_change", args=[row.pk]))
        assert shown.status_code == 200
        assert user.password not in shown.content.decode()
    assert root.get(reverse("admin:auth_user_add")).status_code == 200


def test_no_secret_of_the_settings_is_on_a_page(root: Client, settings: Any, populate: Callable[[], None]) -> None:
    populate()
    for address in ("/admin/", *(listing(name) for name in MODELS)):
        shown = root.get(address).content.decode()
        for secret in (settings.STRIPE_SECRET_KEY, *settings.STRIPE_WEBHOOK_SECRETS, settings.SECRET_KEY):
            assert secret not in shown


def test_transfer_pages_of_every_state_open(root: Client) -> None:
    for status in states.TransferStatus.values:
        transfer = SellerTransferFactory(**({} if status == "pending" else {status: True}))
        assert root.get(page(transfer)).status_code == 200
    assert SellerTransfer.objects.count() == len(states.TransferStatus.values)
