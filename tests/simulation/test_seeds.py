"""Days of trouble, and then every book is in order. `make simulate` leads as many as one has time for."""

from collections import Counter

import pytest

from tests.simulation.run import Rig

BLOCK = 40
# Of them, in every run of the tests.
BLOCKS, ALWAYS = 25, 5
# What a block of seeds must have seen, or it has tried nothing.
SEEN = {
    "claimed: reversal": 30,
    "claimed: transfer": 30,
    "events taken": 80,
    "requests": 80,
    "crashes": 10,
    "crashes in a transaction": 3,
    "database gone": 2,
    "retries by operators": 1,
    "reconciled: transfers": 20,
    "disputes": 10,
    "disputes won": 1,
    "disputes lost": 1,
    "bought again": 3,
}


@pytest.mark.parametrize(
    "first",
    [pytest.param(1 + number * BLOCK, marks=() if number < ALWAYS else pytest.mark.slow) for number in range(BLOCKS)],
)
def test_after_days_of_trouble_every_book_is_in_order(rig: Rig, first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + BLOCK):
        report = rig.live(seed)
        assert report.is_good, f"make simulate SEED={seed}\n" + "\n".join(report.breaches)
        counts += report.counts
    assert {what: counts[what] for what, least in SEEN.items() if counts[what] < least} == {}
    assert sum(times for what, times in counts.items() if what.startswith("fault: ")) > 10
