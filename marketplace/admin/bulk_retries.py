"""Bulk retries: chosen by cause, counted, started, approved, watched and stopped."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter, RangeDateTimeFilter
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from marketplace import selectors
from marketplace.admin import bulk_retry_page
from marketplace.admin.asking import Asking, ReasonForm
from marketplace.admin.base import ReadOnlyAdmin, label, money
from marketplace.admin.history import BulkRetryHistoryInline
from marketplace.errors import MarketplaceError
from marketplace.models import BulkRetry, Seller, SellerTransfer
from marketplace.money import LARGEST_AMOUNT
from marketplace.services import bulk_retries
from marketplace.states import BulkRetryItemStatus, BulkRetryStatus


def moment_input() -> Any:
    widget = UnfoldAdminTextInputWidget()
    widget.input_type = "datetime-local"
    return widget


class PlanForm(ReasonForm):
    error_code = forms.CharField(
        label=_("Failed with"),
        required=False,
        max_length=100,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
        help_text=_("The code of the last error, whole."),
    )
    failed_leg = forms.ChoiceField(
        label=_("Failed leg"),
        required=False,
        choices=[("", _("either")), *SellerTransfer.Leg.choices],
        widget=UnfoldAdminSelectWidget(),
    )
    seller = forms.CharField(
        label=_("Seller"),
        required=False,
        max_length=255,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "acct_…", "autocomplete": "off"}),
        help_text=_("The seller's number or Stripe account."),
    )
    currency = forms.RegexField(
        r"^[a-z]{3}$",
        label=_("Currency"),
        required=False,
        error_messages={"invalid": _("Expected three lower-case letters, such as eur.")},
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "eur"}),
    )
    failed_after = forms.DateTimeField(label=_("Failed since"), required=False, widget=moment_input())
    failed_before = forms.DateTimeField(label=_("Failed before"), required=False, widget=moment_input())
    field_order = ("error_code", "failed_leg", "seller", "currency", "failed_after", "failed_before", "reason")

    def clean_seller(self) -> Seller | None:
        given = self.cleaned_data["seller"]
        if not given:
            return None
        is_number = given.isascii() and given.isdigit() and int(given) <= LARGEST_AMOUNT
        found = Seller.objects.filter(pk=int(given)) if is_number else Seller.objects.filter(stripe_account_id=given)
        seller = found.first()
        if seller is None:
            raise forms.ValidationError(gettext("No seller has this number or account."))
        return seller

    def criteria(self) -> bulk_retries.Criteria:
        chosen = {name: value for name, value in self.cleaned_data.items() if value}
        chosen.pop("reason")
        seller = chosen.pop("seller", None)
        return bulk_retries.Criteria(seller_id=seller.pk if seller else None, **chosen)


class DecisionForm(ReasonForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].help_text = _("It stays in the history.")


# From a filter of the list of transfers to a field of the plan.
CARRIED = {
    "failed_leg__exact": "failed_leg",
    "seller__id__exact": "seller",
    "currency__exact": "currency",
    "last_error_code__exact": "error_code",
}
NO_FILTER = {"p", "o", "status__exact", "all"}


def retry_all(request: HttpRequest) -> dict[str, str]:
    """The way from the list of transfers to a plan with its filters. What cannot be taken along is said."""
    chosen = {CARRIED[name]: request.GET[name] for name in request.GET if name in CARRIED and request.GET[name]}
    if len(request.GET.getlist("failed_leg__exact")) > 1:
        del chosen["failed_leg"]
    left_out = [name for name in request.GET if name not in CARRIED and name not in NO_FILTER and request.GET[name]]
    hint = gettext("Those that need a person: first a few, then the rest at a limited rate.")
    if left_out:
        hint = gettext("Search and times of creation are not taken along: choose again on the next page.")
    return {"address": f"{reverse('admin:marketplace_bulkretry_add')}?{urlencode(chosen)}", "hint": hint}


@admin.register(BulkRetry)
class BulkRetryAdmin(Asking, ReadOnlyAdmin):
    list_display = ("__str__", "status_label", "chosen_by", "reason", "requester", "approver", "created")
    list_select_related = ("requested_by", "approved_by")
    list_filter = (("status", ChoicesCheckboxFilter), ("created_at", RangeDateTimeFilter))
    search_fields = ("id__exact", "requested_by__username__exact")
    search_help_text = _("A number, or the user name of who asked for it")
    actions_detail = ("start", "approve", "stop", "cancel")
    change_form_outer_before_template = "admin/marketplace/bulk_retry.html"
    inlines = (BulkRetryHistoryInline,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("chosen_by", "reason"),
                    ("requester", "approver"),
                    ("created_at", "started_at"),
                )
            },
        ),
    )
    readonly_fields = ("chosen_by", "requester", "approver")

    @admin.display(description=_("status"), ordering="status")
    def status_label(self, bulk_retry: BulkRetry) -> SafeString:
        return label(BulkRetryStatus(bulk_retry.status))

    @admin.display(description=_("chosen by"))
    def chosen_by(self, bulk_retry: BulkRetry) -> str:
        words = {"seller_id": gettext("seller"), "failed_after": gettext("since"), "failed_before": gettext("before")}
        told = [f"{words.get(name, name.replace('_', ' '))} {value}" for name, value in bulk_retry.criteria.items()]
        return ", ".join(told) or gettext("all that need a person")

    # By name: who may see this may not see the page of a user.
    @admin.display(description=_("requested by"), ordering="requested_by")
    def requester(self, bulk_retry: BulkRetry) -> str:
        return bulk_retry.requested_by.get_username()

    @admin.display(description=_("approved by"), ordering="approved_by")
    def approver(self, bulk_retry: BulkRetry) -> str:
        return bulk_retry.approved_by.get_username() if bulk_retry.approved_by else "-"

    # --- Who may do what ------------------------------------------------------------------------------------

    def has_retry_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.retry_sellertransfer")

    def has_approve_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.approve_bulkretry")

    def has_stop_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.stop_bulkretry")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_retry_permission(request)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """Only the buttons that could do something."""
        bulk_retry = self.get_object(request, str(object_id))
        if bulk_retry is None:
            return []
        is_own = bulk_retry.requested_by_id == request.user.pk
        useful = {
            BulkRetryStatus.PLANNED: {"start", "cancel"} if is_own else {"cancel"},
            BulkRetryStatus.AWAITING_APPROVAL: {"cancel"} if is_own else {"approve", "cancel"},
            BulkRetryStatus.CANARY: {"stop"},
            BulkRetryStatus.RUNNING: {"stop"},
        }.get(BulkRetryStatus(bulk_retry.status), set())
        return [item for item in super().get_actions_detail(request, object_id) if item.path in useful]

    # --- Planning -------------------------------------------------------------------------------------------

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> Any:  # noqa: ARG002
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = PlanForm(request.POST or None, initial=request.GET.dict())
        if form.is_valid():
            assert isinstance(request.user, User)
            try:
                planned = bulk_retries.plan(
                    criteria=form.criteria(), by=request.user, reason=form.cleaned_data["reason"]
                )
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                return self.back(planned)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": gettext("Retry many transfers"),
            "explanation": gettext(
                "Choose among the transfers that need a person. They are counted first; nothing is retried before you"
                " start it."
            ),
            "form": form,
            "causes": [self._cause(cause) for cause in selectors.causes()],
            "back": self._address("changelist"),
        }
        return TemplateResponse(request, "admin/marketplace/bulk_retry_plan.html", context)

    def _cause(self, cause: selectors.Cause) -> dict[str, Any]:
        query = {"error_code": cause.code, "failed_leg": cause.leg, "currency": cause.currency}
        return {
            "query": urlencode({name: value for name, value in query.items() if value}),
            "code": cause.code or gettext("no code"),
            "leg": SellerTransfer.Leg(cause.leg).label if cause.leg else "-",
            "count": cause.count,
            "money": money(cause.amount, cause.currency),
        }

    # --- Watching -------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        progress = path(
            "<int:object_id>/progress/",
            self.admin_site.admin_view(self.progress),
            name="marketplace_bulkretry_progress",
        )
        return [progress, *super().get_urls()]

    def progress(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """The parts of the page that change by themselves."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        bulk_retry = get_object_or_404(BulkRetry, pk=object_id)
        context = {"live": bulk_retry_page.live(bulk_retry, request)}
        return TemplateResponse(request, "admin/marketplace/bulk_retry_parts.html", context)

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        bulk_retry = self.get_object(request, object_id)
        shown = {"live": bulk_retry_page.live(bulk_retry, request)} if bulk_retry is not None else {}
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **shown})

    # --- Deciding -------------------------------------------------------------------------------------------

    @action(
        description=_("Start"),
        permissions=["retry"],
        url_path="start",
        icon="play_arrow",
        variant=ActionVariant.PRIMARY,
    )
    def start(self, request: HttpRequest, object_id: int) -> HttpResponse:
        def begin(*, bulk_retry_id: int, by: User, **_: Any) -> BulkRetry:
            return bulk_retries.start(bulk_retry_id=bulk_retry_id, by=by)

        return self._decide(request, object_id, begin, title=gettext("Start %(bulk_retry)s"), form_class=forms.Form)

    @action(
        description=_("Approve"),
        permissions=["approve"],
        url_path="approve",
        icon="how_to_reg",
        variant=ActionVariant.PRIMARY,
    )
    def approve(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return self._decide(request, object_id, bulk_retries.approve, title=gettext("Approve %(bulk_retry)s"))

    @action(description=_("Stop"), permissions=["stop"], url_path="stop", icon="stop", variant=ActionVariant.DANGER)
    def stop(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return self._decide(request, object_id, bulk_retries.stop, title=gettext("Stop %(bulk_retry)s"))

    @action(
        description=_("Cancel"), permissions=["stop"], url_path="cancel", icon="close", variant=ActionVariant.DANGER
    )
    def cancel(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return self._decide(request, object_id, bulk_retries.cancel, title=gettext("Cancel %(bulk_retry)s"))

    def _decide(
        self,
        request: HttpRequest,
        object_id: int,
        act: Callable[..., BulkRetry],
        *,
        title: str,
        form_class: type[forms.Form] = DecisionForm,
    ) -> HttpResponse:
        bulk_retry = self.get_object(request, str(object_id))
        if bulk_retry is None:
            return self.back(None)
        form = form_class(request.POST or None)
        if form.is_valid():
            try:
                done = act(bulk_retry_id=bulk_retry.pk, by=request.user, reason=form.cleaned_data.get("reason", ""))
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                told = {"bulk_retry": done, "status": BulkRetryStatus(done.status).label}
                self.message_user(request, gettext("Now %(bulk_retry)s is %(status)s.") % told, messages.SUCCESS)
                return self.back(done)
        named = title % {"bulk_retry": bulk_retry}
        return self.ask(request, form, [bulk_retry], title=named, submit=named)

    def asked_about(self, row: BulkRetry) -> dict[str, Any]:
        planned = [tally for tally in selectors.bulk_tallies(row) if tally.status != BulkRetryItemStatus.REFUSED]
        return {
            gettext("Transfers"): sum(tally.count for tally in planned),
            gettext("Money"): " · ".join(map(str, bulk_retry_page.sums(planned))),
            gettext("Chosen by"): self.chosen_by(row),
            gettext("Requested by"): row.requested_by.get_username(),
            gettext("Status"): self.status_label(row),
        }
