"""``manage.py status``: the admin's start page in a terminal."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from marketplace import overview, selectors
from marketplace.demo import terminal
from marketplace.errors import DATABASE_TROUBLE
from marketplace.money import Money
from marketplace.overview import AGES, Overview
from marketplace.states import ReversalStatus


class Command(BaseCommand):
    help = "How it stands: money owed and recovered, what waits and why, workers, breakers. Reads only."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--format", choices=["table", "json"], default="table", help="default: %(default)s")

    def handle(self, *_args: str, **options: Any) -> None:
        try:
            found = overview.everything(selectors.now())
        except DATABASE_TROUBLE as error:
            raise CommandError(f"The database does not answer: {str(error).strip()}") from error
        if options["format"] == "json":
            self.stdout.write(json.dumps(as_json(found), cls=DjangoJSONEncoder, indent=2))
        else:
            show(terminal.console(self.stdout), found)


def as_json(found: Overview) -> dict[str, Any]:
    """Amounts in minor units, times in ISO 8601, lengths of time in seconds."""
    return {
        "at": found.now,
        "owed": [asdict(each) for each in found.owed],
        "outcomes": {"days": overview.DAYS, "by_currency": [asdict(each) for each in found.outcomes]},
        "time_to_recovery": {
            "last_24_hours": asdict(found.lately.recovery_time_of_hours()),
            "last_30_days": asdict(found.lately.recovery_time_of_days()),
        },
        "attempts_by_hour": [asdict(each) for each in found.lately.attempts_by_hour()],
        "attempts_by_day": [asdict(each) for each in found.lately.attempts_by_day()],
        "transfers": [asdict(each) for each in found.waiting],
        "refunds": [asdict(each) for each in found.refunds],
        "webhook_events_failed": found.events,
        "longest_due": {
            queue: None if row is None else {"row": str(row[0]), "id": row[0].pk, "due_at": row[1]}
            for queue, row in found.longest.items()
        },
        "workers": [asdict(each) for each in found.workers],
        "breakers": [asdict(each) for each in found.breakers],
        "allowances": [asdict(each) for each in found.allowances],
    }


def show(console: Console, found: Overview) -> None:
    for title, shown in (
        ("What waits", _waiting(found)),
        ("Money owed by sellers, by age", _owed(found)),
        (f"What became of the money, {overview.DAYS} days", _outcomes(found)),
        ("Time to recovery and attempts", _times(found)),
        ("Workers", _workers(found)),
        ("Stripe", _stripe(found)),
    ):
        console.print(Group(Text(title, style="bold"), shown, Text("")))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _waiting(found: Overview) -> RenderableType:
    table = _table("", "how many", "money", "last error")
    for each in sorted(found.waiting, key=lambda one: (one.status != "permanently_failed", one.status, one.code)):
        style = "red" if each.status == "permanently_failed" else ""
        name = Text(f"transfers {each.status}", style=style)
        table.add_row(name, str(each.count), str(Money(each.amount, each.currency)), each.code)
    for refund in found.refunds:
        money = str(Money(refund.amount, refund.currency))
        table.add_row(f"refunds {refund.status}", str(refund.count), money, "")
    for state, said in (("person", "events that need a person"), ("retrying", "events that are tried again")):
        if found.events[state]:
            table.add_row(Text(said, style="red" if state == "person" else ""), str(found.events[state]), "", "")
    for row in found.longest.values():
        if row is not None and row[1] < found.now:
            late = overview.spoken((found.now - row[1]).total_seconds())
            table.add_row(Text(f"longest due: {row[0]}", style="yellow"), late, "", "")
    return table if table.row_count else Text("nothing waits", style="green")


def _owed(found: Overview) -> RenderableType:
    table = _table("", "a worker goes on", "debts: a person decides")
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for each in found.owed:
        amounts = groups.setdefault((each.currency, each.age), {})
        amounts[each.status] = amounts.get(each.status, 0) + each.amount
    for currency in sorted({currency for currency, _age in groups}):
        for age, until in AGES.items():
            amounts = groups.get((currency, age), {})
            waiting, debts = (
                amounts.get(status.value, 0) for status in (ReversalStatus.PENDING, ReversalStatus.FAILED)
            )
            if waiting or debts:
                name = f"{currency.upper()}, {'longer' if until is None else f'up to {age}'}"
                debt = Text(str(Money(debts, currency)), style="red" if debts else "")
                table.add_row(name, str(Money(waiting, currency)), debt)
    return table if table.row_count else Text("nothing is owed", style="green")


def _outcomes(found: Overview) -> RenderableType:
    table = _table("", "how many", "money")
    for each in found.outcomes:
        for name, count, amount in (
            ("recovered", each.recovered_count, each.recovered),
            ("paid by hand or netted", each.settled_count, each.settled),
            ("given back to sellers", each.given_back_count, each.given_back),
            ("lost", each.written_off_count, each.written_off),
            ("waiting now", each.waiting_count, each.waiting),
            ("needs a person now", each.person_count, each.needs_person),
        ):
            table.add_row(f"{each.currency.upper()} {name}", str(count), str(Money(amount, each.currency)))
    return table if table.row_count else Text("nothing was owed yet")


def _times(found: Overview) -> RenderableType:
    table = _table("", "reversals", "p50", "p95", "failed attempts")
    hours, days = found.lately.recovery_time_of_hours(), found.lately.recovery_time_of_days()
    for name, time, attempts in (
        (f"{overview.HOURS} hours", hours, found.lately.attempts_by_hour()),
        (f"{overview.DAYS} days", days, found.lately.attempts_by_day()),
    ):
        failed = sum(each.failed for each in attempts)
        tried = failed + sum(each.succeeded for each in attempts)
        share = f"{failed} of {tried}"
        table.add_row(name, str(time.count), time.p50_shown, time.p95_shown, share)
    return table


def _workers(found: Overview) -> RenderableType:
    table = _table("", "rows in hand", "seen", "work")
    for each in found.workers:
        name = Text(each.identity, style="green" if each.is_alive else "red")
        seen = f"{each.seen_shown} ago" + ("" if each.is_alive else ", dead")
        table.add_row(name, str(each.in_hand), seen, ", ".join(each.queues))
    return table if table.row_count else Text("no worker runs", style="red")


def _stripe(found: Overview) -> RenderableType:
    table = _table("", "state")
    for each in found.breakers:
        opened = f"open since {each.opened_at:%Y-%m-%d %H:%M:%S}: {each.last_error}" if each.opened_at else "closed"
        table.add_row(f"breaker of {each.work}", Text(opened, style="red" if each.opened_at else "green"))
    for allowance in found.allowances:
        slowed = f", 429 at {allowance.slowed_at:%Y-%m-%d %H:%M:%S}" if allowance.slowed_at else ""
        table.add_row(allowance.endpoint, f"{allowance.per_second:.1f} a second{slowed}")
    return table
