"""One id for all that belongs together: from the request or the event that began it, over the rows that it wrote, to
the log lines of the workers that end it.
"""

import re
import uuid
from contextlib import AbstractContextManager
from typing import Any

import structlog

from marketplace.redaction import redact

# What others may call their requests: it goes into our rows, logs and answers.
ACCEPTED = re.compile(r"[A-Za-z0-9._:-]{1,100}")
# As the columns hold it. Stripe's ids of events are far shorter.
LONGEST = 100
# In the log lines, and the column of rows.
NAME = "correlation_id"


def current() -> str:
    """The id of what is being done; empty where nothing has one. What is written meanwhile bears it."""
    return str(structlog.contextvars.get_contextvars().get(NAME, ""))[:LONGEST]


def bound(correlation_id: str) -> AbstractContextManager[Any]:
    """Within it the id is this one, in all log lines too."""
    return structlog.contextvars.bound_contextvars(**{NAME: correlation_id})


def of_request(sent: str) -> str:
    """What the caller sent, unless it is nothing, or nothing that one should keep; then an id of our own."""
    return sent if ACCEPTED.fullmatch(sent) and redact(sent) == sent else uuid.uuid4().hex
