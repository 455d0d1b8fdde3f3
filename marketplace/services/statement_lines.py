"""What a seller reads beside the money: made of facts that never change, and kept in the row before it is sent, for
Stripe compares the parameters under a key.
"""

from marketplace.models import Dispute, SellerTransfer, Source, TransferReversal

_REASONS = {
    TransferReversal.Cause.REFUND: "refund to the buyer",
    TransferReversal.Cause.DISPUTE: "payment disputed by the buyer",
    TransferReversal.Cause.OPERATOR: "taken back by the marketplace",
    TransferReversal.Cause.SEEN_AT_STRIPE: "reversed at Stripe",
}


def of_transfer(transfer: SellerTransfer, *, source: Source | None = None) -> str:
    """``source``: of one that pays again, what did not stand. Where that is not known any more, the reversal that it
    undoes tells.
    """
    what = "your share of the sale"
    if transfer.gives_back_of_id:
        is_won = transfer.undoes is not None and transfer.undoes.cause == TransferReversal.Cause.DISPUTE
        if source is not None:
            is_won = isinstance(source, Dispute)
        what = "paid again, the dispute was won" if is_won else "paid again, a refund did not go through"
    return f"Order {transfer.order_id}: {what}"


def of_reversal(transfer: SellerTransfer, cause: TransferReversal.Cause) -> str:
    return f"Order {transfer.order_id}: {_REASONS[cause]}"
