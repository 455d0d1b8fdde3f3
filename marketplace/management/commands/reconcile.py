import json
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from marketplace.asking import StripeSaysNo
from marketplace.demo import terminal
from marketplace.errors import DATABASE_TROUBLE, StripeDenied
from marketplace.management import since
from marketplace.models import Drift, Reconciliation, ReconciliationFinding
from marketplace.money import Money
from marketplace.reconciliation import report
from marketplace.reconciliation.run import OtherRunOpen, Reconciler, TakenOver, begin
from marketplace.throttle import gateway

# Exit codes: 0 is no drift.
DRIFT, TROUBLE = 1, 2
# Lines of the table; JSON has all.
MOST_SHOWN = 50
GO_ON = "What was compared stands: run it again with the same flags, and it goes on there."
PERMISSIONS = "Transfers, Balance, Balance transaction sources, Charges and refunds, Disputes: read"
# What is done in each step, for who waits.
STEPS = {
    "transfers": "comparing transfers",
    "reversals": "comparing reversals",
    "refunds": "weighing refunds",
    "disputes": "weighing disputes",
    "rows": "looking for transfers that Stripe did not list",
    "refund_rows": "looking for refunds that Stripe did not list",
    "looking_again": "looking again at what did not agree, a minute after it was noted",
    "looking_once_more": "looking once more at what moved, a minute later",
    "own": "looking for what stands still",
}
COMPARED = ("transfers", "reversals", "refunds", "disputes")


class Command(BaseCommand):
    help = (
        "Compare our rows with Stripe's transfers and reversals, and with Stripe's balance transactions; find what"
        " stands still, and sellers who have not given their part of a refund or a lost dispute. Changes nothing"
        " without --fix. Safe beside running workers. Broken off, it goes on where it was, when it is run again with"
        " the same flags."
        " Exit status 0: no drift; 1: drift is left; 2: nonsense flags, or Stripe or the database did not answer."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since",
            type=since.moment,
            metavar="WHEN",
            help=f"what was created or reversed at Stripe since then: {since.ACCEPTED} (UTC where it says nothing);"
            " default: all there is",
        )
        parser.add_argument(
            "--fix",
            action="store_true",
            help="heal what is provably safe: record reversals and refunds that Stripe shows, take over transfers that"
            " it made. Without it, what would be done is told",
        )
        parser.add_argument(
            "--restart", action="store_true", help="forget a run that was broken off, and begin with the first page"
        )
        parser.add_argument("--format", choices=["table", "json"], default="table", help="default: %(default)s")

    def handle(self, *_args: str, **options: Any) -> None:
        if not settings.STRIPE_SECRET_KEY:
            said = "STRIPE_SECRET_KEY is not set: expected the key of the platform's Stripe account."
            raise CommandError(said, returncode=TROUBLE)
        try:
            run = self._run(options)
        except OtherRunOpen as error:
            flags = error.details["asked"] or "no flags"
            said = f"A reconciliation with {flags} was broken off: finish it with these, or add --restart to forget it."
            raise CommandError(said, returncode=TROUBLE) from error
        except TakenOver as error:
            said = "Another process goes on with this reconciliation: only one at a time."
            raise CommandError(said, returncode=TROUBLE) from error
        except StripeDenied as error:
            said = f"Stripe refuses our key or its permissions ({PERMISSIONS}): {error.message}"
            raise CommandError(said, returncode=TROUBLE) from error
        except StripeSaysNo as error:
            raise CommandError(f"Stripe: {error.message}. {GO_ON}", returncode=TROUBLE) from error
        except DATABASE_TROUBLE as error:
            raise CommandError(f"The database does not answer. {GO_ON}", returncode=TROUBLE) from error
        except KeyboardInterrupt as error:
            raise CommandError(f"Broken off. {GO_ON}", returncode=130) from error
        self._tell(run, options)

    def _run(self, options: dict[str, Any]) -> Reconciliation:
        told: since.Moment | None = options["since"]
        flags = [f"--since={told.text}"] if told is not None else []
        flags += ["--fix"] if options["fix"] else []
        run = begin(asked=" ".join(flags), since=told.at if told else None, is_anew=options["restart"])
        if run.counts:
            self.stderr.write(f"going on with the reconciliation of {run.started_at:%Y-%m-%d %H:%M:%S} UTC")
        with _progress() as tell:
            Reconciler(run=run, gateway=gateway(), is_fixing=options["fix"], tell=tell).go()
        return run

    def _tell(self, run: Reconciliation, options: dict[str, Any]) -> None:
        if options["format"] == "json":
            for part in _as_json(run, is_fixing=options["fix"]):
                self.stdout.write(part, ending="")
            self.stdout.write("")
        else:
            terminal.console(self.stdout).print(_as_tables(run, is_fixing=options["fix"]))
        left = report.left(run)
        if left:
            drift = "1 drift is" if left == 1 else f"{left} drifts are"
            raise CommandError(f"{drift} left: see the runbook, by kind.", returncode=DRIFT)


@contextmanager
def _progress() -> Iterator[Any]:
    """One line that changes, where there is a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _run: None
        return
    with terminal.quiet_logs(), console.status(STEPS["transfers"]) as status:

        def tell(run: Reconciliation) -> None:
            status.update(_doing(run))

        yield tell


def _doing(run: Reconciliation) -> Group:
    """In one line of any width: the end of it matters least. A group, since a spinner would wrap a bare text."""
    told = report.counts(run)
    compared = sum(told[name] for name in COMPARED)
    looked_at = f", {told['looked_at_again']} looked at again" if told["looked_at_again"] else ""
    said = f"{STEPS[run.step]}: {compared} compared{looked_at}, {told['requests']} requests to Stripe"
    return Group(Text(said, no_wrap=True, overflow="ellipsis"))


# --- What it says -----------------------------------------------------------------------------------------------------


def _as_json(run: Reconciliation, *, is_fixing: bool) -> Iterator[str]:
    """In pieces: there may be more drift than one wants in memory."""
    head = {
        "since": run.since.isoformat() if run.since else None,
        "until": run.until.isoformat(),
        "fix": is_fixing,
        "counts": report.counts(run),
        "totals": [asdict(each) for each in report.totals(run)],
        "leaks": [asdict(each) for each in report.leaks(run)],
    }
    yield json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "drift": ['
    comma = ""
    for each in report.findings(run):
        yield f"{comma}\n    {json.dumps(_drift(each))}"
        comma = ","
    yield "\n  ]\n}" if comma else "]\n}"


def _drift(found: ReconciliationFinding) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "subject": found.subject,
        "stripe_id": found.stripe_id,
        "stripe_account_id": found.stripe_account_id,
        "amount": found.amount,
        "currency": found.currency,
        "detail": found.detail,
        "remedy": found.remedy,
        "healed": found.is_healed,
    }


def _as_tables(run: Reconciliation, *, is_fixing: bool) -> Group:
    begins = f"{run.since:%Y-%m-%d %H:%M:%S}" if run.since else "the beginning"
    told = Table(title=f"Our rows and Stripe, from {begins} to {run.until:%Y-%m-%d %H:%M:%S} UTC", title_justify="left")
    told.add_column("compared")
    told.add_column("", justify="right")
    for name, count in report.counts(run).items():
        if count or name in {"transfers", "requests"}:
            told.add_row(report.MEANINGS[name], str(count))
    listed = report.totals(run)
    if not listed:
        return Group(told, "No drift.")
    drift = _of_drift(run, sum(each.count for each in listed), is_fixing=is_fixing)
    return Group(told, drift, _of_totals(run), *([_of_leaks(run)] if report.leaks(run) else []))


def _of_drift(run: Reconciliation, count: int, *, is_fixing: bool) -> Text:
    """Lines and not a table: ids are to be copied, and what is wrong to be read, in a terminal of any width."""
    more = f", the first {MOST_SHOWN} of {count} (--format=json has all)" if count > MOST_SHOWN else ""
    text = Text.assemble((f"Drift{more}\n", "bold"))
    for each in report.first(run, MOST_SHOWN):
        of_seller = f" of {each.stripe_account_id}" if each.stripe_account_id else ""
        text.append(f"\n{each.kind}", style="green" if each.is_healed else "yellow")
        text.append(f"  {each.subject}  {_money(each.amount, each.currency)}\n")
        text.append(f"    {each.stripe_id or '-'}{of_seller}: {each.detail}\n")
        text.append(f"    {_healing(each, is_fixing=is_fixing)}\n", style="dim")
    return text


def _healing(found: ReconciliationFinding, *, is_fixing: bool) -> str:
    if not found.remedy:
        return f"by hand: runbook, {found.kind}"
    if not is_fixing:
        return f"--fix would {found.remedy}"
    return f"healed: {found.remedy}" if found.is_healed else f"NOT healed: {found.remedy}"


def _of_totals(run: Reconciliation) -> Table:
    table = Table(title="In all", title_justify="left")
    table.add_column("kind")
    for name in ("count", "healed", "amount"):
        table.add_column(name, justify="right")
    for each in report.totals(run):
        cells = str(each.count), str(each.healed), _money(each.amount, each.currency)
        table.add_row(str(Drift(each.kind).label), *cells)
    return table


def _of_leaks(run: Reconciliation) -> Table:
    table = Table(title="Not clawed back, by seller", title_justify="left")
    for name in ("seller", "account"):
        table.add_column(name, overflow="fold")
    for name in ("orders", "amount"):
        table.add_column(name, justify="right")
    found = report.leaks(run)
    for each in found[:MOST_SHOWN]:
        table.add_row(each.seller or "-", each.stripe_account_id, str(each.count), _money(each.amount, each.currency))
    sums: dict[str, int] = {}
    for each in found:
        sums[each.currency] = sums.get(each.currency, 0) + each.amount
    for currency, amount in sums.items():
        table.add_row("all", "", "", _money(amount, currency), style="bold")
    return table


def _money(amount: int | None, currency: str) -> str:
    return "" if amount is None or not currency else str(Money(amount, currency))
