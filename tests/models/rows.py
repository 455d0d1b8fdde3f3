"""A valid row in each status, and the columns that have to go with each step."""

from typing import Any

import pytest
from django.db.models import TextChoices
from django.db.models.functions import Now

from marketplace.models import (
    BulkRetry,
    BulkRetryItem,
    Dispute,
    Order,
    Refund,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
)
from marketplace.models.lifecycle import Lifecycle
from marketplace.states import OrderStatus
from tests.factories import (
    BulkRetryFactory,
    BulkRetryItemFactory,
    OrderFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    WebhookEventFactory,
)

MODELS: list[type[Lifecycle]] = [
    SellerTransfer,
    TransferReversal,
    Refund,
    Order,
    WebhookEvent,
    BulkRetry,
    BulkRetryItem,
]


def statuses(model: type[Lifecycle]) -> list[TextChoices]:
    return list(model.TRANSITIONS)


def row_in(model: type[Lifecycle], status: TextChoices, *, toward: TextChoices | None = None) -> Any:
    """A row in ``status``; ``toward`` chooses between kinds of rows where that matters for a later step."""
    trait = {str(status): True}
    if model is SellerTransfer:
        if status == "permanently_failed" and toward in {"failed", "canceled"}:
            trait = {"permanently_failed_sending": True}
        return SellerTransferFactory(**({} if status == "pending" else trait))
    if model is TransferReversal:
        return TransferReversalFactory(**({} if status == "pending" else trait))
    if model is Refund:
        return RefundFactory(**({} if status == "requested" else trait), book=False)
    if model is Order:
        refunded = {OrderStatus.PARTIALLY_REFUNDED: 1, OrderStatus.REFUNDED: 5000}.get(OrderStatus(status), 0)
        return OrderFactory(paid=status != "pending", status=status, amount=5000, amount_refunded=refunded)
    if model is BulkRetry:
        return BulkRetryFactory(**({} if status == "planned" else trait))
    if model is BulkRetryItem:
        return BulkRetryItemFactory(**({} if status == "planned" else trait))
    return WebhookEventFactory(**({} if status == "processed" else trait))


def going_with(row: Any, to: TextChoices) -> dict[str, Any]:
    """What a step to ``to`` has to write too, so that the row stays true."""
    if isinstance(row, SellerTransfer):
        proof = {"stripe_reversal_id": "trr_step", "next_retry_at": None}
        return {
            "completed": {"stripe_transfer_id": row.stripe_transfer_id or "tr_step", "next_retry_at": None},
            "failed": {"next_retry_at": Now()},
            "reversal_pending": {"next_retry_at": Now()},
            "partially_reversed": {"amount_reversed": 1, **proof},
            "reversed": {"amount_reversed": row.amount, **proof},
            "permanently_failed": {"next_retry_at": None},
            "canceled": {"next_retry_at": None},
        }[str(to)]
    fields: dict[str, Any]
    if isinstance(row, TransferReversal):
        fields = {"stripe_reversal_id": row.stripe_reversal_id or "trr_step"} if to == "succeeded" else {}
        return {**fields, "refused": False} if to == "pending" else fields
    if isinstance(row, Refund):
        fields = {"stripe_refund_id": row.stripe_refund_id or "re_step", "next_retry_at": None}
        return {**fields, "succeeded_at": Now()} if to == "succeeded" else fields
    if isinstance(row, Dispute):
        return {}
    if isinstance(row, Order):
        refunded = {"partially_refunded": 1, "refunded": row.amount}.get(str(to), 0)
        return {"amount_refunded": refunded, "paid_at": Now()}
    if isinstance(row, BulkRetry):
        return {
            "awaiting_approval": {"started_at": Now()},
            "canary": {"started_at": Now(), "next_retry_at": Now(), "needs_approval": False},
            "running": {},
            "stopped": {"stop_reason": "step"},
            "finished": {"next_retry_at": None},
            "canceled": {},
        }[str(to)]
    if isinstance(row, BulkRetryItem):
        settled = {} if to == "retried" else {"settled_at": Now()}
        return settled | ({} if to == "skipped" else {"retried_at": Now()}) | {"outcome": "step"}
    return {"outcome": "step"}


def as_stored(row: Any) -> dict[str, Any]:
    """Every column as the database has it now."""
    return dict(type(row)._default_manager.filter(pk=row.pk).values().get())


def pairs_of(*, listed: bool) -> list[Any]:
    """(model, from, to) of every listed, or of every unlisted, step of all models."""
    return [
        pytest.param(model, old, new, id=f"{model.__name__}: {old} to {new}")
        for model in MODELS
        for old in statuses(model)
        for new in statuses(model)
        if (new in model.TRANSITIONS[old]) == listed
    ]
