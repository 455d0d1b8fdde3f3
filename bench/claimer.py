"""Claims by the program's own statement and settles what it claimed, on one database; tells what each claim took.

Run as ``python -m bench.claimer`` with the program's environment. Each line on standard input is a number of rows to
claim; the answer is the claim's milliseconds and how many rows came.
"""

import itertools
import sys
import time
from datetime import timedelta

import django

django.setup()

from marketplace.gateway.contract import ReversalFacts, Reversed  # noqa: E402 - after Django
from marketplace.services import reversal_claims, reversal_settling  # noqa: E402

numbers = itertools.count(1)


def claim(count: int) -> tuple[float, int]:
    began = time.perf_counter()
    claimed = reversal_claims.claim(batch_size=count, lease=timedelta(minutes=5))
    took = (time.perf_counter() - began) * 1000
    # As in life: what was claimed is gone from the front of the queue before more is.
    for each in claimed:
        made = ReversalFacts(
            stripe_reversal_id=f"trr_1Claimed{next(numbers):014d}",
            amount=each.reversal.amount,
            currency=each.reversal.currency,
            operation_id=str(each.reversal.operation_id),
            status="",
        )
        reversal_settling.settle(each, Reversed(reversal=made), actor="benchmark")
    return took, len(claimed)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(*claim(int(line)), flush=True)
