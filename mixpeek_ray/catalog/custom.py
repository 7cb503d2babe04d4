"""Which of the catalog's families a custom model belongs to, from what an inspection found in its archive."""

from __future__ import annotations

from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.core.records import ArchiveContents, ModelKind, ModelState

_MODULES = "modules.json"
# What sentence-transformers and PyLate call the folders of a model's modules: `1_Pooling`, `2_Dense`.
_POOLING, _SPLADE, _DENSE = "_Pooling", "_SpladePooling", "_Dense"
_COLBERT = "HF_ColBERT"


def custom_family(state: ModelState) -> Family | None:
    """Return the family that computes a custom model; None for one that the text routes do not answer for.

    Goes by the names of the archive's files and of the model's class: enough to list a model. What serves it reads
    the settings themselves, and has the last word.
    """
    contents = state.contents or state.manifest.contents
    if contents is None or contents.kind is not ModelKind.HUGGINGFACE:
        return None
    architecture = contents.architecture or ""
    folders, names = _names(contents)
    if _MODULES in names and (family := _family_of_modules(folders)) is not None:
        return family
    if architecture.endswith("ForSequenceClassification"):
        return Family.RERANK
    if _MODULES in names:
        return None
    if architecture == _COLBERT:
        return Family.LATE_INTERACTION
    if architecture.endswith("ForMaskedLM"):
        return Family.SPARSE
    return Family.DENSE if architecture.endswith("Model") or not architecture else None


def _family_of_modules(folders: set[str]) -> Family | None:
    if any(folder.endswith(_SPLADE) for folder in folders):
        return Family.SPARSE
    if any(folder.endswith(_POOLING) for folder in folders):
        return Family.DENSE
    # Projected, and never pooled.
    return Family.LATE_INTERACTION if any(folder.endswith(_DENSE) for folder in folders) else None


def _names(contents: ArchiveContents) -> tuple[set[str], set[str]]:
    """Return the names of the folders and of the files: an archive may hold its model below a folder."""
    paths = [file.path.split("/") for file in contents.files]
    return {folder for *folders, _ in paths for folder in folders}, {path[-1] for path in paths}
