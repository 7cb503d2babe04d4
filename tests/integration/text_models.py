"""The built-in models of the session's platform: tiny ones of the true architectures, and one that is not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mixpeek_ray.catalog.catalog import parse_catalog
from mixpeek_ray.families.build import AnyFamily, build_family
from mixpeek_ray.families.weights import DirectoryWeights

CATALOG = """
models:
  - &dense
    name: tiny-dense
    description: One vector a text.
    family: dense
    source: {hub: tests/none}
    licence: MIT
    aliases: [tiny_dense_v1]
    dimensions: 32
    max_tokens: 64
    pooling: mean
    precision: float32
    prompts: {query: "query {text}"}
  - {<<: *dense, name: absent, aliases: [], source: {path: nowhere}}
  - name: tiny-sparse
    description: One weight a word.
    family: sparse
    source: {hub: tests/none}
    licence: MIT
    dimensions: 182
    max_tokens: 64
    precision: float32
  - name: tiny-colbert
    description: One vector a token.
    family: late_interaction
    source: {hub: tests/none}
    licence: MIT
    dimensions: 16
    query_tokens: 12
    document_tokens: 40
    max_tokens: 64
    precision: float32
  - name: tiny-reranker
    description: One score a pair.
    family: rerank
    source: {hub: tests/none}
    licence: MIT
    max_tokens: 64
    activation: sigmoid
    precision: float32
"""


def provide(models_dir: Path, folders: Mapping[str, Path]) -> None:
    """Put models into the platform's folder of models, by the catalog's names."""
    for name, folder in folders.items():
        staged = models_dir.with_name(f"{name}-staged")
        staged.symlink_to(folder)
        # There from one moment to the next, whoever is looking.
        os.replace(staged, models_dir / name)


def reference(name: str, folder: Path) -> AnyFamily:
    """Return the family that computes a model of the catalog, in this process."""
    return build_family(parse_catalog(CATALOG, file_name="test.yaml")[name], DirectoryWeights(path=folder))
