"""The adapters of one engine: which are loaded, from where, and that loading is safe and happens once.

The engine carries out what the registry decides (engines/base.py). A name means one set of weights at a time; a load
either succeeds or leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.errors import (
    AdapterExists,
    AdapterNotFound,
    InvalidAdapter,
    InvalidRequest,
    PermissionDenied,
    RequestTimeout,
    ServiceError,
)
from vllm_proxy.common.settings import LoraPreload
from vllm_proxy.engine_host.engines.base import Engine, ModelCard
from vllm_proxy.engine_host.lora.cache_folder import CacheFolder
from vllm_proxy.engine_host.lora.checks import check_adapter, check_name, confine
from vllm_proxy.engine_host.lora.operations import Operations

log = logging.getLogger(__name__)

PRELOAD = router_pb2.ADAPTER_ORIGIN_PRELOAD
DECLARED = router_pb2.ADAPTER_ORIGIN_DECLARED
NATIVE = router_pb2.ADAPTER_ORIGIN_NATIVE
#: Found in the engine, and nobody's here to load again.
UNSPECIFIED = router_pb2.ADAPTER_ORIGIN_UNSPECIFIED
RESOLVED = router_pb2.ADAPTER_ORIGIN_RESOLVED


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    name: str
    path: Path
    #: The base model's name.
    base: str
    #: SHA-256 of its files, in hex.
    digest: str
    origin: router_pb2.AdapterOrigin


@dataclass(frozen=True, slots=True)
class AdapterPolicy:
    """What may be loaded. Relative paths are relative to the working directory."""

    #: Folders that adapters may lie under. cache_dir and the preloaded paths are allowed besides.
    allowed_roots: tuple[Path, ...] = ()
    #: Where the resolver looks for <name>; None: no resolver.
    cache_dir: Path | None = None
    #: Whether anything but preload may change the adapters.
    allow_runtime_updates: bool = True
    preload: tuple[LoraPreload, ...] = ()
    load_timeout_s: float = 120.0

    @property
    def roots(self) -> tuple[Path, ...]:
        """All folders that adapters may lie under."""
        cache = () if self.cache_dir is None else (self.cache_dir,)
        return tuple(dict.fromkeys([*self.allowed_roots, *(item.path for item in self.preload), *cache]))


class AdapterRegistry:
    """Adapters by name. All methods run on one event loop; files are read in threads.

    `on_change` is called after every change, from the loop. Callers may be cancelled: what they began goes on, so
    that others who wait for the same adapter get it.
    """

    def __init__(
        self,
        engine: Engine,
        policy: AdapterPolicy,
        on_change: Callable[[], None],
        observe: Callable[[str, bool, float], None] = lambda kind, ok, duration_s: None,
    ) -> None:
        """`observe` is told of each load and unload that was tried, and how long it took in seconds."""
        self._engine = engine
        self._policy = policy
        self._on_change = on_change
        self._observe = observe
        self._adapters: dict[str, LoadedAdapter] = {}
        self._operations: Operations[LoadedAdapter] = Operations()
        #: None: no resolver.
        self._cache = CacheFolder(policy.cache_dir) if policy.cache_dir is not None else None
        self._withdrawn: list[str] = []
        self._engine_seen = False
        self._roots = policy.roots
        #: Whether the adapters that the configuration names were loaded, so that changes are this class's to follow.
        self._preloaded = False

    @property
    def updates_allowed(self) -> bool:
        return self._policy.allow_runtime_updates and self._engine.supports_lora

    def adapters(self) -> Sequence[LoadedAdapter]:
        """In the order they were loaded."""
        return list(self._adapters.values())

    def base_of(self, name: str) -> str:
        """The base model of a loaded adapter; empty if there is none of this name."""
        adapter = self._adapters.get(name)
        return adapter.base if adapter is not None else ""

    def take_withdrawn(self) -> list[str]:
        """The names that were unloaded at the engine's own port since the last call."""
        names, self._withdrawn = self._withdrawn, []
        return names

    async def preload(self) -> None:
        """Loads the configured adapters one by one. One that fails is logged; the others and the base still serve."""
        self._preloaded = True
        for item in self._policy.preload:
            if item.name not in self._adapters:
                await self._preload(item)

    async def use_policy(self, policy: AdapterPolicy) -> list[str]:
        """Follows a configuration that was changed: what it names anew or with another folder is loaded, what it names
        no more is unloaded. Returns what failed, a line each; an adapter that cannot be replaced stays."""
        before = {item.name: item for item in self._policy.preload}
        self._policy, self._roots = policy, policy.roots
        if not self._preloaded:
            return []
        failures: list[str] = []
        wanted = {item.name for item in policy.preload}
        for name in before.keys() - wanted:
            adapter = self._adapters.get(name)
            if adapter is None or adapter.origin != PRELOAD:
                continue
            try:
                await self._perform(name, ("unload", name), functools.partial(self._unload, name, False))
            except ServiceError as e:
                failures.append(f"{name}: {e.message}")
        for item in policy.preload:
            if item != before.get(item.name) or item.name not in self._adapters:
                failure = await self._preload(item, replace=item.name in before)
                failures += [f"{item.name}: {failure}"] if failure else []
        return failures

    async def _preload(self, item: LoraPreload, *, replace: bool = False) -> str:
        """Returns why it failed; empty if it did not."""
        try:
            await self.load(item.name, str(item.path), item.base_model_name or "", origin=PRELOAD, replace=replace)
        except AdapterExists:
            pass  # found in an engine that was there before
        except ServiceError as e:
            log.error("preload failed", extra={"adapter": item.name, "reason": e.reason, "detail": e.message})
            return e.message
        return ""

    async def load(
        self, name: str, path: str, base: str, *, origin: router_pb2.AdapterOrigin, replace: bool = False
    ) -> LoadedAdapter:
        """Checks and loads an adapter. A second call for the same name and folder joins the first.

        Raises InvalidAdapter, AdapterExists (unless `replace`), PermissionDenied, RequestTimeout.
        """
        if origin != PRELOAD:
            self._require_updates()
        check_name(name)
        purpose = ("load", path, base, replace)
        running = self._operations.running(name, purpose)
        if running is not None:
            return await asyncio.shield(running)
        return await self._perform(name, purpose, lambda: self._load(name, path, base, origin, replace))

    async def unload(self, name: str, *, native: bool = False) -> LoadedAdapter:
        """Makes the name unknown at once, waits for its running requests and frees it. `native`: asked for at the
        engine's own port.

        Raises AdapterNotFound, PermissionDenied.
        """
        self._require_updates()
        return await self._perform(name, ("unload", name), lambda: self._unload(name, native))

    async def resolve(self, name: str) -> bool:
        """Loads cache_dir/<name> if it is there. Raises InvalidAdapter if it is there and cannot be loaded."""
        if name in self._adapters:
            return True
        if self._cache is None or not self._policy.allow_runtime_updates:
            return False
        path = await self._cache.find(name)
        if path is None:
            return False
        try:
            await self.load(name, str(path), "", origin=RESOLVED)
        except AdapterExists:
            pass  # somebody was faster
        except ServiceError as e:
            log.warning("resolver failed", extra={"adapter": name, "reason": e.reason, "detail": e.message})
            raise
        return name in self._adapters

    def observe(self, cards: Sequence[ModelCard]) -> None:
        """Takes in what was loaded at the engine's own port, and drops what was unloaded there. For engines that others
        reach too; the first look after a start or `engine_is_new` finds what was there before."""
        present = {card.name: card for card in cards}
        first, self._engine_seen = not self._engine_seen, True
        changed = False
        for name, adapter in list(self._adapters.items()):
            if name not in present and name not in self._operations:
                del self._adapters[name]
                if not first:
                    self._withdrawn.append(name)
                log.info("adapter vanished", extra={"adapter": name, "path": str(adapter.path)})
                changed = True
        for name, card in present.items():
            if name not in self._adapters and name not in self._operations:
                self._operations.start(name, ("adopt",), functools.partial(self._adopt, card, first))
        if changed:
            self._on_change()

    def engine_is_new(self) -> None:
        """The engine was started anew, by whomever: what it lacks was not unloaded, what it has was not loaded late."""
        self._engine_seen = False

    def withholds(self, name: str) -> bool:
        return self._cache is not None and self._cache.withholds(name)

    async def _adopt(self, card: ModelCard, first: bool) -> LoadedAdapter:
        """One that was found can be loaded again after a restart of the engine if it passes the same checks."""
        origin, digest = UNSPECIFIED, ""
        path = Path(card.root)
        try:
            check_name(card.name)
            limits = self._engine.adapter_limits()
            checked = await asyncio.to_thread(lambda: check_adapter(confine(path, self._roots), limits, self._roots))
        except InvalidAdapter as e:
            log.info("adapter found in the engine", extra={"adapter": card.name, "detail": e.message})
        else:
            path, digest = checked.path, checked.digest
            in_cache = self._cache is not None and self._cache.holds(path)
            preloaded = any(item.name == card.name for item in self._policy.preload)
            if preloaded:
                origin = PRELOAD
            elif in_cache:
                origin = RESOLVED
            elif not first:
                origin = NATIVE
            log.info("adapter found in the engine", extra={"adapter": card.name, "path": str(path), "digest": digest})
        adapter = LoadedAdapter(card.name, path, card.base, digest, origin)
        self._adapters[card.name] = adapter
        self._on_change()
        return adapter

    async def close(self) -> None:
        """Cancels what is still going on."""
        await self._operations.close()

    def _require_updates(self) -> None:
        if not self._policy.allow_runtime_updates:
            raise PermissionDenied(
                "Adapters may not be changed while the engine runs (runtime_resolver.allow_runtime_updates)."
            )
        if not self._engine.supports_lora:
            raise InvalidRequest("This engine takes no adapters.")

    async def _perform(
        self, name: str, purpose: tuple[str, *tuple[Hashable, ...]], action: Callable[[], Awaitable[LoadedAdapter]]
    ) -> LoadedAdapter:
        return await asyncio.shield(self._operations.start(name, purpose, lambda: self._observed(purpose[0], action)))

    async def _observed(self, kind: str, action: Callable[[], Awaitable[LoadedAdapter]]) -> LoadedAdapter:
        started, ok = time.monotonic(), False
        try:
            adapter = await action()
            ok = True
            return adapter
        finally:
            self._observe(kind, ok, time.monotonic() - started)

    async def _load(
        self, name: str, path: str, base: str, origin: router_pb2.AdapterOrigin, replace: bool
    ) -> LoadedAdapter:
        if not self._engine.supports_lora:
            raise InvalidAdapter("This engine takes no adapters (lora.enabled).")
        bases = self._engine.base_models()
        if name in bases:
            raise InvalidAdapter(f"{name} is the name of a base model.")
        if name in self._adapters and not replace:
            raise AdapterExists(f"An adapter named {name} is loaded already.")
        if base and base not in bases:
            raise InvalidAdapter(f"Base model {base} is not served here (it is {', '.join(bases)}).")
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._policy.load_timeout_s):
                limits = self._engine.adapter_limits()
                # What the configuration names may be a folder of links into a model cache.
                roots = self._roots if origin != PRELOAD else (Path("/"),)
                checked = await asyncio.to_thread(lambda: check_adapter(confine(Path(path), roots), limits, roots))
                await self._engine.load_adapter(name, checked.path)
        except TimeoutError:
            raise RequestTimeout(f"Loading {name} took longer than {self._policy.load_timeout_s:g} s.") from None
        adapter = LoadedAdapter(name, checked.path, base or bases[0], checked.digest, origin)
        self._adapters.pop(name, None)
        self._adapters[name] = adapter
        if self._cache is not None:
            self._cache.forget(name)
        log.info(
            "adapter loaded",
            extra={
                "adapter": name,
                "path": str(checked.path),
                "digest": checked.digest,
                "rank": checked.rank,
                "origin": router_pb2.AdapterOrigin.Name(origin),
                "duration_ms": round((time.monotonic() - started) * 1000),
            },
        )
        self._on_change()
        return adapter

    async def _unload(self, name: str, native: bool) -> LoadedAdapter:
        adapter = self._adapters.pop(name, None)
        if adapter is None:
            raise AdapterNotFound(f"The adapter {name} is not loaded.")
        if native:
            self._withdrawn.append(name)
        if self._cache is not None:
            await self._cache.withhold(name)
        self._on_change()
        await self._engine.remove_adapter(name)
        log.info("adapter unloaded", extra={"adapter": name, "native": native})
        self._on_change()
        return adapter
