"""What happened at a time of our choosing: rows as the program writes them, moved back in time."""

from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from marketplace.models import DebtEntry, SellerTransfer, TransferReversal
from tests.factories import DebtEntryFactory, SellerTransferFactory, TransferReversalFactory


def recovered(at: datetime, *, took: timedelta = timedelta(seconds=10), amount: int = 1000, **fields: Any) -> Any:
    """A transfer wholly taken back at that time; its reversal."""
    currency = fields.pop("currency", "eur")
    transfer = SellerTransferFactory(reversed=True, amount=amount, currency=currency, reversal=False)
    made = TransferReversalFactory(
        transfer=transfer, succeeded=True, stripe_reversal_id=transfer.stripe_reversal_id, amount=amount, **fields
    )
    TransferReversal.objects.filter(pk=made.pk).update(succeeded_at=at, created_at=at - took)
    return made


def settled(at: datetime, *, amount: int = 300, **fields: Any) -> DebtEntry:
    entry: DebtEntry = DebtEntryFactory(amount=amount, **fields)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE marketplace_debtentry DISABLE TRIGGER USER")
        cursor.execute("UPDATE marketplace_debtentry SET created_at = %s WHERE id = %s", [at, entry.pk])
        cursor.execute("ALTER TABLE marketplace_debtentry ENABLE TRIGGER USER")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")
    return entry


def attempt_failed(at: datetime, *, code: str = "server_error") -> SellerTransfer:
    """An attempt to take money back, that left the row waiting."""
    transfer: SellerTransfer = SellerTransferFactory(reversal_pending=True)
    transfer.change(reason="no answer", actor="test", last_error_code=code, last_error_at=at)
    _happened(transfer, at)
    return transfer


def given_back(at: datetime, *, amount: int = 1000, **fields: Any) -> SellerTransfer:
    """A transfer that pays a seller again what a reversal took, sent at that time."""
    undone = recovered(at - timedelta(days=1), amount=5000, currency=fields.get("currency", "eur"))
    of = undone.transfer
    given = {"order": of.order, "seller": of.seller, "completed": True, "undoes": undone, "gives_back_of": of, **fields}
    again: SellerTransfer = SellerTransferFactory(amount=amount, **given)
    _happened(again, at)
    return again


def _happened(transfer: SellerTransfer, at: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE marketplace_sellertransferhistory DISABLE TRIGGER USER")
        cursor.execute(
            "UPDATE marketplace_sellertransferhistory SET pgh_created_at = %s WHERE pgh_obj_id = %s", [at, transfer.pk]
        )
        cursor.execute("ALTER TABLE marketplace_sellertransferhistory ENABLE TRIGGER USER")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")
