"""Several programs of one fresh checkout start at the same time: `make demo` does that."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure.sources import ROOT
from veza.env import local_secret_key

# Says that it is ready, and goes on when its standard input ends.
ASKING = """
import sys
from pathlib import Path
from veza.env import local_secret_key

print("ready", flush=True)
sys.stdin.read()
print(local_secret_key(Path(sys.argv[1])), oct((Path(sys.argv[1]) / "secret_key").stat().st_mode & 0o777))
"""


def test_processes_that_start_together_agree_on_one_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    state = tmp_path / "state"
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "error", "-c", ASKING, str(state)],
            cwd=ROOT,
            # Whatever a shell's own habit: the key is readable by its owner only.
            preexec_fn=lambda: os.umask(0),  # noqa: PLW1509 - no thread of ours runs
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    told = [process.communicate(timeout=30)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert told[0] == told[1] == told[2]
    assert told[0][1] == "0o600"
    assert [path.name for path in state.iterdir()] == ["secret_key"]


def test_a_key_that_another_program_made_meanwhile_is_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = secrets.token_urlsafe
    others: list[str] = []

    def interrupted(size: int) -> str:
        monkeypatch.setattr(secrets, "token_urlsafe", made)
        others.append(local_secret_key(tmp_path))
        return made(size)

    monkeypatch.setattr(secrets, "token_urlsafe", interrupted)
    assert [local_secret_key(tmp_path)] == others
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


@pytest.mark.parametrize("left", ["", "\n", "short"])
def test_a_damaged_key_is_named_and_not_shown(tmp_path: Path, left: str) -> None:
    (tmp_path / "secret_key").write_text(left)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"ENV_FILE": os.devnull, "VEZA_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", "check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: SECRET_KEY=")
    assert done.stderr.count("\n") == 1
    assert "short" not in done.stderr
