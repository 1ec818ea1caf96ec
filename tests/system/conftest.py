"""All services as they are shipped, with the real vLLM behind them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine.columns import MODEL
from tests.engine.running import require_model
from tests.support.cluster import Cluster
from tests.support.process import ENGINE_PYTHON

BASE = "smol"
#: Starting the engine takes most of a minute, and longer on a busy machine.
TEST_TIMEOUT_S = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def gateway() -> Iterator[Cluster]:
    """One installation for all tests; they run in the order of their file and leave no adapter loaded."""
    adapters = require_model(ENGINE_PYTHON)
    command = (
        f"python -m vllm.entrypoints.openai.api_server --model {MODEL} --served-model-name {BASE} --dtype bfloat16"
        " --max-model-len 1024 --max-num-seqs 32 --enforce-eager"
    )
    config = {
        "engine_hosts": {"vllm": {"engine": "vllm"}},
        "vllm_port": 0,
        "vllm": {
            "start_cmd": command,
            "extra_env": {"VLLM_CPU_KVCACHE_SPACE": 1, "HF_HUB_OFFLINE": 1},
            "lora": {"max_lora_rank": 8, "max_loras": 2, "max_cpu_loras": 3, "allowed_roots": [str(adapters)]},
        },
    }
    with Cluster(config, hosts=("vllm",)) as cluster:
        yield cluster
