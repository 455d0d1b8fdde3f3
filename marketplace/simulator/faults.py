"""A seeded plan of what goes wrong: rules that match calls, each with one action."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

ACTIONS = {
    "latency": "wait `seconds`, plus up to `jitter`",
    "drop_before": "close the connection; nothing happens",
    "drop_after": "do it, keep the answer under the key, close the connection without answering",
    "late": "do it only `seconds` later (simulator's clock); no answer comes, the key is in use until then",
    "truncated": "do it, send half of the answer, close the connection",
    "unreadable": "do it, answer 200 with a body that is not JSON",
    "not_utf8": "do it, answer 200 with a body that is not UTF-8",
    "error_500": "do nothing, answer 500 and keep that under the key",
    "error_500_after": "do it, answer 500 and keep that under the key",
    "unavailable": "do nothing, answer `status` (502, 503, 504 or 424) as JSON, or as HTML with `html`",
    "rate_limited": "do nothing, answer 429 with `reason`",
    "lock_timeout": "do nothing, answer 429 lock_timeout with Stripe-Should-Retry: true",
    "unauthorized": "do nothing, answer 401",
    "forbidden": "do nothing, answer 403 account_invalid",
    "conflict": "do nothing, answer 409 idempotency_key_in_use",
}
REASONS = ("global-rate", "endpoint-rate", "global-concurrency", "endpoint-concurrency", "resource-specific")
STATUSES = (502, 503, 504, 424)


@dataclass(kw_only=True)
class Rule:
    """All conditions given must hold. `nth` and `times` count the calls that met the others."""

    action: str
    method: str | None = None
    endpoint: str | None = None
    """Such as "POST /v1/transfers/{id}/reversals"; what stands in the braces does not matter."""
    object: str | None = None
    """An id in the path."""
    account: str | None = None
    """The Stripe-Account header, a `destination`, or the destination of the transfer in the path."""
    nth: int | tuple[int, ...] | None = None
    """The first matching call is 1."""
    times: int | None = None
    probability: float = 1.0
    start: float | None = None
    end: float | None = None
    """A window in seconds since the rule was added: of the simulator's clock, or real ones with `real`."""
    real: bool = False
    seconds: float = 0.0
    jitter: float = 0.0
    hold: float = 0.0
    """Real seconds to keep the caller waiting before a connection is dropped."""
    status: int = 503
    html: bool = False
    reason: str = "endpoint-rate"
    id: str = ""
    matched: int = field(default=0, compare=False)
    fired: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"no fault action {self.action!r}: one of {', '.join(ACTIONS)}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, not {self.probability!r}")
        if self.action == "unavailable" and self.status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, not {self.status!r}")
        if self.action == "rate_limited" and self.reason not in REASONS:
            raise ValueError(f"reason must be one of {', '.join(REASONS)}, not {self.reason!r}")
        if self.endpoint is not None:
            method, _, path = self.endpoint.rpartition(" ")
            if not path.startswith("/v1/"):
                raise ValueError(
                    f"endpoint must look like 'POST /v1/transfers/{{id}}/reversals', not {self.endpoint!r}"
                )
            self.endpoint = path
            self.method = method or self.method


@dataclass(frozen=True, slots=True)
class Call:
    """What a rule can look at."""

    method: str
    endpoint: str
    ids: tuple[str, ...]
    accounts: tuple[str, ...]


@dataclass(slots=True)
class Verdict:
    """What happens to one call: how long it waits, and at most one thing that goes wrong."""

    seconds: float = 0.0
    rule: Rule | None = None


def _several(nth: int | tuple[int, ...]) -> tuple[int, ...]:
    return (nth,) if isinstance(nth, int) else nth


@cache
def plain(endpoint: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", endpoint)


class Plan:
    """The rules in order; the first that fires, latency apart, decides. The same seed, the same luck."""

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self._random = random.Random(f"faults {seed}")  # noqa: S311
        self._rules: list[Rule] = []
        self._born: dict[str, tuple[float, float]] = {}
        self._made = 0
        self.now: Any = time.time

    def __iter__(self) -> Iterator[Rule]:
        return iter(list(self._rules))

    def __len__(self) -> int:
        return len(self._rules)

    def add(self, action: str, **conditions: Any) -> Rule:
        rule = Rule(action=action, **conditions)
        self._made += 1
        rule.id = f"fault_{self._made}"
        self._born[rule.id] = (self.now(), time.monotonic())
        self._rules.append(rule)
        return rule

    def outage(self, start: float = 0, seconds: float = 60, *, real: bool = False, **more: Any) -> Rule:
        """All calls answer 503 from `start` seconds on, for so many seconds."""
        return self.add("unavailable", start=start, end=start + seconds, real=real, **more)

    def remove(self, rule: Rule | str) -> bool:
        id_ = rule if isinstance(rule, str) else rule.id
        before = len(self._rules)
        self._rules = [each for each in self._rules if each.id != id_]
        return len(self._rules) < before

    def clear(self) -> None:
        self._rules = []

    def judge(self, call: Call) -> Verdict:
        verdict = Verdict()
        for rule in self._rules:
            if rule.action == "latency" or verdict.rule is None:
                if not self._fires(rule, call):
                    continue
                if rule.action == "latency":
                    verdict.seconds += rule.seconds + (self._random.random() * rule.jitter if rule.jitter else 0)
                else:
                    verdict.rule = rule
        return verdict

    def _fires(self, rule: Rule, call: Call) -> bool:
        if rule.method is not None and rule.method != call.method:
            return False
        if rule.endpoint is not None and plain(rule.endpoint) != plain(call.endpoint.partition(" ")[2]):
            return False
        if rule.object is not None and rule.object not in call.ids:
            return False
        if rule.account is not None and rule.account not in call.accounts:
            return False
        if not self._in_window(rule):
            return False
        if rule.probability < 1 and self._random.random() >= rule.probability:
            return False
        rule.matched += 1
        if rule.nth is not None and rule.matched not in _several(rule.nth):
            return False
        if rule.times is not None and rule.fired >= rule.times:
            return False
        rule.fired += 1
        return True

    def _in_window(self, rule: Rule) -> bool:
        if rule.start is None and rule.end is None:
            return True
        born = self._born[rule.id]
        age = time.monotonic() - born[1] if rule.real else self.now() - born[0]
        return (rule.start is None or age >= rule.start) and (rule.end is None or age < rule.end)

    def described(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in asdict(rule).items() if v is not None} for rule in self._rules]


class RateLimit:
    """At most so many calls in any second of real time. A refused call does not count."""

    def __init__(self, per_second: int | None) -> None:
        self.per_second = per_second
        self._calls: dict[str, list[float]] = {}

    def allows(self, name: str) -> bool:
        if self.per_second is None:
            return True
        now = time.monotonic()
        recent = [at for at in self._calls.get(name, ()) if at > now - 1]
        allowed = len(recent) < self.per_second
        if allowed:
            recent.append(now)
        self._calls[name] = recent
        return allowed
