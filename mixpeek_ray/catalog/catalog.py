"""The catalog: its file, read and checked, and models found by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError as PydanticError

from mixpeek_ray.catalog.cards import DirectorySource, ModelCard
from mixpeek_ray.catalog.schema import CatalogFile
from mixpeek_ray.core.errors import InvalidCatalogError, ModelNotFoundError, WeightsUnavailableError
from mixpeek_ray.core.settings import get_settings

# The file in `configs/`; the package holds a link to it, which a wheel replaces with the file itself.
_PACKAGED = "models.yaml"


class Catalog(Mapping[str, ModelCard]):
    """Model cards by name, in the file's order."""

    def __init__(self, cards: Sequence[ModelCard]) -> None:
        self._cards = {card.name: card for card in cards}
        self._known: dict[str, ModelCard] = {}
        for card in cards:
            for name in (card.name, *card.aliases):
                taken = self._known.setdefault(name, card)
                if taken is not card:
                    raise InvalidCatalogError(
                        f"Model {card.name!a}: the name {name!a} is taken by {taken.name!a}: "
                        "names and aliases must be unique."
                    )

    def __getitem__(self, name: str) -> ModelCard:
        return self._cards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def find(self, name: str) -> ModelCard:
        """Return the card whose name or alias is ``name``. Raises ``ModelNotFoundError``."""
        try:
            return self._known[name]
        except KeyError:
            shown = ascii(name if len(name) <= 80 else name[:77] + "...")
            raise ModelNotFoundError(
                f"There is no built-in model {shown}: GET /v1/models lists those there are.", field="model"
            ) from None


def read_catalog(path: Path) -> Catalog:
    """Return the catalog in the file at ``path``.

    Raises ``InvalidCatalogError`` naming the file, the model, the field, and what is expected there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCatalogError(
            f"The model catalog {path.name} cannot be read ({type(error).__name__}): "
            "MIXPEEK_MODEL_CATALOG must name a YAML file."
        ) from None
    return parse_catalog(text, file_name=path.name)


def parse_catalog(text: str, *, file_name: str) -> Catalog:
    """Return the catalog that ``text`` describes. Raises ``InvalidCatalogError``, which names ``file_name``."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise InvalidCatalogError(f"{file_name} is no YAML{place}: compare configs/models.yaml.") from None
    try:
        cards = [entry.card() for entry in CatalogFile.model_validate(data).models]
    except PydanticError as error:
        raise InvalidCatalogError(f"{file_name}: {_first_problem(error, data)}") from None
    try:
        return Catalog(cards)
    except InvalidCatalogError as error:
        raise InvalidCatalogError(f"{file_name}: {error}") from None


@cache
def get_catalog() -> Catalog:
    """Return this process's catalog, read once: MIXPEEK_MODEL_CATALOG, or the packaged one."""
    path = get_settings().model_catalog
    return packaged_catalog() if path is None else read_catalog(path)


def packaged_catalog() -> Catalog:
    """Return the catalog that comes with the platform."""
    text = resources.files(__package__ or "").joinpath(_PACKAGED).read_text(encoding="utf-8")
    return parse_catalog(text, file_name=_PACKAGED)


def local_weights(card: ModelCard, models_dir: Path | None) -> Path | None:
    """Return the directory on this machine that holds the card's weights, or None if they are elsewhere.

    ``models_dir/<name>`` comes before the card's own source. Raises ``WeightsUnavailableError`` when the card names a
    directory that is not there.
    """
    if models_dir is not None and (offered := models_dir.expanduser() / card.name).is_dir():
        return offered
    if not isinstance(card.source, DirectorySource):
        return None
    if not card.source.path.is_dir():
        raise WeightsUnavailableError(
            f"The weights of {card.name!a} are not there: put its Hugging Face directory where the catalog's "
            f"source.path says, or as {card.name} into the folder that MIXPEEK_MODELS_DIR names.",
            model=card.name,
        )
    return card.source.path


def _first_problem(error: PydanticError, data: Any) -> str:
    problem = error.errors(include_url=False)[0]
    where = list(problem["loc"])
    if where[:1] == ["models"] and len(where) > 1 and isinstance(where[1], int):
        # What follows the index is the family that the discriminator chose; a rule between fields names them itself.
        field = ".".join(str(part) for part in where[3:])
        subject = f"model {_name_of(data, where[1])}" + (f", field {field!a}" if field else "")
    else:
        field = ".".join(str(part) for part in where) or "models"
        subject = f"field {field!a}"
    expected = problem["msg"].removeprefix("Value error, ")
    found, value = "", problem["input"]
    if problem["type"] != "missing" and isinstance(value, str | int | float):
        found = f", not {ascii(value)[:80]}"
    return f"{subject}: {expected}{found}."


def _name_of(data: Any, index: int) -> str:
    entry = data["models"][index]
    name = entry.get("name") if isinstance(entry, dict) else None
    return ascii(name) if isinstance(name, str) else f"number {index + 1}"
