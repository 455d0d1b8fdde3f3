"""The memory of one worker over very many reversals, at a Stripe that answers at once."""

from bench import arithmetic, ground, workers
from bench.processes import resident_bytes
from bench.report import Row, at_most
from bench.run import Run

DATABASE = "bench_memory"
SIZE = at_most(150, "MB", 1)
# Less is no leak: the allocator keeps what it once needed.
GROWTH = at_most(2, "MB", 2)
MEGABYTE = 1_000_000


def measure(run: Run) -> list[Row]:
    count = run.of(100_000, 5_000)
    sizes: list[tuple[float, float]] = []
    with run.server.database(DATABASE) as connection, run.watched("worker of 16"):
        run.stripe.configure(latency=0.0)
        with workers.started(run, DATABASE, STRIPE_MAX_REQUESTS_PER_SECOND="0") as (worker,):
            run.say(f"memory: {count:,} reversals, {resident_bytes(worker.pid) / MEGABYTE:.1f} MB before the first")
            ground.owe_reversals(connection, 1, count)

            def tell(done: int) -> None:
                sizes.append((done, resident_bytes(worker.pid) / MEGABYTE))
                if len(sizes) % 30 == 0:
                    run.say(f"memory: {done:,} of {count:,} done, {sizes[-1][1]:.1f} MB")

            run.stripe.wait_for(count, seconds=count / 50, while_runs=worker, tell=tell)
            workers.wait_until_reversed(connection, seconds=60)
            last = resident_bytes(worker.pid) / MEGABYTE
    return rows(sizes, last, count)


def rows(sizes: list[tuple[float, float]], last: float, count: int) -> list[Row]:
    # Threads, connections and caches are made in the first fifth.
    later = [(done, size) for done, size in sizes if done >= count / 5]
    growth = arithmetic.slope(later) * count * 4 / 5
    note = f"{later[0][1]:.1f} MB after a fifth of them"
    shown = sizes[:: max(len(sizes) // 50, 1)]
    return [
        Row("memory", f"memory of a worker after {count:,} reversals", SIZE, [last], note=note, details={"mb": shown}),
        Row("memory", "its growth over the last four fifths of them", GROWTH, [growth]),
    ]
