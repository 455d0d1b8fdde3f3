"""What the views of rows share: who asks, and what they may see. No rule about money lives in a view."""

from collections.abc import Collection
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import status
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from marketplace.api import access
from marketplace.api.fields import StrictSerializer
from marketplace.api.idempotency import Idempotent
from marketplace.api.shown import ReasonSerializer, Shown
from marketplace.api.versions import expected, version_of

M = TypeVar("M", bound=Model)


class Rows(Idempotent, ListModelMixin, GenericViewSet[M]):
    """A list of the rows that the caller may see."""

    ordering_fields: tuple[str, ...] = ("id", "created_at")
    # Of rows whose ``status`` is asked for and among ``open_statuses``, which partial indexes find, by these too.
    open_ordering_fields: tuple[str, ...] = ()
    open_statuses: Collection[str] = ()
    detail_serializer_class: type[Shown] | None = None

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

    def asked(
        self, request: Request, pk: int, permission: str, body_class: type[StrictSerializer] = ReasonSerializer
    ) -> tuple[M, dict[str, Any], dict[str, Any]]:
        """The row that the caller asks to have acted on; what the body says; and for the service who acts, why, and on
        which versions of the row. The body is read with ``row`` in its context.

        Raises ``Http404``, ``PermissionDenied`` and ``ValidationError``, in this order.
        """
        row = get_object_or_404(self.get_queryset(), pk=pk)
        access.demand(request.user, permission)
        body = body_class(data=request.data, context={"row": row})
        body.is_valid(raise_exception=True)
        said = body.validated_data
        by = {
            "actor": f"user:{request.user.get_username()}",
            "reason": said["reason"],
            "if_version": expected(request),
        }
        return row, said, by

    def answer_anew(self, pk: int) -> Response:
        """The row as it is now."""
        return self.answer(self.get_queryset().get(pk=pk))
