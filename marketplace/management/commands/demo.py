from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from marketplace.demo import stack, terminal
from marketplace.demo.ground import CannotGoOn
from marketplace.management.worker_command import whole_number


class Command(BaseCommand):
    help = (
        "Run the whole system on this machine until Ctrl-C: a local Stripe, the web server and both workers, with"
        " sample data the first time, and one refund followed until Stripe shows its reversal."
    )
    # The programs that it starts check themselves, with the settings that they are given.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        for name, (use, variable, flag) in stack.USES.items():
            parser.add_argument(
                flag,
                dest=name,
                type=whole_number(1, 65535),
                default=getattr(settings, variable),
                metavar="PORT",
                help=f"of {use} (default: {variable}, now %(default)s)",
            )

    def handle(self, *_args: str, **options: Any) -> None:
        ports = stack.Ports(**{name: options[name] for name in stack.USES})
        try:
            stack.run(ports, console=terminal.console(self.stdout))
        except stack.Killed as error:
            raise CommandError(error.message, returncode=130) from error
        except CannotGoOn as error:
            raise CommandError(error.message) from error
