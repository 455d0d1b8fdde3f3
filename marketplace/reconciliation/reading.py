"""Stripe as a reconciliation reads it: each list page by page, and each request counted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from marketplace.asking import ask
from marketplace.gateway.contract import EVER, Failure, Page, TransferGateway

A = TypeVar("A")
T = TypeVar("T")


@dataclass(kw_only=True)
class Reader:
    """Raises as ``asking.ask``."""

    gateway: TransferGateway
    requests: int = 0

    def ask(self, call: Callable[[], A | Failure]) -> A:
        def counted() -> A | Failure:
            self.requests += 1
            return call()

        return ask(counted)

    def all_of(self, list_page: Callable[..., Page[T] | Failure], **filters: str) -> Iterator[T]:
        """Whenever it was created, from all pages."""
        after = ""
        while True:
            page = self.ask(lambda: list_page(since=0, until=EVER, starting_after=after, **filters))  # noqa: B023 - at once
            yield from page.items
            if not page.has_more:
                return
            after = page.last_id

    def taken(self) -> int:
        """How many requests there were since this was asked last."""
        made, self.requests = self.requests, 0
        return made
