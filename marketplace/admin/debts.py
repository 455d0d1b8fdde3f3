"""What sellers owe: who, how much, since when; and what an operator may do about it."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from marketplace import selectors
from marketplace.admin.asking import Asking, ReasonForm
from marketplace.admin.base import OwnedInline, ReadOnlyAdmin, StatusAndMoney, WholeTextFilter, link, moment, money
from marketplace.errors import MarketplaceError
from marketplace.models import Debt, DebtEntry
from marketplace.models.debts import OPEN
from marketplace.services import debts
from marketplace.states import ReversalStatus


class SettleForm(ReasonForm):
    amount = forms.IntegerField(
        label=_("Amount"),
        min_value=1,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_("In the currency's minor unit (cents). All that is left, or a part."),
    )
    # Sent twice by a second click, it is entered once.
    key = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
    field_order = ("amount", "reason")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].help_text = _("How it was paid, or why it is given up. It stays with the entry.")


class StateFilter(admin.SimpleListFilter):
    """Open ones, unless one asks for the others."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, Any]]:
        return [("settled", _("settled")), ("all", _("all"))]

    def choices(self, changelist: Any) -> Iterator[Any]:
        first, *others = super().choices(changelist)
        yield {**first, "display": _("open")}
        yield from others

    def queryset(self, _request: HttpRequest, rows: QuerySet[Debt]) -> QuerySet[Debt]:
        if self.value() == "all":
            return rows
        return rows.exclude(OPEN) if self.value() == "settled" else rows.filter(OPEN)


class AgeFilter(admin.SimpleListFilter):
    title = _("days since it is owed")
    parameter_name = "age"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, Any]]:
        return [(age, age) for age in selectors.DEBT_AGES]

    def queryset(self, _request: HttpRequest, rows: QuerySet[Debt]) -> QuerySet[Debt]:
        age = self.value()
        return rows.filter(selectors.debts_aged(age)) if age and age in selectors.DEBT_AGES else rows


class EntryInline(OwnedInline):
    model = DebtEntry
    fk_name = "reversal"
    verbose_name_plural = _("entries")
    fields = readonly_fields = ("created", "kind", "amount_shown", "transfer_link", "actor", "reason")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("transfer").order_by("id")

    @admin.display(description=_("amount"))
    def amount_shown(self, entry: DebtEntry) -> SafeString | str:
        return money(entry.amount, entry.currency)

    @admin.display(description=_("netted from"))
    def transfer_link(self, entry: DebtEntry) -> SafeString | str:
        return link(entry.transfer)


@admin.register(Debt)
class DebtAdmin(StatusAndMoney, Asking, ReadOnlyAdmin):
    statuses = ReversalStatus
    list_display = (
        "__str__",
        "seller_link",
        "left_shown",
        "amount_shown",
        "since",
        "error_code",
        "transfer_link",
    )
    list_select_related = ("transfer__seller",)
    list_filter = (
        StateFilter,
        AgeFilter,
        ("transfer__seller", AutocompleteSelectFilter),
        ("currency", WholeTextFilter),
    )
    search_fields = ("id__exact", "transfer__stripe_transfer_id__exact", "transfer__seller__stripe_account_id__exact")
    search_help_text = _("A debt's number, tr_… or acct_…, whole")
    list_before_template = "admin/marketplace/debt_totals.html"
    actions_detail = ("record_payment", "write_off")
    inlines = (EntryInline,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("seller_link", "since"),
                    ("left_shown", "amount_shown"),
                    ("recovered_shown", "written_off_shown"),
                    ("transfer_link", "reversal_link", "source_link"),
                    ("status_label", "cause", "error_code"),
                )
            },
        ),
    )
    readonly_fields = (
        "seller_link",
        "since",
        "left_shown",
        "amount_shown",
        "recovered_shown",
        "written_off_shown",
        "transfer_link",
        "reversal_link",
        "source_link",
        "status_label",
        "error_code",
    )

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        totals = [
            {
                "seller": total.seller_name,
                "total": money(total.amount, total.currency),
                "by_age": [money(amount or None, total.currency) for amount in total.by_age.values()],
            }
            for total in selectors.debt_totals()[: self.list_per_page]
        ]
        context = {"debt_totals": totals, "debt_ages": list(selectors.DEBT_AGES)}
        return super().changelist_view(request, {**(extra_context or {}), **context})

    # --- Columns --------------------------------------------------------------------------------------------

    @admin.display(description=_("seller"), ordering="transfer__seller__name")
    def seller_link(self, debt: Debt) -> SafeString | str:
        return link(debt.transfer.seller)

    @admin.display(description=_("left"), ordering="amount_left")
    def left_shown(self, debt: Any) -> SafeString | str:
        return money(debt.amount_left, debt.currency)

    @admin.display(description=_("recovered"))
    def recovered_shown(self, debt: Debt) -> SafeString | str:
        return money(debt.amount_recovered or None, debt.currency)

    @admin.display(description=_("written off"))
    def written_off_shown(self, debt: Debt) -> SafeString | str:
        return money(debt.amount_written_off or None, debt.currency)

    @admin.display(description=_("owed since"), ordering="owed_since")
    def since(self, debt: Any) -> SafeString | str:
        return moment(debt.owed_since)

    @admin.display(description=_("why"))
    def error_code(self, debt: Debt) -> str:
        return debt.transfer.last_error_code or "-"

    @admin.display(description=_("transfer"), ordering="transfer_id")
    def transfer_link(self, debt: Debt) -> SafeString | str:
        return link(debt.transfer)

    @admin.display(description=_("reversal"))
    def reversal_link(self, debt: Debt) -> SafeString | str:
        return link(debt.transfer.reversals.get(pk=debt.pk))

    @admin.display(description=_("owed for"))
    def source_link(self, debt: Debt) -> SafeString | str:
        return link(debt.source)

    # --- What an operator may do ----------------------------------------------------------------------------

    def has_pay_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.record_debt_payment")

    def has_write_off_permission(self, request: HttpRequest, _object_id: Any = None) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("marketplace.write_off_debt")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """No buttons where nothing is left."""
        debt: Any = self.get_object(request, str(object_id))
        return super().get_actions_detail(request, object_id) if debt is not None and debt.amount_left else []

    @action(
        description=_("Record a payment"),
        permissions=["pay"],
        url_path="record_payment",
        icon="payments",
        variant=ActionVariant.PRIMARY,
    )
    def record_payment(self, request: HttpRequest, object_id: int) -> HttpResponse:
        title = gettext("Payment of %(debt)s by its seller")
        return self._settle(
            request, object_id, debts.pay_by_hand, title=title, done=gettext("The payment is recorded.")
        )

    @action(
        description=_("Write off"),
        permissions=["write_off"],
        url_path="write_off",
        icon="delete_forever",
        variant=ActionVariant.DANGER,
    )
    def write_off(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return self._settle(
            request, object_id, debts.write_off, title=gettext("Write off %(debt)s"), done=gettext("It is written off.")
        )

    def _settle(
        self, request: HttpRequest, object_id: int, act: Callable[..., Any], *, title: str, done: str
    ) -> HttpResponse:
        debt: Any = self.get_object(request, str(object_id))
        if debt is None:
            return self.back(None)
        form = SettleForm(request.POST or None, initial={"amount": debt.amount_left})
        if form.is_valid():
            assert isinstance(request.user, User)
            try:
                act(
                    reversal_id=debt.pk,
                    amount=form.cleaned_data["amount"],
                    actor=f"user:{request.user.get_username()}",
                    reason=form.cleaned_data["reason"],
                    request=debts.Request(by=request.user, key=str(form.cleaned_data["key"])),
                )
            except MarketplaceError as error:
                form.add_error(None, error.message)
            else:
                self.message_user(request, done, messages.SUCCESS)
                return self.back(debt)
        return self.ask(request, form, [debt], title=title % {"debt": debt}, submit=gettext("Save"))

    def asked_about(self, row: Debt) -> dict[str, Any]:
        return {
            gettext("Debt"): row,
            gettext("Seller"): row.transfer.seller,
            gettext("Left"): self.left_shown(row),
            gettext("Of"): self.amount_shown(row),
            gettext("Owed since"): self.since(row),
            gettext("Why"): self.error_code(row),
        }
