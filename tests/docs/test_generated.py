"""The pages made from the code: up to date, and complete."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.db.models import TextChoices

from marketplace import states

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_docs.py"
ALL = [
    states.TransferStatus,
    states.ReversalStatus,
    states.RefundStatus,
    states.OrderStatus,
    states.EventStatus,
]


def generate(script: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *flags]
    return subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own script


def test_the_generated_pages_are_up_to_date() -> None:
    done = generate(SCRIPT, "--check")
    assert done.returncode == 0, done.stderr


def test_a_page_that_is_out_of_date_is_an_error(tmp_path: Path) -> None:
    """The same script, seen from a copy of the project whose page somebody edited."""
    for name in (
        "scripts/generate_docs.py",
        "marketplace/__init__.py",
        "marketplace/states.py",
        "marketplace/roles.py",
        "marketplace/state_picture.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    script = tmp_path / "scripts" / "generate_docs.py"
    assert generate(script).returncode == 0
    page = tmp_path / "docs" / "states.md"
    page.write_text(page.read_text().replace("reversal_pending", "reversing", 1))
    done = generate(script, "--check")
    assert done.returncode == 1
    assert "docs/states.md is not what the code says" in done.stderr


@pytest.mark.parametrize("choices", ALL, ids=lambda choices: choices.__name__)
def test_every_status_stands_in_the_page(choices: type[TextChoices]) -> None:
    page = (ROOT / "docs" / "states.md").read_text()
    for status in choices:
        assert f"| `{status.value}` |" in page


@pytest.mark.parametrize(("old", "new"), states.pairs(states.ALLOWED_TRANSITIONS))
def test_every_step_of_a_transfer_stands_in_diagram_and_picture(old: str, new: str) -> None:
    assert f"    {old} --> {new}" in (ROOT / "docs" / "states.md").read_text()
    assert f"<title>{old} to {new}</title>" in (ROOT / "docs" / "states.svg").read_text()


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    picture = (ROOT / "docs" / "states.svg").read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in picture
    assert "<image" not in picture
