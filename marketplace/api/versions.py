"""``ETag`` and ``If-Match``: who acts on a row may say which version was seen, and is refused where it moved since."""

from collections.abc import Mapping

from django.db.models import Model
from rest_framework.request import Request

from marketplace.api.problems import Malformed
from marketplace.models.lifecycle import Lifecycle

HEADER = "If-Match"
LONGEST = 1000


def version_of(row: Model) -> Mapping[str, str]:
    """The header. Of the row, not of the whole answer: what stands beside it (history, reversals) may change alone."""
    return {"ETag": f'"{row.version}"'} if isinstance(row, Lifecycle) else {}


def expected(request: Request) -> frozenset[str] | None:
    """The versions that the caller would act on; None where any will do.

    Raises:
        Malformed: not a list of quoted tags.

    """
    given = request.headers.get(HEADER)
    if given is None or given.strip() == "*":
        return None
    tags = [tag.strip() for tag in given.split(",")]
    if len(given) > LONGEST or not all(len(tag) > 2 and tag[0] == tag[-1] == '"' for tag in tags):
        raise Malformed(HEADER, f'{given[:50]!r}: expected the ETag of an earlier answer, such as "7-1764355612123456"')
    return frozenset(tag[1:-1] for tag in tags)
