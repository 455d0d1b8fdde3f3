"""Reading bodies strictly: what is not exactly as documented is refused by name, never guessed at."""

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

from marketplace.money import LARGEST_AMOUNT

LONGEST_SHOWN = 60


def shown(value: Any) -> str:
    """A value of the caller's, short enough for a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


class StrictJSONParser(JSONParser):
    """JSON nested past Python's stack is malformed too, not our fault."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError:
            raise ParseError("JSON parse error - nested too deeply") from None


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields that it does not know: a misspelt ``amount`` must not become a full refund."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            expected = ", ".join(self.fields)
            unknown = [name for name in data if name not in self.fields]
            if unknown:
                raise serializers.ValidationError(
                    {str(name)[:LONGEST_SHOWN]: [f"unknown field: expected only {expected}"] for name in unknown}
                )
        return super().to_internal_value(data)


class WholeField(serializers.IntegerField):
    """A whole number from 1 on, written as one: no text, no float, no boolean."""

    default_error_messages = {"invalid": "{value}: expected a whole number from 1 to {largest}"}

    def __init__(self, *, largest: int, **kwargs: Any) -> None:
        self.largest = largest
        super().__init__(min_value=1, max_value=largest, **kwargs)

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int) or not 1 <= data <= self.largest:
            self.fail("invalid", value=shown(data), largest=self.largest)
        return data


class AmountField(WholeField):
    """Minor units."""

    default_error_messages = {
        "invalid": "{value}: expected a whole number from 1 to {largest}, in the currency's minor unit"
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(largest=LARGEST_AMOUNT, **kwargs)


class TextField(serializers.CharField):
    """Text, written as such: DRF's own would take a number too."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError([f"{shown(data)}: expected text"])
        return super().to_internal_value(data)
