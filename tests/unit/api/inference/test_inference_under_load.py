"""More requests than a model can compute: who waits, who is refused, and who has gone meanwhile."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from inference_server import InferenceServer, serving
from waiting import wait_for

PATH = "/v1/embeddings"
LARGE = ["the quick brown fox"] * 2_048


def embed(server: InferenceServer, texts: list[str]) -> httpx.Response:
    with server.client() as client:
        return client.post(PATH, json={"model": "dense", "input": texts})


@pytest.fixture
def callers():
    with ThreadPoolExecutor(40) as threads:
        yield threads


def test_a_small_request_is_answered_before_a_large_one_that_came_first(server, hold_up, callers):
    runner = server.model("dense").runner
    held = hold_up()
    answered: list[str] = []

    def ask(name: str, texts: list[str]) -> int:
        answer = embed(server, texts)
        answered.append(name)
        return answer.status_code

    first = callers.submit(ask, "first", ["hold the thread"])
    assert held.computing.wait(30)
    large = callers.submit(ask, "large", LARGE)
    wait_for(lambda: runner.waiting == 1)
    small = callers.submit(ask, "small", ["the lazy dog"])
    wait_for(lambda: runner.waiting == 2)
    held.let_go.set()
    assert [request.result(60) for request in (first, small, large)] == [200, 200, 200]
    assert answered == ["first", "small", "large"]


def test_what_would_wait_too_long_is_told_when_to_come_back(local_models, hold_up, callers):
    with serving(local_models, max_wait_s=0.0) as server:
        assert embed(server, ["measure it"]).status_code == 200
        runner = server.model("dense").runner
        held = hold_up()
        computing = callers.submit(embed, server, ["hold the thread"])
        assert held.computing.wait(30)
        waiting = callers.submit(embed, server, ["the lazy dog"])
        wait_for(lambda: runner.waiting == 1)
        refused = [request.result(60) for request in [callers.submit(embed, server, ["me too"]) for _ in range(30)]]
        held.let_go.set()
        assert {answer.status_code for answer in refused} == {429}
        for answer in refused:
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("TooManyRequestsError", "overloaded")
            assert int(answer.headers["retry-after"]) == error["details"]["retry_after_seconds"] >= 1
        assert [computing.result(60).status_code, waiting.result(60).status_code] == [200, 200]
        assert embed(server, ["me again"]).status_code == 200


def test_a_client_that_hangs_up_takes_its_texts_out_of_the_queue(server, hold_up, callers):
    runner = server.model("dense").runner
    held = hold_up()
    first = callers.submit(embed, server, ["hold the thread"])
    assert held.computing.wait(30)
    body = json.dumps({"model": "dense", "input": LARGE})
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_reader\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall((head + body).encode())
        wait_for(lambda: runner.waiting == 1)
    wait_for(lambda: runner.waiting == 0)
    held.let_go.set()
    assert first.result(60).status_code == 200
    assert embed(server, ["still there"]).status_code == 200
    assert held.batches == [1, 1]


def test_a_client_that_hangs_up_leaves_all_of_a_hybrid_request(server, hold_up, callers):
    runner = server.model("dense").runner
    held = hold_up()
    first = callers.submit(embed, server, ["hold the thread"])
    assert held.computing.wait(30)
    body = json.dumps({"models": {"dense": "dense", "sparse": "sparse"}, "input": ["the fox"]})
    head = f"POST {PATH}/hybrid HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_reader\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: runner.waiting == 1)
    wait_for(lambda: runner.waiting == 0)
    held.let_go.set()
    assert first.result(60).status_code == 200


def test_a_slow_body_is_given_up(local_models):
    with serving(local_models, idle_timeout_s=0.3) as server:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_reader\r\nContent-Length: 9999\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(head.encode() + b"{")
            answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer
