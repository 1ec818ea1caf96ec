"""What is asked of the engine's own server and of the gateway in front of it: good and bad, streamed and not.

Everything is greedy or seeded, and short. The parameters of the two big schemas stand one by one; a test compares them
with what the engine publishes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BASE = "smol"
ADAPTERS = ("pirate", "robot")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"

QUESTION = [{"role": "user", "content": "How do I boil an egg?"}]
PROMPT = "The capital of France is"
SAMPLED = {"temperature": 0.8, "seed": 7}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up.", "parameters": SCHEMA},
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


@dataclass(frozen=True, slots=True)
class Ask:
    name: str
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    #: What it sets, if its body is a JSON object.
    fields: frozenset[str] = frozenset()
    #: May be asked together with others: its answer has no number that depends on what shares a batch.
    together: bool = False


def post(name: str, path: str, fields: Mapping[str, Any], *, together: bool = False) -> Ask:
    return Ask(name, "POST", path, json.dumps(fields).encode(), fields=frozenset(fields), together=together)


def chat(name: str, /, **fields: Any) -> Ask:
    body = {"model": BASE, "messages": QUESTION, "max_tokens": 3, "temperature": 0, **fields}
    return post(f"chat: {name}", CHAT, body)


def completion(name: str, /, **fields: Any) -> Ask:
    body = {"model": BASE, "prompt": PROMPT, "max_tokens": 3, "temperature": 0, **fields}
    return post(f"completion: {name}", COMPLETIONS, body)


def raw(name: str, path: str, body: bytes, **headers: str) -> Ask:
    named = {key.replace("_", "-"): value for key, value in headers.items()} or {"content-type": "application/json"}
    return Ask(f"raw: {name}", "POST", path, body, named, together=True)


def get(path: str, method: str = "GET") -> Ask:
    return Ask(f"{method} {path}", method, path, together=True)


#: The parameters that chat and text completions share: what is set beside a plain request.
SAMPLING: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "frequency_penalty": [{"frequency_penalty": 0.5}, {"frequency_penalty": 9}],
    "presence_penalty": [{"presence_penalty": -0.5}],
    "logit_bias": [{"logit_bias": {"11": 50}}, {"logit_bias": {"x": 1}}, {"logit_bias": {"11": 1000}}],
    "max_tokens": [{"max_tokens": 1}, {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 100_000}],
    "n": [{"n": 2, **SAMPLED}, {"n": 2}, {"n": 0}],
    "seed": [{"seed": 7}, {"seed": 2**70}],
    "stop": [{"stop": ["the", "egg"]}, {"stop": "a"}, {"stop": ["a"] * 5}, {"stop": [""]}],
    "stream_options": [{"stream_options": {"include_usage": True}}],
    "temperature": [SAMPLED, {"temperature": -1}, {"temperature": "hot"}],
    "top_p": [{"top_p": 0.5, **SAMPLED}, {"top_p": 2}],
    "user": [{"user": "somebody"}],
    "use_beam_search": [{"use_beam_search": True, "n": 2, "max_tokens": 2}],
    "top_k": [{"top_k": 3, **SAMPLED}, {"top_k": -7}],
    "min_p": [{"min_p": 0.2, **SAMPLED}],
    "repetition_penalty": [{"repetition_penalty": 1.5}, {"repetition_penalty": 0}],
    "watermarking": [{"watermarking": False}, {"watermarking": True}],
    "length_penalty": [{"length_penalty": 0.5, "use_beam_search": True, "n": 1, "max_tokens": 2}],
    "stop_token_ids": [{"stop_token_ids": [253, 260, 28, 30]}],
    "include_stop_str_in_output": [{"include_stop_str_in_output": True, "stop": ["a", "e"]}],
    "ignore_eos": [{"ignore_eos": True}],
    "min_tokens": [{"min_tokens": 2}, {"min_tokens": 9}],
    "skip_special_tokens": [{"skip_special_tokens": False}],
    "spaces_between_special_tokens": [{"spaces_between_special_tokens": False}],
    "truncate_prompt_tokens": [{"truncate_prompt_tokens": 4}, {"truncate_prompt_tokens": -5}],
    "truncation_side": [{"truncation_side": "right", "truncate_prompt_tokens": 4}],
    "prompt_logprobs": [{"prompt_logprobs": 1}, {"prompt_logprobs": 999}],
    "logprob_token_ids": [{"logprob_token_ids": [11, 12], "logprobs": 1}],
    "allowed_token_ids": [{"allowed_token_ids": [11, 12, 13]}, {"allowed_token_ids": []}],
    "bad_words": [{"bad_words": ["Paris", "egg", "To"]}],
    "echo": [{"echo": True}],
    "add_special_tokens": [{"add_special_tokens": True}, {"add_special_tokens": False}],
    "response_format": [
        {"response_format": {"type": "json_object"}, "max_tokens": 8},
        {
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            "max_tokens": 8,
        },
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema"}},
    ],
    "structured_outputs": [
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "[ab]{4}"}},
        {"structured_outputs": {"json": SCHEMA}, "max_tokens": 8},
        {"structured_outputs": {"grammar": 'root ::= "x" "y"'}},
        {"structured_outputs": {"regex": "(("}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"choice": ["a"], "regex": "b"}},
    ],
    "priority": [{"priority": 0}, {"priority": 3}],
    "request_id": [{"request_id": "mine"}],
    "session_id": [{"session_id": "mine"}],
    "return_tokens_as_token_ids": [{"return_tokens_as_token_ids": True, "logprobs": 1}],
    "return_token_ids": [{"return_token_ids": True}],
    "routed_experts_prompt_start": [{"routed_experts_prompt_start": 0}],
    "return_token_offsets": [{"return_token_offsets": True}],
    "mm_payload": [{"mm_payload": "none"}],
    "return_mm_kwargs": [{"return_mm_kwargs": False}],
    "cache_salt": [{"cache_salt": "pepper"}, {"cache_salt": ""}],
    "kv_transfer_params": [{"kv_transfer_params": {}}],
    "ec_transfer_params": [{"ec_transfer_params": {}}],
    "vllm_xargs": [{"vllm_xargs": {"x": 1}}],
    "repetition_detection": [
        {"repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3}},
        {"repetition_detection": {"min_count": -1}},
    ],
    "thinking_token_budget": [{"thinking_token_budget": 4}],
    "stream_interval": [{"stream_interval": 2}, {"stream_interval": 0}],
}

ONLY_CHAT: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "logprobs": [{"logprobs": True}, {"logprobs": False, "top_logprobs": 2}],
    "top_logprobs": [{"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 1000}],
    "max_completion_tokens": [{"max_completion_tokens": 2}, {"max_completion_tokens": 2, "max_tokens": 1}],
    "tools": [
        {"tools": [TOOL], "tool_choice": "required", "max_tokens": 8},
        {"tools": [TOOL]},
        {"tools": []},
        {"tools": [{"type": "function"}]},
    ],
    "tool_choice": [
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}, "max_tokens": 8},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": "sometimes"},
    ],
    "reasoning_effort": [{"reasoning_effort": "low"}, {"reasoning_effort": "huge"}],
    "include_reasoning": [{"include_reasoning": False}],
    "parallel_tool_calls": [{"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}],
    "add_generation_prompt": [{"add_generation_prompt": False}],
    "continue_final_message": [
        {
            "messages": [*QUESTION, {"role": "assistant", "content": "First, you"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        {"continue_final_message": True},
    ],
    "documents": [{"documents": [{"title": "t", "text": "x"}]}],
    "chat_template": [{"chat_template": "{{ messages }}"}],
    "chat_template_kwargs": [{"chat_template_kwargs": {"x": 1}}],
    "media_io_kwargs": [{"media_io_kwargs": {"video": {"num_frames": 1}}}],
    "mm_processor_kwargs": [{"mm_processor_kwargs": {"x": 1}}],
    "return_prompt_text": [{"return_prompt_text": True}],
}

ONLY_COMPLETIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "prompt": [
        {"prompt": ["One two", "Three four"]},
        {"prompt": [504, 3575, 282]},
        {"prompt": [[504, 3575], [282, 4649, 314]]},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": None},
        {"prompt": [999_999_999]},
        {"prompt": [-1]},
        {"prompt": {"text": "x"}},
        {"prompt": "word " * 3000},
    ],
    "logprobs": [{"logprobs": 2}, {"logprobs": 0}, {"logprobs": 500}, {"logprobs": -2}],
    "suffix": [{"suffix": "."}],
    "prompt_embeds": [{"prompt_embeds": "AAAA"}],
}

#: Streamed: each of them beside `stream: true`.
STREAMED: Sequence[Mapping[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stream_options": {"include_usage": "maybe"}},
    {"stream_options": None},
    {"max_tokens": 1},
    {"logprobs": 1},
    {"n": 2, **SAMPLED, "max_tokens": 1},
    {"stop": ["the", "a"]},
    {"echo": True},
    {"return_token_ids": True},
    {"prompt_logprobs": 1},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"stream_interval": 2, "max_tokens": 6},
    {"use_beam_search": True, "n": 2},
    {"response_format": {"type": "json_object"}, "max_tokens": 8},
    {"request_id": "mine"},
    {"temperature": -1},
]
STREAMED_CHAT: Sequence[Mapping[str, Any]] = [
    {"tools": [TOOL], "tool_choice": "required", "max_tokens": 8},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}, "max_tokens": 8},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"logprobs": True, "top_logprobs": 2},
    {"messages": []},
]

CONVERSATIONS: Mapping[str, Any] = {
    "system": [{"role": "system", "content": "Be brief."}, *QUESTION],
    "developer": [{"role": "developer", "content": "Be brief."}, *QUESTION],
    "several turns": [
        *QUESTION,
        {"role": "assistant", "content": "In water."},
        {"role": "user", "content": "How long?"},
    ],
    "text parts": [{"role": "user", "content": [{"type": "text", "text": "Boil"}, {"type": "text", "text": "an egg"}]}],
    "an image": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}],
    "a sound": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
    "an unknown part": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}],
    "tool results": [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"n": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
    ],
    "bad tool arguments": [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{"}}],
        },
        *QUESTION,
    ],
    "an empty content": [{"role": "user", "content": ""}],
    "no content": [{"role": "user"}],
    "an unknown role": [{"role": "alien", "content": "x"}],
    "no role": [{"content": "x"}],
    "none": [],
    "a string": "hello",
    "numbers": [1, 2],
    "null": None,
    "not ASCII": [{"role": "user", "content": "Wie geht es? 你好 🥚 \u0000"}],
    "too long": [{"role": "user", "content": "word " * 3000}],
}

MODELS: Mapping[str, Any] = {
    "an adapter": "pirate",
    "the other adapter": "robot",
    "an unknown one": "no-such-model",
    "an empty name": "",
    "null": None,
    "a number": 5,
    "a path": "../../etc/passwd",
    "a very long one": "m" * 1000,
    "not ASCII": "模型",
}

BROKEN: Mapping[str, bytes] = {
    "nothing": b"",
    "an open brace": b"{",
    "half a string": b'{"model": "smo',
    "a list": b"[]",
    "null": b"null",
    "a string": b'"hello"',
    "a number": b"12",
    "an empty object": b"{}",
    "words": b"hello there",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "smol"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a trailing comma": b'{"model": "smol",}',
    "two objects": b"{}{}",
    "single quotes": b"{'model': 'smol'}",
    "deep nesting": b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "control characters": b'{"model": "a\x01b"}',
}

NUMBERS: Mapping[str, bytes] = {
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "1e400": b"1e400",
    "a long integer": b"1" * 100,
    "a string": b'"3"',
    "a float": b"3.0",
    "a fraction": b"3.5",
    "true": b"true",
    "a list": b"[3]",
    "null": b"null",
}


def asks() -> Iterator[Ask]:
    yield chat("plain")
    yield completion("plain")
    for parameter, cases in {**SAMPLING, **ONLY_CHAT}.items():
        for number, case in enumerate(cases):
            if "logprobs" in case and parameter in SAMPLING:
                case = {**case, "logprobs": True}
            yield chat(f"{parameter} {number}", **case)
    for parameter, cases in {**SAMPLING, **ONLY_COMPLETIONS}.items():
        for number, case in enumerate(cases):
            yield completion(f"{parameter} {number}", **case)
    for number, case in enumerate((*STREAMED, *STREAMED_CHAT)):
        yield chat(f"streamed {number}", stream=True, **{**case, **({"logprobs": True} if "logprobs" in case else {})})
    for number, case in enumerate(STREAMED):
        yield completion(f"streamed {number}", stream=True, **case)
    for name, messages in CONVERSATIONS.items():
        yield chat(f"messages: {name}", messages=messages)
    for name, model in MODELS.items():
        yield chat(f"model: {name}", model=model)
        yield completion(f"model: {name}", model=model)
    for adapter in ADAPTERS:
        yield chat(f"{adapter} streamed", model=adapter, stream=True)
    yield chat("an unknown model streamed", model="no-such-model", stream=True)
    yield chat("an unknown field", colour="blue")
    yield chat("stream as a string", stream="yes")
    yield chat("stream as a word", stream="perhaps")
    yield post("chat: no model", CHAT, {"messages": QUESTION, "max_tokens": 2, "temperature": 0})
    yield post("completion: no model", COMPLETIONS, {"prompt": PROMPT, "max_tokens": 2, "temperature": 0})
    yield from malformed()
    yield from batch()
    yield from responses()
    yield from anthropic()
    yield from tokens()
    yield from other_routes()


def malformed() -> Iterator[Ask]:
    for path, noun in ((CHAT, "chat"), (COMPLETIONS, "completion"), (RESPONSES, "responses"), (MESSAGES, "messages")):
        for name, body in BROKEN.items():
            yield raw(f"{noun}: {name}", path, body)
    for name, number in NUMBERS.items():
        for key in (b"temperature", b"n", b"top_k"):
            body = b'{"model":"smol","prompt":"x","max_tokens":1,"seed":1,"%s":%s}' % (key, number)
            yield Ask(f"raw: {key.decode()}: {name}", "POST", COMPLETIONS, body)
    good = b'{"model":"smol","prompt":"x","max_tokens":1,"temperature":0}'
    yield raw("twice the same key", COMPLETIONS, b'{"model":"nobody",' + good[1:])
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "x"):
        yield raw(f"content type {media_type}", COMPLETIONS, good, content_type=media_type)
    for media_type in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        yield raw(f"content type {media_type}", COMPLETIONS, good, content_type=media_type)
    yield raw("no content type", COMPLETIONS, good, accept="*/*")
    yield raw("a form", COMPLETIONS, b"model=smol&prompt=x", content_type="application/x-www-form-urlencoded")
    yield raw("accept text", COMPLETIONS, good, content_type="application/json", accept="text/plain")


def batch() -> Iterator[Ask]:
    path = CHAT + "/batch"
    body = {"model": BASE, "messages": [QUESTION, QUESTION], "max_tokens": 2, "temperature": 0}
    yield post("batch: two", path, body)
    yield post("batch: of an adapter", path, {**body, "model": "robot"})
    yield post("batch: streamed", path, {**body, "stream": True})
    yield post("batch: one level", path, {**body, "messages": QUESTION})
    yield post("batch: empty", path, {**body, "messages": []})


def responses() -> Iterator[Ask]:
    body = {"model": BASE, "input": "How do I boil an egg?", "max_output_tokens": 3, "temperature": 0}
    function = {"type": "function", "name": "look_up", "description": "x", "parameters": SCHEMA, "strict": True}
    json_format = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    cases: Mapping[str, Mapping[str, Any]] = {
        "plain": {},
        "streamed": {"stream": True},
        "an adapter": {"model": "pirate"},
        "items": {"input": [{"role": "user", "content": "Hi"}]},
        "item parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
        "instructions": {"instructions": "Be brief."},
        "instructions streamed": {"instructions": "Be brief.", "stream": True},
        "not stored": {"store": False},
        "metadata": {"metadata": {"a": "b"}},
        "logprobs": {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        "a tool": {"tools": [function], "tool_choice": "required", "max_output_tokens": 8},
        "a tool streamed": {"tools": [function], "tool_choice": "required", "max_output_tokens": 8, "stream": True},
        "JSON": {"text": json_format, "max_output_tokens": 8},
        "in the background": {"background": True},
        "after one that is not there": {"previous_response_id": "resp_nobody"},
        "after something else": {"previous_response_id": "nobody"},
        "an unknown model": {"model": "nobody"},
        "an unknown model streamed": {"model": "nobody", "stream": True},
        "no input": {"input": None},
        "a number": {"input": 5},
        "temperature": {"temperature": -1},
        "too long": {"input": "word " * 3000},
    }
    for name, case in cases.items():
        yield post(f"responses: {name}", RESPONSES, {**body, **case})
    for path in ("/v1/responses/resp_nobody", "/v1/responses/nobody", "/v1/responses/resp_nobody?stream=true"):
        yield get(path)
    yield get("/v1/responses/resp_nobody?starting_after=x")
    yield get("/v1/responses/resp_nobody/cancel", "POST")
    yield get("/v1/responses/nobody/cancel", "POST")


def anthropic() -> Iterator[Ask]:
    body = {"model": BASE, "messages": QUESTION, "max_tokens": 3, "temperature": 0}
    tool = {"name": "look_up", "description": "x", "input_schema": SCHEMA}
    picture = {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]}
    cases: Mapping[str, Mapping[str, Any]] = {
        "plain": {},
        "streamed": {"stream": True},
        "an adapter": {"model": "robot"},
        "system": {"system": "Be brief."},
        "system parts": {"system": [{"type": "text", "text": "Be brief."}]},
        "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        "a tool": {"tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 8},
        "a tool streamed": {"tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 8, "stream": True},
        "a named tool": {"tools": [tool], "tool_choice": {"type": "tool", "name": "look_up"}, "max_tokens": 8},
        "stop sequences": {"stop_sequences": ["the", "a"]},
        "top_k": {"top_k": 1, "top_p": 0.9},
        "an image": {"messages": [{"role": "user", "content": [{"type": "image", "source": picture}]}]},
        "an unknown model": {"model": "nobody"},
        "an unknown model streamed": {"model": "nobody", "stream": True},
        "no max_tokens": {"max_tokens": None},
        "max_tokens 0": {"max_tokens": 0},
        "no messages": {"messages": []},
        "a bad role": {"messages": [{"role": "alien", "content": "x"}]},
        "temperature": {"temperature": -1},
        "too long": {"messages": [{"role": "user", "content": "word " * 3000}]},
    }
    for name, case in cases.items():
        yield post(f"messages: {name}", MESSAGES, {**body, **case})
    count = {"model": BASE, "messages": QUESTION}
    path = MESSAGES + "/count_tokens"
    yield post("count_tokens: plain", path, count, together=True)
    yield post("count_tokens: system and tool", path, {**count, "system": "Hi", "tools": [tool]}, together=True)
    yield post("count_tokens: an unknown model", path, {**count, "model": "nobody"}, together=True)
    yield post("count_tokens: no messages", path, {"model": BASE}, together=True)


def tokens() -> Iterator[Ask]:
    cases: Mapping[str, Mapping[str, Any]] = {
        "text": {"model": BASE, "prompt": PROMPT},
        "an adapter": {"model": "pirate", "prompt": PROMPT},
        "no model": {"prompt": PROMPT},
        "with strings": {"model": BASE, "prompt": PROMPT, "return_token_strs": True},
        "without special tokens": {"model": BASE, "prompt": PROMPT, "add_special_tokens": False},
        "a conversation": {"model": BASE, "messages": QUESTION},
        "a conversation with a tool": {"model": BASE, "messages": QUESTION, "tools": [TOOL]},
        "an unknown model": {"model": "nobody", "prompt": "x"},
        "nothing": {"model": BASE},
        "a number": {"model": BASE, "prompt": 5},
    }
    for name, case in cases.items():
        yield post(f"tokenize: {name}", "/tokenize", case, together=True)
    for name, ids in {
        "some": [504, 3575],
        "none": [],
        "unknown": [999_999_999],
        "a string": "x",
        "a word": ["x"],
    }.items():
        yield post(f"detokenize: {name}", "/detokenize", {"model": BASE, "tokens": ids}, together=True)
    yield post("detokenize: an unknown model", "/detokenize", {"model": "nobody", "tokens": [1]}, together=True)


def other_routes() -> Iterator[Ask]:
    """What this model cannot do: the engine's own answer too."""
    body = {"model": BASE, "input": "x", "query": "x", "documents": ["y"], "text_1": "x", "text_2": "y"}
    for path in (
        *("/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/score", "/v1/score"),
        *("/rerank", "/v1/rerank", "/v2/rerank", "/v1/systemone"),
    ):
        yield post(f"POST {path}", path, body, together=True)
    scoring = {"model": BASE, "query": "Is it good?", "items": ["yes", "no"], "label_token_ids": [11, 12]}
    yield post("generative scoring", "/generative_scoring", scoring)
    yield post("generative scoring: nothing", "/generative_scoring", {"model": BASE}, together=True)
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nsmol\r\n--x--\r\n'
        yield raw(f"form to {path}", path, form, content_type="multipart/form-data; boundary=x")
        yield raw(f"JSON to {path}", path, b"{}")
    yield get("/version")
    for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/tokenize"):
        yield get(path)
        yield get(path, "PUT")
    yield get("/v1/responses/resp_x", "DELETE")
    for path in ("/", "/v1", "/v1/nothing", "/v1/chat", "/v1/chat/completions/x"):
        yield get(path, "POST")


ASKS = tuple(asks())
