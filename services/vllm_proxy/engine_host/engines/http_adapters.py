"""The adapters of an engine in another process: loaded and unloaded through its own routes, drained before.

Weights never change under a request: a name that gets new ones is drained and unloaded first, and requests for it wait
meanwhile. Where the engine's prefix cache is keyed by name and path, new weights from an old path are loaded through
another path, a link, or refused where the engine may not see this machine's files.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from vllm_proxy.common.errors import AdapterNotFound, EngineUnavailable, InvalidAdapter, ModelNotFound
from vllm_proxy.common.lifecycle import cancel_all, spawn
from vllm_proxy.engine_host.engines.base import EngineDied
from vllm_proxy.engine_host.engines.engine_watch import EngineWatch
from vllm_proxy.engine_host.engines.http_dialects import HttpDialect
from vllm_proxy.engine_host.engines.http_pool import HttpPool

log = logging.getLogger(__name__)

_ABORT_AGAIN_S = 1.0
_Signature = tuple[int, ...]


class _Use:
    """A name that is asked for now or is being changed."""

    __slots__ = ("cancels", "gate", "idle", "retired")

    def __init__(self) -> None:
        self.cancels: set[Callable[[], Any]] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        #: New requests are told that there is no such model.
        self.retired = False
        #: New requests wait for it.
        self.gate: asyncio.Event | None = None


class HttpAdapters:
    def __init__(
        self, pool: HttpPool, dialect: HttpDialect, watch: EngineWatch, links: Path | None, drain_timeout_s: float
    ) -> None:
        """`links`: a folder that the engine sees too, for other paths to the same files. None: there is none."""
        self._pool = pool
        self._dialect = dialect
        self._watch = watch
        self._links = links
        self._drain_timeout_s = drain_timeout_s
        self._uses: dict[str, _Use] = {}
        #: (name, path) -> what was loaded from there in this engine's life.
        self._history: dict[tuple[str, Path], _Signature] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def use(self, name: str, cancel: Callable[[], Any]) -> AsyncIterator[None]:
        """Holds a name while it is asked for. Raises ModelNotFound for one that is being unloaded."""
        use = self._uses.setdefault(name, _Use())
        while use.gate is not None:
            await use.gate.wait()
        if use.retired:
            raise ModelNotFound(f"The model `{name}` does not exist.")
        use.cancels.add(cancel)
        use.idle.clear()
        try:
            yield
        finally:
            use.cancels.discard(cancel)
            if not use.cancels:
                use.idle.set()
                self._tidy(name, use)

    def running(self) -> int:
        """Requests under way."""
        return sum(len(use.cancels) for use in self._uses.values())

    async def load(self, name: str, path: Path) -> None:
        """Raises InvalidAdapter, EngineUnavailable."""
        signature = await asyncio.to_thread(_signature, path)
        target = await asyncio.to_thread(self._target, name, path, signature)
        use = self._uses.setdefault(name, _Use())
        former = next((card.root for card in self._watch.cards if card.name == name), None)
        use.gate = asyncio.Event()
        try:
            if former is not None:
                await self._drain(name, use)
                await self._ask_unload(name)
            try:
                await self._ask_load(name, target)
            except asyncio.CancelledError:
                # Nobody waits for it any more; the engine may still be at it.
                spawn(self._tasks, self._drop(name), f"drop {name}")
                raise
            except InvalidAdapter:
                if former:
                    await self._ask_load(name, Path(former))
                raise
            finally:
                await self._look()
            self._history[name, target] = signature
        finally:
            gate, use.gate = use.gate, None
            gate.set()
            self._tidy(name, use)

    async def remove(self, name: str) -> None:
        """Forgets the name at once, waits for its running requests (ends them after the drain timeout), unloads it."""
        await asyncio.shield(spawn(self._tasks, self._remove(name), f"unload {name}"))

    def engine_is_new(self) -> None:
        """Another engine process: it has loaded nothing from anywhere yet."""
        self._history.clear()

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def _remove(self, name: str) -> None:
        use = self._uses.setdefault(name, _Use())
        use.retired = True
        try:
            await self._drain(name, use)
            await self._ask_unload(name)
            await self._look()
        finally:
            use.retired = False
            self._tidy(name, use)

    async def _drain(self, name: str, use: _Use) -> None:
        wait_s = self._drain_timeout_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await use.idle.wait()
                return
            except TimeoutError:
                log.warning("adapter drain timed out", extra={"adapter": name, "aborted": len(use.cancels)})
                for cancel in list(use.cancels):
                    cancel()
                wait_s = _ABORT_AGAIN_S

    def _tidy(self, name: str, use: _Use) -> None:
        if not use.cancels and not use.retired and use.gate is None and self._uses.get(name) is use:
            del self._uses[name]

    def _target(self, name: str, path: Path, signature: _Signature) -> Path:
        """The path that the engine is told. Blocks. Raises InvalidAdapter."""
        if self._dialect.reloads_safely or self._history.get((name, path), signature) == signature:
            return path
        if self._links is None:
            raise InvalidAdapter(
                f"The engine has had other weights from {path} under the name {name}, and its prefix cache may still "
                "hold what they computed: load the new ones from another folder or under another name."
            )
        self._links.mkdir(parents=True, exist_ok=True)
        link = self._links / f"{name}-{hashlib.sha256(repr(signature).encode()).hexdigest()[:16]}"
        if not link.is_symlink():
            link.symlink_to(path)
        return link.absolute()

    async def _ask_load(self, name: str, path: Path) -> None:
        status, body = await self._post(self._dialect.load_lora_path, {"lora_name": name, "lora_path": str(path)})
        if status == 404 and b"does not exist" not in body and b"No adapter" not in body:
            raise InvalidAdapter(
                f"{self._dialect.name} at {self._pool.url} takes no adapters while it runs: start it with --enable-lora"
                + (" and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1." if self._dialect.kind == "vllm" else ".")
            )
        if status != 200:
            raise InvalidAdapter(f"The engine refused adapter {name}: {_reason(body)}")

    async def _ask_unload(self, name: str) -> None:
        status, body = await self._post(self._dialect.unload_lora_path, {"lora_name": name})
        if status != 200 and any(card.name == name for card in self._watch.cards):
            await self._look()
            if any(card.name == name for card in self._watch.cards):
                raise AdapterNotFound(f"The engine did not unload {name}: {_reason(body)}")

    async def _drop(self, name: str) -> None:
        await self._ask_unload(name)
        await self._look()

    async def _post(self, path: str, content: dict[str, str]) -> tuple[int, bytes]:
        """Without a time limit of its own: whoever asked has one."""
        try:
            async with self._pool.request(
                "POST", path, headers={"Content-Type": "application/json"}, body=orjson.dumps(content), own=True
            ) as response:
                return response.status, await response.read()
        except EngineDied as e:
            raise EngineUnavailable(str(e)) from None

    async def _look(self) -> None:
        try:
            await self._watch.look()
        except EngineDied:
            self._watch.poke()


def _signature(folder: Path) -> _Signature:
    """Changes when other weights are put into a folder. Blocks."""
    stats = [file.stat() for file in sorted(folder.iterdir()) if file.is_file()]
    return tuple(n for s in stats for n in (s.st_ino, s.st_size, s.st_mtime_ns))


def _reason(body: bytes) -> str:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")[:300]
    if not isinstance(answer, dict):
        answer = {"message": answer}
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else answer.get("error_message") or answer.get("message")
    lines = [line.strip() for line in str(message or answer).splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:500]
