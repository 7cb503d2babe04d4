"""hardening.md's fault 5: a node that holds weights is lost abruptly. A cluster of its own, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(200)
def test_weights_of_a_lost_node_are_made_again_elsewhere(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MIXPEEK_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.lose_a_node", str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"registry_on_head": True, "weights_equal": True, "answers_again": True}
