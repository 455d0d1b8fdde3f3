import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rich.console import Console
from rich.table import Table

from marketplace import inbox, replay
from marketplace.asking import StripeSaysNo
from marketplace.demo import terminal
from marketplace.errors import DATABASE_TROUBLE, NotAllowedNow, StripeDenied
from marketplace.management import since
from marketplace.replay import FromStripe, Period, Stored, Tally
from marketplace.states import EventStatus
from marketplace.throttle import gateway

LONGEST_REASON = 500
DAYS = replay.KEPT_BY_STRIPE.days
# A row of the table each, where any of it happened.
MEANINGS = {
    "found": "found",
    "new": "new, would be taken",
    "processed": "new: applied",
    "ignored": "new: ignored",
    "failed": "new: FAILED",
    "seen": "seen before",
    "seen_failed": "seen before: FAILED",
    "skipped": "in other hands",
    "other_mode": "of the other mode",
    "unreadable": "UNREADABLE",
    "accounts": "sellers' accounts asked",
    "accounts_closed": "closed to us",
}
REPLAYED = {**MEANINGS, "new": "would be replayed", "processed": "applied", "ignored": "ignored", "failed": "FAILED"}


def beginning(text: str) -> datetime:
    """Raises ``ArgumentTypeError`` for what is no time, lies ahead, or is older than what Stripe keeps."""
    at = since.moment(text).at
    if at < timezone.now() - replay.KEPT_BY_STRIPE:
        raise ArgumentTypeError(f"{text!r} is not valid: Stripe shows events of the last {DAYS} days only")
    return at


def event_id(text: str) -> str:
    if not text.startswith("evt_") or not text.isprintable():
        raise ArgumentTypeError(f"{text!r} is not valid: expected the id of an event, evt_…")
    return text


def event_type(text: str) -> str:
    if text not in inbox.HANDLERS:
        raise ArgumentTypeError(f"{text!r} is not valid: expected one of {', '.join(sorted(inbox.HANDLERS))}")
    return text


def a_reason(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_REASON or not text.isprintable():
        raise ArgumentTypeError(f"expected a text of 1 to {LONGEST_REASON} printable characters")
    return text


class Command(BaseCommand):
    help = (
        "Take in what was missed: fetch Stripe's events since a time and put them through the inbox as webhooks, or"
        " apply events of the inbox again that failed or were ignored. Whatever was taken before counts as seen, so it"
        f" can be broken off and run again. Stripe shows events of the last {DAYS} days; older ones cannot be had. Exit"
        " status 1 where an event could not be applied, or Stripe or the database did not answer."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "--since",
            type=beginning,
            metavar="WHEN",
            help=f"fetch Stripe's events since then, those that were not delivered first: {since.ACCEPTED} (UTC where"
            f" it says nothing); at most {DAYS} days back, for Stripe keeps no older ones",
        )
        what.add_argument("--failed", action="store_true", help="apply events of the inbox again that failed")
        what.add_argument(
            "--ignored", action="store_true", help="apply events again that were ignored; names a --type or an --id"
        )
        parser.add_argument(
            "--type", action="append", type=event_type, default=[], dest="types", help="only these; may be repeated"
        )
        parser.add_argument(
            "--id", action="append", type=event_id, default=[], dest="ids", help="of the inbox, evt_…; may be repeated"
        )
        parser.add_argument(
            "--connected-accounts",
            action="store_true",
            help="with --since: ask also each seller's account, one request each, for "
            + ", ".join(replay.SELLERS_TYPES),
        )
        parser.add_argument("--reason", type=a_reason, help="with --failed and --ignored: why, for the events' history")
        parser.add_argument("--dry-run", action="store_true", help="only count what would be taken")
        parser.add_argument("--format", choices=["table", "json"], default="table", help="default: %(default)s")

    def handle(self, *_args: str, **options: Any) -> None:
        until = timezone.now()
        _require_sense(options)
        try:
            with _progress() as tell:
                tallies = _from_stripe(options, until, tell) if options["since"] else [_from_inbox(options, tell)]
        except StripeDenied as error:
            raise CommandError(f"Stripe refuses our key or its permissions (Events: read): {error.message}") from error
        except NotAllowedNow as error:
            raise CommandError(error.message) from error
        except StripeSaysNo as error:
            raise CommandError(f"Stripe: {error.message}. What was taken before stands; run it again.") from error
        except DATABASE_TROUBLE as error:
            raise CommandError("The database does not answer. What was taken before stands; run it again.") from error
        if options["format"] == "json":
            self.stdout.write(json.dumps(_as_json(options, until, tallies), indent=2))
        else:
            terminal.console(self.stdout).print(_as_table(options, until, tallies))
        not_applied = max(tally.not_applied for tally in tallies)
        if not_applied:
            events = "event is" if not_applied == 1 else "events are"
            raise CommandError(f"{not_applied} {events} not applied: see webhook events that failed, and the runbook.")


def _require_sense(options: dict[str, Any]) -> None:
    """Raises ``CommandError`` for flags that do not go together."""
    types, wants_sellers = set(options["types"]), options["connected_accounts"]
    if options["since"]:
        for name in ("id", "reason"):
            if options["ids" if name == "id" else name]:
                raise CommandError(f"--{name} goes with --failed or --ignored only")
        if not settings.STRIPE_SECRET_KEY:
            raise CommandError("STRIPE_SECRET_KEY is not set: expected the key of the platform's Stripe account.")
        if "balance.available" in types:
            raise CommandError("balance.available is not fetched: what a balance was tells nothing of what it is now.")
        of_sellers = types & set(replay.SELLERS_TYPES)
        if of_sellers and not wants_sellers:
            raise CommandError(f"{', '.join(sorted(of_sellers))}: of sellers' accounts; add --connected-accounts")
        if wants_sellers and types and not of_sellers:
            raise CommandError("--connected-accounts is of no use: none of the types is of sellers' accounts")
    elif wants_sellers:
        raise CommandError("--connected-accounts goes with --since only")
    elif options["ignored"] and not (types or options["ids"]):
        raise CommandError("--ignored needs a --type or an --id: most events that were ignored are of no use to us")


def _from_stripe(options: dict[str, Any], until: datetime, tell: replay.Tell) -> list[Tally]:
    wanted = options["types"] or inbox.HANDLERS
    of_sellers = replay.SELLERS_TYPES if options["connected_accounts"] else ()
    period = Period(
        since=options["since"],
        until=until,
        own_types=[each for each in replay.OWN_TYPES if each in wanted],
        sellers_types=[each for each in of_sellers if each in wanted],
    )
    return FromStripe(gateway=gateway(), is_dry_run=options["dry_run"], tell=tell).run(period)


def _from_inbox(options: dict[str, Any], tell: replay.Tell) -> Tally:
    stored = Stored(
        status=EventStatus.FAILED if options["failed"] else EventStatus.IGNORED,
        types=options["types"],
        stripe_event_ids=options["ids"],
    )
    return replay.from_inbox(
        stored,
        actor="command:replay_events",
        reason=options["reason"] or "replayed by command",
        is_dry_run=options["dry_run"],
        tell=tell,
    )


@contextmanager
def _progress() -> Iterator[replay.Tell]:
    """One line that changes, where there is a terminal; log lines of each event where there is none."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _tally: None
        return
    with terminal.quiet_logs(), console.status("asking Stripe …") as status:

        def tell(tally: Tally) -> None:
            reached = f", up to {tally.reached:%Y-%m-%d %H:%M:%S}" if tally.reached else ""
            accounts = f", {tally.accounts} accounts" if tally.accounts else ""
            status.update(f"{tally.name}: {tally.found} events{reached}{accounts}, {tally.not_applied} not applied")

        yield tell


def _as_json(options: dict[str, Any], until: datetime, tallies: list[Tally]) -> dict[str, Any]:
    passes = []
    for tally in tallies:
        shown = asdict(tally)
        del shown["reached"]
        passes.append({**shown, "not_applied": tally.not_applied})
    return {
        "since": options["since"].isoformat() if options["since"] else None,
        "until": until.isoformat() if options["since"] else None,
        "dry_run": options["dry_run"],
        "passes": passes,
    }


def _as_table(options: dict[str, Any], until: datetime, tallies: list[Tally]) -> Table:
    if options["since"]:
        title = f"Events of Stripe from {options['since']:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"
    else:
        title = "Events of the inbox that were ignored" if options["ignored"] else "Events of the inbox that failed"
    table = Table(title=title + (", dry run" if options["dry_run"] else ""), title_justify="left")
    table.add_column("")
    for tally in tallies:
        table.add_column(tally.name, justify="right")
    for name, meaning in (MEANINGS if options["since"] else REPLAYED).items():
        numbers = [getattr(tally, name) for tally in tallies]
        if name == "found" or any(numbers):
            table.add_row(meaning, *map(str, numbers))
    return table
