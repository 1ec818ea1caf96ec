"""vLLM as the tests of the whole gateway run it: the flags, and all services with it in its host."""

from __future__ import annotations

import httpx
from tests.engine.columns import BASE, MODEL, VLLM_ENVIRONMENT
from tests.engine.running import ADAPTERS, require_model
from tests.support.cluster import ADMIN, Cluster
from tests.support.process import ENGINE_PYTHON

LOAD_TIMEOUT_S = 120
ENVIRONMENT = {
    **{name: str(value) for name, value in VLLM_ENVIRONMENT.items()},
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}
#: Without the prefix cache an answer does not depend on what was asked before.
FLAGS = (
    f"--model {MODEL} --served-model-name {BASE} --dtype bfloat16 --max-model-len 1024 --max-num-seqs 32"
    " --enforce-eager --no-enable-prefix-caching --enable-auto-tool-choice --tool-call-parser hermes"
)
LORA = {"max_lora_rank": 8, "max_loras": 2, "max_cpu_loras": 3}


def real_gateway(trace_endpoint: str) -> Cluster:
    """Not started yet; no adapter is loaded. Requests are traced if their client asks for it."""
    require_model(ENGINE_PYTHON)
    config = {
        "engine_hosts": {"vllm": {"engine": "vllm"}},
        "vllm_port": 0,
        "tracing": {"endpoint": trace_endpoint, "sample_ratio": 0, "export_interval_s": 0.5},
        "vllm": {
            "start_cmd": f"python -m vllm.entrypoints.openai.api_server {FLAGS}",
            "extra_env": ENVIRONMENT,
            "lora": {**LORA, "allowed_roots": [str(ADAPTERS)]},
        },
    }
    return Cluster(config, hosts=("vllm",))


def load_adapter(gateway: Cluster, name: str, folder: str) -> httpx.Response:
    """By the admin route; `folder` is a demo adapter's, or any path."""
    return _admin(gateway, "load", {"lora_name": name, "lora_path": str(ADAPTERS / folder)})


def unload_adapter(gateway: Cluster, name: str) -> httpx.Response:
    return _admin(gateway, "unload", {"lora_name": name})


def only_adapters(gateway: Cluster, names: tuple[str, ...]) -> None:
    """Loads and unloads so that just these demo adapters are there."""
    declared = gateway.control.declared_adapters()
    for name in set(declared) - set(names):
        unload_adapter(gateway, name).raise_for_status()
    for name in names:
        if name not in declared:
            load_adapter(gateway, name, name).raise_for_status()


def _admin(gateway: Cluster, action: str, body: dict[str, str]) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/admin/{action}-lora-adapter",
        json=body,
        headers={"Authorization": f"Bearer {ADMIN.key}"},
        timeout=LOAD_TIMEOUT_S,
        trust_env=False,
    )
