"""The OpenAPI document: what drf-spectacular cannot see by itself."""

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework import serializers
from rest_framework.permissions import SAFE_METHODS

from marketplace.api import problems
from marketplace.models.lifecycle import Lifecycle


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

    def get_override_parameters(self) -> Any:
        """What holds of every request that changes something."""
        found = list(super().get_override_parameters())
        if self.method not in SAFE_METHODS:
            found.append(OPTIONAL_KEY)
        return [*found, IF_MATCH] if self._takes_version() else found

    def _takes_version(self) -> bool:
        model = getattr(getattr(self.view, "queryset", None), "model", None)
        is_row = model is not None and issubclass(model, Lifecycle) and getattr(self.view, "detail", False)
        return self.method not in SAFE_METHODS and is_row

    def _problems(self) -> dict[str, str]:
        found = {
            "400": "A parameter, a header or the body is not as documented.",
            "401": "Not signed in, or with a token that is not known.",
            "403": "Signed in, but not allowed.",
            "406": "Nothing else than application/json is spoken here.",
            "429": "Too many requests; `Retry-After` says in how many seconds to come again.",
        }
        if "{" in self.path:
            found["404"] = "No such thing, or none that you may see."
        if self.method not in SAFE_METHODS:
            found |= {
                "409": "The `Idempotency-Key` was used for something else, or its first request is being answered.",
                "413": "The body is too large.",
                "415": "The body is not application/json.",
            }
        if self._takes_version():
            found["412"] = "The row has changed: its version is none of `If-Match`."
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


def _idempotency_key(*, required: bool) -> OpenApiParameter:
    return OpenApiParameter(
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        OpenApiParameter.HEADER,
        required=required,
        description="1 to 255 printable ASCII characters of your choice. The same key with the same request gives the"
        " first answer, with `Idempotent-Replayed: true`, however often it is sent: send it again whenever you do not"
        " know what became of a request.",
    )


IDEMPOTENCY_KEY = _idempotency_key(required=True)
OPTIONAL_KEY = _idempotency_key(required=False)
IF_MATCH = OpenApiParameter(
    "If-Match",
    {"type": "string", "pattern": r'^\*$|^"[!#-+\--~]{1,60}"$'},
    OpenApiParameter.HEADER,
    required=False,
    description="The `ETag` of the row as you saw it: 412 where it has changed since.",
    examples=[OpenApiExample("As seen", value='"7-1764355612123456"')],
)
