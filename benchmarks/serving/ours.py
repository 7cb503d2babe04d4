"""This platform's own side: `POST /v1/embeddings` as `mixpeek-ray up` serves it, its settings the default ones.

Only the catalog is the benchmark's: entries for the model, the first of which is loaded from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.local_platform import behind_haproxy
from benchmarks.serving.endpoint import Endpoint, Protocol
from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import read_catalog

NAME = "this platform"
MODEL_NAME = "all-minilm-l6-v2"
_ENTRY = {
    "name": MODEL_NAME,
    "description": "Dense embeddings of English sentences.",
    "family": "dense",
    "licence": "Apache-2.0",
    "dimensions": 384,
    # What the model's own sentence_bert_config.json says, and the peers' libraries with it.
    "max_tokens": 256,
    "pooling": "mean",
}
# The same model where nothing is rounded to bfloat16.
FLOAT32_NAME = f"{MODEL_NAME}-float32"


def protocol(model_name: str) -> Protocol:
    """Return how a model of the catalog is asked for the vector of a text."""
    return Protocol(
        path="/v1/embeddings",
        ask=lambda text: {"model": model_name, "input": text},
        vector=lambda answer: answer["data"][0]["embedding"],
    )


PROTOCOL = protocol(MODEL_NAME)


def write_catalog(folder: Path, model: Path) -> Path:
    """Write a catalog of the model whose weights lie in the directory ``model``; return its path."""
    path = folder / "models.yaml"
    entry = _ENTRY | {"source": {"path": str(model)}}
    exact = entry | {"name": FLOAT32_NAME, "precision": "float32"}
    path.write_text(yaml.safe_dump({"models": [entry, exact]}), encoding="utf-8")
    return path


def card(catalog: Path) -> ModelCard:
    """Return the model's card in a catalog that ``write_catalog`` wrote."""
    return read_catalog(catalog).find(MODEL_NAME)


@contextmanager
def running(folder: Path, catalog: Path) -> Iterator[Endpoint]:
    """Run a platform, its home in ``folder``, until the block is left."""
    with behind_haproxy(folder, MIXPEEK_MODEL_CATALOG=str(catalog), MIXPEEK_WARM_MODELS=MODEL_NAME) as platform:
        headers = [("Authorization", platform.authorization)]
        yield Endpoint(name=NAME, port=platform.port, protocol=PROTOCOL, headers=headers)
