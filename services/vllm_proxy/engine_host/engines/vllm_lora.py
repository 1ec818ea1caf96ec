"""vLLM's side of the LoRA registry: names, engine ids and running calls.

One id space: vLLM's serving layer (`OpenAIServingModels.lora_requests`, `lora_id_counter`) keeps the names that
clients use; the engine sees each load under an id and a name of its own (`pirate@7`). vLLM keys its prefix cache by
that name, so no block computed with old weights is ever used for new ones.

Written against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_proxy.common.errors import AdapterNotFound, InvalidAdapter, ServiceError
from vllm_proxy.common.lifecycle import cancel_all, spawn
from vllm_proxy.engine_host.engines.base import ResolveAdapter
from vllm_proxy.engine_host.engines.vllm_usage import EngineCall

log = logging.getLogger(__name__)


_ABORT_AGAIN_S = 1.0


class _Loaded:
    """One load of an adapter in the engine."""

    __slots__ = ("calls", "idle", "request", "retired")

    def __init__(self, request: Any) -> None:
        #: The LoRARequest as the engine knows it.
        self.request = request
        self.calls: set[EngineCall] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        self.retired = False


class VllmAdapters:
    """Loads, uses and removes adapters in one AsyncLLM. Implements vllm_usage.AdapterUse.

    `memory_slots` is `max_cpu_loras`: with more adapters loaded, vLLM drops the least used from memory and reads it
    again at its next request; a file that is gone by then would kill the engine in the middle of a step, so such a
    request asks the engine for the adapter first.
    """

    def __init__(self, engine: Any, serving_models: Any, memory_slots: int, drain_timeout_s: float) -> None:
        self._engine = engine
        self._models = serving_models
        self._memory_slots = memory_slots
        self._drain_timeout_s = drain_timeout_s
        #: By engine id, retired ones included until they are gone.
        self._loaded: dict[int, _Loaded] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # What the registry asks for.

    async def load(self, name: str, path: Path) -> None:
        """Loads under a fresh id, then makes `name` mean it. A former holder of the name is drained behind it.

        Raises InvalidAdapter; then the engine has nothing of it. If cancelled, the engine drops it by itself.
        """
        from vllm.lora.request import LoRARequest

        engine_id = self._models.lora_id_counter.inc(1)
        request = LoRARequest(lora_name=f"{name}@{engine_id}", lora_int_id=engine_id, lora_path=str(path))
        try:
            accepted = await self._engine.add_lora(request)
        except asyncio.CancelledError:
            self._spawn(self._engine.remove_lora(engine_id), f"drop {request.lora_name}")
            raise
        except Exception as e:
            await self._engine.remove_lora(engine_id)
            if self._engine.errored:
                raise
            raise InvalidAdapter(f"The engine refused adapter {name}: {_reason(e)}") from None
        if not accepted:
            await self._engine.remove_lora(engine_id)
            raise InvalidAdapter(f"The engine refused adapter {name}.")
        former = self._models.lora_requests.get(name)
        self._loaded[engine_id] = _Loaded(request)
        # What the serving layer shows and answers with is the client's name.
        self._models.lora_requests[name] = LoRARequest(
            lora_name=name,
            lora_int_id=engine_id,
            lora_path=str(path),
            base_model_name=self._models.base_model_paths[0].name,
        )
        if former is not None:
            self._spawn(self._retire(former), f"retire {former.lora_name}")

    async def remove(self, name: str) -> None:
        """Forgets the name at once, waits for its running calls (aborts them after the drain timeout), frees it."""
        request = self._models.lora_requests.pop(name, None)
        if request is None:
            raise AdapterNotFound(f"Adapter {name} is not loaded.")
        # Whoever asked may go away; the engine must be rid of it all the same.
        await asyncio.shield(self._spawn(self._retire(request), f"retire {name}"))

    async def pin(self, name: str) -> None:
        request = self._models.lora_requests.get(name)
        if request is None:
            raise AdapterNotFound(f"Adapter {name} is not loaded.")
        await self._engine.pin_lora(request.lora_int_id)

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def _retire(self, request: Any) -> None:
        loaded = self._loaded.get(request.lora_int_id)
        if loaded is not None:
            loaded.retired = True
            wait_s = self._drain_timeout_s
            while not await _within(loaded.idle, wait_s):
                ids = [call.request_id for call in loaded.calls if call.request_id]
                log.warning("adapter drain timed out", extra={"adapter": request.lora_name, "aborted": len(ids)})
                await self._engine.abort(ids, internal=True)
                wait_s = _ABORT_AGAIN_S  # for a call that was only about to enter the engine
        await self._engine.remove_lora(request.lora_int_id)
        self._loaded.pop(request.lora_int_id, None)

    def _spawn(self, coroutine: Any, name: str) -> asyncio.Task[Any]:
        return spawn(self._tasks, coroutine, name)

    # What every metered call asks for.

    async def acquire(self, lora_request: Any, call: EngineCall) -> Any:
        """The engine's request for one that the serving layer looked up, perhaps some time ago.

        A name that was flipped to new weights since means the new ones; a name that is gone is refused: the engine
        itself would load it again from disk.
        """
        loaded = self._loaded.get(lora_request.lora_int_id)
        if loaded is None or loaded.retired:
            loaded = self._current(lora_request.lora_name)
        loaded.calls.add(call)
        loaded.idle.clear()
        if len(self._loaded) > self._memory_slots:
            try:
                await self._engine.add_lora(loaded.request)
            except BaseException as e:
                self.release(loaded.request, call)
                if isinstance(e, Exception) and not self._engine.errored:
                    raise _refusal(lora_request.lora_name, f"could not be read again: {_reason(e)}") from None
                raise
        return loaded.request

    def release(self, engine_request: Any, call: EngineCall) -> None:
        loaded = self._loaded.get(engine_request.lora_int_id)
        if loaded is not None:
            loaded.calls.discard(call)
            if not loaded.calls:
                loaded.idle.set()

    def _current(self, name: str) -> _Loaded:
        request = self._models.lora_requests.get(name)
        if request is None:
            raise _refusal(name, "does not exist")
        # One that vLLM loaded itself (--lora-modules, another resolver) is taken in as it is.
        return self._loaded.setdefault(request.lora_int_id, _Loaded(request))


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def take_over(serving_models: Any, resolve: ResolveAdapter) -> None:
    """Makes vLLM's serving layer ask the host where it would load adapters itself.

    Resolvers of other plugins keep working, after the host's; the filesystem resolver is replaced by it.
    """
    from vllm.entrypoints.serve import create_error_response
    from vllm.plugins.lora_resolvers.filesystem_resolver import FilesystemResolver

    serving_models.lora_resolvers = [r for r in serving_models.lora_resolvers if not isinstance(r, FilesystemResolver)]
    original: Callable[[str], Any] = serving_models.resolve_lora

    async def resolve_lora(name: str) -> Any:
        try:
            found = await resolve(name)
        except ServiceError as e:
            return create_error_response(e.message, "BadRequestError")
        if found and (request := serving_models.lora_requests.get(name)) is not None:
            return request
        return await original(name)

    async def refuse(*_: Any, **__: Any) -> Any:
        return create_error_response("Adapters of this engine are loaded through its host.", "BadRequestError")

    serving_models.resolve_lora = resolve_lora
    # Also reached through vLLM's other LoRA routes, which know nothing of the host's rules.
    serving_models.load_lora_adapter = refuse
    serving_models.unload_lora_adapter = refuse


def _refusal(name: str, why: str) -> Exception:
    from vllm.exceptions import VLLMNotFoundError

    error: Exception = VLLMNotFoundError(f"The model `{name}` {why}.")
    return error


def _reason(error: BaseException) -> str:
    """The last line of an engine error, which may carry a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
