"""Events survive the pipe whatever way it cuts them."""

from __future__ import annotations

import os

import pytest

from mixpeek_ray.cli.events import Event, EventReader, Failed, Progress, Ready, encode, send

EVENTS: list[Event] = [
    Progress(step="Starting Ray"),
    Failed(message="line one\nline two é"),
    Ready(api_url="http://a", dashboard_url="http://b", gcs_address="c:1"),
]


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_events_arrive_whole_and_in_order(chunk: int) -> None:
    data = b"".join(map(encode, EVENTS))
    reader = EventReader()
    found = [event for start in range(0, len(data), chunk) for event in reader.feed(data[start : start + chunk])]
    assert found == EVENTS


def test_a_reader_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    send(write, EVENTS[0])
    os.close(write)
