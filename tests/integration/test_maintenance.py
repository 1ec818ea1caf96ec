"""What every process does while it runs: it follows a changed configuration (by the file itself, by SIGHUP, by Reload),
changes its log level, and cleans its logs wherever it runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, DEFAULT_KEYS, ApiKey, Cluster, free_port
from tests.support.process import ServiceProcess
from tests.support.wait import eventually, wait_until

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.common.rpc.worker_sockets import living_workers

WORKERS = 2
CALL_TIMEOUT_S = 10


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    cluster = start_cluster(workers=WORKERS)
    wait_until(lambda: len(living_workers(cluster.root / ".run")) == WORKERS, "every worker up")
    return cluster


@contextmanager
def maintenance(address: str) -> Iterator[maintenance_pb2_grpc.MaintenanceServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield maintenance_pb2_grpc.MaintenanceServiceStub(channel)


def addresses(cluster: Cluster) -> dict[str, str]:
    """Of every process, the edge's workers included."""
    services = {
        "auth": cluster.address("auth"),
        "router": cluster.address("router"),
        "sim": cluster.host_address("sim"),
    }
    return services | living_workers(cluster.root / ".run")


def ask(cluster: Cluster, method: str, request: Any) -> dict[str, Any]:
    """The answers of every process."""
    answers = {}
    for name, address in addresses(cluster).items():
        with maintenance(address) as stub:
            answers[name] = getattr(stub, method)(request, timeout=CALL_TIMEOUT_S)
    assert len(answers) == 3 + WORKERS
    return answers


def events(service: ServiceProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in service.log_lines() if line.get("event") == event]


def test_sighup_ends_nobody_and_is_answered_in_every_log(cluster: Cluster) -> None:
    for service in cluster.services:
        os.kill(service.pid, signal.SIGHUP)
    for service in cluster.services:
        wait_until(
            lambda service=service: any(e["trigger"] == "SIGHUP" for e in events(service, "configuration applied")),
            f"{service.name} reloaded",
        )
    assert all(service.running for service in cluster.services)


def test_reload_says_what_holds_what_waits_and_for_whom(cluster: Cluster) -> None:
    ask(cluster, "Reload", pb.ReloadRequest())  # nobody still reads the file before
    cluster.write_config({"log_levels": {"router": "DEBUG"}, "sim": {"step_ms": 6}, "auth": {"lease_ttl_s": 31}})
    answers = ask(cluster, "Reload", pb.ReloadRequest())
    waiting = {(row.setting, row.service) for answer in answers.values() for row in answer.needs_restart}
    assert waiting == {("sim.step_ms", "engine-sim"), ("auth.lease_ttl_s", "auth")}
    assert {answer.service for answer in answers.values()} == {"auth", "router", "engine-sim", "edge"}
    lines = events(cluster.host, "configuration applied")
    assert lines[-1]["needs_restart"] == ["sim.step_ms (engine-sim)"]
    assert any(line["level"] == "DEBUG" for line in cluster.router.log_lines())
    assert not any(line.get("level") == "DEBUG" for line in cluster.auth.log_lines())
    cluster.write_config({"log_levels": {"router": "INFO"}, "sim": {"step_ms": 5}, "auth": {"lease_ttl_s": 30}})
    answers = ask(cluster, "Reload", pb.ReloadRequest())
    assert not any(answer.needs_restart for answer in answers.values())


async def test_saving_the_file_is_enough_on_every_worker(cluster: Cluster) -> None:
    cluster.write_config({"model_aliases": {"gpt-4": "sim"}, "edge": {"server_timing": True}})
    for edge in cluster.edges:
        await eventually(
            lambda edge=edge: any(
                {"model_aliases.gpt-4", "edge.server_timing"} <= set(e["applied"])
                for e in events(edge, "configuration applied")
            ),
            f"{edge.name} follows",
        )
    # Each of a new connection, so that either worker gets some.
    for answer in await asyncio.gather(*(cluster.client(model="gpt-4").chat() for _ in range(8))):
        assert answer.status == 200
        assert "server-timing" in answer.headers


async def test_saving_the_keys_is_enough(cluster: Cluster) -> None:
    fresh = ApiKey("sk-test-fresh-0123456789abcdef", "fred")
    assert (await cluster.client(fresh).chat()).status == 401
    cluster.write_keys([*DEFAULT_KEYS, fresh])

    async def works() -> bool:
        return bool((await cluster.client(fresh).chat()).status == 200)

    await eventually(works, "the new key")


async def test_a_file_that_cannot_be_used_changes_nothing(cluster: Cluster) -> None:
    good = cluster.config_path.read_text()
    keys = cluster.root / "config" / "api_keys.json"
    good_keys = keys.read_text()
    try:
        cluster.config_path.write_text(good + "\nrate_limt: {qps: 1}\n")
        for name, address in addresses(cluster).items():
            with maintenance(address) as stub, pytest.raises(grpc.RpcError) as caught:
                stub.Reload(pb.ReloadRequest(), timeout=CALL_TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            assert "rate_limt: unknown key; did you mean rate_limit?" in caught.value.details(), name
        cluster.config_path.write_text(yaml.safe_dump(yaml.safe_load(good) | {"rate_limit": {"qps": 0.001}}))
        keys.write_text("{")
        with maintenance(cluster.address("auth")) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.Reload(pb.ReloadRequest(), timeout=CALL_TIMEOUT_S)
        assert "api_keys.json: not valid JSON" in caught.value.details()
        for answer in await asyncio.gather(*(cluster.client(ADMIN).chat() for _ in range(3))):
            assert answer.status == 200  # neither the limit nor the keys
    finally:
        keys.write_text(good_keys)
        cluster.config_path.write_text(good)
        ask(cluster, "Reload", pb.ReloadRequest())


def test_the_log_level_of_one_worker(cluster: Cluster) -> None:
    before = ask(cluster, "GetInfo", pb.GetInfoRequest())
    assert {info.pid for info in before.values()} == {service.pid for service in cluster.services}
    assert {info.log_level for info in before.values()} == {pb.LOG_LEVEL_INFO}
    worker = next(iter(living_workers(cluster.root / ".run")))
    with maintenance(addresses(cluster)[worker]) as stub:
        stub.SetLogLevel(pb.SetLogLevelRequest(level=pb.LOG_LEVEL_DEBUG), timeout=CALL_TIMEOUT_S)
    after = ask(cluster, "GetInfo", pb.GetInfoRequest())
    assert {name for name, info in after.items() if info.log_level == pb.LOG_LEVEL_DEBUG} == {worker}


@pytest.fixture
def elsewhere(cluster: Cluster) -> Iterator[Path]:
    """An engine host as on another machine: of its own configuration and folders, reached over TCP. Its root."""
    root = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
    config = root / "config" / "config.yaml"
    config.parent.mkdir()
    hosts = {"far": {"engine": "sim", "address": f"127.0.0.1:{free_port()}"}}
    addresses = {name: {"address": cluster.address(name)} for name in ("auth", "router")}
    config.write_text(yaml.safe_dump({"engine_hosts": hosts, "sim": {"model": "far-model"}, **addresses}))
    host = ServiceProcess(
        "engine-far",
        ServiceProcess.python_module("vllm_proxy.engine_host", "--config", str(config), "--name", "far"),
        cwd=root,
        log_path=root / "logs" / "engine-far.log",
        is_healthy=lambda: "far" in cluster.control.serving_hosts(),
    )
    host.start()
    try:
        host.wait_healthy()
        yield root
    finally:
        host.end(5)
        shutil.rmtree(root)


async def test_a_host_elsewhere_cleans_its_own_logs(cluster: Cluster, elsewhere: Path) -> None:
    admin = cluster.client(ADMIN)
    for folder in (elsewhere / "logs", cluster.root / "logs"):
        (folder / "engine-far.log.1").write_text("old\n")

    async def told() -> Any:
        answer = await admin.request("POST", "/admin/clean-logs?days=0&dry_run=true")
        return answer.json()["services"].get("engine-far")

    row = await eventually(told, "the edge knows the host")
    assert row["removed"] == ["engine-far.log.1"]
    assert (elsewhere / "logs" / "engine-far.log.1").exists()
    cleaned = (await admin.request("POST", "/admin/clean-logs?days=0")).json()["services"]
    assert cleaned["engine-far"]["removed"] == ["engine-far.log.1"]
    assert [path.name for path in (elsewhere / "logs").iterdir()] == ["engine-far.log"]
    assert (cluster.root / "logs" / "engine-far.log.1").exists()


def test_a_worker_that_ended_leaves_nothing_and_one_that_was_killed_is_swept(cluster: Cluster) -> None:
    run_dir, worker = cluster.root / ".run", cluster.edges[1]

    def left() -> int:
        return len(list(run_dir.glob("edge-*")))

    a_pair = left() // WORKERS
    worker.stop()
    assert (len(living_workers(run_dir)), left()) == (1, a_pair)
    worker.start()
    wait_until(lambda: len(living_workers(run_dir)) == WORKERS, "the worker is back")
    worker.kill()
    assert (len(living_workers(run_dir)), left()) == (1, 2 * a_pair)
    worker.start()
    wait_until(lambda: len(living_workers(run_dir)) == WORKERS, "the worker is back")
    assert left() == 2 * a_pair
