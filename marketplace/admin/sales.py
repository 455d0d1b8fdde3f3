from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter

from marketplace.admin.base import (
    GrowingAdmin,
    MomentsFilter,
    OwnedInline,
    ReadOnlyInline,
    SafeAdmin,
    StatusAndMoney,
    StatusText,
    WholeTextFilter,
    code,
    link,
    moment,
    money,
)
from marketplace.models import Dispute, Order, OrderItem, Product, Refund, Seller, SellerTransfer
from marketplace.states import OrderStatus, RefundStatus, TransferStatus


@admin.register(Seller)
class SellerAdmin(SafeAdmin):
    """The name and the user are ours; the rest is what Stripe says."""

    list_display = ("name", "account", "transfers_capability", "payouts_enabled", "is_connected", "created")
    list_filter = (("transfers_capability", ChoicesCheckboxFilter), "payouts_enabled")
    search_fields = ("name", "stripe_account_id__exact")
    ordering = ("-id",)
    autocomplete_fields = ("user",)
    fieldsets = (
        (None, {"fields": ("name", "user", "email")}),
        (
            _("At Stripe"),
            {
                "fields": (
                    "stripe_account_id",
                    "transfers_capability",
                    "payouts_enabled",
                    "deauthorized_at",
                    "stripe_seen_at",
                )
            },
        ),
        (None, {"fields": ("created_at",)}),
    )
    add_fieldsets = ((None, {"fields": ("name", "user", "email", "stripe_account_id")}),)
    readonly_fields = (
        "stripe_account_id",
        "transfers_capability",
        "payouts_enabled",
        "deauthorized_at",
        "stripe_seen_at",
        "created_at",
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = super().get_readonly_fields(request, obj)
        return fields if obj else tuple(name for name in fields if name != "stripe_account_id")

    @admin.display(description=_("account"), ordering="stripe_account_id")
    def account(self, seller: Seller) -> SafeString | str:
        return code(seller.stripe_account_id)

    @admin.display(description=_("connected"), boolean=True)
    def is_connected(self, seller: Seller) -> bool:
        return seller.deauthorized_at is None


@admin.register(Product)
class ProductAdmin(SafeAdmin):
    """A price is set once: another price is another product."""

    list_display = ("name", "seller_link", "price_shown", "active", "created")
    list_select_related = ("seller",)
    list_filter = ("active", ("currency", WholeTextFilter))
    search_fields = ("name",)
    ordering = ("-id",)
    autocomplete_fields = ("seller",)
    fields = ("name", "seller", "unit_amount", "currency", "active")

    def get_readonly_fields(self, _request: HttpRequest, obj: Any = None) -> Any:
        return ("seller", "price_shown") if obj else ()

    def get_fields(self, _request: HttpRequest, obj: Any = None) -> Any:
        return ("name", "seller", "price_shown", "active") if obj else self.fields

    @admin.display(description=_("seller"), ordering="seller__name")
    def seller_link(self, product: Product) -> SafeString | str:
        return link(product.seller)

    @admin.display(description=_("price"), ordering="unit_amount")
    def price_shown(self, product: Product) -> SafeString | str:
        return money(product.unit_amount, product.currency)


class OrderItemInline(OwnedInline):
    model = OrderItem
    verbose_name_plural = _("items")
    fields = readonly_fields = ("product", "seller_link", "quantity", "unit_shown", "total_shown")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("product", "seller", "order")

    @admin.display(description=_("seller"))
    def seller_link(self, item: OrderItem) -> SafeString | str:
        return link(item.seller)

    @admin.display(description=_("unit price"))
    def unit_shown(self, item: OrderItem) -> SafeString | str:
        return money(item.unit_amount, item.order.currency)

    @admin.display(description=_("amount"))
    def total_shown(self, item: OrderItem) -> SafeString | str:
        return money(item.amount, item.order.currency)


class OrderTransferInline(StatusAndMoney, ReadOnlyInline):
    model = SellerTransfer
    statuses = TransferStatus
    verbose_name_plural = _("transfers")
    fields = readonly_fields = ("page", "status_label", "seller_link", "amount_shown", "reversed_shown", "at_stripe")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("seller").order_by("id")

    @admin.display(description=_("transfer"))
    def page(self, transfer: SellerTransfer) -> SafeString | str:
        return link(transfer)

    @admin.display(description=_("seller"))
    def seller_link(self, transfer: SellerTransfer) -> SafeString | str:
        return link(transfer.seller)

    @admin.display(description=_("reversed"))
    def reversed_shown(self, transfer: SellerTransfer) -> SafeString | str:
        return money(transfer.amount_reversed or None, transfer.currency)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, transfer: SellerTransfer) -> SafeString | str:
        return code(transfer.stripe_transfer_id)


class OrderRefundInline(StatusAndMoney, ReadOnlyInline):
    model = Refund
    statuses = RefundStatus
    verbose_name_plural = _("refunds")
    fields = readonly_fields = ("page", "status_label", "amount_shown", "reason", "at_stripe", "created")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).order_by("id")

    @admin.display(description=_("refund"))
    def page(self, refund: Refund) -> SafeString | str:
        return link(refund)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, refund: Refund) -> SafeString | str:
        return code(refund.stripe_refund_id)


class OrderDisputeInline(StatusText, ReadOnlyInline):
    model = Dispute
    verbose_name_plural = _("disputes")
    fields = readonly_fields = ("page", "status_label", "amount_shown", "lost_shown", "stripe_reason", "at_stripe")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("order").order_by("id")

    @admin.display(description=_("dispute"))
    def page(self, dispute: Dispute) -> SafeString | str:
        return link(dispute)

    @admin.display(description=_("lost"))
    def lost_shown(self, dispute: Dispute) -> SafeString | str:
        return money(dispute.amount_lost or None, dispute.order.currency)

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, dispute: Dispute) -> SafeString | str:
        return code(dispute.stripe_dispute_id)


@admin.register(Order)
class OrderAdmin(StatusAndMoney, GrowingAdmin):
    statuses = OrderStatus
    list_display = ("__str__", "status_label", "amount_shown", "refunded_shown", "buyer", "payment", "paid")
    list_select_related = ("buyer",)
    list_filter = (
        ("status", ChoicesCheckboxFilter),
        ("currency", WholeTextFilter),
        ("created_at", MomentsFilter),
    )
    search_fields = (
        "id__exact",
        "stripe_payment_intent_id__exact",
        "stripe_charge_id__exact",
        "buyer__username__exact",
    )
    search_help_text = _("An order's number, pi_…, ch_… or a buyer's user name, whole")
    inlines = (OrderItemInline, OrderTransferInline, OrderRefundInline, OrderDisputeInline)
    fieldsets = (
        (None, {"fields": (("status_label", "buyer"), ("amount_shown", "refunded_shown"), "commission_shown")}),
        (
            _("At Stripe"),
            {"fields": (("stripe_payment_intent_id", "stripe_charge_id"), "paid_at")},
        ),
        (_("Our own"), {"fields": ("operation_id", ("created_at", "updated_at"))}),
    )
    readonly_fields = ("status_label", "amount_shown", "refunded_shown", "commission_shown")

    @admin.display(description=_("refunded"), ordering="amount_refunded")
    def refunded_shown(self, order: Order) -> SafeString | str:
        return money(order.amount_refunded or None, order.currency)

    @admin.display(description=_("paid at"), ordering="paid_at")
    def paid(self, order: Order) -> SafeString | str:
        return moment(order.paid_at)

    @admin.display(description=_("payment"))
    def payment(self, order: Order) -> SafeString | str:
        return code(order.stripe_payment_intent_id)

    @admin.display(description=_("commission"))
    def commission_shown(self, order: Order) -> str:
        return f"{order.commission_basis_points / 100:.2f} %, of refunds: {order.get_refund_commission_display()}"
