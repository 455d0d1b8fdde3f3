import json
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter
from unfold.decorators import action
from unfold.enums import ActionVariant

from marketplace import inbox
from marketplace.admin.asking import Asking, ReasonForm
from marketplace.admin.base import GrowingAdmin, MomentsFilter, WholeTextFilter, code, label, moment
from marketplace.admin.history import EventHistoryInline
from marketplace.errors import MarketplaceError
from marketplace.models import WebhookEvent
from marketplace.states import EventStatus


@admin.register(WebhookEvent)
class WebhookEventAdmin(Asking, GrowingAdmin):
    open_statuses = (EventStatus.FAILED,)
    sorted_when_open = ("due",)
    list_display = ("event", "status_label", "type", "outcome", "due", "received")
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("type", WholeTextFilter),
        ("received_at", MomentsFilter),
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
                    ("retry_count", "next_retry_at", "replay_count"),
                    ("last_error_code", "last_error_at"),
                    "last_error_message",
                )
            },
        ),
        (_("As Stripe signed it"), {"fields": ("payload_shown",)}),
    )
    readonly_fields = ("status_label", "mode", "payload_shown", "replay_count")
    actions = ("replay_selected",)
    actions_detail = ("replay_one",)
    inlines = (EventHistoryInline,)

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

    # --- What an operator may do ----------------------------------------------------------------------------

    def has_replay_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.replay_webhookevent")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """Only where it could do something."""
        event = self.get_object(request, str(object_id))
        if event is None or event.status == EventStatus.PROCESSED:
            return []
        return super().get_actions_detail(request, object_id)

    @action(description=_("Replay selected events"), permissions=["replay"], icon="replay")
    def replay_selected(self, request: HttpRequest, rows: QuerySet[WebhookEvent]) -> HttpResponse | None:
        chosen = self.chosen(request, rows)
        if not chosen:
            return None
        form = ReasonForm(request.POST if "apply" in request.POST else None)
        if form.is_valid():
            self._replay(request, chosen, form.cleaned_data["reason"])
            return None
        return self.ask(request, form, chosen, title=gettext("Replay webhook events"), submit=gettext("Replay"))

    @action(
        description=_("Replay"),
        permissions=["replay"],
        url_path="replay_one",
        icon="replay",
        variant=ActionVariant.PRIMARY,
    )
    def replay_one(self, request: HttpRequest, object_id: int) -> HttpResponse:
        event = self.get_object(request, str(object_id))
        if event is None:
            return self.back(None)
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            self._replay(request, [event], form.cleaned_data["reason"])
            return self.back(event)
        title = gettext("Replay %(event)s") % {"event": event}
        return self.ask(request, form, [event], title=title, submit=gettext("Replay"))

    def asked_about(self, row: WebhookEvent) -> dict[str, Any]:
        return {
            gettext("Event"): row,
            gettext("Status"): self.status_label(row),
            gettext("Type"): row.type,
            gettext("Outcome"): row.outcome,
        }

    def _replay(self, request: HttpRequest, rows: list[WebhookEvent], reason: str) -> None:
        """Each by itself, and each says what became of it."""
        for row in rows:
            try:
                now = inbox.replay(event_id=row.pk, actor=f"user:{request.user.get_username()}", reason=reason)
            except MarketplaceError as refusal:
                self.message_user(request, refusal.message, messages.WARNING)
            else:
                level = messages.SUCCESS if now.status == EventStatus.PROCESSED else messages.WARNING
                self.message_user(request, f"{now}: {EventStatus(now.status).label}, {now.outcome}", level)
