from __future__ import annotations

import orjson
import pytest

from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.body_usage import BodyUsage

USAGE = {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
TEXT = 'he said "usage":{"prompt_tokens":99} ' * 50
COUNTED = UsageMeter(prompt_tokens=3, cached_tokens=2, completion_tokens=5)


@pytest.mark.parametrize("size", [1, 3, 7, 64, 1_000_000])
def test_found_however_the_body_is_cut(size: int) -> None:
    body = orjson.dumps(
        {"choices": [{"message": {"content": TEXT}}], "usage": USAGE, "prompt_logprobs": [{"1": 2.0}] * 2000}
    )
    meter = UsageMeter()
    usage = BodyUsage(meter)
    for at in range(0, len(body), size):
        usage.feed(body[at : at + size])
    assert meter == COUNTED


@pytest.mark.parametrize("body", [b"", b'{"error":{"message":"no"}}', b'{"usage":null}', b'{"usage":{"prompt_tokens":'])
def test_nothing_is_counted_without_one(body: bytes) -> None:
    meter = UsageMeter()
    BodyUsage(meter).feed(body)
    assert meter == UsageMeter()


def test_a_stream_of_another_api_counts_by_its_largest_figures() -> None:
    events = (
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":0}}}\n\n'
        b'data: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
        b'data: {"type":"response.completed","response":{"usage":{"input_tokens":9,'
        b'"input_tokens_details":{"cached_tokens":1},"output_tokens":6}}}\n\n'
    )
    meter = UsageMeter()
    usage = BodyUsage(meter)
    for at in range(len(events)):
        usage.feed(events[at : at + 1])
    assert meter == UsageMeter(prompt_tokens=9, cached_tokens=1, completion_tokens=6)


def test_an_object_without_an_end_is_given_up() -> None:
    meter = UsageMeter()
    usage = BodyUsage(meter)
    for _ in range(100):
        usage.feed(b'"usage":{' + b"x" * 1000)
    assert meter == UsageMeter()
