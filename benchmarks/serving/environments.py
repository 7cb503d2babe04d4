"""A virtual environment for each peer, outside the repository, made once.

    python -m benchmarks.serving.environments

They lie in MIXPEEK_BENCH_VENVS, by default `mixpeek-ray/bench` in the user's cache folder: 6.2 GB in all. What is in
one is `requirements/<peer>.txt` beside this file, every package at its version; a changed file makes it again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

_REQUIREMENTS = Path(__file__).parent / "requirements"
# The requirements that an environment was made from, in its folder.
_STAMP = "installed.txt"


def environment(peer: str) -> Path:
    """Return the folder of the peer's commands, after making its environment if need be (minutes)."""
    folder = _root() / peer
    wanted = (_REQUIREMENTS / f"{peer}.txt").read_text(encoding="utf-8")
    stamp = folder / _STAMP
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        _make(folder, _REQUIREMENTS / f"{peer}.txt")
        stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin"


def _root() -> Path:
    if given := os.environ.get("MIXPEEK_BENCH_VENVS"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixpeek-ray" / "bench"


def _make(folder: Path, requirements: Path) -> None:
    print(f"Making the environment of {folder.name}, which takes some minutes.", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = ("-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--requirement", requirements)
    subprocess.run([folder / "bin" / "python", *install], check=True)


if __name__ == "__main__":
    for file in sorted(_REQUIREMENTS.glob("*.txt")):
        print(environment(file.stem).parent)
