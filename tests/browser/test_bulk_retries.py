"""Many transfers retried together, as the people who do it see it: planned, approved by another, watched, stopped."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.db.models.functions import Now
from playwright.sync_api import Browser, Page, expect

from marketplace.models import BulkRetry, SellerTransfer
from marketplace.workers.bulk_retries import BulkRetryQueue
from marketplace.workers.reversal import ReversalQueue
from tests.browser.conftest import sign_in
from tests.factories import BulkRetryItemFactory, SellerTransferFactory
from tests.workers.conftest import drain

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIMIT = 10_000


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.BULK_RETRY_APPROVAL_ABOVE = {"": LIMIT}
    settings.BULK_RETRY_CANARY_SIZE = 2


@pytest.fixture
def second_page(browser: Browser, live: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context.new_page()
    context.close()


def step(times: int = 1) -> None:
    """The worker's next steps."""
    queue = BulkRetryQueue()
    for _ in range(times):
        BulkRetry.objects.filter(next_retry_at__isnull=False).update(next_retry_at=Now())
        for claimed in queue.claim(batch_size=10, lease=timedelta(minutes=5)):
            queue.perform(claimed)


def plan(page: Page, live: str, reason: str) -> BulkRetry:
    """From the list of transfers, by the error code of what is listed."""
    page.goto(f"{live}/admin/marketplace/sellertransfer/?last_error_code__exact=not_found")
    page.get_by_role("link", name="Retry all of these…").click()
    expect(page.get_by_label("Failed with")).to_have_value("not_found")
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name="Count them").click()
    expect(page.get_by_text("would be retried.")).to_be_visible()
    return BulkRetry.objects.latest("id")


def test_planned_by_one_approved_by_another_then_stopped(page: Page, second_page: Page, live: str) -> None:
    rows = [SellerTransferFactory(permanently_failed=True, amount=5000) for _ in range(4)]
    SellerTransferFactory(permanently_failed=True, last_error_code="account_invalid")
    SellerTransferFactory(permanently_failed=True, stripe_transfer_id="")
    sign_in(page, live, "retry_sellertransfer", "stop_bulkretry")
    bulk_retry = plan(page, live, "the accounts are open again")

    # A dry run: so many, so much, and what is refused.
    expect(page.get_by_text("4 transfers would be retried.")).to_be_visible()
    expect(page.locator("#bulk-retry-totals")).to_contain_text("200.00 EUR")
    expect(page.get_by_text("has no Stripe transfer id").first).to_be_visible()
    expect(page.get_by_text("200.00 EUR is over 100.00 EUR")).to_be_visible()
    page.get_by_role("link", name="Start").click()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text(f"Now bulk retry {bulk_retry.pk} is awaiting approval.")).to_be_visible()
    expect(page.get_by_role("link", name="Approve")).to_have_count(0)

    sign_in(second_page, live, "approve_bulkretry", "stop_bulkretry")
    second_page.goto(f"{live}/admin/marketplace/bulkretry/{bulk_retry.pk}/change/")
    second_page.get_by_role("link", name="Approve").click()
    second_page.get_by_label("Reason").fill("agreed on the phone")
    second_page.get_by_role("button", name="Approve").click()
    expect(second_page.get_by_text(f"Now bulk retry {bulk_retry.pk} is canary.")).to_be_visible()

    # The first page hears of it by itself.
    expect(page.get_by_role("link", name="Stop")).to_be_visible(timeout=15_000)
    expect(page.get_by_text("0 of 4 done")).to_be_visible()
    step(2)
    expect(page.get_by_text("2 open.")).to_be_visible(timeout=15_000)

    page.get_by_role("link", name="Stop").click()
    page.get_by_label("Reason").fill("the wrong cause")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped: the wrong cause. The rest is untouched.")).to_be_visible()
    step(2)
    statuses = SellerTransfer.objects.filter(pk__in=[row.pk for row in rows]).order_by("pk")
    assert list(statuses.values_list("status", flat=True)) == ["reversal_pending"] * 2 + ["permanently_failed"] * 2


def test_a_canary_that_fails_again_stops_it(page: Page, live: str, gateway: Any) -> None:
    # Stripe knows none of them, as before.
    for _ in range(4):
        SellerTransferFactory(permanently_failed=True, amount=1000)
    sign_in(page, live, "retry_sellertransfer")
    plan(page, live, "Stripe said it is mended")
    page.get_by_role("link", name="Start").click()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("0 of 4 done")).to_be_visible()
    for _ in range(4):
        step()
        drain(ReversalQueue(gateway))

    expect(page.get_by_text("The rest is untouched.")).to_be_visible(timeout=15_000)
    bulk_retry = BulkRetry.objects.get()
    assert bulk_retry.status == "stopped"
    statuses = bulk_retry.items.order_by("id").values_list("status", flat=True)
    assert list(statuses) == ["failed", "planned", "planned", "planned"]


def test_nothing_matches_and_the_form_says_so(page: Page, live: str) -> None:
    sign_in(page, live, "retry_sellertransfer")
    page.goto(f"{live}/admin/marketplace/bulkretry/add/")
    page.get_by_label("Failed with").fill("of_no_row")
    page.get_by_label("Reason").fill("again")
    page.get_by_role("button", name="Count them").click()
    expect(page.get_by_text("no transfer that needs a person matches")).to_be_visible()
    assert not BulkRetry.objects.exists()


def test_a_cause_is_chosen_by_the_keyboard(page: Page, live: str) -> None:
    SellerTransferFactory(permanently_failed=True, last_error_code="account_invalid")
    sign_in(page, live, "retry_sellertransfer")
    page.goto(f"{live}/admin/marketplace/bulkretry/add/")
    page.locator("#causes").get_by_role("link", name="account_invalid").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Failed with")).to_have_value("account_invalid")
    expect(page.get_by_label("Failed leg")).to_have_value("reversing")
    page.get_by_label("Reason").focus()
    page.keyboard.type("again")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 transfer would be retried.")).to_be_visible()


def test_who_may_not_retry_has_no_way_there(page: Page, live: str) -> None:
    SellerTransferFactory(permanently_failed=True)
    item = BulkRetryItemFactory()
    sign_in(page, live)
    page.goto(f"{live}/admin/marketplace/sellertransfer/")
    expect(page.get_by_role("link", name="Retry all of these…")).to_have_count(0)
    page.goto(f"{live}/admin/marketplace/bulkretry/{item.bulk_retry_id}/change/")
    expect(page.get_by_text("1 transfer would be retried.")).to_be_visible()
    for name in ("Start", "Approve", "Stop", "Cancel"):
        expect(page.get_by_role("link", name=name, exact=True)).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pages_have_no_serious_fault_of_accessibility(theme: str, page: Page, live: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    item = BulkRetryItemFactory(failed=True)
    BulkRetryItemFactory(bulk_retry=item.bulk_retry, refused=True)
    sign_in(page, live, "retry_sellertransfer")
    for address in ("bulkretry/add/", f"bulkretry/{item.bulk_retry_id}/change/"):
        page.goto(f"{live}/admin/marketplace/{address}")
        found = Axe().run(page, context="#content-main").response["violations"]
        serious = [each for each in found if each["impact"] in {"serious", "critical"}]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == []
