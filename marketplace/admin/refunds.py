from django.contrib import admin
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter

from marketplace.admin.base import (
    GrowingAdmin,
    MomentsFilter,
    ReadOnlyInline,
    StatusAndMoney,
    WholeTextFilter,
    code,
    link,
)
from marketplace.admin.history import RefundHistoryInline
from marketplace.models import Refund, RefundItem, TransferReversal
from marketplace.states import OPEN_REFUNDS, RefundStatus, ReversalStatus


class OwedForItInline(StatusAndMoney, ReadOnlyInline):
    model = TransferReversal
    statuses = ReversalStatus
    verbose_name_plural = _("reversals owed for it")
    fields = readonly_fields = ("page", "status_label", "transfer_link", "amount_shown", "at_stripe")

    @admin.display(description=_("reversal"))
    def page(self, reversal: TransferReversal) -> SafeString | str:
        return link(reversal)

    @admin.display(description=_("transfer"))
    def transfer_link(self, reversal: TransferReversal) -> SafeString | str:
        return link(reversal.transfer)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, reversal: TransferReversal) -> SafeString | str:
        return code(reversal.stripe_reversal_id)


class RefundItemInline(ReadOnlyInline):
    model = RefundItem
    verbose_name_plural = _("items that it is for")
    fields = readonly_fields = ("item", "quantity", "amount")


@admin.register(Refund)
class RefundAdmin(StatusAndMoney, GrowingAdmin):
    statuses = RefundStatus
    open_statuses = OPEN_REFUNDS
    sorted_when_open = ("amount_shown", "created")
    list_display = ("__str__", "status_label", "amount_shown", "order_link", "at_stripe", "requested_by", "created")
    list_select_related = ("order", "requested_by")
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("currency", WholeTextFilter),
        ("created_at", MomentsFilter),
    )
    search_fields = ("id__exact", "stripe_refund_id__exact")
    search_help_text = _("A refund's number or re_…, whole")
    inlines = (RefundItemInline, OwedForItInline, RefundHistoryInline)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_label", "amount_shown"),
                    ("order_link", "requested_by"),
                    "reason",
                    ("succeeded_at", "created_at"),
                )
            },
        ),
        (_("At Stripe"), {"fields": (("stripe_refund_id", "stripe_seen_at"),)}),
        (
            _("The worker"),
            {
                "fields": (
                    ("retry_count", "next_retry_at"),
                    ("last_error_code", "last_error_at"),
                    "last_error_message",
                    "last_error_request_id",
                )
            },
        ),
        (_("Our own"), {"fields": ("request_key", "operation_id", ("key_generation", "first_attempted_at"))}),
    )
    readonly_fields = ("status_label", "amount_shown", "order_link")

    @admin.display(description=_("order"), ordering="order_id")
    def order_link(self, refund: Refund) -> SafeString | str:
        return link(refund.order)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, refund: Refund) -> SafeString | str:
        return code(refund.stripe_refund_id)
