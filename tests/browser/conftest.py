"""A real Chromium against the real pages. What it asks of any other host than this machine fails the test."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, Page, sync_playwright

from tests.api.conftest import VIEWS
from tests.factories import UserFactory

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert found, "no Chromium: install one, or name it in CHROMIUM"
    # Playwright runs an event loop in this thread, which Django would take for asynchronous code.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield opened
        opened.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def live(live_server: Any) -> str:
    url: str = live_server.url
    assert url.startswith(("http://127.0.0.1:", "http://localhost:"))
    return url.replace("localhost", "127.0.0.1")


@pytest.fixture
def page(browser: Browser, live: str) -> Iterator[Page]:
    """A page that complains, at the end, of requests to elsewhere and of errors in its console."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened = context.new_page()
    elsewhere: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda r: None if r.url.startswith((live, "data:", "blob:")) else elsewhere.append(r.url))
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: complaints.append(str(e)))
    opened.on("response", lambda r: complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    yield opened
    context.close()
    assert elsewhere == []
    assert complaints == []


def sign_in(page: Page, live: str, *permissions: str) -> None:
    be(page, live, UserFactory(staff=True, permissions=[*VIEWS, *permissions]))


def be(page: Page, live: str, user: User) -> None:
    """Signed in without its form, which test_journeys.py fills in."""
    client = Client()
    client.force_login(user)
    name = settings.SESSION_COOKIE_NAME
    page.context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": live}])
