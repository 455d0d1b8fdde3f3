"""One run from its first page to its last finding: what is done is in the database before the next thing is begun, so
that a run that was broken off goes on where it was, in any process.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from marketplace.errors import MarketplaceError
from marketplace.gateway.contract import (
    LARGEST_PAGE,
    ChargeFacts,
    DisputeFacts,
    ListedTransfer,
    RefundFacts,
    TransferGateway,
)
from marketplace.models import Reconciliation, ReconciliationFinding, ReconciliationSubject
from marketplace.reconciliation import comparing, leaks, looking, rows, stuck
from marketplace.reconciliation.leaks import Losses
from marketplace.reconciliation.looking import PATIENCE, InMotion, SecondLook, paid_as_seen
from marketplace.reconciliation.reading import Reader

T = TypeVar("T")

# A dispute may be lost so long after it was opened, and tells of it by no date.
DISPUTES_LAST = timedelta(days=180)
# So long after it succeeded a refund may fail (docs.stripe.com/refunds#failed-refunds): lists tell of it by no date.
REFUNDS_MAY_FAIL = timedelta(days=30)
# What was found is kept so long.
KEPT = timedelta(days=90)


class OtherRunOpen(MarketplaceError):
    """A reconciliation with other flags was broken off. ``details["asked"]`` are its flags."""


class TakenOver(MarketplaceError):
    """Another process goes on with this reconciliation."""


def begin(*, asked: str, since: datetime | None, is_anew: bool = False) -> Reconciliation:
    """The run that was broken off with the same flags (``asked``), or a new one; committed on return.

    Raises:
        OtherRunOpen: one was broken off with other flags, and ``is_anew`` does not say to forget it.

    """
    with transaction.atomic(durable=True):
        unfinished = Reconciliation.objects.filter(finished_at=None)
        if is_anew:
            unfinished.forget()
        Reconciliation.objects.filter(finished_at__lt=Now() - KEPT).forget()
        found = unfinished.first()
        if found is not None and found.asked != asked:
            raise OtherRunOpen(asked=found.asked)
        if found is not None:
            return found
    try:
        made = Reconciliation.objects.create(asked=asked, since=since, until=rows.now(), step=next(iter(STEPS)))
    except IntegrityError:
        raise TakenOver from None
    made.refresh_from_db()
    return made


@dataclass(kw_only=True)
class Reconciler:
    """``tell`` hears of the run after each page. Raises ``TakenOver``, and as ``asking.ask``; what is done stands."""

    run: Reconciliation
    gateway: TransferGateway
    is_fixing: bool = False
    patience: timedelta = PATIENCE
    tell: Callable[[Reconciliation], None] = field(default=lambda _run: None)

    def __post_init__(self) -> None:
        self._reader = Reader(gateway=self.gateway)

    def go(self) -> None:
        while self.run.finished_at is None:
            STEPS[self.run.step](self)
            self.tell(self.run)

    # --- Stripe's lists, page by page -------------------------------------------------------------------------

    def compare_transfers(self) -> None:
        since, until = self._period()
        page = self._reader.ask(
            lambda: self.gateway.page_of_transfers(since=since, until=until, starting_after=self.run.cursor)
        )
        suspects = {each.transfer.stripe_transfer_id for each in page.items if not comparing.is_booked(each)}
        counts = self._compared(page.items, suspects)
        self._done(page.last_id if page.has_more else "", counts | {"transfers": len(page.items)})

    def compare_reversals(self) -> None:
        """Also of transfers that are older than the period."""
        since, until = self._period()
        page = self._reader.ask(
            lambda: self.gateway.page_of_balance_transactions(
                type=comparing.REVERSAL, since=since, until=until, starting_after=self.run.cursor
            )
        )
        about = {each.booked.stripe_source_id: each.about for each in page.items if each.about is not None}
        suspects = {each.booked.stripe_source_id for each in page.items if not comparing.is_entry_of_a_reversal(each)}
        self._compared(list(about.values()), suspects)
        self._done(page.last_id if page.has_more else "", {"reversals": len(page.items)})

    def _compared(self, listed: Sequence[ListedTransfer], suspects: set[str]) -> dict[str, int]:
        ours = rows.of_transfers([each.transfer for each in listed])
        unknown = 0
        for each in listed:
            facts = each.transfer
            row = ours.get(facts.stripe_transfer_id)
            unknown += row is None
            if comparing.differences(row, facts, each.reversals, are_all=each.has_all_reversals):
                suspects.add(facts.stripe_transfer_id)
        self._note(map(self._seen, listed), suspects)
        return {"without_row": unknown}

    def _seen(self, listed: ListedTransfer) -> ReconciliationSubject:
        return ReconciliationSubject(
            run=self.run,
            stripe_id=listed.transfer.stripe_transfer_id,
            destination=listed.transfer.destination,
            source_transaction=listed.source_transaction,
            transfer_group=listed.transfer_group,
            currency=listed.transfer.currency,
            amount=listed.transfer.amount,
            amount_reversed=listed.transfer.amount_reversed,
        )

    def weigh_refunds(self) -> None:
        since, until = self._period(before=REFUNDS_MAY_FAIL)
        page = self._reader.ask(
            lambda: self.gateway.page_of_refunds(since=since, until=until, starting_after=self.run.cursor)
        )
        told: dict[str, Losses] = {}
        for each in page.items:
            if each.charge is not None:
                told[each.charge.stripe_charge_id] = _with(told, each.charge, refund=each.refund)
        seen = [ReconciliationSubject(run=self.run, stripe_id=each.refund.stripe_refund_id) for each in page.items]
        self._weighed(told, seen)
        self._done(page.last_id if page.has_more else "", {"refunds": len(page.items)})

    def weigh_disputes(self) -> None:
        since, until = self._period(before=DISPUTES_LAST)
        page = self._reader.ask(
            lambda: self.gateway.page_of_disputes(since=since, until=until, starting_after=self.run.cursor)
        )
        told: dict[str, Losses] = {}
        for each in page.items:
            if each.charge is not None:
                told[each.charge.stripe_charge_id] = _with(told, each.charge, dispute=each.dispute)
        self._weighed(told)
        self._done(page.last_id if page.has_more else "", {"disputes": len(page.items)})

    def _weighed(self, told: Mapping[str, Losses], seen: Iterable[ReconciliationSubject] = ()) -> None:
        """Charges of which a seller may not have given its part; the second look computes it from all there is."""
        orders = rows.of_charges({name: each.charge.stripe_payment_intent_id for name, each in told.items()})
        suspects = set()
        for stripe_id, losses in told.items():
            order = orders.get(stripe_id)
            if self._may_leak(losses) if order is None else looking.is_suspect(order, losses):
                suspects.add(stripe_id)
        self._note(seen, suspects)

    def _may_leak(self, told: Losses) -> bool:
        charge = told.charge
        since, _ = self._period()
        # One that was made before may have failed since: then less is due than before, not more.
        is_refunded = any(each.seen_at.timestamp() >= since for each in told.refunds)
        disputed = sum(leaks.lost(charge, each) for each in told.disputes)
        if not (is_refunded or disputed or leaks.unclear(told)):
            return False
        if leaks.unclear(told) or (self.run.since is not None and charge.created_at < self.run.since):
            # Its transfers may be older than what was seen: Stripe is asked for them.
            return True
        total = min(charge.amount_refunded + disputed, charge.amount)
        seen = {each.stripe_id: each for each in self.run.subjects.filter(source_transaction=charge.stripe_charge_id)}
        if charge.transfer_group:
            seen |= {each.stripe_id: each for each in self.run.subjects.filter(transfer_group=charge.transfer_group)}
        return bool(leaks.of_history(charge, total, [paid_as_seen(each) for each in seen.values()]))

    # --- Our rows ---------------------------------------------------------------------------------------------

    def note_unlisted(self) -> None:
        """Those that Stripe has not shown are asked for one by one, by the second look."""
        after = int(self.run.cursor or 0)
        found = rows.unseen(self.run.pk, since=self.run.since, after=after, limit=LARGEST_PAGE)
        self._note([], {stripe_id for _, stripe_id in found})
        self._done(str(found[-1][0]) if len(found) == LARGEST_PAGE else "", {"rows_not_listed": len(found)})

    def note_unlisted_refunds(self) -> None:
        """Their charges are asked for, with all their refunds, by the second look."""
        after = int(self.run.cursor or 0)
        found = rows.unseen_refunds(self.run, after=after, limit=LARGEST_PAGE)
        self._note([], {charge for _, charge in found})
        self._done(str(found[-1][0]) if len(found) == LARGEST_PAGE else "", {"rows_not_listed": len(found)})

    def look_again(self) -> None:
        self._look(is_last=False)

    def look_once_more(self) -> None:
        """At what moved then: a row that somebody wrote since it was noted need not be right by now."""
        self._look(is_last=True)

    def _look(self, *, is_last: bool) -> None:
        suspects = self.run.subjects.filter(is_suspect=True, pk__gt=int(self.run.cursor or 0)).order_by("pk")
        subject = suspects.first()
        if subject is None:
            self._done("", {})
            return
        time.sleep(max((subject.noted_at + self.patience - rows.now()).total_seconds(), 0))
        counts = {"looked_at_again": 1}
        found: list[ReconciliationFinding] = []
        is_moving = False
        try:
            found = SecondLook(reader=self._reader, is_fixing=self.is_fixing).at(subject)
        except InMotion:
            is_moving = True
            counts |= {"in_motion": 1} if is_last else {}
        self._done(str(subject.pk), counts, found, looked_at=subject.pk, is_moving=is_moving)

    def look_at_own(self) -> None:
        self._done("", {}, stuck.findings())

    # --- What is done -----------------------------------------------------------------------------------------

    def _period(self, *, before: timedelta = timedelta(0)) -> tuple[int, int]:
        """Stripe's, in seconds; from so long ``before`` on."""
        since = 0 if self.run.since is None else max(int((self.run.since - before).timestamp()), 0)
        return since, int(self.run.until.timestamp())

    def _note(self, seen: Iterable[ReconciliationSubject], suspects: set[str]) -> None:
        """What was noted before stays; a suspicion is noted anew. Done twice it is the same."""
        bare = (ReconciliationSubject(run=self.run, stripe_id=each) for each in suspects)
        with transaction.atomic(durable=True):
            ReconciliationSubject.objects.bulk_create([*seen, *bare], ignore_conflicts=True)
            if suspects:
                self.run.subjects.filter(stripe_id__in=suspects).update(is_suspect=True, noted_at=Now())

    def _done(
        self,
        cursor: str,
        counts: Mapping[str, int],
        found: Iterable[ReconciliationFinding] = (),
        *,
        looked_at: int = 0,
        is_moving: bool = False,
    ) -> None:
        """Move the run on, to the next step where ``cursor`` is empty, with what was ``found``. The subject that was
        ``looked_at`` is suspect no more, or is noted anew where it ``is_moving``. Committed on return.
        """
        run = self.run
        names = list(STEPS)
        step = run.step if cursor else names[min(names.index(run.step) + 1, len(names) - 1)]
        is_last = not cursor and run.step == names[-1]
        total = Counter(run.counts) + Counter(counts) + Counter(requests=self._reader.taken())
        with transaction.atomic(durable=True):
            here = Reconciliation.objects.filter(pk=run.pk, step=run.step, cursor=run.cursor, finished_at=None)
            fields = {"step": step, "cursor": cursor, "counts": dict(total)}
            if not here.update(**fields, **({"finished_at": Now()} if is_last else {})):
                raise TakenOver
            ReconciliationFinding.objects.bulk_create(_of(run, found), batch_size=LARGEST_PAGE)
            if looked_at:
                run.subjects.filter(pk=looked_at).update(is_suspect=is_moving, noted_at=Now())
            if is_last:
                run.subjects.all().delete()
        run.refresh_from_db()


def _of(run: Reconciliation, found: Iterable[ReconciliationFinding]) -> Iterable[ReconciliationFinding]:
    for each in found:
        each.run = run
        yield each


def _with(
    told: Mapping[str, Losses],
    charge: ChargeFacts,
    *,
    refund: RefundFacts | None = None,
    dispute: DisputeFacts | None = None,
) -> Losses:
    before = told.get(charge.stripe_charge_id, Losses(charge=charge))
    return Losses(
        charge=charge,
        refunds=[*before.refunds, *([refund] if refund is not None else [])],
        disputes=[*before.disputes, *([dispute] if dispute is not None else [])],
    )


STEPS: Mapping[str, Callable[[Reconciler], None]] = {
    "transfers": Reconciler.compare_transfers,
    "reversals": Reconciler.compare_reversals,
    "refunds": Reconciler.weigh_refunds,
    "disputes": Reconciler.weigh_disputes,
    "rows": Reconciler.note_unlisted,
    "refund_rows": Reconciler.note_unlisted_refunds,
    "looking_again": Reconciler.look_again,
    "looking_once_more": Reconciler.look_once_more,
    "own": Reconciler.look_at_own,
}
