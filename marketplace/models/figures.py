"""What happened, by the hour: counted once from the rows themselves, so that nobody has to count them all again."""

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from marketplace.states import TransferStatus

# Recovery times are counted in groups, each half as long again as the one before (√2): the last of group n is
# 2^((n - 9) / 2) seconds, from a sixteenth of a second to 97 days. Group 0 is of what has no such time.
TIME_GROUPS = 55


def longest_of(group: int) -> float:
    """The longest recovery time of a group, in seconds; of the last one it is no bound."""
    return float(2 ** ((group - 9) / 2))


class What(models.TextChoices):
    # Stripe confirmed a reversal. Its cause is with it.
    RECOVERED = "recovered", _("recovered")
    # A debt was netted from a later transfer, or paid by hand. Below zero where a netting was undone.
    SETTLED = "settled", _("recovered another way")
    WRITTEN_OFF = "written_off", _("written off")
    # An attempt to take money back that did not succeed, by its error code; without money.
    ATTEMPT_FAILED = "attempt_failed", _("attempt failed")


class Figure(models.Model):
    """So many of one kind, and what they add up to."""

    what = models.CharField(_("what"), max_length=20, choices=What)
    cause = models.CharField(
        _("cause"),
        max_length=100,
        help_text=_("Why it was owed; how a debt was settled; the error code of a failed attempt."),
    )
    currency = models.CharField(_("currency"), max_length=3, blank=True, help_text=_("Empty where it is no money."))
    time_group = models.PositiveSmallIntegerField(
        _("time group"), default=0, help_text=_("How long it took from owed to recovered, in groups.")
    )
    count = models.BigIntegerField(_("count"))
    amount = models.BigIntegerField(_("amount"), help_text=_("In the currency's minor unit."))

    class Meta:
        abstract = True


class HourlyFigure(Figure):
    """What happened in one hour of UTC. Written once, when the hour is over, and never changed."""

    hour = models.DateTimeField(_("hour"))

    class Meta:
        verbose_name = _("hourly figure")
        verbose_name_plural = _("hourly figures")
        ordering = ("-hour", "what", "cause", "currency", "time_group")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                name="hourly_figure_once", fields=["hour", "what", "cause", "currency", "time_group"]
            ),
        ]

    def __str__(self) -> str:
        return f"{self.what} in {self.hour:%Y-%m-%d %H}"


class FigureTotal(Figure):
    """The sum of all hourly figures of a kind, kept with them."""

    class Meta:
        verbose_name = _("total")
        verbose_name_plural = _("totals")
        ordering = ("what", "cause", "currency", "time_group")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="figure_total_once", fields=["what", "cause", "currency", "time_group"]),
        ]

    def __str__(self) -> str:
        return f"{self.what} in all"


# Of the transfers' history: an attempt to take money back that failed. Success clears the error.
FAILED_ATTEMPT = (
    Q(pgh_label="attempt", status=TransferStatus.REVERSAL_PENDING.value)
    | Q(pgh_label="status", status=TransferStatus.PERMANENTLY_FAILED.value)
) & ~Q(stripe_transfer_id="")
