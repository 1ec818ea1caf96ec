"""Keys, usage and the audit log over HTTP: what is asked of the auth service, and what is answered."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import grpc.aio
import httpx
import pytest
from tests.unit.edge.edge_peers import no_documents
from tests.unit.edge.http_peer import LIMITS, HttpxTransport

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.errors import AdapterNotFound, KeyIsDeclared, KeyNotFound, PermissionDenied, ServiceError
from vllm_proxy.common.rpc.status import to_status
from vllm_proxy.edge.admission import AdmissionRefused
from vllm_proxy.edge.fastapi_app import build_api, routes_of
from vllm_proxy.edge.front_door import FrontDoor
from vllm_proxy.edge.http_server import HttpServer
from vllm_proxy.edge.routes.admin import admin_router
from vllm_proxy.edge.routes.audit import audit_router
from vllm_proxy.edge.routes.keys import keys_router
from vllm_proxy.edge.routes.own_usage import own_usage_router
from vllm_proxy.edge.routes.usage import usage_router

HOUR_MS = 3_600_000
#: 2023-11-15T00:00:00Z
DAY_MS = 1_700_006_400_000
SECRET = "sk-" + "a" * 43


def failed(error: ServiceError) -> grpc.aio.AioRpcError:
    status = to_status(error)
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(error.grpc_code, grpc.aio.Metadata(), metadata, details=status.message)


class AuthService:
    """Answers each method with what the test put there, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"RecordAction": pb.RecordActionResponse()}
        self.asked: list[Any] = []

    def __getattr__(self, method: str) -> Any:
        async def call(message: Any, **_: Any) -> Any:
            copy = type(message)()
            copy.CopyFrom(message)
            self.asked.append(copy)
            answer = self.answers[method]
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, ServiceError):
                raise failed(answer)
            return answer

        return call


class Admitting:
    def __init__(self) -> None:
        self.refusal: ServiceError | None = None

    async def admit(self, request: pb.AdmitRequest) -> pb.AdmitResponse:
        answer = pb.AdmitResponse(admitted=True, key_id="0a1b2c3d4e5f", user="admin")
        if self.refusal is not None and request.operation == pb.OPERATION_ADMIN:
            raise AdmissionRefused(self.refusal, answer)
        return answer


class Edge:
    def __init__(self) -> None:
        self.auth = Admitting()
        self.tasks: set[asyncio.Task[None]] = set()
        self.service = AuthService()
        self.router_service = AuthService()
        auth: Any = self.auth
        service: Any = self.service
        routers = (
            admin_router(auth, service, self.router_service, None, 1.0, 1.0),  # type: ignore[arg-type]
            keys_router(auth, service, 1.0),
            usage_router(auth, service, 1.0),
            own_usage_router(service, 1.0),
            audit_router(auth, service, 1.0),
        )
        self.api = build_api(routers, no_documents)
        door = FrontDoor(None, self.api, routes_of(self.api, routers), self._spawn)  # type: ignore[arg-type]
        self.http = httpx.AsyncClient(
            transport=HttpxTransport(HttpServer(door, replace(LIMITS, max_buffered_bytes=1 << 20), time.monotonic)),
            base_url="http://edge",
            headers={"authorization": "Bearer sk-admin"},
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    @property
    def asked(self) -> Any:
        """The only thing that the auth service was asked."""
        (message,) = self.service.asked
        return message


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    async with edge.http:
        yield edge


def a_key(**fields: Any) -> pb.Key:
    spec = pb.KeySpec(user="alice", name="laptop", quota=100, quota_period=pb.QUOTA_PERIOD_DAY)
    spec.rate_limit.qps = 5
    spec.rate_limit.concurrent = 0
    return pb.Key(
        key_id="3f9a00112233",
        prefix="sk-aaaa…",
        user="alice",
        enabled=True,
        quota=100,
        quota_used=7,
        prompt_tokens=3,
        completion_tokens=4,
        requests=1,
        spec=spec,
        source=pb.KEY_SOURCE_CREATED,
        state=pb.KEY_STATE_ACTIVE,
        created_at_ms=DAY_MS,
        created_by="admin",
        **fields,
    )


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return error


class TestCreate:
    async def test_a_key_is_made_and_shown_once(self, edge: Edge) -> None:
        edge.service.answers["CreateKey"] = pb.CreateKeyResponse(key=a_key(), secret=SECRET)
        body = {
            "user": "alice",
            "name": "laptop",
            "quota": 100,
            "quota_period": "day",
            "rate_limit": {"qps": 5, "concurrent": None},
            "models": ["qwen-*"],
            "model_limits": {"pirate": {"max_response_tokens": 50}},
            "expires_at": "2030-01-01T00:00:00+01:00",
            "priority": 3,
        }
        response = await edge.http.post("/admin/keys", json=body, headers={"x-request-id": "r-1"})
        assert response.status_code == 201
        assert response.headers["cache-control"] == "no-store"
        answer = response.json()
        assert (answer["key"], answer["id"], answer["prefix"]) == (SECRET, "3f9a00112233", "sk-aaaa…")
        assert answer["rate_limit"] == {"qps": 5, "concurrent": None}
        assert (answer["quota_used"], answer["quota_period"], answer["state"]) == (7, "day", "active")
        assert answer["created_at"] == "2023-11-15T00:00:00Z"
        spec, actor = edge.asked.spec, edge.asked.actor
        assert (spec.rate_limit.qps, spec.rate_limit.HasField("concurrent"), spec.rate_limit.concurrent) == (5, True, 0)
        assert not spec.rate_limit.HasField("tokens_per_minute")
        assert list(spec.models.patterns) == ["qwen-*"]
        assert spec.model_limits["pirate"].max_response_tokens == 50
        assert spec.expires_at_ms == 1_893_452_400_000
        assert spec.priority == "3"
        assert (actor.key_id, actor.user, actor.client_address, actor.request_id) == (
            "0a1b2c3d4e5f",
            "admin",
            "127.0.0.1",
            "r-1",
        )

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "user"),
            ({"user": ""}, "user"),
            ({"user": "a", "quota": -1}, "quota"),
            ({"user": "a", "quota": False}, "quota"),
            ({"user": "a", "quota": "5"}, "quota"),
            ({"user": "a", "enabled": 0}, "enabled"),
            ({"user": "a", "quota_period": "week"}, "quota_period"),
            ({"user": "a", "rate_limit": {"qps": 0}}, "rate_limit.qps"),
            ({"user": "a", "rate_limit": {"rpm": 1}}, "rate_limit.rpm"),
            ({"user": "a", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
            ({"user": "a", "models": [""]}, "models.0"),
            ({"user": "a", "max_budget": 1}, "max_budget"),
        ],
        ids=str,
    )
    async def test_a_bad_field_is_named(self, edge: Edge, body: Any, param: str) -> None:
        response = await edge.http.post("/admin/keys", json=body)
        assert response.status_code == 422
        assert error_of(response)["param"] == param
        assert not edge.service.asked

    async def test_broken_json_is_no_parameters_fault(self, edge: Edge) -> None:
        response = await edge.http.post(
            "/admin/keys", content=b'{"user": ', headers={"content-type": "application/json"}
        )
        assert response.status_code == 422
        assert error_of(response)["param"] is None

    async def test_only_an_admin_may(self, edge: Edge) -> None:
        edge.auth.refusal = PermissionDenied("This needs an API key of the user admin.")
        for method, path in (
            ("POST", "/admin/keys"),
            ("GET", "/admin/keys"),
            ("GET", "/admin/keys/3f9a00112233"),
            ("PATCH", "/admin/keys/3f9a00112233"),
            ("DELETE", "/admin/keys/3f9a00112233"),
            ("POST", "/admin/keys/3f9a00112233/rotate"),
            ("GET", "/admin/usage"),
            ("GET", "/admin/audit"),
        ):
            assert (await edge.http.request(method, path)).status_code == 403, path
        assert not edge.service.asked


class TestOneKey:
    async def test_a_patch_says_what_stays_and_what_is_cleared(self, edge: Edge) -> None:
        edge.service.answers["UpdateKey"] = pb.UpdateKeyResponse(key=a_key())
        response = await edge.http.patch(
            "/admin/keys/3f9a00112233", json={"quota": None, "enabled": False, "expires_at": None, "models": []}
        )
        assert response.status_code == 200
        assert "key" not in response.json()
        asked = edge.asked
        assert asked.key_id == "3f9a00112233"
        assert sorted(asked.update_mask.paths) == ["enabled", "expires_at_ms", "models", "quota"]
        assert not asked.spec.HasField("quota")
        assert not asked.spec.enabled
        assert asked.spec.HasField("models"), "an empty list allows nothing, it is not the same as none"

    async def test_rotation_takes_an_overlap(self, edge: Edge) -> None:
        edge.service.answers["RotateKey"] = pb.RotateKeyResponse(
            key=a_key(old_secret_expires_at_ms=DAY_MS), secret=SECRET
        )
        response = await edge.http.post("/admin/keys/3f9a00112233/rotate", json={"overlap_s": 1.5})
        assert response.json()["key"] == SECRET
        assert response.json()["old_secret_expires_at"] == "2023-11-15T00:00:00Z"
        assert edge.asked.overlap_ms == 1500
        response = await edge.http.post("/admin/keys/3f9a00112233/rotate")
        assert response.status_code == 200
        assert not edge.service.asked[1].HasField("overlap_ms")

    async def test_a_declared_key_is_refused_with_where_it_stands(self, edge: Edge) -> None:
        edge.service.answers["DeleteKey"] = KeyIsDeclared("Key x is declared in config/api_keys.json.")
        response = await edge.http.delete("/admin/keys/3f9a00112233")
        assert response.status_code == 409
        error = error_of(response)
        assert error["code"] == "key_is_declared"
        assert "config/api_keys.json" in error["message"]

    async def test_an_unknown_key_is_404(self, edge: Edge) -> None:
        edge.service.answers["GetKey"] = KeyNotFound()
        response = await edge.http.get("/admin/keys/ffffffffffff")
        assert response.status_code == 404
        assert error_of(response)["code"] == "key_not_found"

    @pytest.mark.parametrize(
        "path", ["/admin/keys/", "/admin/keys/a/b", "/admin/keys/%2e%2e", "/admin/keys/a%2frotate", "/admin/keys/a/"]
    )
    async def test_nothing_else_below_is_there(self, edge: Edge, path: str) -> None:
        response = await edge.http.get(path)
        assert response.status_code == 404
        assert not edge.service.asked

    async def test_a_wrong_method_says_which_are_right(self, edge: Edge) -> None:
        response = await edge.http.put("/admin/keys/3f9a00112233")
        assert response.status_code == 405
        assert response.headers["allow"] == "DELETE, GET, PATCH"


class TestList:
    async def test_pages(self, edge: Edge) -> None:
        edge.service.answers["ListKeys"] = pb.ListKeysResponse(keys=[a_key(), a_key()], next_page_token="more")
        response = await edge.http.get("/admin/keys?user=alice&page_size=2&page_token=t&show_revoked=true")
        answer = response.json()
        assert (answer["object"], len(answer["data"]), answer["next_page_token"]) == ("list", 2, "more")
        asked = edge.asked
        assert (asked.user, asked.page_size, asked.page_token, asked.show_revoked) == ("alice", 2, "t", True)

    async def test_no_hash_and_no_secret_is_in_any_answer_about_keys(self, edge: Edge) -> None:
        fields = edge.api.openapi()["components"]["schemas"]["KeyView"]["properties"]
        assert not {name for name in fields if "sha" in name or "hash" in name or "digest" in name or name == "key"}


def usage_rows() -> list[pb.UsageRow]:
    counts = {"requests": 2, "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5, "charged_tokens": 13}
    return [
        pb.UsageRow(model="base", start_ms=DAY_MS, **counts),
        pb.UsageRow(model='a,"b"', start_ms=DAY_MS, **counts),
    ]


class TestUsage:
    async def test_json(self, edge: Edge) -> None:
        edge.service.answers["QueryUsage"] = pb.QueryUsageResponse(
            rows=usage_rows(), next_page_token="more", from_ms=DAY_MS, to_ms=DAY_MS + HOUR_MS
        )
        response = await edge.http.get(
            "/admin/usage?group_by=day,model&from=2023-11-15&to=1700010000&user=alice&key=3f9a00112233"
        )
        answer = response.json()
        assert answer["from"] == "2023-11-15T00:00:00Z"
        assert answer["to"] == "2023-11-15T01:00:00Z"
        assert answer["data"][0] == {
            "day": "2023-11-15",
            "model": "base",
            "requests": 2,
            "prompt_tokens": 10,
            "cached_tokens": 4,
            "completion_tokens": 5,
            "total_tokens": 15,
            "charged_tokens": 13,
        }
        assert answer["next_page_token"] == "more"
        asked = edge.asked
        assert list(asked.group_by) == [pb.USAGE_GROUP_DAY, pb.USAGE_GROUP_MODEL]
        assert (asked.from_ms, asked.to_ms) == (DAY_MS, DAY_MS + HOUR_MS)
        assert (asked.user, asked.key_id) == ("alice", "3f9a00112233")

    @pytest.mark.parametrize("how", [{"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}], ids=str)
    async def test_csv_has_every_page(self, edge: Edge, how: dict[str, Any]) -> None:
        first, second = usage_rows()
        edge.service.answers["QueryUsage"] = [
            pb.QueryUsageResponse(rows=[first], next_page_token="more"),
            pb.QueryUsageResponse(rows=[second]),
        ]
        params = {"group_by": "hour,model", **how.get("params", {})}
        response = await edge.http.get("/admin/usage", params=params, headers=how.get("headers"))
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.reader(io.StringIO(response.text)))
        header = "hour,model,requests,prompt_tokens,cached_tokens,completion_tokens,total_tokens,charged_tokens"
        assert rows == [
            header.split(","),
            ["2023-11-15T00:00:00Z", "base", "2", "10", "4", "5", "15", "13"],
            ["2023-11-15T00:00:00Z", 'a,"b"', "2", "10", "4", "5", "15", "13"],
        ]
        assert [message.page_token for message in edge.service.asked] == ["", "more"]

    async def test_format_wins_over_accept(self, edge: Edge) -> None:
        edge.service.answers["QueryUsage"] = pb.QueryUsageResponse()
        response = await edge.http.get("/admin/usage?format=json", headers={"accept": "text/csv"})
        assert response.json()["data"] == []

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("group_by=week", "group_by"),
            ("group_by=day&group_by=day", "group_by"),
            ("group_by=day,hour", "group_by"),
            ("from=yesterday", "from"),
            ("format=xml", "format"),
            ("page_size=0", "page_size"),
        ],
    )
    async def test_a_bad_question_names_the_parameter(self, edge: Edge, query: str, param: str) -> None:
        response = await edge.http.get(f"/admin/usage?{query}")
        assert response.status_code == 422
        assert error_of(response)["param"] == param


async def test_a_keys_own_view(edge: Edge) -> None:
    answer = pb.GetOwnUsageResponse(
        key=a_key(running=2, reserved_tokens=20),
        limits=pb.KeyLimits(qps=0.5),
        requests=pb.RateLimitState(limit=1, remaining=0, reset_ms=1500),
        quota_remaining=73,
        rows=[pb.UsageRow(start_ms=DAY_MS, model="m", requests=1, prompt_tokens=3, completion_tokens=4)],
        from_ms=DAY_MS,
        to_ms=DAY_MS + HOUR_MS,
    )
    edge.service.answers["GetOwnUsage"] = answer
    view = (await edge.http.get("/v1/usage?from=2023-11-15")).json()
    assert view["requests_per_second"] == {"limit": 0.5, "remaining": 0, "reset_ms": 1500}
    assert view["tokens_per_minute"] == {"limit": None, "remaining": None, "reset_ms": None}
    assert view["concurrency"] == {"limit": None, "running": 2}
    quota = view["quota"]
    assert (quota["limit"], quota["period"], quota["used"], quota["reserved"], quota["remaining"]) == (
        100,
        "day",
        7,
        20,
        73,
    )
    assert view["data"][0]["day"] == "2023-11-15"
    assert view["data"][0]["total_tokens"] == 7
    assert len(edge.asked.api_key_sha256) == 32
    assert (await edge.http.get("/v1/usage", headers={"authorization": ""})).status_code == 401


class TestAudit:
    async def test_the_newest_first(self, edge: Edge) -> None:
        actor = pb.Actor(key_id="0a1b2c3d4e5f", user="admin", client_address="10.0.0.7", request_id="r-1")
        entry = pb.AuditEntry(at_ms=DAY_MS, actor=actor, action="key.create", target="3f9a00112233", outcome="ok")
        edge.service.answers["ListAuditLog"] = pb.ListAuditLogResponse(entries=[entry])
        answer = (await edge.http.get("/admin/audit?action=key.&actor=admin&from=2023-11-15")).json()
        assert answer["data"] == [
            {
                "at": "2023-11-15T00:00:00Z",
                "user": "admin",
                "key_id": "0a1b2c3d4e5f",
                "client_address": "10.0.0.7",
                "action": "key.create",
                "target": "3f9a00112233",
                "outcome": "ok",
                "detail": "",
                "request_id": "r-1",
            }
        ]
        assert (edge.asked.action, edge.asked.actor, edge.asked.from_ms) == ("key.", "admin", DAY_MS)

    async def test_what_another_service_did_is_entered_before_it_is_answered(self, edge: Edge) -> None:
        edge.router_service.answers["LoadAdapter"] = router_pb2.LoadAdapterResponse()
        body = {"lora_name": "pirate", "lora_path": "adapters/pirate"}
        response = await edge.http.post(
            "/admin/load-lora-adapter", json=body, headers={"x-forwarded-for": "1.1.1.1, 10.0.0.7"}
        )
        assert response.status_code == 200
        entry = edge.asked
        assert (entry.action, entry.target, entry.outcome, entry.detail) == (
            "adapter.load",
            "pirate",
            "ok",
            "adapters/pirate",
        )
        assert (entry.actor.user, entry.actor.client_address) == ("admin", "10.0.0.7")

    async def test_a_failure_is_entered_with_its_reason(self, edge: Edge) -> None:
        edge.router_service.answers["UnloadAdapter"] = AdapterNotFound("No adapter 'x'.")
        response = await edge.http.post("/admin/unload-lora-adapter", json={"lora_name": "x"})
        assert response.status_code == 404
        assert (edge.asked.action, edge.asked.outcome) == ("adapter.unload", "ADAPTER_NOT_FOUND")

    async def test_an_entry_that_cannot_be_made_is_in_the_log(
        self, edge: Edge, caplog: pytest.LogCaptureFixture
    ) -> None:
        edge.router_service.answers["UnloadAdapter"] = router_pb2.UnloadAdapterResponse()
        edge.service.answers["RecordAction"] = KeyNotFound()
        response = await edge.http.post("/admin/unload-lora-adapter", json={"lora_name": "x"})
        assert response.status_code == 200, "it is done"
        (line,) = [record for record in caplog.records if "audit" in record.getMessage()]
        assert vars(line)["target"] == "x"


async def test_the_description_tells_of_keys_errors_and_the_shape_of_answers(edge: Edge) -> None:
    described = edge.api.openapi()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["security"] == [{"ApiKey": []}], (method, path)
            shown = operation["responses"]
            for status in ("4XX", "422", "5XX"):
                assert shown[status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
            for parameter in operation.get("parameters", []):
                assert parameter["in"] == "path" or parameter["name"] == "days" or parameter["description"], path
    assert "HTTPValidationError" not in described["components"]["schemas"]
    made = described["paths"]["/admin/keys"]["post"]
    assert made["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/NewKeyView")
    fields = described["components"]["schemas"]["NewKey"]
    assert fields["required"] == ["user"]
    assert all(field.get("description") for field in fields["properties"].values())
