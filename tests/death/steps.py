"""Where a worker may die: the real code, wrapped at run time so that the process kills itself at one step."""

import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

from django.db.backends.utils import CursorWrapper
from urllib3.connectionpool import HTTPConnectionPool

from marketplace.workers.reversal import RefundQueue, ReversalQueue
from marketplace.workers.transfer_retry import TransferQueue

QUEUES: dict[str, type[Any]] = {"reversal": ReversalQueue, "transfer": TransferQueue, "refund": RefundQueue}
# What each kind of work asks of Stripe, and the table that its settling writes.
CALLS = {
    "reversal": re.compile(r"/v1/transfers/[^/]+/reversals\Z"),
    "transfer": re.compile(r"/v1/transfers\Z"),
    "refund": re.compile(r"/v1/refunds\Z"),
}
TABLES = {
    "reversal": "marketplace_sellertransfer",
    "transfer": "marketplace_sellertransfer",
    "refund": "marketplace_refund",
}

BEFORE_CLAIM = "before the claim"
AFTER_CLAIM = "after the claim"
BEFORE_CALL = "before the call"
AFTER_ANSWER = "after the answer"
BEFORE_WRITING = "before the answer is written"
AFTER_WRITING = "after the statement that writes it"
AFTER_SETTLE = "after settling"
STEPS = (BEFORE_CLAIM, AFTER_CLAIM, BEFORE_CALL, AFTER_ANSWER, BEFORE_WRITING, AFTER_WRITING, AFTER_SETTLE)

_answered = threading.local()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place: dict[str, str]) -> None:
    work, step = place["work"], place["step"]
    queue = QUEUES[work]
    match step:
        case "before the claim":
            wrap(queue, "claim", before=lambda: True)
        case "after the claim":
            wrap(queue, "claim", after=bool)
        case "after settling":
            wrap(queue, "perform", after=lambda _nothing: True)
        case _:
            die_around_the_call(work, step)


def die_around_the_call(work: str, step: str) -> None:
    urlopen = HTTPConnectionPool.urlopen

    def sending(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        is_it = method == "POST" and bool(CALLS[work].search(url))
        if is_it and step == BEFORE_CALL:
            die()
        answer = urlopen(self, method, url, *args, **kwargs)
        if is_it and step == AFTER_ANSWER:
            die()
        _answered.yes = is_it
        return answer

    HTTPConnectionPool.urlopen = sending  # type: ignore[method-assign]
    execute = CursorWrapper.execute

    def executing(self: Any, sql: Any, params: Any = None) -> Any:
        text = str(sql)
        is_it = getattr(_answered, "yes", False) and "UPDATE" in text and TABLES[work] in text and "SET" in text
        if is_it and step == BEFORE_WRITING:
            die()
        done = execute(self, sql, params)
        if is_it and step == AFTER_WRITING:
            die()
        return done

    CursorWrapper.execute = executing  # type: ignore[method-assign]


def wrap(
    owner: type[Any], name: str, *, before: Callable[[], bool] | None = None, after: Callable[[Any], bool] | None = None
) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None and before():
            die()
        result = original(*args, **kwargs)
        if after is not None and after(result):
            die()
        return result

    setattr(owner, name, wrapped)
