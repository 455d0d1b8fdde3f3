"""Refunds: planned, asked for, shown."""

from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import selectors, throttle
from marketplace.api import access, filters
from marketplace.api.bounded import Bounded
from marketplace.api.fields import AmountField, StrictSerializer, TextField
from marketplace.api.idempotency import required_key
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import Rows, RowsAndDetails
from marketplace.api.schema import IDEMPOTENCY_KEY, problem
from marketplace.api.shown import WORK, HistorySerializer, Shown, history
from marketplace.errors import TooMuch
from marketplace.models import Order, Refund, RefundItem, SellerTransfer
from marketplace.money import LARGEST_AMOUNT
from marketplace.services import refund_attempts, refund_plans, refunds
from marketplace.states import OPEN_REFUNDS, RefundStatus

# --- Shown ----------------------------------------------------------------------------------------------------


class RefundSerializer(Shown):
    staff_only = ("requested_by", "request_key", "stripe_refund_id", "correlation_id", *WORK)

    class Meta:
        model = Refund
        fields: tuple[str, ...] = (
            "id",
            "status",
            "order",
            "amount",
            "currency",
            "reason",
            "succeeded_at",
            "created_at",
            "updated_at",
            "requested_by",
            "request_key",
            "stripe_refund_id",
            "correlation_id",
            *WORK,
        )


class RefundItemSerializer(Shown):
    class Meta:
        model = RefundItem
        fields = ("item", "quantity", "amount")


class RefundDetailSerializer(RefundSerializer):
    items = RefundItemSerializer(many=True, help_text="What it is for; empty where it is by amount.")
    staff_only = (*RefundSerializer.staff_only, "history")
    history = serializers.SerializerMethodField(help_text="The newest entries first, at most a hundred.")

    class Meta(RefundSerializer.Meta):
        fields = (*RefundSerializer.Meta.fields, "items", "history")

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, refund: Refund) -> Any:
        return history(refund)


class PlannedPartSerializer(serializers.Serializer[Any]):
    seller = serializers.IntegerField(source="part.transfer.seller_id")
    transfer = serializers.IntegerField(source="part.transfer.pk")
    share = serializers.IntegerField(source="part.transfer.share", help_text="What the seller gets of the order.")
    amount = serializers.IntegerField(source="part.amount", help_text="What this refund would take of it.")
    amount_taken = serializers.IntegerField(
        source="part.taken", help_text="Taken before: never sent, owed, or come back."
    )
    amount_reversed = serializers.IntegerField(
        source="part.transfer.amount_reversed", help_text="Of that, what Stripe confirmed."
    )
    balance_covers = serializers.ChoiceField(
        choices=refund_plans.Covers.choices,
        help_text="Whether the seller's balance at Stripe covers it at this moment.",
    )


class RefundPlanSerializer(serializers.Serializer[Any]):
    order = serializers.IntegerField()
    amount = serializers.IntegerField()
    currency = serializers.CharField()
    version = serializers.CharField(help_text="For `plan_version` of the refund.")
    platform_amount = serializers.IntegerField(help_text="What the platform would bear.")
    parts = PlannedPartSerializer(many=True)


# --- Taken ----------------------------------------------------------------------------------------------------


class RefundPlanQuerySerializer(StrictSerializer):
    amount = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=LARGEST_AMOUNT,
        help_text="In the currency's minor unit. Left out: all that is left.",
    )
    items = serializers.RegexField(
        r"^[0-9]{1,18}:[1-9][0-9]{0,8}(,[0-9]{1,18}:[1-9][0-9]{0,8})*$",
        required=False,
        max_length=4000,
        help_text="In place of an amount: the order's items with their quantities, such as `7:2,9:1`.",
    )

    def validate_items(self, items: str) -> list[tuple[int, int]]:
        return [(int(number), int(quantity)) for number, quantity in (each.split(":") for each in items.split(","))]

    def validate(self, query: dict[str, Any]) -> dict[str, Any]:
        if "items" in query and "amount" in query:
            raise serializers.ValidationError({"amount": ["expected either items or an amount, which items have"]})
        return query


class ChosenItemSerializer(StrictSerializer):
    item = AmountField(help_text="The number of an item of the order.")
    quantity = AmountField(help_text="How many of it.")


class RefundRequestSerializer(StrictSerializer):
    amount = AmountField(required=False, help_text="In the currency's minor unit. Left out: all that is left.")
    currency = TextField(required=False, min_length=3, max_length=3, help_text="The order's own currency, as a check.")
    reason = TextField(required=False, allow_blank=True, max_length=500, default="")
    items = ChosenItemSerializer(
        many=True,
        required=False,
        default=[],
        help_text="What is refunded: its sellers alone bear it. In place of an amount.",
    )
    plan_version = TextField(
        required=False,
        max_length=64,
        default="",
        help_text="The `version` of a refund plan for this amount: 409 where the order has changed since.",
    )

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["items"] and "amount" in body:
            raise serializers.ValidationError({"amount": ["expected either items or an amount, which items have"]})
        return body

    def validate_currency(self, currency: str) -> str:
        expected = self.context["order"].currency
        if currency != expected:
            raise serializers.ValidationError(f"{currency!r}: expected {expected!r}, the order's currency")
        return currency


# --- Views ----------------------------------------------------------------------------------------------------


REFUND_EXAMPLES = [
    OpenApiExample("All that is left", value={}, request_only=True),
    OpenApiExample("Two of an item", value={"items": [{"item": 7, "quantity": 2}]}, request_only=True),
    OpenApiExample(
        "As planned", value={"amount": 1250, "plan_version": "0f3b6f2c8ad94f1e7d5a0b9c6e8f1a2b"}, request_only=True
    ),
    OpenApiExample("A part", value={"amount": 1250, "currency": "eur", "reason": "one cup broken"}, request_only=True),
]
REFUND_PROBLEMS = {
    (409, CONTENT_TYPE): problem(
        "Not now, or the key was used for something else.",
        (
            "Same key, another request",
            409,
            "conflicting-facts",
            "Idempotency-Key 'refund-17' was used before, with another request",
        ),
        (
            "Planned otherwise",
            409,
            "plan-changed",
            "order 12 is not as it was when a refund of 1250 eur was planned",
        ),
        ("Not paid", 409, "not-allowed-now", "order 12 is not paid, so there is nothing to refund"),
        (
            "Charged back",
            409,
            "not-allowed-now",
            "order 12 is disputed (dp_1 is needs_response): Stripe refunds no charge that was charged back",
        ),
    ),
    (422, CONTENT_TYPE): problem(
        "More than is left.",
        ("Too much", 422, "too-much", "9000 is more than the 5000 eur left to refund on order 12"),
    ),
}


class OrderRefundViewSet(Rows[Refund]):
    """The refunds of one order."""

    queryset = Refund.objects.all()
    serializer_class = RefundSerializer
    filterset_class = filters.RefundFilter
    ordering_fields = ("id", "created_at", "updated_at", "amount")

    def get_queryset(self) -> QuerySet[Refund, Refund]:
        rows = super().get_queryset()
        return rows if getattr(self, "swagger_fake_view", False) else rows.filter(order=self.get_order())

    def get_order(self) -> Order:
        return get_object_or_404(access.visible(Order.objects.all(), self.request.user), pk=self.kwargs["order_id"])

    @extend_schema(
        summary="Refund an order, wholly or in part",
        description="Asks Stripe for the refund. When Stripe does not answer, a worker goes on with the same request"
        " at Stripe, and the refund is made once. The sellers' money comes back after the refund has succeeded.",
        parameters=[IDEMPOTENCY_KEY],
        request=RefundRequestSerializer,
        examples=REFUND_EXAMPLES,
        responses={
            200: OpenApiResponse(RefundSerializer, "The key was used before: the refund as it is now."),
            201: OpenApiResponse(RefundSerializer, "Stripe answered; `status` says what."),
            202: OpenApiResponse(RefundSerializer, "Written down; Stripe has not answered yet."),
            **REFUND_PROBLEMS,
        },
    )
    def create(self, request: Request, **_: Any) -> Response:
        order = self.get_order()
        access.demand(request.user, access.permission("add", Refund))
        assert isinstance(request.user, User)
        key = required_key(request)
        body = RefundRequestSerializer(data=request.data, context={"order": order})
        body.is_valid(raise_exception=True)
        items = [(each["item"], each["quantity"]) for each in body.validated_data["items"]]
        requested = refunds.request(
            order_id=order.pk,
            amount=body.validated_data.get("amount") or _amount(order, request.user, key, items),
            currency=order.currency,
            reason=body.validated_data["reason"],
            requested_by=request.user,
            request_key=key,
            plan_version=body.validated_data["plan_version"],
            items=items,
        )
        refund = requested.refund
        code: int = status.HTTP_200_OK
        if requested.is_new:
            refund = refund_attempts.send(refund, throttle.gateway())
            is_waiting = refund.status == RefundStatus.REQUESTED
            code = status.HTTP_202_ACCEPTED if is_waiting else status.HTTP_201_CREATED
        shown = RefundSerializer(refund, context=self.get_serializer_context()).data
        return Response(shown, status=code, headers={"Location": reverse("api:refund-detail", args=[refund.pk])})


class RefundPlanView(Bounded):
    """What a refund of an order would take, and from whom; nothing is asked for."""

    @extend_schema(
        summary="Plan a refund",
        description="Each seller's part, the platform's, what was taken before, and whether the seller's balance at"
        " Stripe covers it now. Refunds under way are taken to succeed first. Send `version` as `plan_version` with the"
        " refund, and it is made only if nothing has changed. Needs the permissions `marketplace.add_refund` and"
        " `marketplace.view_sellertransfer`.",
        parameters=[RefundPlanQuerySerializer],
        responses={200: RefundPlanSerializer, **REFUND_PROBLEMS},
    )
    def get(self, request: Request, order_id: int) -> Response:
        order = get_object_or_404(access.visible(Order.objects.all(), request.user), pk=order_id)
        access.demand(request.user, access.permission("add", Refund), access.permission("view", SellerTransfer))
        query = RefundPlanQuerySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        chosen = refunds.choose(order, query.validated_data.get("items", []))
        amount = sum(each.amount for each in chosen)
        amount = amount or query.validated_data.get("amount") or refunds.refundable(order)
        if not amount:
            raise TooMuch(f"nothing is left to refund on order {order.pk}")
        planned = refunds.planned(order, amount, chosen)
        parts = refund_plans.with_balances(order, planned, throttle.gateway())
        plan = {
            "order": order.pk,
            "amount": amount,
            "currency": order.currency,
            "version": planned.version,
            "platform_amount": planned.platform_amount,
            "parts": parts,
        }
        return Response(RefundPlanSerializer(plan).data)


def _amount(order: Order, user: User, key: str, items: Sequence[tuple[int, int]]) -> int:
    """Without an amount the items' is meant, or all that is left; on a repeated request, what it was at the first."""
    earlier = selectors.refund_by_request(requested_by=user, request_key=key)
    if earlier is not None:
        return earlier.amount
    if items:
        return sum(each.amount for each in refunds.choose(order, items))
    # Only a proposal: the service looks again, under the order's lock.
    left = refunds.refundable(order)
    if not left:
        raise TooMuch(f"nothing is left to refund on order {order.pk}")
    return left


class RefundViewSet(RowsAndDetails[Refund]):
    queryset = Refund.objects.all()
    serializer_class = RefundSerializer
    detail_serializer_class = RefundDetailSerializer
    filterset_class = filters.RefundFilter
    ordering_fields = ("id",)
    open_ordering_fields = ("created_at", "updated_at", "amount")
    open_statuses = OPEN_REFUNDS
