"""The README's quickstart, executed as written, line by line, in a fresh copy of the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import START_TIMEOUT_S, Platform, eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(sys.executable).parent.parent

pytestmark = pytest.mark.timeout(480)


def quickstart_blocks() -> list[str]:
    """Return the shell blocks of the README's quickstart, in order."""
    section = re.search(r"^## Quickstart$(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project's files with this environment as its ``.venv``."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path / "checkout"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    # Set up already, so that `make setup` finds nothing to do and leaves the environment of the tests alone.
    (copy / ".venv").mkdir()
    for entry in VENV.iterdir():
        if entry.name != ".installed":
            (copy / ".venv" / entry.name).symlink_to(entry)
    (copy / ".venv" / ".installed").touch()
    return copy


@pytest.fixture
def first_terminal(checkout: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], int]]:
    """The quickstart's first block, running in a terminal of its own, on ports that are free here."""
    port = free_port()
    prepared = Platform.prepare(checkout / ".mixpeek")
    environment = {name: value for name, value in prepared.environment.items() if name != "MIXPEEK_HOME"}
    environment["MIXPEEK_PORT"] = str(port)
    # What the environment of the tests has on its path must not help the newcomer.
    environment["PATH"] = ":".join(folder for folder in environment["PATH"].split(":") if Path(folder) != VENV / "bin")
    environment.pop("VIRTUAL_ENV", None)
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", quickstart_blocks()[0]],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process, environment, port
    process.terminate()
    process.wait(60)


def test_the_quickstart_works_as_written(
    checkout: Path, first_terminal: tuple[subprocess.Popen[str], dict[str, str], int]
) -> None:
    process, environment, port = first_terminal

    def is_up() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return (checkout / ".mixpeek" / "env").exists()

    eventually(is_up, timeout_s=START_TIMEOUT_S, what="the platform")
    environment.pop("MIXPEEK_PORT")
    script = "\n".join(quickstart_blocks()[1:]).replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}")
    second_terminal = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = second_terminal.stdout
    assert second_terminal.returncode == 0, printed + second_terminal.stderr
    assert '"model_id":"my-embedding-model_1_0_0"' in printed
    assert '"deployment_status":"deployed"' in printed
    assert '"total":1' in printed
    assert '"tensor_count":2' in printed
    assert "2 workers projected to 256 dimensions" in printed
    assert "was deleted" in printed
    eventually(lambda: process.poll() is not None, timeout_s=60, what="the first terminal's end after `make stop`")
