"""Every route of the real vLLM application is in the allowlist or refused, by any spelling."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.parity.exchange import Recorded
from tests.support.cluster import ALICE, Cluster
from tests.support.http_client import Client
from tests.support.process import ENGINE_PYTHON

from vllm_proxy.common.engine_routes import EDGE_ROUTES, ENGINE_ROUTES

LIST_DEADLINE_S = 120
CONCURRENCY = 32
#: The edge's own, which mean something else at the engine or the same for all of them.
OURS = frozenset({"/openapi.json", "/docs", "/health", "/metrics", "/v1/models", "/models"})
#: What vLLM adds with other packages installed, and SGLang's.
ELSEWHERE = (
    *(("POST", path) for path in ("/adapters", "/cohere/v2/chat", "/generate", "/encode", "/flush_cache")),
    *(("POST", path) for path in ("/load_lora_adapter", "/update_weights_from_disk", "/abort_request")),
    *(("GET", path) for path in ("/get_server_info", "/get_weights_by_name", "/api/tags", "/model_info")),
    ("DELETE", "/adapters/pirate"),
)
REFUSED = {"unknown_url", "method_not_allowed", "model_not_found"}


@pytest.fixture(scope="session")
def engine_routes() -> list[tuple[str, str]]:
    script = Path(__file__).with_name("list_routes.py")
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    listed = subprocess.run(
        [str(ENGINE_PYTHON), str(script)], env=environment, capture_output=True, timeout=LIST_DEADLINE_S, check=True
    )
    rows = json.loads(listed.stdout.splitlines()[-1])
    # HEAD is GET without a body.
    return [(method, path) for method, path in rows if method != "HEAD"] + list(ELSEWHERE)


def spellings(path: str) -> Iterator[str]:
    yield path
    yield path + "/"
    yield "/" + path
    yield path.replace("/", "//")
    yield "/." + path
    yield "/v1/.." + path
    yield path + "/."
    yield path + "%2f"
    yield path + "%00"
    yield path + ";x"
    yield "/%2f" + path[1:]
    yield "/" + f"%{ord(path[1]):02x}" + path[2:] if len(path) > 1 else "/%2f"
    yield path.upper()
    yield "/v1" + path
    yield path.removeprefix("/v1") or "/"
    yield path.replace("/", "\\")
    yield "/v1/responses/x/../.." + path


def test_the_list_is_vllms(engine_routes: list[tuple[str, str]]) -> None:
    assert len(engine_routes) > 60
    assert {("POST", path) for path in ("/v1/chat/completions", "/sleep", "/rerank", "/v1/load_lora_adapter")} <= set(
        engine_routes
    )


def test_each_of_our_rows_is_vllms_or_sglangs(engine_routes: list[tuple[str, str]]) -> None:
    only_sglang = {"/v1/classify", "/v1/tokenize", "/v1/detokenize"}
    ours = {(route.method, route.path) for route in ENGINE_ROUTES}
    assert {path for _, path in ours - set(engine_routes)} == only_sglang


async def test_the_description_has_the_engines_schemas(gateway: Cluster, own: Recorded) -> None:
    answer = await Client(gateway.port, "").request("GET", "/openapi.json")
    described = answer.json()
    for path, item in described["paths"].items():
        theirs = own.openapi["paths"].get(path, {})
        for method in item.keys() & theirs.keys():
            assert references(item[method].get("requestBody")) == references(theirs[method].get("requestBody")), path
    ours, engines = described["components"]["schemas"], own.openapi["components"]["schemas"]
    for schema in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest", "AnthropicMessagesRequest"):
        assert ours[f"vllm.{schema}"]["properties"].keys() == engines[schema]["properties"].keys()


def references(body: object) -> list[str]:
    """The names of the engine's schemas that a body refers to."""
    return re.findall(r"#/components/schemas/(?:vllm\.)?(\w+)", json.dumps(body))


async def test_nothing_else_is_reachable(gateway: Cluster, engine_routes: list[tuple[str, str]]) -> None:
    client = Client(gateway.port, ALICE.key)
    asked: set[tuple[str, str]] = set()
    for method, path in engine_routes:
        path = path.replace("{response_id}", "resp_x").replace("{path:path}", "x")
        asked |= {(method, spelling) for spelling in spellings(path) if spelling not in OURS}
    # What the table has is asked for in test_parity.
    closed = sorted((m, p) for m, p in asked if EDGE_ROUTES.find(m, p) is None)
    assert len(closed) > 500
    slots = asyncio.Semaphore(CONCURRENCY)

    async def outcome(method: str, path: str) -> str:
        async with slots:
            answer = await client.request(method, path, b"{}")
        if answer.status == 307:
            # Only towards what is open.
            return "" if EDGE_ROUTES.methods(path[:-1]) or path[:-1] in OURS else f"{method} {path}: redirected"
        if answer.status not in (400, 404, 405):
            return f"{method} {path}: {answer.status}"
        error = answer.json()["error"]
        return "" if error.get("code") in REFUSED or answer.status == 400 else f"{method} {path}: {error}"

    outcomes = await asyncio.gather(*(outcome(method, path) for method, path in closed))
    assert [one for one in outcomes if one] == []
