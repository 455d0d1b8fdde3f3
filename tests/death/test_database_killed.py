"""PostgreSQL dies in the middle of the work and comes back; so do the workers, by themselves."""

import random
import threading
import time
from typing import Any

import pytest
from django.db import connection

from marketplace.models import SellerTransfer
from tests.death import rows
from tests.death.audit import assert_all_is_well, open_work, wait_for_all_work
from tests.death.conftest import listening
from tests.death.postgres import Server
from tests.death.processes import REVERSALS, TRANSFERS, Nursery, Worker, wait_until

# From the moment PostgreSQL answers again until each worker has claimed and finished more.
BACK_WITHIN = 5
# They look by themselves once an hour only: what wakes them is that they listen.
AN_HOUR = {"REVERSAL_CHECK_INTERVAL": 3600, "TRANSFER_RETRY_CHECK_INTERVAL": 3600}


def survive_crashes(
    server: Server, workers: Nursery, simulator: Any, *, rows_of_each: int, downtimes: list[float]
) -> None:
    rows.owe_reversals(simulator, rows_of_each)
    rows.owe_transfers(simulator, rows_of_each)
    simulator.faults.add("latency", seconds=0.02)
    running = [
        workers.start(command, "--concurrency", "4", "--batch-size", "4", settings=AN_HOUR)
        for command in (REVERSALS, REVERSALS, TRANSFERS)
    ]
    for downtime in downtimes:
        wait_for_work_of_each(running)
        server.kill()
        connection.close()
        threading.Event().wait(downtime)
        server.start()
        started = time.monotonic()
        wait_for_work_of_each(running)
        took = time.monotonic() - started
        print(f"away for {downtime:.1f} s, all work again after {took:.1f} s")  # noqa: T201
        assert took < BACK_WITHIN
    wait_until(lambda: listening() == len(running), lambda: f"{listening()} of {len(running)} workers listen")
    wait_for_all_work()
    for worker in running:
        assert worker.is_running
        worker.stop()
    assert SellerTransfer.objects.count() == 2 * rows_of_each
    assert_all_is_well(simulator)


def wait_for_work_of_each(running: list[Worker]) -> None:
    """More than each could finish of what it had claimed already: at most ten rows."""
    wanted = [answered(worker) + 12 for worker in running]
    wait_until(
        lambda: all(answered(each) >= count for each, count in zip(running, wanted, strict=True)),
        lambda: (
            f"{wanted} answers: {[answered(each) for each in running]}, left: {open_work()}\n{running[0].text[-3000:]}"
        ),
    )


def answered(worker: Worker) -> int:
    return len(worker.logged("reversal_answered")) + len(worker.logged("transfer_answered"))


def test_workers_come_back_by_themselves_after_a_crash(server: Server, its_workers: Nursery, simulator: Any) -> None:
    survive_crashes(server, its_workers, simulator, rows_of_each=240, downtimes=[0])


@pytest.mark.slow
def test_workers_come_back_after_many_crashes_and_longer_ones(
    server: Server, its_workers: Nursery, simulator: Any
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    downtimes = [chance.choice([0, 0, 1, 5]) + chance.random() for _ in range(5)] + [20]
    survive_crashes(server, its_workers, simulator, rows_of_each=1500, downtimes=downtimes)
