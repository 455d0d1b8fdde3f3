"""Stripe quotes a part of the API key in some messages, addresses may carry passwords: neither is stored or shown."""

import re

# Wherever they stand, also right behind a letter: in a repr() the letter may be the n of a newline. The last kind lets
# a buyer's browser confirm a payment. vzt_ begins our own API's tokens.
SECRETS = re.compile(
    r"((?:sk|rk|pk)_(?:test|live|org)_|whsec_|vzt_|(?:pi|seti)_[A-Za-z0-9]+_secret_)[A-Za-z0-9+/=_*-]+"
)
# One of these is in each: to look for them takes a tenth of the time, and few texts have any.
MARKS = ("k_test_", "k_live_", "k_org_", "whsec_", "vzt_", "_secret_")
URL_PASSWORDS = re.compile(r"(://[^/:@\s]*):[^@/\s]+@")


def redact(text: str) -> str:
    """The text without Stripe's secrets and without passwords in addresses."""
    if any(mark in text for mark in MARKS):
        text = SECRETS.sub(r"\1***", text)
    return URL_PASSWORDS.sub(r"\1:***@", text) if "://" in text else text
