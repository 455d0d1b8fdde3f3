"""From signing in to the money's being back, as each role; by keys alone; and every page read by axe."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.db.models.functions import Now
from playwright.sync_api import Locator, Page, expect

from marketplace.models import NoticeMessage, SellerTransfer
from marketplace.roles import ON_CALL, Role
from marketplace.workers.heartbeat import Heartbeat
from marketplace.workers.reversal import ReversalQueue
from tests.api.test_reconciliations import drift_found
from tests.browser.conftest import be
from tests.factories import (
    PASSWORD,
    BulkRetryItemFactory,
    DisputeFactory,
    SellerFactory,
    SellerTransferFactory,
    UserFactory,
    WebhookEventFactory,
)
from tests.people import person
from tests.workers.conftest import drain

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

REASON = "the account is open again"
# More than there are links before anything on a page.
MOST_TABS = 120


@pytest.fixture
def stuck(simulator: Any, db: None) -> SellerTransfer:
    """A transfer that Stripe has too, and of which all retries are spent."""
    account = simulator.create_account()
    sent = simulator.create_transfer(5000, account["id"])
    seller = SellerFactory(stripe_account_id=account["id"])
    Heartbeat("worker", ["reversal"], concurrency=1).beat(in_hand=0)
    return SellerTransferFactory(seller=seller, stripe_transfer_id=sent["id"], permanently_failed=True)


@pytest.fixture
def work(gateway: Any) -> Callable[[], int]:
    return lambda: drain(ReversalQueue(gateway))


def enter(page: Page, live: str, user: User) -> None:
    user.set_password(PASSWORD)
    user.save(update_fields=["password"])
    page.goto(f"{live}/admin/")
    page.get_by_label("Username").fill(user.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def reach(page: Page, wanted: Locator) -> None:
    """By the Tab key, from wherever the focus is."""
    for _ in range(MOST_TABS):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"not reached by {MOST_TABS} presses of Tab: {wanted}")


# --- As each role -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_a_stuck_transfer_is_found_from_the_start_page_understood_and_by_some_retried(
    role: Role, page: Page, live: str, stuck: SellerTransfer, work: Callable[[], int]
) -> None:
    enter(page, live, person(role))
    page.locator("#waiting").get_by_role("link", name="needs a person").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.get_by_role("link", name=f"transfer {stuck.pk}").click()
    expect(page.locator("#why-cause")).to_have_text("Stripe has no transfer with this id for our key.")
    if role not in ON_CALL:
        expect(page.get_by_role("link", name="Retry")).to_have_count(0)
        address = f"{live}/admin/marketplace/sellertransfer/{stuck.pk}/retry_one/"
        # With its token: without one everybody is refused.
        token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "csrftoken")
        form = {"reason": REASON, "apply": "yes", "csrfmiddlewaretoken": token}
        refused = page.request.post(address, form=form)
        assert refused.status == 403
        stuck.refresh_from_db()
        assert stuck.status == "permanently_failed"
        return
    page.get_by_role("link", name="Retry").click()
    page.get_by_label("Reason").fill(REASON)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#why-cause")).to_contain_text("a worker takes it up as soon as it can")
    page.evaluate("window.notReloaded = true")
    assert work() == 1
    expect(page.locator("#why-cause")).to_have_text("Stripe confirmed that all of it came back: 50.00 EUR.")
    assert page.evaluate("window.notReloaded === true")


# --- By keys alone ----------------------------------------------------------------------------------------------------


def test_signed_in_found_and_retried_by_keys_alone(page: Page, live: str, stuck: SellerTransfer) -> None:
    user = person(Role.OPERATOR)
    user.set_password(PASSWORD)
    user.save(update_fields=["password"])
    page.goto(f"{live}/admin/")
    reach(page, page.get_by_label("Username"))
    page.keyboard.type(user.username)
    reach(page, page.get_by_label("Password"))
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")

    card = page.locator("#waiting").get_by_role("link", name="needs a person")
    expect(card).to_be_visible()
    reach(page, card)
    page.keyboard.press("Enter")
    row = page.get_by_role("link", name=f"transfer {stuck.pk}")
    expect(row).to_be_visible()
    reach(page, row)
    page.keyboard.press("Enter")
    retry = page.get_by_role("link", name="Retry")
    expect(retry).to_be_visible()
    reach(page, retry)
    page.keyboard.press("Enter")
    reason = page.get_by_label("Reason")
    expect(reason).to_be_visible()
    reach(page, reason)
    page.keyboard.type(REASON)
    reach(page, page.get_by_role("button", name="Retry"))
    page.keyboard.press("Enter")

    expect(page.get_by_text(f"Transfer {stuck.pk} is due again.")).to_be_visible()
    stuck.refresh_from_db()
    assert stuck.status == "reversal_pending"


# --- For everyone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_fault_of_accessibility(page: Page, live: str, scheme: Any) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    reversal = transfer.reversals.get()
    dispute = DisputeFactory(order=transfer.order)
    event = WebhookEventFactory(given_up=True)
    bulk = BulkRetryItemFactory(failed=True).bulk_retry
    told = {"notices": [transfer.notices.get().pk], "last_error_code": "http_503"}
    message = NoticeMessage.objects.create(channel="webhook", outcome="given_up", ended_at=Now(), **told)
    finding = drift_found(kind="not_clawed_back", subject=str(transfer), stripe_account_id="acct_1")
    user = UserFactory(superuser=True, staff=True)
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{live}/admin/")
    faults = {"login": faults_of(page)}
    be(page, live, user)
    page.goto(f"{live}/admin/")
    faults["start page"] = faults_of(page)
    for address in (
        "sellertransfer/",
        f"sellertransfer/{transfer.pk}/change/",
        f"sellertransfer/{transfer.pk}/retry_one/",
        f"refund/{reversal.refund_id}/change/",
        "dispute/",
        f"dispute/{dispute.pk}/change/",
        "reconciliation/",
        f"reconciliation/{finding.run_id}/change/",
        "reconciliationfinding/",
        f"reconciliationfinding/{finding.pk}/change/",
        "debt/",
        f"webhookevent/{event.pk}/change/",
        "bulkretry/",
        f"bulkretry/{bulk.pk}/change/",
        "notice/",
        f"noticemessage/{message.pk}/change/",
        f"noticemessage/{message.pk}/resend/",
    ):
        page.goto(f"{live}/admin/marketplace/{address}")
        faults[address] = faults_of(page)
    assert not any(faults.values()), json.dumps({where: each for where, each in faults.items() if each}, indent=1)


def faults_of(page: Page) -> list[tuple[int, str, list[str]]]:
    """On a phone, and on a desk."""
    faults = []
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        faults += [
            (width, each["id"], [node["html"][:150] for node in each["nodes"]][:4])
            for each in Axe().run(page).response["violations"]
            if each["impact"] in {"serious", "critical"}
        ]
    return faults
