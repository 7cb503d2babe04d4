"""The first call to a deployed model that the replica never saw: BERT-large and MiniLM."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.local_platform import behind_haproxy
from benchmarks.pool.models import Models, make_bert_large, make_fine_tune, packed, weights_bytes
from benchmarks.report import MB, Claim, median, print_table
from benchmarks.serving.workloads import SENTENCE

# Weights of models that were undeployed a moment ago are still in the object store.
_ROOM = 4
_SPARE_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One model's first calls."""

    cold_s: float
    # The call right after it.
    warm_s: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The first calls to several models of one size."""

    name: str
    weights_bytes: int
    samples: Sequence[Sample]
    goal_s: float

    @property
    def p99_s(self) -> float:
        """Of the first calls; of fewer than a hundred the slowest."""
        ordered = sorted(sample.cold_s for sample in self.samples)
        return ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]


def run(*, large: int, small: int) -> list[Claim]:
    """Measure ``large`` BERT-larges and ``small`` MiniLMs, print, and return what must hold."""
    with tempfile.TemporaryDirectory(prefix="mixpeek-bench-") as name:
        folder = Path(name)
        first = _measure(folder, "BERT-large", make_bert_large(folder / "bert-large"), large, goal_s=0.2)
        second = _measure(folder, "MiniLM", make_fine_tune(folder / "minilm", 0), small, goal_s=0.05)
    found = [first, second]
    print_table(
        ["first call to a model", "weights", "calls", "median", "p99", "goal", "p99 over goal", "next call, median"],
        [_row(figures) for figures in found],
    )
    return [
        Claim(
            text=f"{figures.name}: first call, p99 in ms",
            measured=figures.p99_s * 1e3,
            bound=figures.goal_s * 1e3,
            at_least=False,
        )
        for figures in found
    ]


def _measure(folder: Path, name: str, model: Path, count: int, *, goal_s: float) -> Figures:
    size = weights_bytes(model)
    home = folder / f"{name}-platform"
    home.mkdir()
    store = _ROOM * size + _SPARE_BYTES
    with (
        packed(model) as archive,
        behind_haproxy(home, MIXPEEK_OBJECT_STORE_BYTES=str(store)) as platform,
        Models.on(platform) as models,
    ):
        samples = [_sample(models, archive, number) for number in range(count + 1)]
    shutil.rmtree(home)
    # The first starts the replica and imports what it computes with.
    return Figures(name=name, weights_bytes=size, samples=samples[1:], goal_s=goal_s)


def _sample(models: Models, archive: Path, number: int) -> Sample:
    """Deploy the same bytes under another name, ask twice, and let the model go."""
    model = models.upload(archive, number)
    models.deploy(model)
    os.sync()
    sample = Sample(cold_s=models.ask(model, SENTENCE), warm_s=models.ask(model, SENTENCE))
    models.undeploy(model)
    return sample


def _row(figures: Figures) -> list[str]:
    cold = median([sample.cold_s for sample in figures.samples])
    warm = median([sample.warm_s for sample in figures.samples])
    return [
        figures.name,
        f"{figures.weights_bytes / MB:.0f} MB",
        str(len(figures.samples)),
        f"{cold * 1e3:.0f} ms",
        f"{figures.p99_s * 1e3:.0f} ms",
        f"{figures.goal_s * 1e3:.0f} ms",
        f"{figures.p99_s / figures.goal_s:.2f}x",
        f"{warm * 1e3:.0f} ms",
    ]
