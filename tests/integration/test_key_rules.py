"""What keys and users may do, and what the answers say when they may not: shape, code, Retry-After, headers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, ApiKey, Cluster
from tests.support.http_client import Answer, Client
from tests.support.streams import live_streams
from tests.support.wait import eventually

from vllm_proxy.api.common.v1 import maintenance_pb2, maintenance_pb2_grpc
from vllm_proxy.common.rpc.address import dial_target

CAPPED, NARROW, EXPIRED, PATIENT, SLOW, DAILY, MODEL_LIMITED = (
    ApiKey(f"sk-test-{name}-0123456789abcdef", name)
    for name in ("capped", "narrow", "expired", "patient", "slow", "daily", "model-limited")
)
TEAM = [ApiKey(f"sk-test-team-{i}-0123456789abcdef", "team") for i in range(2)]
CAP = 7
RULES: dict[str, dict[str, Any]] = {
    "capped": {"max_response_tokens": CAP},
    "narrow": {"models": ["si*"]},
    "expired": {"expires_at": "2020-01-01T00:00:00Z"},
    "patient": {"rate_limit": {"concurrent": 1}, "admission_wait_ms": 8000},
    "slow": {"rate_limit": {"qps": 2}},
    "daily": {"quota": 100, "quota_period": "day"},
    "model-limited": {"model_limits": {"oth*": {"tokens_per_minute": 6000}}},
}
#: How much later than promised a clock on a busy machine may be.
SLACK_S = 0.3


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    cluster = start_cluster(
        {"sim": {"step_ms": 1, "adapters": ["other"]}, "users": {"team": {"concurrent": 1}}}, keys=[ADMIN]
    )
    cluster.write_keys([ADMIN, CAPPED, NARROW, EXPIRED, PATIENT, SLOW, DAILY, MODEL_LIMITED, *TEAM], RULES)
    reloaded = asyncio.run(cluster.client(ADMIN).request("POST", "/admin/reload-keys"))
    assert reloaded.json()["problems"] == []
    return cluster


async def free(client: Client, **body: Any) -> Answer:
    """A completion whose body is just this."""
    return await client.request("POST", "/v1/chat/completions", {"model": "sim", **body})


MESSAGES = [{"role": "user", "content": "Say something."}]


async def test_the_longest_answer_of_a_key(cluster: Cluster) -> None:
    client = cluster.client(CAPPED)
    refused = await client.chat(max_tokens=CAP + 1)
    assert refused.status == 400
    assert (refused.error["type"], refused.error["code"]) == ("invalid_request_error", "max_response_tokens")
    assert refused.error["param"] == "max_tokens" and str(CAP) in refused.error["message"]
    for body in ({}, {"max_tokens": None}, {"max_completion_tokens": None}, {"max_tokens": CAP}):
        answer = await free(client, messages=MESSAGES, **body)
        assert answer.status == 200, answer.body
        answered = answer.json()
        assert (answered["usage"]["completion_tokens"], answered["choices"][0]["finish_reason"]) == (CAP, "length")
    stream = await client.request(
        "POST", "/v1/completions", {"model": "sim", "prompt": "x", "stream": True, "max_tokens": None}
    )
    assert stream.body.count(b'"text"') <= CAP + 2 and stream.body.rstrip().endswith(b"[DONE]")


async def test_the_models_of_a_key(cluster: Cluster) -> None:
    client = cluster.client(NARROW)
    listed = (await client.request("GET", "/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["sim"]
    everything = (await cluster.client(ADMIN).request("GET", "/v1/models")).json()["data"]
    assert [card["id"] for card in everything] == ["sim", "other"]
    assert (await client.chat()).status == 200
    refused = await cluster.client(NARROW, "other").chat()
    assert (refused.status, refused.error["code"], refused.error["param"]) == (403, "model_not_allowed", "model")
    assert "'other'" in refused.error["message"] and "retry-after" not in refused.headers


async def test_an_expired_key(cluster: Cluster) -> None:
    refused = await cluster.client(EXPIRED).chat()
    assert (refused.status, refused.error["code"]) == (401, "key_expired")


async def test_keys_of_one_user_share_its_limits(cluster: Cluster) -> None:
    async with live_streams(cluster.client(TEAM[0]), 1, max_tokens=100_000) as (stream,):
        refused = await cluster.client(TEAM[1]).chat()
        assert (refused.status, refused.error["code"]) == (429, "concurrency")
        assert "user 'team'" in refused.error["message"]

        def logged() -> dict[str, Any] | None:
            lines = cluster.edge.log_lines()
            return next((line for line in lines if line.get("limit") == "concurrency"), None)

        line = await eventually(logged, "the line of the refused request")
        assert (line["limit_scope"], line["reason"], line["retry_after_s"]) == ("user", "RATE_LIMITED", 1.0)
        await stream.leave()
    await eventually(lambda: not cluster.control.open_leases(), "the slot returned")
    assert (await cluster.client(TEAM[1]).chat()).status == 200


async def test_a_lone_client_that_waits_as_told_passes(cluster: Cluster) -> None:
    client = cluster.client(SLOW)
    answers = await asyncio.gather(*(client.chat() for _ in range(6)))
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert int(answer.headers["x-ratelimit-remaining-requests"]) < 2
    refused = [answer for answer in answers if answer.status == 429]
    assert refused and {answer.error["code"] for answer in refused} == {"requests_per_second"}
    promised_s = max(int(answer.headers["retry-after"]) for answer in refused)
    started = time.monotonic()

    async def passes() -> bool:
        return (await client.chat()).status == 200

    await eventually(passes, "the same request passes", promised_s + SLACK_S)
    assert time.monotonic() - started <= promised_s + SLACK_S


async def test_limits_for_a_model_and_headers_on_streams(cluster: Cluster) -> None:
    async with live_streams(cluster.client(MODEL_LIMITED, "other"), 1, max_tokens=5_900) as (stream,):
        headers = stream.connection.headers
        assert headers["x-ratelimit-limit-tokens"] == "6000"
        assert int(headers["x-ratelimit-remaining-tokens"]) <= 100
        refused = await cluster.client(MODEL_LIMITED, "other").chat(max_tokens=1000)
        assert (refused.status, refused.error["code"]) == (429, "tokens_per_minute")
        assert "'oth*'" in refused.error["message"] and int(refused.headers["retry-after"]) >= 1
        assert (await cluster.client(MODEL_LIMITED).chat(max_tokens=1000)).status == 200


async def test_a_spent_daily_quota_says_when_it_is_whole_again(cluster: Cluster) -> None:
    client = cluster.client(DAILY)
    answer = await free(client, messages=MESSAGES, max_tokens=1000)
    assert answer.status == 200, answer.body
    answered = answer.json()
    assert answered["choices"][0]["finish_reason"] == "length", "no longer than what was left"
    assert 0 < answered["usage"]["completion_tokens"] < 100
    await cluster.settled_usage(DAILY.user)
    # What the prompt was estimated too high by is left for one more, which then gets no more than that.
    refused = await client.chat(max_tokens=1000)
    while refused.status == 200:
        refused = await client.chat(max_tokens=1000)
    assert (refused.status, refused.error["code"]) == (429, "quota")
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400 and "x-should-retry" not in refused.headers


async def test_a_request_may_wait_for_its_turn_and_leaves_with_its_client(cluster: Cluster) -> None:
    client = cluster.client(PATIENT)
    async with live_streams(client, 1, max_tokens=100_000) as (stream,):
        leaving, staying = asyncio.create_task(client.chat()), asyncio.create_task(client.chat())
        await eventually(lambda: _waiting(cluster) == 2, "both wait")
        leaving.cancel()
        await eventually(lambda: _waiting(cluster) == 1, "the one that left waits no more")
        assert not staying.done()
        await stream.leave()
        assert (await staying).status == 200
    usage = await cluster.settled_usage(PATIENT.user)
    assert usage.requests == 2, "the one that left was never admitted"


def _waiting(cluster: Cluster) -> int:
    with grpc.insecure_channel(dial_target(cluster.address("auth"))) as channel:
        stub = maintenance_pb2_grpc.MaintenanceServiceStub(channel)
        text = stub.GetMetrics(maintenance_pb2.GetMetricsRequest(), timeout=5).text.decode()
    (line,) = (line for line in text.splitlines() if line.startswith("vllm_proxy_auth_waiting "))
    return round(float(line.split()[1]))
