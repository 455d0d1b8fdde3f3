"""The OpenAPI document: what drf-spectacular cannot see by itself."""

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework import serializers

from marketplace.api import problems


class ProblemSerializer(serializers.Serializer[Any]):
    """RFC 9457."""

    type = serializers.CharField(help_text="`about:blank` where the status says all.")
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(help_text="For people: the field, the value and what is expected.")
    errors: Any = serializers.DictField(
        child=serializers.ListField(child=serializers.CharField()),
        required=False,
        help_text="The messages by field; `body` for the body as a whole.",
    )


class Schema(AutoSchema):
    """Adds the problems that every operation may answer with, and knows of fields that only staff are shown."""

    def get_summary(self) -> str | None:
        model = getattr(getattr(self.view, "queryset", None), "model", None)
        if model is None:
            return None
        return f"List {model._meta.verbose_name_plural}" if self._is_list_view() else f"One {model._meta.verbose_name}"

    def _get_response_bodies(self, direction: Any = "response") -> Any:
        bodies = super()._get_response_bodies(direction)
        describe: Any = self._get_response_for_code
        for status, description in self._problems().items():
            if status not in bodies:
                response = OpenApiResponse(ProblemSerializer, description)
                bodies[status] = describe(response, status, [problems.CONTENT_TYPE], direction)
        return bodies

    def _problems(self) -> dict[str, str]:
        found = {"401": "Not signed in, or with a token that is not known.", "403": "Signed in, but not allowed."}
        if "{" in self.path:
            found["404"] = "No such thing, or none that you may see."
        if self.method == "POST":
            found |= {"413": "The body is too large.", "415": "The body is not application/json."}
        if self._is_list_view() or self.method == "POST":
            found["400"] = "A parameter, a header or the body is not as documented."
        return found

    def _map_basic_serializer(self, serializer: Any, direction: Any) -> Any:
        inherited: Any = super()._map_basic_serializer
        described = inherited(serializer, direction)
        hidden = set(getattr(serializer, "staff_only", ()))
        if hidden and "required" in described:
            described["required"] = [name for name in described["required"] if name not in hidden]
        return described


def problem(description: str, *examples: tuple[str, int, str, str]) -> OpenApiResponse:
    """A response with ``examples`` of (name, status, kind, detail)."""
    return OpenApiResponse(
        ProblemSerializer,
        description,
        examples=[
            OpenApiExample(
                name,
                value=problems.problem(status, detail, kind=kind),
                media_type=problems.CONTENT_TYPE,
                status_codes=[str(status)],
                response_only=True,
            )
            for name, status, kind, detail in examples
        ],
    )


IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    required=True,
    description="1 to 255 printable ASCII characters of your choice. The same key with the same request gives the same"
    " refund, or entry, however often it is sent: send it again whenever you do not know what became of a request.",
)
