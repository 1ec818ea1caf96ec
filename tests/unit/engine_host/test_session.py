"""A session over a real gRPC stream: answers, credit, fairness, cancellation, refusals."""

import asyncio

import pytest
from tests.support.wait import eventually
from tests.unit.engine_host.rig import PLENTY, Rig, ScriptedEngine, chat, hang, respond, until_disconnect

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.engine_host.engines.base import EngineDied, Receive, Scope, Send, current_meter

MIB = 1024 * 1024


async def test_welcome_names_the_host() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        assert edge.welcome is not None
        assert edge.welcome.host == "h1"
        assert edge.welcome.incarnation == rig.service.host.incarnation


async def test_streamed_and_whole_answers_with_counts() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        options = {"include_usage": True}
        streamed = await edge.start(chat(max_tokens=5, stream_options=options), lease_id="l1")
        whole = await edge.start(chat(max_tokens=5, stream=False), lease_id="l2")
        first, second = await edge.ended(streamed, whole)
        assert first.end is not None and second.end is not None and second.head is not None
        assert first.data.count(b"data: ") == 1 + 5 + 2, "a role, five tokens, usage and [DONE]"
        assert first.data.endswith(b"data: [DONE]\n\n")
        assert first.end.usage.completion_tokens == 5
        assert first.end.outcome == auth_pb2.OUTCOME_FINISHED
        assert first.end.reason == ""
        assert first.counts == sorted(first.counts)
        assert second.json["usage"]["completion_tokens"] == second.end.usage.completion_tokens == 5
        assert second.json["usage"]["prompt_tokens"] == second.end.usage.prompt_tokens > 0
        assert {h.name: h.value for h in second.head.headers}[b"content-type"] == b"application/json"


async def test_the_engine_sees_an_allowlist_of_headers_and_an_id_of_ours() -> None:
    seen: dict[bytes, bytes] = {}
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        seen.update(scope["headers"])
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"Access-Control-Allow-Origin", b"*"), (b"Date", b"now"), (b"X-Kept", b"1")],
            }
        )
        await send({"type": "http.response.body", "body": b"x"})

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        headers = [
            pb.Header(name=b"content-type", value=b"application/json"),
            pb.Header(name=b"authorization", value=b"Bearer sk-secret"),
            pb.Header(name=b"x-request-id", value=b"mine"),
        ]
        stream = await edge.start(b"{}", headers=headers, request_id="mine", query=b"a=1", traceparent="00-ab-cd-01")
        (answer,) = await edge.ended(stream)
        assert seen.keys() == {b"content-type", b"x-request-id", b"traceparent"}
        assert seen[b"x-request-id"] != b"mine"
        assert scopes[0]["query_string"] == b"a=1"
        assert scopes[0]["asgi"]["spec_version"] == "2.3"
        assert answer.head is not None
        assert [(h.name, h.value) for h in answer.head.headers] == [(b"x-kept", b"1")]


async def test_a_body_in_pieces() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        await respond(send, body + message["body"])

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start(b"one ", complete=False)
        await edge.send(bodies=[pb.BodyFrame(stream_id=stream, data=b"two ")])
        await edge.send(bodies=[pb.BodyFrame(stream_id=stream, data=b"three", complete=True)])
        (answer,) = await edge.ended(stream)
        assert answer.data == b"one two three"


async def test_a_stream_without_credit_stops_and_others_flow() -> None:
    sent: dict[str, int] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        name = (await receive())["body"].decode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for index in range(50):
            await send({"type": "http.response.body", "body": b"0123456789", "more_body": True})
            sent[name] = index + 1
        await send({"type": "http.response.body", "body": b""})

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        slow = await edge.start(b"slow", credit_bytes=25)
        fast = await edge.start(b"fast")
        (answer,) = await edge.ended(fast)
        assert len(answer.data) == 500
        await eventually(lambda: len(edge.answers[slow].data) == 25, "what was granted, to the byte")
        assert sent["slow"] == 2, "the application waits with its third piece in hand"
        await edge.send(credit_stream_ids=[slow], credit_bytes=[5])
        await eventually(lambda: len(edge.answers[slow].data) == 30, "five more bytes")
        await edge.send(credit_stream_ids=[slow], credit_bytes=[1000])
        (answer,) = await edge.ended(slow)
        assert answer.data == b"0123456789" * 50


async def test_the_simulator_joins_what_a_stalled_client_did_not_take() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        slow = await edge.start(chat(max_tokens=200), credit_bytes=1)
        (reference,) = await edge.ended(await edge.start(chat(max_tokens=200)))
        load = rig.service.engine.load
        await eventually(lambda: load().running == 0, "the engine is through, whatever the client does")
        await edge.send(credit_stream_ids=[slow], credit_bytes=[PLENTY])
        (answer,) = await edge.ended(slow)
        assert answer.end is not None
        assert answer.end.usage.completion_tokens == 200
        assert answer.data.count(b"data: ") == reference.data.count(b"data: ")


async def test_messages_stay_bounded_and_large_answers_take_turns() -> None:
    large = bytes(3 * MIB)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, large if (await receive())["body"] == b"large" else b"small")

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        frames = [edge.frame(b"large") for _ in range(6)] + [edge.frame(b"small")]
        await edge.send(starts=frames)
        answers = await edge.ended(*(frame.stream_id for frame in frames))
        assert all(answer.data == large for answer in answers[:-1])
        assert all(message.ByteSize() <= MIB for message in edge.messages)
        assert all(len(piece) <= 256 * 1024 for message in edge.messages for piece in message.data)
        small = frames[-1].stream_id
        at = next(i for i, message in enumerate(edge.messages) if small in [e.stream_id for e in message.ends])
        assert at < 4, "one turn of every large answer at most goes before a small one"


async def test_cancel_frees_the_engine_within_half_a_second() -> None:
    async with Rig() as rig:
        await rig.serving()
        edge = await rig.edge()
        streams = [await edge.start(chat(max_tokens=100_000), lease_id="l") for _ in range(3)]
        load = rig.service.engine.load
        await eventually(lambda: all(edge.answers[s].counts for s in streams), "tokens")
        await edge.send(cancels=streams)
        await eventually(lambda: load().running == 0, "the engine is free", 0.5)
        answers = await edge.ended(*streams)
        for answer in answers:
            assert answer.end is not None
            assert answer.end.outcome == auth_pb2.OUTCOME_CANCELLED
            assert answer.end.reason == ""
            assert answer.end.usage.completion_tokens >= answer.counts[-1][1] > 0
        assert len(rig.service.in_flight) == 0


async def test_an_application_deaf_to_disconnect_is_cancelled() -> None:
    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async with Rig(lambda: ScriptedEngine(deaf)) as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start()
        await eventually(lambda: len(rig.service.in_flight) == 1, "it runs")
        await edge.send(cancels=[stream])
        await eventually(lambda: len(rig.service.in_flight) == 0, "it left", 0.5)


async def test_a_cancelled_sender_without_credit_leaves_too() -> None:
    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(100), "more_body": True})
            await asyncio.sleep(0)

    async with Rig(lambda: ScriptedEngine(flood)) as rig:
        await rig.serving()
        edge = await rig.edge()
        stream = await edge.start(credit_bytes=1000)
        await eventually(lambda: len(edge.answers[stream].data) == 1000, "its credit is used up")
        await edge.send(cancels=[stream])
        (answer,) = await edge.ended(stream)
        assert len(answer.data) == 1000


async def test_timeout() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        edge = await rig.edge()
        (answer,) = await edge.ended(await edge.start(timeout_ms=50))
        assert answer.end is not None
        assert answer.end.reason == "REQUEST_TIMEOUT"
        assert answer.data == b"first"


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("POST", "/v1/load_lora_adapter", "ROUTE_NOT_FOUND"),
        ("POST", "/v1/chat/completions/../../invocations", "ROUTE_NOT_FOUND"),
        ("GET", "/v1/chat/completions", "METHOD_NOT_ALLOWED"),
    ],
)
async def test_paths_outside_the_allowlist_never_reach_the_engine(method: str, path: str, reason: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("reached")

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        (answer,) = await edge.ended(await edge.start(method=method, path=path))
        assert answer.end is not None
        assert answer.head is None
        assert (answer.end.reason, answer.end.outcome) == (reason, auth_pb2.OUTCOME_NOT_SENT)


async def test_the_limit_of_requests_in_flight() -> None:
    async with Rig(lambda: ScriptedEngine(hang), engine_host={"max_in_flight": 2}) as rig:
        await rig.serving()
        edge = await rig.edge()
        held = [await edge.start() for _ in range(2)]
        (refused,) = await edge.ended(await edge.start())
        assert refused.end is not None
        assert refused.end.reason == "NO_CAPACITY"
        await edge.send(cancels=[held[0]])
        await edge.ended(held[0])
        stream = await edge.start()
        await eventually(lambda: edge.answers[stream].data, "a place again")


async def test_faults_of_the_application_are_hidden_behind_an_id() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        if body == b"raise":
            raise RuntimeError("secret detail")
        if body == b"dead":
            raise EngineDied("gone")

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        bodies = (b"raise", b"silent", b"dead")
        ends = [a.end for a in await edge.ended(*[await edge.start(body) for body in bodies])]
        assert [end.reason for end in ends if end] == ["INTERNAL", "INTERNAL", "ENGINE_FAILED"]
        assert all(end is not None and end.outcome == auth_pb2.OUTCOME_FAILED for end in ends)
        assert all(end is not None and "secret" not in end.message for end in ends)


async def test_the_meter_of_a_request_is_its_own() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        meter = current_meter.get()
        assert meter is not None
        meter.completion_tokens += int((await receive())["body"])
        await respond(send)

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        frames = [edge.frame(str(n).encode()) for n in range(20)]
        await edge.send(starts=frames)
        answers = await edge.ended(*(frame.stream_id for frame in frames))
        assert [a.end.usage.completion_tokens for a in answers if a.end] == list(range(20))


async def test_a_stream_id_in_use_ends_the_session() -> None:
    async with Rig(lambda: ScriptedEngine(hang)) as rig:
        await rig.serving()
        edge = await rig.edge()
        frame = edge.frame()
        await edge.send(starts=[frame])
        await edge.send(starts=[frame])
        await eventually(lambda: edge.finished, "the session is over")
        await eventually(lambda: len(rig.service.in_flight) == 0, "nothing runs")


async def test_disconnect_is_told_once_the_answer_is_complete() -> None:
    told = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await respond(send, b"x")
        await until_disconnect(receive)
        told.set()

    async with Rig(lambda: ScriptedEngine(app)) as rig:
        await rig.serving()
        edge = await rig.edge()
        (answer,) = await edge.ended(await edge.start())
        assert told.is_set()
        assert answer.end is not None
        assert answer.end.outcome == auth_pb2.OUTCOME_FINISHED
