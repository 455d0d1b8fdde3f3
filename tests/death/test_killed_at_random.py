"""SIGKILL at moments that a seed chooses, of several workers in turns, over a backlog of every kind of work."""

import os
import random
import threading
from typing import Any

import pytest

from tests.death import rows
from tests.death.audit import assert_all_is_well, let_leases_run_out, make_due, open_work
from tests.death.processes import REVERSALS, TRANSFERS, Nursery

# The crew: each place is taken again as soon as who held it is killed.
PLACES = (REVERSALS, REVERSALS, TRANSFERS)


def kill_at_random(workers: Nursery, simulator: Any, *, seed: int, rows_of_each: int, kills: int) -> None:
    print(f"DEATH_SEED={seed}")  # noqa: T201 - a failing run is repeated with it
    chance = random.Random(seed)
    rows.owe_reversals(simulator, rows_of_each)
    rows.owe_transfers(simulator, rows_of_each // 2)
    rows.request_refunds(simulator, rows_of_each // 2)
    simulator.faults.add("latency", seconds=0.05, jitter=0.2)
    # Answers are lost as well, before and after the effect.
    simulator.faults.add("drop_after", method="POST", probability=0.03)
    simulator.faults.add("drop_before", method="POST", probability=0.03)
    crew = [start(workers, command) for command in PLACES]
    for _ in range(kills):
        threading.Event().wait(chance.uniform(0.0, 0.2))
        place = chance.randrange(len(crew))
        crew[place].kill()
        crew[place] = start(workers, PLACES[place])
        if chance.random() < 0.5:
            # Also of the rows that living workers hold: they come to settle late.
            let_leases_run_out()
        if chance.random() < 0.2:
            make_due()
    for worker in crew:
        worker.kill()
    assert open_work(), "they were killed when everything was done"
    print(f"left by the dead: {dict(open_work())}")  # noqa: T201
    for _ in range(10):
        make_due()
        for command in (REVERSALS, TRANSFERS):
            assert workers.start(command, "--once").wait() == 0
        if not open_work():
            break
    assert_all_is_well(simulator)


def start(workers: Nursery, command: str) -> Any:
    return workers.start(command, "--concurrency", "6", "--batch-size", "6")


def test_workers_killed_at_random_lose_nothing_and_double_nothing(workers: Nursery, simulator: Any) -> None:
    kill_at_random(workers, simulator, seed=int(os.environ.get("DEATH_SEED", "1")), rows_of_each=100, kills=12)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_workers_killed_again_and_again(workers: Nursery, simulator: Any, number: int) -> None:
    seed = int(os.environ.get("DEATH_SEED") or random.SystemRandom().randrange(10**6))
    kill_at_random(workers, simulator, seed=seed, rows_of_each=600, kills=100)
