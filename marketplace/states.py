"""The statuses and the steps between them: plain data, of which the code's guard, the database's triggers, the
diagram in the docs and the tests are made.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

Status = TypeVar("Status", bound=TextChoices)


class TransferStatus(TextChoices):
    """One seller's share of one order."""

    # The row is written, Stripe has not answered yet. The transfer retry worker sends it.
    PENDING = "pending", _("pending")
    # The last attempt to send did not succeed. The transfer retry worker tries again.
    FAILED = "failed", _("failed")
    # Stripe made the transfer: the seller has the money.
    COMPLETED = "completed", _("completed")
    # A reversal is owed. The reversal worker asks Stripe for it.
    REVERSAL_PENDING = "reversal_pending", _("reversal pending")
    # Stripe confirmed reversals of a part of the amount, and no more is owed.
    PARTIALLY_REVERSED = "partially_reversed", _("partially reversed")
    # Stripe confirmed reversals of the whole amount.
    REVERSED = "reversed", _("reversed")
    # No automatic step is left: a person decides.
    PERMANENTLY_FAILED = "permanently_failed", _("permanently failed")
    # Nothing is sent: refunded before any money moved, declined, or all of it paid what the seller owed.
    CANCELED = "canceled", _("canceled")


class ReversalStatus(TextChoices):
    """One reversal on one transfer. The words are those of Stripe's pending transfer reversals."""

    # Owed; Stripe has not confirmed it.
    PENDING = "pending", _("pending")
    # Stripe confirmed it: the row holds the proof.
    SUCCEEDED = "succeeded", _("succeeded")
    # It cannot be had without a person's help.
    FAILED = "failed", _("failed")
    # No longer owed: the money never moved, or came back another way.
    CANCELED = "canceled", _("canceled")


# How Stripe says that a pending reversal will not happen (docs.stripe.com/connect/pending-transfer-reversals).
REVERSAL_GIVEN_UP = frozenset({"failed", "canceled"})


class RefundStatus(TextChoices):
    """A buyer's refund: Stripe's states, and one of ours before Stripe has answered."""

    # The row is written, Stripe has not answered yet. A worker asks again with the same key.
    REQUESTED = "requested", _("requested")
    # Stripe has it, the money has not moved.
    PENDING = "pending", _("pending")
    # The buyer has to tell where the money should go.
    REQUIRES_ACTION = "requires_action", _("requires action")
    # The buyer's money is on its way. Not final: the bank can send it back.
    SUCCEEDED = "succeeded", _("succeeded")
    # The buyer got nothing; the money is on the platform's balance.
    FAILED = "failed", _("failed")
    # Taken back before it was paid out.
    CANCELED = "canceled", _("canceled")


class OrderStatus(TextChoices):
    # Written, not paid yet.
    PENDING = "pending", _("pending")
    # The buyer's payment succeeded; nothing of it is refunded.
    PAID = "paid", _("paid")
    # A part of the payment is refunded.
    PARTIALLY_REFUNDED = "partially_refunded", _("partially refunded")
    # All of the payment is refunded.
    REFUNDED = "refunded", _("refunded")


class EventStatus(TextChoices):
    """What became of a verified webhook event."""

    # Its effect and this mark were written in one transaction.
    PROCESSED = "processed", _("processed")
    # Not of interest to us; the row says why.
    IGNORED = "ignored", _("ignored")
    # Applying it raised an error. A worker tries again while it has a next time; after that a person decides.
    FAILED = "failed", _("failed")


class BulkRetryStatus(TextChoices):
    """Many permanently failed transfers, retried under guard: first a few, then the rest at a limited rate."""

    # The transfers are chosen and counted; nothing is retried before a person starts it.
    PLANNED = "planned", _("planned")
    # It was started, and is over the configured sum: a second person has to approve.
    AWAITING_APPROVAL = "awaiting_approval", _("awaiting approval")
    # The first few are retried; the rest waits for what becomes of them.
    CANARY = "canary", _("canary")
    # The rest is retried, at the configured rate.
    RUNNING = "running", _("running")
    # Too many failed, or a person stopped it. The rest is untouched.
    STOPPED = "stopped", _("stopped")
    # Each transfer has its result.
    FINISHED = "finished", _("finished")
    # Given up before anything was retried.
    CANCELED = "canceled", _("canceled")


class BulkRetryItemStatus(TextChoices):
    """One transfer of a bulk retry."""

    # Chosen; its turn has not come, and never comes where the bulk retry is over.
    PLANNED = "planned", _("not retried")
    # It could not be retried when it was chosen; the row says why.
    REFUSED = "refused", _("refused")
    # Something became of it after it was chosen, so it was left alone.
    SKIPPED = "skipped", _("skipped")
    # It is due again; what becomes of it is not known yet.
    RETRIED = "retried", _("retried")
    # The money came back, or was sent, or nothing is owed any more.
    SUCCEEDED = "succeeded", _("succeeded")
    # Stripe took it up and waits for the seller's money. It goes on by itself.
    WAITING = "waiting", _("waits for funds")
    # It needs a person again.
    FAILED = "failed", _("failed again")


Transitions = Mapping[Status, frozenset[Status]]


def _transitions(table: dict[Status, set[Status]]) -> Transitions[Status]:
    return MappingProxyType({old: frozenset(new) for old, new in table.items()})


_T = TransferStatus
ALLOWED_TRANSITIONS: Transitions[TransferStatus] = _transitions(
    {
        _T.PENDING: {_T.COMPLETED, _T.FAILED, _T.CANCELED, _T.PERMANENTLY_FAILED},
        _T.FAILED: {_T.COMPLETED, _T.CANCELED, _T.PERMANENTLY_FAILED},
        _T.COMPLETED: {_T.REVERSAL_PENDING, _T.PARTIALLY_REVERSED, _T.REVERSED},
        # Back to completed where nothing was taken, and nothing is owed any more: the refund failed.
        _T.REVERSAL_PENDING: {_T.REVERSED, _T.PARTIALLY_REVERSED, _T.COMPLETED, _T.PERMANENTLY_FAILED},
        _T.PARTIALLY_REVERSED: {_T.REVERSAL_PENDING, _T.REVERSED},
        # Canceled is a payment back to the seller that an operator declined, or that a new refund made needless.
        _T.PERMANENTLY_FAILED: {
            _T.REVERSAL_PENDING,
            _T.FAILED,
            _T.PARTIALLY_REVERSED,
            _T.REVERSED,
            _T.COMPLETED,
            _T.CANCELED,
        },
        _T.REVERSED: set(),
        _T.CANCELED: set(),
    }
)

# A worker takes these up again at their next time.
IN_MOTION = frozenset({_T.PENDING, _T.FAILED, _T.REVERSAL_PENDING})
# Here and below: something is still to be done about these. Partial indexes hold them, so that lists find them at once.
OPEN_TRANSFERS = IN_MOTION | {_T.PERMANENTLY_FAILED}

_V = ReversalStatus
REVERSAL_TRANSITIONS: Transitions[ReversalStatus] = _transitions(
    {
        _V.PENDING: {_V.SUCCEEDED, _V.FAILED, _V.CANCELED},
        # An operator tries again, or finds it replaced; or Stripe shows that it happened after all.
        _V.FAILED: {_V.PENDING, _V.SUCCEEDED, _V.CANCELED},
        _V.SUCCEEDED: set(),
        _V.CANCELED: set(),
    }
)
OPEN_REVERSALS = frozenset({_V.PENDING, _V.FAILED})

_R = RefundStatus
# Stripe may move a refund between any two of its own states but out of the final ones (docs.stripe.com/refunds): a
# succeeded refund can fail weeks later, or ask the buyer for bank details again. Nothing becomes "requested".
REFUND_TRANSITIONS: Transitions[RefundStatus] = _transitions(
    {
        _R.REQUESTED: {_R.PENDING, _R.REQUIRES_ACTION, _R.SUCCEEDED, _R.FAILED, _R.CANCELED},
        _R.PENDING: {_R.REQUIRES_ACTION, _R.SUCCEEDED, _R.FAILED, _R.CANCELED},
        _R.REQUIRES_ACTION: {_R.PENDING, _R.SUCCEEDED, _R.FAILED, _R.CANCELED},
        _R.SUCCEEDED: {_R.PENDING, _R.REQUIRES_ACTION, _R.FAILED, _R.CANCELED},
        _R.FAILED: set(),
        _R.CANCELED: set(),
    }
)
OPEN_REFUNDS = frozenset({_R.REQUESTED, _R.PENDING, _R.REQUIRES_ACTION})

_O = OrderStatus
# A refund that fails after it had succeeded takes the order back a step.
ORDER_TRANSITIONS: Transitions[OrderStatus] = _transitions(
    {
        _O.PENDING: {_O.PAID},
        _O.PAID: {_O.PARTIALLY_REFUNDED, _O.REFUNDED},
        _O.PARTIALLY_REFUNDED: {_O.PAID, _O.REFUNDED},
        _O.REFUNDED: {_O.PAID, _O.PARTIALLY_REFUNDED},
    }
)

_E = EventStatus
EVENT_TRANSITIONS: Transitions[EventStatus] = _transitions(
    {
        _E.FAILED: {_E.PROCESSED, _E.IGNORED},
        # The row is written as processed; where applying it ends otherwise, the same transaction corrects that.
        _E.PROCESSED: {_E.FAILED, _E.IGNORED},
        _E.IGNORED: {_E.PROCESSED},
    }
)

_B = BulkRetryStatus
BULK_RETRY_TRANSITIONS: Transitions[BulkRetryStatus] = _transitions(
    {
        _B.PLANNED: {_B.AWAITING_APPROVAL, _B.CANARY, _B.CANCELED},
        _B.AWAITING_APPROVAL: {_B.CANARY, _B.CANCELED},
        # Finished where there are no more than the canary.
        _B.CANARY: {_B.RUNNING, _B.STOPPED, _B.FINISHED},
        _B.RUNNING: {_B.STOPPED, _B.FINISHED},
        _B.STOPPED: set(),
        _B.FINISHED: set(),
        _B.CANCELED: set(),
    }
)

_I = BulkRetryItemStatus
BULK_RETRY_ITEM_TRANSITIONS: Transitions[BulkRetryItemStatus] = _transitions(
    {
        _I.PLANNED: {_I.RETRIED, _I.SKIPPED},
        _I.RETRIED: {_I.SUCCEEDED, _I.WAITING, _I.FAILED},
        _I.REFUSED: set(),
        _I.SKIPPED: set(),
        _I.SUCCEEDED: set(),
        _I.WAITING: set(),
        _I.FAILED: set(),
    }
)


def pairs(transitions: Transitions[Status]) -> list[tuple[str, str]]:
    """All listed steps as (from, to), in a fixed order: what the database's trigger is made of."""
    return [(old.value, new.value) for old in transitions for new in sorted(transitions[old])]
