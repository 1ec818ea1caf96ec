"""The environment that vLLM and its processes run in."""

from __future__ import annotations

import os

from vllm_proxy.common.settings import Vllm
from vllm_proxy.engine_host.engines.engine_owner import OWNER_VARIABLE, own_mark
from vllm_proxy.engine_host.engines.vllm_worker import PLUGIN_NAME

#: Set unless the user did.
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_COLOR": "0",
    # Process titles would overwrite /proc/PID/environ, which leftovers are found by.
    "SPT_NOENV": "1",
    # The edge has looked at the address that a media URL names, not at the next one.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
}


def set_environment(vllm: Vllm) -> None:
    """Sets this process's environment for vLLM and its children. Before vLLM is imported, which reads it once."""
    # The host's own counters must not be taken for the edge's, which share files.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    changes = engine_environment(vllm)
    if "VLLM_LORA_RESOLVER_CACHE_DIR" in changes:
        vllm.lora.runtime_resolver.cache_dir.mkdir(parents=True, exist_ok=True)
    os.environ.update(changes)
    os.environ[OWNER_VARIABLE] = own_mark()


def engine_environment(vllm: Vllm) -> dict[str, str]:
    """What vLLM needs in its environment besides this process's own."""
    changes = {name: value for name, value in _DEFAULTS.items() if name not in os.environ} | vllm.extra_env
    given = vllm.extra_env.get("VLLM_PLUGINS", os.environ.get("VLLM_PLUGINS", ""))
    plugins = [p for p in given.split(",") if p]
    resolver = vllm.lora.runtime_resolver
    if vllm.lora.enabled:
        plugins += [p for p in resolver.plugins if p not in plugins]
        changes["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1" if resolver.allow_runtime_updates else "0"
        if "lora_filesystem_resolver" in plugins:
            changes["VLLM_LORA_RESOLVER_CACHE_DIR"] = str(resolver.cache_dir.resolve())
    changes["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins, PLUGIN_NAME]))
    return changes
