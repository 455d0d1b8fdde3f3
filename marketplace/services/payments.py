"""An order is placed, paid, and owes its sellers their shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Sum
from django.db.models.functions import Now

from marketplace import money
from marketplace.errors import ConflictingFacts, NotAllowedNow, UnknownOrder
from marketplace.gateway.contract import CreatePaymentAnswer, PaymentCreated, PaymentFacts, TransferGateway
from marketplace.models import Order, OrderItem, Product, SellerTransfer
from marketplace.services import debts, statement_lines
from marketplace.states import OrderStatus

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a seller gets of an order, in the order's minor units."""

    seller_id: int
    amount: int


def place_order(*, buyer: User, lines: Sequence[tuple[Product, int]], actor: str) -> Order:
    """An order over (product, quantity) lines, with today's prices and commission; committed on return.

    Raises:
        NotAllowedNow: no lines, a quantity below one, products of several currencies, or one that is not sold any more.

    """
    currencies = {product.currency for product, _ in lines}
    if len(currencies) != 1:
        raise NotAllowedNow(f"an order is in one currency, these products are in: {sorted(currencies) or 'none'}")
    if any(quantity < 1 or not product.active for product, quantity in lines):
        raise NotAllowedNow("each line needs a product that is sold and a quantity of at least one")
    amount = sum(product.unit_amount * quantity for product, quantity in lines)
    if amount > money.LARGEST_AMOUNT:
        raise NotAllowedNow("the order's amount is too large")
    with transaction.atomic(), Order.recording(actor=actor, reason="placed"):
        order = Order.objects.create(
            buyer=buyer,
            amount=amount,
            currency=currencies.pop(),
            commission_basis_points=settings.COMMISSION_BASIS_POINTS,
            refund_commission=settings.REFUND_COMMISSION,
        )
        OrderItem.objects.bulk_create(
            OrderItem(
                order=order,
                product=product,
                seller_id=product.seller_id,
                quantity=quantity,
                unit_amount=product.unit_amount,
            )
            for product, quantity in lines
        )
    return order


def charge(order: Order, gateway: TransferGateway, *, payment_method: str) -> CreatePaymentAnswer:
    """Ask Stripe for the buyer's payment, under the order's own key: asking twice charges once.

    Raises:
        ConflictingFacts: the payment that Stripe made is known as that of another order.

    """
    answer = gateway.create_payment(
        amount=order.amount,
        currency=order.currency,
        transfer_group=order.transfer_group,
        operation_id=order.operation_id,
        payment_method=payment_method,
        idempotency_key=f"{order.operation_id}:payment",
    )
    if isinstance(answer, PaymentCreated):
        # So that a refund made in the dashboard finds the order even before the payment's event is here.
        payment_intent = answer.payment.stripe_payment_intent_id
        try:
            with transaction.atomic():
                Order.objects.filter(pk=order.pk, stripe_payment_intent_id="").update(
                    stripe_payment_intent_id=payment_intent
                )
        except IntegrityError as error:
            raise ConflictingFacts(
                f"{payment_intent} pays another order: is this database used with another Stripe account than before?"
            ) from error
    return answer


def shares(order: Order) -> list[Share]:
    """Each seller's share: what was bought from them, less the commission frozen in the order; in order of seller.

    The commission is rounded down per seller, so that the platform never takes a cent more than its rate; and to what
    Stripe takes in this currency, so that a share can be sent.
    """
    sold = (
        OrderItem.objects.filter(order=order)
        .values_list("seller_id")
        .annotate(total=Sum("amount"))
        .order_by("seller_id")
    )
    step = money.step(order.currency)
    return [
        Share(seller_id=seller_id, amount=total - commission // step * step)
        for seller_id, total in sold
        for commission in [total * order.commission_basis_points // 10_000]
    ]


def record(facts: PaymentFacts, *, actor: str) -> Order:
    """A payment succeeded: the order is paid, and one transfer per seller is due. Runs in the caller's transaction.

    The same facts again change nothing.

    Raises:
        UnknownOrder: the payment is of no order of ours.
        ConflictingFacts: another amount, currency or payment than the order's.

    """
    order = _locked_order(facts)
    if order.status != OrderStatus.PENDING:
        if facts.stripe_payment_intent_id != order.stripe_payment_intent_id:
            raise ConflictingFacts(
                f"order {order.pk} was paid by {order.stripe_payment_intent_id}, not {facts.stripe_payment_intent_id}"
            )
        return order
    if (facts.amount_received, facts.currency) != (order.amount, order.currency):
        raise ConflictingFacts(
            f"order {order.pk} is {order.amount} {order.currency}, {facts.stripe_payment_intent_id} is"
            f" {facts.amount_received} {facts.currency}"
        )
    reason = f"{facts.stripe_payment_intent_id} succeeded"
    order.transition(
        OrderStatus.PAID,
        reason=reason,
        actor=actor,
        stripe_payment_intent_id=facts.stripe_payment_intent_id,
        stripe_charge_id=facts.stripe_charge_id,
        paid_at=facts.paid_at,
    )
    with SellerTransfer.recording(actor=actor, reason=reason):
        made = [_transfer(order, share) for share in shares(order)]
    debts.net(made, actor=actor)
    logger.info("order_paid", order=order.pk, payment_intent=facts.stripe_payment_intent_id)
    return order


def _transfer(order: Order, share: Share) -> SellerTransfer:
    transfer = SellerTransfer(
        order=order,
        seller_id=share.seller_id,
        amount=share.amount,
        currency=order.currency,
        next_retry_at=Now(),
    )
    transfer.description = statement_lines.of_transfer(transfer)
    transfer.save(force_insert=True)
    return transfer


def _locked_order(facts: PaymentFacts) -> Order:
    orders = Order.objects.select_for_update(no_key=True)
    if facts.order_operation_id:
        try:
            order = orders.filter(operation_id=facts.order_operation_id).first()
        except (ValueError, ValidationError):
            order = None
    else:
        order = orders.filter(stripe_payment_intent_id=facts.stripe_payment_intent_id).first()
    if order is None:
        raise UnknownOrder(f"no order of ours is paid by {facts.stripe_payment_intent_id}")
    return order
