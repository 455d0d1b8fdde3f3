"""Many transfers that need a person, retried together under guard: chosen once, tried on a few, then paced."""

import pgtrigger
from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import is_currency, lease_is_whole
from marketplace.models.history import tracked
from marketplace.models.lifecycle import Lifecycle, Work
from marketplace.models.notices import Notice, announces
from marketplace.models.transfers import SellerTransfer
from marketplace.models.triggers import listed_steps_only, never_deleted, wakes_workers
from marketplace.money import Money
from marketplace.states import (
    BULK_RETRY_ITEM_TRANSITIONS,
    BULK_RETRY_TRANSITIONS,
    BulkRetryItemStatus,
    BulkRetryStatus,
)

BULK_RETRIES_CHANNEL = "veza_bulk_retries"
# In these a worker has something to do: where it is stopped, to see what becomes of those retried before.
UNDER_WAY = [BulkRetryStatus.CANARY.value, BulkRetryStatus.RUNNING.value, BulkRetryStatus.STOPPED.value]
BEGUN = [*UNDER_WAY, BulkRetryStatus.FINISHED.value]


@tracked("BulkRetryHistory", "status")
class BulkRetry(Lifecycle, Work):
    """What was chosen stays as it was planned. A worker has something to do while ``next_retry_at`` is set."""

    TRANSITIONS = BULK_RETRY_TRANSITIONS

    status = models.CharField(_("status"), max_length=30, choices=BulkRetryStatus, default=BulkRetryStatus.PLANNED)
    criteria = models.JSONField(_("criteria"), help_text=_("What the transfers were chosen by."))
    reason = models.CharField(_("reason"), max_length=500, help_text=_("Why they can work now."))
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("requested by"), on_delete=models.PROTECT, related_name="+"
    )
    needs_approval = models.BooleanField(
        _("needs approval"), default=False, help_text=_("It is over the sum up to which one person is enough.")
    )
    approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("approved by"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
    )
    canary_size = models.PositiveIntegerField(
        _("canary"), help_text=_("So many are retried first. The rest waits for what becomes of them.")
    )
    per_minute = models.PositiveIntegerField(_("per minute"), help_text=_("So many are retried in a minute at most."))
    max_error_percent = models.PositiveIntegerField(
        _("errors allowed, %"), help_text=_("It stops by itself when a larger part fails again.")
    )
    started_at = models.DateTimeField(
        _("started at"), null=True, blank=True, help_text=_("When its requester said so; approval may follow.")
    )
    # While the canary is not settled: until when that is waited for.
    canary_until = models.DateTimeField(_("canary until"), null=True, blank=True)
    stop_reason = models.CharField(_("why it stopped"), max_length=500, blank=True, default="")
    stopped_by_itself = models.BooleanField(
        _("stopped by itself"), default=False, db_default=False, help_text=_("And not by a person.")
    )

    class Meta:
        verbose_name = _("bulk retry")
        verbose_name_plural = _("bulk retries")
        ordering = ("-id",)
        default_permissions = ("view",)
        permissions = [
            ("approve_bulkretry", "Can approve a bulk retry of another person"),
            ("stop_bulkretry", "Can stop or cancel a bulk retry"),
        ]
        triggers = [
            listed_steps_only(BULK_RETRY_TRANSITIONS),
            pgtrigger.Protect(
                name="plan_stays",
                operation=pgtrigger.Update,
                condition=pgtrigger.Condition(
                    "((OLD.criteria, OLD.requested_by_id, OLD.canary_size, OLD.per_minute, OLD.max_error_percent)"
                    " IS DISTINCT FROM"
                    " (NEW.criteria, NEW.requested_by_id, NEW.canary_size, NEW.per_minute, NEW.max_error_percent))"
                ),
            ),
            wakes_workers("wakes_bulk_retries", BULK_RETRIES_CHANNEL, UNDER_WAY),
            # Who stops one by hand knows it.
            announces(
                Notice.Kind.BULK_RETRY,
                when="NEW.status IN ('awaiting_approval') OR NEW.stopped_by_itself",
                already="OLD.status IN ('awaiting_approval') OR OLD.stopped_by_itself",
                of=["status", "stopped_by_itself"],
            ),
        ]
        constraints = [
            models.CheckConstraint(name="bulk_retry_status_listed", condition=Q(status__in=BulkRetryStatus.values)),
            models.CheckConstraint(
                name="bulk_retry_approved_by_another",
                condition=Q(approved_by=None) | ~Q(approved_by=F("requested_by")),
            ),
            models.CheckConstraint(
                name="bulk_retry_begins_approved",
                condition=Q(needs_approval=False) | Q(approved_by__isnull=False) | ~Q(status__in=BEGUN),
            ),
            models.CheckConstraint(
                name="bulk_retry_waiting_is_started",
                condition=Q(started_at__isnull=False) | Q(status__in=["planned", "canceled"]),
            ),
            models.CheckConstraint(
                name="bulk_retry_due_while_under_way",
                condition=(~Q(status__in=["canary", "running"]) | Q(next_retry_at__isnull=False))
                & (Q(status__in=UNDER_WAY) | Q(next_retry_at=None)),
            ),
            models.CheckConstraint(
                name="bulk_retry_stopped_has_reason",
                condition=Q(status="stopped") & ~Q(stop_reason="") | ~Q(status="stopped") & Q(stop_reason=""),
            ),
            models.CheckConstraint(
                name="bulk_retry_only_a_stopped_one_stopped_by_itself",
                condition=Q(stopped_by_itself=False) | Q(status="stopped"),
            ),
            models.CheckConstraint(
                name="bulk_retry_limits_make_sense",
                condition=Q(canary_size__gt=0, per_minute__gt=0, max_error_percent__lt=100),
            ),
            lease_is_whole("bulk_retry_lease_whole"),
        ]
        indexes = [
            models.Index(
                name="bulk_retries_due", fields=["next_retry_at", "id"], condition=Q(next_retry_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"bulk retry {self.pk}"


class BulkRetryItem(Lifecycle):
    """One transfer as it was when it was chosen, and what became of it."""

    TRANSITIONS = BULK_RETRY_ITEM_TRANSITIONS

    status = models.CharField(
        _("result"), max_length=30, choices=BulkRetryItemStatus, default=BulkRetryItemStatus.PLANNED
    )
    bulk_retry = models.ForeignKey(
        BulkRetry, verbose_name=_("bulk retry"), on_delete=models.PROTECT, db_index=False, related_name="items"
    )
    position = models.PositiveIntegerField(_("position"), help_text=_("In this order they are retried."))
    transfer = models.ForeignKey(
        SellerTransfer, verbose_name=_("transfer"), on_delete=models.PROTECT, related_name="bulk_retry_items"
    )
    failed_leg = models.CharField(_("failed leg"), max_length=20, choices=SellerTransfer.Leg, blank=True, default="")
    amount = models.BigIntegerField(_("amount"), help_text=_("What the retry moves, in the currency's minor unit."))
    currency = models.CharField(_("currency"), max_length=3)
    error_code = models.CharField(_("failed with"), max_length=100, blank=True, default="")
    # As it was when it was chosen: whoever writes the transfer changes this.
    transfer_updated_at = models.DateTimeField(_("transfer updated at"))
    retried_at = models.DateTimeField(_("retried at"), null=True, blank=True)
    settled_at = models.DateTimeField(_("settled at"), null=True, blank=True)
    outcome = models.TextField(_("why"), blank=True, default="")

    class Meta:
        verbose_name = _("transfer of a bulk retry")
        verbose_name_plural = _("transfers of a bulk retry")
        ordering = ("position",)
        default_permissions = ()
        triggers = [
            listed_steps_only(BULK_RETRY_ITEM_TRANSITIONS),
            never_deleted(),
            pgtrigger.Protect(
                name="chosen_stays",
                operation=pgtrigger.Update,
                condition=pgtrigger.Condition(
                    "((OLD.bulk_retry_id, OLD.position, OLD.transfer_id, OLD.amount, OLD.currency,"
                    " OLD.transfer_updated_at) IS DISTINCT FROM (NEW.bulk_retry_id, NEW.position, NEW.transfer_id,"
                    " NEW.amount, NEW.currency, NEW.transfer_updated_at))"
                ),
            ),
            pgtrigger.Trigger(
                name="chosen_before_the_start",
                level=pgtrigger.Row,
                when=pgtrigger.Before,
                operation=pgtrigger.Insert,
                func="""
            IF NOT EXISTS (
                SELECT FROM marketplace_bulkretry WHERE id = NEW.bulk_retry_id AND started_at IS NULL FOR KEY SHARE
            ) THEN
                RAISE EXCEPTION 'bulk retry % was started: nothing is added to it', NEW.bulk_retry_id
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
            """,
            ),
        ]
        constraints = [
            models.CheckConstraint(
                name="bulk_retry_item_status_listed", condition=Q(status__in=BulkRetryItemStatus.values)
            ),
            models.CheckConstraint(name="bulk_retry_item_amount", condition=Q(amount__gte=0)),
            models.CheckConstraint(
                name="bulk_retry_item_retried_has_time",
                condition=Q(status__in=["planned", "refused", "skipped"], retried_at=None)
                | Q(status__in=["retried", "succeeded", "waiting", "failed"], retried_at__isnull=False),
            ),
            models.CheckConstraint(
                name="bulk_retry_item_settled_has_time",
                condition=Q(status__in=["planned", "refused", "retried"], settled_at=None)
                | Q(status__in=["skipped", "succeeded", "waiting", "failed"], settled_at__isnull=False),
            ),
            models.CheckConstraint(
                name="bulk_retry_item_says_why",
                condition=~Q(status__in=["refused", "skipped", "failed"]) | ~Q(outcome=""),
            ),
            models.UniqueConstraint(name="bulk_retry_item_position_once", fields=["bulk_retry", "position"]),
            models.UniqueConstraint(name="bulk_retry_item_transfer_once", fields=["bulk_retry", "transfer"]),
            is_currency("bulk_retry_item_currency"),
        ]
        indexes = [
            models.Index(name="bulk_retry_items_by_status", fields=["bulk_retry", "status", "position"]),
        ]

    def __str__(self) -> str:
        return f"transfer {self.transfer_id} of bulk retry {self.bulk_retry_id}"

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)
