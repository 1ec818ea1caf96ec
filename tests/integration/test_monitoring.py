"""A real Prometheus over a running cluster: everything that the dashboard and the alerts ask for is there."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.conftest import StartCluster
from tests.support.adapter_files import write_adapter
from tests.support.cluster import ADMIN, ALICE, BOB, ApiKey, Cluster
from tests.support.prometheus import SHIPPED, Prometheus
from tests.support.streams import live_streams
from tests.support.tools import tool
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "config" / "grafana" / "dashboards" / "vllm-proxy.json"
RUNBOOK = ROOT / "docs" / "TROUBLESHOOTING.md"
SERVICES = {"edge", "auth", "router", "engine-sim"}
CAROL = ApiKey("sk-test-carol-0123456789abcdef", "carol", quota=0)
#: A metric of ours or of a process, with its labels.
SELECTOR = re.compile(r"\b(?:vllm_proxy[\w:]+|process_\w+|up)(?:\{[^}]*\})?")
#: Of a round of `some_of_everything`.
REQUESTS = 11
ENDLESS_TOKENS = 100_000
#: Of Grafana: it is at least four scrapes.
RATE_INTERVAL = "5s"


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    config = {
        "vllm": {"lora": {"allowed_roots": ["adapters"]}},
        "edge": {"capacity_wait_s": 0},
    }
    cluster = start_cluster(config, keys=(ALICE, BOB, CAROL, ADMIN))
    asyncio.run(lose_the_engine(cluster))
    return cluster


async def lose_the_engine(cluster: Cluster) -> None:
    """A stream that is cut, a request that no engine takes; then the engine is back."""
    async with live_streams(cluster.client(), 1, max_tokens=ENDLESS_TOKENS) as (stream,):
        cluster.host.kill()
        assert (await stream.end()).error
    assert (await cluster.client().chat()).status == 503
    cluster.host.start()
    await asyncio.to_thread(cluster.wait_serving, 1)


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(cluster.port, tmp_path_factory.mktemp("prometheus")) as running:
        wait_until(lambda: up(running) == SERVICES, "every service scraped", 20)
        for rounds in (1, 2):
            asyncio.run(some_of_everything(cluster))
            wait_until(lambda rounds=rounds: sees(running, rounds), "the requests in Prometheus", 20)
        yield running


def up(prometheus: Prometheus) -> set[str]:
    return {row["metric"]["service"] for row in prometheus.query('up{job="vllm-proxy"} == 1')}


async def some_of_everything(cluster: Cluster) -> None:
    """Streams, answers, a refusal, an adapter."""
    alice, admin = cluster.client(), cluster.client(ADMIN)
    await asyncio.gather(*(alice.stream(max_tokens=10) for _ in range(8)), alice.chat())
    assert (await cluster.client(CAROL).chat(max_tokens=1000)).status == 429
    write_adapter(cluster.root / "adapters" / "pirate")
    body = {"lora_name": "pirate", "lora_path": "adapters/pirate"}
    assert (await admin.request("POST", "/admin/load-lora-adapter", body)).status == 200
    assert (await cluster.client(model="pirate").chat()).status == 200
    assert (await admin.request("POST", "/admin/unload-lora-adapter", body)).status == 200


def sees(prometheus: Prometheus, rounds: int) -> bool:
    """Whether the last scrapes are later than so many rounds of `some_of_everything`."""
    expected = {
        "sum(vllm_proxy_edge_requests_total)": REQUESTS * rounds + 2,  # and those of `lose_the_engine`
        'sum(vllm_proxy_auth_settlements_total{result="settled"})': (REQUESTS - 1) * rounds + 2,  # one is refused
        'sum(vllm_proxy_engine_host_adapter_operations_total{outcome="ok"})': 2 * rounds,
    }
    rows = {expression: prometheus.query(expression) for expression in expected}
    return all(rows[e] and float(rows[e][0]["value"][1]) == count for e, count in expected.items())


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((SHIPPED / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def selectors(expression: str) -> list[str]:
    return SELECTOR.findall(re.sub(r"\b(?:by|on) \([^)]*\)", "", expression))


def test_promtool_accepts_the_shipped_files() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "config", SHIPPED / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_shows_something(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        wait_until(lambda expression=expression: prometheus.query(expression), f"{panel['title']}: {expression}")


@pytest.mark.parametrize("rule", rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_every_series_of_an_alert_is_there(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    found = selectors(rule["expr"])
    assert found, rule["expr"]
    for selector in found:
        wait_until(lambda selector=selector: prometheus.query(selector), selector)


@pytest.mark.parametrize("rule", rules("rules.yml"), ids=lambda rule: rule["record"])
def test_every_recording_rule_records(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    wait_until(lambda: prometheus.query(rule["record"]), rule["record"])


def test_alerts_are_healthy_and_tell_what_happened(prometheus: Prometheus, cluster: Cluster) -> None:
    assert {rule["health"] for rule in prometheus.alerts()} == {"ok"}
    cluster.host.kill()

    def pending() -> set[str]:
        return {rule["name"] for rule in prometheus.alerts() if rule["state"] in ("pending", "firing")}

    wait_until(lambda: {"VllmProxyNoEngine", "VllmProxyEngineDown"} <= pending(), "alerts about the engine", 20)
    cluster.host.start()
    cluster.host.wait_healthy()
    wait_until(lambda: "VllmProxyNoEngine" not in pending(), "the alert gone", 20)


def test_every_alert_has_a_runbook() -> None:
    sections = {line.strip("# ").lower() for line in RUNBOOK.read_text().splitlines() if line.startswith("#")}
    for rule in rules("alerts.yml"):
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor) == ("docs/TROUBLESHOOTING.md", rule["alert"].lower())
        assert anchor in sections
