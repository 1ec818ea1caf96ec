"""The engine's own server, then the gateway in front of the same engine: one at a time, and what both answered."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from tests.engine.columns import MODEL
from tests.engine.running import ADAPTERS, require_model
from tests.parity.corpus import ASKS, BASE
from tests.parity.exchange import Answer, Recorded, ask_all
from tests.support.cluster import ALICE, Cluster, free_port
from tests.support.process import ENGINE_PYTHON, ServiceProcess

#: Both engines' starts and all answers come before the first test.
TEST_TIMEOUT_S = 600
START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 30.0
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}
#: For both. Without the prefix cache an answer does not depend on what was asked before.
FLAGS = (
    f"--model {MODEL} --served-model-name {BASE} --dtype bfloat16 --max-model-len 1024 --max-num-seqs 32"
    " --enforce-eager --no-enable-prefix-caching --enable-auto-tool-choice --tool-call-parser hermes"
)
LORA_FLAGS = "--enable-lora --max-lora-rank 8 --max-loras 2 --max-cpu-loras 3"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """`vllm serve`, recorded and stopped."""
    require_model(ENGINE_PYTHON)
    folder = tmp_path_factory.mktemp("own")
    port = free_port()
    modules = " ".join(f"{name}={ADAPTERS / name}" for name in ("pirate", "robot"))
    arguments = f"{FLAGS} {LORA_FLAGS} --lora-modules {modules} --host 127.0.0.1 --port {port}"
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
def gateway(own: Recorded) -> Iterator[Cluster]:
    """All services with the engine in its host; started once the engine's own server is gone."""
    config = {
        "engine_hosts": {"vllm": {"engine": "vllm"}},
        "vllm_port": 0,
        "vllm": {
            "start_cmd": f"python -m vllm.entrypoints.openai.api_server {FLAGS}",
            "extra_env": ENVIRONMENT,
            "lora": {
                "max_lora_rank": 8,
                "max_loras": 2,
                "max_cpu_loras": 3,
                "preload": [{"name": name, "path": str(ADAPTERS / name)} for name in ("pirate", "robot")],
            },
        },
    }
    with Cluster(config, hosts=("vllm",)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ours(gateway: Cluster) -> dict[str, Answer]:
    return asyncio.run(ask_all(gateway.url, ASKS, {"authorization": f"Bearer {ALICE.key}"}))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
