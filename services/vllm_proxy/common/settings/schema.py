"""The whole of `config/config.yaml`: every section with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from vllm_proxy.common.settings.engine_hosts import EngineHost, EngineHostSpec, EngineHttp, EngineProcess
from vllm_proxy.common.settings.engines import EngineSection, Sglang, Sim, Vllm
from vllm_proxy.common.settings.fields import EngineKind, LogLevel, LoopbackHost, Port, PositiveInt, Section
from vllm_proxy.common.settings.limits import RateLimit, UserLimit
from vllm_proxy.common.settings.services import Auth, Edge, Grpc, Logs, Nginx, Router
from vllm_proxy.common.settings.tracing import Tracing


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
    log_level: LogLevel = "INFO"
    """How much the services log."""
    log_levels: dict[str, LogLevel] = {}
    """Services that log more or less than that, by name: edge, auth, router, engine-NAME."""
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
    tracing: Tracing = Tracing()
    pid_dir: Path = Path(".pids")
    """Process ids of the services."""
    run_dir: Path = Path(".run")
    """Unix sockets of the services."""

    @property
    def max_admission_wait_ms(self) -> int:
        """The edge gives up half a second later."""
        return max(0, int(self.edge.admission_timeout_s * 1000) - 500)

    @field_validator("engine_hosts")
    @classmethod
    def _names(cls, value: dict[str, EngineHostSpec]) -> dict[str, EngineHostSpec]:
        for name in value:
            if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
                raise ValueError(f"{name!r} may have letters, digits, - and _ only")
        return value

    def log_level_of(self, service: str) -> str:
        """How much one service logs."""
        return self.log_levels.get(service, self.log_level)

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
