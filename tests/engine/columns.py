"""The ways an engine can be run, each a column of the same tests; and what a column cannot do, with the reason.

A test belongs to a row of the table in docs/ENGINES.md by its `row` marker. What stands in CANNOT is skipped with its
reason and shown as such; nothing else may be skipped here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.install import engine_build
from tests.support.process import ENGINE_PYTHON, SGLANG_CPU_STUB, SGLANG_PYTHON

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/smollm2-135m-instruct"
#: Requests that each engine computes at once.
PLACES = 32
#: How long a change of load may take to be seen from outside.
ASKED_S = 2.0
#: The name that every column serves the demo model under.
BASE = "smol"


@dataclass(frozen=True, slots=True)
class Column:
    """One way to run one engine."""

    kind: str
    launch_mode: str
    #: The start command, run in the engine's environment.
    start_cmd: str
    #: The engine's environment.
    engine_python: Path
    #: Settings of the engine's section besides.
    section: dict[str, object] = field(default_factory=dict)
    #: PYTHONPATH of the engine's processes.
    python_path: str = ""
    #: The engine's load is exact in-process; elsewhere it is asked for at intervals.
    load_is_known_within_s: float = 0.5
    #: What the title of the engine's main process holds, and a word of its own log.
    core: str = "EngineCore"
    core_log: str = "EngineCore"
    #: How many answers the mixture has; the great one is asked of the whole gateway (tests/system).
    mixed_answers: int = 48
    #: Whether loaded adapters stay in memory, whatever becomes of their files.
    keeps_adapters: bool = False
    #: Whether typed generation has token ids.
    tells_token_ids: bool = True

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.launch_mode}"

    @property
    def engine(self) -> str:
        """Columns of the same one share an engine process."""
        return f"{self.kind}-{'in-process' if self.launch_mode == 'python_api' else 'http'}"


VLLM_COMMAND = (
    f"python -m vllm.entrypoints.openai.api_server --model {MODEL} --served-model-name {BASE}"
    " --dtype bfloat16 --max-model-len 1024 --max-num-seqs 32 --enforce-eager --disable-log-requests"
    " --scheduling-policy priority"
)
#: Cached tokens are told over HTTP only if asked for.
VLLM_CLI_COMMAND = f"{VLLM_COMMAND} --enable-prompt-tokens-details"
#: One thread and no core of its own: two engines run beside each other (tests/conftest.py).
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": 1,
    "VLLM_CPU_KVCACHE_SPACE": 1,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": 1,
}
VLLM_SECTION = {"extra_env": VLLM_ENVIRONMENT}

SGLANG_COMMAND = (
    f"python -m sglang.launch_server --model-path {MODEL} --served-model-name {BASE} --dtype bfloat16"
    " --context-length 1024 --max-running-requests 32 --max-total-tokens 32768"
    " --enable-priority-scheduling"
)
SGLANG_ENVIRONMENT = {"HF_HUB_OFFLINE": 1}
SGLANG_PATH = ""
if engine_build() == "cpu":
    # PyTorch's own operators in the place of SGLang's kernels: see tests/support/sglang_cpu.
    SGLANG_COMMAND += (
        " --device cpu --attention-backend torch_native --lora-backend torch_native --disable-overlap-schedule"
        " --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled"
    )
    SGLANG_ENVIRONMENT["SGLANG_USE_CPU_ENGINE"] = 1
    # Its adapters' operators are many and tiny: threads would only wait for each other.
    SGLANG_ENVIRONMENT["OMP_NUM_THREADS"] = 1
    SGLANG_PATH = str(SGLANG_CPU_STUB)

#: Its load and its cached tokens are told over HTTP only if asked for.
SGLANG_CLI_COMMAND = f"{SGLANG_COMMAND} --enable-metrics --enable-cache-report"
SGLANG = Column(
    "sglang",
    "python_api",
    SGLANG_COMMAND,
    SGLANG_PYTHON,
    {"extra_env": SGLANG_ENVIRONMENT},
    SGLANG_PATH,
    # It asks once a second whether the client of a waiting request is still there.
    load_is_known_within_s=ASKED_S,
    core="sglang::scheduler",
    core_log="Prefill batch",
    mixed_answers=24,
    keeps_adapters=True,
)

#: The engine is the same, so fewer answers tell as much of the way to it.
OUTSIDE: dict[str, Any] = {"load_is_known_within_s": ASKED_S, "mixed_answers": 32}

COLUMNS: tuple[Column, ...] = (
    Column("vllm", "python_api", VLLM_COMMAND, ENGINE_PYTHON, VLLM_SECTION),
    Column("vllm", "cli", VLLM_CLI_COMMAND, ENGINE_PYTHON, VLLM_SECTION, **OUTSIDE),
    # At the engine that the host of the column before runs.
    Column("vllm", "attached", VLLM_CLI_COMMAND, ENGINE_PYTHON, VLLM_SECTION, **OUTSIDE),
    SGLANG,
    replace(
        SGLANG,
        launch_mode="cli",
        start_cmd=SGLANG_CLI_COMMAND,
        # Its figures of load are told every few steps.
        load_is_known_within_s=6.0,
        core="sglang.launch_server",
        tells_token_ids=False,
    ),
)

_NO_COUNT = "an answer that is not streamed and is cut short tells no tokens: such a request is charged nothing"
_RE_READ = (
    "vLLM reads an adapter that it dropped from memory again in the middle of a step; one whose files are gone then "
    "ends the engine, which the host starts again (cli)"
)

#: (column, test function with or without its parameters) -> why it cannot.
CANNOT: dict[tuple[str, str], str] = {
    **{
        (f"vllm-{mode}", test): reason
        for mode in ("cli", "attached")
        for test, reason in (
            ("test_an_adapter_whose_files_vanished_does_not_kill_the_engine", _RE_READ),
            ("test_a_disconnect_is_counted[whole]", _NO_COUNT),
        )
    },
    ("sglang-cli", "test_a_disconnect_is_counted[whole]"): _NO_COUNT,
}


def selected() -> tuple[Column, ...]:
    """All of them, or those that ENGINE_COLUMNS names (comma-separated)."""
    names = [name for name in os.environ.get("ENGINE_COLUMNS", "").split(",") if name]
    if unknown := set(names) - {column.name for column in COLUMNS}:
        raise ValueError(f"ENGINE_COLUMNS: there is no column {', '.join(sorted(unknown))}")
    return tuple(column for column in COLUMNS if not names or column.name in names)
