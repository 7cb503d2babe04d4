"""Late-interaction models: what ColBERT's published code saved, and what sentence-transformers made of it."""

from __future__ import annotations

import string

from mixpeek_ray.catalog.cards import LateInteractionOptions
from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.families.late_interaction import PLACEHOLDER
from mixpeek_ray.families.networks.transformers import Head
from mixpeek_ray.families.saved_model import SavedModel
from mixpeek_ray.families.shared_tokens import shared_tokenizer
from mixpeek_ray.families.tokens import TextTokenizer

# What the published code does where artifact.metadata does not say otherwise.
_QUERY_TOKENS, _DOCUMENT_TOKENS = 32, 180
_QUERY_MARKER, _DOCUMENT_MARKER = "[unused0]", "[unused1]"
# Fewer leave nothing of a text beside the marker and the special tokens.
_LEAST_TOKENS = 4
# Beginnings of texts that tokenizers treat differently behind different characters.
_PROBES = ("fox", "The Fox", "7 foxes", "(fox)")


def published_colbert(saved: SavedModel) -> LateInteractionOptions:
    """Return the options of a checkpoint of ColBERT's own code: a projection among the weights, and its metadata."""
    metadata = saved.settings("artifact.metadata")
    if not metadata.flag("mask_punctuation", default=True) or metadata.flag("attend_to_mask_tokens", default=False):
        raise saved.unsupported("its ColBERT keeps punctuation, or attends to mask tokens")
    return _options(
        saved,
        projection="linear.weight",
        query_tokens=metadata.whole("query_maxlen") or _QUERY_TOKENS,
        document_tokens=metadata.whole("doc_maxlen") or _DOCUMENT_TOKENS,
        markers=(
            metadata.text("query_token_id") or _QUERY_MARKER,
            metadata.text("doc_token_id") or _DOCUMENT_MARKER,
        ),
    )


def projected(saved: SavedModel) -> LateInteractionOptions:
    """Return the options of what ``MultiVectorEncoder`` saved: Transformer, Dense, MultiVectorMask and Normalize."""
    _, dense, mask, normalize = saved.modules
    _check_projection(saved)
    skipped = saved.module(mask)
    if (
        set(skipped.texts("skiplist_words")) != set(string.punctuation)
        or (skipped.texts("skiplist_tasks") or ["document"]) != ["document"]
        or skipped.values.get("keep_only_token_ids")
    ):
        raise saved.unsupported("its MultiVectorMask drops something else than the punctuation of documents")
    if saved.module(normalize).text("module_input_name") != "token_embeddings":
        raise saved.unsupported("it normalises something else than its tokens' vectors")
    expansion = saved.transformer.inner("query_expansion")
    if expansion.text("strategy") != "fixed" or expansion.flag("attend", default=False) or expansion.text("token"):
        raise saved.unsupported("its queries are not padded with mask tokens to a fixed length")
    prompts = saved.overall.inner("prompts")
    tokenizer = shared_tokenizer(saved.source)
    return _options(
        saved,
        projection=f"{dense.folder}/linear.weight",
        query_tokens=expansion.whole("length") or _QUERY_TOKENS,
        document_tokens=saved.transformer.whole("document_length") or saved.max_tokens,
        markers=(
            _marker(saved, tokenizer, prompts.text("query")),
            _marker(saved, tokenizer, prompts.text("document")),
        ),
    )


def _check_projection(saved: SavedModel) -> None:
    module = saved.modules[1]
    dense = saved.module(module)
    if (
        module.folder != "1_Dense"
        or dense.flag("bias", default=True)
        or dense.flag("use_residual", default=False)
        or (dense.text("activation_function") or "").rpartition(".")[2] != "Identity"
        or dense.text("module_input_name") != "token_embeddings"
        or dense.text("module_output_name") not in (None, "token_embeddings")
    ):
        raise saved.unsupported("its Dense module is more than a projection of its tokens' vectors without bias")


def _options(
    saved: SavedModel, *, projection: str, query_tokens: int, document_tokens: int, markers: tuple[str, str]
) -> LateInteractionOptions:
    if not saved.has(Head.NONE):
        raise saved.unsupported(f"transformers has no encoder of the type {saved.config.model_type!a}")
    weight = saved.source.state_dict.get(projection)
    if weight is None or weight.dim() != 2 or weight.shape[1] != saved.size("hidden_size"):
        raise InvalidWeightsError(
            f"The weights hold no matrix {projection!a} from vectors of {saved.size('hidden_size')}: "
            "save the model again."
        )
    most = saved.max_tokens
    if not all(_LEAST_TOKENS <= tokens <= most for tokens in (query_tokens, document_tokens)):
        raise InvalidWeightsError(
            f"Queries of {query_tokens} and documents of {document_tokens} tokens cannot be read: "
            f"both must be {_LEAST_TOKENS} to {most}."
        )
    return LateInteractionOptions(
        dimensions=weight.shape[0],
        query_tokens=query_tokens,
        document_tokens=document_tokens,
        query_marker=markers[0],
        document_marker=markers[1],
    )


def _marker(saved: SavedModel, tokenizer: TextTokenizer, prompt: str | None) -> str:
    """Return the token that ``prompt`` is, if texts read behind it as they do where the family puts that token."""
    if prompt:
        prompted, placed = (tokenizer.encode([head + probe for probe in _PROBES]) for head in (prompt, PLACEHOLDER))
        for token in (prompt, prompt.strip()):
            token_id = tokenizer.id_of(token)
            if token_id is not None and prompted == [[token_id, *ids[1:]] for ids in placed]:
                return token
    raise saved.unsupported("the prompts of its queries and documents are not one token each")
