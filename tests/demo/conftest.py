"""The commands as a person runs them, against a Stripe that is really there."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command


@pytest.fixture
def run(transactional_db: None, unblocked_database: None, gateway: Any) -> Callable[..., str]:
    """Run a command; what it printed. Its worker's threads use the database too."""

    def call(*arguments: str) -> str:
        printed = io.StringIO()
        call_command(*arguments, stdout=printed)
        return printed.getvalue()

    return call
