"""The smoke probe: one small order followed over the running system, until Stripe shows its reversal."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from django.db.models import QuerySet
from rich.console import Console

from marketplace.demo import ground
from marketplace.demo.ground import CannotGoOn
from marketplace.gateway.contract import ReversalsListed, TransferGateway
from marketplace.models import Order, Product, Refund, Seller, SellerTransfer, TransferReversal, WebhookEvent
from marketplace.models.lifecycle import Work
from marketplace.money import Money
from marketplace.services import payments, refund_attempts, refunds
from marketplace.states import EventStatus, OrderStatus, RefundStatus, TransferStatus

T = TypeVar("T")

HANDLE = "smoke-probe"
NAME = "Smoke probe"
PRICE = Money(1000, "eur")
POLL_SECONDS = 0.05

LOOK_AT_WEBHOOK = (
    "does the web server run, does Stripe send its events to /webhooks/stripe/ of it, and is the endpoint's secret in"
    " STRIPE_WEBHOOK_SECRETS?"
)
LOOK_AT_TRANSFER_WORKER = "is run_transfer_retry_worker running, on this database and with TRANSFER_RETRY_ENABLED=true?"
LOOK_AT_REVERSAL_WORKER = "is run_reversal_worker running, on this database and with REVERSAL_WORKER_ENABLED=true?"
LOOK_AT_ROW = "the row's history in the admin: it names Stripe's request"
LOOK_AT_STRIPE = "Stripe's answer above: the worker runs, and tries again at that time"


class ProbeFailed(CannotGoOn):
    """A step of the probe did not come about."""

    def __init__(self, step: str, *, waited_for: str, seen: str, look_at: str) -> None:
        super().__init__(f"step {step!r} failed")
        self.step = step
        self.waited_for = waited_for
        self.seen = seen
        self.look_at = look_at


@dataclass(frozen=True, kw_only=True)
class Outcome:
    order: Order
    transfer: SellerTransfer
    seconds: float
    # From the refund's request to our row in `reversed`.
    seconds_to_reversed: float


@dataclass(kw_only=True)
class _Probe:
    gateway: TransferGateway
    console: Console
    timeout: float
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def tell(self, step: str, what: str) -> None:
        self.console.print(f"  [green]✓[/] [dim]{self.elapsed:6.2f} s[/]  {step:<20} {what}")

    def wait(
        self,
        step: str,
        look: Callable[[], T | None],
        *,
        waited_for: str,
        seen: Callable[[], tuple[str, str]],
    ) -> T:
        """What ``look`` finds; it asks the database, every 50 ms until the probe's time is over.

        ``seen`` tells, only when it is over, what the rows say and what a person should look at.
        """
        while (found := look()) is None:
            if self.elapsed >= self.timeout:
                state, look_at = seen()
                raise ProbeFailed(
                    step, waited_for=f"{waited_for}, for {self.timeout:g} s in all", seen=state, look_at=look_at
                )
            time.sleep(POLL_SECONDS)
        return found

    # --- The steps, in their order ---

    def order(self) -> Order:
        seller = self._seller()
        product, _ = Product.objects.get_or_create(
            seller=seller,
            name=NAME,
            unit_amount=PRICE.amount,
            currency=PRICE.currency,
            active=True,
        )
        order = payments.place_order(buyer=ground.user(HANDLE), lines=[(product, 1)], actor=HANDLE)
        self.tell("order", f"order {order.pk}: {order.total} from {seller.name}, {seller.stripe_account_id}")
        return order

    def _seller(self) -> Seller:
        seller = ground.seller(self.gateway, handle=f"{HANDLE}-seller", name=NAME)
        if seller.transfers_capability != Seller.Capability.ACTIVE:
            raise ProbeFailed(
                "order",
                waited_for=f"a seller who can be paid: {seller.stripe_account_id}",
                seen=f"its transfers capability is {seller.transfers_capability}",
                look_at="finish the account's onboarding in Stripe's dashboard",
            )
        return seller

    def payment(self, order: Order) -> None:
        ground.add_reserve(self.gateway, order.total)
        facts = ground.pay(order, self.gateway)
        self.tell("payment at Stripe", facts.stripe_payment_intent_id)

    def paid(self, order: Order) -> None:
        def look() -> Order | None:
            return Order.objects.filter(pk=order.pk).exclude(status=OrderStatus.PENDING).first()

        intent = Order.objects.get(pk=order.pk).stripe_payment_intent_id
        self.wait(
            "payment's webhook",
            look,
            waited_for=f"payment_intent.succeeded of {intent} to mark order {order.pk} as paid",
            seen=lambda: _seen_of_webhook(intent, f"order {order.pk} is pending"),
        )
        self.tell("payment's webhook", f"order {order.pk} is paid")

    def transfer(self, order: Order) -> SellerTransfer:
        def look() -> SellerTransfer | None:
            row = SellerTransfer.objects.get(order=order)
            self._refuse_permanent("transfer", row, wanted="completed")
            return row if row.status == TransferStatus.COMPLETED else None

        row = self.wait(
            "transfer",
            look,
            waited_for="the seller's transfer to be completed",
            seen=lambda: _seen_of_work(SellerTransfer.objects.get(order=order), LOOK_AT_TRANSFER_WORKER),
        )
        self.tell("transfer", f"{row.stripe_transfer_id} completed, {Money(row.amount, row.currency)} to the seller")
        return row

    def refund(self, order: Order) -> Refund:
        requested = refunds.request(
            order_id=order.pk,
            amount=order.amount,
            currency=order.currency,
            reason="smoke probe",
            requested_by=ground.user(HANDLE),
            request_key=f"{HANDLE}:{order.operation_id}",
        )
        refund = refund_attempts.send(requested.refund, self.gateway)
        if refund.status == RefundStatus.REQUESTED:
            known = "asked for; Stripe has not answered, the reversal worker asks again"
        else:
            known = f"{refund.stripe_refund_id} {refund.status}, {refund.money} to the buyer"
        self.tell("refund", known)
        return refund

    def refund_webhook(self, refund: Refund) -> None:
        def look() -> WebhookEvent | None:
            stripe_id = Refund.objects.get(pk=refund.pk).stripe_refund_id
            return _events(stripe_id).filter(status=EventStatus.PROCESSED).first() if stripe_id else None

        def seen() -> tuple[str, str]:
            row = Refund.objects.get(pk=refund.pk)
            if not row.stripe_refund_id:
                return _seen_of_work(row, LOOK_AT_REVERSAL_WORKER)
            return _seen_of_webhook(row.stripe_refund_id, _described(row))

        event = self.wait("refund's webhook", look, waited_for="Stripe's event of the refund", seen=seen)
        self.tell("refund's webhook", f"{event.type}, {event.stripe_event_id}")

    def reversed(self, transfer: SellerTransfer, refund: Refund) -> SellerTransfer:
        def look() -> SellerTransfer | None:
            row = SellerTransfer.objects.get(pk=transfer.pk)
            self._refuse_permanent("reversal", row, wanted="reversed")
            return row if row.status == TransferStatus.REVERSED else None

        def seen() -> tuple[str, str]:
            row, asked = SellerTransfer.objects.get(pk=transfer.pk), Refund.objects.get(pk=refund.pk)
            if asked.succeeded_at is None:
                return f"{_described(asked)}; {_described(row)}", LOOK_AT_WEBHOOK
            return _seen_of_work(row, LOOK_AT_REVERSAL_WORKER)

        row = self.wait("reversal", look, waited_for=f"transfer {transfer.pk} to be reversed", seen=seen)
        self.tell("reversal", f"transfer {row.pk} is reversed: {row.stripe_reversal_id}")
        return row

    def at_stripe(self, transfer: SellerTransfer) -> None:
        answer = self.gateway.list_reversals(transfer.stripe_transfer_id)
        if not isinstance(answer, ReversalsListed):
            raise ground.stopped_by(answer, doing=f"listing the reversals of {transfer.stripe_transfer_id}")
        ours = TransferReversal.objects.get(transfer=transfer)
        wanted = [(ours.stripe_reversal_id, ours.amount, str(ours.operation_id))]
        found = [(each.stripe_reversal_id, each.amount, each.operation_id) for each in answer.reversals]
        if found != wanted:
            raise ProbeFailed(
                "at Stripe",
                waited_for=f"exactly one reversal of {transfer.stripe_transfer_id}: {_shown(wanted)}",
                seen=_shown(found),
                look_at="`manage.py reconcile`, and who else reverses transfers on this account",
            )
        self.tell("at Stripe", f"exactly one reversal, {Money(ours.amount, ours.currency)}, with our operation id")

    def _refuse_permanent(self, step: str, row: SellerTransfer, *, wanted: str) -> None:
        if row.status == TransferStatus.PERMANENTLY_FAILED:
            raise ProbeFailed(
                step, waited_for=f"transfer {row.pk} to be {wanted}", seen=_described(row), look_at=LOOK_AT_ROW
            )


def run(gateway: TransferGateway, *, timeout: float, console: Console) -> Outcome:
    """Follow one order until Stripe shows its reversal, telling each step; ``timeout`` is seconds in all.

    Raises:
        ProbeFailed: with the step, what was waited for, what was seen last, and what to look at.
        CannotGoOn: Stripe does not answer, or refuses.

    """
    probe = _Probe(gateway=gateway, console=console, timeout=timeout)
    order = probe.order()
    probe.payment(order)
    probe.paid(order)
    transfer = probe.transfer(order)
    asked_at = probe.elapsed
    refund = probe.refund(order)
    probe.refund_webhook(refund)
    transfer = probe.reversed(transfer, refund)
    seconds_to_reversed = probe.elapsed - asked_at
    probe.at_stripe(transfer)
    return Outcome(order=order, transfer=transfer, seconds=probe.elapsed, seconds_to_reversed=seconds_to_reversed)


def tell_failure(error: ProbeFailed, console: Console) -> None:
    console.print(f"  [red]✗[/] [bold]{error.step}[/]")
    console.print(f"      waited for  {error.waited_for}", markup=False)
    console.print(f"      seen last   {error.seen}", markup=False)
    console.print(f"      look at     {error.look_at}", markup=False)


def _events(stripe_id: str) -> QuerySet[WebhookEvent]:
    return WebhookEvent.objects.filter(payload__data__object__id=stripe_id).order_by("id")


def _seen_of_webhook(stripe_id: str, row: str) -> tuple[str, str]:
    """What the inbox knows of an object, and so what is to be looked at."""
    event = _events(stripe_id).order_by("-id").first()
    if event is None:
        return f"{row}; the inbox has no event of {stripe_id}", LOOK_AT_WEBHOOK
    told = event.last_error_message or event.outcome
    return f"{row}; {event.type} {event.stripe_event_id} is {event.status}: {told}", "the event in the admin"


def _seen_of_work(row: SellerTransfer | Refund, worker: str) -> tuple[str, str]:
    return _described(row), LOOK_AT_STRIPE if row.last_error_code else worker


def _described(row: "SellerTransfer | Refund") -> str:
    parts = [f"{row._meta.verbose_name} {row.pk} is {row.status}"]
    work: Work = row
    if work.last_error_code:
        parts.append(f"last error {work.last_error_code}: {work.last_error_message}")
    else:
        parts.append("no error")
    if work.next_retry_at is not None:
        parts.append(f"next attempt {work.next_retry_at:%Y-%m-%d %H:%M:%S} UTC")
    return ", ".join(parts)


def _shown(reversals: list[tuple[str, int, str]]) -> str:
    return (
        "; ".join(f"{id_} of {amount} for {operation or 'nobody we know'}" for id_, amount, operation in reversals)
        or "none"
    )
