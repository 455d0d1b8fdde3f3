"""The latest requests, as they really were: what came, what was done, what was answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class RequestRecord:
    id: str
    at: float
    """Simulator's time."""
    method: str
    path: str
    endpoint: str
    account: str
    key: str | None
    form: str
    status: int | None = None
    """None while it runs, and for an answer that was never sent."""
    replayed: bool = False
    fault: str | None = None
    in_flight: int = 0
    """Calls to this endpoint that were running when it came, itself included."""
    seconds: float = 0.0


class RequestLog:
    def __init__(self, size: int = 10_000) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=size)
        self.total = 0
        self._in_flight: dict[str, int] = {}
        self.in_flight_max: dict[str, int] = {}
        """The most calls that ran at once, by endpoint; "" counts all."""

    def __iter__(self) -> Iterator[RequestRecord]:
        return iter(list(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> RequestRecord:
        return self._records[index]

    def to(self, endpoint: str) -> list[RequestRecord]:
        """Those to one endpoint, such as "POST /v1/transfers/{id}/reversals"."""
        return [record for record in self if record.endpoint == endpoint]

    def new_id(self) -> str:
        return f"req_{(self.total + 1) * 0x9E3779B97F4B & 0xFFFFFFFFFFFF:014x}"

    def start(self, record: RequestRecord) -> None:
        self.total += 1
        for name in (record.endpoint, ""):
            running = self._in_flight[name] = self._in_flight.get(name, 0) + 1
            if running > self.in_flight_max.get(name, 0):
                self.in_flight_max[name] = running
        record.in_flight = self._in_flight[record.endpoint]
        self._records.append(record)

    def end(self, record: RequestRecord) -> None:
        for name in (record.endpoint, ""):
            self._in_flight[name] = max(0, self._in_flight.get(name, 0) - 1)

    def clear(self) -> None:
        self._records.clear()
        self.in_flight_max.clear()
        self.total = 0

    def described(self, limit: int = 100) -> list[dict[str, Any]]:
        return [asdict(record) for record in list(self._records)[-limit:]]
