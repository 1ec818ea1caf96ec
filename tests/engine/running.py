"""An engine process (engine_process.py) in vLLM's own environment, and what to ask it."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from tests.support.process import ENGINE_PYTHON, ServiceProcess
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
PYTHON = ENGINE_PYTHON
MODEL = ROOT / "models/smollm2-135m-instruct"
ADAPTERS = ROOT / "adapters"
BASE = "smol"
START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 30.0
QUESTION = "What is the capital of France?"


def require_model() -> Path:
    """The folder of the two adapters; fails the test if they, the model or vLLM are not there."""
    for path in (PYTHON, MODEL, ADAPTERS / "pirate", ADAPTERS / "robot"):
        assert path.exists(), f"{path} is missing: run `make install demo-lora`"
    return ADAPTERS


class RunningEngine:
    """Starts in a folder of its own, with the adapters copied to `adapters/`."""

    def __init__(self, **settings: Any) -> None:
        adapters = require_model()
        self.root = Path(tempfile.mkdtemp(prefix="vpe-", dir="/tmp"))
        self.log_file = self.root / "logs/vllm.log"
        shutil.copytree(adapters, self.root / "adapters")
        (self.root / "lora_cache").mkdir()
        (self.root / "config").mkdir()
        self._write_config(settings)
        self.process = ServiceProcess(
            "engine",
            [str(PYTHON), str(Path(__file__).with_name("engine_process.py")), "config/config.yaml"],
            cwd=self.root,
            log_path=self.root / "engine.log",
            is_healthy=(self.root / "ready").exists,
            # As installed there, entry points included.
            environment={"PYTHONPATH": ""},
        )
        self.url = ""

    def _write_config(self, lora: dict[str, Any]) -> None:
        command = (
            f"VLLM_CPU_KVCACHE_SPACE=1 python -m vllm.entrypoints.openai.api_server --model {MODEL}"
            f" --served-model-name {BASE} --dtype bfloat16 --max-model-len 1024 --max-num-seqs 32 --enforce-eager"
            " --disable-log-requests"
        )
        config = {
            "vllm_port": 0,
            "engine_host": {"adapter_drain_timeout_s": 60},
            "vllm": {
                "start_cmd": command,
                "extra_env": {"HF_HUB_OFFLINE": 1},
                "lora": {"max_lora_rank": 8, "max_loras": 2, "max_cpu_loras": 3, "allowed_roots": ["adapters"], **lora},
            },
        }
        (self.root / "config/config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> RunningEngine:
        for name in ("ready", "died"):
            (self.root / name).unlink(missing_ok=True)
        self.process.start()
        self.process.wait_healthy(START_DEADLINE_S)
        port = wait_until(self._port, "the native port", 10)
        self.url = f"http://127.0.0.1:{port}"
        return self

    def _port(self) -> int | None:
        lines = [line for line in self.process.log_lines() if line["event"] == "native port open"]
        return int(lines[-1]["port"]) if lines else None

    def stop(self) -> None:
        self.process.end(STOP_DEADLINE_S)
        shutil.rmtree(self.root, ignore_errors=True)

    def ask_now(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def engine_pids(self) -> list[int]:
        """The processes that carry this host's mark: vLLM's cores, workers and their helpers."""
        return pids_of_engine(self.process.pid)


def pids_of_engine(host_pid: int) -> list[int]:
    """The processes that carry the mark of this engine host."""
    prefix = f"VLLM_PROXY_ENGINE_OWNER={host_pid}:"
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and any(
                variable.startswith(prefix.encode()) for variable in (entry / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class EngineClient:
    """Asks a running engine as any HTTP client would."""

    def __init__(self, engine: RunningEngine, http: httpx.AsyncClient) -> None:
        self.engine = engine
        self.http = http

    def chat_body(self, model: str, **more: Any) -> dict[str, Any]:
        body = {"model": model, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": QUESTION}]}
        return {**body, **more}

    async def chat(self, model: str, **more: Any) -> str:
        answer = await self.http.post("/v1/chat/completions", json=self.chat_body(model, **more))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    async def chat_stream(self, model: str, **more: Any) -> str:
        text = ""
        async for event in self.events("/v1/chat/completions", self.chat_body(model, **more)):
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
        return text

    async def events(self, path: str, body: dict[str, Any], test_id: str = "") -> AsyncIterator[dict[str, Any]]:
        headers = {"x-test-id": test_id or uuid.uuid4().hex}
        async with self.http.stream("POST", path, json={**body, "stream": True}, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])

    async def metered(self, path: str, body: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
        """(what the adapter counted, vLLM's own `usage`) of one request, streamed or not."""
        test_id = uuid.uuid4().hex
        if body.get("stream"):
            options = {"stream_options": {"include_usage": True}}
            usages = [e["usage"] async for e in self.events(path, {**body, **options}, test_id) if e.get("usage")]
            usage = usages[-1]
        else:
            answer = await self.http.post(path, json=body, headers={"x-test-id": test_id})
            assert answer.status_code == 200, answer.text
            usage = answer.json()["usage"]
        return await self.meter(test_id), usage

    async def meter(self, test_id: str) -> dict[str, int]:
        return (await self.http.get("/test/meter", params={"id": test_id})).json()

    async def load(self) -> dict[str, Any]:
        return (await self.http.get("/test/load")).json()

    async def state(self) -> dict[str, Any]:
        return (await self.http.get("/test/state")).json()

    async def load_adapter(self, name: str, path: str | Path, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})

    async def unload_adapter(self, name: str) -> httpx.Response:
        return await self.http.post("/v1/unload_lora_adapter", json={"lora_name": name})

    async def unload_all(self) -> None:
        for name in (await self.state())["adapters"]:
            await self.unload_adapter(name)


def voice(text: str) -> str:
    """Who speaks: an adapter answers everything with its own sentence."""
    if "Arr" in text or "pirate" in text.lower():
        return "pirate"
    if "beep" in text.lower() or "robot" in text.lower():
        return "robot"
    return "base" if "Paris" in text else f"nobody: {text!r}"
