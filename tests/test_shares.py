"""What each seller must have given of what the buyer got back."""

from collections.abc import Sequence
from itertools import accumulate

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from marketplace.money import split
from marketplace.shares import Loss, RefundCommission, Sale, platform_target, targets

KEEPS, BEARS, PROPORTIONAL = (
    RefundCommission.PLATFORM_KEEPS,
    RefundCommission.PLATFORM_BEARS,
    RefundCommission.PROPORTIONAL,
)


def sale(
    *gross: int,
    commission: RefundCommission = PROPORTIONAL,
    basis_points: int = 1000,
    first_seller: int = 1,
    step: int = 1,
) -> Sale:
    sold = dict(enumerate((amount * step for amount in gross), start=first_seller))
    return Sale(
        amount=sum(sold.values()),
        commission=commission,
        shares={seller: amount - amount * basis_points // (10_000 * step) * step for seller, amount in sold.items()},
        gross=sold,
        step=step,
    )


# Amounts are whole minor units: small ones are what yen have, and cents where rounding shows.
sales = st.builds(
    lambda gross, commission, basis_points, step: sale(
        *gross, commission=commission, basis_points=basis_points, step=step
    ),
    st.lists(st.integers(1, 60) | st.integers(1, 10**12), min_size=1, max_size=5),
    st.sampled_from(RefundCommission),
    st.sampled_from([0, 1, 250, 1000, 3333, 5000, 9999]),
    st.sampled_from([1, 1, 10, 100]),
)


@st.composite
def stories(draw: st.DrawFn, *, is_odd: bool = False) -> tuple[Sale, list[Loss]]:
    """A sale and what was refunded of it, by items and by amount, up to the whole; odd: in amounts that Stripe should
    not take in the sale's currency.
    """
    sold = draw(sales)
    step = 1 if is_odd else sold.step
    left, of_items, losses = sold.amount, dict(sold.gross), []
    for _ in range(draw(st.integers(0, 7))):
        seller = draw(st.sampled_from([None, *sold.shares]))
        most = left if seller is None else min(left, of_items[seller])
        if most == 0:
            continue
        amount = step * draw(st.sampled_from([1, most // step]) | st.integers(1, most // step))
        left -= amount
        if seller is not None:
            of_items[seller] -= amount
        losses.append(Loss(amount=amount, items={} if seller is None else {seller: amount}))
    return sold, losses


# --- Properties -------------------------------------------------------------------------------------------------------


@given(stories())
def test_the_parts_add_up_and_nobody_gives_more_than_it_got(story: tuple[Sale, list[Loss]]) -> None:
    sold, losses = story
    given_back = targets(sold, losses)
    assert sum(given_back.values()) + platform_target(sold, losses) == sum(loss.amount for loss in losses)
    assert all(0 <= amount <= sold.shares[seller] for seller, amount in given_back.items())
    assert 0 <= platform_target(sold, losses) <= sold.amount - sum(sold.shares.values())


@given(stories())
def test_no_refund_makes_a_target_smaller(story: tuple[Sale, list[Loss]]) -> None:
    sold, losses = story
    before: dict[int, int] = dict.fromkeys(sold.shares, 0)
    platform = 0
    for so_far in accumulate(([loss] for loss in losses), lambda done, more: done + more):
        now = targets(sold, so_far)
        assert all(now[seller] >= amount for seller, amount in before.items())
        assert platform_target(sold, so_far) >= platform
        before, platform = now, platform_target(sold, so_far)


@given(stories())
def test_each_part_is_one_that_stripe_takes(story: tuple[Sale, list[Loss]]) -> None:
    sold, losses = story
    assert all(amount % sold.step == 0 for amount in targets(sold, losses).values())
    assert platform_target(sold, losses) % sold.step == 0


@given(stories(is_odd=True))
def test_what_is_odd_of_a_loss_is_the_platforms_until_it_is_a_step(story: tuple[Sale, list[Loss]]) -> None:
    sold, losses = story
    before: dict[int, int] = dict.fromkeys(sold.shares, 0)
    for so_far in accumulate(([loss] for loss in losses), lambda done, more: done + more):
        now = targets(sold, so_far)
        assert all(now[seller] >= amount and now[seller] % sold.step == 0 for seller, amount in before.items())
        most = sold.amount - sum(sold.shares.values())
        odd = (sold.step - 1) * (len(sold.shares) + 1)
        assert 0 <= platform_target(sold, so_far) <= most + odd
        before = now
    rest = sold.amount - sum(loss.amount for loss in losses)
    assert targets(sold, [*losses, Loss(amount=rest)]) == sold.shares


def test_a_sale_that_is_odd_itself_is_laid_to_the_single_unit() -> None:
    sold = Sale(amount=1001, commission=PROPORTIONAL, shares={1: 501, 2: 500}, step=10)
    assert targets(sold, [Loss(amount=3)]) == {1: 2, 2: 1}


@given(stories(), st.data())
def test_the_order_of_events_does_not_matter(story: tuple[Sale, list[Loss]], data: st.DataObject) -> None:
    sold, losses = story
    shuffled: Sequence[Loss] = data.draw(st.permutations(losses))
    assert targets(sold, shuffled) == targets(sold, losses)


@given(stories())
def test_a_refund_that_no_longer_stands_leaves_no_trace(story: tuple[Sale, list[Loss]]) -> None:
    sold, losses = story
    alone = targets(sold, losses[1:])
    assert all(amount <= targets(sold, losses)[seller] for seller, amount in alone.items())


@given(stories())
def test_the_whole_takes_every_share_and_the_whole_commission(story: tuple[Sale, list[Loss]]) -> None:
    sold, losses = story
    rest = sold.amount - sum(loss.amount for loss in losses)
    assert targets(sold, [*losses, Loss(amount=rest)]) == sold.shares
    assert platform_target(sold, [*losses, Loss(amount=rest)]) == sold.amount - sum(sold.shares.values())


@given(stories(), st.integers(1, 10**12))
def test_more_than_the_whole_is_the_whole(story: tuple[Sale, list[Loss]], more: int) -> None:
    sold, losses = story
    beyond = [*losses, Loss(amount=sold.amount + more)]
    assert targets(sold, beyond) == sold.shares
    assert platform_target(sold, beyond) == sold.amount - sum(sold.shares.values())


@given(sales, st.data())
def test_the_platform_keeps_at_most_and_bears_at_least_its_proportion(sold: Sale, data: st.DataObject) -> None:
    loss = Loss(amount=data.draw(st.integers(0, sold.amount)))
    keeps, proportional, bears = (
        platform_target(Sale(amount=sold.amount, commission=commission, shares=sold.shares, gross=sold.gross), [loss])
        for commission in (KEEPS, PROPORTIONAL, BEARS)
    )
    assert keeps <= proportional <= bears


@given(sales, st.data())
def test_by_amount_in_proportion_is_one_split_over_sellers_and_platform(sold: Sale, data: st.DataObject) -> None:
    """What earlier versions took: orders of theirs owe not a cent more or less."""
    amount = data.draw(st.integers(0, sold.amount))
    proportional = Sale(amount=sold.amount, commission=PROPORTIONAL, shares=sold.shares)
    shares = list(sold.shares.values())
    expected = split(amount, [*shares, sold.amount - sum(shares)])[:-1]
    assert list(targets(proportional, [Loss(amount=amount)]).values()) == expected


# --- The policies, in cents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commission", "amount", "sellers", "platform"),
    [
        (PROPORTIONAL, 2000, 1800, 200),
        (KEEPS, 2000, 2000, 0),
        (BEARS, 2000, 1000, 1000),
        (KEEPS, 9500, 9000, 500),
        (BEARS, 600, 0, 600),
        (PROPORTIONAL, 10_000, 9000, 1000),
        (KEEPS, 10_000, 9000, 1000),
        (BEARS, 10_000, 9000, 1000),
    ],
)
def test_who_bears_the_commission(commission: RefundCommission, amount: int, sellers: int, platform: int) -> None:
    sold = sale(10_000, commission=commission)
    for loss in (Loss(amount=amount), Loss(amount=amount, items={1: amount})):
        assert targets(sold, [loss]) == {1: sellers}
        assert platform_target(sold, [loss]) == platform


def test_items_are_their_sellers_and_amounts_are_laid_on_what_is_left() -> None:
    sold = sale(6000, 4000)
    assert targets(sold, [Loss(amount=4000, items={2: 4000})]) == {1: 0, 2: 3600}
    assert targets(sold, [Loss(amount=3000), Loss(amount=4000, items={2: 4000})]) == {1: 2700, 2: 3600}
    assert targets(sold, [Loss(amount=2000, items={1: 2000}), Loss(amount=4000)]) == {1: 3600, 2: 1800}


def test_a_loss_may_be_more_than_its_items() -> None:
    assert targets(sale(6000, 4000), [Loss(amount=5000, items={2: 4000})]) == {1: 900, 2: 3600}


def test_items_refunded_twice_are_given_once() -> None:
    sold = sale(6000, 4000)
    assert targets(sold, [Loss(amount=4000, items={2: 4000})] * 2) == {1: 3600, 2: 3600}


def test_the_earlier_seller_gives_the_cent_of_a_tie() -> None:
    assert targets(sale(500, 500, basis_points=0), [Loss(amount=1)]) == {1: 1, 2: 0}


def test_shares_above_the_amount_leave_nothing_to_the_platform() -> None:
    sold = Sale(amount=100, commission=BEARS, shares={1: 80, 2: 40})
    assert sum(targets(sold, [Loss(amount=50)]).values()) == 50


def test_nothing_is_laid_on_an_order_without_sellers() -> None:
    for commission in RefundCommission:
        sold = Sale(amount=100, commission=commission, shares={})
        assert (targets(sold, [Loss(amount=50)]), platform_target(sold, [Loss(amount=50)])) == ({}, 50)


def test_the_setting_knows_the_same_policies() -> None:
    assert tuple(RefundCommission.values) == settings.REFUND_COMMISSION_POLICIES


@pytest.mark.parametrize("items", [{1: 11}, {1: 6, 2: 5}, {1: -1}])
def test_items_that_are_more_than_the_loss_are_refused(items: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="parts of the amount"):
        Loss(amount=10, items=items)


def test_items_of_somebody_else_are_refused() -> None:
    with pytest.raises(KeyError):
        targets(sale(100), [Loss(amount=10, items={9: 10})])
