"""Pages by key: the cursor is where the last page ended, so a page costs the same however far in, and rows that are
added meanwhile neither repeat nor hide others.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param
from rest_framework.views import APIView

from marketplace.api.problems import Malformed

DEFAULT_PAGE_SIZE = 50
LARGEST_PAGE_SIZE = 200


class KeysetPagination(BasePagination):
    """Ordered by one column of the view's ``ordering_fields``, and by id among equals. Forward only."""

    def paginate_queryset(self, queryset: Any, request: Request, view: APIView | None = None) -> list[Any]:
        self.request = request
        self.ordering = self._ordering(request, view)
        self.page_size = self._page_size(request)
        name, is_falling = self.ordering.removeprefix("-"), self.ordering.startswith("-")
        cursor = request.query_params.get("cursor")
        if cursor is not None:
            value, pk = self._decode(cursor, queryset.model, name)
            beyond = "lt" if is_falling else "gt"
            # An index leads to where the first condition begins; the second leaves out what was shown of equal ones.
            queryset = queryset.filter(
                Q((f"{name}__{beyond}e", value)), Q((f"{name}__{beyond}", value)) | Q((f"pk__{beyond}", pk))
            )
        sign = "-" if is_falling else ""
        # Keys first: an index may hold all that they are found and ordered by. One more tells whether there is another
        # page.
        keys = list(queryset.order_by(f"{sign}{name}", f"{sign}pk").values_list("pk", name)[: self.page_size + 1])
        self.next_cursor = None
        if len(keys) > self.page_size:
            keys.pop()
            self.next_cursor = self._encode(queryset.model, name, *keys[-1])
        rows = queryset.in_bulk([pk for pk, _value in keys])
        return [rows[pk] for pk, _value in keys if pk in rows]

    def get_paginated_response(self, data: Any) -> Response:
        following = None
        if self.next_cursor is not None:
            following = replace_query_param(self.request.build_absolute_uri(), "cursor", self.next_cursor)
        return Response({"next": following, "results": data})

    def _page_size(self, request: Request) -> int:
        raw = request.query_params.get("page_size", str(DEFAULT_PAGE_SIZE))
        if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= LARGEST_PAGE_SIZE):
            raise Malformed("page_size", f"{raw[:50]!r}: expected a whole number from 1 to {LARGEST_PAGE_SIZE}")
        return int(raw)

    def _ordering(self, request: Request, view: APIView | None) -> str:
        raw = request.query_params.get("ordering", "-id")
        allowed = ordering_choices(view)
        if raw not in allowed:
            raise Malformed("ordering", f"{raw[:50]!r}: expected one of {', '.join(allowed)}")
        open_statuses = sorted(getattr(view, "open_statuses", ()))
        if raw.removeprefix("-") in getattr(view, "open_ordering_fields", ()):
            asked = set(request.query_params.getlist("status"))
            if not asked or not asked <= set(open_statuses):
                raise Malformed("ordering", f"{raw!r} needs status to be of {', '.join(open_statuses)}")
        return raw

    def _encode(self, model: type[models.Model], name: str, pk: int, value: Any) -> str:
        text = _column(model, name).value_to_string(model(**{name: value}))
        return base64.urlsafe_b64encode(json.dumps([self.ordering, text, pk]).encode()).decode()

    def _decode(self, cursor: str, model: type[models.Model], name: str) -> tuple[Any, int]:
        """Cursors come back from outside, so they are read with the same suspicion as anything else."""
        try:
            ordering, text, pk = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
            value = _column(model, name).to_python(str(text)) if isinstance(text, str | int) else None
        except (ValueError, TypeError, OverflowError, RecursionError, ValidationError):
            ordering, value, pk = "", None, None
        is_whole = type(pk) is int and 0 < pk < 2**63 and not (isinstance(value, int) and abs(value) >= 2**63)
        if ordering != self.ordering or value is None or not is_whole or "\0" in str(value):
            raise Malformed("cursor", "expected the cursor of an earlier page's `next`, with the same ordering")
        return value, pk

    # --- For the OpenAPI document ---------------------------------------------------------------------------

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        return [
            _parameter(
                "cursor", "Where the next page starts: taken from an earlier page's `next`.", {"type": "string"}
            ),
            _parameter(
                "page_size",
                "Rows per page.",
                {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE},
            ),
            _parameter(
                "ordering",
                f"The column to order by; with a minus, the largest or newest first.{_only_open(view)}",
                {"type": "string", "enum": ordering_choices(view), "default": "-id"},
            ),
        ]

    def get_paginated_response_schema(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["next", "results"],
            "properties": {
                "next": {
                    "type": "string",
                    "format": "uri",
                    "nullable": True,
                    "description": "The address of the next page; null on the last one.",
                },
                "results": schema,
            },
        }


def ordering_choices(view: APIView | None) -> list[str]:
    names = (*getattr(view, "ordering_fields", ("id",)), *getattr(view, "open_ordering_fields", ()))
    return [sign + name for name in names for sign in ("", "-")]


def _only_open(view: APIView | None) -> str:
    names = getattr(view, "open_ordering_fields", ())
    if not names:
        return ""
    statuses = ", ".join(sorted(getattr(view, "open_statuses", ())))
    return f" By {', '.join(names)} only where every `status` that is asked for is one of {statuses}."


def _column(model: type[models.Model], name: str) -> Any:
    return model._meta.get_field(name)


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
