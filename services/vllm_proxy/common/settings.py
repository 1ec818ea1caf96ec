"""The whole of `config/config.yaml`: its schema, its defaults, and how it is read.

The environment is used for secrets only. A relative path is relative to the project root, the folder that holds
`config/`; every service makes that its working directory at start.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vllm_proxy.common.settings_check import (
    checked_address,
    checked_addresses,
    checked_loopback,
    checked_store,
    checked_url,
    conflicts,
    fault_of,
)

#: The environment variable that holds the token services show each other. Needed once a gRPC listener leaves
#: loopback or a Unix socket.
INTERNAL_TOKEN_VARIABLE = "VLLM_PROXY_INTERNAL_TOKEN"
#: The environment variable that may hold the password of auth.store's Redis.
REDIS_PASSWORD_VARIABLE = "VLLM_PROXY_REDIS_PASSWORD"

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveSeconds = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Address = Annotated[str, AfterValidator(checked_address)]
Addresses = Annotated[str, AfterValidator(checked_addresses)]
LoopbackHost = Annotated[str, AfterValidator(checked_loopback)]
EngineKind = Literal["vllm", "sglang", "sim"]
LaunchMode = Literal["python_api", "cli", "attached"]
Url = Annotated[str, AfterValidator(checked_url)]


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line per fault, each naming its key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RateLimit(Section):
    qps: Annotated[float, Field(gt=0)] | None = None
    """Requests per second; null: unlimited."""
    concurrent: PositiveInt | None = None
    """Requests that run at once; null: unlimited."""
    tokens_per_minute: PositiveInt | None = None
    """Prompt and response tokens per minute; null: unlimited."""


class UserLimit(Section):
    """What one user may do with all keys together; a limit that is left out is user_rate_limit's."""

    qps: Annotated[float, Field(gt=0)] | None = None
    """Requests per second; null: unlimited."""
    concurrent: PositiveInt | None = None
    """Requests that run at once; null: unlimited."""
    tokens_per_minute: PositiveInt | None = None
    """Prompt and response tokens per minute; null: unlimited."""
    quota: Annotated[int, Field(ge=0)] | None = None
    """Tokens in total, or in each quota_period; null: unlimited."""
    quota_period: Literal["day", "month"] | None = None
    """The calendar period (UTC) after which the quota is whole again; null: never."""


class LoraPreload(Section):
    name: str
    """The name that requests ask for."""
    path: Path
    """The folder with adapter_config.json and adapter_model.safetensors."""
    base_model_name: str | None = None
    """The base model as it is served; null: the one that the engine runs."""


class RuntimeResolver(Section):
    allow_runtime_updates: bool = True
    """Whether adapters may be loaded and unloaded while the engine runs."""
    plugins: list[str] = ["lora_filesystem_resolver"]
    """With lora_filesystem_resolver, an adapter in cache_dir/<name> is loaded at its first request."""
    cache_dir: Path = Path("./lora_cache")
    """The folder that the resolver looks in."""


class Lora(Section):
    """What both engines share."""

    enabled: bool = True
    """Whether adapters can be used at all."""
    max_lora_rank: PositiveInt = 64
    """The largest rank of an adapter."""
    max_loras: PositiveInt = 4
    """Adapters that compute in one batch."""
    preload: list[LoraPreload] = []
    """Loaded at start: name, path, base_model_name."""
    allowed_roots: list[Path] = [Path("./adapters"), Path("/data/lora")]
    """Folders that adapters may be loaded from, besides cache_dir and the preloaded ones."""
    runtime_resolver: RuntimeResolver = RuntimeResolver()


class VllmLora(Lora):
    max_cpu_loras: PositiveInt = 4
    """Adapters that stay in memory; at least max_loras."""
    default_mm_loras: dict[str, str] = {}
    """Modality -> adapter path, for multi-modal models."""
    limit_mm_per_prompt: dict[str, Any] = {}
    """Modality -> items per prompt."""

    @model_validator(mode="before")
    @classmethod
    def _raise_cpu_loras(cls, data: Any) -> Any:
        # The guide's own example has max_cpu_loras 2 below max_loras 4, which vLLM refuses.
        if isinstance(data, dict):
            loras = data.get("max_loras", 4)
            cpu = data.get("max_cpu_loras", loras)
            too_few = isinstance(loras, int) and isinstance(cpu, int) and 0 < cpu < loras
            if too_few or "max_cpu_loras" not in data:
                data = {**data, "max_cpu_loras": loras}
        return data


class SglangLora(Lora):
    target_modules: list[str] = ["all"]
    """The modules that adapters may change, by name; all: every one that the model has."""


class EngineSection(Section):
    """How one engine is started."""

    auto_start: bool = False
    """Whether starting the edge alone starts the engine too."""
    launch_mode: LaunchMode = "python_api"
    """python_api: the engine lives in the engine host. cli: the host runs the start command and looks after it.
    attached: somebody else runs it, at the engine's host and port or at `url`."""
    url: Url | None = None
    """attached: where the engine is, if it is not at its host and port; http://host:port or https://host."""
    api_key_variable: str
    """The environment variable with the engine's own key, if it has one. A start command's --api-key wins."""
    start_cmd_file: Path
    """The file with the start command; lines that begin with # are comments."""
    start_cmd: str | None = None
    """The start command itself; wins over start_cmd_file."""
    log_file: Path
    """The engine's own output."""
    pid_file: Path
    """Of an engine that the host runs by its start command (cli)."""
    extra_env: dict[str, str] = {}
    """Added to the engine's environment."""
    lora: Lora = Lora()

    @field_validator("extra_env", mode="before")
    @classmethod
    def _stringify(cls, value: Any) -> Any:
        return _texts(value)

    def command(self, root: Path = Path()) -> str:
        """The start command, comments and line continuations removed. Empty if there is none."""
        if self.start_cmd and self.start_cmd.strip():
            return _command_text(self.start_cmd)
        try:
            return _command_text((root / self.start_cmd_file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ""

    @property
    def command_source(self) -> str:
        """Where the start command stands: the key, and the file if it names one."""
        return "start_cmd" if self.start_cmd and self.start_cmd.strip() else f"start_cmd_file {self.start_cmd_file}"


def _texts(value: Any) -> Any:
    return {k: str(v) for k, v in value.items()} if isinstance(value, dict) else value


def _command_text(text: str) -> str:
    lines = (line.strip().removesuffix("\\") for line in text.splitlines() if not line.lstrip().startswith("#"))
    return " ".join(line.strip() for line in lines if line.strip())


class Vllm(EngineSection):
    start_cmd_file: Path = Path("config/vllm_start_cmd.txt")
    """The file with the start command; lines that begin with # are comments."""
    log_file: Path = Path("logs/vllm.log")
    """The engine's own output."""
    pid_file: Path = Path(".pids/vllm.pid")
    """Of an engine that the host runs by its start command (cli)."""
    api_key_variable: str = "VLLM_API_KEY"
    """The environment variable with the engine's own key, if it has one. A start command's --api-key wins."""
    lora: VllmLora = VllmLora()


class Sglang(EngineSection):
    start_cmd_file: Path = Path("config/sglang_start_cmd.txt")
    """The file with the start command; lines that begin with # are comments."""
    log_file: Path = Path("logs/sglang.log")
    """The engine's own output."""
    pid_file: Path = Path(".pids/sglang.pid")
    """Of an engine that the host runs by its start command (cli)."""
    api_key_variable: str = "SGLANG_API_KEY"
    """The environment variable with the engine's own key, if it has one. A start command's --api-key wins."""
    lora: SglangLora = SglangLora()


class Sim(Section):
    """The simulated engine, for load tests."""

    model: str = "sim"
    step_ms: Annotated[float, Field(gt=0)] = 10.0
    """One decode step of the whole batch."""
    prefill_tokens_per_s: Annotated[float, Field(gt=0)] = 20_000
    """Prompt tokens that it reads per second."""
    max_num_seqs: PositiveInt = 4096
    """Requests in one batch; more wait."""
    kv_cache_tokens: PositiveInt = 10_000_000
    """Tokens that all running requests may hold together; more wait."""
    max_model_len: PositiveInt = 1_000_000
    http_port: Port | None = None
    """If set, the simulator's own minimal HTTP server listens there on loopback (for comparisons)."""
    adapters: list[str] = []
    """Adapters that it pretends to have, each answering with its own name."""
    journal_dir: Path | None = None
    """If set, what each request produced is kept there, in files that survive kill -9."""


class Edge(Section):
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """A larger request body is answered with 413."""
    max_buffered_bytes: PositiveInt = 512 * 1024 * 1024
    """Request bodies that one worker holds, all together; what would exceed it is answered with 503."""
    max_header_bytes: PositiveInt = 64 * 1024
    """Larger request headers are answered with 431."""
    request_timeout_s: PositiveSeconds = 3600
    """From the last byte of the request to the last byte of the response."""
    body_timeout_s: PositiveSeconds = 60
    """How long a client may take to send its headers, and again to send its body."""
    client_stall_timeout_s: PositiveSeconds = 120
    """A client that reads nothing for so long is cut off; a slow one never is."""
    response_window_bytes: Annotated[int, Field(ge=16 * 1024)] = 256 * 1024
    """Response bytes of one request that may be on their way to a client."""
    admission_timeout_s: PositiveSeconds = 10
    """How long a request waits for the auth service, its restart included."""
    capacity_wait_s: Annotated[float, Field(ge=0)] = 5
    """How long a request waits for an engine host when none is there, before 503."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 1
    """The same for one whose host failed before anything was answered, before 502."""
    drain_timeout_s: PositiveSeconds = 30
    """How long running requests may take to end at a stop."""
    drain_notice_s: Annotated[float, Field(ge=0)] = 0
    """How long /health says 503 before the listener closes, so that balancers see it."""
    keep_alive_timeout_s: PositiveSeconds = 75
    """How long an idle client connection stays open."""
    sse_keepalive_s: Annotated[float, Field(ge=0)] = 0
    """After so long without an event, a stream gets a comment line; 0: never. Checked once a second."""
    server_timing: bool = False
    """Whether answers say in `server-timing` how long admission, routing and the first byte took."""
    cors_origins: list[str] = []
    """Origins of web pages that may use the API, such as https://chat.example.com; `*`: all. Empty: none."""
    allow_private_media_urls: bool = False
    """Whether the engine may be sent to addresses that are not public for images, sounds and videos."""


class Auth(Section):
    address: Addresses = "unix:.run/auth.sock"
    """Where AuthService is: unix:PATH or host:port; of several replicas all, as ip:port,ip:port, or one DNS name."""
    listen_address: Address | None = None
    """Where this replica listens; null: at address."""
    store: Annotated[str, AfterValidator(checked_store)] = "sqlite:state/auth.db"
    """Where leases and usage are kept: sqlite:PATH, or the URL of a Redis or Valkey, which several replicas share."""
    synchronous: Literal["normal", "full"] = "normal"
    """SQLite durability: normal survives kill -9, full also a power cut."""
    redis_prefix: Annotated[str, Field(min_length=1, pattern=r"^[^{}\s]+$")] = "vllm-proxy"
    """What every key in Redis begins with, in braces, so that all lie in one slot of a cluster."""
    redis_timeout_s: PositiveSeconds = 2
    """An answer of Redis that takes longer counts as an outage."""
    leadership_ttl_s: Annotated[float, Field(ge=0.5)] = 3
    """How long after the death of the replica that decides another one takes over."""
    store_outage: Literal["fail_closed", "fail_open"] = "fail_closed"
    """While Redis is away: fail_closed admits nothing new (503); fail_open admits and keeps the records in memory."""
    store_outage_buffer: PositiveInt = 500_000
    """Records (two a request) that fail_open keeps in memory; beyond it nothing is admitted."""
    default_response_tokens: PositiveInt = 1024
    """Response tokens to reserve when a request does not say max_tokens."""
    max_response_tokens: PositiveInt | None = None
    """Tokens of one answer that a key may ask for, unless the key says otherwise; null: unlimited."""
    priority_classes: dict[str, Annotated[int, Field(ge=-1000, le=1000)]] = {"high": -10, "normal": 0, "low": 10}
    """Classes that a key's `priority` may name; a lower number goes first. Must have `normal`, the default."""
    admission_wait_ms: Annotated[int, Field(ge=0)] = 0
    """How long a request waits for room under its limits instead of being refused; 0: not at all. A key may say
    otherwise. At most edge.admission_timeout_s less half a second."""
    admission_queue_size: PositiveInt = 10_000
    """Requests that wait so at once, a quarter of them of one key; more are refused."""
    lease_ttl_s: PositiveSeconds = 30
    """A lease that nobody renews for so long lapses."""
    settle_grace_s: PositiveSeconds = 300
    """How long a host's count may still replace an edge's."""
    cached_token_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What a prompt token that came from the prefix cache is charged, as a share of a token."""
    ledger_retention_days: PositiveInt = 90
    """How long single settlements are kept; their sums by hour, key, user and model stay."""
    audit_retention_days: PositiveInt = 365
    """How long the audit log tells who administered what."""
    rotation_overlap_s: Annotated[float, Field(ge=0, le=31_536_000)] = 86_400
    """How long a key's old secret stays good after a rotation, unless the rotation says otherwise."""
    metrics_port: Port | None = None
    """If set, Prometheus metrics are served there on loopback."""
    drain_timeout_s: PositiveSeconds = 5

    @field_validator("priority_classes")
    @classmethod
    def _has_normal(cls, value: dict[str, int]) -> dict[str, int]:
        if "normal" not in value:
            raise ValueError("must have the class normal, which keys without a priority are in")
        return value


class Router(Section):
    address: Address = "unix:.run/router.sock"
    """Where RouterService listens."""
    state_file: Path = Path("state/router.db")
    """Where adapter declarations are kept."""
    policy: Literal["least_loaded", "round_robin"] = "least_loaded"
    heartbeat_s: PositiveSeconds = 1.0
    """How often hosts report."""
    host_timeout_s: PositiveSeconds = 2.5
    """A host that did not report for so long is out of the table."""
    adapter_timeout_s: PositiveSeconds = 300
    """How long all hosts together may take to load or unload an adapter."""
    metrics_port: Port | None = None
    """If set, Prometheus metrics are served there on loopback."""
    drain_timeout_s: PositiveSeconds = 2
    """How long a stop may take."""


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
        return _texts(value)

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


class Grpc(Section):
    max_message_bytes: Annotated[int, Field(ge=2 * 1024 * 1024)] = 64 * 1024 * 1024
    """The largest gRPC message that is accepted. Session batches stay at or under 1 MiB."""
    keepalive_s: PositiveSeconds = 20
    """How often an idle connection is probed."""
    keepalive_timeout_s: PositiveSeconds = 10
    """How long the answer to such a probe may take before the connection counts as broken."""
    call_timeout_s: PositiveSeconds = 30
    """The deadline of unary calls between services that carry none of their own."""
    reconnect_min_s: PositiveSeconds = 0.05
    """The first pause before a broken connection is tried again; doubled after each failure."""
    reconnect_max_s: PositiveSeconds = 2.0
    """The longest such pause."""


class Logs(Section):
    dir: Path = Path("logs")
    """The folder of the services' logs."""
    max_bytes: Annotated[int, Field(ge=0)] = 50 * 1024 * 1024
    """A service's log is rotated at this size; 0: never, something else (config/logrotate/) does."""
    backups: Annotated[int, Field(ge=0)] = 10
    """Rotated files that are kept."""


class Nginx(Section):
    """nginx in front of the edge, as scripts/start.sh runs it."""

    enabled: bool = False
    """Whether scripts/start.sh starts it; the same as its --nginx."""
    host: str = "0.0.0.0"
    """Where it listens."""
    port: Port = 8000
    """The port that clients connect to."""
    tls_certificate: Path | None = None
    """PEM, the chain included. With tls_key it makes `port` a TLS port; null: plain HTTP."""
    tls_key: Path | None = None
    """PEM."""


class Settings(Section):
    """The configuration of all services."""

    vllm_host: LoopbackHost = "localhost"
    """Where the engine host serves vLLM's own HTTP application. Loopback only."""
    vllm_port: Port = 8002
    """Its port."""
    sglang_host: LoopbackHost = "localhost"
    """The same for SGLang."""
    sglang_port: Port = 8003
    """Its port."""
    fastapi_host: str = "0.0.0.0"
    """Where the edge listens."""
    fastapi_port: Port = 8001
    """The port that clients connect to."""
    fastapi_workers: PositiveInt = 1
    """Edge worker processes."""
    api_keys_file: Path = Path("config/api_keys.json")
    """The declared API keys; made at the first start if it is missing."""
    rate_limit: RateLimit = RateLimit()
    """Limits of each key."""
    user_rate_limit: RateLimit = RateLimit()
    """Limits that all keys of one user share."""
    users: dict[str, UserLimit] = {}
    """Users whose limits are others, by name."""
    global_rate_limit: RateLimit = RateLimit()
    """Limits that everybody shares."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    model_backend_mapping: dict[str, Literal["vllm", "sglang", "sim"]] = {}
    """Model name -> engine kind. Empty: models are found on the engines that are up."""
    model_aliases: dict[str, str] = {}
    """Name that clients may use -> model or adapter."""
    default_model: str | None = None
    """The model of requests that name none; null: the engine that they happen to reach decides."""
    vllm: Vllm = Vllm()
    sglang: Sglang = Sglang()
    sim: Sim = Sim()
    edge: Edge = Edge()
    auth: Auth = Auth()
    router: Router = Router()
    engine_host: EngineHost = EngineHost()
    engine_http: EngineHttp = EngineHttp()
    engine_process: EngineProcess = EngineProcess()
    engine_hosts: dict[str, EngineHostSpec] = {}
    """Engine hosts by name. Empty: one for each engine that has a start command, named after it."""
    grpc: Grpc = Grpc()
    logs: Logs = Logs()
    nginx: Nginx = Nginx()
    pid_dir: Path = Path(".pids")
    """Process ids of the services."""
    run_dir: Path = Path(".run")
    """Unix sockets of the services."""

    @property
    def max_admission_wait_ms(self) -> int:
        """The edge gives up half a second later."""
        return max(0, int(self.edge.admission_timeout_s * 1000) - 500)

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("engine_hosts")
    @classmethod
    def _names(cls, value: dict[str, EngineHostSpec]) -> dict[str, EngineHostSpec]:
        for name in value:
            if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
                raise ValueError(f"{name!r} may have letters, digits, - and _ only")
        return value

    def hosts(self, root: Path = Path()) -> dict[str, EngineHostSpec]:
        """The engine hosts to run, addresses filled in. Reads the start-command files, relative to `root`."""
        specs = dict(self.engine_hosts)
        if not specs:
            if self.vllm.launch_mode == "attached" or self.vllm.command(root):
                specs["vllm"] = EngineHostSpec(engine="vllm")
            if self.sglang.launch_mode == "attached" or self.sglang.command(root):
                specs["sglang"] = EngineHostSpec(engine="sglang")
        return {
            name: spec
            if spec.address
            else spec.model_copy(update={"address": f"unix:{self.run_dir}/engine-{name}.sock"})
            for name, spec in specs.items()
        }

    def for_host(self, name: str) -> Settings:
        """These settings with the engine's section, host and port as they are for one engine host."""
        spec = self.engine_hosts.get(name) or EngineHostSpec.model_validate({"engine": name})
        kind = spec.engine
        if kind == "sim":
            return self
        section: EngineSection = getattr(self, kind)
        changes = spec.overrides
        if "start_cmd_file" in changes and "start_cmd" not in changes:
            changes["start_cmd"] = None
        if sum(other.engine == kind for other in self.engine_hosts.values()) > 1:
            changes = {
                "log_file": self.logs.dir / f"{name}-engine.log",
                "pid_file": self.pid_dir / f"{name}-engine.pid",
                **changes,
            }
        update: dict[str, Any] = {kind: section.model_copy(update=changes)}
        if spec.host is not None:
            update[f"{kind}_host"] = spec.host
        if spec.port is not None:
            update[f"{kind}_port"] = spec.port
        return self.model_copy(update=update)

    def section(self, kind: EngineKind) -> EngineSection | None:
        """How an engine of a kind is started; None for the simulator."""
        return {"vllm": self.vllm, "sglang": self.sglang}.get(kind)

    def native_address(self, kind: EngineKind) -> tuple[str, int]:
        """Host and port of the engine's own HTTP server."""
        if kind == "sglang":
            return self.sglang_host, self.sglang_port
        return self.vllm_host, self.vllm_port


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    settings: Settings
    path: Path
    root: Path
    #: Things that were put right; each is worth a line in the log.
    warnings: tuple[str, ...] = ()


def find_root(config_path: Path) -> Path:
    """The project root of a configuration file: beside its `config/` folder, else its own folder."""
    folder = config_path.resolve().parent
    return folder.parent if folder.name == "config" else folder


def load_settings(path: Path, overrides: Sequence[str] = ()) -> LoadedSettings:
    """Reads and checks a configuration file. A missing file is an error, an empty one means all defaults.

    Each override is `dotted.key=value` (the value in YAML) and wins over the file. Raises ConfigError.
    """
    path = path.resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 (byte {e.start})") from None
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as e:
        # PyYAML lets Python's own errors through for values such as the date 2024-13-45.
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of settings")
    # `vllm:` with nothing below it means the defaults, not null.
    data = {k: v for k, v in data.items() if not (v is None and k in _SECTIONS)}
    for override in overrides:
        _override(data, override)
    try:
        settings = Settings.model_validate(data)
    except ValidationError as e:
        raise ConfigError("\n".join(f"{path}: {fault_of(error, Settings)}" for error in e.errors())) from None
    root = find_root(path)
    if faults := list(conflicts(settings, root)):
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    return LoadedSettings(settings, path, root, tuple(_warnings(data)))


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *parents, last = key.split(".")
    for parent in parents:
        child = data.get(parent)
        data[parent] = data = dict(child) if isinstance(child, dict) else {}
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        separator = ""
    if not separator:
        raise ConfigError(f"--set {override}: must be key=value, the value in YAML")


def enter_root(loaded: LoadedSettings) -> None:
    """Makes the project root the working directory, which relative paths in the settings are meant for."""
    os.chdir(loaded.root)


_SECTIONS = frozenset(
    name for name, field in Settings.model_fields.items() if isinstance(field.default, (BaseModel, dict, list))
)


def _warnings(data: dict[str, Any]) -> list[str]:
    lora = (data.get("vllm") or {}).get("lora") or {}
    loras, cpu = lora.get("max_loras", 4), lora.get("max_cpu_loras")
    if isinstance(cpu, int) and isinstance(loras, int) and cpu < loras:
        return [f"vllm.lora.max_cpu_loras: {cpu} is below max_loras and was raised to {loras}"]
    return []


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key that stands twice, since the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
