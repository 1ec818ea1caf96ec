"""A VllmEngine with its registry and native port, and nothing else of the gateway: what the engine tests drive.

Runs in vLLM's environment: `python engine_process.py CONFIG`. Writes the files `ready` (its process id) and `died`
(why). Beside vLLM's own routes it answers, for tests: `GET /test/load`, `GET /test/meter?id=X` (what was metered for
the request sent with `x-test-id: X`), `GET /test/state` (the registry's adapters, the engine's own ids, its limits),
`POST /test/generate` (the typed interface; model, prompt, max_tokens, temperature).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import uvloop

from vllm_proxy.common.lifecycle import StopSignal
from vllm_proxy.common.logging import setup_logging
from vllm_proxy.common.settings import enter_root, load_settings
from vllm_proxy.engine_host import native_http
from vllm_proxy.engine_host.engines.base import GenerateParameters, UsageMeter, current_meter
from vllm_proxy.engine_host.engines.vllm import VllmEngine
from vllm_proxy.engine_host.lora.registry import AdapterPolicy, AdapterRegistry


class TestApp:
    """The engine's application, each request metered under its x-test-id."""

    __test__ = False

    def __init__(self, engine: VllmEngine, registry: AdapterRegistry) -> None:
        self._engine = engine
        self._registry = registry
        self._meters: dict[str, UsageMeter] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/test/"):
            body = orjson.dumps(await self._answer(scope, receive), default=str)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        test_id = dict(scope.get("headers", ())).get(b"x-test-id")
        meter = UsageMeter()
        if test_id is not None:
            self._meters[test_id.decode()] = meter
        token = current_meter.set(meter)
        try:
            await self._engine.app(scope, receive, send)
        finally:
            current_meter.reset(token)

    async def _answer(self, scope: Any, receive: Any) -> Any:
        match scope["path"]:
            case "/test/load":
                return dataclasses.asdict(self._engine.load())
            case "/test/meter":
                name = scope["query_string"].decode().removeprefix("id=")
                return dataclasses.asdict(self._meters.get(name, UsageMeter()))
            case "/test/state":
                limits = self._engine.adapter_limits()
                return {
                    "adapters": [a.name for a in self._registry.adapters()],
                    "engine_ids": sorted(await self._engine._engine.list_loras()),
                    "limits": {
                        "max_rank": limits.max_rank,
                        "modules": sorted(limits.target_modules),
                        "shapes": limits.shapes,
                    },
                }
            case "/test/generate":
                return await self._generate(orjson.loads((await receive())["body"]))
        return None

    async def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        meter = UsageMeter()
        current_meter.set(meter)
        parameters = GenerateParameters(
            body["model"], body["prompt"], "typed", body.get("max_tokens"), body.get("temperature")
        )
        pieces = [piece async for piece in self._engine.generate(parameters)]
        return {
            "text": "".join(piece.text for piece in pieces),
            "token_ids": sum(len(piece.token_ids) for piece in pieces),
            "finish_reason": pieces[-1].finish_reason,
            "meter": dataclasses.asdict(meter),
        }


def _tell(file: str, text: str) -> None:
    Path(file + ".new").write_text(text, encoding="utf-8")
    Path(file + ".new").rename(file)


async def run(config: Path) -> int:
    loaded = load_settings(config)
    enter_root(loaded)
    settings = loaded.settings
    setup_logging("engine-test", settings.log_level)
    stop = StopSignal()
    stop.install()
    registry: AdapterRegistry | None = None

    async def resolve(name: str) -> bool:
        return registry is not None and await registry.resolve(name)

    engine = VllmEngine(settings, resolve)
    lora = settings.vllm.lora
    policy = AdapterPolicy(
        allowed_roots=tuple(lora.allowed_roots),
        cache_dir=lora.runtime_resolver.cache_dir,
        allow_runtime_updates=lora.runtime_resolver.allow_runtime_updates,
        preload=tuple(lora.preload),
        load_timeout_s=settings.engine_host.adapter_load_timeout_s,
    )
    try:
        await engine.start()
        registry = AdapterRegistry(engine, policy, lambda: None)
        await registry.preload()
        app = TestApp(engine, registry)
        serving = asyncio.create_task(native_http.serve(app, registry, "127.0.0.1", settings.vllm_port, stop))
        death = asyncio.create_task(engine.wait_dead())
        _tell("ready", str(os.getpid()))
        await asyncio.wait([serving, death], return_when=asyncio.FIRST_COMPLETED)
        if death.done():
            _tell("died", death.result())
            stop.request()
            await serving
            return 3
        death.cancel()
        return 0
    finally:
        await engine.stop()


if __name__ == "__main__":
    sys.exit(uvloop.run(run(Path(sys.argv[1]))))
