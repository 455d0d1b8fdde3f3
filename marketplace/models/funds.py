"""Sellers whose Stripe balance does not cover what they owe: looked at from time to time, until it does."""

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import lease_is_whole
from marketplace.models.lifecycle import Work
from marketplace.models.sales import Seller


class BalanceWatch(Work):
    """One seller whose balance is (or was) waited for. Due while ``next_retry_at`` is set: a worker asks Stripe."""

    seller = models.OneToOneField(
        Seller, verbose_name=_("seller"), on_delete=models.PROTECT, related_name="balance_watch"
    )
    available = models.JSONField(
        _("available"),
        default=dict,
        blank=True,
        help_text=_("What Stripe last said, by currency, in its minor unit. May be below zero."),
    )
    seen_at = models.DateTimeField(_("seen at"), null=True, blank=True, help_text=_("When Stripe said so."))

    class Meta:
        verbose_name = _("watched balance")
        verbose_name_plural = _("watched balances")
        ordering = ("-id",)
        constraints = [lease_is_whole("balance_watch_lease_whole")]
        indexes = [
            models.Index(
                name="balance_watches_due", fields=["next_retry_at", "id"], condition=Q(next_retry_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"balance of seller {self.seller_id}"
