"""Reconciliations with Stripe, and the drift that each found: for scripts that watch, only to be read."""

from django.db.models import Count, Q
from rest_framework import serializers

from marketplace.api import filters
from marketplace.api.rows import RowsAndDetails
from marketplace.api.shown import Shown
from marketplace.models import Reconciliation, ReconciliationFinding
from marketplace.reconciliation import report


class ReconciliationSerializer(Shown):
    asked = serializers.CharField(help_text="The flags of `manage.py reconcile`.")
    counts = serializers.SerializerMethodField(help_text="What was compared, and with how many requests.")
    found = serializers.IntegerField(help_text="How much drift there was.")
    left = serializers.IntegerField(help_text="What of it was not healed.")

    class Meta:
        model = Reconciliation
        fields: tuple[str, ...] = (
            "id",
            "asked",
            "since",
            "until",
            "counts",
            "found",
            "left",
            "started_at",
            "finished_at",
        )

    def get_counts(self, run: Reconciliation) -> dict[str, int]:
        return report.counts(run)


class DriftSerializer(Shown):
    class Meta:
        model = ReconciliationFinding
        fields: tuple[str, ...] = (
            "id",
            "run",
            "kind",
            "subject",
            "stripe_id",
            "stripe_account_id",
            "amount",
            "currency",
            "detail",
            "remedy",
            "is_healed",
            "found_at",
        )


class ReconciliationViewSet(RowsAndDetails[Reconciliation]):
    queryset = Reconciliation.objects.annotate(
        found=Count("findings"), left=Count("findings", filter=Q(findings__is_healed=False))
    )
    serializer_class = ReconciliationSerializer
    filterset_class = filters.ReconciliationFilter
    ordering_fields = ("id",)


class DriftViewSet(RowsAndDetails[ReconciliationFinding]):
    queryset = ReconciliationFinding.objects.all()
    serializer_class = DriftSerializer
    filterset_class = filters.DriftFilter
    ordering_fields = ("id",)
