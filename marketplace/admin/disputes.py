"""Disputes as Stripe tells of them, and what of them sellers bear."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import FieldTextFilter, RangeDateTimeFilter
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from marketplace.admin.asking import Asking, ReasonForm
from marketplace.admin.base import ReadOnlyAdmin, StatusText, WholeTextFilter, code, link, moment, money, tag, yes_no
from marketplace.admin.history import DisputeHistoryInline
from marketplace.admin.refunds import OwedForItInline
from marketplace.errors import MarketplaceError
from marketplace.models import Dispute, Seller
from marketplace.money import Money
from marketplace.services import disputes


class AmountForm(ReasonForm):
    amount = forms.IntegerField(
        label=_("Amount"),
        min_value=1,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_("How much of the order is disputed, in the minor unit (cents) of the order's currency."),
    )
    field_order = ("amount", "reason")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].help_text = _("How you know. It stays in the history.")


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, Any]]:
        return [("person", _("needs a person")), ("lost", _("counts as lost")), ("open", _("open"))]

    def queryset(self, _request: HttpRequest, rows: QuerySet[Dispute]) -> QuerySet[Dispute]:
        match self.value():
            case "person":
                return rows.exclude(last_error_code="")
            case "lost":
                return rows.filter(amount_lost__gt=0)
            case "open":
                return rows.exclude(status__in=[disputes.LOST, *disputes.IN_OUR_FAVOUR])
            case _:
                return rows


@admin.register(Dispute)
class DisputeAdmin(StatusText, Asking, ReadOnlyAdmin):
    list_display = (
        "__str__",
        "status_label",
        "amount_shown",
        "lost_or_asked",
        "order_link",
        "stripe_reason",
        "due_by",
        "at_stripe",
    )
    list_select_related = ("order",)
    list_filter = (
        StateFilter,
        ("status", FieldTextFilter),
        ("currency", WholeTextFilter),
        ("opened_at", RangeDateTimeFilter),
    )
    search_fields = ("id__exact", "stripe_dispute_id__exact")
    search_help_text = _("A dispute's number, dp_… or du_…, whole")
    actions_detail = ("enter_amount",)
    inlines = (OwedForItInline, DisputeHistoryInline)
    readonly_fields = (
        "status_label",
        "amount_shown",
        "of_order_shown",
        "lost_shown",
        "order_link",
        "parts_shown",
        "at_stripe",
        "refundable",
        "due_by",
        "withdrawn_shown",
        "reinstated_shown",
        "fee_shown",
        "opened",
        "withdrawn",
        "reinstated",
        "closed",
        "said",
    )

    def get_fieldsets(self, _request: HttpRequest, dispute: Any = None) -> Any:
        """What a person has to do first, and only where there is something to do."""
        asks = [("last_error_code", "last_error_message")] if dispute is not None and dispute.last_error_code else []
        ours = (
            *asks,
            ("status_label", "stripe_reason"),
            ("order_link", "amount_shown"),
            ("of_order_shown", "lost_shown"),
            "parts_shown",
        )
        theirs = (
            ("at_stripe", "refundable"),
            ("opened", "closed"),
            ("due_by", "said"),
            ("withdrawn_shown", "withdrawn"),
            ("reinstated_shown", "reinstated"),
            "fee_shown",
        )
        return ((None, {"fields": ours}), (_("At Stripe"), {"fields": theirs}))

    # --- Columns --------------------------------------------------------------------------------------------

    @admin.display(description=_("lost"), ordering="amount_lost")
    def lost_shown(self, dispute: Dispute) -> SafeString | str:
        return money(dispute.amount_lost or None, dispute.order.currency)

    @admin.display(description=_("lost"), ordering="amount_lost")
    def lost_or_asked(self, dispute: Dispute) -> SafeString | str:
        return tag(_("needs a person"), "danger") if dispute.last_error_code else self.lost_shown(dispute)

    @admin.display(description=_("of the order"), ordering="order_amount")
    def of_order_shown(self, dispute: Dispute) -> SafeString | str:
        return money(dispute.order_amount, dispute.order.currency)

    @admin.display(description=_("who bears it"))
    def parts_shown(self, dispute: Dispute) -> str:
        if not dispute.amount_lost:
            return "-"
        names = dict(Seller.objects.filter(pk__in=dispute.seller_parts).values_list("pk", "name"))
        currency = dispute.order.currency
        parts = [f"{names[int(seller)]} {_money(part, currency)}" for seller, part in dispute.seller_parts.items()]
        if dispute.platform_part:
            parts.append(f"{gettext('the platform')} {_money(dispute.platform_part, currency)}")
        return ", ".join(parts)

    @admin.display(description=_("withdrawn"))
    def withdrawn_shown(self, dispute: Dispute) -> SafeString | str:
        return _of_balance(dispute, dispute.amount_withdrawn)

    @admin.display(description=_("reinstated"))
    def reinstated_shown(self, dispute: Dispute) -> SafeString | str:
        return _of_balance(dispute, dispute.amount_reinstated)

    @admin.display(description=_("fee"))
    def fee_shown(self, dispute: Dispute) -> SafeString | str:
        return _of_balance(dispute, dispute.fee)

    @admin.display(description=_("order"), ordering="order_id")
    def order_link(self, dispute: Dispute) -> SafeString | str:
        return link(dispute.order)

    @admin.display(description=_("evidence due by"), ordering="evidence_due_by")
    def due_by(self, dispute: Dispute) -> SafeString | str:
        """Of one that is over none is wanted any more."""
        is_over = dispute.status == disputes.LOST or dispute.status in disputes.IN_OUR_FAVOUR
        return "-" if is_over else moment(dispute.evidence_due_by)

    @admin.display(description=_("refundable"))
    def refundable(self, dispute: Dispute) -> Any:
        return yes_no(dispute.is_charge_refundable)

    @admin.display(description=_("opened at"))
    def opened(self, dispute: Dispute) -> SafeString | str:
        return moment(dispute.opened_at)

    @admin.display(description=_("withdrawn at"))
    def withdrawn(self, dispute: Dispute) -> SafeString | str:
        return moment(dispute.withdrawn_at)

    @admin.display(description=_("reinstated at"))
    def reinstated(self, dispute: Dispute) -> SafeString | str:
        return moment(dispute.reinstated_at)

    @admin.display(description=_("closed at"))
    def closed(self, dispute: Dispute) -> SafeString | str:
        return moment(dispute.closed_at)

    @admin.display(description=_("as Stripe said at"))
    def said(self, dispute: Dispute) -> SafeString | str:
        return moment(dispute.stripe_seen_at)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, dispute: Dispute) -> SafeString | str:
        return code(dispute.stripe_dispute_id)

    # --- What an operator may do ----------------------------------------------------------------------------

    def has_enter_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.enter_dispute_amount")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """No button where the amount is known."""
        dispute: Any = self.get_object(request, str(object_id))
        is_unknown = dispute is not None and dispute.order_amount is None
        return super().get_actions_detail(request, object_id) if is_unknown else []

    @action(
        description=_("Enter the amount"),
        permissions=["enter"],
        url_path="enter_amount",
        icon="edit",
        variant=ActionVariant.PRIMARY,
    )
    def enter_amount(self, request: HttpRequest, object_id: int) -> HttpResponse:
        dispute: Any = self.get_object(request, str(object_id))
        if dispute is None:
            return self.back(None)
        form = AmountForm(request.POST or None, initial={"amount": dispute.order.amount})
        if form.is_valid():
            try:
                disputes.enter_amount(
                    dispute_id=dispute.pk,
                    amount=form.cleaned_data["amount"],
                    actor=f"user:{request.user.get_username()}",
                    reason=form.cleaned_data["reason"],
                )
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                self.message_user(request, gettext("The amount is entered."), messages.SUCCESS)
                return self.back(dispute)
        title = gettext("How much of its order is %(dispute)s?") % {"dispute": dispute}
        return self.ask(request, form, [dispute], title=title, submit=gettext("Save"))

    def asked_about(self, row: Dispute) -> dict[str, Any]:
        return {
            gettext("Dispute"): row,
            gettext("Status"): self.status_label(row),
            gettext("Disputed"): self.amount_shown(row),
            gettext("Order"): self.order_link(row),
            gettext("Of"): money(row.order.amount, row.order.currency),
            gettext("At Stripe"): self.at_stripe(row),
        }


def _money(amount: int, currency: str) -> str:
    return str(Money(amount, currency))


def _of_balance(dispute: Dispute, amount: int) -> SafeString | str:
    return money(amount or None, dispute.balance_currency or dispute.currency)
