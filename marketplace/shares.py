"""Who of an order gives back how much: the sellers' targets, from all that the buyer has got back so far.

Pure arithmetic over whole minor units. A target is what a seller must have given *in all*; what is still to be taken
is the target less what was taken. So the steps that led there, and computing it twice, change nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.db import models
from django.utils.translation import gettext_lazy as _

from marketplace.money import split


class RefundCommission(models.TextChoices):
    """Who bears the platform's commission of what is refunded; frozen in the order at its sale.

    Of 100.00 sold with a commission of 10.00 the seller got 90.00. Of a refund of 20.00 the seller gives

    - ``proportional``: 18.00, the platform 2.00: each in proportion to what it got;
    - ``platform_keeps``: 20.00: the platform gives nothing while the sellers have something left of this sale;
    - ``platform_bears``: 10.00, the platform 10.00: the platform gives its commission first, the sellers what is more.

    A whole refund is the same in all three: each seller gives its share, the platform its commission. No seller ever
    gives more than it got, so the platform cannot keep the commission of what is refunded to the last cent.
    """

    PROPORTIONAL = "proportional", _("in proportion")
    PLATFORM_KEEPS = "platform_keeps", _("the platform keeps it")
    PLATFORM_BEARS = "platform_bears", _("the platform gives it first")


@dataclass(frozen=True, kw_only=True)
class Sale:
    """What was sold, in the order's minor units. Sellers are named by their ids."""

    amount: int
    commission: RefundCommission
    # What each seller got, in the order in which a tie for a cent is decided.
    shares: Mapping[int, int]
    # What was sold by each seller, commission included. Needed of those sellers only of whom items are refunded.
    gross: Mapping[int, int] = field(default_factory=dict)
    # Parts are multiples of this where all that was sold is (``money.step``).
    step: int = 1


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What went back to the buyer, by one refund or dispute, in minor units.

    By items: ``items`` says how much of each seller's goods. What ``amount`` is more than those is of nobody's goods
    in particular.
    """

    amount: int
    items: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(of_seller < 0 for of_seller in self.items.values()) or sum(self.items.values()) > self.amount:
            raise ValueError("items are parts of the amount")


def targets(sale: Sale, losses: Sequence[Loss]) -> dict[int, int]:
    """What each seller must have given in all, in minor units; never more than its share.

    Goods first: what is refunded of a seller's items is borne by that seller and the platform alone, by the policy.
    Then what was refunded by amount, laid over what all of them have left. The order of ``losses`` does not matter;
    more losses never make a target smaller; what is lost beyond the whole amount is not laid on anybody.

    In a currency of which Stripe takes no single minor units, each part is one that it takes; what is smaller than that
    of an odd loss is the platform's.

    Raises ``KeyError`` for items of a seller that sold nothing here, or whose ``gross`` is not told.
    """
    given = dict.fromkeys(sale.shares, 0)
    if not losses:
        return given
    in_steps = _in_steps(sale)
    platform_left = max(sale.amount - sum(sale.shares.values()), 0)
    of_goods = 0
    for seller in {seller: None for loss in losses for seller in loss.items}:
        share, gross = sale.shares[seller], sale.gross[seller]
        goods = min(sum(loss.items.get(seller, 0) for loss in losses), gross)
        given[seller] = _laid(goods, [share], max(gross - share, 0), sale.commission, in_steps)[0]
        platform_part = min(goods - given[seller], platform_left)
        platform_left -= platform_part
        of_goods += given[seller] + platform_part
    total = min(sum(loss.amount for loss in losses), sale.amount)
    left = [share - given[seller] for seller, share in sale.shares.items()]
    by_amount = max(total - of_goods, 0)
    parts = _laid(by_amount, left, platform_left, sale.commission, in_steps)
    for seller, part in zip(sale.shares, parts, strict=True):
        given[seller] += part
    return given


def _in_steps(sale: Sale) -> int:
    """Orders of before, and such as Stripe would not take, are laid to the single minor unit."""
    is_odd = any(amount % sale.step for amount in (sale.amount, *sale.shares.values(), *sale.gross.values()))
    return 1 if is_odd else sale.step


def platform_target(sale: Sale, losses: Sequence[Loss]) -> int:
    """What the platform must have given in all: the losses that no seller bears, within the sale's amount."""
    total = min(sum(loss.amount for loss in losses), sale.amount)
    return total - sum(targets(sale, losses).values())


def _laid(amount: int, left: Sequence[int], platform_left: int, policy: RefundCommission, in_steps: int) -> list[int]:
    """The sellers' parts of ``amount``, by what each has left."""
    match policy:
        case RefundCommission.PLATFORM_KEEPS:
            return _split(min(amount, sum(left)), left, in_steps)
        case RefundCommission.PLATFORM_BEARS:
            return _split(min(max(amount - platform_left, 0), sum(left)), left, in_steps)
        case _:
            whole = sum(left) + platform_left
            return _split(min(amount, whole), [*left, platform_left], in_steps)[:-1]


def _split(total: int, weights: Sequence[int], in_steps: int) -> list[int]:
    return [part * in_steps for part in split(total // in_steps, [weight // in_steps for weight in weights])]
