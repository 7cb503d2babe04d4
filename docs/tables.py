"""Writes the tables that are made from code into the documents: ``python docs/tables.py`` (tests check them)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from mixpeek_ray.catalog.catalog import packaged_catalog
from mixpeek_ray.core import errors
from mixpeek_ray.core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def settings_table() -> str:
    """Return every ``MIXPEEK_*`` setting as a Markdown table."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `MIXPEEK_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def models_table() -> str:
    """Return every built-in model as a Markdown table."""
    rows = ["| `model` | task | vectors | tokens | licence | |", "| --- | --- | --- | --- | --- | --- |"]
    for name, card in packaged_catalog().items():
        task = card.task.value.replace("_", " ").replace("multi vector", "multi-vector")
        size = getattr(card.options, "dimensions", "")
        rows.append(f"| `{name}` | {task} | {size} | {card.limits.max_tokens} | {card.licence} | {card.description} |")
    return "\n".join(rows)


def errors_table() -> str:
    """Return every error code as a Markdown table."""
    rows = ["| status | `error.code` | `error.type` | meaning |", "| --- | --- | --- | --- |"]
    for error in sorted(_error_classes(errors.MixpeekError), key=lambda found: (found.status, found.code)):
        meaning = (inspect.getdoc(error) or "").splitlines()[0]
        rows.append(f"| {error.status} | `{error.code}` | {error.error_type} | {meaning} |")
    return "\n".join(rows)


def _error_classes(root: type[errors.MixpeekError]) -> Iterator[type[errors.MixpeekError]]:
    yield root
    for child in root.__subclasses__():
        # Other modules refine errors for themselves; only this one's are answers.
        if child.__module__ == errors.__name__:
            yield from _error_classes(child)


# Document → the generated tables in it, by the name between its markers.
DOCUMENTS = {
    "README.md": {"settings": settings_table, "models": models_table},
    "docs/errors.md": {"errors": errors_table},
}


def rendered(document: str) -> str:
    """Return a document with its tables made anew."""
    text = (ROOT / document).read_text()
    for name, table in DOCUMENTS[document].items():
        begin, end = f"<!-- {name}: made by docs/tables.py -->", f"<!-- end of {name} -->"
        text, count = re.subn(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, begin=begin, end=end, table=table: f"{begin}\n{table()}\n{end}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{document} has {count} places for the table {name!r}, not one")
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        (ROOT / document).write_text(rendered(document))
