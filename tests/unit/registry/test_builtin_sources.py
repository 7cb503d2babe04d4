"""Where built-in models' weights come from: directories, stores, and a hub over a real socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, HubServer

from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.catalog.catalog import parse_catalog
from mixpeek_ray.core.errors import WeightsUnavailableError
from mixpeek_ray.registry.builtin_sources import fetched, local_folder, probe
from mixpeek_ray.store.factory import open_store

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "1_Pooling/config.json": b"{ }",
    "model.safetensors": b"weights",
}
NOT_NEEDED = {"README.md": b"text", "modeling.py": b"code", "pytorch_model.bin": b"weights", "onnx/model.onnx": b"x"}


def card(**source: str) -> ModelCard:
    entry = {
        "name": "tiny",
        "family": "rerank",
        "activation": "none",
        "source": source,
        "licence": "MIT",
        "description": "A model.",
        "max_tokens": 64,
    }
    return parse_catalog(json.dumps({"models": [entry]}), file_name="test.yaml")["tiny"]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refusal(source: ModelCard, tmp_path: Path, models_dir: Path | None = None) -> str:
    with pytest.raises(WeightsUnavailableError) as raised:
        fetched(source, models_dir, tmp_path / "work")
    assert raised.value.details == {"model": "tiny"}
    assert "MIXPEEK_MODELS_DIR" in raised.value.message
    assert str(tmp_path) not in raised.value.message
    return raised.value.message


# Directories


def test_directories_are_used_where_they_are(tmp_path: Path) -> None:
    own, offered = write(tmp_path / "own", FILES), write(tmp_path / "models" / "tiny", FILES)
    for source in (card(path=str(own)), card(url=own.as_uri())):
        assert fetched(source, None, tmp_path / "work") == own
        # What the site offers comes first, wherever the catalog points.
        assert fetched(source, tmp_path / "models", tmp_path / "work") == offered
    assert fetched(card(hub="owner/name"), tmp_path / "models", tmp_path / "work") == offered
    assert not (tmp_path / "work").exists()


def test_a_directory_that_is_not_there_or_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (card(path=str(tmp_path / "none")), card(url=(tmp_path / "none").as_uri())):
        refusal(source, tmp_path)
    assert "config.json" in refusal(card(path=str(tmp_path / "empty")), tmp_path)
    assert not (tmp_path / "none").exists()
    assert local_folder(card(hub="owner/name"), tmp_path) is None


# Stores


@pytest.fixture
def url() -> str:
    address = f"memory://{os.urandom(8).hex()}/models/tiny"
    store = open_store(address)
    for name, content in {**FILES, **NOT_NEEDED}.items():
        store.put(name, content)
    return address


def test_a_store_gives_what_is_needed(url: str, tmp_path: Path) -> None:
    assert probe(card(url=url)) is None
    work = tmp_path / "work"
    work.mkdir()
    assert contents(fetched(card(url=url), None, work)) == FILES


def test_a_store_without_the_model(url: str, tmp_path: Path) -> None:
    open_store(url).delete("config.json")
    assert "config.json" in refusal(card(url=url), tmp_path)
    assert "config.json" in str(probe(card(url=url)))


def test_a_kind_of_store_that_nobody_knows(tmp_path: Path) -> None:
    source = card(url="nowhere://user:secret@bucket/model")
    for message in (refusal(source, tmp_path), str(probe(source))):
        assert "source.url" in message
        assert "secret" not in message
        assert "MIXPEEK_STORE_URL" not in message


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert "does not answer" in refusal(card(url="s3://bucket/tiny"), tmp_path)


# Hubs: its client reads HF_ENDPOINT when it is imported, so each test asks from a process of its own

PROGRAM = """
import json, sys, tempfile
from pathlib import Path
from mixpeek_ray.catalog.catalog import parse_catalog
from mixpeek_ray.core.errors import WeightsUnavailableError
from mixpeek_ray.registry.builtin_sources import fetched, probe
card = parse_catalog(sys.argv[1], file_name="test.yaml")["tiny"]
found = {"probe": probe(card)} if sys.argv[2] == "probe" else {}
try:
    folder = fetched(card, None, Path(tempfile.mkdtemp()))
    found["files"] = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
except WeightsUnavailableError as error:
    found["error"] = error.message
print(json.dumps(found))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer(
        {
            "owner/name": write(tmp_path / "repository", {**FILES, **NOT_NEEDED}),
            "owner/old": write(
                tmp_path / "old", {"config.json": b"{}", "pytorch_model.bin": b"weights", "a.py": b"code"}
            ),
        }
    )
    yield server
    server.stop()


def ask(hub: HubServer, tmp_path: Path, **variables: str) -> dict[str, Any]:
    return ask_url(hub.url, tmp_path, **variables)


def ask_url(url: str, tmp_path: Path, *, first: str = "probe", **variables: str) -> dict[str, Any]:
    source = {"hub": variables.pop("repository", "owner/name")}
    if "revision" in variables:
        source["revision"] = variables.pop("revision")
    entry = {
        "name": "tiny", "family": "rerank", "activation": "none", "source": source, "licence": "MIT",
        "description": "A model.", "max_tokens": 64,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps({"models": [entry]}), first],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_hub_gives_what_is_needed_once(hub: HubServer, tmp_path: Path) -> None:
    found = ask(hub, tmp_path)
    assert (found["probe"], found["files"]) == (None, sorted(FILES))
    assert sorted(hub.sent) == sorted(FILES)
    assert ask(hub, tmp_path)["files"] == sorted(FILES)
    assert len(hub.sent) == len(FILES)


def test_a_pinned_commit(hub: HubServer, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, revision=COMMIT)["files"] == sorted(FILES)
    other = ask(hub, tmp_path, revision=COMMIT[::-1])
    assert "revision" in other["error"]
    assert other["probe"] == other["error"]


def test_weights_in_the_old_form_only(hub: HubServer, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, repository="owner/old")["files"] == ["config.json", "pytorch_model.bin"]


def test_a_repository_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    found = ask(hub, tmp_path, repository="owner/other")
    assert "owner/other" in found["error"]
    assert "HF_TOKEN" in found["error"]
    assert "MIXPEEK_MODELS_DIR" in found["error"]


def test_without_the_hub_its_cache_serves(hub: HubServer, tmp_path: Path) -> None:
    ask(hub, tmp_path)
    assert ask(hub, tmp_path, HF_HUB_OFFLINE="1")["files"] == sorted(FILES)
    hub.stop()
    found = ask(hub, tmp_path)
    assert (found["probe"], found["files"]) == (None, sorted(FILES))


def test_without_hub_and_cache(hub: HubServer, tmp_path: Path) -> None:
    offline = ask(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline["error"]
    hub.stop()
    found = ask(hub, tmp_path)
    assert "cannot be reached" in found["error"]
    assert found["probe"] == found["error"]


def test_a_hub_that_takes_the_question_and_says_nothing(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = ask_url(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, first="fetch")
    assert "does not answer" in found["error"] or "cannot be reached" in found["error"]
