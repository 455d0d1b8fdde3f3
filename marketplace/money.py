"""Money: whole minor units and a currency; splits that add up exactly."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Source: docs.stripe.com/currencies#zero-decimal and #special-cases. ISK and UGX have no decimals in use, but Stripe
# counts them in hundredths, so they are not in this list.
ZERO_DECIMAL_CURRENCIES = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}
)
THREE_DECIMAL_CURRENCIES = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# Without decimals in use, though counted in hundredths: amounts end in 00 (docs.stripe.com/currencies#special-cases).
# Of three decimals the last must be 0, as several public projects have it (unconfirmed against that page).
STEPS = {"isk": 100, "ugx": 100} | dict.fromkeys(THREE_DECIMAL_CURRENCIES, 10)
# PostgreSQL's bigint, which is what amounts are stored in.
LARGEST_AMOUNT = 2**63 - 1


def decimal_places(currency: str) -> int:
    """How many decimals Stripe's minor unit stands for."""
    if currency in ZERO_DECIMAL_CURRENCIES:
        return 0
    return 3 if currency in THREE_DECIMAL_CURRENCIES else 2


def step(currency: str) -> int:
    """In minor units: of what each amount that Stripe takes is a multiple."""
    return STEPS.get(currency, 1)


@dataclass(frozen=True)
class Money:
    """``amount`` in the currency's minor unit (cents of eur, whole yen); ``currency`` in Stripe's lower case.

    ``str()`` is for people: ``12.34 EUR``, ``1234 JPY``.
    """

    amount: int
    currency: str

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int):
            raise TypeError(f"amount is whole minor units, not {self.amount!r}")
        if not re.fullmatch("[a-z]{3}", self.currency):
            raise ValueError(f"currency is three lower-case letters, not {self.currency!r}")

    def __str__(self) -> str:
        places = decimal_places(self.currency)
        sign = "-" if self.amount < 0 else ""
        whole, part = divmod(abs(self.amount), 10**places)
        digits = f"{whole}.{part:0{places}}" if places else str(whole)
        return f"{sign}{digits} {self.currency.upper()}"


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Share ``total`` minor units by weight so that the parts add up exactly, and none shrinks as the total grows.

    Largest remainders would not do for refunds in several steps: of 3 cents over 6, 6 and 2 each bears one, of 4 the
    third bears none, and the cent it gave is not given back. So each cent goes to whom it is due most (Sainte-Laguë),
    ties to the earlier. A total of all the weights gives each its weight, and no smaller total gives anyone more.

    Raises ``ValueError`` for a negative total or weight, or where there is something to share and nobody to take it.
    """
    if total < 0 or any(weight < 0 for weight in weights):
        raise ValueError("total and weights must not be negative")
    whole = sum(weights)
    if whole == 0:
        if total:
            raise ValueError("nobody to share with")
        return [0] * len(weights)
    # Rounding what is a little less than the total gives the state after most of the cents; the last go one by one.
    surely = max(total - len(weights), 0)
    parts = [(2 * surely * weight + whole) // (2 * whole) for weight in weights]
    for _ in range(total - sum(parts)):
        due_most = 0
        for i, weight in enumerate(weights):
            # weight / (2 * part + 1) compared without dividing.
            if weight * (2 * parts[due_most] + 1) > weights[due_most] * (2 * parts[i] + 1):
                due_most = i
        parts[due_most] += 1
    return parts
