"""Keys of several priority classes before an engine that is full."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, ApiKey, free_port
from tests.support.streams import LiveStream
from tests.support.wait import eventually

SERVICES = Path(__file__).parents[2] / "services"
SERVER = Path(__file__).parents[1] / "support" / "sim_server.py"
CLASSES = ("low", "normal", "high")
KEYS = {name: ApiKey(f"sk-test-{name}-0123456789abcdef", name) for name in CLASSES}

#: An engine with one place, in its host and in a process of its own.
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "in the host": ("sim", {"sim": {"step_ms": 2, "max_num_seqs": 1}}),
    "over HTTP": (
        "vllm",
        {
            "engine_hosts": {"vllm": {"engine": "vllm"}},
            "engine_http": {"poll_s": 0.1, "priority_order": "low_first"},
            "vllm": {
                "launch_mode": "cli",
                "start_cmd": f"{sys.executable} {SERVER} --model sim --max-num-seqs 1",
                "extra_env": {"PYTHONPATH": str(SERVICES)},
            },
        },
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
async def test_who_waits_in_the_engine_goes_by_the_class_of_the_key(start_cluster: StartCluster, engine: str) -> None:
    host, config = ENGINES[engine]
    ports = {"vllm_port": free_port()} if host == "vllm" else {}
    cluster = start_cluster({**config, **ports}, keys=[ADMIN], hosts=(host,))
    cluster.write_keys([ADMIN, *KEYS.values()], {name: {"priority": name} for name in CLASSES})
    assert (await cluster.client(ADMIN).request("POST", "/admin/reload-keys")).json()["problems"] == []

    async def wait_for_waiting(count: int) -> None:
        def waiting() -> int:
            return sum(each.load.waiting for each in cluster.control.hosts().values())

        await eventually(lambda: waiting() == count, f"{count} requests waiting in the engine", 10)

    occupant = await LiveStream.start(cluster.client(KEYS["normal"]), max_tokens=100_000)
    await occupant.wait_tokens(1)
    order: list[str] = []

    async def ask(name: str, **more: Any) -> None:
        assert (await cluster.client(KEYS[name]).stream(max_tokens=50, **more)).done
        order.append(name)

    async with asyncio.TaskGroup() as asking:
        # The last one asks to come first, which is not for it to decide.
        for count, (name, more) in enumerate([("normal", {}), ("high", {}), ("low", {"priority": -100})], 1):
            asking.create_task(ask(name, **more))
            await wait_for_waiting(count)
        await occupant.leave()
    assert order == ["high", "normal", "low"]
