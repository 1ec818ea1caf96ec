"""Running usage is counted and taken out again, whatever way the bytes are cut."""

from __future__ import annotations

import dataclasses
import random

import orjson
import pytest

from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.http_dialects import SGLANG, VLLM, HttpDialect
from vllm_proxy.engine_host.engines.sse_usage import Fingerprint, StreamUsage

HEAD = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
#: Text that looks like what is searched for.
NASTY = '","usage":{"prompt_tokens":9},"choices":[] "finish_reason":"stop" \n\n }{'
FINGERPRINT = b',"system_fingerprint":"vllm-0.32-x"'


def chunk(choice: int, text: str, finish: str | None = None, member: bytes = b"") -> bytes:
    content = orjson.dumps(text)
    reason = orjson.dumps(finish)
    body = b'"choices":[{"index":%d,"delta":{"content":%s},"finish_reason":%s}]' % (choice, content, reason)
    return HEAD + body + member + b"}\n\n"


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    more = b',"prompt_tokens_details":{"cached_tokens":%d}' % cached if cached is not None else b""
    numbers = b'"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d' % (prompt, prompt + completion, completion)
    return b',"usage":{%s%s}' % (numbers, more)


def last(prompt: int, completion: int, cached: int | None = None, member: bytes = FINGERPRINT) -> bytes:
    return HEAD + b'"choices":[]' + usage(prompt, completion, cached) + member + b"}\n\n"


DONE = b"data: [DONE]\n\n"

#: (as the engine sends it with usage forced on, as it would have sent it without).
FORCED = [
    (chunk(0, "", member=usage(7, 0)), chunk(0, "")),
    (chunk(0, NASTY, member=usage(7, 1)), chunk(0, NASTY)),
    (chunk(0, "b", "stop", member=usage(7, 3)), chunk(0, "b", "stop", member=FINGERPRINT)),
    (last(7, 3, cached=4), b""),
    (DONE, DONE),
]


def stream(
    meter: UsageMeter,
    *,
    dialect: HttpDialect = VLLM,
    fingerprint: Fingerprint | None = None,
    hide_chunks: bool = True,
    hide_last: bool = True,
    choices: int = 1,
    is_text: bool = False,
) -> StreamUsage:
    return StreamUsage(
        meter,
        dialect,
        fingerprint or Fingerprint(),
        hide_chunks=hide_chunks,
        hide_last=hide_last,
        choices=choices,
        is_text=is_text,
    )


@pytest.mark.parametrize("seed", range(30))
def test_hidden_byte_for_byte_however_it_is_cut(seed: int) -> None:
    meter = UsageMeter()
    answer = stream(meter)
    sent = b"".join(forced for forced, _ in FORCED)
    cuts = random.Random(seed)
    got, at = b"", 0
    while at < len(sent):
        size = cuts.randint(1, 300)
        got += answer.feed(sent[at : at + size])
        at += size
    got += answer.finish()
    assert got == b"".join(plain for _, plain in FORCED)
    assert meter == UsageMeter(prompt_tokens=7, cached_tokens=4, completion_tokens=3)


def test_once_the_fingerprint_is_known_nothing_is_held() -> None:
    fingerprint = Fingerprint()
    first = stream(UsageMeter(), fingerprint=fingerprint)
    held = [first.feed(forced) for forced, _ in FORCED]
    assert held[2] == b"" and held[3] == FORCED[2][1]
    second = stream(UsageMeter(), fingerprint=fingerprint)
    assert [second.feed(forced) for forced, _ in FORCED] == [plain for _, plain in FORCED]


def test_an_engine_without_a_fingerprint() -> None:
    answer = stream(UsageMeter())
    sent = chunk(0, "a", "stop", member=usage(1, 1)) + last(1, 1, member=b"") + DONE
    assert answer.feed(sent) == chunk(0, "a", "stop") + DONE


def test_who_asks_for_the_last_usage_gets_only_that() -> None:
    answer = stream(UsageMeter(), hide_last=False)
    sent = chunk(0, "a", member=usage(2, 1)) + chunk(0, "b", "stop", member=usage(2, 2)) + last(2, 2) + DONE
    assert answer.feed(sent) == chunk(0, "a") + chunk(0, "b", "stop") + last(2, 2) + DONE


def test_who_asks_for_running_usage_gets_everything_untouched() -> None:
    meter = UsageMeter()
    answer = stream(meter, hide_chunks=False, hide_last=False)
    sent = chunk(0, "a", member=usage(2, 1)) + chunk(0, "b", "stop", member=usage(2, 2)) + last(2, 2) + DONE
    assert answer.feed(sent) == sent
    assert meter == UsageMeter(prompt_tokens=2, completion_tokens=2)


def test_an_aborted_stream_is_counted_by_the_last_usage_of_each_choice() -> None:
    meter = UsageMeter()
    answer = stream(meter, choices=2)
    # Two prompts of 5 and 9 tokens, two choices of each.
    for choice, prompt, completion in ((0, 5, 1), (1, 5, 2), (2, 9, 4), (0, 5, 3), (3, 9, 1)):
        answer.feed(chunk(choice, "x", member=usage(prompt, completion)))
    assert meter == UsageMeter(prompt_tokens=14, completion_tokens=3 + 2 + 4 + 1)


def test_an_engine_that_writes_null_where_nobody_asked() -> None:
    answer = stream(UsageMeter(), dialect=SGLANG, is_text=True)
    null = b',"usage":null'
    sent = chunk(0, "a", member=usage(2, 1)) + chunk(0, "b", "stop", member=usage(2, 2)) + last(2, 2, member=b"") + DONE
    assert answer.feed(sent) == chunk(0, "a", member=null) + chunk(0, "b", "stop", member=null) + DONE


def test_in_a_chat_it_writes_nothing() -> None:
    answer = stream(UsageMeter(), dialect=SGLANG)
    assert answer.feed(chunk(0, "a", member=usage(2, 1))) == chunk(0, "a")


def test_an_engine_that_tells_usage_only_at_the_end() -> None:
    meter = UsageMeter()
    answer = stream(meter)
    sent = chunk(0, "a") + chunk(0, "b", "stop") + last(3, 2) + DONE
    assert answer.feed(sent) == chunk(0, "a") + chunk(0, "b", "stop") + DONE
    assert meter == UsageMeter(prompt_tokens=3, completion_tokens=2)


def test_an_error_in_the_stream_lets_go_what_was_held() -> None:
    answer = stream(UsageMeter())
    error = b'data: {"error":{"message":"boom"}}\n\n'
    finished = chunk(0, "a", "stop", member=usage(1, 1))
    assert answer.feed(finished) == b""
    assert answer.feed(error + DONE) == chunk(0, "a", "stop") + error + DONE


def test_what_is_cut_off_still_reaches_the_client() -> None:
    answer = stream(UsageMeter())
    assert answer.feed(b"data: {half") == b""
    assert answer.finish() == b"data: {half"


def test_usage_of_all_choices_together() -> None:
    meter = UsageMeter()
    answer = stream(meter, dialect=dataclasses.replace(VLLM, usage_per_choice=False))
    for choice, completion in ((0, 1), (1, 2), (0, 3)):
        answer.feed(chunk(choice, "x", member=usage(4, completion)))
    assert meter == UsageMeter(prompt_tokens=4, completion_tokens=3)
