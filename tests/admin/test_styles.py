"""What our pages ask of the stylesheets is in them: a class that nobody compiled does nothing, in silence."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import unfold
from django.test import Client

from tests.factories import UserFactory
from tests.structure.sources import ROOT

UNFOLD = Path(unfold.__file__).parent / "static" / "unfold" / "css" / "styles.css"
OURS = ROOT / "marketplace" / "static" / "marketplace"
# Not for stylesheets: unfold's script draws these; and a name by which children know their parent.
HOOKS = {"chart", "group/button"}


def classes_of(sheet: str) -> set[str]:
    """Names in selectors; Tailwind's have signs in them, escaped."""
    return {re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"\.((?:\\.|[\w-])+)", sheet)}


def used_in(text: str) -> Iterator[str]:
    """Names in ``class="…"``; those that are put together when the page is made are left out."""
    for names in re.findall(r'class="([^"]*)"', re.sub(r"{%.*?%}", " ", text)):
        yield from (name for name in re.sub(r"{.*?}+", "\0", names).split() if "\0" not in name)


def sources() -> list[Path]:
    return [
        *(ROOT / "templates" / "admin").rglob("*.html"),
        *(ROOT / "templates" / "unfold").rglob("*.html"),
        *(ROOT / "marketplace" / "admin").glob("*.py"),
    ]


def test_each_class_that_a_page_uses_is_in_a_stylesheet() -> None:
    known = classes_of(UNFOLD.read_text()).union(*(classes_of(sheet.read_text()) for sheet in OURS.glob("*.css")))

    missing = {(name, path.name) for path in sources() for name in used_in(path.read_text()) if name not in known}

    assert {each for each in missing if each[0] not in HOOKS} == set()


def test_what_it_looks_for_is_found() -> None:
    assert list(used_in('<a class="px-1.5 {% if a %}is-b{% endif %} why-{{ c }} d">')) == ["px-1.5", "is-b", "d"]
    assert classes_of(r".px-1\.5,.dark .md\:flex:hover{a:b}") == {"px-1.5", "dark", "md:flex"}
    assert "tabular-nums" not in classes_of(UNFOLD.read_text()), "unfold has it by now: take it out of admin.css"


@pytest.mark.django_db
def test_each_page_has_our_stylesheet() -> None:
    client = Client()
    client.force_login(UserFactory(superuser=True))

    for address in ("/admin/", "/admin/marketplace/sellertransfer/"):
        assert "marketplace/admin.css" in client.get(address).content.decode()
