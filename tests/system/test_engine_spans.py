"""The engine's own spans hang below ours."""

from __future__ import annotations

import secrets

from tests.engine.columns import BASE
from tests.support.cluster import Cluster
from tests.support.otlp_collector import OtlpCollector
from tests.support.wait import eventually

#: Ours, as the simulator's test has them, and the engine's `llm_request`.
SPANS = 8


async def test_vllm_joins_the_trace(gateway: Cluster, collector: OtlpCollector) -> None:
    trace_id, client = secrets.token_hex(16), gateway.client(model=BASE)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    body = client.chat_body(max_tokens=4, stream=False)
    answer = await client.request("POST", "/v1/chat/completions", body, headers)
    assert answer.status == 200
    # vLLM sends its own every five seconds.
    await eventually(lambda: len(collector.trace(trace_id)) >= SPANS, "the engine's span collected", 30)
    spans = collector.trace(trace_id)
    by_id = {span.span_id: span for span in spans}
    (request,) = [span for span in spans if span.service == "vllm-proxy-vllm"]
    assert request.name == "llm_request"
    assert request.attributes["gen_ai.usage.completion_tokens"] == answer.json()["usage"]["completion_tokens"]
    chain = [request]
    while (parent := by_id.get(chain[-1].parent_id)) is not None:
        chain.append(parent)
    assert [(span.service, span.name) for span in chain[1:]] == [
        ("vllm-proxy-engine-vllm", "engine chat_completions"),
        ("vllm-proxy-edge", "attempt"),
        ("vllm-proxy-edge", "POST /v1/chat/completions"),
    ]


async def test_vllm_traces_nothing_that_is_not_sampled(gateway: Cluster, collector: OtlpCollector) -> None:
    """Without being told so it would begin a trace of its own for each request."""
    client = gateway.client(model=BASE)
    known = {span.trace_id for span in collector.spans}
    assert (await client.chat(max_tokens=2)).status == 200
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    await client.request("POST", "/v1/chat/completions", client.chat_body(max_tokens=2, stream=False), headers)
    # The engine's spans come in the order of its requests.
    await eventually(lambda: len(collector.trace(trace_id)) >= SPANS, "the later request's spans collected", 30)
    asked = {span.trace_id for span in collector.spans if span.name == "llm_request"} - known
    assert asked == {trace_id}
