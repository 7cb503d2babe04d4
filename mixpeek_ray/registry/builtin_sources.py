"""Where a built-in model's weights come from: a directory, a Hugging Face hub, or anything that fsspec reads."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mixpeek_ray.catalog.cards import DirectorySource, HubSource, ModelCard, UrlSource
from mixpeek_ray.catalog.catalog import local_weights
from mixpeek_ray.core.errors import MixpeekError, StorageUnavailableError, WeightsUnavailableError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.disk import disk_full_as_error
from mixpeek_ray.registry.builtin_files import CONFIG, needed
from mixpeek_ray.registry.builtin_hub import cached_folder, download, hub_problem
from mixpeek_ray.store.base import BlobStore
from mixpeek_ray.store.factory import open_store

# What a store's stream hands over at a time.
_COPY_BYTES = 1 * MIB


def local_folder(card: ModelCard, models_dir: Path | None) -> Path | None:
    """Return the directory on this machine that the weights are used from, or None if they have to be fetched.

    Raises ``WeightsUnavailableError`` when there should be one and is none, or it holds no model.
    """
    folder = local_weights(_with_plain_path(card), models_dir)
    if folder is not None and not (folder / CONFIG).is_file():
        raise unavailable(card, f"its directory holds no {CONFIG}")
    return folder


def fetched(card: ModelCard, models_dir: Path | None, work_dir: Path) -> Path:
    """Return a directory with the model's files: where they lie, or a copy in ``work_dir`` or the hub's cache.

    Blocks. Raises ``WeightsUnavailableError``, which says how to provide them, and ``DiskFullError``.
    """
    local = local_folder(card, models_dir)
    if local is not None:
        return local
    match card.source:
        case HubSource() as source:
            return _from_hub(card, source)
        case UrlSource() as source:
            return _from_store(card, _store(card, source), work_dir)
        case DirectorySource():
            raise AssertionError  # local_folder found it, or raised


def probe(card: ModelCard) -> str | None:
    """Return why the weights of a model that lies elsewhere cannot be had, or None. Blocks on the network."""
    try:
        match card.source:
            case HubSource() as source if cached_folder(source) is None:
                problem = hub_problem(source)
                return None if problem is None else unavailable(card, problem).message
            case UrlSource() as source if not _store(card, source).exists(CONFIG):
                return _without_config(card).message
    except StorageUnavailableError:
        return _store_is_down(card).message
    except WeightsUnavailableError as error:
        return error.message
    return None


def unavailable(card: ModelCard, problem: str) -> WeightsUnavailableError:
    """Return the error for weights that cannot be had because of ``problem``, with every way to provide them."""
    return WeightsUnavailableError(
        f"The weights of {card.name!a} cannot be had: {problem}. Make its source in the catalog reachable, or put its "
        f"Hugging Face directory as {card.name} into the folder that MIXPEEK_MODELS_DIR names.",
        model=card.name,
    )


def _from_hub(card: ModelCard, source: HubSource) -> Path:
    # Asked first: the client itself tries for half a minute before it says that nobody answers.
    problem = hub_problem(source)
    if problem is not None:
        cached = cached_folder(source)
        if cached is None:
            raise unavailable(card, problem)
        return cached
    try:
        with disk_full_as_error():
            return download(source)
    except OSError as error:
        raise unavailable(card, f"its download from the hub failed ({type(error).__name__})") from None


def _from_store(card: ModelCard, store: BlobStore, work_dir: Path) -> Path:
    folder = work_dir / "source"
    try:
        names = needed(blob.key for blob in store.list(""))
        if CONFIG not in names:
            raise _without_config(card)
        for name in names:
            # Plain names in a folder or in one below it: `needed` lets no other through.
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.open_read(name) as stream, disk_full_as_error(), target.open("xb") as file:
                shutil.copyfileobj(stream, file, _COPY_BYTES)
    except (StorageUnavailableError, FileNotFoundError):
        raise _store_is_down(card) from None
    return folder


def _store(card: ModelCard, source: UrlSource) -> BlobStore:
    try:
        return open_store(source.url)
    except MixpeekError:
        # The message that comes with it names the store of uploads.
        raise unavailable(
            card, "no storage that is known here has a URL like its source.url (is the fsspec package installed?)"
        ) from None


def _with_plain_path(card: ModelCard) -> ModelCard:
    """Return the card with a ``file://`` URL as the directory that it is: nothing has to be fetched."""
    if not isinstance(card.source, UrlSource) or not card.source.url.startswith("file://"):
        return card
    return replace(card, source=DirectorySource(path=Path(unquote(urlsplit(card.source.url).path))))


def _without_config(card: ModelCard) -> WeightsUnavailableError:
    return unavailable(card, f"there is no {CONFIG} at its source.url")


def _store_is_down(card: ModelCard) -> WeightsUnavailableError:
    return unavailable(card, "the storage of its source.url does not answer, or refuses the credentials that it gets")
