"""What we raise on purpose. Each docstring says what was promised and serves as the default message."""

from typing import Any

from django.db import InterfaceError, InternalError, OperationalError

# PostgreSQL is away, only reads (an InternalError: the former primary after a failover), or chose us as the victim of a
# deadlock. Nothing is wrong with the row: it comes again, brought by
# its lease, or by Stripe. Any other error of the database is a bug of ours.
DATABASE_TROUBLE = (OperationalError, InterfaceError, InternalError)


class MarketplaceError(Exception):
    """Something that this program refuses to do."""

    def __init__(self, message: str = "", **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.details = details
        super().__init__(self.message)


class IllegalTransition(MarketplaceError):
    """The state machine has no such step. Raised before any SQL."""


class StaleTransition(MarketplaceError):
    """Someone else moved the row first, or our lease on it is gone: nothing was changed."""


class AlreadyThere(MarketplaceError):
    """A row that is written once only is there already."""


class ConflictingFacts(MarketplaceError):
    """The same thing was told before, with other facts."""


class NotAllowedNow(MarketplaceError):
    """The state of the row does not allow this."""


class ChangedMeanwhile(MarketplaceError):
    """The row is not as it was when the caller saw it: nothing was changed."""


class StillRunning(MarketplaceError):
    """Another request under the same Idempotency-Key is being answered just now. Ask again in a moment."""


class TooMuch(MarketplaceError):
    """More money than is left."""


class PlanChanged(MarketplaceError):
    """The order is not as it was when the refund was planned: nothing was asked for."""


class UnknownOrder(MarketplaceError):
    """Stripe speaks of a payment of which we have no order (yet)."""


class UnknownTransfer(MarketplaceError):
    """Stripe speaks of a transfer of ours whose sending we have not settled yet."""


class Unwanted(MarketplaceError):
    """A reversal may be no longer owed as it was: its order has to be locked before it is settled."""


class NotAllListed(MarketplaceError):
    """The transfer has more reversals than the event lists: Stripe has to be asked for all of them."""


class TokenRefused(MarketplaceError):
    """No such token is known."""


class SignatureRefused(MarketplaceError):
    """The body does not bear a fresh signature of one of our webhook secrets."""


class MalformedEvent(MarketplaceError):
    """A verified event whose body lacks what Stripe documents."""


class StripeDenied(MarketplaceError):
    """Stripe refuses our key or its permissions: no call can succeed until a person mends that."""


class NotNow(MarketplaceError):
    """Stripe is not asked now, to spare it: nothing was sent. ``details["seconds"]`` is when to come again."""
