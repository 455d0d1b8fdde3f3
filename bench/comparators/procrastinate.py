"""Procrastinate's own worker on a database of its own."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import comparators, ground, workers
from bench.ground import Connection
from bench.processes import Child, ChildFailed, Sampler, environment
from bench.run import Run
from bench.workers import Seen

DATABASE = "bench_procrastinate"


@dataclass
class Up:
    worker: Child
    defers: Child
    connection: Connection
    deferred: int = 0

    def defer(self, count: int) -> None:
        self.defers.say(f"{self.deferred + 1} {count}")
        self.deferred += count
        if self.defers.hear() != "done":
            raise ChildFailed(self.defers.describe("could not defer"))


@contextlib.contextmanager
def started(run: Run, *, concurrency: int) -> Iterator[Up]:
    bin_folder = comparators.ensure("procrastinate")
    env = environment(
        STRIPE_API_BASE=run.stripe.url,
        BENCH_SOCKET=run.server.socket,
        BENCH_DATABASE=DATABASE,
        PYTHONPATH=str(comparators.SITES),
    )
    program: list[str | Path] = [bin_folder / "procrastinate", "--app=procrastinate_app.app"]
    with run.server.database(DATABASE, migrated=False) as connection:
        with Child("procrastinate-schema", [*program, "schema", "--apply"], env=env, logs=ground.LOGS) as schema:
            schema.wait(60)
        command: list[str | Path] = [bin_folder / "python", comparators.SITES / "procrastinate_app.py"]
        with (
            Child(
                "procrastinate", [*program, "worker", f"--concurrency={concurrency}"], env=env, logs=ground.LOGS
            ) as worker,
            Child("procrastinate-defers", command, env=env, logs=ground.LOGS, talks=True) as defers,
        ):
            if defers.hear() != "ready":
                raise ChildFailed(defers.describe("did not start"))
            workers.wait_for_listeners(run, DATABASE, [worker])
            yield Up(worker=worker, defers=defers, connection=connection)
            worker.require_running()


def work(run: Run, *, count: int, concurrency: int, behaviour: dict[str, float]) -> Seen:
    """As ``workers.reverse``: the same number, warm-up and calls."""
    warm = 2 * concurrency
    run.stripe.configure(**behaviour)
    with started(run, concurrency=concurrency) as up:
        up.defer(warm)
        run.stripe.wait_for(warm, seconds=60, while_runs=up.worker)
        wait_until_done(up, warm)
        run.stripe.configure(**behaviour)
        with Sampler([up.worker.pid]) as sampler:
            up.defer(count)
            run.stripe.wait_for(count, seconds=180, while_runs=up.worker)
            wait_until_done(up, warm + count)
        calls = run.stripe.calls()
    return workers.seen(calls, count=count, in_flight=concurrency, sampler=sampler)


def wait_until_done(up: Up, count: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        (done,) = up.connection.execute(
            "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        ).fetchone() or (0,)
        if done >= count:
            return
        if time.monotonic() > deadline:
            raise ChildFailed(up.worker.describe(f"did {done} of {count} jobs"))
        time.sleep(0.1)
