"""Tables, constraints, triggers and ``transition()``; no policy."""

from marketplace.models.api_requests import ApiPace, IdempotentRequest
from marketplace.models.api_tokens import ApiToken
from marketplace.models.bulk_retries import BULK_RETRIES_CHANNEL, BulkRetry, BulkRetryItem
from marketplace.models.coordination import CircuitBreaker, RequestAllowance, WorkerHeartbeat
from marketplace.models.debts import Debt, DebtEntry
from marketplace.models.disputes import Dispute
from marketplace.models.figures import FigureTotal, HourlyFigure
from marketplace.models.funds import BalanceWatch
from marketplace.models.notices import NOTICES_CHANNEL, Notice, NoticeMessage
from marketplace.models.reconciliations import (
    Drift,
    Reconciliation,
    ReconciliationFinding,
    ReconciliationSubject,
)
from marketplace.models.refunds import REFUNDING_CHANNEL, Refund, RefundItem
from marketplace.models.reversals import Source, TransferReversal
from marketplace.models.sales import Order, OrderItem, Product, Seller
from marketplace.models.transfers import GIVE_BACK_UNDECIDED, REVERSING_CHANNEL, SENDING_CHANNEL, SellerTransfer
from marketplace.models.webhook_events import EVENTS_CHANNEL, WebhookEvent

__all__ = [
    "BULK_RETRIES_CHANNEL",
    "EVENTS_CHANNEL",
    "GIVE_BACK_UNDECIDED",
    "NOTICES_CHANNEL",
    "REFUNDING_CHANNEL",
    "REVERSING_CHANNEL",
    "SENDING_CHANNEL",
    "ApiPace",
    "ApiToken",
    "BalanceWatch",
    "BulkRetry",
    "BulkRetryItem",
    "CircuitBreaker",
    "Debt",
    "DebtEntry",
    "Dispute",
    "Drift",
    "FigureTotal",
    "HourlyFigure",
    "IdempotentRequest",
    "Notice",
    "NoticeMessage",
    "Order",
    "OrderItem",
    "Product",
    "Reconciliation",
    "ReconciliationFinding",
    "ReconciliationSubject",
    "Refund",
    "RefundItem",
    "RequestAllowance",
    "Seller",
    "SellerTransfer",
    "Source",
    "TransferReversal",
    "WebhookEvent",
    "WorkerHeartbeat",
]
