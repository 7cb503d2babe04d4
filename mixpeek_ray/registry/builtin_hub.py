"""Built-in models' weights from a Hugging Face hub, by way of its client's own cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mixpeek_ray.catalog.cards import HubSource
from mixpeek_ray.registry.builtin_files import CONFIG, PICKLED, SAFETENSORS, SMALL_FILES

# A hub that is there answers a question about one file within a second; one that is not shall not hold up a caller.
_ANSWER_S = 5.0
# What a loader reads whole: a cache without one of them has settings only.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def hub_problem(source: HubSource) -> str | None:
    """Return why the hub cannot be asked for the repository, or None. Blocks for ``_ANSWER_S`` at most."""
    # The client's own limit counts for each of a hub's addresses anew, and never for finding them.
    asker = ThreadPoolExecutor(1, thread_name_prefix="hub")
    try:
        return asker.submit(_problem, source).result(timeout=_ANSWER_S)
    except TimeoutError:
        return f"the hub does not answer within {_ANSWER_S:g} s"
    finally:
        asker.shutdown(wait=False)


def _problem(source: HubSource) -> str | None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = f"{source.repository!a}"
    try:
        get_hf_file_metadata(
            hf_hub_url(source.repository, CONFIG, revision=source.revision, endpoint=constants.ENDPOINT),
            timeout=_ANSWER_S,
        )
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold it"
    except GatedRepoError:
        return f"the hub gives {repository} only to those who accepted its terms: set HF_TOKEN to the token of one"
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return f"the hub has no {repository} in that revision, or shows it only to others: check both, and HF_TOKEN"
    except HfHubHTTPError as error:
        return f"the hub answered {error.response.status_code} for {repository}"
    except (_transport_error(), OSError) as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def cached_folder(source: HubSource) -> Path | None:
    """Return the folder of the hub's cache on this machine that holds settings and weights, or None."""
    from huggingface_hub import try_to_load_from_cache

    def find(name: str) -> str | None:
        found = try_to_load_from_cache(source.repository, name, revision=source.revision)
        return found if isinstance(found, str) else None

    config = find(CONFIG)
    return Path(config).parent if config is not None and any(map(find, _WEIGHTS)) else None


def download(source: HubSource) -> Path:
    """Return the folder of the hub's cache with the repository's needed files, fetched where they are not there yet.

    Raises ``OSError``, its own errors among them, when the hub breaks off or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(source.repository, revision=source.revision, allow_patterns=list(patterns)))

    # They would fill the log of the worker that runs this.
    disable_progress_bars()
    # A module's own weights are small in either form; a model's are fetched once.
    in_modules = tuple(f"[0-9]*_*/{name}" for name in (*SAFETENSORS, *PICKLED))
    try:
        folder = fetch((*SMALL_FILES, *SAFETENSORS, *in_modules))
        if not any(folder.glob("model*.safetensors")):
            folder = fetch(PICKLED)
    except _transport_error() as error:
        raise OSError(f"the download broke off ({type(error).__name__})") from None
    return folder


def _transport_error() -> type[Exception]:
    """Return the root of the errors of the HTTP library that the hub's client uses; it has changed that before."""
    from huggingface_hub import errors

    root: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # imported there, not offered
    return root
