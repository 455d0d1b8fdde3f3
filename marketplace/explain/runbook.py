"""The runbook's own words about a state or an error code, from docs/runbook.md of this installation."""

import re
from functools import cache

from django.conf import settings

NOTHING_MOVES = "Nothing moves"
BREAKER_OPEN = "A breaker is open"
NO_WORKER = "No worker lives"


@cache
def entries() -> dict[str, str]:
    """The text below each heading of the third level, as Markdown, by the heading."""
    page = (settings.BASE_DIR / "docs" / "runbook.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.+)\n", page, flags=re.MULTILINE)
    # What stands between the last entry of a section and the next section is not the entry's.
    return {heading: text.split("\n## ")[0].strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def of_code(code: str) -> str:
    """The heading of an error code's entry; empty where the code is Stripe's own."""
    heading = f"`{code}`"
    return heading if heading in entries() else ""


def of_status(status: str) -> str:
    """The heading of a transfer's status; empty where nothing is to be done in it."""
    heading = f"Transfer `{status}`"
    return heading if heading in entries() else ""


def address(heading: str) -> str:
    """Where the entry stands in the documents, with the anchor that GitHub makes of its heading."""
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return f"docs/runbook.md#{anchor}" if heading else ""
