from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.money import Money, decimal_places, split, step

amounts = st.integers(min_value=0, max_value=10**15)
weights = st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=20)


# --- Splits -----------------------------------------------------------------------------------------------------------


@given(amounts, weights.filter(any))
def test_parts_add_up_exactly(total: int, shares: list[int]) -> None:
    parts = split(total, shares)
    assert sum(parts) == total
    assert len(parts) == len(shares)
    assert all(part >= 0 for part in parts)


@given(st.integers(min_value=0, max_value=500), st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any))
def test_no_part_shrinks_as_the_total_grows(total: int, shares: list[int]) -> None:
    before, after = split(total, shares), split(total + 1, shares)
    assert sorted(more - less for less, more in zip(before, after, strict=True)) == [0] * (len(shares) - 1) + [1]


@given(weights.filter(any), st.data())
def test_no_part_exceeds_its_weight_while_the_total_does_not(shares: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(min_value=0, max_value=sum(shares)))
    assert all(part <= share for part, share in zip(split(total, shares), shares, strict=True))


@given(weights.filter(any))
def test_the_sum_of_the_weights_splits_into_the_weights(shares: list[int]) -> None:
    assert split(sum(shares), shares) == shares


@given(amounts, weights.filter(any))
def test_nobody_without_a_weight_gets_anything(total: int, shares: list[int]) -> None:
    assert all(part == 0 for part, share in zip(split(total, shares), shares, strict=True) if share == 0)


@given(amounts, weights.filter(any))
def test_a_larger_weight_never_gets_less(total: int, shares: list[int]) -> None:
    pairs = sorted(zip(shares, split(total, shares), strict=True))
    assert all(less[1] <= more[1] for less, more in pairwise(pairs) if less[0] < more[0])


@pytest.mark.parametrize(
    ("total", "shares", "parts"),
    [
        (100, [1, 1, 1], [34, 33, 33]),
        (101, [1, 1, 1], [34, 34, 33]),
        (1, [1, 1], [1, 0]),
        (0, [5, 5], [0, 0]),
        (0, [0, 0], [0, 0]),
        (0, [], []),
        (10, [0, 3, 0], [0, 10, 0]),
        (2, [1, 3], [1, 1]),
        (1000, [333, 333, 334], [333, 333, 334]),
        (3, [6, 6, 2], [2, 1, 0]),
        (4, [6, 6, 2], [2, 2, 0]),
    ],
)
def test_each_cent_goes_to_whom_it_is_due_most_and_ties_to_the_earlier(
    total: int, shares: list[int], parts: list[int]
) -> None:
    assert split(total, shares) == parts


@pytest.mark.parametrize(("total", "shares"), [(-1, [1]), (1, [1, -1]), (2, [5, -1]), (1, []), (1, [0, 0])])
def test_what_cannot_be_split_is_refused(total: int, shares: list[int]) -> None:
    with pytest.raises(ValueError, match=r"negative|nobody"):
        split(total, shares)


# --- Money ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (1234, "eur", "12.34 EUR"),
        (5, "usd", "0.05 USD"),
        (0, "eur", "0.00 EUR"),
        (-1234, "eur", "-12.34 EUR"),
        (-5, "eur", "-0.05 EUR"),
        (1234, "jpy", "1234 JPY"),
        (-7, "jpy", "-7 JPY"),
        (1234, "kwd", "1.234 KWD"),
        (1200, "isk", "12.00 ISK"),
    ],
)
def test_money_is_shown_to_people(amount: int, currency: str, shown: str) -> None:
    assert str(Money(amount, currency)) == shown


@pytest.mark.parametrize(
    ("currency", "smallest"), [("eur", 1), ("jpy", 1), ("huf", 1), ("isk", 100), ("ugx", 100), ("kwd", 10)]
)
def test_amounts_are_multiples_of_what_stripe_takes(currency: str, smallest: int) -> None:
    assert step(currency) == smallest


@pytest.mark.parametrize(("currency", "places"), [("eur", 2), ("jpy", 0), ("bhd", 3), ("ugx", 2), ("huf", 2)])
def test_decimals_are_those_that_stripe_counts(currency: str, places: int) -> None:
    assert decimal_places(currency) == places


@pytest.mark.parametrize("amount", [1.0, "1", None, True])
def test_amounts_are_whole_numbers(amount: object) -> None:
    with pytest.raises(TypeError, match="whole minor units"):
        Money(amount, "eur")  # type: ignore[arg-type]


@pytest.mark.parametrize("currency", ["EUR", "eu", "euro", "", "éur", "e r", "12€", "e1r", "eur\n"])
def test_currencies_are_three_small_letters(currency: str) -> None:
    with pytest.raises(ValueError, match="three lower-case letters"):
        Money(1, currency)
