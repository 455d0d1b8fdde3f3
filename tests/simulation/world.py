"""What is there before anything goes wrong: sellers, orders, what will be refunded; and the mail from Stripe."""

import random
from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth.models import User

from marketplace.models import Order, Product, Seller
from marketplace.services import payments

CURRENCIES = ("eur", "eur", "usd", "jpy", "krw", "chf")
# Small and equal ones on purpose: equal parts of equal amounts are where keys made from amounts meet.
PRICES = (1, 2, 3, 100, 100, 999, 1000, 1000, 1000, 2500, 9999)


@dataclass
class Bought:
    """One order, as everybody outside the program knows it."""

    pk: int
    amount: int
    currency: str
    commission: int
    # Seller's account → what was bought of that seller.
    sold: dict[str, int]
    charge: str = ""
    payment_intent: str = ""


@dataclass
class World:
    orders: list[Bought] = field(default_factory=list)
    accounts: dict[str, int] = field(default_factory=dict)
    operator: Any = None
    buyer: Any = None
    sellers: list[Seller] = field(default_factory=list)


def build(chance: random.Random, simulator: Any, *, orders: int, sellers: int) -> World:
    """Rows and objects at Stripe for some orders, placed and paid; nobody here has heard of the payments."""
    world = World()
    world.buyer = User.objects.create(username="buyer")
    world.operator = User.objects.create(username="operator", is_staff=True)
    for number in range(sellers):
        account = simulator.create_account(f"acct_seller{number}")["id"]
        world.sellers.append(Seller.objects.create(name=f"Seller {number}", stripe_account_id=account))
        world.accounts[account] = world.sellers[-1].pk
    for _ in range(orders):
        buy(world, chance, simulator)
    return world


def buy(world: World, chance: random.Random, simulator: Any, *, like: Bought | None = None) -> Bought:
    """One more order; in the same currency and of the same sellers as another one."""
    sellers = [row for row in world.sellers if like is None or row.stripe_account_id in like.sold]
    currency = chance.choice(CURRENCIES) if like is None else like.currency
    several = sellers
    if like is None:
        several = chance.sample(sellers, chance.choice([each for each in (1, 1, 2, 2, 3, 6) if each <= len(sellers)]))
    lines = [
        (_product(chance, seller, currency, number), chance.choice([1, 1, 2, 3]))
        for number, seller in enumerate(several)
    ]
    order = payments.place_order(buyer=world.buyer, lines=lines, actor="simulation")
    commission = chance.choice([0, 0, 500, 1500, 3333])
    Order.objects.filter(pk=order.pk).update(commission_basis_points=commission)
    charge = simulator.create_charge(
        order.amount,
        currency,
        transfer_group=order.transfer_group,
        metadata={"order_operation_id": str(order.operation_id)},
        settles_after=chance.choice([0, 0, 0, 3600, 4 * 86_400]),
    )
    if chance.random() < 0.6:
        Order.objects.filter(pk=order.pk).update(stripe_payment_intent_id=charge["payment_intent"])
    bought = Bought(
        pk=order.pk,
        amount=order.amount,
        currency=currency,
        commission=commission,
        sold={product.seller.stripe_account_id: product.unit_amount * quantity for product, quantity in lines},
        charge=charge["id"],
        payment_intent=charge["payment_intent"],
    )
    world.orders.append(bought)
    return bought


def _product(chance: random.Random, seller: Seller, currency: str, number: int) -> Product:
    # The first line makes the order as large as Stripe wants a payment to be; the others may be tiny.
    price = chance.choice(PRICES if number else [price for price in PRICES if price >= 100]) * chance.choice([1, 1, 7])
    return Product.objects.create(seller=seller, name="thing", unit_amount=price, currency=currency)
