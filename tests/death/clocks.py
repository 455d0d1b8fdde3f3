"""A host whose clock is wrong: this process's, for everything that Python code can ask."""

import datetime as dt
import sys
import threading
import time
import traceback
from typing import Any

REAL_DATETIME, REAL_TIME = dt.datetime, time.time
ASKED = "asked_the_host_for_the_time"
# Functions of ours that asked for the time, as "marketplace/x.py f".
askers: set[str] = set()
_lock = threading.Lock()


def shift(seconds: float) -> None:
    """Move the wall clock by so much. The monotonic clock goes on, as it does on a host whose time is set."""
    offset = dt.timedelta(seconds=seconds)

    class Everywhere(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, REAL_DATETIME)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, REAL_DATETIME)

    class Shifted(REAL_DATETIME, metaclass=Everywhere):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return REAL_DATETIME(*args, **kwargs)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            note()
            return REAL_DATETIME.now(tz) + offset

        @classmethod
        def utcnow(cls) -> Any:
            note()
            return REAL_DATETIME.now(dt.UTC).replace(tzinfo=None) + offset

        @classmethod
        def today(cls) -> Any:
            note()
            return REAL_DATETIME.now() + offset

    def shifted() -> float:
        note()
        return REAL_TIME() + seconds

    replacements: dict[Any, Any] = {REAL_DATETIME: Shifted, REAL_TIME: shifted}
    dt.datetime = Shifted  # type: ignore[misc]
    time.time = shifted
    for module in list(sys.modules.values()):
        if module.__name__.partition(".")[0] in {"marketplace", "veza", "django", "stripe", "structlog", "psycopg"}:
            for name, value in list(vars(module).items()):
                if value is REAL_DATETIME or value is REAL_TIME:
                    setattr(module, name, replacements[value])


def note() -> None:
    """Who asked, if it is a line of ours: what others want the time for, such as the stamp of a log line, is theirs."""
    for frame in reversed(traceback.extract_stack(limit=8)):
        if frame.filename == __file__ or frame.filename.endswith("django/utils/timezone.py"):
            continue
        if "/marketplace/" in frame.filename:
            asker = f"marketplace/{frame.filename.rpartition('/marketplace/')[2]} {frame.name}"
            with _lock:
                if asker not in askers:
                    askers.add(asker)
                    sys.stderr.write(f'{{"event": "{ASKED}", "asker": "{asker}"}}\n')
        return
