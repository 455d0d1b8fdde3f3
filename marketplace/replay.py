"""Events that did not reach us are fetched from Stripe, and events that were not applied are taken from the inbox.

Either way they go through the inbox as a webhook does: any of it can be broken off, done again, or done twice at once.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

import structlog
from django.conf import settings

from marketplace import inbox
from marketplace.asking import ask
from marketplace.errors import MalformedEvent, NotAllowedNow, StripeDenied
from marketplace.gateway import stripe_events
from marketplace.gateway.contract import (
    LARGEST_PAGE,
    MOST_EVENT_TYPES,
    EventsListed,
    ListedEvent,
    TransferGateway,
)
from marketplace.models import Seller, WebhookEvent
from marketplace.states import EventStatus

logger = structlog.get_logger(__name__)
T = TypeVar("T")

# Older ones Stripe shows no more (docs.stripe.com/api/events).
KEPT_BY_STRIPE = timedelta(days=30)
OWN_TYPES = tuple(sorted(inbox.HANDLERS.keys() - inbox.CONNECTED_ACCOUNT_TYPES))
# What a balance was tells nothing of what it is: the worker asks for that.
SELLERS_TYPES = tuple(sorted(inbox.CONNECTED_ACCOUNT_TYPES - {"balance.available"}))


@dataclass(kw_only=True)
class Tally:
    """What became of the events of one pass. Each that was found counts once more: as one of the others."""

    name: str
    found: int = 0
    # New, and applied, ignored, or failed now.
    processed: int = 0
    ignored: int = 0
    failed: int = 0
    # New, and would be taken: of a dry run.
    new: int = 0
    # In the inbox before; and those that stand there as failed.
    seen: int = 0
    seen_failed: int = 0
    other_mode: int = 0
    unreadable: int = 0
    # In a worker's hands, or just replayed by somebody else.
    skipped: int = 0
    # Of sellers: asked, and of them those that Stripe does not let us read, most likely disconnected.
    accounts: int = 0
    accounts_closed: int = 0
    # Stripe's time of the newest event so far; and of the inbox's, its number.
    reached: datetime | None = None
    last: int = 0

    @property
    def not_applied(self) -> int:
        return self.failed + self.seen_failed + self.unreadable


Tell = Callable[[Tally], None]


@dataclass(frozen=True, kw_only=True)
class Period:
    """From the one to the other, both included, by Stripe's clock."""

    since: datetime
    until: datetime
    own_types: Sequence[str] = OWN_TYPES
    # Of connected accounts: none where they are not to be asked.
    sellers_types: Sequence[str] = ()


# --- From Stripe ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class FromStripe:
    """Fetches a period's events and puts them into the inbox; with ``is_dry_run`` only counts them.

    Those that were not delivered come first, then all: what was answered with 200 and then lost, by a restored backup
    for instance, counts as delivered. One request per hundred events, about twenty to find the oldest, one per seller;
    under the request allowance that all processes share.
    """

    gateway: TransferGateway
    is_dry_run: bool = False
    tell: Tell = field(default=lambda _tally: None)

    def run(self, period: Period) -> list[Tally]:
        """Raises ``StripeDenied``, ``StripeSaysNo``, and ``OperationalError`` or its like where the database is away:
        what was taken before stands.
        """
        tallies = []
        if period.own_types:
            for name, undelivered in (("undelivered", True), ("all", False)):
                tallies.append(Tally(name=name))
                self._take(self._own(period, undelivered=undelivered), tallies[-1])
        if period.sellers_types:
            tallies.append(Tally(name="sellers"))
            for account in _sellers_accounts():
                self._take_of_seller(account, period, tallies[-1])
        return tallies

    def _own(self, period: Period, *, undelivered: bool) -> Iterator[ListedEvent]:
        """Oldest first, over as many lists as there are types for."""
        lists = [
            self._oldest_first(_List(types=types, undelivered=undelivered), *_seconds(period))
            for types in batches(period.own_types, MOST_EVENT_TYPES)
        ]
        return heapq.merge(*lists, key=lambda event: event.created_at)

    def _take_of_seller(self, account: str, period: Period, tally: Tally) -> None:
        tally.accounts += 1
        listed = _List(types=period.sellers_types, stripe_account=account)
        try:
            self._take(self._oldest_first(listed, *_seconds(period)), tally)
        except StripeDenied as error:
            if not error.details["forbidden"]:
                raise
            tally.accounts_closed += 1
        self.tell(tally)

    # --- Reading Stripe's list --------------------------------------------------------------------------------

    def _oldest_first(self, listed: "_List", since: int, until: int) -> Iterator[ListedEvent]:
        """All events from ``since`` to ``until``; in memory are one page, and at the beginning those of one second.

        Stripe lists the newest first, and goes the other way from a known event only.
        """
        newest = self._page(listed, since=since, until=until)
        if not newest.has_more:
            yield from reversed(newest.events)
            return
        second = self._oldest_second(listed, since, _second(newest.events[-1].created_at))
        begun = self._all_of(listed, second)
        yield from reversed(begun)
        if not begun:
            # Stripe keeps them no longer, since just now.
            yield from self._oldest_first(listed, second + 1, until)
            return
        last = begun[0]
        while True:
            page = self._page(listed, since=since, until=until, ending_before=last.stripe_event_id)
            yield from reversed(page.events)
            if not page.has_more:
                return
            last = page.events[0]

    def _oldest_second(self, listed: "_List", since: int, known: int) -> int:
        """In which the oldest event was created, where there is one from ``since`` to ``known``."""
        low, high = since, known
        while low < high:
            middle = (low + high) // 2
            found = self._page(listed, since=low, until=middle, limit=1).events
            low, high = (low, _second(found[0].created_at)) if found else (middle + 1, high)
        return high

    def _all_of(self, listed: "_List", second: int) -> list[ListedEvent]:
        """Newest first."""
        found: list[ListedEvent] = []
        while True:
            after = found[-1].stripe_event_id if found else ""
            page = self._page(listed, since=second, until=second, starting_after=after)
            found += page.events
            if not page.has_more:
                return found

    def _page(
        self,
        listed: "_List",
        *,
        since: int,
        until: int,
        limit: int = LARGEST_PAGE,
        starting_after: str = "",
        ending_before: str = "",
    ) -> EventsListed:
        """Asked for again where Stripe gives no answer. Raises as ``run``."""
        return ask(
            lambda: self.gateway.list_events(
                types=listed.types,
                undelivered=listed.undelivered,
                stripe_account=listed.stripe_account,
                since=since,
                until=until,
                limit=limit,
                starting_after=starting_after,
                ending_before=ending_before,
            )
        )

    # --- Into the inbox ---------------------------------------------------------------------------------------

    def _take(self, events: Iterable[ListedEvent], tally: Tally) -> None:
        for batch in batches(events, LARGEST_PAGE):
            ids = [event.stripe_event_id for event in batch]
            known = WebhookEvent.objects.filter(stripe_event_id__in=ids).values_list("stripe_event_id", "status")
            statuses = dict(known)
            for event in batch:
                tally.found += 1
                self._take_one(event, statuses.get(event.stripe_event_id), tally)
                tally.reached = event.created_at
            self.tell(tally)

    def _take_one(self, listed: ListedEvent, known_as: str | None, tally: Tally) -> None:
        if known_as is not None:
            _count_seen(known_as, tally)
            return
        try:
            event = stripe_events.read(listed.body)
        except MalformedEvent as error:
            logger.warning("listed_event_unreadable", event_id=listed.stripe_event_id, reason=error.message)
            tally.unreadable += 1
            return
        if event.livemode != settings.STRIPE_LIVEMODE:
            tally.other_mode += 1
        elif self.is_dry_run:
            tally.new += 1
        else:
            row = inbox.receive(event)
            if row.was_there:
                # Somebody brought it since we looked.
                _count_seen(row.status, tally)
            else:
                _count(row, tally)


@dataclass(frozen=True, kw_only=True)
class _List:
    """Which of Stripe's lists."""

    types: Sequence[str]
    undelivered: bool = False
    stripe_account: str = ""


def _seconds(period: Period) -> tuple[int, int]:
    return _second(period.since), _second(period.until)


def _second(moment: datetime) -> int:
    return int(moment.timestamp())


def _sellers_accounts() -> Iterator[str]:
    """Page by page: nothing of the database is open while Stripe is asked."""
    last = 0
    while page := list(
        Seller.objects.filter(pk__gt=last).order_by("pk").values_list("pk", "stripe_account_id")[:LARGEST_PAGE]
    ):
        for last, account in page:  # noqa: B007 - the last one is where the next page begins
            yield account


# --- From the inbox ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Which events of the inbox; empty means any."""

    status: EventStatus
    types: Sequence[str] = ()
    stripe_event_ids: Sequence[str] = ()
    # Those with larger numbers, and of them so many at most.
    after: int = 0
    at_most: int | None = None


def from_inbox(
    stored: Stored, *, actor: str, reason: str, is_dry_run: bool = False, tell: Tell = lambda _tally: None
) -> Tally:
    """Apply again what failed or was ignored, oldest first, each once. ``Tally.last`` is where to go on after.

    Raises:
        NotAllowedNow: a named event is not in the inbox, or not as ``stored`` says; nothing was done.

    """
    rows = WebhookEvent.objects.filter(status=stored.status)
    if stored.types:
        rows = rows.filter(type__in=stored.types)
    if stored.stripe_event_ids:
        rows = rows.filter(stripe_event_id__in=stored.stripe_event_ids)
        found = set(rows.values_list("stripe_event_id", flat=True))
        missing = [each for each in stored.stripe_event_ids if each not in found]
        if missing:
            asked = " ".join([stored.status, *(["of type", *stored.types] if stored.types else [])])
            raise NotAllowedNow(f"not in the inbox as {asked}: {', '.join(missing)}")
    tally = Tally(name="inbox", last=stored.after)
    while page := list(
        rows.filter(pk__gt=tally.last)
        .order_by("pk")
        .values_list("pk", "stripe_created_at")[: _page_size(stored, tally)]
    ):
        for pk, created_at in page:
            tally.last, tally.reached = pk, created_at
            tally.found += 1
            if is_dry_run:
                tally.new += 1
                continue
            try:
                _count(inbox.replay(event_id=pk, actor=actor, reason=reason), tally)
            except NotAllowedNow:
                tally.skipped += 1
        tell(tally)
    return tally


def _page_size(stored: Stored, tally: Tally) -> int:
    return LARGEST_PAGE if stored.at_most is None else min(LARGEST_PAGE, stored.at_most - tally.found)


# --- Counting ---------------------------------------------------------------------------------------------------------


def _count(row: WebhookEvent, tally: Tally) -> None:
    match EventStatus(row.status):
        case EventStatus.PROCESSED:
            tally.processed += 1
        case EventStatus.IGNORED:
            tally.ignored += 1
        case EventStatus.FAILED:
            tally.failed += 1


def _count_seen(status: str, tally: Tally) -> None:
    if status == EventStatus.FAILED:
        tally.seen_failed += 1
    else:
        tally.seen += 1


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one maybe of fewer."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
