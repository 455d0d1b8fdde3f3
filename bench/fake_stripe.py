"""A stand-in for Stripe that costs next to nothing: the time it takes is the time it was told to take.

Run as ``python -m bench.fake_stripe PORT``. It knows transfer reversals and the balance. Keys are replayed, a key in
use is answered 409. What arrived when, and when it was answered, is read by ``/_bench/calls``.
"""

import asyncio
import gc
import json
import random
import re
import sys
import time
from array import array
from collections import deque
from typing import Any
from urllib.parse import parse_qs

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
KEY = re.compile(rb"\r\nidempotency-key: *([^\r]+)", re.IGNORECASE)
REVERSALS = re.compile(r"/v1/transfers/([^/]+)/reversals")
BUSY = (409, "idempotency_key_in_use", "idempotency_error", "")
LIMITED = (429, "rate_limit", "invalid_request_error", "Stripe-Rate-Limited-Reason: endpoint-rate\r\n")


class World:
    def __init__(self) -> None:
        self.replies: dict[bytes, bytes | None] = {}
        self.made = 0
        self.configure({})

    def configure(self, wanted: dict[str, Any]) -> None:
        """Forget what was seen, and behave like this from now on. Keys are remembered."""
        self.latency: float = wanted.get("latency", 0.0)
        # One call in so many, at a random place in each block, takes ``slow`` seconds.
        self.slow_every: int = wanted.get("slow_every", 0)
        self.slow: float = wanted.get("slow", 0.0)
        self.limit: int = wanted.get("limit", 0)
        self.random = random.Random(wanted.get("seed", 1))  # noqa: S311 - which call is slow is no secret
        self.block: list[bool] = []
        self.arrived, self.answered, self.status = array("d"), array("d"), array("H")
        self.subjects: list[str] = []
        self.served: deque[float] = deque()
        self.unknown: list[str] = []
        self.done = 0

    def next_latency(self) -> float:
        if not self.slow_every:
            return self.latency
        if not self.block:
            self.block = [number == 0 for number in range(self.slow_every)]
            self.random.shuffle(self.block)
        return self.slow if self.block.pop() else self.latency

    def is_over_the_limit(self, now: float) -> bool:
        """Stricter than a bucket: no window of one second may hold more than the limit. What is refused counts not."""
        if not self.limit:
            return False
        while self.served and now - self.served[0] >= 1.0:
            self.served.popleft()
        if len(self.served) >= self.limit:
            return True
        self.served.append(now)
        return False

    def calls(self) -> dict[str, Any]:
        return {
            "arrived": self.arrived.tolist(),
            "answered": self.answered.tolist(),
            "status": self.status.tolist(),
            "subject": self.subjects,
            "unknown": self.unknown,
            "keys": len(self.replies),
        }


class Connection(asyncio.Protocol):
    def __init__(self, world: World) -> None:
        self.world = world
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            length = LENGTH.search(head)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < total:
                return
            body, self.buffer = self.buffer[end + 4 : total], self.buffer[total:]
            self.asked(now, head, body)

    def asked(self, now: float, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        if path.startswith("/_bench/"):
            self.transport.write(reply(200, json.dumps(self.controlled(path, body)).encode()))
            return
        world = self.world
        number = len(world.arrived)
        found = REVERSALS.fullmatch(path)
        world.arrived.append(now)
        world.answered.append(0.0)
        world.status.append(0)
        world.subjects.append(found[1] if found else path)
        key = KEY.search(head)
        if world.is_over_the_limit(now):
            self.answer(number, 429, error(LIMITED), delay=0.0)
        elif method == "POST" and found and key:
            self.reverse(number, found[1], key[1], body)
        elif path == "/v1/balance":
            self.answer(number, 200, reply(200, BALANCE), delay=world.next_latency())
        else:
            world.unknown.append(f"{method} {path}")
            self.answer(number, 404, error((404, "resource_missing", "invalid_request_error", "")), delay=0.0)

    def reverse(self, number: int, transfer: str, key: bytes, body: bytes) -> None:
        world = self.world
        if key not in world.replies:
            world.replies[key] = None
            world.made += 1
            made = reversal(world.made, transfer, parse_qs(body.decode()))
            self.answer(number, 200, made, delay=world.next_latency(), key=key)
        elif (stored := world.replies[key]) is not None:
            self.answer(number, 200, stored, delay=0.0)
        else:
            self.answer(number, 409, error(BUSY), delay=0.0)

    def answer(self, number: int, status: int, content: bytes, *, delay: float, key: bytes = b"") -> None:
        if delay:
            asyncio.get_running_loop().call_later(delay, self.write, number, status, content, key)
        else:
            self.write(number, status, content, key)

    def write(self, number: int, status: int, content: bytes, key: bytes) -> None:
        world = self.world
        if key:
            world.replies[key] = content
        if number < len(world.status):
            # Not so where it was told to forget meanwhile.
            world.status[number] = status
            world.answered[number] = time.monotonic()
            world.done += 1
        if not self.transport.is_closing():
            self.transport.write(content)

    def controlled(self, path: str, body: bytes) -> Any:
        match path:
            case "/_bench/configure":
                self.world.configure(json.loads(body))
                return {}
            case "/_bench/calls":
                return self.world.calls()
            case "/_bench/progress":
                return {"arrived": len(self.world.arrived), "answered": self.world.done}
            case _:
                return {"error": path}


def reversal(number: int, transfer: str, given: dict[str, list[str]]) -> bytes:
    """In Stripe's full shape, so that reading it costs what it costs."""
    made = {
        "id": f"trr_1Bench{number:018d}",
        "object": "transfer_reversal",
        "amount": int(given["amount"][0]),
        "balance_transaction": f"txn_1Bench{number:018d}",
        "created": int(time.time()),
        "currency": "eur",
        "destination_payment_refund": f"pyr_1Bench{number:018d}",
        "metadata": {name[9:-1]: values[0] for name, values in given.items() if name.startswith("metadata[")},
        "source_refund": None,
        "transfer": transfer,
    }
    return reply(200, json.dumps(made, indent=2).encode())


BALANCE = json.dumps(
    {"object": "balance", "available": [{"amount": 0, "currency": "eur"}], "livemode": False, "pending": []}
).encode()


def error(what: tuple[int, str, str, str]) -> bytes:
    status, code, kind, headers = what
    body = {"error": {"code": code, "message": f"Refused: {code}.", "type": kind}}
    return reply(status, json.dumps(body).encode(), headers)


def reply(status: int, body: bytes, headers: str = "") -> bytes:
    """With the headers that Stripe sends, for the client reads them all."""
    head = (
        f"HTTP/1.1 {status} OK\r\n"
        "Server: nginx\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: keep-alive\r\n"
        "Access-Control-Allow-Credentials: true\r\n"
        "Access-Control-Allow-Methods: GET, HEAD, PUT, PATCH, POST, DELETE\r\n"
        "Access-Control-Allow-Origin: *\r\n"
        "Access-Control-Max-Age: 300\r\n"
        "Cache-Control: no-cache, no-store\r\n"
        "Request-Id: req_BenchBenchBench\r\n"
        "Stripe-Version: 2026-10-28.endive\r\n"
        "Vary: Origin\r\n"
        "Strict-Transport-Security: max-age=63072000; includeSubDomains; preload\r\n"
        f"{headers}\r\n"
    )
    return head.encode() + body


async def main(port: int) -> None:
    # A collection would hold answers up; what piles up here is needed.
    gc.disable()
    world = World()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(world), "127.0.0.1", port, backlog=256)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
