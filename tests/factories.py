"""Rows as the program itself leaves them: a trait per status sets every column that goes with it.

Nothing here calls Stripe. ``order_with_transfers`` is the usual start; the factories make what surrounds it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import factory
from django.contrib.auth.models import Permission, User
from django.db import models
from django.utils import timezone

from marketplace.models import (
    ApiToken,
    BulkRetry,
    BulkRetryItem,
    DebtEntry,
    Dispute,
    Order,
    OrderItem,
    Product,
    Refund,
    Seller,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
)
from marketplace.roles import Scope
from marketplace.states import (
    BulkRetryItemStatus,
    BulkRetryStatus,
    EventStatus,
    OrderStatus,
    RefundStatus,
    ReversalStatus,
    TransferStatus,
)

M = TypeVar("M", bound=models.Model)

PASSWORD = "correct horse battery staple"


class ModelFactory(factory.django.DjangoModelFactory, Generic[M]):
    """``Factory()`` is typed as its model."""

    class Meta:
        abstract = True
        skip_postgeneration_save = True

    def __new__(cls, *args: Any, **kwargs: Any) -> M:  # type: ignore[misc]  # Factory's metaclass returns the model
        return super().__new__(cls, *args, **kwargs)  # type: ignore[no-any-return]


def stripe_id(prefix: str) -> Any:
    return factory.Sequence(lambda n: f"{prefix}_test{n:012d}")


def due_now() -> Any:
    return factory.LazyFunction(lambda: timezone.now() - timedelta(seconds=1))


def minutes_ago(minutes: int) -> Any:
    return factory.LazyFunction(lambda: timezone.now() - timedelta(minutes=minutes))


def allow(user: User, *codenames: str) -> User:
    """Give ``user`` permissions of this app, and forget what was cached of those it had."""
    found = Permission.objects.filter(content_type__app_label="marketplace", codename__in=codenames)
    missing = set(codenames) - {permission.codename for permission in found}
    assert not missing, f"no such permission: {missing}"
    user.user_permissions.add(*found)
    for name in ("_perm_cache", "_user_perm_cache", "_group_perm_cache"):
        user.__dict__.pop(name, None)
    return user


# --- People and what they sell ------------------------------------------------------------------------------


class UserFactory(ModelFactory[User]):
    """Without a usable password, which costs a third of a second; ``with_password`` sets ``PASSWORD``."""

    class Meta:
        model = User

    class Params:
        with_password = factory.Trait(password=factory.django.Password(PASSWORD))
        staff = factory.Trait(is_staff=True)
        superuser = factory.Trait(is_staff=True, is_superuser=True)

    username = factory.Sequence(lambda n: f"user{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.com")
    password = factory.django.Password(None)

    @factory.post_generation
    def permissions(self: User, create: bool, codenames: Sequence[str] | None, **_: Any) -> None:  # type: ignore[misc]
        if create and codenames:
            allow(self, *codenames)


class SellerFactory(ModelFactory[Seller]):
    class Meta:
        model = Seller

    class Params:
        with_user = factory.Trait(user=factory.SubFactory(UserFactory))

    name = factory.Faker("company")
    stripe_account_id = stripe_id("acct")


class ProductFactory(ModelFactory[Product]):
    class Meta:
        model = Product

    seller = factory.SubFactory(SellerFactory)
    name = factory.Faker("catch_phrase")
    unit_amount = 2500
    currency = "eur"


# --- Orders -------------------------------------------------------------------------------------------------


class OrderFactory(ModelFactory[Order]):
    """Not paid yet; ``paid`` gives it the payment. ``RefundFactory(succeeded=True)`` makes refunded ones."""

    class Meta:
        model = Order

    class Params:
        paid = factory.Trait(
            status=OrderStatus.PAID,
            paid_at=minutes_ago(60),
            stripe_payment_intent_id=stripe_id("pi"),
            stripe_charge_id=stripe_id("ch"),
        )

    buyer = factory.SubFactory(UserFactory)
    amount = 5000
    currency = "eur"


class OrderItemFactory(ModelFactory[OrderItem]):
    """One product of one seller; the order's amount is the caller's to match."""

    class Meta:
        model = OrderItem

    order = factory.SubFactory(OrderFactory)
    product = factory.SubFactory(ProductFactory, currency=factory.SelfAttribute("..order.currency"))
    seller = factory.SelfAttribute("product.seller")
    quantity = 2
    unit_amount = factory.SelfAttribute("product.unit_amount")


# --- Refunds ------------------------------------------------------------------------------------------------


class RefundFactory(ModelFactory[Refund]):
    """Asked for, Stripe has not answered. ``succeeded`` also books it on the order, as the webhook does."""

    class Meta:
        model = Refund

    class Params:
        at_stripe = factory.Trait(
            next_retry_at=None,
            first_attempted_at=minutes_ago(5),
            stripe_refund_id=stripe_id("re"),
            stripe_seen_at=minutes_ago(5),
        )
        pending = factory.Trait(at_stripe=True, status=RefundStatus.PENDING)
        requires_action = factory.Trait(at_stripe=True, status=RefundStatus.REQUIRES_ACTION)
        succeeded = factory.Trait(at_stripe=True, status=RefundStatus.SUCCEEDED, succeeded_at=minutes_ago(5))
        failed = factory.Trait(at_stripe=True, status=RefundStatus.FAILED)
        canceled = factory.Trait(at_stripe=True, status=RefundStatus.CANCELED)
        # Made in Stripe's dashboard, so nobody asked for it here.
        seen_at_stripe = factory.Trait(requested_by=None, request_key="")

    order = factory.SubFactory(OrderFactory, paid=True)
    amount = factory.LazyAttribute(lambda refund: refund.order.amount - refund.order.amount_refunded)
    currency = factory.SelfAttribute("order.currency")
    requested_by = factory.SubFactory(UserFactory, staff=True)
    request_key = factory.Sequence(lambda n: f"request-{n}")
    next_retry_at = due_now()

    @factory.post_generation
    def book(self: Refund, create: bool, wanted: bool | None, **_: Any) -> None:  # type: ignore[misc]
        if create and wanted is not False and self.status == RefundStatus.SUCCEEDED:
            refunded = self.order.amount_refunded + self.amount
            to = OrderStatus.REFUNDED if refunded == self.order.amount else OrderStatus.PARTIALLY_REFUNDED
            move = {"reason": "refunded", "actor": "factory", "amount_refunded": refunded}
            if self.order.status == to:
                self.order.change(**move)
            else:
                self.order.transition(to, **move)


class DisputeFactory(ModelFactory[Dispute]):
    """Open, about the whole order, and nothing of it counts as lost: ``amount_lost`` is borne by the platform alone.
    ``inquiry``: no money has moved.
    """

    class Meta:
        model = Dispute

    class Params:
        inquiry = factory.Trait(
            status="warning_needs_response", is_charge_refundable=True, amount_withdrawn=0, fee=0, withdrawn_at=None
        )
        # Nobody has entered how much of the order it is.
        needs_a_person = factory.Trait(
            currency="usd",
            order_amount=None,
            last_error_code="dispute_in_another_currency",
            last_error_message="enter how much of the order it is",
        )

    order = factory.SubFactory(OrderFactory, paid=True)
    status = "needs_response"
    stripe_reason = "fraudulent"
    stripe_dispute_id = stripe_id("dp")
    amount = factory.SelfAttribute("order.amount")
    currency = factory.SelfAttribute("order.currency")
    order_amount = factory.SelfAttribute("amount")
    is_charge_refundable = False
    evidence_due_by = factory.LazyFunction(lambda: timezone.now() + timedelta(days=7))
    amount_withdrawn = factory.SelfAttribute("amount")
    fee = 1500
    balance_currency = factory.SelfAttribute("order.currency")
    opened_at = minutes_ago(5)
    withdrawn_at = minutes_ago(5)
    stripe_seen_at = minutes_ago(5)
    platform_part = factory.SelfAttribute("amount_lost")
    amount_lost = 0


# --- Transfers and their reversals --------------------------------------------------------------------------


class SellerTransferFactory(ModelFactory[SellerTransfer]):
    """A row just written, due to be sent. Each other status is a trait: ``completed=True``.

    ``reversal_pending``, ``reversed`` and ``permanently_failed`` come with the refund and the reversal that
    belong to them, ``partially_reversed`` with a reversal made in Stripe's dashboard; ``reversal=False``
    leaves both out, as in rows of an older version. ``permanently_failed_sending``: the seller was not paid.
    """

    class Meta:
        model = SellerTransfer

    class Params:
        sent = factory.Trait(stripe_transfer_id=stripe_id("tr"), first_attempted_at=minutes_ago(55), next_retry_at=None)
        erred = factory.Trait(
            last_error_code="unknown",
            last_error_message="no answer within 20 s",
            last_error_at=minutes_ago(2),
        )
        failed = factory.Trait(
            erred=True, status=TransferStatus.FAILED, retry_count=1, first_attempted_at=minutes_ago(2)
        )
        completed = factory.Trait(sent=True, status=TransferStatus.COMPLETED)
        reversal_pending = factory.Trait(sent=True, status=TransferStatus.REVERSAL_PENDING, next_retry_at=due_now())
        partially_reversed = factory.Trait(
            sent=True,
            status=TransferStatus.PARTIALLY_REVERSED,
            amount_reversed=factory.LazyAttribute(lambda transfer: transfer.amount // 2),
            stripe_reversal_id=stripe_id("trr"),
        )
        reversed = factory.Trait(
            sent=True,
            status=TransferStatus.REVERSED,
            amount_reversed=factory.SelfAttribute("amount"),
            stripe_reversal_id=stripe_id("trr"),
        )
        permanently_failed = factory.Trait(
            sent=True,
            status=TransferStatus.PERMANENTLY_FAILED,
            failed_leg=SellerTransfer.Leg.REVERSING,
            retry_count=5,
            last_error_code="not_found",
            last_error_message="No such transfer",
            last_error_at=minutes_ago(2),
        )
        permanently_failed_sending = factory.Trait(
            status=TransferStatus.PERMANENTLY_FAILED,
            next_retry_at=None,
            first_attempted_at=minutes_ago(30),
            failed_leg=SellerTransfer.Leg.SENDING,
            retry_count=5,
            last_error_code="account_invalid",
            last_error_message="No such destination",
            last_error_at=minutes_ago(2),
        )
        canceled = factory.Trait(status=TransferStatus.CANCELED, next_retry_at=None)

    order = factory.SubFactory(
        OrderFactory,
        paid=True,
        amount=factory.SelfAttribute("..amount"),
        currency=factory.SelfAttribute("..currency"),
    )
    seller = factory.SubFactory(SellerFactory)
    amount = 5000
    currency = "eur"
    next_retry_at = due_now()

    @classmethod
    def _generate(cls, strategy: Any, params: dict[str, Any]) -> Any:
        if "order" in params:
            params.setdefault("currency", params["order"].currency)
        return super()._generate(strategy, params)

    @factory.post_generation
    def reversal(self: SellerTransfer, create: bool, wanted: bool | None, **_: Any) -> None:  # type: ignore[misc]
        if create and wanted is not False:
            _give_reversal(self)


class TransferReversalFactory(ModelFactory[TransferReversal]):
    """Owed for a succeeded refund, of all that is left; ``disputed`` for a dispute. Other causes have neither:
    ``cause=…, refund=None``.
    """

    class Meta:
        model = TransferReversal

    class Params:
        succeeded = factory.Trait(
            status=ReversalStatus.SUCCEEDED,
            first_attempted_at=minutes_ago(4),
            stripe_reversal_id=stripe_id("trr"),
        )
        # Stripe said no to it. ``refused=False`` where its outcome is unknown.
        failed = factory.Trait(status=ReversalStatus.FAILED, first_attempted_at=minutes_ago(4), refused=True)
        canceled = factory.Trait(status=ReversalStatus.CANCELED)
        disputed = factory.Trait(
            cause=TransferReversal.Cause.DISPUTE,
            refund=None,
            dispute=factory.LazyAttribute(lambda reversal: DisputeFactory(order=reversal.transfer.order)),
        )

    transfer = factory.SubFactory(SellerTransferFactory, reversal_pending=True, reversal=False)
    cause = TransferReversal.Cause.REFUND
    refund = factory.LazyAttribute(lambda reversal: refund_of(reversal.transfer.order))
    amount = factory.LazyAttribute(lambda reversal: reversal.transfer.amount_unreversed or reversal.transfer.amount)
    currency = factory.SelfAttribute("transfer.currency")


class DebtEntryFactory(ModelFactory[DebtEntry]):
    """A part of a debt was paid by hand; the reversal's columns say so too, unless ``book=False``."""

    class Meta:
        model = DebtEntry

    reversal = factory.SubFactory(
        TransferReversalFactory,
        failed=True,
        transfer=factory.SubFactory(SellerTransferFactory, permanently_failed=True, reversal=False),
    )
    kind = DebtEntry.Kind.PAID
    amount = 1000
    currency = factory.SelfAttribute("reversal.currency")
    actor = "user:ann"
    reason = "by bank transfer"

    @factory.post_generation
    def book(self: DebtEntry, create: bool, wanted: bool | None, **_: Any) -> None:  # type: ignore[misc]
        if create and wanted is not False:
            column = "amount_written_off" if self.kind == DebtEntry.Kind.WRITTEN_OFF else "amount_recovered"
            settled = {column: getattr(self.reversal, column) + self.amount}
            self.reversal.change(reason=self.reason, actor=self.actor, **settled)


def refund_of(order: Order) -> Refund:
    """The newest succeeded refund of the order; a full one is made where there is none."""
    order.refresh_from_db()
    found = order.refunds.filter(status=RefundStatus.SUCCEEDED).first()
    return found or RefundFactory(order=order, succeeded=True)


def _give_reversal(transfer: SellerTransfer) -> None:
    match TransferStatus(transfer.status):
        case TransferStatus.REVERSAL_PENDING:
            TransferReversalFactory(transfer=transfer)
        case TransferStatus.PERMANENTLY_FAILED if transfer.failed_leg == SellerTransfer.Leg.REVERSING:
            TransferReversalFactory(transfer=transfer, failed=True)
        case TransferStatus.REVERSED:
            proof = transfer.stripe_reversal_id
            TransferReversalFactory(transfer=transfer, succeeded=True, stripe_reversal_id=proof)
        case TransferStatus.PARTIALLY_REVERSED:
            TransferReversalFactory(
                transfer=transfer,
                succeeded=True,
                stripe_reversal_id=transfer.stripe_reversal_id,
                amount=transfer.amount_reversed,
                cause=TransferReversal.Cause.SEEN_AT_STRIPE,
                refund=None,
            )
        case _:
            pass


# --- Webhook events -----------------------------------------------------------------------------------------


class WebhookEventFactory(ModelFactory[WebhookEvent]):
    """Applied. The payload says what the columns say; ``data_object`` is Stripe's object in it."""

    class Meta:
        model = WebhookEvent

    class Params:
        data_object = factory.LazyFunction(lambda: {"id": "re_test", "object": "refund", "status": "succeeded"})
        ignored = factory.Trait(status=EventStatus.IGNORED, outcome="not of interest")
        failed = factory.Trait(
            status=EventStatus.FAILED,
            outcome="",
            retry_count=1,
            next_retry_at=due_now(),
            last_error_code="UnknownOrder",
            last_error_message="Stripe speaks of a payment of which we have no order (yet).",
            last_error_at=minutes_ago(1),
        )
        # No next time: a person decides.
        given_up = factory.Trait(failed=True, next_retry_at=None, retry_count=5)

    stripe_event_id = stripe_id("evt")
    type = "refund.updated"
    api_version = "2026-10-28.endive"
    stripe_created_at = factory.LazyFunction(lambda: datetime(2026, 11, 1, 12, tzinfo=UTC))
    outcome = "done"
    payload = factory.LazyAttribute(
        lambda event: {
            "id": event.stripe_event_id,
            "object": "event",
            "type": event.type,
            "api_version": event.api_version,
            "created": int(event.stripe_created_at.timestamp()),
            "livemode": False,
            "data": {"object": event.data_object},
        }
    )


# --- Bulk retries -------------------------------------------------------------------------------------------


class BulkRetryFactory(ModelFactory[BulkRetry]):
    """Planned, without any transfers. Each other status is a trait."""

    class Meta:
        model = BulkRetry

    class Params:
        started = factory.Trait(started_at=minutes_ago(5))
        under_way = factory.Trait(started=True, next_retry_at=due_now(), canary_until=minutes_ago(-10))
        awaiting_approval = factory.Trait(started=True, status=BulkRetryStatus.AWAITING_APPROVAL, needs_approval=True)
        canary = factory.Trait(under_way=True, status=BulkRetryStatus.CANARY)
        running = factory.Trait(under_way=True, status=BulkRetryStatus.RUNNING)
        stopped = factory.Trait(
            started=True, status=BulkRetryStatus.STOPPED, stop_reason="1 of 5 of the canary failed again"
        )
        finished = factory.Trait(started=True, status=BulkRetryStatus.FINISHED)
        canceled = factory.Trait(status=BulkRetryStatus.CANCELED)

    criteria = factory.LazyFunction(lambda: {"error_code": "not_found"})
    reason = "the accounts are open again"
    requested_by = factory.SubFactory(UserFactory, staff=True)
    canary_size = 5
    per_minute = 60
    max_error_percent = 10


class BulkRetryItemFactory(ModelFactory[BulkRetryItem]):
    """A transfer that was chosen; each other result is a trait."""

    class Meta:
        model = BulkRetryItem

    class Params:
        settled = factory.Trait(retried_at=minutes_ago(2), settled_at=minutes_ago(1))
        refused = factory.Trait(status=BulkRetryItemStatus.REFUSED, outcome="has no Stripe transfer id")
        skipped = factory.Trait(
            status=BulkRetryItemStatus.SKIPPED, outcome="it changed after it was chosen", settled_at=minutes_ago(1)
        )
        retried = factory.Trait(status=BulkRetryItemStatus.RETRIED, retried_at=minutes_ago(2))
        succeeded = factory.Trait(settled=True, status=BulkRetryItemStatus.SUCCEEDED, outcome="reversed")
        waiting = factory.Trait(settled=True, status=BulkRetryItemStatus.WAITING, outcome="insufficient_funds")
        failed = factory.Trait(settled=True, status=BulkRetryItemStatus.FAILED, outcome="not_found: No such transfer")

    bulk_retry = factory.SubFactory(BulkRetryFactory)
    position = factory.Sequence(lambda n: n + 1)
    transfer = factory.SubFactory(SellerTransferFactory, permanently_failed=True)
    failed_leg = factory.SelfAttribute("transfer.failed_leg")
    amount = factory.SelfAttribute("transfer.amount")
    currency = factory.SelfAttribute("transfer.currency")
    error_code = factory.SelfAttribute("transfer.last_error_code")
    transfer_updated_at = factory.LazyAttribute(
        lambda item: SellerTransfer.objects.values_list("updated_at", flat=True).get(pk=item.transfer.pk)
    )


# --- Whole orders -------------------------------------------------------------------------------------------


def order_with_items(amounts: Sequence[int] = (3000, 2000), *, currency: str = "eur", **order: Any) -> Order:
    """An order of one item per seller, with these prices; ``paid=True`` pays it."""
    made = OrderFactory(amount=sum(amounts), currency=currency, **order)
    for amount in amounts:
        product = ProductFactory(unit_amount=amount, currency=currency)
        OrderItemFactory(order=made, product=product, quantity=1)
    return made


def order_with_transfers(
    amounts: Sequence[int] = (3000, 2000), *, status: str = "completed", currency: str = "eur", **order: Any
) -> Order:
    """A paid order over one seller per amount, each with a transfer in ``status`` (its item less commission).

    The transfers are ``order.transfers.order_by("id")``, in the order of ``amounts``.
    """
    made = order_with_items(amounts, currency=currency, paid=True, **order)
    traits = {} if status == TransferStatus.PENDING else {status: True}
    for item in made.items.select_related("product__seller"):
        share = item.unit_amount - item.unit_amount * made.commission_basis_points // 10_000
        SellerTransferFactory(order=made, seller=item.seller, amount=share, **traits)
    made.refresh_from_db()
    return made


class ApiTokenFactory(ModelFactory[ApiToken]):
    """Nobody knows the token; ``api_tokens.make`` tells it."""

    class Meta:
        model = ApiToken

    user = factory.SubFactory(UserFactory)
    name = factory.Sequence(lambda n: f"program {n}")
    scopes = [Scope.READ]
    prefix = "vzt_abcdef"
    digest = factory.Sequence(lambda n: f"{n:064x}")
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(days=90))
