"""Mutated archives give documented refusals within limits, and write nothing outside of their folder.

Each case goes the whole way that an upload goes. ``FUZZ_CASES`` sets how many cases a mutation makes (``make fuzz``:
10,000), ``FUZZ_SEED`` which; a case that fails names its own seed, with which it can be made again.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz_memory import measured
from fuzz_mutations import mutate_archive, mutate_weights
from fuzz_seeds import Seed, build_seeds, build_tar

from mixpeek_ray.core.errors import ArchiveRefusedError, MixpeekError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats import sandbox
from mixpeek_ray.formats.inspect import inspect_archive

CASES = int(os.environ.get("FUZZ_CASES", "300"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
# hardening.md: an answer within 5 s, memory grows by less than 256 MB.
MAX_SECONDS = 5.0
MAX_BYTES = 256 * MIB
# 25 ms a case, on a machine that has other work to do.
pytestmark = [
    pytest.mark.timeout(60 + CASES // 4),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit"),
]


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    return list(build_seeds().values())


@pytest.fixture
def jail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in which nothing may change but ``work``: a case's way out would lead into it."""
    for name in ("work", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def sandbox_growth(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each sandboxed call adds the bytes that it took."""
    taken = [0]

    def run_measured(function: Callable[..., Any], *arguments: Any, **limits: Any) -> Any:
        result, grown = sandbox.run_limited(measured, function, *arguments, **limits)
        taken.append(grown)
        if isinstance(result, MixpeekError):
            raise result
        return result

    monkeypatch.setattr("mixpeek_ray.formats.inspect.run_limited", run_measured)
    sandbox.warm_up()
    return taken


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def everything_in(jail: Path) -> list[Path]:
    return sorted(jail.rglob("*"))


def refusal_of(archive: bytes, seed: Seed, work_dir: Path) -> ArchiveRefusedError | None:
    try:
        inspect_archive(io.BytesIO(archive), seed.model_format, work_dir)
    except ArchiveRefusedError as refusal:
        return refusal
    return None


@pytest.mark.parametrize("mutate", [mutate_archive, mutate_weights])
def test_mutated_archives(
    mutate: Callable[[Seed, Random], bytes],
    seeds: list[Seed],
    jail: Path,
    sandbox_growth: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, untouched = peak_bytes(), everything_in(jail)
    answers: Counter[str] = Counter()
    slowest = 0.0
    for case in range(CASES):
        rng = Random(f"{SEED}:{case}")
        seed = rng.choice(seeds)
        archive = mutate(seed, rng)
        started = time.monotonic()
        refusal = refusal_of(archive, seed, jail / "work")
        answers[refusal.code if refusal else "accepted"] += 1
        message = refusal.message if refusal else ""
        assert message.isascii(), f"case {SEED}:{case}"
        assert str(jail) not in message, f"case {SEED}:{case}"
        slowest = max(slowest, time.monotonic() - started)
        assert slowest < MAX_SECONDS, f"case {SEED}:{case}"
        assert everything_in(jail) == untouched, f"case {SEED}:{case}"
    grown, grown_in_sandbox = peak_bytes() - before, max(sandbox_growth)
    # Not asserted: a parser's surprise ends in a refusal too, but somebody should look at it.
    surprises = [r.getMessage().strip().rpartition("\n")[2] for r in caplog.records if r.levelno >= logging.WARNING]
    print(
        f"\n{mutate.__name__}: {CASES} cases, slowest {slowest:.2f} s, memory +{grown // MIB} MiB, in the sandbox "
        f"+{grown_in_sandbox // MIB} MiB, surprises {surprises}, {dict(answers.most_common())}"
    )
    assert grown < MAX_BYTES
    assert grown_in_sandbox < MAX_BYTES
    assert len(answers) > 3  # or the mutations reach nothing


def test_the_seeds_are_accepted(seeds: list[Seed], jail: Path) -> None:
    for seed in seeds:
        archive = gzip.compress(build_tar(seed.files))
        inspect_archive(io.BytesIO(archive), seed.model_format, jail / "work")
