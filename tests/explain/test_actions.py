"""What may be done now: exactly what the services would do, and whom."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace.errors import NotAllowedNow
from marketplace.explain import actions, transfers
from marketplace.explain.shapes import Action
from marketplace.gateway.contract import TransferFacts
from marketplace.models import SellerTransfer
from marketplace.services import debts, give_backs
from marketplace.services import transfers as service
from tests.factories import SellerTransferFactory, UserFactory

pytestmark = pytest.mark.django_db

LATER = timedelta(hours=1)


def of(transfer: SellerTransfer, name: str, user: Any = None) -> Action:
    (found,) = [each for each in transfers.explain(transfer, user=user).actions if each.name == name]
    return found


def situations() -> dict[str, dict[str, Any]]:
    soon = {"next_retry_at": timezone.now() + LATER}
    held = {**soon, "lease_token": "0" * 32, "lease_expires_at": timezone.now() + LATER}
    return {
        "pending": {},
        "pending, later": soon,
        "pending, in hand": held,
        "failed": {"failed": True},
        "failed, later": {"failed": True, **soon},
        "completed": {"completed": True},
        "reversal_pending": {"reversal_pending": True},
        "reversal_pending, later": {"reversal_pending": True, **soon},
        "reversal_pending, in hand": {"reversal_pending": True, **held},
        "partially_reversed": {"partially_reversed": True},
        "reversed": {"reversed": True},
        "canceled": {"canceled": True},
        "permanently_failed": {"permanently_failed": True},
        "permanently_failed, no id": {"permanently_failed": True, "stripe_transfer_id": ""},
        "permanently_failed while sending": {"permanently_failed_sending": True},
        "permanently_failed while sending, in doubt": {"permanently_failed_sending": True, "in_doubt": True},
    }


def made(situation: str, *, gives_back: bool = False) -> SellerTransfer:
    traits = situations()[situation]
    if gives_back:
        traits["gives_back_of"] = SellerTransferFactory(completed=True, amount_kept_back=5000)
    return SellerTransfer.objects.get(pk=SellerTransferFactory(**traits).pk)


def by_service(name: str, transfer: SellerTransfer) -> None:
    found = TransferFacts(
        stripe_transfer_id="tr_found",
        amount=transfer.amount,
        amount_reversed=0,
        currency=transfer.currency,
        destination=transfer.seller.stripe_account_id,
        operation_id=str(transfer.operation_id),
    )
    by: dict[str, Any] = {"transfer_id": transfer.pk, "actor": "user:ada", "reason": "because"}
    match name:
        case "retry":
            service.retry(**by)
        case "try_now":
            service.try_now(**by)
        case "enter_transfer_id":
            service.enter_transfer_id(**by, found=found)
        case _:
            give_backs.decline(**by)


@pytest.mark.parametrize("situation", situations())
@pytest.mark.parametrize("gives_back", [False, True])
@pytest.mark.parametrize("name", ["retry", "try_now", "enter_transfer_id", "decline"])
def test_what_is_offered_is_what_the_service_does(situation: str, gives_back: bool, name: str) -> None:
    transfer = made(situation, gives_back=gives_back)
    offered = of(transfer, name)

    if offered.is_allowed:
        by_service(name, transfer)
    else:
        with pytest.raises(NotAllowedNow) as refused:
            by_service(name, transfer)
        assert refused.value.message == offered.refusal


@pytest.mark.parametrize("refused", [True, False])
def test_a_debt_is_written_off_where_stripe_surely_has_nothing(refused: bool) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    transfer.reversals.update(refused=refused)
    debt = transfer.reversals.get()

    offered = of(transfer, "write_off")

    assert (offered.debt, offered.title) == (debt.pk, f"Write off debt {debt.pk}")
    assert offered.is_allowed == refused
    act = {"reversal_id": debt.pk, "amount": 100, "actor": "user:ada", "reason": "insolvent"}
    if refused:
        debts.write_off(**act)
    else:
        with pytest.raises(NotAllowedNow) as error:
            debts.write_off(**act)
        assert error.value.message == offered.refusal


def test_without_debts_nothing_is_written_off() -> None:
    assert not [each for each in transfers.explain(SellerTransferFactory()).actions if each.name == "write_off"]


@pytest.mark.parametrize(
    ("name", "permission"),
    [("retry", "retry_sellertransfer"), ("write_off", "write_off_debt"), ("decline", "decline_sellertransfer")],
)
def test_who_lacks_the_permission_is_told_its_name(name: str, permission: str) -> None:
    trait = {
        "permanently_failed_sending": True,
        "gives_back_of": SellerTransferFactory(completed=True, amount_kept_back=5000),
    }
    transfer = SellerTransferFactory(**({"permanently_failed": True} if name != "decline" else trait))

    refused = of(transfer, name, UserFactory(staff=True))
    assert refused.refusal == f"this needs the permission marketplace.{permission}"
    assert of(transfer, name, UserFactory(staff=True, permissions=[permission])).is_allowed
    assert of(transfer, name).is_allowed


def test_the_state_is_the_first_reason() -> None:
    refused = of(SellerTransferFactory(completed=True), "retry", UserFactory(staff=True))

    assert "only a permanently_failed one" in refused.refusal
    assert refused.permission == actions.RETRY
