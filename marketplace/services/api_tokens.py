"""Tokens for programs: made and told once, found by their digest, revoked."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.errors import NotAllowedNow, TokenRefused, TooMuch
from marketplace.models import ApiToken
from marketplace.roles import Scope

logger = structlog.get_logger(__name__)

# Known by it in logs, where it is masked, and to those who look for secrets in code.
BEGINS = "vzt_"
# The second is that of tokens made before there were others.
SCHEMES = ("bearer", "token")
SHOWN = 10
# Guessing one of these is out of the question, so the digest needs no salt and no slowness.
RANDOM_BYTES = 32
USUAL_AGE = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class Made:
    token: ApiToken
    # The only time that anybody sees it.
    secret: str


def age_of(days: int | None) -> timedelta:
    """How long a token lives; None is as long as usual."""
    return min(USUAL_AGE, settings.API_TOKEN_MAX_AGE) if days is None else timedelta(days=days)


def make(*, user: User, name: str, scopes: Iterable[Scope], actor: str, age: timedelta) -> Made:
    """A token of ``user`` that lives for ``age``; it can never do more than the user can. Committed on return.

    Raises:
        TooMuch: it would live for longer than ``API_TOKEN_MAX_AGE``.

    """
    if age > settings.API_TOKEN_MAX_AGE:
        raise TooMuch(f"a token lives for at most {settings.API_TOKEN_MAX_AGE.days} days, not {age.days}")
    secret = BEGINS + secrets.token_urlsafe(RANDOM_BYTES)
    token = ApiToken.objects.create(
        user=user,
        name=name,
        scopes=[scope.value for scope in Scope if scope in set(scopes)],
        prefix=secret[:SHOWN],
        digest=digest(secret),
        expires_at=Now() + age,
    )
    token.refresh_from_db()
    logger.info("api_token_made", token=token.pk, user=user.pk, scopes=token.scopes, actor=actor)
    return Made(token=token, secret=secret)


def revoke(*, token_id: int, actor: str) -> ApiToken:
    """It is refused from now on; committed on return.

    Raises:
        ApiToken.DoesNotExist: no such token.
        NotAllowedNow: it was revoked before.

    """
    if not ApiToken.objects.filter(pk=token_id, revoked_at__isnull=True).update(revoked_at=Now()):
        raise NotAllowedNow(f"{ApiToken.objects.get(pk=token_id)} was revoked before")
    token = ApiToken.objects.select_related("user").get(pk=token_id)
    logger.info("api_token_revoked", token=token.pk, user=token.user_id, actor=actor)
    return token


def signed_in(authorization: str) -> ApiToken | None:
    """The token, with its user, of an ``Authorization`` header; None where that speaks of something else.

    Raises:
        TokenRefused: not known, expired, revoked, or of a user who is not active.

    """
    scheme, _, secret = authorization.strip().partition(" ")
    if scheme.lower() not in SCHEMES:
        return None
    token = ApiToken.objects.select_related("user").filter(digest=digest(secret.strip())).first()
    if token is None or not token.user.is_active:
        raise TokenRefused
    if token.revoked_at is not None:
        raise TokenRefused(f"This token was revoked at {token.revoked_at:%Y-%m-%dT%H:%M:%SZ}.")
    if is_expired(token):
        raise TokenRefused(f"This token expired at {token.expires_at:%Y-%m-%dT%H:%M:%SZ}.")
    _was_used(token)
    return token


def is_expired(token: ApiToken) -> bool:
    return token.expires_at <= timezone.now()


def _was_used(token: ApiToken) -> None:
    """Written once a minute, not with each request."""
    if token.last_used_at is None or token.last_used_at < timezone.now() - timedelta(minutes=1):
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=Now())


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
