"""The card on top of a transfer's page: why it is where it is, and what may be done about it now."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import F, Window
from django.db.models.functions import Lag
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from markdown_it import MarkdownIt
from markdown_it.token import Token

from marketplace.admin.base import label, link, money
from marketplace.explain import runbook, transfers
from marketplace.explain.shapes import Action, Explanation, Kind, Owed
from marketplace.explain.words import moment, span
from marketplace.models import Dispute, Refund, SellerTransfer
from marketplace.state_picture import picture
from marketplace.states import TransferStatus

# Blue: it moves. Orange: it waits by itself. Red: nothing moves before somebody acts. Green: nothing is to be done.
COLOURS: Mapping[Kind, str] = {
    Kind.IN_HAND: "info",
    Kind.QUEUED: "info",
    Kind.BACKOFF: "warning",
    Kind.WAITING_FOR_FUNDS: "warning",
    Kind.PENDING_AT_STRIPE: "warning",
    Kind.KEY_RESTS: "warning",
    Kind.POSTPONED: "warning",
    Kind.SCHEDULED: "warning",
    Kind.BREAKER_OPEN: "danger",
    Kind.NO_WORKER: "danger",
    Kind.SWITCHED_OFF: "danger",
    Kind.NEEDS_A_PERSON: "danger",
    Kind.AT_REST: "success",
}
# Where the page asks whether anything is new: often while something may happen at any moment.
SOON = timedelta(minutes=1)
OFTEN_SECONDS, RARELY_SECONDS = 2, 15
# More of the history are shown on demand.
FIRST_ENTRIES = 30
MOST_ENTRIES = 2000
# Entries of the history that leave the status as it was.
STAYS = {"attempt": gettext_lazy("stays"), "woken": gettext_lazy("tried now")}
PASSED = {"ago": gettext_lazy("%(span)s ago"), "for": gettext_lazy("for %(span)s")}
# Where each action is asked for, and confirmed with a reason.
ADDRESSES = {
    "retry": "sellertransfer_retry_one",
    "try_now": "sellertransfer_try_now",
    "enter_transfer_id": "sellertransfer_enter_transfer_id",
    "decline": "sellertransfer_decline",
    "write_off": "debt_write_off",
}


def context(request: HttpRequest, transfer: SellerTransfer) -> dict[str, Any]:
    """What the card's template shows to ``request.user``."""
    explanation = transfers.explain(transfer, user=request.user)
    limit = MOST_ENTRIES if request.GET.get("history") == "all" else FIRST_ENTRIES
    history: Any = transfer.history  # type: ignore[attr-defined]  # pghistory adds it
    return {
        "why": explanation,
        "why_about": [money(transfer.amount, transfer.currency), link(transfer.seller), link(transfer.order)],
        "why_colour": COLOURS[explanation.kind],
        "why_version": version(transfer, explanation),
        "why_poll_seconds": poll_seconds(explanation),
        "why_poll": reverse("admin:marketplace_sellertransfer_why", args=[transfer.pk]),
        "why_since": explanation.since and relative(explanation.since, passed="for"),
        "why_next": explanation.next_attempt and relative(explanation.next_attempt.at),
        "why_until": explanation.until and relative(explanation.until),
        "why_key_used": explanation.key and explanation.key.first_used_at and relative(explanation.key.first_used_at),
        "why_key_reused": explanation.key and explanation.key.reused_until and relative(explanation.key.reused_until),
        "why_attempts": [(each, exact(each.at)) for each in explanation.attempts],
        "why_owed": [_owed(each) for each in explanation.owed],
        "why_allowed": [_button(transfer, each) for each in explanation.actions if each.is_allowed],
        "why_refused": [each for each in explanation.actions if not each.is_allowed],
        "why_runbook": rendered(explanation.runbook),
        "why_picture": mark_safe(picture(transfer.status)),  # noqa: S308 - made of our own constants
        "timeline": [(each, _step(each), exact(each.pgh_created_at)) for each in _timeline(history, limit)],
        "timeline_left": max(history.count() - limit, 0),
    }


def relative(time: datetime, *, passed: str = "ago") -> SafeString:
    """How far away, which the page's script keeps true; the moment itself as its title. ``passed``: "for" or "ago"."""
    distance = time - timezone.now()
    said = _("in %(span)s") if distance > timedelta(0) else PASSED[passed]
    shown = said % {"span": span(abs(distance))}
    return format_html(
        '<time datetime="{}" title="{}" data-relative="{}">{}</time>', _iso(time), moment(time), passed, shown
    )


def exact(time: datetime) -> SafeString:
    shown = time.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    return format_html('<time datetime="{}">{}</time>', _iso(time), shown)


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()


def _step(entry: Any) -> SafeString:
    """From which status to which."""
    after = label(TransferStatus(entry.status))
    if entry.pgh_label in STAYS:
        return format_html("{} <span>{}</span>", after, STAYS[entry.pgh_label])
    if not entry.status_before or entry.status_before == entry.status:
        return after
    return format_html("{} → {}", label(TransferStatus(entry.status_before)), after)


def version(transfer: SellerTransfer, explanation: Explanation) -> str:
    """Another one as soon as anything is shown otherwise; the mere passing of time makes none."""
    told = asdict(explanation)
    key = told["key"]
    for name in ("now", "key"):
        del told[name]
    if key is not None:
        del key["age"]
    return hashlib.sha256(repr((transfer.updated_at, told, key)).encode()).hexdigest()[:16]


def poll_seconds(explanation: Explanation) -> int:
    """How often to ask for news; 0 where none is to be expected."""
    if not explanation.is_in_motion:
        return 0
    attempt = explanation.next_attempt
    is_soon = attempt is None or attempt.at - explanation.now < SOON
    return OFTEN_SECONDS if is_soon else RARELY_SECONDS


def rendered(heading: str) -> SafeString:
    """The runbook's entry as HTML. Its links lead to pages that are not served here, so only their words stay."""
    if not heading:
        return SafeString("")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(runbook.entries()[heading])
    for token in tokens:
        if token.children:
            token.children = [child for child in token.children if not _is_link(child)]
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return mark_safe(html)  # noqa: S308 - HTML in it is escaped


def _is_link(token: Token) -> bool:
    return token.type in {"link_open", "link_close"}


def _button(transfer: SellerTransfer, action: Action) -> dict[str, Any]:
    href = reverse(f"admin:marketplace_{ADDRESSES[action.name]}", args=[action.debt or transfer.pk])
    is_danger = action.name in {"decline", "write_off"}
    return {"title": action.title, "href": href, "variant": "danger" if is_danger else "primary", "name": action.name}


def _owed(owed: Owed) -> dict[str, Any]:
    source: Refund | Dispute | None = None
    if owed.refund is not None:
        source = Refund(pk=owed.refund)
    elif owed.dispute is not None:
        source = Dispute(pk=owed.dispute)
    return {
        "row": owed,
        "money": money(owed.amount, owed.currency),
        "behind": link(source) if source is not None else owed.cause.replace("_", " "),
    }


def _timeline(history: Any, limit: int) -> list[Any]:
    before = Window(Lag("status"), partition_by=[F("pgh_obj_id")], order_by=F("pgh_id").asc())
    return list(history.annotate(status_before=before).order_by("-pgh_id")[:limit])
