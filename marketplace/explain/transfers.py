"""One transfer explained: which of all that may hold it back does so now."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User

from marketplace import selectors, throttle
from marketplace.backoff import LARGEST_JITTER, RetryPolicy
from marketplace.explain import actions, causes, links, runbook, surroundings
from marketplace.explain.shapes import Attempt, Explanation, Key, Kind, Link, NextAttempt, Owed
from marketplace.explain.surroundings import MOST_COUNTED, REVERSING, SENDING, Surroundings
from marketplace.explain.words import count, moment, span
from marketplace.gateway.contract import Busy, Denied, InsufficientFunds, Postponed, RateLimited
from marketplace.models import GIVE_BACK_UNDECIDED, SellerTransfer, TransferReversal
from marketplace.money import Money
from marketplace.services import outcomes, reversal_settling
from marketplace.states import IN_MOTION, ReversalStatus, TransferStatus

MOST_ATTEMPTS = 20
FUNDS = outcomes.CODES[InsufficientFunds]
DENIED = outcomes.CODES[Denied]
POSTPONED = outcomes.CODES[Postponed]
# Nothing ran at Stripe: it comes again in seconds.
SHORT_WAITS = frozenset({outcomes.CODES[Busy], outcomes.CODES[RateLimited], POSTPONED})


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The part of an explanation that depends on what holds the row back."""

    kind: Kind
    cause: str
    unblocks: str
    since: datetime | None = None
    until: datetime | None = None
    next_attempt: NextAttempt | None = None
    notes: tuple[str, ...] = ()
    runbook: str = ""


def explain(transfer: SellerTransfer, *, user: User | AnonymousUser | None = None) -> Explanation:
    """Why the transfer is where it is, by its row as it was read and what is around it now.

    ``user``: what they may do is among the actions, with the reason where not; None asks for nobody's permission.
    """
    now = selectors.now()
    owed = list(transfer.reversals.select_related("refund", "dispute").order_by("id"))
    in_turn = next((each for each in owed if each.status == ReversalStatus.PENDING), None)
    leg = _leg(transfer)
    queue = SENDING if leg == SellerTransfer.Leg.SENDING else REVERSING
    key = _key(transfer, in_turn or _newest_failed(owed), leg, now=now)
    if transfer.status in IN_MOTION:
        answer = _InMotion(
            transfer=transfer, leg=leg, in_turn=in_turn, key=key, around=surroundings.around(queue, now=now)
        ).answer()
    elif transfer.status == TransferStatus.PERMANENTLY_FAILED:
        answer = _needs_a_person(transfer, leg)
    else:
        answer = _at_rest(transfer)
        key = None
    attempts, attempts_made = _attempts(transfer)
    return Explanation(
        transfer=transfer.pk,
        status=transfer.status,
        kind=answer.kind,
        cause=answer.cause,
        unblocks=answer.unblocks,
        since=answer.since,
        until=answer.until,
        next_attempt=answer.next_attempt,
        notes=(*answer.notes, *_notes(transfer, owed, in_turn, leg, now=now)),
        retries_spent=transfer.retry_count,
        max_retries=RetryPolicy.from_settings(queue.prefix).max_retries,
        attempts=attempts,
        attempts_made=attempts_made,
        key=key,
        owed=tuple(_owed(each, is_in_turn=each is in_turn) for each in owed),
        links=_links(transfer),
        runbook=answer.runbook,
        actions=actions.of(transfer, user=user, now=now),
        now=now,
    )


def _leg(transfer: SellerTransfer) -> str:
    """What is, or was last, being done."""
    if transfer.status == TransferStatus.PERMANENTLY_FAILED:
        return transfer.failed_leg or SellerTransfer.Leg.REVERSING
    is_sending = transfer.status in {TransferStatus.PENDING, TransferStatus.FAILED}
    return SellerTransfer.Leg.SENDING if is_sending else SellerTransfer.Leg.REVERSING


def _newest_failed(owed: Sequence[TransferReversal]) -> TransferReversal | None:
    return next((each for each in reversed(owed) if each.status == ReversalStatus.FAILED), None)


# --- In motion --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _InMotion:
    """A transfer that a worker takes up again by itself, and all that may stand in the way."""

    transfer: SellerTransfer
    leg: str
    in_turn: TransferReversal | None
    key: Key | None
    around: Surroundings

    @property
    def due_at(self) -> datetime:
        due = self.transfer.next_retry_at
        # A constraint of the table.
        assert due is not None
        return due

    @property
    def text(self) -> causes.Text:
        return causes.of_code(self.transfer.last_error_code, self.leg)

    def answer(self) -> _Answer:
        """The first that holds: in somebody's hands, not taken up by anybody, not due yet; otherwise in line."""
        expires = self.transfer.lease_expires_at
        if expires is not None and expires > self.around.now:
            return self._in_hand(expires)
        if not self.around.is_switched_on:
            return self._switched_off()
        if self.due_at > self.around.now:
            return self._waits()
        if self.around.breaker is not None:
            return self._breaker_open()
        if not self.around.living_workers:
            return self._no_worker()
        return self._queued()

    def _in_hand(self, expires: datetime) -> _Answer:
        # Leases are as long as this setting says, unless it was changed meanwhile.
        since = min(expires - settings.REVERSAL_LEASE, self.around.now)
        return _Answer(
            kind=Kind.IN_HAND,
            cause="A worker has it in hand: Stripe is being asked at this moment, or will be in a moment.",
            unblocks="Nothing is needed. Should that worker have died, another one takes it over when the lease ends.",
            since=since,
            until=expires,
            notes=self._last_answer(),
            runbook=runbook.of_status(self.transfer.status),
        )

    def _switched_off(self) -> _Answer:
        queue = self.around.queue
        return _Answer(
            kind=Kind.SWITCHED_OFF,
            cause=f"This work is switched off: {queue.switch} is false.",
            unblocks=f"Set {queue.switch}=true and start {queue.command}.",
            notes=self._last_answer(),
            runbook=runbook.NOTHING_MOVES,
        )

    def _breaker_open(self) -> _Answer:
        breaker = self.around.breaker
        assert breaker is not None
        assert breaker.next_probe_at is not None
        return _Answer(
            kind=Kind.BREAKER_OPEN,
            cause="Stripe fails for everyone in this kind of work, so its breaker is open and rows wait.",
            unblocks="Stripe's return: one row probes it every few seconds, the first success closes the breaker, and"
            " all go on by themselves. Nothing is spent meanwhile.",
            since=breaker.opened_at,
            next_attempt=NextAttempt(
                at=breaker.next_probe_at, why="the breaker's next probe; this row goes when one has succeeded"
            ),
            notes=(f"The breaker's last error: {breaker.last_error}",),
            runbook=runbook.BREAKER_OPEN,
        )

    def _no_worker(self) -> _Answer:
        queue = self.around.queue
        text = causes.Text(
            f"Nobody serves this queue: no {queue.work} worker has shown a sign of life for"
            f" {span(selectors.DEAD_AFTER)}.",
            f"Start {queue.command}.",
        )
        is_denied = self.transfer.last_error_code == DENIED
        return _Answer(
            kind=Kind.NO_WORKER,
            cause=self.text.cause if is_denied else text.cause,
            unblocks=self.text.unblocks if is_denied else text.unblocks,
            since=self.due_at,
            next_attempt=NextAttempt(at=self.due_at, why="it is due: as soon as a worker lives"),
            notes=self._last_answer(),
            runbook=runbook.of_code(DENIED) if is_denied else runbook.NO_WORKER,
        )

    def _queued(self) -> _Answer:
        ahead = surroundings.ahead(self.transfer, self.around.queue, now=self.around.now)
        shown = f"{MOST_COUNTED} rows or more go" if ahead == MOST_COUNTED else count(ahead, "row goes", "rows go")
        rate = settings.STRIPE_MAX_REQUESTS_PER_SECOND
        pace = f", at most {rate} requests a second" if rate else ""
        before = f"{shown} before it{pace}" if ahead else "nothing is before it"
        return _Answer(
            kind=Kind.QUEUED,
            cause="It is due, and a worker takes it up as soon as it can.",
            unblocks="Nothing is needed.",
            since=self.due_at,
            next_attempt=NextAttempt(at=self.due_at, why=f"it is due: {before}"),
            notes=(*self._slowed(), *self._last_answer()),
            runbook=runbook.NOTHING_MOVES,
        )

    def _waits(self) -> _Answer:
        """Not due yet. Who would not be served then either is told so."""
        code = self.transfer.last_error_code
        if code == FUNDS and self.leg == SellerTransfer.Leg.REVERSING:
            answer = self._for_funds()
        elif code == "pending_at_stripe":
            every = span(reversal_settling.PENDING_REVERSAL_INTERVAL)
            why = f"Stripe looks at it about hourly, and so do we: every {every}"
            answer = self._waiting(Kind.PENDING_AT_STRIPE, why)
        elif self._rests() and self.in_turn is not None and self.in_turn.unwanted_amount:
            # However old its key is: it takes no other.
            answer = self._unwanted_rests()
        elif self._rests() and self.key is not None and self._is_key_too_old(self.key):
            answer = self._key_rests()
        elif code in SHORT_WAITS:
            answer = self._waiting(Kind.POSTPONED, "nothing ran at Stripe, so a short pause is enough", *self._slowed())
        elif self.transfer.retry_count:
            answer = self._backoff()
        else:
            answer = self._scheduled()
        return answer

    def _rests(self) -> bool:
        """Whether it was postponed until what was sent has arrived; for the allowance a row waits for seconds."""
        since = self.transfer.last_error_at
        is_long = since is not None and self.due_at - since > throttle.LONGEST_WAIT
        return self.transfer.last_error_code == POSTPONED and is_long

    def _waiting(self, kind: Kind, why: str, *notes: str, **fields: Any) -> _Answer:
        text = self.text
        code = self.transfer.last_error_code
        shown: dict[str, Any] = {
            "cause": text.cause,
            "unblocks": text.unblocks,
            "since": self.transfer.last_error_at,
            "runbook": runbook.of_code(code) or runbook.of_status(self.transfer.status),
            **fields,
        }
        at = self.due_at
        return _Answer(
            kind=kind, next_attempt=NextAttempt(at=at, why=why), notes=(*notes, *self._not_served_then()), **shown
        )

    def _scheduled(self) -> _Answer:
        return self._waiting(
            Kind.SCHEDULED,
            "the time that was written into the row",
            cause="It waits for its time; nothing has gone wrong.",
            unblocks="Nothing is needed.",
            since=None,
            runbook=runbook.of_status(self.transfer.status),
        )

    def _backoff(self) -> _Answer:
        policy = RetryPolicy.from_settings(self.around.queue.prefix)
        spent = self.transfer.retry_count
        why = (
            f"backoff {spent} of {policy.max_retries}: {span(policy.delay(max(spent - 1, 0)))} after the last answer,"
            f" less up to {LARGEST_JITTER:.0%}; doubled each time, at most {span(policy.maximum)}"
        )
        left = max(policy.max_retries - spent, 0)
        last = "the next failure asks for a person" if not left else f"{count(left, 'retry is', 'retries are')} left"
        return self._waiting(Kind.BACKOFF, why, f"{last[0].upper()}{last[1:]}.")

    def _for_funds(self) -> _Answer:
        since = self.in_turn.waiting_for_funds_since if self.in_turn is not None else None
        until = since + settings.REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE if since is not None else None
        why = (
            f"its own schedule, every {span(settings.REVERSAL_INSUFFICIENT_FUNDS_INTERVAL)}; sooner when money comes,"
            " by Stripe's event balance.available or by our look at the balance"
        )
        notes = [self._balance()]
        if self.in_turn is not None and since is not None:
            before = surroundings.before_in_line(self.transfer, self.in_turn)
            if before:
                more = " or more" if before == MOST_COUNTED else ""
                longer = f"{count(before, 'transfer', 'transfers')}{more}"
                notes.append(f"Before it in line for the same seller's money: {longer} that waited longer.")
        return self._waiting(Kind.WAITING_FOR_FUNDS, why, *notes, since=since, until=until)

    def _balance(self) -> str:
        watch = surroundings.watch_of(self.transfer)
        if watch is None or (watch.seen_at is None and watch.next_retry_at is None):
            return "The seller's balance is not looked at: only the row's own schedule, or balance.available, wakes it."
        said = "We have not looked at the seller's balance yet"
        if watch.seen_at is not None:
            available = Money(watch.available.get(self.transfer.currency, 0), self.transfer.currency)
            said = f"At {moment(watch.seen_at)} Stripe said that the seller has {available}"
        if watch.next_retry_at is None:
            return f"{said}; it is not looked at any more."
        return f"{said}; the next look is at {moment(watch.next_retry_at)}."

    def _is_key_too_old(self, key: Key) -> bool:
        return key.reused_until is not None and key.reused_until <= self.around.now

    def _key_rests(self) -> _Answer:
        assert self.key is not None
        window = span(outcomes.KEY_REUSE_WINDOW)
        return self._waiting(
            Kind.KEY_RESTS,
            f"{window} after the key's first use, a lease and {span(outcomes.LONGEST_WAY)} more: whatever was sent"
            " under it has arrived by then",
            cause=f"Its idempotency key is older than {window}, and a request under it may be on its way to Stripe.",
            unblocks="Nothing is needed: at its time Stripe is looked at, and a new key is taken only where nothing is"
            " found.",
        )

    def _unwanted_rests(self) -> _Answer:
        return self._waiting(
            Kind.KEY_RESTS,
            f"a lease and {span(outcomes.LONGEST_WAY)} after it came to be no longer owed: what was sent has arrived"
            " by then",
            cause=f"{self.in_turn} is no longer owed as it was, and a request for it may be on its way to Stripe.",
            unblocks="Nothing is needed: at its time Stripe is looked at again, and what is not there is canceled.",
        )

    def _slowed(self) -> tuple[str, ...]:
        slowed = self.around.slowed_at
        if slowed is None:
            return ()
        return (f"Stripe limited our rate at {moment(slowed)}: all workers space their requests wider for a while.",)

    def _not_served_then(self) -> tuple[str, ...]:
        notes = []
        if not self.around.living_workers:
            notes.append("No worker lives that would take it up then.")
        if self.around.breaker is not None:
            notes.append("Stripe fails for everyone just now; if it still does then, the row waits on.")
        return tuple(notes)

    def _last_answer(self) -> tuple[str, ...]:
        code = self.transfer.last_error_code
        return (f"The last attempt ended with {code}: {self.text.cause}",) if code else ()


# --- Not in motion ----------------------------------------------------------------------------------------------------


def _needs_a_person(transfer: SellerTransfer, leg: str) -> _Answer:
    text = causes.of_code(transfer.last_error_code, leg)
    notes = []
    if transfer.last_error_message and transfer.last_error_code != GIVE_BACK_UNDECIDED:
        notes.append(f"The last answer: {transfer.last_error_message}")
    if leg == SellerTransfer.Leg.REVERSING:
        notes.append("Until then the seller still has the money; it is counted among the debts of sellers.")
    elif transfer.last_error_code != GIVE_BACK_UNDECIDED:
        notes.append("Until then the seller may not be paid.")
    return _Answer(
        kind=Kind.NEEDS_A_PERSON,
        cause=text.cause,
        unblocks=text.unblocks,
        since=transfer.last_error_at,
        notes=tuple(notes),
        runbook=runbook.of_code(transfer.last_error_code) or runbook.of_status(transfer.status),
    )


def _at_rest(transfer: SellerTransfer) -> _Answer:
    back = Money(transfer.amount_reversed, transfer.currency)
    match TransferStatus(transfer.status):
        case TransferStatus.REVERSED:
            cause = f"Stripe confirmed that all of it came back: {back}."
        case TransferStatus.PARTIALLY_REVERSED:
            cause = f"Stripe confirmed that {back} of {transfer.money} came back; no more is owed."
        case TransferStatus.COMPLETED:
            cause = "Stripe made the transfer: the seller has the money, and nothing is owed back."
        case _ if transfer.declined:
            cause = "A person decided that the seller is not paid again; nothing was sent."
        case _ if transfer.amount_netted and not transfer.amount:
            cause = "All of the seller's share paid debts of earlier orders, so nothing is sent."
        case _:
            cause = "The order was refunded before any money moved, so nothing is sent."
    return _Answer(kind=Kind.AT_REST, cause=cause, unblocks="Nothing is to be done.")


# --- Whatever its state -----------------------------------------------------------------------------------------------


def _notes(
    transfer: SellerTransfer,
    owed: Sequence[TransferReversal],
    in_turn: TransferReversal | None,
    leg: str,
    *,
    now: datetime,
) -> list[str]:
    notes = []
    waiting = [each for each in owed if each.status == ReversalStatus.PENDING]
    is_sending = leg == SellerTransfer.Leg.SENDING
    if waiting and is_sending:
        total = Money(sum(each.amount for each in waiting), transfer.currency)
        notes.append(f"It was refunded meanwhile: {total} comes off, or is taken back, once this sending is settled.")
    elif len(waiting) > 1 and in_turn is not None:
        others = count(len(waiting) - 1, "newer one waits", "newer ones wait")
        notes.append(f"{len(waiting)} reversals are owed: the oldest, {in_turn}, goes first, {others} behind it.")
    if in_turn is not None and in_turn.unwanted_amount:
        notes.append(f"{in_turn} is no longer owed as it was: Stripe is only looked at, and nothing new is sent.")
    if is_sending and transfer.in_doubt and transfer.status != TransferStatus.PENDING:
        notes.append("It may have been sent: that is found out before anything is sent anew.")
    expires = transfer.lease_expires_at
    if expires is not None and expires <= now:
        notes.append(f"The worker that had it did not come back by {moment(expires)}; any other takes it up.")
    return notes


def _key(transfer: SellerTransfer, owed: TransferReversal | None, leg: str, *, now: datetime) -> Key | None:
    bearer = transfer if leg == SellerTransfer.Leg.SENDING else owed
    if bearer is None:
        return None
    first: datetime | None = bearer.first_attempted_at
    age = now - first if first is not None else None
    is_old = age is not None and age > outcomes.KEY_REUSE_WINDOW
    return Key(
        operation_id=str(bearer.operation_id),
        generation=bearer.key_generation,
        first_used_at=first,
        age=age if age is None else max(age, timedelta(0)),
        reused_until=first + outcomes.KEY_REUSE_WINDOW if first is not None else None,
        looks_first=bearer.look_first or is_old,
    )


def _owed(reversal: TransferReversal, *, is_in_turn: bool) -> Owed:
    refund, dispute = reversal.refund, reversal.dispute
    return Owed(
        reversal=reversal.pk,
        status=reversal.status,
        is_in_turn=is_in_turn,
        amount=reversal.amount,
        currency=reversal.currency,
        cause=reversal.cause,
        refund=refund.pk if refund is not None else None,
        stripe_refund_id=refund.stripe_refund_id if refund is not None else "",
        dispute=dispute.pk if dispute is not None else None,
        stripe_dispute_id=dispute.stripe_dispute_id if dispute is not None else "",
        stripe_reversal_id=reversal.stripe_reversal_id,
    )


def _attempts(transfer: SellerTransfer) -> tuple[tuple[Attempt, ...], int]:
    """The newest attempts from the history, and how many there are."""
    history: Any = transfer.history  # type: ignore[attr-defined]  # pghistory adds it
    # By JSON's order null is less than any number.
    entries = history.filter(pgh_context__attempt__gt=0)
    newest = entries.order_by("-pgh_id")[:MOST_ATTEMPTS]
    return tuple(_attempt(entry) for entry in newest), entries.count()


def _attempt(entry: Any) -> Attempt:
    context = entry.pgh_context
    request_id = entry.last_error_request_id
    return Attempt(
        at=entry.pgh_created_at,
        number=context["attempt"],
        actor=str(context.get("actor") or ""),
        code=entry.last_error_code,
        answer=entry.last_error_message if entry.last_error_code else str(context.get("reason") or ""),
        request_id=request_id,
        request_url=links.dashboard(links.REQUEST, request_id),
    )


def _links(transfer: SellerTransfer) -> tuple[Link, ...]:
    found = (
        (f"Transfer {transfer.stripe_transfer_id}", links.TRANSFER, transfer.stripe_transfer_id),
        ("The seller's account", links.ACCOUNT, transfer.seller.stripe_account_id),
        ("The buyer's payment", links.PAYMENT, transfer.order.stripe_payment_intent_id),
        (f"Last error {transfer.last_error_request_id}", links.REQUEST, transfer.last_error_request_id),
    )
    return tuple(
        Link(title=title, url=url) for title, page, stripe_id in found if (url := links.dashboard(page, stripe_id))
    )
