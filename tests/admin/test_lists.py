"""What long lists offer costs the same however long they are."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from marketplace.admin import base
from marketplace.models import SellerTransfer
from tests.factories import OrderFactory, SellerTransferFactory, UserFactory

LISTING = "/admin/marketplace/sellertransfer/"


@pytest.fixture
def viewer(db: None) -> Client:
    client = Client()
    client.force_login(UserFactory(superuser=True))
    return client


def test_a_long_list_says_that_there_is_more(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", 3)
    for _ in range(3):
        SellerTransferFactory()
    page = viewer.get(LISTING)
    assert "more than" not in page.content.decode()
    assert page.context["cl"].result_count == 3

    SellerTransferFactory()
    with CaptureQueriesContext(connection) as captured:
        page = viewer.get(LISTING)

    assert "more than 3 seller transfers: filter to see others" in page.content.decode()
    assert page.context["cl"].result_count == 3
    asked = [each["sql"] for each in captured if "marketplace_sellertransfer" in each["sql"]]
    assert ["LIMIT 4" in sql for sql in asked] == [True, *([False] * (len(asked) - 1))]
    assert not any("COUNT(" in sql for sql in asked)


def test_what_is_beyond_is_found_by_its_number(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", 1)
    first, *_ = [SellerTransferFactory() for _ in range(3)]

    page = viewer.get(LISTING, {"q": str(first.pk)})

    assert list(page.context["cl"].result_list) == [SellerTransfer.objects.get(pk=first.pk)]


def test_a_few_among_many_are_looked_for_once(viewer: Client) -> None:
    found = SellerTransferFactory(permanently_failed=True)
    SellerTransferFactory(completed=True)

    with CaptureQueriesContext(connection) as captured:
        page = viewer.get(LISTING, {"status__exact": "permanently_failed"})

    assert list(page.context["cl"].result_list) == [found]
    asked = [each["sql"] for each in captured if 'FROM "marketplace_sellertransfer"' in each["sql"]]
    assert [f'"id" IN ({found.pk})' in sql for sql in asked] == [False, True]


def test_all_newest_first_unless_only_open_ones_are_asked_for(viewer: Client) -> None:
    large, small, middle = (SellerTransferFactory(amount=amount, reversal_pending=True) for amount in (900, 100, 500))

    def listed(**asked: Any) -> list[SellerTransfer]:
        return list(viewer.get(LISTING, asked).context["cl"].result_list)

    by_amount = {"o": "-3"}
    assert listed(**by_amount) == listed() == [middle, small, large]
    assert listed(status__exact="reversal_pending", **by_amount) == [large, middle, small]
    assert listed(status__exact=["reversal_pending", "failed"], **by_amount) == [large, middle, small]
    assert listed(status__exact=["reversal_pending", "completed"], **by_amount) == [middle, small, large]


def test_only_what_can_be_sorted_by_is_offered(viewer: Client) -> None:
    SellerTransferFactory(reversal_pending=True)

    def offered(**asked: Any) -> set[str]:
        return set(viewer.get(LISTING, asked).context["cl"].sortable_by)

    assert offered() == offered(status__exact="completed") == set()
    assert offered(status__exact="reversal_pending") == {"amount_shown", "due"}


def test_an_error_is_found_by_its_whole_code_however_it_is_typed(viewer: Client) -> None:
    row = SellerTransferFactory(permanently_failed=True, last_error_code="insufficient_funds")
    SellerTransferFactory(permanently_failed=True, last_error_code="resource_missing")

    def listed(code: str) -> list[SellerTransfer]:
        return list(viewer.get(LISTING, {"last_error_code__exact": code}).context["cl"].result_list)

    assert listed("insufficient_funds") == listed(" Insufficient_Funds ") == [row]
    assert listed("insufficient") == []
    assert len(listed("")) == 2


def test_a_currency_is_found_as_it_is_shown(viewer: Client) -> None:
    row = SellerTransferFactory(currency="jpy")
    SellerTransferFactory()

    assert list(viewer.get(LISTING, {"currency__exact": "JPY"}).context["cl"].result_list) == [row]


@pytest.mark.parametrize("text", [" {} ", "{}"])
def test_an_id_is_found_with_blanks_around_it(text: str, viewer: Client) -> None:
    row = SellerTransferFactory(completed=True)

    for known in (row.pk, row.stripe_transfer_id):
        assert list(viewer.get(LISTING, {"q": text.format(known)}).context["cl"].result_list) == [row]
    assert list(viewer.get(LISTING, {"q": "  "}).context["cl"].result_list) == [row]
    for nothing in ("9" * 19, "9" * 5000, "trr_nothing", f"{row.pk} {row.pk}"):
        assert list(viewer.get(LISTING, {"q": nothing}).context["cl"].result_list) == []


def test_an_order_is_found_by_its_number_and_by_a_buyer_of_that_name(viewer: Client) -> None:
    first = OrderFactory()
    second = OrderFactory(buyer=UserFactory(username=str(first.pk)))

    found = viewer.get("/admin/marketplace/order/", {"q": str(first.pk)}).context["cl"].result_list

    assert list(found) == [second, first]


def test_lists_that_grow_count_no_facets(viewer: Client) -> None:
    SellerTransferFactory()

    with CaptureQueriesContext(connection) as captured:
        viewer.get(LISTING, {"_facets": "1"})

    assert not any("COUNT(" in each["sql"] for each in captured)
