"""docs/operations.md names every setting, every log line and every metric that it should."""

import re
from pathlib import Path

from veza import settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_has_its_group() -> None:
    (table,) = re.findall(r"^## Settings\n.+?(\| group .+?)\n\n", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table)) == set(settings.env.read)


def test_every_metric_named_exists() -> None:
    code = (ROOT / "marketplace" / "metrics.py").read_text() + (ROOT / "marketplace" / "monitoring.py").read_text()
    known = set(re.findall(r'"(veza_\w+)"', code))
    for page in ("operations.md", "runbook.md"):
        assert set(re.findall(r"\bveza_\w+", (ROOT / "docs" / page).read_text())) <= known


def test_every_log_line_named_exists() -> None:
    (table,) = re.findall(r"^## Logs\n.+?(\| event .+?)\n\n", PAGE, flags=re.MULTILINE | re.DOTALL)
    code = "".join(path.read_text() for path in (ROOT / "marketplace").rglob("*.py"))
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert f'"{name}"' in code
