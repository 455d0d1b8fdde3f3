"""Makes the calls. Every SDK result and error becomes one of our answers; none escapes as an exception."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import stripe
import structlog
from django.conf import settings

from marketplace.errors import NotNow
from marketplace.gateway import stripe_events
from marketplace.gateway.contract import (
    LARGEST_PAGE,
    MOST_EVENT_TYPES,
    AccountCreated,
    AlreadyReversed,
    BalanceRetrieved,
    Busy,
    CreateAccountAnswer,
    CreatePaymentAnswer,
    CreateRefundAnswer,
    CreateTransferAnswer,
    Denied,
    EventsListed,
    Failure,
    Gate,
    InsufficientFunds,
    ListEventsAnswer,
    ListRefundsAnswer,
    ListReversalsAnswer,
    ListTransfersAnswer,
    NotFound,
    PageOfDisputes,
    PageOfEntries,
    PageOfRefunds,
    PageOfTransfers,
    PaymentCreated,
    Postponed,
    RateLimited,
    RefundCreated,
    RefundsListed,
    Refused,
    RetrieveBalanceAnswer,
    RetrieveTransferAnswer,
    ReversalFacts,
    ReversalsListed,
    Reversed,
    ReverseTransferAnswer,
    ServerError,
    TransferCreated,
    TransferFacts,
    TransferRetrieved,
    TransfersListed,
    Unknown,
)
from marketplace.gateway.http_client import RATE_LIMITED_REASON, GatedClient
from marketplace.gateway.reading import (
    OPERATION_ID,
    ORDER_OPERATION_ID,
    account_facts,
    balance_facts,
    listed_dispute,
    listed_entry,
    listed_events,
    listed_refund,
    listed_transfer,
    page,
    payment_facts,
    refund_facts,
    reversal_facts,
    transfer_facts,
)
from marketplace.redaction import redact

logger = structlog.get_logger(__name__)
T = TypeVar("T")

# The version this code was written against; stripe-python 16 pins the same one.
API_VERSION = "2026-10-28.endive"
# What reading a body raises that lacks what Stripe documents.
ODD_SHAPES = (KeyError, TypeError, ValueError, AttributeError, RecursionError)


class StripeGateway:
    """Stripe over HTTP; implements ``contract.TransferGateway``. Safe to share between threads.

    One instance per process: a new client per call would open a connection and read the certificates every time.
    ``read_timeout`` and ``connect_timeout`` are seconds.
    """

    def __init__(
        self, *, api_key: str, api_base: str, connect_timeout: float, read_timeout: float, gate: Gate | None = None
    ) -> None:
        # Nothing of our calls is anybody else's business; it would also write a file into the home folder.
        stripe.enable_telemetry = False
        self.gate = gate
        self._client = stripe.StripeClient(
            api_key or "sk_test_not_configured",
            stripe_version=API_VERSION,
            # Trying again is the worker's: it knows the row's due time, the lease and the other workers.
            max_network_retries=0,
            http_client=GatedClient(api_base=api_base, timeout=(connect_timeout, read_timeout), gate=gate),
            base_addresses={"api": api_base} if api_base else {},
        ).v1

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
    ) -> CreateTransferAnswer:
        params: Any = {
            "amount": _positive(amount),
            "currency": currency,
            "destination": _identifier(destination),
            "transfer_group": transfer_group,
            "metadata": {OPERATION_ID: str(operation_id)},
        }
        if source_transaction:
            params["source_transaction"] = source_transaction
        if description:
            params["description"] = description
        options = _under_key(idempotency_key)
        return _call(
            "create_transfer",
            lambda: self._client.transfers.create(params, options),
            lambda made: TransferCreated(transfer=_transfer(made), request_id=_request_id(made)),
        )

    def retrieve_transfer(self, stripe_transfer_id: str) -> RetrieveTransferAnswer:
        transfer = _identifier(stripe_transfer_id)
        return _call(
            "retrieve_transfer",
            lambda: self._client.transfers.retrieve(transfer),
            lambda found: TransferRetrieved(transfer=_transfer(found), request_id=_request_id(found)),
        )

    def list_transfers(self, *, transfer_group: str) -> ListTransfersAnswer:
        params: Any = {"transfer_group": _identifier(transfer_group), "limit": LARGEST_PAGE}
        return _call(
            "list_transfers",
            lambda: list(self._client.transfers.list(params).auto_paging_iter()),
            lambda found: TransfersListed(transfers=tuple(map(_transfer, found))),
        )

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
        transfer, options = _identifier(stripe_transfer_id), _under_key(idempotency_key)
        if amount is None:
            # Stripe's own default is the whole amount, even after a partial reversal: so the amount is always sent.
            answer = self.retrieve_transfer(transfer)
            if not isinstance(answer, TransferRetrieved):
                return answer
            amount = answer.transfer.amount - answer.transfer.amount_reversed
            if amount == 0:
                return self._look_into_refusal(transfer, wanted=1, refusal=_nothing_left(answer))
        wanted = _positive(amount)
        params: Any = {"amount": wanted, "metadata": {OPERATION_ID: str(operation_id), "reason": reason}}
        if description:
            params["description"] = description
        made = _call(
            "reverse_transfer",
            lambda: self._client.transfers.reversals.create(transfer, params, options),
            lambda made: Reversed(reversal=_reversal(made), request_id=_request_id(made)),
        )
        if isinstance(made, Refused) and made.code == "invalid_request_error":
            return self._look_into_refusal(transfer, wanted=wanted, refusal=made)
        return made

    def _look_into_refusal(self, stripe_transfer_id: str, *, wanted: int, refusal: Refused) -> ReverseTransferAnswer:
        """Whether a refusal without a code means that too little is left.

        "The transfer … is already fully reversed." comes without a code (stripe-ruby#1058), and so does an amount above
        the remainder. The message is never read: the transfer and its reversals are. What is left may be promised to
        reversals that wait for the seller's balance: then there is too little of it for ours, too.
        """
        found = self.retrieve_transfer(stripe_transfer_id)
        if not isinstance(found, TransferRetrieved):
            return found
        listed = self.list_reversals(stripe_transfer_id)
        if not isinstance(listed, ReversalsListed):
            return listed
        left = found.transfer.amount - found.transfer.amount_reversed
        waiting = [each for each in listed.reversals if not (each.is_done or each.is_given_up)]
        if left - sum(each.amount for each in waiting) >= wanted:
            return refusal
        if left >= wanted:
            ids = ", ".join(each.stripe_reversal_id for each in waiting)
            return InsufficientFunds(message=f"{ids} waits for the same money", request_id=refusal.request_id)
        # The list is the later look: what was reversed between the two stands in it alone.
        listed_amount = sum(each.amount for each in listed.reversals if each.is_done)
        return AlreadyReversed(
            transfer=replace(found.transfer, amount_reversed=max(found.transfer.amount_reversed, listed_amount)),
            reversals=listed.reversals,
            request_id=refusal.request_id or found.request_id,
        )

    def list_reversals(self, stripe_transfer_id: str) -> ListReversalsAnswer:
        transfer = _identifier(stripe_transfer_id)
        return _call(
            "list_reversals",
            lambda: list(self._client.transfers.reversals.list(transfer, {"limit": LARGEST_PAGE}).auto_paging_iter()),
            lambda found: ReversalsListed(reversals=tuple(map(_reversal, found))),
        )

    def retrieve_balance(self, *, stripe_account: str = "") -> RetrieveBalanceAnswer:
        options: Any = {"stripe_account": stripe_account} if stripe_account else {}
        return _call(
            "retrieve_balance",
            lambda: self._client.balance.retrieve({}, options),
            lambda found: BalanceRetrieved(balance=balance_facts(found.to_dict()), request_id=_request_id(found)),
        )

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
        if not 0 < len(types) <= MOST_EVENT_TYPES:
            raise ValueError(f"from 1 to {MOST_EVENT_TYPES} types may be asked for, not {len(types)}")
        params: Any = {"types": list(types), "created": {"gte": since, "lte": until}, "limit": limit}
        if undelivered:
            params["delivery_success"] = False
        cursors = {"starting_after": starting_after, "ending_before": ending_before}
        params |= {name: cursor for name, cursor in cursors.items() if cursor}
        options: Any = {"stripe_account": stripe_account} if stripe_account else {}
        return _call(
            "list_events",
            lambda: self._client.events.list(params, options),
            lambda found: _events(found, stripe_account),
        )

    def page_of_transfers(
        self, *, since: int, until: int, transfer_group: str = "", starting_after: str = "", limit: int = LARGEST_PAGE
    ) -> PageOfTransfers:
        params = _of_period(since, until, limit, starting_after=starting_after, transfer_group=transfer_group)
        params["expand"] = ["data.balance_transaction"]
        return _call(
            "page_of_transfers",
            lambda: self._client.transfers.list(params),
            lambda found: page(found.to_dict(), listed_transfer),
        )

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
        params = _of_period(since, until, limit, starting_after=starting_after, type=type, source=source)
        params["expand"] = ["data.source"]
        return _call(
            "page_of_balance_transactions",
            lambda: self._client.balance_transactions.list(params),
            lambda found: page(found.to_dict(), listed_entry),
        )

    def page_of_refunds(
        self, *, since: int, until: int, charge: str = "", starting_after: str = "", limit: int = LARGEST_PAGE
    ) -> PageOfRefunds:
        params = _of_period(since, until, limit, starting_after=starting_after, charge=charge)
        params["expand"] = ["data.charge.balance_transaction"]
        return _call(
            "page_of_refunds",
            lambda: self._client.refunds.list(params),
            lambda found: page(found.to_dict(), listed_refund),
        )

    def page_of_disputes(
        self, *, since: int, until: int, charge: str = "", starting_after: str = "", limit: int = LARGEST_PAGE
    ) -> PageOfDisputes:
        params = _of_period(since, until, limit, starting_after=starting_after, charge=charge)
        params["expand"] = ["data.charge.balance_transaction"]
        return _call(
            "page_of_disputes",
            lambda: self._client.disputes.list(params),
            lambda found: page(found.to_dict(), listed_dispute),
        )

    def create_refund(
        self, *, payment_intent: str, amount: int, operation_id: UUID, idempotency_key: str
    ) -> CreateRefundAnswer:
        params: Any = {
            "payment_intent": _identifier(payment_intent),
            "amount": _positive(amount),
            "metadata": {OPERATION_ID: str(operation_id)},
        }
        options = _under_key(idempotency_key)
        return _call(
            "create_refund",
            lambda: self._client.refunds.create(params, options),
            lambda made: RefundCreated(refund=refund_facts(made.to_dict()), request_id=_request_id(made)),
        )

    def list_refunds(self, *, payment_intent: str) -> ListRefundsAnswer:
        params: Any = {"payment_intent": _identifier(payment_intent), "limit": LARGEST_PAGE}
        return _call(
            "list_refunds",
            lambda: list(self._client.refunds.list(params).auto_paging_iter()),
            lambda found: RefundsListed(refunds=tuple(refund_facts(refund.to_dict()) for refund in found)),
        )

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
        params: Any = {
            "amount": _positive(amount),
            "currency": currency,
            "confirm": True,
            "payment_method": payment_method,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "transfer_group": transfer_group,
            "metadata": {ORDER_OPERATION_ID: str(operation_id)},
        }
        options = _under_key(idempotency_key)
        return _call(
            "create_payment",
            lambda: self._client.payment_intents.create(params, options),
            lambda made: PaymentCreated(payment=payment_facts(made.to_dict()), request_id=_request_id(made)),
        )

    def create_account(self, *, name: str, country: str, idempotency_key: str) -> CreateAccountAnswer:
        params: Any = {
            "country": country,
            "business_profile": {"name": name},
            "capabilities": {"transfers": {"requested": True}},
            # The platform carries losses, as Stripe recommends for separate charges and transfers.
            "controller": {
                "fees": {"payer": "application"},
                "losses": {"payments": "application"},
                "requirement_collection": "application",
                "stripe_dashboard": {"type": "none"},
            },
        }
        options = _under_key(idempotency_key)
        return _call(
            "create_account",
            lambda: self._client.accounts.create(params, options),
            lambda made: AccountCreated(account=account_facts(made.to_dict()), request_id=_request_id(made)),
        )


def connect(gate: Gate | None = None) -> StripeGateway:
    """A gateway to the configured Stripe. One per process is enough: see ``throttle.gateway``."""
    return StripeGateway(
        gate=gate,
        api_key=settings.STRIPE_SECRET_KEY,
        api_base=settings.STRIPE_API_BASE,
        connect_timeout=settings.STRIPE_CONNECT_TIMEOUT.total_seconds(),
        read_timeout=settings.STRIPE_READ_TIMEOUT.total_seconds(),
    )


# --- What is read of an answer, and what is sent ----------------------------------------------------------------------


def _events(found: Any, stripe_account: str) -> EventsListed:
    """From the text itself, as a webhook's is read: what becomes of an event does not depend on how it came."""
    return listed_events(stripe_events.parse(found.last_response.body), stripe_account)


def _transfer(made: stripe.Transfer) -> TransferFacts:
    return transfer_facts(made.to_dict())


def _reversal(made: Any) -> ReversalFacts:
    return reversal_facts(made.to_dict())


def _of_period(since: int, until: int, limit: int, **filters: str) -> Any:
    named = {name: value for name, value in filters.items() if value}
    return {"created": {"gte": since, "lte": until}, "limit": limit, **named}


def _under_key(idempotency_key: str) -> Any:
    """Given an empty key the SDK makes up one per call, and two calls would be two effects."""
    return {"idempotency_key": _identifier(idempotency_key)}


def _positive(amount: object) -> int:
    """The SDK sends whatever it is given: a float as ``5.0``, and leaves None out, which means everything."""
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise ValueError(f"amount must be a positive whole number of minor units, not {amount!r}")
    return amount


def _identifier(value: object) -> str:
    """An empty id would make another call: ``/v1/transfers//reversals``."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"an id or a key is needed, got {value!r}")
    return value


# --- From the SDK's errors to answers ---------------------------------------------------------------------------------


def _call(name: str, send: Callable[[], Any], read: Callable[[Any], T]) -> T | Failure:
    """One call: its result read as facts, or its failure as one of ours. ``send`` has its arguments checked before: a
    bad one is a bug of our own, and escapes.
    """
    try:
        result = send()
    except NotNow as reason:
        return Postponed(message=reason.message, seconds=reason.details["seconds"])
    except stripe.StripeError as error:
        failure = _failure(error)
        logger.debug("stripe_call_failed", call=name, answer=type(failure).__name__, request_id=failure.request_id)
        return failure
    except ODD_SHAPES as error:
        # The SDK stumbles over a body that is not UTF-8, and over JSON that is nothing of Stripe's: a list without
        # data, an error that is no object. What breaks off or never comes is a StripeError of its own.
        logger.warning("stripe_answer_odd", call=name, error=redact(f"{type(error).__name__}: {error}"))
        return Unknown(message=f"answer of an unexpected shape: {type(error).__name__}")
    try:
        return read(result)
    except ODD_SHAPES as error:
        return Unknown(message=f"answer of an unexpected shape: {error}", request_id=_request_id(result))


def _failure(error: stripe.StripeError) -> Failure:
    """Decides by HTTP status, and by Stripe's code from the error's body: the SDK's ``e.code`` is None on most."""
    code, kind = _said(error, "code"), _said(error, "type")
    status = error.http_status
    described: dict[str, Any] = {
        "message": storable(redact(str(error.user_message or type(error).__name__))),
        "request_id": error.request_id or "",
    }
    match status:
        case 404 if code == "resource_missing":
            return NotFound(**described)
        case 401 | 403 if kind:
            return Denied(**described, forbidden=status == 403)
        case 409:
            return Busy(**described)
        case 429:
            reason = (error.headers or {}).get(RATE_LIMITED_REASON, "")
            if reason or code == "rate_limit":
                return RateLimited(**described, reason=reason)
            return Busy(**described)
        case 424:
            return Unknown(**described)
        case 500 if kind:
            return ServerError(**described)
        case int() if 400 <= status < 500 and kind:
            if code == "rate_limit":
                return RateLimited(**described)
            if kind == "idempotency_error":
                # The key was used with other parameters: what became of that send, a look tells.
                return ServerError(**described, is_outage=False)
            if code == "balance_insufficient":
                return InsufficientFunds(**described)
            return Refused(**described, code=code or kind)
        case _:
            # No answer, another 5xx, or a body that is not Stripe's: unreadable, or a proxy's no, or its 500.
            return Unknown(**described)


def _said(error: stripe.StripeError, name: str) -> str:
    value = getattr(error.error, name, None)
    return storable(value) if isinstance(value, str) else ""


def storable(text: str) -> str:
    """What PostgreSQL can hold: no NUL, and no half of a surrogate pair."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def _nothing_left(found: TransferRetrieved) -> Refused:
    return Refused(message="nothing is left to reverse", request_id=found.request_id, code="invalid_request_error")


def _request_id(result: Any) -> str:
    response = getattr(result, "last_response", None)
    return getattr(response, "request_id", None) or ""
