"""Orders, each with its items; what is refunded of them is in ``refunds``."""

from django.db.models import QuerySet
from rest_framework import serializers

from marketplace.api import filters
from marketplace.api.rows import RowsAndDetails
from marketplace.api.shown import Shown
from marketplace.models import Order, OrderItem


class OrderItemSerializer(Shown):
    product_name = serializers.CharField(source="product.name")
    seller_name = serializers.CharField(source="seller.name")

    class Meta:
        model = OrderItem
        fields = ("id", "product", "product_name", "seller", "seller_name", "quantity", "unit_amount", "amount")


class OrderSerializer(Shown):
    staff_only = ("commission_basis_points", "refund_commission", "stripe_payment_intent_id", "stripe_charge_id")

    class Meta:
        model = Order
        fields: tuple[str, ...] = (
            "id",
            "status",
            "buyer",
            "amount",
            "amount_refunded",
            "currency",
            "paid_at",
            "created_at",
            "updated_at",
            "commission_basis_points",
            "refund_commission",
            "stripe_payment_intent_id",
            "stripe_charge_id",
        )


class OrderDetailSerializer(OrderSerializer):
    items = OrderItemSerializer(many=True)

    class Meta(OrderSerializer.Meta):
        fields = (*OrderSerializer.Meta.fields, "items")


class OrderViewSet(RowsAndDetails[Order]):
    queryset = Order.objects.all()
    serializer_class = OrderSerializer
    detail_serializer_class = OrderDetailSerializer
    filterset_class = filters.OrderFilter
    ordering_fields = ("id",)

    def get_queryset(self) -> QuerySet[Order]:
        rows = super().get_queryset()
        return rows.prefetch_related("items__product", "items__seller") if self.action == "retrieve" else rows
