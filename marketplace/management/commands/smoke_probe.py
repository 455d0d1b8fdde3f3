from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from marketplace.demo import ground, probe, terminal
from marketplace.demo.ground import CannotGoOn
from marketplace.demo.probe import ProbeFailed
from marketplace.throttle import gateway
from veza.env import DURATION_ACCEPTED, parse_duration


def duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not valid: expected {DURATION_ACCEPTED}") from None


class Command(BaseCommand):
    help = (
        "Check the running system end to end, in Stripe's test mode: makes a small order, pays it, asks for its refund,"
        " and waits until Stripe shows the reversal. The web server and both workers must run. Exit status 0, or 1 with"
        " the step that failed, what was seen last, and what to look at."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--timeout", type=duration, default=timedelta(seconds=60), help="for all steps together (default: 60s)"
        )

    def handle(self, *_args: str, **options: Any) -> None:
        console = terminal.console(self.stdout)
        try:
            ground.require_test_mode()
            console.print("Smoke probe: one order, followed until Stripe shows its reversal")
            with terminal.quiet_logs():
                outcome = probe.run(gateway(), timeout=options["timeout"].total_seconds(), console=console)
        except ProbeFailed as error:
            probe.tell_failure(error, console)
            raise CommandError(f"smoke probe: {error.message}") from error
        except CannotGoOn as error:
            raise CommandError(f"smoke probe: {error.message}") from error
        console.print(
            f"All well in {outcome.seconds:.2f} s; from the refund to reversed: {outcome.seconds_to_reversed:.2f} s"
        )
