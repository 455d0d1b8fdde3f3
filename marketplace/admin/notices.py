"""What people were told of: each notice with the row that it tells of, and the messages that went out, or did not."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter
from unfold.decorators import action
from unfold.enums import ActionVariant

from marketplace import selectors
from marketplace.admin.asking import Asking, ReasonForm
from marketplace.admin.base import GrowingAdmin, MomentsFilter, link, moment, tag
from marketplace.admin.history import MessageHistoryInline
from marketplace.errors import MarketplaceError
from marketplace.models import Notice, NoticeMessage
from marketplace.services import notices

# On a message's page, of those that it tells of; and on a notice's page, of its messages.
LISTED = 50
OUTCOME_COLOURS = {"sent": "success", "mended": "default", "given_up": "danger"}
ROWS = ("transfer", "event", "bulk_retry", "dispute", "reversal")


def _about(notice: Notice) -> SafeString | str:
    """The row that it tells of."""
    return link(next((row for row in (getattr(notice, name) for name in ROWS) if row is not None), None))


def _with_rows(rows: QuerySet[Notice]) -> QuerySet[Notice]:
    # The payloads of a page of events would be megabytes.
    return rows.select_related(*ROWS, "seller").defer("event__payload")


def _lines(links: list[Any]) -> SafeString | str:
    return format_html_join("", "<div>{}</div>", ((each,) for each in links)) or "-"


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, Any]]:
        return [("waiting", _("waiting")), *NoticeMessage.Outcome.choices]

    def queryset(self, _request: HttpRequest, rows: QuerySet[NoticeMessage]) -> QuerySet[NoticeMessage]:
        wanted = self.value()
        return rows.filter(outcome="" if wanted == "waiting" else wanted) if wanted else rows


class KnownOutside(GrowingAdmin):
    """Rows that receivers know by an id of ours: it is searched for besides our number."""

    search_fields = ("id__exact",)
    outside_id: str

    def get_search_results(self, request: HttpRequest, rows: Any, text: str) -> Any:
        try:
            wanted = UUID(text.strip())
        except ValueError:
            return super().get_search_results(request, rows, text)
        return rows.filter(**{self.outside_id: wanted}), False


@admin.register(Notice)
class NoticeAdmin(KnownOutside):
    outside_id = "notice_id"
    list_display = ("__str__", "kind", "about", "told", "due_shown", "created")
    list_filter = (("kind", ChoicesCheckboxFilter), ("created_at", MomentsFilter))
    search_help_text = _("A notice's number or id, whole")
    fields = (("kind", "told"), "about", ("created_at", "due_shown"), "notice_id", "messages")
    readonly_fields = ("told", "about", "due_shown", "messages")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Notice]:
        return _with_rows(super().get_queryset(request))

    @admin.display(description=_("tells of"))
    def about(self, notice: Notice) -> SafeString | str:
        return _about(notice)

    @admin.display(description=_("whom"))
    def told(self, notice: Notice) -> SafeString | str:
        return link(notice.seller) if notice.seller else gettext("operators")

    @admin.display(description=_("waits until"), ordering="due_at")
    def due_shown(self, notice: Notice) -> SafeString | str:
        """Empty once it is part of a message, or there was nothing to tell any more."""
        return moment(notice.due_at)

    @admin.display(description=_("messages"))
    def messages(self, notice: Notice) -> SafeString | str:
        found = NoticeMessage.objects.filter(notices__contains=[notice.pk]).order_by("id")[:LISTED]
        return _lines([link(message, f"{message}, {message.get_channel_display()}") for message in found])


@admin.register(NoticeMessage)
class NoticeMessageAdmin(Asking, KnownOutside):
    outside_id = "message_id"
    list_display = ("__str__", "channel", "state", "count", "whom", "last_error_code", "due", "created")
    list_select_related = ("seller",)
    list_filter = (StateFilter, ("channel", ChoicesCheckboxFilter), ("created_at", MomentsFilter))
    search_help_text = _("A message's number or id, whole")
    actions_detail = ("resend",)
    inlines = (MessageHistoryInline,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("state", "channel", "whom"),
                    ("created_at", "ended_at"),
                    "message_id",
                    "tells_of",
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
                    "resent_at",
                )
            },
        ),
    )
    readonly_fields = ("state", "whom", "tells_of")

    @admin.display(description=_("state"), ordering="outcome")
    def state(self, message: NoticeMessage) -> SafeString:
        if message.outcome:
            return tag(message.get_outcome_display(), OUTCOME_COLOURS[message.outcome])
        return tag(gettext("tried again"), "warning") if message.last_error_code else tag(gettext("waiting"), "info")

    @admin.display(description=_("notices"))
    def count(self, message: NoticeMessage) -> int:
        return len(message.notices)

    @admin.display(description=_("to"))
    def whom(self, message: NoticeMessage) -> SafeString | str:
        return link(message.seller) if message.seller else gettext("operators")

    @admin.display(description=_("tells of"))
    def tells_of(self, message: NoticeMessage) -> SafeString | str:
        found = _with_rows(Notice.objects.filter(pk__in=message.notices[:LISTED])).order_by("id")
        left_off = len(message.notices) - LISTED
        more = [gettext("… and %(count)s more") % {"count": left_off}] if left_off > 0 else []
        return _lines([*(_about(notice) for notice in found), *more])

    # --- What an operator may do ----------------------------------------------------------------------------

    def has_resend_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.resend_noticemessage")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """Only where it could do something."""
        message = self.get_object(request, str(object_id))
        if message is None or notices.why_not_again(message, now=selectors.now()):
            return []
        return super().get_actions_detail(request, object_id)

    @action(
        description=_("Send again"),
        permissions=["resend"],
        url_path="resend",
        icon="send",
        variant=ActionVariant.PRIMARY,
    )
    def resend(self, request: HttpRequest, object_id: int) -> HttpResponse:
        message = self.get_object(request, str(object_id))
        if message is None:
            return self.back(None)
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            actor = f"user:{request.user.get_username()}"
            try:
                notices.resend(message_id=message.pk, actor=actor, reason=form.cleaned_data["reason"])
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                self.message_user(request, gettext("It is due now, and is tried for three days."), messages.SUCCESS)
                return self.back(message)
        title = gettext("Send %(message)s again") % {"message": message}
        return self.ask(request, form, [message], title=title, submit=gettext("Send again"))

    def asked_about(self, row: NoticeMessage) -> dict[str, Any]:
        return {
            gettext("Message"): row,
            gettext("State"): self.state(row),
            gettext("Channel"): row.get_channel_display(),
            gettext("To"): self.whom(row),
            gettext("Last error"): f"{row.last_error_code}: {row.last_error_message}" if row.last_error_code else "-",
        }
