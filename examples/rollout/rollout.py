"""A safe rollout in six steps: ``python examples/rollout/rollout.py stable.tar.gz candidate.tar.gz``.

The archives hold two versions of a Hugging Face embedding model. Needs a running platform, and MIXPEEK_API_URL,
MIXPEEK_API_KEY and NAMESPACE_ID in the environment.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import httpx

NAMESPACE = os.environ["NAMESPACE_ID"]
NAME = "my-model"
STABLE, CANDIDATE = f"{NAME}_1_0_0", f"{NAME}_1_1_0"
MODELS = f"/v1/namespaces/{NAMESPACE}/models"
ALIAS = f"/v1/namespaces/{NAMESPACE}/aliases/{NAME}/production"


def upload_and_deploy(client: httpx.Client, archive: Path, version: str) -> None:
    """Make one version ready to answer requests."""
    form = {"name": NAME, "version": version, "model_format": "huggingface", "memory_gb": "0.1"}
    with archive.open("rb") as file:
        model_id = client.post(MODELS, data=form, files={"file": file}).raise_for_status().json()["model_id"]
    client.post(f"{MODELS}/{model_id}/deploy").raise_for_status()


def point(client: httpx.Client, targets: dict[str, int]) -> None:
    """Point the alias to these versions, by weight."""
    client.put(ALIAS, json={"targets": targets}).raise_for_status()


def met(client: httpx.Client, users: int = 50) -> Counter[str]:
    """Return which version answered how many users; each user always meets the same one."""
    body = {"model": f"{NAMESPACE}/{NAME}@production", "input": "a text"}
    found: Counter[str] = Counter()
    for user in range(users):
        answer = client.post("/v1/embeddings", json=body, headers={"X-Mixpeek-Sticky": f"user-{user}"})
        found[answer.raise_for_status().headers["X-Mixpeek-Model"]] += 1
    return found


def main(stable: Path, candidate: Path) -> None:
    """Roll out, find fault, roll back."""
    headers = {"Authorization": f"Bearer {os.environ['MIXPEEK_API_KEY']}"}
    with httpx.Client(base_url=os.environ["MIXPEEK_API_URL"], headers=headers, timeout=600) as client:
        upload_and_deploy(client, stable, "1.0.0")
        point(client, {STABLE: 100})
        print("1. production is the stable version:", dict(met(client)))
        upload_and_deploy(client, candidate, "1.1.0")
        body = {"model": f"{NAMESPACE}/{CANDIDATE}", "input": "a text"}
        client.post("/v1/embeddings", json=body).raise_for_status()
        print("2. the candidate is deployed beside it, and answers by its own id")
        point(client, {STABLE: 90, CANDIDATE: 10})
        print("3. one user in ten meets the candidate")
        point(client, {STABLE: 50, CANDIDATE: 50})
        print("4. every second one does, those from before among them")
        point(client, {STABLE: 0, CANDIDATE: 100})
        print("5. everybody does; the stable version stays deployed, for what comes next")
        # Each rollback goes back one step: 50, 10, and then the stable version alone.
        for _ in range(3):
            alias = client.post(f"{ALIAS}/rollback").raise_for_status().json()["alias"]
        print("6. rolled back, step by step:")
        print(json.dumps(alias["targets"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
