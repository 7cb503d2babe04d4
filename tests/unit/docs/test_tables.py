"""The documents' generated tables say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", ["README.md", "docs/errors.md"])
def test_generated_tables_are_current(document: str) -> None:
    current = (ROOT / document).read_text()
    assert tables().rendered(document) == current, f"{document} is stale: run `python docs/tables.py`"


def test_every_document_with_a_generated_table_is_checked() -> None:
    assert set(tables().DOCUMENTS) == {"README.md", "docs/errors.md"}
