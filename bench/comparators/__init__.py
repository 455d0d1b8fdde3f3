"""Other programs that do the same work, each in an environment of its own.

What stands in ``sites`` runs there, with nothing of ours on its path.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path

from bench.ground import STATE
from bench.processes import PYTHON, ROOT, ChildFailed

SITES = Path(__file__).resolve().parent / "sites"


def ensure(name: str) -> Path:
    """The ``bin`` folder of the comparator's environment, made from its lock file where it is missing or another."""
    lock = ROOT / "bench" / f"requirements-{name}.lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    folder = STATE / "environments" / name
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run(PYTHON, "-m", "venv", str(folder))
        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--require-hashes", "-r", str(lock)]
        _run(str(folder / "bin" / "python"), *pip)
        stamp.write_text(wanted)
    return folder / "bin"


def version(name: str, package: str) -> str:
    """As the lock file has it."""
    lock = ROOT / "bench" / f"requirements-{name}.lock"
    (line,) = (line for line in lock.read_text().splitlines() if line.startswith(f"{package}=="))
    return line.split("==")[1].split()[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildFailed(f"{' '.join(command)}: {done.stderr[-2000:]}")
