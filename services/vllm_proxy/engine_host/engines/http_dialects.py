"""What differs between engines that are spoken to over HTTP: names and habits, in one table each.

Written against and tested with vLLM 0.32 (`vllm/entrypoints/openai`, `vllm/v1/metrics/loggers.py`) and SGLang 0.5.23
(`sglang/srt/entrypoints`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_proxy.common.settings import EngineSection, Sglang, Vllm
from vllm_proxy.engine_host.engines import sglang_command, sglang_process, vllm_command
from vllm_proxy.engine_host.engines.vllm_process import engine_environment
from vllm_proxy.engine_host.engines.vllm_worker import PLUGIN_VARIABLE

#: (the engine's section, the command's arguments) -> flags, each with the words that follow it.
LoraFlags = Callable[[EngineSection, Sequence[str]], Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class HttpDialect:
    """One engine's."""

    kind: str
    #: For people.
    name: str
    #: A version begins with it, or it was not tested.
    tested_version: str
    #: Where the version is asked for, in the key `version`.
    version_path: str
    #: Of its Prometheus metrics. The last is the used part of the KV cache, 0 to 1.
    running_metric: str
    waiting_metric: str
    kv_usage_metric: str
    load_lora_path: str
    unload_lora_path: str
    #: The field of a body that names an adapter, where `model` does not: the engine answers any name from the base.
    adapter_field: str
    #: Where the model's folder is asked for, in the key `model_path`. Empty: `/v1/models` has it.
    model_info_path: str
    #: Whether a name that was used for other weights from the same path may be loaded again from that path. Not so
    #: where the prefix cache is keyed by name and path.
    reloads_safely: bool
    #: What stands for `,"usage":{...}` in a streamed chunk of a text completion when nobody asks for usage. In one of
    #: a chat nothing does.
    no_usage_in_text: bytes
    #: Whether the last chunk of a choice carries `system_fingerprint`, but only if nobody asks for usage.
    fingerprint_without_usage: bool
    #: Whether a chunk's running usage is that of its own choice, not of all choices.
    usage_per_choice: bool
    #: In the body of a text completion, so that chunks carry token ids.
    token_ids_option: str
    #: See start_command.Dialect.
    removed_flags: frozenset[str]
    #: What `--port` and `--host` are without being given.
    default_port: int
    max_rank_flag: str
    #: The rank that adapters may have where the flag is not given; 0: the engine finds out by itself.
    default_max_rank: int
    lora_flags: LoraFlags
    #: What the engine needs in its environment besides the host's own.
    environment: Callable[[EngineSection], Mapping[str, str]]


def _vllm_lora_flags(section: EngineSection, arguments: Sequence[str]) -> Mapping[str, Sequence[str]]:
    assert isinstance(section, Vllm)
    return vllm_command.lora_flags(section.lora, arguments)


def _sglang_lora_flags(section: EngineSection, arguments: Sequence[str]) -> Mapping[str, Sequence[str]]:
    assert isinstance(section, Sglang)
    return sglang_command.lora_flags(section.lora)


def _vllm_environment(section: EngineSection) -> Mapping[str, str]:
    assert isinstance(section, Vllm)
    return {**engine_environment(section), PLUGIN_VARIABLE: "1"}


VLLM = HttpDialect(
    kind="vllm",
    name="vLLM",
    tested_version="0.32.",
    version_path="/version",
    running_metric="vllm:num_requests_running",
    waiting_metric="vllm:num_requests_waiting",
    kv_usage_metric="vllm:kv_cache_usage_perc",
    load_lora_path="/v1/load_lora_adapter",
    unload_lora_path="/v1/unload_lora_adapter",
    adapter_field="",
    model_info_path="",
    reloads_safely=False,
    no_usage_in_text=b"",
    fingerprint_without_usage=True,
    usage_per_choice=True,
    token_ids_option="return_token_ids",
    removed_flags=vllm_command.DIALECT.removed_flags,
    default_port=8000,
    max_rank_flag="--max-lora-rank",
    default_max_rank=16,
    lora_flags=_vllm_lora_flags,
    environment=_vllm_environment,
)

SGLANG = HttpDialect(
    kind="sglang",
    name="SGLang",
    tested_version="0.5.23",
    version_path="/server_info",
    running_metric="sglang:num_running_reqs",
    waiting_metric="sglang:num_queue_reqs",
    kv_usage_metric="sglang:token_usage",
    load_lora_path="/load_lora_adapter",
    unload_lora_path="/unload_lora_adapter",
    adapter_field="lora_path",
    model_info_path="/model_info",
    reloads_safely=True,
    no_usage_in_text=b',"usage":null',
    fingerprint_without_usage=False,
    usage_per_choice=True,
    token_ids_option="",
    removed_flags=sglang_command.DIALECT.removed_flags,
    default_port=30000,
    max_rank_flag="--max-lora-rank",
    default_max_rank=0,
    lora_flags=_sglang_lora_flags,
    environment=lambda section: {**sglang_process.DEFAULTS, **section.extra_env},
)

DIALECTS: Mapping[str, HttpDialect] = {dialect.kind: dialect for dialect in (VLLM, SGLANG)}
