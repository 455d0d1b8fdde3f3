import math
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from marketplace.demo import ground, seed, terminal
from marketplace.demo.ground import CannotGoOn
from marketplace.management.worker_command import whole_number
from marketplace.throttle import gateway

DEFAULTS = seed.Wanted()


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:  # also refuses nan
        raise ArgumentTypeError(f"{text!r} is not valid: expected a number from 0 to 1, such as 0.25")
    return value


class Command(BaseCommand):
    help = (
        "Make sample data through the same services and Stripe calls as real orders: sellers, paid orders, their"
        " transfers, refunds and disputes, whose reversals the reversal worker does. In Stripe's test mode only. The"
        " same seed gives the same names, prices and choices; run again, it adds orders to the same sellers."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--sellers", type=whole_number(1, 1000), default=DEFAULTS.sellers, help="default: %(default)s"
        )
        parser.add_argument(
            "--orders", type=whole_number(1, 100_000), default=DEFAULTS.orders, help="default: %(default)s"
        )
        parser.add_argument(
            "--sellers-per-order", type=whole_number(1, 1000), help="exactly so many (default: one to three, by chance)"
        )
        parser.add_argument(
            "--refund-fraction",
            type=fraction,
            default=DEFAULTS.refund_fraction,
            help="of the orders, refunded in full (default: %(default)s)",
        )
        parser.add_argument(
            "--disputes",
            type=whole_number(0, 100_000),
            default=DEFAULTS.disputes,
            help="so many of the orders that are not refunded are charged back (default: %(default)s)",
        )
        parser.add_argument(
            "--seed", type=whole_number(0, 2**32 - 1), default=DEFAULTS.seed, help="default: %(default)s"
        )

    def handle(self, *_args: str, **options: Any) -> None:
        per_order, sellers = options["sellers_per_order"], options["sellers"]
        if per_order is not None and per_order > sellers:
            raise CommandError(
                f"--sellers-per-order {per_order} is not valid: expected at most --sellers, which is {sellers}"
            )
        wanted = seed.Wanted(
            sellers=sellers,
            orders=options["orders"],
            sellers_per_order=per_order,
            refund_fraction=options["refund_fraction"],
            disputes=options["disputes"],
            seed=options["seed"],
        )
        most = seed.most_disputes(wanted)
        if wanted.disputes > most:
            raise CommandError(
                f"--disputes {wanted.disputes} is not valid: expected at most the orders that are not refunded, which"
                f" are {most}"
            )
        console = terminal.console(self.stdout)
        try:
            ground.require_test_mode()
            console.print(f"Sample data of seed {wanted.seed}")
            with terminal.quiet_logs():
                seeded = seed.run(wanted, gateway(), console=console)
        except CannotGoOn as error:
            raise CommandError(error.message) from error
        console.print(seed.table(seeded))
