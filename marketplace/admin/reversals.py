"""One reversal on a transfer; what an operator does about it is done on the transfer's page."""

from typing import Any

from django.contrib import admin
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter

from marketplace.admin.base import (
    GrowingAdmin,
    MomentsFilter,
    StatusAndMoney,
    WholeTextFilter,
    code,
    link,
    money,
    yes_no,
)
from marketplace.admin.history import ReversalHistoryInline
from marketplace.models import TransferReversal
from marketplace.states import OPEN_REVERSALS, ReversalStatus


@admin.register(TransferReversal)
class TransferReversalAdmin(StatusAndMoney, GrowingAdmin):
    statuses = ReversalStatus
    open_statuses = OPEN_REVERSALS
    sorted_when_open = ("amount_shown", "created")
    list_display = (
        "__str__",
        "status_label",
        "amount_shown",
        "cause",
        "transfer_link",
        "source_link",
        "at_stripe",
        "created",
    )
    list_select_related = ("transfer", "refund", "dispute")
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("cause", ChoicesCheckboxFilter),
        ("currency", WholeTextFilter),
        ("created_at", MomentsFilter),
    )
    search_fields = ("id__exact", "stripe_reversal_id__exact", "transfer__stripe_transfer_id__exact")
    search_help_text = _("A reversal's number, trr_… or tr_…, whole")
    inlines = (ReversalHistoryInline,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("status_label", "cause"),
                    ("transfer_link", "source_link"),
                    ("amount_shown", "unwanted_shown", "unwanted_at", "settled_shown"),
                    ("created_at", "updated_at"),
                )
            },
        ),
        (
            _("At Stripe"),
            {"fields": (("stripe_reversal_id", "stripe_status"), "description", "waiting_for_funds_since")},
        ),
        (
            _("Our own"),
            {"fields": (("operation_id", "key_generation"), ("first_attempted_at", "look_first_shown"))},
        ),
    )
    readonly_fields = (
        "status_label",
        "amount_shown",
        "unwanted_shown",
        "unwanted_at",
        "settled_shown",
        "transfer_link",
        "source_link",
        "look_first_shown",
    )

    @admin.display(description=_("no longer owed"))
    def unwanted_shown(self, reversal: TransferReversal) -> SafeString | str:
        return money(reversal.unwanted_amount or None, reversal.currency)

    @admin.display(description=_("settled another way"))
    def settled_shown(self, reversal: TransferReversal) -> SafeString | str:
        return money(reversal.amount_settled or None, reversal.currency)

    @admin.display(description=_("look first"))
    def look_first_shown(self, reversal: TransferReversal) -> Any:
        return yes_no(reversal.look_first)

    @admin.display(description=_("transfer"), ordering="transfer_id")
    def transfer_link(self, reversal: TransferReversal) -> SafeString | str:
        return link(reversal.transfer)

    @admin.display(description=_("owed for"))
    def source_link(self, reversal: TransferReversal) -> SafeString | str:
        return link(reversal.source)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, reversal: TransferReversal) -> SafeString | str:
        return code(reversal.stripe_reversal_id)
