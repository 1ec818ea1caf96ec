"""What the edge answers, and to whom: the allowlist, OpenAI's error shape, models, health, admin."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from tests.unit.edge.edge_peers import Clock, ScriptedSession, edge_config, eventually, no_documents
from tests.unit.edge.http_peer import Client, HttpxTransport

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.engine_routes import ENGINE_ROUTES, edge_paths
from vllm_proxy.common.errors import (
    AdapterNotFound,
    AuthUnavailable,
    InvalidApiKey,
    PermissionDenied,
    RateLimited,
    ServiceError,
)
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.routing.table import RoutingTable
from vllm_proxy.common.rpc.status import to_status
from vllm_proxy.edge.exchange import ExchangeContext
from vllm_proxy.edge.fastapi_app import build_api, routes_of
from vllm_proxy.edge.fleet_logs import FleetLogs
from vllm_proxy.edge.front_door import FrontDoor
from vllm_proxy.edge.http_server import HttpLimits, HttpServer
from vllm_proxy.edge.inference import InferenceEndpoint
from vllm_proxy.edge.metrics import EdgeMetrics
from vllm_proxy.edge.routes.admin import admin_router
from vllm_proxy.edge.routes.health import health_router
from vllm_proxy.edge.routes.metrics import metrics_router
from vllm_proxy.edge.routes.models import models_router

KEY = {"authorization": "Bearer sk-good"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


class Admitting:
    """The admitting side of an AuthClient."""

    def __init__(self) -> None:
        self.asked: list[auth_pb2.AdmitRequest] = []
        self.settlements: list[Any] = []
        self.abandoned: list[int] = []
        self.refusal: ServiceError | None = None
        self.user = "u"
        self.limits = auth_pb2.RateLimitState(limit=10, remaining=9, reset_ms=6_000)

    def ask(self, request: auth_pb2.AdmitRequest, answered: Any) -> int:
        self.asked.append(request)
        refusal = self.refusal
        if isinstance(refusal, AuthUnavailable):
            self._later(answered, refusal)
        elif refusal is not None:
            wait_ms = None if refusal.retry_after_s is None else int(refusal.retry_after_s * 1000)
            self._later(
                answered,
                auth_pb2.AdmitResponse(
                    reason=refusal.reason,
                    message=refusal.message,
                    limit_name=refusal.metadata.get("limit", ""),
                    retry_after_ms=wait_ms,
                    requests=self.limits,
                ),
            )
        else:
            self._later(
                answered,
                auth_pb2.AdmitResponse(admitted=True, lease_id="l1", key_id="k1", user=self.user, requests=self.limits),
            )
        return len(self.asked)

    def _later(self, answered: Any, answer: Any) -> None:
        asyncio.get_running_loop().call_soon(lambda: None if self.abandoned else answered(answer))

    def abandon(self, seq: int) -> None:
        self.abandoned.append(seq)

    async def admit(self, request: auth_pb2.AdmitRequest) -> auth_pb2.AdmitResponse:
        """For FastAPI's routes."""
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal
        return auth_pb2.AdmitResponse(admitted=True, user=self.user)

    def settle(self, settlement: Any) -> None:
        self.settlements.append(settlement)


class FakeHosts:
    """Hosts that answer each request at once."""

    def __init__(self) -> None:
        self.table = RoutingTable()
        self.sessions = {"a": Answering("a")}

    def pick(self, model: str | None, exclude: Any = ()) -> Any:
        return self.sessions["a"]

    def engine_of(self, session: Any) -> tuple[str, int]:
        return session.name, 0

    def base_of(self, model: str, host: str) -> str:
        return self.table.base_of(model, host)

    def connected(self, name: str) -> bool:
        return name in self.sessions

    @property
    def any_serving(self) -> bool:
        return any(host.serving and self.connected(host.name) for host in self.table.hosts.values())


class Answering(ScriptedSession):
    answer = b'{"object":"chat.completion"}'

    def start(self, sink: Any, body: bytes, credit_bytes: int) -> int:
        stream_id = super().start(sink, body, credit_bytes)
        asyncio.get_running_loop().call_soon(self._reply, sink)
        return stream_id

    def _reply(self, sink: Any) -> None:
        from vllm_proxy.api.engine.v1 import engine_pb2

        sink.head(
            200,
            [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(self.answer)).encode()),
                (b"access-control-allow-origin", b"*"),
                (b"transfer-encoding", b"chunked"),
                (b"date", b"then"),
                (b"x-engine", b"kept"),
            ],
        )
        sink.deliver(self.answer, 3, 4, False)
        sink.ended(engine_pb2.EndFrame(usage=auth_pb2.TokenUsage(prompt_tokens=3, completion_tokens=4)))


class Rpc:
    """A unary stub method that answers or fails, and keeps what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    async def __call__(self, request: Any, **_: Any) -> Any:
        self.asked.append(request)
        if isinstance(self.answer, ServiceError):
            status = to_status(self.answer)
            raise grpc.aio.AioRpcError(
                self.answer.grpc_code,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString())),
                details=status.message,
            )
        return self.answer


class Stub:
    def __init__(self, **answers: Any) -> None:
        for name, answer in answers.items():
            setattr(self, name, Rpc(answer))


@dataclass
class Edge:
    server: HttpServer
    http: httpx.AsyncClient
    auth: Admitting
    hosts: FakeHosts
    router_service: Any
    services: dict[str, bool]
    #: Of FastAPI's part.
    routes: set[tuple[str, str]]


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    auth, hosts, tasks = Admitting(), FakeHosts(), set()
    config = replace(edge_config(), max_body_bytes=1000, model_aliases={"gpt": "m"})
    limits = HttpLimits(4096, 1_000_000, receive_timeout_s=60, keep_alive_timeout_s=75, drain_idle_s=0)

    def spawn(coroutine: Any, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    metrics = EdgeMetrics()
    context = ExchangeContext(
        config=config,
        hosts=hosts,
        auth=auth,
        metrics=metrics,
        spawn=spawn,
        clock=Clock(),
    )
    router_service = Stub(LoadAdapter=pb.LoadAdapterResponse(), UnloadAdapter=AdapterNotFound("No adapter 'x'."))
    services = {"auth": True, "router": True}
    (tmp_path / "fastapi.log").write_text("line\n")
    routers = (
        health_router(hosts, lambda: services, lambda: False),
        metrics_router(metrics, dict, 1.0),
        models_router(hosts.table, auth),
        admin_router(
            auth,
            Stub(
                ReloadKeys=auth_pb2.ReloadKeysResponse(keys=2, problems=["entry 3: no key"]),
                RecordAction=auth_pb2.RecordActionResponse(),
            ),
            router_service,
            FleetLogs(LogFolder(tmp_path, ["fastapi"]), dict, 1.0),
            1.0,
            1.0,
        ),
    )
    api = build_api(routers, no_documents)
    api_routes = set(routes_of(api, routers))
    door = FrontDoor(InferenceEndpoint(context), api, api_routes, spawn)
    server = HttpServer(door, limits, context.clock)
    async with httpx.AsyncClient(transport=HttpxTransport(server), base_url="http://edge", headers=KEY) as http:
        yield Edge(server, http, auth, hosts, router_service, services, api_routes)
    await eventually(lambda: not tasks)
    assert not server.connections
    assert server.bodies.used_bytes == 0


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert "x-request-id" in response.headers
    return error


async def test_the_description_has_every_route_and_no_other(edge: Edge) -> None:
    answer = await edge.http.get("/openapi.json", headers={"authorization": ""})
    described = {(m.upper(), path) for path, item in answer.json()["paths"].items() for m in item}
    engines = {(route.method, path) for route in ENGINE_ROUTES for path in edge_paths(route)}
    ours = {(method, path.replace(":path", "")) for method, path in edge.routes}
    assert described == engines | ours - {("GET", "/openapi.json"), ("GET", "/docs")}
    assert "/openapi.json" in (await edge.http.get("/docs")).text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions"])
async def test_engine_routes(edge: Edge, path: str) -> None:
    response = await edge.http.post(path, json=CHAT, headers={"x-request-id": "mine", "origin": "x", "cookie": "y"})
    assert (response.status_code, response.content) == (200, Answering.answer)
    headers = response.headers
    assert headers["x-request-id"] == "mine"
    assert headers["x-engine"] == "kept"
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-reset-requests"]) == ("10", "6s")
    assert not {"access-control-allow-origin", "transfer-encoding"} & headers.keys()
    assert headers["date"] != "then"
    ((_, envelope, body, _),) = edge.hosts.sessions["a"].started
    assert envelope.path == "/v1/" + path.removeprefix("/v1").lstrip("/")
    assert body == response.request.content
    assert {header.name for header in envelope.headers} == {b"content-type", b"accept"}
    (asked,) = edge.auth.asked
    assert (asked.model, asked.response_tokens, asked.client_is_local) == ("m", 4, True)
    (settlement,) = edge.auth.settlements
    assert (settlement.prompt_tokens, settlement.completion_tokens) == (3, 4)


async def test_a_path_with_a_parameter_goes_to_the_engine_as_it_is(edge: Edge) -> None:
    response = await edge.http.get("/v1/responses/resp_1?stream=false")
    assert response.status_code == 200
    ((_, envelope, _, _),) = edge.hosts.sessions["a"].started
    assert (envelope.method, envelope.path, envelope.query) == ("GET", "/v1/responses/resp_1", b"stream=false")
    (asked,) = edge.auth.asked
    assert (asked.response_tokens, asked.prompt_tokens_estimate) == (0, 0)


async def test_a_form_names_its_model_too(edge: Edge) -> None:
    response = await edge.http.post(
        "/v1/audio/transcriptions", data={"model": "whisper"}, files={"file": ("a.wav", b"\0" * 100)}
    )
    assert response.status_code == 200
    assert edge.auth.asked[0].model == "whisper"


async def test_anthropics_clients(edge: Edge) -> None:
    headers = {"authorization": "", "x-api-key": "sk-good", "anthropic-version": "2023-06-01"}
    response = await edge.http.post("/v1/messages", json=CHAT, headers=headers)
    assert response.status_code == 200
    ((_, envelope, _, _),) = edge.hosts.sessions["a"].started
    assert {header.name: header.value for header in envelope.headers}[b"anthropic-version"] == b"2023-06-01"
    for method, status, kind in (("POST", 401, "authentication_error"), ("GET", 405, "invalid_request_error")):
        response = await edge.http.request(method, "/v1/messages", json=CHAT, headers={"authorization": ""})
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind and response.json()["type"] == "error"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1//chat/completions",
        "//v1/chat/completions",
        "/v1/chat/completions//",
        "/v1/chat/completions%2f",
        "/v1/./chat/completions",
        "/v1/%2e/chat/completions",
        "/v1/%63hat/completions",
        "/V1/chat/completions",
        "/v2/chat/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/invocations",
        "/inference/v1/generate",
        "/scale_elastic_ep",
        "/sleep",
        "/collective_rpc",
        "/admin%2freload-keys",
        "/docs/../admin/reload-keys",
    ],
)
async def test_everything_else_is_not_there(edge: Edge, path: str) -> None:
    # Asked by hand: HTTP libraries tidy paths up.
    client = Client(server=edge.server)
    client.get(path, "authorization: sk-good", method="POST")
    assert client.status == 404
    assert client.answer.error["code"] == "unknown_url"
    assert edge.auth.asked == []
    client.leave()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("GET", "/admin/reload-keys", "POST"),
        ("DELETE", "/health", "GET"),
    ],
)
async def test_wrong_method(edge: Edge, method: str, path: str, allow: str) -> None:
    response = await edge.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    assert error_of(response)["code"] == "method_not_allowed"


async def test_a_slash_too_many_is_redirected_as_the_engine_does(edge: Edge) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/v1/responses/resp_1/cancel"):
        response = await edge.http.post(path + "/?x=1", json=CHAT)
        assert (response.status_code, response.headers["location"]) == (307, path + "?x=1")
    assert edge.auth.asked == []


async def test_head_is_answered_where_get_is(edge: Edge) -> None:
    response = await edge.http.head("/v1/models")
    assert response.status_code == 200
    assert (await edge.http.head("/health", headers={"authorization": ""})).status_code == 503
    assert (await edge.http.head("/v1/chat/completions")).status_code == 405


async def test_a_compressed_body_reaches_the_engine_unpacked(edge: Edge) -> None:
    body = json.dumps(CHAT).encode()
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    response = await edge.http.post("/v1/completions", content=gzip.compress(body), headers=headers)
    assert response.status_code == 200
    ((_, envelope, sent, _),) = edge.hosts.sessions["a"].started
    assert sent == body
    assert b"content-encoding" not in {header.name for header in envelope.headers}
    assert edge.auth.asked[0].model == "m"
    for packed, status in ((b"x", 400), (gzip.compress(b"x" * 1001), 413)):
        response = await edge.http.post("/v1/completions", content=packed, headers=headers)
        assert (response.status_code, error_of(response)["type"]) == (status, "invalid_request_error")


async def test_what_a_body_unpacks_to_counts_among_the_bodies_that_are_held(edge: Edge) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    packed = gzip.compress(json.dumps({**CHAT, "user": "x" * 800}).encode())
    assert (await edge.http.post("/v1/completions", content=packed, headers=headers)).status_code == 200
    edge.server.bodies.limit_bytes = 500
    response = await edge.http.post("/v1/completions", content=packed, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (503, "no_capacity")
    assert edge.server.bodies.used_bytes == 0


async def test_nothing_is_held_for_a_client_that_left_while_its_body_was_unpacked(edge: Edge) -> None:
    client = Client(server=edge.server)
    packed = gzip.compress(json.dumps(CHAT).encode())
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: {len(packed)}\r\n"
    client.send(head.encode() + b"content-encoding: gzip\r\n\r\n" + packed)
    client.leave()
    for _ in range(3):
        await asyncio.sleep(0)
    assert edge.server.bodies.used_bytes == 0
    assert edge.auth.asked == []


async def test_media_from_a_private_address_are_refused_and_the_lease_is_given_back(edge: Edge) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]
    response = await edge.http.post("/v1/completions", json={**CHAT, "messages": [{"role": "user", "content": parts}]})
    assert response.status_code == 400
    assert "169.254.169.254" in error_of(response)["message"]
    (settlement,) = edge.auth.settlements
    assert settlement.outcome == auth_pb2.OUTCOME_NOT_SENT
    assert edge.hosts.sessions["a"].started == []


async def test_an_alias_reaches_admission_and_engine_as_what_it_means(edge: Edge) -> None:
    for asked in ("gpt", "base:lora"):
        await edge.http.post("/v1/completions", json={"prompt": "x", "model": asked})
    edge.hosts.table.apply(table(pb.Host(name="a", state=pb.HOST_STATE_SERVING, models=[pb.Model(name="base")])))
    await edge.http.post("/v1/completions", json={"prompt": "x", "model": "base:lora"})
    assert [asked.model for asked in edge.auth.asked] == ["m", "base:lora", "lora"]
    bodies = [json.loads(body) for _, _, body, _ in edge.hosts.sessions["a"].started]
    assert bodies == [{"prompt": "x", "model": model} for model in ("m", "base:lora", "lora")]


async def test_no_key(edge: Edge) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/admin/reload-keys")):
        response = await edge.http.request(method, path, headers={"authorization": ""})
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
    assert edge.auth.asked == []


async def test_refusals_keep_status_and_limits(edge: Edge) -> None:
    edge.auth.refusal = RateLimited("Too fast.", retry_after_s=0.5, metadata={"limit": "requests_per_second"})
    response = await edge.http.post("/v1/completions", json=CHAT)
    assert response.status_code == 429
    assert error_of(response)["code"] == "requests_per_second"
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-ratelimit-remaining-requests"] == "9"
    edge.auth.refusal = InvalidApiKey()
    assert (await edge.http.get("/v1/models")).status_code == 401
    edge.auth.refusal = PermissionDenied()
    assert (await edge.http.get("/admin/log-stats")).status_code == 403
    edge.auth.refusal = AuthUnavailable(retry_after_s=1)
    assert (await edge.http.post("/v1/completions", json=CHAT)).status_code == 503


async def test_limits_on_size(edge: Edge) -> None:
    response = await edge.http.post("/v1/completions", content=b"x" * 1001)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    response = await edge.http.post("/admin/unload-lora-adapter", content=b"x" * 70_000)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b"x" * 1000

    response = await edge.http.post("/admin/unload-lora-adapter", content=unannounced())
    assert response.status_code in (400, 413)
    response = await edge.http.get("/health", headers={"x": "y" * 5000})
    assert (response.status_code, error_of(response)["code"]) == (431, "headers_too_large")


def table(*hosts: pb.Host) -> pb.WatchTableResponse:
    return pb.WatchTableResponse(version=1, hosts=hosts)


async def test_models_are_merged_base_models_first(edge: Edge) -> None:
    card = b'{"id":"base","object":"model","created":1,"owned_by":"vllm","extra":null}'
    base = pb.Model(name="base", card_json=card)
    lora = pb.Model(name="lora", base="base", card_json=b'{"id":"lora","parent":"base"}')
    other = pb.Model(name="other", card_json=b'{"id":"other"}')
    bare = pb.Model(name="bare")
    edge.hosts.table.apply(
        table(
            pb.Host(name="a", state=pb.HOST_STATE_SERVING, models=[base, lora]),
            pb.Host(name="b", state=pb.HOST_STATE_SERVING, models=[base, other, bare]),
            pb.Host(name="c", state=pb.HOST_STATE_DOWN, models=[pb.Model(name="gone")]),
        )
    )
    for path in ("/v1/models", "/models"):
        response = await edge.http.get(path)
        listed = response.json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["base", "other", "bare", "lora"]
        assert card in response.content
    assert edge.auth.asked[0].operation == auth_pb2.OPERATION_READ


async def test_only_the_operator_sees_where_a_model_lies(edge: Edge) -> None:
    card = b'{"id":"org/base","object":"model","root":"/models/secret","parent":null,"created":17}'
    models = [pb.Model(name="org/base", card_json=card)]
    edge.hosts.table.apply(table(pb.Host(name="a", state=pb.HOST_STATE_SERVING, models=models)))
    for path in ("/v1/models/org/base", "/v1/models/org%2Fbase", "/models/org/base"):
        response = await edge.http.get(path)
        assert (response.status_code, response.content) == (200, card.replace(b"/models/secret", b"org/base"))
    assert b"secret" not in (await edge.http.get("/v1/models")).content
    edge.auth.user = "admin"
    assert (await edge.http.get("/v1/models/org/base")).content == card
    assert card in (await edge.http.get("/v1/models")).content
    for path in ("/v1/models/nobody", "/v1/models/..", "/v1/models/org/base/x", "/v1/models//org/base"):
        client = Client(server=edge.server)
        client.get(path, "authorization: sk-good")
        await eventually(lambda client=client: client.complete)
        assert (client.status, client.answer.error["code"]) == (404, "model_not_found")
        client.leave()
    assert (await edge.http.delete("/v1/models/org/base")).headers["allow"] == "GET"


async def test_health(edge: Edge) -> None:
    response = await edge.http.get("/health", headers={"authorization": ""})
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    model = pb.Model(name="m")
    edge.hosts.table.apply(table(pb.Host(name="a", engine="sim", state=pb.HOST_STATE_SERVING, models=[model])))
    response = await edge.http.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "services": {"auth": "up", "router": "up"},
        "engines": {"a": {"engine": "sim", "state": "serving", "connected": True, "models": ["m"]}},
    }
    edge.services["router"] = False
    assert (await edge.http.get("/health")).status_code == 200
    edge.services["auth"] = False
    assert (await edge.http.get("/health")).status_code == 503


async def test_client_that_leaves_while_it_is_admitted_leaves_no_lease(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(server=edge.server)
    body = json.dumps(CHAT).encode()
    with caplog.at_level("INFO"):
        client.get("/v1/completions", "authorization: sk-good", f"content-length: {len(body)}", method="POST")
        client.send(body)
        client.leave()
    assert edge.auth.abandoned == [1]
    (line,) = [record for record in caplog.records if record.message == "request"]
    assert (line.__dict__["fields"]["status"], line.__dict__["fields"]["reason"]) == (499, "CLIENT_GONE")
    assert edge.hosts.sessions["a"].started == []


async def test_request_without_a_key_is_refused_before_its_body(edge: Edge) -> None:
    client = Client(server=edge.server)
    client.get("/v1/completions", "content-length: 500", method="POST")
    assert client.status == 401
    client.send(b"x" * 500)
    client.get("/health")
    await eventually(lambda: len(client.answers) == 2)
    client.leave()


async def test_metrics(edge: Edge) -> None:
    await edge.http.post("/v1/completions", json=CHAT)
    text = (await edge.http.get("/metrics", headers={"authorization": ""})).text
    labels = 'model="unknown",reason="none",route="completions",status="200"'
    assert f"vllm_proxy_edge_requests_total{{{labels}}} 1.0" in text, "no host has that model"
    assert 'vllm_proxy_edge_tokens_total{kind="completion",model="unknown"} 4.0' in text


async def test_metrics_by_model_of_those_that_there_are(edge: Edge) -> None:
    model = pb.Model(name="m")
    edge.hosts.table.apply(table(pb.Host(name="a", engine="sim", state=pb.HOST_STATE_SERVING, models=[model])))
    await edge.http.post("/v1/completions", json={**CHAT, "model": "m"})
    text = (await edge.http.get("/metrics")).text
    assert 'vllm_proxy_edge_tokens_total{kind="prompt",model="m"} 3.0' in text


async def test_where_the_metrics_of_all_services_are(edge: Edge) -> None:
    (target,) = (await edge.http.get("/metrics/targets", headers={"authorization": ""})).json()
    assert target == {
        "targets": ["edge"],
        "labels": {"service": "edge", "instance": "edge", "__param_service": "edge"},
    }
    missing = await edge.http.get("/metrics", params={"service": "engine-nowhere"})
    assert (missing.status_code, error_of(missing)["code"]) == (404, None)


async def test_admin(edge: Edge) -> None:
    assert (await edge.http.post("/admin/reload-keys")).json() == {
        "status": "ok",
        "keys": 2,
        "problems": ["entry 3: no key"],
    }
    assert edge.auth.asked[0].operation == auth_pb2.OPERATION_ADMIN
    stats = (await edge.http.get("/admin/log-stats")).json()
    assert stats["services"]["edge"]["files"][0]["name"] == "fastapi.log"
    assert stats["total_bytes"] == 5
    assert (await edge.http.post("/admin/clean-logs?days=7")).json()["freed_bytes"] == 0


async def test_logs_are_cleaned_or_only_looked_at(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "fastapi.log.1").write_text("old\n")
    nothing = {"kept": [], "problems": []}
    would = {"edge": {"removed": ["fastapi.log.1"], "freed_bytes": 4, **nothing}}
    looked = (await edge.http.post("/admin/clean-logs?days=0&dry_run=true")).json()
    assert looked == {"status": "ok", "dry_run": True, "services": would, "freed_bytes": 4}
    assert (tmp_path / "fastapi.log.1").exists()
    assert (await edge.http.post("/admin/clean-logs?days=0")).json() == looked | {"dry_run": False}
    assert not (tmp_path / "fastapi.log.1").exists()


async def test_adapters_answer_as_vllms_own_endpoints(edge: Edge) -> None:
    body = {"lora_name": "x", "lora_path": "/a/x", "load_inplace": True}
    response = await edge.http.post("/admin/load-lora-adapter", json=body)
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'x' added successfully.")
    (asked,) = edge.router_service.LoadAdapter.asked
    assert asked.adapter == pb.AdapterSpec(name="x", path="/a/x", replace=True)
    response = await edge.http.post("/admin/unload-lora-adapter", json={"lora_name": "x"})
    assert (response.status_code, error_of(response)["message"]) == (404, "No adapter 'x'.")
    response = await edge.http.post("/admin/load-lora-adapter", json={"lora_name": "", "lora_path": "/a"})
    assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/admin/load-lora-adapter", b'{"lora_name":"x"}', "lora_path"),
        ("/admin/load-lora-adapter", b"{", None),
        ("/admin/clean-logs?days=soon", b"", "days"),
        ("/admin/clean-logs?days=-1", b"", "days"),
    ],
)
async def test_validation_faults_have_openais_shape(edge: Edge, path: str, body: bytes, param: str | None) -> None:
    response = await edge.http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    if param is not None:
        assert error_of(response)["param"] == param


async def test_unexpected_fault_shows_an_id_and_nothing_else(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def boom() -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(edge.hosts.table, "models", boom)
    response = await edge.http.get("/v1/models")
    assert response.status_code == 500
    message = error_of(response)["message"]
    assert "secret" not in message
    error_id = message.rpartition("error id ")[2].rstrip(").")
    assert any(getattr(record, "error_id", None) == error_id for record in caplog.records)


async def test_key_is_nowhere_in_the_log(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        await edge.http.post("/v1/completions", json=CHAT)
    (line,) = [record for record in caplog.records if record.message == "request"]
    fields = line.__dict__["fields"]
    assert (fields["key_id"], fields["status"]) == ("k1", 200)
    assert "sk-good" not in json.dumps([str(record.__dict__) for record in caplog.records])
