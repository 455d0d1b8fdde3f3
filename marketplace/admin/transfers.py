from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesCheckboxFilter,
)
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminTextInputWidget

from marketplace import throttle
from marketplace.admin import bulk_retries, why
from marketplace.admin.asking import Asking, ReasonForm
from marketplace.admin.base import (
    GrowingAdmin,
    MomentsFilter,
    ReadOnlyInline,
    StatusAndMoney,
    WholeTextFilter,
    code,
    link,
    money,
    yes_no,
)
from marketplace.errors import MarketplaceError
from marketplace.explain import transfers as explanations
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import give_backs, transfers
from marketplace.states import OPEN_TRANSFERS, ReversalStatus, TransferStatus


class TransferIdForm(ReasonForm):
    stripe_transfer_id = forms.CharField(
        label=_("Stripe transfer"),
        max_length=255,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "tr_…", "autocomplete": "off"}),
        help_text=_(
            "The id of this transfer in Stripe's dashboard. Stripe is asked whether amount, currency and account are"
            " the same. It cannot be changed afterwards."
        ),
    )
    field_order = ("stripe_transfer_id", "reason")


class ReversalInline(StatusAndMoney, ReadOnlyInline):
    model = TransferReversal
    statuses = ReversalStatus
    verbose_name_plural = _("reversals")
    fields = readonly_fields = ("page", "status_label", "amount_shown", "cause", "source_link", "at_stripe")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("refund", "dispute").order_by("id")

    @admin.display(description=_("reversal"))
    def page(self, reversal: TransferReversal) -> SafeString | str:
        return link(reversal)

    @admin.display(description=_("owed for"))
    def source_link(self, reversal: TransferReversal) -> SafeString | str:
        return link(reversal.source)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, reversal: TransferReversal) -> SafeString | str:
        return code(reversal.stripe_reversal_id)


@admin.register(SellerTransfer)
class SellerTransferAdmin(StatusAndMoney, Asking, GrowingAdmin):
    class Media:
        css = {"all": ["marketplace/why.css"]}
        js = ["marketplace/why.js"]

    statuses = TransferStatus
    open_statuses = OPEN_TRANSFERS
    sorted_when_open = ("amount_shown", "due")
    list_display = (
        "__str__",
        "status_label",
        "amount_shown",
        "reversed_shown",
        "seller_link",
        "order_link",
        "last_error_code",
        "due",
        "at_stripe",
    )
    list_select_related = ("seller", "order")
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("failed_leg", ChoicesCheckboxFilter),
        ("seller", AutocompleteSelectFilter),
        ("currency", WholeTextFilter),
        ("last_error_code", WholeTextFilter),
        ("created_at", MomentsFilter),
    )
    search_fields = ("id__exact", "stripe_transfer_id__exact", "reversals__stripe_reversal_id__exact")
    search_help_text = _("A transfer's number, tr_… or trr_…, whole")
    list_before_template = "admin/marketplace/retry_all.html"
    actions = ("retry_selected",)
    # Their buttons stand in the card, with those of the debts.
    actions_detail = ("retry_one", "try_now", "enter_transfer_id", "decline")
    change_form_outer_before_template = "admin/marketplace/why.html"
    inlines = (ReversalInline,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_label", "failed_leg"),
                    ("seller_link", "order_link"),
                    ("amount_shown", "reversed_shown"),
                    ("kept_back_shown", "netted_shown"),
                    ("gives_back_of_link", "undoes_link"),
                    "declined_shown",
                )
            },
        ),
        (_("At Stripe"), {"fields": (("stripe_transfer_id", "stripe_reversal_id"), "description")}),
        (
            _("The worker"),
            {
                "fields": (
                    ("retry_count", "next_retry_at"),
                    ("last_error_code", "last_error_at"),
                    ("last_error_request_id", "lease_expires_at"),
                    "last_error_message",
                )
            },
        ),
        (
            _("Our own"),
            {
                "fields": (
                    ("operation_id", "key_generation"),
                    ("in_doubt_shown", "look_first_shown"),
                    "first_attempted_at",
                    ("created_at", "updated_at"),
                )
            },
        ),
    )
    readonly_fields = (
        "status_label",
        "amount_shown",
        "reversed_shown",
        "kept_back_shown",
        "netted_shown",
        "seller_link",
        "order_link",
        "gives_back_of_link",
        "undoes_link",
        "declined_shown",
        "in_doubt_shown",
        "look_first_shown",
    )

    # --- Columns --------------------------------------------------------------------------------------------

    @admin.display(description=_("reversed"), ordering="amount_reversed")
    def reversed_shown(self, transfer: SellerTransfer) -> SafeString | str:
        return money(transfer.amount_reversed or None, transfer.currency)

    @admin.display(description=_("kept back"))
    def kept_back_shown(self, transfer: SellerTransfer) -> SafeString | str:
        return money(transfer.amount_kept_back or None, transfer.currency)

    @admin.display(description=_("netted for debts"))
    def netted_shown(self, transfer: SellerTransfer) -> SafeString | str:
        return money(transfer.amount_netted or None, transfer.currency)

    @admin.display(description=_("gives back of"))
    def gives_back_of_link(self, transfer: SellerTransfer) -> SafeString | str:
        return link(transfer.gives_back_of)

    @admin.display(description=_("undoes"))
    def undoes_link(self, transfer: SellerTransfer) -> SafeString | str:
        return link(transfer.undoes)

    @admin.display(description=_("declined"))
    def declined_shown(self, transfer: SellerTransfer) -> Any:
        return yes_no(transfer.declined)

    @admin.display(description=_("seller"), ordering="seller__name")
    def seller_link(self, transfer: SellerTransfer) -> SafeString | str:
        return link(transfer.seller)

    @admin.display(description=_("order"), ordering="order_id")
    def order_link(self, transfer: SellerTransfer) -> SafeString | str:
        return link(transfer.order)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, transfer: SellerTransfer) -> SafeString | str:
        return code(transfer.stripe_transfer_id)

    @admin.display(description=_("outcome unknown"))
    def in_doubt_shown(self, transfer: SellerTransfer) -> Any:
        return yes_no(transfer.in_doubt)

    @admin.display(description=_("look first"))
    def look_first_shown(self, transfer: SellerTransfer) -> Any:
        return yes_no(transfer.look_first)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        may_plan = self.has_retry_permission(request) and request.user.has_perm("marketplace.view_bulkretry")
        context = {"retry_all": bulk_retries.retry_all(request)} if may_plan else {}
        return super().changelist_view(request, {**(extra_context or {}), **context})

    # --- What an operator may do ----------------------------------------------------------------------------

    def has_retry_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.retry_sellertransfer")

    def has_decline_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.decline_sellertransfer")

    def get_actions_detail(self, _request: HttpRequest, _object_id: Any = None) -> Any:
        """None at the page's head: those that could do something stand in the card."""
        return []

    # --- The card -------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        news = path(
            "<int:object_id>/why/",
            self.admin_site.admin_view(self.news),
            name="marketplace_sellertransfer_why",
        )
        return [news, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        transfer = self.get_object(request, object_id)
        if transfer is not None and self.has_view_permission(request, transfer):
            extra_context = {**(extra_context or {}), **why.context(request, transfer)}
        shown: HttpResponse = super().change_view(request, object_id, form_url, extra_context)
        return shown

    def news(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """What the page asks for by itself: whether anything on it is shown otherwise now, and when to ask again."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        transfer = self.get_object(request, str(object_id))
        if transfer is None:
            raise Http404
        explanation = explanations.explain(transfer, user=request.user)
        return JsonResponse({"version": why.version(transfer, explanation), "seconds": why.poll_seconds(explanation)})

    # --- What an operator does ------------------------------------------------------------------------------

    @action(description=_("Retry selected transfers"), permissions=["retry"], icon="replay")
    def retry_selected(self, request: HttpRequest, rows: QuerySet[SellerTransfer]) -> HttpResponse | None:
        chosen = self.chosen(request, rows.select_related("seller", "order"))
        if not chosen:
            return None
        form = ReasonForm(request.POST if "apply" in request.POST else None)
        if form.is_valid():
            self._retry(request, chosen, form.cleaned_data["reason"])
            return None
        return self.ask(request, form, chosen, title=gettext("Retry transfers"), submit=gettext("Retry"))

    @action(
        description=_("Retry"),
        permissions=["retry"],
        url_path="retry_one",
        icon="replay",
        variant=ActionVariant.PRIMARY,
    )
    def retry_one(self, request: HttpRequest, object_id: int) -> HttpResponse:
        transfer = self.get_object(request, str(object_id))
        if transfer is None:
            return self.back(None)
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            self._retry(request, [transfer], form.cleaned_data["reason"])
            return self.back(transfer)
        title = gettext("Retry %(transfer)s") % {"transfer": transfer}
        return self.ask(request, form, [transfer], title=title, submit=gettext("Retry"))

    @action(
        description=_("Try now"),
        permissions=["retry"],
        url_path="try_now",
        icon="bolt",
        variant=ActionVariant.PRIMARY,
    )
    def try_now(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return self._act(
            request,
            object_id,
            transfers.try_now,
            title=gettext("Try %(transfer)s now, in place of later"),
            submit=gettext("Try now"),
            done=gettext("It is due now. Retries that are spent stay spent."),
        )

    @action(
        description=_("Enter the Stripe id"),
        permissions=["retry"],
        url_path="enter_transfer_id",
        icon="edit",
        variant=ActionVariant.PRIMARY,
    )
    def enter_transfer_id(self, request: HttpRequest, object_id: int) -> HttpResponse:
        transfer = self.get_object(request, str(object_id))
        if transfer is None:
            return self.back(None)
        form = TransferIdForm(request.POST or None)
        if form.is_valid():
            try:
                transfers.enter_transfer_id(
                    transfer_id=transfer.pk,
                    found=transfers.look_up(form.cleaned_data["stripe_transfer_id"], throttle.gateway()),
                    actor=f"user:{request.user.get_username()}",
                    reason=form.cleaned_data["reason"],
                )
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                self.message_user(
                    request, gettext("The Stripe id is entered. Now it can be retried."), messages.SUCCESS
                )
                return self.back(transfer)
        title = gettext("Stripe id of %(transfer)s") % {"transfer": transfer}
        return self.ask(request, form, [transfer], title=title, submit=gettext("Save"))

    @action(
        description=_("Decline"),
        permissions=["decline"],
        url_path="decline",
        icon="block",
        variant=ActionVariant.DANGER,
    )
    def decline(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return self._act(
            request,
            object_id,
            give_backs.decline,
            title=gettext("Do not pay %(seller)s again"),
            submit=gettext("Decline"),
            done=gettext("Declined: the seller is not paid again."),
        )

    def _act(
        self, request: HttpRequest, object_id: int, act: Callable[..., Any], *, title: str, submit: str, done: str
    ) -> HttpResponse:
        transfer = self.get_object(request, str(object_id))
        if transfer is None:
            return self.back(None)
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            actor = f"user:{request.user.get_username()}"
            try:
                act(transfer_id=transfer.pk, actor=actor, reason=form.cleaned_data["reason"])
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                self.message_user(request, done, messages.SUCCESS)
                return self.back(transfer)
        asked = title % {"transfer": transfer, "seller": transfer.seller}
        return self.ask(request, form, [transfer], title=asked, submit=submit)

    def _retry(self, request: HttpRequest, rows: list[SellerTransfer], reason: str) -> None:
        """Each row by itself: one that cannot be retried does not hold up the others."""
        done = []
        for row in rows:
            try:
                transfers.retry(transfer_id=row.pk, actor=f"user:{request.user.get_username()}", reason=reason)
            except MarketplaceError as refusal:
                self.message_user(request, refusal.message, messages.WARNING)
            else:
                done.append(str(row.pk))
        if done:
            text = ngettext("Transfer %(ids)s is due again.", "Transfers %(ids)s are due again.", len(done))
            self.message_user(request, text % {"ids": ", ".join(done)}, messages.SUCCESS)

    def asked_about(self, row: SellerTransfer) -> dict[str, Any]:
        return {
            gettext("Transfer"): row,
            gettext("Status"): self.status_label(row),
            gettext("Amount"): self.amount_shown(row),
            gettext("Seller"): row.seller,
            gettext("Last error"): row.last_error_code,
        }
