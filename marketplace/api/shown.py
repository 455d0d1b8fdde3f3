"""What topics show in the same way, and the reason that acts ask for.

Amounts are whole minor units next to their currency.
"""

from typing import Any, ClassVar

from django.db.models import Model
from rest_framework import serializers

from marketplace.api.fields import StrictSerializer, TextField

WORK = [
    "retry_count",
    "next_retry_at",
    "last_error_code",
    "last_error_message",
    "last_error_request_id",
    "last_error_at",
]


class Shown(serializers.ModelSerializer[Any]):
    """Read-only. The fields of ``staff_only`` are left out for buyers and sellers: how we work is not theirs to see."""

    staff_only: ClassVar[tuple[str, ...]] = ()

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        for field in fields.values():
            field.read_only = True
        request = self.context.get("request")
        if request is not None and not request.user.is_staff and not getattr(request, "is_schema", False):
            for name in self.staff_only:
                fields.pop(name, None)
        return fields


class HistorySerializer(serializers.Serializer[Any]):
    """One entry of a row's history, as the database's triggers wrote it."""

    at = serializers.DateTimeField(source="pgh_created_at")
    event = serializers.ChoiceField(
        source="pgh_label",
        choices=["created", "status", "attempt", "woken"],
        help_text="`attempt` failed and left the status as it was; `woken`: an operator had the next one made now.",
    )
    status = serializers.CharField()
    actor = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    attempt = serializers.SerializerMethodField()
    error_code = serializers.CharField(source="last_error_code", default="")
    error_message = serializers.CharField(source="last_error_message", default="")

    def get_actor(self, entry: Any) -> str:
        return str((entry.pgh_context or {}).get("actor") or "")

    def get_reason(self, entry: Any) -> str:
        return str((entry.pgh_context or {}).get("reason") or "")

    def get_attempt(self, entry: Any) -> int | None:
        attempt: int | None = (entry.pgh_context or {}).get("attempt")
        return attempt


def history(row: Model) -> Any:
    entries: Any = row.history  # type: ignore[attr-defined]  # pghistory adds it
    return HistorySerializer(entries.order_by("-pgh_id")[:100], many=True).data


class ReasonSerializer(StrictSerializer):
    reason = TextField(max_length=500, help_text="Why; it stays in the row's history.")
