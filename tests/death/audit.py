"""Afterwards: is everything done, once, for the right sum, and nothing left in anybody's hands?"""

import time
from collections import Counter
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import connection
from django.db.models import F, Q
from django.db.models.functions import Now

from marketplace.models import (
    REFUNDING_CHANNEL,
    REVERSING_CHANNEL,
    SENDING_CHANNEL,
    CircuitBreaker,
    Refund,
    SellerTransfer,
    TransferReversal,
)
from marketplace.states import RefundStatus, ReversalStatus, TransferStatus
from tests.death.processes import wait_until

DUE = {
    "marketplace_sellertransfer": "status IN ('pending', 'failed', 'reversal_pending')",
    "marketplace_refund": "status = 'requested'",
    "marketplace_webhookevent": "status = 'failed'",
}


# What workers compare with the time; when the last error was is only told.
TIMES = {
    "next_retry_at",
    "lease_expires_at",
    "first_attempted_at",
    "waiting_for_funds_since",
    "opened_at",
    "next_probe_at",
    "next_free_at",
    "slowed_at",
    "seen_at",
}


def pass_time(seconds: float) -> None:
    """Everything that anybody waits for comes nearer by so much, and what was long ago is longer ago."""
    for model in apps.get_app_config("marketplace").get_models():
        names = TIMES & {field.name for field in model._meta.concrete_fields}
        if names and not hasattr(model, "pgh_obj"):
            model._default_manager.update(**{name: F(name) - timedelta(seconds=seconds) for name in names})


def make_due() -> None:
    """As if enough time had passed for all that waits; the age of keys stays as it is."""
    for table, waits in DUE.items():
        with connection.cursor() as cursor:
            cursor.execute(
                f"""
                UPDATE {table} SET next_retry_at = statement_timestamp(),
                    lease_expires_at = CASE WHEN lease_token IS NOT NULL THEN statement_timestamp() END
                WHERE {waits}
                """  # noqa: S608 - constants of this module
            )
    CircuitBreaker.objects.filter(opened_at__isnull=False).update(next_probe_at=Now())


def let_leases_run_out() -> None:
    """As if the time of a lease had passed since the worker died; due times stay."""
    for table in DUE:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {table} SET lease_expires_at = statement_timestamp() WHERE lease_token IS NOT NULL"  # noqa: S608
            )


def wait_for_all_work(*, patience: float = 60) -> None:
    """Until living workers have finished everything. Meanwhile leases keep running out, and what is due is told of, as
    it is whenever any other row becomes due.
    """
    next_nudge = 0.0

    def is_done() -> bool:
        nonlocal next_nudge
        if time.monotonic() > next_nudge:
            let_leases_run_out()
            with connection.cursor() as cursor:
                for channel in (SENDING_CHANNEL, REVERSING_CHANNEL, REFUNDING_CHANNEL):
                    cursor.execute("SELECT pg_notify(%s, '0')", [channel])
            next_nudge = time.monotonic() + 1
        return not open_work()

    wait_until(is_done, lambda: f"all to be done: {open_work()}", patience=patience)


def open_work() -> Counter[str]:
    """Rows by status that are not where they should end."""
    left = Counter(
        SellerTransfer.objects.exclude(
            Q(status__in=[TransferStatus.REVERSED, TransferStatus.PARTIALLY_REVERSED])
            | Q(status=TransferStatus.COMPLETED)
        ).values_list("status", flat=True)
    )
    left.update(Refund.objects.filter(status=RefundStatus.REQUESTED).values_list("status", flat=True))
    return left


def assert_all_is_well(simulator: Any) -> None:
    """The simulator's books against our rows: nothing lost, nothing double, nothing stuck."""
    told = simulator.audit()
    assert (told["problems"], told["suspicious"]) == ([], [])
    assert open_work() == Counter()
    assert_nobody_holds_anything()
    at_stripe = {transfer["id"]: transfer for transfer in told["transfers"]}
    assert_transfers_agree(at_stripe)
    assert_sent_once(at_stripe)
    assert_refunds_agree(simulator)


def assert_nobody_holds_anything() -> None:
    for table in DUE:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {table} WHERE lease_token IS NOT NULL")  # noqa: S608
            assert cursor.fetchall() == [], f"{table} has rows under a lease"


def assert_transfers_agree(at_stripe: dict[str, Any]) -> None:
    owed: dict[int, dict[str, TransferReversal]] = {}
    for reversal in TransferReversal.objects.all():
        assert reversal.status == ReversalStatus.SUCCEEDED, f"reversal {reversal.pk} is {reversal.status}"
        owed.setdefault(reversal.transfer_id, {})[str(reversal.operation_id)] = reversal
    for transfer in SellerTransfer.objects.all():
        theirs = at_stripe[transfer.stripe_transfer_id]
        ours = owed.get(transfer.pk, {})
        made = {each["metadata"]["operation_id"]: each for each in theirs["reversals"]}
        assert len(made) == len(theirs["reversals"]), f"transfer {transfer.pk}: an operation was done twice"
        assert {key: (each["id"], each["amount"]) for key, each in made.items()} == {
            key: (each.stripe_reversal_id, each.amount) for key, each in ours.items()
        }
        assert (transfer.amount, transfer.amount_reversed) == (theirs["amount"], theirs["reversed_sum"])
        assert transfer.amount_reversed == sum(each.amount for each in ours.values())
        assert transfer.last_error_code == ""
    for status in (TransferStatus.REVERSED, TransferStatus.PARTIALLY_REVERSED):
        arrived = SellerTransfer.objects.filter(status=status)
        written = Counter(
            SellerTransfer.history.rel.related_model.objects.filter(status=status, pgh_label="status").values_list(
                "pgh_obj_id", flat=True
            )
        )
        assert written == Counter(arrived.values_list("pk", flat=True)), "a history that tells it not once"


def assert_sent_once(at_stripe: dict[str, Any]) -> None:
    """No seller is paid twice."""
    operations = Counter(
        transfer["metadata"]["operation_id"]
        for transfer in at_stripe.values()
        if "operation_id" in transfer["metadata"]
    )
    assert not [operation for operation, count in operations.items() if count > 1]
    # Nothing is there that we know nothing of.
    assert set(at_stripe) == set(SellerTransfer.objects.values_list("stripe_transfer_id", flat=True))


def assert_refunds_agree(simulator: Any) -> None:
    """Those that we asked for; others are made in Stripe's dashboard."""
    made = [
        event["data"]["object"]["metadata"].get("operation_id") for event in simulator.events(type="refund.created")
    ]
    asked = Refund.objects.filter(requested_by__isnull=False)
    assert Counter(filter(None, made)) == Counter(str(each) for each in asked.values_list("operation_id", flat=True))
