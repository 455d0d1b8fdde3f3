"""Posts signed events to a web server: as fast as some connections can, or so many a second whatever happens.

Run as ``python -m bench.load``; one line of JSON on standard input is one job, one line on standard output its result.
"""

import asyncio
import hashlib
import hmac
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from marketplace.simulator import shapes

CREATED = 1_790_000_000


def event(number: int) -> bytes:
    """``refund.created`` as Stripe posts it: all of order ``number``, refunded in Stripe's dashboard."""
    refund = shapes.make(
        "refund",
        id=f"re_3Bench{number:014d}",
        amount=5000,
        balance_transaction=f"txn_3Bench{number:014d}",
        charge=f"ch_3Bench{number:014d}",
        created=CREATED,
        currency="eur",
        payment_intent=f"pi_3Bench{number:014d}",
        status="succeeded",
    )
    envelope = {
        "id": f"evt_3Bench{number:014d}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": CREATED,
        "data": {"object": refund},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": f"req_{number:014d}", "idempotency_key": None},
        "type": "refund.created",
    }
    # Stripe posts it indented.
    return json.dumps(envelope, indent=2).encode()


def request(path: str, body: bytes, secret: str, *, at: int) -> bytes:
    mark = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"
        "Accept: */*; q=0.5, application/xml\r\n"
        "Cache-Control: no-cache\r\n"
        "Content-Type: application/json; charset=utf-8\r\n"
        f"Stripe-Signature: t={at},v1={mark}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Posted:
    # Seconds on the monotonic clock; asked is when it should have been sent.
    asked: float
    answered: float
    status: int


class Line:
    """One connection that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Line":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, content: bytes) -> int:
        self._writer.write(content)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((line for line in lines if line.startswith(b"content-length:")), None)
        if length is None:
            # In chunks, as granian sends what has no length.
            await self._reader.readuntil(b"0\r\n\r\n")
        else:
            await self._reader.readexactly(int(length.split(b":")[1]))
        return int(lines[0].split()[1])

    def close(self) -> None:
        self._writer.close()


async def as_fast_as_possible(port: int, requests: list[bytes], *, connections: int, seconds: float) -> list[Posted]:
    """Until the time is over or no event is left."""
    posted: list[Posted] = []
    left = iter(requests)
    deadline = time.monotonic() + seconds

    async def keep_posting() -> None:
        line = await Line.open(port)
        for content in left:
            asked = time.monotonic()
            status = await line.post(content)
            posted.append(Posted(asked, time.monotonic(), status))
            if time.monotonic() > deadline:
                break
        line.close()

    await asyncio.gather(*(keep_posting() for _ in range(connections)))
    return posted


async def at_a_rate(port: int, requests: list[bytes], *, per_second: float) -> list[Posted]:
    """Open loop: each has its time, and a slow answer does not delay the next one."""
    posted: list[Posted] = []
    free: list[Line] = [await Line.open(port) for _ in range(8)]
    begin = time.monotonic() + 0.1

    async def post(number: int, content: bytes) -> None:
        asked = begin + number / per_second
        await asyncio.sleep(asked - time.monotonic())
        line = free.pop() if free else await Line.open(port)
        status = await line.post(content)
        posted.append(Posted(asked, time.monotonic(), status))
        free.append(line)

    await asyncio.gather(*(post(number, content) for number, content in enumerate(requests)))
    for line in free:
        line.close()
    return posted


def do(job: dict[str, Any]) -> dict[str, Any]:
    numbers = range(job["first"], job["first"] + job["count"])
    at = int(time.time())
    requests = [request(job["path"], event(number), job["secret"], at=at) for number in numbers]
    if "per_second" in job:
        posted = asyncio.run(at_a_rate(job["port"], requests, per_second=job["per_second"]))
    else:
        posted = asyncio.run(
            as_fast_as_possible(job["port"], requests, connections=job["connections"], seconds=job["seconds"])
        )
    return {
        "asked": [each.asked for each in posted],
        "answered": [each.answered for each in posted],
        "statuses": sorted({each.status for each in posted}),
    }


if __name__ == "__main__":
    print("ready", flush=True)
    for given in sys.stdin:
        print(json.dumps(do(json.loads(given))), flush=True)
