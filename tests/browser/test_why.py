"""A transfer's page in a browser: read why, act, and see what becomes of it without reloading."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import Page, expect

from marketplace.models import SellerTransfer
from marketplace.workers.heartbeat import Heartbeat
from marketplace.workers.reversal import ReversalQueue
from tests.browser.conftest import sign_in
from tests.factories import SellerFactory, SellerTransferFactory
from tests.workers.conftest import drain

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

CARD = "#why"


@pytest.fixture
def at_stripe(simulator: Any, db: None) -> Callable[..., SellerTransfer]:
    """A transfer that Stripe has too."""

    def make(**traits: Any) -> SellerTransfer:
        account = simulator.create_account()
        sent = simulator.create_transfer(5000, account["id"])
        seller = SellerFactory(stripe_account_id=account["id"])
        return SellerTransferFactory(seller=seller, stripe_transfer_id=sent["id"], **traits)

    return make


@pytest.fixture
def work(gateway: Any) -> Callable[[], int]:
    return lambda: drain(ReversalQueue(gateway))


def open_page(page: Page, live: str, transfer: SellerTransfer) -> None:
    page.goto(f"{live}/admin/marketplace/sellertransfer/{transfer.pk}/change/")


def mark(page: Page) -> None:
    """What a reload would forget."""
    page.evaluate("window.notReloaded = true")


def is_marked(page: Page) -> bool:
    return bool(page.evaluate("window.notReloaded === true"))


def test_retried_from_its_page_it_becomes_reversed_without_reloading(
    page: Page, live: str, at_stripe: Callable[..., SellerTransfer], work: Callable[[], int]
) -> None:
    transfer = at_stripe(permanently_failed=True)
    Heartbeat("worker", ["reversal"], concurrency=1).beat(in_hand=0)
    sign_in(page, live, "retry_sellertransfer")
    open_page(page, live, transfer)
    card = page.locator(CARD)
    expect(card).to_contain_text("needs a person", ignore_case=True)
    expect(card.locator("#why-cause")).to_have_text("Stripe has no transfer with this id for our key.")
    card.get_by_text("What the runbook says").click()
    expect(card.get_by_text("conclude that nothing was paid.")).to_be_visible()

    card.get_by_role("link", name="Retry").click()
    page.get_by_label("Reason").fill("the right key is set")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#why-cause")).to_contain_text("a worker takes it up as soon as it can")
    mark(page)
    assert work() == 1

    expect(page.locator("#why-cause")).to_have_text("Stripe confirmed that all of it came back: 50.00 EUR.")
    expect(page.locator("#why-news")).to_have_text("Stripe confirmed that all of it came back: 50.00 EUR.")
    expect(page.locator("td.field-status_label")).to_contain_text("succeeded", ignore_case=True)
    expect(page.locator(".why-picture title").first).to_contain_text("it is reversed")
    expect(page.locator(".why-timeline li").first).to_contain_text("Stripe confirmed trr_")
    expect(page.locator("#why-live")).to_be_hidden()
    assert is_marked(page)


def test_a_waiting_one_is_tried_now_by_keyboard_alone(page: Page, live: str) -> None:
    later = timezone.now() + timedelta(hours=1)
    transfer = SellerTransferFactory(reversal_pending=True, next_retry_at=later)
    sign_in(page, live, "retry_sellertransfer")
    open_page(page, live, transfer)

    page.get_by_role("link", name="Try now").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_be_visible()
    page.get_by_label("Reason").focus()
    page.keyboard.type("the seller has topped up")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect(page.get_by_text("It is due now.")).to_be_visible()
    expect(page.locator(".why-timeline li").first).to_contain_text("the seller has topped up")
    expect(page.get_by_role("link", name="Try now")).to_have_count(0)


def test_what_was_opened_and_focused_stays_so_when_news_come(page: Page, live: str) -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    sign_in(page, live)
    open_page(page, live, transfer)
    page.get_by_text("Not possible now, and why").click()
    page.locator("#why-runbook summary").focus()
    mark(page)

    Heartbeat("worker", ["reversal"], concurrency=1).beat(in_hand=0)

    expect(page.locator("#why-cause")).to_contain_text("a worker takes it up as soon as it can")
    expect(page.get_by_text("only a payment back is declined")).to_be_visible()
    assert is_marked(page)


def test_it_rests_while_nobody_looks_and_asks_at_once_when_somebody_does(page: Page, live: str) -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    sign_in(page, live)
    page.clock.install()
    open_page(page, live, transfer)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/why/") else None)
    with page.expect_response("**/why/"):
        pass

    turn = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    turn += "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(turn % "true")
    asked.clear()
    # Twice as long as it would have waited; and a moment in which a request would be seen.
    page.clock.run_for(4500)
    page.wait_for_timeout(200)
    assert asked == []
    with page.expect_response("**/why/"):
        page.evaluate(turn % "false")


def test_times_go_on_by_themselves(page: Page, live: str) -> None:
    later = timezone.now() + timedelta(minutes=5)
    transfer = SellerTransferFactory(reversal_pending=True, next_retry_at=later)
    sign_in(page, live)
    open_page(page, live, transfer)
    next_attempt = page.locator(".why-facts time").first
    first = next_attempt.text_content()

    expect(next_attempt).not_to_have_text(first or "")
    assert (next_attempt.text_content() or "").startswith("in 4 min")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_accessible(page: Page, live: str, width: int, scheme: Any) -> None:
    transfer = SellerTransferFactory(reversal_pending=True, retry_count=1)
    transfer.change(
        actor="worker on host-1, process 77",
        reason="unknown",
        attempt=1,
        last_error_code="unknown",
        last_error_message="no answer within 20 s",
        last_error_request_id="req_8Hd7sKq2Lm1",
        last_error_at=timezone.now(),
        next_retry_at=timezone.now() + timedelta(minutes=3),
    )
    sign_in(page, live, "retry_sellertransfer")
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    open_page(page, live, transfer)

    found = Axe().run(page, context=CARD)

    serious = [each for each in found.response["violations"] if each["impact"] in {"serious", "critical"}]
    assert serious == [], found.generate_report()
    box = page.locator(CARD).bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    # The state it is in is in sight, however narrow the picture's frame.
    frame, state = (page.locator(f".why-picture{each}").bounding_box() for each in ("", " .now"))
    assert frame is not None
    assert state is not None
    assert frame["x"] <= state["x"]
    assert state["x"] + state["width"] <= frame["x"] + frame["width"]
