"""How each kind of engine is started, and the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from vllm_proxy.common.settings.fields import LaunchMode, Port, PositiveInt, Section, Url
from vllm_proxy.common.settings.lora import Lora, SglangLora, VllmLora


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
        return texts(value)

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


def texts(value: Any) -> Any:
    """YAML's numbers and booleans as an environment has them."""
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
