"""What an operator does in the admin, in a browser."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import sign_in
from tests.factories import SellerTransferFactory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_a_failed_transfer_is_found_and_retried(page: Page, live: str) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    SellerTransferFactory(completed=True)
    sign_in(page, live, "retry_sellertransfer")

    page.goto(f"{live}/admin/")
    page.locator("#waiting").get_by_role("link", name="needs a person").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.get_by_role("link", name=f"transfer {transfer.pk}").click()
    page.get_by_role("link", name="Retry").click()
    page.get_by_label("Reason").fill("the account is open again")
    page.get_by_role("button", name="Retry").click()

    expect(page.get_by_text(f"Transfer {transfer.pk} is due again.")).to_be_visible()
    expect(page.get_by_text("the account is open again").first).to_be_visible()
    expect(page.get_by_role("link", name="Retry")).to_have_count(0)
    transfer.refresh_from_db()
    assert transfer.status == "reversal_pending"


def test_selected_transfers_are_retried_together(page: Page, live: str) -> None:
    failed = [SellerTransferFactory(permanently_failed=True) for _ in range(2)]
    completed = SellerTransferFactory(completed=True)
    sign_in(page, live, "retry_sellertransfer")
    page.goto(f"{live}/admin/marketplace/sellertransfer/")

    page.locator("#action-toggle").click()
    page.locator("select[name=action]").select_option("retry_selected")
    page.get_by_role("button", name="Run").click()
    page.get_by_label("Reason").fill("Stripe mended it")
    page.get_by_role("button", name="Retry").click()

    ids = ", ".join(str(transfer.pk) for transfer in failed)
    expect(page.get_by_text(f"Transfers {ids} are due again.")).to_be_visible()
    expect(page.get_by_text(f"transfer {completed.pk} is completed")).to_be_visible()


def test_without_the_permission_there_is_nothing_to_click(page: Page, live: str) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    sign_in(page, live)

    page.goto(f"{live}/admin/marketplace/sellertransfer/{transfer.pk}/change/")

    expect(page.get_by_text("permanently failed").first).to_be_visible()
    expect(page.get_by_role("link", name="Retry")).to_have_count(0)
    expect(page.get_by_role("button", name="Save")).to_have_count(0)


def test_the_api_documents_render_from_this_machine_alone(page: Page, live: str) -> None:
    sign_in(page, live)

    page.goto(f"{live}/api/docs/")

    expect(page.get_by_role("heading", name="Veza marketplace")).to_be_visible()
    page.get_by_text("/api/orders/{order_id}/refunds/").last.click()
    expect(page.get_by_text("Asks Stripe for the refund.").first).to_be_visible()


def test_the_start_page(page: Page, live: str) -> None:
    page.goto(live)

    expect(page.get_by_role("heading", name="Veza marketplace")).to_be_visible()
    page.get_by_role("link", name="Health").click()
    assert '"status": "ok"' in page.content()
