"""Engine hosts: what all share, how they deal with an engine in another process, and each one by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import field_validator

from vllm_proxy.common.settings.engines import texts
from vllm_proxy.common.settings.fields import (
    Address,
    EngineKind,
    LaunchMode,
    LoopbackHost,
    Port,
    PositiveInt,
    PositiveSeconds,
    PriorityOrder,
    Section,
    Url,
)


class EngineHost(Section):
    """What all engine hosts share."""

    drain_timeout_s: PositiveSeconds = 30
    """How long running requests may take to end at a stop."""
    adapter_load_timeout_s: PositiveSeconds = 120
    """How long one host may take to load an adapter."""
    adapter_drain_timeout_s: PositiveSeconds = 120
    """How long an unload waits for the adapter's running requests before it aborts them."""
    max_in_flight: PositiveInt = 8192
    """Requests that one host holds; more are answered with 503."""
    stored_responses: PositiveInt = 1000
    """Responses that vLLM keeps if VLLM_ENABLE_RESPONSES_API_STORE is set; the oldest go first."""
    stored_response_ttl_s: PositiveSeconds = 3600
    """How long a stored response can be asked for."""
    unacked_limit: PositiveInt = 100_000
    """Ended requests that wait for their acknowledgement; the oldest are settled by the host."""


class EngineHttp(Section):
    """How a host speaks to an engine in another process (cli, attached)."""

    poll_s: PositiveSeconds = 1.0
    """How often it asks for the engine's health, models and load."""
    answer_timeout_s: PositiveSeconds = 5.0
    """How long each of these answers may take."""
    silence_s: PositiveSeconds = 30.0
    """An engine that takes connections and answers nothing for so long is away. One that takes none is so at once."""
    connect_timeout_s: PositiveSeconds = 5.0
    """How long a connection to the engine may take to open."""
    max_connections: PositiveInt = 4096
    """Requests that the engine is sent at once; more wait."""
    idle_connection_s: PositiveSeconds = 3.0
    """How long an idle connection is kept. Shorter than the engine keeps it (5 s), or a request may meet its end."""
    priority_order: PriorityOrder | None = None
    """Which priorities the engine takes first, if requests shall carry their key's: vLLM with
    `--scheduling-policy priority` low ones, SGLang with `--enable-priority-scheduling` high ones unless told otherwise.
    null: they carry none."""


class EngineProcess(Section):
    """How a host runs an engine by its start command (cli)."""

    start_timeout_s: PositiveSeconds = 1800
    """From the start to the first healthy answer."""
    stop_timeout_s: PositiveSeconds = 20
    """From SIGTERM to SIGKILL."""
    restart_min_s: PositiveSeconds = 1.0
    """The pause before an engine that died is started again; doubled after each failure."""
    restart_max_s: PositiveSeconds = 60.0
    """The longest such pause."""
    restart_limit: PositiveInt = 5
    """After so many deaths without having served for a minute in between the host gives up and ends."""


class EngineHostSpec(Section):
    """One engine host by name. What is null below `metrics_port` is as in the section of its engine."""

    engine: EngineKind
    """What it hosts."""
    address: Address | None = None
    """Where its EngineService listens; null: unix:.run/engine-<name>.sock."""
    metrics_port: Port | None = None
    """If set, Prometheus metrics are served there on loopback."""
    launch_mode: LaunchMode | None = None
    """How its engine is run."""
    start_cmd_file: Path | None = None
    """The file with its start command."""
    start_cmd: str | None = None
    """The start command itself; wins over start_cmd_file."""
    host: LoopbackHost | None = None
    """Where the engine's own HTTP server is: vllm_host or sglang_host."""
    port: Port | None = None
    """Its port: vllm_port or sglang_port."""
    url: Url | None = None
    """attached: where the engine is, if it is not at its host and port."""
    api_key_variable: str | None = None
    """The environment variable with the engine's own key."""
    log_file: Path | None = None
    """null: the section's, or logs/<name>-engine.log if several hosts run this kind of engine."""
    pid_file: Path | None = None
    """null: the section's, or <name>-engine.pid in pid_dir if several hosts run this kind of engine."""
    extra_env: dict[str, str] | None = None
    """Added to its engine's environment, in place of the section's."""

    @field_validator("extra_env", mode="before")
    @classmethod
    def _stringify(cls, value: Any) -> Any:
        return texts(value)

    @property
    def overrides(self) -> dict[str, Any]:
        """What it sets of its engine's section."""
        given = {name: getattr(self, name) for name in _OVERRIDES}
        return {name: value for name, value in given.items() if value is not None}


#: The settings of EngineSection that one host may have differently.
_OVERRIDES = (
    *("launch_mode", "start_cmd_file", "start_cmd", "url", "api_key_variable"),
    *("log_file", "pid_file", "extra_env"),
)
