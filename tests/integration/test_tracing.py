"""One request, one trace: from the edge through auth to the engine host, as a collector gets it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from tests.integration.conftest import StartCluster
from tests.support.cluster import ALICE, Cluster
from tests.support.http_client import Answer
from tests.support.otlp_collector import CollectedSpan, OtlpCollector
from tests.support.wait import eventually

from vllm_proxy.common.settings import Tracing
from vllm_proxy.common.tracing.start import open_tracer

HOSTS = ("sim-a", "sim-b")
EDGE, AUTH, ROUTER = "vllm-proxy-edge", "vllm-proxy-auth", "vllm-proxy-router"
#: What a served request has: itself, its admission on both sides, the choice, the attempt, the host, the settlement.
SPANS = 7
PROMPT = "Say something."


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as collector:
        yield collector


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster, collector: OtlpCollector) -> Cluster:
    tracing = {"endpoint": collector.endpoint, "export_interval_s": 0.1, "export_timeout_s": 1}
    return start_cluster({"tracing": tracing}, hosts=HOSTS)


class Caller:
    """A client's own span, which its requests hang below."""

    def __init__(self, collector: OtlpCollector, flags: str = "01") -> None:
        self._collector = collector
        self.trace_id = secrets.token_hex(16)
        self.span_id = secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}"}

    async def trace(self, spans: int) -> list[CollectedSpan]:
        await eventually(lambda: len(self._collector.trace(self.trace_id)) >= spans, f"{spans} spans collected")
        return self._collector.trace(self.trace_id)

    async def whole(self) -> list[CollectedSpan]:
        """The trace of a served request, however many attempts it took."""

        def spans() -> int:
            roots = [span for span in self._collector.trace(self.trace_id) if span.parent_id == self.span_id]
            return roots[0].attributes["vllm_proxy.attempts"] + SPANS - 1 if roots else 0

        return await self.trace(await eventually(spans, "the root collected"))


def only(spans: list[CollectedSpan], service: str, name: str) -> CollectedSpan:
    (found,) = [span for span in spans if (span.service, span.name) == (service, name)]
    return found


async def chat(cluster: Cluster, caller: Caller, *, key: str = ALICE.key, stream: bool = False) -> Answer:
    client = cluster.client()
    body = client.chat_body(max_tokens=5, stream=stream)
    headers = {**caller.headers, "authorization": f"Bearer {key}"}
    return await client.request("POST", "/v1/chat/completions", body, headers)


async def test_a_request_is_one_trace(cluster: Cluster, collector: OtlpCollector) -> None:
    caller = Caller(collector)
    answer = await chat(cluster, caller)
    assert answer.status == 200
    spans = await caller.trace(SPANS)
    assert len(spans) == SPANS

    root = only(spans, EDGE, "POST /v1/chat/completions")
    host = root.attributes["vllm_proxy.host"]
    asked, admitted = only(spans, EDGE, "admit"), only(spans, AUTH, "admit")
    choice, attempt = only(spans, EDGE, "choose host"), only(spans, EDGE, "attempt")
    served = only(spans, f"vllm-proxy-engine-{host}", "engine chat_completions")
    settled = only(spans, AUTH, "settle")
    assert root.parent_id == caller.span_id
    assert [span.parent_id for span in (asked, choice, attempt, settled)] == [root.span_id] * 4
    assert (admitted.parent_id, served.parent_id) == (asked.span_id, attempt.span_id)
    assert (root.kind, asked.kind, choice.kind, served.kind) == ("server", "client", "internal", "server")

    assert root.start_ns <= asked.start_ns <= admitted.start_ns <= admitted.end_ns <= asked.end_ns
    assert asked.end_ns <= choice.end_ns <= attempt.start_ns <= served.start_ns <= served.end_ns <= root.end_ns
    assert not any(span.failed for span in spans)

    usage = answer.json()["usage"]
    wanted = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "sim",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "vllm_proxy.request_id": answer.headers["x-request-id"],
        "vllm_proxy.user": "alice",
    }
    assert {name: root.attributes[name] for name in wanted} == wanted
    assert root.attributes["vllm_proxy.key_id"] == admitted.attributes["vllm_proxy.key_id"]
    assert served.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]


async def test_no_span_has_a_prompt_or_a_key(cluster: Cluster, collector: OtlpCollector) -> None:
    caller = Caller(collector)
    await chat(cluster, caller)
    text = repr(await caller.trace(SPANS))
    assert "req-" in text
    assert PROMPT not in text and ALICE.key not in text


async def test_a_stream_tells_its_first_byte(cluster: Cluster, collector: OtlpCollector) -> None:
    caller = Caller(collector)
    assert (await chat(cluster, caller, stream=True)).status == 200
    spans = await caller.trace(SPANS)
    root, attempt = only(spans, EDGE, "POST /v1/chat/completions"), only(spans, EDGE, "attempt")
    served = next(span for span in spans if span.parent_id == attempt.span_id)
    assert root.events == served.events == ("first byte",)
    assert root.attributes["gen_ai.request.stream"] is True
    ttft_s = root.attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < ttft_s < (root.end_ns - root.start_ns) / 1e9


async def test_a_refused_request_says_why(cluster: Cluster, collector: OtlpCollector) -> None:
    caller = Caller(collector)
    assert (await chat(cluster, caller, key="sk-nobody-knows")).status == 401
    spans = await caller.trace(3)
    root = only(spans, EDGE, "POST /v1/chat/completions")
    assert root.attributes["http.response.status_code"] == 401
    assert root.attributes["vllm_proxy.reason"] == "INVALID_API_KEY"
    assert only(spans, AUTH, "admit").attributes["vllm_proxy.reason"] == "INVALID_API_KEY"
    # A client's fault is no server's failure.
    assert not root.failed and len(spans) == 3


async def test_a_second_attempt_stands_beside_the_first(cluster: Cluster, collector: OtlpCollector) -> None:
    frozen = cluster.hosts["sim-a"]
    frozen.pause()
    callers = [Caller(collector) for _ in range(12)]
    requests = [asyncio.create_task(chat(cluster, caller)) for caller in callers]
    await eventually(lambda: any(request.done() for request in requests), "an answer of the living host")
    # What is not answered by now waits for the frozen one, or is about to be answered.
    frozen.kill()
    answers = await asyncio.gather(*requests)
    assert {answer.status for answer in answers} == {200}
    traces = [await caller.whole() for caller in callers]
    retried = [spans for spans in traces if sum(span.name == "attempt" for span in spans) == 2]
    assert retried, "no request was on the frozen host"
    for spans in retried:
        first, second = [span for span in spans if span.name == "attempt"]
        assert (first.attributes["vllm_proxy.host"], first.failed) == ("sim-a", True)
        assert (second.attributes["vllm_proxy.host"], second.failed) == ("sim-b", False)
        served = next(span for span in spans if span.service == "vllm-proxy-engine-sim-b")
        assert served.parent_id == second.span_id
        root = only(spans, EDGE, "POST /v1/chat/completions")
        assert first.parent_id == second.parent_id == root.span_id
        assert root.attributes["vllm_proxy.attempts"] == 2 and not root.failed
    frozen.start()
    await asyncio.to_thread(cluster.wait_serving, len(HOSTS))


async def test_a_client_that_is_not_sampled_is_not_traced(cluster: Cluster, collector: OtlpCollector) -> None:
    silent, traced = Caller(collector, flags="00"), Caller(collector)
    assert (await chat(cluster, silent)).status == 200
    assert (await chat(cluster, traced)).status == 200
    # Its spans would have come before these.
    await traced.trace(SPANS)
    assert collector.trace(silent.trace_id) == []


async def test_an_invalid_traceparent_begins_a_new_trace(cluster: Cluster, collector: OtlpCollector) -> None:
    caller = Caller(collector)
    caller.headers["traceparent"] = f"00-{'0' * 32}-{caller.span_id}-01"
    answer = await chat(cluster, caller)
    request_id = answer.headers["x-request-id"]
    root = await eventually(
        lambda: next((s for s in collector.spans if s.attributes.get("vllm_proxy.request_id") == request_id), None),
        "its spans collected",
    )
    assert root.trace_id != "0" * 32


async def test_a_collector_that_is_away_harms_nobody(cluster: Cluster, collector: OtlpCollector) -> None:
    collector.stop()
    answers = await asyncio.gather(*(cluster.client().chat(max_tokens=2) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}

    def said() -> int:
        return sum(line.get("event") == "trace collector away" for line in cluster.edge.log_lines())

    await eventually(said, "the edge said that the collector is away")
    await cluster.client().chat()
    await eventually(lambda: _dropped(cluster), "dropped spans counted")
    collector.start()
    caller = Caller(collector)
    await eventually(lambda: _is_traced(cluster, collector, caller), "traces again", 20)
    assert said() == 1


async def test_a_ratio_of_zero_traces_only_who_asks_and_a_stop_sends_what_is_left(
    cluster: Cluster, collector: OtlpCollector
) -> None:
    cluster.write_config({"tracing": {"sample_ratio": 0, "export_interval_s": 600}})
    await asyncio.to_thread(cluster.edge.restart)
    collector.spans.clear()
    assert (await cluster.client().chat(max_tokens=2)).status == 200
    caller = Caller(collector)
    await chat(cluster, caller)
    await asyncio.to_thread(cluster.edge.stop)
    await caller.trace(SPANS)
    assert {span.trace_id for span in collector.spans} == {caller.trace_id}


async def test_over_http(collector: OtlpCollector) -> None:
    settings = Tracing.model_validate({"endpoint": collector.http_endpoint, "protocol": "http/protobuf"})
    tracer = open_tracer(settings, "test", "test_", CollectorRegistry())
    assert tracer is not None
    span = tracer.begin("", time.monotonic())
    tracer.end(span, "over http", "server", {})
    await tracer.close()
    (found,) = [collected for collected in collector.spans if collected.service == "vllm-proxy-test"]
    assert (found.name, found.parent_id) == ("over http", "")


async def _dropped(cluster: Cluster) -> bool:
    text = (await cluster.client().request("GET", "/metrics")).body.decode()
    rows = [line for line in text.splitlines() if line.startswith("vllm_proxy_edge_trace_spans_dropped_total ")]
    return bool(rows) and float(rows[0].split()[1]) > 0


async def _is_traced(cluster: Cluster, collector: OtlpCollector, caller: Caller) -> bool:
    await chat(cluster, caller)
    return any(span.service == EDGE for span in collector.trace(caller.trace_id))
