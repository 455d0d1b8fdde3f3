"""What a seed is made of. Each goes without most troubles, so that some have much of a few."""

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tests.simulation.scheduler import Chances
from tests.simulation.wire import ALL_FAULTS, Weather

HOUR, DAY = 3600.0, 86_400.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    chances: Chances
    weather: Weather
    orders: int
    sellers: int
    processes: dict[str, int]
    # Of each process: rows claimed, and calls, at once.
    batch_size: int
    concurrency: int
    has_allowance: bool
    # How often the controller decides what happens next, before all is quiet.
    decisions: int
    # Weights of what happens around the workers.
    jumps: float
    outages: float
    by_hand: float
    payouts: float
    capabilities: float
    # Chances per letter of Stripe's.
    duplicates: float
    delayed: float
    # Seconds by which a host's clock may be wrong, either way.
    skew: float
    # Settings of the simulated Stripe, and of the program.
    stripe: dict[str, Any]
    settings: dict[str, Any]
    # The usual case: sellers were paid long before anything is refunded, without any trouble.
    is_paid_first: bool
    # The chance that an order is disputed, too.
    disputes: float
    # How often operators retry what needs a person as one.
    together: float
    # The sellers have spent what they were paid first, and nobody waits for long: what is refunded becomes a debt.
    has_debts: bool
    # How often somebody sees to money by hand: debts, payments back, attempts that are wanted now.
    finance: float
    # Whether the endpoint is subscribed to ``transfer.reversed``, which tells of much that is else found by looking.
    hears_of_reversals: bool


def profile(seed: int) -> Profile:
    chance, bank = random.Random(f"profile {seed}"), random.Random(f"bank {seed}")
    team, ledger = random.Random(f"team {seed}"), random.Random(f"ledger {seed}")
    # One in so many, so that the others tell what they told before.
    finance = ledger.choice([0.5, 1.0, 2.0]) if seed % 8 == 0 else 0.0
    has_debts = finance > 0 and ledger.random() < 0.8

    def now_and_then(share: float, most: float) -> float:
        return most * chance.random() if chance.random() < share else 0.0

    retries = chance.choice([0, 1, 2, 5, 5])
    return Profile(
        chances=Chances(
            switch=chance.choice([0.05, 0.15, 0.3]),
            switch_in_transaction=now_and_then(0.6, 0.3),
            crash=now_and_then(0.6, 0.03),
            stall=now_and_then(0.4, 0.02),
            database=now_and_then(0.4, 0.03),
            longest_stall=chance.choice([60.0, 900.0, 2400.0]),
        ),
        weather=Weather(
            trouble=chance.choice([0.0, 0.1, 0.3, 0.3, 0.6]),
            faults=tuple(chance.sample(ALL_FAULTS, chance.randint(1, len(ALL_FAULTS)))),
            slow=chance.choice([0.0, 0.1, 0.4]),
            sick_account="acct_seller0" if chance.random() < 0.1 else "",
            latest_effect=chance.choice([30.0, 300.0, 900.0]),
        ),
        orders=chance.choice([1, 1, 1, 2, 3]),
        sellers=chance.choice([1, 1, 2, 3, 6]),
        processes={"reversal": chance.choice([1, 2, 2, 3]), "transfer": chance.choice([1, 1, 2])},
        concurrency=chance.choice([1, 2]),
        batch_size=chance.choice([1, 2, 8]),
        has_allowance=chance.random() < 0.15,
        decisions=chance.choice([40, 80, 150]) * (3 if finance else 1),
        jumps=now_and_then(0.5, 0.06),
        outages=now_and_then(0.3, 0.05),
        by_hand=now_and_then(0.2, 0.15),
        payouts=now_and_then(0.3, 0.15),
        capabilities=now_and_then(0.15, 0.05),
        duplicates=now_and_then(0.6, 0.5),
        delayed=now_and_then(0.6, 0.5),
        skew=HOUR if chance.random() < 0.3 else 0.0,
        stripe={
            "refund_status": chance.choice(["succeeded", "succeeded", "succeeded", "pending"]),
            "allow_negative_balances": chance.random() < 0.4 and not has_debts,
            "pending_reversals": chance.random() < 0.1 and not has_debts,
        },
        settings={
            "REVERSAL_MAX_RETRIES": retries,
            "TRANSFER_RETRY_MAX_RETRIES": retries,
            "GIVE_BACK": chance.choice(["automatic", "automatic", "ask"]),
            # Of its own chance, so that seeds without disputes tell what they told before there were any.
            "BULK_RETRY_APPROVAL_ABOVE": {"": team.choice([0, 10**9])},
            "NET_DEBTS": bool(finance) and ledger.choice([False, True, True]),
            "REVERSAL_INSUFFICIENT_FUNDS_INTERVAL": timedelta(minutes=1 if has_debts else 360),
            "REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE": timedelta(minutes=1) if has_debts else timedelta(days=45),
            "DISPUTE_CLAWBACK_ON": bank.choice(["opened", "opened", "funds_withdrawn", "lost"]),
        },
        is_paid_first=chance.random() < 0.5 or has_debts,
        has_debts=has_debts,
        disputes=bank.choice([0.0, 0.0, 0.5, 1.0]),
        together=team.choice([0.0, 2.0]),
        finance=finance,
        hears_of_reversals=seed % 10 == 5 or (finance > 0 and ledger.random() < 0.3),
    )
