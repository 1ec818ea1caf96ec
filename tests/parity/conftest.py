"""The engine's own server, then the gateway in front of the same engine: one at a time, and what both answered."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import pytest
from tests.engine.running import ADAPTERS, require_model
from tests.parity.corpus import ASKS
from tests.parity.exchange import Answer, Recorded, ask_all
from tests.real_gateway import ENVIRONMENT, FLAGS, LORA, only_adapters
from tests.support.cluster import ALICE, Cluster, free_port
from tests.support.process import ENGINE_PYTHON, ServiceProcess

START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 30.0
VOICES = ("pirate", "robot")


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """`vllm serve`, recorded and stopped."""
    require_model(ENGINE_PYTHON)
    folder = tmp_path_factory.mktemp("own")
    port = free_port()
    modules = " ".join(f"{name}={ADAPTERS / name}" for name in VOICES)
    limits = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in LORA.items())
    arguments = f"{FLAGS} --enable-lora {limits} --lora-modules {modules} --host 127.0.0.1 --port {port}"
    url = f"http://127.0.0.1:{port}"
    server = ServiceProcess(
        "own-server",
        [str(ENGINE_PYTHON), "-m", "vllm.entrypoints.openai.api_server", *arguments.split()],
        cwd=folder,
        log_path=folder / "vllm.log",
        is_healthy=lambda: _answers(url + "/health"),
        environment={**ENVIRONMENT, "PYTHONPATH": ""},
        start_deadline_s=START_DEADLINE_S,
    )
    try:
        server.start()
        server.wait_healthy()
        with urllib.request.urlopen(url + "/openapi.json", timeout=30) as answer:
            openapi = json.load(answer)
        return Recorded(asyncio.run(ask_all(url, ASKS, {})), openapi)
    finally:
        server.end(STOP_DEADLINE_S)


@pytest.fixture(scope="session")
def gateway(own: Recorded, gateway: Cluster) -> Cluster:
    """With both adapters, as the engine's own server had them; started once that is gone."""
    only_adapters(gateway, VOICES)
    return gateway


@pytest.fixture(scope="session")
def ours(gateway: Cluster) -> dict[str, Answer]:
    return asyncio.run(ask_all(gateway.url, ASKS, {"authorization": f"Bearer {ALICE.key}"}))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
