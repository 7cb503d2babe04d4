"""Runs every benchmark, each in a process of its own, and leaves with status 1 if a claim of any did not hold.

python -m benchmarks
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("load", "formats", "upload", "deploy", "big_archive", "ingress", "deploy_cycles")


def main() -> None:
    failed = []
    for name in BENCHMARKS:
        print(f"## {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
        print(flush=True)
    if failed:
        sys.exit(f"These did not hold what they claim: {', '.join(failed)}")


if __name__ == "__main__":
    main()
