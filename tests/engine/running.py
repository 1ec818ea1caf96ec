"""An engine host (engine_process.py) in the environment of its column, and what to ask it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from tests.engine.columns import MODEL, ROOT, Column
from tests.support.cluster import free_port
from tests.support.process import ServiceProcess
from tests.support.wait import wait_until

from vllm_proxy.common import pid_record

ADAPTERS = ROOT / "adapters"
START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 30.0
QUESTION = "What is the capital of France?"


def require_model(engine_python: Path) -> Path:
    """The folder of the two adapters; fails the test if they, the model or the engine are not there."""
    for path in (engine_python, MODEL, ADAPTERS / "pirate", ADAPTERS / "robot"):
        assert path.exists(), f"{path} is missing: run `make install demo-lora`"
    return ADAPTERS


class RunningEngine:
    """Starts in a folder of its own, with the adapters copied to `adapters/`."""

    def __init__(self, column: Column, engine_port: int = 0) -> None:
        """`engine_port`: of the engine's own server, where that is in another process. 0: a free one."""
        adapters = require_model(column.engine_python)
        self.column = column
        self.root = Path(tempfile.mkdtemp(prefix="vpe-", dir="/tmp"))
        self.log_file = self.root / f"logs/{column.kind}.log"
        shutil.copytree(adapters, self.root / "adapters")
        (self.root / "lora_cache").mkdir()
        (self.root / "config").mkdir()
        in_process = column.launch_mode == "python_api"
        self.engine_port = engine_port or (0 if in_process else free_port())
        self._write_config()
        self.process = ServiceProcess(
            "engine",
            [
                str(column.engine_python if in_process else sys.executable),
                str(Path(__file__).with_name("engine_process.py")),
                "config/config.yaml",
                column.kind,
            ],
            cwd=self.root,
            log_path=self.root / "engine.log",
            is_healthy=lambda: self.state == "SERVING",
            environment={
                # As installed there, entry points included.
                "PYTHONPATH": column.python_path if in_process else "",
                "PATH": f"{column.engine_python.parent}:{os.environ['PATH']}",
            },
        )
        self.url = ""

    def _write_config(self) -> None:
        column = self.column
        lora: dict[str, Any] = {"max_lora_rank": 8, "max_loras": 2, "allowed_roots": ["adapters"]}
        config = {
            f"{column.kind}_port": self.engine_port,
            "engine_http": {"poll_s": 0.2, "priority_order": "low_first" if column.kind == "vllm" else "high_first"},
            "engine_host": {"adapter_drain_timeout_s": 60},
            "engine_hosts": {column.kind: {"engine": column.kind}},
        }
        section: dict[str, Any] = {"launch_mode": column.launch_mode, "start_cmd": column.start_cmd, **column.section}
        if column.python_path and column.launch_mode == "cli":
            section["extra_env"] = {**section["extra_env"], "PYTHONPATH": column.python_path}
        if column.kind == "vllm":
            lora["max_cpu_loras"] = 3
        config[column.kind] = {"lora": lora, **section}
        (self.root / "config/config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> RunningEngine:
        (self.root / "port").unlink(missing_ok=True)
        self.process.start()
        port = wait_until(self._port, "the host's process", START_DEADLINE_S)
        self.url = f"http://127.0.0.1:{port}"
        self.process.wait_healthy(START_DEADLINE_S)
        return self

    def _port(self) -> str | None:
        path = self.root / "port"
        if not path.exists() and not self.process.running:
            raise AssertionError(f"it ended:\n{self.process.log_tail()}")
        return path.read_text() if path.exists() else None

    def stop(self) -> None:
        self.process.end(STOP_DEADLINE_S)
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def state(self) -> str:
        """The host's, e.g. SERVING. Empty while it does not answer."""
        try:
            return str(self.ask_now("/test/state")["state"])
        except OSError:
            return ""

    @property
    def native_url(self) -> str:
        """The engine's own server: in its process, or opened by the host."""
        opened = [line["port"] for line in self.process.log_lines() if line["event"] == "native port open"]
        return f"http://127.0.0.1:{self.engine_port or opened[-1]}"

    def ask_now(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def engine_pids(self) -> list[int]:
        """The engine's processes: those that carry this host's mark, or the group that it started."""
        if self.column.launch_mode == "python_api":
            return pids_of_engine(self.process.pid)
        return self.engine_record.group() if self.column.launch_mode == "cli" else []

    @property
    def engine_record(self) -> pid_record.PidRecord:
        """Of the engine that this host runs by a command."""
        record = pid_record.read(self.root / f".pids/{self.column.kind}.pid")
        assert record is not None
        return record


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
