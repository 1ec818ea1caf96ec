"""SGLang's side of the LoRA registry: names, loads and running calls.

Clients' names are kept here; SGLang sees each load under a name of its own (`pirate@7`), which is never used twice. So
an adapter that was unloaded cannot come back by itself: SGLang loads any name again that it has ever known.

SGLang waits for an adapter's requests before it unloads it, by a count that has been wrong before (upstream issues
25864, 34205, 36894): the unload then waits for ever and with it every later load. So the calls are counted here, and
SGLang is asked to unload only what is idle. Written against SGLang 0.5.23 (`sglang/srt/lora/lora_registry.py`,
`sglang/srt/managers/tokenizer_control_mixin.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_proxy.common.errors import AdapterNotFound, InvalidAdapter, InvalidRequest, ModelNotFound
from vllm_proxy.common.lifecycle import cancel_all, spawn
from vllm_proxy.engine_host.engines.base import ResolveAdapter
from vllm_proxy.engine_host.engines.sglang_usage import EngineCall

log = logging.getLogger(__name__)

_ABORT_AGAIN_S = 1.0


class _Loaded:
    """One load of an adapter in the engine."""

    __slots__ = ("calls", "engine_name", "idle", "path", "retired")

    def __init__(self, engine_name: str, path: str) -> None:
        self.engine_name = engine_name
        self.path = path
        self.calls: set[EngineCall] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        self.retired = False


class SglangAdapters:
    """Loads, uses and removes adapters in one TokenizerManager. Implements sglang_usage.AdapterUse.

    `abort` ends a call in the engine.
    """

    def __init__(self, manager: Any, resolve: ResolveAdapter, drain_timeout_s: float) -> None:
        self._manager = manager
        self._resolve = resolve
        self._drain_timeout_s = drain_timeout_s
        self.abort: Callable[[EngineCall], None] = lambda _: None
        self._names: dict[str, _Loaded] = {}
        self._of_call: dict[EngineCall, list[_Loaded]] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        # What the start command names (--lora-paths) is taken in as it is.
        for name, ref in manager.lora_registry.get_all_adapters().items():
            self._names[name] = _Loaded(name, ref.lora_path)

    @property
    def paths(self) -> Mapping[str, str]:
        """The loaded adapters' folders by the names that clients use."""
        return {name: loaded.path for name, loaded in self._names.items()}

    # What the registry asks for.

    async def load(self, name: str, path: Path) -> None:
        """Loads under a fresh name, then makes `name` mean it. A former holder of the name is drained behind it.

        Raises InvalidAdapter; then the engine has nothing of it. If cancelled, the load is finished and undone.
        """
        loaded = _Loaded(f"{name}@{next(self._numbers)}", str(path))
        loading = spawn(self._tasks, self._load(loaded), f"load {loaded.engine_name}")
        try:
            fault = await asyncio.shield(loading)
        except asyncio.CancelledError:
            spawn(self._tasks, self._undo(loading, loaded), f"drop {loaded.engine_name}")
            raise
        if fault:
            raise InvalidAdapter(f"The engine refused adapter {name}: {fault}")
        former = self._names.pop(name, None)
        self._names[name] = loaded
        if former is not None:
            spawn(self._tasks, self._retire(former), f"retire {former.engine_name}")

    async def remove(self, name: str) -> None:
        """Forgets the name at once, waits for its running calls (aborts them after the drain timeout), frees it."""
        loaded = self._names.pop(name, None)
        if loaded is None:
            raise AdapterNotFound(f"Adapter {name} is not loaded.")
        # Whoever asked may go away; the engine must be rid of it all the same.
        await asyncio.shield(spawn(self._tasks, self._retire(loaded), f"retire {loaded.engine_name}"))

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def _load(self, loaded: _Loaded) -> str:
        """Returns why the engine refuses it; empty if it does not."""
        from sglang.srt.managers.io_struct import LoadLoRAAdapterReqInput

        result = await self._manager.load_lora_adapter(
            LoadLoRAAdapterReqInput(lora_name=loaded.engine_name, lora_path=loaded.path)
        )
        return "" if result.success else _reason(result.error_message)

    async def _undo(self, loading: asyncio.Task[str], loaded: _Loaded) -> None:
        if not await loading:
            await self._unload(loaded)

    async def _retire(self, loaded: _Loaded) -> None:
        loaded.retired = True
        wait_s = self._drain_timeout_s
        while not await _within(loaded.idle, wait_s):
            log.warning("adapter drain timed out", extra={"adapter": loaded.engine_name, "aborted": len(loaded.calls)})
            for call in list(loaded.calls):
                self.abort(call)
            wait_s = _ABORT_AGAIN_S  # for a call that was only about to enter the engine
        await self._unload(loaded)

    async def _unload(self, loaded: _Loaded) -> None:
        from sglang.srt.managers.io_struct import UnloadLoRAAdapterReqInput

        registry = self._manager.lora_registry
        ref = registry.get_all_adapters().get(loaded.engine_name)
        if ref is not None:
            await asyncio.gather(*self._manager._lora_release_tasks, return_exceptions=True)
            counter = registry._counters.get(ref.lora_id)
            if counter is not None and counter.value() != 0:
                log.warning(
                    "SGLang's count of an idle adapter's requests is off",
                    extra={"adapter": loaded.engine_name, "count": counter.value()},
                )
                registry._counters[ref.lora_id] = type(counter)()
            result = await self._manager.unload_lora_adapter(UnloadLoRAAdapterReqInput(lora_name=loaded.engine_name))
            if not result.success:
                log.error(
                    "SGLang did not unload an adapter",
                    extra={"adapter": loaded.engine_name, "detail": _reason(result.error_message)},
                )
        self._manager.lora_ref_cache.pop(loaded.engine_name, None)

    # What every metered call asks for.

    async def require(self, name: str) -> None:
        """Asks the host for an adapter that is not loaded. Raises ModelNotFound, InvalidAdapter."""
        if name not in self._names and not await self._resolve(name):
            raise _unknown(name)

    async def acquire(self, names: Any, call: EngineCall) -> Any:
        """The engine's names for the adapters of a request, a name or a list of names and None.

        Raises ModelNotFound, InvalidAdapter, InvalidRequest.
        """
        wanted = names if isinstance(names, list) else [names]
        if not all(name is None or isinstance(name, str) for name in wanted):
            raise InvalidRequest("lora_path is neither a name nor a list of names.")
        for name in wanted:
            if name:
                await self.require(name)
        # No await from here on: what is found stays.
        found = [self._find(name) if name else None for name in wanted]
        held = self._of_call[call] = [loaded for loaded in found if loaded is not None]
        for loaded in held:
            loaded.calls.add(call)
            loaded.idle.clear()
        engine_names = [loaded.engine_name if loaded is not None else None for loaded in found]
        return engine_names[0] if isinstance(names, str) else engine_names

    def release(self, call: EngineCall) -> None:
        for loaded in self._of_call.pop(call, ()):
            loaded.calls.discard(call)
            if not loaded.calls:
                loaded.idle.set()

    def _find(self, name: str) -> _Loaded:
        loaded = self._names.get(name)
        if loaded is None:
            raise _unknown(name)
        return loaded


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _unknown(name: str) -> ModelNotFound:
    return ModelNotFound(f"The model `{name[:200]}` does not exist.")


def _reason(message: str | None) -> str:
    """The last line of an engine error, which may carry a traceback."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason was given")[:500]
