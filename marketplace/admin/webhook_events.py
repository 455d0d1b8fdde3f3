import json
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter, FieldTextFilter, RangeDateTimeFilter

from marketplace.admin.base import ReadOnlyAdmin, code, label, moment
from marketplace.models import WebhookEvent
from marketplace.states import EventStatus


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnlyAdmin):
    list_display = ("event", "status_label", "type", "outcome", "due", "received")
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("type", FieldTextFilter),
        ("received_at", RangeDateTimeFilter),
    )
    search_fields = ("stripe_event_id__exact", "type__exact", "stripe_account_id__exact")
    search_help_text = _("evt_…, a type or acct_…, whole")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_label", "type"),
                    ("stripe_event_id", "stripe_account_id"),
                    "outcome",
                    ("stripe_created_at", "received_at"),
                    ("api_version", "mode"),
                )
            },
        ),
        (
            _("The worker"),
            {
                "fields": (
                    ("retry_count", "next_retry_at"),
                    ("last_error_code", "last_error_at"),
                    "last_error_message",
                )
            },
        ),
        (_("As Stripe signed it"), {"fields": ("payload_shown",)}),
    )
    readonly_fields = ("status_label", "mode", "payload_shown")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer("payload")

    @admin.display(description=_("event"), ordering="id")
    def event(self, event: WebhookEvent) -> SafeString | str:
        return code(event.stripe_event_id)

    @admin.display(description=_("status"), ordering="status")
    def status_label(self, event: WebhookEvent) -> SafeString:
        return label(EventStatus(event.status))

    @admin.display(description=_("received at"), ordering="received_at")
    def received(self, event: WebhookEvent) -> SafeString | str:
        return moment(event.received_at)

    @admin.display(description=_("mode"))
    def mode(self, event: WebhookEvent) -> Any:
        return _("live") if event.livemode else _("test")

    @admin.display(description=_("payload"))
    def payload_shown(self, event: WebhookEvent) -> SafeString:
        text = json.dumps(event.payload, indent=2, ensure_ascii=False)
        return format_html('<pre class="font-mono text-xs whitespace-pre-wrap break-words">{}</pre>', text)
