"""What makes an engine that the host starts send spans of its own to the same collector.

The flags and variables of vLLM 0.32 and SGLang 0.5.23; both read `traceparent` from a request's headers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm_proxy.common.settings import Tracing
from vllm_proxy.engine_host.engines.start_command import StartCommand, has

ENDPOINT_FLAG = "--otlp-traces-endpoint"
_SWITCHES = {"sglang": ("--enable-trace",)}


def tracing_flags(tracing: Tracing, kind: str, arguments: Sequence[str]) -> list[str]:
    """What is added to a start command; nothing if tracing is off or the command says itself where spans go."""
    if not tracing.otlp_endpoint or not tracing.engines or has(arguments, ENDPOINT_FLAG):
        return []
    switches = [flag for flag in _SWITCHES.get(kind, ()) if not has(arguments, flag)]
    return [*switches, ENDPOINT_FLAG, tracing.otlp_endpoint]


def tracing_environment(tracing: Tracing, kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """What is added to an engine's environment, where neither `given` nor the host's own has it."""
    if not tracing.otlp_endpoint or not tracing.engines:
        return {}
    wanted = {
        "OTEL_SERVICE_NAME": f"{tracing.service_prefix}-{kind}",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": tracing.protocol,
    }
    return {name: value for name, value in wanted.items() if name not in given and name not in os.environ}


def with_tracing(command: StartCommand, tracing: Tracing, kind: str, extra_env: Mapping[str, str]) -> StartCommand:
    """The command of an engine within the host."""
    environment = tracing_environment(tracing, kind, {**extra_env, **command.environment})
    return replace(
        command,
        arguments=(*command.arguments, *tracing_flags(tracing, kind, command.arguments)),
        environment={**environment, **command.environment},
    )
