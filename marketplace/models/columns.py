"""Columns that several tables have, and what is always so of them."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from marketplace import correlation, tracing


def correlated() -> "models.CharField[str, str]":
    """By which request or event the row was written. Empty in rows of older versions."""
    return models.CharField(
        _("correlation id"),
        max_length=100,
        blank=True,
        default=correlation.current,
        db_default="",
        editable=False,
        help_text=_("Of the event (evt_…) or request that began it; in the log lines of all that is done about it."),
    )


def traced() -> "models.CharField[str, str]":
    """The span in which the row was written; see ``tracing``."""
    return models.CharField(
        _("trace"),
        max_length=55,
        blank=True,
        default=tracing.traceparent,
        db_default="",
        editable=False,
        help_text=_("W3C's traceparent of the span that wrote it. Empty without a collector."),
    )


def statement_line() -> "models.CharField[str, str]":
    """Empty in rows of older versions, which are sent as those versions sent them."""
    return models.CharField(
        _("statement line"),
        max_length=200,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text=_("What the seller reads beside it; sent to Stripe as its description."),
    )


def lease_is_whole(name: str) -> models.CheckConstraint:
    return models.CheckConstraint(
        name=name,
        condition=models.Q(lease_token__isnull=True, lease_expires_at__isnull=True)
        | models.Q(lease_token__isnull=False, lease_expires_at__isnull=False),
    )


def is_currency(name: str) -> models.CheckConstraint:
    return models.CheckConstraint(name=name, condition=models.Q(currency__regex=r"^[a-z]{3}$"))
