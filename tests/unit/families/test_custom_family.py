"""What a custom model is listed as, against directories that the reference libraries saved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.catalog.custom import custom_family
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentStatus,
    FileInfo,
    ModelFormat,
    ModelKind,
    ModelManifest,
    ModelState,
    ResourceRequest,
)
from mixpeek_ray.formats.huggingface import HuggingFaceFormat

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def _state(folder):
    files = tuple(
        FileInfo(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    opened = HuggingFaceFormat().open(folder, files)
    contents = ArchiveContents(
        files=files,
        tensor_count=1,
        parameter_count=1,
        dtypes=("float32",),
        weights_bytes=1,
        kind=opened.kind,
        architecture=opened.architecture,
    )
    manifest = ModelManifest(
        namespace_id="ns_a",
        model_id="m_1_0_0",
        name="m",
        version="1.0.0",
        model_format=ModelFormat.HUGGINGFACE,
        framework=None,
        task_type=None,
        resources=ResourceRequest(),
        archive_sha256="0" * 64,
        archive_bytes=1,
        created_at=NOW,
        contents=contents,
    )
    return ModelState(manifest=manifest, status=DeploymentStatus.DEPLOYED, updated_at=NOW)


@pytest.mark.parametrize(
    ("library_class", "head", "family"),
    [
        (SentenceTransformer, "encoder", Family.DENSE),
        # A dense model may have been trained from, and name, another head's class.
        (SentenceTransformer, "masked_lm", Family.DENSE),
        (SentenceTransformer, "classifier", Family.DENSE),
        (SparseEncoder, "masked_lm", Family.SPARSE),
        (MultiVectorEncoder, "encoder", Family.LATE_INTERACTION),
        (CrossEncoder, "classifier", Family.RERANK),
    ],
)
@pytest.mark.parametrize("parent", ["", "my-model"])
def test_models_of_sentence_transformers(tiny_model, tmp_path, library_class, head, family, parent):
    library_class(str(tiny_model("bert", head)), device="cpu").save_pretrained(str(tmp_path / parent))
    assert custom_family(_state(tmp_path)) is family


@pytest.mark.parametrize(
    ("head", "family"),
    [("encoder", Family.DENSE), ("masked_lm", Family.SPARSE), ("classifier", Family.RERANK)],
)
@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
def test_models_of_transformers(tiny_model, architecture, head, family):
    assert custom_family(_state(tiny_model(architecture, head))) is family


def test_what_is_none(tiny_model, tmp_path):
    shutil.copytree(tiny_model("bert"), tmp_path, dirs_exist_ok=True)
    state = _state(tmp_path)
    contents = state.manifest.contents
    for other in (
        replace(contents, architecture="LlamaForCausalLM"),
        replace(contents, architecture=None, files=(FileInfo(path="modules.json", size_bytes=1),)),
        replace(contents, kind=ModelKind.ONNX),
        None,
    ):
        assert custom_family(replace(state, manifest=replace(state.manifest, contents=other))) is None
    colbert = replace(contents, architecture="HF_ColBERT")
    assert custom_family(replace(state, contents=colbert)) is Family.LATE_INTERACTION
