"""What became of a message that was sent."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The receiver took it."""


@dataclass(frozen=True, kw_only=True)
class NotSent:
    """It may be there all the same: no answer is none. It is sent again, under the same id."""

    code: str
    message: str


Answer = Sent | NotSent
