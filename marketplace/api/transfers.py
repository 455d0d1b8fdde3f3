"""Sellers' transfers and their reversals; what a person may do about one that waits."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import throttle
from marketplace.api import examples, filters
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import RowsAndDetails
from marketplace.api.schema import problem
from marketplace.api.shown import WORK, HistorySerializer, ReasonSerializer, Shown, history
from marketplace.api.why import WhySerializer
from marketplace.explain import transfers as explanations
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import give_backs, transfers
from marketplace.states import OPEN_REVERSALS, OPEN_TRANSFERS

# --- Shown ----------------------------------------------------------------------------------------------------


class ReversalSerializer(Shown):
    staff_only = (
        "refund",
        "dispute",
        "stripe_status",
        "waiting_for_funds_since",
        "unwanted_amount",
        "refused",
        "correlation_id",
    )

    class Meta:
        model = TransferReversal
        fields = (
            "id",
            "status",
            "transfer",
            "cause",
            "description",
            "amount",
            "currency",
            "amount_recovered",
            "amount_written_off",
            "in_place_of",
            "stripe_reversal_id",
            "created_at",
            "updated_at",
            "refund",
            "dispute",
            "stripe_status",
            "waiting_for_funds_since",
            "unwanted_amount",
            "refused",
            "correlation_id",
        )


class TransferSerializer(Shown):
    staff_only = ("failed_leg", "correlation_id", *WORK)

    class Meta:
        model = SellerTransfer
        fields: tuple[str, ...] = (
            "id",
            "status",
            "order",
            "seller",
            "description",
            "amount",
            "amount_reversed",
            "amount_kept_back",
            "amount_netted",
            "currency",
            "gives_back_of",
            "undoes",
            "declined",
            "stripe_transfer_id",
            "stripe_reversal_id",
            "created_at",
            "updated_at",
            "failed_leg",
            "correlation_id",
            *WORK,
        )


class TransferDetailSerializer(TransferSerializer):
    staff_only = (*TransferSerializer.staff_only, "why", "history")
    why = serializers.SerializerMethodField(help_text="Why it is where it is, what unblocks it, and when.")
    reversals = ReversalSerializer(many=True)
    history = serializers.SerializerMethodField(help_text="The newest entries first, at most a hundred.")

    class Meta(TransferSerializer.Meta):
        fields = (*TransferSerializer.Meta.fields, "why", "reversals", "history")

    @extend_schema_field(WhySerializer)
    def get_why(self, transfer: SellerTransfer) -> Any:
        request = self.context.get("request")
        user = request.user if request is not None else None
        return WhySerializer(explanations.explain(transfer, user=user)).data

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, transfer: SellerTransfer) -> Any:
        return history(transfer)


# --- Taken ----------------------------------------------------------------------------------------------------


class StripeTransferIdSerializer(ReasonSerializer):
    stripe_transfer_id = serializers.RegexField(
        r"^tr_[A-Za-z0-9_]{1,200}$", help_text="`tr_…`, as Stripe has it.", max_length=203
    )


# --- Views ----------------------------------------------------------------------------------------------------


class ReversalViewSet(RowsAndDetails[TransferReversal]):
    queryset = TransferReversal.objects.all()
    serializer_class = ReversalSerializer
    filterset_class = filters.ReversalFilter
    ordering_fields = ("id",)
    open_ordering_fields = ("created_at", "updated_at", "amount")
    open_statuses = OPEN_REVERSALS


class TransferViewSet(RowsAndDetails[SellerTransfer]):
    queryset = SellerTransfer.objects.all()
    serializer_class = TransferSerializer
    detail_serializer_class = TransferDetailSerializer
    filterset_class = filters.TransferFilter
    ordering_fields = ("id",)
    open_ordering_fields = ("created_at", "updated_at", "amount")
    open_statuses = OPEN_TRANSFERS

    @extend_schema(
        description="For staff with `why`: why it is where it is, what unblocks it, when it is tried next and why then,"
        " and what you may do about it now.",
        examples=[OpenApiExample("Waits for its seller's money", value=examples.TRANSFER, response_only=True)],
    )
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().retrieve(request, *args, **kwargs)

    def get_queryset(self) -> QuerySet[SellerTransfer]:
        rows = super().get_queryset()
        return rows.select_related("seller", "order").prefetch_related("reversals") if self.detail else rows

    @extend_schema(
        summary="Resume a permanently failed transfer",
        description="Makes the leg that failed due now, with a fresh budget of retries. Needs the permission"
        " `marketplace.retry_sellertransfer`. Of two requests at once one is done and the other gets 409.",
        request=ReasonSerializer,
        examples=[
            OpenApiExample("A reason", value={"reason": "the seller's account is open again"}, request_only=True)
        ],
        responses={
            200: TransferDetailSerializer,
            (409, CONTENT_TYPE): problem(
                "The state does not allow it, or the transfer's Stripe id is missing.",
                (
                    "Not failed",
                    409,
                    "not-allowed-now",
                    "transfer 7 is completed: only a permanently_failed one can be retried",
                ),
            ),
        },
    )
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: int) -> Response:
        return self._act(request, pk, "retry_sellertransfer", transfers.retry)

    @extend_schema(
        summary="Try a transfer now that waits for its time",
        description="Its next attempt is due now. Retries that were spent stay spent, and its key stays. Needs the"
        " permission `marketplace.retry_sellertransfer`. Of two requests at once one is done and the other gets 409.",
        request=ReasonSerializer,
        examples=[OpenApiExample("A reason", value={"reason": "the seller has topped up"}, request_only=True)],
        responses={
            200: TransferDetailSerializer,
            (409, CONTENT_TYPE): problem(
                "It waits for no time: it is due already, in a worker's hands, or not in motion.",
                (
                    "Due already",
                    409,
                    "not-allowed-now",
                    "transfer 7 is due already: a worker takes it up as soon as it can",
                ),
            ),
        },
    )
    @action(detail=True, methods=["post"], url_path="try-now")
    def try_now(self, request: Request, pk: int) -> Response:
        return self._act(request, pk, "retry_sellertransfer", transfers.try_now)

    @extend_schema(
        summary="Enter the Stripe id that a transfer of an older system lacks",
        description="Stripe is asked first: amount, currency and account have to be the row's, and it must not have"
        " been made for another row. It cannot be changed afterwards; retry the transfer then. Needs the permission"
        " `marketplace.retry_sellertransfer`.",
        request=StripeTransferIdSerializer,
        examples=[
            OpenApiExample(
                "Found in Stripe's dashboard",
                value={"stripe_transfer_id": "tr_1OxExample", "reason": "the only one of order 13's transfer group"},
                request_only=True,
            )
        ],
        responses={
            200: TransferDetailSerializer,
            (409, CONTENT_TYPE): problem(
                "It has its id or waits for none; or at Stripe it is another transfer, or none.",
                ("It has one", 409, "not-allowed-now", "transfer 7 has its id: tr_1OxExample"),
                (
                    "Another",
                    409,
                    "conflicting-facts",
                    "tr_1OxExample is another transfer: its operation_id at Stripe is 6f1d3a52-…",
                ),
            ),
            (502, CONTENT_TYPE): problem(
                "Stripe refuses our key.", ("Denied", 502, "stripe-denied", "The key lacks the permission to read it.")
            ),
            (503, CONTENT_TYPE): problem(
                "Stripe does not answer; `Retry-After` says when to come again. Nothing was written.",
                ("No answer", 503, "not-now", "Stripe did not say what tr_1OxExample is, try again: timeout"),
            ),
        },
    )
    @action(detail=True, methods=["post"], url_path="stripe-id")
    def stripe_id(self, request: Request, pk: int) -> Response:
        transfer, said, by = self.asked(request, pk, "marketplace.retry_sellertransfer", StripeTransferIdSerializer)
        found = transfers.look_up(said["stripe_transfer_id"], throttle.gateway())
        transfers.enter_transfer_id(transfer_id=transfer.pk, found=found, **by)
        return self.answer_anew(pk)

    @extend_schema(
        summary="Decline to pay a seller again",
        description="Of a transfer that gives back (`gives_back_of`) and waits for a person: the platform keeps the"
        " money, for good. A retry pays it instead. Needs the permission `marketplace.decline_sellertransfer`.",
        request=ReasonSerializer,
        examples=[OpenApiExample("A reason", value={"reason": "agreed with the seller"}, request_only=True)],
        responses={
            200: TransferDetailSerializer,
            (409, CONTENT_TYPE): problem(
                "It is a seller's share of a sale, does not wait for a person, or may have been sent.",
                (
                    "A share of a sale",
                    409,
                    "not-allowed-now",
                    "transfer 7 is a seller's share of a sale: only a payment back is declined",
                ),
            ),
        },
    )
    @action(detail=True, methods=["post"])
    def decline(self, request: Request, pk: int) -> Response:
        return self._act(request, pk, "decline_sellertransfer", give_backs.decline)

    def _act(self, request: Request, pk: int, permission: str, act: Callable[..., SellerTransfer]) -> Response:
        transfer, _said, by = self.asked(request, pk, f"marketplace.{permission}")
        act(transfer_id=transfer.pk, **by)
        return self.answer_anew(pk)
