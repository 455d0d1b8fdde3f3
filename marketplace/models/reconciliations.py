"""What a reconciliation with Stripe has gone through so far, and what it found. None of this is money: all of it can be
lost, and is found again.
"""

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.db.models.lookups import IsNull
from django.utils.translation import gettext_lazy as _


class Drift(models.TextChoices):
    """In which way our rows and Stripe, or Stripe and itself, do not agree. Each has its entry in the runbook."""

    # Our rows say that a reversal was made; Stripe has none.
    NOT_REVERSED = "not_reversed", _("not reversed at Stripe")
    # Stripe made a reversal of which our rows do not know.
    REVERSED_UNKNOWN = "reversed_unknown", _("reversed at Stripe, unknown here")
    # One that bears an operation id, as ours do, which none of our rows has.
    ORPHAN_REVERSAL = "orphan_reversal", _("reversal of a lost row")
    REVERSAL_DIFFERS = "reversal_differs", _("reversal differs")
    # Amount, currency or destination.
    TRANSFER_DIFFERS = "transfer_differs", _("transfer differs")
    MISSING = "missing", _("missing at Stripe")
    # Stripe made the transfer; our row says that the seller was not paid.
    SENT_UNKNOWN = "sent_unknown", _("sent at Stripe, unknown here")
    # A transfer that bears an operation id which none of our rows has, or a second one of the same row.
    ORPHAN_TRANSFER = "orphan_transfer", _("transfer of a lost row")
    # Stripe's balance transactions are not what its transfers and reversals say.
    LEDGER_DIFFERS = "ledger_differs", _("Stripe's ledger differs")
    # Our rows do not say what Stripe says of a refund: that it succeeded, or that it failed.
    REFUND_NOT_RECORDED = "refund_not_recorded", _("refund not recorded")
    # Amount or currency.
    REFUND_DIFFERS = "refund_differs", _("refund differs")
    # Our rows do not say what counts as lost by a dispute, as Stripe says it now.
    DISPUTE_NOT_RECORDED = "dispute_not_recorded", _("dispute not recorded")
    # A buyer has the money back, and a seller has not given its part.
    NOT_CLAWED_BACK = "not_clawed_back", _("not clawed back")
    OVERDUE = "overdue", _("due for long")
    LEASE_OVER = "lease_over", _("lease long over")
    NEEDS_A_PERSON = "needs_a_person", _("needs a person")
    # The account of sellers' debts does not add up.
    DEBTS = "debts", _("debts do not add up")


class Reconciliations(models.QuerySet["Reconciliation"]):
    def forget(self) -> None:
        """With all that was seen and found."""
        ReconciliationSubject.objects.filter(run__in=self).delete()
        ReconciliationFinding.objects.filter(run__in=self).delete()
        self.delete()


class Reconciliation(models.Model):
    """One comparison of our rows with Stripe. While it is not finished the next run goes on with it."""

    # As the command was told, so that the same again is known as the same.
    asked = models.CharField(_("asked"), max_length=100, blank=True, default="")
    since = models.DateTimeField(_("since"), null=True, blank=True, help_text=_("Empty: all there is."))
    until = models.DateTimeField(_("until"))
    step = models.CharField(_("step"), max_length=20)
    cursor = models.CharField(_("cursor"), max_length=255, blank=True, default="", help_text=_("Where the step is."))
    counts = models.JSONField(_("counts"), default=dict, help_text=_("What was compared, and with how many requests."))
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    objects = Reconciliations.as_manager()

    class Meta:
        verbose_name = _("reconciliation")
        verbose_name_plural = _("reconciliations")
        ordering = ("-id",)
        constraints = [
            models.UniqueConstraint(
                IsNull(F("finished_at"), True),
                name="reconciliation_one_open",
                condition=Q(finished_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"reconciliation {self.pk}"


class ReconciliationSubject(models.Model):
    """A transfer, refund or charge at Stripe that was seen in a run; gone when it is finished."""

    run = models.ForeignKey(
        Reconciliation, verbose_name=_("reconciliation"), on_delete=models.PROTECT, related_name="subjects"
    )
    stripe_id = models.CharField(_("at Stripe"), max_length=255, help_text=_("tr_…, re_… or ch_…."))
    # Of transfers only: what the clawback of a charge without rows is computed from.
    destination = models.CharField(_("destination"), max_length=255, blank=True, default="")
    source_transaction = models.CharField(_("source transaction"), max_length=255, blank=True, default="")
    transfer_group = models.CharField(_("transfer group"), max_length=255, blank=True, default="")
    currency = models.CharField(_("currency"), max_length=3, blank=True, default="")
    amount = models.BigIntegerField(_("amount"), default=0)
    amount_reversed = models.BigIntegerField(_("amount reversed"), default=0)
    is_suspect = models.BooleanField(_("suspect"), default=False, help_text=_("Did not agree, and is looked at again."))
    noted_at = models.DateTimeField(_("noted at"), db_default=Now())

    class Meta:
        verbose_name = _("reconciled object")
        verbose_name_plural = _("reconciled objects")
        ordering = ("id",)
        constraints = [models.UniqueConstraint(name="reconciled_once_per_run", fields=["run", "stripe_id"])]
        indexes = [
            models.Index(name="reconciled_of_charge", fields=["run", "source_transaction"]),
            models.Index(name="reconciled_of_group", fields=["run", "transfer_group"]),
            models.Index(name="reconciled_suspects", fields=["run", "id"], condition=Q(is_suspect=True)),
        ]

    def __str__(self) -> str:
        return self.stripe_id


class ReconciliationFinding(models.Model):
    """One drift, looked at twice."""

    run = models.ForeignKey(
        Reconciliation, verbose_name=_("reconciliation"), on_delete=models.PROTECT, related_name="findings"
    )
    kind = models.CharField(_("kind"), max_length=30, choices=Drift)
    subject = models.CharField(_("what"), max_length=100, help_text=_("Our row, or Stripe's object."))
    stripe_id = models.CharField(_("at Stripe"), max_length=255, blank=True, default="")
    stripe_account_id = models.CharField(_("seller's account"), max_length=255, blank=True, default="")
    amount = models.BigIntegerField(_("amount"), null=True, blank=True, help_text=_("In the currency's minor unit."))
    currency = models.CharField(_("currency"), max_length=3, blank=True, default="")
    detail = models.TextField(_("detail"))
    remedy = models.CharField(_("remedy"), max_length=100, blank=True, default="", help_text=_("What --fix does."))
    is_healed = models.BooleanField(_("healed"), default=False)
    found_at = models.DateTimeField(_("found at"), db_default=Now())

    class Meta:
        verbose_name = _("drift")
        verbose_name_plural = _("drift")
        ordering = ("id",)
        constraints = [models.CheckConstraint(name="drift_kind_listed", condition=Q(kind__in=Drift.values))]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"
