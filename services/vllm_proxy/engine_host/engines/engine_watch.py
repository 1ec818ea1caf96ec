"""What an engine in another process is and does now: whether it answers, its models, its load. Asked at intervals,
since others load adapters there and start and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from vllm_proxy.common.settings import EngineHttp
from vllm_proxy.engine_host.engines.base import EngineDied, EngineLoad, ModelCard
from vllm_proxy.engine_host.engines.http_dialects import HttpDialect
from vllm_proxy.engine_host.engines.http_pool import EngineSilent, HttpPool

log = logging.getLogger(__name__)

#: Standard among Prometheus clients; another value means another process.
_PROCESS_START = "process_start_time_seconds"
_OF_ONE_PRIORITY = re.compile(rb'[{,]priority="[^"]')


class EngineWatch:
    """`run` it while the engine is there; it raises EngineDied when the engine is not, or is another process.

    `on_models` is called with the rows of the engine's `/v1/models`, base models first, after each look at it.
    """

    def __init__(
        self,
        pool: HttpPool,
        dialect: HttpDialect,
        settings: EngineHttp,
        on_models: Callable[[Sequence[ModelCard]], None],
    ) -> None:
        self._pool = pool
        self._dialect = dialect
        self._settings = settings
        self._on_models = on_models
        self._poked = asyncio.Event()
        self._looking = asyncio.Lock()
        self._started_at: float | None = None
        self._has_metrics = True
        self.cards: tuple[ModelCard, ...] = ()
        self.load = EngineLoad()

    def poke(self) -> None:
        """Look soon."""
        self._poked.set()

    async def run(self) -> None:
        heard_at = time.monotonic()
        while True:
            self._poked.clear()
            try:
                await self.check()
                await self.look()
                heard_at = time.monotonic()
            except EngineSilent:
                # What runs in a busy engine must not be given up for a late answer.
                if time.monotonic() - heard_at > self._settings.silence_s:
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._poked.wait()

    async def check(self) -> None:
        """Raises EngineDied unless the engine says that it is healthy."""
        status, _ = await self._pool.ask("GET", "/health")
        if status != 200:
            raise EngineDied(f"{self._pool.url}: /health says {status}")

    def forget(self) -> None:
        """The engine is gone: what was known of it may not hold for the next one."""
        self.cards, self.load, self._started_at, self._has_metrics = (), EngineLoad(), None, True

    async def look(self) -> None:
        """Asks for models and load now. Raises EngineDied."""
        async with self._looking:
            await self._look_at_models()
            if self._has_metrics:
                await self._look_at_metrics()

    async def version(self) -> str:
        """Empty if the engine does not tell."""
        return await self.tell(self._dialect.version_path, "version")

    async def tell(self, path: str, key: str) -> str:
        """What the engine answers there under a key; empty if it does not tell."""
        status, body = await self._pool.ask("GET", path)
        answer = _json(body) if status == 200 else None
        return str(answer.get(key) or "") if isinstance(answer, dict) else ""

    async def _look_at_models(self) -> None:
        status, body = await self._pool.ask("GET", "/v1/models")
        if status in (401, 403):
            raise EngineDied(f"{self._pool.url}: /v1/models says {status}: the host has no key of it, or a wrong one")
        answer = _json(body) if status == 200 else None
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise EngineDied(f"{self._pool.url}: /v1/models says {status} and lists nothing")
        cards = [_card(row) for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
        self.cards = tuple(sorted(cards, key=lambda card: bool(card.base)))
        self._on_models(self.cards)

    async def _look_at_metrics(self) -> None:
        status, body = await self._pool.ask("GET", "/metrics")
        if status != 200:
            self._has_metrics = False
            log.warning("the engine tells no load", extra={"url": f"{self._pool.url}/metrics", "status": status})
            return
        dialect = self._dialect
        found = _values(body, (dialect.running_metric, dialect.waiting_metric, dialect.kv_usage_metric, _PROCESS_START))
        running, waiting, kv_usage, started = found
        self.load = EngineLoad(int(sum(running)), int(sum(waiting)), min(max(kv_usage, default=0.0), 1.0))
        if started:
            if self._started_at is not None and started[0] != self._started_at:
                raise EngineDied(f"{self._pool.url}: the engine was restarted")
            self._started_at = started[0]


def _card(row: dict[str, Any]) -> ModelCard:
    parent, root = row.get("parent"), row.get("root")
    return ModelCard(
        name=row["id"],
        card_json=orjson.dumps(row),
        base=parent if isinstance(parent, str) else "",
        root=root if isinstance(root, str) else "",
    )


def _values(text: bytes, names: Sequence[str]) -> list[list[float]]:
    """The values of each metric, one for each set of labels, from Prometheus' text format. Those of one priority are
    left out: SGLang tells them beside the total, whose label is empty."""
    wanted = {name.encode(): i for i, name in enumerate(names)}
    values: list[list[float]] = [[] for _ in names]
    for line in text.splitlines():
        place = wanted.get(line.partition(b" ")[0].partition(b"{")[0])
        if place is not None and not _OF_ONE_PRIORITY.search(line):
            try:
                values[place].append(float(line.rpartition(b" ")[2]))
            except ValueError:
                continue
    return values


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
