"""How fast one user, or one token, may ask: of all requests, and of those that change something."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from marketplace.models.api_requests import take_turn


class Pace(BaseThrottle):
    def allow_request(self, request: Request, _view: Any) -> bool:
        self.seconds = 0.0
        for subject, per_minute in self._limits(request):
            self.seconds = take_turn(subject, per_minute=per_minute)
            if self.seconds:
                return False
        return True

    def wait(self) -> float:
        return self.seconds

    def _limits(self, request: Request) -> Iterator[tuple[str, int]]:
        """Nobody else than known users gets as far as here."""
        subject = _subject(request)
        if settings.API_REQUESTS_PER_MINUTE:
            yield subject, settings.API_REQUESTS_PER_MINUTE
        if settings.API_CHANGES_PER_MINUTE and request.method not in SAFE_METHODS:
            yield f"{subject}:changes", settings.API_CHANGES_PER_MINUTE


def _subject(request: Request) -> str:
    token: Any = request.auth
    return f"token:{token.pk}" if token is not None else f"user:{request.user.pk}"
