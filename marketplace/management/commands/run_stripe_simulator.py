from argparse import ArgumentParser, Namespace
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from marketplace.simulator import cli


class Command(BaseCommand):
    help = "Run a local Stripe: real HTTP, real bookkeeping, faults on demand. For tests and demonstrations only."
    # It needs no database and no settings of ours.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        cli.add_arguments(parser)

    def handle(self, *_args: str, **options: Any) -> None:
        status = cli.run(Namespace(**options))
        if status:
            raise CommandError("the simulator stopped with an error", returncode=status)
