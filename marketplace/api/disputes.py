"""Disputes, and how much of the order one in another currency is."""

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api import filters
from marketplace.api.fields import AmountField, StrictSerializer, TextField
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import RowsAndDetails
from marketplace.api.schema import problem
from marketplace.api.shown import Shown
from marketplace.models import Dispute
from marketplace.services import disputes

# --- Shown ----------------------------------------------------------------------------------------------------


class DisputeSerializer(Shown):
    """Staff only, as the whole endpoint is."""

    order_currency = serializers.CharField(source="order.currency")
    seller_parts = serializers.DictField(
        child=serializers.IntegerField(), help_text="Of the amount lost, by seller, in the order's currency."
    )

    class Meta:
        model = Dispute
        fields: tuple[str, ...] = (
            "id",
            "status",
            "order",
            "stripe_dispute_id",
            "stripe_reason",
            "amount",
            "currency",
            "order_amount",
            "entered_amount",
            "amount_lost",
            "seller_parts",
            "platform_part",
            "order_currency",
            "is_charge_refundable",
            "evidence_due_by",
            "amount_withdrawn",
            "amount_reinstated",
            "fee",
            "balance_currency",
            "opened_at",
            "withdrawn_at",
            "reinstated_at",
            "closed_at",
            "last_error_code",
            "last_error_message",
            "created_at",
            "updated_at",
        )


# --- Taken ----------------------------------------------------------------------------------------------------


class DisputedAmountSerializer(StrictSerializer):
    amount = AmountField(help_text="How much of the order is disputed, in its currency's minor unit.")
    currency = TextField(required=False, min_length=3, max_length=3, help_text="The order's currency, as a check.")
    reason = TextField(max_length=500, help_text="How you know; it stays in the dispute's history.")

    def validate_currency(self, currency: str) -> str:
        expected = self.context["row"].order.currency
        if currency != expected:
            raise serializers.ValidationError(f"{currency!r}: expected {expected!r}, the order's currency")
        return currency


# --- Views ----------------------------------------------------------------------------------------------------


class DisputeViewSet(RowsAndDetails[Dispute]):
    queryset = Dispute.objects.select_related("order")
    serializer_class = DisputeSerializer
    filterset_class = filters.DisputeFilter
    ordering_fields = ("id", "created_at", "updated_at", "amount", "amount_lost", "evidence_due_by")

    @extend_schema(
        summary="Enter how much of the order a dispute is",
        description="Of a dispute in another currency than its order's, once. If it counts as lost, its sellers owe"
        " their part at once. Needs the permission `marketplace.enter_dispute_amount`.",
        request=DisputedAmountSerializer,
        examples=[
            OpenApiExample(
                "All of the order",
                value={"amount": 5000, "currency": "eur", "reason": "the whole charge"},
                request_only=True,
            )
        ],
        responses={
            200: DisputeSerializer,
            (409, CONTENT_TYPE): problem(
                "It is in the order's currency, or the amount was entered before.",
                (
                    "Known",
                    409,
                    "not-allowed-now",
                    "dispute 7 is about 5000 eur of order 12: an amount is entered once",
                ),
            ),
            (422, CONTENT_TYPE): problem(
                "More than the order.",
                ("Too much", 422, "too-much", "9000 is more than order 12, which is 5000 eur"),
            ),
        },
    )
    @action(detail=True, methods=["post"], filterset_class=None)
    def amount(self, request: Request, pk: int) -> Response:
        dispute, said, by = self.asked(request, pk, "marketplace.enter_dispute_amount", DisputedAmountSerializer)
        disputes.enter_amount(dispute_id=dispute.pk, amount=said["amount"], **by)
        return self.answer_anew(pk)
