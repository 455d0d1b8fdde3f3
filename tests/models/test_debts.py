"""The account of what sellers owe: entries stay, and each sum that a row tells is that of its entries."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from marketplace import selectors
from marketplace.models import Debt, DebtEntry, SellerTransfer, TransferReversal
from marketplace.money import Money
from tests.factories import DebtEntryFactory, SellerFactory, SellerTransferFactory, TransferReversalFactory

pytestmark = pytest.mark.django_db


def at_commit() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")


def netting(**changes: Any) -> DebtEntry:
    seller = SellerFactory()
    owing = SellerTransferFactory(seller=seller, permanently_failed=True, reversal=False)
    paying = SellerTransferFactory(seller=seller, **changes.pop("paying", {}))
    debt = TransferReversalFactory(transfer=owing, failed=True)
    entry = DebtEntryFactory(reversal=debt, kind="netted", transfer=paying, amount=1000, **changes)
    SellerTransfer.objects.filter(pk=paying.pk).update(amount_netted=1000)
    return entry


def test_an_entry_agrees_with_its_debt() -> None:
    DebtEntryFactory()
    netting()
    at_commit()
    assert selectors.debt_drift() == []


@pytest.mark.parametrize("act", [lambda rows: rows.update(amount=1), lambda rows: rows.delete()])
def test_an_entry_stays(act: Callable[[Any], Any]) -> None:
    entry = DebtEntryFactory()
    with pytest.raises(DatabaseError, match="stays_as_written"), transaction.atomic():
        act(DebtEntry.objects.filter(pk=entry.pk))


def wrong_column(**fields: int) -> Callable[[], Any]:
    def write() -> Any:
        return TransferReversal.objects.filter(pk=DebtEntryFactory().reversal_id).update(**fields)

    return write


# What is wrong -> how it comes about.
WRONG: dict[str, Callable[[], Any]] = {
    "an entry that the debt does not know": lambda: DebtEntryFactory(book=False),
    "less than was paid": wrong_column(amount_recovered=999),
    "nothing, though it was paid": wrong_column(amount_recovered=0),
    "written off without an entry": wrong_column(amount_written_off=1),
    "written as settled": lambda: TransferReversalFactory(failed=True, amount_recovered=1),
    "written as netted": lambda: SellerTransferFactory(amount_netted=1),
    "netted from a transfer that does not know": lambda: SellerTransfer.objects.filter(pk=netting().transfer_id).update(
        amount_netted=0
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_add_up_is_refused_and_found(what: str) -> None:
    def write() -> None:
        WRONG[what]()
        assert selectors.debt_drift()
        at_commit()

    with pytest.raises(IntegrityError, match="does not agree with its debt entries"), transaction.atomic():
        write()


def of_another_seller() -> None:
    paying = SellerTransferFactory()
    DebtEntryFactory(kind="netted", transfer=paying)
    SellerTransfer.objects.filter(pk=paying.pk).update(amount_netted=1000)


@pytest.mark.parametrize(
    "act",
    [
        of_another_seller,
        lambda: netting(paying={"currency": "usd"}),
        lambda: DebtEntryFactory(currency="usd"),
    ],
    ids=["seller", "currency of the transfer", "currency of the entry"],
)
def test_a_debt_is_settled_only_by_its_own_seller_in_its_own_currency(act: Callable[[], Any]) -> None:
    def write() -> None:
        act()
        at_commit()

    with pytest.raises(IntegrityError, match="of another seller or currency"), transaction.atomic():
        write()


def test_no_more_of_a_debt_is_undone_than_was_netted_from_that_transfer() -> None:
    """Though all sums add up: it was netted from two transfers, and one of these paid another debt too."""
    first = netting()
    seller = first.reversal.transfer.seller
    paying, other = first.transfer, SellerTransferFactory(seller=seller, amount_netted=1000)
    owing = SellerTransferFactory(seller=seller, permanently_failed=True, reversal=False)
    second = TransferReversalFactory(transfer=owing, failed=True)
    for debt, netted_from in ((first.reversal, other), (second, paying)):
        DebtEntryFactory(reversal=debt, kind="netted", transfer=netted_from, amount=1000)
    SellerTransfer.objects.filter(pk=paying.pk).update(amount_netted=2000)
    at_commit()

    def undo() -> None:
        DebtEntryFactory(reversal=first.reversal, kind="netted", transfer=paying, amount=-2000)
        SellerTransfer.objects.filter(pk=paying.pk).update(amount_netted=0)
        at_commit()

    with pytest.raises(IntegrityError, match="more would be undone than was netted"), transaction.atomic():
        undo()


def test_who_looks_at_a_debt_sees_what_is_left() -> None:
    entry = DebtEntryFactory(amount=300)
    seen = Debt.objects.get()
    assert (seen.pk, seen.amount_left, seen.owed_since, str(seen)) == (
        entry.reversal_id,
        entry.reversal.amount - 300,
        TransferReversal.objects.get(pk=seen.pk).created_at,
        f"debt {seen.pk}",
    )
    assert str(entry) == f"paid by hand {Money(300, 'eur')}"
