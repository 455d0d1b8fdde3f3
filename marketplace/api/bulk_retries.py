"""Bulk retries: planned, started, approved, stopped; what they choose, and the result of each transfer."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import selectors
from marketplace.api import access
from marketplace.api.fields import AmountField, StrictSerializer, TextField
from marketplace.api.filters import BulkRetryFilter, BulkRetryItemFilter
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import Rows, RowsAndDetails
from marketplace.api.schema import problem
from marketplace.api.shown import HistorySerializer, ReasonSerializer, Shown, history
from marketplace.api.versions import expected, version_of
from marketplace.models import BulkRetry, BulkRetryItem, SellerTransfer
from marketplace.services import bulk_retries, bulk_steps
from marketplace.states import BulkRetryItemStatus

# --- Shown ----------------------------------------------------------------------------------------------------


class CriteriaSerializer(StrictSerializer):
    """What is left out does not matter."""

    failed_leg = serializers.ChoiceField(choices=SellerTransfer.Leg.choices, required=False)
    error_code = TextField(required=False, max_length=100, help_text="The transfer's `last_error_code`, whole.")
    seller = AmountField(required=False, help_text="A seller's number.")
    currency = serializers.RegexField(r"^[a-z]{3}$", required=False, help_text="Three lower-case letters.")
    failed_after = serializers.DateTimeField(required=False, help_text="Of the last error, and exactly then.")
    failed_before = serializers.DateTimeField(required=False, help_text="Of the last error, and not exactly then.")


class BulkTallySerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=BulkRetryItemStatus.choices)
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField(help_text="What the retries move, in the currency's minor unit.")


class BulkOutcomeSerializer(serializers.Serializer[Any]):
    why = serializers.CharField()
    count = serializers.IntegerField()


class OverSerializer(serializers.Serializer[Any]):
    currency = serializers.CharField()
    amount = serializers.IntegerField(help_text="With what the same person started in the last 24 hours.")
    limit = serializers.IntegerField(help_text="Up to this one person is enough.")


class BulkRetrySerializer(Shown):
    criteria = serializers.DictField(help_text="As it was asked for.")
    requested_by = serializers.CharField(source="requested_by.username")
    approved_by = serializers.CharField(source="approved_by.username", default=None, allow_null=True)

    class Meta:
        model = BulkRetry
        fields: tuple[str, ...] = (
            "id",
            "status",
            "criteria",
            "reason",
            "requested_by",
            "needs_approval",
            "approved_by",
            "canary_size",
            "per_minute",
            "max_error_percent",
            "stop_reason",
            "started_at",
            "created_at",
            "updated_at",
        )


class BulkRetryDetailSerializer(BulkRetrySerializer):
    totals = serializers.SerializerMethodField(help_text="How many and how much, by result and currency.")
    refused = serializers.SerializerMethodField(help_text="Why some cannot be retried, the most frequent ten.")
    over_limit = serializers.SerializerMethodField(help_text="Sums for which a second person is needed.")
    is_paused = serializers.SerializerMethodField(
        help_text="Stripe fails for everyone at the moment: nothing is retried until it answers."
    )
    history = serializers.SerializerMethodField()

    class Meta(BulkRetrySerializer.Meta):
        fields = (*BulkRetrySerializer.Meta.fields, "totals", "refused", "over_limit", "is_paused", "history")

    @extend_schema_field(BulkTallySerializer(many=True))
    def get_totals(self, bulk_retry: BulkRetry) -> Any:
        return BulkTallySerializer(selectors.bulk_tallies(bulk_retry), many=True).data

    @extend_schema_field(BulkOutcomeSerializer(many=True))
    def get_refused(self, bulk_retry: BulkRetry) -> Any:
        found = selectors.bulk_outcomes(bulk_retry, BulkRetryItemStatus.REFUSED)
        return [{"why": why, "count": count} for why, count in found]

    @extend_schema_field(OverSerializer(many=True))
    def get_over_limit(self, bulk_retry: BulkRetry) -> Any:
        return OverSerializer(bulk_retries.over_limit(bulk_retry), many=True).data

    def get_is_paused(self, bulk_retry: BulkRetry) -> bool:
        return bulk_retry.status in bulk_steps.OPEN and bulk_steps.held_back(bulk_retry)

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, bulk_retry: BulkRetry) -> Any:
        return history(bulk_retry)


class BulkRetryItemSerializer(Shown):
    transfer_status = serializers.CharField(source="transfer.status", help_text="As it is now.")
    why = serializers.CharField(source="outcome", help_text="What became of it, in words.")

    class Meta:
        model = BulkRetryItem
        fields = (
            "id",
            "position",
            "transfer",
            "transfer_status",
            "status",
            "why",
            "failed_leg",
            "error_code",
            "amount",
            "currency",
            "retried_at",
            "settled_at",
        )


class BulkRetryRequestSerializer(StrictSerializer):
    criteria = CriteriaSerializer(help_text="Which of the transfers that need a person.")
    reason = TextField(max_length=500, help_text="Why they can work now; it stays in each transfer's history.")


class NoFieldsSerializer(StrictSerializer):
    """Nothing is asked for."""


# --- Views ----------------------------------------------------------------------------------------------------


def _refused(name: str, detail: str) -> dict[Any, Any]:
    shown = problem("The state does not allow it, or the person.", (name, 409, "not-allowed-now", detail))
    return {200: BulkRetryDetailSerializer, (409, CONTENT_TYPE): shown}


A_REASON = OpenApiExample("A reason", value={"reason": "checked with support"}, request_only=True)


class BulkRetryViewSet(RowsAndDetails[BulkRetry]):
    queryset = BulkRetry.objects.select_related("requested_by", "approved_by")
    serializer_class = BulkRetrySerializer
    detail_serializer_class = BulkRetryDetailSerializer
    filterset_class = BulkRetryFilter
    ordering_fields = ("id", "created_at", "updated_at")

    @extend_schema(
        summary="Plan a bulk retry",
        description="Chooses among the transfers that need a person, at most 10,000, and counts them: a dry run."
        " Nothing is retried before it is started. The answer's `totals` say how many and how much, `refused` why some"
        " cannot be retried, `over_limit` whether a second person will be needed. Needs the permission"
        " `marketplace.retry_sellertransfer`.",
        request=BulkRetryRequestSerializer,
        examples=[
            OpenApiExample(
                "By cause and seller",
                value={
                    "criteria": {"error_code": "account_invalid", "seller": 12, "currency": "eur"},
                    "reason": "the seller's account is open again",
                },
                request_only=True,
            )
        ],
        responses={
            201: BulkRetryDetailSerializer,
            (409, CONTENT_TYPE): problem(
                "Nothing matches, or too much.",
                ("Nothing", 409, "not-allowed-now", "no transfer that needs a person matches"),
            ),
        },
    )
    def create(self, request: Request) -> Response:
        access.demand(
            request.user,
            "marketplace.retry_sellertransfer",
            access.permission("view", BulkRetry),
            access.permission("view", SellerTransfer),
        )
        assert isinstance(request.user, User)
        body = BulkRetryRequestSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        criteria = dict(body.validated_data["criteria"])
        planned = bulk_retries.plan(
            criteria=bulk_retries.Criteria(seller_id=criteria.pop("seller", None), **criteria),
            by=request.user,
            reason=body.validated_data["reason"],
        )
        shown = BulkRetryDetailSerializer(planned, context=self.get_serializer_context()).data
        address = reverse("api:bulk-retry-detail", args=[planned.pk])
        return Response(shown, status=status.HTTP_201_CREATED, headers={"Location": address, **version_of(planned)})

    @extend_schema(
        summary="Start a planned bulk retry",
        description="A worker retries the canary, and the rest once that went well. Where it is over the sum, it waits"
        " for a second person first. Only who planned it starts it, within 24 hours. Needs the permission"
        " `marketplace.retry_sellertransfer`.",
        request=NoFieldsSerializer,
        examples=[OpenApiExample("Nothing to say", value={}, request_only=True)],
        responses=_refused("Started before", "bulk retry 7 is running: expected planned"),
    )
    @action(detail=True, methods=["post"], filterset_class=None)
    def start(self, request: Request, pk: int) -> Response:
        self._may(request, pk, "retry_sellertransfer")
        NoFieldsSerializer(data=request.data).is_valid(raise_exception=True)
        by, if_version = self._user(request), expected(request)
        return self._done(bulk_retries.start(bulk_retry_id=pk, by=by, if_version=if_version))

    @extend_schema(
        summary="Approve a bulk retry of another person",
        description="It begins. Nobody approves what they asked for themselves, and no token does: it takes a"
        " session of the admin. Needs the permission `marketplace.approve_bulkretry`.",
        request=ReasonSerializer,
        examples=[A_REASON],
        responses=_refused("One's own", "bulk retry 7 is your own: another person has to approve it"),
    )
    @action(detail=True, methods=["post"], filterset_class=None)
    def approve(self, request: Request, pk: int) -> Response:
        return self._act(request, pk, "approve_bulkretry", bulk_retries.approve)

    @extend_schema(
        summary="Stop a bulk retry",
        description="Nothing more is retried once this has answered; what was retried before goes on. Needs the"
        " permission `marketplace.stop_bulkretry`.",
        request=ReasonSerializer,
        examples=[A_REASON],
        responses=_refused("Over", "bulk retry 7 is finished: expected canary or running"),
    )
    @action(detail=True, methods=["post"], filterset_class=None)
    def stop(self, request: Request, pk: int) -> Response:
        return self._act(request, pk, "stop_bulkretry", bulk_retries.stop)

    @extend_schema(
        summary="Cancel a bulk retry that has not begun",
        description="Also how a second person declines. Needs the permission `marketplace.stop_bulkretry`.",
        request=ReasonSerializer,
        examples=[A_REASON],
        responses=_refused("Begun", "bulk retry 7 is running: expected planned or awaiting_approval"),
    )
    @action(detail=True, methods=["post"], filterset_class=None)
    def cancel(self, request: Request, pk: int) -> Response:
        return self._act(request, pk, "stop_bulkretry", bulk_retries.cancel)

    def _act(self, request: Request, pk: int, permission: str, act: Callable[..., BulkRetry]) -> Response:
        self._may(request, pk, permission)
        body = ReasonSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        reason, if_version = body.validated_data["reason"], expected(request)
        return self._done(act(bulk_retry_id=pk, by=self._user(request), reason=reason, if_version=if_version))

    def _may(self, request: Request, pk: int, permission: str) -> None:
        get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, f"marketplace.{permission}")

    def _user(self, request: Request) -> User:
        assert isinstance(request.user, User)
        return request.user

    def _done(self, bulk_retry: BulkRetry) -> Response:
        shown = BulkRetryDetailSerializer(bulk_retry, context=self.get_serializer_context()).data
        return Response(shown, headers=version_of(bulk_retry))


class BulkRetryItemViewSet(Rows[BulkRetryItem]):
    """The transfers of one bulk retry, each with its result."""

    queryset = BulkRetryItem.objects.select_related("transfer")
    serializer_class = BulkRetryItemSerializer
    filterset_class = BulkRetryItemFilter
    ordering_fields = ("id", "position")

    def get_queryset(self) -> QuerySet[BulkRetryItem, BulkRetryItem]:
        if getattr(self, "swagger_fake_view", False):
            return BulkRetryItem.objects.all()
        rows = access.visible(BulkRetry.objects.all(), self.request.user)
        bulk_retry = get_object_or_404(rows, pk=self.kwargs["id"])
        return BulkRetryItem.objects.filter(bulk_retry=bulk_retry).select_related("transfer")
