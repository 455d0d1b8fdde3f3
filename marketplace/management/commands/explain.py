import json
import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q
from rest_framework.utils.encoders import JSONEncoder
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from marketplace.api.why import WhySerializer
from marketplace.demo import terminal
from marketplace.explain import runbook, transfers
from marketplace.explain.shapes import Action, Explanation, Key, Kind
from marketplace.explain.words import moment, span
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.money import Money

NOT_FOUND = 2
EXPECTED = "the number of a transfer, tr_… or trr_…"
STYLES = {
    Kind.AT_REST: "green",
    Kind.NEEDS_A_PERSON: "bold red",
    Kind.BREAKER_OPEN: "red",
    Kind.NO_WORKER: "red",
    Kind.SWITCHED_OFF: "red",
    Kind.IN_HAND: "cyan",
    Kind.QUEUED: "cyan",
}


def a_transfer(text: str) -> str:
    """Raises ``ArgumentTypeError`` for what names no transfer."""
    if not re.fullmatch("[0-9]{1,18}|trr?_[A-Za-z0-9_]{1,250}", text):
        raise ArgumentTypeError(f"{text!r} is not valid: expected {EXPECTED}")
    return text


def _named(text: str) -> Q:
    if text.startswith("tr_"):
        return Q(stripe_transfer_id=text)
    if text.startswith("trr_"):
        return Q(pk__in=TransferReversal.objects.filter(stripe_reversal_id=text).values("transfer_id"))
    return Q(pk=int(text))


class Command(BaseCommand):
    help = (
        "Why a transfer is where it is, what unblocks it, and when it is tried next: the same answer as on its page."
        f" Changes nothing and asks Stripe nothing. Exit status {NOT_FOUND} where there is no such transfer."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("transfer", type=a_transfer, help=EXPECTED)
        parser.add_argument("--format", choices=["text", "json"], default="text", help="default: %(default)s")

    def handle(self, *_args: str, **options: Any) -> None:
        name = options["transfer"]
        transfer = SellerTransfer.objects.select_related("seller", "order").filter(_named(name)).first()
        if transfer is None:
            raise CommandError(f"There is no transfer {name}: expected {EXPECTED}.", returncode=NOT_FOUND)
        explanation = transfers.explain(transfer)
        if options["format"] == "json":
            shown = {"transfer": transfer.pk, "status": transfer.status, **WhySerializer(explanation).data}
            self.stdout.write(json.dumps(shown, indent=2, cls=JSONEncoder, ensure_ascii=False))
        else:
            terminal.console(self.stdout).print(_told(transfer, explanation))


def _told(transfer: SellerTransfer, explanation: Explanation) -> Group:
    kind, now = explanation.kind, explanation.now
    heading = Text.assemble(
        (f"Transfer {transfer.pk}", "bold"),
        f"  {transfer.money} to {transfer.seller.name}  {transfer.get_status_display()}: ",
        (str(kind.label), STYLES.get(kind, "yellow")),
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in (
        ("why", explanation.cause),
        ("what unblocks it", explanation.unblocks),
        ("since", explanation.since and f"{moment(explanation.since)}, {span(now - explanation.since)} ago"),
        ("next attempt", explanation.next_attempt and _when(explanation.next_attempt.at - now)),
        ("", explanation.next_attempt and f"{moment(explanation.next_attempt.at)}: {explanation.next_attempt.why}"),
        ("at the latest", explanation.until and moment(explanation.until)),
        *(("besides", note) for note in explanation.notes),
        ("retries spent", f"{explanation.retries_spent} of {explanation.max_retries}"),
        ("idempotency key", explanation.key and _key(explanation.key)),
        *(("owed", _owed(each)) for each in explanation.owed),
        *(("at Stripe", f"{link.title}: {link.url}") for link in explanation.links),
        ("possible now", _allowed(explanation.actions)),
        ("runbook", runbook.address(explanation.runbook)),
    ):
        if value:
            facts.add_row(name, Text(value))
    parts: list[RenderableType] = [heading, Text(), facts]
    if explanation.attempts:
        parts += [Text(), _attempts(explanation)]
    return Group(*parts)


def _when(distance: timedelta) -> str:
    return f"in {span(distance)}" if distance > timedelta(0) else "now"


def _key(key: Key) -> str:
    used = "not used yet" if key.age is None else f"first used {span(key.age)} ago"
    looks = "; Stripe is looked at before anything is sent" if key.looks_first else ""
    return f"{key.operation_id}, generation {key.generation}, {used}{looks}"


def _owed(owed: Any) -> str:
    behind = owed.cause.replace("_", " ")
    if owed.refund:
        behind = f"refund {owed.refund} {owed.stripe_refund_id}"
    elif owed.dispute:
        behind = f"dispute {owed.dispute} {owed.stripe_dispute_id}"
    proof = f", {owed.stripe_reversal_id}" if owed.stripe_reversal_id else ""
    turn = ", in turn" if owed.is_in_turn else ""
    money = Money(owed.amount, owed.currency)
    return f"reversal {owed.reversal}: {money}, {owed.status}, for {behind}{proof}{turn}"


def _allowed(actions: tuple[Action, ...]) -> str:
    return ", ".join(action.title for action in actions if action.is_allowed) or "nothing"


def _attempts(explanation: Explanation) -> Table:
    shown, made = len(explanation.attempts), explanation.attempts_made
    title = f"Attempts: {made}" if shown == made else f"Attempts: the newest {shown} of {made}"
    table = Table(title=title, title_justify="left")
    for name in ("when", "number", "answer", "request"):
        table.add_column(name)
    for attempt in explanation.attempts:
        answer = f"{attempt.code}: {attempt.answer}" if attempt.code else attempt.answer
        table.add_row(moment(attempt.at), str(attempt.number), Text(answer), attempt.request_id)
    return table
