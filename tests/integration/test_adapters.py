"""LoRA adapters through the admin endpoints: on every host, through restarts, until they are unloaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.integration.conftest import StartCluster
from tests.support.adapter_files import write_adapter
from tests.support.cluster import ADMIN, ALICE, Cluster
from tests.support.http_client import Answer
from tests.support.streams import live_streams
from tests.support.wait import eventually

HOSTS = ("sim-a", "sim-b")


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster({"vllm": {"lora": {"allowed_roots": ["adapters"]}}}, hosts=HOSTS)


async def load(cluster: Cluster, name: str, path: Path | str, **more: object) -> Answer:
    body = {"lora_name": name, "lora_path": str(path), **more}
    return await cluster.client(ADMIN).request("POST", "/admin/load-lora-adapter", body)


async def unload(cluster: Cluster, name: str) -> Answer:
    return await cluster.client(ADMIN).request("POST", "/admin/unload-lora-adapter", {"lora_name": name})


def residency(cluster: Cluster, name: str) -> set[str]:
    """The hosts that say they have an adapter."""
    return {host.name for host in cluster.control.hosts().values() if name in {model.name for model in host.models}}


async def models(cluster: Cluster) -> list[str]:
    answer = await cluster.client().request("GET", "/v1/models")
    return [card["id"] for card in answer.json()["data"]]


async def says(cluster: Cluster, name: str) -> str:
    answer = await cluster.client(model=name).chat(max_tokens=4)
    assert answer.status == 200, answer
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_loaded_on_every_host_and_unloaded_again(cluster: Cluster) -> None:
    path = write_adapter(cluster.root / "adapters" / "pirate")
    assert (await cluster.client(model="pirate").chat()).status == 404
    assert (await load(cluster, "pirate", path)).status == 200
    assert residency(cluster, "pirate") == set(HOSTS)
    assert await models(cluster) == ["sim", "pirate"]
    assert (await says(cluster, "pirate")).startswith("[simulated by pirate]")
    assert (await says(cluster, "sim")).startswith("[simulated by sim]")
    assert (await unload(cluster, "pirate")).status == 200
    assert residency(cluster, "pirate") == set()
    gone = await cluster.client(model="pirate").chat()
    assert gone.status == 404
    assert "pirate" in gone.error["message"]
    assert await models(cluster) == ["sim"]
    assert (await unload(cluster, "pirate")).status == 404


async def test_it_survives_the_router_and_every_host(cluster: Cluster) -> None:
    path = write_adapter(cluster.root / "adapters" / "poet")
    assert (await load(cluster, "poet", path)).status == 200
    for service in (cluster.router, *cluster.hosts.values()):
        service.kill()
        service.start()
        await asyncio.to_thread(service.wait_healthy)
        await eventually(lambda: residency(cluster, "poet") == set(HOSTS), f"replayed after {service.name}", 15)
    await asyncio.to_thread(cluster.wait_serving, 2)
    assert (await says(cluster, "poet")).startswith("[simulated by poet]")
    assert (await unload(cluster, "poet")).status == 200
    # Withdrawn for good: a host that starts again does not get it back.
    await asyncio.to_thread(cluster.hosts["sim-a"].restart, kill=True)
    await asyncio.to_thread(cluster.wait_serving, 2)
    assert residency(cluster, "poet") == set()


async def test_a_host_that_was_away_gets_what_was_declared_meanwhile(cluster: Cluster) -> None:
    cluster.hosts["sim-b"].kill()
    await eventually(lambda: cluster.control.serving_hosts() == {"sim-a"}, "sim-b out of the table", 5)
    path = write_adapter(cluster.root / "adapters" / "late")
    assert (await load(cluster, "late", path)).status == 200
    cluster.hosts["sim-b"].start()
    await eventually(lambda: residency(cluster, "late") == set(HOSTS), "loaded on the host that returned", 15)
    assert (await unload(cluster, "late")).status == 200
    assert residency(cluster, "late") == set()


async def test_an_unload_waits_for_running_requests(cluster: Cluster) -> None:
    path = write_adapter(cluster.root / "adapters" / "busy")
    assert (await load(cluster, "busy", path)).status == 200
    async with live_streams(cluster.client(model="busy"), 4, max_tokens=300) as streams:
        unloading = asyncio.create_task(unload(cluster, "busy"))
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes)
        assert (await unloading).status == 200
    assert (await cluster.client(model="busy").chat()).status == 404


async def test_a_name_that_is_taken(cluster: Cluster) -> None:
    path = write_adapter(cluster.root / "adapters" / "twice")
    other = write_adapter(cluster.root / "adapters" / "twice-again", fill=1.0)
    assert (await load(cluster, "twice", path)).status == 200
    assert (await load(cluster, "twice", other)).status == 400
    assert (await load(cluster, "sim", path)).status == 400
    assert (await unload(cluster, "twice")).status == 200


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("outside", "/etc"),
        ("dots", "adapters/../config"),
        ("missing", "adapters/missing"),
        ("../escape", "adapters/good"),
        ("a/b", "adapters/good"),
        ("", "adapters/good"),
        ("linked", "adapters/link"),
        ("broken", "adapters/broken"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_and_left_nowhere(cluster: Cluster, name: str, path: str) -> None:
    folder = cluster.root / "adapters"
    write_adapter(folder / "good")
    write_adapter(cluster.root / "elsewhere")
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(cluster.root / "elsewhere")
    write_adapter(folder / "broken")
    (folder / "broken" / "adapter_model.safetensors").write_bytes(b"not safetensors")
    answer = await load(cluster, name, path)
    assert answer.status in (400, 403, 404, 422), answer
    assert answer.error["message"]
    assert await models(cluster) == ["sim"]
    assert list(cluster.control.declared_adapters()) == []


async def test_an_adapter_in_the_resolvers_folder_is_found_at_its_first_request(cluster: Cluster) -> None:
    write_adapter(cluster.root / "lora_cache" / "dropped")
    assert (await says(cluster, "dropped")).startswith("[simulated by dropped]")
    await eventually(lambda: len(residency(cluster, "dropped")) >= 1, "the router knows it")
    assert await cluster.settled_usage(ALICE.user)


@pytest.mark.parametrize("name", ["../adapters/good", "..%2fadapters", "/etc", "dropped/../dropped"])
async def test_a_models_name_cannot_escape_the_resolvers_folder(cluster: Cluster, name: str) -> None:
    assert (await cluster.client(model=name).chat()).status == 404


async def test_updates_can_be_forbidden(start_cluster: StartCluster) -> None:
    cluster = start_cluster({"vllm": {"lora": {"runtime_resolver": {"allow_runtime_updates": False}}}})
    path = write_adapter(cluster.root / "adapters" / "pirate")
    assert (await load(cluster, "pirate", path)).status == 403
