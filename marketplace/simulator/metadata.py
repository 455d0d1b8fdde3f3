"""Metadata as Stripe changes it: given keys are set, an empty value unsets one, an empty whole unsets all."""

from __future__ import annotations

from typing import Any

from . import errors

KEYS_MAX = 50


def merged(old: dict[str, str], given: Any) -> dict[str, str]:
    if given is None:
        return old
    if given == "":
        return {}
    made = dict(old)
    for key, value in given.items():
        if value == "":
            made.pop(key, None)
        else:
            made[key] = value
    if len(made) > KEYS_MAX:
        raise errors.invalid(
            f"Metadata can have at most {KEYS_MAX} keys: this object would have {len(made)}.",
            param="metadata",
        )
    return made


def previous(old: dict[str, str], new: dict[str, str]) -> dict[str, str | None]:
    """The changed keys with what they were, None for one that is new."""
    return {key: old.get(key) for key in [*old, *(set(new) - set(old))] if old.get(key) != new.get(key)}
