"""What we ask of Stripe and what it may answer, as data. Nothing here knows the SDK.

Every call may also answer with one of the ``Failure`` types: what they mean for a row is decided in the services.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from marketplace.states import REVERSAL_GIVEN_UP

# --- Facts: what Stripe says of its objects ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TransferFacts:
    """A transfer at Stripe. Amounts in the currency's minor unit."""

    stripe_transfer_id: str
    amount: int
    amount_reversed: int
    currency: str
    operation_id: str
    # The connected account; empty where Stripe gives none.
    destination: str = ""


@dataclass(frozen=True, kw_only=True)
class ReversalFacts:
    """A transfer reversal at Stripe.

    ``status`` is empty where Stripe gives none, which counts as done; otherwise only ``succeeded`` is done
    (docs.stripe.com/connect/pending-transfer-reversals, a private preview).
    """

    stripe_reversal_id: str
    amount: int
    currency: str
    operation_id: str
    status: str = ""
    # txn_…, of our own balance; empty while no money has moved.
    stripe_balance_transaction_id: str = ""

    @property
    def is_done(self) -> bool:
        return self.status in {"", "succeeded"}

    @property
    def is_given_up(self) -> bool:
        return self.status in REVERSAL_GIVEN_UP


@dataclass(frozen=True, kw_only=True)
class PaymentFacts:
    """A payment intent. ``order_operation_id`` is our own metadata, empty on payments that are not ours."""

    stripe_payment_intent_id: str
    stripe_charge_id: str
    amount_received: int
    currency: str
    status: str
    order_operation_id: str
    paid_at: datetime


@dataclass(frozen=True, kw_only=True)
class RefundFacts:
    """A refund as Stripe described it at ``seen_at`` (Stripe's clock, whole seconds)."""

    stripe_refund_id: str
    stripe_payment_intent_id: str
    stripe_charge_id: str
    amount: int
    currency: str
    status: str
    operation_id: str
    failure_reason: str
    seen_at: datetime


@dataclass(frozen=True, kw_only=True)
class DisputeFacts:
    """A dispute as Stripe described it at ``seen_at``. ``status`` is any text of Stripe's.

    ``amount`` is in the dispute's currency. What was withdrawn and reinstated, and the fee, are in that of the
    platform's balance; 0 and empty before any money moved.
    """

    stripe_dispute_id: str
    stripe_payment_intent_id: str
    stripe_charge_id: str
    amount: int
    currency: str
    status: str
    stripe_reason: str
    is_charge_refundable: bool
    evidence_due_by: datetime | None
    amount_withdrawn: int
    amount_reinstated: int
    fee: int
    balance_currency: str
    # That money moved, also where only the event's type says so.
    is_withdrawn: bool
    is_reinstated: bool
    opened_at: datetime
    seen_at: datetime
    # Given back and taken again is twice. 0 where that is not told.
    times_withdrawn: int = 0


@dataclass(frozen=True, kw_only=True)
class AccountFacts:
    stripe_account_id: str
    transfers_capability: str
    payouts_enabled: bool
    seen_at: datetime


@dataclass(frozen=True, kw_only=True)
class BalanceFacts:
    """What an account has at Stripe now, by currency, in its minor unit; below zero where it owes."""

    available: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class BookedFacts:
    """A balance transaction of our own account: ``amount`` in the currency's minor unit, below zero where it left us.

    ``stripe_source_id`` is what it is about; of a reversal that is the transfer (docs.stripe.com/reports).
    """

    stripe_balance_transaction_id: str
    type: str
    amount: int
    currency: str
    stripe_source_id: str


@dataclass(frozen=True, kw_only=True)
class ListedTransfer:
    """A transfer as lists show it, with its reversals: the ten newest at most, the newest first."""

    transfer: TransferFacts
    reversals: tuple[ReversalFacts, ...]
    # Whether these are all.
    has_all_reversals: bool
    source_transaction: str = ""
    transfer_group: str = ""
    # What it took from our balance, where that was asked for.
    booked: BookedFacts | None = None


@dataclass(frozen=True, kw_only=True)
class ListedEntry:
    """A balance transaction as lists show it; of one that is about a transfer, with that transfer as it is now."""

    booked: BookedFacts
    about: ListedTransfer | None = None


@dataclass(frozen=True, kw_only=True)
class ChargeFacts:
    """A buyer's payment. ``amount`` in the minor unit of the buyer's currency; ``amount_settled`` is what reached our
    balance before Stripe's fee, in that of ``currency_settled``: transfers from the charge are in that currency.
    """

    stripe_charge_id: str
    stripe_payment_intent_id: str
    amount: int
    amount_refunded: int
    currency: str
    amount_settled: int
    currency_settled: str
    transfer_group: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class ListedRefund:
    refund: RefundFacts
    # None for a refund that belongs to no charge.
    charge: ChargeFacts | None


@dataclass(frozen=True, kw_only=True)
class ListedDispute:
    """As it is now; ``seen_at`` is only when it was opened, for a list does not tell of when its facts are."""

    dispute: DisputeFacts
    # None for a dispute that belongs to no charge.
    charge: ChargeFacts | None


@dataclass(frozen=True, kw_only=True)
class ListedEvent:
    """An event as Stripe lists it; ``body`` is what a webhook would bring."""

    stripe_event_id: str
    created_at: datetime
    body: Mapping[str, Any]


# --- Answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TransferCreated:
    transfer: TransferFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class TransferRetrieved:
    transfer: TransferFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class TransfersListed:
    transfers: tuple[TransferFacts, ...]


@dataclass(frozen=True, kw_only=True)
class Reversed:
    """Stripe made the reversal, now or when it first saw this idempotency key."""

    reversal: ReversalFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class AlreadyReversed:
    """Refused, because less than the asked amount is left; ``reversals`` are all there are, as Stripe lists them."""

    transfer: TransferFacts
    reversals: tuple[ReversalFacts, ...]
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ReversalsListed:
    reversals: tuple[ReversalFacts, ...]


@dataclass(frozen=True, kw_only=True)
class RefundCreated:
    refund: RefundFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class RefundsListed:
    refunds: tuple[RefundFacts, ...]


@dataclass(frozen=True, kw_only=True)
class PaymentCreated:
    payment: PaymentFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class AccountCreated:
    account: AccountFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class BalanceRetrieved:
    balance: BalanceFacts
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class EventsListed:
    """One page, newest first; ``has_more`` in the direction that was asked for."""

    events: tuple[ListedEvent, ...]
    has_more: bool


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list, newest first; ``last_id`` is where the next one begins, where ``has_more``."""

    items: tuple[T, ...]
    has_more: bool
    last_id: str = ""


@dataclass(frozen=True, kw_only=True)
class _Failure:
    message: str
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class NotFound(_Failure):
    """404 ``resource_missing``: no such object, or one of the other mode."""


@dataclass(frozen=True, kw_only=True)
class InsufficientFunds(_Failure):
    """``balance_insufficient``: stored under the key for a day, so a later attempt needs a new one."""


@dataclass(frozen=True, kw_only=True)
class Busy(_Failure):
    """409, or 429 ``lock_timeout``: somebody works on this object or this key. Nothing ran; the same key goes again."""


@dataclass(frozen=True, kw_only=True)
class RateLimited(_Failure):
    """429 of a limiter. ``reason`` is Stripe-Rate-Limited-Reason. Nothing ran; the same key goes again."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Postponed(_Failure):
    """We did not ask, to spare Stripe or because we could not agree with the other workers. Nothing was sent; the same
    key goes in ``seconds``.
    """

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Denied(_Failure):
    """401 or 403: our key or its permissions are wrong, for every call.

    ``forbidden`` is 403: the key is good, but not for this. Of a connected account that is the account's matter.
    """

    forbidden: bool = False


@dataclass(frozen=True, kw_only=True)
class Refused(_Failure):
    """Any other 4xx. ``code`` is Stripe's, or its error type where there is none."""

    code: str


@dataclass(frozen=True, kw_only=True)
class ServerError(_Failure):
    """500 of Stripe's own, or 400 ``idempotency_error``: the outcome is unknown, and the same key learns nothing new:
    look.

    ``is_outage``: Stripe was not able to answer, which may be so for everyone.
    """

    is_outage: bool = True


@dataclass(frozen=True, kw_only=True)
class Unknown(_Failure):
    """No answer, 502, 503, 504, 424, or one that cannot be read or is not Stripe's: it may have happened. The same key
    tells.

    ``is_outage`` as for ``ServerError``.
    """

    is_outage: bool = True


Failure = NotFound | InsufficientFunds | Busy | RateLimited | Postponed | Denied | Refused | ServerError | Unknown
CreateTransferAnswer = TransferCreated | Failure
RetrieveTransferAnswer = TransferRetrieved | Failure
ListTransfersAnswer = TransfersListed | Failure
ReverseTransferAnswer = Reversed | AlreadyReversed | Failure
ListReversalsAnswer = ReversalsListed | Failure
CreateRefundAnswer = RefundCreated | Failure
ListRefundsAnswer = RefundsListed | Failure
CreatePaymentAnswer = PaymentCreated | Failure
CreateAccountAnswer = AccountCreated | Failure
RetrieveBalanceAnswer = BalanceRetrieved | Failure
ListEventsAnswer = EventsListed | Failure
PageOfTransfers = Page[ListedTransfer] | Failure
PageOfEntries = Page[ListedEntry] | Failure
PageOfRefunds = Page[ListedRefund] | Failure
PageOfDisputes = Page[ListedDispute] | Failure

# As many types may be asked for in one call (docs.stripe.com/api/events/list), and as many events come in one page.
MOST_EVENT_TYPES = 20
LARGEST_PAGE = 100
# Beyond all times of Stripe's, in seconds: a list without an end.
EVER = 2**33

# --- The gateway ------------------------------------------------------------------------------------------------------


class Gate(Protocol):
    """Stands before every HTTP request, also where one call makes several. ``endpoint`` is method and path, such as
    ``POST /v1/transfers/{id}/reversals``: Stripe limits each for all ids together (docs.stripe.com/rate-limits).
    """

    def enter(self, endpoint: str) -> float | None:
        """Wait for the turn. Until when (monotonic) the request must have left, so as not to lose it; None: whenever.
        Raises ``NotNow`` where nothing may be sent.
        """
        ...

    def limited(self, endpoint: str, reason: str) -> None:
        """Stripe answered 429 with this ``Stripe-Rate-Limited-Reason``."""
        ...


# What ``reverse_transfer`` asks of the gate.
REVERSE_ENDPOINT = "POST /v1/transfers/{id}/reversals"


class TransferGateway(Protocol):
    """Stripe, as this program uses it. Amounts are whole minor units; one call is one HTTP request unless said."""

    @property
    def gate(self) -> Gate | None: ...

    def create_transfer(
        self,
        *,
        amount: int,
        currency: str,
        destination: str,
        source_transaction: str,
        transfer_group: str,
        operation_id: UUID,
        idempotency_key: str,
        description: str = "",
    ) -> CreateTransferAnswer: ...

    def retrieve_transfer(self, stripe_transfer_id: str) -> RetrieveTransferAnswer: ...

    def list_transfers(self, *, transfer_group: str) -> ListTransfersAnswer:
        """All transfers of the group; one request per hundred."""
        ...

    def reverse_transfer(
        self,
        stripe_transfer_id: str,
        *,
        amount: int | None,
        reason: str,
        operation_id: UUID,
        idempotency_key: str,
        description: str = "",
    ) -> ReverseTransferAnswer:
        """Take ``amount`` back; None means all that remains, which costs one request more to learn.

        Stripe has no error code for "already reversed", so a refusal without a code is looked into: the transfer and
        its reversals decide, never the message.
        """
        ...

    def list_reversals(self, stripe_transfer_id: str) -> ListReversalsAnswer:
        """All reversals of the transfer; one request per hundred."""
        ...

    def retrieve_balance(self, *, stripe_account: str = "") -> RetrieveBalanceAnswer:
        """The balance of a connected account, or of our own where none is named."""
        ...

    def list_events(
        self,
        *,
        types: Sequence[str],
        since: int,
        until: int,
        undelivered: bool = False,
        limit: int = LARGEST_PAGE,
        starting_after: str = "",
        ending_before: str = "",
        stripe_account: str = "",
    ) -> ListEventsAnswer:
        """One page of the events of at most ``MOST_EVENT_TYPES`` types that were created from ``since`` to ``until``,
        both included, in seconds of Stripe's clock. Stripe keeps them for 30 days.

        With ``starting_after`` those next older than that event, with ``ending_before`` those next newer.
        ``undelivered``: those alone that some webhook endpoint has not taken, or not yet. Of a connected account, or
        of our own where none is named.
        """
        ...

    # --- Whole periods, for reconciliation: created from ``since`` to ``until``, both included, in seconds of Stripe's
    # clock; with ``starting_after`` those next older than that one.

    def page_of_transfers(
        self, *, since: int, until: int, transfer_group: str = "", starting_after: str = "", limit: int = LARGEST_PAGE
    ) -> PageOfTransfers:
        """Of one group, where that is named; each with what it took from our balance."""
        ...

    def page_of_balance_transactions(
        self,
        *,
        type: str,  # noqa: A002 - Stripe's word
        since: int,
        until: int,
        source: str = "",
        starting_after: str = "",
        limit: int = LARGEST_PAGE,
    ) -> PageOfEntries:
        """Of one type, or of any where it is empty; about one ``source`` where that is named."""
        ...

    def page_of_refunds(
        self, *, since: int, until: int, charge: str = "", starting_after: str = "", limit: int = LARGEST_PAGE
    ) -> PageOfRefunds:
        """Of one charge, where that is named; each with its charge."""
        ...

    def page_of_disputes(
        self, *, since: int, until: int, charge: str = "", starting_after: str = "", limit: int = LARGEST_PAGE
    ) -> PageOfDisputes:
        """As ``page_of_refunds``."""
        ...

    def create_refund(
        self, *, payment_intent: str, amount: int, operation_id: UUID, idempotency_key: str
    ) -> CreateRefundAnswer: ...

    def list_refunds(self, *, payment_intent: str) -> ListRefundsAnswer: ...

    def create_payment(
        self,
        *,
        amount: int,
        currency: str,
        transfer_group: str,
        operation_id: UUID,
        payment_method: str,
        idempotency_key: str,
    ) -> CreatePaymentAnswer:
        """A payment intent, confirmed at once with the given payment method (``pm_card_visa`` in test mode)."""
        ...

    def create_account(self, *, name: str, country: str, idempotency_key: str) -> CreateAccountAnswer:
        """A connected account for a seller, with the transfers capability asked for; test mode only."""
        ...
