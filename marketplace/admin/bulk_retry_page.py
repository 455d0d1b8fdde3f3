"""What the page of a bulk retry says: where it stands, what has to happen next, and the result of each transfer."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.core.paginator import Paginator
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy, ngettext

from marketplace import selectors
from marketplace.admin.base import colour, label, link, moment, money
from marketplace.models import BulkRetry, BulkRetryItem
from marketplace.money import Money
from marketplace.services import bulk_retries, bulk_steps
from marketplace.states import BulkRetryItemStatus, BulkRetryStatus

ROWS_PER_PAGE = 50
BARS = {
    "success": "bg-green-600",
    "warning": "bg-orange-500",
    "danger": "bg-red-600",
    "info": "bg-blue-500",
    "default": "bg-base-300 dark:bg-base-700",
}


# What tells most comes first: the rest is out of sight on a narrow screen.
COLUMNS: tuple[tuple[Any, Callable[[BulkRetryItem], Any]], ...] = (
    (gettext_lazy("Transfer"), lambda item: link(item.transfer)),
    (gettext_lazy("Result"), lambda item: label(BulkRetryItemStatus(item.status))),
    (gettext_lazy("Amount"), lambda item: money(item.amount, item.currency)),
    (gettext_lazy("Seller"), lambda item: item.transfer.seller),
    (gettext_lazy("Failed with"), lambda item: item.error_code or "-"),
    (gettext_lazy("When"), lambda item: moment(item.settled_at or item.retried_at)),
    (gettext_lazy("Why"), lambda item: item.outcome or "-"),
)


def sums(tallies: list[selectors.BulkTally]) -> list[Money]:
    """By currency."""
    found: dict[str, int] = {}
    for tally in tallies:
        found[tally.currency] = found.get(tally.currency, 0) + tally.amount
    return [Money(amount, currency) for currency, amount in sorted(found.items())]


def live(bulk_retry: BulkRetry, request: HttpRequest) -> dict[str, Any]:
    tallies = selectors.bulk_tallies(bulk_retry)
    by_status = {status: [tally for tally in tallies if tally.status == status] for status in BulkRetryItemStatus}
    counts = {status: sum(tally.count for tally in found) for status, found in by_status.items()}
    result = request.GET.get("result", "")
    result = result if result in BulkRetryItemStatus.values else ""
    rows = bulk_retry.items.select_related("transfer__seller").order_by("position")
    page = Paginator(rows.filter(status=result) if result else rows, ROWS_PER_PAGE).get_page(request.GET.get("page"))
    address = reverse("admin:marketplace_bulkretry_progress", args=[bulk_retry.pk])
    shown = BulkRetryItemStatus(result).label if result else gettext("all")
    is_settling = bulk_retry.status == BulkRetryStatus.STOPPED and counts[BulkRetryItemStatus.RETRIED] > 0
    under_way = {BulkRetryStatus.CANARY, BulkRetryStatus.RUNNING, BulkRetryStatus.AWAITING_APPROVAL}
    return {
        "address": f"{address}?{urlencode({'result': result, 'page': page.number})}",
        "state": bulk_retry.status,
        "is_over": bulk_retry.status not in under_way and not is_settling,
        "status": label(BulkRetryStatus(bulk_retry.status)),
        "summary": _summary(bulk_retry, counts),
        "next": _next(bulk_retry),
        "limits": _limits(bulk_retry),
        "segments": _segments(counts),
        "totals": [
            {"value": status.value, "label": label(status), "count": counts[status], "money": sums(found)}
            for status, found in by_status.items()
            if found
        ],
        "refused": selectors.bulk_outcomes(bulk_retry, BulkRetryItemStatus.REFUSED),
        "result": result,
        "rows_title": gettext("Transfers: %(shown)s") % {"shown": shown},
        "headings": [heading for heading, _cell in COLUMNS],
        "rows": [[cell(item) for _heading, cell in COLUMNS] for item in page],
        "page": page,
    }


def _summary(bulk_retry: BulkRetry, counts: dict[BulkRetryItemStatus, int]) -> str:
    chosen = sum(counts.values()) - counts[BulkRetryItemStatus.REFUSED]
    done = chosen - counts[BulkRetryItemStatus.PLANNED] - counts[BulkRetryItemStatus.RETRIED]
    if bulk_retry.status in {BulkRetryStatus.PLANNED, BulkRetryStatus.AWAITING_APPROVAL, BulkRetryStatus.CANCELED}:
        text = ngettext("%(count)s transfer would be retried.", "%(count)s transfers would be retried.", chosen)
        return text % {"count": chosen}
    if bulk_retry.status in bulk_steps.OPEN and bulk_steps.held_back(bulk_retry):
        return gettext("Paused: Stripe fails for everyone at the moment. It goes on by itself.")
    text = gettext("%(done)s of %(chosen)s done: %(good)s succeeded, %(bad)s failed again, %(open)s open.")
    return text % {
        "done": done,
        "chosen": chosen,
        "good": counts[BulkRetryItemStatus.SUCCEEDED],
        "bad": counts[BulkRetryItemStatus.FAILED],
        "open": counts[BulkRetryItemStatus.RETRIED],
    }


def _next(bulk_retry: BulkRetry) -> str:
    """What has to happen, and by whom."""
    match BulkRetryStatus(bulk_retry.status):
        case BulkRetryStatus.PLANNED:
            over = "; ".join(map(str, bulk_retries.over_limit(bulk_retry)))
            if over:
                return gettext("Nothing is retried yet. Once started, a second person has to approve: %(over)s.") % {
                    "over": over
                }
            return gettext("Nothing is retried yet. Start it within 24 hours of planning.")
        case BulkRetryStatus.AWAITING_APPROVAL:
            over = "; ".join(map(str, bulk_retries.over_limit(bulk_retry)))
            return gettext("A second person has to approve: %(over)s.") % {"over": over}
        case BulkRetryStatus.CANARY:
            return gettext("The canary is retried; the rest waits for what becomes of it.")
        case BulkRetryStatus.RUNNING:
            return gettext("The canary went well; the rest is being retried.")
        case BulkRetryStatus.STOPPED:
            return gettext("Stopped: %(why)s. The rest is untouched.") % {"why": bulk_retry.stop_reason}
        case _:
            return ""


def _limits(bulk_retry: BulkRetry) -> str:
    text = gettext(
        "First %(canary)s, then at most %(pace)s a minute; it stops when more than %(errors)s %% fail again."
    )
    return text % {
        "canary": bulk_retry.canary_size,
        "pace": bulk_retry.per_minute,
        "errors": bulk_retry.max_error_percent,
    }


def _segments(counts: dict[BulkRetryItemStatus, int]) -> list[dict[str, str]]:
    """Of the bar, from what is done to what is not begun. What was refused is no part of it."""
    order = ("SUCCEEDED", "WAITING", "FAILED", "SKIPPED", "RETRIED")
    whole = sum(counts.values()) - counts[BulkRetryItemStatus.REFUSED] or 1
    return [
        {
            "colour": BARS[colour(status)],
            "percent": f"{100 * counts[status] / whole:.2f}",
            "title": f"{status.label}: {counts[status]}",
        }
        for status in (BulkRetryItemStatus[name] for name in order)
        if counts[status]
    ]
