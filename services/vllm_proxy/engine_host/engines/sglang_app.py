"""SGLang's own HTTP application over an engine in this process, called without a socket.

Two things are ours: `model` names adapters (SGLang itself answers any unknown name from the base model), and a request
that is over leaves nothing in the engine. Written against SGLang 0.5.23 (`sglang/srt/entrypoints/http_server.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson

from vllm_proxy.common.errors import InvalidRequest, ModelNotFound, ServiceError
from vllm_proxy.engine_host.engines.base import (
    AsgiApp,
    EngineDied,
    Message,
    ModelCard,
    Receive,
    Scope,
    Send,
    current_meter,
)
from vllm_proxy.engine_host.engines.sglang_command import adapter_of
from vllm_proxy.engine_host.engines.sglang_lora import SglangAdapters
from vllm_proxy.engine_host.engines.sglang_usage import EngineCall, Metering, request_calls

#: The handlers of `app.state` that know adapters.
_HANDLERS = ("openai_serving_chat", "openai_serving_completion", "openai_serving_embedding")


async def build_app(engine: Any, adapters: SglangAdapters, lifespan: AsyncExitStack) -> AsgiApp:
    """The application of a started `sglang.Engine`; `lifespan` ends it."""
    from sglang.srt.entrypoints import http_server
    from sglang.srt.utils.auth import add_api_key_middleware, app_has_admin_force_endpoints

    manager, server_args = engine.tokenizer_manager, engine.server_args
    app: Any = http_server.app
    http_server.set_global_state(
        http_server._GlobalState(
            tokenizer_manager=manager,
            template_manager=engine.template_manager,
            scheduler_info=engine._scheduler_init_result.scheduler_infos[0],
        )
    )
    app.is_single_tokenizer_mode = True
    app.server_args = server_args
    # Its warm-up asks SGLang's own port, which is not there; the engine's start has asked the engine.
    app.warmup_thread_kwargs = {"server_args": server_args, "execute_warmup_func": lambda _: False}
    if server_args.api_key or server_args.admin_api_key or app_has_admin_force_endpoints(app):
        add_api_key_middleware(app, api_key=server_args.api_key, admin_api_key=server_args.admin_api_key)
    app.router.routes.insert(0, _models_route(manager, adapters))
    await lifespan.enter_async_context(app.router.lifespan_context(app))
    for name in _HANDLERS:
        _know_adapters(getattr(app.state, name), manager.served_model_name, adapters)
    application: AsgiApp = app
    return application


def _know_adapters(serving: Any, base: str, adapters: SglangAdapters) -> None:
    """Makes one of SGLang's request handlers find adapters by `model`."""
    original: Callable[[Any, Any], Awaitable[Any]] = serving.handle_request

    def resolve_lora_path(model: str, lora_path: Any) -> Any:
        return adapter_of(model, base) or lora_path

    async def handle_request(request: Any, raw_request: Any) -> Any:
        try:
            if request.lora_path is not None and current_meter.get() is not None:
                # A gateway's keys and routes know models, not this.
                raise InvalidRequest("lora_path is not supported here: name the adapter as model.")
            if (adapter := adapter_of(request.model, base)) is not None:
                await adapters.require(adapter)
        except ServiceError as e:
            return _error_response(e)
        return await original(request, raw_request)

    serving._resolve_lora_path = resolve_lora_path
    serving.handle_request = handle_request


def _error_response(error: ServiceError) -> Any:
    from fastapi.responses import ORJSONResponse

    code = "model_not_found" if isinstance(error, ModelNotFound) else None
    content = {"message": error.message, "type": "invalid_request_error", "param": "model", "code": code}
    return ORJSONResponse({"error": content}, status_code=error.http_status)


def ending_requests(app: AsgiApp, metering: Metering) -> AsgiApp:
    """`app`, which returns when nothing of a request is left in the engine and its tokens are counted. Raises
    EngineDied, and lets nothing more out, for what ran when the engine died: how that is told is the host's."""

    async def ending(scope: Scope, receive: Receive, send: Send) -> None:
        calls: list[EngineCall] = []
        token = request_calls.set(calls)
        complete = False

        async def sending(message: Message) -> None:
            nonlocal complete
            if not metering.dead:
                await send(message)
                complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await app(scope, receive, sending)
        finally:
            request_calls.reset(token)
            if calls and not metering.dead:
                await metering.settle(calls)
        if calls and metering.dead and not complete:
            raise EngineDied("the engine died while it answered")

    return ending


def _models_route(manager: Any, adapters: SglangAdapters) -> Any:
    """SGLang's own would list adapters by the engine's names for them."""
    from starlette.responses import Response
    from starlette.routing import Route

    async def models(_: Any) -> Response:
        rows = b",".join(card.card_json for card in model_cards(manager, adapters))
        return Response(b'{"object":"list","data":[' + rows + b"]}", media_type="application/json")

    return Route("/v1/models", models, methods=["GET"])


def model_cards(manager: Any, adapters: SglangAdapters) -> list[ModelCard]:
    """As SGLang's own `GET /v1/models` shows them."""
    from sglang.srt.entrypoints.openai.protocol import ModelCard as Card

    base = manager.served_model_name
    rows = [Card(id=base, root=base, max_model_len=manager.model_config.context_len)]
    rows += [Card(id=name, root=path, parent=base, max_model_len=None) for name, path in adapters.paths.items()]
    return [ModelCard(row.id, orjson.dumps(row.model_dump()), base=row.parent or "") for row in rows]
