"""Bugs put in on purpose are found: each by its seed, by what the auditor then says, and by nothing without the bug.

A change of the program tells other stories: ``make simulate PLANT=name`` finds the new seed.
"""

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.run import Rig

# The seed, and a part of what is found. docs/simulation.md has the same table.
FOUND = {
    "no-look": (15, "done twice at Stripe"),
    "key-from-amount": (1, "should be partially_reversed"),
    "settle-without-token": (12, "cannot go from partially_reversed to completed"),
    "done-before-call": (2, "waits for longer than any schedule says"),
    "short-lease": (1, "never stood still, and lost its lease"),
    "no-locks": (18, "is no longer pending, or no longer ours"),
    "retry-with-new-key": (12, "done twice at Stripe"),
    "keys-for-ever": (30, "done twice at Stripe"),
    "no-doubt": (1, "was refunded before it was paid, and was paid"),
    "claims-ignore-leases": (2, "never stood still, and lost its lease"),
    "event-marked-first": (3, "only 0 of 5945 came back"),
    "found-by-amount": (288, "reversal_stripe_id_once"),
    "timeout-means-no": (6, "was refunded before it was paid, and was paid"),
    "no-breaker": (63, "spent 3 retries; 1 calls about it met with trouble"),
    "no-cumulative-targets": (1, "(17500, 14302), (2500, 2044)"),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_planted_bug_is_found(rig: Rig, name: str) -> None:
    seed, told = FOUND[name]
    with PLANTED[name].put():
        breaches = rig.live(seed).breaches
    assert any(told in breach for breach in breaches), f"make simulate PLANT={name} SEED={seed}\n{breaches[:3]}"
    assert rig.live(seed).breaches == []


def test_each_planted_bug_has_its_seed() -> None:
    assert FOUND.keys() == PLANTED.keys()
