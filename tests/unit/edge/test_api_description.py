"""The API's description: every route is in it, with what the engines behind say of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import orjson
import pytest

from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.common.engine_routes import ENGINE_ROUTES, edge_paths
from vllm_proxy.common.errors import subclasses
from vllm_proxy.edge import engine_documents
from vllm_proxy.edge.api_description import describe
from vllm_proxy.edge.engine_documents import RETRY_S, EngineDocument, EngineDocuments

OWN: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "vLLM Proxy", "version": "0.1.0"},
    "paths": {"/health": {"get": {"responses": {"200": {"description": "ok"}}}}},
    "components": {"schemas": {"ErrorAnswer": {}}},
}


def engine_document(host: str = "vllm", **paths: Any) -> EngineDocument:
    """Of an engine that takes chats, whose messages are described by a tree of schemas."""
    chat = {
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Chat"}}}},
        "responses": {"200": {"description": "", "content": {"application/json": {"schema": {}}}}},
    }
    schemas = {
        "Chat": {"properties": {"messages": {"items": {"$ref": "#/components/schemas/Message"}}}},
        "Message": {
            "properties": {"inner": {"$ref": "#/components/schemas/Message"}},
            "discriminator": {"mapping": {"x": "#/components/schemas/Message"}},
        },
        "Unused": {"type": "string"},
    }
    openapi = {"openapi": "3.1.0", "paths": {"/v1/chat/completions": {"post": chat}, **paths}}
    return EngineDocument(host, f"{host}-1", {**openapi, "components": {"schemas": schemas}})


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def body_of(described: dict[str, Any], path: str, media: str = "application/json") -> Any:
    return described["paths"][path]["post"]["requestBody"]["content"][media]["schema"]


def test_every_engine_route_is_there() -> None:
    described = describe(OWN)
    operations = {(method, path): o for path, item in described["paths"].items() for method, o in item.items()}
    for route in ENGINE_ROUTES:
        for path in edge_paths(route):
            found = operations.pop((route.method.lower(), path))
            assert found["summary"] and found["security"] == [{"ApiKey": []}]
            assert ("requestBody" in found) == (route.model_in.name != "NOWHERE"), path
            assert {"200", "4XX", "5XX"} == found["responses"].keys()
            assert all("x-request-id" in answer["headers"] for answer in found["responses"].values())
    assert list(operations) == [("get", "/health")]
    ids = [o["operationId"] for item in described["paths"].values() for o in item.values() if "operationId" in o]
    assert len(ids) == len(set(ids)) > 20


def test_anthropics_routes_have_anthropics_errors() -> None:
    paths = describe(OWN)["paths"]

    def errors(path: str) -> set[str]:
        return set(references(paths[path]["post"]["responses"]["4XX"]))

    assert "#/components/schemas/AnthropicError" in errors("/v1/messages")
    assert "#/components/schemas/ErrorAnswer" in errors("/v1/completions")


def test_all_errors_of_ours_are_told() -> None:
    text = describe(OWN)["info"]["description"]
    assert all(error.default_message in text for error in subclasses())


def test_an_engines_own_schemas_come_first() -> None:
    described = describe(OWN, [engine_document()])
    for path in ("/v1/chat/completions", "/chat/completions"):
        assert body_of(described, path) == {"$ref": "#/components/schemas/vllm.Chat"}
    schemas = described["components"]["schemas"]
    assert {name for name in schemas if name.startswith("vllm.")} == {"vllm.Chat", "vllm.Message"}
    assert schemas["vllm.Message"]["discriminator"]["mapping"] == {"x": "#/components/schemas/vllm.Message"}
    assert all(reference.rpartition("/")[2] in schemas for reference in references(described))
    # What that engine does not describe is as it was.
    assert body_of(described, "/rerank") == body_of(describe(OWN), "/rerank")
    assert OWN["components"]["schemas"].keys() == {"ErrorAnswer"}


def test_each_route_is_described_by_a_host_that_has_it() -> None:
    rerank = {"post": {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}}
    described = describe(OWN, [engine_document("a"), engine_document("b", **{"/rerank": rerank})])
    assert body_of(described, "/v1/chat/completions") == {"$ref": "#/components/schemas/a.Chat"}
    assert body_of(described, "/rerank") == {"type": "object"}


def test_a_form_is_multipart_whatever_the_engine_says() -> None:
    form = {"post": {"requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": {"title": "F"}}}}}}
    described = describe(OWN, [engine_document(**{"/v1/audio/transcriptions": form})])
    assert body_of(described, "/v1/audio/transcriptions", "multipart/form-data") == {"title": "F"}


@pytest.mark.parametrize("wrong", [{"post": {"requestBody": []}}, {"post": {"parameters": ["x"]}}])
def test_a_description_that_makes_no_sense_is_left_out(wrong: Any) -> None:
    described = describe(OWN, [engine_document(**{"/v1/completions": wrong})])
    assert body_of(described, "/v1/completions") == body_of(describe(OWN), "/v1/completions")


@dataclass
class FakeHost:
    name: str
    incarnation: str


@dataclass
class FakeHosts:
    """Stands for Hosts and its table."""

    hosts: dict[str, FakeHost] = field(default_factory=dict)

    @property
    def table(self) -> FakeHosts:
        return self

    def channel_to(self, name: str) -> str:
        return name


class Answers:
    """Stands for the hosts' services: what each one answers, and who was asked."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes | None] = {}
        self.asked: list[str] = []

    def stub(self, channel: str) -> Any:
        async def call(_request: Any, timeout: float) -> pb.GetApiDescriptionResponse:
            self.asked.append(channel)
            await asyncio.sleep(0)
            text = self.texts[channel]
            if text is None:
                empty = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, empty, empty)
            return pb.GetApiDescriptionResponse(openapi_json=text)

        stub = type("Stub", (), {})()
        stub.GetApiDescription = call
        return stub


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(engine_documents.engine_pb2_grpc, "EngineServiceStub", answers.stub)
    return answers


class TestEngineDocuments:
    def documents(self, hosts: FakeHosts, clock: Callable[[], float] = lambda: 0.0) -> EngineDocuments:
        return EngineDocuments(hosts, 1.0, clock)  # type: ignore[arg-type]

    async def test_a_host_is_asked_once_for_each_of_its_starts(self, answers: Answers) -> None:
        hosts = FakeHosts({"b": FakeHost("b", "b-1"), "a": FakeHost("a", "a-1")})
        answers.texts = {"a": orjson.dumps({"openapi": "3.1.0"}), "b": orjson.dumps({"openapi": "3.1.1"})}
        documents = self.documents(hosts)
        both = await asyncio.gather(documents.read(), documents.read())
        assert [[d.host for d in found] for found in both] == [["a", "b"]] * 2
        assert sorted(answers.asked) == ["a", "b"]
        hosts.hosts = {"a": FakeHost("a", "a-2")}
        assert [d.incarnation for d in await documents.read()] == ["a-2"]

    async def test_what_cannot_be_used_is_left_out(self, answers: Answers) -> None:
        hosts = FakeHosts({name: FakeHost(name, name) for name in ("none", "old", "list")})
        answers.texts = {"none": b"", "old": orjson.dumps({"openapi": "3.0.2"}), "list": b"[]"}
        documents = self.documents(hosts)
        assert await documents.read() == await documents.read() == []
        assert len(answers.asked) == 3

    @pytest.mark.parametrize("failure", [None, b"{"])
    async def test_a_host_that_fails_is_left_alone_for_a_while(self, answers: Answers, failure: bytes | None) -> None:
        now = 0.0
        documents = self.documents(FakeHosts({"a": FakeHost("a", "a-1")}), lambda: now)
        answers.texts = {"a": failure}
        assert await documents.read() == await documents.read() == []
        assert answers.asked == ["a"]
        now, answers.texts = RETRY_S, {"a": orjson.dumps({"openapi": "3.1.0"})}
        assert [d.host for d in await documents.read()] == ["a"]
