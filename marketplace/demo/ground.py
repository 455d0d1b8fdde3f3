"""What the sample data and the probe both stand on: test mode only, users made for them, sellers with an account."""

import time
from uuid import NAMESPACE_URL, uuid4, uuid5

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from marketplace.errors import MarketplaceError
from marketplace.gateway.contract import (
    EVER,
    AccountCreated,
    Busy,
    Denied,
    DisputeFacts,
    Failure,
    NotFound,
    Page,
    PaymentCreated,
    PaymentFacts,
    RateLimited,
    ServerError,
    TransferGateway,
    TransferRetrieved,
    Unknown,
)
from marketplace.models import Order, Seller
from marketplace.money import Money
from marketplace.services import payments

# Stripe's test card that always pays.
PAYMENT_METHOD = "pm_card_visa"
# The one whose charge succeeds, and is disputed as fraudulent a moment later.
DISPUTED_METHOD = "pm_card_createDispute"
# And the one whose money is available at once.
RESERVE_METHOD = "pm_card_bypassPending"
# So long Stripe is waited for to open one, asked so often.
DISPUTE_SECONDS = 30
PAUSE_SECONDS = 0.25
ACCEPTED_KEY = "a test key (sk_test_…, rk_test_…)"


class CannotGoOn(MarketplaceError):
    """What was asked for cannot be had now; the message is for the person who asked."""


def require_test_mode() -> None:
    """Raises ``CannotGoOn`` with a live key, and without any."""
    key = settings.STRIPE_SECRET_KEY
    if key.startswith(("sk_live_", "rk_live_")):
        raise CannotGoOn(
            f"STRIPE_SECRET_KEY is a live key: this would charge cards and move money. Expected {ACCEPTED_KEY}."
        )
    if not key:
        raise CannotGoOn(
            f"STRIPE_SECRET_KEY is not set: expected {ACCEPTED_KEY}. `make demo` brings a local Stripe with its own."
        )


def stopped_by(failure: Failure, *, doing: str) -> CannotGoOn:
    """What Stripe's failure means to somebody who waits at a terminal."""
    match failure:
        case Unknown() | ServerError():
            what = "Stripe does not answer"
        case Denied():
            what = "Stripe refuses our key or its permissions"
        case Busy() | RateLimited():
            what = "Stripe is busy"
        case _:
            what = "Stripe says no"
    request = f" ({failure.request_id})" if failure.request_id else ""
    return CannotGoOn(f"{what}, {doing}: {failure.message}{request}")


def user(username: str, *, is_staff: bool = False) -> User:
    """Nobody can log in as this user."""
    found, is_new = User.objects.get_or_create(username=username, defaults={"is_staff": is_staff})
    if is_new:
        found.set_unusable_password()
        found.save(update_fields=["password"])
    return found


def seller(gateway: TransferGateway, *, handle: str, name: str, country: str = "DE") -> Seller:
    """The seller of an earlier run, where this Stripe knows it; else one with a new account.

    Raises:
        CannotGoOn: Stripe does not answer, or refuses.

    """
    owner = user(handle)
    known = Seller.objects.filter(user=owner, deauthorized_at__isnull=True).first()
    if known is not None and _has_transfer_here(gateway, known):
        return known
    answer = gateway.create_account(
        name=name,
        country=country,
        # The same seller asked for again within a day is the same account, also when we died before we kept it.
        idempotency_key=f"demo:{uuid5(NAMESPACE_URL, f'{handle}/{name}/{country}')}",
    )
    if not isinstance(answer, AccountCreated):
        raise stopped_by(answer, doing=f"opening the account of {name}")
    with transaction.atomic():
        # A row of another Stripe stays, with its orders; it is only nobody's any more.
        Seller.objects.filter(user=owner).exclude(stripe_account_id=answer.account.stripe_account_id).update(user=None)
        row, _ = Seller.objects.update_or_create(
            stripe_account_id=answer.account.stripe_account_id,
            defaults={"user": owner},
            create_defaults={
                "name": name,
                "user": owner,
                "transfers_capability": answer.account.transfers_capability,
                "payouts_enabled": answer.account.payouts_enabled,
                "stripe_seen_at": answer.account.seen_at,
            },
        )
    return row


def _has_transfer_here(gateway: TransferGateway, known: Seller) -> bool:
    sent = known.transfers.exclude(stripe_transfer_id="").order_by("-id").first()
    if sent is None:
        return False
    answer = gateway.retrieve_transfer(sent.stripe_transfer_id)
    if isinstance(answer, (TransferRetrieved, NotFound)):
        return isinstance(answer, TransferRetrieved)
    raise stopped_by(answer, doing=f"looking for {sent.stripe_transfer_id}")


def add_reserve(gateway: TransferGateway, money: Money) -> None:
    """Money of the platform's own at Stripe, as a platform keeps it: sellers have most of what buyers paid, so a refund
    would wait for funds that only its own reversals bring back. A payment of no order; its event is ignored.

    Raises:
        CannotGoOn: Stripe does not answer, or refuses.

    """
    operation_id = uuid4()
    answer = gateway.create_payment(
        amount=money.amount,
        currency=money.currency,
        transfer_group="reserve",
        operation_id=operation_id,
        payment_method=RESERVE_METHOD,
        idempotency_key=f"{operation_id}:reserve",
    )
    if not isinstance(answer, PaymentCreated):
        raise stopped_by(answer, doing=f"giving the platform a reserve of {money}")


def pay(order: Order, gateway: TransferGateway, *, is_disputed: bool = False) -> PaymentFacts:
    """Charge the buyer, who may dispute it later. Raises ``CannotGoOn`` unless Stripe says that it succeeded."""
    method = DISPUTED_METHOD if is_disputed else PAYMENT_METHOD
    answer = payments.charge(order, gateway, payment_method=method)
    if not isinstance(answer, PaymentCreated):
        raise stopped_by(answer, doing=f"paying for order {order.pk}")
    if answer.payment.status != "succeeded":
        raise CannotGoOn(
            f"payment {answer.payment.stripe_payment_intent_id} of order {order.pk} is {answer.payment.status},"
            " expected succeeded"
        )
    return answer.payment


def dispute_of(order: Order, gateway: TransferGateway) -> DisputeFacts:
    """The one that Stripe opens by itself after such a payment.

    Raises:
        CannotGoOn: Stripe does not answer, or refuses, or shows none in time.

    """
    what = f"looking for the dispute of order {order.pk}"
    until = time.monotonic() + DISPUTE_SECONDS
    while time.monotonic() < until:
        page = gateway.page_of_disputes(since=0, until=EVER, charge=order.stripe_charge_id)
        if not isinstance(page, Page):
            raise stopped_by(page, doing=what)
        if page.items:
            return page.items[0].dispute
        time.sleep(PAUSE_SECONDS)
    raise CannotGoOn(f"{what}: Stripe shows none of {order.stripe_charge_id} after {DISPUTE_SECONDS} s")
