"""The timeline of a row, as the database's triggers wrote it."""

from typing import Any

from django.apps import apps
from django.contrib import admin
from django.db.models import F, Window
from django.db.models.functions import Lag
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from marketplace.admin.base import OwnedInline, label, word
from marketplace.states import BulkRetryStatus, EventStatus, RefundStatus, ReversalStatus


class HistoryInline(OwnedInline):
    """Newest first: when, from which status to which, by whom, why, which attempt, and what went wrong."""

    fk_name = "pgh_obj"
    verbose_name_plural = _("history")
    fields: tuple[str, ...] = ("when", "step", "actor", "reason", "attempt")
    readonly_fields: tuple[str, ...] = fields
    per_page = 20
    statuses: Any

    def get_queryset(self, request: HttpRequest) -> Any:
        before = Window(Lag("status"), partition_by=[F("pgh_obj_id")], order_by=F("pgh_id").asc())
        return super().get_queryset(request).annotate(status_before=before).order_by("-pgh_id")

    @admin.display(description=_("when"))
    def when(self, entry: Any) -> SafeString:
        moment = entry.pgh_created_at.isoformat(sep=" ", timespec="milliseconds")
        return format_html('<span class="tabular-nums whitespace-nowrap">{}</span>', moment.removesuffix("+00:00"))

    @admin.display(description=_("step"))
    def step(self, entry: Any) -> SafeString:
        after = self.shown(entry.status)
        if entry.pgh_label == "attempt":
            return format_html('{} <span class="whitespace-nowrap">{}</span>', after, _("stays"))
        if not entry.status_before or entry.status_before == entry.status:
            return after
        before = self.shown(entry.status_before)
        return format_html('<span class="whitespace-nowrap">{} → {}</span>', before, after)

    def shown(self, status: str) -> SafeString:
        return label(self.statuses(status))

    @admin.display(description=_("by"))
    def actor(self, entry: Any) -> str:
        return str((entry.pgh_context or {}).get("actor") or "-")

    @admin.display(description=_("why"))
    def reason(self, entry: Any) -> str:
        return str((entry.pgh_context or {}).get("reason") or "-")

    @admin.display(description=_("attempt"))
    def attempt(self, entry: Any) -> str:
        number = (entry.pgh_context or {}).get("attempt")
        return "-" if number is None else str(number)


class WorkHistoryInline(HistoryInline):
    fields = (*HistoryInline.fields, "error")
    readonly_fields = fields

    @admin.display(description=_("error"))
    def error(self, entry: Any) -> SafeString | str:
        if not entry.last_error_code:
            return "-"
        return format_html(
            '<span title="{}"><b>{}</b> {}</span>',
            entry.last_error_request_id,
            entry.last_error_code,
            entry.last_error_message,
        )


class RefundHistoryInline(WorkHistoryInline):
    model = apps.get_model("marketplace", "RefundHistory")
    statuses = RefundStatus


class DisputeHistoryInline(HistoryInline):
    model = apps.get_model("marketplace", "DisputeHistory")

    def shown(self, status: str) -> SafeString:
        return word(status)


class ReversalHistoryInline(HistoryInline):
    model = apps.get_model("marketplace", "TransferReversalHistory")
    statuses = ReversalStatus


class BulkRetryHistoryInline(HistoryInline):
    model = apps.get_model("marketplace", "BulkRetryHistory")
    statuses = BulkRetryStatus
    fields = ("when", "step", "actor", "reason")
    readonly_fields = fields


class MessageHistoryInline(HistoryInline):
    """What a person had sent again: by whom, and why."""

    model = apps.get_model("marketplace", "NoticeMessageHistory")
    verbose_name_plural = _("sent again")
    fields = ("when", "actor", "reason")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> Any:
        # It has no status: what counts is that a person asked.
        return OwnedInline.get_queryset(self, request).order_by("-pgh_id")


class EventHistoryInline(HistoryInline):
    """Empty before a person has it replayed."""

    model = apps.get_model("marketplace", "WebhookEventHistory")
    statuses = EventStatus
    fields = ("when", "step", "actor", "reason")
    readonly_fields = fields
