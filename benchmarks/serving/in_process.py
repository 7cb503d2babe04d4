"""What a library does without a server, on one thread: the ceiling of every server that computes with it.

    python -m benchmarks.serving.in_process LIBRARY ARGUMENTS MODEL CATALOG

A process of its own; arguments and answers are JSON. LIBRARY is `sentence-transformers`, which sorts what it is given
by length and computes 32 together, or `family`, this platform's own, given the same. `reference` makes vectors instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.ours import card
from benchmarks.serving.servers.minilm import MAX_BATCH
from benchmarks.serving.workloads import WORKLOADS

SENTENCE_TRANSFORMERS, FAMILY = "sentence-transformers", "family"
# Texts given at once: enough to sort, few enough to look at the clock between.
_AT_ONCE = 128
_TIMEOUT_S = 300

Embed = Callable[[Sequence[str]], Any]


def sentences_per_s(
    library: str, workloads: Sequence[str], seconds: float, *, model: Path, catalog: Path
) -> Mapping[str, float]:
    """Return what ``library`` does of each workload, measured for ``seconds`` each in a process of its own."""
    return dict(json.loads(_run(library, [seconds, *workloads], model, catalog)))


def reference(texts: Sequence[str], *, model: Path, catalog: Path) -> Sequence[Sequence[float]]:
    """Return the vectors of sentence-transformers, in float32."""
    return list(json.loads(_run("reference", texts, model, catalog)))


def _run(library: str, arguments: Sequence[Any], model: Path, catalog: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", __name__, library, json.dumps(arguments), model, catalog],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    )
    return done.stdout


def _sentence_transformers(model: Path) -> Embed:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu")
    return lambda texts: encoder.encode(list(texts), batch_size=MAX_BATCH, show_progress_bar=False)


def _family(model: Path, catalog: Path) -> Embed:
    from mixpeek_ray.families.base import Role, Truncate
    from mixpeek_ray.families.build import build_family
    from mixpeek_ray.families.dense import DenseFamily
    from mixpeek_ray.families.weights import DirectoryWeights

    family = build_family(card(catalog), DirectoryWeights(path=model))
    assert isinstance(family, DenseFamily)

    def embed(texts: Sequence[str]) -> None:
        items = family.pre(texts, role=Role.DOCUMENT, truncate=Truncate.END)
        items = sorted(items, key=lambda item: item.length, reverse=True)
        for start in range(0, len(items), MAX_BATCH):
            batch = items[start : start + MAX_BATCH]
            family.post(family.core(batch), batch)

    return embed


def _measure(embed: Embed, texts: Sequence[str], seconds: float) -> float:
    """Return the sentences/s of calls with many texts each, after one that does not count."""
    given = [texts[number % len(texts)] for number in range(_AT_ONCE)]
    embed(given)
    calls, start_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - start_s) < seconds:
        embed(given)
        calls += 1
    return calls * _AT_ONCE / elapsed_s


def main() -> None:
    import torch

    library, arguments, model, catalog = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    if library == "reference":
        print(json.dumps(_sentence_transformers(model)(arguments).tolist()))
        return
    seconds, *workloads = arguments
    embed = _family(model, catalog) if library == FAMILY else _sentence_transformers(model)
    print(json.dumps({name: _measure(embed, WORKLOADS[name], seconds) for name in workloads}))


if __name__ == "__main__":
    main()
