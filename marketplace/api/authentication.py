"""Signing in with a token: ``Authorization: Bearer vzt_…``."""

from collections.abc import Set as AbstractSet
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from marketplace.errors import TokenRefused
from marketplace.models import ApiToken
from marketplace.services import api_tokens


class ApiTokenAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        try:
            token = api_tokens.signed_in(get_authorization_header(request).decode("latin-1"))
        except TokenRefused as refused:
            raise AuthenticationFailed(refused.message) from None
        if token is None:
            return None
        # It goes with the user, so that whoever asks what the user may do cannot forget to ask for it.
        token.user.token_scopes = frozenset(token.scopes)  # type: ignore[attr-defined]
        return token.user, token

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002 - DRF's signature
        return "Bearer"


def scopes_of(user: User | AnonymousUser) -> AbstractSet[str] | None:
    """What the token that ``user`` signed in with may do; None without a token: all that the user may."""
    return getattr(user, "token_scopes", None)


class _TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "marketplace.api.authentication.ApiTokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:  # noqa: ARG002 - its signature
        return {"type": "http", "scheme": "bearer", "description": "An API token: `vzt_…`."}
