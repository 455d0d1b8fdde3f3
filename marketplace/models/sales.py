"""Who sells, what was bought, from whom, for how much."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import is_currency
from marketplace.models.history import tracked
from marketplace.models.lifecycle import Lifecycle
from marketplace.models.triggers import listed_steps_only
from marketplace.money import Money
from marketplace.shares import RefundCommission
from marketplace.states import ORDER_TRANSITIONS, OrderStatus


class Seller(models.Model):
    """A connected account at Stripe, with what Stripe last said of it."""

    class Capability(models.TextChoices):
        # Stripe's words for capabilities.transfers.
        ACTIVE = "active", _("active")
        PENDING = "pending", _("pending")
        INACTIVE = "inactive", _("inactive")
        UNREQUESTED = "unrequested", _("not requested")

    name = models.CharField(_("name"), max_length=200)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="seller",
        help_text=_("Who may see this seller's transfers through the API."),
    )
    email = models.EmailField(
        _("e-mail"),
        blank=True,
        default="",
        db_default="",
        help_text=_("Where the seller is told of what was taken back and paid again (SELLER_NOTICES). Empty: nowhere."),
    )
    stripe_account_id = models.CharField(
        _("Stripe account"), max_length=255, unique=True, help_text=_("acct_… of the connected account.")
    )
    transfers_capability = models.CharField(
        _("transfers capability"), max_length=20, choices=Capability, default=Capability.ACTIVE
    )
    payouts_enabled = models.BooleanField(_("payouts enabled"), default=True)
    deauthorized_at = models.DateTimeField(
        _("disconnected at"),
        null=True,
        blank=True,
        help_text=_("When the seller disconnected the account from us."),
    )
    stripe_seen_at = models.DateTimeField(
        _("as Stripe said at"),
        null=True,
        blank=True,
        help_text=_("Time of the newest account event applied."),
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("seller")
        verbose_name_plural = _("sellers")
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(name="seller_has_account", condition=~Q(stripe_account_id="")),
            models.CheckConstraint(
                name="seller_capability_listed",
                condition=Q(transfers_capability__in=["active", "pending", "inactive", "unrequested"]),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    seller = models.ForeignKey(Seller, verbose_name=_("seller"), on_delete=models.PROTECT, related_name="products")
    name = models.CharField(_("name"), max_length=200)
    unit_amount = models.BigIntegerField(_("unit amount"), help_text=_("Price in the currency's minor unit."))
    currency = models.CharField(_("currency"), max_length=3)
    active = models.BooleanField(_("active"), default=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("product")
        verbose_name_plural = _("products")
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(name="product_amount_positive", condition=Q(unit_amount__gt=0)),
            is_currency("product_currency"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def price(self) -> Money:
        return Money(self.unit_amount, self.currency)


@tracked("OrderHistory", "status")
class Order(Lifecycle):
    """A buyer's order over one or more sellers, paid by one payment intent on the platform's account."""

    TRANSITIONS = ORDER_TRANSITIONS

    status = models.CharField(_("status"), max_length=30, choices=OrderStatus, default=OrderStatus.PENDING)
    buyer = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("buyer"), on_delete=models.PROTECT, related_name="orders"
    )
    amount = models.BigIntegerField(_("amount"), help_text=_("What the buyer pays, in the currency's minor unit."))
    amount_refunded = models.BigIntegerField(
        _("amount refunded"), default=0, help_text=_("Of refunds that stand as succeeded.")
    )
    currency = models.CharField(_("currency"), max_length=3)
    commission_basis_points = models.PositiveIntegerField(
        _("commission"),
        default=0,
        help_text=_("The platform's part in hundredths of a percent, as it was at the sale."),
    )
    refund_commission = models.CharField(
        _("commission of refunds"),
        max_length=20,
        choices=RefundCommission,
        default=RefundCommission.PROPORTIONAL,
        db_default=RefundCommission.PROPORTIONAL.value,
        help_text=_("Who bears the platform's part of what is refunded, as it was at the sale."),
    )
    # Sent to Stripe as metadata and as a part of the keys and the transfer group: unique beyond this database.
    operation_id = models.UUIDField(_("operation id"), default=uuid.uuid4, unique=True, editable=False)
    stripe_payment_intent_id = models.CharField(_("payment intent"), max_length=255, blank=True, default="")
    stripe_charge_id = models.CharField(_("charge"), max_length=255, blank=True, default="")
    paid_at = models.DateTimeField(_("paid at"), null=True, blank=True)

    class Meta:
        verbose_name = _("order")
        verbose_name_plural = _("orders")
        ordering = ("-id",)
        triggers = [listed_steps_only(ORDER_TRANSITIONS)]
        constraints = [
            models.CheckConstraint(name="order_amount_positive", condition=Q(amount__gt=0)),
            models.CheckConstraint(
                name="order_refunded_within_amount",
                condition=Q(amount_refunded__gte=0, amount_refunded__lte=F("amount")),
            ),
            models.CheckConstraint(name="order_status_listed", condition=Q(status__in=OrderStatus.values)),
            models.CheckConstraint(
                name="order_refunded_means_all",
                condition=(Q(status="refunded") & Q(amount_refunded=F("amount")))
                | (Q(status="partially_refunded") & Q(amount_refunded__gt=0, amount_refunded__lt=F("amount")))
                | (Q(status__in=["pending", "paid"]) & Q(amount_refunded=0)),
            ),
            models.CheckConstraint(
                name="order_paid_has_time", condition=Q(status="pending") | Q(paid_at__isnull=False)
            ),
            models.UniqueConstraint(
                name="order_payment_intent_once",
                fields=["stripe_payment_intent_id"],
                condition=~Q(stripe_payment_intent_id=""),
            ),
            models.UniqueConstraint(
                name="order_charge_once", fields=["stripe_charge_id"], condition=~Q(stripe_charge_id="")
            ),
            models.CheckConstraint(name="order_commission_below_all", condition=Q(commission_basis_points__lt=10_000)),
            models.CheckConstraint(
                name="order_refund_commission_listed", condition=Q(refund_commission__in=RefundCommission.values)
            ),
            is_currency("order_currency"),
        ]

    def __str__(self) -> str:
        return f"order {self.pk}"

    @property
    def total(self) -> Money:
        return Money(self.amount, self.currency)

    @property
    def transfer_group(self) -> str:
        """Stripe's label on the payment and all transfers of this order. One order each, or listing by it breaks."""
        return f"order_{self.operation_id.hex}"


class OrderItem(models.Model):
    order = models.ForeignKey(Order, verbose_name=_("order"), on_delete=models.PROTECT, related_name="items")
    product = models.ForeignKey(Product, verbose_name=_("product"), on_delete=models.PROTECT, related_name="+")
    # As it was at the sale, whatever becomes of the product.
    seller = models.ForeignKey(Seller, verbose_name=_("seller"), on_delete=models.PROTECT, related_name="+")
    quantity = models.PositiveIntegerField(_("quantity"))
    unit_amount = models.BigIntegerField(_("unit amount"), help_text=_("In the order's currency's minor unit."))
    amount = models.GeneratedField(
        expression=F("quantity") * F("unit_amount"),
        output_field=models.BigIntegerField(_("amount")),
        db_persist=True,
    )

    class Meta:
        verbose_name = _("order item")
        verbose_name_plural = _("order items")
        ordering = ("id",)
        constraints = [
            models.CheckConstraint(name="item_amounts_positive", condition=Q(quantity__gt=0) & Q(unit_amount__gt=0)),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"
