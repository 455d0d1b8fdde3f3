"""The pictures that pages show exist, and each picture taken is shown."""

import re
from pathlib import Path

import pytest

from tests.docs.test_links import PAGES, ROOT

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
TAKEN = sorted((ROOT / "docs" / "screenshots").iterdir())
# The picture is read over a network, and stays in the history of the repository.
LARGEST = 200_000


def shown(page: Path) -> dict[Path, str]:
    """The pictures of a page, with what is said of them to who cannot see them."""
    return {(page.parent / target).resolve(): said for said, target in PICTURE.findall(page.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pictures_of_a_page_exist_and_are_described(page: Path) -> None:
    for picture, said in shown(page).items():
        assert picture.is_file(), f"{page.name} shows {picture.name}, which does not exist"
        assert said, f"{page.name} shows {picture.name} without a description"


@pytest.mark.parametrize("picture", TAKEN, ids=lambda picture: picture.name)
def test_each_picture_that_is_taken_is_shown_and_small(picture: Path) -> None:
    assert picture in {each for page in PAGES for each in shown(page)}, f"no page shows {picture.name}"
    assert picture.stat().st_size < LARGEST


def test_the_script_takes_each_picture() -> None:
    takes = re.findall(r'take\("([\w-]+)"', (ROOT / "scripts" / "screenshots.py").read_text())
    assert sorted(takes) == sorted(picture.stem for picture in TAKEN)
