"""The admin's start page: how it stands with the money, and whether all goes on; each figure links to its rows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Model, TextChoices
from django.http import HttpRequest
from django.urls import reverse
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from marketplace import overview, selectors
from marketplace.admin.base import colour
from marketplace.models import (
    CircuitBreaker,
    Debt,
    Dispute,
    Refund,
    RequestAllowance,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
    WorkerHeartbeat,
)
from marketplace.money import Money
from marketplace.overview import AGES, Attempts, Lately, Outcome, Owed, Waiting
from marketplace.states import EventStatus, RefundStatus, ReversalStatus, TransferStatus

AGE_LABELS: Mapping[str, Any] = {
    "1h": gettext_lazy("up to an hour"),
    "1d": gettext_lazy("up to a day"),
    "7d": gettext_lazy("up to 7 days"),
    "30d": gettext_lazy("up to 30 days"),
    "older": gettext_lazy("longer"),
}


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's DASHBOARD_CALLBACK: what ``request.user`` may see, and no question is asked for the rest."""
    now = selectors.now()

    def may_see(*models: type[Model]) -> bool:
        return all(request.user.has_perm(f"marketplace.view_{model._meta.model_name}") for model in models)

    waiting = overview.waiting() if may_see(SellerTransfer) else []
    owing = overview.owed() if may_see(TransferReversal) else []
    lately = overview.lately(now) if may_see(TransferReversal) else None
    cards = []
    if may_see(SellerTransfer):
        cards += _transfer_cards(waiting, now)
    if may_see(Refund):
        cards.append(_refund_card(now))
    if may_see(Dispute):
        cards.append(_dispute_card())
    if may_see(WebhookEvent):
        cards.append(_event_card(now))
    if may_see(Debt):
        cards.append(_debt_card(owing if may_see(TransferReversal) else overview.owed(), now))
    return {
        **context,
        "title": _("Overview"),
        "cards": cards,
        "reasons": _reasons(waiting),
        "money": _money(owing, lately, now) if lately else None,
        "charts": [_hours(lately), _days(lately)] if lately else [],
        "workers": overview.workers() if may_see(WorkerHeartbeat) else None,
        "breakers": overview.breakers() if may_see(CircuitBreaker) else None,
        "allowances": overview.allowances() if may_see(RequestAllowance) else None,
        "now": now,
    }


def rows_of(model: type[Model], **wanted: str | Sequence[str]) -> str:
    """The address of the list of such rows."""
    listing = reverse(f"admin:marketplace_{model._meta.model_name}_changelist")
    return f"{listing}?{urlencode(wanted, doseq=True)}" if wanted else listing


# --- What waits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number that somebody may have to do something about."""

    title: str
    count: int
    colour: str
    status: str
    facts: str
    href: str
    # The row that has been due for the longest.
    oldest: str = ""
    oldest_href: str = ""


def _transfer_cards(waiting: Sequence[Waiting], now: datetime) -> list[Card]:
    titles = (
        (TransferStatus.PERMANENTLY_FAILED, ngettext_lazy("needs a person", "need a person", "count"), ""),
        (TransferStatus.REVERSAL_PENDING, ngettext_lazy("reversal owed", "reversals owed", "count"), "reversing"),
        (TransferStatus.PENDING, _("being sent"), ""),
        (TransferStatus.FAILED, _("sent again later"), "sending"),
    )
    return [
        _card(SellerTransfer, status, title, [each for each in waiting if each.status == status], now, queue=queue)
        for status, title, queue in titles
    ]


def _refund_card(now: datetime) -> Card:
    asked = [each for each in overview.open_refunds() if each.status == RefundStatus.REQUESTED]
    title = ngettext_lazy("refund Stripe has not answered", "refunds Stripe has not answered", "count")
    return _card(Refund, RefundStatus.REQUESTED, title, asked, now, queue="refunding")


def _dispute_card() -> Card:
    count = selectors.disputes_for_a_person()
    return Card(
        title=ngettext("dispute needs an amount", "disputes need an amount", count),
        count=count,
        colour="danger" if count else "default",
        status=_("another currency"),
        facts=_("sellers bear nothing of them yet") if count else _("nothing waits"),
        href=rows_of(Dispute, state="person"),
    )


def _event_card(now: datetime) -> Card:
    failed = overview.failed_events()
    said = {
        "person": ngettext_lazy("%(count)s needs a person", "%(count)s need a person", "count"),
        "retrying": ngettext_lazy("%(count)s is tried again", "%(count)s are tried again", "count"),
    }
    facts = [str(said[state] % {"count": failed[state]}) for state in said if failed[state]]
    title, count = ngettext_lazy("event that failed", "events that failed", "count"), sum(failed.values())
    return _card(WebhookEvent, EventStatus.FAILED, title, [], now, queue="events", count=count, facts=facts)


def _debt_card(owing: Iterable[Owed], now: datetime) -> Card:
    owed = [each for each in owing if each.status == ReversalStatus.FAILED]
    title = ngettext_lazy("debt of a seller", "debts of sellers", "count")
    return _card(Debt, ReversalStatus.FAILED, title, owed, now, href=rows_of(Debt))


def _card(
    model: type[Model],
    status: TextChoices,
    title: Any,
    groups: Sequence[Any],
    now: datetime,
    *,
    queue: str = "",
    count: int | None = None,
    facts: Sequence[str] = (),
    href: str = "",
) -> Card:
    number = sum(group.count for group in groups) if count is None else count
    oldest = overview.longest_waiting(queue) if queue and number else None
    is_late = oldest is not None and oldest[1] < now
    said = [*facts, *sums(groups)] or [_("nothing waits")]
    return Card(
        # One that depends on a number asks for it.
        title=str(title % {"count": number}),
        count=number,
        colour=colour(status) if number else "default",
        status=str(status.label),
        facts=" · ".join(said),
        href=href or rows_of(model, status__exact=status.value),
        oldest=_("%(row)s, due for %(time)s") % {"row": oldest[0], "time": timesince(oldest[1], now)}
        if oldest and is_late
        else "",
        oldest_href=reverse(f"admin:marketplace_{model._meta.model_name}_change", args=[oldest[0].pk])
        if oldest and is_late
        else "",
    )


def sums(groups: Iterable[Any]) -> list[str]:
    """Money of each currency, for people."""
    found: dict[str, int] = {}
    for group in groups:
        found[group.currency] = found.get(group.currency, 0) + group.amount
    return [str(Money(amount, currency)) for currency, amount in sorted(found.items())]


@dataclass(frozen=True, kw_only=True)
class Reason:
    status: TransferStatus
    colour: str
    code: str
    count: int
    facts: str
    href: str


def _reasons(waiting: Sequence[Waiting]) -> list[Reason]:
    """By status and last error, the most frequent first."""
    groups: dict[tuple[str, str], list[Waiting]] = {}
    for each in waiting:
        groups.setdefault((each.status, each.code), []).append(each)
    found = [
        Reason(
            status=TransferStatus(status),
            colour=colour(TransferStatus(status)),
            code=code,
            count=sum(each.count for each in group),
            facts=" · ".join(sums(group)),
            href=rows_of(SellerTransfer, status__exact=status, **({"last_error_code__exact": code} if code else {})),
        )
        for (status, code), group in groups.items()
    ]
    return sorted(found, key=lambda reason: -reason.count)[:12]


# --- The money --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """Money of one kind: ``waiting`` and ``person`` are its shares of the largest line, in percent."""

    label: Any
    count: int
    amount: Money
    waiting: int
    person: int
    href: str


@dataclass(frozen=True, kw_only=True)
class Outstanding:
    currency: str
    total: Money
    count: int
    by_age: list[Line] = field(default_factory=list)
    by_cause: list[Line] = field(default_factory=list)


def _money(owing: Sequence[Owed], lately: Lately, now: datetime) -> dict[str, Any]:
    return {
        "outstanding": [_outstanding(owing, currency, now) for currency in sorted({each.currency for each in owing})],
        "outcomes": [_outcome(each) for each in overview.outcomes(owing, lately.days, overview.given_back(now))],
        "times": [
            (_("in %(hours)s hours") % {"hours": overview.HOURS}, lately.recovery_time_of_hours()),
            (_("in %(days)s days") % {"days": overview.DAYS}, lately.recovery_time_of_days()),
        ],
        "days": overview.DAYS,
    }


def _outstanding(owing: Sequence[Owed], currency: str, now: datetime) -> Outstanding:
    ours = [each for each in owing if each.currency == currency]
    open_ones = {"status__exact": [ReversalStatus.PENDING.value, ReversalStatus.FAILED.value]}
    of_currency = {**open_ones, "currency__exact": currency}
    by_age = [
        (AGE_LABELS[age], [each for each in ours if each.age == age], {**of_currency, **_created(age, now)})
        for age in AGES
    ]
    by_cause = [
        (cause.label, [each for each in ours if each.cause == cause], {**of_currency, "cause__exact": cause.value})
        for cause in TransferReversal.Cause
    ]
    return Outstanding(
        currency=currency,
        total=Money(sum(each.amount for each in ours), currency),
        count=sum(each.count for each in ours),
        by_age=_lines(by_age, currency),
        by_cause=[line for line in _lines(by_cause, currency) if line.count],
    )


def _created(age: str, now: datetime) -> dict[str, str]:
    """The list's filter for what was owed at such an age."""
    limits = list(AGES)
    until = AGES[age]
    younger = AGES[limits[limits.index(age) - 1]] if age != limits[0] else timedelta(0)
    found: dict[str, str] = {}
    if until is not None:
        found |= _moment("created_at_from", now - until)
    if younger:
        found |= _moment("created_at_to", now - younger)
    return found


def _moment(name: str, moment: datetime) -> dict[str, str]:
    return {f"{name}_0": f"{moment:%Y-%m-%d}", f"{name}_1": f"{moment:%H:%M:%S}"}


def _lines(kinds: Sequence[tuple[Any, Sequence[Owed], Mapping[str, Any]]], currency: str) -> list[Line]:
    largest = max((sum(each.amount for each in groups) for _label, groups, _wanted in kinds), default=0) or 1
    lines = []
    for label, groups, wanted in kinds:
        amount = sum(each.amount for each in groups)
        waiting = sum(each.amount for each in groups if each.status == ReversalStatus.PENDING)
        lines.append(
            Line(
                label=label,
                count=sum(each.count for each in groups),
                amount=Money(amount, currency),
                waiting=_percent(waiting, largest),
                person=_percent(amount - waiting, largest),
                href=rows_of(TransferReversal, **wanted),
            )
        )
    return lines


def _percent(part: int, whole: int) -> int:
    """Whole percent; what is there at all is seen."""
    return max(100 * part // whole, 2) if part else 0


def _outcome(outcome: Outcome) -> dict[str, Any]:
    def money(amount: int) -> Money:
        return Money(amount, outcome.currency)

    reversals = {"currency__exact": outcome.currency}
    return {
        "currency": outcome.currency.upper(),
        "recovered": money(outcome.recovered),
        "recovered_count": outcome.recovered_count,
        "recovered_href": rows_of(TransferReversal, status__exact=ReversalStatus.SUCCEEDED.value, **reversals),
        "settled": money(outcome.settled),
        "settled_count": outcome.settled_count,
        "given_back": money(outcome.given_back),
        "given_back_count": outcome.given_back_count,
        "lost": money(outcome.written_off),
        "lost_count": outcome.written_off_count,
        "waiting": money(outcome.waiting),
        "waiting_count": outcome.waiting_count,
        "waiting_href": rows_of(TransferReversal, status__exact=ReversalStatus.PENDING.value, **reversals),
        "person": money(outcome.needs_person),
        "person_count": outcome.person_count,
        "person_href": rows_of(TransferReversal, status__exact=ReversalStatus.FAILED.value, **reversals),
    }


# --- What happened ----------------------------------------------------------------------------------------------------


def _hours(lately: Lately) -> dict[str, Any]:
    title = _("Attempts by the hour")
    return _chart(title, lately.attempts_by_hour(), "%H:00", _("Of the last %(n)s hours, UTC.") % {"n": overview.HOURS})


def _days(lately: Lately) -> dict[str, Any]:
    said = _("Of the last %(n)s days, UTC.") % {"n": overview.DAYS}
    return _chart(_("Attempts by the day"), lately.attempts_by_day(), "%-d %b", said)


def _chart(title: str, attempts: Sequence[Attempts], times: str, period: str) -> dict[str, Any]:
    succeeded, failed = (sum(getattr(each, name) for each in attempts) for name in ("succeeded", "failed"))
    tried = succeeded + failed
    rate = _("%(rate)s %% of %(tried)s attempts failed.") % {
        "rate": f"{100 * failed / (tried or 1):.1f}",
        "tried": tried,
    }
    bars = {
        "labels": [each.at.strftime(times) for each in attempts],
        "datasets": [
            {
                "label": _("confirmed by Stripe"),
                "data": [each.succeeded for each in attempts],
                "backgroundColor": "#22c55e",
                "stack": "attempts",
                "displayYAxis": True,
                "maxTicksXLimit": 12,
            },
            {
                "label": _("failed attempts"),
                "data": [each.failed for each in attempts],
                "backgroundColor": "#ef4444",
                "stack": "attempts",
            },
        ],
    }
    return {
        "title": title,
        "said": f"{period} {rate}" if tried else period,
        "is_empty": not tried,
        "data": json.dumps(bars),
        "attempts": [(each.at.strftime(times), each) for each in attempts],
    }
