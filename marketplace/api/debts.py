"""What sellers owe: shown, summed up, paid outside of Stripe, written off."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import selectors
from marketplace.api import access, filters
from marketplace.api.fields import AmountField, StrictSerializer, TextField
from marketplace.api.idempotency import required_key
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import RowsAndDetails
from marketplace.api.schema import IDEMPOTENCY_KEY, problem
from marketplace.api.shown import Shown
from marketplace.api.versions import expected
from marketplace.models import Debt, DebtEntry
from marketplace.models.debts import OPEN
from marketplace.services import debts

# --- Shown ----------------------------------------------------------------------------------------------------


class DebtEntrySerializer(Shown):
    staff_only = ("actor", "requested_by", "request_key")

    class Meta:
        model = DebtEntry
        fields = (
            "id",
            "kind",
            "amount",
            "currency",
            "transfer",
            "reason",
            "created_at",
            "actor",
            "requested_by",
            "request_key",
        )


class DebtSerializer(Shown):
    staff_only = ("last_error_code", "last_error_message", "refused")
    seller = serializers.IntegerField(source="transfer.seller_id")
    seller_name = serializers.CharField(source="transfer.seller.name")
    order = serializers.IntegerField(source="transfer.order_id")
    amount_left = serializers.IntegerField(help_text="What is owed still.")
    owed_since = serializers.DateTimeField(help_text="Since when it is owed, not since it failed.")
    last_error_code = serializers.CharField(source="transfer.last_error_code", help_text="Why Stripe did not take it.")
    last_error_message = serializers.CharField(source="transfer.last_error_message")

    class Meta:
        model = Debt
        fields: tuple[str, ...] = (
            "id",
            "status",
            "seller",
            "seller_name",
            "transfer",
            "order",
            "cause",
            "amount",
            "amount_recovered",
            "amount_written_off",
            "amount_left",
            "currency",
            "owed_since",
            "refused",
            "last_error_code",
            "last_error_message",
        )


class DebtDetailSerializer(DebtSerializer):
    entries = DebtEntrySerializer(
        source="debt_entries", many=True, help_text="What was settled of it; less than zero where a netting was undone."
    )

    class Meta(DebtSerializer.Meta):
        fields = (*DebtSerializer.Meta.fields, "entries")


class DebtTotalSerializer(serializers.Serializer[Any]):
    seller = serializers.IntegerField(source="seller_id")
    seller_name = serializers.CharField()
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField(help_text="What is owed still.")
    by_age = serializers.DictField(
        child=serializers.IntegerField(),
        help_text="The same by days since it is owed: `0-7`, `8-30`, `31-90`, `over-90`.",
    )


# --- Taken ----------------------------------------------------------------------------------------------------


class DebtSettlementSerializer(StrictSerializer):
    amount = AmountField(help_text="In the debt's currency's minor unit; at most what is left.")
    currency = TextField(required=False, min_length=3, max_length=3, help_text="The debt's own currency, as a check.")
    reason = TextField(max_length=500, help_text="How it was paid, or why it is given up; it stays with the entry.")

    def validate_currency(self, currency: str) -> str:
        expected = self.context["debt"].currency
        if currency != expected:
            raise serializers.ValidationError(f"{currency!r}: expected {expected!r}, the debt's currency")
        return currency


# --- Views ----------------------------------------------------------------------------------------------------


DEBT_PROBLEMS = {
    (409, CONTENT_TYPE): problem(
        "It is no debt, may be at Stripe, or the key was used for something else.",
        (
            "Outcome unknown",
            409,
            "not-allowed-now",
            "reversal 7 may be at Stripe, so the seller could pay it twice: retry transfer 5 first, which looks there",
        ),
    ),
    (422, CONTENT_TYPE): problem(
        "More than is left.", ("Too much", 422, "too-much", "900 is more than the 700 eur left of debt 7")
    ),
}
DEBT_RESPONSES: dict[Any, Any] = {
    200: OpenApiResponse(DebtDetailSerializer, "The key was used before: the debt as it is now."),
    201: OpenApiResponse(DebtDetailSerializer, "The debt after it; `entries` has the new one."),
    **DEBT_PROBLEMS,
}


class DebtViewSet(RowsAndDetails[Debt]):
    queryset = Debt.objects.all()
    serializer_class = DebtSerializer
    detail_serializer_class = DebtDetailSerializer
    filterset_class = filters.DebtFilter
    ordering_fields = ("id", "created_at", "amount")

    def get_queryset(self) -> QuerySet[Debt]:
        rows = super().get_queryset()
        if self.detail:
            return rows.select_related("transfer__seller").prefetch_related("debt_entries")
        # Settled ones are found by their number only.
        return rows.filter(OPEN).select_related("transfer__seller")

    @extend_schema(
        summary="What sellers owe, by seller and currency",
        description="Who owes most comes first, at most a thousand. The filters are those of the list.",
        responses=DebtTotalSerializer(many=True),
        filters=True,
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def totals(self, _request: Request) -> Response:
        found = selectors.debt_totals(self.filter_queryset(self.get_queryset()))
        return Response(DebtTotalSerializer(found, many=True).data)

    @extend_schema(
        summary="Record that a seller paid a debt",
        description="Outside of Stripe, wholly or in part. What came back counts as taken for the refund: it is given"
        " back if that fails. Needs the permission `marketplace.record_debt_payment`.",
        parameters=[IDEMPOTENCY_KEY],
        request=DebtSettlementSerializer,
        examples=[
            OpenApiExample("A part", value={"amount": 300, "reason": "bank transfer of 3 November"}, request_only=True)
        ],
        responses=DEBT_RESPONSES,
    )
    @action(detail=True, methods=["post"], filterset_class=None)
    def payments(self, request: Request, pk: int) -> Response:
        return self._settle(request, pk, "record_debt_payment", debts.pay_by_hand)

    @extend_schema(
        summary="Write off a debt",
        description="Wholly or in part: nobody asks for it any more. Needs the permission"
        " `marketplace.write_off_debt`.",
        parameters=[IDEMPOTENCY_KEY],
        request=DebtSettlementSerializer,
        examples=[OpenApiExample("All", value={"amount": 1000, "reason": "insolvent"}, request_only=True)],
        responses=DEBT_RESPONSES,
    )
    @action(detail=True, methods=["post"], url_path="write-off", filterset_class=None)
    def write_off(self, request: Request, pk: int) -> Response:
        return self._settle(request, pk, "write_off_debt", debts.write_off)

    def _settle(self, request: Request, pk: int, permission: str, act: Callable[..., debts.Entered]) -> Response:
        debt = get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, f"marketplace.{permission}")
        assert isinstance(request.user, User)
        key = required_key(request)
        body = DebtSettlementSerializer(data=request.data, context={"debt": debt})
        body.is_valid(raise_exception=True)
        entered = act(
            reversal_id=debt.pk,
            amount=body.validated_data["amount"],
            actor=f"user:{request.user.get_username()}",
            reason=body.validated_data["reason"],
            request=debts.Request(by=request.user, key=key),
            if_version=expected(request),
        )
        code = status.HTTP_201_CREATED if entered.is_new else status.HTTP_200_OK
        return self.answer(self.get_queryset().get(pk=pk), code)
