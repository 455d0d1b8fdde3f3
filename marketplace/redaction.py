"""Stripe quotes a part of the API key in some messages, addresses may carry passwords: neither is stored or shown."""

import re

# Wherever they stand, also right behind a letter: in a repr() the letter may be the n of a newline. The last kind lets
# a buyer's browser confirm a payment. vzt_ begins our own API's tokens.
SECRETS = re.compile(
    r"((?:sk|rk|pk)_(?:test|live|org)_|whsec_|vzt_|(?:pi|seti)_[A-Za-z0-9]+_secret_)[A-Za-z0-9+/=_*-]+"
)
URL_PASSWORDS = re.compile(r"(://[^/:@\s]*):[^@/\s]+@")


def redact(text: str) -> str:
    """The text without Stripe's secrets and without passwords in addresses."""
    return URL_PASSWORDS.sub(r"\1:***@", SECRETS.sub(r"\1***", text))
