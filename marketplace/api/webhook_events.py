"""The events that Stripe sent, for staff: shown, and applied again."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import inbox, replay
from marketplace.api import access, filters
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import RowsAndDetails
from marketplace.api.schema import problem
from marketplace.api.shown import WORK, HistorySerializer, ReasonSerializer, Shown, history
from marketplace.models import WebhookEvent
from marketplace.money import LARGEST_AMOUNT
from marketplace.states import EventStatus

# --- Shown ----------------------------------------------------------------------------------------------------


class WebhookEventSerializer(Shown):
    class Meta:
        model = WebhookEvent
        fields: tuple[str, ...] = (
            "id",
            "status",
            "stripe_event_id",
            "type",
            "stripe_account_id",
            "livemode",
            "api_version",
            "stripe_created_at",
            "received_at",
            "outcome",
            "replay_count",
            *WORK,
        )


class WebhookEventDetailSerializer(WebhookEventSerializer):
    payload = serializers.DictField(help_text="The event as Stripe signed it. It may hold personal data.")
    history = serializers.SerializerMethodField(help_text="From the first replay on; the newest entries first.")

    class Meta(WebhookEventSerializer.Meta):
        fields = (*WebhookEventSerializer.Meta.fields, "payload", "history")

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, event: WebhookEvent) -> Any:
        return history(event)


class ReplayedSerializer(serializers.Serializer[Any]):
    found = serializers.IntegerField(help_text="Those that were taken up; each is one of the four that follow.")
    processed = serializers.IntegerField(help_text="Applied now.")
    ignored = serializers.IntegerField(help_text="Of no use to us, now as well.")
    failed = serializers.IntegerField(help_text="Failed again, with a fresh budget of tries.")
    skipped = serializers.IntegerField(help_text="In a worker's hands, or replayed by somebody else meanwhile.")
    last = serializers.IntegerField(help_text="The largest id that was taken up: send it as `after` to go on.")


# --- Taken ----------------------------------------------------------------------------------------------------


class ReplayByTypeSerializer(ReasonSerializer):
    type = serializers.ChoiceField(sorted(inbox.HANDLERS), help_text="Events of this type.")
    status = serializers.ChoiceField(
        [EventStatus.FAILED.value, EventStatus.IGNORED.value],
        default=EventStatus.FAILED.value,
        help_text="Those that failed, or those that were ignored.",
    )
    after = serializers.IntegerField(
        min_value=0,
        max_value=LARGEST_AMOUNT,
        default=0,
        help_text="Those with a larger id: `last` of the answer before.",
    )
    limit = serializers.IntegerField(min_value=1, max_value=200, default=50, help_text="So many at most, oldest first.")


# --- Views ----------------------------------------------------------------------------------------------------


class WebhookEventViewSet(RowsAndDetails[WebhookEvent]):
    # The payloads of a page of events would be megabytes.
    queryset = WebhookEvent.objects.defer("payload")
    serializer_class = WebhookEventSerializer
    detail_serializer_class = WebhookEventDetailSerializer
    filterset_class = filters.WebhookEventFilter
    ordering_fields = ("id",)

    @extend_schema(
        summary="Apply a failed or ignored event again",
        description="As though Stripe had just sent it; Stripe is not asked. The answer tells what became of it: it may"
        " fail again, and then has a fresh budget of tries. Needs the permission `marketplace.replay_webhookevent`. Of"
        " two requests at once one is done and the other gets 409.",
        request=ReasonSerializer,
        examples=[OpenApiExample("A reason", value={"reason": "the order is there now"}, request_only=True)],
        responses={
            200: WebhookEventDetailSerializer,
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
        event, _said, by = self.asked(request, pk, "marketplace.replay_webhookevent")
        inbox.replay(event_id=event.pk, **by)
        return self.answer_anew(pk)

    @extend_schema(
        operation_id="webhook_events_replay_by_type",
        summary="Apply events of one type again",
        description="All that failed, or were ignored, the oldest first; each by itself. With fewer than `limit` found,"
        " there are no more. Needs the permission `marketplace.replay_webhookevent`.",
        request=ReplayByTypeSerializer,
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
        responses=ReplayedSerializer,
        filters=False,
    )
    @action(detail=False, methods=["post"], url_path="replay", url_name="replay-by-type", pagination_class=None)
    def replay_by_type(self, request: Request) -> Response:
        self.get_queryset()
        access.demand(request.user, "marketplace.replay_webhookevent")
        body = ReplayByTypeSerializer(data=request.data)
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
        return Response(ReplayedSerializer(tally).data)
