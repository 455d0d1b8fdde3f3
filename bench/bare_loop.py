"""What reversing costs at least: stripe-python's own call, in as many threads, and nothing around it.

Run as ``python -m bench.bare_loop URL THREADS``. Each line on standard input is a number of calls to make; it answers
``done``.
"""

import itertools
import queue
import sys
import threading
import uuid

import stripe


def main(url: str, threads: int) -> None:
    stripe.enable_telemetry = False
    client = stripe.StripeClient(
        "sk_test_benchmark",
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=(5, 20)),
        base_addresses={"api": url},
    ).v1
    wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    numbers = itertools.count(1)

    def work() -> None:
        while True:
            amount = wanted.get()
            operation = str(uuid.uuid4())
            client.transfers.reversals.create(
                f"tr_1Bare{next(numbers):014d}",
                {"amount": amount, "metadata": {"operation_id": operation, "reason": "refund 1"}},
                {"idempotency_key": f"{operation}:1"},
            )
            done.put(1)

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        for _ in range(count):
            wanted.put(4500)
        for _ in range(count):
            done.get()
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
