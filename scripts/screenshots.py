#!/usr/bin/env python
"""Take docs/screenshots/*.png of the real pages, over a small world in a database of its own, which goes again."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
os.environ["TEST_DATABASE_NAME"] = "test_screenshots"
# Playwright runs an event loop in this thread, which Django would take for asynchronous code.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

import django  # noqa: E402 - the environment comes first

django.setup()

import factory.random  # noqa: E402 - Django comes first
from django.conf import settings  # noqa: E402
from django.contrib.staticfiles.testing import StaticLiveServerTestCase  # noqa: E402
from django.test import Client  # noqa: E402
from django.test.utils import setup_databases, setup_test_environment, teardown_databases  # noqa: E402
from django.utils import timezone  # noqa: E402
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

from marketplace.models import BulkRetry, SellerTransfer  # noqa: E402
from marketplace.workers.heartbeat import Heartbeat  # noqa: E402
from tests.browser.conftest import FLAGS  # noqa: E402
from tests.factories import (  # noqa: E402
    BulkRetryFactory,
    BulkRetryItemFactory,
    SellerFactory,
    SellerTransferFactory,
    UserFactory,
)

PICTURES = ROOT / "docs" / "screenshots"
# What a page of text may cost a reader.
LARGEST = 200_000
WIDE, PHONE = (1440, 900), (390, 844)


def make_world() -> tuple[SellerTransfer, BulkRetry]:
    """Money that is back, money that waits, money that a person must see to, and those retried together."""
    factory.random.reseed_random(8)  # type: ignore[no-untyped-call]  # factory_boy has no types
    for name, queue in (("reversal worker", "reversal"), ("transfer retry worker", "transfer")):
        Heartbeat(name, [queue], concurrency=1).beat(in_hand=0)
    sellers = [SellerFactory() for _ in range(5)]
    for n, seller in enumerate(sellers):
        SellerTransferFactory(seller=seller, completed=True, amount=9900 + 1250 * n)
        back = SellerTransferFactory(seller=seller, reversed=True, amount=4200 + 730 * n)
    # The last one's refund failed after all.
    SellerTransferFactory(
        order=back.order,
        seller=back.seller,
        completed=True,
        amount=back.amount,
        gives_back_of=back,
        undoes=back.reversals.get(),
    )
    SellerTransferFactory(
        seller=sellers[0],
        reversal_pending=True,
        amount=7450,
        last_error_code="insufficient_funds",
        last_error_message="The account's balance is too low for this reversal.",
        last_error_at=timezone.now() - timedelta(minutes=3),
        next_retry_at=timezone.now() + timedelta(minutes=40),
    )
    stuck = SellerTransferFactory(seller=sellers[1], permanently_failed=True, amount=12_800)
    bulk_retry = BulkRetryFactory(requested_by=UserFactory(staff=True, username="ann"), canary_size=2)
    results = ["succeeded", "succeeded", "succeeded", "waiting", "retried", "", "", ""]
    became = {"succeeded": "reversed", "waiting": "reversal_pending", "retried": "reversal_pending"}
    for n, result in enumerate(results):
        status = {became.get(result, "permanently_failed"): True}
        BulkRetryItemFactory(
            bulk_retry=bulk_retry,
            transfer=SellerTransferFactory(seller=sellers[n % 5], amount=3100 + 450 * n, **status),
            position=n + 1,
            failed_leg=SellerTransfer.Leg.REVERSING,
            error_code="not_found",
            **({result: True} if result else {}),
        )
    now = timezone.now()
    bulk_retry.transition(
        "canary", reason="started", actor="user:ann", started_at=now, next_retry_at=now, canary_until=now
    )
    bulk_retry.transition("running", reason="the canary went well", actor="worker")
    return stuck, bulk_retry


@contextmanager
def site() -> Iterator[str]:
    """The pages on a port of this machine, and the database that they show."""
    setup_test_environment()
    databases = setup_databases(verbosity=0, interactive=False)
    StaticLiveServerTestCase.setUpClass()
    try:
        yield StaticLiveServerTestCase.live_server_url
    finally:
        StaticLiveServerTestCase.doClassCleanups()
        teardown_databases(databases, verbosity=0)


def photographer(browser: Browser, url: str) -> Callable[..., None]:
    client = Client()
    client.force_login(UserFactory(superuser=True, username="operator"))
    cookie = client.cookies[settings.SESSION_COOKIE_NAME].value

    def take(name: str, path: str, *, size: tuple[int, int] = WIDE, dark: bool = False) -> None:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
        )
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": url}])
        page: Page = context.new_page()
        page.goto(url + path, wait_until="load")
        expect(page.get_by_role("button", name="Log in")).to_have_count(0)
        page.wait_for_timeout(500)  # fonts and the theme
        file = PICTURES / f"{name}.png"
        page.screenshot(path=file)
        context.close()
        assert file.stat().st_size < LARGEST, f"{file.name} has {file.stat().st_size} bytes, expected below {LARGEST}"
        print(f"  {file.relative_to(ROOT)}  {file.stat().st_size // 1000} kB")

    return take


def main() -> None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        sys.exit("no Chromium: install one, or name it in CHROMIUM")
    PICTURES.mkdir(exist_ok=True)
    # In this order: Django keeps other connections while Playwright runs its loop, and must close those it opened.
    with sync_playwright() as playwright, site() as url:
        stuck, bulk_retry = make_world()
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        take = photographer(browser, url)
        why = f"/admin/marketplace/sellertransfer/{stuck.pk}/change/"
        take("start-page", "/admin/")
        take("start-page-dark", "/admin/", dark=True)
        take("transfer-why", why)
        take("transfer-why-phone", why, size=PHONE)
        take("bulk-retry", f"/admin/marketplace/bulkretry/{bulk_retry.pk}/change/")
        browser.close()


if __name__ == "__main__":
    main()
