"""The OpenAI surface of a live edge: what is answered, what is refused, and in which shape."""

from __future__ import annotations

import json

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, ALICE, BOB, DISABLED, Cluster
from tests.support.http_client import Answer, Client
from tests.support.wait import eventually

MAX_BODY_BYTES = 200_000
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster({"edge": {"max_body_bytes": MAX_BODY_BYTES, "max_header_bytes": 16_384}})


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    return cluster.client()


def assert_openai_error(answer: Answer, status: int, code: str | None = None) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"].startswith("application/json")
    assert {"message", "type", "param", "code"} <= set(answer.error)
    assert answer.error["message"]
    if code is not None:
        assert answer.error["code"] == code


class TestAnswers:
    @pytest.mark.parametrize("path", [CHAT, "/chat/completions"])
    async def test_chat_in_one_piece(self, alice: Client, path: str) -> None:
        answer = await alice.request("POST", path, alice.chat_body(max_tokens=7, stream=False))
        assert answer.status == 200
        body = answer.json()
        assert body["object"] == "chat.completion"
        assert body["usage"]["completion_tokens"] == 7
        assert body["choices"][0]["message"]["content"].startswith("[simulated by sim]")
        assert body["system_fingerprint"].startswith("sim")

    async def test_chat_streamed_says_the_same_as_in_one_piece(self, alice: Client) -> None:
        whole = await alice.chat(max_tokens=40)
        outcome = await alice.stream(max_tokens=40)
        assert outcome.complete and outcome.done and outcome.error is None
        assert outcome.text == whole.json()["choices"][0]["message"]["content"]
        assert outcome.chunks[-1]["choices"][0]["finish_reason"] == "length"

    async def test_usage_comes_only_when_it_was_asked_for(self, alice: Client) -> None:
        plain = await alice.stream(max_tokens=3)
        asked = await alice.stream(max_tokens=3, stream_options={"include_usage": True})
        assert not any(chunk.get("usage") for chunk in plain.chunks)
        assert asked.chunks[-1]["usage"]["completion_tokens"] == 3

    @pytest.mark.parametrize("path", ["/v1/completions", "/completions"])
    async def test_completions(self, alice: Client, path: str) -> None:
        answer = await alice.request("POST", path, {"model": "sim", "prompt": "Once", "max_tokens": 5})
        assert answer.status == 200
        assert answer.json()["object"] == "text_completion"
        assert answer.json()["usage"]["completion_tokens"] == 5

    @pytest.mark.parametrize("path", ["/v1/models", "/models"])
    async def test_models(self, alice: Client, path: str) -> None:
        answer = await alice.request("GET", path)
        assert answer.status == 200
        assert answer.json()["object"] == "list"
        assert [card["id"] for card in answer.json()["data"]] == ["sim"]

    async def test_a_large_body_goes_through_in_pieces(self, alice: Client) -> None:
        messages = [{"role": "user", "content": "word " * (MAX_BODY_BYTES // 6)}]
        answer = await alice.chat(max_tokens=1, messages=messages)
        assert answer.status == 200
        assert answer.json()["usage"]["prompt_tokens"] > MAX_BODY_BYTES // 10

    async def test_many_answers_of_one_request(self, alice: Client) -> None:
        answer = await alice.chat(max_tokens=2, n=3)
        assert len(answer.json()["choices"]) == 3


class TestKeys:
    @pytest.mark.parametrize("header", [f"Bearer {ALICE.key}", f"bearer {ALICE.key}", ALICE.key])
    async def test_both_header_forms(self, alice: Client, header: str) -> None:
        answer = await alice.request("GET", "/v1/models", headers={"authorization": header})
        assert answer.status == 200

    @pytest.mark.parametrize("header", ["", "Bearer ", "Bearer sk-wrong", "sk-wrong", f"Basic {ALICE.key}"])
    @pytest.mark.parametrize("path", ["/v1/models", CHAT])
    async def test_any_other_key_is_refused(self, alice: Client, header: str, path: str) -> None:
        method, body = ("POST", alice.chat_body(max_tokens=1)) if path == CHAT else ("GET", b"")
        answer = await alice.request(method, path, body, headers={"authorization": header})
        assert_openai_error(answer, 401, "invalid_api_key")
        assert "sk-wrong" not in answer.error["message"]

    async def test_a_disabled_key_is_refused(self, cluster: Cluster) -> None:
        assert_openai_error(await cluster.client(DISABLED).chat(), 401, "key_disabled")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/admin/reload-keys"),
            ("POST", "/admin/clean-logs?days=7"),
            ("GET", "/admin/log-stats"),
            ("POST", "/admin/load-lora-adapter"),
            ("POST", "/admin/unload-lora-adapter"),
        ],
    )
    async def test_administration_is_for_admins(self, cluster: Cluster, alice: Client, method: str, path: str) -> None:
        assert_openai_error(await alice.request(method, path, b"{}"), 403)
        nobody = Client(cluster.port, "sk-wrong")
        assert_openai_error(await nobody.request(method, path, b"{}"), 401)

    async def test_an_admin_sees_the_logs(self, cluster: Cluster) -> None:
        answer = await cluster.client(ADMIN).request("GET", "/admin/log-stats")
        assert answer.status == 200
        services = answer.json()["services"]
        assert {"edge", "auth", "router", "engine-sim"} == services.keys()
        for name, row in services.items():
            live = {file["name"] for file in row["files"] if file["in_use"]}
            assert {"edge": "fastapi.log"}.get(name, f"{name}.log") in live

    async def test_an_admin_cleans_the_logs_of_all_services(self, cluster: Cluster) -> None:
        logs = cluster.root / "logs"
        old = {
            "edge": "fastapi.log.1",
            "auth": "auth.log.1",
            "router": "router.log.1",
            "engine-sim": "engine-sim.log.1",
        }
        for name in old.values():
            (logs / name).write_text("old\n")
        admin = cluster.client(ADMIN)
        looked = (await admin.request("POST", "/admin/clean-logs?days=0&dry_run=true")).json()
        assert {service: row["removed"] for service, row in looked["services"].items()} == {
            service: [name] for service, name in old.items()
        }
        assert all((logs / name).exists() for name in old.values())
        cleaned = (await admin.request("POST", "/admin/clean-logs?days=0")).json()
        assert cleaned["services"] == looked["services"]
        assert cleaned["freed_bytes"] == 4 * len(old)
        assert not any((logs / name).exists() for name in old.values())
        assert all((logs / name.removesuffix(".1")).exists() for name in old.values())

    async def test_no_key_is_in_any_log(self, cluster: Cluster, alice: Client) -> None:
        await alice.chat()
        await alice.request("GET", "/v1/models", headers={"authorization": "Bearer sk-wrong-but-private"})
        logs = cluster.logs(lines=100_000)
        assert ALICE.key not in logs
        assert "sk-wrong-but-private" not in logs


class TestRefusals:
    @pytest.mark.parametrize(
        "path", ["/v1/nothing", "/", "/v1", "/invocations", "/v1/load_lora_adapter", "/sim/journal", "/v1/x/../models"]
    )
    async def test_an_unknown_url_is_404(self, alice: Client, path: str) -> None:
        assert_openai_error(await alice.request("POST", path, b"{}"), 404)

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", CHAT), ("DELETE", "/v1/completions"), ("POST", "/v1/models"), ("PUT", "/health")]
    )
    async def test_another_method_is_405(self, alice: Client, method: str, path: str) -> None:
        answer = await alice.request(method, path)
        assert_openai_error(answer, 405)
        assert answer.headers["allow"]

    async def test_an_oversized_body_is_413(self, alice: Client) -> None:
        body = alice.chat_body(max_tokens=1, messages=[{"role": "user", "content": "x" * MAX_BODY_BYTES}])
        assert_openai_error(await alice.request("POST", CHAT, body), 413)

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"model": 7}', b"\xff\xfe"])
    async def test_a_malformed_body_gets_the_engines_own_error(self, alice: Client, body: bytes) -> None:
        assert_openai_error(await alice.request("POST", CHAT, body), 400)

    async def test_an_unknown_model_gets_the_engines_own_404(self, cluster: Cluster) -> None:
        answer = await cluster.client(model="no-such-model").chat()
        assert_openai_error(answer, 404)
        assert "no-such-model" in answer.error["message"]

    async def test_oversized_headers_are_refused(self, alice: Client) -> None:
        answer = await alice.request("GET", "/v1/models", headers={"x-filler": "x" * 20_000})
        assert answer.status in (400, 431)

    async def test_refused_requests_are_charged_nothing(self, cluster: Cluster) -> None:
        before = await cluster.settled_usage("bob")
        bob = cluster.client(BOB)
        await bob.request("POST", CHAT, b"{")
        bob.model = "no-such-model"
        await bob.chat()
        assert (await cluster.settled_usage("bob")).tokens == before.tokens


class TestTracing:
    async def test_the_clients_request_id_is_echoed_and_in_every_services_log(
        self, cluster: Cluster, alice: Client
    ) -> None:
        request_id = "trace-me-0123.abc"
        answer = await alice.request(
            "POST", CHAT, alice.chat_body(max_tokens=2, stream=False), headers={"x-request-id": request_id}
        )
        assert answer.headers["x-request-id"] == request_id
        for service in (cluster.edge, cluster.auth, cluster.host):
            await eventually(
                lambda service=service: any(line.get("request_id") == request_id for line in service.log_lines()),
                f"the request id in the log of {service.name}",
            )

    async def test_the_edge_logs_one_canonical_line_per_request(self, cluster: Cluster, alice: Client) -> None:
        await alice.request(
            "POST", CHAT, alice.chat_body(max_tokens=2, stream=True), headers={"x-request-id": "canonical-1"}
        )

        def lines() -> list[dict[str, object]]:
            return [line for line in cluster.edge.log_lines() if line.get("request_id") == "canonical-1"]

        await eventually(lines, "a line for the request")
        (line,) = lines()
        fields = ["key_id", "model", "host", "status", "ttft_ms", "duration_ms", "prompt_tokens", "completion_tokens"]
        assert set(fields) <= set(line), line
        assert (line["status"], line["completion_tokens"], line["model"]) == (200, 2, "sim")

    @pytest.mark.parametrize("sent", [None, "has spaces", "x" * 200])
    async def test_any_other_request_id_is_minted(self, alice: Client, sent: str | None) -> None:
        answer = await alice.request("GET", "/v1/models", headers={"x-request-id": sent} if sent else {})
        assert answer.headers["x-request-id"].startswith("req-")

    async def test_a_refusal_has_a_request_id_too(self, alice: Client) -> None:
        for answer in (await alice.request("GET", "/nothing"), await alice.request("GET", CHAT)):
            assert answer.headers["x-request-id"].startswith("req-")

    async def test_the_engines_id_is_not_the_clients(self, alice: Client) -> None:
        headers = {"x-request-id": "chosen-by-the-client"}
        answer = await alice.request("POST", CHAT, alice.chat_body(max_tokens=1, stream=False), headers=headers)
        assert "chosen-by-the-client" not in answer.json()["id"]


class TestOperation:
    async def test_health_needs_no_key(self, cluster: Cluster) -> None:
        answer = await Client(cluster.port, "").request("GET", "/health", headers={"authorization": ""})
        assert answer.status == 200
        assert "sim" in json.dumps(answer.json())

    async def test_metrics_are_for_prometheus(self, cluster: Cluster, alice: Client) -> None:
        await alice.chat()
        answer = await alice.request("GET", "/metrics")
        assert answer.status == 200
        assert "vllm_proxy_edge_" in answer.body.decode()
        assert answer.headers["content-type"].startswith("text/plain")
