"""Each error code in plain words: what happened, and what unblocks it. The runbook says the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from marketplace.gateway.contract import InsufficientFunds, NotFound
from marketplace.models import GIVE_BACK_UNDECIDED, SellerTransfer
from marketplace.services import outcomes, reversal_settling

BY_ITSELF = "Nothing is needed: the next attempt comes by itself."


@dataclass(frozen=True)
class Text:
    """Two sentences."""

    cause: str
    unblocks: str


OF_CODES: Mapping[str, Text] = {
    outcomes.CODES[NotFound]: Text(
        "Stripe has no transfer with this id for our key.",
        "The right key in STRIPE_SECRET_KEY (its account, test or live), then Retry.",
    ),
    "missing_transfer_id": Text(
        "A reversal is owed, but the row has no Stripe transfer id (tr_…), so nothing can be sent.",
        "Find the transfer in Stripe's dashboard, enter its id, then Retry.",
    ),
    reversal_settling.PARTLY_REVERSED_ELSEWHERE: Text(
        "Somebody else reversed a part of the transfer, and less is left at Stripe than is owed.",
        "Decide whether theirs was meant for the same refund. If not, Retry takes what is left.",
    ),
    "amount_differs": Text(
        "The transfer at Stripe has another amount than our row.",
        "A developer has to find out whether this tr_… is really the row's.",
    ),
    "conflicting_facts": Text(
        "An object with our operation id is at Stripe with another amount or currency than our row.",
        "A developer has to look: a retry changes nothing while the facts differ.",
    ),
    reversal_settling.RETRIES_EXHAUSTED: Text(
        "All retries are spent, and Stripe answered to everyone else meanwhile: the trouble is this row's, or its"
        " seller's.",
        "Read the last answer, mend its cause, then Retry.",
    ),
    outcomes.CODES[InsufficientFunds]: Text(
        "The seller's Stripe balance does not cover what is owed.",
        "Money on the seller's balance: a sale or a top-up. It is tried again by itself when money comes.",
    ),
    "pending_at_stripe": Text(
        "Stripe has taken the reversal and waits for the seller's balance itself.",
        "Nothing is needed: we read it every hour until Stripe is done with it.",
    ),
    "denied": Text(
        "Stripe refused our key or its permissions, and the worker stopped.",
        "A valid STRIPE_SECRET_KEY with the permissions of docs/stripe-setup.md; then start the worker.",
    ),
    "busy": Text("Stripe was working on this object or this key, so nothing ran.", BY_ITSELF),
    "rate_limited": Text("Stripe limited the rate of our requests, so nothing ran and nothing was spent.", BY_ITSELF),
    "postponed": Text("We did not ask Stripe, to spare it or for lack of time; nothing was sent or spent.", BY_ITSELF),
    "server_error": Text(
        "Stripe answered with an error of its own (500); it may have happened or not.",
        "Nothing is needed: the next attempt looks at Stripe first, and sends only what it does not find.",
    ),
    "unknown": Text(
        "Stripe gave no usable answer; it may have happened or not.",
        "Nothing is needed: the next attempt bears the same idempotency key, so it cannot happen twice.",
    ),
    "unexpected_error": Text(
        "An error of our own broke the attempt off; it may have happened at Stripe or not.",
        "The next attempt bears the same idempotency key. Report the traceback (unexpected_error in the logs).",
    ),
    GIVE_BACK_UNDECIDED: Text(
        "The refund failed after the seller had given the money back; whether the seller is paid again is to be"
        " decided.",
        "Retry pays the seller again; Decline leaves the money with the platform.",
    ),
}
# Where sending means something else by it.
OF_CODES_SENDING: Mapping[str, Text] = {
    outcomes.CODES[NotFound]: Text(
        "Stripe has no such account of the seller's for our key.",
        "The right key in STRIPE_SECRET_KEY (its account, test or live), or the seller's right account; then Retry.",
    ),
    outcomes.CODES[InsufficientFunds]: Text(
        "The platform's own Stripe balance does not cover the transfer.",
        "Funds on the platform's balance; the next attempt comes by itself.",
    ),
}


def of_code(code: str, leg: str) -> Text:
    """``leg`` is of ``SellerTransfer.Leg``. A code that is not ours is Stripe's own, and a plain no."""
    if leg == SellerTransfer.Leg.SENDING and code in OF_CODES_SENDING:
        return OF_CODES_SENDING[code]
    return OF_CODES.get(code) or Text(
        f"Stripe refused it: {code}.",
        "Read Stripe's message and follow the request id into the dashboard's logs; mend the cause, then Retry.",
    )
