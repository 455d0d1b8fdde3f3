"""Many rows come due at once, as after an outage, while PostgreSQL's statistics are of a quiet hour.

A plan that is made for one waiting row must not cost the square of those that wait.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from marketplace.services import refund_attempts, reversal_claims, transfers
from tests.death import rows

QUIET, BACKLOG = 500, 800
CLAIMED = 32
# Entries of indexes and rows of tables, for each row claimed: some twenty, and what PostgreSQL reads for itself just
# then. With the square of the backlog it was thousands.
READS = 200

CLAIMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "reversal": (rows.owe_reversals, reversal_claims.claim),
    "transfer": (rows.owe_transfers, transfers.claim),
    "refund": (rows.request_refunds, refund_attempts.claim),
}


@pytest.mark.parametrize("kind", ["reversal", "transfer", "refund"])
def test_a_claim_costs_no_more_when_the_statistics_are_old(transactional_db: None, simulator: Any, kind: str) -> None:
    make, claim = CLAIMS[kind]
    # The quiet hour: everything is done.
    rows.have_paid(simulator, QUIET)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    make(simulator, BACKLOG)
    before = entries_read()
    assert len(claim(batch_size=CLAIMED, lease=timedelta(minutes=5))) == CLAIMED
    assert entries_read() - before < READS * CLAIMED


def entries_read() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute(
            "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
            " + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)"
        )
        (count,) = cursor.fetchone()
    return int(count)
