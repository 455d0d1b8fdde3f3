"""The admin's front page: what waits, and for whom."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Model, TextChoices
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.timesince import timesince
from django.utils.translation import gettext as _

from marketplace import selectors
from marketplace.admin.base import colour
from marketplace.models import Refund, SellerTransfer, WebhookEvent
from marketplace.money import Money
from marketplace.states import EventStatus, RefundStatus, TransferStatus


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's DASHBOARD_CALLBACK: cards of what ``request.user`` may see."""
    cards = []
    if _may_see(request, SellerTransfer):
        tallies = selectors.tallies(SellerTransfer)
        cards += [
            _transfers(tallies, TransferStatus.PERMANENTLY_FAILED, _("need a person")),
            _transfers(tallies, TransferStatus.REVERSAL_PENDING, _("reversals owed"), "reversing"),
            _transfers(tallies, TransferStatus.FAILED, _("sent again later"), "sending"),
        ]
    if _may_see(request, Refund):
        waiting = [tally for tally in selectors.tallies(Refund) if tally.status == RefundStatus.REQUESTED]
        cards.append(_card(Refund, RefundStatus.REQUESTED, _("refunds Stripe has not answered"), waiting, "refunding"))
    if _may_see(request, WebhookEvent):
        failed = selectors.events_by_status()[EventStatus.FAILED]
        cards.append(_card(WebhookEvent, EventStatus.FAILED, _("events that failed"), [], "events", count=failed))
    return {**context, "cards": cards}


def _may_see(request: HttpRequest, model: type[Model]) -> bool:
    return request.user.has_perm(f"marketplace.view_{model._meta.model_name}")


def _transfers(
    tallies: list[selectors.Tally], status: TextChoices, title: str, queue: str | None = None
) -> Mapping[str, Any]:
    return _card(SellerTransfer, status, title, [tally for tally in tallies if tally.status == status], queue)


def _card(
    model: type[Model],
    status: TextChoices,
    title: str,
    tallies: list[selectors.Tally],
    queue: str | None,
    *,
    count: int | None = None,
) -> Mapping[str, Any]:
    number = sum(tally.count for tally in tallies) if count is None else count
    due = selectors.longest_due(queue) if queue and number else None
    is_late = due is not None and due < timezone.now()
    facts = [str(Money(tally.amount_outstanding, tally.currency)) for tally in tallies]
    if due is not None and is_late:
        facts.append(_("due for %(time)s") % {"time": timesince(due)})
    listing = reverse(f"admin:marketplace_{model._meta.model_name}_changelist")
    return {
        "title": title,
        "count": number,
        "colour": colour(status) if number else "default",
        "status": status.label,
        "facts": " · ".join(facts if number else [_("nothing waits")]),
        "href": f"{listing}?status__exact={status.value}",
    }
