"""One engine host without the rest of the gateway: what the engine tests drive.

Runs in the environment that its engine wants: `python engine_process.py CONFIG NAME`. The host is the real one; nobody
answers it as auth or router. Its application is served besides on a port of its own, which the file `port` names, with
the routes of the engine's own port. Each request is metered under its `x-test-id` and has the priority in its
`x-test-priority`, as that of a key. For tests there is `GET /test/state`
(the host's state, the registry's adapters, what the engine itself holds, its limits), `GET /test/load`,
`GET /test/meter?id=X` and `POST /test/generate` (the typed interface; model, prompt, max_tokens, temperature).
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import Any

import orjson
import uvicorn
import uvloop

from vllm_proxy.common.lifecycle import StopSignal
from vllm_proxy.common.logging import setup_logging
from vllm_proxy.common.settings import enter_root, load_settings
from vllm_proxy.engine_host import native_http
from vllm_proxy.engine_host.config import host_config
from vllm_proxy.engine_host.engines.base import EngineDied, GenerateParameters, UsageMeter, current_meter
from vllm_proxy.engine_host.engines.priority import current_priority
from vllm_proxy.engine_host.server import HostService


class TestApp:
    """The engine's application, each request metered under its x-test-id."""

    __test__ = False

    def __init__(self, service: HostService) -> None:
        self._service = service
        self._engine = service.engine
        self._meters: dict[str, UsageMeter] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/test/"):
            await _answer(send, 200, await self._tell(scope, receive))
            return
        test_id = dict(scope.get("headers", ())).get(b"x-test-id")
        meter = UsageMeter()
        if test_id is not None:
            self._meters[test_id.decode()] = meter
        priority = dict(scope.get("headers", ())).get(b"x-test-priority")
        if priority is not None:
            current_priority.set(int(priority))
        token = current_meter.set(meter)
        try:
            await self._engine.app(scope, receive, send)
        except EngineDied as e:
            # What the host makes of it; without effect once the answer has begun.
            await _answer(send, 502, {"error": {"message": str(e), "code": "engine_failed"}})
        finally:
            current_meter.reset(token)

    async def _tell(self, scope: Any, receive: Any) -> Any:
        match scope["path"]:
            case "/test/load":
                return dataclasses.asdict(self._service.host.load())
            case "/test/meter":
                name = scope["query_string"].decode().removeprefix("id=")
                return dataclasses.asdict(self._meters.get(name, UsageMeter()))
            case "/test/state":
                return await self._state()
            case "/test/generate":
                return await self._generate(orjson.loads((await receive())["body"]))
        return None

    async def _state(self) -> dict[str, Any]:
        state = self._service.host.state_name
        if state != "SERVING":
            return {"state": state}
        limits = self._engine.adapter_limits()
        return {
            "state": state,
            "version": self._engine.version,
            "models": [card.name for card in await self._engine.model_cards()],
            "adapters": [a.name for a in self._service.registry.adapters()],
            "engine_holds": await _held(self._engine),
            "limits": {
                "max_rank": limits.max_rank,
                "modules": sorted(limits.target_modules),
                "shapes": limits.shapes,
            },
        }

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


async def _held(engine: Any) -> list[Any]:
    """The adapters that the engine itself has now: its own ids where they can be had, else names."""
    inner = getattr(engine, "_engine", None)
    if hasattr(inner, "list_loras"):  # vLLM
        return sorted(await inner.list_loras())
    if hasattr(inner, "tokenizer_manager"):  # SGLang
        return sorted(inner.tokenizer_manager.lora_registry.get_all_adapters())
    return [card.name for card in await engine.model_cards() if card.base]


async def _answer(send: Any, status: int, content: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(content, default=str)})


def _tell_port(port: int) -> None:
    Path("port.new").write_text(str(port))
    Path("port.new").rename("port")


async def run(config: Path, name: str) -> int:
    loaded = load_settings(config)
    enter_root(loaded)
    setup_logging("engine-test", loaded.settings.log_level)
    stop = StopSignal()
    stop.install()
    service = HostService(loaded, host_config(loaded, name))
    listener = native_http.listen("127.0.0.1", 0)[0]
    app = native_http.with_lora_routes(TestApp(service), service.registry)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server._serve([listener]))
    _tell_port(listener.getsockname()[1])
    try:
        return await service.run(stop)
    finally:
        server.should_exit = server.force_exit = True
        await serving


if __name__ == "__main__":
    sys.exit(uvloop.run(run(Path(sys.argv[1]), sys.argv[2])))
