"""The simulator behind the HTTP surface of a vLLM server, as a start command can run it: models, metrics, health and
LoRA routes. Flags that it does not know are vLLM's and ignored.

    python tests/support/sim_server.py --port PORT [--model NAME] [--api-key KEY] [--max-num-seqs N] [--fail MESSAGE]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import uvicorn

from vllm_proxy.common.settings import Sim
from vllm_proxy.engine_host.engines.sim import SimEngine

STARTED_AT = time.time()


class SimServer:
    """ASGI."""

    def __init__(self, engine: SimEngine, key: str | None) -> None:
        self._engine = engine
        self._key = key
        self._paths: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if self._key and path.startswith("/v1") and not self._knows_key(scope):
            await _answer(send, 401, {"error": "Unauthorized"})
        elif path == "/version":
            await _answer(send, 200, {"version": "0.32.0"})
        elif path == "/metrics":
            load = self._engine.load()
            text = (
                f'vllm:num_requests_running{{engine="0"}} {load.running}\n'
                f'vllm:num_requests_waiting{{engine="0"}} {load.waiting}\n'
                f'vllm:kv_cache_usage_perc{{engine="0"}} {load.kv_usage}\n'
                f"process_start_time_seconds {STARTED_AT}\n"
            )
            await _answer(send, 200, text.encode())
        elif path == "/v1/models":
            rows = [orjson.loads(card.card_json) for card in await self._engine.model_cards()]
            for row in rows:
                row["root"] = self._paths.get(row["id"], row["root"])
            await _answer(send, 200, {"object": "list", "data": rows})
        elif path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            await self._change(path, orjson.loads((await receive())["body"]), send)
        else:
            await self._engine.app(scope, receive, send)

    async def _change(self, path: str, body: dict[str, str], send: Any) -> None:
        name = body["lora_name"]
        known = name in [card.name for card in await self._engine.model_cards()]
        loading = path == "/v1/load_lora_adapter"
        if known == loading:
            await _answer(send, 400 if loading else 404, {"error": {"message": f"{name}: loaded is {known}"}})
            return
        if loading:
            self._paths[name] = body["lora_path"]
            await self._engine.load_adapter(name, Path(body["lora_path"]))
        else:
            await self._engine.remove_adapter(name)
        await _answer(send, 200, b"Success")

    def _knows_key(self, scope: Any) -> bool:
        return dict(scope["headers"]).get(b"authorization") == f"Bearer {self._key}".encode()


async def _answer(send: Any, status: int, content: Any) -> None:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="sim")
    parser.add_argument("--api-key")
    parser.add_argument("--max-num-seqs", type=int, default=4096)
    parser.add_argument("--fail", metavar="MESSAGE", help="print it and end with status 1 instead")
    args, _ = parser.parse_known_args()
    print(f"sim server on {args.port}", flush=True)
    if args.fail:
        sys.exit(args.fail)
    engine = SimEngine(Sim(model=args.model, step_ms=5, max_num_seqs=args.max_num_seqs))
    await engine.start()
    app = SimServer(engine, args.api_key)
    config = uvicorn.Config(app, host="127.0.0.1", port=args.port, lifespan="off", log_level="warning")
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main())
