"""The views: who asks, what they may see, which service they call. No rule about money lives here."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.db.models import Model, QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from drf_spectacular.views import SpectacularSwaggerView
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import NotAuthenticated, NotFound
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from marketplace import inbox, overview, replay, selectors, throttle
from marketplace.api import access, examples, filters, serializers
from marketplace.api.bounded import Bounded
from marketplace.api.idempotency import Idempotent, required_key
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.schema import IDEMPOTENCY_KEY, problem
from marketplace.api.versions import expected, version_of
from marketplace.errors import TooMuch
from marketplace.models import (
    ApiToken,
    Debt,
    Dispute,
    Order,
    Product,
    Refund,
    Seller,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
)
from marketplace.models.debts import OPEN
from marketplace.services import api_tokens, debts, disputes, give_backs, refund_plans, refunds, transfers
from marketplace.states import OPEN_REFUNDS, OPEN_REVERSALS, OPEN_TRANSFERS, EventStatus, RefundStatus

M = TypeVar("M", bound=Model)


class Rows(Idempotent, ListModelMixin, GenericViewSet[M]):
    """A list of the rows that the caller may see."""

    ordering_fields: tuple[str, ...] = ("id", "created_at")
    # Of rows whose ``status`` is asked for and among ``open_statuses``, which partial indexes find, by these too.
    open_ordering_fields: tuple[str, ...] = ()
    open_statuses: Collection[str] = ()
    detail_serializer_class: type[serializers.Shown] | None = None

    def get_queryset(self) -> QuerySet[M, M]:
        rows = super().get_queryset()
        return rows if getattr(self, "swagger_fake_view", False) else access.visible(rows, self.request.user)

    def get_serializer_class(self) -> Any:
        return (self.detail_serializer_class if self.detail else None) or super().get_serializer_class()


class RowsAndDetails(RetrieveModelMixin, Rows[M]):
    lookup_value_converter = "int"

    def retrieve(self, request: Request, *_: Any, **__: Any) -> Response:  # noqa: ARG002 - DRF names it
        return self.answer(self.get_object())

    def answer(self, row: M, code: int = status.HTTP_200_OK) -> Response:
        """The row, with its version where one can act on it."""
        return Response(self.get_serializer(row).data, status=code, headers=version_of(row))


# --- Sellers and products -----------------------------------------------------------------------------------


class SellerViewSet(RowsAndDetails[Seller]):
    queryset = Seller.objects.all()
    serializer_class = serializers.SellerSerializer
    filterset_class = filters.SellerFilter


class ProductViewSet(RowsAndDetails[Product]):
    queryset = Product.objects.all()
    serializer_class = serializers.ProductSerializer
    filterset_class = filters.ProductFilter
    ordering_fields = ("id", "created_at", "name", "unit_amount")


# --- Orders and their refunds -------------------------------------------------------------------------------


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


class OrderViewSet(RowsAndDetails[Order]):
    queryset = Order.objects.all()
    serializer_class = serializers.OrderSerializer
    detail_serializer_class = serializers.OrderDetailSerializer
    filterset_class = filters.OrderFilter
    ordering_fields = ("id",)

    def get_queryset(self) -> QuerySet[Order]:
        rows = super().get_queryset()
        return rows.prefetch_related("items__product", "items__seller") if self.action == "retrieve" else rows


class OrderRefundViewSet(Rows[Refund]):
    """The refunds of one order."""

    queryset = Refund.objects.all()
    serializer_class = serializers.RefundSerializer
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
        request=serializers.RefundRequestSerializer,
        examples=REFUND_EXAMPLES,
        responses={
            200: OpenApiResponse(serializers.RefundSerializer, "The key was used before: the refund as it is now."),
            201: OpenApiResponse(serializers.RefundSerializer, "Stripe answered; `status` says what."),
            202: OpenApiResponse(serializers.RefundSerializer, "Written down; Stripe has not answered yet."),
            **REFUND_PROBLEMS,
        },
    )
    def create(self, request: Request, **_: Any) -> Response:
        order = self.get_order()
        access.demand(request.user, access.permission("add", Refund))
        assert isinstance(request.user, User)
        key = required_key(request)
        body = serializers.RefundRequestSerializer(data=request.data, context={"order": order})
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
            refund = refunds.send(refund, throttle.gateway())
            is_waiting = refund.status == RefundStatus.REQUESTED
            code = status.HTTP_202_ACCEPTED if is_waiting else status.HTTP_201_CREATED
        shown = serializers.RefundSerializer(refund, context=self.get_serializer_context()).data
        return Response(shown, status=code, headers={"Location": reverse("api:refund-detail", args=[refund.pk])})


class RefundPlanView(Bounded):
    """What a refund of an order would take, and from whom; nothing is asked for."""

    @extend_schema(
        summary="Plan a refund",
        description="Each seller's part, the platform's, what was taken before, and whether the seller's balance at"
        " Stripe covers it now. Refunds under way are taken to succeed first. Send `version` as `plan_version` with the"
        " refund, and it is made only if nothing has changed. Needs the permissions `marketplace.add_refund` and"
        " `marketplace.view_sellertransfer`.",
        parameters=[serializers.RefundPlanQuerySerializer],
        responses={200: serializers.RefundPlanSerializer, **REFUND_PROBLEMS},
    )
    def get(self, request: Request, order_id: int) -> Response:
        order = get_object_or_404(access.visible(Order.objects.all(), request.user), pk=order_id)
        access.demand(request.user, access.permission("add", Refund), access.permission("view", SellerTransfer))
        query = serializers.RefundPlanQuerySerializer(data=request.query_params)
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
        return Response(serializers.RefundPlanSerializer(plan).data)


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


# --- Refunds, transfers, reversals --------------------------------------------------------------------------


class RefundViewSet(RowsAndDetails[Refund]):
    queryset = Refund.objects.all()
    serializer_class = serializers.RefundSerializer
    detail_serializer_class = serializers.RefundDetailSerializer
    filterset_class = filters.RefundFilter
    ordering_fields = ("id",)
    open_ordering_fields = ("created_at", "updated_at", "amount")
    open_statuses = OPEN_REFUNDS


class ReversalViewSet(RowsAndDetails[TransferReversal]):
    queryset = TransferReversal.objects.all()
    serializer_class = serializers.ReversalSerializer
    filterset_class = filters.ReversalFilter
    ordering_fields = ("id",)
    open_ordering_fields = ("created_at", "updated_at", "amount")
    open_statuses = OPEN_REVERSALS


class DisputeViewSet(RowsAndDetails[Dispute]):
    queryset = Dispute.objects.select_related("order")
    serializer_class = serializers.DisputeSerializer
    filterset_class = filters.DisputeFilter
    ordering_fields = ("id", "created_at", "updated_at", "amount", "amount_lost", "evidence_due_by")

    @extend_schema(
        summary="Enter how much of the order a dispute is",
        description="Of a dispute in another currency than its order's, once. If it counts as lost, its sellers owe"
        " their part at once. Needs the permission `marketplace.enter_dispute_amount`.",
        request=serializers.DisputedAmountSerializer,
        examples=[
            OpenApiExample(
                "All of the order",
                value={"amount": 5000, "currency": "eur", "reason": "the whole charge"},
                request_only=True,
            )
        ],
        responses={
            200: serializers.DisputeSerializer,
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
        dispute = get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, "marketplace.enter_dispute_amount")
        body = serializers.DisputedAmountSerializer(data=request.data, context={"dispute": dispute})
        body.is_valid(raise_exception=True)
        disputes.enter_amount(
            dispute_id=dispute.pk,
            amount=body.validated_data["amount"],
            actor=f"user:{request.user.get_username()}",
            reason=body.validated_data["reason"],
            if_version=expected(request),
        )
        return self.answer(self.get_queryset().get(pk=pk))


class TransferViewSet(RowsAndDetails[SellerTransfer]):
    queryset = SellerTransfer.objects.all()
    serializer_class = serializers.TransferSerializer
    detail_serializer_class = serializers.TransferDetailSerializer
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
        request=serializers.ReasonSerializer,
        examples=[
            OpenApiExample("A reason", value={"reason": "the seller's account is open again"}, request_only=True)
        ],
        responses={
            200: serializers.TransferDetailSerializer,
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
        request=serializers.ReasonSerializer,
        examples=[OpenApiExample("A reason", value={"reason": "the seller has topped up"}, request_only=True)],
        responses={
            200: serializers.TransferDetailSerializer,
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
        request=serializers.StripeTransferIdSerializer,
        examples=[
            OpenApiExample(
                "Found in Stripe's dashboard",
                value={"stripe_transfer_id": "tr_1OxExample", "reason": "the only one of order 13's transfer group"},
                request_only=True,
            )
        ],
        responses={
            200: serializers.TransferDetailSerializer,
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
        transfer = get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, "marketplace.retry_sellertransfer")
        body = serializers.StripeTransferIdSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        transfers.enter_transfer_id(
            transfer_id=transfer.pk,
            if_version=expected(request),
            found=transfers.look_up(body.validated_data["stripe_transfer_id"], throttle.gateway()),
            actor=f"user:{request.user.get_username()}",
            reason=body.validated_data["reason"],
        )
        return self.answer(self.get_queryset().get(pk=pk))

    @extend_schema(
        summary="Decline to pay a seller again",
        description="Of a transfer that gives back (`gives_back_of`) and waits for a person: the platform keeps the"
        " money, for good. A retry pays it instead. Needs the permission `marketplace.decline_sellertransfer`.",
        request=serializers.ReasonSerializer,
        examples=[OpenApiExample("A reason", value={"reason": "agreed with the seller"}, request_only=True)],
        responses={
            200: serializers.TransferDetailSerializer,
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
        transfer = get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, f"marketplace.{permission}")
        body = serializers.ReasonSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        act(
            transfer_id=transfer.pk,
            if_version=expected(request),
            actor=f"user:{request.user.get_username()}",
            reason=body.validated_data["reason"],
        )
        return self.answer(self.get_queryset().get(pk=pk))


# --- What sellers owe ---------------------------------------------------------------------------------------


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
    200: OpenApiResponse(serializers.DebtDetailSerializer, "The key was used before: the debt as it is now."),
    201: OpenApiResponse(serializers.DebtDetailSerializer, "The debt after it; `entries` has the new one."),
    **DEBT_PROBLEMS,
}


class DebtViewSet(RowsAndDetails[Debt]):
    queryset = Debt.objects.all()
    serializer_class = serializers.DebtSerializer
    detail_serializer_class = serializers.DebtDetailSerializer
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
        responses=serializers.DebtTotalSerializer(many=True),
        filters=True,
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def totals(self, _request: Request) -> Response:
        found = selectors.debt_totals(self.filter_queryset(self.get_queryset()))
        return Response(serializers.DebtTotalSerializer(found, many=True).data)

    @extend_schema(
        summary="Record that a seller paid a debt",
        description="Outside of Stripe, wholly or in part. What came back counts as taken for the refund: it is given"
        " back if that fails. Needs the permission `marketplace.record_debt_payment`.",
        parameters=[IDEMPOTENCY_KEY],
        request=serializers.DebtSettlementSerializer,
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
        request=serializers.DebtSettlementSerializer,
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
        body = serializers.DebtSettlementSerializer(data=request.data, context={"debt": debt})
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


# --- For staff ----------------------------------------------------------------------------------------------


class WebhookEventViewSet(RowsAndDetails[WebhookEvent]):
    # The payloads of a page of events would be megabytes.
    queryset = WebhookEvent.objects.defer("payload")
    serializer_class = serializers.WebhookEventSerializer
    detail_serializer_class = serializers.WebhookEventDetailSerializer
    filterset_class = filters.WebhookEventFilter
    ordering_fields = ("id",)

    @extend_schema(
        summary="Apply a failed or ignored event again",
        description="As though Stripe had just sent it; Stripe is not asked. The answer tells what became of it: it may"
        " fail again, and then has a fresh budget of tries. Needs the permission `marketplace.replay_webhookevent`. Of"
        " two requests at once one is done and the other gets 409.",
        request=serializers.ReasonSerializer,
        examples=[OpenApiExample("A reason", value={"reason": "the order is there now"}, request_only=True)],
        responses={
            200: serializers.WebhookEventDetailSerializer,
            (409, CONTENT_TYPE): problem(
                "It was applied, or a worker has it in hand.",
                (
                    "Processed",
                    409,
                    "not-allowed-now",
                    "evt_1 is processed: only one that failed or was ignored can be replayed",
                ),
            ),
        },
    )
    @action(detail=True, methods=["post"])
    def replay(self, request: Request, pk: int) -> Response:
        event = get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, "marketplace.replay_webhookevent")
        body = serializers.ReasonSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        inbox.replay(
            event_id=event.pk,
            if_version=expected(request),
            actor=f"user:{request.user.get_username()}",
            reason=body.validated_data["reason"],
        )
        return self.answer(self.get_queryset().get(pk=pk))

    @extend_schema(
        operation_id="webhook_events_replay_by_type",
        summary="Apply events of one type again",
        description="All that failed, or were ignored, the oldest first; each by itself. With fewer than `limit` found,"
        " there are no more. Needs the permission `marketplace.replay_webhookevent`.",
        request=serializers.ReplayByTypeSerializer,
        examples=[
            OpenApiExample(
                "Refunds that failed", value={"type": "refund.updated", "reason": "mended"}, request_only=True
            ),
            OpenApiExample(
                "What became of them",
                value={"found": 3, "processed": 2, "ignored": 0, "failed": 1, "skipped": 0, "last": 4711},
                response_only=True,
            ),
        ],
        responses=serializers.ReplayedSerializer,
        filters=False,
    )
    @action(detail=False, methods=["post"], url_path="replay", url_name="replay-by-type", pagination_class=None)
    def replay_by_type(self, request: Request) -> Response:
        self.get_queryset()
        access.demand(request.user, "marketplace.replay_webhookevent")
        body = serializers.ReplayByTypeSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        asked = body.validated_data
        tally = replay.from_inbox(
            replay.Stored(
                status=EventStatus(asked["status"]),
                types=[asked["type"]],
                after=asked["after"],
                at_most=asked["limit"],
            ),
            actor=f"user:{request.user.get_username()}",
            reason=asked["reason"],
        )
        return Response(serializers.ReplayedSerializer(tally).data)


class StatsView(Bounded):
    """What is open, by status and currency, what came back, and what waits longest for a worker."""

    permission_classes = [access.IsStaff]
    models = (Order, SellerTransfer, Refund, TransferReversal, WebhookEvent)

    @extend_schema(summary="Counts and money", responses=serializers.StatsSerializer)
    def get(self, request: Request) -> Response:
        access.demand(request.user, *(access.permission("view", model) for model in self.models))
        found = {
            "transfers": overview.waiting(),
            "refunds": overview.open_refunds(),
            "reversals": overview.owed(),
            "recovered": overview.recovered(),
            "webhook_events_failed": overview.failed_events(),
            "oldest_due": {
                queue: row[1] if (row := overview.longest_waiting(queue)) else None for queue in selectors.QUEUES
            },
        }
        return Response(serializers.StatsSerializer(found).data)


# --- Tokens -------------------------------------------------------------------------------------------------


class ApiTokenViewSet(RowsAndDetails[ApiToken]):
    """Tokens of one's own; with `marketplace.view_apitoken` everybody's."""

    queryset = ApiToken.objects.all()
    serializer_class = serializers.ApiTokenSerializer
    filterset_class = filters.ApiTokenFilter
    ordering_fields = ("id", "created_at", "expires_at", "last_used_at")
    told_once = ("token",)

    def get_queryset(self) -> QuerySet[ApiToken]:
        if getattr(self, "swagger_fake_view", False):
            return ApiToken.objects.none()
        access.demand_own_tokens(self.request.user)
        return access.tokens_of(self.request.user)

    @extend_schema(
        summary="Make an API token",
        description="The answer tells the token, this once: keep it where secrets are kept. It can never do more than"
        " its user, and one that is made by a token no more than that one, nor live longer. Under an `Idempotency-Key`"
        " that was used, `token` is null.",
        request=serializers.NewApiTokenSerializer,
        examples=[
            OpenApiExample(
                "For a shop",
                value={"name": "shop", "scopes": ["read", "refund"], "expires_in_days": 30},
                request_only=True,
            )
        ],
        responses={201: OpenApiResponse(serializers.MadeApiTokenSerializer, "The token, and what is known of it.")},
    )
    def create(self, request: Request) -> Response:
        access.demand_own_tokens(request.user)
        assert isinstance(request.user, User)
        body = serializers.NewApiTokenSerializer(data=request.data, context={"maker": request.auth})
        body.is_valid(raise_exception=True)
        made = api_tokens.make(
            user=request.user,
            name=body.validated_data["name"],
            scopes=body.validated_data["scopes"],
            age=body.validated_data["age"],
            actor=f"user:{request.user.get_username()}",
        )
        shown = serializers.MadeApiTokenSerializer(made, context=self.get_serializer_context()).data
        address = reverse("api:token-detail", args=[made.token.pk])
        return Response(shown, status=status.HTTP_201_CREATED, headers={"Location": address})

    @extend_schema(
        summary="Revoke an API token",
        description="It is refused from now on. Somebody else's needs the permission `marketplace.revoke_apitoken`.",
        request=None,
        responses={
            200: serializers.ApiTokenSerializer,
            (409, CONTENT_TYPE): problem(
                "It was revoked before.",
                ("Revoked before", 409, "not-allowed-now", "API token 7 was revoked before"),
            ),
        },
    )
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: int) -> Response:
        token = get_object_or_404(self.get_queryset(), pk=pk)
        if token.user_id != request.user.pk:
            access.demand(request.user, "marketplace.revoke_apitoken")
        revoked = api_tokens.revoke(token_id=token.pk, actor=f"user:{request.user.get_username()}")
        return self.answer(revoked)


# --- The rest -----------------------------------------------------------------------------------------------


class DocsView(SpectacularSwaggerView):
    """The API's documents for people: who is not signed in is sent to sign in."""

    def handle_exception(self, exc: Exception) -> Any:
        if isinstance(exc, NotAuthenticated):
            return redirect_to_login(self.request.get_full_path())
        return super().handle_exception(exc)


class NothingHereView(APIView):
    """Any other address under /api/, whatever the method."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        hint = "" if request.path.endswith("/") else " Addresses end with a slash."
        raise NotFound(f"There is nothing at {request.path}.{hint}")
