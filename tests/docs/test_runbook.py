"""The runbook: an entry for all that waits or failed, SQL that runs, and what its SQL promises."""

import ast
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection

from marketplace import inbox
from marketplace.models import GIVE_BACK_UNDECIDED, Drift
from marketplace.services import debts, disputes, outcomes, reversal_claims, reversal_settling, transfers
from tests.factories import SellerTransferFactory

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "runbook.md").read_text()
HEADINGS = set(re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE))
STATEMENTS = re.findall(r"^```sql\n(.+?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
(RESTORED,) = [statement for statement in STATEMENTS if statement.startswith("--")]
WAITING = {
    "Transfer": ["pending", "failed", "reversal_pending", "permanently_failed"],
    "Reversal": ["pending", "failed"],
    "Refund": ["requested", "pending", "requires_action", "failed"],
    "Event": ["failed"],
    "Bulk retry": ["planned", "awaiting_approval", "canary", "running", "stopped"],
}


@pytest.mark.parametrize(("kind", "status"), [(kind, status) for kind, listed in WAITING.items() for status in listed])
def test_every_waiting_or_failed_status_has_its_entry(kind: str, status: str) -> None:
    assert f"{kind} `{status}`" in HEADINGS


@pytest.mark.parametrize("kind", Drift.values)
def test_every_kind_of_drift_has_its_entry(kind: str) -> None:
    assert f"`{kind}`" in HEADINGS


def written_codes() -> set[str]:
    """The error codes that the code writes down by name: arguments of ``error(…)`` and constants beside them."""
    found = {*outcomes.CODES.values(), reversal_settling.PARTLY_REVERSED_ELSEWHERE, reversal_settling.RETRIES_EXHAUSTED}
    found |= {GIVE_BACK_UNDECIDED, inbox.UNKNOWN_ORDER, inbox.UNKNOWN_TRANSFER, inbox.NOT_ALL_LISTED}
    found.add(disputes.ANOTHER_CURRENCY)
    for path in [*(ROOT / "marketplace" / "services").glob("*.py"), ROOT / "marketplace" / "inbox.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"error", "outcomes.error"} and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


@pytest.mark.parametrize("code", sorted(written_codes()))
def test_every_error_code_has_its_entry(code: str) -> None:
    assert f"`{code}`" in HEADINGS


@pytest.mark.django_db
@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_statement_runs(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.django_db(transaction=True)
def test_after_a_restore_every_open_row_looks_first() -> None:
    unsent, owing = SellerTransferFactory(), SellerTransferFactory(reversal_pending=True)
    refused = SellerTransferFactory(permanently_failed=True).reversals.get()
    with connection.cursor() as cursor:
        cursor.execute(RESTORED)
    [sending] = transfers.claim(batch_size=9, lease=timedelta(minutes=5))
    [reversing] = reversal_claims.claim(batch_size=9, lease=timedelta(minutes=5))
    assert (sending.pk, transfers.must_look(sending), sending.in_doubt) == (unsent.pk, True, True)
    assert (reversing.transfer.pk, reversing.must_look) == (owing.pk, True)
    assert debts.why_not_settled_by_hand(refused) == ""
    refused.refresh_from_db()
    assert "may be at Stripe" in debts.why_not_settled_by_hand(refused)
