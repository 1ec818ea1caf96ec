"""What HTTP asks of a server, over real connections: compression, expectations, pipelining, pages of other origins."""

from __future__ import annotations

import asyncio
import gzip
import json

import httpx
import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ALICE, Cluster
from tests.support.http_client import Client, Connection

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    edge = {"cors_origins": [PAGE], "server_timing": True, "sse_keepalive_s": 0.5}
    sim = {"adapters": ["pirate"], "step_ms": 5}
    return start_cluster({"edge": edge, "model_aliases": {"gpt-4o": "sim"}, "default_model": "pirate", "sim": sim})


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    return cluster.client()


async def test_a_compressed_body(alice: Client) -> None:
    body = alice.chat_body(max_tokens=2, stream=False)
    answer = await alice.request("POST", CHAT, gzip.compress(body), {"content-encoding": "gzip"})
    assert answer.status == 200 and answer.json()["usage"]["completion_tokens"] == 2
    answer = await alice.request("POST", CHAT, gzip.compress(b"\0" * 50_000_000), {"content-encoding": "gzip"})
    assert answer.status == 413
    answer = await alice.request("POST", CHAT, body, {"content-encoding": "br"})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize("key", [ALICE.key, ""])
async def test_a_client_that_waits_to_be_told(alice: Client, key: str) -> None:
    """With a key it is told to go on; without, it is refused and need not send its body."""
    body = alice.chat_body(max_tokens=1, stream=False)
    headers = {"expect": "100-continue", "content-type": "application/json", "authorization": f"Bearer {key}"}
    async with asyncio.timeout(DEADLINE_S), await Connection.open(alice.port) as connection:
        head = {"host": "edge", "content-length": str(len(body)), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        connection._writer.write(f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n".encode())
        await connection.read_head()
        if not key:
            assert connection.status == 401
            return
        assert connection.status == 100
        connection._writer.write(body)
        await connection.read_head()
        assert connection.status == 200
        assert json.loads(await connection.body())["choices"]


async def test_head_has_no_body(alice: Client) -> None:
    async with asyncio.timeout(DEADLINE_S), await Connection.open(alice.port) as connection:
        await connection.send("HEAD", "/v1/models", headers=alice.headers)
        assert connection.status == 200 and int(connection.headers["content-length"]) > 0
        # The next answer begins where a body would have been.
        await connection.send("GET", "/v1/models/sim", headers=alice.headers)
        assert json.loads(await connection.body())["id"] == "sim"


async def test_requests_sent_before_the_answers(alice: Client) -> None:
    async with asyncio.timeout(DEADLINE_S), await Connection.open(alice.port) as connection:
        for tokens in (1, 2, 3):
            body = alice.chat_body(max_tokens=tokens, stream=False)
            await connection.send_only("POST", CHAT, headers=alice.headers, body=body)
        for tokens in (1, 2, 3):
            await connection.read_head()
            assert json.loads(await connection.body())["usage"]["completion_tokens"] == tokens


async def test_a_slash_too_many(alice: Client) -> None:
    answer = await alice.request("POST", CHAT + "/?x=1", alice.chat_body(max_tokens=1))
    assert (answer.status, answer.headers["location"]) == (307, CHAT + "?x=1")


@pytest.mark.parametrize(
    ("asked", "answered"), [("gpt-4o", "sim"), ("sim:pirate", "pirate"), (None, "pirate"), ("pirate", "pirate")]
)
async def test_names_of_models(alice: Client, asked: str | None, answered: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1} | ({"model": asked} if asked else {})
    answer = await alice.request("POST", CHAT, body)
    assert (answer.status, answer.json()["model"]) == (200, answered)


async def test_pages_of_other_origins(alice: Client) -> None:
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{alice.port}") as http:
        preflighted = await http.options(CHAT, headers={"origin": PAGE, **preflight})
    assert (preflighted.status_code, preflighted.headers["access-control-allow-origin"]) == (204, PAGE)
    answer = await alice.request("GET", "/v1/models", headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    answer = await alice.request("GET", "/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


async def test_timing(alice: Client) -> None:
    answer = await alice.chat()
    assert [part.partition(";")[0].strip() for part in answer.headers["server-timing"].split(",")] == [
        "auth",
        "route",
        "ttft",
    ]


async def test_a_silent_stream_says_that_it_lives(start_cluster: StartCluster) -> None:
    """A prompt that takes seconds to read."""
    slow = start_cluster({"edge": {"sse_keepalive_s": 0.2}, "sim": {"prefill_tokens_per_s": 100}})
    client = slow.client()
    body = client.chat_body(max_tokens=1, messages=[{"role": "user", "content": "word " * 500}])
    async with asyncio.timeout(DEADLINE_S), await Connection.open(client.port) as connection:
        await connection.send("POST", CHAT, headers=client.headers, body=body)
        text = await connection.body()
    assert text.startswith(b": keep-alive\n\n") and text.endswith(b"data: [DONE]\n\n")
