"""Deployed custom models at their endpoints: what the pool of replicas promises, each with its goal beside it.

    python -m benchmarks.pool [--part cold | many | steady | listing] [--quick]

Platforms of their own, as `mixpeek-ray up` starts them. The first run makes MLServer's environment
(`benchmarks/serving/environments.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.pool import cold, listing, many, steady
from benchmarks.report import Claim, conclude

PARTS: dict[str, Callable[[], list[Claim]]] = {
    "cold": lambda: cold.run(large=20, small=100),
    "many": lambda: many.run(models=200, seconds=20),
    "steady": lambda: steady.run(seconds=5, rounds=3),
    "listing": lambda: listing.run(seconds=5, upload_mb=2_000, deploy_mb=1_000),
}
# For development: whether it works, not how well.
QUICK: dict[str, Callable[[], list[Claim]]] = {
    "cold": lambda: cold.run(large=2, small=4),
    "many": lambda: many.run(models=4, seconds=2),
    "steady": lambda: steady.run(seconds=1, rounds=1),
    "listing": lambda: listing.run(seconds=1, upload_mb=100, deploy_mb=50),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--quick", action="store_true", help="few calls to few models: for development")
    chosen = parser.parse_args()
    parts = QUICK if chosen.quick else PARTS
    claims: list[Claim] = []
    for name in [chosen.part] if chosen.part else parts:
        claims += parts[name]()
        print(flush=True)
    conclude(claims)


if __name__ == "__main__":
    main()
