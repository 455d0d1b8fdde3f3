"""Long lists are counted no further than anybody reads on."""

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from marketplace.admin import base
from marketplace.models import SellerTransfer
from tests.factories import SellerTransferFactory, UserFactory

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
    counts = [each["sql"] for each in captured if "COUNT(" in each["sql"]]
    assert counts
    assert all("LIMIT 4" in sql for sql in counts)


def test_what_is_beyond_is_found_by_its_number(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", 1)
    first, *_ = [SellerTransferFactory() for _ in range(3)]

    page = viewer.get(LISTING, {"q": str(first.pk)})

    assert list(page.context["cl"].result_list) == [SellerTransfer.objects.get(pk=first.pk)]


@pytest.mark.parametrize("count", [5, 50])
def test_a_list_costs_so_many_queries(viewer: Client, count: int) -> None:
    for _ in range(count):
        SellerTransferFactory(reversal_pending=True)
    for name in ("sellertransfer", "transferreversal", "refund", "order", "seller"):
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(f"/admin/marketplace/{name}/").status_code == 200
        assert len(captured) <= 6, name
