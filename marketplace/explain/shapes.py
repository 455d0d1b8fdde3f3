"""What an explanation consists of. Times are by the database's clock, amounts in the currency's minor unit."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Kind(TextChoices):
    """What a transfer is doing just now."""

    # A worker has leased it.
    IN_HAND = "in_hand", _("in a worker's hands")
    # Due, and a worker that lives will take it up.
    QUEUED = "queued", _("due")
    # It comes again by itself at its next time.
    BACKOFF = "backoff", _("tries again later")
    WAITING_FOR_FUNDS = "waiting_for_funds", _("waits for money")
    PENDING_AT_STRIPE = "pending_at_stripe", _("pending at Stripe")
    KEY_RESTS = "key_rests", _("its old key rests")
    POSTPONED = "postponed", _("postponed")
    SCHEDULED = "scheduled", _("has its time")
    # Nothing of this queue is taken up.
    BREAKER_OPEN = "breaker_open", _("Stripe is down")
    NO_WORKER = "no_worker", _("no worker lives")
    SWITCHED_OFF = "switched_off", _("switched off")
    NEEDS_A_PERSON = "needs_a_person", _("needs a person")
    # Nothing is owed or to be done.
    AT_REST = "at_rest", _("nothing to do")


@dataclass(frozen=True, kw_only=True)
class NextAttempt:
    """When a worker takes it up at the earliest, and why then. ``at`` is past where it is due."""

    at: datetime
    why: str


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt and what Stripe answered, newest first in an explanation. ``code`` is empty for a success."""

    at: datetime
    number: int
    actor: str
    code: str
    answer: str
    request_id: str
    request_url: str


@dataclass(frozen=True, kw_only=True)
class Key:
    """The idempotency key that the next request bears, or the last one bore."""

    operation_id: str
    generation: int
    first_used_at: datetime | None
    age: timedelta | None
    # Until then it is sent again as it is; after it Stripe is looked at first.
    reused_until: datetime | None
    looks_first: bool


@dataclass(frozen=True, kw_only=True)
class Owed:
    """One reversal on the transfer, and what it is for. The oldest pending one is in turn."""

    reversal: int
    status: str
    is_in_turn: bool
    amount: int
    currency: str
    cause: str
    # Of the cause "refund", or "dispute".
    refund: int | None
    stripe_refund_id: str
    dispute: int | None
    stripe_dispute_id: str
    stripe_reversal_id: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """To an object in Stripe's dashboard."""

    title: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Action:
    """What a person may do; ``refusal`` says why not, and is empty where it is allowed now."""

    name: str
    title: str
    permission: str
    refusal: str
    # The row that it is about, where that is not the transfer.
    debt: int | None = None

    @property
    def is_allowed(self) -> bool:
        return not self.refusal


@dataclass(frozen=True, kw_only=True)
class Explanation:
    transfer: int
    status: str
    kind: Kind
    cause: str
    unblocks: str
    # Since when it is so, and until when it waits at the latest; None where nothing says so.
    since: datetime | None
    until: datetime | None
    next_attempt: NextAttempt | None
    # What else matters, a sentence each.
    notes: tuple[str, ...]
    retries_spent: int
    max_retries: int
    # The newest; ``attempts_made`` counts all.
    attempts: tuple[Attempt, ...]
    attempts_made: int
    key: Key | None
    owed: tuple[Owed, ...]
    links: tuple[Link, ...]
    # A heading of docs/runbook.md; empty where there is nothing to do.
    runbook: str
    actions: tuple[Action, ...]
    now: datetime

    @property
    def is_in_motion(self) -> bool:
        """A worker moves it on by itself."""
        return self.kind not in {Kind.NEEDS_A_PERSON, Kind.AT_REST}
