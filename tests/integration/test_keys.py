"""Keys made while everything runs: over HTTP and on the command line, through restarts, with exact books."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, ALICE, ApiKey, Cluster
from tests.support.command_line import cli
from tests.support.http_client import Answer, Client
from tests.support.process import SERVICES_ROOT
from tests.support.streams import live_streams
from tests.support.wait import eventually

ADAPTER = "pirate"
CLI_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    yield start_cluster({"sim": {"adapters": [ADAPTER]}}, workers=2)


@pytest.fixture(scope="module")
def secrets() -> list[str]:
    """Every secret that was shown."""
    return []


class Operator:
    """Whoever holds the admin key."""

    def __init__(self, cluster: Cluster, secrets: list[str]) -> None:
        self.cluster = cluster
        self._client = cluster.client(ADMIN)
        self._secrets = secrets

    async def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
        return await self._client.request(method, path, body, headers)

    async def make(self, user: str, **fields: Any) -> tuple[str, Client]:
        answer = await self.ask("POST", "/admin/keys", {"user": user, **fields})
        assert answer.status == 201, answer.body
        return answer.json()["id"], self.client(answer.json()["key"])

    def client(self, secret: str, model: str = "sim") -> Client:
        self._secrets.append(secret)
        return self.cluster.client(ApiKey(secret, ""), model)

    async def rotate(self, key_id: str, overlap_s: float) -> Client:
        answer = await self.ask("POST", f"/admin/keys/{key_id}/rotate", {"overlap_s": overlap_s})
        assert answer.status == 200, answer.body
        return self.client(answer.json()["key"])

    async def usage(self, query: str) -> list[dict[str, Any]]:
        answer = await self.ask("GET", f"/admin/usage?{query}")
        assert answer.status == 200, answer.body
        rows: list[dict[str, Any]] = answer.json()["data"]
        return rows

    async def settled(self, user: str) -> None:
        await self.cluster.settled_usage(user)


@pytest.fixture
def operator(cluster: Cluster, secrets: list[str]) -> Operator:
    return Operator(cluster, secrets)


def refusals(cluster: Cluster) -> list[int]:
    """Requests with unknown keys that each edge worker refused."""
    return [sum(line.get("reason") == "INVALID_API_KEY" for line in edge.log_lines()) for edge in cluster.edges]


class TestLife:
    async def test_made_used_changed_and_revoked_on_both_workers(self, cluster: Cluster, operator: Operator) -> None:
        key_id, client = await operator.make("carol", name="laptop", rate_limit={"concurrent": 2})
        assert (await client.chat(max_tokens=3)).status == 200
        view = (await client.request("GET", "/v1/usage")).json()
        assert (view["id"], view["concurrency"]["limit"], view["user"]) == (key_id, 2, "carol")

        patched = await operator.ask("PATCH", f"/admin/keys/{key_id}", {"models": [ADAPTER], "name": None})
        assert patched.json()["models"] == [ADAPTER]
        assert (await client.chat()).status == 403
        assert (await operator.client(client.headers["authorization"].split()[1], ADAPTER).chat()).status == 200
        await operator.ask("PATCH", f"/admin/keys/{key_id}", {"models": None})

        before = refusals(cluster)
        async with live_streams(client, 1, max_tokens=300) as (stream,):
            revoked = await operator.ask("DELETE", f"/admin/keys/{key_id}")
            assert revoked.json()["state"] == "revoked"

            async def both_refuse() -> bool:
                assert (await client.chat()).status == 401
                return all(now > then for now, then in zip(refusals(cluster), before, strict=True))

            await eventually(both_refuse, "a refusal by each worker")
            assert (await stream.end()).done, "what runs may end"
        assert (await operator.ask("DELETE", f"/admin/keys/{key_id}")).status == 200, "again changes nothing"

    async def test_a_rotation_overlaps_through_a_kill_and_lapses_by_itself(
        self, cluster: Cluster, operator: Operator
    ) -> None:
        key_id, old = await operator.make("dave")
        new = await operator.rotate(key_id, 4)
        assert (await old.chat()).status == (await new.chat()).status == 200
        await asyncio.to_thread(cluster.auth.restart, kill=True)
        assert (await old.chat()).status == (await new.chat()).status == 200

        async def lapsed() -> bool:
            return (await old.request("GET", "/v1/usage")).status == 401

        await eventually(lapsed, "the old secret lapsed")
        assert (await new.chat()).status == 200
        newest = await operator.rotate(key_id, 0)
        assert ((await new.chat()).status, (await newest.chat()).status) == (401, 200)
        shown = (await operator.ask("GET", f"/admin/keys/{key_id}")).json()
        assert shown["old_secret_expires_at"] is None
        await operator.settled("dave")
        (row,) = await operator.usage(f"group_by=key&key={key_id}")
        assert row["requests"] == 6, "one account, whichever secret was shown"

    async def test_a_declared_key_is_changed_in_its_file_only(self, cluster: Cluster, operator: Operator) -> None:
        listed = (await operator.ask("GET", f"/admin/keys?user={ALICE.user}")).json()["data"]
        (alice,) = listed
        assert alice["source"] == "declared"
        for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
            refused = await operator.ask(method, f"/admin/keys/{alice['id']}{path}", {})
            assert refused.status == 409
            assert refused.error["code"] == "key_is_declared"
            assert "config/api_keys.json" in refused.error["message"]
        assert (await cluster.client(ALICE).chat()).status == 200

    async def test_only_an_admin_key_manages_keys_also_one_that_was_made(
        self, cluster: Cluster, operator: Operator
    ) -> None:
        assert (await cluster.client(ALICE).request("GET", "/admin/keys")).status == 403
        _, second = await operator.make("admin", name="second operator")
        assert (await second.request("GET", "/admin/keys")).status == 200


class TestBooks:
    async def test_usage_is_exact_by_model_and_adapter_through_a_kill(
        self, cluster: Cluster, operator: Operator
    ) -> None:
        before = {row["id"] for row in cluster.journal()}
        key_id, client = await operator.make("erin")
        adapter = operator.client(client.headers["authorization"].split()[1], ADAPTER)
        await asyncio.gather(*(client.chat(max_tokens=n) for n in range(1, 6)))
        await asyncio.gather(*(adapter.chat(max_tokens=10) for _ in range(3)))
        assert (await operator.client(client.headers["authorization"].split()[1], "no-such-model").chat()).status == 404
        async with live_streams(client, 1, max_tokens=100_000) as (stream,):
            await stream.wait_tokens(5)
            await stream.leave()
        await operator.settled("erin")
        journal = [row for row in cluster.journal() if row["id"] not in before]
        produced = sum(row["completion_tokens"] for row in journal)

        async def books() -> dict[str, Any]:
            return {
                "adapters": await operator.usage(f"group_by=adapter&key={key_id}"),
                "models": await operator.usage(f"group_by=model,base_model&user=erin&key={key_id}"),
                "days": await operator.usage(f"group_by=day,user&key={key_id}"),
                "total": await operator.usage(f"key={key_id}"),
            }

        told = await books()
        assert told["total"][0]["completion_tokens"] == produced
        assert {row["adapter"]: row["completion_tokens"] for row in told["adapters"]} == {
            "": produced - 30,
            ADAPTER: 30,
        }
        assert {(row["model"], row["base_model"]): row["requests"] for row in told["models"]} == {
            ("", ""): 1,
            ("sim", "sim"): 6,
            (ADAPTER, "sim"): 3,
        }
        assert told["total"][0]["requests"] == sum(row["requests"] for row in told["days"]) == 10
        await asyncio.to_thread(cluster.auth.restart, kill=True)
        assert await books() == told
        shown = (await operator.ask("GET", f"/admin/keys/{key_id}")).json()
        assert shown["usage"]["completion_tokens"] == produced
        assert shown["last_used_at"]
        own = (await client.request("GET", "/v1/usage")).json()["data"]
        assert sum(row["completion_tokens"] for row in own) == produced

    async def test_csv(self, operator: Operator) -> None:
        _, client = await operator.make("frank, the 2nd")
        await client.chat(max_tokens=2)
        await operator.settled("frank, the 2nd")
        answer = await operator.ask(
            "GET", "/admin/usage?group_by=user,day,model&user=frank,%20the%202nd", accept="text/csv"
        )
        assert answer.headers["content-type"].startswith("text/csv")
        (row,) = csv.DictReader(io.StringIO(answer.body.decode()))
        assert (row["user"], row["model"], row["requests"], row["completion_tokens"]) == (
            "frank, the 2nd",
            "sim",
            "1",
            "2",
        )
        assert int(row["total_tokens"]) == int(row["prompt_tokens"]) + 2


class TestCommandLine:
    async def test_a_key_from_the_machine_itself(self, cluster: Cluster, operator: Operator) -> None:
        made = await cli(
            cluster.config_path, "keys", "create", "--user", "grace", "--quota", "1k", "--qps", "50", "--quiet"
        )
        assert made.returncode == 0, made.stderr
        client = operator.client(made.stdout.strip())
        assert (await client.chat(max_tokens=2)).status == 200
        await operator.settled("grace")
        (key,) = json.loads((await cli(cluster.config_path, "keys", "list", "--user", "grace", "--json")).stdout)
        assert (key["quota"], key["rate_limit"]) == (1000, {"qps": 50})
        assert key["created_by"].startswith("cli:")

        table = (await cli(cluster.config_path, "keys", "list")).stdout
        assert key["id"] in table and "\033" not in table, "no colours in a pipe"
        updated = await cli(
            cluster.config_path, "keys", "update", key["id"], "--concurrent", "3", "--name", "pad", "--json"
        )
        assert json.loads(updated.stdout)["rate_limit"] == {"qps": 50, "concurrent": 3}
        shown = (await cli(cluster.config_path, "keys", "show", key["id"])).stdout
        assert "grace" in shown and "1,000 tokens" in shown

        rotated = await cli(cluster.config_path, "keys", "rotate", key["id"], "--overlap", "0", "-q")
        renewed = operator.client(rotated.stdout.strip())
        assert ((await client.chat()).status, (await renewed.chat()).status) == (401, 200)
        revoked = await cli(cluster.config_path, "keys", "revoke", key["id"])
        assert revoked.returncode == 0, revoked.stderr
        assert (await renewed.chat()).status == 401

    async def test_usage_and_the_audit_log(self, cluster: Cluster, operator: Operator) -> None:
        _, client = await operator.make("heidi")
        await client.chat(max_tokens=7)
        await operator.settled("heidi")
        rows = json.loads(
            (await cli(cluster.config_path, "usage", "--by", "model,day", "--user", "heidi", "--json")).stdout
        )
        assert [(row["model"], row["completion_tokens"]) for row in rows] == [("sim", 7)]
        told = await cli(cluster.config_path, "usage", "--by", "user", "--csv", "--from", "1d")
        assert {"user": "heidi", "completion_tokens": "7"}.items() <= next(
            row for row in csv.DictReader(io.StringIO(told.stdout)) if row["user"] == "heidi"
        ).items()
        assert "heidi" in (await cli(cluster.config_path, "usage")).stdout
        audit = (await cli(cluster.config_path, "audit", "--action", "key.", "--limit", "5")).stdout
        assert "key.create" in audit

    async def test_a_failure_is_one_line_and_a_number(self, cluster: Cluster) -> None:
        (alice,) = json.loads((await cli(cluster.config_path, "keys", "list", "--user", "alice", "--json")).stdout)
        for arguments, code, words in (
            (("keys", "revoke", alice["id"]), 1, "config/api_keys.json"),
            (("keys", "show", "ffffffffffff"), 1, "no key"),
            (("keys", "update", "ffffffffffff"), 2, "nothing to change"),
            (("usage", "--by", "week"), 2, "must be one of"),
            (("keys", "create", "--user", " "), 2, "user"),
        ):
            ended = await cli(cluster.config_path, *arguments)
            assert ended.returncode == code, (arguments, ended.stderr)
            assert words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
        elsewhere = cluster.config_path.parent / "elsewhere.yaml"
        elsewhere.write_text("auth: {address: 'unix:.run/nobody.sock'}\n")
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "vllm_proxy.cli", "--config", str(elsewhere), "keys", "list", "--json"],
            capture_output=True,
            text=True,
            timeout=CLI_TIMEOUT_S,
            env={"PYTHONPATH": str(SERVICES_ROOT), "PATH": "/usr/bin:/bin"},
        )
        assert ended.returncode == 3
        assert "make start-auth" in json.loads(ended.stderr)["error"]


class TestAudit:
    async def test_who_did_what_and_how_it_ended(self, cluster: Cluster, operator: Operator) -> None:
        key_id, _ = await operator.make("ivan")
        await operator.ask("POST", "/admin/reload-keys")
        await operator.ask("POST", "/admin/clean-logs?days=3000")
        await operator.ask("POST", "/admin/unload-lora-adapter", {"lora_name": "never-loaded"})
        lines = (await operator.ask("GET", "/admin/audit?actor=admin&page_size=4")).json()["data"]
        assert [(line["action"], line["outcome"]) for line in lines] == [
            ("adapter.unload", "ADAPTER_NOT_FOUND"),
            ("logs.clean", "ok"),
            ("keys.reload", "ok"),
            ("key.create", "ok"),
        ]
        assert lines[3]["target"] == key_id
        assert {line["client_address"] for line in lines} == {"127.0.0.1"}
        assert all(line["key_id"] and line["request_id"] for line in lines)


def test_no_secret_is_in_any_log_or_file(cluster: Cluster, secrets: list[str]) -> None:
    assert len(set(secrets)) > 5
    for path in (path for path in cluster.root.rglob("*") if path.is_file() and path.name != "api_keys.json"):
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
