"""How far Serve is with an application."""

from __future__ import annotations

from typing import Any

import pytest

from mixpeek_ray.serving.replica_standing import Standing, standing_in

PLACED = {"state": "STARTING", "node_id": "ab12"}
UNPLACED = {"state": "STARTING"}
RUNNING = {"state": "RUNNING", "node_id": "ab12"}


@pytest.mark.parametrize(
    ("replicas", "standing"),
    [
        ([], Standing.WAITING),
        ([UNPLACED], Standing.WAITING),
        ([UNPLACED, PLACED], Standing.STARTING),
        ([UNPLACED, RUNNING], Standing.RUNNING),
    ],
)
def test_by_its_replicas(replicas: list[dict[str, Any]], standing: Standing) -> None:
    details = {"applications": {"one": {"deployments": {"model": {"replicas": replicas}}}}}
    assert standing_in(details, "one") is standing
    assert standing_in(details, "another") is Standing.ABSENT
