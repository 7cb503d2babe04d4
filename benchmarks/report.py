"""What every benchmark shares: the machine it ran on, a table of its figures, and what they must hold to."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A bound that a measured figure must keep."""

    text: str
    measured: float
    bound: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """Tell whether the figure keeps the bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def machine() -> str:
    """Return one line that says what the figures were measured on."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "safetensors"))
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory_gb:.0f} GiB; Python {platform.python_version()}, {packages}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def median(values: Sequence[float]) -> float:
    """Return the median of repeated measurements."""
    return statistics.median(values)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a Markdown table, ready for the README."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def conclude(claims: Sequence[Claim]) -> None:
    """Print every claim with its figure and leave with status 1 if one does not hold."""
    for claim in claims:
        sign = ">=" if claim.at_least else "<="
        print(
            f"{'ok  ' if claim.holds else 'FAIL'} {claim.text}: {claim.measured:.3g} (must be {sign} {claim.bound:g})"
        )
    print(machine())
    if not all(claim.holds for claim in claims):
        sys.exit(1)
