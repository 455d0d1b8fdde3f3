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
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE marketplace_sellertransferhistory DISABLE TRIGGER USER")
        cursor.execute(
            "UPDATE marketplace_sellertransferhistory SET pgh_created_at = %s WHERE pgh_obj_id = %s", [at, transfer.pk]
        )
        cursor.execute("ALTER TABLE marketplace_sellertransferhistory ENABLE TRIGGER USER")
    return transfer
