#!/usr/bin/env python
"""Django's command-line utility for this project."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "veza.settings")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        # A setting that makes no sense is the operator's to mend: one sentence, no traceback.
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
