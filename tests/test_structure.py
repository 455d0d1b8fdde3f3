"""The house rules, as tests: what a reviewer would otherwise have to see each time."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class
from django.db.models import TextChoices

from marketplace import states
from marketplace.admin.base import COLOURS
from tests.structure import status_guard
from tests.structure.sources import ROOT, imported, is_of, python_files, used_names
from veza import settings as program

STATUSES: list[type[TextChoices]] = [
    states.TransferStatus,
    states.ReversalStatus,
    states.RefundStatus,
    states.OrderStatus,
    states.EventStatus,
    states.BulkRetryStatus,
    states.BulkRetryItemStatus,
]
EVERY_STATUS = [pytest.param(status, id=f"{kind.__name__}.{status.name}") for kind in STATUSES for status in kind]

# --- A status changes by transition() only ----------------------------------------------------------------------------


def test_no_status_is_changed_past_transition() -> None:
    found = status_guard.check_tree(
        ROOT,
        ["marketplace", "veza"],
        exempt=[
            "marketplace/simulator",
            "marketplace/models/lifecycle.py",
            # The one statement that says what two transitions would.
            "marketplace/models/confirmation.py",
        ],
    )
    assert not found, "use transition():\n" + "\n".join(map(str, found))


def test_the_guard_sees_the_allowed_place_when_it_is_not_exempt() -> None:
    found = status_guard.check_tree(ROOT, ["marketplace/models"], exempt=[])
    assert {violation.path for violation in found} == {
        "marketplace/models/lifecycle.py",
        "marketplace/models/confirmation.py",
    }


# --- Layers -----------------------------------------------------------------------------------------------------------


def test_imports_only_go_down() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout


def test_every_module_has_its_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract for contract in contracts if contract["id"] == "layers"]
    assert layers["exhaustive"] is True
    placed = set(re.findall(r"\w+", " ".join([*layers["layers"], *layers["exhaustive_ignores"]])))
    present = {path.stem for path in (ROOT / "marketplace").glob("*.py") if path.stem != "__init__"}
    present |= {path.parent.name for path in (ROOT / "marketplace").glob("*/__init__.py")}
    assert present <= placed


def importers(package: str, folders: list[str], *, besides: list[str]) -> set[str]:
    found = set()
    for path in python_files(*folders):
        name = path.relative_to(ROOT).as_posix()
        if any(name.startswith(each) for each in besides):
            continue
        modules = imported(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if any(is_of(module, package) for module in modules):
            found.add(name)
    return found


def test_only_the_gateway_imports_stripe() -> None:
    assert importers("stripe", ["marketplace", "veza"], besides=["marketplace/gateway/"]) == set()
    assert importers("stripe", ["marketplace/gateway"], besides=[])


def test_only_commands_import_the_simulator() -> None:
    besides = ["marketplace/simulator/", "marketplace/management/"]
    assert importers("marketplace.simulator", ["marketplace", "veza"], besides=besides) == set()
    assert importers("marketplace.simulator", ["marketplace/management"], besides=[])


def test_the_simulator_imports_nothing_of_ours() -> None:
    found = set()
    for path in python_files("marketplace/simulator"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        for module in imported(path.read_text(), package):
            ours = is_of(module, "marketplace") and not is_of(module, "marketplace.simulator")
            # `from . import x` names the package itself.
            if (ours and module != "marketplace") or any(is_of(module, name) for name in ("veza", "django", "stripe")):
                found.add((path.name, module))
    assert found == set()


def test_imports_are_found_in_functions_and_relative_ones_too() -> None:
    source = "def f():\n    import stripe.error\nfrom ..models import sales\nfrom . import x"
    assert imported(source, "marketplace.api") == {
        "stripe.error",
        "marketplace.models",
        "marketplace.models.sales",
        "marketplace.api",
        "marketplace.api.x",
    }


# --- Settings ---------------------------------------------------------------------------------------------------------


def template() -> dict[str, tuple[str, str]]:
    """Name -> (default, the comment above it) in `.env.template`."""
    found: dict[str, tuple[str, str]] = {}
    above = ""
    for line in (ROOT / ".env.template").read_text().splitlines():
        if match := re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", line):
            assert match[1] not in found, f"{match[1]} stands twice in .env.template"
            found[match[1]] = (match[2], above)
        above = line.removeprefix("#").strip() if line.startswith("#") else ""
    return found


def test_the_template_lists_every_variable_and_no_other() -> None:
    assert set(template()) == set(program.env.read)


@pytest.mark.parametrize("name", sorted(program.env.read))
def test_the_template_gives_the_default_and_a_line_of_meaning(name: str) -> None:
    default, meaning = template()[name]
    variable = program.env.read[name]
    assert default == variable.default
    assert len(meaning.split()) >= 3, f"{name} has no comment of its own"
    assert not (variable.secret and default), f"{name} is secret: the template must not hold a value"


def test_the_environment_is_read_in_one_place() -> None:
    reading = {
        path.relative_to(ROOT).as_posix()
        for path in python_files("marketplace", "veza")
        if any(is_of(name, "os.environ") or is_of(name, "os.getenv") for name in used_names(path.read_text()))
    }
    # wsgi.py says which settings; database.py stops the server for make, without settings; the demonstration hands its
    # environment on to the programs that it starts.
    allowed = {"veza/settings.py", "veza/wsgi.py", "veza/database.py", "marketplace/demo/stack.py"}
    assert reading <= allowed


# --- Statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_every_status_has_a_label_of_its_own(status: TextChoices) -> None:
    labels = [str(other.label) for other in type(status)]
    assert str(status.label).strip()
    assert labels.count(str(status.label)) == 1


def test_every_status_has_a_colour_in_the_admin() -> None:
    assert {kind: set(COLOURS[kind]) for kind in STATUSES} == {kind: set(kind) for kind in STATUSES}


# --- Tests ------------------------------------------------------------------------------------------------------------

FORBIDDEN_IN_TESTS = ["time.sleep", "pytest.skip", "pytest.importorskip", "pytest.xfail", "unittest.skip"]
FORBIDDEN_IN_TESTS += ["pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail"]


# What only Linux can do is tested on Linux, which is where the whole suite has to run.
ELSEWHERE = 'pytest.mark.skipif(sys.platform != "linux"'
# What takes a right that few have. These tests are slow ones, and have sisters that run everywhere.
WITHOUT_RIGHT = "pytest.mark.skipif(not may_mount()"


def forbidden(source: str) -> set[str]:
    used = used_names(source.replace(ELSEWHERE, "on_linux(True").replace(WITHOUT_RIGHT, "allowed(True"))
    return {name for name in FORBIDDEN_IN_TESTS if any(is_of(each, name) for each in used)}


@pytest.mark.parametrize("path", list(python_files("tests")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_sleeps_or_is_skipped(path: Path) -> None:
    assert forbidden(path.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import time\ntime.sleep(1)", "time.sleep"),
        ("from time import sleep\nsleep(1)", "time.sleep"),
        ("from time import sleep as rest\nrest(1)", "time.sleep"),
        ("import time as t\nt.sleep(1)", "time.sleep"),
        ("@pytest.mark.skip\ndef test_x(): ...", "pytest.mark.skip"),
        ("@pytest.mark.skipif(True, reason='')\ndef test_x(): ...", "pytest.mark.skipif"),
        ("@pytest.mark.xfail\ndef test_x(): ...", "pytest.mark.xfail"),
        ("def test_x():\n    pytest.skip('no')", "pytest.skip"),
    ],
)
def test_sleeping_and_skipping_are_found(source: str, name: str) -> None:
    assert forbidden(source) == {name}


# --- Commands and the lock file ---------------------------------------------------------------------------------------

OUR_COMMANDS = sorted(name for name, app in get_commands().items() if app == "marketplace")


@pytest.mark.parametrize("name", OUR_COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    command = load_command_class("marketplace", name)
    assert len(command.help.split()) >= 4
    for action in command.create_parser("manage.py", name)._actions:
        assert action.help, f"{name} {action.option_strings} has no help"


def test_the_commands_of_the_contract_are_there() -> None:
    expected = {"run_reversal_worker", "run_transfer_retry_worker", "run_stripe_simulator", "seed_demo", "smoke_probe"}
    expected |= {"reconcile"}
    assert expected <= set(OUR_COMMANDS)


def test_the_lock_file_is_made_as_its_header_says() -> None:
    command = (ROOT / "requirements.lock").read_text().splitlines()[1].removeprefix("#").strip()
    assert command in (ROOT / "Makefile").read_text()
