"""What is open, by status and currency: for staff."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import overview, selectors
from marketplace.api import access
from marketplace.api.bounded import Bounded
from marketplace.models import Order, Refund, SellerTransfer, TransferReversal, WebhookEvent


class OpenSerializer(serializers.Serializer[Any]):
    status = serializers.CharField()
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField(help_text="Of transfers less what came back, of reversals what is owed still.")


class OpenTransfersSerializer(OpenSerializer):
    failed_leg = serializers.CharField(help_text="`sending` or `reversing`; empty unless permanently failed.")
    code = serializers.CharField(help_text="The last error; empty where there is none.")


class OwedSerializer(OpenSerializer):
    """`pending`: a worker goes on. `failed`: a debt of its seller."""

    cause = serializers.CharField()
    age = serializers.ChoiceField(choices=list(overview.AGES), help_text="Owed for so long at most.")


class RecoveredSerializer(serializers.Serializer[Any]):
    cause = serializers.CharField()
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField()


class FailedEventsSerializer(serializers.Serializer[Any]):
    retrying = serializers.IntegerField(help_text="A worker tries again.")
    person = serializers.IntegerField(help_text="A person decides.")


class OldestDueSerializer(serializers.Serializer[Any]):
    """When the row that waits longest for a worker became, or becomes, due; null where none waits."""

    sending = serializers.DateTimeField(allow_null=True)
    reversing = serializers.DateTimeField(allow_null=True)
    refunding = serializers.DateTimeField(allow_null=True)
    events = serializers.DateTimeField(allow_null=True)


class StatsSerializer(serializers.Serializer[Any]):
    transfers = OpenTransfersSerializer(many=True, help_text="That are not at their end.")
    refunds = OpenSerializer(many=True, help_text="Of which the outcome is not known.")
    reversals = OwedSerializer(many=True, help_text="That Stripe has not confirmed.")
    recovered = RecoveredSerializer(many=True, help_text="Reversals that Stripe ever confirmed.")
    webhook_events_failed = FailedEventsSerializer()
    oldest_due = OldestDueSerializer()


class StatsView(Bounded):
    """What is open, by status and currency, what came back, and what waits longest for a worker."""

    permission_classes = [access.IsStaff]
    models = (Order, SellerTransfer, Refund, TransferReversal, WebhookEvent)

    @extend_schema(summary="Counts and money", responses=StatsSerializer)
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
        return Response(StatsSerializer(found).data)
