"""The durable inbox: every verified event, once, with what became of it."""

from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import lease_is_whole
from marketplace.models.history import tracked_from
from marketplace.models.lifecycle import Lifecycle, Work
from marketplace.models.notices import Notice, announces
from marketplace.models.triggers import listed_steps_only, wakes_workers
from marketplace.states import EVENT_TRANSITIONS, EventStatus

EVENTS_CHANNEL = "veza_events"


@tracked_from(
    "replay_count", "WebhookEventHistory", "status", "outcome", "last_error_code", "last_error_message", "last_error_at"
)
class WebhookEvent(Lifecycle, Work):
    TELLS_OF_CREATION = False
    TRANSITIONS = EVENT_TRANSITIONS
    # What receiving tells besides the columns: it was there before, and nothing was done.
    was_there: bool = False
    # What Stripe was asked for, where the event does not say enough.
    looked_up: Any = None

    status = models.CharField(_("status"), max_length=30, choices=EventStatus, default=EventStatus.PROCESSED)
    stripe_event_id = models.CharField(_("Stripe event"), max_length=255, unique=True, help_text=_("evt_…"))
    type = models.CharField(_("type"), max_length=255)
    stripe_account_id = models.CharField(
        _("account"),
        max_length=255,
        blank=True,
        default="",
        help_text=_("acct_… for events of connected accounts."),
    )
    livemode = models.BooleanField(_("live mode"), default=False)
    api_version = models.CharField(_("API version"), max_length=100, blank=True, default="")
    stripe_created_at = models.DateTimeField(_("created at Stripe"))
    received_at = models.DateTimeField(_("received at"), db_default=Now(), editable=False)
    payload = models.JSONField(_("payload"), help_text=_("The event as Stripe signed it."))
    outcome = models.CharField(
        _("outcome"),
        max_length=500,
        blank=True,
        default="",
        help_text=_("What was done with it, or why nothing was."),
    )
    replay_count = models.PositiveIntegerField(
        _("replays"), db_default=0, editable=False, help_text=_("How often a person had it applied again.")
    )

    class Meta:
        verbose_name = _("webhook event")
        verbose_name_plural = _("webhook events")
        ordering = ("-id",)
        permissions = [("replay_webhookevent", "Can replay a webhook event")]
        triggers = [
            listed_steps_only(EVENT_TRANSITIONS),
            wakes_workers("wakes_inbox", EVENTS_CHANNEL, ["failed"]),
            # Without a next time: given up.
            announces(
                Notice.Kind.EVENT,
                when="NEW.status IN ('failed') AND NEW.next_retry_at IS NULL",
                already="OLD.status IN ('failed') AND OLD.next_retry_at IS NULL",
                of=["status", "next_retry_at"],
            ),
        ]
        constraints = [
            models.CheckConstraint(name="event_has_id", condition=Q(stripe_event_id__startswith="evt_")),
            models.CheckConstraint(name="event_status_listed", condition=Q(status__in=EventStatus.values)),
            lease_is_whole("event_lease_whole"),
        ]
        indexes = [
            models.Index(
                name="events_due",
                fields=["next_retry_at", "id"],
                condition=Q(status="failed", next_retry_at__isnull=False),
            ),
            # Asked at each payment: is there a refund whose event came before?
            models.Index(
                name="events_without_order", fields=["status", "id"], condition=Q(last_error_code="unknown_order")
            ),
            # Those of which the effect is missing.
            models.Index(name="events_failed", fields=["-id"], condition=Q(status="failed")),
            models.Index(name="events_by_type", fields=["type", "-id"]),
            models.Index(
                name="events_by_account", fields=["stripe_account_id", "-id"], condition=~Q(stripe_account_id="")
            ),
        ]

    def __str__(self) -> str:
        return self.stripe_event_id
