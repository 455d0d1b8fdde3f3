"""The same HTTP call as a task of Procrastinate. Runs in the comparator's environment, as Procrastinate's docs say.

The call is the lightest that Python has: aiohttp, one session, no SDK, no row of a business written afterwards.
"""

import os
import sys
import uuid
from typing import Any

import aiohttp
import procrastinate

STRIPE = os.environ["STRIPE_API_BASE"]
CONNECTION = {"host": os.environ["BENCH_SOCKET"], "user": "postgres", "dbname": os.environ["BENCH_DATABASE"]}

app = procrastinate.App(connector=procrastinate.PsycopgConnector(kwargs=CONNECTION))
_sessions: list[aiohttp.ClientSession] = []


@app.task(name="reverse")
async def reverse(transfer: str, amount: int, operation: str) -> None:
    if not _sessions:
        # One for the process, made where its event loop runs.
        _sessions.append(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=25)))
    form: dict[str, Any] = {"amount": str(amount), "metadata[operation_id]": operation, "metadata[reason]": "refund 1"}
    headers = {"Idempotency-Key": f"{operation}:1", "Authorization": "Bearer sk_test_benchmark"}
    async with _sessions[0].post(f"{STRIPE}/v1/transfers/{transfer}/reversals", data=form, headers=headers) as answer:
        answer.raise_for_status()
        await answer.json()


def main() -> None:
    """Each line on standard input is the first number and the count of jobs to defer; they are committed together."""
    with app.open():
        print("ready", flush=True)
        for line in sys.stdin:
            first, count = map(int, line.split())
            reverse.batch_defer(
                *(
                    {"transfer": f"tr_1Peer{number:014d}", "amount": 4500, "operation": str(uuid.uuid4())}
                    for number in range(first, first + count)
                )
            )
            print("done", flush=True)


if __name__ == "__main__":
    main()
