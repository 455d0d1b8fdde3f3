"""What workers on any number of hosts tell each other through PostgreSQL: who lives, how fast to go, when to hold back.

None of this is money: every row can be lost and is made anew by the next that needs it.
"""

import pgtrigger
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from marketplace.models.triggers import update_of


class RequestAllowance(models.Model):
    """When the next request may leave for one endpoint of Stripe; see ``throttle.RequestAllowance``."""

    endpoint = models.CharField(
        _("endpoint"),
        max_length=100,
        primary_key=True,
        help_text=_("Method and path; one limit holds for all its ids."),
    )
    next_free_at = models.DateTimeField(
        _("next free departure"), help_text=_("All before are taken, by the database's clock.")
    )
    spacing = models.DurationField(_("spacing"), help_text=_("Between two departures, as it was last used."))
    slowness = models.FloatField(
        _("slowness"), default=1.0, help_text=_("How many times longer than configured the spacing was after a 429.")
    )
    slowed_at = models.DateTimeField(_("slowed at"), null=True, blank=True)

    class Meta:
        verbose_name = _("request allowance")
        verbose_name_plural = _("request allowances")
        ordering = ("endpoint",)

    def __str__(self) -> str:
        return self.endpoint


class CircuitBreaker(models.Model):
    """Whether Stripe fails for everyone, for one kind of work; see ``throttle``. Open while ``opened_at`` is set."""

    work = models.CharField(_("work"), max_length=20, primary_key=True, help_text=_("The queue's name."))
    channel = models.CharField(
        _("channel"), max_length=50, help_text=_("Where the workers of the queue hear that it closed.")
    )
    failing = ArrayField(
        models.CharField(max_length=50),
        verbose_name=_("failing"),
        default=list,
        blank=True,
        help_text=_("For whom Stripe failed with fewer successes since: the evidence."),
    )
    opened_at = models.DateTimeField(_("opened at"), null=True, blank=True)
    next_probe_at = models.DateTimeField(
        _("next probe"), null=True, blank=True, help_text=_("When a single row may ask whether Stripe is back.")
    )
    probes = models.PositiveIntegerField(_("probes"), default=0, help_text=_("Made since it opened."))
    last_error = models.TextField(_("last error"), blank=True, default="")

    class Meta:
        verbose_name = _("circuit breaker")
        verbose_name_plural = _("circuit breakers")
        ordering = ("work",)
        constraints = [
            models.CheckConstraint(
                name="breaker_open_has_probe",
                condition=models.Q(opened_at__isnull=True, next_probe_at__isnull=True)
                | models.Q(opened_at__isnull=False, next_probe_at__isnull=False),
            ),
        ]
        triggers = [
            pgtrigger.Trigger(
                name="wakes_when_closed",
                level=pgtrigger.Row,
                when=pgtrigger.After,
                operation=update_of("opened_at"),
                condition=pgtrigger.Condition("OLD.opened_at IS NOT NULL AND NEW.opened_at IS NULL"),
                func="PERFORM pg_notify(NEW.channel, '0'); RETURN NULL;",
            ),
        ]

    def __str__(self) -> str:
        return self.work


# Stripe answered. Each success outweighs the failures of one seller, or closes the breaker. Also part of
# ``confirmation``.
SUCCEEDED = """
    UPDATE marketplace_circuitbreaker
    SET failing = CASE WHEN opened_at IS NULL THEN ARRAY(
            SELECT each FROM unnest(failing) WITH ORDINALITY AS listed (each, place)
            WHERE split_part(each, ',', 1) <> split_part(failing[1], ',', 1) ORDER BY place
        ) ELSE '{}' END,
        opened_at = NULL, next_probe_at = NULL, probes = 0
    WHERE work = %(work)s AND failing <> '{}'
"""


class WorkerHeartbeat(models.Model):
    """One running worker process. It writes its row again and again; a row that is not fresh is of a dead one."""

    identity = models.CharField(_("worker"), max_length=255, primary_key=True)
    queues = ArrayField(models.CharField(max_length=20), verbose_name=_("queues"))
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process"))
    concurrency = models.PositiveIntegerField(_("threads"))
    in_hand = models.PositiveIntegerField(_("rows in hand"), default=0)
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    seen_at = models.DateTimeField(_("last sign of life"), db_default=Now(), help_text=_("By the database's clock."))

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")
        ordering = ("identity",)

    def __str__(self) -> str:
        return self.identity
