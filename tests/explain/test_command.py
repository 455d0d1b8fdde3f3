"""manage.py explain: the same answer in a terminal."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from marketplace.models import SellerTransfer
from tests.api.conftest import VIEWS, client_of
from tests.factories import DisputeFactory, SellerTransferFactory, TransferReversalFactory, UserFactory

pytestmark = pytest.mark.django_db


def said(name: Any, *flags: str) -> str:
    out = StringIO()
    call_command("explain", str(name), *flags, stdout=out)
    return out.getvalue()


def words(name: Any) -> str:
    """The same, wherever its lines are broken."""
    return " ".join(said(name).split())


def failing() -> SellerTransfer:
    return SellerTransferFactory(
        permanently_failed=True, last_error_code="retries_exhausted", last_error_message="5 retries spent; last: [x]"
    )


def test_it_tells_why_and_what_to_do() -> None:
    transfer = failing()
    refund = transfer.reversals.get().refund
    assert refund is not None

    text = words(transfer.pk)

    for expected in (
        f"Transfer {transfer.pk}",
        "50.00 EUR",
        transfer.seller.name,
        "needs a person",
        "All retries are spent",
        "then Retry.",
        "5 retries spent; last: [x]",
        f"failed, for refund {refund.pk} {refund.stripe_refund_id}",
        "docs/runbook.md#retries_exhausted",
        "possible now Retry, Write off debt",
        "retries spent 5 of 5",
    ):
        assert expected in text


def test_it_tells_of_the_dispute_behind_it() -> None:
    transfer = SellerTransferFactory(reversal_pending=True, reversal=False)
    dispute = DisputeFactory(order=transfer.order)
    TransferReversalFactory(transfer=transfer, cause="dispute", refund=None, dispute=dispute)

    assert f"for dispute {dispute.pk} {dispute.stripe_dispute_id}" in words(transfer.pk)


def test_a_waiting_one_tells_when_and_its_attempts() -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    for number in range(1, 4):
        transfer.change(
            actor="worker",
            reason="unknown",
            attempt=number,
            last_error_code="unknown",
            last_error_message="no [answer]",
            last_error_request_id=f"req_{number}",
            last_error_at=transfer.created_at.replace(year=2020 + number),
        )

    text = words(transfer.pk)

    assert "Nobody serves this queue" in text
    assert "Attempts: 3" in text
    assert "unknown: no [answer]" in text
    assert "req_3" in text
    assert "first used" not in text
    assert "generation 1, not used yet" in text


@pytest.mark.parametrize("trait", ["completed", "reversed"])
def test_one_at_rest_is_short(trait: str) -> None:
    text = words(SellerTransferFactory(**{trait: True}).pk)

    assert "nothing to do" in text
    assert "next attempt" not in text
    assert "possible now nothing" in text


def test_it_is_found_by_stripes_ids_too() -> None:
    transfer = SellerTransferFactory(reversed=True)
    SellerTransferFactory(reversed=True)

    by_number = said(transfer.pk)

    assert said(transfer.stripe_transfer_id) == said(transfer.stripe_reversal_id) == by_number


@pytest.mark.parametrize("name", ["999999999", "tr_none", "trr_none"])
def test_what_is_not_there_is_named_and_exits_with_two(name: str) -> None:
    with pytest.raises(CommandError, match=f"There is no transfer {name}: expected the number") as error:
        said(name)
    assert error.value.returncode == 2


@pytest.mark.parametrize("name", ["re_1", "-1", "abc", "tr_'", "", "1" * 30])
def test_what_names_no_transfer_is_refused(name: str) -> None:
    with pytest.raises(CommandError, match="expected the number of a transfer"):
        call_command("explain", "--", name)


def test_as_json_it_is_what_the_api_says() -> None:
    transfer = failing()
    staff: APIClient = client_of(
        UserFactory(staff=True, permissions=[*VIEWS, "retry_sellertransfer", "write_off_debt"])
    )

    shown = json.loads(said(transfer.pk, "--format", "json"))
    api = staff.get(f"/api/transfers/{transfer.pk}/").json()["why"]

    assert (shown.pop("transfer"), shown.pop("status")) == (transfer.pk, "permanently_failed")
    for each in (shown, api):
        del each["now"]
        del each["key"]["age_seconds"]
    assert shown == api
