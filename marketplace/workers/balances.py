"""The queue of balance checks: sellers whose reversals wait for money are looked at, each once an interval at most."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog

from marketplace.errors import StripeDenied
from marketplace.gateway.contract import Denied, TransferGateway
from marketplace.metrics import ANSWERS
from marketplace.models import BalanceWatch
from marketplace.services import funds, leases
from marketplace.workers.loop import Few, elapsed_ms, persistently

logger = structlog.get_logger(__name__)


class BalanceQueue:
    """Sellers whose balance is due to be looked at. Without a breaker: a check in vain spends nothing, and is paced; of
    those that may wait for a slow answer this process has at most ``most`` in hand.
    """

    name = funds.WORK
    channel = funds.CHANNEL
    due = funds.DUE

    def __init__(self, gateway: TransferGateway, *, most: int = sys.maxsize) -> None:
        self._gateway = gateway
        self._in_hand = Few(most)

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[BalanceWatch]:
        room = min(batch_size, self._in_hand.room)
        if not room:
            return []
        claimed = leases.claim(BalanceWatch, due=funds.DUE.condition, batch_size=room, lease=lease)
        self._in_hand.add(each.pk for each in claimed)
        return claimed

    def is_held_back(self, claimed: BalanceWatch) -> bool:  # noqa: ARG002 - see above
        return False

    def describe(self, claimed: BalanceWatch) -> dict[str, Any]:
        return {"seller": claimed.seller_id}

    def perform(self, claimed: BalanceWatch) -> None:
        try:
            self._perform(claimed)
        finally:
            self._in_hand.done_with(claimed.pk)

    def _perform(self, claimed: BalanceWatch) -> None:
        seller = claimed.seller
        if not funds.is_waited_for(seller):
            persistently(lambda: funds.settle_unasked(claimed))
            return
        started = time.monotonic()
        answer = self._gateway.retrieve_balance(stripe_account=seller.stripe_account_id)
        said = type(answer).__name__
        ANSWERS.labels(work=self.name, answer=said).inc()
        logger.info(
            "balance_answered",
            seller=seller.pk,
            stripe_account_id=seller.stripe_account_id,
            answer=said,
            request_id=answer.request_id,
            milliseconds=elapsed_ms(started),
        )
        persistently(lambda: funds.settle(claimed, answer))
        if isinstance(answer, Denied) and not answer.forbidden:
            raise StripeDenied(answer.message)

    def settle_unexpected(self, claimed: BalanceWatch, exception: Exception) -> None:
        funds.settle_unexpected(claimed, exception)

    def release(self, claimed: BalanceWatch) -> None:
        self._in_hand.done_with(claimed.pk)
        leases.release(BalanceWatch, claimed.pk, claimed.lease_token)
