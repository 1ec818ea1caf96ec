"""Limits that hold exactly however many requests race, and answers that tell the truth about them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, ALICE, DEFAULT_KEYS, ApiKey, Cluster
from tests.support.http_client import Answer, Client
from tests.support.streams import live_streams
from tests.support.wait import eventually

QUOTA_TOKENS = 1_000
MAX_TOKENS = 20
RACERS = 60
#: How much later than promised a clock on a busy machine may be.
SLACK_S = 0.2
QUOTA_KEYS = [ApiKey(f"sk-test-quota-{i}-0123456789abcdef", f"quota-{i}", QUOTA_TOKENS) for i in range(3)]


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    """No rate limit; each test that wants one writes it into config.yaml and takes it back."""
    return start_cluster({"sim": {"step_ms": 1}}, keys=[*DEFAULT_KEYS, *QUOTA_KEYS])


async def race(client: Client, count: int) -> list[Answer]:
    return list(await asyncio.gather(*(client.chat(max_tokens=MAX_TOKENS) for _ in range(count))))


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


class TestQuota:
    async def test_racing_requests_never_exceed_it(self, cluster: Cluster) -> None:
        """By no more than the last response: it may use a rest that is smaller than itself."""
        client = cluster.client(QUOTA_KEYS[0])
        answers = await race(client, RACERS)
        assert set(statuses(answers)) == {200, 429}
        used = await cluster.settled_usage(QUOTA_KEYS[0].user)
        assert used.completion_tokens == statuses(answers)[200] * MAX_TOKENS
        assert used.tokens < QUOTA_TOKENS + MAX_TOKENS
        while (await client.chat(max_tokens=MAX_TOKENS)).status == 200:
            pass
        used = await cluster.settled_usage(QUOTA_KEYS[0].user)
        assert QUOTA_TOKENS - MAX_TOKENS < used.tokens < QUOTA_TOKENS + MAX_TOKENS

    async def test_a_spent_quota_says_that_waiting_does_not_help(self, cluster: Cluster) -> None:
        client = cluster.client(QUOTA_KEYS[1])
        assert (await client.chat(max_tokens=QUOTA_TOKENS)).status == 200
        await cluster.settled_usage(QUOTA_KEYS[1].user)
        answer = await client.chat(max_tokens=1)
        assert answer.status == 429
        assert (answer.error["type"], answer.error["code"]) == ("insufficient_quota", "quota")
        assert "retry-after" not in answer.headers
        assert answer.headers["x-should-retry"] == "false"

    async def test_what_a_running_stream_reserves_is_free_again_when_it_ends(self, cluster: Cluster) -> None:
        client = cluster.client(QUOTA_KEYS[2])
        async with live_streams(client, 1, max_tokens=QUOTA_TOKENS) as (stream,):
            refused = await client.chat(max_tokens=200)
            assert refused.status == 429
            assert refused.headers["retry-after"] == "1"
            await stream.leave()
            await cluster.settled_usage(QUOTA_KEYS[2].user)
        assert (await client.chat(max_tokens=200)).status == 200


class TestRateLimits:
    """Of each key, changed in config.yaml while everything runs."""

    async def limit(self, cluster: Cluster, **limits: float | None) -> None:
        """Puts limits in force. Waits until the service says that it follows them."""

        def applied() -> int:
            return sum(line.get("event") == "configuration applied" for line in cluster.auth.log_lines())

        before = applied()
        cluster.write_config({"rate_limit": {"qps": None, "concurrent": None, "tokens_per_minute": None, **limits}})
        await eventually(lambda: applied() > before, "the new limits in force")

    async def test_concurrency(self, cluster: Cluster) -> None:
        await self.limit(cluster, concurrent=5)
        alice = cluster.client()
        async with live_streams(alice, 5, max_tokens=100_000) as streams:
            refused = await race(alice, 10)
            assert statuses(refused) == {429: 10}
            assert {answer.headers["retry-after"] for answer in refused} == {"1"}
            assert all("concurren" in answer.error["message"].lower() for answer in refused)
            other = await cluster.client(ADMIN).chat()
            assert other.status == 200  # the limit is each key's own
            await streams[0].leave()
            await eventually(lambda: cluster.control.usage(ALICE.user).running == 4, "the slot returned")
            assert (await alice.chat()).status == 200
        await cluster.settled_usage()

    async def test_racing_requests_never_exceed_concurrency(self, cluster: Cluster) -> None:
        await self.limit(cluster, concurrent=5)
        highest = 0
        racing = asyncio.create_task(race(cluster.client(), RACERS))
        while not racing.done():
            highest = max(highest, cluster.control.usage(ALICE.user).running)
            await asyncio.sleep(0)
        assert 1 <= highest <= 5
        assert statuses(racing.result())[200] >= 5
        await cluster.settled_usage()

    async def test_qps_and_its_retry_after(self, cluster: Cluster) -> None:
        await self.limit(cluster, qps=5)
        alice = cluster.client()
        started = time.monotonic()
        answers = await race(alice, RACERS)
        elapsed_s = time.monotonic() - started
        # A burst of one second's worth, and what the time of the race itself allows.
        assert 5 <= statuses(answers)[200] <= 5 + 5 * elapsed_s + 1
        refused = [answer for answer in answers if answer.status == 429]
        assert all("second" in answer.error["message"] for answer in refused)
        assert all(answer.headers["x-ratelimit-limit-requests"] == "5" for answer in refused)
        await self.assert_passes_after(alice, refused[-1])

    async def test_tokens_per_minute_and_its_retry_after(self, cluster: Cluster) -> None:
        await self.limit(cluster, tokens_per_minute=30_000)
        client = cluster.client(ADMIN)
        spent = await asyncio.gather(*(client.chat(max_tokens=1_000) for _ in range(2)))
        assert statuses(list(spent)) == {200: 2}
        answer = await client.chat(max_tokens=29_990)
        assert answer.status == 429
        assert "minute" in answer.error["message"]
        assert answer.headers["x-ratelimit-limit-tokens"] == "30000"
        await self.assert_passes_after(client, answer, max_tokens=29_990)

    async def test_no_limit_again(self, cluster: Cluster) -> None:
        await self.limit(cluster)
        assert statuses(await race(cluster.client(), RACERS)) == {200: RACERS}

    async def test_a_bad_configuration_changes_nothing(self, cluster: Cluster) -> None:
        await self.limit(cluster, concurrent=1)
        cluster.config_path.write_text("rate_limit: {concurrent: many}\n")
        await eventually(
            lambda: any(line.get("event") == "configuration not applied" for line in cluster.auth.log_lines()),
            "the refusal in the log",
        )
        async with live_streams(cluster.client(), 1, max_tokens=100_000):
            assert (await cluster.client().chat()).status == 429
        await self.limit(cluster)

    async def assert_passes_after(self, client: Client, refused: Answer, max_tokens: int = MAX_TOKENS) -> None:
        """`Retry-After` is enough, and not a second more than it need be."""
        promised_s = int(refused.headers["retry-after"])
        assert promised_s >= 1
        started = time.monotonic()

        async def passes() -> bool:
            async with await client.open_stream(max_tokens=max_tokens) as connection:
                return connection.status == 200

        # The refused attempts of the polling cost nothing, so they do not put it off.
        await eventually(passes, "the same request passes", promised_s + SLACK_S)
        assert promised_s <= time.monotonic() - started + 1 + SLACK_S


class TestReloadKeys:
    async def test_a_new_key_works_and_a_removed_one_does_not(self, cluster: Cluster) -> None:
        fresh = ApiKey("sk-test-fresh-0123456789abcdef", "fred")
        assert (await cluster.client(fresh).chat()).status == 401
        keys = [*DEFAULT_KEYS, fresh]
        cluster.write_keys([key for key in keys if key.user != "bob"])
        reloaded = await cluster.client(ADMIN).request("POST", "/admin/reload-keys")
        assert reloaded.status == 200
        assert reloaded.json()["keys"] == len(keys) - 1
        assert (await cluster.client(fresh).chat()).status == 200
        bob = next(key for key in DEFAULT_KEYS if key.user == "bob")
        assert (await cluster.client(bob).chat()).status == 401

    async def test_a_bad_entry_names_itself_and_loses_nobody_else(self, cluster: Cluster) -> None:
        path = cluster.root / "config" / "api_keys.json"
        good = f'{{"key": "{ALICE.key}", "user": "alice"}}, {{"key": "{ADMIN.key}", "user": "admin"}}'
        path.write_text(f'{{"keys": [{good}, {{"key": 7, "user": "eve"}}]}}')
        reloaded = await cluster.client(ADMIN).request("POST", "/admin/reload-keys")
        assert reloaded.status == 200
        assert len(reloaded.json()["problems"]) == 1
        assert (await cluster.client().chat()).status == 200

    async def test_an_unreadable_file_changes_nothing(self, cluster: Cluster) -> None:
        (cluster.root / "config" / "api_keys.json").write_text("{")
        reloaded = await cluster.client(ADMIN).request("POST", "/admin/reload-keys")
        assert reloaded.status == 400
        assert (await cluster.client().chat()).status == 200
