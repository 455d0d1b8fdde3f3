"""What one reversal costs the database: statements and transactions, all that the worker sends from start to end."""

from bench import ground, workers
from bench.report import Row, at_most
from bench.run import Run

COMMITS = at_most(1.15)
STATEMENTS = at_most(2.2)


def measure(run: Run) -> list[Row]:
    count = run.of(1000, 500)
    commits, statements = [], []
    for repetition in range(run.repetitions):
        with run.watched("worker of 16"):
            asked = once(run, count)
        commits.append(asked.transactions / count)
        statements.append(asked.statements / count)
        run.say(f"statements, {repetition + 1} of {run.repetitions}: {asked} for {count} reversals")
    note = f"{count} reversals, start and end of the worker included"
    return [
        Row("statements", "commits per reversal", COMMITS, commits, note=note),
        Row("statements", "statements per reversal, BEGIN and COMMIT counted", STATEMENTS, statements, note=note),
    ]


def once(run: Run, count: int) -> ground.Asked:
    """The default settings, but no allowance: its statements are for all of a second's calls."""
    with run.server.database(workers.DATABASE) as connection:
        run.stripe.configure(latency=0.05)
        with (
            ground.statements_logged(run.server, workers.DATABASE) as lines,
            workers.started(run, workers.DATABASE, STRIPE_MAX_REQUESTS_PER_SECOND="0") as children,
        ):
            ground.owe_reversals(connection, 1, count)
            run.stripe.wait_for(count, seconds=120, while_runs=children[0])
            workers.wait_until_reversed(connection, seconds=30)
    return ground.asked(lines)
