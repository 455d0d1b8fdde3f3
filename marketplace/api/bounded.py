"""Nothing that is sent to the API is large."""

from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.views import APIView

from marketplace.api.problems import BodyTooLarge

# Python refuses to read numbers of very many digits.
MOST_DIGITS = 19


class Bounded(APIView):
    """Looks at the announced length first; the parsers would read whatever comes."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        length = request.META.get("CONTENT_LENGTH") or "0"
        if (
            not (length.isascii() and length.isdigit() and len(length) < MOST_DIGITS)
            or int(length) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        ):
            raise BodyTooLarge(f"The body is larger than {settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes.")
