"""Bugs put in on purpose are found, each by what the auditor then says. ``test_seeds.py`` leads the same seeds without
the bug, and there nothing is said.
"""

from itertools import chain

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.run import Rig

# A seed that finds it, and a part of what is said. docs/simulation.md has the same table.
FOUND = {
    "no-look": (37, "done twice at Stripe"),
    "key-from-amount": (2, "should be partially_reversed"),
    "settle-without-token": (1, "cannot go from"),
    "done-before-call": (14, "waits for longer than any schedule says"),
    "short-lease": (5, "never stood still, and lost its lease"),
    "no-locks": (667, "never stood still, and lost its lease"),
    "retry-with-new-key": (89, "done twice at Stripe"),
    "keys-for-ever": (285, "done twice at Stripe"),
    "no-doubt": (3, "was refunded before it was paid, and was paid"),
    "claims-ignore-leases": (12, "never stood still, and lost its lease"),
    "event-marked-first": (13, "has transfers to []"),
    "found-by-amount": (36, "for its proof, which is of operation None"),
    "timeout-means-no": (6, "was refunded before it was paid, and was paid"),
    "no-breaker": (60, "calls about it met with trouble"),
    "no-cumulative-targets": (34, "(share, taken) is"),
    "wins-give-nothing-back": (6, "was taken from"),
    "disputes-by-arrival": (1, "D: dp_"),
    "netting-for-ever": (72, "came back from"),
}
# A change of the program tells other stories, and then another seed finds it. Not so rarely that it could be missed.
OTHERS = range(1, 200)


@pytest.mark.parametrize("name", FOUND)
def test_a_planted_bug_is_found(rig: Rig, name: str) -> None:
    seed, told = FOUND[name]
    with PLANTED[name].put():
        for tried in chain([seed], OTHERS):
            breaches = rig.live(tried).breaches
            if any(told in breach for breach in breaches):
                return
    pytest.fail(f"no seed up to {max(OTHERS)} says {told!r}")


def test_each_planted_bug_has_its_seed() -> None:
    assert FOUND.keys() == PLANTED.keys()
