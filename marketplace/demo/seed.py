"""Sample data, made the way real data is: accounts, payments and refunds at Stripe, rows through the services."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Count, Model, QuerySet, Sum
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from marketplace.demo import ground
from marketplace.demo.ground import CannotGoOn
from marketplace.errors import StripeDenied
from marketplace.gateway.contract import TransferGateway
from marketplace.models import Dispute, Order, Product, Refund, Seller, SellerTransfer
from marketplace.money import Money
from marketplace.services import disputes, payments, refund_attempts, refunds
from marketplace.states import TransferStatus
from marketplace.workers import transfer_retry

ACTOR = "seed_demo"
OPERATOR = "demo-operator"
BUYERS = ["ada", "boris", "chidi", "dana", "emre", "farah", "goran", "hana"]
FIRST = ["Alder", "Birch", "Copper", "Drift", "Ember", "Fern", "Granite", "Harbour", "Indigo", "Juniper", "Linden"]
SECOND = ["& Sons", "Atelier", "Bakery", "Books", "Ceramics", "Design", "Garden", "Leather", "Records", "Textiles"]
THINGS = ["basket", "blanket", "bowl", "candle", "chair", "lamp", "mirror", "notebook", "poster", "scarf", "shelf"]
KINDS = ["blue", "carved", "glazed", "large", "linen", "oak", "small", "striped", "walnut", "woven"]
# One currency with decimals and one without.
CURRENCIES = ("eur", "jpy")
EVERY_NTH_IN_JPY = 6
MOST_SELLERS_BY_CHANCE = 3


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How much of it. Without ``sellers_per_order`` each order is over one to three sellers, else over so many."""

    sellers: int = 6
    orders: int = 12
    sellers_per_order: int | None = None
    refund_fraction: float = 0.25
    # Of the orders that are not refunded.
    disputes: int = 0
    # Its three refunds are over one, two and three sellers, one of them in yen.
    seed: int = 8


@dataclass(frozen=True, kw_only=True)
class PlannedSeller:
    handle: str
    name: str
    # Name and price in minor units, one tuple per currency in the order of CURRENCIES.
    products: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class PlannedOrder:
    buyer: str
    currency: str
    # Which seller, and how many of their product in this currency.
    lines: tuple[tuple[int, int], ...]
    is_refunded: bool
    is_disputed: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    sellers: tuple[PlannedSeller, ...]
    orders: tuple[PlannedOrder, ...]


def most_disputes(wanted: Wanted) -> int:
    """Stripe refunds no charge that was charged back, so no order is both."""
    return wanted.orders - _refunds(wanted)


def _refunds(wanted: Wanted) -> int:
    return round(wanted.orders * wanted.refund_fraction)


def plan(wanted: Wanted) -> Plan:
    """Names, prices and choices: the same for the same numbers, whatever is in the database. Raises ``ValueError`` for
    more than ``most_disputes``.
    """
    # Two streams, so that more sellers or orders do not change the ones before them.
    names = random.Random(f"{wanted.seed}/sellers")  # noqa: S311 - no secret
    choices = random.Random(f"{wanted.seed}/orders")  # noqa: S311 - no secret
    shops = [f"{first} {second}" for first in FIRST for second in SECOND]
    names.shuffle(shops)
    sellers = tuple(
        _seller(names, handle=f"demo-seller-{wanted.seed}-{number + 1}", name=shops[number % len(shops)])
        for number in range(wanted.sellers)
    )
    refunded = set(
        random.Random(f"{wanted.seed}/refunds").sample(  # noqa: S311 - no secret
            range(wanted.orders), _refunds(wanted)
        )
    )
    left = [number for number in range(wanted.orders) if number not in refunded]
    disputed = set(random.Random(f"{wanted.seed}/disputes").sample(left, wanted.disputes))  # noqa: S311 - no secret
    orders = tuple(
        _order(choices, wanted, number, is_refunded=number in refunded, is_disputed=number in disputed)
        for number in range(wanted.orders)
    )
    return Plan(sellers=sellers, orders=orders)


def _seller(names: random.Random, *, handle: str, name: str) -> PlannedSeller:
    thing, other = names.sample(THINGS, 2)
    return PlannedSeller(
        handle=handle,
        name=name,
        products=(
            (f"{names.choice(KINDS)} {thing}".capitalize(), names.randrange(500, 20_000, 5)),
            (f"{names.choice(KINDS)} {other}".capitalize(), names.randrange(500, 20_000, 10)),
        ),
    )


def _order(
    choices: random.Random, wanted: Wanted, number: int, *, is_refunded: bool, is_disputed: bool
) -> PlannedOrder:
    many = wanted.sellers_per_order or choices.randint(1, min(MOST_SELLERS_BY_CHANCE, wanted.sellers))
    return PlannedOrder(
        buyer=f"demo-buyer-{choices.choice(BUYERS)}",
        currency=CURRENCIES[1] if number % EVERY_NTH_IN_JPY == EVERY_NTH_IN_JPY - 1 else CURRENCIES[0],
        lines=tuple((seller, choices.randint(1, 3)) for seller in choices.sample(range(wanted.sellers), many)),
        is_refunded=is_refunded,
        is_disputed=is_disputed,
    )


@dataclass(frozen=True, kw_only=True)
class Line:
    """So many rows of one status, and their sum per currency."""

    what: str
    count: int
    sums: tuple[Money, ...]


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """What is there at the end of the run, of this run's own rows."""

    sellers: int
    orders: tuple[Order, ...]
    lines: tuple[Line, ...]


@dataclass
class _Done:
    """How far it got: said when it cannot go on."""

    sellers: int = 0
    paid: int = 0
    refunded: int = 0
    disputed: int = 0

    def __str__(self) -> str:
        told = f"{self.sellers} sellers, {self.paid} orders paid, {self.refunded} refunded"
        return f"{told}, {self.disputed} disputed" if self.disputed else told


def run(wanted: Wanted, gateway: TransferGateway, *, console: Console) -> Seeded:
    """Make the data. The reversals that refunds and disputes owe are left to the reversal worker.

    Raises:
        CannotGoOn: Stripe does not answer, or refuses. What was made until then is whole, and stays.

    """
    planned = plan(wanted)
    done = _Done()
    steps = [TextColumn("  {task.description}"), BarColumn(bar_width=30), MofNCompleteColumn()]
    try:
        with Progress(*steps, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("sellers", total=len(planned.sellers))
            products = []
            for each in planned.sellers:
                products.append(_products(each, ground.seller(gateway, handle=each.handle, name=each.name)))
                done.sellers += 1
                progress.advance(task)
            task = progress.add_task("orders", total=len(planned.orders))
            orders = []
            for order in planned.orders:
                orders.append(_paid(order, products, gateway))
                done.paid += 1
                progress.advance(task)
            progress.add_task("transfers", total=None)
            _send_transfers(orders, gateway)
            operator = ground.user(OPERATOR, is_staff=True)
            chosen = [row for row, order in zip(orders, planned.orders, strict=True) if order.is_refunded]
            disputed = [row for row, order in zip(orders, planned.orders, strict=True) if order.is_disputed]
            for money in _sums([*chosen, *disputed]):
                ground.add_reserve(gateway, money)
            task = progress.add_task("refunds", total=len(chosen))
            for row in chosen:
                _refund(row, operator, gateway)
                done.refunded += 1
                progress.advance(task)
            task = progress.add_task("disputes", total=len(disputed))
            for row in disputed:
                _dispute(row, gateway)
                done.disputed += 1
                progress.advance(task)
    except CannotGoOn as error:
        raise CannotGoOn(
            f"{error.message}\nStopped after {done}. What is there is whole; the same command goes on from it."
        ) from error
    return Seeded(sellers=len(planned.sellers), orders=tuple(orders), lines=tuple(_lines(orders)))


def _products(planned: PlannedSeller, seller: Seller) -> dict[str, Product]:
    products = {}
    for currency, (name, unit_amount) in zip(CURRENCIES, planned.products, strict=True):
        found = Product.objects.filter(
            seller=seller, name=name, unit_amount=unit_amount, currency=currency, active=True
        ).first()
        products[currency] = found or Product.objects.create(
            seller=seller, name=name, unit_amount=unit_amount, currency=currency
        )
    return products


def _paid(planned: PlannedOrder, products: Sequence[dict[str, Product]], gateway: TransferGateway) -> Order:
    lines = [(products[seller][planned.currency], quantity) for seller, quantity in planned.lines]
    order = payments.place_order(buyer=ground.user(planned.buyer), lines=lines, actor=ACTOR)
    facts = ground.pay(order, gateway, is_disputed=planned.is_disputed)
    # Stripe's answer is as good as its event, which says the same again where a web server listens.
    with transaction.atomic():
        return payments.record(facts, actor=ACTOR)


def _send_transfers(orders: Sequence[Order], gateway: TransferGateway) -> None:
    try:
        transfer_retry.worker(gateway).run_once()
    except StripeDenied as error:
        raise CannotGoOn(f"Stripe refuses our key or its permissions, sending transfers: {error.message}") from error
    sent = SellerTransfer.objects.filter(order__in=orders)
    if not sent.exclude(status=TransferStatus.FAILED).exists() and (failed := sent.first()) is not None:
        raise CannotGoOn(
            f"none of the {sent.count()} transfers could be sent, the last: {failed.last_error_message}\n"
            f"They are due again from {failed.next_retry_at:%H:%M:%S} UTC on: run_transfer_retry_worker sends them."
        )


def _sums(orders: Sequence[Order]) -> list[Money]:
    sums: Counter[str] = Counter()
    for order in orders:
        sums[order.currency] += order.amount
    return [Money(amount, currency) for currency, amount in sums.items()]


def _refund(order: Order, operator: User, gateway: TransferGateway) -> Refund:
    requested = refunds.request(
        order_id=order.pk,
        amount=order.amount,
        currency=order.currency,
        reason="sample data",
        requested_by=operator,
        request_key=f"{ACTOR}:{order.operation_id}",
    )
    return refund_attempts.send(requested.refund, gateway)


def _dispute(order: Order, gateway: TransferGateway) -> Dispute:
    facts = ground.dispute_of(order, gateway)
    # As with a payment: its events say the same again.
    with transaction.atomic():
        return disputes.record(facts, actor=ACTOR)


# --- What came of it --------------------------------------------------------------------------------------------------


def _lines(orders: Sequence[Order]) -> list[Line]:
    ids = [order.pk for order in orders]
    return [
        *_by_status("orders", Order.objects.filter(id__in=ids)),
        *_by_status("transfers", SellerTransfer.objects.filter(order__in=ids)),
        *_by_status("refunds", Refund.objects.filter(order__in=ids)),
        *_by_status("disputes", Dispute.objects.filter(order__in=ids)),
    ]


def _by_status(what: str, rows: QuerySet[Model]) -> list[Line]:
    grouped = (
        rows.order_by("status", "currency").values("status", "currency").annotate(n=Count("id"), sum=Sum("amount"))
    )
    lines: dict[str, Line] = {}
    for row in grouped:
        so_far = lines.get(row["status"], Line(what=f"{what} {row['status']}", count=0, sums=()))
        lines[row["status"]] = Line(
            what=so_far.what,
            count=so_far.count + row["n"],
            sums=(*so_far.sums, Money(row["sum"], row["currency"])),
        )
    return list(lines.values())


def table(seeded: Seeded) -> Table:
    made = Table(box=None, padding=(0, 2), show_header=False)
    made.add_column()
    made.add_column(justify="right")
    for _ in CURRENCIES:
        made.add_column(justify="right")
    made.add_row("sellers", str(seeded.sellers))
    for line in seeded.lines:
        sums = {money.currency: str(money) for money in line.sums}
        made.add_row(line.what, str(line.count), *(sums.get(currency, "") for currency in CURRENCIES))
    return made
