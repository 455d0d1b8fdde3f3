"""API tokens: made, shown, revoked."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api import access, filters
from marketplace.api.fields import StrictSerializer, TextField, WholeField
from marketplace.api.problems import CONTENT_TYPE
from marketplace.api.rows import RowsAndDetails
from marketplace.api.schema import problem
from marketplace.api.shown import Shown
from marketplace.models import ApiToken
from marketplace.roles import Scope
from marketplace.services import api_tokens

# --- Shown ----------------------------------------------------------------------------------------------------


class ApiTokenSerializer(Shown):
    username = serializers.CharField(source="user.username")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    is_active = serializers.SerializerMethodField(help_text="Neither revoked nor expired.")

    class Meta:
        model = ApiToken
        fields: tuple[str, ...] = (
            "id",
            "name",
            "user",
            "username",
            "scopes",
            "prefix",
            "is_active",
            "created_at",
            "expires_at",
            "revoked_at",
            "last_used_at",
        )

    def get_is_active(self, token: ApiToken) -> bool:
        return token.revoked_at is None and not api_tokens.is_expired(token)


class MadeApiTokenSerializer(ApiTokenSerializer):
    token = serializers.CharField(
        allow_null=True, source="secret", help_text="Told this once; null where the request is a repeated one."
    )

    class Meta(ApiTokenSerializer.Meta):
        fields = (*ApiTokenSerializer.Meta.fields, "token")

    def to_representation(self, made: api_tokens.Made) -> dict[str, Any]:
        return {**ApiTokenSerializer(made.token, context=self.context).data, "token": made.secret}


# --- Taken ----------------------------------------------------------------------------------------------------


class NewApiTokenSerializer(StrictSerializer):
    name = TextField(max_length=100, help_text="What it is for.")
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices),
        allow_empty=False,
        max_length=len(Scope),
        help_text="What it may do of that which you may.",
    )
    expires_in_days = WholeField(required=False, largest=3650, help_text="90 where it is left out.")

    def validate_scopes(self, scopes: list[str]) -> list[Scope]:
        maker: ApiToken | None = self.context["maker"]
        beyond = [scope for scope in scopes if maker is not None and scope not in maker.scopes]
        if beyond:
            raise serializers.ValidationError([f"{', '.join(beyond)}: expected none that this token has not"])
        return [Scope(scope) for scope in scopes]

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        days: int | None = body.get("expires_in_days")
        age = api_tokens.age_of(days)
        maker: ApiToken | None = self.context["maker"]
        if age > settings.API_TOKEN_MAX_AGE:
            message = f"{days}: expected at most {settings.API_TOKEN_MAX_AGE.days}"
            raise serializers.ValidationError({"expires_in_days": [message]})
        if maker is not None and timezone.now() + age > maker.expires_at:
            message = f"expected no later than this token does, {maker.expires_at:%Y-%m-%dT%H:%M:%SZ}"
            raise serializers.ValidationError({"expires_in_days": [message]})
        return {**body, "age": age}


# --- Views ----------------------------------------------------------------------------------------------------


class ApiTokenViewSet(RowsAndDetails[ApiToken]):
    """Tokens of one's own; with `marketplace.view_apitoken` everybody's."""

    queryset = ApiToken.objects.all()
    serializer_class = ApiTokenSerializer
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
        request=NewApiTokenSerializer,
        examples=[
            OpenApiExample(
                "For a shop",
                value={"name": "shop", "scopes": ["read", "refund"], "expires_in_days": 30},
                request_only=True,
            )
        ],
        responses={201: OpenApiResponse(MadeApiTokenSerializer, "The token, and what is known of it.")},
    )
    def create(self, request: Request) -> Response:
        access.demand_own_tokens(request.user)
        assert isinstance(request.user, User)
        body = NewApiTokenSerializer(data=request.data, context={"maker": request.auth})
        body.is_valid(raise_exception=True)
        made = api_tokens.make(
            user=request.user,
            name=body.validated_data["name"],
            scopes=body.validated_data["scopes"],
            age=body.validated_data["age"],
            actor=f"user:{request.user.get_username()}",
        )
        shown = MadeApiTokenSerializer(made, context=self.get_serializer_context()).data
        address = reverse("api:token-detail", args=[made.token.pk])
        return Response(shown, status=status.HTTP_201_CREATED, headers={"Location": address})

    @extend_schema(
        summary="Revoke an API token",
        description="It is refused from now on. Somebody else's needs the permission `marketplace.revoke_apitoken`.",
        request=None,
        responses={
            200: ApiTokenSerializer,
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
