"""A card for a custom model, from its own files: what sentence-transformers would make of the same directory."""

from __future__ import annotations

from mixpeek_ray.catalog.cards import (
    Activation,
    Compute,
    DenseOptions,
    DirectorySource,
    FamilyOptions,
    Limits,
    ModelCard,
    Pooling,
    Precision,
    Prompts,
    RerankOptions,
    SparseOptions,
)
from mixpeek_ray.catalog.schema import LimitsEntry
from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.records import ResourceRequest
from mixpeek_ray.families.describe_colbert import projected, published_colbert
from mixpeek_ray.families.networks.transformers import Head
from mixpeek_ray.families.saved_model import SavedModel, Settings
from mixpeek_ray.families.weights import WeightsSource
from mixpeek_ray.formats.tensors import shown

# What SPDX calls a licence that nobody stated.
_NO_LICENCE = "NOASSERTION"
_POOLINGS = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}
# Before version 6, sentence-transformers wrote a flag for each pooling.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def describe(source: WeightsSource, name: str) -> ModelCard:
    """Return the card of the custom model in ``source``, which its users call ``name``.

    A directory with modules.json is what sentence-transformers saved. Without one, ``…ForSequenceClassification`` with
    one label is a reranker, ``HF_ColBERT`` the published ColBERT's kind, ``…ForMaskedLM`` SPLADE, and an encoder alone
    is pooled by mean. Its resources are the defaults; its products are computed in float32, as its author's are, over
    the node's one copy of the weights.

    Raises ``ValidationError`` for a model that the text routes do not answer for, and ``InvalidWeightsError`` for files
    that are missing, or hold what they may not.
    """
    saved = SavedModel(name=name, source=source)
    options = _described_modules(saved) if saved.modules else _described_alone(saved)
    saved.check_tables()
    defaults, max_tokens = LimitsEntry(), saved.max_tokens
    return ModelCard(
        name=name,
        source=DirectorySource(path=source.path),
        licence=_NO_LICENCE,
        description="A custom model.",
        aliases=(),
        options=options,
        limits=Limits(
            max_tokens=max_tokens,
            max_inputs=defaults.max_inputs,
            max_batch_tokens=max(defaults.max_batch_tokens, max_tokens),
        ),
        resources=ResourceRequest(),
        # Hundreds of them share a node's memory, and the first call to one should not wait for a copy.
        compute=Compute(precision=Precision.FLOAT32, packs_at_once=False),
    )


def _described_alone(saved: SavedModel) -> FamilyOptions:
    architecture = saved.architecture
    if architecture.endswith("ForSequenceClassification"):
        return _rerank(saved)
    if architecture == "HF_ColBERT":
        return published_colbert(saved)
    if architecture.endswith("ForMaskedLM"):
        return _sparse(saved)
    # Decoders, speech and images have an `…Model` too, but no masked language model.
    if (architecture.endswith("Model") or not architecture) and saved.has(Head.MASKED_LANGUAGE_MODEL):
        return DenseOptions(dimensions=saved.size("hidden_size"), pooling=Pooling.MEAN, normalize=False)
    raise saved.unsupported(f"its class is {shown(architecture)}")


def _described_modules(saved: SavedModel) -> FamilyOptions:
    names = tuple((module.class_name or "").rpartition(".")[2] for module in saved.modules)
    if saved.modules[0].folder:
        raise saved.unsupported("its Transformer lies in a folder: save it again with a current sentence-transformers")
    _check_transformer(saved)
    match names:
        case ("Transformer",) if saved.architecture.endswith("ForSequenceClassification"):
            return _rerank(saved)
        case ("Transformer", "Pooling") | ("Transformer", "Pooling", "Normalize"):
            return _dense(saved, normalize=len(names) == 3)
        case ("Transformer" | "MLMTransformer", "SpladePooling"):
            _check_splade(saved, saved.module(saved.modules[1]))
            return _sparse(saved)
        case ("Transformer", "Dense", "MultiVectorMask", "Normalize"):
            return projected(saved)
    raise saved.unsupported(f"its modules are {shown(', '.join(names))}")


def _check_transformer(saved: SavedModel) -> None:
    """Raise ``ValidationError`` where the Transformer module treats texts in a way that is not reproduced here."""
    settings = saved.transformer
    if settings.inner("processing_kwargs").values:
        raise saved.unsupported("it has processing_kwargs of its own")
    if "message" in settings.inner("modality_config").values:
        raise saved.unsupported("it puts texts into a chat template")
    lowers = settings.flag("do_lower_case", default=False)
    if lowers and not saved.settings("tokenizer_config.json").flag("do_lower_case", default=False):
        raise saved.unsupported("do_lower_case is set beside a tokenizer that tells cases apart")


def _dense(saved: SavedModel, *, normalize: bool) -> DenseOptions:
    if not saved.has(Head.NONE):
        raise saved.unsupported(f"transformers has no encoder of the type {shown(saved.config.model_type)}")
    if normalize and saved.module(saved.modules[2]).text("module_input_name") not in (None, "sentence_embedding"):
        raise saved.unsupported("it normalises something else than its vectors")
    lengths = [saved.transformer.whole(name) for name in ("query_length", "document_length")]
    if any(lengths) or saved.overall.whole("truncate_dim") is not None:
        raise saved.unsupported("it has a length for queries or documents, or a truncate_dim")
    pooling, prompts = saved.module(saved.modules[1]), _prompts(saved)
    if prompts != Prompts() and not pooling.flag("include_prompt", default=True):
        raise saved.unsupported("its Pooling leaves out the prompt")
    return DenseOptions(
        dimensions=saved.size("hidden_size"), pooling=_pooling(saved, pooling), normalize=normalize, prompts=prompts
    )


def _pooling(saved: SavedModel, settings: Settings) -> Pooling:
    modes = settings.values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if settings.flag(flag, default=False)] or ["mean"]
    if isinstance(modes, str):
        modes = [modes]
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in list(_POOLINGS):
        raise saved.unsupported(f"it pools by {shown(modes)}")
    return _POOLINGS[modes[0]]


def _prompts(saved: SavedModel) -> Prompts:
    """Return what ``encode_query`` and ``encode_document`` put before a text."""
    prompts = saved.overall.inner("prompts")
    query, document = prompts.text("query"), prompts.text("document")
    for prompt in (query, document):
        if prompt and ("{text}" in prompt or "{instruction}" in prompt):
            raise saved.unsupported("its prompts hold {text} or {instruction}, which stand for something else here")
    return Prompts(query=query + "{text}" if query else None, document=document + "{text}" if document else None)


def _check_splade(saved: SavedModel, settings: Settings) -> None:
    strategy = settings.text("pooling_strategy") or "max"
    activation = settings.text("activation_function") or "relu"
    if (strategy, activation) != ("max", "relu"):
        raise saved.unsupported(f"its SpladePooling takes the {shown(strategy)} of {shown(activation)}")


def _sparse(saved: SavedModel) -> SparseOptions:
    if not saved.has(Head.MASKED_LANGUAGE_MODEL):
        raise saved.unsupported(f"transformers has no masked language model of the type {saved.config.model_type!a}")
    if _prompts(saved) != Prompts():
        raise saved.unsupported("sparse models take no prompts here")
    return SparseOptions(dimensions=saved.size("vocab_size"))


def _rerank(saved: SavedModel) -> RerankOptions:
    if not saved.has(Head.CLASSIFIER):
        raise saved.unsupported(f"transformers has no classifier of the type {saved.config.model_type!a}")
    if saved.size("num_labels") != 1:
        raise saved.unsupported(f"it has {saved.size('num_labels')} labels, where a reranker has one")
    default = saved.overall.text("default_prompt_name")
    if default is not None and saved.overall.inner("prompts").text(default):
        raise saved.unsupported("rerankers take no prompts here")
    return RerankOptions(activation=_activation(saved))


def _activation(saved: SavedModel) -> Activation:
    """Return what ``CrossEncoder.predict`` does to the logit: where releases since version 1 keep it, newest first."""
    config = saved.settings("config.json")
    places = (
        saved.overall.text("activation_fn"),
        config.inner("sentence_transformers").text("activation_fn"),
        config.text("sbert_ce_default_activation_function"),
    )
    # Like sentence-transformers, which takes a class from nowhere else.
    named = next((place for place in places if place is not None and place.startswith("torch.")), None)
    match named.rpartition(".")[2] if named is not None else "Sigmoid":
        case "Sigmoid":
            return Activation.SIGMOID
        case "Identity":
            return Activation.NONE
    raise InvalidWeightsError(f"The activation {shown(named)} is neither Sigmoid nor Identity, which rerankers have.")
