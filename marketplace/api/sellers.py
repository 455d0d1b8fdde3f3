"""Sellers, and what they sell."""

from marketplace.api import filters
from marketplace.api.rows import RowsAndDetails
from marketplace.api.shown import Shown
from marketplace.models import Product, Seller


class SellerSerializer(Shown):
    class Meta:
        model = Seller
        fields = (
            "id",
            "name",
            "stripe_account_id",
            "transfers_capability",
            "payouts_enabled",
            "deauthorized_at",
            "created_at",
        )


class ProductSerializer(Shown):
    class Meta:
        model = Product
        fields = ("id", "seller", "name", "unit_amount", "currency", "active", "created_at")


class SellerViewSet(RowsAndDetails[Seller]):
    queryset = Seller.objects.all()
    serializer_class = SellerSerializer
    filterset_class = filters.SellerFilter


class ProductViewSet(RowsAndDetails[Product]):
    queryset = Product.objects.all()
    serializer_class = ProductSerializer
    filterset_class = filters.ProductFilter
    ordering_fields = ("id", "created_at", "name", "unit_amount")
